"""A layer with one label: its CUDA kernels, executed as PTX, have the bits of the CPU; see test_cuda_kernels.py."""

import re
from pathlib import Path

import pytest
import torch
from cuda_kernels import FLAGS, FLOATS, name, unexecuted
from ptx import toolchain
from single_kernels import SMALL, agree, load_single, single

from fused_logistic import ops

SAMPLE = Path(__file__).with_name("cuda_single_sample.cu")
NOTHING = (0, 0)  # shared memory that holds no tile: rows stay where they are
float64, float32, float16, bfloat16 = FLOATS


@pytest.fixture(scope="module")
def kernels():
    return load_single()


def layer(rows, features, dtype, target=None, *, gap=0):
    """input (rows with a gap between them), linear_weight, linear_bias and target."""
    x = torch.randn(rows, features + gap).to(dtype)[:, :features]
    w, b = (3 * torch.randn(features) / max(features, 1) ** 0.5).to(dtype), torch.randn(1).to(dtype)
    y = torch.rand(rows)
    return x, w, b, y.to(target or dtype) if (target or dtype).is_floating_point else (y > 0.5).to(target)


SIZES = [
    (1, 1, float32),
    (63, 3, bfloat16),
    (64, 31, float32),
    (65, 32, float16),
    (300, 1, float64),
    (65, 33, float64),
    (90, 128, float32),
    (40, 513, float16),
    (33, 1000, bfloat16),
    (5, 2040, float32),
    (3, 1500, bfloat16),
    (3, 1100, float16),
    (2, 1029, float64),
    (9, 2500, bfloat16),
    (0, 7, float32),
    (3, 0, bfloat16),
]


@pytest.mark.parametrize("rows,features,dtype", SIZES, ids=name)
def test_sizes(kernels, rows, features, dtype):
    agree(kernels, *layer(rows, features, dtype), dtype=dtype)


@pytest.mark.parametrize("dtype,shared", [(bfloat16, SMALL), *((dtype, NOTHING) for dtype in FLOATS)], ids=name)
def test_shared_memory_changes_no_bit(kernels, dtype, shared):
    rows, features = (30, 70) if shared == NOTHING else (9, 1500)  # nine tiles
    plan = agree(kernels, *layer(rows, features, dtype), shared=shared)
    assert (plan["vectors"] == 0) == (shared == NOTHING)


@pytest.mark.parametrize(
    "dtype,features,gap,offset,chunk_bytes",
    [
        (float32, 36, 4, 0, 16),
        (float32, 36, 1, 3, 4),
        (bfloat16, 37, 3, 8, 16),
        (bfloat16, 36, 1, 0, 0),
        (float64, 5, 0, 1, 8),
        (float32, 6, 0, 2, 8),
        (bfloat16, 35, 1, 2, 4),
        (float64, 9, 1, 0, 16),
    ],
    ids=name,
)
def test_rows_that_lie_anywhere(kernels, dtype, features, gap, offset, chunk_bytes):
    arguments = layer(20, features, dtype, gap=gap)
    for shared in ({}, {"shared": NOTHING}):
        plan = agree(kernels, *arguments, offset=offset, **shared)
        assert plan["vectors"] == 0 or plan["chunk_bytes"] == chunk_bytes


def options_of(rows):
    """Every option of the loss, each as one number or one for each row."""
    return [
        {"weight": torch.rand(rows), "label_smoothing": 0.1},
        {"weight": torch.tensor([2.5]).half(), "pos_weight": torch.rand(rows).bfloat16()},
        {"mask": torch.rand(rows) < 0.6},
        {"mask": torch.rand(rows) < 0.6, "weight": torch.rand(rows).double(), "ignore_index": 1, "pos_weight":
            torch.tensor([3.0])},
        {"pos_weight": torch.where(torch.rand(rows) < 0.3, torch.inf, 2.0)},
    ]  # fmt: skip


@pytest.mark.parametrize("turn", range(5))
def test_options(kernels, turn):
    """With each output in turn, and the types of the targets."""
    rows, dtype = 20, FLOATS[(turn + 1) % 4]
    target = [torch.bool, torch.int64, torch.uint8, torch.int32, dtype][turn]
    arguments, options = layer(rows, 5, dtype, target), options_of(rows)[turn]
    partial = "mask" in options or "ignore_index" in options
    count = ops.bce_count(arguments[3], options.get("mask"), options.get("ignore_index")) if partial else None
    agree(kernels, *arguments, **options, count=count)
    agree(kernels, *arguments, **options, count=count, wanted=(False,) * 3)
    agree(kernels, *arguments, **options, reduction=ops.NONE, wanted=(False,) * 3, dtype=FLOATS[turn % 3])
    agree(kernels, *arguments, **options, count=count, grad_output=torch.tensor([0.3]).to(dtype))
    agree(kernels, *arguments, **options, reduction=ops.NONE, grad_output=torch.randn(rows).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_missing_targets(kernels, dtype):
    x, w, b, y = layer(20, 5, dtype)
    y[::3] = torch.nan
    count = ops.bce_count(y, None, None, True)
    (loss, *_), _ = single(kernels, x, w, b, y, count=count, ignore_nan=True)
    assert count.item() == 13 and loss.isfinite()
    agree(kernels, x, w, b, y, count=count, ignore_nan=True)
    agree(kernels, x, w, b, y, grad_output=torch.randn(20).to(dtype), reduction=ops.NONE, ignore_nan=True)


@pytest.mark.parametrize("dtype", [float32, float16, bfloat16], ids=name)
def test_losses_in_fp64_of_logits_in_fp32(kernels, dtype):
    x, w, b, y = layer(20, 40, dtype, float64)
    inf = torch.inf
    weights = {
        "weight": torch.tensor([inf, 2, 0, inf, 2]).repeat(4),
        "pos_weight": torch.tensor([0, inf, inf, 2]).repeat(5),
    }
    for shared in ({}, {"shared": NOTHING}):
        agree(kernels, x, w, b, y, dtype=float64, **shared)
        agree(kernels, x, w, b, y.round(), dtype=float64, **weights, **shared)
        agree(kernels, x, w, b, y.round(), grad_output=torch.tensor(0.3, dtype=dtype), **weights, **shared)


@pytest.mark.parametrize("rows,features,dtype", [(20, 6, float64), (20, 6, float32), (5, 1100, float32)], ids=name)
def test_plain_outputs(kernels, rows, features, dtype):
    arguments = layer(rows, features, dtype)
    for options in (
        *({"reduction": ops.NONE, "wanted": (False,) * 3, "dtype": kind} for kind in FLOATS),
        {"wanted": (False,) * 3, "shared": (200 << 10,) * 2},
        {"shared": (200 << 10,) * 2},
        {"grad_output": torch.randn(rows).to(dtype), "reduction": ops.NONE},
        {"weight": torch.rand(rows)},
    ):
        agree(kernels, *arguments, **options)


OPERANDS = [*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("dtype", [float32, float64], ids=name)
def test_every_type_of_operand(kernels, dtype, turn):
    x, w, b, _ = layer(5, 4, dtype)
    kinds = [*OPERANDS[3 * turn :], *OPERANDS][:3]
    target, weight, pos_weight, grad_output = (torch.tensor([0, 1, 1, 0, 1]).to(kind) for kind in (*kinds, dtype))
    if dtype == float32 and turn == 0:  # else the losses would be in fp64
        target, weight = weight, target
    agree(kernels, x, w, b, target, weight=weight, pos_weight=pos_weight, reduction=ops.NONE, grad_output=grad_output)


@pytest.mark.parametrize("wanted", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
def test_what_is_asked_for(kernels, wanted):
    arguments = list(layer(12, 9, float32))
    arguments[2] = arguments[2] if wanted[0] else None
    agree(kernels, *arguments, wanted=[bool(x) for x in wanted], reduction=ops.SUM, dtype=bfloat16)


@pytest.mark.parametrize(
    "schedule,shared", [("serial", {}), ("reverse", {}), ("random", {}), ("random", {"shared": NOTHING})], ids=name
)
def test_same_bits_for_every_schedule(kernels, schedule, shared):
    """Three tiles and more, so that all of the pipeline is at work; what it hands on is never read too early."""
    x, *others = layer(12, 1000, float32)
    x = 10 ** (12 * torch.rand(12, 1)) * x  # so that the order of sums shows
    agree(kernels, x, *others, dtype=float64, schedule=schedule, seed=1, **shared)


@pytest.mark.parametrize(
    "dtype,shared",
    [(float32, {}), (float64, {}), (float64, {"shared": NOTHING}), (bfloat16, {"shared": NOTHING})],
    ids=name,
)
def test_sums_that_are_flushed_within_a_tile(kernels, dtype, shared):
    """A part of two CPU blocks of 81 rows: all other parts have losses and gradients of 0, and are not launched."""
    rows = 256 * 81 + 1
    x, w, b, y = layer(rows, 400 // dtype.itemsize, dtype)
    weight = (torch.arange(rows) < 162).to(dtype)
    options = {"weight": weight, "reduction": ops.SUM, "wanted": (False, True, True), "blocks": [0]}
    plan = agree(kernels, x, w, b, y, **options, **shared)
    assert plan["grid"] == 129 and (not plan["vectors"] or 81 % plan["tile_rows"])


def test_an_older_architecture():
    """Before sm_80 nothing is copied asynchronously."""
    module = load_single(75, SAMPLE)
    agree(module, *layer(20, 300, float32))
    agree(module, *layer(9, 35, float32, gap=1))
    for gap in (3, 5, 1, 2):  # rows at multiples of 16, 8, 4 and 2 bytes
        agree(module, *layer(2, 1025 + 4 * (gap == 1), bfloat16, gap=gap + 4 * (gap == 3)))


def test_registers_and_copies():
    """Two blocks a multiprocessor, nothing spilled, and asynchronous copies of 16 bytes."""
    cubin = toolchain.compile_cubin(SAMPLE, 90, flags=FLAGS)
    for kind in ("float, float, 1", "fused_logistic::BFloat16, float, 2"):
        text = "\n".join(toolchain.sass(cubin, f"single_kernel<{kind}>"))
        assert not re.search(r"\b(LDL|STL)\b", text), kind
        assert re.search(r"LDGSTS\.E\.BYPASS\S*\.128", text), kind
        assert max(int(r) for r in re.findall(r"\bR(\d+)\b", text)) < 64, kind


def test_coverage(kernels, request):
    options = request.config
    if options.getoption("keyword") or any("::" in argument for argument in options.args):
        pytest.skip("only some tests of this file were asked for")
    missed = unexecuted(kernels)
    assert not missed, "\n" + "\n".join(missed)

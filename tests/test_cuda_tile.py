"""The CUDA kernels of a tile of the layer, executed as PTX: gradients and losses of elements have the CPU's bits, sums
are in the order of csrc/cuda/tile.cuh, which is written again here."""

import itertools

import numpy as np
import pytest
import torch
from conftest import same_bits
from cuda_kernels import CSRC, FLOATS, Output, cancelling, load, make_logits, make_target, name, unexecuted
from cuda_kernels import on_cpu as loss_on_cpu
from tile_kernels import added_blocks, added_lines, compare, finish, on_cpu, run, sparse, summed_losses


@pytest.fixture(scope="module")
def kernels():
    return load(80, CSRC / "cuda" / "tile.cu")


TARGETS = [None, torch.bool, torch.int64, torch.float32, torch.float64, torch.int16]
# rows, columns, padding, shift, and rows of a strip
SHAPES = [(20, 36, 4, 0, 8), (29, 13, 3, 0, 16), (18, 520, 0, 0, 64), (8, 8, 0, 1, 8)]


@pytest.mark.parametrize("target", TARGETS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_plain(kernels, dtype, target):
    """Whole vectors and rows of 8, a ragged edge on both sides, padding and misalignment; one block and several."""
    for turn in (TARGETS.index(target) % 2, 2 + FLOATS.index(dtype) % 2):
        rows, columns, padding, shift, strip_rows = SHAPES[turn]
        logits, labels = make_logits((rows, columns), dtype, turn), make_target((rows, columns), target or dtype, turn)
        options = {"padding": padding, "shift": shift, "schedule": ["lockstep", "random", "reverse"][turn % 3]}
        compare(kernels, Output.LossSumAndGrad, logits, labels, scale=0.125, strip_rows=strip_rows, **options)


def test_sizes(kernels):
    """Strips side by side and below each other, by the number of columns; several rows of blocks."""
    for rows, columns in [(1, 1), (1, 5), (1100, 2), (300, 5), (40, 40), (70, 100), (10, 1030)]:
        logits, target = make_logits((rows, columns), torch.float32), make_target((rows, columns), torch.float32)
        compare(kernels, Output.LossSumAndGrad, logits, target)


FORMS = [None, (1, 1), (1, -1), (-1, 1), (-1, -1), "transposed", "narrow"]


def of_form(form, rows, columns, make):
    """A matrix, whatever lies between its elements; None for none."""
    if form is None:
        return None
    if form == "transposed":
        return make(columns, rows).t()
    if form == "narrow":
        return make(rows, columns + 12)[:, 4:][:, :columns]
    return make(*(size if n < 0 else n for n, size in zip(form, (rows, columns), strict=True)))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_operands(kernels, dtype):
    """Every form of target, weights and mask, of types that the kernels know and of others; options."""
    for turn, ((rows, columns), form) in enumerate(itertools.product([(9, 36), (10, 29)], FORMS[1:])):
        forms = [FORMS[(turn + i) % len(FORMS)] for i in (0, 2, 3, 5)]
        kind = [dtype, torch.float32, torch.bfloat16][turn % 3]
        labels = [dtype, torch.bool, torch.int64][turn % 3]
        target = of_form(form, rows, columns, lambda *s, of=labels: make_target(s, of))
        weight, pos_weight = (
            of_form(f, rows, columns, lambda *s, of=kind: (1 + torch.rand(s)).to(of)) for f in forms[:2]
        )
        mask = of_form(forms[2], rows, columns, lambda *s: torch.rand(s) < 0.8)
        options = {"mask": mask} if turn % 2 else {"weight": weight, "pos_weight": pos_weight, "mask": mask}
        options |= {"label_smoothing": 0.1} if turn % 3 == 0 else {"ignore_index": 1} if turn % 3 == 1 else {}
        logits = make_logits((rows, columns), dtype, turn)
        compare(kernels, Output.LossSumAndGrad, logits, target, padding=-columns % 4, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_missing_targets(kernels, dtype):
    """NaN, dense and sparse."""
    logits = make_logits((9, 36), dtype)
    tile, dense = sparse(9, 36, 60, dtype)
    for where in (tile[0], dense):
        where[where > 0.6] = torch.nan
    for options in ({}, {"mask": torch.rand(9, 1) < 0.8, "weight": 1 + torch.rand(1, 36), "ignore_index": 0}):
        for target in (tile, dense):
            result = compare(
                kernels, Output.LossSumAndGrad, logits, target, dense=dense, ignore_nan=True, **options
            )  # fmt: skip
            assert not result.out[dense.isnan()].any() and result.sum.isfinite()


FAMILY = [
    {},
    {"gamma": 2.0, "alpha": 0.25},
    {"gamma": 1.3, "alpha": 0.25},
    {"beta": 2.0},
    {"beta": 0.7},
    {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
    {"gamma_neg": 2.5, "gamma_pos": 0.6, "clip": 0.05},
]


@pytest.mark.parametrize("losses", FAMILY, ids=lambda losses: next(iter(losses), "bce"))
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_outputs(kernels, dtype, losses):
    """Losses stored in several types, gradients for one grad_output and for many, the count on the device."""
    rows, columns = 11, 21
    logits, target = make_logits((rows, columns), dtype), make_target((rows, columns), dtype)
    for turn, weight in enumerate([None, 1 + torch.rand(1, columns)]):
        options = {"weight": weight, "mask": torch.rand(rows, 1) < 0.8, **losses}
        losses_dtype = FLOATS[FLOATS.index(dtype) - turn]
        compare(kernels, Output.Loss, logits, target, losses_dtype=losses_dtype, padding=3, **options)
        grad_output = [torch.rand(rows, columns).to(dtype), torch.rand(1, columns)][turn]
        compare(kernels, Output.GradLogits, logits, target, grad_output=grad_output, scale=0.25, **options)
        compare(
            kernels, Output.GradLogits, logits, target, grad_output=[torch.full((1, 1), 0.3), None][turn], **options
        )
        count = torch.tensor([77.0], dtype=torch.float64)
        compare(kernels, Output.LossSumAndGrad, logits, target, count=count, **options)
    compare(kernels, Output.LossSum, logits, target, **options)


@pytest.mark.parametrize(
    "dtype,target_dtype",
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.int64),
        (torch.float16, torch.bool),
        (torch.bfloat16, torch.int16),
    ],
    ids=name,
)
def test_sparse(kernels, dtype, target_dtype):
    """Some rows and groups with positives and some without, of a part of the matrix; the bits of the dense target, also
    of the sum."""
    for turn, (rows, columns, number, strip_rows) in enumerate(
        [(20, 520, 40, 8), (19, 37, 200, 16), (9, 12, 0, 64), (70, 8, 3, 64)]
    ):
        first, labels = 5 * turn, columns + 5 * turn + 3
        (values, crow, col), dense = sparse(rows + 2, labels, number, target_dtype, turn)
        tile = (values, crow[1 : rows + 2], col)
        dense = dense[1 : rows + 1, first : first + columns]
        logits = make_logits((rows, columns), dtype, turn)
        smoothed = {"label_smoothing": 0.1, "mask": torch.rand(rows, 1) < 0.8}
        weighted = {"pos_weight": 1 + torch.rand(1, columns)}
        for options in ({}, smoothed, weighted)[: 3 if turn < 2 else 1]:
            options["strip_rows"] = strip_rows
            result = compare(
                kernels,
                Output.LossSumAndGrad,
                logits,
                tile,
                dense=dense,
                first_column=first,
                padding=-columns % 4,
                **options,
            )
            if result.plan.shift == 7 and columns >= 512:
                same = run(kernels, Output.LossSumAndGrad, logits, dense, loss=1.5, **options)
                assert same_bits(result.sum, same.sum)
        compare(kernels, Output.Loss, logits, tile, dense=dense, first_column=first)


@pytest.mark.parametrize("rows,columns,strip_rows", [(30, 2, 8), (1050, 3, 24), (33, 40, 32), (20, 530, 16)])
def test_order_of_losses(kernels, rows, columns, strip_rows):
    """Losses that nearly cancel, whose sum is made of rounding errors; by strips as tile_plan has them."""
    logits, target = (matrix.view(rows, columns) for matrix in cancelling(rows * columns))
    options = {"weight": torch.ones(1, 1)}
    result = run(kernels, Output.LossSumAndGrad, logits, target, strip_rows=strip_rows, **options)
    assert result.sum == summed_losses(on_cpu(Output.Loss, logits, target, **options), result.plan)


@pytest.mark.parametrize("target_dtype", [torch.int8, torch.int32, torch.uint8], ids=name)
def test_many_positives(kernels, target_dtype):
    """More than a block has threads, in each row; and a dense target of a type that is rare."""
    logits = make_logits((3, 520), torch.float64 if target_dtype == torch.int8 else torch.float32)
    tile, dense = sparse(3, 520, 1400, target_dtype)
    compare(kernels, Output.LossSumAndGrad, logits, tile, dense=dense, label_smoothing=0.1)
    compare(kernels, Output.GradLogits, logits[:, :9], dense[:, :9], grad_output=torch.rand(1, 9))


@pytest.mark.parametrize("bias_dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_finish(kernels, dtype, bias_dtype):
    """What the blocks have, added in the order of csrc/cuda/tile.cuh to what was there."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(6000, generator=generator, dtype=torch.float64)
    columns = torch.randn(300, 41, generator=generator, dtype=dtype)
    start = torch.randn(41, generator=generator, dtype=bias_dtype)
    loss, bias = finish(kernels, losses, 0.5, columns, start)
    assert loss == 0.5 + added_blocks(losses)
    assert same_bits(bias, (start.double() + added_lines(columns)).to(bias_dtype))


def test_losses_that_are_large(kernels):
    """Whose sum is not finite in fp32; NaN and infinity stay what they are."""
    logits, target = torch.full((20, 40), 3e38), torch.zeros(20, 40)
    logits[3, 5] = -2e38
    result = run(kernels, Output.LossSumAndGrad, logits, target)
    exact = loss_on_cpu(Output.LossSum, logits, target).sum
    torch.testing.assert_close(result.sum, exact, rtol=1e-14, atol=0)
    assert run(kernels, Output.LossSumAndGrad, 100 * logits, target).sum == np.inf
    logits[7, 8] = np.nan
    assert run(kernels, Output.LossSumAndGrad, logits, target).sum.isnan()
    right = make_logits((20, 40), torch.float32)
    right[::3, 1::2] = -np.inf  # of a target of 0: no loss, but NaN in a group
    exact = loss_on_cpu(Output.LossSum, right, target).sum
    torch.testing.assert_close(run(kernels, Output.LossSumAndGrad, right, target).sum, exact, rtol=1e-6, atol=0)
    infinite = torch.tensor([np.inf, 1.0, 0.0, 2.0]).repeat(10).reshape(1, 40)
    compare(kernels, Output.LossSumAndGrad, make_logits((20, 40), torch.float32), target, pos_weight=infinite)


def test_coverage(kernels, request):
    """Every kernel was launched, and every kind of instruction of every line of tile.cuh executed in one of them."""
    options = request.config
    if options.getoption("keyword") or any("::" in argument for argument in options.args):
        pytest.skip("only some tests of this file were asked for")
    # the compiler computes some of a place ahead, on ways that no launch of a kernel takes
    ahead = ("row += kTileGroup", "width = 1 << launch.shift")
    missed = [text for text in unexecuted(kernels) if "tile.cuh" in text or "tile_kernel" in text]
    missed = [text for text in missed if not any(source in text for source in ahead)]
    assert not missed, "\n" + "\n".join(missed)

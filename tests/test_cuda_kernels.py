"""The CUDA kernels, executed as PTX in an interpreter (tools/ptx), against the CPU kernels: every bit is equal.

Arithmetic, memory accesses, races and barriers are those of the PTX that nvcc emits; neither speed nor what ptxas makes
of the PTX is seen. docs/cuda.md says which commits a GPU has run.
"""

import itertools

import numpy as np
import pytest
import torch
from conftest import loss_arguments, same_bits
from cuda_kernels import (
    COLUMNS,
    FLOATS,
    FORMS,
    ROWS,
    Output,
    check,
    compare,
    load,
    make_logits,
    make_target,
    make_weight,
    name,
    on_cpu,
    ordered_sum,
    run,
    second_stage,
    unexecuted,
)
from cuda_losses import (  # noqa: F401 - tests, which are collected here
    test_family,
    test_focal,
    test_focal_of_targets_like_logits,
    test_focal_targets_outside,
    test_infinite_weights,
)

from fused_logistic import _C

FULL_ARCH = 80
PLAIN = [(z, y) for z in FLOATS for y in (z, torch.bool, torch.int64)] + [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
]
PLAIN_OUTPUTS = [Output.LossSum, Output.LossSumAndGrad, Output.Loss, Output.GradLogits]


@pytest.fixture(scope="module")
def kernels():
    return load(FULL_ARCH)


# ---- Kernels for plain problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", PLAIN_OUTPUTS, ids=name)
@pytest.mark.parametrize("types", PLAIN, ids=lambda types: "-".join(map(name, types)))
def test_plain(kernels, types, output):
    """A whole chunk by vectors and a ragged one; then all misaligned; then grad_output broadcast."""
    for shape, options in [
        ((1, 8192 + 1029), {}),
        ((1, 1031), {"offsets": (1, 1, 1), "mean": True, "schedule": "random"}),
        ((9, 15), {"offsets": (0, 3, 0), "grad_output": torch.tensor(0.3), "schedule": "reverse"}),
    ]:
        result = compare(kernels, output, make_logits(shape, types[0]), make_target(shape, types[1]), **options)
        if shape[1] > 8192:
            assert result.stats[0].ops[f"ld.global {min(16, 4 * types[0].itemsize)} bytes"] > 0


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_lengths(kernels, dtype):
    """Around the edges of vectors, rows and chunks; one launch up to a chunk, two from there on."""
    for n in [1, 2, 3, 4, 5, 7, 8, 9, 31, 1023, 1024, 1025, 2047, 8191, 8192, 8193, 16384, 16387]:
        logits, target = make_logits((1, n), dtype, n), make_target((1, n), dtype, n)
        result = compare(kernels, Output.LossSumAndGrad, logits, target, mean=bool(n % 2))
        assert len(result.stats) == (1 if n <= _C.CHUNK else 2)


@pytest.mark.parametrize("types", PLAIN, ids=lambda types: "-".join(map(name, types)))
def test_a_single_element(kernels, types):
    """Its loss is added by itself, whatever else is looked at."""
    logits, target = make_logits((1, 1), types[0]), make_target((1, 1), types[1])
    for output in (Output.LossSum, Output.LossSumAndGrad):
        for mask in (None, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)):
            compare(kernels, output, logits, target, mask=mask)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_alignment(kernels, dtype):
    """Every offset of each pointer from a 16-byte boundary; vectors where all are aligned, else single elements."""
    vector = 16 // torch.empty(0, dtype=dtype).element_size()
    logits, target = make_logits((1, 8200), dtype), make_target((1, 8200), dtype)
    for offset in range(1, vector):
        for offsets in ((offset, 0, 0), (0, offset, 0), (0, 0, offset), (offset, offset, offset)):
            n = 8200 if offset == 1 else 1100
            compare(kernels, Output.LossSumAndGrad, logits[:, :n], target[:, :n], offsets=offsets)
    compare(kernels, Output.LossSumAndGrad, logits, target, offsets=(vector, 0, vector))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_infinite_and_nan_logits(kernels, dtype):
    logits = torch.tensor([[np.inf, -np.inf, np.nan, np.inf, -np.inf, 0.0]], dtype=dtype)
    target = torch.tensor([[1, 0, 1, 0, 1, 0.5]], dtype=dtype)
    for output in PLAIN_OUTPUTS:
        compare(kernels, output, logits, target)
    compare(kernels, Output.LossSum, logits[:, :2], target[:, :2])
    compare(kernels, Output.LossSum, logits[:, 3:], target[:, 3:])


@pytest.mark.parametrize("general", [False, True], ids=["typed", "general"])
def test_groups_that_overflow(kernels, general):
    """Huge losses, whose sum in fp32 is infinite, are added in fp64 one by one; so are one alone, infinite logits."""
    logits, target = make_logits((1, 8192 + 1029), torch.float32), make_target((1, 8192 + 1029), torch.float32)
    logits[0, 8192 + 700 :] = 3e38
    for output in (Output.LossSum, Output.LossSumAndGrad):
        result = compare(kernels, output, logits, target, mean=True, general=general, offsets=(1, 0, 0))
        assert result.sum.isfinite()
        for n in (1, 8192, 8193):
            for labels in (target[:, -n:], target[:, -n:].long()):
                compare(kernels, output, logits[:, -n:], labels, general=general)
    right = torch.where(target[:, :8500] < 0.5, -np.inf, np.inf).float(), target[:, :8500].round()
    right[0][:, 7:8400:3] = 1  # others beside them, and later a chunk without
    for output in (Output.LossSum, Output.LossSumAndGrad):
        assert compare(kernels, output, *right, general=general).sum.isfinite()
    double = torch.cat([logits[:, -1029:].double(), torch.tensor([[np.inf, -np.inf]])], 1)
    compare(kernels, Output.LossSumAndGrad, double, target[:, -1031:].double(), general=general)
    several = logits[:, :9200].reshape(92, 100), target[:, :9200].reshape(92, 100)
    for mask in (torch.rand(100) < 0.5, torch.rand(92, 1) < 0.5):
        compare(kernels, Output.LossSumAndGrad, *several, mask=mask, mean=True)
    for first in (several[1][0], several[1][:, :1]):  # as a tile of a layer has them: the target is broadcast
        expected = on_cpu(Output.LossSum, several[0], first.expand(92, 100).contiguous())
        check(run(kernels, Output.LossSum, several[0], first), expected)


# ---- The general kernel --------------------------------------------------------------------------------------------

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
OPERAND_TYPES = [*FLOATS, *INTEGERS]
TARGETS = [*FLOATS, torch.bool, *INTEGERS]


WEIGHTED = [
    (weight, pos_weight, output)
    for weight, pos_weight, output in itertools.product(FORMS, FORMS, Output)
    if output != Output.Count
    and not (output == Output.GradWeight and weight == "absent")
    and not (output == Output.GradPosWeight and pos_weight == "absent")
]


@pytest.mark.parametrize("weight,pos_weight,output", WEIGHTED, ids=name)
def test_weights(kernels, weight, pos_weight, output):
    """Every form of both weights; the types of all tensors take turns."""
    turn = list(FORMS).index(weight) * 5 + list(FORMS).index(pos_weight) + int(output)
    dtype = FLOATS[turn % 4]
    logits = make_logits((ROWS, COLUMNS), dtype, turn)
    target = make_target((ROWS, COLUMNS), TARGETS[turn % 10] if output != Output.GradTarget else FLOATS[turn // 3 % 4])
    weights = {"weight": (weight, OPERAND_TYPES[turn % 9]), "pos_weight": (pos_weight, OPERAND_TYPES[turn // 2 % 9])}
    options = {key: make_weight(form, kind) for key, (form, kind) in weights.items()}
    like = {
        Output.GradTarget: target,
        Output.GradWeight: options["weight"],
        Output.GradPosWeight: options["pos_weight"],
    }
    if output in like:
        if not like[output].is_floating_point():
            key = "weight" if output == Output.GradWeight else "pos_weight"
            options[key] = like[output] = like[output].float()
        options["out_dtype"] = like[output].dtype
    options |= {"mean": turn % 2 == 0, "shift": turn // 2 % 2, "schedule": ["lockstep", "random", "reverse"][turn % 3]}
    compare(kernels, output, logits, target, **options)


@pytest.mark.parametrize("output", PLAIN_OUTPUTS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=name)
def test_operands_of_known_types(kernels, dtype, output):
    """Weights, mask and grad_output in every form, by vectors and where those do not fit; a whole chunk and more."""
    forms = [
        ("full", "column", "absent"),
        ("row", "full", "column"),
        ("column", "row", "full"),
        ("scalar", "absent", "row"),
        ("absent", "absent", "column"),
        ("absent", "absent", "full"),
    ]
    for turn, (columns, (weight, pos_weight, mask)) in enumerate(itertools.product((28, 31), forms)):
        shape = (300, columns)
        shapes = {"absent": None, "scalar": (1,), "column": (columns,), "row": (300, 1), "full": shape}
        kinds = [dtype, torch.float32 if turn % 2 else dtype]
        target = make_target(shape, [dtype, torch.bool, torch.int64, torch.float32][turn % 4], turn)
        made = [shapes[form] and 1 + 3 * torch.rand(shapes[form]) for form in (weight, pos_weight)]
        options = {
            key: w if w is None else w.to(kinds[turn % 2])
            for key, w in zip(("weight", "pos_weight"), made, strict=True)
        }
        options["mask"] = None if mask == "absent" else torch.rand(shapes[mask]) < 0.8
        factor = make_logits(shapes[["full", "column", "row"][turn % 3]], kinds[1], turn)
        focal = {"gamma": {5: 3.0, 11: 4.0}.get(turn, 1.5), "alpha": 0.25} if turn % 3 == 2 else {}
        options |= {"grad_output": factor, "shift": turn // 4 % 2, "label_smoothing": 0.1 * (turn % 2), **focal}
        compare(kernels, output, make_logits(shape, dtype, turn), target, **options)


@pytest.mark.parametrize("target", TARGETS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_target_types(kernels, dtype, target):
    logits, labels = make_logits((40, 33), dtype, 3), make_target((40, 33), target, 4)
    weight = make_weight("column", torch.float32)
    weight = torch.cat([weight, weight[:2]])
    for output in (Output.LossSumAndGrad, Output.GradLogits):
        compare(kernels, output, logits, labels, weight=weight, offsets=(1, 1, 1))
        compare(kernels, output, logits, labels, weight=weight)
        compare(kernels, output, logits, labels)


@pytest.mark.parametrize(
    "dtype,smoothing,ignore_index,masked",
    [
        (FLOATS[i // 3 % 4], *case)
        for i, case in enumerate(itertools.product([0.0, 0.1], [None, -100, 1], [False, True]))
    ],
)
def test_smoothing_ignored_targets_and_masks(kernels, dtype, smoothing, ignore_index, masked):
    logits, target = make_logits((90, 101), dtype), make_target((90, 101), torch.int64)
    target[::3, 5] = -100 if ignore_index == -100 else 1
    options = {"label_smoothing": smoothing, "ignore_index": ignore_index}
    options["mask"] = torch.rand(90, 101) < 0.6 if masked else None
    for output in (Output.LossSum, Output.LossSumAndGrad, Output.Loss, Output.GradLogits):
        compare(kernels, output, logits, target, mean=output != Output.Loss, **options)
    if masked or ignore_index is not None:
        kept = torch.ones_like(target, dtype=torch.bool) if options["mask"] is None else options["mask"]
        count = run(kernels, Output.Count, logits, target, **options).sum
        assert count.item() == (kept & (target != ignore_index)).sum() if ignore_index is not None else kept.sum()


@pytest.mark.parametrize("general", [False, True], ids=["typed", "general"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_missing_targets(kernels, dtype, general):
    """NaN, with the other ways to leave elements out and without; with what is NaN beside them."""
    shape = (90, 101)
    logits, target = make_logits(shape, dtype), make_target(shape, dtype)
    missing = torch.rand(shape) < 0.3
    logits[missing], target[missing] = torch.nan, torch.nan
    weight = torch.where(missing, torch.nan, 1 + torch.rand(shape)).to(dtype)
    for options in (
        {},
        {"mask": torch.rand(101) < 0.8, "ignore_index": 1, "label_smoothing": 0.1},
        {"weight": weight, "pos_weight": make_weight("scalar", dtype), "mask": torch.rand(90, 1) < 0.8},
        {"weight": weight, "gamma": 2.0, "ignore_index": 0},
    ):
        options |= {"ignore_nan": True, "general": general}
        for output in PLAIN_OUTPUTS:
            result = compare(kernels, output, logits, target, mean=output != Output.Loss, **options)
            assert result.sum is None or result.sum.isfinite()
        kept = ~missing if options.get("mask") is None else ~missing & options["mask"]
        ignored = options.get("ignore_index")
        kept = kept if ignored is None else kept & (target != ignored)
        counted = {key: options.get(key) for key in ("mask", "ignore_index", "ignore_nan", "general")}
        assert run(kernels, Output.Count, logits, target, **counted).sum.item() == kept.sum()


@pytest.mark.parametrize("output", [o for o in Output if o not in (Output.Count, Output.GradTarget)], ids=name)
@pytest.mark.parametrize("index", INTEGERS, ids=name)
def test_class_indices(kernels, index, output):
    """The bits of the one-hot target that they stand for; rows without a positive, rows that are left out."""
    for turn, shape in enumerate([(300, 31), (5, 7, 45), (9, 2), (1, 9000), (3, 4, 2)]):
        dtype, classes = FLOATS[(turn + INTEGERS.index(index)) % 4], shape[1]
        logits = make_logits(shape, dtype, turn)
        low = 0 if index == torch.uint8 else -2
        target = torch.randint(low, min(classes, 100) + 3, (shape[0], *shape[2:])).to(index)
        own = torch.arange(classes).view(-1, *(1,) * (len(shape) - 2))
        hot = (target.unsqueeze(1) == own).to(torch.float32)
        for ignored in (None, 1):
            weights = {"weight": 1 + torch.rand(shape), "pos_weight": 1 + torch.rand(shape)}
            options = {key: w.to(dtype) for key, w in weights.items()} if ignored or output > Output.GradLogits else {}
            options |= {1: {"gamma": 2.0}, 2: {"label_smoothing": 0.1}, 3: {"gamma": 1.3}}.get(turn, {})
            if output >= Output.GradLogits:
                options["grad_output"] = make_logits(shape, dtype, seed=9)
            kept = None if ignored is None else (target.unsqueeze(1) != ignored).expand(shape)
            result = run(kernels, output, logits, target, ignore_index=ignored, **options)
            check(result, on_cpu(output, logits, hot, mask=kept, **options))
            check(result, on_cpu(output, logits, target, ignore_index=ignored, **options))


@pytest.mark.parametrize("result", FLOATS, ids=name)
def test_sums_in_every_type(kernels, result):
    """Rounded once from fp64, by the kernel itself or by the second stage."""
    for n in (1000, 9000):
        logits, target = make_logits((1, n), torch.float32), make_target((1, n), torch.float32)
        got = run(kernels, Output.LossSum, logits, target, mean=True, result_dtype=result).sum
        expected = torch.ops.fused_logistic.bce(*loss_arguments(logits, target, dtype=result))
        assert same_bits(got.reshape(()), expected)


@pytest.mark.parametrize("kind", OPERAND_TYPES, ids=name)
def test_count(kernels, kind):
    """The elements that a mean is taken over; with vectors and without."""
    shapes = [None, (ROWS, COLUMNS), (COLUMNS,), (ROWS, 1)]
    sizes = [ROWS, 9000 // COLUMNS] if kind in (torch.int8, torch.int32, torch.float32) else [ROWS]
    for shape, general, rows in itertools.product(shapes, [False, True], sizes):
        logits, target = make_logits((rows, COLUMNS), torch.float32), make_target((rows, COLUMNS), kind)
        mask = shape and torch.rand(*(rows if n == ROWS else n for n in shape)) < 0.5
        for ignored in (1, None) if mask is not None else (1,):
            kept = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
            kept = kept if mask is None else kept & mask
            options = {"mask": mask, "ignore_index": ignored, "general": general}
            assert run(kernels, Output.Count, logits, target, **options).sum.item() == kept.sum()


@pytest.mark.parametrize("form", ["scalar", "column", "row", "full"])
@pytest.mark.parametrize("kind", OPERAND_TYPES, ids=name)
def test_grad_output(kernels, kind, form):
    for dtype in FLOATS:
        logits, target = make_logits((ROWS, COLUMNS), dtype), make_target((ROWS, COLUMNS), dtype)
        compare(kernels, Output.GradLogits, logits, target, grad_output=make_weight(form, kind))
    if form == "row" and kind in FLOATS:  # of more than a chunk, and of vectors
        logits, target = make_logits((300, 28), kind), make_target((300, 28), kind)
        compare(kernels, Output.GradLogits, logits, target, grad_output=make_logits((300, 1), kind))


def test_empty_mean_is_nan(kernels):
    empty = torch.empty(0, 3)
    assert run(kernels, Output.LossSum, empty, empty, mean=False).sum.item() == 0
    one = torch.ones(1, 3)
    assert run(kernels, Output.LossSum, one, one, mask=one != 1, mean=True).sum.isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_result_types(kernels, dtype):
    logits, target = make_logits((3, 4000), torch.float32), make_target((3, 4000), torch.float32)
    for mean in (False, True):
        exact = on_cpu(Output.LossSum, logits, target, mean=mean).sum
        got = run(kernels, Output.LossSum, logits, target, mean=mean, result_dtype=dtype).sum
        assert same_bits(got.reshape(()), exact if dtype == torch.float64 else exact.float().to(dtype))


# ---- A gradient finished in place, and the second stage -------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 2.0], ids=["bce", "focal"])
@pytest.mark.parametrize("general", [False, True], ids=["typed", "general"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_gradient_that_is_made(kernels, dtype, general, gamma):
    """Where it is for this grad_output nothing is stored, NaN here; else it is computed again, over what was there."""
    logits, target = make_logits((1, 8192 + 1029), dtype), make_target((1, 8192 + 1029), dtype)
    made = torch.full_like(logits, np.nan)
    for kind, offsets in [(dtype, (0, 0, 0)), (torch.float32, (0, 0, 1)), (torch.float64, (1, 1, 1))]:
        options = {"mean": True, "gamma": gamma, "offsets": offsets, "general": general, "made": made}
        one = run(kernels, Output.GradLogits, logits, target, grad_output=torch.ones(1, dtype=kind), **options)
        assert one.out.isnan().all() and one.stats[0].store_bytes == 0
        for value in (0.3, -1.0, 0.0, 65536.0, np.nan):
            other = torch.tensor([value], dtype=kind)
            result = compare(kernels, Output.GradLogits, logits, target, grad_output=other, **options)
            assert result.stats[0].store_bytes == logits.nbytes
    scale, options["made_for"] = torch.tensor([1024.0], dtype=dtype), torch.tensor([1024.0])
    same = run(kernels, Output.GradLogits, logits, target, grad_output=scale, **options)
    assert same.out.isnan().all() and same.stats[0].store_bytes == 0
    compare(kernels, Output.GradLogits, logits, target, grad_output=torch.ones(1, dtype=dtype), **options)
    zero = {**options, "made_for": torch.tensor([-0.0])}  # its gradients are not those of 0
    compare(kernels, Output.GradLogits, logits, target, grad_output=torch.zeros(1, dtype=dtype), **zero)
    full = {"grad_output": torch.ones_like(logits), "made": made, "general": general, "gamma": gamma}
    compare(kernels, Output.GradLogits, logits, target, **full)  # ones, but not known to be: computed
    alone = {**full, "grad_output": torch.ones(1), "made": None}
    compare(kernels, Output.GradLogits, logits, target, **alone)  # 1, but not made


@pytest.mark.parametrize("kind", OPERAND_TYPES, ids=name)
def test_every_type_of_scalar(kernels, kind):
    """Of the operands that are one number."""
    logits, target = make_logits((2, 5), torch.float32), make_target((2, 5), torch.float32)
    three, one = torch.tensor([3], dtype=kind), torch.tensor([1], dtype=kind)
    compare(kernels, Output.LossSumAndGrad, logits, target, weight=three, pos_weight=three)
    for general in (False, True):
        options = {"made": torch.zeros_like(logits), "general": general}
        compare(kernels, Output.GradLogits, logits, target, grad_output=three, **options)
        assert not run(kernels, Output.GradLogits, logits, target, grad_output=one, **options).out.any()


@pytest.mark.parametrize("count", [0, 1, 2, 1023, 1025, 8192, 8193, 20000])
def test_second_stage(kernels, count):
    """The chunks' sums in the order of csrc/problem.h, over as many levels as it takes."""
    partials = torch.randn(count, dtype=torch.float64).numpy()
    assert second_stage(kernels, partials) == ordered_sum(partials)


# ---- What nothing executed -----------------------------------------------------------------------------------------


def test_coverage(kernels, request):
    """Every kind of instruction of every source line was executed in some kernel, by the tests above.

    Not in each of the kernels: the operands of all are read by the same templates, whose types take turns above.
    """
    options = request.config
    if options.getoption("keyword") or any("::" in argument for argument in options.args):
        pytest.skip("only some tests of this file were asked for")
    missed = unexecuted(kernels)
    assert not missed, "\n" + "\n".join(missed)

"""The CUDA kernels of a tile of the layer, executed as PTX: gradients and losses of elements have the CPU's bits, sums
are in the order of csrc/cuda/tile.cuh, which is written again here."""

import itertools

import numpy as np
import pytest
import torch
from conftest import same_bits
from cuda_kernels import CSRC, FLOATS, Output, load, make_logits, make_target, name, unexecuted
from cuda_kernels import on_cpu as loss_on_cpu
from tile_kernels import on_cpu, run


@pytest.fixture(scope="module")
def kernels():
    return load(80, CSRC / "cuda" / "tile.cu")


def column_sums(grad: torch.Tensor, plan) -> torch.Tensor:
    """The sums of the columns of a gradient that is not rounded (of the arithmetic's type), in the kernels' order."""
    strips = 128 >> plan.shift
    blocks = []
    for row in range(0, len(grad), plan.strip_rows * strips):
        of_strips = []
        for strip in range(strips):
            part = grad[row + strip * plan.strip_rows :][: plan.strip_rows]
            total = torch.zeros_like(grad[0])
            for line in part:
                total = total + line
            of_strips.append(total)
        total = of_strips[0]
        for other in of_strips[1:]:
            total = total + other
        blocks.append(total.double())
    lines = [torch.zeros_like(blocks[0]) for _ in range(32)]
    for i, block in enumerate(blocks):
        lines[i % 32] = lines[i % 32] + block
    total = lines[0]
    for line in lines[1:]:
        total = total + line
    return total


def compare(kernels, output, logits, target, *, dense=None, bias=True, **options):
    """Elements by their bits; columns' sums too, where gradients are not rounded; losses to what their order allows:
    some ulp of fp64, or of the fp32 that 32 of them share."""
    wants_bias = bias and output in (Output.LossSumAndGrad, Output.GradLogits)
    is_double = torch.float64 in (logits.dtype, (target[0] if isinstance(target, tuple) else target).dtype)
    sums = torch.rand(logits.shape[1], dtype=torch.float64 if is_double else torch.float32) if wants_bias else None
    result = run(kernels, output, logits, target, bias=sums, loss=1.5, **options)
    given = {
        k: v for k, v in options.items() if k not in ("padding", "shift", "schedule", "seed", "first_column", "count")
    }
    if options.get("count") is not None:
        given["scale"] = 1 / options["count"].item()
    dense = target if dense is None else dense
    if output != Output.LossSum:
        expected = on_cpu(output, logits, dense, **given)
        assert same_bits(result.out, expected)
    if wants_bias and expected.dtype == (torch.float64 if is_double else torch.float32):
        exact = sums.double() + column_sums(expected, result.plan)
        assert same_bits(result.bias, exact.to(sums.dtype))
    elif wants_bias:  # each summand rounded to 16 bits in what is compared with
        bound = torch.finfo(expected.dtype).eps * expected.double().abs().sum(0) + 1e-6
        assert ((result.bias - sums).double() - expected.double().sum(0)).abs().le(bound).all()
    if result.sum is not None:
        given.pop("grad_output", None), given.pop("scale", None)
        losses = on_cpu(Output.Loss, logits, dense, **given, losses_dtype=torch.float64).double()
        error = abs(result.sum - 1.5 - losses.sum())
        assert error <= (1e-15 * losses.numel() if is_double else 2.0**-20) * (losses.abs().sum() + 1.5), (
            result.sum,
            losses.sum(),
        )
    return result


TARGETS = [None, torch.bool, torch.int64, torch.float32, torch.float64, torch.int16]
SHAPES = [(20, 36, 4, 0), (9, 13, 3, 0), (8, 520, 0, 0), (8, 8, 0, 1)]  # rows, columns, padding, shift


@pytest.mark.parametrize("target", TARGETS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_plain(kernels, dtype, target):
    """Whole vectors and rows of 8, a ragged edge on both sides, padding and misalignment; one block and several."""
    for turn in (TARGETS.index(target) % 2, 2 + FLOATS.index(dtype) % 2):
        rows, columns, padding, shift = SHAPES[turn]
        logits, labels = make_logits((rows, columns), dtype, turn), make_target((rows, columns), target or dtype, turn)
        options = {"padding": padding, "shift": shift, "schedule": ["lockstep", "random", "reverse"][turn % 3]}
        compare(kernels, Output.LossSumAndGrad, logits, labels, scale=0.125, **options)


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


@pytest.mark.parametrize("gamma", [None, 2.0, 1.3])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_outputs(kernels, dtype, gamma):
    """Losses stored in several types, gradients for one grad_output and for many, the count on the device."""
    rows, columns = 11, 21
    logits, target = make_logits((rows, columns), dtype), make_target((rows, columns), dtype)
    for turn, weight in enumerate([None, 1 + torch.rand(1, columns)]):
        options = {"weight": weight, "mask": torch.rand(rows, 1) < 0.8, "gamma": gamma}
        options |= {} if gamma is None else {"alpha": 0.25}
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


def sparse(rows, labels, number, dtype, seed=0):
    """(values, crow_indices, col_indices) whose columns rise, and the dense target."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(rows * labels, generator=generator)[:number].sort().values
    values = make_target((number,), dtype, seed)
    crow = torch.searchsorted(place, torch.arange(rows + 1) * labels)
    dense = torch.zeros(rows * labels, dtype=dtype)
    dense[place] = values
    return (values, crow, place % labels), dense.view(rows, labels)


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
    for turn, (rows, columns, number) in enumerate([(20, 520, 40), (19, 37, 200), (9, 12, 0), (70, 8, 3)]):
        first, labels = 5 * turn, columns + 5 * turn + 3
        (values, crow, col), dense = sparse(rows + 2, labels, number, target_dtype, turn)
        tile = (values, crow[1 : rows + 2], col)
        dense = dense[1 : rows + 1, first : first + columns]
        logits = make_logits((rows, columns), dtype, turn)
        smoothed = {"label_smoothing": 0.1, "mask": torch.rand(rows, 1) < 0.8}
        weighted = {"pos_weight": 1 + torch.rand(1, columns)}
        for options in ({}, smoothed, weighted)[: 3 if turn < 2 else 1]:
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
    infinite = torch.tensor([np.inf, 1.0, 0.0, 2.0]).repeat(10).reshape(1, 40)
    compare(kernels, Output.LossSumAndGrad, make_logits((20, 40), torch.float32), target, pos_weight=infinite)


def test_coverage(kernels, request):
    """As for the kernels of the losses."""
    options = request.config
    if options.getoption("keyword") or any("::" in argument for argument in options.args):
        pytest.skip("only some tests of this file were asked for")
    missed = [text for text in unexecuted(kernels) if "finish_kernel" not in text]
    assert not missed, "\n" + "\n".join(missed)

"""Sums of losses, which share logarithms, against 50 digits; docs/derivation.md derives the bound."""

import itertools

import mpmath
import pytest
import torch

import fused_logistic as fl
from fused_logistic import _C, ops
from tests.conftest import loss_arguments, same_bits

VALUES = 512  # different elements; so many that their 50 digits take no time
SIZES = (1, 2, 3, 4, 5, 31, 33, 1000, 1025, _C.CHUNK - 1, _C.CHUNK + 1, 3 * _C.CHUNK + 1029, 2**20)
KINDS = {  # of VALUES random numbers in [0, 1]: logits and targets
    "tiny": lambda u, y: (-60 - 40 * u, 0 * y),
    "huge": lambda u, y: (10 ** (3 + 30 * u), y.round()),
    "mixed": lambda u, y: (200 * (u - 0.5) ** 3, y),
    "near 0": lambda u, y: (u - 0.5, y.round()),
    "cancelling": lambda u, y: (10 ** (6 * u), 2 * y.round()),  # a loss of z or -z
}


def sums(logits, target, **options):
    """From both kernels that sum, in fp64."""
    arguments = loss_arguments(
        logits, target, None, None, options.pop("mask", None), ops.SUM, dtype=torch.float64, **options
    )
    loss, (with_grad, _) = ops.bce(*arguments), ops.bce_with_grad(*arguments)
    assert same_bits(loss, with_grad)
    return loss.item()


def exact(logits, target):
    """The two parts of each element's loss, log1p(e) and the linear one."""
    with mpmath.workdps(50):
        pairs = [(mpmath.mpf(z), mpmath.mpf(y)) for z, y in zip(logits.tolist(), target.tolist(), strict=True)]
        return [
            (mpmath.log1p(mpmath.exp(-abs(z))) if abs(z) < 1e4 else 0, (y if z < 0 else 1 - y) * abs(z))
            for z, y in pairs
        ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype,eps", [(torch.float32, 2.0**-24), (torch.float64, 2.0**-53)], ids=["fp32", "fp64"])
def test_sums(dtype, eps, kind, isa):
    logits, target = (
        t.to(dtype) for t in KINDS[kind](torch.rand(VALUES, dtype=torch.double), torch.rand(VALUES).double())
    )
    parts = exact(logits, target)
    for n in SIZES:
        which = torch.randint(0, VALUES, (n,))
        counts = torch.bincount(which, minlength=VALUES).tolist()
        got = sums(logits[which], target[which])
        with mpmath.workdps(50):
            logarithms = sum(c * log for c, (log, _) in zip(counts, parts, strict=True))
            linear, size = (
                sum(c * f(line) for c, (_, line) in zip(counts, parts, strict=True)) for f in (mpmath.mpf, abs)
            )
            error, whole = abs(got - (logarithms + linear)), logarithms + size
            in_fp64 = 30 * 2.0**-53 * whole  # 8 rows and 10 levels in a chunk, then those of the chunks
            least = n * torch.finfo(dtype).smallest_normal * eps  # subnormal numbers
            assert error <= eps * (24 * logarithms + 12 * size) + in_fp64 + least, (n, error / whole / eps)
            if n == 2**20:
                assert error <= eps * whole + in_fp64 + least, "there is a bias"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_element_is_its_loss(dtype, isa):
    """Also where it is alone in its chunk, or all others of the sum are left out."""
    for z, y in itertools.product((-20.0, -1.5, 0.0, 0.3, 0.7, 4.0, 30.0), (0.0, 0.3, 1.0)):
        logits, target = torch.tensor([z], dtype=dtype), torch.tensor([y], dtype=dtype)
        (alone,) = ops.bce(*loss_arguments(logits, target, None, None, None, ops.NONE, dtype=torch.float64)).tolist()
        assert sums(logits, target) == alone
        nothing = torch.full((_C.CHUNK,), torch.finfo(dtype).min, dtype=dtype)
        behind = torch.cat([nothing, logits]), torch.cat([torch.zeros_like(nothing), target])
        assert sums(*behind) == alone


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.25}, {"mask": True}], ids=str)
@pytest.mark.parametrize("n", [100, _C.CHUNK + 100])
def test_a_sum_that_overflows_in_fp32(options, n, isa):
    """A chunk's groups are then infinite; the mean is not, and one that is stays so."""
    logits, target = torch.full((n,), 3e38), torch.zeros(n)
    options = {key: torch.ones(n, dtype=torch.bool) if key == "mask" else value for key, value in options.items()}
    assert fl.binary_cross_entropy_with_logits(logits, target, **options).isfinite()
    share = 1 - options.get("label_smoothing", 0) / 2
    assert sums(logits, target, **options) == pytest.approx(n * 3e38 * share, rel=1e-6)
    logits[n // 2] = torch.inf
    assert sums(logits, target, **options) == torch.inf
    logits[n // 2] = torch.nan
    assert sums(logits, target, **options) != sums(logits, target, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_left_out_changes_no_bit(dtype, isa):
    """The same lanes, with the others' losses 0: the smallest logit for a target of 0."""
    n = 2 * _C.CHUNK + 77
    logits, target, kept = 5 * torch.randn(n, dtype=dtype), torch.rand(n, dtype=dtype), torch.rand(n) < 0.7
    nothing = torch.where(kept, logits, torch.finfo(dtype).min), torch.where(kept, target, 0)
    there = torch.where(kept, logits, torch.nan), torch.where(kept, target, torch.inf)
    assert sums(*there, mask=kept) == sums(*nothing)
    ignored = torch.where(kept, target, -100)
    assert sums(there[0], ignored, ignore_index=-100) == sums(*nothing)
    smoothed = (target * 0.5 + 0.25, target) if dtype == torch.float64 else (target.round() / 2 + 0.25, target.round())
    assert sums(logits, smoothed[0]) == pytest.approx(sums(logits, smoothed[1], label_smoothing=0.5), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"ignore_index": 7}], ids=str)
def test_infinite_logits_that_are_right(dtype, options, isa):
    """Have no loss: their chunk's losses are added one by one, which groups cannot tell from NaN."""
    n = 3 * _C.CHUNK
    logits, target = 5 * torch.randn(n, dtype=dtype), torch.randint(0, 2, (n,)).to(dtype)
    right = torch.arange(n) % 4001 == 17  # in each chunk
    logits = torch.where(right, (target - 0.5) * torch.inf, logits)
    losses = ops.bce(*loss_arguments(logits, target, None, None, None, ops.NONE, dtype=torch.float64))
    assert not losses[right].any()
    assert sums(logits, target, **options) == pytest.approx(losses.sum().item(), rel=n * 2.0**-53)
    gradients = []
    for reduction in ("sum", "none"):
        z = logits.clone().requires_grad_()
        fl.binary_cross_entropy_with_logits(z, target, reduction=reduction, **options).sum().backward()
        gradients.append(z.grad)
    assert same_bits(*gradients)
    assert not gradients[0][right].any()
    logits[5], target[5] = torch.inf, 0
    assert sums(logits, target, **options) == torch.inf


def test_the_order_of_the_chunks_sums():
    """Neighbours first, as csrc/problem.h says: of 37 chunks, in each of which all but one loss is 0."""
    z = torch.full((37, 8192), -800.0, dtype=torch.double)  # exp(-800) is 0
    z[:, 5] = 3 * torch.randn(37, dtype=torch.double)
    given = z.flatten(), torch.zeros(z.numel(), dtype=torch.bool), torch.ones(())  # with weights all is added in fp64
    lanes = torch.zeros(64, dtype=torch.double)
    lanes[:37] = ops.bce(*loss_arguments(*given, reduction=ops.NONE, dtype=torch.double)).view(37, -1)[:, 5]
    while len(lanes) > 1:
        lanes = lanes[::2] + lanes[1::2]
    assert same_bits(ops.bce(*loss_arguments(*given, reduction=ops.SUM, dtype=torch.double)), lanes[0])

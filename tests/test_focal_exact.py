"""sigmoid_focal_loss: its errors in ulp, equal bits on every instruction set, special values."""

import math

import mpmath
import numpy as np
import pytest
import torch

from fused_logistic import _C, ops, reference
from tests.conftest import grad_arguments, loss_arguments, same_bits
from tests.test_exact import TYPES, logits_of_every_binade, ulps

GAMMAS = [0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 2.7, 5.0]


def elements(logits, target, gamma, alpha=None, weight=None, pos_weight=None, mask=None, smoothing=0.0, ignored=None):
    """Every element's loss and gradient, from the kernels, without autograd."""
    tensors, one = (logits, target, weight, pos_weight, mask), torch.ones((), dtype=logits.dtype)
    options = (ops.NONE, smoothing, ignored)
    return (
        ops.bce(*loss_arguments(*tensors, *options, None, gamma, alpha)),
        ops.bce_backward(one, *grad_arguments(*tensors, *options, ops.LOGITS, gamma, alpha)),
    )


# ---- The numerics contract -----------------------------------------------------------------------------------------


def exact_values(z, y, gamma):
    """The loss, its gradient and the size of the two terms that cancel in it where y is soft, to 50 digits."""
    with mpmath.workdps(50):
        z, y, gamma = (mpmath.mpf(float(v)) for v in (z, y, gamma))
        e = mpmath.exp(-abs(z)) if abs(z) < 10**6 else mpmath.mpf(0)
        small, large, log = e / (1 + e), 1 / (1 + e), mpmath.log1p(e)
        positive, negative = (large, small) if z >= 0 else (small, large)  # sigma(z), sigma(-z)
        loss = y * (log + max(-z, 0)) + (1 - y) * (log + max(z, 0))
        q = y * negative + (1 - y) * positive
        power, rate = (q**gamma, gamma * positive * negative / q) if q else (mpmath.mpf(gamma == 0), mpmath.mpf(0))
        gradient = (1 - y) * positive - y * negative + (1 - 2 * y) * rate * loss
        size = (1 - y) * positive + y * negative + rate * loss
        return power, power * loss, power * gradient, power * size


@pytest.mark.parametrize("target", [0, 1, 0.5, 0.3, 1e-3, 1 - 2**-20, 1e-10], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 2.7, 20.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ulp_sweep(dtype, gamma, target):
    """A hard target: at most 3 + 1.8 gamma ulp, however small the result. By multiplication, as fp32's whole exponents
    are computed, and a soft one: 4 + 2.8 gamma, where the gradient's terms cancel of their size."""
    z = logits_of_every_binade(TYPES[dtype], 2)
    z = np.concatenate([np.random.default_rng(2).choice(z, 250, replace=False), np.linspace(-4, 4, 50)]).astype(z.dtype)
    y = torch.full((z.size,), target, dtype=dtype)
    multiplied = dtype == torch.float32 and gamma in range(5)
    limit = 4 + 2.8 * gamma if multiplied or target not in (0, 1) else 3 + 1.8 * gamma
    power, *exact = zip(*[exact_values(v, y[0], gamma) for v in z], strict=True)
    # q^gamma underflows like any number, whatever the loss that it multiplies
    kept = np.array([p > torch.finfo(dtype).tiny for p in power]) | (np.abs(z) < 1e4)
    for got, values in zip(elements(torch.from_numpy(z), y, gamma), (exact[0], exact[1]), strict=True):
        scale = exact[2] if values is exact[1] else values
        error = ulps(got.numpy(), values, scale)[kept]
        assert error.max() <= limit, (z[kept][error.argmax()], error.max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_logit(dtype, isa):
    """All 65,536 but NaN, by every hard target: within 1 ulp of the reference in fp64, and never NaN."""
    z = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    z = z[~z.isnan()]
    for y, gamma in ((0, 2.0), (1, 2.0), (0, 0.5), (1, 3.3)):
        target = torch.full_like(z, y)
        # autograd's derivative of |z|, on which the reference is built, is 0 at 0
        wide = torch.where(z == 0, 1e-300, z.double()).requires_grad_()
        exact = reference.sigmoid_focal_loss(wide, target, gamma=gamma)
        loss, grad = elements(z, target, gamma, 0.25)
        (exact_grad,) = torch.autograd.grad(exact.sum(), wide)
        for got, want in ((loss, exact.detach()), (grad, exact_grad)):
            assert not got.isnan().any()
            finite = wide.isfinite() & (want.abs() <= torch.finfo(dtype).max)
            near = want.abs().to(dtype)
            ulp = near.double() - torch.nextafter(near, torch.tensor(-1.0, dtype=dtype)).double()
            assert ((got.double() - want).abs() / ulp)[finite].max() <= 1


@pytest.mark.parametrize("targets", ["hard", "soft", "outside"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_same_bits_on_every_isa(dtype, targets, isa):
    """By every output, with every option."""
    n = 20_003
    scale = torch.tensor([0.01, 1, 5, 30, 80, 200])[torch.randint(0, 6, (n,))]
    logits = (torch.randn(n) * scale).to(dtype)
    logits[:8] = torch.tensor([0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -104, 88.5])
    soft = torch.rand(n)
    target = {"hard": soft.round(), "soft": soft, "outside": 4 * soft - 1.5}[targets].to(dtype)
    target[9::31] = -100
    tensors = (logits, target, torch.rand(n, dtype=torch.double), 2 * torch.rand(1), torch.rand(n) < 0.9)
    one = torch.ones((), dtype=dtype)

    def run():
        found = []
        for tensors_, options in ((tensors, (0.1, -100)), ((logits, target, None, None, None), (0.0, None))):
            for gamma, alpha in ((2.0, 0.25), (0.3, None), (3.0, 0.6)):
                for reduction in (ops.NONE, ops.MEAN):
                    found.append(ops.bce(*loss_arguments(*tensors_, reduction, *options, torch.double, gamma, alpha)))
                found += ops.bce_with_grad(*loss_arguments(*tensors_, ops.SUM, *options, torch.double, gamma, alpha))
                for wrt in range(4 if tensors_ is tensors else 2):
                    arguments = grad_arguments(*tensors_, ops.NONE, *options, wrt, gamma, alpha)
                    found.append(ops.bce_backward(one, *arguments))
        return found

    got = run()
    _C.set_isa("baseline")
    for ours, baseline in zip(got, run(), strict=True):
        assert same_bits(ours, baseline)


# ---- Targets outside of [0, 1] ---------------------------------------------------------------------------------------

OUTSIDE = [-1e3, -0.5, -1e-7, 1 + 2**-23, 1.5, 2, 1000.3]


def exact_outside(z, y, gamma):
    """The loss, its derivatives by z and y, and for each of the three the error that one ulp in all terms can make."""
    with mpmath.workdps(50):
        z, y, gamma = (mpmath.mpf(float(v)) for v in (z, y, gamma))
        positive, negative = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
        sizes = abs(y) * negative + abs(1 - y) * positive
        q = y * negative + (1 - y) * positive
        terms = y * mpmath.log1p(mpmath.exp(-z)), (1 - y) * mpmath.log1p(mpmath.exp(z))
        loss, loss_size = sum(terms), sum(map(abs, terms))
        sign = -1 if q < 0 and gamma % 2 == 1 else 1
        power = sign * abs(q) ** gamma
        by_z, by_y = (1 - 2 * y) * positive * negative, negative - positive
        values = (
            power * loss,
            power * ((1 - y) * positive - y * negative + gamma * by_z / q * loss),
            power * (-z + gamma * by_y / q * loss),
        )
        amplified = abs(power) * (1 + (1 + gamma) * sizes / abs(q))  # by the cancellation in q
        scales = (
            amplified * loss_size,
            amplified * (sizes + abs(gamma * by_z / q) * loss_size),
            amplified * (abs(z) + gamma / abs(q) * loss_size),
        )
        return values, scales, abs(q) / sizes, abs(power)


@pytest.mark.parametrize("target", OUTSIDE, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.0, 0.5, 2.7], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_targets_outside(dtype, gamma, target):
    """torchvision's formula, whose q is negative or above 1 there; to a whole power, or else |q| to it."""
    info, one = torch.finfo(dtype), torch.ones((), dtype=dtype)
    root = math.log(abs(1 - 1 / target))  # where q is 0, if anywhere
    z = torch.cat([torch.linspace(-90, 90, 181), torch.linspace(-3, 3, 61), root + torch.linspace(-0.1, 0.1, 21)])
    z = z.to(dtype)
    y = torch.full_like(z, target)
    by_y = ops.bce_backward(one, *grad_arguments(z, y, reduction=ops.NONE, wrt=ops.TARGET, gamma=gamma))
    found = (*elements(z, y, gamma), by_y)
    assert all(t.isfinite().all() for t in found)
    for i, value in enumerate(z):
        exact, scales, remains, power = exact_outside(value, y[0], gamma)
        if remains < 100 * info.eps or (power < info.tiny and power > 0):
            continue
        for got, want, scale in zip(found, exact, scales, strict=True):
            limit = 4 * (1 + gamma) * info.eps * scale + 4 * info.tiny * info.eps
            assert abs(got[i].item() - want) <= limit, (value.item(), got[i].item(), float(want), float(scale))


def test_16_bit_targets_outside(isa):
    """Computed in fp32, rounded once."""
    z = torch.linspace(-20, 20, 1001)
    for dtype in (torch.bfloat16, torch.float16):
        for y in (-0.5, 1.5, 2.0):
            half = z.to(dtype)
            wide, target = half.float(), torch.full_like(half, y)
            for a, b in zip(elements(half, target, 3.0), elements(wide, target.float(), 3.0), strict=True):
                assert same_bits(a, b.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_q_is_0(dtype, isa):
    """The loss is all but 0 there, and so is its gradient for gamma 2; for gamma 1 that is q' times the plain loss."""
    z = torch.tensor(math.log(2), dtype=dtype) + torch.arange(-8, 9, dtype=dtype) * torch.finfo(dtype).eps / 2
    y = torch.full_like(z, 2)
    plain = elements(z, y, 0.0)[0]
    for gamma, wanted in (
        (1.0, -3 * 2 / 9 * plain),
        (2.0, torch.zeros_like(z)),
        (0.0, None),
        (0.5, None),
        (40.0, None),
    ):
        loss, grad = elements(z, y, gamma)
        assert loss.isfinite().all() and grad.isfinite().all()
        if wanted is not None:
            torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(loss, torch.zeros_like(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_target_makes_nan(dtype, gamma, isa):
    """Up to 1e18, but for gradients whose two terms overflow."""
    z = torch.tensor([-1000.0, -90, -1, 0, 0.5, 40, 1000, math.inf, -math.inf], dtype=dtype)
    for y in (-1e18, -1e13, -1e9, -1e4, 1e4, 1e9, 1e13, 1e18):
        loss, grad = elements(z, torch.full_like(z, y), gamma)
        assert not loss.isnan().any()
        assert not grad.isnan().any() or abs(y) ** (gamma + 1) * 1000 > torch.finfo(dtype).max
    y = torch.full((2,), 1e4, dtype=dtype)  # q is 1e4 where the logit is negative
    want = {torch.float32: 1e4**gamma * 9e5, torch.float64: 1e4**gamma * 9e5}[dtype]
    loss, _ = elements(torch.full((2,), -90, dtype=dtype), y, gamma)
    assert loss[0].item() == pytest.approx(want, rel=1e-5)


# ---- Special values --------------------------------------------------------------------------------------------------


def test_gamma_0_is_the_plain_loss(isa):
    logits, target = 5 * torch.randn(3_000), torch.rand(3_000).round(decimals=1)
    plain = (logits, target, None, None, None, ops.NONE)
    loss, grad = elements(logits, target, 0.0)
    assert same_bits(loss, ops.bce(*loss_arguments(*plain)))
    assert same_bits(grad, ops.bce_backward(torch.ones(()), *grad_arguments(*plain)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_special_values(dtype, isa):
    inf, nan, half = math.inf, math.nan, math.log(2) / 4
    table = [  # logit, target, loss, gradient; gamma = 2, no alpha
        (inf, 1, 0, 0), (-inf, 0, 0, 0), (inf, 0, inf, 1), (-inf, 1, inf, -1), (inf, 0.5, inf, 0.125),
        (0.0, 0, half, 0.125 + half), (-0.0, 0, half, 0.125 + half), (0.0, 1, half, -0.125 - half),
        (nan, 0, nan, nan), (nan, 1, nan, nan), (0.0, nan, nan, nan), (nan, 1.5, nan, nan), (nan, -1, nan, nan),
    ]  # fmt: skip
    z, y, loss, grad = (torch.tensor(column, dtype=dtype) for column in zip(*table, strict=True))
    for got, want in zip(elements(z, y, 2.0), (loss, grad), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, rtol=2 * torch.finfo(dtype).eps, atol=0)
    for gamma in (0.0, 1e-3, 0.5, 1.0, 1e30):  # nothing but 0 and inf times 0 at the ends
        loss, grad = elements(z[:4], y[:4], gamma)
        assert loss.tolist() == [0, 0, inf, inf] and grad.tolist() == [0, 0, 1, -1]
        target_grad = ops.bce_backward(
            torch.ones((), dtype=dtype), *grad_arguments(z[:2], y[:2], reduction=ops.NONE, wrt=ops.TARGET, gamma=gamma)
        )
        assert not target_grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_up_to_infinity(dtype, isa):
    """Targets far outside of [0, 1]: |q|^gamma to beyond the largest number, where it is infinite and not 0."""
    info = torch.finfo(dtype)
    z, y = torch.tensor([-36.0, -5.0, 0.0, 5.0, 36.0]), torch.tensor([-11.5, -6.197, -3.874, 4.668])
    z, y = (t.to(dtype).flatten() for t in torch.meshgrid(z, y, indexing="ij"))
    seen = set()
    for gamma in (5.5, 20.3, *torch.linspace(34, 60, 30).tolist(), *torch.linspace(280, 460, 30).tolist()):
        loss, _ = elements(z, y, gamma)
        assert not loss.isnan().any()
        for got, logit, target in zip(loss.tolist(), z, y, strict=True):
            (exact, *_), _, remains, power = exact_outside(logit, target, gamma)
            if remains > 0.1 and info.tiny < power < info.max / 2 and abs(exact) < info.max / 2:
                assert abs(got - exact) <= abs(exact) * 2**-10  # at most gamma times 30 ulp
                seen.add("large" if power > info.max**0.9 else "less")
            elif remains > 0.1 and power / 2 > info.max:
                assert got == math.copysign(math.inf, exact)
                seen.add("infinite")
    assert seen == {"large", "less", "infinite"}

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
    """A hard target: at most 3 + 0.8 gamma ulp, however small the result. A soft one: 4 + 1.5 gamma, and where the
    gradient's terms cancel, of their size."""
    z = logits_of_every_binade(TYPES[dtype], 2)
    z = np.concatenate([np.random.default_rng(2).choice(z, 250, replace=False), np.linspace(-4, 4, 50)]).astype(z.dtype)
    y = torch.full((z.size,), target, dtype=dtype)
    limit = 3 + 1.8 * gamma if target in (0, 1) else 4 + 2.8 * gamma
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


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_same_bits_on_every_isa(dtype, soft, isa):
    """By every output, with every option."""
    n = 20_003
    scale = torch.tensor([0.01, 1, 5, 30, 80, 200])[torch.randint(0, 6, (n,))]
    logits = (torch.randn(n) * scale).to(dtype)
    logits[:8] = torch.tensor([0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -104, 88.5])
    target = (torch.rand(n) if soft else torch.randint(0, 2, (n,))).to(dtype)
    target[9::31] = -100
    tensors = (logits, target, torch.rand(n, dtype=torch.double), 2 * torch.rand(1), torch.rand(n) < 0.9)
    one = torch.ones((), dtype=dtype)

    def run():
        found = []
        for tensors_, options in ((tensors, (0.1, -100)), ((logits, target, None, None, None), (0.0, None))):
            for gamma, alpha in ((2.0, 0.25), (0.3, None)):
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
        (nan, 0, nan, nan), (nan, 1, nan, nan), (0.0, nan, nan, nan), (1.0, 1.5, nan, nan), (1.0, -1, nan, nan),
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

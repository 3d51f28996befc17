"""Quality, varifocal and asymmetric loss: errors in ulp against 50 digits, equal bits everywhere, special values."""

import functools
import math

import numpy as np
import pytest
import torch

import fused_logistic as fl
from fused_logistic import _C, ops, reference
from tests.conftest import grad_arguments, loss_arguments, same_bits
from tests.family import FAMILY, asymmetric, exact, quality, varifocal
from tests.test_exact import TYPES, logits_of_every_binade, ulps

INF, NAN = math.inf, math.nan


# 3.9e-8: of 4 - 3 y, an exponent of fp32, nothing is left of y but the part that rounding lost
@pytest.mark.parametrize("target", [0, 1, 0.5, 0.3, 1e-3, 1 - 2**-20, 3.9e-8], ids=str)
@pytest.mark.parametrize("member", FAMILY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ulp_sweep(dtype, member, target):
    """4 + 2.8 gamma ulp at most: of the loss itself; of the gradient's two terms; where |sigma(z) - y| or
    sigma(z) - clip cancels, of what an ulp of sigma(z) makes of them. Both tails of targets 0 and 1, to the smallest
    normal number."""
    z = logits_of_every_binade(TYPES[dtype], 2)
    near = [math.log(p / (1 - p)) for p in (0.05, 0.1, 0.3, 0.5)]  # where something cancels
    near = np.concatenate([np.array(near) + step for step in (-1e-3, -1e-6, 0, 1e-6, 1e-3)])
    z = np.concatenate([np.random.default_rng(2).choice(z, 150, replace=False), np.linspace(-4, 4, 41), near])
    z = z.astype(TYPES[dtype])
    z = z[np.abs(z) < 1e4]
    y = torch.full((z.size,), target, dtype=dtype)
    limit = 4 + 2.8 * max(member.exponents)
    loss, grad, loss_size, grad_size, power = zip(*[exact(member, v, y[0]) for v in z], strict=True)
    kept = np.array([p > torch.finfo(dtype).tiny or p == 0 for p in power])
    found = member.elements(torch.from_numpy(z), y)
    for got, values, scale in zip(found, (loss, grad), (loss_size, grad_size), strict=True):
        scale = [min(value, torch.finfo(dtype).max) for value in scale]  # beside sigma(z) = y nothing is known
        error = ulps(got.numpy(), values, scale)[kept]
        assert error.max() <= limit, (z[kept][error.argmax()], error.max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("targets", ["hard", "soft", "mixed"])
def test_same_bits_on_every_isa(targets, dtype, isa):
    """By every output, with every option."""
    n = 20_003
    scale = torch.tensor([0.01, 1, 5, 30, 80, 200])[torch.randint(0, 6, (n,))]
    logits = (torch.randn(n) * scale).to(dtype)
    logits[:8] = torch.tensor([0, -0.0, INF, -INF, NAN, 1e-40, -104, 88.5])
    soft = torch.rand(n)
    # mixed: soft targets beside hard ones, which their neighbours in a vector must not change
    target = {"hard": soft.round(), "soft": soft, "mixed": torch.where(torch.rand(n) < 0.1, soft, soft.round())}[
        targets
    ]
    target = target.to(dtype)
    target[9::31] = -100
    tensors = (logits, target, torch.rand(n, dtype=torch.double), 2 * torch.rand(1), torch.rand(n) < 0.9)
    one = torch.ones((), dtype=dtype)

    def run():
        found = []
        for member in FAMILY:
            for given, options in ((tensors, (0.1, -100)), ((logits, target.clamp(0), None, None, None), (0.0, None))):
                for reduction in (ops.NONE, ops.MEAN):
                    found.append(ops.bce(*loss_arguments(*given, reduction, *options, torch.double, **member.options)))
                arguments = loss_arguments(*given, ops.SUM, *options, torch.double, **member.options)
                found += ops.bce_with_grad(*arguments)
                for wrt in range(4 if given is tensors else 2):
                    arguments = grad_arguments(*given, ops.NONE, *options, wrt, **member.options)
                    found.append(ops.bce_backward(one, *arguments))
        return found

    got = run()
    _C.set_isa("baseline")
    for ours, baseline in zip(got, run(), strict=True):
        assert same_bits(ours, baseline)


@pytest.mark.parametrize("member", FAMILY, ids=str)
def test_same_sums_for_any_number_of_threads(member):
    logits, target = 3 * torch.randn(70_001), torch.rand(70_001).round()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.bce_with_grad(*loss_arguments(logits, target, reduction=ops.SUM, **member.options)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], others, strict=True))
    assert same_bits(found[0][1], member.elements(logits, target)[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_special_values(dtype, isa):
    """Infinite logits, NaN, and the logit at which sigma(z) is the target or clip."""
    half, quarter = math.log(2) / 2, math.log(2) / 4
    tables = [
        (quality(2.0), [  # logit, target, loss, gradient
            (INF, 1, 0, 0), (-INF, 0, 0, 0), (INF, 0, INF, 1), (-INF, 1, INF, -1), (0, 0, quarter, 0.125 + quarter),
            (-0.0, 1, quarter, -0.125 - quarter), (0, 0.5, 0, 0), (NAN, 0, NAN, NAN), (NAN, 1, NAN, NAN),
            (0, NAN, NAN, NAN),
        ]),
        (quality(0.5), [(INF, 1, 0, 0), (-INF, 0, 0, 0), (INF, 0, INF, 1), (-INF, 1, INF, -1), (0, 0.5, 0, 0)]),
        (varifocal(0.75, 2.0), [
            (INF, 1, 0, 0), (-INF, 0, 0, 0), (INF, 0, INF, 0.75), (-INF, 1, INF, -1), (0, 0.5, half, 0),
            (0, 1, 2 * half, -0.5), (NAN, 0, NAN, NAN), (NAN, 1, NAN, NAN),
        ]),
        (asymmetric(4.0, 1.0, 0.25), [
            (INF, 1, 0, 0), (-INF, 0, 0, 0), (INF, 0, 0.75**4 * math.log(4), 0), (-INF, 1, INF, -1),
            (-2, 0, 0, 0), (NAN, 0, NAN, NAN), (NAN, 1, NAN, NAN), (0, NAN, NAN, NAN), (0, 1, half, -0.25 - half / 2),
        ]),
        (asymmetric(2.0, 0.0, 0.0), [(INF, 1, 0, 0), (-INF, 0, 0, 0), (INF, 0, INF, 1), (-INF, 1, INF, -1)]),
    ]  # fmt: skip
    for member, table in tables:
        z, y, loss, grad = (torch.tensor(column, dtype=dtype) for column in zip(*table, strict=True))
        for got, want in zip(member.elements(z, y), (loss, grad), strict=True):
            torch.testing.assert_close(got, want, equal_nan=True, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_positives_keep_their_gradient():
    """timm's eps ends it below -18: of a positive it is -q^gamma and more, to the end of fp32; never NaN in fp16."""
    for dtype, lowest in ((torch.float32, -87.0), (torch.bfloat16, -87.0), (torch.float16, -65504.0)):
        z = torch.linspace(lowest, 0, 101).to(dtype)
        loss, grad = asymmetric(4.0, 1.0, 0.05).elements(z, torch.ones_like(z))
        assert not loss.isnan().any() and not grad.isnan().any()
        assert (grad[:-1] <= -0.7).all()
        loss, grad = asymmetric(4.0, 1.0, 0.05).elements(-z, torch.zeros_like(z))
        assert loss.isfinite().all() and not grad.isnan().any()


def test_where_sigma_is_the_target(isa):
    """No NaN and no infinity next to the logit at which |sigma(z) - y| is 0, and 0 there."""
    for dtype in (torch.float32, torch.float64):
        for y in (0.5, 0.25, 0.125):
            z = (
                torch.tensor(math.log(y / (1 - y)), dtype=dtype)
                + torch.arange(-8, 9, dtype=dtype) * torch.finfo(dtype).eps
            )
            target = torch.full_like(z, y)
            for beta in (0.0, 0.3, 1.0, 1.7, 2.0, 3.0, 4.0, 40.0):
                loss, grad = quality(beta).elements(z, target)
                by_target = ops.bce_backward(
                    z.new_ones(()), *grad_arguments(z, target, reduction=ops.NONE, wrt=ops.TARGET, beta=beta)
                )
                assert loss.isfinite().all() and grad.isfinite().all() and by_target.isfinite().all(), beta
        loss, grad = quality(2.0).elements(torch.zeros(1, dtype=dtype), torch.full((1,), 0.5, dtype=dtype))
        assert loss.item() == 0 and grad.item() == 0


@pytest.mark.parametrize("z", [0.0, -0.0])
def test_a_beta_of_1_has_no_slope_where_sigma_is_the_target(z, isa):
    """As torch's of |d|, as the composition's, and as that of every other beta."""
    _, grad = quality(1.0).elements(torch.tensor([z]), torch.tensor([0.5]))
    assert grad.item() == 0


def test_where_a_loss_is_another_one(isa):
    """No exponent: the plain loss. Quality of hard targets, asymmetric of one exponent without clip: the focal loss."""
    z, hard, soft = 5 * torch.randn(3_000), torch.rand(3_000).round(), torch.rand(3_000)
    plain = quality(0.0), asymmetric(0.0, 0.0, 0.0)
    for member in plain:
        for y in (hard, soft):
            loss, grad = member.elements(z, y)
            assert same_bits(loss, ops.bce(*loss_arguments(z, y, reduction=ops.NONE)))
            assert same_bits(grad, ops.bce_backward(torch.ones(()), *grad_arguments(z, y, reduction=ops.NONE)))
    for gamma in (2.0, 0.7):
        focal = [
            ops.bce(*loss_arguments(z, hard, reduction=ops.NONE, gamma=gamma)),
            ops.bce_backward(torch.ones(()), *grad_arguments(z, hard, reduction=ops.NONE, gamma=gamma)),
        ]
        for member in (quality(gamma), asymmetric(gamma, gamma, 0.0)):
            for a, b in zip(member.elements(z, hard), focal, strict=True):
                torch.testing.assert_close(a, b, rtol=16 * 2**-23, atol=0)


@pytest.mark.parametrize("gamma", [100.0, 250.0, 1e3, 1e30])
@pytest.mark.parametrize("name", ["focal", "quality", "asymmetric"])
def test_large_exponents(name, gamma):
    """Where q^gamma is 0 the loss and its gradient are: the logarithm that gamma multiplies is never above 0."""
    of = {
        "focal": (
            functools.partial(fl.sigmoid_focal_loss, alpha=-1, gamma=gamma),
            reference.sigmoid_focal_loss,
            (None, gamma),
        ),
        "quality": (functools.partial(fl.quality_focal_loss, beta=gamma), reference.quality_focal_loss, (gamma,)),
        "asymmetric": (
            functools.partial(fl.asymmetric_loss_with_logits, gamma_neg=gamma, gamma_pos=gamma),
            reference.asymmetric_loss_with_logits,
            (gamma, gamma, 0.05),
        ),
    }
    public, definition, parameters = of[name]
    for target in (0.0, 1.0, 0.635, 0.3):
        z = torch.linspace(-8, 8, 101, requires_grad=True)
        y = torch.full_like(z, target)
        loss = public(z, y, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), z)
        gone = definition(z.detach().double(), y.double(), *parameters) < 1e-60
        assert gone.any() or name == "focal" or gamma < 250
        assert (loss[gone] == 0).all() and (grad[gone] == 0).all(), (target, loss[gone].max(), grad[gone].abs().max())

"""What is masked or ignored contributes exactly nothing: to the loss and to every derivative, to any order."""

import math

import pytest
import torch

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import REDUCTIONS, grad_arguments, loss_arguments, same_bits

NAMES = ("logits", "target", "weight", "pos_weight")
BAD = [math.nan, math.inf, -math.inf]


def problem(how, place=None, value=None):
    """Operands of 5 elements, of which the second and the fourth are left out, and have the value in one operand."""
    torch.manual_seed(0)
    logits, weight, pos_weight = (torch.rand(5, dtype=torch.double) + 0.3 for _ in range(3))
    target = torch.tensor([0.2, 1.0, 0.7, 0.4, 1.0], dtype=torch.double)
    mask = torch.tensor([True, False, True, False, True])
    operands = {"logits": logits, "target": target, "weight": weight, "pos_weight": pos_weight}
    if how != "mask":
        target[~mask] = -1 if how == "ignore_index" else math.nan
    if place is not None:
        operands[place][~mask] = value
    return list(operands.values()), (mask if how == "mask" else None), (-1 if how == "ignore_index" else None)


CASES = pytest.mark.parametrize(
    "how,place",
    [(how, place) for how in ("mask", "ignore_index", "ignore_nan") for place in NAMES
     if how == "mask" or place != "target"],
)  # fmt: skip
FOCAL = pytest.mark.parametrize("gamma", [None, 1.5], ids=["bce", "focal"])


def loss_of(how, reduction, gamma):
    """A scalar function of the four operands."""
    _, mask, ignored = problem(how)
    enum, missing = REDUCTIONS.index(reduction), how == "ignore_nan"

    def loss(z, y, w, p):
        options = {"gamma": gamma, "alpha": gamma and 0.25, "ignore_nan": missing}
        value = ops.bce(*loss_arguments(z, y, w, p, mask, enum, 0.1, ignored, **options))
        return (value**2).sum()

    return loss


@CASES
@FOCAL
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives(reduction, value, gamma, how, place):
    """As with harmless values, and 0 at what is left out: backward, twice, three times, and the transforms."""
    loss, results, func = loss_of(how, reduction, gamma), [], torch.func
    for given in (value, None):
        operands, _, _ = problem(how, place if given is not None else None, given)
        leaves = [t.clone().requires_grad_() for t in operands]
        plain = torch.autograd.grad(loss(*leaves), leaves)
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum(g.sin().sum() for g in second), leaves)
        every = tuple(range(4))
        tangents = tuple(torch.ones_like(t) for t in operands)
        hessian = func.hessian(loss, every)(*operands)
        results.append(
            [
                *plain, *first, *second, *third, *func.grad(loss, every)(*operands),
                func.jvp(loss, tuple(operands), tangents)[1], *(h for row in hessian for h in row),
            ]
        )  # fmt: skip
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14, msg=lambda text, i=i: f"{i}: {text}")
        if got.dim() > 0:
            assert not got[..., [1, 3]].any(), i


@CASES
@FOCAL
def test_broadcast_vmap_and_compile(gamma, how, place):
    """A number for all as well as what is NaN in some; per-sample gradients; captured graphs."""
    (z, y, w, p), mask, ignored = problem(how, place, math.nan)

    def loss(z, y, w, p, mask=mask):
        tensors = z, y, w, p, mask
        return ops.bce(*loss_arguments(*tensors, ops.SUM, 0.0, ignored, gamma=gamma, ignore_nan=how == "ignore_nan"))

    def sample(z, y, w, p, kept):
        return loss(z[None], y[None], w[None], p[None], None if mask is None else kept[None])

    kept = mask if mask is not None else ~y.isnan() if how == "ignore_nan" else y != ignored
    func = torch.func
    grads = func.grad(loss, (0, 1, 2, 3))(z, y, w, p)
    each = func.vmap(func.grad(sample, (0, 1, 2, 3)))(z, y, w, p, kept)
    compiled = torch.compile(func.grad(loss, (0, 1, 2, 3)), backend="aot_eager", fullgraph=True)(z, y, w, p)
    for a, b, c in zip(grads, each, compiled, strict=True):
        assert a.isfinite().all() and not a[~kept].any() and a[kept].all()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-15)
    for number in (1.3, math.inf):  # of pos_weight, where only what is left out is not 0
        one = torch.tensor(number, dtype=torch.double)
        target = torch.where(kept, 0, y) if number == math.inf else y
        grad_z, grad_p = func.grad(loss, (0, 3))(z, target, w, one)
        finite = torch.tensor(1.3, dtype=torch.double)
        wanted = func.grad(loss, (0, 3))(z[kept], target[kept], w[kept], finite, None if mask is None else mask[kept])
        torch.testing.assert_close(grad_z[kept], wanted[0])
        torch.testing.assert_close(grad_p, wanted[1])


@FOCAL
@pytest.mark.parametrize("factor", BAD)
@pytest.mark.parametrize("wrt", range(4))
def test_grad_output_there(wrt, factor, gamma):
    """NaN or infinite where an element is left out: 0, and so are the derivatives of that."""
    operands, mask, _ = problem("mask")
    grad_output = torch.where(mask, torch.rand(5).double(), factor)
    results = []
    for given in (grad_output, torch.where(mask, grad_output, 1.0)):
        leaves = [t.clone().requires_grad_() for t in (*operands, given)]
        z, y, w, p, g = leaves
        grad = ops.bce_backward(g, *grad_arguments(z, y, w, p, mask, ops.NONE, wrt=wrt, gamma=gamma))
        second = torch.autograd.grad(
            (grad**2).sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        third = torch.autograd.grad(
            sum((s**2).sum() for s in second), leaves, allow_unused=True, materialize_grads=True
        )
        kernel = ops.bce_backward(
            given, *grad_arguments(*(t.detach() for t in (z, y, w, p)), mask, ops.NONE, wrt=wrt, gamma=gamma)
        )
        results.append([kernel, grad, *second, *third])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        assert not a[~mask].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_public_functions(reduction):
    """Labels that are missing are NaN, and so are their weights."""
    (z, y, w, p), mask, _ = problem("mask", "target", math.nan)
    w[~mask], p[1], p[3] = math.nan, math.inf, math.nan
    for function, others in (
        (fl.binary_cross_entropy_with_logits, {"weight": w, "pos_weight": p}),
        (fl.sigmoid_focal_loss, {}),
    ):
        leaves = {name: t.clone().requires_grad_() for name, t in others.items()}
        logits = z.clone().requires_grad_()
        of_kept = {name: t[mask] for name, t in leaves.items()}
        wanted = function(logits[mask], y[mask], reduction=reduction, **of_kept)
        got = function(logits, y, reduction=reduction, mask=~y.isnan(), **leaves)
        torch.testing.assert_close(got[mask] if reduction == "none" else got, wanted)
        for create_graph in (False, True):
            inputs = [logits, *leaves.values()]
            a, b = (
                torch.autograd.grad(t.sum(), inputs, create_graph=create_graph, retain_graph=True)
                for t in (got, wanted)
            )
            for x, y_ in zip(a, b, strict=True):
                torch.testing.assert_close(x, y_, rtol=1e-12, atol=0)
                assert not x[~mask].any()


def test_kernels_give_zero(isa):
    """Bits: +0, whatever is there, for every output."""
    n = 3_000
    mask = torch.rand(n) < 0.5
    z, y, w, p, g = (torch.where(mask, torch.rand(n), torch.tensor(BAD)[torch.randint(0, 3, (n,))]) for _ in range(5))
    for gamma in (None, 2.0):
        found = [ops.bce(*loss_arguments(z, y, w, p, mask, ops.NONE, gamma=gamma))]
        found += [
            ops.bce_backward(g, *grad_arguments(z, y, w, p, mask, ops.NONE, wrt=i, gamma=gamma)) for i in range(4)
        ]
        loss, grad = ops.bce_with_grad(*loss_arguments(z, y, w, p, mask, ops.SUM, gamma=gamma))
        assert loss.isfinite()
        for t in (*found, grad):
            assert t.isfinite().all() and same_bits(t[~mask], torch.zeros(int((~mask).sum())))

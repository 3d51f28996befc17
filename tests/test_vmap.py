"""torch.func.vmap over any dimension of any operand, and torch's other batched derivatives: against torch, in fp64."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jacrev, vmap

import fused_logistic as fl
from fused_logistic import ops
from tests.against_torch import (
    REDUCTIONS,
    assert_same,
    compare,
    losses,
    operands,
    rand,
    scalar,
)
from tests.conftest import grad_arguments, loss_arguments


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target_dim", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("logits_dim", [None, 0, 1, 2, -2])
def test_vmap_in_dims(logits_dim, target_dim, reduction):
    if logits_dim is None and target_dim is None:
        pytest.skip("nothing is batched")

    def batched(tensor, dim):
        return tensor[0] if dim is None else tensor.movedim(0, dim)

    logits, target = batched(torch.randn(5, 4, 3, dtype=torch.double), logits_dim), batched(rand(5, 4, 3), target_dim)
    for out_dims in (0,) if reduction != "none" else (0, 2):
        in_dims = (logits_dim, target_dim)
        compare(lambda f, t, d=(in_dims, out_dims): vmap(f, *d)(*t), reduction, tensors=(logits, target, None, None))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "pos_weight", [None, ((), 0), ((3,), 1), ((4, 1), 0), ((1, 3), 2), ((3,), None), ((), None)], ids=str
)
@pytest.mark.parametrize("weight", [None, ((), 0), ((3,), 0), ((4, 1), 1), ((4, 3), None), ((1, 1), None)], ids=str)
def test_vmap_of_weights(weight, pos_weight, reduction):
    """Weights of fewer dimensions than the logits broadcast against a sample, not against the batch."""
    batch = 4  # as large as a dimension of the sample: a wrong alignment would broadcast without an error

    def make(spec):
        if spec is None:
            return None, ()
        shape, dim = spec
        return (rand(*shape), (None,)) if dim is None else (rand(batch, *shape).movedim(0, dim), (dim,))

    (w, w_dim), (p, p_dim) = make(weight), make(pos_weight)
    in_dims = (0, 0, *w_dim, *p_dim)
    tensors = torch.randn(batch, 4, 3, dtype=torch.double), rand(batch, 4, 3), w, p
    compare(lambda f, t: vmap(f, in_dims)(*t), reduction, tensors=tensors)
    compare(lambda f, t: vmap(grad(scalar(f), tuple(range(len(t)))), in_dims)(*t), reduction, tensors=tensors)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_only_over_a_weight(reduction):
    logits, target, _, _ = operands()
    compare(lambda f, t: vmap(f, (None, None, 0))(*t), reduction, tensors=(logits, target, rand(7, 3), None))
    compare(lambda f, t: vmap(f, (None, None, 1))(*t), reduction, tensors=(logits, target, None, rand(3, 7)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6,), (6, 0), (0, 3)])
def test_vmap_of_scalars_and_of_nothing(shape, reduction):
    tensors = rand(*shape), rand(*shape), None, None
    ours, torchs = (vmap(f)(*tensors[:2]) for f in losses(reduction, tensors))
    torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nested_vmap(reduction):
    logits, target = torch.randn(2, 5, 4, 3, dtype=torch.double), rand(5, 4, 2, 3)
    w, p = rand(5, 3), rand(2, 1)

    def transform(f, tensors):
        return vmap(vmap(f, (0, 0, 0, None)), (0, 2, None, 0))(*tensors)

    compare(transform, reduction, tensors=(logits, target, w, p))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_of_integer_targets(reduction, dtype):
    logits, target = torch.randn(5, 3, dtype=torch.double), torch.randint(0, 2, (3, 5)).to(dtype)
    loss = functools.partial(fl.binary_cross_entropy_with_logits, reduction=reduction)
    torchs = functools.partial(F.binary_cross_entropy_with_logits, reduction=reduction)
    assert_same(vmap(loss, (0, 1))(logits, target), vmap(torchs, (0, 1))(logits, target.double()))
    jacobians = vmap(jacrev(loss), (0, 1))(logits, target), vmap(jacrev(torchs), (0, 1))(logits, target.double())
    assert_same(*jacobians)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_vmap_rounds_the_reduced_loss_once(reduction, dtype):
    """The loss of a sample is reduced in more than its own precision: vmap and a loop give the same."""
    logits, target = (3 * torch.randn(6, 1000)).to(dtype), torch.rand(6, 1000).to(dtype)
    loss = functools.partial(fl.binary_cross_entropy_with_logits, reduction=reduction)
    looped = torch.stack([loss(z, y) for z, y in zip(logits, target, strict=True)])
    batched = vmap(loss)(logits, target)
    assert batched.dtype == looped.dtype
    torch.testing.assert_close(batched, looped, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
@pytest.mark.parametrize("given", [{}, {"label_smoothing": 0.2, "ignore_index": 1}], ids=str)
def test_the_ops_themselves(given, reduction):
    """Where no gradient is asked for, the rules of the raw ops are what vmap calls."""
    logits, target = torch.randn(5, 4, 3, dtype=torch.double), rand(5, 4, 3).round()
    weights, options = (rand(4, 3), rand(3)), {"reduction": reduction} | given
    grad_output = rand(4, 3) if reduction == ops.NONE else rand()

    def loss(z, y):
        return ops.bce(*loss_arguments(z, y, *weights, **options))

    def backward(wrt):
        return lambda z, y: ops.bce_backward(grad_output, *grad_arguments(z, y, *weights, wrt=wrt, **options))

    for op in (loss, *map(backward, range(4))):
        looped = torch.stack([op(z, y) for z, y in zip(logits, target, strict=True)])
        torch.testing.assert_close(vmap(op)(logits, target), looped, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_through_vmap(reduction):
    """Ordinary autograd outside, vmap inside: batched gradients of leaves that require grad."""

    def transform(f, tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = vmap(f, (0, 1, None, None))(*leaves)
        return torch.autograd.grad(out.sin().sum(), leaves)

    logits, target = torch.randn(5, 4, 3, dtype=torch.double), rand(4, 5, 3)
    grads = compare(transform, reduction, tensors=(logits, target, rand(4, 1), rand(3)))
    assert all(g.abs().max() > 0 for g in grads)


def test_is_grads_batched():
    """torch.autograd.grad's own vmap over the backward pass, whose graph was recorded outside of it."""

    def transform(f, tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = f(*leaves)
        basis = torch.eye(out.numel(), dtype=torch.double).reshape(-1, *out.shape)
        return torch.autograd.grad(out, leaves, basis, is_grads_batched=True)

    for reduction in REDUCTIONS:
        grads = compare(transform, reduction, "both")
        assert all(g.abs().max() > 0 for g in grads)


def test_vectorized_jacobians_of_torch_autograd():
    logits, target, _, _ = operands()
    for strategy in ("reverse-mode", "forward-mode"):
        ours, torchs = (
            torch.autograd.functional.jacobian(f, (logits, target), vectorize=True, strategy=strategy)
            for f in losses("none", (logits, target, None, None))
        )
        assert_same(ours, torchs)
    ours, torchs = (
        torch.autograd.functional.hessian(f, (logits, target), vectorize=True)
        for f in losses("mean", (logits, target, None, None))
    )
    assert_same(ours, torchs)

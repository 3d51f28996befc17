"""Class indices as targets under torch's transforms and compilers."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import REDUCTIONS, loss_arguments
from tests.test_classes import LOSSES, broadcast, one_hot, problem, step


@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 2), (3,)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name, shape):
    logits, target = problem(shape, torch.double)
    weight, pos_weight = (t.double() for t in broadcast(shape))
    mask = torch.rand(shape) < 0.8

    def loss(z, w, p):
        return LOSSES[name](z, target, weight=w, pos_weight=p, mask=mask, ignore_index=1, reduction="none")

    inputs = tuple(t.requires_grad_() for t in (logits, weight, pos_weight))
    assert gradcheck(loss, inputs, check_forward_ad=True) and gradgradcheck(loss, inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_transforms(name, reduction):
    logits, target = problem((5, 4), torch.double)
    hot, kept = one_hot(logits, target, 1)
    results = []
    for y, options in ((target, {"ignore_index": 1}), (hot.double(), {"mask": kept})):

        def loss(z, y=y, options=options):
            return LOSSES[name](z, y, reduction=reduction, **options).sin().sum()

        func = torch.func
        results.append(
            [func.grad(loss)(logits), func.jvp(loss, (logits,), (logits,))[1], func.hessian(loss)(logits)]
        )  # fmt: skip
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


# of a sample's logits and target; as many rows as classes, so that a wrong dimension would fit
SAMPLES = [((4,), ()), ((4, 4), (4,)), ((4, 4, 4), (4, 4))]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("in_dims", [(0, 0, None), (0, None, 0), (None, 0, None), (1, 0, 0), (0, -1, None)], ids=str)
@pytest.mark.parametrize("shapes", SAMPLES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_vmap(name, shapes, in_dims, reduction):
    def batched(shape, dim, make):
        return make(shape) if dim is None else make((4, *shape)).movedim(0, dim)

    logits = batched(shapes[0], in_dims[0], lambda s: torch.randn(s, dtype=torch.double))
    target = batched(shapes[1], in_dims[1], lambda s: torch.randint(-1, 6, s))
    mask = batched(shapes[0][1:], in_dims[2], lambda s: torch.rand(s) < 0.8)

    for options in ({}, {"ignore_index": 2}):

        def loss(z, y, m, options=options):
            return LOSSES[name](z, y, mask=m, reduction=reduction, **options)

        def sample(t, dim, i):
            return t if dim is None else t.select(dim, i)

        given = logits, target, mask
        each = [[sample(t, d, i) for t, d in zip(given, in_dims, strict=True)] for i in range(4)]
        want = torch.stack([loss(*one) for one in each])
        torch.testing.assert_close(torch.vmap(loss, in_dims)(*given), want, rtol=1e-12, atol=0, equal_nan=True)
        by_logits = torch.func.grad(lambda *t: (loss(*t) ** 2).sum())
        want = torch.stack([by_logits(*one) for one in each])
        got = torch.vmap(by_logits, in_dims)(*given)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15, equal_nan=True)


def test_nested_vmap():
    logits, target = torch.randn(2, 3, 4, 4, dtype=torch.double), torch.randint(0, 4, (2, 3, 4))
    loss = fl.binary_cross_entropy_with_logits
    want = torch.stack(
        [torch.stack([loss(z, y) for z, y in zip(*pair, strict=True)]) for pair in zip(logits, target, strict=True)]
    )
    torch.testing.assert_close(torch.vmap(torch.vmap(loss))(logits, target), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_compiled(name, reduction, dynamic):
    torch._dynamo.reset()
    logits, target = problem((5, 4, 3), torch.double)
    mask = torch.rand(4, 3) < 0.8

    def loss(z, y):
        return LOSSES[name](z, y, reduction=reduction, ignore_index=2, mask=mask)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for a, b in zip(step(compiled, logits, target), step(loss, logits, target), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_exported():
    class Model(torch.nn.Module):
        def forward(self, z, y):
            return fl.binary_cross_entropy_with_logits(z, y, ignore_index=1)

    logits, target = problem((5, 4), torch.double)
    exported = torch.export.export(Model(), (logits, target)).module()
    torch.testing.assert_close(exported(logits, target), Model()(logits, target))


def test_opcheck_and_recorded():
    logits, target = problem((5, 4))
    for arguments in (
        loss_arguments(logits, target, reduction=ops.SUM),
        loss_arguments(logits.requires_grad_(), target),
    ):
        torch.library.opcheck(ops.bce, arguments)
        torch.library.opcheck(ops.bce_with_grad, arguments)
    graph = make_fx(lambda z: ops.bce(*loss_arguments(z, target)))(logits.detach())
    other = torch.randn(5, 4)
    torch.testing.assert_close(graph(other), fl.binary_cross_entropy_with_logits(other, target))

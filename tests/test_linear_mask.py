"""Elements of the layer that are left out: exactly 0, whatever stands there, and not counted."""

import pytest
import torch
from torch.func import grad, vmap

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import DTYPES, REDUCTIONS, layer_arguments, same_bits
from tests.test_linear import assert_same, layer, step, torchs

SHAPES = {None: [(6,), (1,), ()], 1: [(6, 1), (1,)], 5: [(6, 5), (5,), (6, 1), (1, 5), ()]}


@pytest.mark.parametrize("chunk_bytes", [None, 8, 80])
@pytest.mark.parametrize("labels", SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_broadcast(reduction, labels, chunk_bytes):
    x, w, b, shape = layer((6,), 3, labels)
    target = torch.rand(shape, dtype=torch.double)
    for mask_shape in SHAPES[labels]:
        options = {"mask": torch.rand(mask_shape) < 0.6, "reduction": reduction}
        ours = step(fl.linear_binary_cross_entropy, x, w, b, target, chunk_bytes=chunk_bytes, **options)
        assert_same(ours, step(torchs, x, w, b, target, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labels", [None, 1, 5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_whatever_is_left_out(reduction, labels, dtype):
    """NaN labels and infinite weights, and a grad_output that is neither: the bits of a step without them."""
    x, w, b, shape = layer((6,), 3, labels, dtype=dtype)
    mask = torch.rand(shape) < 0.6
    mask.view(-1)[0] = True
    target, weight = torch.rand(shape), torch.rand(shape)
    results = []
    for put in (0.0, torch.nan, torch.inf):
        y, v = (torch.where(mask, t, put) for t in (target, weight))
        loss = fl.linear_binary_cross_entropy(x, w, y, linear_bias=b, weight=v, mask=mask, reduction=reduction)
        factor = torch.where(mask, 2.0, put) if reduction == "none" else torch.tensor(2.0)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, w, b), factor)))
    assert all(same_bits(a, c) for r in results for a, c in zip(r, results[0], strict=True))
    assert results[0][0].isfinite().all() and (reduction != "none" or not results[0][0][~mask].any())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("labels", [1, 5])
def test_nothing_left(labels, sparse):
    """As the elementwise loss: a mean of nothing is NaN, a sum 0, and no gradient moves."""
    x, w, b, shape = layer((6,), 3, labels)
    target = torch.randint(0, 2, shape).double()
    for reduction, want in (("mean", torch.nan), ("sum", 0.0)):
        for options in ({"mask": torch.zeros(shape, dtype=torch.bool)}, {"mask": target == 0, "ignore_index": 0}):
            y = target.to_sparse_csr() if sparse else target
            loss, *grads = step(fl.linear_binary_cross_entropy, x, w, b, y, reduction=reduction, **options)
            torch.testing.assert_close(loss.item(), want, equal_nan=True)
            assert not any(g.any() for g in grads)


@pytest.mark.parametrize("how", ["early", "compiled", "recomputed", "create_graph", "autocast"])
@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_zero_times_an_infinite_grad_output(value, labels, how):
    """A row and a label that are left out altogether get no gradient."""
    torch._dynamo.reset()
    x, w, b, shape = layer((6,), 3, labels)
    target, mask = torch.rand(shape, dtype=torch.double), torch.ones(shape, dtype=torch.bool)
    mask[2] = False
    mask[:, 1:2] = False  # of several
    function = fl.linear_binary_cross_entropy
    if how == "compiled":
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", enabled=how == "autocast"):
        loss = function(x, w, target, linear_bias=b, mask=mask)
    factor = torch.full((), value, dtype=loss.dtype)
    if how == "recomputed":
        torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    grads = torch.autograd.grad(loss, (x, w, b), factor, create_graph=how == "create_graph")
    assert not grads[0][2].any() and not grads[1][1:2].any() and not grads[2][1:2].any()
    assert labels == 1 or not grads[0][0].isfinite().any()


def test_transforms():
    x, w, b, shape = (t.detach() if isinstance(t, torch.Tensor) else t for t in layer((6,), 3, 5))
    target, masks = torch.rand(shape, dtype=torch.double), torch.rand(4, *shape) < 0.6
    results = []
    for f in (fl.linear_binary_cross_entropy, torchs):
        of = lambda w, mask, f=f: f(x, w, target, linear_bias=b, mask=mask)  # noqa: E731
        result = [grad(of)(w, masks[0]), *(vmap(g, (None, 0))(w, masks) for g in (of, grad(of)))]
        twice = grad(lambda w, of=of: grad(of)(w, masks[0]).sin().sum())(w)
        results.append([*result, twice])
    assert_same(*results)


@pytest.mark.parametrize("labels", [None, 5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled(reduction, labels):
    torch._dynamo.reset()

    def ours(x, w, target, linear_bias, mask):
        return fl.linear_binary_cross_entropy(x * 2, w, target, linear_bias=linear_bias, mask=mask, reduction=reduction)

    x, w, b, shape = layer((6,), 3, labels)
    target, mask = torch.rand(shape, dtype=torch.double), torch.rand(shape) < 0.6
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(*(step(f, x, w, b, target, mask=mask) for f in (compiled, ours)))


def test_opcheck():
    x, w, b, shape = layer((6,), 3, 5)
    given = {"target": torch.rand(shape).double(), "mask": torch.rand(shape) < 0.6}
    torch.library.opcheck(ops.linear_bce, layer_arguments(x, w, b, **given))
    torch.library.opcheck(ops.linear_bce_with_grad, layer_arguments(x, w, b, **given, output_mask=[True] * 3))
    arguments = layer_arguments(x, w, b, **given, output_mask=[True] * 3, backward=True)
    torch.library.opcheck(ops.linear_bce_backward, (torch.rand((), dtype=torch.double), *arguments))


def test_module():
    head, x, y = fl.LinearBCEWithLogitsLoss(3, 5), torch.randn(6, 3), torch.rand(6, 5)
    mask = torch.rand(6, 5) < 0.6
    want = fl.binary_cross_entropy_with_logits(head.logits(x), y, mask=mask)
    torch.testing.assert_close(head(x, y, mask), want)

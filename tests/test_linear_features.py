"""Sparse features: the loss and the dense gradients of the same features, dense."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import fused_logistic as fl
from tests.conftest import DTYPES, REDUCTIONS
from tests.test_linear import assert_same, layer, torchs

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:There is a performance drop")


def features(rows=7, columns=9, dtype=torch.double):
    return torch.where(torch.rand(rows, columns) < 0.3, torch.randn(rows, columns), 0).to(dtype)


def sparse(x, layout):
    if layout == "csr":
        return x.to_sparse_csr()
    coo = x.to_sparse()
    if layout == "coo":
        return coo
    indices, halves = coo.indices().repeat(1, 2).flip(1), (coo.values() / 2).repeat(2).flip(0)
    return torch.sparse_coo_tensor(indices, halves, x.shape, check_invariants=True)


def step(function, x, w, b, target, **options):
    loss = function(x, w, target, linear_bias=b, **options)
    factor = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, [t for t in (w, b) if t is not None], factor)


@pytest.mark.parametrize("layout", ["csr", "coo", "duplicates"])
@pytest.mark.parametrize("labels", [None, 1, 5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_dense(reduction, labels, layout):
    _, w, b, shape = layer((7,), 9, labels)
    x, target = features(), torch.randint(0, 3, shape).double()
    for options in (
        {},
        {"label_smoothing": 0.2, "ignore_index": 2},
        {"mask": torch.rand(shape) < 0.7, "weight": torch.rand(shape).double(), "pos_weight": torch.rand(1).double()},
    ):
        for bias in (b, None):
            results = [
                step(f, given, w, bias, target, reduction=reduction, **options)
                for f, given in ((fl.linear_binary_cross_entropy, sparse(x, layout)), (torchs, x))
            ]
            assert_same(*results)


@pytest.mark.parametrize("target_dtype", [*DTYPES, torch.bool], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_dtypes(layout, dtype, target_dtype):
    """Those of dense features; 16-bit ones are as exact as their results."""
    _, w, b, shape = layer((7,), 9, 3, dtype=dtype)
    x, target = features(dtype=dtype), torch.randint(0, 2, shape).to(target_dtype)
    ours = step(fl.linear_binary_cross_entropy, sparse(x, layout), w, b, target)
    dense = step(fl.linear_binary_cross_entropy, x, w, b, target)
    exact = step(torchs, x.double(), w.double(), b.double(), target.double())
    computed = dtype if dtype == torch.float64 else torch.float32
    for a, d, e in zip(ours, dense, exact, strict=True):
        eps = max(torch.finfo(a.dtype).eps, torch.finfo(computed).eps)
        assert a.dtype == d.dtype and a.shape == d.shape
        assert (a.double() - e).abs().max() <= 4 * eps * e.abs().max()


@pytest.mark.parametrize("target_layout", [torch.sparse_csr, torch.sparse_coo])
@pytest.mark.parametrize("labels", [1, 5])
def test_sparse_targets_too(labels, target_layout):
    _, w, b, shape = layer((7,), 9, labels)
    x, target = features(), torch.randint(0, 2, shape).double()
    given = target.to_sparse(layout=target_layout)
    assert_same(step(fl.linear_binary_cross_entropy, sparse(x, "csr"), w, b, given), step(torchs, x, w, b, target))


def test_derivatives():
    x, target = features().to_sparse_csr(), torch.rand(7, 5, dtype=torch.double)
    _, w, b, _ = layer((7,), 9, 5)
    function = lambda w, b: fl.linear_binary_cross_entropy(x, w, target, linear_bias=b)  # noqa: E731
    assert gradcheck(function, (w, b)) and gradgradcheck(function, (w, b))
    weight = torch.rand(7, 1, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda v: fl.linear_binary_cross_entropy(x, w.detach(), target, weight=v), (weight,))


def test_torch_func():
    """With COO features; of CSR ones torch.func takes none."""
    x, target = features(), torch.rand(7, 5, dtype=torch.double)
    w, b = (t.detach() for t in layer((7,), 9, 5)[1:3])
    results = []
    for f, given in ((fl.linear_binary_cross_entropy, x.to_sparse()), (torchs, x)):
        function = lambda w, b, f=f, given=given: f(given, w, target, linear_bias=b)  # noqa: E731
        results.append([*grad(function, (0, 1))(w, b), vmap(function, (0, None))(torch.stack([w, 2 * w]), b)])
    assert_same(*results)


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_compiled_and_autocast(layout):
    torch._dynamo.reset()
    x, head, y = features(dtype=torch.float32), fl.LinearBCEWithLogitsLoss(9, 5), torch.rand(7, 5)
    want = head(x, y)
    torch.testing.assert_close(torch.compile(head, backend="aot_eager")(sparse(x, layout), y), want)
    with torch.autocast("cpu"):
        loss = head(sparse(x, layout), y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert head.weight.grad.layout == torch.strided and head.bias.grad.any()


def test_no_rows_and_no_features():
    for rows, columns in ((0, 9), (7, 0)):
        _, w, b, shape = layer((rows,), columns, 5)
        x, target = features(rows, columns), torch.rand(shape, dtype=torch.double)
        results = [step(fl.linear_binary_cross_entropy, t, w, b, target, reduction="sum") for t in (x.to_sparse(), x)]
        assert_same(*results)


@pytest.mark.parametrize("layout", ["csr", "coo"])
@pytest.mark.parametrize("labels", [1, 5])
def test_changed_before_backward(labels, layout):
    """An error, or the gradient of what they were."""
    _, w, b, shape = layer((7,), 9, labels)
    x, target = features(), torch.rand(shape, dtype=torch.double)
    (want,) = torch.autograd.grad(torchs(x, w, target, linear_bias=b), w)
    for change in (lambda x: x.mul_(2), lambda x: x.values().zero_()):
        given = sparse(x, layout)
        loss = fl.linear_binary_cross_entropy(given, w, target, linear_bias=b)
        change(given)
        try:
            (grad,) = torch.autograd.grad(loss, w)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            torch.testing.assert_close(grad, want)


def test_vmap_over_weights_of_csr_features():
    x, target = features(), torch.rand(7, 5, dtype=torch.double)
    _, w, b, _ = layer((7,), 9, 5)
    w = torch.stack([w, 2 * w]).detach()
    results = [
        vmap(lambda w, x=x, f=f: f(x, w, target, linear_bias=b.detach()))(w)
        for f, x in ((fl.linear_binary_cross_entropy, x.to_sparse_csr()), (torchs, x))
    ]
    torch.testing.assert_close(*results)

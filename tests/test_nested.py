"""Jagged nested tensors: as the list of their parts."""

import pytest
import torch

import fused_logistic as fl
from tests.conftest import REDUCTIONS

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning", "ignore:.*is_fx_tracing")

LENGTHS = (2, 4, 0, 1)
PARTS = [torch.randn(n, 3, dtype=torch.double) for n in LENGTHS]
TARGETS = [torch.rand(n, 3, dtype=torch.double).round() for n in LENGTHS]
X = [torch.randn(n, 5, dtype=torch.double) for n in LENGTHS]
W, B = torch.randn(3, 5, dtype=torch.double), torch.randn(3, dtype=torch.double)


def jagged(parts, like=None):
    values = torch.cat(parts)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0) if like is None else like.offsets()
    return torch.nested.nested_tensor_from_jagged(values, offsets)


FUNCTIONS = {
    "loss": lambda z, y, **options: fl.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(2.0), **options),
    "focal": fl.sigmoid_focal_loss,
    "module": lambda z, y, **options: fl.BCEWithLogitsLoss(torch.tensor([[1.0, 2.0, 3.0]]), **options)(z, y),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_the_list_of_parts(name, reduction, shared):
    """Values and gradients, whether the target has the logits' offsets or equal ones."""
    function = FUNCTIONS[name]
    z = jagged(PARTS).requires_grad_()
    loss = function(z, jagged(TARGETS, z if shared else None), reduction=reduction)
    flat = torch.cat(PARTS).requires_grad_()
    want = function(flat, torch.cat(TARGETS), reduction=reduction)
    got = loss
    if reduction == "none":
        assert loss.is_nested and loss.shape == z.shape
        got = loss.values()
    assert got.equal(want)
    factor = torch.rand_like(want)
    got.backward(factor)
    assert z.grad.values().equal(torch.autograd.grad(want, flat, factor)[0])


def test_options_of_every_kind():
    z, y = jagged(PARTS), jagged(TARGETS)
    flat, mask = torch.cat(PARTS), torch.rand(7, 3) < 0.7
    for given, by_values in (
        ({"mask": jagged(list(mask.split(LENGTHS)), z)}, {"mask": mask}),
        ({"weight": jagged(TARGETS, z)}, {"weight": torch.cat(TARGETS)}),
        ({"label_smoothing": torch.tensor([0.1, 0.2, 0.3])}, {"label_smoothing": torch.tensor([0.1, 0.2, 0.3])}),
        ({"ignore_index": 1, "pos_weight": 3.0}, {"ignore_index": 1, "pos_weight": 3.0}),
    ):
        want = fl.binary_cross_entropy_with_logits(flat, torch.cat(TARGETS), **by_values)
        assert fl.binary_cross_entropy_with_logits(z, y, **given).equal(want)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_of_the_layer(reduction):
    x, y = jagged(X).requires_grad_(), jagged(TARGETS)
    flat, (w, b) = torch.cat(X).requires_grad_(), (t.clone().requires_grad_() for t in (W, B))
    loss = fl.linear_binary_cross_entropy(x, w, y, linear_bias=b, reduction=reduction)
    want = fl.linear_binary_cross_entropy(flat, w, torch.cat(TARGETS), linear_bias=b, reduction=reduction)
    got = loss.values() if reduction == "none" else loss
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(t.sum(), leaves) for t, leaves in ((got, (x, w, b)), (want, (flat, w, b)))]
    torch.testing.assert_close(grads[0][0].values(), grads[1][0])
    torch.testing.assert_close(grads[0][1:], grads[1][1:])


def test_of_the_layer_without_labels():
    y = jagged([t[:, 0] for t in TARGETS])
    loss = fl.linear_binary_cross_entropy(jagged(X), W[0], y, linear_bias=B[:1])
    want = fl.linear_binary_cross_entropy(torch.cat(X), W[0], torch.cat(TARGETS)[:, 0], linear_bias=B[:1])
    torch.testing.assert_close(loss, want)


def test_compiled():
    z = jagged(PARTS).requires_grad_()
    y = jagged(TARGETS, z)
    compiled = torch.compile(fl.binary_cross_entropy_with_logits, backend="aot_eager", fullgraph=True)
    for reduction in REDUCTIONS:
        got, want = (f(z, y, reduction=reduction) for f in (compiled, fl.binary_cross_entropy_with_logits))
        got, want = (t.values() if reduction == "none" else t for t in (got, want))
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(t.sum(), z)[0].values() for t in (got, want)]
        torch.testing.assert_close(*grads)


def test_transposed():
    z, y = jagged(PARTS), jagged(TARGETS)
    loss = fl.binary_cross_entropy_with_logits(z.transpose(1, 2), y.transpose(1, 2), reduction="none")
    torch.testing.assert_close(
        loss.transpose(1, 2).values(), fl.binary_cross_entropy_with_logits(z, y, reduction="none").values()
    )


def test_what_does_not_fit():
    z, y = jagged(PARTS), jagged(TARGETS)
    other = torch.nested.nested_tensor([torch.rand(3, 3)] * 4, layout=torch.jagged)
    loss = fl.binary_cross_entropy_with_logits
    with pytest.raises(ValueError, match="expected target of the structure of the nested logits"):
        loss(z, other)
    for name in ("weight", "pos_weight", "mask"):
        value = torch.ones(7, 3, dtype=torch.bool if name == "mask" else None)
        with pytest.raises(RuntimeError, match=f"expected {name} that broadcasts to every part of"):
            loss(z, y, **{name: value})
    with pytest.raises(NotImplementedError, match="expected a nested tensor as target only if"):
        loss(torch.cat(PARTS), y)
    with pytest.raises((RuntimeError, ValueError), match="expected target"):
        loss(z, torch.cat(TARGETS))
    holes = torch.nested.narrow(torch.randn(4, 5, 3), 1, torch.zeros(4).long(), torch.tensor(LENGTHS), torch.jagged)
    with pytest.raises(NotImplementedError, match="without holes"):
        loss(holes, holes)
    strided = torch.nested.nested_tensor(PARTS)
    with pytest.raises(NotImplementedError, match="expected a nested tensor as input .* got strided"):
        loss(strided, torch.nested.nested_tensor(TARGETS))

"""linear_sigmoid_focal_loss and linear_asymmetric_loss_with_logits, against the composition."""

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl
from tests.conftest import REDUCTIONS

HEADS = [
    (fl.linear_sigmoid_focal_loss, fl.sigmoid_focal_loss, {"alpha": 0.3, "gamma": 2.0}),
    (fl.linear_sigmoid_focal_loss, fl.sigmoid_focal_loss, {"alpha": -1, "gamma": 0.7}),
    (fl.linear_asymmetric_loss_with_logits, fl.asymmetric_loss_with_logits, {}),
    (fl.linear_asymmetric_loss_with_logits, fl.asymmetric_loss_with_logits, {"clip": 0.0, "gamma_neg": 2.5}),
]


@pytest.mark.parametrize("head,loss,options", HEADS, ids=lambda v: getattr(v, "__name__", str(v)))
@pytest.mark.parametrize("labels", [1, 37])
@pytest.mark.parametrize("layout", ["dense", "csr", "coo"])
def test_layer(layout, labels, head, loss, options):
    """Tiles of three labels, against the composition, with weights and, where the target is dense, what is left out."""
    x = torch.randn(23, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(labels, 5, dtype=torch.double, requires_grad=True)
    bias = torch.randn(labels, dtype=torch.double, requires_grad=True)
    dense = (torch.rand(23, labels) < 0.2).double()
    target = {"dense": dense, "csr": dense.to_sparse_csr(), "coo": dense.to_sparse()}[layout]
    given = {"pos_weight": 1 + torch.rand(labels, dtype=torch.double), "weight": torch.rand(23, 1), **options}
    if layout == "dense":
        given["mask"] = torch.rand(23, labels) < 0.9
    for reduction in REDUCTIONS:
        tiled = head(x, weight, target, linear_bias=bias, reduction=reduction, chunk_bytes=23 * 3 * 8, **given)
        exact = loss(F.linear(x, weight, bias), dense, reduction=reduction, **given)
        torch.testing.assert_close(tiled, exact, rtol=1e-10, atol=1e-14)
        factor = torch.rand_like(exact)
        grads = (torch.autograd.grad(t, (x, weight, bias), factor) for t in (tiled, exact))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_layer_whose_options_are_tensors():
    x, weight = torch.randn(6, 3, dtype=torch.double), torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    target, gamma = torch.rand(6, 4).round().double(), torch.full((4,), 1.5, dtype=torch.double, requires_grad=True)
    tiled = fl.linear_sigmoid_focal_loss(x, weight, target, gamma=gamma)
    exact = fl.sigmoid_focal_loss(x @ weight.t(), target, gamma=gamma, reduction="mean")
    for a, b in zip(*(torch.autograd.grad(t, (weight, gamma)) for t in (tiled, exact)), strict=True):
        torch.testing.assert_close(a, b)

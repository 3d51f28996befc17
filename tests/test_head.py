"""LinearBCEWithLogitsLoss as the last layer of a model: logits, losses and predictions by one call each."""

import math

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl
from tests.conftest import DTYPES, REDUCTIONS

mpmath = pytest.importorskip("mpmath", reason="thresholds are compared with those of 60 digits")

X, Y = torch.randn(8, 6), torch.rand(8, 3)


# ---- Where a model calls it ------------------------------------------------------------------------------------------


def test_last_of_a_sequential():
    """Training calls the two parts, evaluation the whole: the same logits, no loss asked for."""
    body, head = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU()), fl.LinearBCEWithLogitsLoss(5, 3)
    model = torch.nn.Sequential(*body, head)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = head(body(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    model.eval()
    with torch.no_grad():
        want = F.linear(body(X), head.weight, head.bias)
        torch.testing.assert_close(model(X), want)
        torch.testing.assert_close(head.predict(body(X)), want > 0)
    for parameter in model.parameters():
        assert parameter.grad.any()


def test_exported():
    """Dynamic rows; what is exported needs nothing of this package."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), fl.LinearBCEWithLogitsLoss(5, 3, pos_weight=2.0)).eval()
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    assert "fused_logistic" not in exported.graph_module.code
    for x in (X, torch.randn(3, 6)):
        torch.testing.assert_close(exported.module()(x), model(x))


class Predicts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = fl.LinearBCEWithLogitsLoss(6, 3)

    def forward(self, x):
        return self.head.predict(x, 0.3)


def test_compiled_and_exported_predictions():
    torch._dynamo.reset()
    model = Predicts()
    want = model(X)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(X), want)
    assert torch.equal(torch.export.export(model, (X,)).module()(X), want)


# ---- Targets of one label, weights of a call -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(8,), (2, 4)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_targets_of_one_label(rows, reduction, bias):
    """[...] or [..., 1]: the same bits of loss and gradients, losses in the target's shape."""
    options = {"pos_weight": torch.tensor([3.0]), "reduction": reduction, "label_smoothing": 0.1}
    head = fl.LinearBCEWithLogitsLoss(6, 1, bias, weight=torch.rand(1), **options)
    x, y, mask, weight = torch.randn(*rows, 6), torch.rand(rows), torch.rand(rows) < 0.8, torch.rand(rows)
    results = []
    for given in ((y, mask, weight), (t.unsqueeze(-1) for t in (y, mask, weight))):
        loss = head(x, *given)
        grads = torch.autograd.grad(loss.sum(), list(head.parameters()))
        assert [g.shape for g in grads] == [p.shape for p in head.parameters()]
        results.append((loss, *grads))
    flat, column = results
    assert flat[0].shape == (rows if reduction == "none" else ())
    assert torch.equal(flat[0], column[0].reshape(flat[0].shape))
    assert all(torch.equal(a, b) for a, b in zip(flat[1:], column[1:], strict=True))


def test_several_labels_take_no_flat_target():
    message = r"linear_binary_cross_entropy: expected target of shape \[8, 3\], got \[8\]"
    with pytest.raises(ValueError, match=message):
        fl.LinearBCEWithLogitsLoss(6, 3)(X, Y[:, 0])
    with pytest.raises(TypeError, match="expected target to be a torch.Tensor, got list"):
        fl.LinearBCEWithLogitsLoss(6, 1)(X, [1.0] * 8)


@pytest.mark.parametrize("own", [None, 0.5, torch.tensor([1.0, 2.0, 4.0])], ids=["none", "number", "tensor"])
@pytest.mark.parametrize("given", [2.0, torch.rand(8, 1), torch.rand(8, 3)], ids=["number", "rows", "elements"])
def test_a_weight_of_the_call(own, given):
    """It multiplies the module's: a weight of samples beside one of classes."""
    head, mask = fl.LinearBCEWithLogitsLoss(6, 3, weight=own), torch.rand(8, 3) < 0.6
    weight = given if own is None else own * given
    want = fl.binary_cross_entropy_with_logits(head(X), Y, weight, mask=mask)
    torch.testing.assert_close(head(X, Y, mask, weight=given), want)
    grads = [torch.autograd.grad(loss, list(head.parameters())) for loss in (head(X, Y, mask, given), want)]
    torch.testing.assert_close(*grads)


def test_a_weight_of_the_call_is_differentiated():
    head, weight = fl.LinearBCEWithLogitsLoss(6, 3, weight=torch.rand(3)), torch.rand(8, 1, requires_grad=True)
    want = (F.binary_cross_entropy_with_logits(head(X), Y, head.loss_weight, reduction="none")).mean(1, keepdim=True)
    torch.testing.assert_close(torch.autograd.grad(head(X, Y, weight=weight), weight)[0], want.detach() / 8)


def test_a_weight_that_does_not_broadcast():
    head = fl.LinearBCEWithLogitsLoss(6, 1)
    for y, weight, shape in (
        (Y[:, :1], torch.rand(8), r"\[8, 1\], got \[8\]"),
        (Y[:, 0], torch.rand(8, 1), r"\[8\], got \[8, 1\]"),
    ):
        with pytest.raises(RuntimeError, match=rf"expected weight of a shape that broadcasts to {shape}"):
            head(X, y, weight=weight)


@pytest.mark.parametrize("own", [torch.rand(3), 2.0], ids=["tensor", "number"])
def test_a_wrong_weight_beside_that_of_the_module(own):
    head, op = fl.LinearBCEWithLogitsLoss(6, 3, weight=own), "linear_binary_cross_entropy: expected weight "
    for weight in ("a", [1.0] * 3, torch.ones(3).numpy()):
        with pytest.raises(TypeError, match=f"{op}to be a number or a torch.Tensor, got {type(weight).__name__}"):
            head(X, Y, weight=weight)
    with pytest.raises(RuntimeError, match=rf"{op}of a shape that broadcasts to \[8, 3\], got \[8\]"):
        head(X, Y, weight=torch.rand(8))


def test_a_wrong_weight_of_the_module_has_the_name_of_its_argument():
    for weight in ([1.0] * 3, "a", True):
        with pytest.raises(
            TypeError, match="LinearBCEWithLogitsLoss: expected weight to be a number or a torch.Tensor"
        ):
            fl.LinearBCEWithLogitsLoss(6, 3, weight=weight)


# ---- Predictions -----------------------------------------------------------------------------------------------------


def identity(dtype):
    """A head whose logits are its input."""
    head = fl.LinearBCEWithLogitsLoss(1, 1, bias=False, dtype=dtype)
    torch.nn.init.ones_(head.weight)
    return head


THRESHOLDS = (0.0, 1e-300, 1e-9, 0.1, 0.25, 0.3, math.nextafter(0.5, 0), 0.5, 0.5 + 1e-9, 0.7, 1 - 2**-40, 1.0)


@mpmath.workdps(60)
def logit(p):
    return mpmath.log(p) - mpmath.log1p(-mpmath.mpf(p)) if 0 < p < 1 else mpmath.mpf(p - 0.5) * mpmath.inf


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_predictions_are_exact(dtype, threshold):
    """At the logits of the dtype around the threshold, where its probabilities are all the same."""
    bound = logit(threshold)
    near = torch.tensor([float(bound)], dtype=torch.double).to(dtype)
    eps = torch.finfo(dtype).eps * near.abs()
    z = torch.cat([near + k * eps for k in (-4, -2, -1, 0, 1, 2, 4)] + [0 * near, -near])
    z = z[~z.isnan()]
    if threshold != 0.5:  # the bound is fp64's, and off by a digit or two
        z = z[(z.double() - float(bound)).abs() > 2**-51 * abs(float(bound))]
    want = [mpmath.mpf(v) > bound for v in z.tolist()]
    got = identity(dtype).predict(z[:, None], threshold)
    assert got.dtype == torch.bool and got[:, 0].tolist() == want


def test_predictions_of_nan_and_wrong_thresholds():
    head = identity(torch.float32)
    assert head.predict(torch.tensor([[math.nan], [0.0], [1e-45]])).tolist() == [[False], [False], [True]]
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(
            ValueError, match=f"LinearBCEWithLogitsLoss: expected threshold between 0 and 1, got {threshold}"
        ):
            head.predict(X[:, :1], threshold)
    for threshold in (None, torch.full((3,), 0.5), "0.5"):
        message = f"LinearBCEWithLogitsLoss: expected threshold to be a number, got {type(threshold).__name__}$"
        with pytest.raises(TypeError, match=message):
            head.predict(X[:, :1], threshold)


def test_predictions_are_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="compares with scikit-learn")
    x, y = torch.randn(200, 6).double(), torch.randn(200) > 0
    model = linear_model.LogisticRegression().fit(x.numpy(), y.numpy())
    head = fl.LinearBCEWithLogitsLoss(6, 1, dtype=torch.double)
    head.load_state_dict({"weight": torch.from_numpy(model.coef_), "bias": torch.from_numpy(model.intercept_)})
    assert torch.equal(head.predict(x)[:, 0], torch.from_numpy(model.predict(x.numpy())))
    torch.testing.assert_close(head.predict_proba(x)[:, 0], torch.from_numpy(model.predict_proba(x.numpy())[:, 1]))

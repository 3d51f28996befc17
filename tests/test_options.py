"""label_smoothing, ignore_index and mask: against the definition composed of torch's operations in fp64."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fused_logistic as fl
from fused_logistic import reference
from tests.conftest import REDUCTIONS


def composed(logits, target, weight, pos_weight, reduction, label_smoothing, ignore_index, mask):
    kept = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask.expand(logits.shape)
    if ignore_index is not None:
        kept = kept & (target != ignore_index)
    loss = reference.loss(logits.where(kept, 0), target.where(kept, 0), weight, pos_weight, label_smoothing)
    loss = loss.where(kept, 0)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.sum() / kept.sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "smoothing,ignore_index,masked,weighted",
    list(itertools.product([0.0, 0.1, 1.0], [None, -100, 0], *[[False, True]] * 2)),
)
def test_every_combination(smoothing, ignore_index, masked, weighted, reduction, device):
    logits = (3 * torch.randn(50, 7, dtype=torch.double, device=device)).requires_grad_()
    target = torch.randint(0, 2, (50, 7), device=device).double()
    if ignore_index is not None:
        target[torch.rand(50, 7, device=device) < 0.3] = ignore_index
    weight = torch.rand(50, 1, dtype=torch.double, device=device) if weighted else None
    pos_weight = torch.rand(7, dtype=torch.double, device=device) if weighted else None
    mask = torch.rand(50, 7, device=device) < 0.6 if masked else None
    results = []
    for ours in (True, False):
        if ours:
            loss = fl.binary_cross_entropy_with_logits(
                logits, target, weight, reduction=reduction, pos_weight=pos_weight,
                label_smoothing=smoothing, ignore_index=ignore_index, mask=mask,
            )  # fmt: skip
        else:
            loss = composed(logits, target, weight, pos_weight, reduction, smoothing, ignore_index, mask)
        results.append((loss.detach(), *torch.autograd.grad(loss, logits, torch.full_like(loss, 1.5))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_with_all_options(reduction):
    logits, weight = torch.randn(5, 3, dtype=torch.double), torch.rand(5, 1, dtype=torch.double)
    pos_weight, mask = torch.rand(3, dtype=torch.double), torch.rand(5, 3) < 0.7
    target = torch.randint(-1, 2, (5, 3)).double()

    def function(logits, weight, pos_weight):
        return fl.binary_cross_entropy_with_logits(
            logits, target, weight, reduction=reduction, pos_weight=pos_weight,
            label_smoothing=0.2, ignore_index=-1, mask=mask,
        )  # fmt: skip

    inputs = tuple(t.requires_grad_() for t in (logits, weight, pos_weight))
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16])
def test_any_target_dtype(dtype, logits_dtype):
    logits = torch.randn(3_000).to(logits_dtype)
    target = torch.randint(0, 2, (3_000,))
    if dtype != torch.bool:
        target[::3] = 255
    options = {"ignore_index": 255, "label_smoothing": 0.1, "reduction": "sum"}
    ours = fl.binary_cross_entropy_with_logits(logits, target.to(dtype), **options)
    exact = fl.binary_cross_entropy_with_logits(logits.double(), target.to(dtype).double(), **options)
    torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(ours.dtype).eps, atol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_left(requires_grad):
    logits = torch.full((6,), math.nan, requires_grad=requires_grad)
    for options in ({"mask": torch.zeros(6, dtype=torch.bool)}, {"ignore_index": -1}):
        losses = {
            r: fl.binary_cross_entropy_with_logits(logits, -torch.ones(6), reduction=r, **options) for r in REDUCTIONS
        }
        assert losses["sum"].item() == 0 and losses["mean"].isnan() and losses["none"].tolist() == [0] * 6
        if requires_grad:
            for loss in losses.values():
                # create_graph: from the composition
                assert torch.autograd.grad(loss.sum(), logits, create_graph=True)[0].tolist() == [0] * 6
                assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [0] * 6


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("nan_in", ["target", "weight"])
def test_nan_that_is_left_out_reaches_no_second_derivative(nan_in, reduction):
    mask = torch.tensor([True, False, True])
    results = []
    for value in (math.nan, 0.5):
        logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.double, requires_grad=True)
        operands = {"target": torch.tensor([0.2, 0.4, 0.9]).double(), "weight": torch.ones(3).double()}
        operands[nan_in][1] = value
        loss = fl.binary_cross_entropy_with_logits(logits, **operands, mask=mask, reduction=reduction).sum() ** 2
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        results.append([first, *torch.autograd.grad(first.sum(), logits)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype,ignored", [(torch.uint8, 256), (torch.uint8, -255), (torch.int8, 257)])
def test_ignored_value_that_the_dtype_lacks(dtype, ignored):
    """In the kernels, the composition and under vmap, where comparing in the dtype would wrap it to 0 or 1."""
    logits, target = torch.randn(2, 4, dtype=torch.double), torch.tensor([[0, 1, 0, 1]] * 2, dtype=dtype)

    def loss(z, y, **options):
        return fl.binary_cross_entropy_with_logits(z, y, **options)

    for options in ({"ignore_index": ignored}, {"ignore_index": ignored, "mask": target == target}):
        z = logits.clone().requires_grad_()
        values = []
        for given in (options, {}):
            value = loss(z, target, **given)
            (first,) = torch.autograd.grad(value, z, create_graph=True)
            tangent = torch.func.jvp(lambda z, given=given: loss(z, target, **given), (logits,), (logits,))
            rows = {k: v[0] if isinstance(v, torch.Tensor) else v for k, v in given.items()}
            batched = torch.func.vmap(lambda z, y, rows=rows: loss(z, y, **rows))(logits, target)
            values.append([value, first, *tangent, batched])
        for got, expected in zip(*values, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_mean_divides_by_what_remains():
    logits, target = torch.randn(10), torch.tensor([0.0, 1, -100, 1, -100, 0, 1, 0, -100, 1])
    keep = target != -100
    ours = fl.binary_cross_entropy_with_logits(logits, target, ignore_index=-100)
    torch.testing.assert_close(ours, fl.binary_cross_entropy_with_logits(logits[keep], target[keep]))


def test_module():
    criterion = fl.BCEWithLogitsLoss(label_smoothing=0.1, ignore_index=-100)
    logits, target, mask = torch.randn(4), torch.tensor([0.0, 1, -100, 1]), torch.tensor([True, True, True, False])
    expected = fl.binary_cross_entropy_with_logits(logits[:2], target[:2], label_smoothing=0.1)
    torch.testing.assert_close(criterion(logits, target, mask), expected)
    assert not criterion.state_dict()

"""What a mean divides by: elements, weights, positives, or what is given. Against the formula in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F
from normalizer_formula import (
    LEFT_OUT,
    NAMES,
    WEIGHTS,
    assert_same,
    given,
    kept_of,
    operands,
    truth,
)

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import same_bits

# ---- Values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_formula(name, weight, left_out):
    z, y, options = operands(weight, left_out)
    z.requires_grad_()
    for smoothing in (None, 0.2):  # positives are those before it
        options["label_smoothing"] = smoothing
        loss = fl.binary_cross_entropy_with_logits(z, y, normalizer=given(name), **options)
        assert_same(loss, truth(z, y, given(name), **options), [z])


@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("weight", ["scalar", "label", "row", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_everything(name, weight, left_out):
    """The weight's too, by which "weights" divides, and that of a normalizer."""
    z, y, options = operands(weight, left_out)
    normalizer = given(name)
    if name == "tensor":
        normalizer.requires_grad_()
    leaves = [z.requires_grad_(), options["weight"].requires_grad_()] + [normalizer] * (name == "tensor")
    if left_out != "ignored" and left_out != "both":
        leaves.append(y.requires_grad_())
    loss = fl.binary_cross_entropy_with_logits(z, y, normalizer=normalizer, **options)
    assert_same(loss, truth(z, y, normalizer, **options), leaves)


@pytest.mark.parametrize("name", ["weights", "tensor", "positives"])
def test_gradcheck(name):
    z, y, options = operands("label", "mask")
    w, n = options.pop("weight"), torch.tensor(2.5, dtype=torch.double)

    def loss(z, w, n):
        return fl.binary_cross_entropy_with_logits(z, y, w, normalizer=n if name == "tensor" else name, **options)

    leaves = [t.requires_grad_(t is not n or name == "tensor") for t in (z, w, n)]
    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, requires_grad, dtype):
    """The divisor is fp64, and so is what it is made of: nothing overflows in fp16, whose largest number is 65,504."""
    z, y = torch.randn(300, 400).to(dtype), (torch.rand(300, 400) < 0.6).to(dtype)
    w = torch.full((300, 1), 7.0, dtype=dtype)
    leaves = [z.requires_grad_()] + [w.requires_grad_()] * requires_grad
    normalizer = {"tensor": torch.tensor([1e5]), "number": 1e5}.get(name, name)
    loss = fl.binary_cross_entropy_with_logits(z, y, w, normalizer=normalizer)
    want = truth(z.double(), y.double(), normalizer, w.double())
    assert loss.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), want, rtol=2 * eps, atol=0)
    got, wanted = (torch.autograd.grad(t, leaves) for t in (loss, want))
    torch.testing.assert_close(got[0], wanted[0], rtol=4 * eps, atol=3e-8 if dtype == torch.float16 else 0)  # 2^-25
    for g, v in zip(got[1:], wanted[1:], strict=True):  # with "weights" the difference of two terms of that size
        torch.testing.assert_close(g, v, rtol=4 * eps, atol=4 * eps * want.item() / 300)


@pytest.mark.parametrize("gamma", [0, 1.5, torch.tensor(1.5, requires_grad=True)], ids=["0", "1.5", "learnt"])
@pytest.mark.parametrize("name", NAMES)
def test_focal(name, gamma):
    z, y, options = operands("label", "both")
    z.requires_grad_()
    options |= {"gamma": gamma, "alpha": 0.3}
    total = fl.sigmoid_focal_loss(z, y, reduction="sum", **options)
    kept = kept_of(y, options)
    count = {
        "elements": kept.sum(),
        "weights": options["weight"].expand_as(z)[kept].sum(),
        "positives": (y[kept] > 0).sum(),
    }.get(name, 2.5)
    loss = fl.sigmoid_focal_loss(z, y, reduction="mean", normalizer=given(name), **options)
    assert_same(loss, total / count, [z] + [gamma] * isinstance(gamma, torch.Tensor), rtol=1e-6)


def test_the_default_is_what_it_was():
    z, y, options = operands("row", "both", torch.float)
    options.pop("weight")
    results = []
    for normalizer in ({}, {"normalizer": "elements"}, {"normalizer": "weights"}):
        leaf = z.clone().requires_grad_()
        loss = fl.binary_cross_entropy_with_logits(leaf, y, **options, **normalizer)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


def test_integer_weights_and_targets():
    z, y = torch.randn(7, 4), torch.randint(0, 3, (7, 4))
    weights = torch.randint(1, 5, (7, 1)), torch.tensor([True, False, True, True])
    for w in weights:
        loss = fl.binary_cross_entropy_with_logits(z, y, w, normalizer="weights", ignore_index=2)
        kept = y != 2
        want = truth(z.double(), y.double(), "weights", w.double(), ignore_index=2)
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
        positives = fl.binary_cross_entropy_with_logits(z, y, normalizer="positives", ignore_index=2)
        total = fl.binary_cross_entropy_with_logits(z, y, reduction="sum", ignore_index=2)
        torch.testing.assert_close(positives, total / (y[kept] == 1).sum())
    loss = fl.binary_cross_entropy_with_logits(z, y == 1, normalizer="positives")
    total = fl.binary_cross_entropy_with_logits(z, y == 1, reduction="sum")
    torch.testing.assert_close(loss, total / (y == 1).sum())


# ---- What is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize("left_out", ["mask", "ignored", "both"])
@pytest.mark.parametrize("weight", ["label", "row", "all"])
def test_weights_of_what_is_left_out_do_not_matter(weight, left_out, wants):
    """NaN too, where nothing that counts has that weight."""
    z, y, options = operands(weight, left_out)
    kept = kept_of(y, options)
    kept[1], kept[:, 2] = False, False
    options["mask"] = kept
    w = options.pop("weight")
    unused = kept.sum_to_size(w.shape) == 0
    assert unused.any()
    results = []
    for value in (0.5, math.nan, math.inf):
        leaves = [z.clone().requires_grad_(), torch.where(unused, value, w).requires_grad_(wants)]
        loss = fl.binary_cross_entropy_with_logits(leaves[0], y, leaves[1], normalizer="weights", **options)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves[: 1 + wants])])
        assert (results[-1][1][~kept] == 0).all()
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_a_sum_of_weights_that_is_zero():
    """As torch's division has it; what is left out still gets 0."""
    z, y, mask = torch.randn(4), torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, True, False])
    for w in (torch.zeros(4), torch.tensor([1.0, -2.0, 1.0, 5.0])):
        for wants in (False, True):
            weight, leaf = w.clone().requires_grad_(wants), z.clone().requires_grad_()
            loss = fl.binary_cross_entropy_with_logits(leaf, y, weight, mask=mask, normalizer="weights")
            (grad,) = torch.autograd.grad(loss, leaf)
            assert not loss.isfinite() and not grad[:3].isfinite().any() and grad[3] == 0
            twice = fl.binary_cross_entropy_with_logits(leaf, y, weight, mask=mask, normalizer="weights")
            (grad,) = torch.autograd.grad(twice, leaf, create_graph=True)
            assert not grad[:3].isfinite().any() and grad[3] == 0


def test_no_positives_and_nothing_at_all():
    z, y = torch.randn(5, requires_grad=True), torch.zeros(5)
    loss = fl.binary_cross_entropy_with_logits(z, y, normalizer="positives")
    torch.testing.assert_close(loss, F.softplus(z).sum())
    empty = torch.zeros(0, 3, requires_grad=True)
    for name, value in (("positives", 0.0), ("weights", math.nan), ("elements", math.nan)):
        loss = fl.binary_cross_entropy_with_logits(empty, empty.detach(), torch.ones(3), normalizer=name)
        assert loss.item() == pytest.approx(value, nan_ok=True)
        loss.backward()
    nothing = torch.zeros(5, dtype=torch.bool)
    loss = fl.binary_cross_entropy_with_logits(z, y, mask=nothing, normalizer="positives")
    (grad,) = torch.autograd.grad(loss, z)
    assert loss == 0 and (grad == 0).all()


# ---- One pass, and no waiting ----------------------------------------------------------------------------------------


def calls(function):
    """Which of our ops ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return [e.name.split("::")[1] for e in profile.events() if e.name.startswith("fused_logistic::")]


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_for_loss_and_gradient(name):
    z, y, options = operands("label", "mask")
    z.requires_grad_()
    ran = calls(lambda: fl.binary_cross_entropy_with_logits(z, y, normalizer=given(name), **options).backward())
    assert [op for op in ran if op != "bce_count"] == ["bce_with_grad"]


def test_nothing_waits_for_the_device():
    """By construction: on meta tensors there is no value that anybody could look at."""
    z, y, options = operands("label", "both")
    options["mask"], options["weight"] = options["mask"].to("meta"), options["weight"].to("meta")
    for name in NAMES:
        for requires_grad in (False, True):
            leaf = z.to("meta").requires_grad_()
            options["weight"].requires_grad_(requires_grad)
            normalizer = given(name).to("meta") if name == "tensor" else given(name)
            loss = fl.binary_cross_entropy_with_logits(leaf, y.to("meta"), normalizer=normalizer, **options)
            loss.backward()
            assert loss.is_meta and leaf.grad.is_meta


def test_a_divisor_whose_storage_was_freed():
    """It is not taken for one that was not given, of which the mean would be the sum."""
    count = torch.ones((), dtype=torch.float64)
    count.untyped_storage().resize_(0)
    for op in (ops.bce, ops.bce_with_grad):
        with pytest.raises(RuntimeError, match="storage of a tensor was freed"):
            op(torch.randn(3), torch.rand(3), None, None, None, count, ops.MEAN, torch.float32)

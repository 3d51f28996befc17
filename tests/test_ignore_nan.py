"""ignore_nan: a target that is NaN leaves its element out, with the bits that a mask gives. What is left out reaches no
derivative of any order: tests/test_left_out.py. The CUDA kernels: tests/test_cuda_kernels.py and its neighbours."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fused_logistic as fl
from fused_logistic import ops, targets
from tests.conftest import DTYPES, REDUCTIONS, same_bits

ROWS, LABELS, FEATURES = 90, 37, 5
FLAT = {"bce": fl.binary_cross_entropy_with_logits, "focal": fl.sigmoid_focal_loss}
SHAPE = (ROWS, LABELS)


def problem(dtype=torch.float32, target_dtype=None):
    """(logits, target, there), the logits being NaN where the target is, and whether a target is there."""
    there = torch.rand(SHAPE) < 0.7
    target = torch.where(torch.rand(SHAPE) < 0.5, torch.rand(SHAPE), torch.rand(SHAPE).round())
    target = torch.where(there, target, torch.nan).to(target_dtype or dtype)
    return torch.where(there, 3 * torch.randn(SHAPE), torch.nan).to(dtype), target, there


def step(function, logits, target, others=(), **options):
    """The loss and its gradients by the logits and the other operands, for a grad_output that differs by element."""
    logits = logits.clone().requires_grad_()
    leaves = {name: t.clone().requires_grad_() for name, t in dict(others).items()}
    loss = function(logits, target, **leaves, **options)
    factor = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, [logits, *leaves.values()], factor)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FLAT)
def test_has_the_bits_of_a_mask(name, dtype, target_dtype, reduction, isa):
    """Alone and with all other options at once; weights that are NaN there too."""
    logits, target, there = problem(dtype, target_dtype)
    kept = torch.rand(LABELS) < 0.8
    weight = torch.where(there, 1 + torch.rand(SHAPE), torch.nan)
    smoothing = {"label_smoothing": 0.1} if name == "bce" else {}
    for others, options in (
        ({}, {}),
        ({"weight": weight, "pos_weight": 1 + torch.rand(LABELS)}, {"ignore_index": 1, **smoothing}),
    ):
        options["reduction"] = reduction
        mask = ~target.isnan() & kept if options.get("ignore_index") is not None else ~target.isnan()
        want = step(FLAT[name], logits, target, others, mask=mask, **options)
        given = {"mask": kept} if options.get("ignore_index") is not None else {}
        got = step(FLAT[name], logits, target, others, ignore_nan=True, **given, **options)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
        assert got[0].isfinite().all() and not got[1][target.isnan()].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_it_nan_is_nan(reduction):
    logits, target, there = problem()
    loss = fl.binary_cross_entropy_with_logits(torch.zeros(SHAPE), target, reduction=reduction)
    assert loss.isnan().equal(~there) if reduction == "none" else loss.isnan()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.uint8, torch.int8, torch.int64], ids=str)
def test_count(dtype):
    """Of every dtype, of which those of integers have no NaN; with the other ways to leave elements out; the rule of
    ``vmap``, the composition and the kernel alike."""
    target = torch.randint(0, 2, SHAPE).to(dtype)
    if dtype.is_floating_point:
        target[torch.rand(SHAPE) < 0.3] = torch.nan
    mask = torch.rand(LABELS) < 0.8
    for given in (None, mask):
        for ignored in (None, 1):
            kept = ~target.isnan() & (target != (2 if ignored is None else ignored))
            kept = kept if given is None else kept & given
            assert ops.bce_count(target, given, ignored, True).item() == kept.sum()
            assert targets.bce_count(target, given, ignored, True).item() == kept.sum()
            batched = torch.vmap(ops.bce_count, (0, None, None, None))(target, given, ignored, True)
            assert batched.tolist() == kept.sum(1).tolist()
    assert ops.bce_count(target, None, None).item() == target.numel()  # nobody asked


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_integers_have_none(dtype):
    logits, target = torch.randn(SHAPE), torch.randint(0, 2, SHAPE).to(dtype)
    for reduction in REDUCTIONS:
        want = fl.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
        got = fl.binary_cross_entropy_with_logits(logits, target, reduction=reduction, ignore_nan=True)
        torch.testing.assert_close(got, want, rtol=2.0**-20, atol=0)  # the mean is divided by the count


def test_all_that_is_missing():
    logits = torch.full((6,), math.nan, requires_grad=True)
    missing = torch.full((6,), math.nan)
    losses = {r: fl.binary_cross_entropy_with_logits(logits, missing, reduction=r, ignore_nan=True) for r in REDUCTIONS}
    assert losses["sum"].item() == 0 and losses["mean"].isnan() and losses["none"].tolist() == [0] * 6
    for loss in losses.values():
        for create_graph in (True, False):
            assert torch.autograd.grad(loss.sum(), logits, create_graph=create_graph)[0].tolist() == [0] * 6


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", FLAT)
def test_gradcheck(name, reduction):
    logits, weight = torch.randn(5, 3, dtype=torch.double), torch.rand(5, 1, dtype=torch.double)
    pos_weight, target = torch.rand(3, dtype=torch.double), torch.rand(5, 3, dtype=torch.double)
    target[torch.rand(5, 3) < 0.4] = torch.nan

    def function(logits, weight, pos_weight):
        options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction, "ignore_nan": True}
        return FLAT[name](logits, target, **options)

    inputs = tuple(t.requires_grad_() for t in (logits, weight, pos_weight))
    assert gradcheck(function, inputs, check_forward_ad=True) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", FLAT)
def test_vmap_and_compile(name, reduction):
    torch._dynamo.reset()
    logits, target, there = problem(torch.double)

    def loss(z, y):
        return FLAT[name](z, y, reduction=reduction, ignore_nan=True)

    each = torch.stack([loss(z, y) for z, y in zip(logits, target, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(logits, target), each, rtol=1e-12, atol=0)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for got, want in zip(step(compiled, logits, target), step(loss, logits, target), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_exported():
    """Where the count is composed too."""

    class Model(torch.nn.Module):
        def forward(self, z, y):
            return fl.binary_cross_entropy_with_logits(z, y, ignore_nan=True)

    logits, target, _ = problem(torch.double)
    exported = torch.export.export(Model(), (logits, target)).module()
    torch.testing.assert_close(exported(logits, target), Model()(logits, target))


def test_with_options_that_are_tensors():
    """Which are worked into the target, or composed."""
    logits, target, there = problem(torch.double)
    for name, option in (("bce", "label_smoothing"), ("focal", "gamma"), ("focal", "alpha")):
        value = torch.full((LABELS,), 0.3, dtype=torch.double, requires_grad=True)
        got = step(FLAT[name], logits, target, {option: value}, reduction="mean", ignore_nan=True)
        want = step(FLAT[name], logits, target, {option: value}, reduction="mean", mask=there)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
        assert got[2].all()


@pytest.mark.parametrize("layout", ["dense", "csr", "coo"])
@pytest.mark.parametrize("labels", [1, LABELS])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_of_the_layer(reduction, labels, layout):
    """The bits of a mask: one label and many, by tiles of several sizes; sparse targets with values that are NaN."""
    torch.manual_seed(1)
    x, w, b = torch.randn(ROWS, FEATURES), torch.randn(labels, FEATURES), torch.randn(labels)
    target = torch.rand(ROWS, labels) * (torch.rand(ROWS, labels) < 0.3)
    target[(target > 0) & (torch.rand(ROWS, labels) < 0.3)] = torch.nan
    there = ~target.isnan()
    given = {"dense": lambda t: t, "csr": torch.Tensor.to_sparse_csr, "coo": torch.Tensor.to_sparse}[layout](target)
    if layout != "dense":
        assert given.values().isnan().any() and not there.all()
    kept = torch.rand(ROWS, 1) < 0.8
    for options in (
        {},
        {"ignore_index": 0, "mask": kept, "chunk_bytes": 200},
        {"label_smoothing": 0.1, "weight": torch.rand(labels), "mask": kept, "ignore_index": 1},
    ):
        options["reduction"] = reduction
        results = []
        for y, more in (
            (given, {"ignore_nan": True}),
            (target.nan_to_num(0.5), {"mask": there & options.get("mask", torch.tensor(True))}),
        ):
            leaves = [t.clone().requires_grad_() for t in (x, w, b)]
            loss = fl.linear_binary_cross_entropy(*leaves[:2], y, linear_bias=leaves[2], **options | more)
            factor = torch.linspace(0.5, 2, loss.numel()).reshape(loss.shape)
            results.append([loss.detach(), *torch.autograd.grad(loss, leaves, factor)])
        got, want = results
        assert all(same_bits(a, b) for a, b in zip(got[1:], want[1:], strict=True))
        if layout == "dense" or reduction == "none":
            assert same_bits(got[0], want[0])
        else:  # sums in another order, as tests/test_linear_sparse.py has it
            torch.testing.assert_close(got[0], want[0], rtol=2 * 24 * 2.0**-24, atol=0)
        assert got[0].isfinite().all()


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_nested():
    logits, target, _ = problem()
    offsets = torch.tensor([0, 40, 41, ROWS])
    jagged = [torch.nested.nested_tensor_from_jagged(t, offsets) for t in (logits, target)]
    want = fl.binary_cross_entropy_with_logits(logits, target, ignore_nan=True)
    assert fl.binary_cross_entropy_with_logits(*jagged, ignore_nan=True).equal(want)


def test_modules():
    logits, target, _ = problem()
    criterion = fl.BCEWithLogitsLoss(ignore_nan=True)
    assert criterion(logits, target).equal(fl.binary_cross_entropy_with_logits(logits, target, ignore_nan=True))
    head = fl.LinearBCEWithLogitsLoss(FEATURES, LABELS, ignore_nan=True)
    x = torch.randn(ROWS, FEATURES)
    want = fl.linear_binary_cross_entropy(x, head.weight, target, linear_bias=head.bias, ignore_nan=True)
    assert head(x, target).equal(want) and want.isfinite()
    for module in (criterion, head):
        assert repr(module).endswith("ignore_nan=True)")
    assert "ignore_nan" not in repr(fl.BCEWithLogitsLoss())


def test_the_op_asks_for_a_count():
    z, y = torch.randn(4, 3), torch.rand(4, 3)
    with pytest.raises(ValueError, match="expected count for a mean over some of the elements"):
        ops.bce(z, y, None, None, None, None, ops.MEAN, torch.float32, ignore_nan=True)

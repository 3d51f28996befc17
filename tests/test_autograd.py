"""Derivatives: the chain rule against the composed graph, gradcheck to second order, and what users do with a graph."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fused_logistic as fl
from fused_logistic import ops, reference
from fused_logistic.autograd import BinaryCrossEntropyWithLogits
from tests.conftest import REDUCTIONS, grad_arguments, loss_arguments

WEIGHTS = ["plain", "weight", "pos_weight", "both"]


def operands(weights, dtype=torch.double, requires_grad=True):
    logits = torch.randn(4, 3, dtype=dtype)
    target = torch.rand(4, 3, dtype=dtype)
    weight = torch.rand(4, 1, dtype=dtype) if weights in ("weight", "both") else None
    pos_weight = 2 * torch.rand(3, dtype=dtype) if weights in ("pos_weight", "both") else None
    return [None if t is None else t.requires_grad_(requires_grad) for t in (logits, target, weight, pos_weight)]


def test_chain_rule_of_the_notebook():
    """x = (1, 2), w = (2, 1), b = 1, y = 1: fused against the hook-captured intermediates of the composed graph."""
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([1.0])
    w, b = torch.tensor([2.0, 1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    z = w.dot(x) + b
    z.retain_grad()
    fl.binary_cross_entropy_with_logits(z, y).backward()
    composed = reference.composed(x, w.detach().requires_grad_(), b.detach().requires_grad_(), y)
    composed.loss.backward()
    assert round(z.grad.item(), 4) == -0.0067 == round(b.grad.item(), 4)
    assert [round(v, 4) for v in w.grad.tolist()] == [-0.0067, -0.0134]
    torch.testing.assert_close(
        z.grad, composed.dL_dz.reshape(z.shape), rtol=1e-4, atol=0
    )  # composed: 1 - sigma in fp32


@pytest.mark.parametrize("shape", [(1,), (33,), (5_000,)])
def test_every_gradient_of_the_composed_graph(shape):
    features = 4
    x, y = torch.randn(*shape, features, dtype=torch.double), torch.rand(shape, dtype=torch.double)
    w, b = torch.randn(features, dtype=torch.double), torch.randn(1, dtype=torch.double)
    grads = []
    for loss in (
        lambda z: fl.binary_cross_entropy_with_logits(z, y, reduction="sum"),
        lambda z: -(y * torch.log(1 / (1 + torch.exp(-z))) + (1 - y) * torch.log(1 - 1 / (1 + torch.exp(-z)))).sum(),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        grads.append(torch.autograd.grad(loss(leaves[0] @ leaves[1] + leaves[2]), leaves))
    for ours, composed in zip(*grads, strict=True):
        torch.testing.assert_close(ours, composed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, weights):
    logits, target, weight, pos_weight = operands(weights)

    def function(logits, target, weight, pos_weight):
        return fl.binary_cross_entropy_with_logits(logits, target, weight, pos_weight=pos_weight, reduction=reduction)

    assert gradcheck(function, (logits, target, weight, pos_weight))
    assert gradgradcheck(function, (logits, target, weight, pos_weight))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_gradcheck_of_the_python_function(reduction, weights):
    def function(*tensors):
        return BinaryCrossEntropyWithLogits.apply(*loss_arguments(*tensors, None, reduction))

    assert gradcheck(function, operands(weights))
    assert gradgradcheck(function, operands(weights))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("options", [(0.0, None, False), (0.2, None, False), (0.0, 1, False), (0.3, 0, True)], ids=str)
@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_gradcheck_of_the_ops_with_every_option(reduction, options, weights):
    smoothing, ignore_index, masked = options
    logits, target, weight, pos_weight = operands(weights)
    with torch.no_grad():
        target[0] = torch.tensor([0.0, 1.0, 0.0])
    mask = torch.rand(4, 3) < 0.7 if masked else None

    def function(*tensors):
        return ops.bce(*loss_arguments(*tensors, mask, reduction, smoothing, ignore_index))

    fixed = target.detach() if ignore_index is not None else target  # a perturbed target is no longer the ignored value
    assert gradcheck(function, (logits, fixed, weight, pos_weight))
    assert gradgradcheck(function, (logits, fixed, weight, pos_weight))


@pytest.mark.parametrize("weights", ["plain", "both"])
@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_opcheck(reduction, weights):
    for requires_grad in (False, True):
        tensors = operands(weights, requires_grad=requires_grad)
        torch.library.opcheck(ops.bce, loss_arguments(*tensors, None, reduction, 0.1))
        grad_output = (
            torch.rand(4, 3, dtype=torch.double) if reduction == ops.NONE else torch.rand((), dtype=torch.double)
        )
        for wrt in range(4) if weights == "both" else range(2):
            torch.library.opcheck(
                ops.bce_backward, (grad_output, *grad_arguments(*tensors, None, reduction, 0.1, None, wrt))
            )
        if reduction != ops.NONE:
            torch.library.opcheck(ops.bce_with_grad, loss_arguments(*tensors, None, reduction))


def test_the_gradient_is_not_copied():
    """Where grad_output is 1 the tensor that the forward pass wrote becomes .grad: no second pass, no second block."""
    logits = torch.randn(1 << 20, requires_grad=True)
    loss = fl.binary_cross_entropy_with_logits(logits, torch.rand(1 << 20))
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        loss.backward()
    names = {event.key for event in profiled.key_averages()}
    assert not names & {"aten::mul", "aten::mul_", "aten::clone", "aten::copy_", "fused_logistic::bce_backward"}, names


def test_grad_output_strided_and_expanded():
    logits, target, _, _ = operands("plain")
    for grad_output in (torch.rand(1, dtype=torch.double).expand(4, 3), torch.rand(3, 4, dtype=torch.double).t()):
        loss = fl.binary_cross_entropy_with_logits(logits, target, reduction="none")
        (ours,) = torch.autograd.grad(loss, logits, grad_output)
        want = grad_output * (logits.sigmoid() - target)
        torch.testing.assert_close(ours, want.detach(), rtol=1e-12, atol=1e-15)


def test_hooks_see_and_change_the_gradient():
    logits, target, _, _ = operands("plain")
    hidden = logits * 1
    seen = []
    hidden.register_hook(lambda g: seen.append(g.clone()) or g * 2)
    fl.binary_cross_entropy_with_logits(hidden, target).backward()
    torch.testing.assert_close(logits.grad, 2 * seen[0])
    torch.testing.assert_close(seen[0], ((logits.sigmoid() - target) / 12).detach())


def test_gradient_penalty():
    grads = []
    logits, target, weight, pos_weight = operands("both", requires_grad=False)  # torch's are not differentiable
    for function in (fl.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits):
        z = logits.detach().requires_grad_()
        loss = function(z, target, weight, pos_weight=pos_weight)
        (g,) = torch.autograd.grad(loss, z, create_graph=True)
        (gg,) = torch.autograd.grad((g**2).sum() + loss, z, create_graph=True)
        (ggg,) = torch.autograd.grad(gg.sin().sum(), z)
        grads.append((g.detach(), gg.detach(), ggg))
    for ours, torchs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-14)


def test_under_saved_tensor_hooks():
    logits, target, _, _ = operands("plain")
    with torch.autograd.graph.save_on_cpu():
        loss = fl.binary_cross_entropy_with_logits(logits, target, reduction="none").sum()
    loss.backward()
    torch.testing.assert_close(logits.grad, (logits.sigmoid() - target).detach())


# ---- What changes between the passes --------------------------------------------------------------------------------


def changed_in_place(which):
    """A loss, what it is differentiated by, and an operand that has changed since: of "loss", or of so many labels."""
    torch.manual_seed(1)
    x, y = torch.randn(6, 4), torch.rand(6, 2)
    if which == "loss":
        leaf = torch.randn(6, 2, requires_grad=True)
        z = leaf * 1
        loss = fl.binary_cross_entropy_with_logits(z, y)
        with torch.no_grad():
            z.clamp_(min=0)
    else:
        leaf = torch.randn(which, 4, requires_grad=True)
        loss = fl.linear_binary_cross_entropy(x, leaf, y[:, :which])
        with torch.no_grad():
            leaf.clamp_(min=0)
    return loss, leaf


@pytest.mark.parametrize("which", ["loss", 1, 2])
def test_a_finished_gradient_needs_no_operand(which):
    """As in eager torch, where the gradient of the weight does not read the weight."""
    (got,) = torch.autograd.grad(*changed_in_place(which))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss, leaf = changed_in_place(which)
    torch.autograd.grad(loss, leaf, retain_graph=True)
    (want,) = torch.autograd.grad(loss, leaf)  # computed again, of what was saved
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("which", ["loss", 1, 2])
def test_what_is_computed_again_raises(which):
    changed = pytest.raises(RuntimeError, match="modified by an inplace operation")
    with changed:
        torch.autograd.grad(*changed_in_place(which), create_graph=True)
    loss, leaf = changed_in_place(which)
    torch.autograd.grad(loss, leaf, retain_graph=True)
    with changed:
        torch.autograd.grad(loss, leaf)
    if which == "loss":  # the layer's are scaled
        with changed:
            torch.autograd.grad(*changed_in_place(which), torch.tensor(2.0))


@pytest.mark.parametrize("which", ["loss", 1, 2])
def test_a_freed_graph_says_so(which):
    loss, leaf = changed_in_place(which)
    torch.autograd.grad(loss, leaf)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaf)

"""The two autograd Functions, eager and compiled: what a gradient is, whenever it is made."""

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import REDUCTIONS, grad_arguments, same_bits

SUBJECTS = ["loss", "focal", "one label", "five labels"]


@pytest.fixture(params=[False, True], ids=["eager", "compiled"])
def run(request):
    """The function as it is, or captured whole by torch.compile."""
    torch._dynamo.reset()
    if request.param:
        return lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    return lambda function: function


def subject(name, dtype=torch.double, rows=6):
    """(our function of the leaves, the same of torch's operations, the leaves)."""
    rand = lambda *shape: torch.randn(shape, dtype=torch.double).to(dtype).requires_grad_()  # noqa: E731
    labels = {"one label": 1, "five labels": 5}.get(name, 4)
    target = torch.randint(0, 2, (rows, labels)).to(dtype)
    if name == "loss":
        torchs = F.binary_cross_entropy_with_logits
        return (
            lambda z, reduction="mean": fl.binary_cross_entropy_with_logits(z, target, reduction=reduction),
            lambda z, reduction="mean": torchs(z, target.to(z.dtype), reduction=reduction),
            (rand(rows, labels),),
        )
    if name == "focal":

        def focal(z, reduction="mean"):
            y = target.to(z.dtype)
            loss = F.binary_cross_entropy_with_logits(z, y, reduction="none")
            loss = loss * (y * torch.sigmoid(-z) + (1 - y) * torch.sigmoid(z)) ** 2 * (0.25 * y + 0.75 * (1 - y))
            return loss if reduction == "none" else getattr(loss, reduction)()

        return (
            lambda z, reduction="mean": fl.sigmoid_focal_loss(z, target, reduction=reduction),
            focal,
            (rand(rows, labels),),
        )

    def composed(x, w, b, reduction="mean"):
        return F.binary_cross_entropy_with_logits(F.linear(x, w, b), target.to(x.dtype), reduction=reduction)

    return (
        lambda x, w, b, reduction="mean": fl.linear_binary_cross_entropy(
            x, w, target, linear_bias=b, reduction=reduction
        ),
        composed,
        (rand(rows, 3), rand(labels, 3), rand(labels)),
    )


def assert_close(ours, torchs):
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_several_backward_calls(name, reduction, run):
    """retain_graph, another grad_output each time, and a .grad that is changed in place between them."""
    function, torchs, leaves = subject(name)
    expected, loss = torchs(*leaves, reduction=reduction), run(function)(*leaves, reduction=reduction)
    for factor in (1.0, 3.0, 0.0):
        for leaf in leaves:
            leaf.grad = None
        loss.backward(torch.full_like(loss, factor), retain_graph=True)
        want = torch.autograd.grad(expected, leaves, torch.full_like(expected, factor), retain_graph=True)
        assert_close([leaf.grad for leaf in leaves], want)
        for leaf in leaves:
            leaf.grad.mul_(7)  # its owner may do this
    for leaf in leaves:
        leaf.grad = None
    loss.backward(torch.ones_like(loss), retain_graph=True)
    loss.backward(torch.ones_like(loss))
    want = torch.autograd.grad(expected, leaves, torch.ones_like(expected))
    assert_close([leaf.grad for leaf in leaves], [2 * g for g in want])


@pytest.mark.parametrize("grad_output", [1.0, 0.3, -65536.0, 0.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.half, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["loss", "focal"])
def test_the_gradient_does_not_depend_on_when_it_is_made(name, dtype, reduction, grad_output, run):
    """One rounding of grad_output x scale x derivative: the bits of a backward pass that computes it from nothing."""
    function, _, (logits,) = subject(name, dtype, rows=700)
    loss = run(function)(logits, reduction=reduction)
    factor = torch.full_like(loss, grad_output)
    (grad,) = torch.autograd.grad(loss, logits, factor)
    again = function(logits, reduction=reduction)
    target = [t for t in again.grad_fn.saved_tensors if t is not None and t is not logits][0]
    focal = {"gamma": 2.0, "alpha": 0.25} if name == "focal" else {}
    arguments = grad_arguments(logits.detach(), target, reduction=["none", "mean", "sum"].index(reduction), **focal)
    assert same_bits(grad, ops.bce_backward(factor, *arguments))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_gradient_penalty(name):
    function, torchs, leaves = subject(name)
    results = []
    for f in (function, torchs):
        loss = f(*leaves)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum((g**2).sum() for g in grads) + loss, leaves))
    assert_close(*results)


@pytest.mark.parametrize("name", SUBJECTS)
def test_under_no_grad_nothing_is_saved(name, run):
    function, _, leaves = subject(name)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            loss = run(function)(*leaves)
        assert not loss.requires_grad and loss.grad_fn is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layer", [False, True])
def test_saved_tensors_changed_in_place(layer, reduction):
    """An error where the backward pass reads them; a gradient that is finished is that of what they were."""
    leaf, target = torch.randn(5, 3, dtype=torch.double, requires_grad=True), torch.rand(5, 3, dtype=torch.double)

    def loss_of():
        hidden, weight = leaf * 1, torch.eye(3, dtype=torch.double)
        if layer:
            return fl.linear_binary_cross_entropy(hidden, weight, target, reduction=reduction).sum()
        return fl.binary_cross_entropy_with_logits(hidden, target, reduction=reduction).sum()

    (want,) = torch.autograd.grad(loss_of(), leaf)
    loss = loss_of()
    target.add_(1)
    if reduction == "none":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        loss.backward()
        torch.testing.assert_close(leaf.grad, want, rtol=0, atol=0)


@pytest.mark.parametrize("labels", [1, 64])
def test_fp16_gradients_of_the_layer_do_not_underflow_under_a_loss_scale(labels, run):
    n, scale = 4096 * 64 // labels, 65536.0
    x, w, b = (torch.randn(shape).half().requires_grad_() for shape in ((n, 4), (labels, 4), (labels,)))
    target = torch.randint(0, 2, (n, labels)).float()
    (run(fl.linear_binary_cross_entropy)(x, w, target, linear_bias=b) * scale).backward()
    exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
    (F.binary_cross_entropy_with_logits(F.linear(*exact), target.double()) * scale).backward()
    for ours, want in zip((x, w, b), exact, strict=True):
        error = (ours.grad.double() - want.grad).abs().max() / want.grad.abs().max()
        assert error <= 8 * torch.finfo(torch.float16).eps, error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_loss_scaling_keeps_the_digits(dtype, run):
    """Mixed precision multiplies the loss by 2^16 so that fp16 gradients, each 1/N of something, do not underflow."""
    n, scale = 1 << 20, 65536.0
    logits = (4 * torch.randn(n)).to(dtype).requires_grad_()
    target = torch.randint(0, 2, (n,)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = run(fl.binary_cross_entropy_with_logits)(logits, target)
    (loss * scale).backward()
    exact = (logits.detach().double().sigmoid() - target.double()) * (scale / n)
    normal = exact.abs() >= torch.finfo(dtype).tiny
    error = ((logits.grad.double() - exact) / exact)[normal].abs()
    assert error.max() <= torch.finfo(dtype).eps  # 1 ulp
    absolute = (logits.grad.double() - exact)[~normal].abs()
    assert absolute.numel() == 0 or absolute.max() <= torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps

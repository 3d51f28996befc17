"""What differentiates, transforms, compiles or records the loss of pairs."""

import pytest
import torch
from conftest import same_bits
from pairs_formula import formula, operands, ours, step
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fused_logistic as fl
from fused_logistic import ops, pairs
from fused_logistic.autograd import SigmoidContrastive


def test_gradcheck():
    leaves = operands(5, 3, scale=2.0)
    assert gradcheck(lambda *t: SigmoidContrastive.apply(*t, 8 * 4), leaves)
    assert gradcheck(ours, leaves, check_forward_ad=True)
    assert gradgradcheck(ours, leaves)


@pytest.mark.parametrize("which", range(4))
def test_one_gradient_alone(which):
    leaves = [t.detach() for t in operands(6, 3)]
    leaves[which].requires_grad_()
    (expected,), (got,) = (torch.autograd.grad(f(*leaves), leaves[which]) for f in (formula, ours))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_a_second_backward_pass():
    """What the forward pass made is handed out once."""
    leaves = operands(6, 3)
    loss = ours(*leaves)
    first, second = (torch.autograd.grad(k * loss, leaves, retain_graph=True) for k in (1.0, 3.0))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-12, atol=1e-14)


def compare(transform, *leaves):
    a, b = (torch.utils._pytree.tree_leaves(transform(f)(*leaves)) for f in (ours, formula))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_transforms():
    leaves = [t.detach() for t in operands(4, 3, scale=2.0)]
    every = (0, 1, 2, 3)
    compare(lambda f: torch.func.grad(f, every), *leaves)
    compare(lambda f: lambda *t: torch.func.jvp(f, t, tuple(torch.ones_like(x) for x in t)), *leaves)
    compare(lambda f: torch.func.hessian(f, every), *leaves)
    batched = [torch.stack([t, 2 * t, t / 3]) for t in leaves]
    compare(lambda f: torch.vmap(f), *batched)
    compare(lambda f: torch.vmap(f, (0, None, 0, None)), batched[0], leaves[1], batched[2], leaves[3])
    compare(lambda f: torch.vmap(torch.func.grad(f, every)), *batched)
    compare(lambda f: torch.func.grad(lambda *t: torch.vmap(f)(*t).sum(), every), *batched)


def test_compiled():
    torch._dynamo.reset()
    for dynamic, sizes in ((False, [6]), (True, [6, 9])):
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        for n in sizes:
            leaves = operands(n, 3)
            for a, b in zip(step(compiled, leaves, 3.0), step(ours, leaves, 3.0), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_exported():
    """In core operators, which load without this package."""

    class Model(torch.nn.Module):
        def forward(self, *given):
            return ours(*given)

    given = tuple(t.detach() for t in operands(6, 3))
    program = torch.export.export(Model(), given)
    assert not [node for node in program.graph.nodes if "fused_logistic" in str(node.target)]
    torch.testing.assert_close(program.module()(*given), ours(*given), rtol=1e-12, atol=0)


def test_layouts_and_checkpoint():
    image, text = torch.randn(3, 7, dtype=torch.double).t(), torch.randn(14, 3, dtype=torch.double)[::2]
    leaves = [t.requires_grad_() for t in (image, text, *(n.detach() for n in operands(1, 1)[2:]))]
    expected = step(formula, leaves)
    for a, b in zip(step(ours, leaves, tile_bytes=8 * 9), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    again = step(lambda *t: checkpoint(ours, *t, use_reentrant=False), leaves)
    for a, b in zip(again, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_opcheck():
    leaves = operands(5, 3, torch.float)
    given = [t.detach() for t in leaves]
    for args in (leaves, given, [*given[:3], None]):
        torch.library.opcheck(ops.pairs, (*args, 50))
    for mask in ([True] * 4, [False, True, False, True]):
        torch.library.opcheck(ops.pairs_with_grad, (*given, None, mask))
        torch.library.opcheck(ops.pairs_backward, (torch.ones(()), *given, None, mask))
    half = [given[0].half(), given[1].half(), *given[2:]]
    torch.library.opcheck(ops.pairs_with_grad, (*half, None, [True] * 4))


def test_meta():
    image, text, scale, bias = (t.detach().to("meta") for t in operands(5, 3, torch.half))
    assert fl.sigmoid_contrastive_loss(image, text, scale, bias).dtype == torch.float32


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(low):
    """The features are taken in autocast's dtype, the similarities are fp32; the composition does the same."""
    leaves = operands(20, 8, torch.float)
    cast = [leaves[0].to(low), leaves[1].to(low), *leaves[2:]]
    expected = step(lambda *t: ours(t[0].to(low), t[1].to(low), *t[2:]), leaves)
    with torch.autocast("cpu", low):
        got = step(ours, leaves)
        composed = torch.func.grad(ours, (2, 3))(*(t.detach() for t in leaves))
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)
    truth = torch.autograd.grad(formula(*(t.double() for t in cast)), leaves[2:])
    for a, b in zip(composed, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_numbers_and_shapes():
    image, text, scale, bias = operands(5, 3)
    expected = ours(image, text, scale, bias)
    for s, b in ((10.0, -2.0), (scale.reshape(1), bias.reshape(1)), (scale.float(), -2)):
        assert same_bits(ours(image, text, s, b), expected)
    (grad,) = torch.autograd.grad(ours(image, text, one := torch.tensor([10.0], requires_grad=True), bias), one)
    assert grad.shape == (1,) and grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:fused_logistic. no kernel for device")
def test_without_a_kernel(monkeypatch):
    """As on a device that has none: composed."""
    leaves, half = operands(6, 3), operands(6, 3, torch.half)
    expected, expected_half = step(ours, leaves), step(ours, half)
    monkeypatch.setattr(pairs, "has_kernel", lambda features: False)
    for a, b in zip(step(ours, leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    for a, b in zip(step(ours, half), expected_half, strict=True):
        torch.testing.assert_close(a, b)


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    leaves, product = operands(6, 3), 2 * 6 * 6 * 3
    for given, products in ((leaves, 3), ([leaves[0], *(t.detach() for t in leaves[1:])], 2)):
        with FlopCounterMode(display=False) as counter:
            ours(*given).backward()
        assert counter.get_total_flops() == products * product


def test_vmap_of_the_gradients_factor_alone():
    image, text = (torch.randn(6, 3, dtype=torch.double) for _ in range(2))
    scale, bias, factors = (torch.tensor(n, dtype=torch.double) for n in (5.0, -1.0, [1.0, 2.0, -3.0]))
    rest = image, text, scale, bias, None, [True] * 4
    batched = torch.func.vmap(lambda factor: ops.pairs_backward(factor, *rest))(factors)
    for i, factor in enumerate(factors):
        torch.testing.assert_close([g[i] for g in batched], list(ops.pairs_backward(factor, *rest)))

"""torch.func, forward-mode AD, higher derivatives and checkpointing: all against torch's own loss, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils.checkpoint import checkpoint

import fused_logistic as fl
from fused_logistic.autograd import BinaryCrossEntropyWithLogits
from tests.against_torch import REDUCTIONS, assert_same, cases, compare, losses, operands, rand, scalar
from tests.conftest import loss_arguments

# ---- One transform -------------------------------------------------------------------------------


@cases
def test_grad(reduction, weights):
    grads = compare(lambda f, t: grad(scalar(f), tuple(range(len(t))))(*t), reduction, weights)
    assert all(g.abs().max() > 0 for g in grads)


@cases
def test_vjp(reduction, weights):
    def transform(f, tensors):
        out, pullback = vjp(f, *tensors)
        return out, pullback(torch.linspace(-1, 2, out.numel(), dtype=torch.double).reshape(out.shape))

    assert all(g.abs().max() > 0 for g in compare(transform, reduction, weights))


@cases
def test_jvp(reduction, weights):
    """Along every operand alone, and along all of them."""
    for alone in (None, 0, 1, 2, 3):
        tensors = operands(weights)
        present = [t for t in tensors if t is not None]
        if alone is not None and alone >= len(present):
            continue
        tangents = tuple(
            torch.randn_like(t) if alone in (None, i) else torch.zeros_like(t) for i, t in enumerate(present)
        )
        _, tangent = compare(lambda f, t, v=tangents: jvp(f, tuple(t), v), reduction, weights, tensors)
        assert tangent.abs().max() > 0


@cases
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd, hessian], ids=lambda f: f.__name__)
def test_jacobians(jacobian, reduction, weights):
    if jacobian is hessian and reduction == "none":
        reduction = "sum"  # a Hessian for every element is the same test, 12 times slower
    results = compare(lambda f, t: jacobian(f, tuple(range(len(t))))(*t), reduction, weights)
    assert results[0].abs().max() > 0  # by the logits


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linearize_and_value(reduction):
    def transform(f, tensors):
        out, pushforward = linearize(f, *tensors)
        return out, pushforward(*(torch.ones_like(t) for t in tensors)), grad_and_value(scalar(f))(*tensors)

    compare(transform, reduction)


# ---- Compositions --------------------------------------------------------------------------------

COMPOSITIONS = {
    "vmap of grad": lambda f: vmap(grad(f, (0, 1))),
    "grad of vmap": lambda f: grad(lambda z, y: vmap(f)(z, y).sin().sum(), (0, 1)),
    "vmap of vmap of grad": lambda f: lambda z, y: vmap(vmap(grad(lambda a, b: f(a[None], b[None]))))(z, y),
    "vmap of hessian": lambda f: vmap(hessian(f)),
    "hessian of vmap": lambda f: hessian(lambda z, y: vmap(f)(z, y).prod()),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f, (0, 1)), (0, 1)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f, (0, 1)), (0, 1)),
    "jacfwd of vmap of grad": lambda f: jacfwd(vmap(grad(f))),
    "grad of grad": lambda f: grad(lambda z, y: (grad(f)(z, y) ** 3).sum(), (0, 1)),
    "grad of grad of grad": lambda f: grad(
        lambda z, y: grad(lambda a: (grad(f)(a, y) ** 3).sum())(z).sin().sum(), (0, 1)
    ),
    "grad of jvp": lambda f: grad(lambda z, y: jvp(f, (z, y), (z.cos(), y.sin()))[1], (0, 1)),
    "jvp of grad": lambda f: lambda z, y: jvp(grad(f, (0, 1)), (z, y), (z.cos(), y.sin())),
    "jvp of jvp": lambda f: lambda z, y: jvp(lambda a: jvp(lambda b: f(b, y), (a,), (a.sin(),))[1], (z,), (z.cos(),)),
    "vmap of jvp of grad": lambda f: vmap(lambda z, y: jvp(grad(f), (z, y), (z.cos(), y.sin()))),
    "vjp of vmap of jvp": lambda f: (
        lambda z, y: vjp(lambda a: vmap(lambda b, c: jvp(f, (b, c), (b, c))[1])(a, y), z)[1](
            torch.arange(4.0, dtype=torch.double)
        )
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_compositions(composition, reduction):
    results = compare(lambda f, t: COMPOSITIONS[composition](f)(*t), reduction)
    assert results[0].abs().max() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_jacfwd_of_jacfwd(reduction):
    """Against torch's Hessian: torch's own jacfwd of jacfwd raises (2.13, "ZeroTensors are immutable")."""
    z, y, w, p = operands("both")
    ours, torchs = losses(reduction, (z, y, w, p))
    assert_same(jacfwd(jacfwd(ours))(z, y, w, p), hessian(torchs)(z, y, w, p))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_per_sample_gradients_of_a_model(reduction):
    """The standard recipe: vmap(grad(loss of functional_call)) over samples."""
    model = torch.nn.Linear(7, 3).double()
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    x, y, p = torch.randn(6, 7, dtype=torch.double), rand(6, 3), rand(3)

    def transform(f, _):
        def loss(parameters, x, y):
            return f(functional_call(model, parameters, x[None]), y[None], p)

        return vmap(grad(loss), (None, 0, 0))(parameters, x, y)

    for g in compare(transform, reduction, tensors=(x, y, None, p)):
        assert g.abs().max() > 0


def test_module_under_functional_call():
    """pos_weight is a buffer of the module: differentiable through functional_call."""
    z, y, _, p = operands("pos_weight")
    ours, torchs = fl.BCEWithLogitsLoss(pos_weight=p), torch.nn.BCEWithLogitsLoss(pos_weight=p)
    results = [
        grad(lambda p, z, m=module: functional_call(m, {"pos_weight": p}, (z, y)), (0, 1))(p, z)
        for module in (ours, torchs)
    ]
    assert_same(*results)


# ---- Forward-mode AD outside of torch.func -------------------------------------------------------


@cases
def test_dual_numbers(reduction, weights):
    def transform(f, tensors):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, t.cos()) for t in tensors]
            return tuple(forward_ad.unpack_dual(f(*duals)))

    primal, tangent = compare(transform, reduction, weights)
    assert tangent.abs().max() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_forward_over_reverse(reduction):
    """A Hessian-vector product: dual numbers through backward, once with a graph recorded inside the dual level."""

    def transform(f, tensors):
        z, y = (t.clone().requires_grad_() for t in tensors)
        with forward_ad.dual_level():
            duals = forward_ad.make_dual(z, z.detach().cos()), forward_ad.make_dual(y, y.detach().sin())
            grads = torch.autograd.grad(f(*duals), (z, y), create_graph=True)
            return [forward_ad.unpack_dual(g).tangent for g in grads]

    for tangent in compare(transform, reduction):
        assert tangent.abs().max() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reverse_over_forward(reduction):
    def transform(f, tensors):
        z, y = (t.clone().requires_grad_() for t in tensors)
        with forward_ad.dual_level():
            loss = f(forward_ad.make_dual(z, z.cos()), forward_ad.make_dual(y, y.sin()))
            return torch.autograd.grad(forward_ad.unpack_dual(loss).tangent.sum(), (z, y))

    for g in compare(transform, reduction):
        assert g.abs().max() > 0


def test_dual_grad_output():
    """A tangent that comes in only with grad_output (the loss itself was recorded without one)."""

    def transform(f, tensors):
        z = tensors[0].clone().requires_grad_()
        loss = f(z, tensors[1])
        with forward_ad.dual_level():
            (g,) = torch.autograd.grad(loss, z, forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3)))
            primal, tangent = forward_ad.unpack_dual(g)
            return primal, torch.zeros_like(primal) if tangent is None else tangent

    for reduction in REDUCTIONS:
        _, tangent = compare(transform, reduction)
        assert tangent.abs().max() > 0


# ---- Higher derivatives --------------------------------------------------------------------------


@cases
def test_three_derivatives(reduction, weights):
    """By every operand, each derivative a sum of squares of the one before."""

    def transform(f, tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        first = torch.autograd.grad(scalar(f)(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves, create_graph=True)
        return first, second, torch.autograd.grad(sum(g.sin().sum() for g in second), leaves)

    if reduction == "none" or weights != "plain":
        assert all(g.abs().max() > 0 for g in compare(transform, reduction, weights))
    else:
        compare(transform, reduction, weights)


@pytest.mark.parametrize("function", ["eager", "Function"])
def test_gradient_penalty_of_a_model(function):
    """WGAN-GP's pattern: a loss on the gradient by the input, differentiated by the parameters."""

    def transform(f, tensors):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
        x = tensors[0].clone().requires_grad_()
        loss = f(model(x), tensors[1])
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + 10 * ((g.norm(dim=1) - 1) ** 2).mean()).backward()
        return [p.grad for p in model.parameters()]

    z, y, _, _ = operands()
    if function == "eager":
        compare(transform)
    else:
        ours = transform(lambda a, b: BinaryCrossEntropyWithLogits.apply(*loss_arguments(a, b)), (z, y))
        assert_same(ours, transform(F.binary_cross_entropy_with_logits, (z, y)))


def test_hessian_is_that_of_the_formula():
    """Not only like torch's: d2L/dz2 = w (p y + 1 - y) sigma(z) sigma(-z) on the diagonal, 0 elsewhere."""
    z, y, w, p = torch.randn(6, dtype=torch.double), rand(6), rand(6), rand(6)
    matrix = hessian(lambda t: fl.binary_cross_entropy_with_logits(t, y, w, pos_weight=p, reduction="sum"))(z)
    expected = torch.diag(w * (p * y + 1 - y) * torch.sigmoid(z) * torch.sigmoid(-z))
    torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-14)


# ---- Checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_checkpoint(reduction, use_reentrant):
    calls = []

    def transform(f, tensors):
        def segment(z, y, w, p):
            calls.append(1)
            return f(torch.tanh(z) * 3, y, w, p)

        leaves = [t.clone().requires_grad_() for t in tensors]
        checkpoint(segment, *leaves, use_reentrant=use_reentrant).sum().backward()
        return [t.grad for t in leaves]

    grads = compare(transform, reduction, "both")
    assert len(calls) == 4 and all(g.abs().max() > 0 for g in grads)  # each loss ran, and ran again


def test_checkpoint_twice_differentiated():
    def transform(f, tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        loss = checkpoint(f, *leaves, use_reentrant=False)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves)

    for reduction in ("mean", "sum"):
        compare(transform, reduction)

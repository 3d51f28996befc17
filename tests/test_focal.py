"""sigmoid_focal_loss: derivatives, transforms, torchvision's behaviour, options and errors."""

import importlib
import math

import mpmath
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fused_logistic as fl
from fused_logistic import ops, reference
from tests.conftest import REDUCTIONS, grad_arguments, loss_arguments, same_bits

# ---- Derivatives and transforms --------------------------------------------------------------------------------------


def problem(shape=(4, 3), dtype=torch.double):
    """Logits, soft and hard targets."""
    target = torch.rand(shape, dtype=dtype)
    target.view(-1)[::3] = 0
    target.view(-1)[1::3] = 1
    return (3 * torch.randn(shape, dtype=dtype)), target


@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 2.7])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_and_gradient(reduction, gamma, alpha, device):
    logits, target = (t.to(device).requires_grad_() for t in problem((50, 7)))
    ours = fl.sigmoid_focal_loss(logits, target, alpha, gamma, reduction)
    exact = reference.sigmoid_focal_loss(logits, target, alpha, gamma)
    exact = exact if reduction == "none" else getattr(exact, reduction)()
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)
    factor = torch.full_like(ours, 1.5)
    for a, b in zip(*(torch.autograd.grad(x, (logits, target), factor) for x in (ours, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.5, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, gamma):
    """Through the public function, by logits and targets, twice; then a third derivative against the reference's."""
    logits, target = (t.requires_grad_() for t in problem())
    with torch.no_grad():
        target.mul_(0.9).add_(0.05)  # finite differences must not leave [0, 1]

    def function(logits, target):
        return fl.sigmoid_focal_loss(logits, target, gamma=gamma, reduction=reduction)

    assert gradcheck(function, (logits, target), check_forward_ad=True)
    assert gradgradcheck(function, (logits, target))
    third = []
    for loss in (function(logits, target).sum(), function_of_reference(logits, target, gamma, reduction)):
        for _ in range(3):
            (loss,) = torch.autograd.grad(loss, logits, create_graph=True)
            loss = (loss**2).sum()
        third.append(loss)
    torch.testing.assert_close(*third, rtol=1e-9, atol=0)


def function_of_reference(logits, target, gamma, reduction):
    loss = reference.sigmoid_focal_loss(logits, target, gamma=gamma)
    return loss.mean() if reduction == "mean" else loss.sum()


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_second_derivatives_at_hard_targets(gamma):
    """Where q is e and underflows: finite, and those of exp(-gamma softplus) softplus."""
    z = torch.tensor([-800.0, -100, -30, -1, 0, 1, 30, 100, 800], dtype=torch.double, requires_grad=True)
    for y in (0, 1):
        target = torch.full_like(z, y)
        x = -z if y else z
        exact = -torch.exp(gamma * torch.nn.functional.logsigmoid(x)) * torch.nn.functional.logsigmoid(-x)
        ours = fl.sigmoid_focal_loss(z, target, -1, gamma)
        for _ in range(3):
            (ours,), (exact,) = (torch.autograd.grad(t.sum(), z, create_graph=True) for t in (ours, exact))
            assert ours.isfinite().all()
            torch.testing.assert_close(ours[1:-1], exact[1:-1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_options_of_the_op(reduction):
    """weight, pos_weight, label smoothing, mask and ignored targets with the focal factor, every gradient."""
    logits, target = problem((3, 2))
    target = target.mul(0.9).add(0.05)
    target.view(-1)[::5] = -1
    weight, pos_weight = torch.rand(3, 1, dtype=torch.double), 2 * torch.rand(2, dtype=torch.double)
    mask, kept = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool(), target != -1
    inputs = tuple(t.requires_grad_() for t in (logits, target, weight, pos_weight))
    enum = REDUCTIONS.index(reduction)

    def ours(logits, target, weight, pos_weight):
        return ops.bce(*loss_arguments(logits, target, weight, pos_weight, mask, enum, 0.2, -1, None, 1.5, 0.3))

    def composed(logits, target, weight, pos_weight):
        y = target.where(kept, 0) * 0.8 + 0.1
        q = y * torch.sigmoid(-logits) + (1 - y) * torch.sigmoid(logits)
        loss = reference.loss(logits, y, weight * (0.3 * y + 0.7 * (1 - y)), pos_weight) * q**1.5
        loss = loss.where(mask & kept, 0)
        return loss if enum == 0 else loss.sum() if enum == 2 else loss.sum() / (mask & kept).sum()

    torch.testing.assert_close(ours(*inputs), composed(*inputs), rtol=1e-12, atol=1e-14)
    factor = torch.rand_like(ours(*inputs))
    for a, b in zip(*(torch.autograd.grad(f(*inputs), inputs, factor) for f in (ours, composed)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)

    def masked(logits, weight, pos_weight):  # finite differences must not change what is ignored
        return ours(logits, inputs[1].detach(), weight, pos_weight)

    assert gradgradcheck(masked, (inputs[0], *inputs[2:]))


OUTSIDE = [-0.5, -1e-7, 1 + 2**-40, 1.5, 2.0, 30.0]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.0, 0.5, 2.7])
def test_targets_outside_of_the_unit_interval(gamma):
    """By the kernels, autograd twice, transforms; as torchvision's formula, of |q| for a broken power."""
    z = torch.linspace(-20, 20, 40, dtype=torch.double).repeat(len(OUTSIDE)).requires_grad_()
    y = torch.tensor(OUTSIDE, dtype=torch.double).repeat_interleave(40).requires_grad_()
    q = (y * torch.sigmoid(-z) + (1 - y) * torch.sigmoid(z)).detach()
    clear = q.abs() > 1e-3  # else q is what rounding left of two numbers that cancel
    z, y = z.detach()[clear].requires_grad_(), y.detach()[clear].requires_grad_()
    ours = lambda z, y: fl.sigmoid_focal_loss(z, y, 0.3, gamma)  # noqa: E731
    theirs = torchvisions if gamma % 1 == 0 else reference.sigmoid_focal_loss
    exact = lambda z, y: theirs(z, y, 0.3, gamma)  # noqa: E731
    results = []
    for f in (ours, exact):
        first = torch.autograd.grad(f(z, y).sum(), (z, y), create_graph=True)
        second = torch.autograd.grad(first[0].sum() + (first[1] ** 2).sum(), (z, y))
        func = torch.func.grad(lambda z, y, f=f: f(z, y).sum(), (0, 1))(z.detach(), y.detach())
        tangent = torch.func.jvp(f, (z.detach(), y.detach()), (z.detach().cos(), y.detach().sin()))[1]
        each = torch.func.vmap(torch.func.hessian(f, 0))(z.detach()[::9], y.detach()[::9])
        results.append([f(z, y), *first, *second, *func, tangent, each])
    plain = torch.autograd.grad(ours(z, y).sum(), (z, y))
    torch.testing.assert_close(plain, tuple(results[1][1:3]), rtol=1e-7, atol=1e-9)
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, i=i: f"{i}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_derivatives_where_q_is_0(dtype):
    """Of gamma 1 and 2: those of q times the loss and of q^2. The second, in which 1 / q cancels, are finite."""
    z, y = torch.tensor([0.0], dtype=dtype), torch.tensor([2.0], dtype=dtype)
    z += math.log(2)  # exp(-z) is 1/2 there or next to it
    for gamma in (1.0, 2.0):
        results = []
        for f in (lambda z, g=gamma: fl.sigmoid_focal_loss(z, y, -1, g), lambda z, g=gamma: torchvisions(z, y, -1, g)):
            leaf = z.clone().requires_grad_()
            (first,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), leaf)
            assert second.isfinite().all()
            results.append([first, torch.func.grad(lambda z, f=f: f(z).sum())(z)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_mask_that_overshoots_by_one_ulp():
    """Bilinear weights may add up to 1 + 1 ulp: such a batch has the loss of its labels."""
    label = torch.nextafter(torch.ones(50), torch.tensor(2.0)).requires_grad_()
    z = torch.randn(50, requires_grad=True)
    results = [fl.sigmoid_focal_loss(z, t, reduction="mean") for t in (label, torch.ones(50))]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in results))
    assert torch.autograd.grad(fl.sigmoid_focal_loss(z, label).sum(), label)[0].isfinite().all()


def test_forward_ad_and_vmap_and_compositions():
    logits, target = problem()
    loss = lambda f: lambda z, y: f(z, y, 0.25, 1.5).sum()  # noqa: E731
    pair = [loss(f) for f in (fl.sigmoid_focal_loss, reference.sigmoid_focal_loss)]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones_like(logits))
        tangents = [forward_ad.unpack_dual(f(dual, target)).tangent for f in pair]
    torch.testing.assert_close(*tangents, rtol=1e-11, atol=0)
    func = torch.func
    for transform in (
        func.grad, func.vmap, func.hessian, lambda f: func.vmap(func.grad(f, argnums=1), in_dims=(1, 1)),
        lambda f: func.vmap(func.hessian(f)),
    ):  # fmt: skip
        ours, exact = (transform(f)(logits, target) for f in pair)
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()

    def step(z, y):
        return torch.func.grad(lambda z: fl.sigmoid_focal_loss(z, y, reduction="mean"))(z)

    def train(z, y):
        return fl.sigmoid_focal_loss(z, y, 0.3, 1.5, "mean")

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(train, fullgraph=True, dynamic=dynamic, backend=counter)
    for rows in (4, 5, 6) if dynamic else (4,):
        z, y = problem((rows, 3))
        z.requires_grad_()
        for f in (compiled, train):
            (z.grad, before) = (None, z.grad)
            f(z, y).backward()
        assert same_bits(z.grad, before)
        assert same_bits(compiled(z, y), train(z, y))
    assert counter.frame_count == 1
    z, y = problem()
    compiled_step = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(compiled_step(z, y), step(z, y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck_and_export():
    logits, target = problem()
    tensors = (logits.requires_grad_(), target, None, None, None)
    one = torch.ones((), dtype=torch.double)
    torch.library.opcheck(ops.bce, loss_arguments(*tensors, ops.MEAN, gamma=2.0, alpha=0.25))
    torch.library.opcheck(ops.bce_with_grad, loss_arguments(*tensors, ops.SUM, gamma=1.5))
    torch.library.opcheck(
        ops.bce_backward, (one, *grad_arguments(*tensors, ops.NONE, 0.0, None, ops.TARGET, 1.5, 0.25))
    )

    class Loss(torch.nn.Module):
        def forward(self, z, y):
            return fl.sigmoid_focal_loss(z, y, gamma=1.5, reduction="mean")

    module = torch.export.export(Loss(), (logits.detach(), target)).module()
    assert same_bits(module(logits.detach(), target), Loss()(logits.detach(), target))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("y", [0, 1])
def test_target_gradient_at_hard_targets(y, gamma, isa):
    """Where q is all but 0 the factor and its derivative are far apart; against the definition with 60 digits."""
    logits = [-100.0, -30.0, -2.0, 0.0, 2.0, 30.0, 100.0]
    target = torch.full((7,), float(y), dtype=torch.double)
    one = torch.ones((), dtype=torch.double)
    got = ops.bce_backward(
        one,
        *grad_arguments(torch.tensor(logits, dtype=torch.double), target, reduction=0, wrt=ops.TARGET, gamma=gamma),
    )
    with mpmath.workdps(60):
        for value, z in zip(got.tolist(), map(mpmath.mpf, logits), strict=True):
            positive, negative = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
            q, loss = (negative, -mpmath.log(positive)) if y else (positive, -mpmath.log(negative))
            exact = q**gamma * (-z + gamma * (negative - positive) / q * loss)
            assert abs(value - exact) <= 8 * 2**-53 * abs(exact), float(z)


# ---- torchvision's behaviour -----------------------------------------------------------------------------------------


def torchvisions(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
    """The composition that torchvision documents; its dtypes are those that torch promotes to."""
    p = torch.sigmoid(inputs)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    q = 1 - (p * targets + (1 - p) * (1 - targets))
    loss = cross_entropy * q**gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss if reduction == "none" else getattr(loss, reduction)()


def alternatives():
    """torchvision's function too, where it is installed."""
    try:
        module = importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError) as error:
        print(f"torchvision is not compared with: {error}")
        return [torchvisions]
    return [torchvisions, module.sigmoid_focal_loss]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_like_torchvision(reduction):
    """By position and by name, in its order, its defaults included. In fp64, where 1 - p_t keeps its digits."""
    logits, target = problem((50, 7))
    for theirs in alternatives():
        for arguments in ((), (0.4,), (-1, 1.5), (0.25, 0.0)):
            a, b = (f(logits, target, *arguments, reduction=reduction) for f in (fl.sigmoid_focal_loss, theirs))
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        a, b = (f(logits, target, 0.3, 3, reduction) for f in (fl.sigmoid_focal_loss, theirs))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        named = {"inputs": logits, "targets": target, "alpha": 0.1, "gamma": 4.0, "reduction": reduction}
        torch.testing.assert_close(fl.sigmoid_focal_loss(**named), theirs(**named), rtol=1e-9, atol=1e-12)
    default = fl.sigmoid_focal_loss(logits, target)
    torch.testing.assert_close(default, torchvisions(logits, target), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_result_dtype(reduction, autocast):
    floats = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    for theirs in alternatives():
        for a in floats:
            for b in floats:
                logits, target = torch.randn(5).to(a), torch.rand(5).to(b)
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    results = [f(logits, target, reduction=reduction) for f in (fl.sigmoid_focal_loss, theirs)]
                assert results[0].dtype == results[1].dtype, (a, b)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16])
@pytest.mark.parametrize("logits_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_target_dtype(dtype, logits_dtype, isa):
    logits, target = torch.randn(3_000).to(logits_dtype).requires_grad_(), torch.randint(0, 2, (3_000,))
    ours = fl.sigmoid_focal_loss(logits, target.to(dtype), reduction="sum")
    ours.backward()
    wide = logits.detach().double().requires_grad_()
    exact = reference.sigmoid_focal_loss(wide, target).sum()
    exact.backward()
    assert ours.dtype == (torch.promote_types(logits_dtype, dtype) if dtype.is_floating_point else logits_dtype)
    torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(ours.dtype).eps, atol=0)
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=4 * torch.finfo(logits_dtype).eps, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mask_and_ignored_targets(reduction):
    logits, target = torch.randn(40, 3).requires_grad_(), torch.randint(-1, 2, (40, 3))
    mask = torch.rand(40, 1) < 0.7
    kept = (mask & (target != -1)).detach()
    with torch.no_grad():
        logits[~kept] = math.nan
    ours = fl.sigmoid_focal_loss(logits, target, reduction=reduction, mask=mask, ignore_index=-1)
    exact = fl.sigmoid_focal_loss(logits[kept], target[kept], reduction=reduction)
    grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, exact)]
    torch.testing.assert_close(*grads)
    assert torch.equal(grads[0][~kept], torch.zeros(int((~kept).sum())))
    torch.testing.assert_close(ours[kept] if reduction == "none" else ours, exact)


def test_alpha_needs_gamma():
    with pytest.raises(ValueError, match="expected gamma with alpha"):
        ops.bce(*loss_arguments(torch.ones(3), torch.ones(3), alpha=0.5))


def test_one_pass_and_its_options():
    """A step of one forward kernel: the gradient is ready, scaled in place, handed out once, right the second time."""
    logits, target = torch.randn(1000, requires_grad=True), torch.rand(1000)
    loss = fl.sigmoid_focal_loss(logits, target, reduction="mean")
    first, second = (torch.autograd.grad(loss * 3, logits, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)
    exact = logits.detach().double().requires_grad_()
    (reference.sigmoid_focal_loss(exact, target).mean() * 3).backward()
    torch.testing.assert_close(first.double(), exact.grad, rtol=1e-5, atol=1e-9)

"""Quality, varifocal and asymmetric loss: derivatives, transforms, usual implementations, options, layers, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import REDUCTIONS, grad_arguments, loss_arguments, same_bits
from tests.family import FAMILY

every = pytest.mark.parametrize("member", FAMILY, ids=str)


def problem(shape=(4, 3), dtype=torch.double, inside=False):
    """Logits, soft and hard targets; inside: none of them at an end, where finite differences would leave [0, 1]."""
    target = torch.rand(shape, dtype=dtype)
    target.view(-1)[::3] = 0
    target.view(-1)[1::3] = 1
    return 3 * torch.randn(shape, dtype=dtype), target * 0.9 + 0.05 if inside else target


def reduced(loss, reduction):
    return loss if reduction == "none" else getattr(loss, reduction)()


# ---- Derivatives and transforms --------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_and_gradient(reduction, member, device):
    """By the kernels, against the definition that autograd differentiates."""
    logits, target = problem((50, 7), inside=True)
    logits, target = logits.to(device).requires_grad_(), target.to(device).requires_grad_()
    ours = member.public(logits, target, reduction=reduction)
    exact = reduced(member.reference(logits, target), reduction)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)
    factor = torch.full_like(ours, 1.5)
    for a, b in zip(*(torch.autograd.grad(x, (logits, target), factor) for x in (ours, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@every
def test_gradient_of_hard_targets(member):
    logits, target = 3 * torch.randn(200, dtype=torch.double), torch.rand(200, dtype=torch.double).round()
    logits.requires_grad_()
    ours, exact = member.public(logits, target, reduction="sum"), member.reference(logits, target).sum()
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (ours, exact)), rtol=1e-9, atol=1e-14)


@every
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, member):
    """Through the public function, by logits and targets, twice; then a third derivative against the definition's."""
    logits, target = (t.requires_grad_() for t in problem(inside=True))

    def function(logits, target):
        return member.public(logits, target, reduction=reduction)

    assert gradcheck(function, (logits, target), check_forward_ad=True)
    assert gradgradcheck(function, (logits, target))
    third = []
    for loss in (function(logits, target).sum(), reduced(member.reference(logits, target), reduction).sum()):
        for _ in range(3):
            (loss,) = torch.autograd.grad(loss, logits, create_graph=True)
            loss = (loss**2).sum()
        third.append(loss)
    torch.testing.assert_close(*third, rtol=1e-7, atol=1e-12)


def one_sided(function, y, h=1e-6):
    """The derivative of an elementwise function at an end of [0, 1], from inside, to the order of h^2."""
    step = torch.where(y == 1, -h, h)
    return (-3 * function(y) + 4 * function(y + step) - function(y + 2 * step)) / (2 * step)


@every
def test_derivatives_by_hard_targets(member):
    """Once by the kernel, by func.grad, jvp and of a learnt smoothing; mixed second ones, the same by both ways."""
    z = torch.tensor([-4.0, -2, -0.5, 0.7, 2, 4], dtype=torch.double).repeat(2)
    y = torch.tensor([0.0, 1], dtype=torch.double).repeat_interleave(6)
    if "iou_weighted" in member.options:
        z, y = z[6:], y[6:]  # the loss jumps at 0
    loss = lambda z, y: member.public(z, y, reduction="none")  # noqa: E731
    total = lambda z, y: loss(z, y).sum()  # noqa: E731
    truth = one_sided(lambda y: loss(z, y), y)
    leaf = y.clone().requires_grad_()
    (kernel,) = torch.autograd.grad(total(z, leaf), leaf)
    torch.testing.assert_close(kernel, truth, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(torch.func.grad(total, 1)(z, y), kernel, rtol=1e-9, atol=1e-13)
    tangent = torch.func.jvp(lambda y: loss(z, y), (y,), (torch.ones_like(y),))[1]
    torch.testing.assert_close(tangent, kernel, rtol=1e-9, atol=1e-13)
    by_z = lambda y: torch.func.grad(total)(z, y)  # noqa: E731
    mixed = torch.func.jvp(by_z, (y,), (torch.ones_like(y),))[1]
    torch.testing.assert_close(mixed, one_sided(by_z, y), rtol=1e-4, atol=1e-7)
    for first, second in ((0, 1), (1, 0)):
        leaves = [z.clone().requires_grad_(), y.clone().requires_grad_()]
        (grad,) = torch.autograd.grad(total(*leaves), leaves[first], create_graph=True)
        torch.testing.assert_close(torch.autograd.grad(grad.sum(), leaves[second])[0], mixed, rtol=1e-9, atol=1e-13)
    if "clip" in member.options:
        s = torch.zeros((), dtype=torch.double, requires_grad=True)
        (by_s,) = torch.autograd.grad(member.public(z, y, reduction="sum", label_smoothing=s), s)
        torch.testing.assert_close(by_s, (kernel * (0.5 - y)).sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("beta", [2.0, 4.0])
def test_derivatives_where_sigma_is_the_target(beta):
    """(sigma(z) - y)^beta is smooth there: its derivatives of the order of beta are not 0."""
    z, y = torch.zeros(1, dtype=torch.double, requires_grad=True), torch.full((1,), 0.5, dtype=torch.double)
    value = fl.quality_focal_loss(z, y, beta).sum()
    exact = ((torch.sigmoid(z) - y) ** int(beta) * F.binary_cross_entropy_with_logits(z, y, reduction="none")).sum()
    for _ in range(int(beta)):
        (value,), (exact,) = (torch.autograd.grad(t.sum(), z, create_graph=True) for t in (value, exact))
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-14)
    assert exact.abs().item() > 1e-3


@every
def test_func_grad_at_infinite_logits(member):
    z = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf], dtype=torch.double)
    y = torch.tensor([0.0, 1, 1, 0], dtype=torch.double)
    leaf = z.clone().requires_grad_()
    (kernel,) = torch.autograd.grad(member.public(leaf, y, reduction="sum"), leaf)
    composed = torch.func.grad(lambda z: member.public(z, y, reduction="sum"))(z)
    assert not kernel.isnan().any() and not composed.isnan().any()


@every
def test_second_derivatives_at_hard_targets(member):
    """Finite in both tails, where q underflows."""
    z = torch.tensor([-800.0, -100, -30, -1, 0.5, 1, 30, 100, 800], dtype=torch.double, requires_grad=True)
    for y in (0, 1):
        loss = member.public(z, torch.full_like(z, y), reduction="sum")
        exact = member.reference(z, torch.full_like(z, y)).sum()
        for _ in range(2):
            loss, exact = (torch.autograd.grad(t.sum(), z, create_graph=True)[0] for t in (loss, exact))
            assert loss.isfinite().all()
            torch.testing.assert_close(loss[2:-2], exact[2:-2], rtol=1e-7, atol=1e-13)


@every
def test_all_options_of_the_op(member):
    """weight, pos_weight, label smoothing, mask and ignored targets, every gradient."""
    logits, target = problem((5, 4), inside=True)
    target.view(-1)[::5] = -1
    weight, pos_weight = torch.rand(5, 1, dtype=torch.double), 2 * torch.rand(4, dtype=torch.double)
    mask, kept = torch.rand(5, 4) < 0.8, target != -1
    inputs = tuple(t.requires_grad_() for t in (logits, target, weight, pos_weight))

    def ours(logits, target, weight, pos_weight):
        tensors = logits, target, weight, pos_weight, mask
        return ops.bce(*loss_arguments(*tensors, ops.SUM, 0.2, -1, None, **member.options))

    def composed(logits, target, weight, pos_weight):
        # pos_weight multiplies the positive term alone: the loss of w p y and w (1 - y), which is linear in them
        y = target.where(kept, 0.5) * 0.8 + 0.1
        both = member.reference(logits, y)
        positive = y * F.softplus(-logits)
        scale = both / plain(member, logits, y)
        return (weight * (both + (pos_weight - 1) * positive * scale)).where(mask & kept, 0).sum()

    torch.testing.assert_close(ours(*inputs), composed(*inputs), rtol=1e-11, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad(f(*inputs), inputs) for f in (ours, composed)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def plain(member, logits, y):
    """The cross entropy that is multiplied."""
    negative = F.softplus(logits)
    if member.options.get("clip"):
        negative = -torch.log1p(-(torch.sigmoid(logits) - member.options["clip"]).clamp_min(0))
    return y * F.softplus(-logits) + (1 - y) * negative


@every
def test_transforms(member):
    logits, target = problem(inside=True)
    pair = [
        lambda z, y: member.public(z, y, reduction="sum"),
        lambda z, y: member.reference(z, y).sum(),
    ]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones_like(logits))
        tangents = [forward_ad.unpack_dual(f(dual, target)).tangent for f in pair]
    torch.testing.assert_close(*tangents, rtol=1e-10, atol=0)
    func = torch.func
    for transform in (
        func.grad, func.vmap, func.hessian, lambda f: func.vmap(func.grad(f, argnums=1), in_dims=(1, 1)),
        lambda f: func.vmap(func.hessian(f)),
    ):  # fmt: skip
        ours, exact = (transform(f)(logits, target) for f in pair)
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "train",
    [
        lambda z, y: fl.quality_focal_loss(z, y, 1.5, "mean"),
        lambda z, y: fl.varifocal_loss(z, y, 0.3, 2.0, reduction="mean"),
        lambda z, y: fl.asymmetric_loss_with_logits(z, y, 4.0, 0.5, 0.1, "mean", label_smoothing=0.1),
    ],
    ids=["quality", "varifocal", "asymmetric"],
)
def test_compile(train, dynamic):
    """Exponents are constants of the one graph."""
    torch._dynamo.reset()
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


@every
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck_and_export(member):
    logits, target = problem()
    tensors, one = (logits.requires_grad_(), target, None, None, None), torch.ones((), dtype=torch.double)
    torch.library.opcheck(ops.bce, loss_arguments(*tensors, ops.MEAN, **member.options))
    torch.library.opcheck(ops.bce_with_grad, loss_arguments(*tensors, ops.SUM, **member.options))
    arguments = grad_arguments(*tensors, ops.NONE, 0.0, None, ops.LOGITS, **member.options)
    torch.library.opcheck(ops.bce_backward, (one, *arguments))

    class Loss(torch.nn.Module):
        def forward(self, z, y):
            return member.public(z, y, reduction="mean")

    module = torch.export.export(Loss(), (logits.detach(), target)).module()
    torch.testing.assert_close(module(logits.detach(), target), Loss()(logits.detach(), target))


# ---- The usual implementations ---------------------------------------------------------------------------------------


def timms(x, y, gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8):
    """What timm's AsymmetricLossMultiLabel computes."""
    p = torch.sigmoid(x)
    opposite = 1 - p
    if clip:
        opposite = (opposite + clip).clamp(max=1)
    log = y * torch.log(p.clamp(min=eps)) + (1 - y) * torch.log(opposite.clamp(min=eps))
    right = p * y + opposite * (1 - y)
    return -(log * (1 - right) ** (gamma_pos * y + gamma_neg * (1 - y))).sum()


@pytest.mark.parametrize("arguments", [(), (2, 0, 0.1), (3.5, 0.5, 0.0), (1, 1, None)], ids=str)
def test_like_timm(arguments):
    """By position, defaults included; in fp64 and away from eps, where theirs keeps its digits."""
    x, y = torch.randn(40, 6, dtype=torch.double, requires_grad=True), torch.rand(40, 6).round().double()
    for ours in (fl.asymmetric_loss_with_logits(x, y, *arguments), fl.AsymmetricLoss(*arguments)(x, y)):
        theirs = timms(x, y, *arguments)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(t, x)[0] for t in (ours, theirs)), rtol=1e-7, atol=1e-12)


def test_like_mmdet():
    """The definitions of mmdet's quality_focal_loss and varifocal_loss, dense and before they reduce."""
    z, y = torch.randn(40, 6, dtype=torch.double, requires_grad=True), torch.rand(40, 6, dtype=torch.double)
    y = torch.where(torch.rand(40, 6) < 0.7, 0, y)
    cross_entropy, p = F.binary_cross_entropy_with_logits(z, y, reduction="none"), z.sigmoid()
    varifocal_weight = y * (y > 0) + 0.75 * (p - y).abs() ** 2 * (y <= 0)
    pairs = [
        (fl.quality_focal_loss(z, y), cross_entropy * (p - y).abs() ** 2),
        (fl.varifocal_loss(z, y), cross_entropy * varifocal_weight),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
        grads = [torch.autograd.grad(t.sum(), z, retain_graph=True)[0] for t in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-13)


# ---- Options and dtypes ----------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target_dtype", [torch.bool, torch.int64, None], ids=str)
def test_dtypes(target_dtype, dtype, member):
    logits, target = torch.randn(3_000).to(dtype).requires_grad_(), torch.randint(0, 2, (3_000,))
    ours = member.public(logits, target.to(target_dtype or dtype), reduction="sum")
    (grad,) = torch.autograd.grad(ours, logits)
    wide = logits.detach().double().requires_grad_()
    exact = member.reference(wide, target).sum()
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact.detach(), rtol=2 * torch.finfo(dtype).eps, atol=0)
    (want,) = torch.autograd.grad(exact, wide)
    # beside sigma(z) = clip the power makes more of what sigma(z) lost
    torch.testing.assert_close(grad.double(), want, rtol=8 * torch.finfo(dtype).eps, atol=2e-7)


@every
def test_mask_and_ignored_targets(member):
    logits, target = torch.randn(40, 3).requires_grad_(), torch.randint(-1, 2, (40, 3))
    mask = torch.rand(40, 1) < 0.7
    kept = (mask & (target != -1)).detach()
    with torch.no_grad():
        logits[~kept] = torch.nan
    for reduction in REDUCTIONS:
        ours = member.public(logits, target, reduction=reduction, mask=mask, ignore_index=-1)
        exact = member.public(logits[kept], target[kept], reduction=reduction)
        grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, exact)]
        torch.testing.assert_close(*grads)
        assert torch.equal(grads[0][~kept], torch.zeros(int((~kept).sum())))
        torch.testing.assert_close(ours[kept] if reduction == "none" else ours, exact)


def test_weights_of_the_focal_loss():
    """weight and pos_weight, numbers and tensors, against the definition of one with them."""
    logits, target = problem((6, 5), inside=True)
    weight, pos_weight = torch.rand(6, 1, dtype=torch.double), 2 * torch.rand(5, dtype=torch.double)
    inputs = tuple(t.requires_grad_() for t in (logits, target, weight, pos_weight))

    def composed(z, y, w, p):
        q = y * torch.sigmoid(-z) + (1 - y) * torch.sigmoid(z)
        return w * (0.3 * y + 0.7 * (1 - y)) * q**2 * (p * y * F.softplus(-z) + (1 - y) * F.softplus(z))

    ours = fl.sigmoid_focal_loss(logits, target, 0.3, 2, weight=weight, pos_weight=pos_weight)
    exact = composed(*inputs)
    torch.testing.assert_close(ours, exact, rtol=1e-11, atol=0)
    for a, b in zip(*(torch.autograd.grad(t.sum(), inputs) for t in (ours, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    number = fl.sigmoid_focal_loss(logits, target, 0.3, 2, "sum", weight=2.0, pos_weight=0.5)
    two, half = torch.tensor(2.0), torch.tensor(0.5)
    torch.testing.assert_close(number, composed(logits, target, two, half).sum(), rtol=1e-11, atol=0)


# ---- Modules and errors ----------------------------------------------------------------------------------------------


def test_module():
    loss = fl.AsymmetricLoss(3.0, 0.5, 0.1, reduction="mean", pos_weight=torch.ones(4), label_smoothing=0.1)
    assert repr(loss) == (
        "AsymmetricLoss(gamma_neg=3.0, gamma_pos=0.5, clip=0.1, reduction='mean', pos_weight=[4], label_smoothing=0.1)"
    )
    assert set(loss.state_dict()) == {"pos_weight"}
    z, y = torch.randn(5, 4), torch.rand(5, 4).round()
    options = {"pos_weight": torch.ones(4), "label_smoothing": 0.1, "mask": y > 0}
    exact = fl.asymmetric_loss_with_logits(z, y, 3.0, 0.5, 0.1, "mean", **options)
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        assert same_bits(call(z, y, y > 0), exact)


def test_options_that_belong_to_different_losses():
    z = torch.ones(3)
    for options, message in (
        ({"gamma": 1.0, "beta": 1.0}, "expected one of gamma, beta and gamma_neg"),
        ({"gamma_neg": 1.0}, "expected gamma_neg, gamma_pos and clip together"),
        ({"gamma": 1.0, "iou_weighted": True}, "expected alpha with iou_weighted"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.bce(*loss_arguments(z, z, **options))


def by_target(options, z, y, weight=None, pos_weight=None, wrt=ops.TARGET):
    one = torch.ones((), dtype=z.dtype)
    return ops.bce_backward(one, *grad_arguments(z, y, weight, pos_weight, None, ops.NONE, wrt=wrt, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_target_gradient_of_what_the_margin_takes(dtype):
    """q is 0 there by the margin, not because exp(z) underflows."""
    z = torch.tensor([-10.0, -100.0, -104.0, -200.0, -800.0], dtype=dtype)
    grad = by_target({"gamma_neg": 0.01, "gamma_pos": 0.0, "clip": 0.05}, z, torch.zeros_like(z))
    assert grad.equal(torch.zeros_like(z))


@every
def test_no_weight_beside_an_infinite_one(member):
    z, y = torch.tensor([-3.0, 0.5, 3.0]).repeat(3), torch.tensor([0.0, 1.0, 0.5]).repeat_interleave(3)
    weight, infinite = torch.zeros(9), torch.full((9,), torch.inf)
    for wrt in (ops.LOGITS, ops.TARGET, ops.POS_WEIGHT):
        assert by_target(member.options, z, y, weight, infinite, wrt).count_nonzero() == 0

"""The reference against three authorities of its own: the notebook's numbers, autograd, and 50-digit arithmetic.

Every other test trusts fused_logistic.reference, so nothing here may lean on the extension.
"""

import mpmath
import pytest
import torch

from fused_logistic import reference

INF, NAN = float("inf"), float("nan")


# ---- The textbook graph ----


def notebook_graph(dtype=torch.float32):
    x = torch.tensor([1.0, 2.0], dtype=dtype)
    w = torch.tensor([2.0, 1.0], dtype=dtype, requires_grad=True)
    b = torch.tensor([1.0], dtype=dtype, requires_grad=True)
    return x, w, b, reference.composed(x, w, b, 1)


def test_notebook_numbers():
    _, w, b, nodes = notebook_graph()
    assert nodes.dL_dsigma is None
    assert nodes.dL_dz is None
    nodes.loss.backward()
    assert nodes.z.item() == 5.0
    assert f"{nodes.dL_dsigma.item():.4f}" == "-1.0067"
    assert f"{nodes.dL_dz.item():.4f}" == "-0.0067"
    assert f"{b.grad.item():.4f}" == "-0.0067"
    assert [f"{g:.4f}" for g in w.grad.tolist()] == ["-0.0067", "-0.0134"]


def test_notebook_formulas_agree_with_the_hooks():
    x, w, b, nodes = notebook_graph(torch.float64)
    nodes.loss.backward()
    y = torch.ones(1, dtype=torch.float64)
    z = nodes.z.detach()
    dL_dz = reference.grad_logits(z, y)
    torch.testing.assert_close(nodes.loss.detach(), reference.loss(z, y), rtol=1e-13, atol=0)
    torch.testing.assert_close(nodes.dL_dz, dL_dz, rtol=1e-13, atol=0)
    torch.testing.assert_close(nodes.dL_dsigma, -1 / reference.sigmoid_pair(z)[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(b.grad, dL_dz, rtol=1e-13, atol=0)
    torch.testing.assert_close(w.grad, dL_dz * x, rtol=1e-13, atol=0)


def test_composed_takes_batches_and_captures_the_latest_pass():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    w = torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_()
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    nodes = reference.composed(x, w, b, y)
    assert nodes.loss.shape == nodes.z.shape == (7,)
    nodes.loss.sum().backward(retain_graph=True)
    once = nodes.dL_dz
    torch.testing.assert_close(once, reference.grad_logits(nodes.z.detach(), y), rtol=1e-12, atol=0)
    torch.testing.assert_close(w.grad, once @ x, rtol=1e-12, atol=1e-15)
    (2.0 * nodes.loss).sum().backward()
    torch.testing.assert_close(nodes.dL_dz, 2.0 * once, rtol=0, atol=0)


def test_composed_without_gradients_registers_no_hook():
    nodes = reference.composed(torch.ones(2), torch.ones(2), torch.ones(1), 0)
    assert nodes.dL_dz is None
    assert nodes.loss.item() == pytest.approx(3.0485873, rel=1e-5)


# ---- The closed forms against autograd ----


def problem():
    """Logits of moderate size, where the naive graph keeps its digits; all differentiable, all in float64."""
    generator = torch.Generator().manual_seed(1)
    z = 6.0 * (2.0 * torch.rand(5, 4, dtype=torch.float64, generator=generator) - 1.0)
    z[0, 0] = 0.0
    y = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    y[1], y[2] = 0.0, 1.0
    w = torch.rand(5, 1, dtype=torch.float64, generator=generator) + 0.5
    p = torch.rand(4, dtype=torch.float64, generator=generator) + 0.5
    return [t.requires_grad_() for t in (z, y, w, p)]


def naive_loss(z, y, w, p, label_smoothing=0.0):
    """The definition, with log(sigma) and log(1 - sigma) as written on paper."""
    y = y * (1 - label_smoothing) + label_smoothing / 2
    sigma = 1 / (1 + torch.exp(-z))
    return w * -(p * y * torch.log(sigma) + (1 - y) * torch.log(1 - sigma))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_closed_forms_are_the_derivatives_of_the_definition(label_smoothing):
    z, y, w, p = problem()
    naive = naive_loss(z, y, w, p, label_smoothing)
    dz, dy = torch.autograd.grad(naive.sum(), (z, y), create_graph=True)
    (d2z,) = torch.autograd.grad(dz.sum(), z, retain_graph=True)
    dw, dp = torch.autograd.grad(naive.sum(), (w, p))
    with torch.no_grad():
        close = {"rtol": 1e-11, "atol": 1e-13}
        torch.testing.assert_close(reference.loss(z, y, w, p, label_smoothing), naive, **close)
        torch.testing.assert_close(reference.grad_logits(z, y, w, p, label_smoothing), dz, **close)
        torch.testing.assert_close(reference.grad_target(z, y, w, p, label_smoothing), dy, **close)
        torch.testing.assert_close(reference.second_derivative(z, y, w, p, label_smoothing), d2z, **close)
        torch.testing.assert_close(reference.grad_weight(z, y, p, label_smoothing).sum(1, keepdim=True), dw, **close)
        torch.testing.assert_close(reference.grad_pos_weight(z, y, w, label_smoothing).sum(0), dp, **close)


def test_loss_is_differentiable_to_second_order():
    inputs = tuple(problem())
    assert torch.autograd.gradcheck(reference.loss, inputs)
    assert torch.autograd.gradgradcheck(reference.loss, inputs)


def test_defaults_are_ones():
    z, y, w, p = (t.detach() for t in problem())
    one = torch.ones((), dtype=torch.float64)
    for f in (reference.loss, reference.grad_logits, reference.second_derivative, reference.grad_target):
        torch.testing.assert_close(f(z, y), f(z, y, one, one), rtol=0, atol=0)
        torch.testing.assert_close(f(z, y, w), f(z, y, w, one), rtol=0, atol=0)
        torch.testing.assert_close(f(z, y, None, p), f(z, y, one, p), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_integer_targets_are_their_values(dtype):
    z = torch.linspace(-30, 30, 13)
    y = torch.arange(13) % 2
    for f in (reference.loss, reference.grad_logits, reference.second_derivative, reference.grad_target):
        assert torch.equal(f(z, y.to(dtype)), f(z, y.float()))


def test_arguments_broadcast():
    z = torch.randn(3, 4)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])
    for f in (reference.loss, reference.grad_logits, reference.second_derivative, reference.grad_target):
        assert f(z, y).shape == (3, 4)
        assert f(y, z).shape == (3, 4)


def test_label_smoothing_out_of_range():
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 1\], got 1.5"):
        reference.loss(torch.zeros(1), torch.zeros(1), label_smoothing=1.5)


# ---- The closed forms against 50-digit arithmetic ----

# Where exp underflows or overflows, where 1 - sigma turns 0, where torch's softplus gives up its logarithm.
EXTREME = {
    torch.float64: [0.0, 1e-300, 1e-9, 0.5, 17.0, 20.5, 36.8, 50.0, 700.0, 709.9, 744.0],
    torch.float32: [0.0, 1e-30, 1e-5, 0.5, 16.7, 17.5, 20.5, 50.0, 87.0, 88.8, 103.0],
}


def truth(z, y, w, p):
    """Loss and derivatives from their definitions, with 50 digits beyond the tail's own size."""
    with mpmath.workdps(700):
        z, y, w, p = (mpmath.mpf(v) for v in (z, y, w, p))
        positive = 1 / (1 + mpmath.exp(-z))
        negative = 1 - positive
        return {
            "loss": -w * (p * y * mpmath.log(positive) + (1 - y) * mpmath.log(negative)),
            "grad_logits": w * ((1 - y) * positive - p * y * negative),
            "grad_target": -w * (p * mpmath.log(positive) - mpmath.log(negative)),
            "second_derivative": w * (p * y + 1 - y) * positive * negative,
        }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("y", [0.0, 1.0])
@pytest.mark.parametrize("name", ["loss", "grad_logits", "grad_target", "second_derivative"])
def test_extreme_logits_keep_their_digits(name, y, dtype):
    w, p = 0.75, 3.0
    info = torch.finfo(dtype)
    for magnitude in EXTREME[dtype]:
        for z in (magnitude, -magnitude):
            logits = torch.tensor([z], dtype=dtype)
            got = getattr(reference, name)(logits, torch.tensor([y], dtype=dtype), torch.tensor(w), torch.tensor(p))
            assert got.dtype == dtype
            exact = truth(logits.item(), y, w, p)[name]
            # a handful of roundings; below the smallest normal number a rounding is as large as a subnormal's spacing
            spacing = max(abs(exact) * info.eps, mpmath.mpf(info.smallest_normal) * info.eps)
            error = abs(mpmath.mpf(got.item()) - exact) / spacing
            assert error <= 6, f"{name} at z={z}, y={y}: {got.item()} instead of {mpmath.nstr(exact, 20)}"


def test_sigmoid_pair_and_softplus_in_both_tails():
    z = torch.tensor([-100.0, 100.0])
    positive, negative = reference.sigmoid_pair(z)
    assert positive.tolist() == negative.flip(0).tolist()
    assert 0 < positive[0].item() < 1e-43  # torch.sigmoid has 0 here
    assert reference.softplus(torch.tensor(30.0, dtype=torch.float64)).item() > 30.0  # F.softplus has 30


# ---- The ends of the number line ----


@pytest.mark.parametrize(
    ("z", "y", "expected_loss", "expected_gradient"),
    [
        (INF, 1.0, 0.0, 0.0),
        (-INF, 0.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0),
        (-INF, 1.0, INF, -1.0),
        (INF, 0.5, INF, 0.5),
        (NAN, 0.0, NAN, NAN),
        (NAN, 1.0, NAN, NAN),
        (0.0, NAN, NAN, NAN),
    ],
)
def test_infinities_and_nan(z, y, expected_loss, expected_gradient):
    z, y = torch.tensor([z], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(reference.loss(z, y).item(), expected_loss, **same)
    torch.testing.assert_close(reference.grad_logits(z, y).item(), expected_gradient, **same)


def test_zero_weights_silence_infinite_terms_but_not_nan():
    z = torch.tensor([INF, -INF, NAN])
    zero = torch.zeros(())
    assert reference.loss(z, torch.zeros(3), weight=zero).tolist()[:2] == [0.0, 0.0]
    assert reference.loss(z, torch.ones(3), pos_weight=zero).tolist()[:2] == [0.0, 0.0]
    assert reference.grad_pos_weight(z, torch.zeros(3)).tolist()[:2] == [0.0, 0.0]
    assert reference.grad_target(z, torch.ones(3), weight=zero).tolist()[:2] == [0.0, 0.0]
    assert reference.loss(z, torch.zeros(3), weight=zero)[2].isnan()


# ---- Focal loss ----


def test_focal_loss_is_the_published_formula():
    z, y, _, _ = (t.detach() for t in problem())
    y = y.round()
    p = torch.sigmoid(z)
    p_t = torch.where(y == 1, p, 1 - p)
    alpha_t = torch.where(y == 1, 0.25, 0.75).double()
    expected = -alpha_t * (1 - p_t) ** 2 * torch.log(p_t)
    torch.testing.assert_close(reference.sigmoid_focal_loss(z, y), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        reference.sigmoid_focal_loss(z.float(), y.bool(), alpha=None, gamma=1.5),
        -((1 - p_t) ** 1.5) * torch.log(p_t),
        rtol=1e-5,  # float32 rounds the logits, the rest is float64
        atol=0,
    )


def test_focal_loss_with_gamma_0_is_the_plain_loss():
    z, y, _, _ = (t.detach() for t in problem())
    for alpha in (None, -1.0):
        assert torch.equal(reference.sigmoid_focal_loss(z, y, alpha=alpha, gamma=0.0), reference.loss(z, y))


def test_focal_loss_keeps_the_tail():
    with mpmath.workdps(60):
        for z, y in ((40.0, 1.0), (-40.0, 0.0), (40.0, 0.0), (-300.0, 1.0)):
            p_t = 1 / (1 + mpmath.exp(-mpmath.mpf(z if y == 1 else -z)))
            exact = -(mpmath.mpf(0.25) if y == 1 else mpmath.mpf(0.75)) * (1 - p_t) ** 2 * mpmath.log(p_t)
            got = reference.sigmoid_focal_loss(torch.tensor([z]), torch.tensor([y])).item()
            assert got == pytest.approx(float(exact), rel=1e-14)
    ends = reference.sigmoid_focal_loss(torch.tensor([INF, -INF, INF]), torch.tensor([1.0, 0.0, 0.0]))
    assert ends.tolist() == [0.0, 0.0, INF]

"""Options as tensors: differentiated, per class, annealed in compiled code. Weights as numbers and as CPU scalars."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

import fused_logistic as fl
from tests.conftest import REDUCTIONS

Z = 3 * torch.randn(6, 4, dtype=torch.double)
Y = torch.rand(6, 4, dtype=torch.double).round()
SOFT = torch.rand(6, 4, dtype=torch.double)
MASK = torch.rand(6, 4) < 0.7
X, W, B = (torch.randn(*shape, dtype=torch.double) for shape in ((6, 5), (4, 5), (4,)))


def layer(value, z=Z, y=Y, **options):
    return fl.linear_binary_cross_entropy(X, W, y, linear_bias=B, label_smoothing=value, **options)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


# function of the option, of the logits and of the target
OPTIONS = {
    "gamma": lambda value, z=Z, y=Y, **options: fl.sigmoid_focal_loss(z, y, gamma=value, **options),
    "alpha": lambda value, z=Z, y=Y, **options: fl.sigmoid_focal_loss(z, y, alpha=value, **options),
    "label_smoothing": lambda value, z=Z, y=Y, **options: fl.binary_cross_entropy_with_logits(
        z, y, label_smoothing=value, **options
    ),
    "label_smoothing of the layer": layer,
}
VALUES = [torch.tensor(0.3), torch.tensor([0.1, 0.2, 0.3, 0.9]), torch.rand(6, 1)]
every_option = pytest.mark.parametrize("name", OPTIONS)


def of_each_class(name, value, reduction):
    """The same by numbers, an element after the other."""
    losses = torch.stack([
        OPTIONS[name](v.item(), reduction="none") for v in value.expand(6, 4).reshape(-1)
    ])  # fmt: skip
    losses = losses.reshape(24, 24).diagonal().reshape(6, 4)
    return losses if reduction == "none" else getattr(losses, reduction)()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", VALUES, ids=lambda v: str(list(v.shape)))
@every_option
def test_values(name, value, reduction):
    for v in (value.double(), value.double().requires_grad_()):
        torch.testing.assert_close(OPTIONS[name](v, reduction=reduction), of_each_class(name, v, reduction))


@pytest.mark.parametrize("value", VALUES, ids=lambda v: str(list(v.shape)))
@every_option
def test_derivatives(name, value):
    """To the second order, by the option, the logits and the target together, also where some elements are left out."""
    for options in ({}, {"mask": MASK}):
        if name == "label_smoothing of the layer":
            leaves = (value.double().requires_grad_(),)
        else:
            leaves = tuple(t.clone().requires_grad_() for t in (value.double(), Z, SOFT))
        assert gradcheck(lambda *t: OPTIONS[name](*t, **options), leaves, check_forward_ad=True)  # noqa: B023
        assert gradgradcheck(lambda *t: OPTIONS[name](*t, **options), leaves)  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_option
def test_derivative_of_every_transform(name, dtype):
    value = torch.tensor(0.4, dtype=dtype)
    h = 1e-4
    want = (OPTIONS[name](0.4 + h, reduction="sum") - OPTIONS[name](0.4 - h, reduction="sum")).item() / (2 * h)

    def function(v):
        return OPTIONS[name](v, reduction="sum")

    leaf = value.clone().requires_grad_()
    (backward,) = torch.autograd.grad(function(leaf), leaf)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    (of_compiled,) = torch.autograd.grad(compiled(leaf), leaf)
    found = {
        "backward": backward,
        "compiled": of_compiled,
        "grad": torch.func.grad(function)(value),
        "jvp": torch.func.jvp(function, (value,), (torch.ones_like(value),))[1],
        "vmap": torch.func.vmap(torch.func.grad(function))(value.expand(2))[1],
    }
    for way, got in found.items():
        assert got.item() == pytest.approx(want, rel=2e-2 if dtype == torch.bfloat16 else 1e-5), way


@every_option
def test_missing_labels_do_not_reach_the_option(name):
    """NaN labels that are masked out, by tensor options too."""
    labels = Y.clone()
    labels[~MASK] = torch.nan
    value = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    want, got = (OPTIONS[name](value, y=y, mask=MASK, reduction="mean") for y in (Y, labels))
    grads = [torch.autograd.grad(loss, value)[0] for loss in (want, got)]
    assert got.equal(want) and grads[0].equal(grads[1]) and grads[0] != 0


@every_option
def test_a_number_by_any_type(name):
    """A number that is a tensor, or an integer, costs and gives what the float does."""
    want = OPTIONS[name](1.0)
    for value in (1, True, torch.tensor(1.0), torch.tensor(1)):
        assert OPTIONS[name](value).equal(want)


@every_option
def test_annealed_in_compiled_code(name):
    """12 values of an option: at most one graph for the first and one for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(lambda z, value: OPTIONS[name](value, z=z), backend=counter, fullgraph=True)
    z = Z.clone().requires_grad_()
    for i in range(1, 13):
        loss, want = step(z, i / 40), OPTIONS[name](i / 40, z=z)
        torch.testing.assert_close(loss, want)
        if want.requires_grad:
            args = (z, torch.ones_like(want))
            torch.testing.assert_close(torch.autograd.grad(loss, *args), torch.autograd.grad(want, *args))
    assert counter.frame_count <= 2


def test_a_constant_option_is_compiled_to_the_kernel():
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    step = torch.compile(lambda z: fl.binary_cross_entropy_with_logits(z, Y, label_smoothing=0.1), backend=backend)
    step(Z)
    assert [name for name in seen if name not in ("L_z_", "output", "G_Y_")] == ["fused_logistic.bce.default"]


@pytest.mark.parametrize("module", [fl.BCEWithLogitsLoss, lambda **o: fl.LinearBCEWithLogitsLoss(5, 4, **o).double()])
def test_a_module_learns_its_option(module):
    head = module(label_smoothing=torch.nn.Parameter(torch.tensor(0.2)))
    assert len([p for name, p in head.named_parameters() if name == "label_smoothing"]) == 1
    head(Z if type(head) is fl.BCEWithLogitsLoss else X, Y).backward()
    assert head.label_smoothing.grad.item() != 0


WEIGHTED = {
    "loss": lambda **w: fl.binary_cross_entropy_with_logits(Z, Y, **w),
    "layer": lambda **w: fl.linear_binary_cross_entropy(X, W, Y, **w),
    "module": lambda **w: fl.BCEWithLogitsLoss(**w)(Z, Y),
    "module of the layer": lambda **w: fl.LinearBCEWithLogitsLoss(5, 4, dtype=torch.double, **w)(X, Y),
}


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("function", WEIGHTED)
def test_weights_as_numbers(function, name):
    def loss(value):
        if "module" in function:
            torch.manual_seed(0)
        return WEIGHTED[function](**{name: value})

    for number in (2.5, 3):
        torch.testing.assert_close(loss(number), loss(torch.tensor(float(number), dtype=torch.double)), rtol=0, atol=0)
    if "module" not in function:
        compiled = torch.compile(WEIGHTED[function], backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**{name: 2.5}), loss(2.5))


def test_a_number_of_a_module_stays_one():
    """No cast, no device and no initialisation changes it; it is no part of the state_dict."""
    with torch.device("meta"):
        head = fl.LinearBCEWithLogitsLoss(5, 4, weight=0.1, pos_weight=1e5)
    head = head.to_empty(device="cpu")
    head.reset_parameters()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        head.to(dtype)
        assert (head.loss_weight, head.pos_weight) == (0.1, 1e5) and list(head.state_dict()) == ["weight", "bias"]
        assert head(X.to(dtype), Y).isfinite()
    criterion = fl.BCEWithLogitsLoss(0.1, pos_weight=301.0)
    assert not criterion.state_dict() and "pos_weight=301.0" in repr(criterion)
    assert criterion(Z, Y).equal(fl.binary_cross_entropy_with_logits(Z, Y, 0.1, pos_weight=301.0))
    assert copy.deepcopy(criterion)(Z, Y).equal(criterion(Z, Y))


@pytest.mark.parametrize("value", [-0.1, 1.7, float("inf"), float("nan")])
def test_the_range_of_a_number_in_compiled_code(value):
    """Of a constant, and of one that changes."""

    def step(s):
        return fl.binary_cross_entropy_with_logits(Z, Y, label_smoothing=s)

    compiled = torch.compile(step, backend="aot_eager")
    for s in (0.1, 0.2, 0.3):
        compiled(s)
    with pytest.raises((ValueError, RuntimeError), match="label_smoothing between 0 and 1"):
        compiled(value)
    with pytest.raises((ValueError, RuntimeError), match="label_smoothing between 0 and 1"):
        torch.compile(lambda: step(value), backend="aot_eager")()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_an_alpha_of_minus_1_is_none(requires_grad):
    want = fl.sigmoid_focal_loss(Z, Y, alpha=-1)
    got = fl.sigmoid_focal_loss(Z, Y, alpha=torch.tensor(-1.0, requires_grad=requires_grad))
    torch.testing.assert_close(got, want)
    per_class = fl.sigmoid_focal_loss(Z, Y, alpha=torch.tensor([-1.0, 0.3, -1.0, 0.3]))
    torch.testing.assert_close(per_class[:, ::2], want[:, ::2])


def test_numbers_of_numpy():
    numpy = pytest.importorskip("numpy")
    got = fl.sigmoid_focal_loss(Z, Y, alpha=numpy.float32(0.25), gamma=numpy.int64(2), ignore_index=numpy.int64(1))
    assert got.equal(fl.sigmoid_focal_loss(Z, Y, alpha=0.25, gamma=2, ignore_index=1))
    weight = numpy.float64(0.1)
    assert fl.binary_cross_entropy_with_logits(Z, Y, weight).equal(fl.binary_cross_entropy_with_logits(Z, Y, 0.1))


def test_a_cpu_scalar_beside_logits_elsewhere():
    """As torch takes it; shown on meta tensors, of which any device will do."""
    z, y = Z.to("meta"), Y.to("meta")
    for name in ("weight", "pos_weight"):
        assert fl.binary_cross_entropy_with_logits(z, y, **{name: torch.tensor(2.0)}).is_meta
        with pytest.raises(RuntimeError, match=f"expected {name} on meta, got cpu"):
            fl.binary_cross_entropy_with_logits(z, y, **{name: torch.ones(4)})

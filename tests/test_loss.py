"""The public functions against torch's own, in shape, layout, dtype and value."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fused_logistic as fl
from fused_logistic import reference
from tests.conftest import DTYPES, REDUCTIONS
from tests.properties import examples


def both(logits, target, **options):
    """Loss and gradients of all floating operands that require one, by ours and by torch's."""
    results = []
    for function in (fl.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits):
        operands = {"input": logits, "target": target, **options}
        leaves = {k: v for k, v in operands.items() if isinstance(v, torch.Tensor) and v.requires_grad}
        loss = function(**operands)
        factor = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype, device=loss.device).reshape(loss.shape)
        results.append((loss.detach(), *torch.autograd.grad(loss, list(leaves.values()), factor)))
    return results


def assert_same(ours, torchs, rtol=1e-12, atol=1e-14):
    for a, b in zip(ours, torchs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (70,), (1025,), (3, 5), (20_000,), (2, 3, 4, 5), (0,), (3, 0, 2)])
def test_like_torch(shape, reduction, device):
    logits = (3 * torch.randn(shape, dtype=torch.double, device=device)).requires_grad_()
    target = torch.rand(shape, dtype=torch.double, device=device).requires_grad_()
    assert_same(*both(logits, target, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "weight,pos_weight",
    list(itertools.product([None, (), (5,), (4, 1, 1), (3, 1), (4, 3, 5), (1, 3, 1), (4, 1, 5)], repeat=2)),
    ids=str,
)
def test_weights_broadcast_like_torch(weight, pos_weight, reduction, device):
    make = lambda shape: None if shape is None else torch.rand(shape, dtype=torch.double, device=device)  # noqa: E731
    logits = (3 * torch.randn(4, 3, 5, dtype=torch.double, device=device)).requires_grad_()
    target = torch.rand(4, 3, 5, dtype=torch.double, device=device).requires_grad_()
    assert_same(*both(logits, target, weight=make(weight), pos_weight=make(pos_weight), reduction=reduction))


LAYOUTS = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].reshape(t.shape),
    "flipped strides": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target_layout", LAYOUTS)
@pytest.mark.parametrize("logits_layout", LAYOUTS)
def test_any_layout(logits_layout, target_layout, reduction, device):
    shape = (3, 4, 5, 6)
    logits = LAYOUTS[logits_layout](torch.randn(shape, dtype=torch.double, device=device)).detach().requires_grad_()
    target = LAYOUTS[target_layout](torch.rand(shape, dtype=torch.double, device=device))
    weight = torch.rand(4, 5, dtype=torch.double, device=device).t()[:, :, None].transpose(0, 1)
    assert_same(*both(logits, target, pos_weight=weight, reduction=reduction))


@pytest.mark.parametrize("shape", [(3_000,), (2_000, 1), (1,), ()])
@pytest.mark.parametrize("name", ["weight", "pos_weight", "target"])
def test_broadcast_operands_are_never_expanded(name, shape):
    """24 MB of logits: whatever torch allocates beyond a few scalars would show in its profiler."""
    operands = {"input": torch.randn(2_000, 3_000), "target": torch.rand(2_000, 3_000)}
    operands[name] = torch.rand(shape).expand(2_000, 3_000) if name == "target" else torch.rand(shape)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiled:
        loss = fl.binary_cross_entropy_with_logits(**operands)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profiled.key_averages()) < 100_000
    exact = F.binary_cross_entropy_with_logits(**{k: v.double() for k, v in operands.items()})
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("logits_dtype,target_dtype", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_dtypes_are_torchs(logits_dtype, target_dtype, autocast):
    logits = torch.randn(50).to(logits_dtype).requires_grad_()
    target = torch.rand(50).to(target_dtype)
    for reduction in REDUCTIONS:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            ours = fl.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
            torchs = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
        exact = reference.loss(logits.detach().double(), target.double())
        exact = exact if reduction == "none" else getattr(exact, reduction)()
        assert ours.dtype == torchs.dtype
        lowest = max(
            torch.finfo(d).eps
            for d in (ours.dtype, torch.float32 if torch.float64 not in (logits_dtype, target_dtype) else torch.float64)
        )
        torch.testing.assert_close(ours.detach().double(), exact, rtol=2 * lowest, atol=0)
        (grad,) = torch.autograd.grad(ours.sum(), logits)
        assert grad.dtype == logits_dtype and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("logits_dtype", DTYPES, ids=str)
def test_integer_targets(dtype, logits_dtype, device):
    logits = (3 * torch.randn(2_049, device=device)).to(logits_dtype).requires_grad_()
    target = torch.randint(0, 2, (2_049,), device=device).to(dtype)
    results = []
    for y in (target, target.to(logits_dtype)):
        loss = fl.binary_cross_entropy_with_logits(logits, y)
        results.append((loss, *torch.autograd.grad(loss, logits)))
    assert results[0][0].dtype == logits_dtype
    assert_same(*results, rtol=0, atol=0)


@examples(60)
@given(
    shape=st.lists(st.integers(1, 6), max_size=4),
    keep=st.lists(st.booleans(), min_size=4, max_size=4),
    reduction=st.sampled_from(REDUCTIONS),
    seed=st.integers(0, 1000),
)
def test_random_broadcasts(shape, keep, reduction, seed):
    generator = torch.Generator().manual_seed(seed)
    rand = lambda s: torch.rand(s, dtype=torch.double, generator=generator)  # noqa: E731
    logits = (8 * rand(shape) - 4).requires_grad_()
    weight_shape = [n if k else 1 for n, k in zip(shape, keep, strict=False)]
    assert_same(
        *both(logits, rand(shape), weight=rand(weight_shape), pos_weight=rand(weight_shape[1:]), reduction=reduction)
    )


@pytest.mark.parametrize("size_average,reduce", [(True, None), (False, True), (True, True), (None, False)])
def test_deprecated_reductions(size_average, reduce):
    logits, target = torch.randn(5), torch.rand(5)
    with pytest.warns(UserWarning, match="deprecated"):
        ours = fl.binary_cross_entropy_with_logits(logits, target, None, size_average, reduce)
    with pytest.warns(UserWarning, match="deprecated"):
        torchs = F.binary_cross_entropy_with_logits(logits, target, None, size_average, reduce)
    torch.testing.assert_close(ours, torchs)


Z, Y, X, W = torch.randn(5, 3), torch.rand(5, 3), torch.randn(5, 4), torch.randn(3, 4)
TAKES_A_REDUCTION = {
    "function": lambda reduction: fl.binary_cross_entropy_with_logits(Z, Y, reduction=reduction),
    "module": lambda reduction: fl.BCEWithLogitsLoss(reduction=reduction)(Z, Y),
    "focal": lambda reduction: fl.sigmoid_focal_loss(Z, Y, reduction=reduction),
    "layer": lambda reduction: fl.linear_binary_cross_entropy(X, W, Y, reduction=reduction),
    "layer's module": lambda reduction: fl.LinearBCEWithLogitsLoss(4, 3, reduction=reduction)(X, Y),
}


@pytest.mark.parametrize("name", TAKES_A_REDUCTION)
def test_the_mean_by_its_first_name(name):
    """torch 0.4 called it so, and torch takes it to this day."""
    torch.manual_seed(0)
    want = TAKES_A_REDUCTION[name]("mean")
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="reduction='elementwise_mean' is deprecated"):
        assert torch.equal(TAKES_A_REDUCTION[name]("elementwise_mean"), want)
    torch._dynamo.reset()
    torch.manual_seed(0)
    compiled = torch.compile(TAKES_A_REDUCTION[name], fullgraph="module" not in name, backend="eager")
    torch.testing.assert_close(compiled("elementwise_mean"), want)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_module_is_torchs(reduction):
    options = {"weight": torch.rand(4), "pos_weight": torch.rand(3, 1), "reduction": reduction}
    ours, torchs = fl.BCEWithLogitsLoss(**options), torch.nn.BCEWithLogitsLoss(**options)
    torchs.load_state_dict(ours.state_dict())
    logits, target = torch.randn(3, 4), torch.rand(3, 4)
    torch.testing.assert_close(ours(logits, target), torchs(logits, target))
    assert isinstance(ours, torch.nn.BCEWithLogitsLoss)
    assert copy.deepcopy(ours.half()).weight.dtype == torch.float16


def test_tensor_subclasses_are_asked():
    """__torch_function__ sees our function, as it sees torch's."""
    seen = []

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    logits = torch.randn(3).as_subclass(Logged)
    loss = fl.binary_cross_entropy_with_logits(logits, torch.rand(3))
    assert fl.binary_cross_entropy_with_logits in seen and isinstance(loss, Logged)


@pytest.mark.slow
def test_more_than_2_to_31_elements():
    """int8 targets and bf16 logits, both expanded nowhere: 64-bit indices everywhere (13 GB)."""
    n = 2**31 + 5
    logits = torch.zeros(n, dtype=torch.bfloat16)
    logits[-1] = 3
    target = torch.zeros(1, dtype=torch.bool).expand(n)
    with torch.no_grad():
        total = fl.binary_cross_entropy_with_logits(logits, target, reduction="sum", weight=torch.tensor(1.0)).item()
    expected = (n - 1) * torch.tensor(2.0).log().double().item() + F.softplus(torch.tensor(3.0).double()).item()
    assert total == pytest.approx(expected, rel=2**-8)  # the sum is rounded to bf16

"""The straight way to a kernel: what is unusual about an argument, or looks on, is found out before it is taken."""

import pytest
import torch
from conftest import same_bits
from torch.utils._python_dispatch import TorchDispatchMode

import fused_logistic as fl
from fused_logistic import ops

REDUCTIONS = ["none", "mean", "sum"]


def negated(values):
    """The same numbers as a view whose memory has the opposite signs, as of a conjugate's imaginary part; dense, for
    what copies it would resolve it."""
    view = torch._neg_view(-values)
    assert view.is_neg() and torch.equal(view, values)
    return view


def results(reduction, logits, target, weight=None, pos_weight=None):
    given = [t if t is None else t.detach().requires_grad_() for t in (logits, target, weight, pos_weight)]
    loss = fl.binary_cross_entropy_with_logits(*given[:3], pos_weight=given[3], reduction=reduction)
    return loss, *torch.autograd.grad(loss.sum() * 0.5, [t for t in given if t is not None])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("which", range(4), ids=["input", "target", "weight", "pos_weight"])
def test_negated_views(which, reduction):
    plain = [torch.randn(4, 3), torch.rand(4, 3), torch.rand(4, 3) + 0.5, torch.rand(3) + 0.5]
    given = [negated(t) if i == which else t for i, t in enumerate(plain)]
    for ours, expected in zip(results(reduction, *given), results(reduction, *plain), strict=True):
        assert same_bits(ours.resolve_neg(), expected)
    with torch.no_grad():
        given, plain = (
            fl.binary_cross_entropy_with_logits(*t[:3], pos_weight=t[3], reduction=reduction) for t in (given, plain)
        )
    assert same_bits(given, plain)


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(str(op))
        return op(*args, **(kwargs or {}))


def test_modes_and_profilers_see_the_ops():
    logits, target = torch.randn(3, requires_grad=True), torch.rand(3)
    with Recording() as recording:
        (fl.binary_cross_entropy_with_logits(logits, target) * 0.5).backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        fl.binary_cross_entropy_with_logits(logits, target)
        with torch.no_grad():
            fl.binary_cross_entropy_with_logits(logits, target)
    assert "fused_logistic.bce_with_grad.default" in recording.names
    assert {"fused_logistic::bce_with_grad", "fused_logistic::bce"} <= {e.key for e in profiled.key_averages()}


@pytest.mark.parametrize(
    "unusual",
    [
        torch.empty(3, device="meta"),
        torch.rand(3).to_sparse(),
        torch.rand(3).to_mkldnn(),
        torch._efficientzerotensor(3),
        torch.nested.nested_tensor([torch.rand(3)]),
    ],
    ids=["meta", "sparse", "mkldnn", "zero", "nested"],
)
@pytest.mark.parametrize("which", [0, 1], ids=["input", "target"])
def test_what_is_no_plain_memory(which, unusual):
    """By the straight way what it is by the dispatcher's, errors too."""
    given = [torch.randn(3), torch.rand(3)]
    given[which] = unusual
    arguments = *given, None, None, None, None, ops.SUM, torch.float32
    outcomes = []
    for call in (ops.call_loss, ops.call):
        try:
            outcomes.append(call(ops.bce, *arguments))
        except (RuntimeError, NotImplementedError) as error:
            outcomes.append(str(error))
    straight, asked = outcomes
    assert straight == asked if isinstance(asked, str) else asked.is_meta or same_bits(straight, asked)


def test_zeros_without_memory_behind_the_loss():
    """As the derivative of sgn hands them out."""
    logits = torch.randn(5, requires_grad=True)
    fl.binary_cross_entropy_with_logits(logits, torch.rand(5)).sgn().backward()
    assert torch.equal(logits.grad, torch.zeros(5))
    zero = torch._efficientzerotensor((), dtype=torch.float64)
    assert fl.binary_cross_entropy_with_logits(torch.zeros(3), torch.rand(3), normalizer=zero).item() == torch.inf


@pytest.mark.parametrize("which", range(4), ids=["input", "target", "weight", "pos_weight"])
def test_what_a_transform_left_behind(which):
    given = [torch.randn(4, 3), torch.rand(4, 3), torch.rand(4, 3) + 0.5, torch.rand(3) + 0.5]
    expected = fl.binary_cross_entropy_with_logits(*given[:3], pos_weight=given[3])
    left = []
    torch.func.grad(lambda t: left.append(t) or t.sum())(given[which])
    given[which] = left[0]
    assert same_bits(fl.binary_cross_entropy_with_logits(*given[:3], pos_weight=given[3]), expected)


def test_both_ways_are_taken(monkeypatch):
    """The straight one by plain calls, the other where something looks on: else the tests above would compare one."""
    taken = []
    backend_of = ops._backend_of
    monkeypatch.setattr(ops, "_backend_of", lambda args: taken.append(backend_of(args)) or taken[-1])
    logits, target = torch.randn(3, requires_grad=True), torch.rand(3)
    fl.binary_cross_entropy_with_logits(logits, target)
    with Recording():
        fl.binary_cross_entropy_with_logits(logits, target)
    fl.binary_cross_entropy_with_logits(negated(torch.ones(3)), target)
    assert [backend is not None for backend in taken] == [True, False]


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, MemoryError])
def test_what_a_hook_raises_is_raised_once(kind):
    """A second attempt would call it again."""
    raised = []

    def pack(tensor):
        raised.append(kind("by a hook"))
        raise raised[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), pytest.raises(kind) as caught:
        fl.binary_cross_entropy_with_logits(torch.randn(3, requires_grad=True), torch.rand(3))
    assert [caught.value] == raised


def test_what_a_mode_raises_keeps_its_cause():
    class Failing(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            raise RuntimeError("mine") from KeyError("the cause")

    with Failing(), pytest.raises(RuntimeError, match="mine") as caught:
        fl.binary_cross_entropy_with_logits(torch.randn(3, requires_grad=True), torch.rand(3))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_deprecated_name_warns_once():
    with pytest.warns(UserWarning, match="deprecated") as warned:
        torch.func.grad(lambda z: fl.binary_cross_entropy_with_logits(z, torch.rand(3), reduction="elementwise_mean"))(
            torch.randn(3)
        )
    assert len(warned) == 1

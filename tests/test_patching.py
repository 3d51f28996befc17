"""fl.patch(): torch's function replaced by ours, nested, out of order, in other modules, compiled; and put back."""

import threading
import types

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl

TORCHS = F.binary_cross_entropy_with_logits
OURS = fl.binary_cross_entropy_with_logits

# At this logit torch's loss in fp32 is 0 and ours is right, so a value tells which of them computed it.
TAIL = torch.tensor([-20.0]), torch.tensor([0.0])


def is_ours(loss):
    value = loss(*TAIL).item()
    assert value == 0 or value == pytest.approx(2.0611536e-9, rel=1e-6)
    return value != 0


@pytest.fixture(autouse=True)
def _torchs_function_is_back():
    assert F.binary_cross_entropy_with_logits is TORCHS
    yield
    assert F.binary_cross_entropy_with_logits is TORCHS


def test_the_block_is_ours_and_the_rest_is_torchs():
    criterion = torch.nn.BCEWithLogitsLoss()
    assert not is_ours(criterion)
    with fl.patch() as handle:
        assert handle.active
        assert F.binary_cross_entropy_with_logits is OURS
        assert is_ours(criterion)
        assert is_ours(torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])))
    assert not handle.active
    assert not is_ours(criterion)


def test_as_a_function():
    handle = fl.patch()
    assert is_ours(torch.nn.BCEWithLogitsLoss())
    handle.undo()
    handle.undo()
    assert F.binary_cross_entropy_with_logits is TORCHS
    with pytest.raises(RuntimeError, match="is undone"), handle:
        pass


def test_an_exception_ends_the_block():
    with pytest.raises(KeyError), fl.patch():
        raise KeyError


def test_nested():
    with fl.patch():
        with fl.patch():
            assert F.binary_cross_entropy_with_logits is OURS
        assert F.binary_cross_entropy_with_logits is OURS


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_undone_in_any_order(order):
    handles = [fl.patch() for _ in range(3)]
    for i in order:
        assert F.binary_cross_entropy_with_logits is OURS
        handles[i].undo()


def their_module(**names):
    module = types.ModuleType("their_losses")
    vars(module).update(names)
    return module


def test_a_module_that_imported_the_function_by_name():
    module = their_module(bce=TORCHS, again=TORCHS, other=F.binary_cross_entropy)
    with fl.patch():
        assert module.bce is TORCHS  # as documented
    first = fl.patch(module)
    second = fl.patch(module, module)
    assert module.bce is OURS and module.again is OURS and module.other is F.binary_cross_entropy
    first.undo()
    assert module.bce is OURS
    second.undo()
    assert module.bce is TORCHS and module.again is TORCHS


def test_a_module_without_the_name_is_an_error():
    with pytest.raises(ValueError, match="expected modules that imported .* got their_losses"):
        fl.patch(their_module(bce=F.binary_cross_entropy))
    with pytest.raises(TypeError, match="expected modules, got str"):
        fl.patch("torchvision.ops.focal_loss")


def test_somebody_elses_patch_is_left_alone():
    handle = fl.patch()

    def theirs(*args):
        return OURS(*args)

    F.binary_cross_entropy_with_logits = theirs
    try:
        with pytest.warns(RuntimeWarning, match="replaced by somebody else"):
            handle.undo()
        assert F.binary_cross_entropy_with_logits is theirs
        with fl.patch():
            assert F.binary_cross_entropy_with_logits is OURS
        assert F.binary_cross_entropy_with_logits is theirs
    finally:
        F.binary_cross_entropy_with_logits = TORCHS


def test_threads():
    """The same for all threads; patches made and undone in many at once leave nothing behind."""
    seen = []
    with fl.patch():
        thread = threading.Thread(target=lambda: seen.append(F.binary_cross_entropy_with_logits))
        thread.start()
        thread.join()
    assert seen == [OURS]

    def work():
        for _ in range(200):
            with fl.patch():
                seen.append(F.binary_cross_entropy_with_logits)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 801 and set(seen) == {OURS}


def focal_loss(inputs, targets, alpha=0.25, gamma=2.0):
    """In the style of the vision libraries: it calls F's function for the cross entropy."""
    p = torch.sigmoid(inputs)
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    return ((alpha * targets + (1 - alpha) * (1 - targets)) * cross_entropy * (1 - p_t) ** gamma).mean()


def test_a_loss_that_calls_torchs_function():
    logits, target = torch.randn(64, dtype=torch.double), torch.rand(64, dtype=torch.double).round()
    logits.requires_grad_()
    (want,) = torch.autograd.grad(focal_loss(logits, target), logits)
    with fl.patch():
        (got,) = torch.autograd.grad(focal_loss(logits, target), logits)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_compiled_code_notices_the_patch():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return graph

    criterion = torch.nn.BCEWithLogitsLoss()
    compiled = torch.compile(lambda z, y: criterion(z * 1, y), backend=backend, fullgraph=True)
    assert not is_ours(compiled)
    with fl.patch():
        assert is_ours(compiled)
    assert not is_ours(compiled)
    assert len(graphs) == 2
    with fl.patch():
        z, y = torch.randn(5, requires_grad=True), torch.rand(5)
        compiled(z, y).backward()
        torch.testing.assert_close(z.grad, (z.detach().sigmoid() - y) / 5)


def test_traced_graphs():
    with fl.patch():
        traced = torch.fx.symbolic_trace(torch.nn.BCEWithLogitsLoss())
        exported = torch.export.export(torch.nn.BCEWithLogitsLoss(), TAIL)
    assert is_ours(traced)
    assert is_ours(exported.module())

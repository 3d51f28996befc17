"""fl.patch(): torch's function replaced by ours, nested, out of order, in other modules, compiled; and put back."""

import asyncio
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from patches import OURS, TAIL, TORCHS, is_ours, torchs_function_is_back  # noqa: F401 (a fixture)

import fused_logistic as fl

ROOT = Path(__file__).parent.parent


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


def their_module(kind=types.ModuleType, **names):
    module = kind("their_losses")
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


def test_what_cannot_be_patched_leaves_nothing_patched():
    class ReadOnly(types.ModuleType):
        def __setattr__(self, name, value):
            raise AttributeError("read-only")

    module = their_module(bce=TORCHS)
    with pytest.raises(ValueError, match="expected modules that imported .* got their_losses"):
        fl.patch(module, their_module(bce=F.binary_cross_entropy))
    with pytest.raises(TypeError, match="expected modules, got str$"):
        fl.patch(module, "torchvision.ops.focal_loss")
    with pytest.raises(AttributeError, match="read-only"):
        fl.patch(module, their_module(ReadOnly, bce=TORCHS))
    assert module.bce is TORCHS and F.binary_cross_entropy_with_logits is TORCHS
    with fl.patch():  # what failed has not ended another one
        with pytest.raises(AttributeError, match="read-only"):
            fl.patch(their_module(ReadOnly, bce=TORCHS))
        assert F.binary_cross_entropy_with_logits is OURS


def test_a_module_that_was_imported_under_a_patch():
    module = their_module(bce=OURS)
    with fl.patch(module):
        assert is_ours(module.bce)


# ---- As a decorator --------------------------------------------------------------------------------------------------


def test_decorated_function():
    handle = fl.patch()

    @handle
    def losses(depth):
        """Theirs."""
        nested = losses(depth - 1) if depth else []
        return [*nested, is_ours(F.binary_cross_entropy_with_logits)]

    assert not handle.active and F.binary_cross_entropy_with_logits is TORCHS
    for _ in range(2):
        assert losses(2) == [True] * 3
        assert F.binary_cross_entropy_with_logits is TORCHS
    assert losses.__name__ == "losses" and losses.__doc__ == "Theirs."
    with fl.patch():
        losses(0)
        assert F.binary_cross_entropy_with_logits is OURS


def test_decorated_for_modules_and_methods():
    module = their_module(bce=TORCHS)

    class Trainer:
        @fl.patch(module)
        def step(self, fails):
            assert is_ours(module.bce) and is_ours(F.binary_cross_entropy_with_logits)
            if fails:
                raise KeyError

    assert module.bce is TORCHS
    Trainer().step(False)
    with pytest.raises(KeyError):
        Trainer().step(True)
    assert module.bce is TORCHS


def test_decorated_generator_is_patched_while_it_runs():
    @fl.patch()
    def generator():
        for _ in range(2):
            yield is_ours(F.binary_cross_entropy_with_logits)
        return "done"

    running = generator()
    for _ in range(2):
        assert next(running)
        assert F.binary_cross_entropy_with_logits is TORCHS
    with pytest.raises(StopIteration, match="done"):
        next(running)


def test_what_cannot_be_decorated():
    async def coroutine():
        pass

    async def asynchronous_generator():
        yield

    for what, got in (
        (coroutine, "got a coroutine function"),
        (asynchronous_generator, "got a coroutine function"),
        (torch.nn.Module, "got <class"),
        (3, "got 3"),
    ):
        with pytest.raises(TypeError, match=f"patch: expected a function .* to decorate, {got}"):
            fl.patch()(what)
        assert F.binary_cross_entropy_with_logits is TORCHS
    with pytest.raises(TypeError, match=r"patch: expected modules, got function .*@patch\(\), with parentheses"):

        @fl.patch
        def loss():
            pass

    async def with_a_block():
        with fl.patch():
            return is_ours(F.binary_cross_entropy_with_logits)

    assert asyncio.run(with_a_block())


# ---- Beside others ---------------------------------------------------------------------------------------------------


def test_somebody_elses_patch_is_left_alone():
    handle = fl.patch()

    def theirs(*args):
        return fl.binary_cross_entropy_with_logits(*args)

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


@pytest.mark.parametrize("first", ["compiled", "patched"])
def test_compiled_in_a_fresh_process(first):
    """Dynamo is imported under the patch or before it."""
    code = """
import sys, torch, fused_logistic as fl
criterion, (z, y) = torch.nn.BCEWithLogitsLoss(), (torch.tensor([-20.0]), torch.tensor([0.0]))
compiled = torch.compile(lambda z, y: criterion(z * 1, y), fullgraph=True, backend="aot_eager")
assert sys.argv[1] == "patched" or compiled(z, y) == 0
handle = fl.patch()
assert compiled(z, y) > 0 and criterion(z, y) > 0
bernoulli = torch.compile(lambda z, y: torch.distributions.Bernoulli(logits=z).log_prob(y), backend="aot_eager")
assert -1e-8 < bernoulli(z, y) <= 0
handle.undo()
assert compiled(z, y) == 0
decorated = torch.compile(fl.patch()(lambda z, y: criterion(z * 2, y)), backend="aot_eager")
assert decorated(z, y) > 0 and compiled(z, y) == 0 and fl.patch()(compiled)(z, y) > 0
"""
    run = subprocess.run([sys.executable, "-c", code, first], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_traced_graphs():
    with fl.patch():
        traced = torch.fx.symbolic_trace(torch.nn.BCEWithLogitsLoss())
        exported = torch.export.export(torch.nn.BCEWithLogitsLoss(), TAIL)
    assert is_ours(traced)
    assert is_ours(exported.module())

"""fl.patch(): torch's function replaced by ours, nested, out of order, in other modules, compiled; and put back."""

import asyncio
import copy
import functools
import inspect
import io
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl
from fused_logistic import patching

ROOT = Path(__file__).parent.parent
TORCHS = F.binary_cross_entropy_with_logits
OURS = patching.binary_cross_entropy_with_logits  # what F's name holds

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
    assert F.binary_cross_entropy_with_logits is TORCHS and not patching._places
    assert (TORCHS.__module__, TORCHS.__qualname__) == ("torch.nn.functional", "binary_cross_entropy_with_logits")


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


# ---- Whoever overrides torch's function, and pickle ------------------------------------------------------------------


class Overrides(torch.Tensor):
    """As torch's documentation has it: a table keyed by torch's functions."""

    TABLE = {TORCHS: lambda *args, **kwargs: (args, kwargs)}

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in cls.TABLE:
            return cls.TABLE[function](*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_that_overrides_torchs_function():
    plain, other = torch.randn(3), torch.rand(3).as_subclass(Overrides)
    criterion = torch.nn.BCEWithLogitsLoss(reduction="sum")
    for z, y in ((plain, other), (other, plain)):
        want = criterion(z, y)
        with fl.patch():
            got = criterion(z, y)
            assert isinstance(F.binary_cross_entropy_with_logits(z, y, label_smoothing=0.1), torch.Tensor)  # not theirs
        assert [id(a) for a in got[0]] == [id(a) for a in want[0]] and got[1] == want[1]
    criterion = torch.nn.BCEWithLogitsLoss(pos_weight=other)
    with fl.patch():
        assert isinstance(criterion(plain, plain), tuple)


def test_torchs_function_by_another_name_asks_the_subclass_too():
    """It asks by what its own module has under its name: ours."""
    with fl.patch():
        assert isinstance(TORCHS(torch.rand(3).as_subclass(Overrides), torch.rand(3)), tuple)


def test_a_table_made_under_the_patch():
    with fl.patch():
        table = {F.binary_cross_entropy_with_logits: 1}
        assert table[TORCHS] == 1
    assert table[F.binary_cross_entropy_with_logits] == 1


def test_a_mode_that_overrides_torchs_function():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function == TORCHS and function is F.binary_cross_entropy_with_logits:
                return "theirs"
            return function(*args, **(kwargs or {}))

    criterion = torch.nn.BCEWithLogitsLoss()
    with Mode():
        assert criterion(*TAIL) == "theirs"
        with fl.patch():
            assert criterion(*TAIL) == "theirs"
            assert fl.binary_cross_entropy_with_logits(*TAIL) != "theirs"


def test_who_overrides_something_else_is_served():
    class Subclass(torch.Tensor):
        pass

    criterion, (z, y) = torch.nn.BCEWithLogitsLoss(), TAIL
    with fl.patch():
        with torch.device("cpu"):  # a TorchFunctionMode
            assert is_ours(criterion)
        loss = criterion(z.as_subclass(Subclass), y)
        assert isinstance(loss, Subclass) and loss.item() > 0


def pickled(value):
    torch.save(value, file := io.BytesIO())
    file.seek(0)
    return [pickle.loads(pickle.dumps(value)), torch.load(file, weights_only=False), copy.deepcopy(value)]


def test_torchs_function_can_be_pickled():
    before = functools.partial(TORCHS, reduction="sum")
    everywhere = [torch.distributions.bernoulli, torch.distributions.geometric]
    for modules in ([], everywhere[:1], everywhere):
        with fl.patch(*modules):
            for loaded in (*pickled(before), *pickled(TORCHS)):
                assert getattr(loaded, "func", loaded) is TORCHS
            assert b"fused_logistic" not in pickle.dumps(TORCHS)
    with fl.patch(*everywhere, torch.distributions.continuous_bernoulli):
        assert all(loaded.func is TORCHS for loaded in pickled(before))
    handles = [fl.patch(), fl.patch(torch.distributions.bernoulli)]
    for handle in handles:
        assert pickle.loads(pickle.dumps(TORCHS)) is TORCHS
        handle.undo()


def test_what_is_made_under_the_patch_can_be_pickled():
    with fl.patch():
        values = functools.partial(F.binary_cross_entropy_with_logits, reduction="sum"), torch.nn.BCEWithLogitsLoss()
        loaded = pickled(values)
    for partial, criterion in (*loaded, *pickled(values)):
        assert partial.func is OURS and is_ours(partial)
        assert not is_ours(criterion)
    signature = inspect.signature(OURS).parameters
    assert list(signature)[:7] == list(inspect.signature(TORCHS).parameters)
    assert signature == inspect.signature(fl.binary_cross_entropy_with_logits).parameters
    assert list(inspect.signature(OURS.__call__).parameters)[:7] == list(signature)[:7]


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

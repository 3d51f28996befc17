"""Under fl.patch(): whoever overrides torch's function, by a subclass or a mode, and pickle."""

import copy
import functools
import inspect
import io
import pickle

import torch
import torch.nn.functional as F
from patches import OURS, TAIL, TORCHS, is_ours, torchs_function_is_back  # noqa: F401 (a fixture)

import fused_logistic as fl


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

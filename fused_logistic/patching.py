"""Drop-in for code that cannot be edited: torch's own function replaced by ours, and back."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import bernoulli, continuous_bernoulli, geometric
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils._contextlib import context_decorator

from . import adapters, functional

_Function = TypeVar("_Function", bound=Callable[..., object])

_TORCHS = torch.nn.functional.binary_cross_entropy_with_logits
_NAME = "binary_cross_entropy_with_logits"


class _Ours:
    """What torch's name holds while a patch is in force: our function, which equals torch's.

    Equal, so that a subclass of Tensor or a TorchFunctionMode that looks torch's function up, in a table that was made
    before the patch, finds it. Torch's function itself would be found too; but who does not find it calls what it was
    given, as ``with torch.device(...)`` does, and that has to be ours.
    """

    def __init__(self) -> None:
        functools.update_wrapper(self, functional.binary_cross_entropy_with_logits)
        self.__module__ = __name__  # where pickle finds it, by what __reduce__ says

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        named: dict[str, Any] = {"weight": weight, "size_average": size_average, "reduce": reduce}
        named |= {"reduction": reduction, "pos_weight": pos_weight}
        if not options and has_torch_function_variadic(input, target, weight, pos_weight):
            return handle_torch_function(self, (input, target, weight, pos_weight), input, target, **named)
        return functional.binary_cross_entropy_with_logits(input, target, **named, **options)

    def __eq__(self, other: object) -> bool:
        return other is self or other is _TORCHS

    def __hash__(self) -> int:
        return hash(_TORCHS)

    def __reduce__(self) -> str:
        return _NAME

    def __repr__(self) -> str:
        return f"<function {__name__}.{_NAME}>"


binary_cross_entropy_with_logits = _Ours()


_Named = tuple[Any, str]  # a module and its name for a loss, or a class and its forward


@dataclass
class _Place:
    """A name for a loss: what it was, what it is now, and how many patches want that."""

    original: object
    ours: object
    patches: int = 0


_lock = threading.Lock()
# Where torch's function can be found: the last one where every other name is patched.
_homes = [(module, _NAME) for module in (torch.nn.functional, bernoulli, geometric, continuous_bernoulli)]
_homes.append((sys.modules[__name__], "_TORCHS"))
_places: dict[_Named, _Place] = {}  # those that are ours at the moment


def _names_in(module: ModuleType) -> dict[_Named, object]:
    """Under which names the module has torch's function or another loss that is known, or had it before it was patched,
    and what is to be there."""
    names: dict[_Named, object] = {}
    for name, value in list(vars(module).items()):
        # ours where the module was imported under a patch
        if value is _TORCHS or value is binary_cross_entropy_with_logits:
            names[module, name] = binary_cross_entropy_with_logits
        elif (module, name) in _places:
            names[module, name] = _places[module, name].ours
        elif isinstance(value, (FunctionType, type)):
            ours = adapters.of(value)
            if ours is not None:
                names[(value, "forward") if isinstance(value, type) else (module, name)] = ours
    if not names:
        raise ValueError(
            f"patch: expected modules that imported {_NAME} from torch.nn.functional, or have one of the losses that "
            f"fused_logistic.patch names, got {module.__name__}, which has none"
        )
    return names


def _let_pickle_find_torchs() -> None:
    """Torch's function says where it is: pickle looks there, and insists on the very same object."""
    home = next(home for home in _homes if getattr(*home, None) is _TORCHS) if _places else _homes[0]
    _TORCHS.__module__, _TORCHS.__qualname__ = home[0].__name__, home[1]


class Patch:
    """What :func:`patch` returns: ends with :meth:`undo` or with the ``with`` block, or decorates a function."""

    def __init__(self, modules: tuple[ModuleType, ...]) -> None:
        for module in modules:
            if not isinstance(module, ModuleType):
                raise TypeError(
                    f"patch: expected modules, got {type(module).__name__}"
                    + (" (a function is decorated by @patch(), with parentheses)" if callable(module) else "")
                )
        self._modules, self._held = modules, list[_Named]()
        with _lock:
            places: dict[_Named, object] = {(torch.nn.functional, _NAME): binary_cross_entropy_with_logits}
            for module in modules:
                places |= _names_in(module)
            try:
                for (owner, name), ours in places.items():
                    self._take(owner, name, ours)
            except BaseException:
                self._give_back()
                raise
            _let_pickle_find_torchs()

    def _take(self, owner: Any, name: str, ours: object) -> None:
        place = _places.get((owner, name)) or _Place(getattr(owner, name), ours)
        setattr(owner, name, ours)
        place.patches += 1
        _places[owner, name] = place
        self._held.append((owner, name))

    def _give_back(self) -> list[str]:
        """The names that were not ours any more."""
        lost = []
        while self._held:
            owner, name = self._held.pop(0)
            place = _places[owner, name]
            place.patches -= 1
            if place.patches:
                continue
            if getattr(owner, name, None) is place.ours:
                setattr(owner, name, place.original)
            else:
                lost.append(f"{owner.__name__}.{name}")
            del _places[owner, name]
        _let_pickle_find_torchs()
        return lost

    @property
    def active(self) -> bool:
        """Whether it is in force: from :func:`patch` to :meth:`undo`."""
        return bool(self._held)

    def undo(self) -> None:
        """Ends this patch; a second call does nothing. Torch's function is back when no other patch holds its name.

        A name that somebody else has replaced in the meantime is left alone, with a ``RuntimeWarning``.
        """
        with _lock:
            lost = self._give_back()
        for name in lost:
            warnings.warn(
                f"fused_logistic.patch: {name} was replaced by somebody else after it was patched; it is left as it is",
                RuntimeWarning,
                stacklevel=3,
            )

    def __call__(self, function: _Function) -> _Function:
        """Decorates ``function``: this patch ends, and each call of the function runs under one of its own.

        A generator is patched while it runs, not while it waits.

        Raises:
            TypeError: it is no function, or a coroutine function, which others run in between.
        """
        self.undo()
        waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if not callable(function) or inspect.isclass(function) or waits:
            kind = "a coroutine function" if waits else repr(function)
            raise TypeError(f"patch: expected a function or a generator function to decorate, got {kind}")
        return context_decorator(lambda: Patch(self._modules), function)

    def __enter__(self) -> Patch:
        if not self.active:
            raise RuntimeError("patch: this patch is undone; call fused_logistic.patch() again")
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        names = ", ".join(f"{owner.__name__}.{name}" for owner, name in self._held)
        return f"<fused_logistic.patch of {names}>" if names else "<fused_logistic.patch, undone>"


def patch(*modules: ModuleType) -> Patch:
    """Makes ``torch.nn.functional.binary_cross_entropy_with_logits`` ours, for code that calls torch's.

    As a function it holds until :meth:`Patch.undo`, as a context manager until the end of the block, and as a decorator
    (with parentheses) while the function runs::

        fl.patch()                     # from here on, for the whole process

        with fl.patch() as handle:     # or for a block
            train(model)

        @fl.patch()                    # or for each call; functions and generator functions
        def train(model): ...

    Whatever looks the function up in ``torch.nn.functional`` when it runs is served:
    ``F.binary_cross_entropy_with_logits``, ``torch.nn.BCEWithLogitsLoss``, ``timm.loss.BinaryCrossEntropy`` and the
    losses of most libraries. Code that said ``from torch.nn.functional import binary_cross_entropy_with_logits``
    before has a name of its own for torch's function: give its module to have that name replaced too. (A module that
    says so while a patch is in force gets ours, and keeps it.)

    Losses that compute more than that have names of their own: ``torchvision.ops.sigmoid_focal_loss``, mmdet's
    ``py_sigmoid_focal_loss`` and ``varifocal_loss``, and timm's ``AsymmetricLossMultiLabel`` (its ``forward``, so all
    its instances) are ours as a whole, not only the cross entropy in them, in the modules that are given, under
    whatever name they have them: ``fl.patch(torchvision.ops)``, ``fl.patch(mmdet.models.losses.focal_loss)``,
    ``fl.patch(torchvision.models.detection.retinanet)``. (mmdet's ``sigmoid_focal_loss``, whose targets are the numbers
    of classes, is a kernel of its own, and stays.)

    Patches nest and can be undone in any order: torch's function is back when the last one is undone. An error while
    patching leaves nothing patched.

    Subclasses of Tensor and ``TorchFunctionMode`` are asked as they are without the patch. The function they see equals
    torch's and has its hash, so that a table keyed by torch's function has an entry for it (``is`` tells them apart).
    One that is given an option of ours sees :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Pickle: what holds torch's function can be pickled while a patch is in force, and be loaded without this package.
    What got its function from a patched name holds ours, and needs it.

    Threads: the replacement is one assignment and holds for every thread of the process; calls that are under way
    finish with the function they began with. Patches may be made and undone from several threads.

    ``torch.compile``: a compiled function notices that a patch was made or undone, and is traced anew. TorchScript
    cannot compile our function: call ``torch.jit.script`` before patching.

    Args:
        modules: modules (not their names) that have torch's function, or one of these losses, under whatever name.

    Returns:
        The handle, in force already.

    Raises:
        TypeError: an argument is not a module.
        ValueError: a module has no name for any of them, so that patching it would do nothing.
    """
    return Patch(modules)

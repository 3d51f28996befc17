"""Drop-in for code that cannot be edited: torch's own function replaced by ours, and back."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from types import ModuleType

import torch

from .functional import binary_cross_entropy_with_logits

_TORCHS = torch.nn.functional.binary_cross_entropy_with_logits
_OURS = binary_cross_entropy_with_logits
_NAME = "binary_cross_entropy_with_logits"


@dataclass
class _Place:
    """A module's name for the loss: what it was, and how many patches want it to be ours."""

    original: object
    patches: int = 0


_lock = threading.Lock()
_places: dict[tuple[ModuleType, str], _Place] = {}  # those that are ours at the moment


def _names_in(module: ModuleType) -> list[tuple[ModuleType, str]]:
    """Under which names the module has torch's function, or had it before it was patched."""
    names = [name for name, value in vars(module).items() if value is _TORCHS or (module, name) in _places]
    if not names:
        raise ValueError(
            f"patch: expected modules that imported {_NAME} from torch.nn.functional, "
            f"got {module.__name__}, which has no name for it"
        )
    return [(module, name) for name in names]


class Patch:
    """What :func:`patch` returns: ends with :meth:`undo` or with the ``with`` block."""

    def __init__(self, modules: tuple[ModuleType, ...]) -> None:
        for module in modules:
            if not isinstance(module, ModuleType):
                raise TypeError(f"patch: expected modules, got {type(module).__name__}")
        with _lock:
            places = [(torch.nn.functional, _NAME)]
            places += [place for module in modules for place in _names_in(module)]
            self._held = list(dict.fromkeys(places))
            for module, name in self._held:
                place = _places.setdefault((module, name), _Place(getattr(module, name)))
                place.patches += 1
                setattr(module, name, _OURS)

    @property
    def active(self) -> bool:
        """Whether it is in force: from :func:`patch` to :meth:`undo`."""
        return bool(self._held)

    def undo(self) -> None:
        """Ends this patch; a second call does nothing. Torch's function is back when no other patch holds its name.

        A name that somebody else has replaced in the meantime is left alone, with a ``RuntimeWarning``.
        """
        with _lock:
            held, self._held = self._held, []
            for module, name in held:
                place = _places[module, name]
                place.patches -= 1
                if place.patches:
                    continue
                del _places[module, name]
                if getattr(module, name, None) is _OURS:
                    setattr(module, name, place.original)
                else:
                    warnings.warn(
                        f"fused_logistic.patch: {module.__name__}.{name} was replaced by somebody else after it was "
                        "patched; it is left as it is",
                        RuntimeWarning,
                        stacklevel=3,
                    )

    def __enter__(self) -> Patch:
        if not self.active:
            raise RuntimeError("patch: this patch is undone; call fused_logistic.patch() again")
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        names = ", ".join(f"{module.__name__}.{name}" for module, name in self._held)
        return f"<fused_logistic.patch of {names}>" if names else "<fused_logistic.patch, undone>"


def patch(*modules: ModuleType) -> Patch:
    """Makes ``torch.nn.functional.binary_cross_entropy_with_logits`` ours, for code that calls torch's.

    As a function it holds until :meth:`Patch.undo`, as a context manager until the end of the block::

        fl.patch()                     # from here on, for the whole process

        with fl.patch() as handle:     # or for a block
            train(model)

    Whatever looks the function up in ``torch.nn.functional`` when it runs is served:
    ``F.binary_cross_entropy_with_logits``, ``torch.nn.BCEWithLogitsLoss``, ``torchvision.ops.sigmoid_focal_loss`` and
    the losses of most libraries. Code that said ``from torch.nn.functional import binary_cross_entropy_with_logits``
    before has a name of its own for torch's function: give its module to have that name replaced too. (A module that
    says so while a patch is in force gets ours, and keeps it.)

    Patches nest and can be undone in any order: torch's function is back when the last one is undone.

    Threads: the replacement is one assignment and holds for every thread of the process; calls that are under way
    finish with the function they began with. Patches may be made and undone from several threads.

    ``torch.compile``: a compiled function notices that a patch was made or undone, and is traced anew. TorchScript
    cannot compile our function: call ``torch.jit.script`` before patching.

    Args:
        modules: modules (not their names) that imported torch's function by name, under whatever name.

    Returns:
        The handle, in force already.

    Raises:
        TypeError: an argument is not a module.
        ValueError: a module has no name for torch's function, so that patching it would do nothing.
    """
    return Patch(modules)

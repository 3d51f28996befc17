"""Loads the compiled library, or says in one message why it cannot be loaded and what to run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_BUILD = "pip install --no-build-isolation {}--no-deps .  (-e . for an editable install; in make's .venv: make build)"
_REBUILD = "Rebuild it, in a checkout:  " + _BUILD.format("--force-reinstall ")


def load() -> None:
    """Import ``fused_logistic._C``, which registers ``torch.ops.fused_logistic``.

    Raises:
        ImportError: the library is missing, was built against another torch than the one imported here, or the
            environment variable ``FUSED_LOGISTIC_ISA`` names nothing that it can run.
    """
    import torch  # first: the library needs torch's own to be loaded

    if find_spec(f"{__package__}._C") is None:
        raise ImportError(
            f"fused_logistic: there is no compiled library in {Path(__file__).parent}. In a source tree that is not "
            f"built, start Python elsewhere, or build it:  {_BUILD.format('')}"
        )
    try:
        from . import _C
    except ImportError as error:
        if "FUSED_LOGISTIC_ISA" in str(error):
            raise
        raise ImportError(
            f"fused_logistic: its compiled library does not load with torch {torch.__version__}: {error}\n"
            f"It was built against another torch, or is damaged. {_REBUILD}"
        ) from error
    if torch.__version__ != _C.TORCH_VERSION:
        raise ImportError(
            f"fused_logistic: built against torch {_C.TORCH_VERSION}, but torch {torch.__version__} is imported. "
            f"{_REBUILD}"
        )

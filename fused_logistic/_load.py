"""Loads the compiled library, or says in one message why it cannot be loaded and what to run."""

from __future__ import annotations

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps fused_logistic (from a checkout: make build)"


def load() -> None:
    """Import ``fused_logistic._C``, which registers ``torch.ops.fused_logistic``.

    Raises:
        ImportError: the library is missing, or was built against another torch than the one imported here.
    """
    import torch  # first: the library needs torch's own to be loaded

    try:
        from . import _C
    except ImportError as error:
        raise ImportError(
            f"fused_logistic: its compiled library does not load with torch {torch.__version__}: {error}\n"
            f"It is either not built or built against another torch. Rebuild it:  {_REBUILD}"
        ) from error
    if torch.__version__ != _C.TORCH_VERSION:
        raise ImportError(
            f"fused_logistic: built against torch {_C.TORCH_VERSION}, but torch {torch.__version__} is imported. "
            f"Rebuild it:  {_REBUILD}"
        )

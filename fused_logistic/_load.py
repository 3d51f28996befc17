"""Loads the compiled libraries, or says in one message why they cannot be loaded and what to run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
OLDEST_TORCH = (2, 11)  # setup.py names it as TORCH_TARGET_VERSION
_BUILD = "pip install --no-build-isolation {}--no-deps .  (-e . for an editable install; in make's .venv: make build)"
_REBUILD = "Rebuild it, in a checkout:  " + _BUILD.format("--force-reinstall ")


def load() -> None:
    """Register ``torch.ops.fused_logistic`` and its kernels: those of the CPU, and of CUDA where torch has it.

    Raises:
        ImportError: torch is too old, a library is missing or damaged, or the environment variable
            ``FUSED_LOGISTIC_ISA`` names nothing that it can run.
    """
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"fused_logistic: torch {torch.__version__} is installed, and {oldest} or newer is needed. Run:\n"
            f"pip install --upgrade 'torch>={oldest}'"
        )
    library, cuda = FOLDER / "libfused_logistic.so", FOLDER / "libfused_logistic_cuda.so"
    if not library.exists() or find_spec(f"{__package__}._C") is None:
        raise ImportError(
            f"fused_logistic: there is no compiled library in {FOLDER}. In a source tree that is not "
            f"built, start Python elsewhere, or build it:  {_BUILD.format('')}"
        )
    try:
        torch.ops.load_library(str(library))
        if torch.backends.cuda.is_built() and cuda.exists():
            torch.ops.load_library(str(cuda))
        from . import _C  # noqa: F401
    except (ImportError, OSError) as error:
        if "FUSED_LOGISTIC_ISA" in str(error):
            raise
        raise ImportError(
            f"fused_logistic: its compiled library does not load with torch {torch.__version__}: {error}\n"
            f"It is damaged, or of another platform. {_REBUILD}"
        ) from error

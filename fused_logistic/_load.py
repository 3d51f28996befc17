"""Loads the compiled libraries, or says in one message why they cannot be loaded and what to run."""

from __future__ import annotations

from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = "libfused_logistic.so"
OLDEST_TORCH = (2, 11)  # setup.py names it as TORCH_TARGET_VERSION
_REBUILD = (
    "Rebuild it, in a checkout:  pip install --no-build-isolation --force-reinstall --no-deps .  (-e . for an editable "
    "install; in make's .venv: make build), and start Python in another folder (but for an editable install)."
)


def _not_built() -> str:
    """What to do where there is no library: a checkout hides the package that was installed from it."""
    for distribution in distributions(name="fused_logistic"):
        installed = Path(str(distribution.locate_file("fused_logistic")))
        if installed != FOLDER and (installed / LIBRARY).exists():
            return (
                f"It hides the package that is installed in {installed.parent}: leave the folder {FOLDER.parent} "
                "(cd ..) and start Python elsewhere."
            )
    return (
        f"Build it in place, in {FOLDER.parent}:  pip install --no-build-isolation --no-deps -e .  (in make's .venv: "
        "make build). Or install it, without -e, and start Python in another folder, for this one would hide it."
    )


def load() -> None:
    """Register ``torch.ops.fused_logistic`` and its kernels: those of the CPU, and of CUDA where torch has it.

    Raises:
        ImportError: torch is too old, a library is missing or damaged, or the environment variable
            ``FUSED_LOGISTIC_ISA`` names nothing that it can run; or another copy of the package is loaded.
    """
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"fused_logistic: torch {torch.__version__} is installed, and {oldest} or newer is needed. Run:\n"
            f"pip install --upgrade 'torch>={oldest}'"
        )
    library, cuda = FOLDER / LIBRARY, FOLDER / "libfused_logistic_cuda.so"
    if not library.exists() or find_spec(f"{__package__}._C") is None:
        raise ImportError(
            f"fused_logistic: there is no compiled library in {FOLDER}, a source tree that is not built. {_not_built()}"
        )
    # a second library would put its kernels in the place of the first one's, which ends in a crash
    if str(library) not in torch.ops.loaded_libraries and torch._C._jit_get_schemas_for_operator("fused_logistic::bce"):
        loaded = [path for path in torch.ops.loaded_libraries if Path(path).name == LIBRARY]
        raise ImportError(
            f"fused_logistic: expected one copy of the package in a process, got a second one in {FOLDER}: the "
            f"operators are registered already, by {loaded[0] if loaded else 'another library'}"
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

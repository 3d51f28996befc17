"""The NVIDIA compiler for the tests: find it, compile with a cache on disk, list machine instructions.

The compiler is taken from PyPI (tests/requirements-cuda.txt), so that neither a GPU nor a CUDA toolkit is needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from .module import match_name

HOW_TO_INSTALL = "pip install -r tests/requirements-cuda.txt"
# -fmad=false: a product and a sum in the source stay two roundings, as on the CPU; only explicit fma fuses
DEFAULT_FLAGS = ("-std=c++17", "-fmad=false")

_TOP = re.compile(r"^#\$ TOP=(.*?)\s*$", re.M)
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.M)
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", re.M)


class ToolchainMissing(RuntimeError):
    """No compiler; the message says how to get one, for pytest.skip."""


class CompileError(RuntimeError):
    """nvcc refused the source; the message is its output."""


def find() -> Path:
    """nvcc from the running interpreter's packages, else of $CUDA_HOME, else on PATH."""
    candidates = [nvcc for folder in _nvidia_packages() for nvcc in sorted(folder.glob("cu*/bin/nvcc"), reverse=True)]
    if os.environ.get("CUDA_HOME"):
        candidates.append(Path(os.environ["CUDA_HOME"], "bin", "nvcc"))
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    for nvcc in candidates:
        if os.access(nvcc, os.X_OK):
            if not (shutil.which("g++") or os.environ.get("NVCC_CCBIN")):
                raise ToolchainMissing("nvcc needs g++ to preprocess sources; install g++")
            return nvcc
    raise ToolchainMissing(f"no nvcc in this Python environment, in $CUDA_HOME or on PATH: {HOW_TO_INSTALL}")


def _nvidia_packages() -> list[Path]:
    """The folders of the nvidia namespace package, one for each site-packages that has a part of it."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


def root() -> Path:
    """The toolkit's folder. nvcc names it itself: the one on PATH may be a script that stands elsewhere."""
    return _root(find())


@lru_cache
def _root(nvcc: Path) -> Path:
    dry_run = subprocess.run([nvcc, "--dryrun", "-E", __file__, "-x", "cu"], text=True, capture_output=True)
    top = _TOP.search(dry_run.stderr)
    if not top:
        raise ToolchainMissing(f"{nvcc} does not work: {dry_run.stderr.strip()}")
    return Path(top[1]).resolve()


def header_folders() -> list[Path]:
    """Where a host compiler finds cuda_fp16.h and what it includes."""
    return [folder for folder in (root() / "include", root() / "include" / "cccl") if folder.is_dir()]


def compile_ptx(
    source,
    arch,
    defines: Sequence[str] = (),
    include_dirs: Iterable = (),
    lineinfo: bool = True,
    flags: Sequence[str] = DEFAULT_FLAGS,
    cache=None,
) -> str:
    """Compile a .cu file to PTX; -> path of the PTX file, from the cache if nothing it was made of has changed.

    ``arch``: 80, "80" or "sm_80". ``defines``: such as "TILE=4". ``lineinfo``: errors of the interpreter name CUDA
    lines. ``cache``: a folder; the default is pytest's cache folder. Raises ToolchainMissing or CompileError.
    """
    return _compile("-ptx", source, arch, defines, include_dirs, [*flags, *(["-lineinfo"] if lineinfo else [])], cache)


def compile_cubin(
    source,
    arch,
    defines: Sequence[str] = (),
    include_dirs: Iterable = (),
    flags: Sequence[str] = DEFAULT_FLAGS,
    cache=None,
) -> str:
    """Compile a .cu file to machine code of one architecture; -> path of the .cubin file. See compile_ptx."""
    return _compile("-cubin", source, arch, defines, include_dirs, list(flags), cache)


def sass(cubin, kernel: str) -> list[str]:
    """Machine instructions of a kernel, in order, without their addresses: ["MOV R1, c[0x0][0x28]", ...].

    ``kernel``: any unique part of the mangled or demangled name.
    """
    parts = _FUNCTION.split(_disassemble(str(cubin), os.stat(cubin).st_mtime_ns))
    functions = dict(zip(parts[1::2], parts[2::2], strict=True))
    return _SASS.findall(functions[match_name(kernel, list(functions))])


@lru_cache
def _disassemble(cubin: str, modified: int) -> str:
    """``modified`` is part of the cache's key."""
    cuobjdump = root() / "bin" / "cuobjdump"
    if not cuobjdump.exists():
        raise ToolchainMissing(f"no cuobjdump beside nvcc: {HOW_TO_INSTALL}")
    run = subprocess.run([cuobjdump, "-sass", cubin], text=True, capture_output=True)
    if run.returncode:  # it needs nvdisasm, a package of its own
        raise ToolchainMissing(f"{run.stderr.strip()}: {HOW_TO_INSTALL}")
    return run.stdout


def _compile(kind: str, source, arch, defines, include_dirs, flags: list[str], cache) -> str:
    source, nvcc = Path(source).resolve(), find()
    folder = _cache_folder(cache)
    command = [
        f"-arch=sm_{str(arch).removeprefix('sm_')}",
        kind,
        *flags,
        *(f"-D{define}" for define in defines),
        *(f"-I{Path(include).resolve()}" for include in include_dirs),
    ]
    compiler = os.stat(root() / "bin" / "nvcc")
    key = _hash(repr([str(nvcc), compiler.st_size, compiler.st_mtime_ns, str(source), command]).encode())
    result = folder / f"{source.stem}-{key[:20]}{kind.replace('-', '.')}"
    made_of = result.with_suffix(result.suffix + ".json")
    if result.exists() and _unchanged(made_of):
        return str(result)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output, dependencies = Path(scratch, "output"), Path(scratch, "dependencies")
        # -MMD lists every header of the source except the host system's
        run = subprocess.run(
            [nvcc, *command, "-MMD", "-MF", dependencies, source, "-o", output], text=True, capture_output=True
        )
        if run.returncode:
            raise CompileError(f"nvcc {' '.join(command)} {source.name}\n{run.stdout}{run.stderr}")
        listed = _read_dependencies(dependencies.read_text())
        hashes = Path(scratch, "hashes")
        hashes.write_text(json.dumps({str(path): _hash(Path(path).read_bytes()) for path in {str(source), *listed}}))
        made_of.unlink(missing_ok=True)  # so that a cut-off here leaves no pair that does not match
        os.replace(output, result)
        os.replace(hashes, made_of)
    return str(result)


def _cache_folder(cache) -> Path:
    """The given folder, else the one that pytest's config.cache.mkdir("ptx") gives, else a temporary one."""
    folder = Path(cache) if cache else Path(__file__).resolve().parents[3] / ".pytest_cache" / "d" / "ptx"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if cache or os.access(folder, os.W_OK):
            return folder
    except OSError:
        if cache:
            raise
    return _temporary_folder()


@lru_cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ptx-"))


def _unchanged(made_of: Path) -> bool:
    try:
        hashes = json.loads(made_of.read_text())
        return all(_hash(Path(path).read_bytes()) == digest for path, digest in hashes.items())
    except (OSError, ValueError):
        return False


def _read_dependencies(text: str) -> list[str]:
    """The files after the colon of a make rule."""
    _, _, files = text.replace("\\\n", " ").partition(" : ")
    return [name.replace("\\ ", " ") for name in re.findall(r"(?:\\ |\S)+", files)]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

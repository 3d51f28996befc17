"""Builds what is compiled of fused_logistic, in three files:

* ``libfused_logistic.so``: the ops and the CPU kernels, against torch's stable ABI, for any torch from 2.11 on;
* ``libfused_logistic_cuda.so``: the CUDA kernels, where a toolkit and a CUDA build of torch are, or with FORCE_CUDA=1;
* ``_C``: what Python asks of them beside the ops.
"""

import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import setuptools

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension
except ModuleNotFoundError as error:
    sys.exit(
        f"fused_logistic is built with the headers of torch, 2.11 or newer, and importing torch failed: {error}.\n"
        "Install torch first, or let pip see the one that is installed:  pip install --no-build-isolation ."
    )
if int(setuptools.__version__.split(".")[0]) < 77:  # else a page of errors about pyproject.toml
    sys.exit(
        f"fused_logistic: setuptools {setuptools.__version__} is installed, and the build needs 77.0.3 or newer. Run:\n"
        "pip install --upgrade setuptools wheel ninja pybind11 && pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG", "0") == "1"
FORCE_CUDA = os.environ.get("FORCE_CUDA", "0") == "1"
TOOLKIT = CUDA_HOME or os.environ.get("CUDA_HOME", "")  # a torch without CUDA looks for none
CUDA = Path(TOOLKIT)
NVCC = CUDA / "bin" / "nvcc"
# One for each generation: code for x.0 runs on x.1, x.2, ... too. PTX of the last is for the generations after it.
CUDA_ARCHS = ("7.5", "8.0", "9.0", "10.0", "12.0")

LIBRARY, CUDA_LIBRARY = "fused_logistic.libfused_logistic", "fused_logistic.libfused_logistic_cuda"
# 2.11: nothing newer is used of torch, so that nothing newer is needed
STABLE_ABI = ("TORCH_TARGET_VERSION", "0x020b000000000000")
# No contraction: the formula says where it wants fma.
CXX_FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
CXX_FLAGS += ["-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall"]
CXX_FLAGS += ["-Wno-maybe-uninitialized"]  # false alarms inside GCC's own AVX-512 header
# Their neighbours in the package are found beside them; what torch needs none of is not named.
LINK_FLAGS = ["-Wl,--as-needed", "-Wl,-rpath,$ORIGIN"]


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def cuda_include() -> Path | None:
    """The toolkit's headers, which are not always beside the nvcc that torch found: that may be a script."""
    found = [path.parent for place in ("", "targets/*/") for path in CUDA.glob(f"{place}include/cuda_runtime.h")]
    return found[0] if found else None


def cuda_runtime() -> Path | None:
    """The static runtime that belongs to the headers."""
    root = cuda_include().parent
    found = [path for place in ("lib64", "lib") for path in root.glob(f"{place}/libcudart_static.a")]
    return found[0] if found else None


def cuda_version(include: Path) -> str:
    number = int(re.search(r"#define CUDART_VERSION\s+(\d+)", (include / "cuda_runtime_api.h").read_text())[1])
    return f"{number // 1000}.{number % 1000 // 10}"


def why_no_cuda() -> str:
    """Empty where the CUDA kernels are built: what torch and the toolkit are decides, never which GPU is visible."""
    if os.environ.get("USE_CUDA", "1") == "0":
        return "USE_CUDA=0"
    missing = ""
    if torch.version.cuda is None and not FORCE_CUDA:  # they do not depend on the torch that they are built with
        missing = f"torch {torch.__version__} is a build without CUDA"
    elif not TOOLKIT:  # looked for only where it is needed
        missing = "no CUDA toolkit was found (set CUDA_HOME)"
    elif not os.access(NVCC, os.X_OK):
        missing = f"there is no compiler at {NVCC} (set CUDA_HOME)"
    elif cuda_include() is None:
        missing = f"there is no include/cuda_runtime.h in {TOOLKIT} (set CUDA_HOME)"
    elif cuda_runtime() is None:
        missing = f"there is no libcudart_static.a in {TOOLKIT} (set CUDA_HOME)"
    if missing and FORCE_CUDA:
        sys.exit(f"fused_logistic: FORCE_CUDA=1, but {missing}")
    return missing


def cuda_archs() -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or what of CUDA_ARCHS the toolkit knows; torch's default would be the GPUs it sees."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if asked:
        return asked
    known = subprocess.run([NVCC, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if "compute_" + arch.replace(".", "") in known]
    if not archs:
        sys.exit(f"fused_logistic: {NVCC} knows none of {', '.join(CUDA_ARCHS)}: set TORCH_CUDA_ARCH_LIST")
    return [*archs[:-1], archs[-1] + "+PTX"]


def nvcc_command(source: str, archs: list[str], target: Path) -> list[str]:
    # One architecture after the other takes minutes. 0: as many at a time as there are CPUs
    command = [str(NVCC), "-c", source, "-o", str(target), f"--threads={os.environ.get('MAX_JOBS') or 0}"]
    command += ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-fmad=false"]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-MMD", "-MF", str(target.with_suffix(".d"))]
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        command.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            command.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return command


def is_made(target: Path, command: list[str], command_file: Path) -> bool:
    """Whether the object file is what this command would make of its source and headers."""
    listed = target.with_suffix(".d")
    if not (target.exists() and listed.exists() and command_file.exists() and command_file.read_text() == str(command)):
        return False
    files = listed.read_text().replace("\\\n", " ").partition(" : ")[2].split()
    return all(os.path.exists(file) and os.path.getmtime(file) < target.stat().st_mtime for file in files)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Says what begins, that it is still at work, and how long it took: a compiler is silent for minutes."""
    start, ended = time.monotonic(), threading.Event()

    def keep_telling() -> None:
        while not ended.wait(15):
            print(f"fused_logistic: {what}: {time.monotonic() - start:.0f} s so far", flush=True)

    print(f"fused_logistic: {what}", flush=True)
    thread = threading.Thread(target=keep_telling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    print(f"fused_logistic: {what}: done in {time.monotonic() - start:.0f} s", flush=True)


class BuildLibraries(BuildExtension):
    def get_ext_filename(self, name: str) -> str:
        if name.rpartition(".")[2].startswith("lib"):  # for any Python: no ABI in its name
            return name.replace(".", "/") + ".so"
        return super().get_ext_filename(name)

    def build_extensions(self) -> None:
        python_h = Path(sysconfig.get_path("include")) / "Python.h"
        if not python_h.exists():  # else the compiler says so, after minutes
            sys.exit(
                f"fused_logistic: there is no {python_h}: Python's headers are not installed "
                "(Debian and Ubuntu: apt install python3-dev)"
            )
        minutes = "some three minutes on two cores" + (", with CUDA ten" if len(self.extensions) > 2 else "")
        print(f"fused_logistic: a first build takes {minutes}; a later one compiles what has changed", flush=True)
        super().build_extensions()

    def build_extension(self, extension: setuptools.Extension) -> None:
        number = f"{self.extensions.index(extension) + 1} of {len(self.extensions)}"
        with told(f"compiling {extension.name} ({number}, C++ files: {len(extension.sources)})"):
            if extension.name != LIBRARY:
                extension.extra_objects = [self.get_ext_fullpath(LIBRARY)]
            if extension.name == CUDA_LIBRARY:
                self._add_cuda(extension)
            super().build_extension(extension)

    def _add_cuda(self, extension: setuptools.Extension) -> None:
        """The kernels; and libtorch_cuda.so as something that is loaded before, whatever torch is here."""
        folder = Path(self.build_temp).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sources("csrc/cuda/*.cu"):
            target = folder / f"{Path(source).name}.o"
            command, command_file = nvcc_command(source, cuda_archs(), target), target.with_suffix(".command")
            if not is_made(target, command, command_file):
                print(" ".join(command), flush=True)
                command_file.unlink(missing_ok=True)  # what is cut off now is not taken for whole later
                with told(f"compiling {source}"):
                    subprocess.run(command, check=True)
                command_file.write_text(str(command))
            objects.append(str(target))
        stub = folder / "libtorch_cuda.so"
        empty = [os.environ.get("CXX", "c++"), "-shared", "-x", "c", "/dev/null", "-o", stub]
        subprocess.run([*empty, "-Wl,-soname,libtorch_cuda.so"], check=True)
        cudart = cuda_runtime()
        needed = ["-Wl,--no-as-needed", str(stub), "-Wl,--as-needed"]
        extension.extra_objects += [*objects, str(cudart), *needed]


def main() -> None:
    import pybind11

    without = why_no_cuda()
    archs = [] if without else cuda_archs()
    what = f", and CUDA kernels for {' '.join(archs)} with {NVCC}" if archs else f" (no CUDA: {without})"
    print(f"fused_logistic: building against torch {torch.__version__}: CPU kernels{what}", flush=True)
    headers = sources("csrc/*.h", "csrc/cpu/*.h", "csrc/cuda/*.h")
    macros = []
    extensions = [
        CppExtension(
            LIBRARY,
            sources=sources("csrc/ops.cpp", "csrc/tensors.cpp", "csrc/cpu/*.cpp"),
            depends=headers,
            define_macros=[STABLE_ABI],
            extra_compile_args=CXX_FLAGS,
            extra_link_args=[*LINK_FLAGS, "-Wl,-soname,libfused_logistic.so"],
        )
    ]
    if not without:
        include = cuda_include()
        macros = [
            ("FL_CUDA_ARCHS", f'"{" ".join(archs)}"'),
            ("FL_CUDA_VERSION", f'"{cuda_version(include)}"'),
        ]
        extensions.append(
            CppExtension(
                CUDA_LIBRARY,
                sources=sources("csrc/cuda/*.cpp"),
                depends=[*headers, *sources("csrc/cuda/*.cu", "csrc/cuda/*.cuh")],
                include_dirs=[str(include)],
                define_macros=[STABLE_ABI, ("USE_CUDA", None)],  # the latter: torch's headers name its CUDA functions
                extra_compile_args=CXX_FLAGS,
                extra_link_args=[*LINK_FLAGS, "-Wl,-soname,libfused_logistic_cuda.so", "-lpthread", "-ldl", "-lrt"],
            )
        )
    extensions.append(
        setuptools.Extension(
            "fused_logistic._C",
            sources=["csrc/module.cpp"],
            depends=headers,
            include_dirs=[pybind11.get_include()],
            define_macros=macros,
            extra_compile_args=CXX_FLAGS,
            extra_link_args=LINK_FLAGS,
            language="c++",
        )
    )
    setuptools.setup(
        ext_modules=extensions,
        cmdclass={"build_ext": BuildLibraries},
        # ninja knows what has changed
        options={"build_ext": {"force": True}},
    )


main()

"""Builds fused_logistic/_C: the CPU kernels always, the CUDA kernels where a toolkit and a CUDA build of torch are."""

import os
import subprocess
import sys
from pathlib import Path

import setuptools

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ModuleNotFoundError as error:
    sys.exit(
        f"fused_logistic is built against your installed torch, and importing torch failed: {error}.\n"
        "Install torch first, or let pip see the one that is installed:  pip install --no-build-isolation ."
    )
if int(setuptools.__version__.split(".")[0]) < 77:  # else a page of errors about pyproject.toml
    sys.exit(
        f"fused_logistic: setuptools {setuptools.__version__} is installed, and the build needs 77.0.3 or newer. Run:\n"
        "pip install --upgrade setuptools wheel ninja pybind11 && pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG", "0") == "1"
NVCC = Path(CUDA_HOME or "", "bin", "nvcc")
# One for each generation: code for x.0 runs on x.1, x.2, ... too. PTX of the last is for the generations after it.
CUDA_ARCHS = ("7.5", "8.0", "9.0", "10.0", "12.0")


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def why_no_cuda() -> str:
    """Empty where the CUDA kernels are built: what torch and the toolkit are decides, never which GPU is visible."""
    if os.environ.get("USE_CUDA", "1") == "0":
        return "USE_CUDA=0"
    missing = ""
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is a build without CUDA"
    elif not CUDA_HOME:  # looked for only where torch has CUDA
        missing = "no CUDA toolkit was found (set CUDA_HOME)"
    elif not os.access(NVCC, os.X_OK):
        missing = f"there is no compiler at {NVCC} (set CUDA_HOME)"
    elif not any(list(Path(CUDA_HOME).glob(f"{place}include/cuda_runtime.h")) for place in ("", "targets/*/")):
        # torch takes the folder above nvcc's for the toolkit, but that nvcc may be a script that calls another one
        missing = f"there is no include/cuda_runtime.h in {CUDA_HOME} (set CUDA_HOME)"
    if missing and os.environ.get("FORCE_CUDA", "0") == "1":
        sys.exit(f"fused_logistic: FORCE_CUDA=1, but {missing}")
    return missing


def cuda_archs() -> str:
    """TORCH_CUDA_ARCH_LIST, or what of CUDA_ARCHS the toolkit knows; torch's default would be the GPUs it sees."""
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        known = subprocess.run([NVCC, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
        archs = [arch for arch in CUDA_ARCHS if "compute_" + arch.replace(".", "") in known]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(archs) + "+PTX"
    return os.environ["TORCH_CUDA_ARCH_LIST"].replace(";", " ")


def main() -> None:
    # No contraction: the formula says where it wants fma. -fopenmp: at::parallel_for is a template in torch's headers.
    cxx_flags = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    cxx_flags += ["-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fvisibility=hidden", "-Wall"]
    cxx_flags += ["-Wno-maybe-uninitialized"]  # false alarms inside GCC's own AVX-512 header
    # One architecture after the other takes minutes. 0: as many at a time as there are CPUs
    threads = os.environ.get("MAX_JOBS") or "0"
    nvcc_flags = ["-O3", "--expt-relaxed-constexpr", "-fmad=false", f"--threads={threads}"]
    nvcc_flags += ["-Xcompiler", "-fvisibility=hidden"]
    cuda = ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
    macros = [("FL_TORCH_VERSION", f'"{torch.__version__}"')]
    without = why_no_cuda()
    if without:
        cuda = []
        what = f"CPU kernels (no CUDA: {without})"
    else:
        macros.append(("FL_CUDA_ARCHS", f'"{cuda_archs()}"'))
        what = f"CPU kernels, and CUDA kernels for {cuda_archs()} with {NVCC}"
    print(f"fused_logistic: building against torch {torch.__version__}: {what}", flush=True)
    setuptools.setup(
        ext_modules=[
            (CppExtension if without else CUDAExtension)(
                "fused_logistic._C",
                sources=sources("csrc/*.cpp", "csrc/cpu/*.cpp", *cuda),
                depends=sources("csrc/*.h", "csrc/cpu/*.h", "csrc/cuda/*.h", "csrc/cuda/*.cuh"),
                define_macros=macros,
                extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags},
                extra_link_args=["-fopenmp"],
            )
        ],
        cmdclass={"build_ext": BuildExtension},
        # ninja knows what has changed; without it, a library built against another torch would be taken for up to date
        options={"build_ext": {"force": True}},
    )


main()

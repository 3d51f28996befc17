"""Builds fused_logistic/_C: the CPU kernels always, the CUDA kernels where a toolkit and a CUDA build of torch are."""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ModuleNotFoundError as error:
    sys.exit(
        f"fused_logistic is built against your installed torch, and importing torch failed: {error}.\n"
        "Install torch first, then:  pip install --no-build-isolation fused_logistic   (from a checkout: "
        "pip install --no-build-isolation .)"
    )

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG", "0") == "1"


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def with_cuda() -> bool:
    """Where torch and a toolkit have CUDA; USE_CUDA=0: never, FORCE_CUDA=1: even if no GPU is visible, or an error."""
    if os.environ.get("USE_CUDA", "1") == "0":
        return False
    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is a build without CUDA")
    if CUDA_HOME is None:
        missing.append("no CUDA toolkit was found (set CUDA_HOME)")
    if forced and missing:
        sys.exit("fused_logistic: FORCE_CUDA=1, but " + " and ".join(missing))
    return not missing and (forced or torch.cuda.is_available())


def main() -> None:
    # No contraction: the formula says where it wants fma. -fopenmp: at::parallel_for is a template in torch's headers.
    cxx_flags = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    cxx_flags += ["-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fvisibility=hidden", "-Wall"]
    cxx_flags += ["-Wno-maybe-uninitialized"]  # false alarms inside GCC's own AVX-512 header
    cuda = with_cuda()
    if cuda and not torch.cuda.is_available():  # else torch compiles for the GPUs it sees
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX")
    nvcc_flags = ["-O3", "--expt-relaxed-constexpr", "-fmad=false", "-Xcompiler", "-fvisibility=hidden"]
    what = f"CPU and CUDA {torch.version.cuda}" if cuda else "CPU"
    print(f"fused_logistic: building the {what} kernels against torch {torch.__version__}", flush=True)
    setup(
        ext_modules=[
            (CUDAExtension if cuda else CppExtension)(
                "fused_logistic._C",
                sources=sources("csrc/*.cpp", "csrc/cpu/*.cpp", *(["csrc/cuda/launch.cu"] if cuda else [])),
                depends=sources("csrc/*.h", "csrc/cpu/*.h", "csrc/cuda/*.h", *(["csrc/cuda/*.cuh"] if cuda else [])),
                define_macros=[("FL_TORCH_VERSION", f'"{torch.__version__}"')],
                extra_compile_args={"cxx": cxx_flags, **({"nvcc": nvcc_flags} if cuda else {})},
                extra_link_args=["-fopenmp"],
            )
        ],
        cmdclass={"build_ext": BuildExtension},
    )


main()

"""Builds fused_logistic/_C: the CPU kernels always, the CUDA kernels where a toolkit and a CUDA build of torch are."""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
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


def main() -> None:
    # No contraction: the formula says where it wants fma. -fopenmp: at::parallel_for is a template in torch's headers.
    cxx_flags = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    cxx_flags += ["-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fvisibility=hidden", "-Wall"]
    cxx_flags += ["-Wno-maybe-uninitialized"]  # false alarms inside GCC's own AVX-512 header
    print(f"fused_logistic: building the CPU kernels against torch {torch.__version__}", flush=True)
    setup(
        ext_modules=[
            CppExtension(
                "fused_logistic._C",
                sources=sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
                depends=sources("csrc/*.h", "csrc/cpu/*.h"),
                define_macros=[("FL_TORCH_VERSION", f'"{torch.__version__}"')],
                extra_compile_args={"cxx": cxx_flags},
                extra_link_args=["-fopenmp"],
            )
        ],
        cmdclass={"build_ext": BuildExtension},
    )


main()

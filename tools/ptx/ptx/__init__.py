"""Execute the PTX that nvcc emits on the CPU, with numpy, to check CUDA kernels where there is no GPU.

    from ptx import Memory, load_file
    module = load_file("axpy.ptx")                      # nvcc -ptx -lineinfo -arch=sm_80 axpy.cu
    memory = Memory()
    x = memory.array(np.arange(1000, dtype=np.float32), readonly=True)
    y = memory.empty(1000, np.float32)                  # uninitialised: reading it is an error
    stats = module["axpy<float>"].launch(grid=4, block=128, args=[x, y, 1000], schedule="random", seed=1)
    print(y.read(), stats, module["axpy<float>"].unexecuted())

What it finds raises PtxError with the PTX line, block and thread (and with -lineinfo the CUDA line). The README beside
this package says what that is, what is refused, and what running PTX does not show.

Schedules: "lockstep" (fast, lowest instruction first), "serial" and "reverse" (one warp at a time until it blocks,
from the first or the last), "random" (random warps and divergent paths). Threads that spin until another thread writes
need "random". approx_noise=True: .approx results anywhere within the error that the PTX manual allows.
"""

from .formats import PtxError
from .kernel import Kernel, Stats
from .memory import Buffer, Memory
from .module import Module, load, load_file

__all__ = ["Buffer", "Kernel", "Memory", "Module", "PtxError", "Stats", "load", "load_file"]

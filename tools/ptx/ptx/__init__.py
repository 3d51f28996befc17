"""Execute the PTX that nvcc emits on the CPU, with numpy, to check CUDA kernels where there is no GPU.

    from ptx import Memory, load_file
    module = load_file("axpy.ptx")                      # nvcc -ptx -lineinfo -arch=sm_80 axpy.cu
    memory = Memory()
    x = memory.array(np.arange(1000, dtype=np.float32), readonly=True)
    y = memory.empty(1000, np.float32)                  # uninitialised: reading it is an error
    stats = module["axpy<float>"].launch(grid=4, block=128, args=[x, y, 1000], schedule="random", seed=1)
    print(y.read(), stats, module["axpy<float>"].unexecuted())

Each of these raises PtxError with the PTX line, block and thread (and with -lineinfo the CUDA line):

* accesses out of bounds or misaligned, writes to a readonly buffer, reads of memory that nobody initialised;
* data races: two threads touch a byte, one of them writes, and no barrier lies between; across blocks also if no
  fence by the writer or no atomic by the reader lies between; ld.global.nc of a byte this launch has written;
* threads of a block at different barriers, barriers and shuffles that can never complete, shuffles by a lane outside
  its mask, runaway loops;
* any opcode, modifier or operand that it does not know, among them float atomics: it never guesses.

Schedules: "lockstep" (fast, lowest instruction first), "serial" and "reverse" (one warp at a time until it blocks,
from the first or the last), "random" (random warps and divergent paths). Communication without a barrier that works in
one order fails in another. Threads that spin until another thread writes need "random".

Arithmetic has the bits of IEEE 754 with the rounding mode and .ftz of the instruction. The .approx forms (rcp, ex2)
are tables that nobody publishes: here the correctly rounded value, or with approx_noise=True one anywhere within the
error that the PTX manual allows, so that a test shows its tolerance to hold on every GPU.

Not here, and refused: mma, cp.async, clusters, textures, named barriers, indirect branches, recursion, printf, carry
flags, packed arithmetic. Ordering between blocks is judged per block, not by the full PTX memory model, and a write
after a read by another block is not judged. Not shown by running PTX: bugs of ptxas, of the launch code, and speed.
"""

from .formats import PtxError
from .kernel import Kernel, Stats
from .memory import Buffer, Memory
from .module import Module, load, load_file

__all__ = ["Buffer", "Kernel", "Memory", "Module", "PtxError", "Stats", "load", "load_file"]

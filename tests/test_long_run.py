"""100,000 training steps: nothing grows, and any number of threads and instruction set gives the same loss curve."""

import ctypes
import gc
import sys

import pytest
import torch

import fused_logistic as fl
from fused_logistic import _C

STEPS, LOGITS = 100_000, 20_000  # of three chunks, so that there is work for two threads
WARM = STEPS // 100
pytestmark = pytest.mark.slow


class Mallinfo2(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None


def memory_in_use():
    """Bytes from malloc, blocks of Python's own allocator, and objects that its collector tracks."""
    gc.collect()
    size = 0
    if mallinfo2 is not None:
        mallinfo2.restype = Mallinfo2
        seen = mallinfo2()
        size = seen.uordblks + seen.hblkhd  # on the heaps and mapped
    return size, sys.getallocatedblocks(), len(gc.get_objects())


def train(steps, device="cpu"):
    """The losses of so many steps of gradient descent, and by how much what is in use grew after the first of them."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(LOGITS, generator=generator).round().to(device)
    logits = (3 * torch.randn(LOGITS, generator=generator)).to(device).requires_grad_()
    curve, before = torch.empty(steps, device=device), None
    for step in range(steps):
        loss = fl.binary_cross_entropy_with_logits(logits, target)
        loss.backward()
        with torch.no_grad():
            logits.sub_(logits.grad, alpha=100.0)
            curve[step] = loss
        logits.grad = None
        if step == WARM:
            before = memory_in_use()
    after = memory_in_use()
    return curve.cpu(), tuple(b - a for a, b in zip(before or after, after, strict=True))


@pytest.fixture(scope="module")
def by_two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield train(STEPS)
    torch.set_num_threads(threads)


@pytest.mark.skipif(mallinfo2 is None, reason="what is in use is asked of glibc 2.33 or later")
def test_nothing_grows(by_two_threads):
    """What is left in one of a hundred steps would be seen. How large the heaps are, or what of them is resident,
    depends on what ran before."""
    curve, (size, blocks, objects) = by_two_threads
    assert curve[-1] < curve[0] / 10
    assert size < STEPS / 4  # malloc takes 32 at least
    assert blocks < STEPS / 200
    assert objects < STEPS / 200


@pytest.mark.parametrize("isa", _C.isas_supported())
def test_the_curve_by_one_thread(isa, by_two_threads):
    """Without fma as an instruction a step takes two milliseconds: the beginning of the curve then."""
    steps = STEPS // 100 if isa == "baseline" else STEPS
    threads, in_use = torch.get_num_threads(), _C.isa()
    torch.set_num_threads(1)
    _C.set_isa(isa)
    try:
        curve = train(steps)[0]
    finally:
        _C.set_isa(in_use)
        torch.set_num_threads(threads)
    assert curve.equal(by_two_threads[0][:steps])


@pytest.mark.cuda
def test_the_curve_on_a_gpu(by_two_threads):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    assert train(STEPS, "cuda")[0].equal(by_two_threads[0])

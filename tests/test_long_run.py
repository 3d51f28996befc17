"""100,000 training steps: nothing grows, and any number of threads and instruction set gives the same loss curve."""

import gc
import os
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

import fused_logistic as fl
from fused_logistic import _C

STEPS, LOGITS = 100_000, 20_000  # of three chunks, so that there is work for two threads
WINDOW = STEPS // 20
pytestmark = pytest.mark.slow


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(steps, device="cpu"):
    """The losses of so many steps of gradient descent, and how many bytes were resident and objects tracked after each
    window of them."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(LOGITS, generator=generator).round().to(device)
    logits = (3 * torch.randn(LOGITS, generator=generator)).to(device).requires_grad_()
    curve, seen = torch.full((steps,), torch.nan, device=device), []  # its memory is touched now
    for step in range(steps):
        loss = fl.binary_cross_entropy_with_logits(logits, target)
        loss.backward()
        with torch.no_grad():
            logits.sub_(logits.grad, alpha=100.0)
            curve[step] = loss
        logits.grad = None
        if (step + 1) % WINDOW == 0:
            gc.collect()
            seen.append((resident_bytes(), len(gc.get_objects())))
    return curve.cpu(), seen


@pytest.fixture(scope="module")
def by_two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield train(STEPS)
    torch.set_num_threads(threads)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what is resident is read from /proc")
def test_nothing_grows(by_two_threads):
    """Every object has 16 bytes at least: one that is left in each step would be seen in every window. What malloc
    takes or returns once, megabytes after tests that compiled, is in few of them: hence the median."""
    curve, seen = by_two_threads
    resident, objects = zip(*seen, strict=True)
    assert curve[-1] < curve[0] / 10
    assert median(after - before for before, after in pairwise(resident)) < 16 * WINDOW / 2
    assert median(after - before for before, after in pairwise(objects)) < WINDOW / 2


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

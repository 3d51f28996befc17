"""Memory that is not there, and an interrupt at any moment: one error, and the next step is as if it had not been."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_MEMORY = """
    import contextlib, gc, resource, sys
    import torch
    import fused_logistic as fl
    from fused_logistic import _C

    torch.manual_seed(0)
    N, ROWS, FEATURES, LABELS = 1 << 23, 2048, 64, 5000  # results of 32 MB and more
    z, y = (3 * torch.randn(N)).requires_grad_(), torch.rand(N)
    x, w, t = torch.randn(ROWS, FEATURES), torch.randn(LABELS, FEATURES), torch.rand(ROWS, LABELS).round()
    v = torch.randn(ROWS, FEATURES)
    for leaf in (x, w, v):
        leaf.requires_grad_()
    scale, bias = torch.tensor(1.0), torch.tensor(-10.0)
    cases = {
        "mean": (lambda: fl.binary_cross_entropy_with_logits(z, y), [z]),
        "weights": (lambda: fl.binary_cross_entropy_with_logits(z, y, weight=y, mask=y > 0.1), [z]),
        "none": (lambda: fl.binary_cross_entropy_with_logits(z, y, reduction="none"), [z]),
        "focal": (lambda: fl.sigmoid_focal_loss(z, y, reduction="sum"), [z]),
        "layer": (lambda: fl.linear_binary_cross_entropy(x, w, t, chunk_bytes=16 << 20), [x, w]),
        "pairs": (lambda: fl.sigmoid_contrastive_loss(x, v, scale, bias, tile_bytes=16 << 20), [x, v]),
    }

    @contextlib.contextmanager
    def memory(extra):
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def step(name, in_forward=0, in_backward=0):
        make, leaves = cases[name]
        for leaf in leaves:
            leaf.grad = None
        with memory(in_forward) if in_forward else contextlib.nullcontext():
            loss = make()
        with memory(in_backward) if in_backward else contextlib.nullcontext():
            loss.sum().backward()
        return [loss.detach().clone(), *(leaf.grad.clone() for leaf in leaves)]

    def fails(name, **limits):
        for leaf in cases[name][1]:
            leaf.grad = None
        gc.collect()
        _C.empty_cache()
        try:
            step(name, **limits)
        except RuntimeError as error:
            assert "memory" in str(error), (name, error)  # ours is torch.OutOfMemoryError, as on a GPU; torch's says so
            return True
        return False
"""


def run(code):
    # each larger block is the system's, so that what was freed is not there for the next
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is read from /proc")
def test_without_memory():
    """An address space that is full but for some MB, from none on, in the forward and in the backward pass: half way
    through a layer and through pairs too. A pass that finds what it needs does not fail."""
    code = (
        WITHOUT_MEMORY
        + """
    for name in cases:
        before = step(name)
        assert fails(name, in_forward=1 << 16), name
        assert fails(name, in_backward=1 << 16) or name != "none"
        failed = [fails(name, **{which: mb << 20}) for mb in (4, 9, 17, 30) for which in ("in_forward", "in_backward")]
        assert all(map(torch.equal, before, step(name))), name
        print(name, sum(failed))
    """
    )
    failed = run(textwrap.dedent(code))
    assert len(failed) == 12 and int(failed[failed.index("layer") + 1]) > 1, failed


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is read from /proc")
def test_kept_blocks_are_given_up_where_memory_is_short():
    code = (
        WITHOUT_MEMORY
        + """
    half = N // 2
    step("mean")
    z.grad = None
    assert _C.cached_bytes() == 4 * N
    smaller = z.detach()[:half].requires_grad_()
    with memory(1 << 20):
        loss = fl.binary_cross_entropy_with_logits(smaller, y[:half])
    assert _C.cached_bytes() == 0
    loss.backward()
    print(smaller.grad.numel())
    """
    )
    assert run(textwrap.dedent(code)) == [str(1 << 22)]


INTERRUPTED = """
    import random, signal
    import torch
    import fused_logistic as fl

    torch.manual_seed(0)
    random.seed(0)
    z, y = torch.randn(200, 50).requires_grad_(), torch.rand(200, 50)
    x, w = torch.randn(200, 8), torch.randn(50, 8).requires_grad_()

    def steps():
        for leaf, loss in (
            (z, fl.binary_cross_entropy_with_logits(z, y, mask=y > 0.1)),
            (z, fl.sigmoid_focal_loss(z, y, reduction="sum")),
            (w, fl.linear_binary_cross_entropy(x, w, y, chunk_bytes=4 * 50 * 20)),
        ):
            leaf.grad = None
            (3 * loss).backward()
            yield loss.detach(), leaf.grad

    def interrupt(*_):
        raise KeyboardInterrupt

    want, seen = list(steps()), 0
    signal.signal(signal.SIGALRM, interrupt)
    while seen < 150:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 5e-3), 0.02)
            for _ in range(100):
                list(steps())
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            seen += 1
            for got, expected in zip(steps(), want, strict=True):
                assert all(map(torch.equal, got, expected))
    print(seen)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM")
def test_interrupted():
    """KeyboardInterrupt, wherever Python can raise it: what comes next is as if it had not been."""
    assert run(textwrap.dedent(INTERRUPTED)) == ["150"]

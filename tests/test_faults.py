"""Memory that is not there, and an interrupt at any moment: one error, and the next step is as if it had not been."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_MEMORY = """
    import contextlib, gc, resource
    import torch
    import fused_logistic as fl
    from fused_logistic import _C

    torch.manual_seed(0)
    N, ROWS, FEATURES, LABELS = 1 << 23, 2048, 64, 5000  # results of 32 MB and more
    z, y, a = (3 * torch.randn(N)).requires_grad_(), torch.rand(N), torch.rand(N).requires_grad_()
    mask = y > 0.1
    x, w, t = torch.randn(ROWS, FEATURES), torch.randn(LABELS, FEATURES), torch.rand(ROWS, LABELS).round()
    v = torch.randn(ROWS, FEATURES)
    half = [leaf.half().requires_grad_() for leaf in (x, w, v)]
    for leaf in (x, w, v):
        leaf.requires_grad_()
    pair = torch.tensor(1.0), torch.tensor(-10.0)
    layer, pairs = fl.linear_binary_cross_entropy, fl.sigmoid_contrastive_loss
    cases = {
        "mean": (lambda: fl.binary_cross_entropy_with_logits(z, y), [z]),
        "weights": (lambda: fl.binary_cross_entropy_with_logits(z, y, weight=y, mask=mask), [z]),
        "grad of weight": (lambda: fl.binary_cross_entropy_with_logits(z, y, weight=a), [z, a]),
        "none": (lambda: fl.binary_cross_entropy_with_logits(z, y, reduction="none"), [z]),
        "focal": (lambda: fl.sigmoid_focal_loss(z, y, reduction="sum"), [z]),
        "layer": (lambda: layer(x, w, t, chunk_bytes=16 << 20), [x, w]),
        "pairs": (lambda: pairs(x, v, *pair, tile_bytes=16 << 20), [x, v]),
        # each tile of these allocates, for what it reads in fp32
        "fp16 layer": (lambda: layer(*half[:2], t.half(), chunk_bytes=4 << 20), half[:2]),
        "fp16 layer, none": (lambda: layer(*half[:2], t.half(), reduction="none", chunk_bytes=4 << 20), half[:2]),
        "fp16 pairs": (lambda: pairs(*half[::2], *pair, tile_bytes=4 << 20), half[::2]),
    }

    def limit(extra):
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, before[1]))

    before = resource.getrlimit(resource.RLIMIT_AS)

    @contextlib.contextmanager
    def memory(extra):
        limit(extra)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    done = 0  # tiles, of those that memory_until_tile counts

    @contextlib.contextmanager
    def memory_until_tile(op, last):
        global done
        kernel, done = getattr(fl.ops, op), 0

        def tile(*args):
            global done
            kernel(*args)
            done += 1
            if done == last:
                limit(1 << 16)

        setattr(fl.ops, op, tile)
        try:
            yield
        finally:
            setattr(fl.ops, op, kernel)
            resource.setrlimit(resource.RLIMIT_AS, before)

    def step(name, forward=None, backward=None):
        make, leaves = cases[name]
        for leaf in leaves:
            leaf.grad = None
        with forward or contextlib.nullcontext():
            loss = make()
        with backward or contextlib.nullcontext():
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
    environment.pop("FUSED_LOGISTIC_CACHE", None)
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is read from /proc")


@linux
def test_without_memory():
    """An address space that is full but for some MB, from none on, in the forward and in the backward pass."""
    code = (
        WITHOUT_MEMORY
        + """
    for name in cases:
        before_it = step(name)
        assert fails(name, forward=memory(1 << 16)), name
        in_backward = fails(name, backward=memory(1 << 16))
        for mb in (4, 9, 17, 30):
            fails(name, forward=memory(mb << 20)), fails(name, backward=memory(mb << 20))
        assert all(map(torch.equal, before_it, step(name))), name
        assert not fails(name, forward=memory(1 << 30), backward=memory(1 << 30)), name
        if in_backward:
            print(name)
    """
    )
    # the other gradients were made in the forward pass, and are multiplied in place
    assert run(code) == ["grad of weight", "none", "fp16 layer", "fp16 layer, none", "fp16 pairs"]


@linux
@pytest.mark.parametrize(
    ("name", "which", "op"),
    [
        ("fp16 layer", "forward", "bce_tile_"),
        ("fp16 layer", "backward", "bce_tile_"),
        ("fp16 layer, none", "forward", "bce_tile_"),
        ("fp16 layer, none", "backward", "bce_tile_"),
        ("fp16 pairs", "forward", "pairs_tile_"),
    ],
)
def test_without_memory_half_way(name, which, op):
    """From some tile on: the one after it may still find what it needs in what was freed."""
    code = (
        WITHOUT_MEMORY
        + f"""
    before_it = step({name!r})
    assert not fails({name!r}, {which}=memory_until_tile({op!r}, None))
    of_all = done
    for last in (1, 2, 3):
        assert fails({name!r}, {which}=memory_until_tile({op!r}, last))
        assert last <= done < of_all, (last, done)
    assert all(map(torch.equal, before_it, step({name!r})))
    print(of_all)
    """
    )
    assert run(code) in (["4"], ["10"])


@linux
def test_without_memory_for_partial_sums():
    code = (
        WITHOUT_MEMORY
        + """
    huge = torch.zeros(1 << 28, dtype=torch.half)
    for extra in (1 << 16, 1 << 30):
        with memory(extra):
            try:
                print(fl.binary_cross_entropy_with_logits(huge, huge).item())
            except torch.OutOfMemoryError as error:
                print(error)
    """
    )
    assert run(code) == ["fused_logistic.bce.default: out of memory", str(torch.tensor(2.0).log().half().item())]


@linux
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
    assert run(code) == [str(1 << 22)]


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
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 5e-3))
            for _ in range(100):
                list(steps())
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:  # once: the timer has no interval
            seen += 1
            for got, expected in zip(steps(), want, strict=True):
                assert all(map(torch.equal, got, expected))
    print(seen)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM")
def test_interrupted():
    """KeyboardInterrupt, wherever Python can raise it: what comes next is as if it had not been."""
    assert run(INTERRUPTED) == ["150"]

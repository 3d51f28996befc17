"""The memory of large results: freed blocks are used again, and never while somebody holds them."""

import os
import subprocess
import sys

import pytest
import torch

from fused_logistic import _C, ops

N = 1 << 20  # 4 MB in fp32


@pytest.fixture(autouse=True)
def _empty():
    _C.empty_cache()
    yield
    _C.empty_cache()


def gradient(n=N):
    return ops.bce_with_grad(torch.randn(n), torch.rand(n), None, None, None, None, ops.SUM, torch.float)[1]


def test_a_freed_block_is_used_again():
    first = gradient()
    address = first.data_ptr()
    assert address % 64 == 0 and _C.cached_bytes() == 0
    del first
    assert _C.cached_bytes() == 4 * N
    assert gradient().data_ptr() == address


def test_a_block_in_use_is_not():
    first = gradient()
    copy = first.clone()
    view = first[1:]
    del first
    others = [gradient() for _ in range(4)]
    assert all(other.data_ptr() != view.data_ptr() - 4 for other in others)
    assert torch.equal(view, copy[1:])


def test_at_most_two_blocks_are_kept():
    grads = [gradient(N + 1024 * i) for i in range(5)]
    while grads:
        del grads[0]
    assert _C.cached_bytes() == 4 * (N + 3 * 1024) + 4 * (N + 4 * 1024)
    _C.empty_cache()
    assert _C.cached_bytes() == 0


def test_small_results_are_not_kept():
    del_me = gradient(1000)
    del del_me
    assert _C.cached_bytes() == 0


def test_the_result_is_an_ordinary_tensor():
    grad = gradient()
    want = grad.clone()
    grad.mul_(2)
    assert torch.equal(grad, 2 * want)
    assert torch.equal(torch.from_numpy(grad.numpy().copy()), grad)


def test_environment_variable_turns_it_off():
    code = (
        "import torch; from fused_logistic import _C, ops; n = 1 << 20; "
        "ops.bce_with_grad(torch.randn(n), torch.rand(n), None, None, None, None, 2, torch.float); "
        "print(_C.cached_bytes())"
    )
    for setting, kept in (("0", 0), ("1", 4 * N)):
        environment = {**os.environ, "FUSED_LOGISTIC_CACHE": setting}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.stdout.strip() == str(kept), result.stderr


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_result_past_the_caches_is_that_of_its_parts(dtype, weighted, isa):
    """So is one of 16 MB or more written (csrc/cpu/source.h); here its last row is no whole number of vectors."""
    n, part = (16 << 20) // dtype.itemsize + 1003, 1 << 19
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, dtype=dtype, generator=generator)
    target, weight = torch.rand(2, n, dtype=dtype, generator=generator)

    def gradients(z, y, w):
        return ops.bce_with_grad(z, y, w if weighted else None, None, None, None, ops.SUM, dtype)[1]

    whole = gradients(logits, target, weight)
    parts = [gradients(*of) for of in zip(logits.split(part), target.split(part), weight.split(part), strict=True)]
    assert whole.data_ptr() % 64 == 0 and whole.equal(torch.cat(parts))

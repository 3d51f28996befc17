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

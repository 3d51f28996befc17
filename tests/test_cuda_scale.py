"""The CUDA kernel that scales a gradient, executed as PTX in an interpreter, against torch: the same bits."""

import ctypes

import pytest
import torch
from conftest import DTYPES, same_bits
from cuda_kernels import CODES, CSRC, load, place, unexecuted
from ptx import Memory

from fused_logistic import matrices

TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "fused_logistic::Half",
    torch.bfloat16: "fused_logistic::BFloat16",
}


class Launch(ctypes.Structure):
    """csrc/cuda/scale.h"""

    _fields_ = [
        ("gradient", ctypes.c_uint64),
        ("dtype", ctypes.c_int8),
        ("numel", ctypes.c_int64),
        ("factor", ctypes.c_uint64),
        ("factor_dtype", ctypes.c_int8),
        ("aligned", ctypes.c_bool),
    ]


@pytest.fixture(scope="module")
def kernels():
    return load(80, CSRC / "cuda" / "scale.cu")


def scaled(kernels, gradient, factor, offset=0, readonly=False):
    memory, skipped = Memory(), offset * gradient.element_size()
    raw = torch.cat([torch.zeros(skipped, dtype=torch.uint8), gradient.view(torch.uint8)])
    buffer = memory.array(raw.numpy(), readonly=readonly)
    number = place(memory, factor, 0)
    launch = Launch(
        buffer.addr + skipped, CODES[gradient.dtype], gradient.numel(), number, CODES[factor.dtype], offset == 0
    )
    done = kernels[f"scale_kernel<{TYPES[gradient.dtype]}>"].launch(2, 256, [bytes(launch)], mem=memory)
    assert not done.warnings
    return torch.from_numpy(buffer.read()[skipped:].copy()).view(gradient.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaled(kernels, dtype):
    """Several turns of a thread, a ragged end, misaligned; any factor, 0 among the gradients."""
    gradient = torch.randn(2 * 2 * 1024 + 7).to(dtype)
    gradient[::5], gradient[1::7] = 0.0, -0.0
    for turn, number in enumerate([0.3, -2.0, 65536.0, 0.0, torch.inf, torch.nan]):
        factor = torch.tensor(number, dtype=DTYPES[turn % 4])
        expected = gradient.clone()
        if factor.isfinite():
            expected.mul_(factor.item())
        else:
            matrices.scale_(expected, factor)
            assert (expected[::5] == 0).all()
        assert same_bits(scaled(kernels, gradient, factor, offset=turn % 2), expected)
    assert same_bits(scaled(kernels, gradient, torch.ones(1), readonly=True), gradient)  # nothing is written


def test_all_is_executed(kernels):
    """By the test above; run alone, this one says what it would have."""
    if not any(instruction.hits for kernel in kernels.kernels.values() for instruction in kernel.program.code):
        pytest.skip("the other test of this file has not run")
    assert unexecuted(kernels) == []

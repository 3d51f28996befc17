"""What the tests share: the instruction sets, the devices, and how far a value is from the truth."""

from __future__ import annotations

import pytest
import torch

from fused_logistic import _C

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request):
    """Runs the test on one instruction set after the other."""
    if request.param not in _C.isas_built():
        pytest.skip(f"{request.param} kernels are not in this build (another architecture)")
    if request.param not in _C.isas_supported():
        pytest.skip(f"this CPU does not support {request.param}")
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def first_requires_grad(arguments: tuple, asked: bool) -> tuple:
    """The arguments, of which the first is made to require a gradient if that is asked for and possible."""
    first = arguments[0]
    if asked and isinstance(first, torch.Tensor) and first.is_floating_point():
        return (first.clone().requires_grad_(), *arguments[1:])
    return arguments


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, all NaNs being one value."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    bits = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bool((bits | (a.isnan() & b.isnan())).all())

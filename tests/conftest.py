"""What the tests share: the instruction sets, the devices, and how far a value is from the truth."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from fused_logistic import _C, autograd, divisor, made_for, ops
from fused_logistic.options import Options

# The same inputs each time, whatever failed in the run before; `search` looks at others in each, and at many more.
# Nothing is judged by the clock: machines are shared.
_TIMELESS = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, **_TIMELESS)
settings.register_profile("search", max_examples=3000, **_TIMELESS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.manual_seed(0)  # for what the tests' modules draw as they are imported; each test seeds again

REDUCTIONS = ["none", "mean", "sum"]
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
    made_for._last.clear()  # no test sees for which grad_output another one had gradients made


def _count(target, mask, reduction, ignore_index, ignore_nan):
    partial = reduction == ops.MEAN and (mask is not None or ignore_index is not None or ignore_nan)
    return ops.bce_count(target, mask, ignore_index, ignore_nan) if partial else None


def loss_arguments(logits, target, weight=None, pos_weight=None, mask=None, reduction=ops.MEAN, label_smoothing=0.0,
                   ignore_index=None, dtype=None, gamma=None, alpha=None, ignore_nan=False, **others):  # fmt: skip
    """The arguments of ops.bce and bce_with_grad in their order, dtype and count as the public functions give them."""
    dtype = dtype or autograd.loss_dtype(logits, target)
    count = _count(target, mask, reduction, ignore_index, ignore_nan)
    options = Options(label_smoothing, ignore_index, gamma, alpha, ignore_nan=ignore_nan, **others)
    return logits, target, weight, pos_weight, mask, count, reduction, dtype, *options


def grad_arguments(logits, target, weight=None, pos_weight=None, mask=None, reduction=ops.MEAN, label_smoothing=0.0,
                   ignore_index=None, wrt=ops.LOGITS, gamma=None, alpha=None, ignore_nan=False, **others):  # fmt: skip
    """Those of ops.bce_backward after grad_output."""
    count = _count(target, mask, reduction, ignore_index, ignore_nan)
    options = Options(label_smoothing, ignore_index, gamma, alpha, ignore_nan=ignore_nan, **others)
    return logits, target, weight, pos_weight, mask, count, reduction, wrt, *options


def layer_arguments(input, linear_weight, linear_bias, target, crow=None, col=None, weight=None, pos_weight=None,
                    mask=None, reduction=ops.MEAN, label_smoothing=0.0, ignore_index=None, chunk_bytes=None, dtype=None,
                    output_mask=None, backward=False):  # fmt: skip
    """Those of linear_bce; with ``output_mask`` of linear_bce_with_grad or, ``backward``, of linear_bce_backward."""
    dtype, count = dtype or autograd.loss_dtype(input, target), None
    if reduction == ops.MEAN and (mask is not None or ignore_index is not None):
        shape = *input.shape[:-1], *linear_weight.shape[:-1]
        count = divisor.of(None, shape, (target, crow, col), None, mask, Options(0.0, ignore_index))
    last = (*([] if backward else [dtype]), *([] if output_mask is None else [output_mask]))
    return (input, linear_weight, linear_bias, target, crow, col, weight, pos_weight, mask, count, reduction,
            chunk_bytes, *last, label_smoothing, ignore_index)  # fmt: skip


def tile_arguments(logits, target, weight=None, pos_weight=None, mask=None, grad_output=None, scale=1.0, losses=None,
                   loss_sum=None, bias_sum=None, crow=None, col=None, count=None, label=0, whole=True, wants_grad=True,
                   label_smoothing=0.0, ignore_index=None, gamma=None, alpha=None, ignore_nan=False):  # fmt: skip
    """Those of bce_tile_."""
    options = Options(label_smoothing, ignore_index, gamma, alpha, ignore_nan=ignore_nan)
    return (logits, losses, loss_sum, bias_sum, target, crow, col, weight, pos_weight, mask, grad_output, count, scale,
            label, whole, wants_grad, *options)  # fmt: skip


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, all NaNs being one value."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    bits = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bool((bits | (a.isnan() & b.isnan())).all())


def result_of(results, *name):
    """Of a case that several processes have run, where one that raised left its traceback."""
    for of_rank in results:
        if isinstance(of_rank[name], str):
            pytest.fail(of_rank[name])
    return [of_rank[name] for of_rank in results]

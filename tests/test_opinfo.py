"""PyTorch's own test cases: the samples of its OpInfo of this loss through our function, as the OpInfo's flags say."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.testing._internal.common_methods_invocations import op_db

import fused_logistic as fl

(OPINFO,) = (op for op in op_db if op.name == "nn.functional.binary_cross_entropy_with_logits")
DTYPES = sorted(OPINFO.supported_dtypes("cpu"), key=str)
# half precision: the rounding of the stored type
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def samples(dtype=torch.double, requires_grad=False):
    found = list(OPINFO.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert len(found) > 10
    return found


def tensors_and_rest(sample):
    """(floating operands that are differentiated, a function of them)."""
    operands = {"input": sample.input, **dict(zip(("target",), sample.args, strict=True)), **sample.kwargs}
    names = [k for k, v in operands.items() if isinstance(v, torch.Tensor) and v.requires_grad]

    def function(*leaves):
        return fl.binary_cross_entropy_with_logits(**{**operands, **dict(zip(names, leaves, strict=True))})

    return tuple(operands[name] for name in names), function


def test_the_flags_are_those_tested_here():
    """Should a torch add a capability to its loss, this says so."""
    assert OPINFO.supports_autograd and OPINFO.supports_gradgrad
    assert OPINFO.supports_forward_ad and OPINFO.supports_fwgrad_bwgrad
    assert set(DTYPES) == {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype):
    """Half precision against torch in fp64 on the same numbers: torch's own is off by half of the value there."""
    for sample in samples(dtype):
        ours = fl.binary_cross_entropy_with_logits(sample.input, *sample.args, **sample.kwargs)
        exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}
        torchs = OPINFO.op(sample.input.double(), sample.args[0].double(), **exact)
        assert ours.dtype == dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(ours.double(), torchs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize > 2], ids=str)
def test_gradients_are_torchs(dtype):
    for sample in samples(dtype, requires_grad=True):
        leaves, function = tensors_and_rest(sample)
        ours = function(*leaves)
        torchs = OPINFO.op(sample.input, *sample.args, **sample.kwargs)
        factor = torch.rand_like(ours)
        got = torch.autograd.grad(ours, leaves, factor)
        for a, b in zip(got, torch.autograd.grad(torchs, leaves, factor), strict=True):
            torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.slow
def test_gradcheck_with_forward_ad_and_batched_gradients():
    checked = 0
    for sample in samples(requires_grad=True):
        leaves, function = tensors_and_rest(sample)
        assert gradcheck(
            function,
            leaves,
            check_forward_ad=OPINFO.supports_forward_ad,
            check_batched_grad=OPINFO.check_batched_grad,
            check_batched_forward_grad=OPINFO.check_batched_forward_grad,
            check_undefined_grad=True,
        )
        checked += len(leaves)
    assert checked > 10


@pytest.mark.slow
def test_gradgradcheck_with_forward_over_reverse():
    for sample in samples(requires_grad=True):
        leaves, function = tensors_and_rest(sample)
        assert gradgradcheck(
            function,
            leaves,
            check_fwd_over_rev=OPINFO.supports_fwgrad_bwgrad,
            check_batched_grad=OPINFO.check_batched_gradgrad,
        )


def test_vmap():
    """Three copies of each sample, stacked at every dimension of the logits; the other operands at the front."""
    for sample in samples():
        operands = {"input": sample.input, "target": sample.args[0], **sample.kwargs}
        names = [k for k, v in operands.items() if isinstance(v, torch.Tensor)]
        for dim in range(sample.input.dim() + 1):

            def function(*tensors, operands=operands, names=names, loss=None):
                return loss(**{**operands, **dict(zip(names, tensors, strict=True))})

            dims = [dim] + [0] * (len(names) - 1)
            stacked = [
                torch.stack([operands[name] * factor for factor in (1.0, 0.5, 0.25)], d)
                for name, d in zip(names, dims, strict=True)
            ]
            ours, torchs = (
                vmap(lambda *t, loss=loss: function(*t, loss=loss), tuple(dims))(*stacked)
                for loss in (fl.binary_cross_entropy_with_logits, OPINFO.op)
            )
            torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-12)


def test_errors_of_torch_are_errors_here():
    refused = list(OPINFO.error_inputs("cpu")) if OPINFO.error_inputs_func else []
    for case in refused:
        with pytest.raises(case.error_type):
            fl.binary_cross_entropy_with_logits(
                case.sample_input.input, *case.sample_input.args, **case.sample_input.kwargs
            )
    with pytest.raises(ValueError, match="target"):
        fl.binary_cross_entropy_with_logits(torch.rand(3), torch.rand(4))

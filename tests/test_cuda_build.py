"""What a build without CUDA does with a CUDA tensor, and one with it has for every op."""

import os
import subprocess
import sys

import pytest
import torch

from fused_logistic import _C, ops

# What a tensor of a device without kernels reaches (see test_every_op_has_a_composition); here with tensors of the CPU.
ELSEWHERE = torch._C.DispatchKey.CompositeExplicitAutograd


def registered(key):
    found = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {op for op in found if op.startswith("fused_logistic::")}


def test_all_ops_or_none():
    assert registered("CPU") and registered("CUDA") == (registered("CPU") if _C.CUDA_ARCHS is not None else set())


def test_every_op_has_a_cuda_kernel():
    if os.environ.get("FORCE_CUDA") != "1":
        pytest.skip("FORCE_CUDA=1 is not set: the build may be for the CPU alone")
    assert _C.CUDA_ARCHS is not None and registered("CUDA") == registered("CPU")


@pytest.mark.parametrize("op", sorted(registered("CPU")))
def test_every_op_has_a_composition(op):
    """On any device: with CUDA in the build, on those that are neither it nor the CPU."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CompositeExplicitAutograd")
    computed = torch._C._dispatch_dump_table(op)
    for key in ("XLA", "MPS", *([] if _C.CUDA_ARCHS else ["CUDA"])):
        line = next(line for line in computed.splitlines() if line.startswith(f"{key}: "))
        assert line.endswith("[default backend kernel]"), line


@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_without_a_kernel_the_result_is_the_same(reduction):
    logits, target = torch.randn(40, 7).double(), torch.rand(40, 7).double()
    weights = torch.rand(7).double(), 3 * torch.rand(40, 1).double()
    options = (*weights, torch.rand(40, 7) < 0.8, reduction, 0.1, None)
    close = torch.testing.assert_close
    close(ops.bce._op_dk(ELSEWHERE, logits, target, *options, None), ops.bce(logits, target, *options, None))
    grad_output = torch.rand(40, 7).double()
    for wrt in range(4):
        arguments = (grad_output, logits, target, *options, wrt)
        close(ops.bce_backward._op_dk(ELSEWHERE, *arguments), ops.bce_backward(*arguments))
    if reduction != ops.NONE:
        arguments = (logits, target, *options, None)
        for result, expected in zip(
            ops.bce_with_grad._op_dk(ELSEWHERE, *arguments), ops.bce_with_grad(*arguments), strict=True
        ):
            close(result, expected)
    scaled = logits.clone()
    ops.scale_._op_dk(ELSEWHERE, scaled, torch.tensor(2.5))
    close(scaled, logits * 2.5)


def test_one_warning():
    program = """
import torch
from fused_logistic import ops
x = torch.zeros(3)
for _ in range(3):
    ops.bce._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, x, x, None, None, None, 1, 0.0, None, None)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    message = "fused_logistic: no kernel for device cpu in this build; computing with torch's operations"
    assert run.stderr.count(message) == 1, run.stderr

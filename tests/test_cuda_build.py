"""What a build without CUDA does with a CUDA tensor, and one with it has for every op."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import grad_arguments, loss_arguments

from fused_logistic import _C, ops

pytestmark = pytest.mark.filterwarnings("ignore:fused_logistic. no kernel for device")

# What a tensor of a device without kernels reaches (see test_every_op_has_a_composition); here with tensors of the CPU.
ELSEWHERE = torch._C.DispatchKey.CompositeExplicitAutograd


def registered(key):
    found = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {op for op in found if op.startswith("fused_logistic::")}


NEITHER = {"fused_logistic::linear_bce_single", "fused_logistic::pairs_tile_"}  # what is around them stands in for them
LOSSES = sorted(registered("CPU") - NEITHER)
ON_CUDA = {*LOSSES, *NEITHER, "fused_logistic::scale_"}  # on the CPU the factor is known, and torch multiplies by it


def test_all_ops_or_none():
    on_cuda = _C.CUDA_ARCHS is not None and torch.backends.cuda.is_built()
    assert registered("CPU") and registered("CUDA") == (ON_CUDA if on_cuda else set())


def test_every_op_has_a_cuda_kernel():
    if os.environ.get("FORCE_CUDA") != "1":
        pytest.skip("FORCE_CUDA=1 is not set: the build may be for the CPU alone")
    assert _C.CUDA_ARCHS is not None and registered("CUDA") == ON_CUDA


@pytest.mark.parametrize("op", LOSSES)
def test_every_op_has_a_composition(op):
    """On any device: with CUDA in the build, on those that are neither it nor the CPU."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CompositeExplicitAutograd")
    computed = torch._C._dispatch_dump_table(op)
    for key in ("XLA", "MPS", *([] if registered("CUDA") else ["CUDA"])):
        line = next(line for line in computed.splitlines() if line.startswith(f"{key}: "))
        assert line.endswith("[default backend kernel]"), line


@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_without_a_kernel_the_result_is_the_same(reduction):
    logits, target = torch.randn(40, 7).double(), torch.rand(40, 7).double()
    weights = torch.rand(7).double(), 3 * torch.rand(40, 1).double()
    operands = (logits, target, *weights, torch.rand(40, 7) < 0.8)
    close = torch.testing.assert_close
    arguments = loss_arguments(*operands, reduction, 0.1)
    close(ops.bce._op_dk(ELSEWHERE, *arguments), ops.bce(*arguments))
    grad_output = torch.rand(40, 7).double()
    for wrt in range(4):
        wanted = grad_output, *grad_arguments(*operands, reduction, 0.1, None, wrt)
        close(ops.bce_backward._op_dk(ELSEWHERE, *wanted), ops.bce_backward(*wanted))
    if reduction == ops.NONE:
        return
    results, expected = ops.bce_with_grad._op_dk(ELSEWHERE, *arguments), ops.bce_with_grad(*arguments)
    for result, value in zip(results, expected, strict=True):
        close(result, value)
    three = torch.tensor(3.0).double()
    shared = arguments[:7] + arguments[8:]
    made = [grad.clone() for grad in (results[1], expected[1])]
    ops.bce_backward_._op_dk(ELSEWHERE, made[0], three, None, *shared)
    ops.bce_backward_(made[1], three, None, *shared)
    close(made[0], made[1])
    close(made[1], 3 * expected[1])
    close(ops.bce_count._op_dk(ELSEWHERE, target, operands[4], None), ops.bce_count(target, operands[4], None))


def test_one_warning():
    program = """
import torch
from fused_logistic import ops
x = torch.zeros(3)
for _ in range(3):
    ops.bce._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, x, x, None, None, None, None, 1, torch.float)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    message = "fused_logistic: no kernel for device cpu in this build; computing with torch's operations"
    assert run.stderr.count(message) == 1, run.stderr

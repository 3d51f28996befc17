"""torch's flop counter counts the layer as nn.Linear and the loss."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import layer_arguments

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def training_step(function, needs, shape, labels, dtype, bias, reduction, make_target):
    x, w = torch.randn(*shape, 8, dtype=dtype), torch.randn(labels, 8, dtype=dtype)
    b = torch.randn(labels, dtype=dtype) if bias else None
    leaves = [t for t, need in zip((x, w, b), needs, strict=True) if need and t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = function(x, w, b, make_target(torch.ones(*shape, labels, dtype=dtype)), reduction)
    if leaves:
        loss.sum().backward()


def ours(x, w, b, target, reduction):
    return fl.linear_binary_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)


def torchs(x, w, b, target, reduction):
    return F.binary_cross_entropy_with_logits(F.linear(x, w, b), target.to_dense(), reduction=reduction)


CASES = {
    "no bias": {"bias": False},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "leading": {"shape": (2, 3)},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": torch.bfloat16},
    "csr": {"make_target": torch.Tensor.to_sparse_csr},
    "coo": {"make_target": torch.Tensor.to_sparse},
}


@pytest.mark.parametrize("needs", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("case", ["plain", *CASES])
def test_training_step(case, labels, needs):
    defaults = {"shape": (6,), "dtype": torch.float32, "bias": True, "reduction": "mean", "make_target": lambda t: t}
    how = {**defaults, **CASES.get(case, {}), "needs": needs, "labels": labels}
    got, want = (flops(lambda f=f: training_step(f, **how)) for f in (ours, torchs))
    assert got == want == 2 * 6 * 8 * labels * (1 + needs[0] + needs[1])


def test_weight_without_labels():
    x, w = torch.randn(6, 8), torch.randn(8, requires_grad=True)
    assert flops(lambda: fl.linear_binary_cross_entropy(x, w, torch.ones(6)).backward()) == 2 * 2 * 6 * 8


def test_no_grad_and_compiled():
    head, x, y = fl.LinearBCEWithLogitsLoss(8, 5), torch.randn(6, 8), torch.ones(6, 5)
    with torch.no_grad():
        assert flops(lambda: head(x, y)) == 2 * 6 * 8 * 5
    compiled = torch.compile(head, backend="aot_eager")
    compiled(x, y)
    assert flops(lambda: compiled(x, y).backward()) == 2 * 2 * 6 * 8 * 5


def test_raw_ops():
    x, w, b, y = torch.randn(6, 8), torch.randn(1, 8), torch.randn(1), torch.ones(6, 1)
    mask, product = [True, False, True], 2 * 6 * 8
    single = y[:, 0], None, None, None
    last = None, ops.SUM, torch.float32, mask
    for function, products in (
        (lambda: ops.linear_bce(*layer_arguments(x, w, b, y)), 1),
        (lambda: ops.linear_bce_with_grad(*layer_arguments(x, w, b, y, output_mask=mask)), 2),
        (
            lambda: ops.linear_bce_backward(
                torch.ones(()), *layer_arguments(x, w, b, y, output_mask=mask, backward=True)
            ),
            1,
        ),
        (lambda: ops.linear_bce_single(x, w[0], b, *single, None, *last), 2),
        (lambda: ops.linear_bce_single(x, w[0], b, *single, torch.ones(()), *last), 1),
    ):
        assert flops(function) == products * product


@pytest.mark.parametrize("first", ["fused_logistic", "torch.utils.flop_counter"])
def test_in_any_order_of_imports(first):
    """And the counter stays unimported until somebody wants it, whoever asks whether it is there."""
    code = f"""
import importlib.util, sys, {first}, torch
if {first!r} == "fused_logistic":
    assert "torch.utils.flop_counter" not in sys.modules and importlib.util.find_spec("torch.utils.flop_counter")
import fused_logistic, torch.utils.flop_counter as counter
assert torch.ops.fused_logistic.linear_bce in counter.flop_registry
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

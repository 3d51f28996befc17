"""Handles on the ops of the whole layer, linear + sigmoid + binary cross entropy, and their fake kernels and vmap rules.

The ops share the parameters ``(input, linear_weight, linear_bias, target, crow_indices, col_indices, weight, pos_weight,
reduction, label_smoothing, ignore_index, chunk_bytes, dtype)``. A sparse target comes as its values and indices.
``output_mask``: which of the gradients for input, linear_weight and linear_bias are asked for; the others are empty.

========================  ============================================================================================
``linear_bce``            the loss, reduced as asked
``linear_bce_with_grad``  ``(..., output_mask) -> (loss, grad_input, grad_weight, grad_bias)`` of the reduced loss
``linear_bce_backward``   ``(grad_output, ..., output_mask) -> (grad_input, grad_weight, grad_bias)``
========================  ============================================================================================

The schemas, kernels and the chunks of logits stand in ``csrc/linear.cpp`` and beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops

linear_bce = torch.ops.fused_logistic.linear_bce.default
linear_bce_with_grad = torch.ops.fused_logistic.linear_bce_with_grad.default
linear_bce_backward = torch.ops.fused_logistic.linear_bce_backward.default

_OP = "linear_binary_cross_entropy"


# ---- Shapes and dtypes without data (torch.compile, torch.export, meta tensors) ----------------------------------


def _fake_linear_bce(input, linear_weight, linear_bias, target, crow, col, weight, pos_weight, reduction, *options):
    dtype = options[-1] or (target.dtype if target.is_floating_point() else input.dtype)
    torch._check_value(
        input.shape[-1] == linear_weight.shape[-1],
        lambda: f"{_OP}: expected input of {linear_weight.shape[-1]} features, got {list(input.shape)}",
    )
    shape = [*input.shape[:-1], *linear_weight.shape[:-1]]
    if crow is None:
        same = len(shape) == target.dim() and all(a == b for a, b in zip(shape, target.shape, strict=True))
        torch._check_value(same, lambda: f"{_OP}: expected target of shape {shape}, got {list(target.shape)}")
    return input.new_empty(shape if reduction == ops.NONE else (), dtype=dtype)


def _fake_grads(input, linear_weight, linear_bias, output_mask):
    likes = (input, linear_weight, linear_bias)
    return tuple(
        input.new_empty(like.shape) if wanted and like is not None else input.new_empty((0,))
        for like, wanted in zip(likes, output_mask, strict=True)
    )


def _fake_linear_bce_with_grad(*args):
    *shared, output_mask = args
    return _fake_linear_bce(*shared), *_fake_grads(*shared[:3], output_mask)


def _fake_linear_bce_backward(grad_output, *args):
    *shared, output_mask = args
    return _fake_grads(*shared[:3], output_mask)


torch.library.register_fake("fused_logistic::linear_bce", _fake_linear_bce)
torch.library.register_fake("fused_logistic::linear_bce_with_grad", _fake_linear_bce_with_grad)
torch.library.register_fake("fused_logistic::linear_bce_backward", _fake_linear_bce_backward)


# ---- vmap --------------------------------------------------------------------------------------------------------
# The composition of linear and the elementwise op, each of which has its own rule.


def _dense(target: Tensor, crow: Tensor, col: Tensor, rows: int, labels: int) -> Tensor:
    row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff(), output_size=col.numel())
    return target.new_zeros(rows * labels).index_add(0, row * labels + col, target).view(rows, labels)


def composed(*args: Any) -> Tensor:
    """``linear_bce`` as linear and the elementwise op: whole logits, differentiable in every operand, to any order."""
    logits, target = _logits_and_target(*args[:6])
    weight, pos_weight, reduction, label_smoothing, ignore_index, _, dtype = args[6:]
    return ops.bce(logits, target, weight, pos_weight, None, reduction, label_smoothing, ignore_index, dtype)


def _logits_and_target(input, linear_weight, linear_bias, target, crow, col):
    if linear_weight.dim() == 2:
        logits = F.linear(input, linear_weight, linear_bias)
    else:
        logits = input @ linear_weight
        logits = logits if linear_bias is None else logits + linear_bias.reshape(())
    return logits, target if crow is None else _dense(target, crow, col, *logits.shape)


def _composed_backward(grad_output, *args):
    *shared, output_mask = args
    input, linear_weight, linear_bias = shared[:3]
    logits, target = _logits_and_target(*shared[:6])
    weight, pos_weight, reduction, label_smoothing, ignore_index, _, _ = shared[6:]
    options = (reduction, label_smoothing, ignore_index, ops.LOGITS)
    grad = ops.bce_backward(grad_output, logits, target, weight, pos_weight, None, *options)
    rows = grad.reshape(-1, linear_weight.shape[0] if linear_weight.dim() == 2 else 1)
    absent = input.new_empty(0)
    grad_input, grad_weight, grad_bias = absent, absent, absent
    if output_mask[0]:
        grad_input = (rows @ linear_weight.reshape(rows.shape[-1], -1)).reshape(input.shape)
    if output_mask[1]:
        grad_weight = (rows.t() @ input.reshape(rows.shape[0], -1)).reshape(linear_weight.shape)
    if output_mask[2] and linear_bias is not None:
        grad_bias = rows.sum(0).reshape(linear_bias.shape)
    return grad_input, grad_weight, grad_bias


def _composed_with_grad(*args):
    one = torch.ones((), dtype=args[0].dtype, device=args[0].device)
    return composed(*args[:-1]), *_composed_backward(one, *args)


def _vmap_rule(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
        dims = tuple(dim if isinstance(arg, Tensor) else None for dim, arg in zip(in_dims, args, strict=True))
        out = torch.vmap(lambda *tensors: function(*tensors), dims)(*args)
        return out, 0 if outputs == 1 else (0,) * outputs

    return rule


torch.library.register_vmap("fused_logistic::linear_bce", _vmap_rule(composed, 1))
torch.library.register_vmap("fused_logistic::linear_bce_with_grad", _vmap_rule(_composed_with_grad, 4))
torch.library.register_vmap("fused_logistic::linear_bce_backward", _vmap_rule(_composed_backward, 3))

"""Handles on the ops of the whole layer, linear + sigmoid + binary cross entropy; their fake kernels and vmap rules.

The ops share the parameters ``(input, linear_weight, linear_bias, target, crow_indices, col_indices, weight,
pos_weight, reduction, label_smoothing, ignore_index, chunk_bytes, dtype)``. A sparse target comes as its values and
indices.
``output_mask``: which of the gradients for input, linear_weight and linear_bias are asked for; the others are empty.

========================  ============================================================================================
``linear_bce``            the loss, reduced as asked
``linear_bce_with_grad``  ``(..., output_mask) -> (loss, grad_input, grad_weight, grad_bias)`` of the reduced loss
``linear_bce_backward``   ``(grad_output, ..., output_mask) -> (grad_input, grad_weight, grad_bias)``
========================  ============================================================================================

The schemas, kernels and the chunks of logits stand in ``csrc/linear.cpp`` and beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def _fake_grads(likes, output_mask):
    input = likes[0]
    return tuple(
        input.new_empty(like.shape) if wanted and like is not None else input.new_empty((0,))
        for like, wanted in zip(likes, output_mask, strict=True)
    )


def _fake_linear_bce_with_grad(*args):
    *shared, output_mask = args
    return _fake_linear_bce(*shared), *_fake_grads(shared[:3], output_mask)


def _fake_linear_bce_backward(grad_output, *args):
    *shared, output_mask = args
    return _fake_grads(shared[:3], output_mask)


torch.library.register_fake("fused_logistic::linear_bce", _fake_linear_bce)
torch.library.register_fake("fused_logistic::linear_bce_with_grad", _fake_linear_bce_with_grad)
torch.library.register_fake("fused_logistic::linear_bce_backward", _fake_linear_bce_backward)


# ---- The composition ---------------------------------------------------------------------------------------------


def _dense(target: Tensor, crow: Tensor, col: Tensor, rows: int, labels: int) -> Tensor:
    """As ``dense_target`` in ``csrc/linear.cpp``, but for what is not known before it runs: a compiled graph, vmap."""
    rising = (crow[0] == 0) & (crow[-1] == col.numel()) & (crow.diff() >= 0).all()
    torch._assert_async(rising, f"{_OP}: expected crow_indices of a sparse target that rise from 0 to {col.numel()}")
    inside = ((col >= 0) & (col < labels)).all()
    torch._assert_async(inside, f"{_OP}: expected column indices of a sparse target in [0, {labels})")
    row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff(), output_size=col.numel())
    return target.new_zeros(rows * labels).index_add(0, row * labels + col, target).view(rows, labels)


def composed(*args: Any) -> Tensor:
    """``linear_bce`` as linear and the elementwise op: whole logits, differentiable in every operand, to any order."""
    input, linear_weight, linear_bias, target, crow, col = args[:6]
    weight, pos_weight, reduction, label_smoothing, ignore_index, _, dtype = args[6:]
    if linear_weight.dim() == 2:
        logits = F.linear(input, linear_weight, linear_bias)
    else:
        logits = input @ linear_weight
        logits = logits if linear_bias is None else logits + linear_bias.reshape(())
    target = target if crow is None else _dense(target, crow, col, *logits.shape)
    return ops.bce(logits, target, weight, pos_weight, None, reduction, label_smoothing, ignore_index, dtype)


# ---- vmap --------------------------------------------------------------------------------------------------------
# The composition, on the whole batch: batched products around the elementwise ops' own rules.


class _Batch:
    """input ``[batch or 1, rows, features]``, linear_weight ``[batch or 1, labels, features]`` and their logits."""

    def __init__(self, info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> None:
        def front(i: int) -> Tensor:
            return args[i].unsqueeze(0) if in_dims[i] is None else args[i].movedim(in_dims[i], 0)

        input, weight, self.has_labels = front(0), front(1), args[1].dim() - (in_dims[1] is not None) == 2
        self.batch, self.lead, self.weight_shape = info.batch_size, input.shape[1:-1], weight.shape[1:]
        self.input = input.reshape(input.shape[0], math.prod(self.lead), input.shape[-1])  # not -1: there may be 0
        self.weight = weight if self.has_labels else weight.unsqueeze(1)
        logits = self.input @ self.weight.transpose(1, 2)
        if args[2] is not None:
            bias = front(2)
            logits = logits + bias.reshape(bias.shape[0], 1, logits.shape[-1])
        self.rows = logits.shape[1:]  # of a sample, as a matrix
        out = (*self.lead, logits.shape[-1]) if self.has_labels else tuple(self.lead)
        logits = logits.expand(self.batch, *self.rows).reshape(self.batch, *out)
        target, target_dim = args[3], in_dims[3]
        if args[4] is not None:
            if any(dim is not None for dim in in_dims[3:6]):
                raise NotImplementedError(f"{_OP}: expected a sparse target that vmap does not batch")
            target = _dense(target, args[4], args[5], *out)
        self.tensors = logits, target, args[6], args[7], None
        self.dims = 0, target_dim, in_dims[6], in_dims[7], None

    def backward(self, grad: Tensor, output_mask: Sequence[bool], bias: Tensor | None) -> tuple[Tensor, ...]:
        rows = grad.reshape(self.batch, *self.rows)
        absent = grad.new_empty((self.batch, 0))
        grad_input, grad_weight, grad_bias = absent, absent, absent
        if output_mask[0]:
            grad_input = (rows @ self.weight).reshape(self.batch, *self.lead, self.weight.shape[-1])
        if output_mask[1]:
            grad_weight = (rows.transpose(1, 2) @ self.input).reshape(self.batch, *self.weight_shape)
        if output_mask[2] and bias is not None:
            grad_bias = rows.sum(1) if self.has_labels else rows.sum((1, 2)).reshape(self.batch, *(1,) * bias.dim())
        return grad_input, grad_weight, grad_bias


def _vmap_linear_bce(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
    batch, (reduction, smoothing, ignore_index, _, dtype) = _Batch(info, in_dims, args), args[8:]
    options = (reduction, smoothing, ignore_index, dtype)
    return ops._vmap_bce(info, (*batch.dims, *(None,) * 4), *batch.tensors, *options)


def _vmap_linear_bce_backward(info: Any, in_dims: Sequence[Any], grad_output: Tensor, *args: Any) -> Any:
    *shared, output_mask = args
    batch, (reduction, smoothing, ignore_index, _, _) = _Batch(info, in_dims[1:], shared), shared[8:]
    options = (reduction, smoothing, ignore_index, ops.LOGITS)
    dims = (in_dims[0], *batch.dims, *(None,) * 4)
    grad, _ = ops._vmap_bce_backward(info, dims, grad_output, *batch.tensors, *options)
    bias = args[2] if in_dims[3] is None else args[2].select(in_dims[3], 0)
    return batch.backward(grad, output_mask, bias), (0, 0, 0)


def _vmap_linear_bce_with_grad(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
    loss, _ = _vmap_linear_bce(info, in_dims[:-1], *args[:-1])
    one = torch.ones((), dtype=args[0].dtype, device=args[0].device)
    grads, _ = _vmap_linear_bce_backward(info, (None, *in_dims), one, *args)
    return (loss, *grads), (0, 0, 0, 0)


torch.library.register_vmap("fused_logistic::linear_bce", _vmap_linear_bce)
torch.library.register_vmap("fused_logistic::linear_bce_with_grad", _vmap_linear_bce_with_grad)
torch.library.register_vmap("fused_logistic::linear_bce_backward", _vmap_linear_bce_backward)

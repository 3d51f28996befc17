"""The ``torch.autograd.Function`` of the loss: the fast path of ordinary eager and compiled training.

What it does beyond calling the ops: for ``mean`` and ``sum`` the forward pass already computes the gradient for the
logits (one pass over memory for the whole training step), and the backward pass only multiplies by ``grad_output``, in
place, and not at all where that is 1. Everything else, double backward included, is left to the ops, which are
differentiable to any order by themselves (``csrc/composite.cpp``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops


class BinaryCrossEntropyWithLogits(torch.autograd.Function):
    """``apply(logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index, dtype)``."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        mask: Tensor | None,
        reduction: int,
        label_smoothing: float,
        ignore_index: int | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.options = (reduction, label_smoothing, ignore_index)
        ctx.gradient = None
        if reduction == ops.NONE or not ctx.needs_input_grad[0]:
            loss = ops.bce(
                logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index, dtype
            )
            gradient = None
        else:
            loss, gradient = ops.bce_with_grad(
                logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index, dtype
            )
        if torch.compiler.is_compiling():
            ctx.save_for_backward(logits, target, weight, pos_weight, mask, gradient)
        else:
            # The gradient is handed out once and may then be changed by whoever owns it, so it is no saved tensor:
            # a second backward call (retain_graph) computes it again from what is saved.
            ctx.save_for_backward(logits, target, weight, pos_weight, mask)
            ctx.gradient = gradient
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        reduction, label_smoothing, ignore_index = ctx.options
        compiling = torch.compiler.is_compiling()
        logits, target, weight, pos_weight, mask, *rest = ctx.saved_tensors

        def derivative(wrt: int) -> Tensor:
            return ops.bce_backward(
                grad_output, logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index, wrt
            )

        needs = ctx.needs_input_grad
        grad_logits = None
        if needs[0]:
            if compiling:
                gradient = rest[0]
            else:
                gradient, ctx.gradient = ctx.gradient, None
            if gradient is None or torch.is_grad_enabled():
                grad_logits = derivative(ops.LOGITS)
            elif compiling:
                grad_logits = gradient * grad_output
            else:
                ops.scale_(gradient, grad_output)
                grad_logits = gradient
        return (
            grad_logits,
            derivative(ops.TARGET) if needs[1] else None,
            derivative(ops.WEIGHT).sum_to_size(weight.shape) if needs[2] else None,
            derivative(ops.POS_WEIGHT).sum_to_size(pos_weight.shape) if needs[3] else None,
            None,
            None,
            None,
            None,
            None,
        )

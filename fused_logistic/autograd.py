"""The ``torch.autograd.Function`` of the loss: the chain rule in the form that ``torch.compile`` captures whole.

For ``mean`` and ``sum`` the forward pass already computes the gradient for the logits (one pass over memory for the
whole training step), and the backward pass only multiplies by ``grad_output``. Whatever differentiates further gets the
ops' own derivatives, which are right to any order (``csrc/composite.cpp``).

Eager code calls the ops directly: ``csrc/autograd.cpp`` is this Function in C++, at two thirds of the overhead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import linear_ops, ops


class BinaryCrossEntropyWithLogits(torch.autograd.Function):
    """``apply(logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index, dtype) -> loss``.

    The arguments are those of ``torch.ops.fused_logistic.bce``; see :mod:`fused_logistic.ops`.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, reduction, label_smoothing, ignore_index, _ = args
        ctx.options = reduction, label_smoothing, ignore_index
        gradient = None
        # fp16 has too few exponents to hold a gradient that is still to be multiplied by a loss scale
        if reduction == ops.NONE or not ctx.needs_input_grad[0] or tensors[0].dtype == torch.float16:
            loss = ops.bce(*args)
        else:
            loss, gradient = ops.bce_with_grad(*args)
        ctx.save_for_backward(*tensors, gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, gradient = ctx.saved_tensors
        _, _, weight, pos_weight, _ = tensors

        def derivative(wrt: int) -> Tensor:
            return ops.bce_backward(grad_output, *tensors, *ctx.options, wrt)

        logits_grad = target_grad = weight_grad = pos_weight_grad = None
        if ctx.needs_input_grad[0]:
            # `gradient` is a constant to autograd: only the op is right where the backward pass is differentiated
            ready = gradient is not None and not torch.is_grad_enabled()
            logits_grad = gradient * grad_output if ready else derivative(ops.LOGITS)
            logits_grad = logits_grad.to(tensors[0].dtype)
        if ctx.needs_input_grad[1]:
            target_grad = derivative(ops.TARGET)
        if ctx.needs_input_grad[2]:
            weight_grad = derivative(ops.WEIGHT).sum_to_size(weight.shape)
        if ctx.needs_input_grad[3]:
            pos_weight_grad = derivative(ops.POS_WEIGHT).sum_to_size(pos_weight.shape)
        return logits_grad, target_grad, weight_grad, pos_weight_grad, None, None, None, None, None


class LinearBinaryCrossEntropy(torch.autograd.Function):
    """``apply(*arguments of torch.ops.fused_logistic.linear_bce) -> loss``; see :mod:`fused_logistic.linear_ops`.

    Differentiable in input, linear_weight and linear_bias; the other operands must not require a gradient.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, ctx.options = args[:8], args[8:]
        ctx.output_mask = [tensor is not None and ctx.needs_input_grad[i] for i, tensor in enumerate(args[:3])]
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.options[0] == ops.NONE or args[0].dtype == torch.float16:  # fp16: see above
            loss = linear_ops.linear_bce(*args)
        else:
            loss, *gradients = linear_ops.linear_bce_with_grad(*args, ctx.output_mask)
        ctx.save_for_backward(*tensors, *gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, grad_input, grad_weight, grad_bias = ctx.saved_tensors
        gradients = [grad_input, grad_weight, grad_bias]
        if grad_input is None or torch.is_grad_enabled():
            gradients = linear_ops.linear_bce_backward(grad_output, *tensors, *ctx.options, ctx.output_mask)
        else:
            gradients = [(g * grad_output).to(g.dtype) for g in gradients]
        wanted = [g if asked else None for g, asked in zip(gradients, ctx.output_mask, strict=True)]
        return *wanted, *(None,) * 10

"""What is differentiated how: the autograd Functions, for eager and compiled code alike, and their rules.

For ``mean`` and ``sum`` the forward pass makes the gradient with the loss, in one pass over memory for the whole
training step. It is made for the ``grad_output`` that the backward pass of such a loss got last: 1 where a loss is the
root, another number where it is scaled or weighted. The backward pass hands it out, and makes it anew where
``grad_output`` is another number this time. Whatever differentiates further gets the ops' own derivatives, which are
right to any order (:mod:`fused_logistic.composite`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import (
    checks,
    checks_layer,
    checks_pairs,
    composite,
    composite_pairs,
    divisor,
    made_for,
    matrices,
    nested,
    ops,
    sharding,
    sparse,
    targets,
)
from .options import LOSS, Options

_unwrap = torch._C._functorch.unwrap_if_dead


# ---- Rules -----------------------------------------------------------------------------------------------------------


def made_early(reduction: int, *wanted: bool) -> bool:
    """Whether the forward pass makes gradients: where it ends in one number and some are wanted at all."""
    return reduction != ops.NONE and any(wanted)


def handed_out(grad_output: Tensor) -> bool:
    """Whether a backward pass may hand out what the forward pass made: a constant to whatever differentiates it."""
    return not torch.is_grad_enabled() and (torch.compiler.is_compiling() or not ops.transformed(grad_output))


def loss_dtype(input: Tensor, target: Tensor, promotes: bool = False) -> torch.dtype:
    """The dtype of the loss: the target's if that is a floating type, else the input's; float32 under autocast.

    ``promotes``: where the two differ it is what torch promotes them to, as for a loss composed of torch's operations.
    """
    dtype = target.dtype
    if dtype is torch.float32 and input.dtype is dtype:
        return dtype  # which none of the rules changes
    if promotes and dtype.is_floating_point and dtype != input.dtype:
        return torch.promote_types(input.dtype, dtype)
    if dtype != torch.float64 and torch.is_autocast_enabled(input.device.type):
        return torch.float32  # and nothing is cast: the kernels compute in float32 anyway
    return dtype if dtype.is_floating_point else input.dtype


# ---- The losses ------------------------------------------------------------------------------------------------------


class BinaryCrossEntropyWithLogits(torch.autograd.Function):
    """``apply(*operands, reduction, dtype, *options) -> loss``: the arguments of ``torch.ops.fused_logistic.bce``."""

    @staticmethod
    def covers(args: Sequence[Any]) -> bool:
        """Whether what requires a gradient gets one: always, but for the count."""
        return args[5] is None or not args[5].requires_grad

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:6])
        ctx.reduction, ctx.dtype, ctx.options = args[6], args[7], args[8:]
        if made_early(args[6], ctx.needs_input_grad[0]):
            ctx.made_for = made_for.expected(args[0], args[6], args[7])
            if ctx.made_for is made_for.ONE:
                loss, ctx.grad_logits = ops.call_loss(ops.bce_with_grad, *args)
            else:
                loss, ctx.grad_logits = ops.call_loss(ops.bce_with_grad_for, ctx.made_for.tensor, *args)
            return loss
        ctx.grad_logits = None
        return ops.call_loss(ops.bce, *args)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * len(needed)
        if handed_out(grad_output):
            # once: its new owner may change it. Taken and replaced in one go, for threads that share the graph
            grads[0], ctx.grad_logits = ctx.grad_logits, None
        if grads[0] is not None:
            value, made = made_for.known(grad_output), ctx.made_for
            is_finished = value is not None and value == made.value  # which is not 0: that has two signs
            if is_finished and True not in needed[1:4]:
                return tuple(grads)  # the operands stay packed: whether they have changed since does not matter
        operands = ctx.saved_tensors
        if grads[0] is None:
            if needed[0]:
                grads[0] = ops.bce_backward(grad_output, *operands, ctx.reduction, ops.LOGITS, *ctx.options)
        elif not is_finished:
            made_for.remember(made_for.kind_of(operands[0], ctx.reduction, ctx.dtype), grad_output, value)
            ops.call_loss(ops.bce_backward_, grads[0], grad_output, made.tensor, *operands, ctx.reduction, *ctx.options)
        if True in needed[1:4]:
            for wrt in (ops.TARGET, ops.WEIGHT, ops.POS_WEIGHT):
                if needed[wrt]:
                    # what an operand was expanded by is summed up by the engine
                    grads[wrt] = ops.bce_backward(grad_output, *operands, ctx.reduction, wrt, *ctx.options)
        return tuple(grads)


# What Function.apply comes to outside of torch.func, where the loss does not apply it: four times as fast.
_apply_eagerly = torch._C._FunctionBase.__dict__["apply"].__get__(None, BinaryCrossEntropyWithLogits)


def plain_loss(tensors: tuple[Any, ...], reduction: int) -> Tensor | None:
    """:func:`loss` of ``(input, target, weight, pos_weight, None)`` without options, a tenth of a small step faster.

    None where more than autograd may see it, or the input is of a subclass.
    """
    if type(tensors[0]) not in ops.PLAIN or _decided_later():
        return None
    return _apply_now(*tensors, None, reduction, loss_dtype(tensors[0], tensors[1]))


def loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    reduction: int,
    options: Options,
    promotes: bool = False,
    normalizer: str | Tensor | None = None,
) -> Tensor:
    """The loss of the public functions: of the op or, where a gradient may be asked for, of the Function."""
    plain = type(input) in ops.PLAIN
    if not plain and nested.is_jagged(input):
        return _nested_loss(input, target, weight, pos_weight, mask, reduction, options, promotes, normalizer)
    dtype, count = loss_dtype(input, target, promotes), None
    if reduction == ops.MEAN and (mask is not None or options.leaves_out or normalizer is not None):
        count = divisor.of(normalizer, input.shape, (target, None, None), weight, mask, options)
    if options.has_tensors:
        checks.loss(input, target, weight, pos_weight, mask, count, reduction, *options)
        if options.loss != LOSS:
            return composite.bce(input, target, weight, pos_weight, mask, count, reduction, dtype, *options)
        target, mask = composite.smoothed_target(input, *targets.resolved(input, target, mask, options))
        options = Options()
    apply, operands = _apply, (input, target, weight, pos_weight, mask)
    if not plain and sharding.is_dtensor(input) and reduction != ops.NONE:
        apply = functools.partial(sharding.reduced, _apply)
    if count is not None and divisor.is_differentiated(count):
        return divisor.divided(apply, operands, count, (), dtype, options)
    given = options if torch.compiler.is_compiling() else options.given()
    return apply(*operands, count, reduction, dtype, *given)


def _nested_loss(input: Tensor, *rest: Any) -> Tensor:
    operands, reduction, options, *others = rest[:4], *rest[4:]
    names = ("target", "weight", "pos_weight", "mask", *options._fields)
    tensors = dict(zip(names, (*operands, *options), strict=True))
    logits, target, weight, pos_weight, mask, *given = nested.values(options.loss, input, tensors)
    if targets.are_classes(logits.shape, target):  # of values, whose dimensions are others than the logits' own
        raise NotImplementedError(f"{options.loss}: expected a target of the nested logits' shape, got class indices")
    result = loss(logits, target, weight, pos_weight, mask, reduction, Options(*given), *others)
    return nested.like(input, result) if reduction == ops.NONE else result


def _apply(*args: Any) -> Tensor:
    if torch.compiler.is_exporting():  # to core operators, which load and convert without us
        checks.bce(*args)
        return composite.bce(*args)
    return ops.bce(*args) if _decided_later() else _apply_now(*args)


def _apply_now(*args: Any) -> Tensor:
    if ops.wrapped(args[0]) or ops.wrapped(args[1]):  # left over from a transform of torch.func that has ended
        args = tuple(_unwrap(a) if isinstance(a, Tensor) else a for a in args)
    if torch.is_grad_enabled() and (args[0].requires_grad or _any_requires_grad(args[1:4])):
        return _apply_eagerly(*args)
    return ops.call_loss(ops.bce, *args)


def _decided_later() -> bool:
    """Whether how to differentiate is left to the op (:mod:`fused_logistic.registration`): it is captured, or seen by a
    transform. Dynamo should not see the Functions: it instantiates them, of which torch itself warns."""
    return torch.compiler.is_compiling() or ops.transformed() or torch._C._get_tracing_state() is not None


def _any_requires_grad(tensors: Sequence[Any]) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


# ---- The layer -------------------------------------------------------------------------------------------------------


_TENSORS = ops.Layer._fields.index("reduction")  # so many come first


class LinearBinaryCrossEntropy(torch.autograd.Function):
    """``apply(*arguments of torch.ops.fused_logistic.linear_bce) -> loss``.

    Differentiable in input, linear_weight and linear_bias; the other operands must not require a gradient.
    """

    @staticmethod
    def covers(args: Sequence[Any]) -> bool:
        """Whether what requires a gradient gets one."""
        return not _any_requires_grad(args[3:10])

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, (reduction, chunk_bytes, dtype, *options) = args[:_TENSORS], args[_TENSORS:]
        ctx.save_for_backward(*tensors)
        ctx.rest, ctx.options, ctx.gradients = (reduction, chunk_bytes), options, None
        ctx.output_mask = [t is not None and ctx.needs_input_grad[i] for i, t in enumerate(args[:3])]
        # fp16 has too few exponents to hold a mean's gradient that is still to be multiplied by a loss scale: it is
        # made when that is known, and rounded once
        if args[0].dtype == torch.float16 or not made_early(reduction, *ctx.output_mask):
            return ops.call(ops.linear_bce, *args)
        loss, *ctx.gradients = ops.call(ops.linear_bce_with_grad, *tensors, *ctx.rest, dtype, ctx.output_mask, *options)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = None
        if handed_out(grad_output):
            gradients, ctx.gradients = ctx.gradients, None
        if gradients is not None:
            # scaled, since a second set of products would cost more than the rounding is worth
            gradients = [_scaled(g, grad_output) for g in gradients]
        else:
            gradients = ops.linear_bce_backward(
                grad_output, *ctx.saved_tensors, *ctx.rest, ctx.output_mask, *ctx.options
            )
        wanted = [g if asked else None for g, asked in zip(gradients, ctx.output_mask, strict=True)]
        return *wanted, *[None] * (_TENSORS + len(ctx.options))


def _scaled(grad: Tensor, grad_output: Tensor) -> Tensor:
    """``grad * grad_output``, where 0 stays 0 whatever grad_output is: it may be of elements that are left out."""
    if torch.compiler.is_compiling() or ops.recorded():  # nothing in place, and no value is known
        return torch.where(grad == 0, grad, (grad * grad_output).to(grad.dtype))
    factor = made_for.known(grad_output)
    if factor == 1:
        return grad
    if factor is not None and math.isfinite(factor):
        return grad.mul_(factor)
    return matrices.scaled_(grad, grad_output)


def _is_sharded(operands: tuple[Tensor, Tensor, Tensor | None]) -> bool:
    return sharding.is_dtensor(operands[0]) or sharding.is_dtensor(operands[1])


def linear_loss(
    operands: tuple[Tensor, Tensor, Tensor | None],
    target: tuple[Tensor, Tensor | None, Tensor | None],
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    reduction: int,
    chunk_bytes: int | None,
    options: Options,
    normalizer: str | Tensor | None = None,
) -> Tensor:
    """The layer's loss: of the op, of the Function or, where anything but the layer is differentiated, composed.

    ``operands``: input, linear_weight, linear_bias. ``target``: itself, or the values and indices of a sparse one.
    """
    dtype, count = loss_dtype(operands[0], target[0]), None
    is_sparse = operands[0].layout != torch.strided and not nested.is_jagged(operands[0])
    # outside of the Function, so that autograd sees the casts; there is no sparse product of the lower dtypes
    if torch.is_autocast_enabled(operands[0].device.type) and not is_sparse:
        low = torch.get_autocast_dtype(operands[0].device.type)
        operands = tuple(t if t is None or t.dtype == torch.float64 else t.to(low) for t in operands)  # type: ignore[assignment]
    # an option that is a tensor is differentiated with the logits, but for label smoothing
    is_composed = torch.compiler.is_exporting() or (options.has_tensors and options.loss != LOSS)
    if is_sparse or nested.is_jagged(operands[0]) or is_composed or _is_sharded(operands):
        logits = (sparse if is_sparse else composite).linear_logits(*operands)
        dense = sparse.dense_target(*target, logits.shape[-1])
        if targets.are_classes(logits.shape, dense):  # the layer takes none, whoever computes it
            raise ValueError(f"{options.layer}: expected target of the logits' shape, got {list(dense.shape)}")
        return loss(logits, dense, weight, pos_weight, mask, reduction, options, normalizer=normalizer).to(dtype)
    if reduction == ops.MEAN and (mask is not None or options.leaves_out or normalizer is not None):
        shape = *operands[0].shape[:-1], *operands[1].shape[:-1]
        count = divisor.of(normalizer, shape, target, weight, mask, options)
    if options.has_tensors:
        checks_layer.layer(*operands, *target, weight, pos_weight, mask, count, reduction, chunk_bytes, *options)
        values, mask = composite.smoothed_target(
            operands[0], sparse.dense_target(*target, operands[1].shape[0]), mask, options
        )
        target, options = (values, None, None), Options()
    tensors = *operands, *target, weight, pos_weight, mask
    if count is not None and divisor.is_differentiated(count):
        return divisor.divided(_apply_layer, tensors, count, (chunk_bytes,), dtype, options)
    return _apply_layer(*tensors, count, reduction, chunk_bytes, dtype, *options)


def _apply_layer(*args: Any) -> Tensor:
    if not _decided_later():
        if not (torch.is_grad_enabled() and _any_requires_grad(args[:8])):
            return ops.call(ops.linear_bce, *args)
        if LinearBinaryCrossEntropy.covers(args):
            return LinearBinaryCrossEntropy.apply(*args)
    return ops.linear_bce(*args)


# ---- Pairs -----------------------------------------------------------------------------------------------------------


class SigmoidContrastive(torch.autograd.Function):
    """``apply(*arguments of torch.ops.fused_logistic.pairs) -> loss``, differentiable in all its tensors."""

    @staticmethod
    def covers(args: Sequence[Any]) -> bool:
        """Whether what requires a gradient gets one: always."""
        return True

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:4])
        ctx.tile_bytes = args[4]
        ctx.output_mask = [t is not None and ctx.needs_input_grad[i] for i, t in enumerate(args[:4])]
        loss, *ctx.gradients = ops.call(ops.pairs_with_grad, *args, ctx.output_mask)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients, operands = None, ctx.saved_tensors
        if handed_out(grad_output):
            gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = ops.pairs_backward(grad_output, *operands, ctx.tile_bytes, ctx.output_mask)
        else:  # of the arithmetic's dtype: scaled before they are rounded, so that fp16 loses nothing
            gradients = [_scaled(g, grad_output) for g in gradients]
            gradients = composite_pairs.like_operands(gradients, operands, ctx.output_mask)
        return *(g if asked else None for g, asked in zip(gradients, ctx.output_mask, strict=True)), None


def pairs_operands(*operands: Any) -> tuple[Any, ...]:
    """The features, which come first, in the dtype that autocast has the products in; outside of the Function, so that
    autograd sees the casts."""
    if not composite_pairs.autocasts(operands[0]):
        return operands
    low = torch.get_autocast_dtype(operands[0].device.type)
    return *(t if t.dtype == torch.float64 else t.to(low) for t in operands[:2]), *operands[2:]


def pairs_loss(*args: Any) -> Tensor:
    """The loss of ``pairs``' arguments: of the op, or of the Function."""
    args = pairs_operands(*args)
    if torch.compiler.is_exporting():
        checks_pairs.pairs(*args)
        return composite_pairs.pairs(*args)
    if _decided_later():
        return ops.pairs(*args)
    if torch.is_grad_enabled() and _any_requires_grad(args[:4]):
        return SigmoidContrastive.apply(*args)
    return ops.call(ops.pairs, *args)

"""What ``torch.vmap`` does with the ops.

An elementwise op is called once, unreduced, on the whole batch; what each sample reduces to is reduced afterwards. The
layer is composed on the whole batch: batched products around the elementwise ops' own rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from . import checks, composite_pairs, ops, sparse, targets
from .ops import Layer
from .options import Options

_Dims = Sequence[Any]  # of every argument the batch's dimension; None: not batched


# ---- The elementwise ops ------------------------------------------------------------------------------------------


def _to_front(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
    """The batch's dimension first, and behind it ``ndim`` others, so that these broadcast as before."""
    if dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    return tensor.reshape(tensor.shape[0], *(1,) * (ndim + 1 - tensor.dim()), *tensor.shape[1:])


def _batch(info: Any, in_dims: _Dims, tensors: Sequence[Tensor | None], full: int) -> list[Any]:
    """The tensors of a batch; the first, which says how many dimensions a sample has, and all of the first ``full``
    have the batch's dimension, whether they were batched or not."""
    first = tensors[0]
    assert first is not None
    ndim = first.dim() - (in_dims[0] is not None)
    moved: list[Any] = [None if t is None else _to_front(t, d, ndim) for t, d in zip(tensors, in_dims, strict=True)]
    for i in range(full):
        if in_dims[i] is None:
            moved[i] = moved[i].expand(info.batch_size, *moved[i].shape)
    return moved


def _operands(
    info: Any, in_dims: _Dims, given: Sequence[Tensor | None], options: list[Any]
) -> tuple[list[Any], list[Any]]:
    """(logits, target, weight, pos_weight, mask) of a batch, and the options. Class indices become a dense target: the
    classes' dimension of a sample is not that of the batch."""
    logits, target, *weights, mask = given
    assert logits is not None and target is not None
    sample = list(logits.shape)
    if in_dims[0] is not None:
        sample.pop(in_dims[0])
    if targets.are_classes(sample, target, batch_dims=in_dims[1] is not None):
        target = _to_front(target, in_dims[1], len(sample) - 1)
        mask = None if mask is None else _to_front(mask, in_dims[4], len(sample))
        dims = [None if d is None else 0 for d in (in_dims[1], in_dims[4])]
        target, masked, others = targets.dense(sample, target, mask, Options(*options))
        options = [*others]
        if masked is not mask:  # there are indices that are ignored
            mask, dims[1] = masked, None if dims == [None, None] else 0
        in_dims = in_dims[0], dims[0], *in_dims[2:4], dims[1]
    return _batch(info, in_dims, (logits, target, *weights, mask), 2), options


def _samples(tensor: Tensor) -> Tensor:
    """``[batch, elements of a sample]``; a sample of no dimensions has one element."""
    return tensor.unsqueeze(-1).flatten(1)


def _count(info: Any, in_dims: _Dims, target: Tensor, mask: Tensor | None, *ignored: Any) -> tuple[Tensor, int]:
    target, mask = _batch(info, in_dims[:2], (target, mask), 1)
    kept = targets.kept(target, mask, *ignored)
    kept = torch.ones_like(target, dtype=torch.bool) if kept is None else kept
    return _samples(kept).sum(1).double(), 0


def _bce(info: Any, in_dims: _Dims, *args: Any) -> tuple[Tensor, int]:
    count, (reduction, dtype, *options) = args[5], args[6:]
    tensors, options = _operands(info, in_dims[:5], args[:5], options)
    if reduction == ops.NONE:
        return ops.bce(*tensors, None, ops.NONE, dtype, *options), 0
    # a sum of half-precision losses is rounded once, at its end
    summed = dtype if dtype == torch.float64 else torch.float32
    losses = _samples(ops.bce(*tensors, None, ops.NONE, summed, *options))
    if reduction == ops.SUM:
        loss = losses.sum(1)
    else:
        loss = losses.mean(1) if count is None else losses.sum(1) / _to_front(count, in_dims[5], 0)
    return loss.to(dtype), 0


def _bce_backward(info: Any, in_dims: _Dims, grad_output: Tensor, *args: Any) -> tuple[Tensor, int]:
    count, (reduction, wrt, *options) = args[5], args[6:]
    tensors, options = _operands(info, in_dims[1:6], args[:5], options)
    logits = tensors[0]
    grad = _to_front(grad_output, in_dims[0], logits.dim() - 1)
    if reduction == ops.MEAN:
        # not in half precision, in which a gradient over a count is soon 0
        grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
        grad = grad / (logits[0].numel() if count is None else _to_front(count, in_dims[6], logits.dim() - 1))
    return ops.bce_backward(grad, *tensors, None, ops.NONE, wrt, *options), 0


def _bce_with_grad(info: Any, in_dims: _Dims, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    checks.reduced("bce_with_grad", args[6])
    return _bce_with_grad_for(info, (None, *in_dims), args[0].new_ones(()), *args)


def _bce_with_grad_for(
    info: Any, in_dims: _Dims, grad_output: Tensor, *args: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    checks.reduced("bce_with_grad_for", args[6])
    loss, _ = _bce(info, in_dims[1:], *args)
    operands, (_, *options) = args[:7], args[7:]
    grad, _ = _bce_backward(info, in_dims, grad_output, *operands, ops.LOGITS, *options)
    return (loss, grad), (0, 0)


def _bce_backward_(info: Any, in_dims: _Dims, *args: Any) -> NoReturn:
    raise NotImplementedError(
        "fused_logistic::bce_backward_: expected no tensor that vmap batches, as it writes in place; "
        "fused_logistic::bce_backward takes one"
    )


# ---- The layer ----------------------------------------------------------------------------------------------------


class _Layers:
    """input ``[batch or 1, rows, features]``, linear_weight ``[batch or 1, labels, features]``, and their logits."""

    def __init__(self, info: Any, in_dims: _Dims, args: Sequence[Any]) -> None:
        layer, dims = Layer(*args), cast(Any, Layer(*in_dims))
        if any(dim is not None for dim in (dims.crow_indices, dims.col_indices)) or (
            layer.crow_indices is not None and dims.target is not None
        ):
            raise NotImplementedError("linear_binary_cross_entropy: expected a sparse target that vmap does not batch")

        def front(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)

        input, weight = front(layer.input, dims.input), front(layer.linear_weight, dims.linear_weight)
        self.has_labels = weight.dim() == 3
        self.batch, self.lead, self.weight_shape = info.batch_size, input.shape[1:-1], weight.shape[1:]
        self.input = input.reshape(input.shape[0], math.prod(self.lead), input.shape[-1])  # not -1: there may be 0
        self.weight = weight if self.has_labels else weight.unsqueeze(1)
        logits = self.input @ self.weight.transpose(1, 2)
        self.rows, labels = logits.shape[1:]
        self.bias_shape: Sequence[int] | None = None
        if layer.linear_bias is not None:
            bias = front(layer.linear_bias, dims.linear_bias)
            self.bias_shape = bias.shape[1:]
            logits = logits + bias.reshape(bias.shape[0], 1, labels)
        out = (*self.lead, labels) if self.has_labels else self.lead
        logits = logits.expand(self.batch, self.rows, labels).reshape(self.batch, *out)
        target = sparse.dense_target(layer.target, layer.crow_indices, layer.col_indices, labels)
        if target.dim() - (dims.target is not None) != len(out):
            raise ValueError("linear_binary_cross_entropy: expected target of the logits' shape, got another")
        self.operands = logits, target, *layer[Layer._fields.index("weight") : -1]
        self.in_dims = 0, dims.target, *dims[Layer._fields.index("weight") : -1]

    def backward(self, grad: Tensor, output_mask: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        rows = grad.reshape(self.batch, self.rows, self.weight.shape[1])
        grad_input = grad_weight = grad_bias = grad.new_empty(self.batch, 0)
        if output_mask[0]:
            grad_input = (rows @ self.weight).reshape(self.batch, *self.lead, self.weight.shape[2])
        if output_mask[1]:
            grad_weight = (rows.transpose(1, 2) @ self.input).reshape(self.batch, *self.weight_shape)
        if output_mask[2] and self.bias_shape is not None:
            grad_bias = rows.sum(1).reshape(self.batch, *self.bias_shape)
        return grad_input, grad_weight, grad_bias


_LAYER = len(Layer._fields)


def _linear_bce(info: Any, in_dims: _Dims, *args: Any) -> tuple[Tensor, int]:
    layers = _Layers(info, in_dims[:_LAYER], args[:_LAYER])
    return _bce(info, layers.in_dims, *layers.operands, *args[_LAYER:])


def _linear_bce_backward(info: Any, in_dims: _Dims, grad_output: Tensor, *args: Any) -> tuple[Any, Any]:
    layers = _Layers(info, in_dims[1 : 1 + _LAYER], args[:_LAYER])
    output_mask, *options = args[_LAYER:]
    dims = in_dims[0], *layers.in_dims
    grad, _ = _bce_backward(info, dims, grad_output, *layers.operands, ops.LOGITS, *options)
    return layers.backward(grad, output_mask), (0, 0, 0)


def _linear_bce_with_grad(info: Any, in_dims: _Dims, *args: Any) -> tuple[Any, Any]:
    dtype, output_mask, *options = args[_LAYER:]
    checks.reduced("linear_bce_with_grad", Layer(*args[:_LAYER]).reduction)
    layers = _Layers(info, in_dims[:_LAYER], args[:_LAYER])
    (loss, grad), _ = _bce_with_grad(info, layers.in_dims, *layers.operands, dtype, *options)
    return (loss, *layers.backward(grad, output_mask)), (0, 0, 0, 0)


# ---- Pairs --------------------------------------------------------------------------------------------------------


def _batch_of_pairs(info: Any, in_dims: _Dims, operands: Sequence[Tensor | None]) -> list[Any]:
    return [
        None if t is None else t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(operands, in_dims, strict=True)
    ]


def _pairs(info: Any, in_dims: _Dims, *args: Any) -> tuple[Tensor, int]:
    return composite_pairs.pairs(*_batch_of_pairs(info, in_dims[:4], args[:4]), *args[4:]), 0


def _pairs_with_grad(info: Any, in_dims: _Dims, *args: Any) -> tuple[Any, Any]:
    return composite_pairs.pairs_with_grad(*_batch_of_pairs(info, in_dims[:4], args[:4]), *args[4:]), (0,) * 5


def _pairs_backward(info: Any, in_dims: _Dims, grad_output: Tensor, *args: Any) -> tuple[Any, Any]:
    batch = _batch_of_pairs(info, in_dims[:5], (grad_output, *args[:4]))
    return composite_pairs.pairs_backward(*batch, *args[4:]), (0,) * 4


RULES: dict[Any, Callable[..., Any]] = {
    ops.bce: _bce,
    ops.bce_backward: _bce_backward,
    ops.bce_backward_: _bce_backward_,
    ops.bce_count: _count,
    ops.bce_with_grad: _bce_with_grad,
    ops.bce_with_grad_for: _bce_with_grad_for,
    ops.linear_bce: _linear_bce,
    ops.linear_bce_backward: _linear_bce_backward,
    ops.linear_bce_with_grad: _linear_bce_with_grad,
    ops.pairs: _pairs,
    ops.pairs_backward: _pairs_backward,
    ops.pairs_with_grad: _pairs_with_grad,
}

"""What the ops of the layer ask of their arguments, as :mod:`fused_logistic.checks` says it of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, targets
from .ops import Layer
from .options import LAYER, Options


def layer(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    crow_indices: Tensor | None,
    col_indices: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    count: Tensor | None,
    reduction: int,
    chunk_bytes: int | None,
    *options: Any,
) -> None:
    """What every op of the layer asks: see :func:`fused_logistic.linear_binary_cross_entropy`.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as the public function says.
    """
    given = Options(*options)
    op = given.layer
    if input.layout != torch.strided:
        _sparse_input(op, input)
    checks.floating(op, "input", input)
    if input.dim() < 1:
        raise ValueError(f"{op}: expected input of shape [..., features], got []")
    if linear_weight.dim() not in (1, 2):
        raise ValueError(
            f"{op}: expected linear_weight of shape [labels, features] or [features], got {list(linear_weight.shape)}"
        )
    features = linear_weight.shape[-1]
    checks.equals(
        input.shape[-1],
        features,
        lambda: (
            f"{op}: expected input of {features} features (linear_weight is {list(linear_weight.shape)}), "
            f"got {list(input.shape)}"
        ),
    )
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is None:
            continue
        checks.strided(op, name, tensor, ValueError)
        if tensor.dtype != input.dtype:
            raise TypeError(
                f"{op}: expected input and {name} of one dtype, got {checks.dtype_name(input.dtype)} and "
                f"{checks.dtype_name(tensor.dtype)}"
            )
        checks.same_device(op, name, tensor, input)
        checks.allocated(op, name, tensor)
    checks.allocated(op, "input", input)
    labels = linear_weight.shape[:-1]
    if linear_bias is not None:
        fits = list(linear_bias.shape) == list(labels) if labels else list(linear_bias.shape) in ([], [1])
        if not fits:
            wanted = list(labels) if labels else "[1] or []"
            raise ValueError(f"{op}: expected linear_bias of shape {wanted}, got {list(linear_bias.shape)}")
    logits = [*input.shape[:-1], *labels]
    if crow_indices is None:
        is_classes = len(logits) > 1 and targets.are_classes(logits, target)
        checks.same_shape(
            op, "target", target, logits, "; class indices are for losses of logits" if is_classes else ""
        )
    else:
        _sparse(op, input, linear_weight, target, crow_indices, col_indices, logits)
    checks.readable(op, "target", target)
    checks.same_device(op, "target", target, input)
    checks.allocated(op, "target", target)
    for name, tensor in (("weight", weight), ("pos_weight", pos_weight), ("mask", mask)):
        if tensor is None:
            continue
        checks.strided(op, name, tensor, ValueError)
        checks.broadcasts(op, name, tensor, logits)
        checks.same_device(op, name, tensor, input)
        checks.readable(op, name, tensor)
        checks.allocated(op, name, tensor)
    checks.boolean(op, mask)
    checks.known_reduction(op, reduction)
    given.check(op)
    checks.fitting_options(op, given, input, logits)
    checks.size(op, "chunk_bytes", chunk_bytes)
    checks.mean_count(op, count, input, mask is not None or given.leaves_out, reduction)


def _sparse_input(op: str, input: Tensor) -> None:
    if input.layout not in (torch.sparse_csr, torch.sparse_coo):
        layouts = "torch.strided, torch.sparse_csr or torch.sparse_coo"
        raise ValueError(f"{op}: expected input of layout {layouts}, got {checks.layout_name(input.layout)}")
    if input.dim() != 2 or input.dense_dim() != 0:
        raise ValueError(
            f"{op}: expected a sparse input of 2 dimensions, none of them dense, got {input.dim()}, "
            f"{input.dense_dim()} of them dense"
        )
    if input.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"{op}: expected a sparse input that requires no gradient, got one that does")


def _sparse(
    op: str,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor | None,
    logits: Sequence[Any],
) -> None:
    if len(logits) != 2:
        raise ValueError(
            f"{op}: expected input and linear_weight of 2 dimensions for a sparse target, got {list(input.shape)} and "
            f"{list(linear_weight.shape)}"
        )
    if (
        col_indices is None
        or crow_indices.dim() != 1
        or crow_indices.shape[0] != logits[0] + 1
        or target.dim() != 1
        or col_indices.shape != target.shape
    ):
        columns = None if col_indices is None else list(col_indices.shape)
        raise ValueError(
            f"{op}: expected a sparse target of shape {list(logits)} with one value per column index, got "
            f"{crow_indices.numel() - 1} rows, {columns} column indices, {list(target.shape)} values"
        )


# ---- By the ops' own arguments ---------------------------------------------------------------------------------------

_LAYER = len(Layer._fields)


def _layer_of_op(args: Sequence[Any], own: int) -> None:
    """What stands first, and the options behind the op's ``own`` arguments."""
    checks.strided(LAYER, "input", args[0], ValueError)  # a sparse one is for the public function
    layer(*args[:_LAYER], *args[_LAYER + own :])


def linear_bce(*args: Any) -> None:
    _layer_of_op(args, 1)
    checks.result_dtype("linear_bce", args[_LAYER])


def linear_bce_with_grad(*args: Any) -> None:
    _layer_of_op(args, 2)
    checks.result_dtype("linear_bce_with_grad", args[_LAYER])
    checks.reduced("linear_bce_with_grad", args[Layer._fields.index("reduction")])


def linear_bce_backward(grad_output: Tensor, *args: Any) -> None:
    _layer_of_op(args, 1)
    logits = [*args[0].shape[:-1], *args[1].shape[:-1]]
    checks.broadcasts("linear_bce_backward", "grad_output", grad_output, logits)
    checks.same_device("linear_bce_backward", "grad_output", grad_output, args[0])

"""What the layer's op of a tile, ``bce_tile_``, computes where there is no kernel for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops


def _dense(values: Tensor, crow_indices: Tensor, col_indices: Tensor, label: int, shape: torch.Size) -> Tensor:
    """The tile's part of a sparse target. Its rows are those of ``crow_indices``, its columns begin at ``label``."""
    rows, labels = shape
    number = torch.arange(values.numel(), device=values.device)
    row = torch.searchsorted(crow_indices.contiguous(), number, right=True) - 1
    column = col_indices - label
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < labels)
    place = torch.where(inside, row * labels + column, rows * labels)  # all others: one behind the last
    return values.new_zeros(rows * labels + 1).index_put_((place,), values)[:-1].view(rows, labels)


def bce_tile_(
    logits: Tensor,
    losses: Tensor | None,
    loss_sum: Tensor | None,
    bias_sum: Tensor | None,
    target: Tensor,
    crow_indices: Tensor | None,
    col_indices: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    grad_output: Tensor | None,
    count: Tensor | None,
    scale: float,
    first_label: int,
    whole: bool,
    wants_grad: bool,
    *options: Any,
) -> None:
    if crow_indices is not None and col_indices is not None:
        target = _dense(target, crow_indices, col_indices, first_label, logits.shape)
    operands = logits, target, weight, pos_weight, mask, None
    if losses is not None:
        losses.copy_(ops.bce(*operands, ops.NONE, losses.dtype, *options))
        return
    if loss_sum is not None:
        loss_sum += ops.bce(*operands, ops.SUM, torch.float64, *options)
        if not wants_grad:
            return
    dtype = torch.float64 if torch.float64 in (logits.dtype, target.dtype) else torch.float32
    factor = torch.full((), scale, dtype=dtype, device=logits.device) if count is None else count.reciprocal().to(dtype)
    if grad_output is not None:
        factor = grad_output.to(dtype) * factor
    logits.copy_(ops.bce_backward(factor, *operands, ops.SUM, ops.LOGITS, *options))
    if bias_sum is not None:
        bias_sum += logits.sum(0, dtype=bias_sum.dtype)

"""Modules: drop-in replacements of ``torch.nn``."""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import binary_cross_entropy_with_logits


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss` computed by :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Buffers and ``state_dict`` are torch's; the last two arguments are ours, keyword only.

    Args:
        weight: a tensor that broadcasts to the shape of the logits (a buffer).
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: the weight of positive examples; broadcasts to the shape of the logits (a buffer).
        label_smoothing: in [0, 1]; moves the targets towards 1/2.
        ignore_index: elements whose target has this value contribute nothing.

    Shape:
        input: any; target: the same; mask: broadcasts to it; output: a scalar, or the shape of the input for
        ``reduction="none"``.

    Raises, dtypes and formula: see :func:`fused_logistic.binary_cross_entropy_with_logits`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        label_smoothing: float | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            mask=mask,
        )

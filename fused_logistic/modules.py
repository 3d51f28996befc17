"""Modules: drop-in replacements of ``torch.nn``."""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import binary_cross_entropy_with_logits


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss` computed by :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Args, buffers, ``state_dict`` and shapes are torch's:

    Args:
        weight: a tensor that broadcasts to the shape of the logits (a buffer).
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: the weight of positive examples; broadcasts to the shape of the logits (a buffer).

    Shape:
        input: any; target: the same; output: a scalar, or the shape of the input for ``reduction="none"``.

    Raises, dtypes and formula: see :func:`fused_logistic.binary_cross_entropy_with_logits`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )

"""Losses of other libraries whose formula is ours, with their signatures: what :func:`fused_logistic.patch` puts there.

A loss that calls ``torch.nn.functional.binary_cross_entropy_with_logits`` and does little else, such as timm's
``BinaryCrossEntropy``, needs no line here: who patches that function has patched it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .functional_focal import asymmetric_loss_with_logits, quality_focal_loss, sigmoid_focal_loss, varifocal_loss


def _of_mmdet(
    op: str,
    loss: Callable[..., Tensor],
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    avg_factor: float | Tensor | None,
    **parameters: Any,
) -> Tensor:
    """``loss`` of ``pred`` ``[priors, classes]`` with mmdet's weight, one of a prior or of an element, and mean."""
    if target.is_floating_point():
        target = target.to(pred.dtype)
    if weight is not None and weight.shape != pred.shape:
        weight = weight.reshape(-1, 1) if len(weight) == len(pred) else weight.reshape(pred.shape)
    if avg_factor is not None and reduction == "sum":
        raise ValueError(f"{op}: expected no avg_factor with reduction 'sum', got one")
    if avg_factor is not None and reduction == "mean":
        # theirs too: a factor of 0 is no division by 0
        parameters["normalizer"] = avg_factor + torch.finfo(torch.float32).eps
    return loss(pred, target, weight=weight, reduction=reduction, **parameters)


def py_sigmoid_focal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """mmdet's, of targets that are one-hot, computed by :func:`fused_logistic.sigmoid_focal_loss`.

    Shape:
        pred, target: the same; weight: one for each element, in any shape, or ``[len(pred)]``; output: a scalar, or the
        shape of pred for ``reduction="none"``.

    Raises, dtypes and formula: see there; also ValueError for an ``avg_factor`` with ``reduction="sum"``.
    """
    name, given = "py_sigmoid_focal_loss", (pred, target, weight, reduction, avg_factor)
    return _of_mmdet(name, sigmoid_focal_loss, *given, gamma=gamma, alpha=alpha)


def mmdets_varifocal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """mmdet's ``varifocal_loss``, computed by :func:`fused_logistic.varifocal_loss`.

    Shape:
        pred, target: the same; weight: one for each element; output: a scalar, or the shape of pred for
        ``reduction="none"``.

    Raises, dtypes and formula: see there; also ValueError for an ``avg_factor`` with ``reduction="sum"``.
    """
    given = pred, target, weight, reduction, avg_factor
    return _of_mmdet("varifocal_loss", varifocal_loss, *given, alpha=alpha, gamma=gamma, iou_weighted=iou_weighted)


def mmdets_quality_focal_loss(
    pred: Tensor,
    target: tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    beta: float = 2.0,
) -> Tensor:
    """mmdet's ``quality_focal_loss``, computed by :func:`fused_logistic.quality_focal_loss`.

    Shape:
        pred: ``[priors, classes]``; target: the class of each prior, below 0 or from the number of classes on for none,
        and its quality, both ``[priors]``; weight: ``[priors]``; output: a scalar, or ``[priors]`` for
        ``reduction="none"``. A mean is over the priors.

    Raises, dtypes and formula: see there; also ValueError for an ``avg_factor`` with ``reduction="sum"``.
    """
    label, score = target
    is_class = label.unsqueeze(1) == torch.arange(pred.shape[1], device=pred.device)
    quality = torch.where(is_class, score.unsqueeze(1).to(pred.dtype), 0)
    parameters: dict[str, Any] = {"beta": beta}
    if reduction == "mean" and avg_factor is None:  # a tensor: of no priors the mean is NaN, as theirs
        parameters["normalizer"] = torch.tensor(float(len(pred)), device=pred.device)
    given = pred, quality, weight, reduction, avg_factor
    loss = _of_mmdet("quality_focal_loss", quality_focal_loss, *given, **parameters)
    return loss.sum(1) if reduction == "none" else loss


def asymmetric_forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """The forward of timm's ``AsymmetricLossMultiLabel``, computed by
    :func:`fused_logistic.asymmetric_loss_with_logits`.

    Shape:
        x, y: the same; output: a scalar.

    Raises, dtypes and formula: see there; also NotImplementedError where the instance asks for a power that is not
    differentiated (``disable_torch_grad_focal_loss``), which is another loss.
    """
    if self.disable_torch_grad_focal_loss:
        raise NotImplementedError(
            "AsymmetricLossMultiLabel: expected disable_torch_grad_focal_loss=False under a patch, got True"
        )
    return asymmetric_loss_with_logits(x, y, self.gamma_neg, self.gamma_pos, self.clip, "sum")


# Where it was defined and under which name; of a class it is the forward, called with the instance first.
KNOWN: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("torchvision.ops.focal_loss", "sigmoid_focal_loss"): sigmoid_focal_loss,
    ("mmdet.models.losses.focal_loss", "py_sigmoid_focal_loss"): py_sigmoid_focal_loss,
    ("mmdet.models.losses.varifocal_loss", "varifocal_loss"): mmdets_varifocal_loss,
    ("mmdet.models.losses.gfocal_loss", "quality_focal_loss"): mmdets_quality_focal_loss,
    ("timm.loss.asymmetric_loss", "AsymmetricLossMultiLabel"): asymmetric_forward,
}


def of(value: object) -> Callable[..., Tensor] | None:
    """Ours for a loss of theirs, or for ours."""
    name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(name[0], str) or not isinstance(name[1], str):
        return None
    return KNOWN.get((name[0], name[1])) or next((ours for ours in KNOWN.values() if ours is value), None)

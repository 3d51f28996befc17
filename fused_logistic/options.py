"""The options: what the user asks for beside the tensors, named here and where it is meant, in no one's way between."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

# in messages, the public functions' names
LOSS, FOCAL = "binary_cross_entropy_with_logits", "sigmoid_focal_loss"
QUALITY, VARIFOCAL, ASYMMETRIC = "quality_focal_loss", "varifocal_loss", "asymmetric_loss_with_logits"
LAYER = "linear_binary_cross_entropy"
MAX_GAMMA = 1e30  # in float32 its product with the logarithm of a probability is still finite
MIN_CLIP = 1e-9  # below it the logarithm of csrc/asymmetric.h would be one of too much


class Options(NamedTuple):
    """What stands last in every op, and travels as one tuple. Tensors among them are not for the ops, but composed."""

    label_smoothing: float | Tensor = 0.0
    ignore_index: int | None = None
    # Which loss it is, its parameters tell; without any it is the plain one.
    gamma: float | Tensor | None = None  # focal; with alpha and iou_weighted varifocal
    alpha: float | Tensor | None = None
    beta: float | None = None  # quality
    iou_weighted: bool | None = None
    gamma_neg: float | None = None  # asymmetric, with the two that follow
    gamma_pos: float | None = None
    clip: float | None = None
    ignore_nan: bool = False

    @property
    def loss(self) -> str:
        if self.gamma_neg is not None:
            return ASYMMETRIC
        if self.beta is not None:
            return QUALITY
        if self.iou_weighted is not None:
            return VARIFOCAL
        return LOSS if self.gamma is None else FOCAL

    @property
    def layer(self) -> str:
        """The function of a layer with this loss."""
        return LAYER if self.loss == LOSS else "linear_" + self.loss

    @property
    def leaves_out(self) -> bool:
        """Whether there may be elements that do not count."""
        return self.ignore_index is not None or self.ignore_nan

    @property
    def has_tensors(self) -> bool:
        return (
            isinstance(self.label_smoothing, Tensor) or isinstance(self.gamma, Tensor) or isinstance(self.alpha, Tensor)
        )

    @property
    def zero_is_free(self) -> bool:
        """Whether a target of 0 at a logit of -inf has no loss and no gradient."""
        return not isinstance(self.label_smoothing, Tensor) and self.label_smoothing == 0

    def given(self) -> tuple[Any, ...]:
        """What the ops get: up to the last that is not its default. Every argument costs a call its time."""
        number = len(self)
        while number > 0 and self[number - 1] == _DEFAULTS[number - 1]:
            number -= 1
        return self[:number]

    def check(self, op: str) -> None:
        """What is out of range, or has nothing to belong to."""
        self.check_ranges(op)
        if self.alpha is not None and self.gamma is None:
            raise ValueError(f"{op}: expected gamma with alpha, got None")
        if self.iou_weighted is not None and self.alpha is None:
            raise ValueError(f"{op}: expected alpha with iou_weighted, got None")
        if len({self.gamma_neg is None, self.gamma_pos is None, self.clip is None}) > 1:
            raise ValueError(f"{op}: expected gamma_neg, gamma_pos and clip together")
        if sum(value is not None for value in (self.gamma, self.beta, self.gamma_neg)) > 1:
            raise ValueError(f"{op}: expected one of gamma, beta and gamma_neg, got several")

    def check_ranges(self, op: str) -> None:
        """What is out of range; of a tensor nobody knows."""
        if _is_out(self.label_smoothing, 1):
            raise ValueError(f"{op}: expected label_smoothing between 0 and 1, got {self.label_smoothing:g}")
        for name in ("gamma", "beta", "gamma_neg", "gamma_pos"):
            value = getattr(self, name)
            if _is_out(value, MAX_GAMMA):
                raise ValueError(f"{op}: expected {name} between 0 and {MAX_GAMMA:g}, got {value:g}")
        if self.clip is not None and self.clip != 0 and not MIN_CLIP <= self.clip <= 1:
            raise ValueError(f"{op}: expected clip to be 0 or between {MIN_CLIP:g} and 1, got {self.clip:g}")
        if _is_out(self.alpha, 1):
            none = ", or -1 for none" if self.iou_weighted is None else ""
            raise ValueError(f"{op}: expected alpha between 0 and 1{none}, got {self.alpha:g}")


_DEFAULTS = Options()


def _is_out(value: float | Tensor | None, high: float) -> bool:
    return not (value is None or isinstance(value, Tensor) or 0 <= value <= high)

"""The options: what the user asks for beside the tensors, named here and where it is meant, in no one's way between."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LOSS, FOCAL = "binary_cross_entropy_with_logits", "sigmoid_focal_loss"  # in messages, the public functions' names
MAX_GAMMA = 1e30  # in float32 its product with the logarithm of a probability is still finite


class Options(NamedTuple):
    """What stands last in every op, and travels as one tuple. Tensors among them are not for the ops, but composed."""

    label_smoothing: float | Tensor = 0.0
    ignore_index: int | None = None
    gamma: float | Tensor | None = None  # the focal loss; without it the plain one
    alpha: float | Tensor | None = None

    @property
    def loss(self) -> str:
        return LOSS if self.gamma is None else FOCAL

    @property
    def leaves_out(self) -> bool:
        """Whether there may be elements that do not count."""
        return self.ignore_index is not None

    @property
    def has_tensors(self) -> bool:
        return (
            isinstance(self.label_smoothing, Tensor) or isinstance(self.gamma, Tensor) or isinstance(self.alpha, Tensor)
        )

    @property
    def zero_is_free(self) -> bool:
        """Whether a target of 0 at a logit of -inf has no loss and no gradient."""
        return not isinstance(self.label_smoothing, Tensor) and self.label_smoothing == 0

    def check(self, op: str) -> None:
        """What is out of range, or has nothing to belong to."""
        self.check_ranges(op)
        if self.alpha is not None and self.gamma is None:
            raise ValueError(f"{op}: expected gamma with alpha, got None")

    def check_ranges(self, op: str) -> None:
        """What is out of range; of a tensor nobody knows."""
        if _is_out(self.label_smoothing, 1):
            raise ValueError(f"{op}: expected label_smoothing between 0 and 1, got {self.label_smoothing:g}")
        if _is_out(self.gamma, MAX_GAMMA):
            raise ValueError(f"{op}: expected gamma between 0 and {MAX_GAMMA:g}, got {self.gamma:g}")
        if _is_out(self.alpha, 1):
            raise ValueError(f"{op}: expected alpha between 0 and 1, or -1 for none, got {self.alpha:g}")

    def check_of_layer(self, op: str) -> None:
        """The same, and what the layer does not have."""
        self.check(op)
        if self.gamma is not None:
            raise NotImplementedError(f"{op}: expected no gamma, got {self.gamma:g}")


def _is_out(value: float | Tensor | None, high: float) -> bool:
    return not (value is None or isinstance(value, Tensor) or 0 <= value <= high)

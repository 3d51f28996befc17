"""Sigmoid + binary cross entropy as one fused, exact, fast PyTorch layer."""

from .functional import binary_cross_entropy_with_logits, sigmoid_focal_loss
from .modules import BCEWithLogitsLoss
from .patching import patch
from .version import __version__

__all__ = [
    "BCEWithLogitsLoss",
    "__version__",
    "binary_cross_entropy_with_logits",
    "patch",
    "sigmoid_focal_loss",
]

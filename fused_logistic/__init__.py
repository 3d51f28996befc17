"""Sigmoid + binary cross entropy as one fused, exact, fast PyTorch layer."""

from . import flops, reference, registration
from .functional import binary_cross_entropy_with_logits, sigmoid_focal_loss
from .functional_linear import linear_binary_cross_entropy
from .modules import BCEWithLogitsLoss, LinearBCEWithLogitsLoss
from .patching import patch
from .version import __version__

del flops, registration  # done by their import

__all__ = [
    "BCEWithLogitsLoss",
    "LinearBCEWithLogitsLoss",
    "__version__",
    "binary_cross_entropy_with_logits",
    "linear_binary_cross_entropy",
    "patch",
    "reference",
    "sigmoid_focal_loss",
]

"""Sigmoid + binary cross entropy as one fused, exact, fast PyTorch layer."""

from . import flops, reference, registration
from .functional import binary_cross_entropy_with_logits
from .functional_focal import sigmoid_focal_loss
from .functional_linear import linear_binary_cross_entropy
from .functional_pairs import sigmoid_contrastive_loss
from .modules import BCEWithLogitsLoss, LinearBCEWithLogitsLoss, SigLipLoss
from .patching import patch
from .version import __version__

del flops, registration  # done by their import

__all__ = [
    "BCEWithLogitsLoss",
    "LinearBCEWithLogitsLoss",
    "SigLipLoss",
    "__version__",
    "binary_cross_entropy_with_logits",
    "linear_binary_cross_entropy",
    "patch",
    "reference",
    "sigmoid_contrastive_loss",
    "sigmoid_focal_loss",
]

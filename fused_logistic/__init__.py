"""Sigmoid + binary cross entropy as one fused, exact, fast PyTorch layer."""

from . import flops, reference, registration
from .functional import binary_cross_entropy_with_logits
from .functional_focal import asymmetric_loss_with_logits, quality_focal_loss, sigmoid_focal_loss, varifocal_loss
from .functional_linear import linear_binary_cross_entropy
from .functional_linear_focal import linear_asymmetric_loss_with_logits, linear_sigmoid_focal_loss
from .functional_pairs import sigmoid_contrastive_loss
from .modules import AsymmetricLoss, BCEWithLogitsLoss, LinearBCEWithLogitsLoss, SigLipLoss
from .patching import patch
from .version import __version__

del flops, registration  # done by their import

__all__ = [
    "AsymmetricLoss",
    "BCEWithLogitsLoss",
    "LinearBCEWithLogitsLoss",
    "SigLipLoss",
    "__version__",
    "asymmetric_loss_with_logits",
    "binary_cross_entropy_with_logits",
    "linear_asymmetric_loss_with_logits",
    "linear_binary_cross_entropy",
    "linear_sigmoid_focal_loss",
    "patch",
    "quality_focal_loss",
    "reference",
    "sigmoid_contrastive_loss",
    "sigmoid_focal_loss",
    "varifocal_loss",
]

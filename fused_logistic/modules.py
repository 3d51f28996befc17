"""Modules: drop-in replacements of ``torch.nn``."""

# Annotations are evaluated here: torch.jit.script reads those of every module that a model owns.

import math
from typing import Any

import torch
from torch import Tensor

from . import checks
from .arguments import check_number
from .functional import binary_cross_entropy_with_logits
from .functional_focal import asymmetric_loss_with_logits
from .functional_linear import linear_binary_cross_entropy
from .functional_pairs import sigmoid_contrastive_loss
from .options import LAYER

# What the modules with options hand to their functions under these names, with the default of each.
_OPTIONS = {
    "pos_weight": None,
    "label_smoothing": None,
    "ignore_index": None,
    "ignore_nan": False,
    "normalizer": "elements",
}


def _options(module: torch.nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in _OPTIONS}


def _shown(module: torch.nn.Module, *described: str, **defaults: object) -> str:
    """What is described already, and the options that are not their defaults; of a tensor its shape."""
    values = {name: getattr(module, name) for name in defaults}
    shown = {n: list(v.shape) if isinstance(v, Tensor) else v for n, v in values.items()}
    return ", ".join([*described, *(f"{name}={v!r}" for name, v in shown.items() if v != defaults[name])])


def _set(
    module: torch.nn.Module, name: str, value: Tensor | float | None, persistent: bool = True, called: str | None = None
) -> None:
    """A tensor becomes a buffer; a number stays one, which no cast, no device and no initialisation changes.

    ``called``: the argument, if it is not called as the attribute is.
    """
    if value is None or isinstance(value, Tensor):
        module.register_buffer(name, value, persistent=persistent)
    else:
        module._buffers.pop(name, None)
        check_number(type(module).__name__, called or name, value, " or a torch.Tensor", refused=bool)
        setattr(module, name, float(value))


def _product(
    of_module: Tensor | float, of_call: Tensor | float, input: Tensor, linear_weight: Tensor
) -> Tensor | float:
    """Two weights of a layer, each of which has to be one: the product would hide which is not."""
    for weight in (of_module, of_call):
        if isinstance(weight, Tensor):
            if isinstance(input, Tensor) and not input.is_nested:  # else it is refused, or its values are looked at
                checks.broadcasts(LAYER, "weight", weight, [*input.shape[:-1], *linear_weight.shape[:-1]])
        else:
            check_number(LAYER, "weight", weight, " or a torch.Tensor")
    if isinstance(of_module, Tensor) and isinstance(of_call, Tensor) and of_call.dim() > 0:
        checks.same_device(LAYER, "weight", of_call, of_module)
    return of_module * of_call


def _logit(probability: float) -> float:
    """log(p / (1 - p)), with all digits at both ends and around 1/2, where the logarithm of the quotient has few."""
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    if probability < 0.25:
        return math.log(probability) - math.log1p(-probability)
    return 2.0 * math.atanh(2.0 * probability - 1.0)  # whose argument is exact


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss` computed by :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Buffers and ``state_dict`` are torch's; the arguments from ``label_smoothing`` on are ours, keyword only.

    Args:
        weight: a tensor that broadcasts to the shape of the logits (a buffer), or a number.
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: the weight of positive examples, likewise (a buffer).
        label_smoothing: in [0, 1]; moves the targets towards 1/2. (A Parameter is learnt, and in the ``state_dict``.)
        ignore_index: elements whose target has this value contribute nothing.
        ignore_nan: nor do those whose target is NaN.
        normalizer: what ``"mean"`` divides by: ``"elements"``, ``"weights"``, ``"positives"``, a number or a tensor of
            one element (an attribute, not a buffer: set it anew in each step where it is a count of all processes).

    Shape:
        input: any; target: the same, or class indices, ``[rows]`` for ``[rows, classes, ...]``; mask: broadcasts to the
        input; output: a scalar, or the shape of the input for ``reduction="none"``.

    Raises, dtypes and formula: see :func:`fused_logistic.binary_cross_entropy_with_logits`.
    """

    def __init__(
        self,
        weight: Tensor | float | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | float | None = None,
        *,
        label_smoothing: float | Tensor | None = None,
        ignore_index: int | None = None,
        ignore_nan: bool = False,
        normalizer: str | Tensor | float = "elements",
    ) -> None:
        super().__init__(None, size_average, reduce, reduction)
        _set(self, "weight", weight)
        _set(self, "pos_weight", pos_weight)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.ignore_nan = ignore_nan
        self.normalizer = normalizer

    @torch.jit.ignore
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            mask=mask,
            **_options(self),
        )

    def extra_repr(self) -> str:
        return _shown(self, weight=None, reduction="mean", **_OPTIONS)


class AsymmetricLoss(torch.nn.Module):
    """timm's ``AsymmetricLossMultiLabel``, computed by :func:`fused_logistic.asymmetric_loss_with_logits`.

    Args:
        gamma_neg: the focal exponent of negatives.
        gamma_pos: that of positives.
        clip: the margin that is taken off a negative's probability; 0 or None: none.
        eps: timm's; without effect: nothing has to be kept away from 0.
        reduction: ``"none"``, ``"mean"`` or, as in timm, ``"sum"``.
        weight: a tensor that broadcasts to the shape of the logits (a buffer), or a number.
        pos_weight: the weight of the positive term, likewise (a buffer).
        label_smoothing: in [0, 1]; moves the targets towards 1/2.
        ignore_index: elements whose target has this value contribute nothing.
        ignore_nan: elements whose target is NaN contribute nothing.
        normalizer: what ``"mean"`` divides by: ``"elements"``, ``"weights"``, ``"positives"``, a number or a tensor of
            one element.

    Shape:
        input: any; target: the same, or class indices; mask: broadcasts to the input; output: a scalar, or the shape of
        the input for ``reduction="none"``.

    Raises, dtypes and formula: see :func:`fused_logistic.asymmetric_loss_with_logits`.
    """

    weight: Tensor | float | None
    pos_weight: Tensor | float | None

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float | None = 0.05,
        eps: float = 1e-8,
        *,
        reduction: str = "sum",
        weight: Tensor | float | None = None,
        pos_weight: Tensor | float | None = None,
        label_smoothing: float | Tensor | None = None,
        ignore_index: int | None = None,
        ignore_nan: bool = False,
        normalizer: str | Tensor | float = "elements",
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip, self.eps = gamma_neg, gamma_pos, clip, eps
        self.reduction = reduction
        _set(self, "weight", weight)
        _set(self, "pos_weight", pos_weight)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.ignore_nan = ignore_nan
        self.normalizer = normalizer

    @torch.jit.ignore
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return asymmetric_loss_with_logits(
            input,
            target,
            self.gamma_neg,
            self.gamma_pos,
            self.clip,
            self.reduction,
            weight=self.weight,
            mask=mask,
            **_options(self),
        )

    def extra_repr(self) -> str:
        described = (f"{name}={getattr(self, name)!r}" for name in ("gamma_neg", "gamma_pos", "clip"))
        return _shown(self, *described, reduction="sum", weight=None, **_OPTIONS)


class LinearBCEWithLogitsLoss(torch.nn.Linear):
    """A linear layer and its loss in one, computed by :func:`fused_logistic.linear_binary_cross_entropy`.

    A :class:`torch.nn.Linear` (same parameters, initialisation and ``state_dict``, which is interchangeable) that is
    called with the target: ``loss = head(input, target)``. Without one it is the linear layer: ``head(input)`` are the
    logits, in a :class:`torch.nn.Sequential` too. The buffers of the loss are not part of the ``state_dict``.

    Args:
        in_features: number of features.
        num_labels: number of labels, each with a logit of its own.
        bias: whether the layer has one.
        weight: a tensor that broadcasts to the shape of the logits, or a number (the buffer ``loss_weight``; ``weight``
            is the layer's).
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: the weight of positive examples, likewise (a buffer).
        label_smoothing: in [0, 1]; moves the targets towards 1/2. (A Parameter is learnt, and in the ``state_dict``.)
        ignore_index: elements whose target has this value contribute nothing.
        normalizer: what ``"mean"`` divides by, as for :class:`BCEWithLogitsLoss`.
        chunk_bytes: how many bytes a tile of the logits may take; None: 8 MiB on the CPU, else 256 MiB.
        ignore_nan: elements whose target is NaN contribute nothing.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        input: ``[..., in_features]``, or sparse ``[rows, in_features]``; target: ``[..., num_labels]``, or sparse
        ``[rows, num_labels]``; mask and weight of the call: broadcast to ``[..., num_labels]``; output: a scalar, or
        ``[..., num_labels]`` for ``reduction="none"`` and without target. With one label the target may be ``[...]``:
        then all that is ``[..., num_labels]`` beside a target is ``[...]``.

    The weight of a call (of its samples, say) multiplies that of the module (of its classes), as torch multiplies.

    Raises, dtypes and formula: see :func:`fused_logistic.linear_binary_cross_entropy`; also NotImplementedError where
    ``torch.jit.script`` compiled a call with a target.
    """

    loss_weight: Tensor | float | None
    pos_weight: Tensor | float | None

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool = True,
        *,
        weight: Tensor | float | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | float | None = None,
        label_smoothing: float | Tensor | None = None,
        ignore_index: int | None = None,
        normalizer: str | Tensor | float = "elements",
        chunk_bytes: int | None = None,
        ignore_nan: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_labels, bias, device, dtype)
        _set(self, "loss_weight", weight, persistent=False, called="weight")
        _set(self, "pos_weight", pos_weight, persistent=False)
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.normalizer = normalizer
        self.chunk_bytes = chunk_bytes
        self.ignore_nan = ignore_nan

    def forward(
        self,
        input: Tensor,
        target: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | float | None = None,
    ) -> Tensor:
        if target is None:
            return torch.nn.functional.linear(input, self.weight, self.bias)
        if not torch.jit.is_scripting():  # a call of Python there, and no model that may make one can be saved
            return self._loss(input, target, mask, weight)
        raise NotImplementedError(
            "LinearBCEWithLogitsLoss: expected no target in what torch.jit.script compiles, got one; "
            "BCEWithLogitsLoss takes the logits there"
        )

    def _loss(self, input: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | float | None) -> Tensor:
        linear_weight = self.weight
        if self.out_features == 1 and isinstance(target, Tensor) and target.dim() == input.dim() - 1:
            linear_weight = linear_weight.squeeze(0)  # logits without a dimension for the one label
        if weight is None:
            weight = self.loss_weight
        elif self.loss_weight is not None:
            weight = _product(self.loss_weight, weight, input, linear_weight)
        return linear_binary_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=self.bias,
            weight=weight,
            reduction=self.reduction,
            mask=mask,
            chunk_bytes=self.chunk_bytes,
            **_options(self),
        )

    def logits(self, input: Tensor) -> Tensor:
        """The layer called without target, hooks included: ``F.linear(input, weight, bias)``, ``[..., num_labels]``."""
        if torch.jit.is_scripting():  # which knows the call of a module's own by its method alone
            return self.forward(input)
        return self(input)

    def predict_proba(self, input: Tensor) -> Tensor:
        """The probability of each label, sigmoid of the logits: ``[..., num_labels]``."""
        return torch.sigmoid(self.logits(input))

    def predict(self, input: Tensor, threshold: float = 0.5) -> Tensor:
        r"""Whether each label is more probable than ``threshold``: bool, ``[..., num_labels]`` as the logits have it.

        As scikit-learn's ``predict`` a label at the threshold itself is negative; ``.long()`` gives its 0 and 1. No
        probability is rounded: :math:`\sigma(z) > t` is :math:`z > \log(t / (1 - t))`, with the digits of fp64
        whatever the logits' dtype is. A logit that is NaN is not.

        Raises:
            TypeError: ``threshold`` is not a number.
            ValueError: It is not between 0 and 1.
        """
        if not torch.jit.is_scripting():  # which knows the type
            check_number("LinearBCEWithLogitsLoss", "threshold", threshold, refused=bool)
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"LinearBCEWithLogitsLoss: expected threshold between 0 and 1, got {threshold}")
        logits = self.logits(input)
        bound = torch.tensor(_logit(threshold), dtype=torch.float64, device="cpu")
        rounded = bound.to(logits.dtype)
        # where rounding moved it up, the logit that it became is above it
        return torch.where(rounded > bound, logits >= rounded, logits > rounded)

    def extra_repr(self) -> str:
        described = f"in_features={self.in_features}, num_labels={self.out_features}, bias={self.bias is not None}"
        return _shown(self, described, loss_weight=None, reduction="mean", **_OPTIONS, chunk_bytes=None)


_EXCHANGES = (None, "bidir", "shift", "reduce", "gather")


class SigLipLoss(torch.nn.Module):
    """open_clip's ``SigLipLoss``, computed by :func:`fused_logistic.sigmoid_contrastive_loss`.

    Args:
        cache_labels: taken, and without effect: there are no labels in memory.
        rank: of this process.
        world_size: of ``torch.distributed``'s default group; more than 1: with the texts of all its processes.
        dist_impl: ``"bidir"``, ``"shift"``, ``"reduce"``, ``"gather"`` or None: taken, and without effect, since the
            results of all are the same: the texts go round in a ring.

    Shape:
        image_features, text_features: ``[pairs, features]``; logit_scale, logit_bias: ``[]`` or ``[1]``; output: a
        scalar, or with ``output_dict=True`` ``{"contrastive_loss": scalar}``.

    Raises, dtypes and formula: see :func:`fused_logistic.sigmoid_contrastive_loss`; also ValueError where
    ``dist_impl`` is something else, and RuntimeError where rank and world_size are not the default group's.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        if dist_impl not in _EXCHANGES:
            known = ", ".join(map(repr, _EXCHANGES))
            raise ValueError(f"SigLipLoss: expected dist_impl to be one of {known}, got {dist_impl!r}")
        self.cache_labels, self.rank, self.world_size, self.dist_impl = cache_labels, rank, world_size, dist_impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        group = None
        if self.world_size > 1:
            from . import ring  # torch.distributed is not in every build of torch

            group = ring.default_group(self.rank, self.world_size)
        loss = sigmoid_contrastive_loss(image_features, text_features, logit_scale, logit_bias, group=group)
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return f"rank={self.rank}, world_size={self.world_size}"

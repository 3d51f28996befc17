"""The functional interface of the whole layer with the losses of :mod:`fused_logistic.functional_focal`."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import functional_linear
from .functional_focal import asymmetric_options, focal_options
from .options import ASYMMETRIC, FOCAL

_FOCAL, _ASYMMETRIC = "linear_" + FOCAL, "linear_" + ASYMMETRIC


def linear_sigmoid_focal_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    alpha: float | Tensor = 0.25,
    gamma: float | Tensor = 2,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    chunk_bytes: int | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    r"""Focal loss of a linear layer, logits and sigmoid included, whose logits are never stored.

    Equivalent to ``sigmoid_focal_loss(F.linear(input, linear_weight, linear_bias), target, ...)``. Shapes, dtypes,
    sparse inputs and targets, what is differentiated how, and errors are those of :func:`linear_binary_cross_entropy`,
    but that one label too goes by tiles.

    Args:
        input: ``[..., features]``, or sparse ``[rows, features]``.
        linear_weight: ``[labels, features]`` or ``[features]``.
        target: ``[..., labels]``, or sparse ``[rows, labels]``.
        linear_bias: ``[labels]``.
        alpha: as for :func:`sigmoid_focal_loss`.
        gamma: likewise. Tensors that :func:`sigmoid_focal_loss` composes make whole logits here.
        weight: weight of the elements' losses; broadcasts to ``[..., labels]``.
        pos_weight: weight of the positive term; broadcasts likewise.
        reduction: ``"none"``, ``"mean"`` (over all elements) or ``"sum"``.
        ignore_index: elements whose target has this value contribute nothing.
        mask: bool; broadcasts to ``[..., labels]``; where it is False, as for ``ignore_index``.
        chunk_bytes: how many bytes a tile of the logits may take. None: 8 MiB on the CPU, else 256 MiB.
        ignore_nan: elements whose target is NaN, a label that is missing, contribute nothing.
        normalizer: what ``"mean"`` divides by, as for :func:`linear_binary_cross_entropy`.

    Returns:
        A scalar, or the losses ``[..., labels]`` for ``"none"``; of the target's dtype if that is a floating type, else
        the input's.

    Formula: Lin et al. (2017), see :func:`sigmoid_focal_loss`; ``csrc/focal.h``.
    """
    tensors = input, linear_weight, target, linear_bias, weight, pos_weight, mask, normalizer
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            linear_sigmoid_focal_loss,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            alpha=alpha,
            gamma=gamma,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            ignore_index=ignore_index,
            mask=mask,
            chunk_bytes=chunk_bytes,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    options = focal_options(_FOCAL, alpha, gamma, ignore_index, ignore_nan)
    layer = input, linear_weight, target, linear_bias
    return functional_linear.computed(*layer, weight, pos_weight, mask, reduction, normalizer, chunk_bytes, options)


def linear_asymmetric_loss_with_logits(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float | None = 0.05,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    reduction: str = "sum",
    label_smoothing: float | Tensor | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    chunk_bytes: int | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    r"""Asymmetric loss of a linear layer, logits and sigmoid included, whose logits are never stored.

    Equivalent to ``asymmetric_loss_with_logits(F.linear(input, linear_weight, linear_bias), target, ...)``. Shapes,
    dtypes, sparse inputs and targets, what is differentiated how, and errors are those of
    :func:`linear_binary_cross_entropy`, but that one label too goes by tiles.

    Args:
        input: ``[..., features]``, or sparse ``[rows, features]``.
        linear_weight: ``[labels, features]`` or ``[features]``.
        target: ``[..., labels]``, or sparse ``[rows, labels]``.
        linear_bias: ``[labels]``.
        gamma_neg: as for :func:`asymmetric_loss_with_logits`.
        gamma_pos: likewise.
        clip: likewise.
        weight: weight of the elements' losses; broadcasts to ``[..., labels]``.
        pos_weight: weight of the positive term; broadcasts likewise.
        reduction: ``"none"``, ``"mean"`` (over all elements) or ``"sum"``.
        label_smoothing: in [0, 1], None being 0.
        ignore_index: elements whose target has this value contribute nothing.
        mask: bool; broadcasts to ``[..., labels]``; where it is False, as for ``ignore_index``.
        chunk_bytes: how many bytes a tile of the logits may take. None: 8 MiB on the CPU, else 256 MiB.
        ignore_nan: elements whose target is NaN, a label that is missing, contribute nothing.
        normalizer: what ``"mean"`` divides by, as for :func:`linear_binary_cross_entropy`.

    Returns:
        A scalar, or the losses ``[..., labels]`` for ``"none"``; of the target's dtype if that is a floating type, else
        the input's.

    Formula: Ridnik et al. (2020), see :func:`asymmetric_loss_with_logits`; ``csrc/asymmetric.h``.
    """
    tensors = input, linear_weight, target, linear_bias, weight, pos_weight, mask, normalizer
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            linear_asymmetric_loss_with_logits,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            gamma_neg=gamma_neg,
            gamma_pos=gamma_pos,
            clip=clip,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            mask=mask,
            chunk_bytes=chunk_bytes,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    options = asymmetric_options(_ASYMMETRIC, gamma_neg, gamma_pos, clip, label_smoothing, ignore_index, ignore_nan)
    layer = input, linear_weight, target, linear_bias
    return functional_linear.computed(*layer, weight, pos_weight, mask, reduction, normalizer, chunk_bytes, options)

"""The functional interface of the losses that give less weight to what is classified well."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments
from .functional import computed
from .options import ASYMMETRIC, FOCAL, QUALITY, VARIFOCAL, Options

_NAMES = ("inputs", "targets")  # of the first two, as torchvision has them


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float | Tensor = 2,
    reduction: str = "none",
    *,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    r"""Focal loss of ``sigmoid(inputs)``: binary cross entropy that gives less weight to what is classified well.

    Equivalent to ``torchvision.ops.sigmoid_focal_loss``, one pass over memory for the loss and its gradient, and exact
    in both tails. With the probability :math:`q = y\,\sigma(-z) + (1 - y)\,\sigma(z)` given to the other label
    (:math:`1 - p_t` in the paper) and :math:`\alpha_t = \alpha y + (1 - \alpha)(1 - y)`:

    .. math:: \ell = \alpha_t\, q^\gamma \bigl(y \log(1 + e^{-z}) + (1 - y) \log(1 + e^{z})\bigr)

    Args:
        inputs: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        targets: :math:`y`, of the same shape; any of those dtypes, bool or an integer dtype, read as it is. Or class
            indices, as :func:`binary_cross_entropy_with_logits` takes them: ``[rows]`` for ``[rows, classes]``. Meant
            are targets in [0, 1]; others follow the same formula. Where their :math:`q` is negative, :math:`|q|^\gamma`
            stands for the power, negative for an odd ``gamma``: for a whole one that is :math:`q^\gamma`. A
            :math:`|q|` above 2^62 counts as that, but for a ``gamma`` of 0 to 4 in fp32. Where :math:`q^\gamma z`
            overflows, the gradient is infinite or NaN.
        alpha: :math:`\alpha` in [0, 1]; -1: no :math:`\alpha_t`. Or a tensor that broadcasts to ``inputs``, such as one
            value per class.
        gamma: :math:`\gamma \ge 0`, not necessarily an integer; 0: the cross entropy times :math:`\alpha_t`. Or a
            tensor, likewise. With a tensor that requires a gradient, has dimensions or is not on the CPU, and where
            compiled code sees a number change, the loss is composed of torch's operations: differentiable in the option
            too, slower; the range of a tensor is not checked.
        reduction: ``"none"``, ``"mean"`` (over what ``normalizer`` says) or ``"sum"``.
        weight: :math:`w`, of a shape that broadcasts to that of ``inputs``, by which the loss is multiplied; or a
            number.
        pos_weight: :math:`p`, the weight of the positive term, :math:`p\,y \log(1 + e^{-z})`, of a shape that
            broadcasts to that of ``inputs``; or a number.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, and
            ``"mean"`` divides by the number of those that remain. A class index of this value leaves out all its
            classes.
        mask: bool, of a shape that broadcasts to that of ``inputs``; where it is False, as for ``ignore_index``.
        ignore_nan: elements whose target is NaN, a label that is missing, likewise.
        normalizer: what ``reduction="mean"`` divides by, as for
            :func:`fused_logistic.binary_cross_entropy_with_logits`; ``"positives"`` is what detectors divide by.

    Returns:
        A scalar, or a tensor of the shape of ``inputs`` for ``reduction="none"``. Its dtype is what torch promotes the
        dtypes of both to, that of ``inputs`` if ``targets`` are integers or bool; under autocast at least float32. fp16
        and bf16 are computed in fp32, sums in fp64 in a fixed order. ``inputs``, ``targets``, ``weight`` and
        ``pos_weight`` are differentiable, to any order.

    Raises:
        TypeError: an argument is not a tensor, ``mask`` is not of dtype bool, or ``ignore_nan`` is not a bool.
        ValueError: ``targets`` has neither the shape of ``inputs`` nor that of class indices, ``reduction`` is none of
            the three, ``alpha`` is neither in [0, 1] nor -1, or ``gamma`` is not between 0 and 1e30. ``normalizer``:
            as there.
        RuntimeError: ``weight``, ``pos_weight`` or ``mask`` does not broadcast, or an argument is on another device.
        NotImplementedError: a dtype that is not supported.

    Formula: Lin, Goyal, Girshick, He and Dollár, "Focal loss for dense object detection" (2017);
    ``csrc/focal.h`` derives its gradient.
    """
    if has_torch_function_variadic(inputs, targets, weight, pos_weight, mask, normalizer):
        return handle_torch_function(
            sigmoid_focal_loss,
            (inputs, targets, weight, pos_weight, mask, normalizer),
            inputs,
            targets,
            alpha=alpha,
            gamma=gamma,
            reduction=reduction,
            weight=weight,
            pos_weight=pos_weight,
            ignore_index=ignore_index,
            mask=mask,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    options = focal_options(FOCAL, alpha, gamma, ignore_index, ignore_nan)
    tensors = inputs, targets, weight, pos_weight, mask
    return computed(FOCAL, _NAMES, tensors, reduction, options, True, normalizer)


def quality_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    beta: float = 2.0,
    reduction: str = "none",
    *,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    r"""Quality focal loss of ``sigmoid(inputs)``: the focal loss of soft targets, such as the quality of a box.

    The usual implementations compose it of a sigmoid, a power and the binary cross entropy; here it takes one pass over
    memory with its gradient, and both tails of targets 0 and 1 are exact:

    .. math:: \ell = |\sigma(z) - y|^\beta \bigl(y \log(1 + e^{-z}) + (1 - y) \log(1 + e^{z})\bigr)

    Args:
        inputs: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        targets: :math:`y` in [0, 1] (not checked), of the same shape; any of those dtypes, bool or an integer dtype;
            or class indices, as for :func:`sigmoid_focal_loss`.
            Where :math:`\sigma(z) = y` the power's derivative counts as 0, for :math:`\beta < 1` too.
        beta: :math:`\beta \ge 0`, a number.
        reduction: ``"none"``, ``"mean"`` (over all elements) or ``"sum"``.
        weight: :math:`w`, of a shape that broadcasts to that of ``inputs``, by which the loss is multiplied; or a
            number.
        pos_weight: the weight of the positive term, :math:`y \log(1 + e^{-z})`, likewise.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, and
            ``"mean"`` divides by the number of those that remain.
        mask: bool, of a shape that broadcasts to that of ``inputs``; where it is False, as for ``ignore_index``.
        ignore_nan: elements whose target is NaN, a label that is missing, likewise.
        normalizer: what ``reduction="mean"`` divides by, as for
            :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Returns:
        A scalar, or a tensor of the shape of ``inputs`` for ``reduction="none"``; dtypes and sums as for
        :func:`sigmoid_focal_loss`. ``inputs``, ``targets``, ``weight`` and ``pos_weight`` are differentiable, to any
        order.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as for :func:`sigmoid_focal_loss`; also TypeError where ``beta``
            is no number.
        ValueError: ``targets`` has another shape than ``inputs``, ``reduction`` is none of the three, or ``beta`` is
            not between 0 and 1e30.

    Formula: Li et al., "Generalized Focal Loss" (2020); ``csrc/quality.h`` derives its gradient.
    """
    relevant_args = inputs, targets, weight, pos_weight, mask, normalizer
    if has_torch_function_variadic(*relevant_args):
        return handle_torch_function(
            quality_focal_loss,
            relevant_args,
            inputs,
            targets,
            beta=beta,
            reduction=reduction,
            weight=weight,
            pos_weight=pos_weight,
            ignore_index=ignore_index,
            mask=mask,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    options = Options(
        0.0,  # as a default Dynamo would take it for an input that may change
        ignore_index=arguments.integer(QUALITY, "ignore_index", ignore_index),
        beta=arguments.number(QUALITY, "beta", beta),
        ignore_nan=arguments.flag(QUALITY, "ignore_nan", ignore_nan),
    )
    tensors = inputs, targets, weight, pos_weight, mask
    return computed(QUALITY, _NAMES, tensors, reduction, options, True, normalizer)


def varifocal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    reduction: str = "none",
    *,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    r"""Varifocal loss of ``sigmoid(inputs)``: a focal loss of negatives, and of positives the loss by their quality.

    One pass over memory for the loss and its gradient; both tails of targets 0 and 1 are exact. With the binary cross
    entropy :math:`\ell_y = y \log(1 + e^{-z}) + (1 - y) \log(1 + e^{z})`:

    .. math:: \ell = y\,\ell_y \text{ for } y > 0, \qquad \ell = \alpha\,|\sigma(z) - y|^\gamma\,\ell_y \text{ else}

    Args:
        inputs: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        targets: :math:`y` in [0, 1] (not checked), of the same shape, 0 for negatives and the quality (such as the IoU)
            for positives; any of those dtypes, bool or an integer dtype; or class indices, likewise.
        alpha: :math:`\alpha` in [0, 1], a number.
        gamma: :math:`\gamma \ge 0`, a number.
        iou_weighted: whether positives have the weight :math:`y`; else they have 1.
        reduction: ``"none"``, ``"mean"`` (over all elements) or ``"sum"``.
        weight: :math:`w`, of a shape that broadcasts to that of ``inputs``, by which the loss is multiplied; or a
            number.
        pos_weight: the weight of the positive term, :math:`y \log(1 + e^{-z})`, likewise.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, and
            ``"mean"`` divides by the number of those that remain.
        mask: bool, of a shape that broadcasts to that of ``inputs``; where it is False, as for ``ignore_index``.
        ignore_nan: elements whose target is NaN, a label that is missing, likewise.
        normalizer: what ``reduction="mean"`` divides by, as for
            :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Returns:
        A scalar, or a tensor of the shape of ``inputs`` for ``reduction="none"``; dtypes and sums as for
        :func:`sigmoid_focal_loss`. ``inputs``, ``targets``, ``weight`` and ``pos_weight`` are differentiable, to any
        order.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as for :func:`sigmoid_focal_loss`; also TypeError where ``alpha``
            or ``gamma`` is no number or ``iou_weighted`` no bool.
        ValueError: ``targets`` has another shape than ``inputs``, ``reduction`` is none of the three, ``alpha`` is not
            in [0, 1], or ``gamma`` is not between 0 and 1e30.

    Formula: Zhang, Wang, Dayoub and Sünderhauf, "VarifocalNet" (2021); ``csrc/quality.h`` derives its gradient.
    """
    relevant_args = inputs, targets, weight, pos_weight, mask, normalizer
    if has_torch_function_variadic(*relevant_args):
        return handle_torch_function(
            varifocal_loss,
            relevant_args,
            inputs,
            targets,
            alpha=alpha,
            gamma=gamma,
            iou_weighted=iou_weighted,
            reduction=reduction,
            weight=weight,
            pos_weight=pos_weight,
            ignore_index=ignore_index,
            mask=mask,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    if not isinstance(iou_weighted, bool):
        raise TypeError(f"{VARIFOCAL}: expected iou_weighted to be a bool, got {type(iou_weighted).__name__}")
    options = Options(
        0.0,  # see above
        ignore_index=arguments.integer(VARIFOCAL, "ignore_index", ignore_index),
        gamma=arguments.number(VARIFOCAL, "gamma", gamma),
        alpha=arguments.number(VARIFOCAL, "alpha", alpha),
        iou_weighted=iou_weighted,
        ignore_nan=arguments.flag(VARIFOCAL, "ignore_nan", ignore_nan),
    )
    tensors = inputs, targets, weight, pos_weight, mask
    return computed(VARIFOCAL, _NAMES, tensors, reduction, options, True, normalizer)


def asymmetric_loss_with_logits(
    input: Tensor,
    target: Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float | None = 0.05,
    reduction: str = "sum",
    *,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    label_smoothing: float | Tensor | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    r"""Asymmetric loss of ``sigmoid(input)``: focal exponents of their own for positives and negatives of many labels.

    What timm's ``AsymmetricLossMultiLabel`` computes, but for its ``eps``: there positives lose their gradient below a
    logit of -18, here they keep it. One pass over memory for the loss and its gradient. With the probability
    :math:`p_m = \max(\sigma(z) - m, 0)` that is left of a negative's,
    :math:`q = y\,\sigma(-z) + (1 - y)\,p_m` and :math:`\gamma = \gamma_+ y + \gamma_- (1 - y)`:

    .. math:: \ell = q^\gamma \bigl(y \log(1 + e^{-z}) - (1 - y) \log(1 - p_m)\bigr)

    Args:
        input: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        target: :math:`y` in [0, 1] (not checked), of the same shape; any of those dtypes, bool or an integer dtype; or
            class indices, as for :func:`sigmoid_focal_loss`.
        gamma_neg: :math:`\gamma_- \ge 0`, a number.
        gamma_pos: :math:`\gamma_+ \ge 0`, a number.
        clip: the margin :math:`m`, a number: 0 or None for none, or in [1e-9, 1].
        reduction: ``"none"``, ``"mean"`` (over all elements) or, as in timm, ``"sum"``.
        weight: :math:`w`, of a shape that broadcasts to that of ``input``, by which the loss is multiplied; or a
            number.
        pos_weight: the weight of the positive term, :math:`y \log(1 + e^{-z})`, likewise.
        label_smoothing: :math:`s` in [0, 1], None being 0: the target becomes :math:`y (1 - s) + s / 2`. A tensor is
            differentiable and broadcasts to ``input``; the loss is then composed of torch's operations.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, and
            ``"mean"`` divides by the number of those that remain.
        mask: bool, of a shape that broadcasts to that of ``input``; where it is False, as for ``ignore_index``.
        ignore_nan: elements whose target is NaN, a label that is missing, likewise.
        normalizer: what ``reduction="mean"`` divides by, as for
            :func:`fused_logistic.binary_cross_entropy_with_logits`.

    Returns:
        A scalar, or a tensor of the shape of ``input`` for ``reduction="none"``; dtypes and sums as for
        :func:`sigmoid_focal_loss`. ``input``, ``target``, ``weight`` and ``pos_weight`` are differentiable, to any
        order; at :math:`\sigma(z) = m` the derivative is that of the clipped side, 0.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as for :func:`sigmoid_focal_loss`; also TypeError where
            ``gamma_neg``, ``gamma_pos`` or ``clip`` is no number.
        ValueError: ``target`` has another shape than ``input``, ``reduction`` is none of the three, an exponent is not
            between 0 and 1e30, or ``clip`` is neither 0 nor between 1e-9 and 1.

    Formula: Ridnik et al., "Asymmetric Loss For Multi-Label Classification" (2020); ``csrc/asymmetric.h`` derives its
    gradient.
    """
    relevant_args = input, target, weight, pos_weight, mask, normalizer
    if has_torch_function_variadic(*relevant_args):
        return handle_torch_function(
            asymmetric_loss_with_logits,
            relevant_args,
            input,
            target,
            gamma_neg=gamma_neg,
            gamma_pos=gamma_pos,
            clip=clip,
            reduction=reduction,
            weight=weight,
            pos_weight=pos_weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            mask=mask,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    options = asymmetric_options(ASYMMETRIC, gamma_neg, gamma_pos, clip, label_smoothing, ignore_index, ignore_nan)
    names = ("input", "target")
    tensors = input, target, weight, pos_weight, mask
    return computed(ASYMMETRIC, names, tensors, reduction, options, True, normalizer)


def asymmetric_options(
    op: str, gamma_neg: Any, gamma_pos: Any, clip: Any, label_smoothing: Any, ignore_index: Any, ignore_nan: Any
) -> Options:
    return Options(
        label_smoothing=0.0 if label_smoothing is None else arguments.option(op, "label_smoothing", label_smoothing),
        ignore_index=arguments.integer(op, "ignore_index", ignore_index),
        gamma_neg=arguments.number(op, "gamma_neg", gamma_neg),
        gamma_pos=arguments.number(op, "gamma_pos", gamma_pos),
        clip=0.0 if clip is None else arguments.number(op, "clip", clip),
        ignore_nan=arguments.flag(op, "ignore_nan", ignore_nan),
    )


def focal_options(op: str, alpha: Any, gamma: Any, ignore_index: Any, ignore_nan: Any) -> Options:
    gamma, alpha = arguments.option(op, "gamma", gamma), arguments.option(op, "alpha", alpha)
    given_alpha = alpha if isinstance(alpha, Tensor) or alpha != -1 else None
    return Options(
        0.0,
        arguments.integer(op, "ignore_index", ignore_index),
        gamma,
        given_alpha,
        ignore_nan=arguments.flag(op, "ignore_nan", ignore_nan),
    )

"""The functional interface of the losses that give less weight to what is classified well."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments
from .functional import computed
from .options import FOCAL, Options


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
) -> Tensor:
    r"""Focal loss of ``sigmoid(inputs)``: binary cross entropy that gives less weight to what is classified well.

    Equivalent to ``torchvision.ops.sigmoid_focal_loss``, one pass over memory for the loss and its gradient, and exact
    in both tails. With the probability :math:`q = y\,\sigma(-z) + (1 - y)\,\sigma(z)` given to the other label
    (:math:`1 - p_t` in the paper) and :math:`\alpha_t = \alpha y + (1 - \alpha)(1 - y)`:

    .. math:: \ell = \alpha_t\, q^\gamma \bigl(y \log(1 + e^{-z}) + (1 - y) \log(1 + e^{z})\bigr)

    Args:
        inputs: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        targets: :math:`y`, of the same shape; any of those dtypes, bool or an integer dtype, read as it is. Meant are
            targets in [0, 1]; others follow the same formula. Where their :math:`q` is negative, :math:`|q|^\gamma`
            stands for the power, negative for an odd ``gamma``: for a whole one that is :math:`q^\gamma`. A
            :math:`|q|` above 2^62 counts as that.
        alpha: :math:`\alpha` in [0, 1]; -1: no :math:`\alpha_t`. Or a tensor that broadcasts to ``inputs``, such as one
            value per class.
        gamma: :math:`\gamma \ge 0`, not necessarily an integer; 0: the cross entropy times :math:`\alpha_t`. Or a
            tensor, likewise. With a tensor that requires a gradient, has dimensions or is not on the CPU, and where
            compiled code sees a number change, the loss is composed of torch's operations: differentiable in the option
            too, slower; the range of a tensor is not checked.
        reduction: ``"none"``, ``"mean"`` (over all elements) or ``"sum"``.
        weight: :math:`w`, of a shape that broadcasts to that of ``inputs``, by which the loss is multiplied; or a
            number.
        pos_weight: :math:`p`, the weight of the positive term, :math:`p\,y \log(1 + e^{-z})`, of a shape that
            broadcasts to that of ``inputs``; or a number.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, and
            ``"mean"`` divides by the number of those that remain.
        mask: bool, of a shape that broadcasts to that of ``inputs``; where it is False, as for ``ignore_index``.

    Returns:
        A scalar, or a tensor of the shape of ``inputs`` for ``reduction="none"``. Its dtype is what torch promotes the
        dtypes of both to, that of ``inputs`` if ``targets`` are integers or bool; under autocast at least float32. fp16
        and bf16 are computed in fp32, sums in fp64 in a fixed order. ``inputs``, ``targets``, ``weight`` and
        ``pos_weight`` are differentiable, to any order.

    Raises:
        TypeError: an argument is not a tensor, or ``mask`` is not bool.
        ValueError: ``targets`` has another shape than ``inputs``, ``reduction`` is none of the three, ``alpha`` is
            neither in [0, 1] nor -1, or ``gamma`` is not between 0 and 1e30.
        RuntimeError: ``weight``, ``pos_weight`` or ``mask`` does not broadcast, or an argument is on another device.
        NotImplementedError: a dtype that is not supported.

    Formula: Lin, Goyal, Girshick, He and Dollár, "Focal loss for dense object detection" (2017);
    ``csrc/losses.h`` derives its gradient.
    """
    if has_torch_function_variadic(inputs, targets, weight, pos_weight, mask):
        return handle_torch_function(
            sigmoid_focal_loss,
            (inputs, targets, weight, pos_weight, mask),
            inputs,
            targets,
            alpha=alpha,
            gamma=gamma,
            reduction=reduction,
            weight=weight,
            pos_weight=pos_weight,
            ignore_index=ignore_index,
            mask=mask,
        )
    gamma, alpha = arguments.option(FOCAL, "gamma", gamma), arguments.option(FOCAL, "alpha", alpha)
    w = None if weight is None else arguments.beside(weight, inputs)
    p = None if pos_weight is None else arguments.beside(pos_weight, inputs)
    given_alpha = alpha if isinstance(alpha, Tensor) or alpha != -1 else None
    options = Options(0.0, arguments.integer(FOCAL, "ignore_index", ignore_index), gamma, given_alpha)
    return computed(FOCAL, ("inputs", "targets"), (inputs, targets, w, p, mask), reduction, options, promotes=True)

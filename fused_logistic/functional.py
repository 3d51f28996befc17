"""The functional interface: drop-in replacements of ``torch.nn.functional`` and ``torchvision.ops``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import ops
from .autograd import BinaryCrossEntropyWithLogits
from .sharding import is_dtensor
from .sharding import mean as sharded_mean

_OPTIONAL_TENSOR = (Tensor, type(None))
_PLAIN = (Tensor, torch.nn.Parameter)
_REDUCTIONS = {"none": ops.NONE, "mean": ops.MEAN, "sum": ops.SUM}


def _refuse(op: str, required: dict[str, object], **optional: object) -> NoReturn:
    for name, value in (*required.items(), *optional.items()):
        if not isinstance(value, _OPTIONAL_TENSOR if name in optional else Tensor):
            raise TypeError(f"{op}: expected {name} to be a torch.Tensor, got {type(value).__name__}")
    raise AssertionError("all arguments are tensors")


def _loss() -> Callable[..., Tensor]:
    """The op; where torch.compile captures it and may want a gradient too, the Function that computes both at once."""
    captured = torch.compiler.is_compiling() and torch.is_grad_enabled()
    return BinaryCrossEntropyWithLogits.apply if captured else ops.bce


def _unusual_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> int:
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_enum(size_average, reduce)  # warns that they are deprecated, as torch does
    raise ValueError(f"binary_cross_entropy_with_logits: expected reduction 'none', 'mean' or 'sum', got {reduction!r}")


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    label_smoothing: float | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Binary cross entropy between ``sigmoid(input)`` and ``target``, fused with the sigmoid.

    Equivalent to :func:`torch.nn.functional.binary_cross_entropy_with_logits`, one pass over memory for the loss and
    its gradient, and exact in both tails. With :math:`a = w p y` and :math:`b = w (1 - y)`:

    .. math:: \ell = a \log(1 + e^{-z}) + b \log(1 + e^{z}), \qquad
              \partial\ell / \partial z = b\,\sigma(z) - a\,\sigma(-z)

    Args:
        input: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        target: :math:`y` in [0, 1] (not checked, as in torch), of the same shape; any of those dtypes, bool or an
            integer dtype, read as it is.
        weight: :math:`w`, of a shape that broadcasts to that of ``input``.
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` (over all elements, whatever their weight) or ``"sum"``.
        pos_weight: :math:`p`, the weight of positive examples, of a shape that broadcasts to that of ``input``.
        label_smoothing: :math:`s` in [0, 1], None being 0 (dynamic shapes would compile a float as an input): the
            target becomes :math:`y (1 - s) + s / 2`.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, whatever
            their logit is (NaN included); ``"mean"`` divides by the number of those that remain, and is NaN if none
            does. A value that the target's dtype represents.
        mask: bool, of a shape that broadcasts to that of ``input``; where it is False, as for ``ignore_index``.

    Returns:
        A scalar, or a tensor of the shape of ``input`` for ``reduction="none"``. Its dtype is the target's if that is a
        floating type, else the input's; under autocast float32. fp16 and bf16 are computed in fp32. Sums are made in
        fp64 in a fixed order: the same bits for any number of threads. ``input``, ``target``, ``weight`` and
        ``pos_weight`` are differentiable.

    Raises:
        TypeError: an argument is not a tensor, or ``mask`` is not bool.
        ValueError: ``target`` has another shape than ``input``, ``reduction`` is none of the three, or
            ``label_smoothing`` is not in [0, 1].
        RuntimeError: ``weight``, ``pos_weight`` or ``mask`` does not broadcast, or is on another device.
        NotImplementedError: a dtype that is not supported.

    Formula: the chain rule of L(sigma(z)); ``docs/derivation.md`` derives it, line by line of ``csrc/logistic.h``.
    """
    if has_torch_function_variadic(input, target, weight, pos_weight, mask):
        return handle_torch_function(
            binary_cross_entropy_with_logits,
            (input, target, weight, pos_weight, mask),
            input,
            target,
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            pos_weight=pos_weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            mask=mask,
        )
    if not (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and isinstance(weight, _OPTIONAL_TENSOR)
        and isinstance(pos_weight, _OPTIONAL_TENSOR)
        and isinstance(mask, _OPTIONAL_TENSOR)
    ):
        _refuse(
            "binary_cross_entropy_with_logits",
            {"input": input, "target": target},
            weight=weight,
            pos_weight=pos_weight,
            mask=mask,
        )
    reduction_enum = _REDUCTIONS.get(reduction) if size_average is None and reduce is None else None
    if reduction_enum is None:
        reduction_enum = _unusual_reduction(size_average, reduce, reduction)
    if type(input) not in _PLAIN and is_dtensor(input) and reduction_enum == ops.MEAN:
        return sharded_mean(input, target, weight, pos_weight, mask, label_smoothing or 0.0, ignore_index)
    return _loss()(input, target, weight, pos_weight, mask, reduction_enum, label_smoothing or 0.0, ignore_index, None)


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
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
        targets: :math:`y` in [0, 1], of the same shape; any of those dtypes, bool or an integer dtype, read as it is.
            Outside of [0, 1] there is no such probability, and the loss is NaN.
        alpha: :math:`\alpha` in [0, 1]; -1: no :math:`\alpha_t`.
        gamma: :math:`\gamma \ge 0`, not necessarily an integer; 0: the cross entropy times :math:`\alpha_t`.
        reduction: ``"none"``, ``"mean"`` (over all elements) or ``"sum"``.
        ignore_index: elements whose target has this value contribute nothing to the loss and get no gradient, and
            ``"mean"`` divides by the number of those that remain.
        mask: bool, of a shape that broadcasts to that of ``inputs``; where it is False, as for ``ignore_index``.

    Returns:
        A scalar, or a tensor of the shape of ``inputs`` for ``reduction="none"``. Its dtype is what torch promotes the
        dtypes of both to, that of ``inputs`` if ``targets`` are integers or bool; under autocast at least float32. fp16
        and bf16 are computed in fp32, sums in fp64 in a fixed order. Both arguments are differentiable, to any order.

    Raises:
        TypeError: an argument is not a tensor, or ``mask`` is not bool.
        ValueError: ``targets`` has another shape than ``inputs``, ``reduction`` is none of the three, ``alpha`` is
            neither in [0, 1] nor -1, or ``gamma`` is not between 0 and 1e30.
        RuntimeError: ``mask`` does not broadcast, or an argument is on another device.
        NotImplementedError: a dtype that is not supported.

    Formula: Lin, Goyal, Girshick, He and Dollár, "Focal loss for dense object detection" (2017);
    ``csrc/logistic.h`` derives its gradient.
    """
    if has_torch_function_variadic(inputs, targets, mask):
        return handle_torch_function(
            sigmoid_focal_loss,
            (inputs, targets, mask),
            inputs,
            targets,
            alpha=alpha,
            gamma=gamma,
            reduction=reduction,
            ignore_index=ignore_index,
            mask=mask,
        )
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor) and isinstance(mask, _OPTIONAL_TENSOR)):
        _refuse("sigmoid_focal_loss", {"inputs": inputs, "targets": targets}, mask=mask)
    reduction_enum = _REDUCTIONS.get(reduction)
    if reduction_enum is None:
        raise ValueError(f"sigmoid_focal_loss: expected reduction 'none', 'mean' or 'sum', got {reduction!r}")
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"sigmoid_focal_loss: expected alpha between 0 and 1, or -1 for none, got {alpha}")
    dtype = None
    if inputs.dtype != targets.dtype and targets.is_floating_point():
        dtype = torch.promote_types(inputs.dtype, targets.dtype)
    focal = float(gamma), None if alpha == -1 else float(alpha)
    if type(inputs) not in _PLAIN and is_dtensor(inputs) and reduction_enum == ops.MEAN:
        return sharded_mean(inputs, targets, None, None, mask, 0.0, ignore_index, dtype, *focal)
    return _loss()(inputs, targets, None, None, mask, reduction_enum, 0.0, ignore_index, dtype, *focal)

"""The functional interface: drop-in replacements of ``torch.nn.functional``."""

from __future__ import annotations

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


def _refuse(required: tuple[object, object], **optional: object) -> NoReturn:
    for name, value in (*zip(("input", "target"), required, strict=True), *optional.items()):
        if not isinstance(value, _OPTIONAL_TENSOR if name in optional else Tensor):
            raise TypeError(
                f"binary_cross_entropy_with_logits: expected {name} to be a torch.Tensor, got {type(value).__name__}"
            )
    raise AssertionError("all arguments are tensors")


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
        _refuse((input, target), weight=weight, pos_weight=pos_weight, mask=mask)
    reduction_enum = _REDUCTIONS.get(reduction) if size_average is None and reduce is None else None
    if reduction_enum is None:
        reduction_enum = _unusual_reduction(size_average, reduce, reduction)
    if type(input) not in _PLAIN and is_dtensor(input) and reduction_enum == ops.MEAN:
        if mask is not None or ignore_index is not None:
            raise NotImplementedError(
                "binary_cross_entropy_with_logits: expected neither mask nor ignore_index for the mean of a DTensor: "
                "take reduction='sum' and divide by the global number of elements that remain"
            )
        return sharded_mean(input, target, weight, pos_weight, label_smoothing or 0.0)
    function = BinaryCrossEntropyWithLogits.apply if torch.compiler.is_compiling() else ops.bce
    return function(input, target, weight, pos_weight, mask, reduction_enum, label_smoothing or 0.0, ignore_index, None)

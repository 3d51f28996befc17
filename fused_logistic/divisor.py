"""What a mean divides by: how many elements are left in, what they weigh, or how many of them are positive.

A divisor is one float64 on the device, for which nobody waits. It goes into the ops as their ``count``, so that loss
and gradient stay one pass; only one that is itself differentiated divides afterwards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import matrices, ops, sharding, targets
from .options import Options

WEIGHTS, POSITIVES = "weights", "positives"
NORMALIZERS = ("elements", WEIGHTS, POSITIVES)

_Target = tuple[Tensor, Tensor | None, Tensor | None]  # itself, or the values and indices of a sparse one


def of(
    normalizer: str | Tensor | None,
    shape: Sequence[int],
    target: _Target,
    weight: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> Tensor | None:
    """The divisor of a mean over logits of that shape; None: the number of all elements, as for ``normalizer=None``."""
    if isinstance(normalizer, Tensor):
        return normalizer
    if normalizer == POSITIVES:
        # 1 where there is none, as detectors have it: the loss of an image without objects is that of its background
        return _positives(shape, target, mask, options).sum().double().clamp_min(1)
    if normalizer == WEIGHTS and weight is not None:
        return _weight_of_all(shape, target, weight, mask, options)
    if mask is None and not options.leaves_out:
        return None
    values, crow_indices, col_indices = target
    if crow_indices is not None and col_indices is not None:
        ignored = options.ignore_index, options.ignore_nan
        return matrices.left_in(shape, (1, 1), values, crow_indices, col_indices, mask, *ignored).reshape(()).double()
    if targets.are_classes(shape, values):
        return targets.class_count(shape, values, mask, options.ignore_index)
    counted = targets.bce_count if torch.compiler.is_exporting() else functools.partial(ops.call, ops.bce_count)
    return counted(values, mask, options.ignore_index, options.ignore_nan)


def is_differentiated(count: Tensor) -> bool:
    return count.requires_grad and torch.is_grad_enabled()


def divided(
    apply: Callable[..., Tensor], operands: Sequence[Any], count: Any, own: Sequence[Any], dtype: Any, options: Options
) -> Tensor:
    """The mean by a count that is differentiated, as no Function does it: the sum over it, in torch's operations.

    ``apply`` takes what the op does: the operands, count and reduction, its ``own`` arguments, dtype and options.
    """
    wide = dtype if dtype == torch.float64 else torch.float32  # a sum may be more than half precision has room for
    total = apply(*operands, None, ops.SUM, *own, wide, *options)
    return (total / sharding.replicated_like(total, count)).to(dtype)


def _are_classes(shape: Sequence[int], target: _Target) -> bool:
    """A sparse target's values have a dimension less too."""
    return target[1] is None and targets.are_classes(shape, target[0])


def _positives(shape: Sequence[int], target: _Target, mask: Tensor | None, options: Options) -> Tensor:
    values, crow_indices, col_indices = target
    if _are_classes(shape, target):
        return targets.class_positives(shape, values, mask, options.ignore_index)
    ignored = options.ignore_index, options.ignore_nan
    if crow_indices is None or col_indices is None:
        left_in = targets.kept(values, mask, *ignored)
        return values > 0 if left_in is None else (values > 0) & left_in
    listed = matrices.listed(values, crow_indices, col_indices, shape[1])
    left_in = targets.kept(listed.value, None, *ignored)
    positive = listed.value > 0 if left_in is None else (listed.value > 0) & left_in
    return listed.where(positive, mask, shape)


def _weight_of_all(
    shape: Sequence[int], target: _Target, weight: Tensor, mask: Tensor | None, options: Options
) -> Tensor:
    """The sum of the weights of all elements that are left in, differentiable; a weight of several counts as often."""
    values, crow_indices, col_indices = target
    repeats, ignored = 1, (options.ignore_index, options.ignore_nan)
    if crow_indices is not None and col_indices is not None and options.leaves_out:
        weight = weight.reshape((1,) * (2 - weight.dim()) + weight.shape)
        number = matrices.left_in(shape, weight.shape, values, crow_indices, col_indices, mask, *ignored)
    else:
        if _are_classes(shape, target):
            left_in = targets.class_rows(shape, values, mask, options.ignore_index)
        else:
            left_in = targets.kept(values, mask, *ignored) if options.leaves_out else mask
        joint = weight.shape if left_in is None else torch.broadcast_shapes(weight.shape, left_in.shape)
        repeats = _repeats(shape, joint)
        if left_in is None:
            return weight.sum(dtype=torch.float64) * repeats
        number = left_in.expand(joint).sum_to_size(weight.shape)
    weight = torch.where(number.bool(), weight, 0)  # a weight of none may be NaN
    if number.dtype == torch.bool:
        return weight.sum(dtype=torch.float64) * repeats
    return (weight.double() * number).sum() * repeats


def _repeats(shape: Sequence[int], of: Sequence[int]) -> int:
    """How many elements of ``shape`` have the same element of what broadcasts to it."""
    missing = len(shape) - len(of)
    shared = [size for size, own in zip(shape[missing:], of, strict=True) if own == 1]  # no generator, for Dynamo
    return math.prod([*shape[:missing], *shared])

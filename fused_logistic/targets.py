"""What targets say: which elements count, and where class indices put the positives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .options import Options

# ---- Which elements count -----------------------------------------------------------------------------------------


def holds(dtype: torch.dtype, value: int) -> bool:
    """Whether the dtype has the value: comparing with a tensor of it, torch would wrap the value to one that it has."""
    if dtype.is_floating_point or dtype in (torch.bool, torch.int64):  # bool is compared as an integer
        return True
    limits = torch.iinfo(dtype)
    return limits.min <= value <= limits.max


def leaves_out(dtype: torch.dtype, ignore_index: int | None, ignore_nan: bool) -> bool:
    """Whether a target of the dtype may say that its element does not count."""
    return (ignore_index is not None and holds(dtype, ignore_index)) or (ignore_nan and dtype.is_floating_point)


def kept(target: Tensor, mask: Tensor | None, ignore_index: int | None, ignore_nan: bool = False) -> Tensor | None:
    """Where elements are neither masked out nor ignored, of the target's shape; None: everywhere."""
    there = None if mask is None else mask.expand(target.shape)
    if ignore_index is not None and holds(target.dtype, ignore_index):
        counts = target.ne(ignore_index)
        there = counts if there is None else counts & there
    if ignore_nan and target.dtype.is_floating_point:
        counts = ~target.isnan()
        there = counts if there is None else counts & there
    return there


def bce_count(target: Tensor, mask: Tensor | None, ignore_index: int | None, ignore_nan: bool = False) -> Tensor:
    """How many elements are neither masked out nor ignored, as float64: what a mean is divided by."""
    there = kept(target, mask, ignore_index, ignore_nan)
    if there is None:
        return torch.full((), target.numel(), dtype=torch.float64, device=target.device)
    return there.sum().double()


# ---- Class indices ------------------------------------------------------------------------------------------------
# One against all: the positive of a row is the class that its index names; a row whose index names none has none, and
# one whose index is the ignore_index is left out whole. The kernels compare each element's class with the index
# (csrc/problem.h); what is here makes the comparison's result a tensor, for the composition.


def are_classes(shape: Sequence[Any], target: Tensor, batch_dims: int = 0) -> bool:
    """Whether the target is class indices for logits of that shape: of an integer dtype, and a dimension less.

    Not of a single class: that is rather labels whose dimension was forgotten, of which 0 would be the positive.
    ``batch_dims``: how many of the target's dimensions are not a sample's.
    """
    dtype, dims = target.dtype, target.dim() - batch_dims
    may_be = not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
    return may_be and dims == len(shape) - 1 and shape[class_dim(shape)] != 1


def class_dim(shape: Sequence[Any]) -> int:
    """The dimension of the classes, as in torch's cross_entropy: 1, or the only one that logits of that shape have."""
    return min(1, len(shape) - 1)


def class_rows(shape: Sequence[Any], target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """The mask, without what ignored indices leave out; it broadcasts to the shape."""
    there = kept(target.unsqueeze(class_dim(shape) - len(shape)), None, ignore_index)
    return mask if there is None else there if mask is None else there & mask


def dense(shape: Sequence[Any], target: Tensor, mask: Tensor | None, options: Options) -> tuple[Any, Any, Options]:
    """(target, mask, options) for logits of that shape, where the target is class indices: the same by a bool target.

    Dimensions before those of the logits are a batch's: the target's, the mask's or both.
    """
    dim = class_dim(shape)
    last = dim - len(shape)  # from the end, whatever comes first
    index, mask = target.unsqueeze(last), class_rows(shape, target, mask, options.ignore_index)
    classes = torch.arange(shape[dim], device=target.device).view(-1, *(1,) * (-1 - last))
    return index.eq(classes), mask, options._replace(ignore_index=None)


def resolved(logits: Tensor, target: Tensor, mask: Tensor | None, options: Options) -> tuple[Any, Any, Options]:
    """(target, mask, options) with a target of the logits' shape, which it is but for class indices."""
    return dense(logits.shape, target, mask, options) if are_classes(logits.shape, target) else (target, mask, options)


def class_count(shape: Sequence[int], target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor:
    """What :func:`bce_count` is of a target of class indices: the sum of a number for each of them."""
    dim = class_dim(shape)
    every = torch.full_like(target, shape[dim], dtype=torch.int64)
    number = every if mask is None else mask.expand(shape).sum(dim)
    there = kept(target, None, ignore_index)
    return (number if there is None else number * there).sum().double()


def class_positives(shape: Sequence[int], target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor:
    """Which indices name a class, whose element is left in."""
    dim = class_dim(shape)
    named = (target >= 0) & (target < shape[dim])
    there = kept(target, None, ignore_index)
    if there is not None:
        named = named & there
    if mask is not None:
        index = target.long().clamp(0, shape[dim] - 1).unsqueeze(dim)
        named = named & mask.expand(shape).gather(dim, index).squeeze(dim)
    return named

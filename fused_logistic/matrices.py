"""The layer as matrices: operands of any leading dimensions as rows, a sparse target as its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops, sparse, targets
from .ops import Layer


def each(function: Callable[[Tensor], Tensor], *operands: Tensor | None) -> list[Any]:
    """The function of every operand that is there."""
    return [None if operand is None else function(operand) for operand in operands]


# A small layer takes a few microseconds, as many as each of these calls: what has its shape already is left alone.


def reshaped(tensor: Tensor, *shape: int) -> Tensor:
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def narrowed(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
    return tensor if tensor.shape[dim] == length else tensor.narrow(dim, start, length)


def tile_bytes(asked: int | None, input: Tensor) -> int:
    """How many bytes a tile of what is not stored whole takes at most."""
    # On the CPU 8 MiB, which the last-level cache holds, took up to 15 % less time than 32 MiB with few features, and
    # as much with 512, over layers from 64 x 1,000,000 to 65,536 x 1,000. A GPU wants work for all of it.
    return asked or (8 << 20 if input.is_cpu else 256 << 20)


def add_product(into: Tensor, a: Tensor, b: Tensor, first: bool = True) -> None:
    """into = a b, or += a b after the first; into may be of another dtype than they have."""
    if into.dtype == a.dtype:
        torch.mm(a, b, out=into) if first else into.addmm_(a, b)
    elif a.is_cuda and a.dtype.itemsize == 2:  # into is fp32
        if first:
            torch.mm(a, b, out_dtype=into.dtype, out=into)
        else:
            torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    else:
        product = torch.mm(a.float(), b.float()) if a.dtype == torch.float16 else torch.mm(a, b)
        into.copy_(product) if first else into.add_(product)


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """The op where there is no kernel for it, which would take one pass."""
    kept = (gradient == 0) & ~factor.isfinite()
    gradient.copy_(torch.where(kept, gradient, gradient * factor))


def scaled_(gradient: Tensor, factor: Tensor) -> Tensor:
    """``gradient *= factor``, where 0 stays 0 even times infinity: it may be of elements that are left out."""
    if gradient.is_contiguous():
        ops.call(ops.scale_, gradient, factor)
    else:
        scale_(gradient, factor)
    return gradient


def _as_matrix(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """What broadcasts to logits of the shape ``[..., labels]``, as a matrix of one row or of all, one column or all."""
    tensor.expand(shape)  # or an error
    columns = tensor.shape[-1] if tensor.dim() > 0 else 1
    if tensor.numel() == columns:
        return reshaped(tensor, 1, columns)
    return tensor.expand(*shape[:-1], columns).reshape(math.prod(shape[:-1]), columns)


class Matrices:
    """input ``[rows, features]``, linear_weight ``[labels, features]``, bias ``[labels]``; the other operands ``[rows
    or 1, labels or 1]``, but for the values of a sparse target, which stay as they are."""

    def __init__(self, layer: Layer, grad_output: Tensor | None) -> None:
        weight = layer.linear_weight
        has_labels = weight.dim() == 2
        self.linear_weight = weight if has_labels else weight.unsqueeze(0)
        self.labels, self.features = self.linear_weight.shape
        lead = layer.input.shape[:-1]
        self.logits_shape = (*lead, self.labels) if has_labels else tuple(lead)
        self.rows = math.prod(lead)
        self.input = reshaped(layer.input, self.rows, self.features)
        self.bias = None if layer.linear_bias is None else reshaped(layer.linear_bias, self.labels)

        def matrix(tensor: Tensor) -> Tensor:
            with_labels = tensor if has_labels or tensor.dim() == 0 else tensor.unsqueeze(-1)
            return _as_matrix(with_labels, (*lead, self.labels))

        operands = layer.weight, layer.pos_weight, layer.mask, grad_output
        self.weight, self.pos_weight, self.mask, self.grad_output = each(matrix, *operands)
        self.positives: Positives | None = None
        self.indices: tuple[Tensor, Tensor] | None = None  # of a sparse target on a device that nobody waits for
        self.target = layer.target
        if layer.crow_indices is not None and layer.col_indices is not None:
            if (layer.crow_indices.numel() - 1, self.labels) != self.logits_shape:
                raise RuntimeError("linear_bce: the sparse target is not of the logits' shape")
            if self.labels != 1 and self.input.is_cpu:
                self.positives = Positives(layer.target, layer.crow_indices, layer.col_indices, self.labels)
                return
            if self.labels != 1:
                self.target, *indices = unique(layer.target, layer.crow_indices, layer.col_indices, self.labels)
                self.indices = indices[0], indices[1]
                return
            # one column is as small as the sparse one
            self.target = sparse.dense_target(layer.target, layer.crow_indices, layer.col_indices, self.labels)
        if self.target.shape != self.logits_shape:
            raise RuntimeError("linear_bce: the target is not of the logits' shape")
        self.target = reshaped(self.target, self.rows, self.labels)


def _places(values: Tensor, crow_indices: Tensor, col_indices: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    if values.shape != col_indices.shape:
        raise RuntimeError("linear_bce: a sparse target has one value per column index")
    return sparse.places(crow_indices, col_indices, labels)


def unique(values: Tensor, crow_indices: Tensor, col_indices: Tensor, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, crow_indices, col_indices) of the same target with rising columns, each once in its row, what was there
    several times added up in order. Nothing waits for the device, so they are as long as before: the last belong to no
    row."""
    row, column = _places(values, crow_indices, col_indices, labels)
    rows = crow_indices.numel() - 1
    place, order = torch.sort(row * labels + column, stable=True)
    first = torch.ones_like(place, dtype=torch.bool)
    first[1:] = place[1:] != place[:-1]
    number = first.cumsum(0) - 1
    # torch adds up what has one place in the order in which it comes, on CUDA too
    value = torch.zeros_like(values).index_put_((number,), values.index_select(0, order), accumulate=True)
    places = torch.full_like(place, rows * labels).index_put_((number,), place)
    starts = torch.arange(rows + 1, device=place.device) * labels
    return value, torch.searchsorted(places, starts), places % labels


class Positives:
    """The elements of a sparse target: sorted, each place once, what was there several times added up."""

    def __init__(self, values: Tensor, crow_indices: Tensor, col_indices: Tensor, labels: int) -> None:
        self.row, self.column = _places(values, crow_indices, col_indices, labels)
        self.value = values
        place = self.row * labels + self.column
        if place.numel() < 2 or (place.diff() > 0).all():
            return
        place, inverse = torch.unique(place, return_inverse=True)
        self.value = values.new_zeros(place.numel()).index_add_(0, inverse, values)
        self.row = place // labels
        self.column = place - self.row * labels


class Listed(NamedTuple):
    """The elements of a sparse target, each place once."""

    value: Tensor
    row: Tensor
    column: Tensor
    exists: Tensor | None  # where nobody waits for the device, some are beyond the last

    def where(self, chosen: Tensor, mask: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Which of them are chosen, exist, and are not masked out."""
        if self.exists is not None:
            chosen = chosen & self.exists
        return chosen if mask is None else chosen & mask.expand(shape)[self.row, self.column]


def listed(values: Tensor, crow_indices: Tensor, col_indices: Tensor, labels: int) -> Listed:
    if values.is_cpu:
        positives = Positives(values, crow_indices, col_indices, labels)
        return Listed(positives.value, positives.row, positives.column, None)
    value, crow, column = unique(values, crow_indices, col_indices, labels)
    number = torch.arange(value.numel(), device=value.device)
    row = (torch.searchsorted(crow, number, right=True) - 1).clamp_max(crow.numel() - 2)
    return Listed(value, row, column, number < crow[-1])


def left_in(
    shape: Sequence[int],
    of: Sequence[int],
    target: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    mask: Tensor | None,
    ignore_index: int | None,
    ignore_nan: bool = False,
) -> Tensor:
    """How many elements that are neither masked out nor ignored share each element of an operand of the shape ``of``,
    ``[rows or 1, labels or 1]``: of ``[1, 1]`` the number of all."""
    if mask is None:
        sharing = math.prod(size for size, own in zip(shape, of, strict=True) if own == 1)
        every = torch.full(of, sharing, dtype=torch.int64, device=target.device)
    else:
        every = mask.expand(shape).sum_to_size(of).long()
    if not targets.leaves_out(target.dtype, ignore_index, ignore_nan):
        return every
    elements = listed(target, crow_indices, col_indices, shape[1])
    kept = targets.kept(elements.value, None, ignore_index, ignore_nan)
    assert kept is not None
    # what is not listed is 0
    found = elements.where(kept if ignore_index == 0 else ~kept, mask, shape)
    if math.prod(of) == 1:
        number = found.sum().reshape(of)
    else:
        row, column = (0 if size == 1 else at for size, at in zip(of, (elements.row, elements.column), strict=True))
        place = torch.zeros_like(elements.row) + row * of[1] + column
        number = torch.zeros(math.prod(of), dtype=torch.int64, device=target.device)
        number = number.index_add(0, place, found.long()).reshape(of)
    return number if ignore_index == 0 else every - number

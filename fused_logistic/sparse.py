"""Sparse targets and features: their indices, which torch does not look at, and what is dense of them.

A sparse target travels as its values and the indices of CSR. What is made here is differentiable in the values.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from . import ops
from .options import LAYER


def linear_logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """``composite.linear_logits`` of sparse features by torch's product, in fp32 at least: it has some 16-bit ones."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    if input.layout == torch.sparse_coo:
        values, crow_indices, col_indices = csr_of_coo(input, "input")
        if not ops.transformed():  # torch.func takes no CSR tensor, whose product is several times as fast
            # copies: what the COO tensor holds may change before the backward pass, and no version tells
            input = _csr(crow_indices, col_indices.clone(), values.clone(), input.shape)
    else:
        # the product would read what is not there
        _require_places(input.crow_indices(), input.col_indices(), input.shape[1], "input")
    weight = linear_weight if linear_weight.dim() == 2 else linear_weight.unsqueeze(0)
    with torch.autocast(input.device.type, enabled=False):  # which has no sparse product
        input, weight = input.to(dtype), weight.to(dtype)
        plain = input.layout == torch.sparse_csr and input.is_cpu and not input.requires_grad
        ours = plain and not ops.transformed()
        logits = _Product.apply(input, weight, False) if ours else torch.sparse.mm(input, weight.t())
    if linear_bias is not None:
        logits = logits + linear_bias.to(dtype)
    return logits if linear_weight.dim() == 2 else logits.squeeze(-1)


class _Product(torch.autograd.Function):
    """``apply(input, other, is_transposed)`` of a CSR matrix on the CPU: ``input @ other.t()``, whose derivative by
    ``other`` torch has but slowly; ``is_transposed``: that derivative, ``other.t() @ input``.

    torch's product with a transposed CSR matrix takes 28 times as long as ``index_add_`` where there is one label
    (50,000 rows and columns, 50 values a row), and twice as long as sorting by columns first where there are 16.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, other: Tensor, is_transposed: bool) -> Tensor:
        ctx.save_for_backward(input)  # which sees whether it has changed since
        ctx.save_for_forward(input)
        ctx.is_transposed = is_transposed
        return _transposed_product(input, other) if is_transposed else torch.sparse.mm(input, other.t())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return None, _Product.apply(*ctx.saved_tensors, grad_output, not ctx.is_transposed), None

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, __: None) -> Any:
        return _Product.apply(*ctx.saved_tensors, tangent, ctx.is_transposed)


def _transposed_product(input: Tensor, other: Tensor) -> Tensor:
    """``other.t() @ input`` for ``[rows, labels]``."""
    column, values = input.col_indices(), input.values()
    row, (rows, columns) = _rows(input.crow_indices(), values.numel()), input.shape
    if other.shape[1] == 1:
        terms = values * other.squeeze(1).index_select(0, row)
        return terms.new_zeros(columns).index_add_(0, column, terms).unsqueeze(0)
    column, order = torch.sort(column, stable=True)
    starts = torch.searchsorted(column, torch.arange(columns + 1, dtype=column.dtype))
    ordered = row.index_select(0, order), values.index_select(0, order)
    return torch.sparse.mm(_csr(starts, *ordered, (columns, rows)), other).t()


def _csr(crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():  # that CSR tensors are in beta state, who gave us none need not read
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(crow_indices, col_indices, values, shape, check_invariants=False)


def _rows(crow_indices: Tensor, number: int) -> Tensor:
    """The row of each of that many values."""
    every_row = torch.arange(crow_indices.numel() - 1, device=crow_indices.device)
    return torch.repeat_interleave(every_row, crow_indices.diff(), output_size=number)


def _has_values(tensor: Tensor) -> bool:
    """Whether Python can look at them and waits for no device: not while a graph is captured, in a batch of vmap or in
    a fake tensor."""
    if not tensor.is_cpu or torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.is_meta:
        return False
    return not ops.wrapped(tensor)


def _require(*conditions: tuple[Tensor, str]) -> None:
    if all(_has_values(right) for right, _ in conditions):
        found = torch.stack([right for right, _ in conditions]).tolist()
        for right, (_, message) in zip(found, conditions, strict=True):
            if not right:
                raise ValueError(message)
        return
    for right, message in conditions:
        torch._assert_async(right, message)


def _require_places(crow_indices: Tensor, col_indices: Tensor, labels: int, name: str) -> None:
    """torch does not check indices unless asked to. Here wrong ones raise: a ValueError, or, where nobody can look at
    them yet, a RuntimeError as soon as they are computed; on a GPU a failed assertion of the device."""
    number = col_indices.numel()
    rising = f"{LAYER}: expected crow_indices of a sparse {name} that rise from 0 to {number}, got others"
    inside = f"{LAYER}: expected column indices of a sparse {name} in [0, {labels}), got others"
    rise = (crow_indices[0] == 0) & (crow_indices[-1] == number) & (crow_indices.diff() >= 0).all()
    are_inside = ((col_indices >= 0) & (col_indices < labels)).all()
    _require((rise, rising), (are_inside, inside))


def places(crow_indices: Tensor, col_indices: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """The row and the column of every value of a sparse target ``[rows, labels]``, whose indices are checked."""
    _require_places(crow_indices, col_indices, labels, "target")
    return _rows(crow_indices, col_indices.numel()), col_indices.long()


def csr_of_coo(coo: Tensor, name: str = "target", op: str = LAYER) -> tuple[Tensor, Tensor, Tensor]:
    """(values, crow_indices, col_indices) of a sparse COO tensor ``[rows, columns]``, differentiable in its values.

    A target that needs no derivative and is not on the CPU keeps its duplicates: to look for them is to wait.
    """
    found = coo._indices()
    # first: coalesced, a column that is too large would be one of the next row
    inside = f"{op}: expected indices of a sparse {name} inside of {list(coo.shape)}, got others"
    within = (found >= 0).all() & (found[0] < coo.shape[0]).all() & (found[1] < coo.shape[1]).all()
    _require((within, inside))
    if coo.is_cpu or coo.requires_grad or name != "target":
        coo = coo.coalesce()
        values, (row, column) = coo.values(), coo.indices()
    else:
        row, order = torch.sort(found[0], stable=True)
        values, column = coo._values().index_select(0, order), found[1].index_select(0, order)
    crow_indices = torch.searchsorted(row.contiguous(), torch.arange(coo.shape[0] + 1, device=row.device))
    return values, crow_indices, column


def dense_target(target: Tensor, crow_indices: Tensor | None, col_indices: Tensor | None, labels: int) -> Tensor:
    """A sparse target as a tensor of the logits' shape, differentiable in its values; a dense one as it is."""
    if crow_indices is None or col_indices is None:
        return target
    row, column = places(crow_indices, col_indices, labels)
    rows = crow_indices.numel() - 1
    return target.new_zeros(rows * labels).index_add(0, row * labels + column, target).view(rows, labels)

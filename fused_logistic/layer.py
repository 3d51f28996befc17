"""The computation of the whole layer, linear + sigmoid + binary cross entropy, whose logits are never whole.

These functions are the kernels of the layer's ops on every device; autograd is above them. One label takes one pass
over the input, where there is a kernel for it (``csrc/single.h``) and the loss is the plain one. Everything else goes
by tiles, parts of the logits: torch's product makes one, ``bce_tile_`` takes it and puts the gradient there, and
torch's products bring that to input and weight.

Operands that do not fit together are refused by the products, by the elementwise ops or, where those would compute
something in silence, here. What to tell the user is found out by who called.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks, ops
from .matrices import Matrices, Positives, add_product, each, narrowed, reshaped, scaled_, tile_bytes
from .ops import Layer
from .options import LOSS, Options

# ---- Tiles --------------------------------------------------------------------------------------------------------

_NARROW = 1024  # products with a narrower side are slow
_ALIGNED = 64  # labels of a tile on a GPU, where they are cut
_LARGE = 1 << 20  # of fewer bytes (csrc/cpu/memory.h) ops.empty would be torch.empty, some microseconds later


class _Tile(NamedTuple):
    row: int
    rows: int
    label: int
    labels: int

    def of(self, matrix: Tensor) -> Tensor:
        """The tile's part of a matrix that may have one row or one column for all."""
        part = matrix if matrix.shape[0] == 1 else narrowed(matrix, 0, self.row, self.rows)
        return part if part.shape[1] == 1 else narrowed(part, 1, self.label, self.labels)


def _tile_shape(rows: int, labels: int, elements: int) -> tuple[int, int]:
    """The rows and labels of a tile of at most ``elements``.

    The longer side is cut first; a side is cut below ``_NARROW`` only where nothing else is left.
    """
    shorter, longer = sorted((max(rows, 1), max(labels, 1)))
    least = min(longer, _NARROW, elements)
    tile_longer = max(least, min(elements // shorter, longer))
    tile_shorter = max(1, min(elements // tile_longer, shorter))
    return (tile_shorter, tile_longer) if labels >= rows else (tile_longer, tile_shorter)


class _Tiled:
    """A layer's loss, unless grad_output is given, and its gradients, a tile of the logits at a time."""

    def __init__(
        self, layer: Layer, matrices: Matrices, dtype: torch.dtype, output_mask: Sequence[bool], options: Sequence[Any]
    ) -> None:
        self.matrices, self.output_mask, self.options = matrices, output_mask, options
        self.dtype, self.device = layer.input.dtype, layer.input.device
        self.is_cpu = self.device.type == "cpu"
        # In fp16 a mean's gradients underflow, and its products are slow on the CPU: there a tile is fp32. Elsewhere it
        # is fp16, for the sake of the products, and gets its factor when they are added up, in fp32; not if anything
        # might make the gradients without it larger than fp16 holds.
        m, is_half = matrices, self.dtype == torch.float16
        is_weighted = m.weight is not None or m.pos_weight is not None or not self.is_one_factor
        self.factor_is_late = is_half and not self.is_cpu and not is_weighted
        self.tile_dtype = torch.float32 if is_half and not self.factor_is_late else self.dtype
        limit = tile_bytes(layer.chunk_bytes, layer.input)
        self.tile_rows, self.tile_labels = _tile_shape(m.rows, m.labels, max(limit // self.tile_dtype.itemsize, 1))
        if not self.is_cpu and _ALIGNED < self.tile_labels < m.labels:
            self.tile_labels -= self.tile_labels % _ALIGNED
        self.tiles_along_rows = -(-m.rows // self.tile_rows)
        self.tiles_along_labels = -(-m.labels // self.tile_labels)

        self.wants_grad = any(output_mask)
        self.losses: Tensor | None = None  # at most one of the two is asked for
        self.loss_sum: Tensor | None = None
        if m.grad_output is None and layer.reduction == ops.NONE:
            self.losses = self.empty(m.rows, m.labels, dtype)
        elif m.grad_output is None:
            self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        # Losses are divided by count where it is there, else multiplied by the scale; so are gradients, but late ones.
        self.count = layer.mean_count if layer.reduction == ops.MEAN else None
        self.scale = 1.0
        if self.count is not None and self.is_cpu:  # nobody waits for a device to tell it
            self.scale, self.count = self.count.reciprocal().item(), None
        elif self.count is None and layer.reduction == ops.MEAN:
            self.scale = 1 / (m.rows * m.labels) if m.rows * m.labels > 0 else math.inf

        if m.positives is not None:
            self.background = m.target.new_zeros(1, 1)  # the target of all that is not positive
            if not Options(*self.options).zero_is_free and m.weight is None and m.pos_weight is None:
                # with weights losses are added one by one, so that those which sparse() subtracts again leave nothing
                m.weight = torch.ones(1, 1, device=self.device)
            self.first_positives = self.sort_by_tile(m.positives)

        self.logits = self.empty(self.tile_rows, self.padded(self.tile_labels), self.tile_dtype)
        self.grad_input, self.grad_weight, self.grad_bias, self.weight_sum = (
            layer.input.new_empty(0) for _ in range(4)
        )
        if output_mask[0]:
            self.grad_input = self.empty(m.rows, m.features, self.sum_dtype(self.tiles_along_labels))
        if output_mask[1]:
            self.grad_weight = self.empty(m.labels, m.features, self.dtype)
            if self.sum_dtype(self.tiles_along_rows) != self.dtype:
                self.weight_sum = self.empty(self.tile_labels, m.features, torch.float32)
        if output_mask[2]:
            self.grad_bias = torch.zeros(m.labels, dtype=self.dtype, device=self.device)

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        if self.is_cpu and rows * columns * dtype.itemsize >= _LARGE:
            return ops.call(ops.empty, [rows, columns], dtype)
        return torch.empty(rows, columns, dtype=dtype, device=self.device)

    def padded(self, labels: int) -> int:
        """How long a row of a tile is: of vectors on a GPU, whose products like that too; but of a few labels alone."""
        return labels if self.is_cpu or labels < _ALIGNED or labels % 4 == 0 else -(-labels // 8) * 8

    def sum_dtype(self, products: int) -> torch.dtype:
        """Where several tiles' products add up, 16-bit dtypes are added up in fp32: each product is rounded once."""
        is_wide = self.factor_is_late or (products > 1 and self.dtype.itemsize == 2)
        return torch.float32 if is_wide else self.dtype

    def sort_by_tile(self, p: Positives) -> list[int]:
        """Puts the positives of a tile side by side, in the order of the tiles; returns where each tile's begin."""
        tile = p.row // self.tile_rows + p.column // self.tile_labels * self.tiles_along_rows
        ordered, order = torch.sort(tile, stable=True)
        p.row, p.column, p.value = (t.index_select(0, order) for t in (p.row, p.column, p.value))
        tiles = torch.arange(self.tiles_along_rows * self.tiles_along_labels + 1, device=self.device)
        return torch.searchsorted(ordered, tiles).tolist()

    def run(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, grad_input, grad_weight, grad_bias) as matrices and vectors; what is not asked for is empty."""
        m = self.matrices
        if m.labels == 0:
            self.grad_input.zero_()
        if m.rows == 0:
            self.grad_weight.zero_()
            self.weight_sum.zero_()
        for label in range(0, m.labels, self.tile_labels):
            self.column_of_tiles(label, min(self.tile_labels, m.labels - label))
        loss = self.losses
        if self.loss_sum is not None:
            loss = self.loss_sum * (self.scale if self.count is None else self.count.reciprocal())
        grad_input = self.grad_input
        if grad_input.dtype != self.dtype:
            grad_input = self.with_factor(grad_input).to(self.dtype)
        return self.logits.new_empty(0) if loss is None else loss, grad_input, self.grad_weight, self.grad_bias

    def column_of_tiles(self, label: int, labels: int) -> None:
        """All tiles of some labels, after which these have their part of linear_weight's and linear_bias's gradient."""
        m = self.matrices
        linear_weight = narrowed(m.linear_weight, 0, label, labels).to(self.tile_dtype)
        bias = None if m.bias is None else narrowed(m.bias, 0, label, labels).to(self.tile_dtype)
        grad_weight = weight_sum = self.grad_weight
        if self.output_mask[1]:
            grad_weight = weight_sum = narrowed(self.grad_weight, 0, label, labels)
            if self.sum_dtype(self.tiles_along_rows) != self.dtype:
                weight_sum = narrowed(self.weight_sum, 0, 0, labels)
        grad_bias = bias_sum = None
        if self.output_mask[2]:
            grad_bias = bias_sum = narrowed(self.grad_bias, 0, label, labels)
            if self.dtype.itemsize == 2:
                bias_sum = grad_bias.float()  # zeros, as it is
        for row in range(0, m.rows, self.tile_rows):
            tile = _Tile(row, min(self.tile_rows, m.rows - row), label, labels)
            logits, padded = self.logits, self.padded(labels)
            if logits.shape != (tile.rows, padded):
                logits = logits.view(-1)[: tile.rows * padded].view(tile.rows, padded)
            logits = narrowed(logits, 1, 0, labels)
            input = narrowed(m.input, 0, row, tile.rows).to(self.tile_dtype)
            if bias is None:
                torch.mm(input, linear_weight.t(), out=logits)
            else:
                torch.addmm(bias, input, linear_weight.t(), out=logits)
            self.elementwise(logits, tile, bias_sum)  # the gradient stands in their place now
            if self.output_mask[0]:
                add_product(narrowed(self.grad_input, 0, row, tile.rows), logits, linear_weight, label == 0)
            if self.output_mask[1]:
                add_product(weight_sum, logits.t(), input, row == 0)
        if weight_sum is not grad_weight:
            grad_weight.copy_(self.with_factor(weight_sum))
        if bias_sum is not None and grad_bias is not None and bias_sum is not grad_bias:
            grad_bias.copy_(self.with_factor(bias_sum))

    # ---- The elementwise step ---------------------------------------------------------------------------------------

    def elementwise(self, logits: Tensor, tile: _Tile, bias_sum: Tensor | None) -> None:
        """Adds the tile's losses to the sum, or stores them, and puts the gradient in the logits' place."""
        m = self.matrices
        if m.indices is not None:
            of_rows = narrowed(m.indices[0], 0, tile.row, tile.rows + 1)
            self.by_op(logits, m.target, tile, bias_sum, of_rows, m.indices[1])
        elif m.positives is None:
            self.by_op(logits, tile.of(m.target), tile, None if self.is_cpu else bias_sum)
        else:
            index = tile.row // self.tile_rows + tile.label // self.tile_labels * self.tiles_along_rows
            begin, end = self.first_positives[index : index + 2]
            if begin < end:
                self.sparse(logits, tile, m.positives, slice(begin, end))
            else:
                self.by_op(logits, self.background.expand(tile.rows, tile.labels), tile)
        if self.is_cpu and bias_sum is not None:
            bias_sum += logits.sum(0, dtype=bias_sum.dtype)

    def by_op(
        self, logits: Tensor, target: Tensor, tile: _Tile, bias_sum: Tensor | None = None, *indices: Tensor
    ) -> None:
        m = self.matrices
        grad_output, *others = each(tile.of, m.grad_output, m.weight, m.pos_weight, m.mask)
        losses = None if self.losses is None else tile.of(self.losses)
        count, scale = (None, 1.0) if self.factor_is_late else (self.count, self.scale)
        if self.factor_is_late:
            grad_output = None
        whole = tile.labels == m.labels or tile.rows == 1  # which order the losses are added up in
        sums = losses, self.loss_sum, bias_sum
        at = tile.label, whole, self.wants_grad
        crow_indices, col_indices = indices or (None, None)
        ops.bce_tile_(
            logits, *sums, target, crow_indices, col_indices, *others, grad_output, count, scale, *at, *self.options
        )

    @functools.cached_property
    def factor(self) -> Tensor:
        """1 / count, as the kernels round it."""
        is_double = torch.float64 in (self.dtype, self.matrices.target.dtype)
        dtype = torch.float64 if is_double else torch.float32
        if self.count is not None:
            return self.count.reciprocal().to(dtype)
        return torch.full((), self.scale, dtype=dtype, device=self.device)

    @property
    def is_one_factor(self) -> bool:
        """Whether grad_output, if there is one, is the same for all elements."""
        return self.matrices.grad_output is None or self.matrices.grad_output.numel() == 1

    def with_factor(self, gradient: Tensor) -> Tensor:
        """A sum in fp32 times what its tiles have not been multiplied by."""
        if not self.factor_is_late:
            return gradient
        factor, grad_output = self.factor, self.matrices.grad_output
        if grad_output is not None:
            factor = factor * grad_output.reshape(())
        return scaled_(gradient, factor)

    def sparse(self, logits: Tensor, tile: _Tile, positives: Positives, part: slice) -> None:
        """All but the positives have the target 0. On the CPU; elsewhere the op looks for them itself.

        The positives' logits are taken out, and in their place stands one whose loss and gradient for the target 0 are
        exactly 0 (or, where the options leave no such logit, whose loss is known). Then the positives' own results are
        put in. Nothing but the positives is touched twice.
        """
        m = self.matrices
        row, column, value = positives.row[part], positives.column[part], positives.value[part]
        place = (row - tile.row) * tile.labels + (column - tile.label)

        def there(matrix: Tensor) -> Tensor:
            return matrix.expand(m.rows, m.labels)[row, column]

        grad_output, *others = each(there, m.grad_output, m.weight, m.pos_weight, m.mask)
        options = Options(*self.options)
        is_free, is_grouped = options.zero_is_free, options.loss == LOSS and m.weight is None and m.pos_weight is None
        flat = logits.view(-1)
        logits_there = flat.index_select(0, place)
        # an infinite logit would have losses that share a logarithm added up a second time (docs/derivation.md)
        nothing = torch.finfo(logits.dtype).min if is_grouped else -math.inf
        flat.index_fill_(0, place, nothing if is_free else 0)
        self.by_op(logits, self.background.expand(tile.rows, tile.labels), tile)
        if not is_free and self.loss_sum is not None:
            neutral = torch.zeros_like(logits_there), torch.zeros_like(value), *others, None
            self.loss_sum -= ops.bce(*neutral, ops.SUM, torch.float64, *self.options)
        operands = logits_there, value, *others, None
        if self.losses is not None:
            losses = ops.bce(*operands, ops.NONE, self.losses.dtype, *self.options)
            self.losses.index_put_((row, column), losses)
        elif self.loss_sum is not None:
            self.loss_sum += ops.bce(*operands, ops.SUM, torch.float64, *self.options)
        if self.wants_grad:
            factor = self.factor if grad_output is None else grad_output.to(self.factor.dtype) * self.factor
            flat.index_copy_(0, place, ops.bce_backward(factor, *operands, ops.SUM, ops.LOGITS, *self.options))


# ---- The ops' kernels ---------------------------------------------------------------------------------------------


@functools.cache
def _has_single(device_type: str) -> bool:
    key = torch._C._dispatch_key_for_device(device_type)
    return torch._C._dispatch_has_kernel_for_dispatch_key("fused_logistic::linear_bce_single", key)


def _compute(
    layer: Layer, grad_output: Tensor | None, dtype: torch.dtype, output_mask: Sequence[bool], options: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, grad_input, grad_weight, grad_bias); an empty loss where grad_output is given."""
    if layer.reduction not in (ops.NONE, ops.MEAN, ops.SUM):
        raise RuntimeError("linear_bce: there is no such reduction")
    if layer.chunk_bytes is not None and layer.chunk_bytes < 1:
        raise RuntimeError("linear_bce: chunk_bytes is not positive")
    output_mask = [*output_mask[:2], output_mask[2] and layer.linear_bias is not None]
    m = Matrices(layer, grad_output)
    if m.labels == 1 and Options(*options).loss == LOSS and _has_single(m.input.device.type):
        operands = each(lambda t: t[:, 0], m.target, m.weight, m.pos_weight, m.mask, m.grad_output)
        own = layer.mean_count, layer.reduction, dtype, output_mask
        loss, *grads = ops.linear_bce_single(m.input, m.linear_weight[0], m.bias, *operands, *own, *options)
    else:
        loss, *grads = _Tiled(layer, m, dtype, output_mask, options).run()
    if grad_output is None:
        loss = reshaped(loss, *(m.logits_shape if layer.reduction == ops.NONE else ()))
        loss = loss if loss.dtype == dtype else loss.to(dtype)
    for i, like in enumerate(layer[:3]):
        if output_mask[i] and like is not None:
            grads[i] = reshaped(grads[i], *like.shape)
    return loss, grads[0], grads[1], grads[2]


def linear_bce(*arguments: Any) -> Tensor:
    layer, (dtype, *options) = Layer.split(arguments)
    return _compute(layer, None, dtype, (False, False, False), options)[0]


def linear_bce_with_grad(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, (dtype, output_mask, *options) = Layer.split(arguments)
    checks.reduced("linear_bce_with_grad", layer.reduction)
    return _compute(layer, None, dtype, output_mask, options)


def linear_bce_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    layer, (output_mask, *options) = Layer.split(arguments)
    return _compute(layer, grad_output, layer.input.dtype, output_mask, options)[1:]

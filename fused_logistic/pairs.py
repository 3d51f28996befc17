"""The computation of the sigmoid contrastive loss, whose similarities are never whole.

These functions are the kernels of the ops ``pairs``, ``pairs_with_grad`` and ``pairs_backward``; autograd is above
them. A tile is some images by some texts: torch's product makes its similarities, ``pairs_tile_`` turns them
into the gradients for the logits and adds up the rest, and torch's products bring those to the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import composite_pairs, ops
from .matrices import add_product, narrowed
from .matrices import tile_bytes as limit_of

_MOST = 2**31 - 1  # pairs in a tile (csrc/pairs_op.h)
_EVEN = 256  # a tile's side is a multiple of it, for the sake of the products
# The gradients for the logits are at most 1, and in fp16 below 6e-8 nothing is left of them: that much larger they are
# written, which the sums in fp32 make good again.
_HALF_FACTOR = 2.0**15


def _side(longest: int, elements: int) -> int:
    """That of the square tiles of at most ``elements``, into which the longer side of the pairs is divided evenly."""
    side = max(math.isqrt(elements), 1)
    side -= side % _EVEN if side >= _EVEN else 0
    if longest <= side:
        return max(longest, 1)
    parts = -(-longest // side)
    even = -(-longest // parts)
    return min(side, -(-even // _EVEN) * _EVEN if side >= _EVEN else even)


def _has_wide_products(features: Tensor) -> bool:
    """Whether they are of 16 bits and torch has products of such with a result in fp32: on CUDA alone."""
    return features.is_cuda and features.dtype.itemsize == 2


class Tiles:
    """The loss of all images with one block of texts after the other: its sum, and those of its gradients.

    ``output_mask``: for which of image_features, text_features, logit_scale and logit_bias there is to be a gradient.
    """

    def __init__(
        self,
        image_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        tile_bytes: int | None,
        output_mask: Sequence[bool],
    ) -> None:
        if tile_bytes is not None and tile_bytes < 1:
            raise RuntimeError("pairs: tile_bytes is not positive")
        self.image, self.output_mask, self.wants_grad = image_features, output_mask, any(output_mask)
        self.images, self.features = image_features.shape
        self.dtype = composite_pairs.pairs_dtype(image_features)
        is_low = _has_wide_products(image_features)
        self.tile_dtype = image_features.dtype if is_low else self.dtype  # of what the products read
        self.factor = _HALF_FACTOR if self.tile_dtype == torch.float16 else 1.0
        self.scale = logit_scale.reshape(()).to(self.dtype)
        self.bias = None if logit_bias is None else logit_bias.reshape(()).to(self.dtype)
        limit = limit_of(tile_bytes, image_features)
        self.elements = min(max(limit // (self.dtype.itemsize + (self.tile_dtype.itemsize if is_low else 0)), 1), _MOST)
        self.sums = torch.zeros(3, dtype=torch.float64, device=image_features.device)
        self.grad_image = self._empty(self.images, self.features) if output_mask[0] else None
        self.is_first = True

    def _empty(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype or self.dtype, device=self.image.device)

    def add(self, text_features: Tensor, paired: bool) -> Tensor | None:
        """Adds the pairs with these texts; ``paired``: text i belongs to image i, else none belongs to any.

        -> the sum for the gradient of the texts, which ``finished`` turns into it.
        """
        texts = text_features.shape[0]
        side = _side(max(self.images, texts), self.elements)
        grad_text = self._empty(texts, self.features) if self.output_mask[1] else None
        if grad_text is not None and self.images == 0:
            grad_text.zero_()
        shape = min(side, self.images), min(side, texts)
        similarities = self._empty(*shape)
        low = self._empty(*shape, self.tile_dtype) if self.wants_grad and self.tile_dtype != self.dtype else None
        for column in range(0, texts, side):
            columns = min(side, texts - column)
            text = narrowed(text_features, 0, column, columns).to(self.tile_dtype)
            for row in range(0, self.images, side):
                rows = min(side, self.images - row)
                image = narrowed(self.image, 0, row, rows).to(self.tile_dtype)
                tile = _part(similarities, rows, columns)
                grad = None if low is None else _part(low, rows, columns)
                add_product(tile, image, text.t())
                numbers = self.scale, self.bias, row - column if paired else None, self.factor
                ops.pairs_tile_(tile, grad, self.sums, *numbers, self.wants_grad)
                grad = tile if grad is None else grad
                if self.grad_image is not None:
                    into = narrowed(self.grad_image, 0, row, rows)
                    add_product(into, grad, text, self.is_first and column == 0)
                if grad_text is not None:
                    add_product(narrowed(grad_text, 0, column, columns), grad.t(), image, row == 0)
        self.is_first = self.is_first and texts == 0
        return grad_text

    def loss(self) -> Tensor:
        return (self.sums[0] / self.images).to(self.dtype)

    def finished(self, *sums: Tensor | None) -> list[Tensor]:
        """The gradients that belong to the sums for features, in their place; empty where there is none."""
        factor = self.scale / (self.images * self.factor)
        return [self.sums.new_empty(0, dtype=self.dtype) if s is None else s.mul_(factor) for s in sums]

    def gradients(self, grad_text: Tensor | None) -> tuple[Tensor, ...]:
        """Of all four."""
        if self.grad_image is not None and self.is_first:
            self.grad_image.zero_()
        of_numbers = (self.sums[1:] / self.images).to(self.dtype)
        wanted = [of_numbers[k] if self.output_mask[2 + k] else of_numbers.new_empty(0) for k in range(2)]
        return *self.finished(self.grad_image, grad_text), *(w.clone() for w in wanted)


def _part(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return matrix if matrix.shape == (rows, columns) else matrix.view(-1)[: rows * columns].view(rows, columns)


# ---- The ops' kernels ------------------------------------------------------------------------------------------------


def has_kernel(features: Tensor) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(features.device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("fused_logistic::pairs_tile_", key)


def pairs_with_grad(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    tile_bytes: int | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    output_mask = [*output_mask[:3], output_mask[3] and logit_bias is not None]
    tiles = Tiles(image_features, logit_scale, logit_bias, tile_bytes, output_mask)
    if text_features.shape != image_features.shape:
        raise RuntimeError("pairs: there are not as many texts as images, or not of their features")
    grad_text = tiles.add(text_features, paired=True)
    return tiles.loss(), *tiles.gradients(grad_text)


def pairs(*arguments: Any) -> Tensor:
    return pairs_with_grad(*(*arguments, (False,) * 4))[0]


def pairs_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    gradients = [g.mul_(grad_output) for g in pairs_with_grad(*arguments)[1:]]
    return tuple(composite_pairs.like_operands(gradients, arguments[:4], arguments[5]))

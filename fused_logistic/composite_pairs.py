"""The loss of pairs in torch's own differentiable operations, with all similarities at once: see composite.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import composite, ops
from .options import Options


def pairs_dtype(features: Tensor) -> torch.dtype:
    """Of the similarities, the arithmetic and the loss."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def autocasts(features: Tensor) -> bool:
    """Whether autocast is on for their device, if that has one."""
    device = features.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b, which autocast leaves alone where it is float64 (torch.func is deaf to its being switched off)."""
    return (a.double() @ b.double()).to(a.dtype) if autocasts(a) else a @ b


def like_operands(gradients: Sequence[Tensor], operands: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor]:
    """The gradients in their operands' dtypes and shapes."""
    return [
        g.to(like.dtype).reshape(like.shape) if asked and like is not None else g
        for g, like, asked in zip(gradients, operands, wanted, strict=True)
    ]


class Pairs:
    """All pairs at once, also of a batch: features ``[*batch, pairs, features]``, the numbers ``[*batch]`` or
    ``[*batch, 1]``."""

    def __init__(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None
    ) -> None:
        dtype, batch = pairs_dtype(image_features), image_features.dim() - 2
        self.number = image_features.shape[-2]
        self.image, self.text = image_features.to(dtype), text_features.to(dtype)

        def beside_pairs(number: Tensor) -> Tensor:
            return number.reshape(*number.shape[:batch], 1, 1).to(dtype)

        self.similarities = _matmul(self.image, self.text.mT)
        self.scale = beside_pairs(logit_scale)
        logits = self.scale * self.similarities
        logits = logits if logit_bias is None else logits + beside_pairs(logit_bias)
        target = torch.eye(self.number, dtype=dtype, device=image_features.device).expand_as(logits)
        self.operands = logits, target, None, None, None, None
        self.is_batch = batch > 0

    def loss(self) -> Tensor:
        """``bce``, in which autograd decides anew how that is differentiated; exported, core operators."""
        reduction = ops.NONE if self.is_batch else ops.SUM
        bce = composite.bce if torch.compiler.is_exporting() else ops.bce
        losses = bce(*self.operands, reduction, self.scale.dtype, *Options())
        return (losses.sum((-2, -1)) if self.is_batch else losses) / self.number

    def gradients(self, grad_output: Tensor, output_mask: Sequence[bool], has_bias: bool) -> tuple[Tensor, ...]:
        """In the dtype of the arithmetic, those of the numbers ``[*batch]``."""
        factor = grad_output.unsqueeze(-1).unsqueeze(-1) / self.number
        grad = ops.bce_backward(factor, *self.operands, ops.SUM, ops.LOGITS, *Options())
        scaled, empty = self.scale * grad, grad.new_empty(*grad.shape[:-2], 0)
        return (
            _matmul(scaled, self.text) if output_mask[0] else empty,
            _matmul(scaled.mT, self.image) if output_mask[1] else empty,
            (grad * self.similarities).sum((-2, -1)) if output_mask[2] else empty,
            grad.sum((-2, -1)) if output_mask[3] and has_bias else empty,
        )


def pairs(*arguments: Any) -> Tensor:
    return Pairs(*arguments[:4]).loss()


def pairs_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    operands, wanted = arguments[:4], arguments[5]
    gradients = Pairs(*operands).gradients(grad_output, wanted, arguments[3] is not None)
    return tuple(like_operands(gradients, operands, wanted))


def pairs_with_grad(*arguments: Any) -> tuple[Tensor, ...]:
    of_all, one = Pairs(*arguments[:4]), torch.ones((), dtype=pairs_dtype(arguments[0]), device=arguments[0].device)
    return of_all.loss(), *of_all.gradients(one, arguments[5], arguments[3] is not None)

"""The elementwise loss with what a user adds to it, one option at a time: ours, torch's own, and what one composes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import ELEMENTWISE, Case, Plan, register
from .providers import ARRAYS, Step, autograd_step, tensors, triad

COLUMNS, IGNORED, SCALE = 128, -100, 1024.0
Loss = Callable[[Tensor, Tensor], Tensor]
OPTIONS = ("weight", "pos_weight", "mask", "label_smoothing", "ignore_index", "bool target", "loss scale")
# An option may cost 1.5 times the loss without it; as that loss's time over ours.
TARGETS = {"plain": 1 / 1.5}


def data(numel: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """``[numel / COLUMNS, COLUMNS]``, logits being a leaf."""
    logits, target = (tensor.detach().view(-1, COLUMNS) for tensor in tensors(numel, dtype, device))
    return logits.requires_grad_(), target


def _kept_mean(losses: Tensor, kept: Tensor) -> Tensor:
    return (losses * kept).sum() / kept.sum()


def losses(option: str, logits: Tensor, target: Tensor) -> tuple[Tensor, Loss, Loss]:
    """The target that the option goes with, our loss, and what computes the same in torch."""
    ours, theirs = fl.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    given: dict[str, Any] = {}
    if option in ("weight", "pos_weight"):  # one for every element, and one for every column
        given[option] = 1 + torch.rand_like(target if option == "weight" else target[0])
        return target, functools.partial(ours, **given), functools.partial(theirs, **given)
    kept = torch.rand_like(target, dtype=torch.float32) < 0.7
    if option == "mask":
        return (
            target,
            functools.partial(ours, mask=kept),
            lambda z, y: _kept_mean(theirs(z, y, reduction="none"), kept),
        )
    if option == "ignore_index":

        def composed(z: Tensor, y: Tensor) -> Tensor:
            kept = y != IGNORED
            return _kept_mean(theirs(z, torch.where(kept, y, 0), reduction="none"), kept)

        return torch.where(kept, target, IGNORED), functools.partial(ours, ignore_index=IGNORED), composed
    if option == "label_smoothing":
        return target, functools.partial(ours, label_smoothing=0.1), lambda z, y: theirs(z, 0.9 * y + 0.05)
    if option == "bool target":
        return target.bool(), ours, lambda z, y: theirs(z, y.to(z.dtype))
    assert option == "loss scale", option
    return target, lambda z, y: SCALE * ours(z, y), lambda z, y: SCALE * theirs(z, y)


def candidates(option: str, numel: int, dtype: torch.dtype, device: str, compiled: bool) -> dict[str, Step]:
    logits, plain = data(numel, dtype, device)
    target, ours, composed = losses(option, logits, plain)
    result = {
        "fused": autograd_step(ours, logits, target, "full"),
        "plain": autograd_step(fl.binary_cross_entropy_with_logits, logits, plain, "full"),
        "eager": autograd_step(composed, logits, target, "full"),
        "triad": triad(logits, plain),
    }
    if compiled:  # ten seconds each
        torch._dynamo.reset()
        result["compile"] = autograd_step(torch.compile(composed, dynamic=False), logits, target, "full")
    return result


@register
def cases(plan: Plan) -> Iterator[Case]:
    large = 24 if plan.device == "cpu" else 26
    grid = [(torch.float32, 20 if plan.device == "cpu" else large)]
    if plan.full:
        grid = [(dtype, exponent) for dtype in (torch.float32, torch.bfloat16) for exponent in (20, large)]
    compiled = plan.full or plan.device == "cuda"
    for (dtype, exponent), option in ((at, option) for at in grid for option in OPTIONS):
        numel = 1 << exponent
        yield Case(
            kernel=f"{ELEMENTWISE}, {option}",
            mode="full",
            x_value=numel,
            dtype=dtype,
            device=plan.device,
            candidates=functools.partial(candidates, option, numel, dtype, plan.device, compiled),
            rounds=plan.rounds(expensive=exponent > 22),
            bytes=ARRAYS["full"] * dtype.itemsize * numel,
            targets=TARGETS if plan.device == "cpu" else {},
        )

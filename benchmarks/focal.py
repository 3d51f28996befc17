"""The focal loss: ours, and the graph that torchvision composes."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import FOCAL, Case, Plan, register
from .providers import ARRAYS, Step, autograd_step, tensors, triad

ALPHA, GAMMA = 0.25, 2.0


def composed(logits: Tensor, target: Tensor) -> Tensor:
    """What ``torchvision.ops.sigmoid_focal_loss`` computes, operation for operation."""
    p = torch.sigmoid(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = ALPHA * target + (1 - ALPHA) * (1 - target)
    return (alpha_t * (cross_entropy * (1 - p_t) ** GAMMA)).mean()


def candidates(numel: int, dtype: torch.dtype, device: str) -> dict[str, Step]:
    logits, target = tensors(numel, dtype, device, positives=0.01)  # a detector's: nearly all background
    torch._dynamo.reset()
    ours = functools.partial(fl.sigmoid_focal_loss, alpha=ALPHA, gamma=GAMMA, reduction="mean")
    return {
        "fused": autograd_step(ours, logits, target, "full"),
        "eager": autograd_step(composed, logits, target, "full"),
        "compile": autograd_step(torch.compile(composed, dynamic=False), logits, target, "full"),
        "triad": triad(logits, target),
    }


@register
def cases(plan: Plan) -> Iterator[Case]:
    large = 24 if plan.device == "cpu" else 26
    grid = [(torch.float32, e) for e in ((16, 20, large) if plan.full else (20,))]
    if plan.device == "cuda":
        grid = [*grid, (torch.bfloat16, large)] if plan.full else [(torch.float32, large)]
    for dtype, exponent in grid:
        numel = 1 << exponent
        yield Case(
            kernel=FOCAL,
            mode="full",
            x_value=numel,
            dtype=dtype,
            device=plan.device,
            candidates=functools.partial(candidates, numel, dtype, plan.device),
            rounds=plan.rounds(expensive=exponent > 22),
            bytes=ARRAYS["full"] * dtype.itemsize * numel,
        )

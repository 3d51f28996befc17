"""The focal, quality, varifocal and asymmetric loss: ours, and the graphs that their users compose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import FAMILY, Case, Plan, register
from .providers import ARRAYS, Step, autograd_step, tensors, triad

ALPHA, GAMMA = 0.25, 2.0
Loss = Callable[[Tensor, Tensor], Tensor]
# At most 1.5 times the plain loss's time (as that one's over ours), and an eighth of the graph's.
TARGETS = {"plain": 1 / 1.5, "eager": 8.0}


def torchvisions(logits: Tensor, target: Tensor) -> Tensor:
    """What ``torchvision.ops.sigmoid_focal_loss`` computes, operation for operation."""
    p = torch.sigmoid(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = ALPHA * target + (1 - ALPHA) * (1 - target)
    return (alpha_t * (cross_entropy * (1 - p_t) ** GAMMA)).mean()


def mmdets_quality(logits: Tensor, target: Tensor) -> Tensor:
    """mmdet's ``quality_focal_loss`` of a dense target."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (cross_entropy * (target - logits.sigmoid()).abs().pow(2.0)).mean()


def mmdets_varifocal(logits: Tensor, target: Tensor) -> Tensor:
    """mmdet's ``varifocal_loss``."""
    p = logits.sigmoid()
    positive = (target > 0.0).to(p.dtype)
    weight = target * positive + 0.75 * (p - target).abs().pow(2.0) * (target <= 0.0).to(p.dtype)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).mean()


def timms(logits: Tensor, target: Tensor) -> Tensor:
    """timm's ``AsymmetricLossMultiLabel`` with its defaults, over the number of elements."""
    p = torch.sigmoid(logits)
    opposite = (1 - p + 0.05).clamp(max=1)
    log = target * torch.log(p.clamp(min=1e-8)) + (1 - target) * torch.log(opposite.clamp(min=1e-8))
    right = p * target + opposite * (1 - target)
    return -(log * torch.pow(1 - right, 1 * target + 4 * (1 - target))).mean()


# name: ours, theirs, and whether positives are soft
LOSSES: dict[str, tuple[Loss, Loss, bool]] = dict(
    zip(
        FAMILY,
        (
            (functools.partial(fl.sigmoid_focal_loss, alpha=ALPHA, gamma=GAMMA), torchvisions, False),
            (fl.quality_focal_loss, mmdets_quality, True),
            (fl.varifocal_loss, mmdets_varifocal, True),
            (fl.asymmetric_loss_with_logits, timms, False),
        ),
        strict=True,
    )
)


def candidates(name: str, numel: int, dtype: torch.dtype, device: str) -> dict[str, Step]:
    ours, theirs, soft = LOSSES[name]
    logits, target = tensors(numel, dtype, device, positives=0.01)  # a detector's: nearly all background
    if soft:
        target = target * torch.rand_like(target)
    torch._dynamo.reset()
    return {
        "fused": autograd_step(functools.partial(ours, reduction="mean"), logits, target, "full"),
        "plain": autograd_step(fl.binary_cross_entropy_with_logits, logits, target, "full"),
        "eager": autograd_step(theirs, logits, target, "full"),
        "compile": autograd_step(torch.compile(theirs, dynamic=False), logits, target, "full"),
        "triad": triad(logits, target),
    }


@register
def cases(plan: Plan) -> Iterator[Case]:
    large = 24 if plan.device == "cpu" else 26
    grid = [(torch.float32, e) for e in ((20, large) if plan.full else (20,))]
    if plan.device == "cuda":
        grid = [*grid, (torch.bfloat16, large)] if plan.full else [(torch.float32, large)]
    for name in FAMILY if plan.full or plan.device == "cuda" else FAMILY[::3]:
        for dtype, exponent in grid:
            numel = 1 << exponent
            yield Case(
                kernel=name,
                mode="full",
                x_value=numel,
                dtype=dtype,
                device=plan.device,
                candidates=functools.partial(candidates, name, numel, dtype, plan.device),
                rounds=plan.rounds(expensive=exponent > 22),
                bytes=ARRAYS["full"] * dtype.itemsize * numel,
                targets=TARGETS if plan.device == "cpu" else {},
            )

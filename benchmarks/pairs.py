"""The loss of pairs (SigLIP) beside open_clip's formula and the three matrix products that it cannot do without."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import PAIRS, Case, Plan, register
from .linear import products, step

SIDES = {"cpu": 1280, "cuda": 8192}  # of ours


def _eager(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    labels = 2 * torch.eye(len(image), device=image.device) - 1
    return -F.logsigmoid(labels * (scale * image @ text.T + bias)).sum() / len(image)


def candidates(number: int, features: int, device: str) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(number, features, generator=generator), dim=1).to(device) for _ in range(2))
    leaves = [t.requires_grad_() for t in (image, text, *torch.tensor([10.0, -10.0], device=device).unbind())]
    return {
        "fused": step(fl.sigmoid_contrastive_loss, leaves),
        "eager": step(_eager, leaves),
        "products": functools.partial(products, image.detach(), text.detach(), (SIDES[device],) * 2),
    }


@register
def cases(plan: Plan) -> Iterator[Case]:
    number, features = (8192, 768) if plan.is_large else (1536, 128)
    yield Case(
        kernel=PAIRS,
        mode="full",
        x_value=number,
        x_name="pairs",
        x_label=f"{number:,} images and texts, {features} features",
        device=plan.device,
        candidates=functools.partial(candidates, number, features, plan.device),
        rounds=3 if plan.full else 5,
        targets=plan.targets(products=1 / 1.1, eager=1.2),
        memory=plan.measured,
        memory_target=(64 << 20) + 8 * number * features,  # beyond the gradients of the features
    )

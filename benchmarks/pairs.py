"""The loss of pairs (SigLIP) beside open_clip's formula and the three matrix products that it cannot do without."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import PAIRS, Case, Plan, register

SIDE = 1280  # of ours with 8 MiB


def _eager(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    labels = 2 * torch.eye(len(image), device=image.device) - 1
    return -F.logsigmoid(labels * (scale * image @ text.T + bias)).sum() / len(image)


def _step(loss: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    """Forward and backward; the gradients are dropped each time, as a training loop does it."""

    def run() -> None:
        loss(*leaves).backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def _products(image: Tensor, text: Tensor) -> None:
    """The three, in tiles as ours."""
    image_grad, text_grad = torch.empty_like(image), torch.empty_like(text)
    tile = image.new_empty(SIDE * SIDE)
    for column, row in itertools.product(range(0, len(text), SIDE), range(0, len(image), SIDE)):
        some_images, some_texts = image[row : row + SIDE], text[column : column + SIDE]
        pairs = tile[: len(some_images) * len(some_texts)].view(len(some_images), len(some_texts))
        torch.mm(some_images, some_texts.T, out=pairs)
        for grad, a, b, partial in (
            (image_grad[row : row + SIDE], pairs, some_texts, column > 0),
            (text_grad[column : column + SIDE], pairs.T, some_images, row > 0),
        ):
            torch.addmm(grad, a, b, beta=float(partial), out=grad)


def candidates(number: int, features: int, device: str) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(number, features, generator=generator), dim=1).to(device) for _ in range(2))
    leaves = [t.requires_grad_() for t in (image, text, *torch.tensor([10.0, -10.0], device=device).unbind())]
    return {
        "fused": _step(fl.sigmoid_contrastive_loss, leaves),
        "eager": _step(_eager, leaves),
        "products": functools.partial(_products, image.detach(), text.detach()),
    }


@register
def cases(plan: Plan) -> Iterator[Case]:
    number, features = (8192, 768) if plan.full else (1536, 128)
    yield Case(
        kernel=PAIRS,
        mode="full",
        x_value=number,
        x_name="pairs",
        x_label=f"{number:,} images and texts, {features} features",
        device=plan.device,
        candidates=functools.partial(candidates, number, features, plan.device),
        rounds=3 if plan.full else 5,
        targets={"products": 1 / 1.1, "eager": 1.2} if plan.full else {},
        memory=("fused", "eager"),
        memory_target=(64 << 20) + 8 * number * features,  # beyond the gradients of the features
    )

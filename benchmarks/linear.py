"""The whole layer in its three shapes: one label, many labels, a million labels with sparse targets."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import LAYER, Case, Plan, register

TILES = {"cpu": (2048, 1024), "cuda": (4096, 16384)}  # of logits, rows and labels: as ours with 30,000 labels
Step = Callable[[], object]


def step(loss: Callable[..., Tensor], leaves: Sequence[Tensor], *others: Tensor) -> Step:
    """Forward and backward; the gradients are dropped each time, as a training loop does it."""

    def run() -> None:
        loss(*leaves, *others).backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def _ours(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return fl.linear_binary_cross_entropy(x, weight, target, linear_bias=bias)


def _eager(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(F.linear(x, weight, bias), target)


def _tensors(rows: int, features: int, labels: int, device: str, grad_of_x: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator).to(device).requires_grad_(grad_of_x)
    weight = torch.randn(labels, features, generator=generator).mul_(features**-0.5).to(device).requires_grad_()
    return x, weight, torch.zeros(labels, device=device).requires_grad_()


def one_label(rows: int, features: int, device: str) -> dict[str, Step]:
    """Logistic regression: the features need no gradient. The limit is one read of them."""
    x, weight, bias = leaves = _tensors(rows, features, 1, device, grad_of_x=False)
    target = (torch.rand(rows, 1, device=device) < 0.5).float()
    torch._dynamo.reset()
    return {
        "fused": step(_ours, leaves, target),
        "eager": step(_eager, leaves, target),
        "compile": step(torch.compile(_eager, dynamic=False), leaves, target),
        "read": x.sum,
    }


def products(x: Tensor, weight: Tensor, tile: tuple[int, int]) -> None:
    """The three matrix products that a step cannot do without, in tiles of so many rows and labels, as ours."""
    x_grad, weight_grad = torch.empty_like(x), torch.empty_like(weight)
    memory = x.new_empty(tile[0] * tile[1])
    for label, row in itertools.product(range(0, len(weight), tile[1]), range(0, len(x), tile[0])):
        some_x, some_weight = x[row : row + tile[0]], weight[label : label + tile[1]]
        logits = memory[: len(some_x) * len(some_weight)].view(len(some_x), len(some_weight))
        torch.mm(some_x, some_weight.T, out=logits)
        for grad, a, b, partial in (
            (x_grad[row : row + tile[0]], logits, some_weight, label > 0),
            (weight_grad[label : label + tile[1]], logits.T, some_x, row > 0),
        ):
            torch.addmm(grad, a, b, beta=float(partial), out=grad)


def many_labels(rows: int, features: int, labels: int, device: str) -> dict[str, Step]:
    x, weight, _ = leaves = _tensors(rows, features, labels, device, grad_of_x=True)
    target = (torch.rand(rows, labels, device=device) < 0.01).float()
    return {
        "fused": step(_ours, leaves, target),
        "eager": step(_eager, leaves, target),
        "products": functools.partial(products, x.detach(), weight.detach(), TILES[device]),
    }


def sparse_labels(rows: int, features: int, labels: int, positives: int, device: str) -> dict[str, Step]:
    """Extreme multi-label classification. Eager torch needs the target dense."""
    leaves = _tensors(rows, features, labels, device, grad_of_x=True)
    columns = torch.randint(0, labels, (rows, positives), device=device).sort(1).values
    starts = torch.arange(0, rows * positives + 1, positives, device=device)
    ones = torch.ones(rows * positives, device=device)
    sparse = torch.sparse_csr_tensor(starts, columns.flatten(), ones, (rows, labels))
    dense = torch.zeros(rows, labels, device=device).scatter_(1, columns, 1.0)
    return {"fused": step(_ours, leaves, sparse), "eager": step(_eager, leaves, dense)}


@register
def cases(plan: Plan) -> Iterator[Case]:
    rows, features = (1 << (20 if plan.device == "cuda" else 18), 512) if plan.is_large else (1 << 16, 256)
    yield Case(
        kernel=LAYER,
        mode="full",
        x_value=rows,
        x_name="rows",
        x_label=f"one label, {features} features",
        device=plan.device,
        candidates=functools.partial(one_label, rows, features, plan.device),
        rounds=plan.rounds(expensive=False),
        bytes=4 * rows * features,
        targets=plan.targets(read=1 / 1.3, eager=4.0),
        memory=plan.measured,
    )
    rows, features, labels = (4096, 512, 30_000) if plan.is_large else (512, 256, 8192)
    yield Case(
        kernel=LAYER,
        mode="full",
        x_value=labels,
        x_name="labels",
        x_label=f"{labels:,} labels, {rows} rows, {features} features",
        device=plan.device,
        candidates=functools.partial(many_labels, rows, features, labels, plan.device),
        rounds=5,
        targets=plan.targets(products=1 / 1.05, eager=1.7),
        memory=plan.measured,
        # beyond the gradients of input, weight and bias
        memory_target=(64 << 20) + 4 * (rows * features + labels * (features + 1)),
    )
    rows, features, labels = (64, 128, 1_000_000) if plan.is_large else (64, 64, 100_000)
    yield Case(
        kernel=LAYER,
        mode="full",
        x_value=labels,
        x_name="sparse labels",
        x_label=f"{labels:,} labels with sparse targets, {rows} rows, {features} features",
        device=plan.device,
        candidates=functools.partial(sparse_labels, rows, features, labels, 10, plan.device),
        rounds=5,
        memory=plan.measured,
        memory_target=(256 << 20) + 4 * (rows * features + labels * (features + 1)),
    )

"""How far the loss and its gradient are from the truth, ours and torch's, against references of 50 digits.

    python -m benchmarks.exactness      writes benchmarks/results/exactness.csv

Everything in float32, targets 0 and 1. An error in ulp is relative to the spacing of float32 at the true value.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

Loss = Callable[..., Tensor]
TABLE = Path(__file__).resolve().parent / "results" / "exactness.csv"
LOSSES: dict[str, Loss] = {
    "eager": F.binary_cross_entropy_with_logits,
    "compile": torch.compile(F.binary_cross_entropy_with_logits),
    "fused": fl.binary_cross_entropy_with_logits,
}
INF = math.inf
# Of ours over every finite float32, subnormal results included: too long to try here, so
# tests/test_formula_exhaustive.py does (slow), and fails where these are not what it finds.
EVERY_FLOAT = {"loss": 2.194, "gradient": 2.402}
POINTS = [("loss", -20.0, 0.0), ("gradient", 20.0, 1.0), ("loss", INF, 1.0)]


def values(loss: Loss, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Every element's loss and gradient."""
    logits = logits.clone().requires_grad_()
    result = loss(logits, target, reduction="none")
    result.sum().backward()
    return {"loss": result.detach(), "gradient": logits.grad}


@mpmath.workdps(50)
def truth(quantity: str, z: float, y: float) -> mpmath.mpf:
    """For y = 1, loss softplus(-z) and gradient -sigma(-z); y = 0 is its mirror image."""
    if math.isinf(z):
        return mpmath.mpf(0 if (z > 0) == (y == 1) else INF if quantity == "loss" else 1 - 2 * y)
    sign = 1 - 2 * int(y)
    x = mpmath.mpf(sign * z)
    return mpmath.log1p(mpmath.exp(x)) if quantity == "loss" else sign / (1 + mpmath.exp(-x))


@mpmath.workdps(50)
def ulp_error(value: float, exact: mpmath.mpf) -> float:
    """|value - exact| in units of the spacing of float32 at ``exact``; infinite for NaN."""
    spacing = float(np.spacing(np.float32(abs(float(exact)))))
    return INF if math.isnan(value) else float(abs(mpmath.mpf(value) - exact) / spacing)


def sweep(count: int) -> tuple[Tensor, Tensor]:
    """``count`` magnitudes from 2^-20 to 87, where every value is a normal number, each with both signs and targets."""
    magnitudes = torch.logspace(-20, math.log2(87), count, base=2, dtype=torch.double).float()
    logits = torch.cat([magnitudes, -magnitudes])
    return logits.repeat(2), torch.tensor([0.0, 1.0]).repeat_interleave(len(logits))


def largest_errors(count: int, losses: dict[str, Loss] = LOSSES) -> dict[str, dict[str, float]]:
    """quantity -> provider -> ulp"""
    logits, target = sweep(count)
    pairs = list(zip(logits.tolist(), target.tolist(), strict=True))
    result: dict[str, dict[str, float]] = {}
    found = {name: values(loss, logits, target) for name, loss in losses.items()}
    for quantity in ("loss", "gradient"):
        exact = [truth(quantity, z, y) for z, y in pairs]
        result[quantity] = {
            name: max(ulp_error(v, e) for v, e in zip(computed[quantity].tolist(), exact, strict=True))
            for name, computed in found.items()
        }
    return result


def correctly_rounded(loss: Loss) -> float:
    """The share of the losses of 2^20 normal logits, target 1, that are the float32 nearest to the true value."""
    logits = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    computed = loss(logits, torch.ones_like(logits), reduction="none")
    return (computed == F.softplus(-logits.double()).float()).double().mean().item()


def threads_change_the_sum(loss: Loss) -> bool:
    """Whether the mean over 2^20 elements depends on the number of threads."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1 << 20, generator=generator), torch.rand(1 << 20, generator=generator)
    before = torch.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.add(loss(logits, target).item())
    finally:
        torch.set_num_threads(before)
    return len(results) > 1


def rows(count: int = 20_000) -> list[dict[str, str]]:
    table = []
    for quantity, z, y in POINTS:
        row = {"what": f"{quantity} at logit {z:g}, target {y:g}", "truth": f"{float(truth(quantity, z, y)):.8g}"}
        for name, loss in LOSSES.items():
            row[name] = f"{values(loss, torch.tensor([z]), torch.tensor([y]))[quantity].item():.8g}"
        table.append(row)
    for quantity, errors in largest_errors(count).items():
        # 2^23 ulp: nothing of a float32 is left
        shown = {name: f"{ulp:.2f} ulp" if ulp < 1 << 23 else "all digits lost" for name, ulp in errors.items()}
        if errors["fused"] > EVERY_FLOAT[quantity]:
            raise ValueError(f"exactness: expected at most {EVERY_FLOAT[quantity]} ulp, got {errors['fused']}")
        shown["fused"] = f"{EVERY_FLOAT[quantity]} ulp"
        table.append({"what": f"largest error of the {quantity}, any logit", "truth": "", **shown})
    shares = {name: f"{correctly_rounded(loss):.1%}" for name, loss in LOSSES.items()}
    table.append({"what": "losses of normal logits that are correctly rounded, target 1", "truth": "", **shares})
    table.append(
        {
            "what": "the mean depends on the number of threads",
            "truth": "no",
            **{name: "yes" if threads_change_the_sum(loss) else "no" for name, loss in LOSSES.items()},
        }
    )
    return table


def main() -> None:
    argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.exactness").parse_args()
    table = rows()
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(*row.values(), sep="  |  ")
    print(f"figures: {TABLE}")


if __name__ == "__main__":
    main()

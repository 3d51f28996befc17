"""A whole training step of the loss (forward and backward, the gradient freed each step) against its rivals.

    python -m benchmarks.elementwise [--quick] [--csv FILE]

All are timed in turn on the same tensors, next to the memory limit: a triad, ``torch.add(a, b, out=c)``, which like the
fused step reads two arrays and writes one. Ratios of medians; absolute times drift on a shared machine.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

import fused_logistic as fl

from .timing import Timing, interleaved


def _step(loss: Callable[..., torch.Tensor], logits: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        loss(logits, target).backward()
        logits.grad = None

    return run


def providers(numel: int, dtype: torch.dtype, slow_ones: bool) -> dict[str, Callable[[], object]]:
    """Name -> one whole step on shared tensors of ``numel`` elements."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(numel, generator=generator).mul_(3).to(dtype).requires_grad_()
    target = torch.randint(0, 2, (numel,), generator=generator).to(dtype)
    a, b, c = (torch.rand(numel, generator=generator).to(dtype) for _ in range(3))
    result: dict[str, Callable[[], object]] = {
        "triad": lambda: torch.add(a, b, out=c),
        "fused": _step(fl.binary_cross_entropy_with_logits, logits, target),
        "eager": _step(F.binary_cross_entropy_with_logits, logits, target),
    }
    if slow_ones:
        torch._dynamo.reset()
        result["compile"] = _step(torch.compile(F.binary_cross_entropy_with_logits), logits, target)
    if slow_ones and dtype == torch.float32:
        try:
            from sklearn._loss.loss import HalfBinomialLoss
        except ImportError:
            print("scikit-learn is not installed: its HalfBinomialLoss is left out", file=sys.stderr)
        else:
            half_binomial, raw, y = HalfBinomialLoss(), logits.detach().numpy(), target.numpy()
            losses, gradient = np.empty_like(raw), np.empty_like(raw)
            result["scikit-learn"] = lambda: half_binomial.loss_gradient(
                y, raw, loss_out=losses, gradient_out=gradient, n_threads=torch.get_num_threads()
            )
    return result


def report(numel: int, dtype: torch.dtype, times: dict[str, Timing]) -> list[dict[str, object]]:
    fused, triad = times["fused"].median, times["triad"].median
    name = str(dtype).removeprefix("torch.")
    print(f"{name:>9} {numel:>9}  fused {fused * 1e6:11.1f} us = {fused / triad:5.2f} x triad;  against fused:", end="")
    for rival, timing in times.items():
        if rival not in ("fused", "triad"):
            print(f"  {rival} {timing.median / fused:.2f} x", end="")
    print(flush=True)
    return [
        {
            "kernel_name": "binary_cross_entropy_with_logits",
            "kernel_provider": provider,
            "kernel_operation_mode": "full",
            "dtype": name,
            "x_name": "numel",
            "x_value": numel,
            "metric_name": "speed",
            "metric_unit": "ms",
            "y_value_20": timing.low * 1e3,
            "y_value_50": timing.median * 1e3,
            "y_value_80": timing.high * 1e3,
        }
        for provider, timing in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, without the slow rivals")
    parser.add_argument("--csv", help="write the figures to this file")
    options = parser.parse_args()
    from fused_logistic import _C

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"instruction set {_C.isa()}; whole steps, reduction mean"
    )
    small = [1, 16, 128, 1024]
    sizes = small + ([1 << 16, 1 << 22] if options.quick else [1 << 16, 1 << 20, 1 << 24, 1 << 26])
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for numel in sizes if dtype == torch.float32 else [n for n in sizes if n >= 1 << 16]:
            rounds = 7 if options.quick else 15 if numel > 1 << 24 else 31
            candidates = providers(numel, dtype, slow_ones=not options.quick)
            rows += report(numel, dtype, interleaved(candidates, rounds, label=f"{dtype} {numel}"))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        print(f"figures written to {options.csv}")


if __name__ == "__main__":
    main()

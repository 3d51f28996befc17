"""The whole layer, a training step (forward and backward, gradients freed each step), against its limits and rivals.

    python -m benchmarks.linear [--quick] [--csv FILE]

* one label, X 2^18 x 512: the limit is one read of X, ``X.sum()``;
* many labels, 4096 samples, 512 features, 30,000 labels: the limit is the three matrix products, chunk by chunk;
* 1,000,000 labels, batch 64, 128 features, sparse targets: eager torch needs the dense target and the whole logits.
All candidates of a case are timed in turn on the same tensors.
"""

from __future__ import annotations

import argparse
import csv
import platform
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

import fused_logistic as fl

from .timing import Timing, interleaved

Providers = dict[str, Callable[[], object]]
CHUNK_BYTES = 32 << 20


def _step(loss: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        loss().backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def single_output(rows: int = 1 << 18, features: int = 512) -> Providers:
    """Name -> one step of a layer with one label; "limit" reads X once."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator)
    w = (torch.randn(1, features, generator=generator) / features**0.5).requires_grad_()
    b = torch.zeros(1, requires_grad=True)
    y = torch.randint(0, 2, (rows, 1), generator=generator).float()
    return {
        "limit": lambda: x.sum(),
        "fused": _step(lambda: fl.linear_binary_cross_entropy(x, w, y, linear_bias=b), [w, b]),
        "eager": _step(lambda: F.binary_cross_entropy_with_logits(F.linear(x, w, b), y), [w, b]),
    }


def many_labels(rows: int = 4096, features: int = 512, labels: int = 30_000) -> Providers:
    """Name -> one step of a layer with many labels; "limit" is the three products in chunks of the same size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator).requires_grad_()
    w = (torch.randn(labels, features, generator=generator) / features**0.5).requires_grad_()
    y = (torch.rand(rows, labels, generator=generator) < 0.01).float()
    width = min(CHUNK_BYTES // 4 // rows, labels)
    chunk, grad_x, grad_w = torch.empty(rows * width), torch.empty(rows, features), torch.empty(labels, features)

    @torch.no_grad()
    def products() -> None:
        for begin in range(0, labels, width):
            part = w[begin : begin + width]
            z = chunk[: rows * len(part)].view(rows, len(part))
            torch.mm(x, part.t(), out=z)
            torch.mm(z.t(), x, out=grad_w[begin : begin + width])
            if begin == 0:
                torch.mm(z, part, out=grad_x)
            else:
                grad_x.addmm_(z, part)

    return {
        "limit": products,
        "fused": _step(lambda: fl.linear_binary_cross_entropy(x, w, y, chunk_bytes=CHUNK_BYTES), [x, w]),
        "eager": _step(lambda: F.binary_cross_entropy_with_logits(F.linear(x, w), y), [x, w]),
    }


def extreme(rows: int = 64, features: int = 128, labels: int = 1_000_000, positives: int = 20) -> Providers:
    """Name -> one step with sparse targets; "limit" reads the weights and writes their gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator).requires_grad_()
    w = torch.zeros(labels, features).requires_grad_()
    column = torch.randint(0, labels, (rows * positives,), generator=generator)
    crow = torch.arange(0, rows * positives + 1, positives)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = torch.sparse_csr_tensor(crow, column, torch.ones(len(column)), (rows, labels), check_invariants=False)
    out = torch.empty(labels, features)
    return {
        "limit": lambda: torch.mul(w.detach(), 2, out=out),
        "fused": _step(lambda: fl.linear_binary_cross_entropy(x, w, y), [x, w]),
    }


CASES: dict[str, Callable[[], Providers]] = {"single": single_output, "many": many_labels, "extreme": extreme}


def report(case: str, times: dict[str, Timing]) -> list[dict[str, object]]:
    fused = times["fused"].median
    print(f"{case:>8}  fused {fused * 1e3:9.1f} ms = {fused / times['limit'].median:5.2f} x limit", end="")
    print(
        "".join(f";  {name} {t.median / fused:.2f} x fused" for name, t in times.items() if name == "eager"), flush=True
    )
    return [
        {
            "kernel_name": "linear_binary_cross_entropy",
            "kernel_provider": provider,
            "kernel_operation_mode": "full",
            "dtype": "float32",
            "x_name": "case",
            "x_value": case,
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
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--csv", help="write the figures to this file")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case")
    options = parser.parse_args()
    from fused_logistic import _C

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"instruction set {_C.isa()}; whole steps, reduction mean"
    )
    rows = []
    for case in options.case or CASES:
        rounds = (15 if case == "single" else 5) if options.quick else (31 if case == "single" else 11)
        rows += report(case, interleaved(CASES[case](), rounds, label=case))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        print(f"figures written to {options.csv}")


if __name__ == "__main__":
    main()

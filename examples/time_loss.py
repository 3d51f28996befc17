"""Five seconds of timing: a whole training step of the loss, fused_logistic against eager PyTorch.

    python examples/time_loss.py [--seconds 5]

A step is the mean loss, its backward pass, and dropping the gradient, as a training loop does it. The two take turns,
so that whatever else the machine does slows both; the medians are compared. For compiled, scikit-learn and memory-limit
figures see benchmarks/.
"""

import argparse
import statistics
import time

import torch

import fused_logistic as fl

SIZES = [2**10, 2**16, 2**20, 2**24]


def step(loss_function, logits, target):
    loss_function(logits, target).backward()
    logits.grad = None


def seconds_per_step(loss_function, logits, target, steps):
    start = time.perf_counter()
    for _ in range(steps):
        step(loss_function, logits, target)
    return (time.perf_counter() - start) / steps


def compare(size, budget):
    """Medians of (eager, fused) seconds a step on the same tensors, from about ``budget`` seconds of taking turns."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator).mul_(4).requires_grad_()
    target = torch.rand(size, generator=generator).round_()
    rivals = torch.nn.functional.binary_cross_entropy_with_logits, fl.binary_cross_entropy_with_logits
    for rival in rivals:
        step(rival, logits, target)  # allocators and thread pools warm up

    # Small sizes take a few microseconds a step, too little for the clock: time several steps at once.
    steps = max(1, int(1e-3 / max(seconds_per_step(rivals[0], logits, target, 1), 1e-6)))
    times = [], []
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times[0]) < 3:
        for rival, seen in zip(rivals, times, strict=True):
            seen.append(seconds_per_step(rival, logits, target, steps))
    return [statistics.median(seen) for seen in times]


def main():
    parser = argparse.ArgumentParser(description="Time a step of the loss against eager PyTorch.")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure, in all (default: 5)")
    seconds = parser.parse_args().seconds

    threads = torch.get_num_threads()
    print(f"A step of the mean loss, forward and backward, float32 (torch {torch.__version__}, threads: {threads})")
    print(f"{'elements':>12}{'eager torch':>16}{'fused':>16}{'eager / fused':>16}")
    for size in SIZES:
        eager, fused = compare(size, seconds / len(SIZES))
        print(f"{size:12,}{1e6 * eager:13,.1f} µs{1e6 * fused:13,.1f} µs{eager / fused:14.1f} x", flush=True)


if __name__ == "__main__":
    main()

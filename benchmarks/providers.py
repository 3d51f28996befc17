"""The elementwise loss: ours, what people use instead, and the memory limit, all on the same tensors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_logistic as fl

from .cases import ELEMENTWISE, Case, Plan, register
from .timing import Candidate

Step = Candidate | Callable[[], object]

# What ours has to reach, as (rival's time / ours) at least: {(dtype, number of elements): {provider: ratio}}
_SMALL = {"eager": 1.0}
_LARGE = {"triad": 1 / 1.3, "eager": 15.0, "compile": 5.0, "scikit-learn": 25.0}
TARGETS: dict[tuple[torch.dtype, int], dict[str, float]] = {
    **{(torch.float32, n): _SMALL for n in (1, 16, 128, 1024)},
    (torch.float32, 1 << 16): {"eager": 5.0, "compile": 5.0},
    (torch.float32, 1 << 24): _LARGE,
    (torch.float32, 1 << 26): _LARGE,
    (torch.bfloat16, 1 << 24): {"triad": 1 / 1.3},
    (torch.float16, 1 << 24): {"triad": 1 / 1.3},
}
# Arrays that an ideal implementation moves: it reads logits and target, and writes the gradient where one is asked for.
ARRAYS = {"full": 3, "forward": 3, "no-grad-forward": 2}


@functools.cache
def missing(package: str) -> bool:
    """Whether a rival's package is absent; says so once."""
    try:
        __import__(package)
    except ImportError:
        print(f"{package} is not installed: left out", file=sys.stderr)
        return True
    return False


def unfused(logits: Tensor, target: Tensor) -> Tensor:
    """What one writes who has the probabilities: two passes, the tails lost."""
    return F.binary_cross_entropy(torch.sigmoid(logits), target)


def autograd_step(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor, mode: str) -> Step:
    """One call of ``loss`` in a mode. The gradient is dropped each time, as a training loop does it."""

    def full() -> None:
        loss(logits, target).backward()
        logits.grad = None

    def forward() -> None:
        loss(logits, target)

    def backward(result: Tensor) -> None:
        result.backward()
        logits.grad = None

    def no_grad_forward() -> None:
        with torch.no_grad():
            loss(logits, target)

    return {
        "full": full,
        "forward": forward,
        "backward": Candidate(backward, before=lambda: loss(logits, target)),
        "no-grad-forward": no_grad_forward,
    }[mode]


def _scikit_learn(logits: Tensor, target: Tensor, mode: str) -> Step:
    import numpy as np
    from sklearn._loss.loss import HalfBinomialLoss

    loss, raw, y = HalfBinomialLoss(), logits.detach().numpy(), target.numpy()
    losses, gradient = np.empty_like(raw), np.empty_like(raw)  # reused, as its own solvers do
    threads = torch.get_num_threads()
    if mode == "full":
        return lambda: loss.loss_gradient(y, raw, loss_out=losses, gradient_out=gradient, n_threads=threads)
    return lambda: loss.loss(y, raw, loss_out=losses, n_threads=threads)


def _jax(logits: Tensor, target: Tensor, mode: str) -> Step:
    import jax
    import optax

    def mean(z, y):
        return optax.sigmoid_binary_cross_entropy(z, y).mean()

    function = jax.jit(jax.value_and_grad(mean) if mode == "full" else mean)
    z, y = (jax.numpy.asarray(t.detach().numpy()) for t in (logits, target))
    return lambda: jax.block_until_ready(function(z, y))


def tensors(numel: int, dtype: torch.dtype, device: str, positives: float = 0.5) -> tuple[Tensor, Tensor]:
    """Logits, a leaf, and targets of which the given share is 1, the others 0."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(numel, generator=generator, device=device).mul_(3).to(dtype).requires_grad_()
    return logits, (torch.rand(numel, generator=generator, device=device) < positives).to(dtype)


def triad(logits: Tensor, target: Tensor) -> Callable[[], object]:
    """The memory limit of a step: it reads both and writes as much as the gradient."""
    flat, out = logits.detach(), torch.empty_like(target)
    return lambda: torch.add(flat, target, out=out)


def candidates(numel: int, dtype: torch.dtype, mode: str, device: str) -> dict[str, Step]:
    """Name -> one call on shared tensors of ``numel`` elements."""
    logits, target = tensors(numel, dtype, device)
    torch._dynamo.reset()
    result: dict[str, Step] = {
        "fused": autograd_step(fl.binary_cross_entropy_with_logits, logits, target, mode),
        "eager": autograd_step(F.binary_cross_entropy_with_logits, logits, target, mode),
        "unfused": autograd_step(unfused, logits, target, mode),
        "compile": autograd_step(
            torch.compile(F.binary_cross_entropy_with_logits, dynamic=False), logits, target, mode
        ),
    }
    if mode != "backward":  # neither limit nor rivals have a backward pass of its own
        result["triad"] = triad(logits, target)
        result["read"] = logits.detach().sum
    # Rivals without autograd have no forward pass that records a graph.
    if device == "cpu" and dtype == torch.float32 and mode in ("full", "no-grad-forward"):
        if not missing("sklearn"):
            result["scikit-learn"] = _scikit_learn(logits, target, mode)
        if not missing("jax") and not missing("optax"):
            result["jax"] = _jax(logits, target, mode)
    return result


@register
def cases(plan: Plan) -> Iterator[Case]:
    exponents = (0, 4, 7, 10, 13, 16, 18, 20, 22, 24, 26) if plan.full else (0, 10, 16, 20, 24)
    large = (16, 20, 24) if plan.full else (20,)
    if plan.device == "cuda":
        exponents += (28,)
        large = (20, 24, 28) if plan.full else (24, 28)
    grid = [(torch.float32, "full", e) for e in exponents]
    grid += [(torch.float32, mode, e) for mode in ("forward", "backward", "no-grad-forward") for e in large]
    grid += [(dtype, "full", e) for dtype in (torch.bfloat16, torch.float16, torch.float64) for e in large]
    with_memory = 24 if plan.full else 22
    if with_memory not in exponents:
        grid.append((torch.float32, "full", with_memory))
    for dtype, mode, exponent in grid:
        numel = 1 << exponent
        arrays = ARRAYS.get(mode)
        measured = dtype == torch.float32 and mode == "full" and exponent == with_memory
        yield Case(
            kernel=ELEMENTWISE,
            mode=mode,
            x_value=numel,
            dtype=dtype,
            device=plan.device,
            candidates=functools.partial(candidates, numel, dtype, mode, plan.device),
            rounds=plan.rounds(expensive=exponent > 22),
            bytes=None if arrays is None else arrays * numel * dtype.itemsize,
            targets=TARGETS.get((dtype, numel), {}) if mode == "full" and plan.device == "cpu" else {},
            # scikit-learn's results are allocated outside of the call, so its peak would not compare
            memory=("fused", "eager", "unfused", "compile", "jax") if measured else (),
        )

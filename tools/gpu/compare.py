"""CUDA's bits against the CPU's: every fp32 logit, and random configurations of every loss."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import fused_logistic as fl
from fused_logistic import ops
from fused_logistic.options import Options

ALL_FLOATS, PIECE = 2**32, 2**25
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TARGETS = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LENGTHS = (1, 2, 7, 31, 33, 1000, 1023, 1025, 4096, 8191, 8192, 8193, 16385, 100_003, 1_000_003)


def differing(a: Tensor, b: Tensor) -> int:
    """How many elements have other bits; all NaNs are one value. On ``b``'s device."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    a = a.to(b.device)
    same = (a.contiguous().view(integer) == b.contiguous().view(integer)) | (a.isnan() & b.isnan())
    return int((~same).sum())


# ---- Every logit ---------------------------------------------------------------------------------------------------


def _elements(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    operands, options = (z, y, None, None, None, None, ops.NONE), Options()
    loss = ops.bce(*operands, torch.float32, *options)
    return loss, ops.bce_backward(torch.ones((), device=z.device), *operands, ops.LOGITS, *options)


def every_logit(device: torch.device, seconds: float) -> tuple[bool, str]:
    """Loss and gradient of every float32 with both targets, or of as many as there is time for, spread evenly."""
    pieces, done, wrong = ALL_FLOATS // PIECE, 0, 0
    order = [int(f"{i:0{pieces.bit_length() - 1}b}"[::-1], 2) for i in range(pieces)]  # bits reversed
    start = time.monotonic()
    for piece in tqdm(order, desc="logits", unit="piece"):
        if time.monotonic() - start > seconds:
            break
        first = piece * PIECE - 2**31
        z = torch.arange(first, first + PIECE, dtype=torch.int64).to(torch.int32).view(torch.float32)
        on_device = z.to(device)
        for target in (0.0, 1.0):
            pairs = (_elements(t, torch.full((1,), target, device=t.device).expand(PIECE)) for t in (z, on_device))
            wrong += sum(differing(a, b) for a, b in zip(*pairs, strict=True))
        done += PIECE
    what = "all 2^32" if done == ALL_FLOATS else f"{done:,} of 2^32, spread evenly,"
    return wrong == 0 and done > 0, f"{what} float32 logits, both targets, loss and gradient: {wrong} other bits"


# ---- Random configurations -----------------------------------------------------------------------------------------


def _part(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What broadcasts to the shape."""
    return tuple(1 if rng.random() < 0.5 else size for size in shape)[rng.choice((0, 0, len(shape) - 1)) :]


def _logits(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    z = torch.randn(shape) * rng.choice((0.1, 3.0, 30.0, 300.0))
    if rng.random() < 0.2:
        z.view(-1)[torch.randint(0, z.numel(), (3,))] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    z = z.to(dtype)
    if len(shape) > 1:
        return z.transpose(0, 1).contiguous().transpose(0, 1) if rng.random() < 0.2 else z
    if rng.random() < 0.2:  # at another alignment
        return torch.cat([z[:1], z])[1:]
    return torch.stack([z, z], 1)[:, 0] if rng.random() < 0.1 else z


def _configuration(rng: random.Random) -> tuple[Any, list[Tensor], dict[str, Any], str]:
    """(function, logits and target, options, description)"""
    if rng.random() < 0.5:
        shape: tuple[int, ...] = (rng.choice((*LENGTHS, rng.randint(1, 3_000_000))),)
    else:
        shape = rng.choice([(rng.randint(1, 700), rng.randint(1, 700)), tuple(rng.randint(1, 20) for _ in range(4))])
    dtype, kind = rng.choice(FLOATS), rng.choice(TARGETS)
    soft = kind.is_floating_point and rng.random() < 0.5
    target = (torch.rand(shape) if soft else torch.randint(0, 2, shape)).to(kind)
    function, options = rng.choice(
        (
            (fl.binary_cross_entropy_with_logits, {"label_smoothing": rng.choice((None, 0.1, 1.0))}),
            (fl.sigmoid_focal_loss, {"alpha": rng.choice((-1, 0.25)), "gamma": rng.choice((0, 0.5, 1, 2, 3.7))}),
            (fl.quality_focal_loss, {"beta": rng.choice((1.0, 2.0, 2.5))}),
            (fl.varifocal_loss, {"gamma": rng.choice((2.0, 1.3)), "iou_weighted": rng.random() < 0.5}),
            (fl.asymmetric_loss_with_logits, {"gamma_neg": rng.choice((4.0, 2.2)), "clip": rng.choice((0.05, None))}),
        )
    )
    options = {**options, "reduction": rng.choice(("mean", "sum", "none"))}
    for name, scale in (("weight", 1), ("pos_weight", 4)):
        if rng.random() < 0.3:
            options[name] = (scale * torch.rand(_part(rng, shape))).to(rng.choice(FLOATS))
    if rng.random() < 0.25:
        options["mask"] = torch.rand(_part(rng, shape)) < 0.8
    if rng.random() < 0.2 and kind != torch.bool:
        options["ignore_index"] = rng.choice((0, 1))
    shown = {n: (list(v.shape), v.dtype) if isinstance(v, Tensor) else v for n, v in options.items()}
    return (
        function,
        [_logits(rng, shape, dtype), target],
        options,
        f"{function.__name__} {shape} {dtype} {kind} {shown}",
    )


def _step(device: torch.device, function: Any, operands: list[Tensor], options: dict[str, Any]) -> Iterator[Tensor]:
    logits, target = (t.to(device) for t in operands)
    logits.requires_grad_()
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
    loss = function(logits, target, **moved)
    yield loss.detach()
    yield torch.autograd.grad(loss, logits, torch.full_like(loss, 0.3))[0]


def random_configurations(device: torch.device, seconds: float, seed: int = 1) -> tuple[bool, str]:
    rng, start, tried, wrong = random.Random(seed), time.monotonic(), 0, []
    torch.manual_seed(seed)
    with tqdm(desc="configurations", unit="") as bar:
        while time.monotonic() - start < seconds:
            function, operands, options, description = _configuration(rng)
            tried += 1
            bar.update()
            pairs = zip(*(_step(d, function, operands, options) for d in (torch.device("cpu"), device)), strict=True)
            if any(differing(a, b) for a, b in pairs):
                wrong.append(description)
    first = "".join(f"\n  - {description}" for description in wrong[:5])
    return (
        not wrong,
        f"{tried} random configurations of five losses, loss and gradient: {len(wrong)} with other bits{first}",
    )

"""What the property tests draw, and what they compare with: every loss's definition in fp64, with all options.

Shapes, layouts and options are hypothesis' to choose and to shrink; the numbers come from a seed that it chooses too.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from fused_logistic.reference import sigmoid_pair
from tests.conftest import DTYPES, REDUCTIONS
from tests.family import PLAIN, asymmetric, focal, quality, varifocal


def examples(number: int) -> settings:
    """That many of a test's inputs in the profile `make test` runs, and in `search` as many times more as it tries."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))


# ---- Losses --------------------------------------------------------------------------------------------------------

EXPONENTS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0]) | st.floats(0, 6).map(lambda x: round(x, 3))
SHARES = st.sampled_from([0.0, 0.25, 0.75, 1.0]) | st.floats(0, 1).map(lambda x: round(x, 3))
CLIPS = st.sampled_from([0.0, 0.05, 0.25]) | st.floats(1e-3, 0.9).map(lambda x: round(x, 3))
PLAINS = st.just(PLAIN)
ASYMMETRICS = st.builds(asymmetric, EXPONENTS, EXPONENTS, CLIPS)
FOCALS = st.builds(focal, SHARES | st.just(-1), EXPONENTS)
LOSSES = st.one_of(
    PLAINS,
    FOCALS,
    st.builds(quality, EXPONENTS),
    st.builds(varifocal, SHARES, EXPONENTS, st.booleans()),
    ASYMMETRICS,
)


def takes_smoothing(member) -> bool:
    return member is PLAIN or "gamma_neg" in member.options


# ---- Tensors ---------------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**32 - 1)
# borders of vectors and of a chunk's rows; several dimensions, of which some may be empty
SHAPES = st.one_of(
    st.lists(st.integers(1, 5), max_size=4).map(tuple),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([(15,), (17,), (33,), (129,), (1023,), (1025,), (9, 130), (3, 2, 35)]),
)
KINDS = ["usual", "wide", "tails", "tiny"]


def logits_of(kind: str, shape, rng: torch.Generator, dtype: torch.dtype) -> Tensor:
    sign = 2.0 * torch.randint(0, 2, shape, generator=rng) - 1
    u = torch.rand(shape, generator=rng, dtype=torch.double)
    z = {
        "usual": lambda: 12 * u - 6,
        "wide": lambda: sign * 10 ** (5 * u - 3),
        "tails": lambda: sign * (15 + 85 * u),
        "tiny": lambda: sign * 10 ** (-40 * u),
    }[kind]()
    return torch.where(torch.rand(shape, generator=rng) < 0.05, 0.0 * sign, z).to(dtype)


def _same(t: Tensor) -> Tensor:
    return t


def _permuted(t: Tensor) -> Tensor:
    order = list(range(t.dim()))[::-1]
    return t.permute(order).contiguous().permute(order)


def _every_second(t: Tensor) -> Tensor:
    return torch.stack([t, torch.ones_like(t)], -1).flatten(-2)[..., ::2] if t.dim() else t


def _of_longer_rows(t: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(t), t], -1)[..., t.shape[-1] :] if t.dim() else t


def _offset(t: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(t).flatten()[:1], t.flatten()])[-t.numel() :].view(t.shape) if t.numel() else t


LAYOUTS = {
    "contiguous": _same,
    "permuted": _permuted,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() else t,
    "every second": _every_second,
    "of longer rows": _of_longer_rows,
    "offset": _offset,
}
LAYS = st.sampled_from(sorted(LAYOUTS))


def part_of(shape, keep) -> tuple[int, ...]:
    """A shape that broadcasts to that one: some dimensions 1, or, where the first ones are, left away."""
    short = [n if k else 1 for n, k in zip(shape, itertools.cycle(keep or [True]), strict=False)]
    return tuple(short[1:]) if short and short[0] == 1 and keep[-1] else tuple(short)


class Problem(NamedTuple):
    """A call of a loss: what is a tensor, and what is not."""

    member: Any
    tensors: dict[str, Tensor]  # logits, target; weight, pos_weight and mask where they are given
    options: dict[str, Any]

    def call(self, **others) -> Tensor:
        given = self.tensors | others
        z, y = given.pop("logits"), given.pop("target")
        return self.member.public(z, y, **given, **self.options)

    def leaves(self) -> dict[str, Tensor]:
        """Of the operands that are differentiable, leaves that have their strides and values."""
        found = {name: t for name, t in self.tensors.items() if t.is_floating_point()}
        return {name: t.detach().requires_grad_() for name, t in found.items()}


@st.composite
def problems(draw, losses=LOSSES, reductions=REDUCTIONS, shapes=SHAPES, dtypes=DTYPES, kinds=KINDS, soft=True,
             smoothings=(0.0, 0.25, 0.5, 1.0)):  # fmt: skip
    """Any loss with any options of its, on tensors of any shape, layout and dtype.

    Soft targets are 16ths: what the smoothing makes of them has no rounding in any arithmetic, which a definition in
    fp64 could not follow near targets of 1.
    """
    member, shape = draw(losses), draw(shapes)
    rng = torch.Generator().manual_seed(draw(SEEDS))
    rand = functools.partial(torch.rand, generator=rng, dtype=torch.double)
    logits = logits_of(draw(st.sampled_from(kinds)), shape, rng, draw(st.sampled_from(dtypes)))
    y_shape = draw(st.just(shape) | st.lists(st.booleans(), min_size=1, max_size=4).map(lambda k: part_of(shape, k)))
    hard = draw(st.booleans()) or not soft
    y_dtype = draw(st.sampled_from([*DTYPES, torch.bool, torch.int64, torch.uint8] if hard else DTYPES))
    y = (rand(y_shape) < 0.5).to(y_dtype) if hard else (torch.floor(17 * rand(y_shape)) / 16).to(y_dtype)
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(reductions))}
    if takes_smoothing(member):
        options["label_smoothing"] = draw(st.sampled_from(smoothings))
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([0, 1, 7]))
    if y_dtype.is_floating_point and draw(st.booleans()):
        y = torch.where(rand(y_shape) < 0.2, math.nan, y)
        options["ignore_nan"] = True
    tensors = {"logits": LAYOUTS[draw(LAYS)](logits), "target": LAYOUTS[draw(LAYS)](y).expand(shape)}
    for name in ("weight", "pos_weight", "mask"):
        if not draw(st.booleans()):
            continue
        small = part_of(shape, draw(st.lists(st.booleans(), min_size=1, max_size=4)))
        value = rand(small)
        value = value < 0.7 if name == "mask" else (0.25 + 2 * value).to(draw(st.sampled_from(DTYPES)))
        tensors[name] = LAYOUTS[draw(LAYS)](value)
    if options["reduction"] == "mean":
        options["normalizer"] = draw(st.sampled_from(["elements", "weights", "positives", 3.5]))
    return Problem(member, tensors, options)


# ---- The definition --------------------------------------------------------------------------------------------------


def kept_of(problem: Problem) -> Tensor:
    """Which elements count."""
    y = problem.tensors["target"]
    kept = torch.ones(y.shape, dtype=torch.bool)
    if "mask" in problem.tensors:
        kept = kept & problem.tensors["mask"]
    if problem.options.get("ignore_index") is not None:
        kept = kept & (y != problem.options["ignore_index"])
    return kept & ~y.isnan() if problem.options.get("ignore_nan") else kept


def parts(member, z: Tensor, y: Tensor, u: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(factor, positive term, negative term), of which the loss is factor (p positive + negative), in fp64,
    differentiable; and what an ulp of sigma(z) is of what is raised to a power, infinite where that is all."""
    sigma, minus = sigmoid_pair(z)
    positive, negative = y * -F.logsigmoid(z), (1 - y) * -F.logsigmoid(-z)
    options, zero = {k: v for k, v in member.options.items() if v is not None}, torch.zeros_like(z)
    if not options:
        return torch.ones_like(z), positive, negative, zero
    if "gamma_neg" in options:
        clip = options["clip"]
        left = torch.where(sigma > clip, sigma - clip, 0) if clip else sigma
        q, gamma = y * minus + (1 - y) * left, options["gamma_pos"] * y + options["gamma_neg"] * (1 - y)
        factor = _power(q, gamma)
        if not clip:
            return factor, positive, negative, zero
        rate = torch.where(q == 0, 0, ((1 - y) * (sigma + clip) / q).detach())
        rate = torch.where((sigma - clip).abs() > 8 * u, rate, torch.inf)  # on which side, nobody knows
        return factor, positive, (1 - y) * -torch.log1p(-left), rate
    if "beta" in options or "iou_weighted" in options:
        q, is_hard = ((1 - y) * sigma - y * minus).abs(), (y == 0) | (y == 1)
        rate = torch.where(is_hard, 0, ((sigma + y) / q).detach())  # infinite where fp64 has no digit of q
        if "beta" in options:
            return _power(q, options["beta"]), positive, negative, rate
        of_positives = y if options["iou_weighted"] else torch.ones_like(y)
        of_negatives = options["alpha"] * _power((1 - y) * sigma - y * minus, options["gamma"])
        factor = torch.where(y > 0, of_positives, of_negatives)
        return factor, positive, negative, zero
    q, alpha = y * minus + (1 - y) * sigma, options.get("alpha")
    factor = q ** options["gamma"]
    return (factor if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * factor), positive, negative, zero


def _power(q: Tensor, gamma) -> Tensor:
    """With a derivative of 0 where q is 0."""
    there = q > 0
    return torch.where(there, q.where(there, 1) ** gamma, torch.as_tensor(gamma) == 0)


def _times(size: Tensor, rate: Tensor) -> Tensor:
    return torch.where(rate.isinf(), torch.inf, size.detach() * rate)


class Truth(NamedTuple):
    """The loss, the derivatives by the operands, and for each what the terms that may cancel in it come to."""

    loss: Tensor
    loss_size: Tensor
    grads: dict[str, tuple[Tensor, Tensor]]


def truth(problem: Problem, grad_output: Tensor) -> Truth:
    """In fp64, by autograd from :func:`parts`."""
    kept, s = kept_of(problem), problem.options.get("label_smoothing") or 0
    wide = {name: t.detach().double() for name, t in problem.tensors.items() if name != "mask"}
    shape = wide["logits"].shape
    wide["logits"] = wide["logits"].where(wide["logits"] != 0, 1e-300)  # where torch's derivative of |z| is 0
    wide["target"] = wide["target"].where(kept, 0.5)
    leaves = {name: wide.get(name, torch.ones(())).expand(shape).clone().requires_grad_() for name in OPERANDS}
    z, y, w, p = leaves.values()
    factor, positive, negative, rate = parts(problem.member, z, y * (1 - s) + s / 2, unit(problem))
    terms = p * positive + negative
    scale = torch.ones(()) if problem.options["reduction"] != "mean" else 1 / divisor_of(problem, kept)
    loss = (w * factor * terms).where(kept, 0).detach()
    size = _times(loss, 1 + rate)
    grads = {}
    for name, leaf in leaves.items():
        by = functools.partial(torch.autograd.grad, inputs=leaf, retain_graph=True, allow_unused=True)
        slopes = [by(t.sum())[0] if t.requires_grad else None for t in (factor, p * positive, negative)]
        of_factor, of_positive, of_negative = (0 if t is None else t for t in slopes)
        if name == "weight":
            grad = grad_size = factor * terms
            if problem.options.get("normalizer") == "weights" and name in wide:  # the mean's divisor
                grad, grad_size = grad - loss.sum() * scale, grad_size + size.sum() * scale
        else:
            grad = w * (factor * (of_positive + of_negative) + of_factor * terms)
            grad_size = w * (factor * (abs(of_positive) + abs(of_negative)) + abs(of_factor) * terms)
        grad, grad_size = (t.where(kept, 0) * scale * grad_output for t in (grad, _times(grad_size, 1 + rate)))
        if name in wide:
            small = problem.tensors[name].shape if name not in ("logits", "target") else shape
            grads[name] = grad.detach().sum_to_size(small), grad_size.detach().abs().sum_to_size(small)
    if problem.options["reduction"] == "none":
        return Truth(loss, size, grads)
    return Truth(loss.sum() * scale, size.sum() * abs(scale), grads)


OPERANDS = ("logits", "target", "weight", "pos_weight")


def divisor_of(problem: Problem, kept: Tensor) -> Tensor:
    normalizer = problem.options.get("normalizer", "elements")
    if normalizer == "positives":
        return ((problem.tensors["target"] > 0) & kept).sum().clamp_min(1).double()
    if normalizer == "weights" and "weight" in problem.tensors:
        return problem.tensors["weight"].double().expand(kept.shape).where(kept, 0).sum()
    return kept.sum().double() if isinstance(normalizer, str) else torch.tensor(normalizer, dtype=torch.double)


def unit(problem: Problem) -> float:
    """Of rounding, in the arithmetic for these logits and targets."""
    wide = torch.float64 in (problem.tensors["logits"].dtype, problem.tensors["target"].dtype)
    return 2.0**-53 if wide else 2.0**-24


def limit(member) -> float:
    """The ulp that a loss and its gradient may be off by (docs/derivation.md), of twice the unit each."""
    return 4 + 2.8 * max(member.exponents)


def numel(shape) -> int:
    return functools.reduce(operator.mul, shape, 1)

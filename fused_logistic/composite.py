"""The losses and the whole layer in torch's own differentiable operations: right to any order, and on any device.

This is what the ops are under ``torch.func``, forward-mode AD and in higher derivatives, and where no kernel runs. Each
function has the signature of the op of its name (:mod:`fused_logistic.ops`) and returns what that op returns, by the
formulas of ``csrc/logistic.h`` and ``csrc/losses.h``. Nothing is checked here: who calls has checked, or lets the op's
kernel do it.

No branch looks at a tensor's values, so all of it can be traced, batched by ``vmap`` and compiled for dynamic shapes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, composite_powers, ops, sparse, targets
from .composite_powers import like, product
from .ops import Layer
from .options import Options

# ---- The terms of the loss ----------------------------------------------------------------------------------------


def smoothed(y: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """y (1 - s) + s / 2"""
    s = like(y, label_smoothing)
    return y * (like(y, 1) - s) + s * like(y, 0.5)


def smoothed_target(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The target with label smoothing worked in, differentiable in both, and the mask with what is ignored."""
    there = targets.kept(target, mask, options.ignore_index, options.ignore_nan)
    y = target.to(torch.float64 if torch.float64 in (logits.dtype, target.dtype) else torch.float32)
    if there is not None:
        y = torch.where(there, y, 0)  # what is left out must not leak, NaN included
    return smoothed(y, options.label_smoothing), there


def _weight(a: Tensor, b: Tensor) -> Tensor:
    """a * b, but 0 where one is 0 and the other infinite.

    There the largest number stands for the infinite one, which the derivative by the other is then, not infinity.
    """
    most = torch.finfo(a.dtype).max
    return torch.where(b == 0, a.clamp(-most, most), a) * torch.where(a == 0, b.clamp(-most, most), b)


class _Terms:
    """The operands in the type of the arithmetic, with label smoothing and what is left out worked in.

    ``positive`` and ``negative`` are the weights of the two terms without that of the sample, ``a`` and ``b`` with it.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        mask: Tensor | None,
        options: Options,
    ) -> None:
        is_double = torch.float64 in (logits.dtype, target.dtype)
        self.dtype = torch.float64 if is_double else torch.float32
        target, mask, options = targets.resolved(logits, target, mask, options)
        self.kept = targets.kept(target, mask, options.ignore_index, options.ignore_nan)
        self.device = logits.device
        z, y = logits.to(self.dtype), target.to(self.dtype)
        p = None if pos_weight is None else pos_weight.to(self.dtype)
        w = None if weight is None else weight.to(self.dtype)
        if self.kept is not None:
            # What is left out must not leak, NaN and infinities included: 0 times NaN is NaN, in every derivative
            z, y = torch.where(self.kept, z, 0), torch.where(self.kept, y, 0)
            p = None if p is None else torch.where(self.kept, p, 1)
            w = None if w is None else torch.where(self.kept, w, 1)
        if isinstance(options.label_smoothing, Tensor) or options.label_smoothing != 0:
            y = smoothed(y, options.label_smoothing)
        self.z, self.y, self.p, self.w = z, y, p, w
        self.positive = y if p is None else _weight(p, y)
        self.negative = 1 - y
        self.a = self.positive if w is None else _weight(w, self.positive)
        self.b = self.negative if w is None else _weight(w, self.negative)

    def constant(self, value: float | Tensor) -> Tensor:
        return like(self.z, value)

    def _finite(self, coefficient: Tensor) -> Tensor:
        return torch.where((coefficient == 0) & self.z.isinf(), 0, self.z)

    def softplus_minus(self, coefficient: Tensor) -> Tensor:
        """softplus(-z), to be multiplied by the coefficient: log 2 where that is 0 and z infinite, so not inf * 0."""
        return -F.logsigmoid(self._finite(coefficient))

    def softplus(self, coefficient: Tensor) -> Tensor:
        """The negative term, softplus(z), likewise."""
        return -F.logsigmoid(-self._finite(coefficient))

    def sigma(self) -> Tensor:
        """Its derivative."""
        return torch.sigmoid(self.z)

    def unweighted_loss(self) -> Tensor:
        positive, negative = self.positive, self.negative
        return positive * self.softplus_minus(positive) + negative * self.softplus(negative)

    def loss(self) -> Tensor:
        return self.a * self.softplus_minus(self.a) + self.b * self.softplus(self.b)

    def by_logits(self) -> Tensor:
        return self.b * self.sigma() - self.a * torch.sigmoid(-self.z)

    def by_target(self) -> Tensor:
        """Without the sample's weight."""
        if self.p is None:
            return -self.z
        one = torch.ones_like(self.z)
        p = self.p * one
        return p * self.softplus_minus(p) - self.softplus(one)

    def weighted(self, value: Tensor) -> Tensor:
        return value if self.w is None else _weight(self.w, value)

    def keep(self, value: Tensor) -> Tensor:
        return value if self.kept is None else torch.where(self.kept, value, 0)

    def times(self, value: Tensor, factor: Tensor) -> Tensor:
        """value * factor where elements are kept, whatever factor is elsewhere."""
        return self.keep(value) * self.keep(factor.to(value.dtype))


class _AsymmetricTerms(_Terms):
    """Those whose negative term is -log(1 - p_m), in the notation of ``csrc/asymmetric.h``."""

    def __init__(self, *operands: Any) -> None:
        super().__init__(*operands)
        self.shifted = composite_powers.Shifted(self.z, operands[-1].clip)

    def softplus(self, coefficient: Tensor) -> Tensor:
        return self.shifted.softplus()

    def sigma(self) -> Tensor:
        return self.shifted.sigma()

    def by_target(self) -> Tensor:
        one = torch.ones_like(self.z)
        p = one if self.p is None else self.p * one
        return p * self.softplus_minus(p) - self.softplus(one)


def _terms(*operands: Any) -> tuple[_Terms, composite_powers.Power | None]:
    """The terms, and what they are multiplied by."""
    options = operands[-1]
    if options.gamma_neg is not None and options.clip != 0:
        shifted = _AsymmetricTerms(*operands)
        return shifted, composite_powers.Asymmetric(shifted, options, shifted.shifted)
    terms = _Terms(*operands)
    if options.gamma_neg is not None:
        return terms, composite_powers.Asymmetric(terms, options, None)
    if options.beta is not None or options.iou_weighted is not None:
        return terms, composite_powers.Quality(terms, options)
    return terms, None if options.gamma is None else composite_powers.Focal(terms, options.gamma, options.alpha)


def _added(value: Tensor, more: Tensor | None) -> Tensor:
    return value if more is None else value + more


# ---- The elementwise ops ------------------------------------------------------------------------------------------


def bce(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    count: Tensor | None,
    reduction: int,
    dtype: torch.dtype,
    *options: Any,
) -> Tensor:
    terms, power = _terms(logits, target, weight, pos_weight, mask, Options(*options))
    loss = terms.loss()
    if power is not None:
        loss = power.weigh(loss)
    loss = terms.keep(loss)
    if reduction == ops.SUM:
        loss = loss.sum()
    elif reduction == ops.MEAN:
        loss = loss.mean() if count is None else loss.sum() / count.to(loss.dtype)
    return loss.to(dtype)


def bce_backward(
    grad_output: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    count: Tensor | None,
    reduction: int,
    wrt: int,
    *options: Any,
) -> Tensor:
    given = Options(*options)
    terms, power = _terms(logits, target, weight, pos_weight, mask, given)
    if wrt == ops.LOGITS:
        result = terms.by_logits()
        if power is not None:
            loss = terms.loss()
            result = power.weigh(result + product(power.slope_logits(), loss))
            result = _added(result, power.at_zero(loss, wrt))
    elif wrt == ops.TARGET:
        result = terms.by_target()
        if power is not None:
            loss = terms.unweighted_loss()
            result = power.weigh(result + power.slope_target_times(loss)) + power.by_own_weight(loss)
            result = _added(result, power.at_zero(loss, wrt))
        result = terms.weighted(result * terms.constant(1 - given.label_smoothing))
    elif wrt == ops.WEIGHT:
        result = terms.unweighted_loss()
        if power is not None:
            result = power.weigh(result)
    else:
        coefficient = terms.weighted(terms.y)
        result = coefficient * terms.softplus_minus(coefficient)
        if power is not None:
            result = power.weigh(result)
    result = terms.times(result, grad_output)
    if reduction == ops.MEAN:
        divisor = terms.constant(logits.numel() if count is None else count)
        # what is left out is 0 and stays it, even where nothing is left or what is left in weighs 0
        result = result / (divisor if terms.kept is None else torch.where(terms.kept, divisor, 1))
    like = (logits, target, weight, pos_weight)[wrt]
    assert like is not None
    return result.to(like.dtype)


def bce_with_grad(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    count: Tensor | None,
    reduction: int,
    dtype: torch.dtype,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    checks.reduced("bce_with_grad", reduction)
    operands = logits, target, weight, pos_weight, mask, count, reduction
    return bce_with_grad_for(logits.new_ones(()), *operands, dtype, *options)


def bce_with_grad_for(grad_output: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    operands, (_, *options) = args[:7], args[7:]
    return bce(*args), bce_backward(grad_output, *operands, ops.LOGITS, *options)


# ---- The layer ----------------------------------------------------------------------------------------------------


def linear_logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    if linear_weight.dim() == 2 or input.is_nested:
        if linear_weight.dim() == 1:
            return F.linear(input, linear_weight.unsqueeze(0), linear_bias).squeeze(-1)
        return F.linear(input, linear_weight, linear_bias)
    logits = input @ linear_weight
    return logits if linear_bias is None else logits + linear_bias.reshape(())


def _operands(layer: Layer) -> tuple[Any, ...]:
    """What the elementwise ops take, up to the reduction: whole logits and a dense target."""
    logits = linear_logits(layer.input, layer.linear_weight, layer.linear_bias)
    target = sparse.dense_target(layer.target, layer.crow_indices, layer.col_indices, layer.linear_weight.shape[0])
    return logits, target, layer.weight, layer.pos_weight, layer.mask, layer.mean_count, layer.reduction


def linear_bce(*arguments: Any) -> Tensor:
    """Linear and ``bce``, in which autograd decides anew how that is differentiated."""
    layer, own = Layer.split(arguments)
    return ops.bce(*_operands(layer), *own)


def linear_bce_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    layer, (output_mask, *options) = Layer.split(arguments)
    grad = ops.bce_backward(grad_output, *_operands(layer), ops.LOGITS, *options)
    weight = layer.linear_weight
    if weight.dim() == 1:
        grad, weight = grad.unsqueeze(-1), weight.unsqueeze(0)
    number = math.prod(layer.input.shape[:-1])  # not -1 in the shapes, which is ambiguous where there are 0 elements
    rows = grad.reshape(number, weight.shape[0])
    input = layer.input.reshape(number, layer.input.shape[-1])
    bias = layer.linear_bias
    return (
        grad @ weight if output_mask[0] else input.new_empty(0),
        (rows.t() @ input).reshape(layer.linear_weight.shape) if output_mask[1] else input.new_empty(0),
        rows.sum(0).reshape(bias.shape) if output_mask[2] and bias is not None else input.new_empty(0),
    )


def linear_bce_with_grad(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer, (dtype, output_mask, *options) = Layer.split(arguments)
    checks.reduced("linear_bce_with_grad", layer.reduction)
    one = layer.input.new_ones(())
    return linear_bce(*layer, dtype, *options), *linear_bce_backward(one, *layer, output_mask, *options)

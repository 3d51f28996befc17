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

from . import checks, ops, sparse
from .ops import Layer
from .options import Options

# ---- Which elements count -----------------------------------------------------------------------------------------


def holds(dtype: torch.dtype, value: int) -> bool:
    """Whether the dtype has the value: comparing with a tensor of it, torch would wrap the value to one that it has."""
    if dtype.is_floating_point or dtype in (torch.bool, torch.int64):  # bool is compared as an integer
        return True
    limits = torch.iinfo(dtype)
    return limits.min <= value <= limits.max


def kept(target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """Where elements are neither masked out nor ignored, of the target's shape; None: everywhere."""
    if ignore_index is None or not holds(target.dtype, ignore_index):
        return None if mask is None else mask.expand(target.shape)
    counts = target.ne(ignore_index)
    return counts if mask is None else counts & mask


def bce_count(target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor:
    """How many elements are neither masked out nor ignored, as float64: what a mean is divided by."""
    there = kept(target, mask, ignore_index)
    if there is None:
        return torch.full((), target.numel(), dtype=torch.float64, device=target.device)
    return there.sum().double()


# ---- The terms of the loss ----------------------------------------------------------------------------------------


def _product(coefficient: Tensor, value: Tensor) -> Tensor:
    """coefficient * value; 0 where the coefficient is 0 and the value infinite."""
    return coefficient * torch.where((coefficient == 0) & value.isinf(), 0, value)


def like(tensor: Tensor, value: float | Tensor) -> Tensor:
    """An option in the dtype of the arithmetic; a number as a tensor of no dimensions."""
    if isinstance(value, Tensor):
        return value.to(tensor.device, tensor.dtype)
    # under torch.func.jvp a float32 tensor of no dimensions gets a float64 tangent by a Python number
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device)


def smoothed(y: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """y (1 - s) + s / 2"""
    s = like(y, label_smoothing)
    return y * (like(y, 1) - s) + s * like(y, 0.5)


def smoothed_target(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The target with label smoothing worked in, differentiable in both, and the mask with what is ignored."""
    there = kept(target, mask, options.ignore_index)
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
        self.kept = kept(target, mask, options.ignore_index)
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
        """softplus(z), likewise."""
        return -F.logsigmoid(-self._finite(coefficient))

    def unweighted_loss(self) -> Tensor:
        positive, negative = self.positive, self.negative
        return positive * self.softplus_minus(positive) + negative * self.softplus(negative)

    def loss(self) -> Tensor:
        return self.a * self.softplus_minus(self.a) + self.b * self.softplus(self.b)

    def by_logits(self) -> Tensor:
        return self.b * torch.sigmoid(self.z) - self.a * torch.sigmoid(-self.z)

    def weighted(self, value: Tensor) -> Tensor:
        return value if self.w is None else _weight(self.w, value)

    def keep(self, value: Tensor) -> Tensor:
        return value if self.kept is None else torch.where(self.kept, value, 0)

    def times(self, value: Tensor, factor: Tensor) -> Tensor:
        """value * factor where elements are kept, whatever factor is elsewhere."""
        return self.keep(value) * self.keep(factor.to(value.dtype))


class _FocalTerms:
    """alpha_t q^gamma and the derivatives of its logarithm, in the notation of ``csrc/losses.h``.

    Where c = 0, u is e, which may underflow; there u / e = (1 - c) + c / e stands for it, with a 1 / e that is kept
    finite: multiplied by c, it only matters to derivatives by the target.
    """

    def __init__(self, terms: _Terms, gamma: float | Tensor, alpha: float | Tensor | None) -> None:
        self.terms, self.gamma = terms, terms.constant(gamma)
        alpha, alpha_opposite = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        if isinstance(alpha, Tensor):  # -1: none, as where it is a number
            is_none = alpha == -1
            alpha, alpha_opposite = (torch.where(is_none, 1, value) for value in (alpha, alpha_opposite))
        self.alpha_opposite = terms.constant(alpha_opposite)
        self.alpha_slope = terms.constant(alpha - alpha_opposite)
        is_double = terms.dtype == torch.float64
        largest, exponent = (2.0**1023, 700) if is_double else (2.0**127, 80)
        z, y = terms.z.clamp(-largest, largest), terms.y  # no inf * 0 in what follows
        self.y, self.is_negative = y, z < 0
        self.m = torch.where(self.is_negative, -z, z)
        self.e = torch.exp(-self.m)
        c = torch.where(self.is_negative, y, 1 - y)
        rest = torch.where(self.is_negative, 1 - y, y)
        self.hard = c == 0
        self.grown = torch.exp(torch.where(self.hard, self.m.clamp_max(exponent), 0))
        self.u_over_e = rest + c * self.grown
        u = torch.where(self.hard, 1, c + rest * self.e)
        # 0 where y is outside of [0, 1]: added, so that the derivatives of u stay
        self.u = u + torch.where(u == 0, terms.constant(2.0**-200 if is_double else 2.0**-50), 0)
        log_u = torch.where(self.hard, torch.log(self.u_over_e) - self.m, torch.log(self.u.abs()))
        sign = torch.where((self.u < 0) & (torch.remainder(self.gamma, 2) == 1), -1, 1)
        self.power = torch.exp(self.gamma * (log_u - torch.log1p(self.e))) * sign  # q^gamma

    def weigh(self, value: Tensor) -> Tensor:
        """The value times q^gamma and alpha_t."""
        alpha_t = self.alpha_opposite + self.alpha_slope * self.y
        return _product(self.power, _product(alpha_t, value))

    def slope_logits(self) -> Tensor:
        """gamma d log q / dz."""
        s = self.e / (1 + self.e)
        easy_or_hard = torch.where(self.hard, 1 / ((1 + self.e) * self.u_over_e), s / self.u)
        return self.gamma * (1 - 2 * self.y) * easy_or_hard

    def slope_target_times(self, loss: Tensor) -> Tensor:
        """gamma (d log q / dy) times the unweighted loss."""
        positive, opposite = self.terms.positive, self.terms.negative
        tiny = self.e == 0
        ratio = torch.where(tiny, 1, torch.log1p(self.e) / torch.where(tiny, 1, self.e))
        dominant = torch.where(self.is_negative, positive, opposite) * torch.where(self.hard, self.m, 0).clamp_max(700)
        where_hard = ((positive + opposite) * ratio + dominant * self.grown) / self.u_over_e
        over_u = torch.where(self.hard, where_hard, loss / self.u)
        size = self.gamma * (1 - self.e)
        return _product(torch.where(self.is_negative, size, -size), over_u)


def _terms(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[_Terms, _FocalTerms | None]:
    terms = _Terms(logits, target, weight, pos_weight, mask, options)
    return terms, None if options.gamma is None else _FocalTerms(terms, options.gamma, options.alpha)


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
    terms, focal = _terms(logits, target, weight, pos_weight, mask, Options(*options))
    loss = terms.loss()
    if focal is not None:
        loss = focal.weigh(loss)
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
    terms, focal = _terms(logits, target, weight, pos_weight, mask, given)
    if wrt == ops.LOGITS:
        result = terms.by_logits()
        if focal is not None:
            result = focal.weigh(result + _product(focal.slope_logits(), terms.loss()))
    elif wrt == ops.TARGET:
        one = torch.ones_like(terms.z)
        if terms.p is None:
            result = -terms.z
        else:
            p = terms.p * one
            result = p * terms.softplus_minus(p) - terms.softplus(one)
        if focal is not None:
            loss = terms.unweighted_loss()
            by_alpha = _product(focal.alpha_slope * focal.power, loss)
            result = focal.weigh(result + focal.slope_target_times(loss)) + by_alpha
        result = terms.weighted(result * terms.constant(1 - given.label_smoothing))
    elif wrt == ops.WEIGHT:
        result = terms.unweighted_loss()
        if focal is not None:
            result = focal.weigh(result)
    else:
        coefficient = terms.weighted(terms.y)
        result = coefficient * terms.softplus_minus(coefficient)
        if focal is not None:
            result = focal.weigh(result)
    result = terms.times(result, grad_output)
    if reduction == ops.MEAN:
        # where nothing is left, every element is 0 and stays it
        result = result / (logits.numel() if count is None else count.to(result.dtype).clamp_min(1))
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

"""What the losses of :mod:`fused_logistic.composite` are multiplied by, in torch's own differentiable operations.

The notation is that of ``csrc/focal.h``, ``csrc/quality.h`` and ``csrc/asymmetric.h``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import Options

if TYPE_CHECKING:
    from .composite import _Terms


def product(coefficient: Tensor, value: Tensor) -> Tensor:
    """coefficient * value; 0 where the coefficient is 0 and the value infinite."""
    return coefficient * torch.where((coefficient == 0) & value.isinf(), 0, value)


def like(tensor: Tensor, value: float | Tensor) -> Tensor:
    """An option in the dtype of the arithmetic; a number as a tensor of no dimensions."""
    if isinstance(value, Tensor):
        return value.to(tensor.device, tensor.dtype)
    # under torch.func.jvp a float32 tensor of no dimensions gets a float64 tangent by a Python number
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device)


class Power(ABC):
    """A factor q^gamma, times a weight that is the loss's own."""

    power: Tensor  # q^gamma

    def __init__(self, terms: _Terms) -> None:
        self.terms = terms
        is_double = terms.dtype == torch.float64
        largest = 2.0**1023 if is_double else 2.0**127
        self.exponent = 700 if is_double else 80  # of which the exponential is finite, and far from the ends
        self.z = terms.z.clamp(-largest, largest)  # no inf * 0 in what follows

    def weigh(self, value: Tensor) -> Tensor:
        """The value times both."""
        return product(self.power, value)

    @abstractmethod
    def slope_logits(self) -> Tensor:
        """gamma d log q / dz."""

    @abstractmethod
    def slope_target_times(self, loss: Tensor) -> Tensor:
        """d log q^gamma / dy times the unweighted loss."""

    def by_own_weight(self, loss: Tensor) -> Tensor:
        """q^gamma times the derivative of the loss's own weight by y, times the unweighted loss."""
        return torch.zeros_like(loss)

    def at_zero(self, loss: Tensor, wrt: int) -> Tensor | None:
        """Where q is 0, what the derivative by the logits (``wrt`` 0) or the target lacks; None: nothing."""
        return None


def log1p_ratio(e: Tensor) -> Tensor:
    """log1p(e) / e, which is 1 at 0 and near it, where 1 / e in its derivative could be infinite."""
    tiny = e < 1e-30
    return torch.where(tiny, 1, torch.log1p(e) / torch.where(tiny, 1, e))


class Focal(Power):
    """alpha_t q^gamma and the derivatives of its logarithm, in the notation of ``csrc/focal.h``.

    Where c = 0, u is e, which may underflow; there u / e = (1 - c) + c / e stands for it, with a 1 / e that is kept
    finite: multiplied by c, it only matters to derivatives by the target.
    """

    def __init__(self, terms: _Terms, gamma: float | Tensor, alpha: float | Tensor | None) -> None:
        super().__init__(terms)
        self.gamma = terms.constant(gamma)
        alpha, alpha_opposite = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        if isinstance(alpha, Tensor):  # -1: none, as where it is a number
            is_none = alpha == -1
            alpha, alpha_opposite = (torch.where(is_none, 1, value) for value in (alpha, alpha_opposite))
        self.alpha_opposite = terms.constant(alpha_opposite)
        self.alpha_slope = terms.constant(alpha - alpha_opposite)
        y = terms.y
        self.y, self.is_negative = y, self.z < 0
        self.m = torch.where(self.is_negative, -self.z, self.z)
        self.e = torch.exp(-self.m)
        c = torch.where(self.is_negative, y, 1 - y)
        rest = torch.where(self.is_negative, 1 - y, y)
        self.hard = c == 0
        self.grown = torch.exp(torch.where(self.hard, self.m.clamp_max(self.exponent), 0))
        self.u_over_e = rest + c * self.grown
        u = torch.where(self.hard, 1, c + rest * self.e)
        # 0 where y is outside of [0, 1]: added, so that the derivatives of u stay
        self.u = u + torch.where(u == 0, terms.constant(2.0**-200 if terms.dtype == torch.float64 else 2.0**-50), 0)
        log_u = torch.where(self.hard, torch.log(self.u_over_e) - self.m, torch.log(self.u.abs()))
        sign = torch.where((self.u < 0) & (torch.remainder(self.gamma, 2) == 1), -1, 1)
        self.power = torch.exp(self.gamma * (log_u - torch.log1p(self.e))) * sign  # q^gamma

    def weigh(self, value: Tensor) -> Tensor:
        alpha_t = self.alpha_opposite + self.alpha_slope * self.y
        return product(self.power, product(alpha_t, value))

    def slope_logits(self) -> Tensor:
        s = self.e / (1 + self.e)
        easy_or_hard = torch.where(self.hard, 1 / ((1 + self.e) * self.u_over_e), s / self.u)
        return self.gamma * (1 - 2 * self.y) * easy_or_hard

    def slope_target_times(self, loss: Tensor) -> Tensor:
        positive, opposite = self.terms.positive, self.terms.negative
        ratio = log1p_ratio(self.e)
        dominant = torch.where(self.is_negative, positive, opposite) * torch.where(self.hard, self.m, 0).clamp_max(700)
        where_hard = ((positive + opposite) * ratio + dominant * self.grown) / self.u_over_e
        over_u = torch.where(self.hard, where_hard, loss / self.u)
        size = self.gamma * (1 - self.e)
        return product(torch.where(self.is_negative, size, -size), over_u)

    def by_own_weight(self, loss: Tensor) -> Tensor:
        return product(self.alpha_slope * self.power, loss)


class Quality(Power):
    """|sigma(z) - y|^gamma. Varifocal: for y > 0 a weight of y instead, or none without iou_weighted; else alpha."""

    def __init__(self, terms: _Terms, options: Options) -> None:
        super().__init__(terms)
        self.gamma = terms.constant(options.gamma if options.beta is None else options.beta)  # type: ignore[arg-type]
        y = terms.y
        self.positive, self.weight, self.weight_slope = None, None, None
        if options.iou_weighted is not None:
            self.positive = y > 0
            one = terms.constant(1)
            alpha = terms.constant(options.alpha)  # type: ignore[arg-type]
            self.weight = torch.where(self.positive, y if options.iou_weighted else one, alpha)
            self.weight_slope = self.positive & options.iou_weighted
            y = torch.where(self.positive, 0, y)
        z, exponent = self.z, self.exponent
        self.step = torch.sigmoid(z) * torch.sigmoid(-z)
        self.difference = (1 - y) * torch.sigmoid(z) - y * torch.sigmoid(-z)
        self.hard_0 = y == 0
        self.hard = self.hard_0 | (y == 1)
        # There |d| is sigma of z or -z, whose logarithm has both tails, times what is 1 and says how it depends on y.
        self.toward = torch.where(self.hard_0, z, -z)
        self.grown = 1 + torch.exp(torch.where(self.hard, -self.toward, 0).clamp(-exponent, exponent))
        self.beside = 1 - torch.where(self.hard, torch.where(self.hard_0, y, 1 - y), 0) * self.grown
        self.none = ~self.hard & (self.difference == 0)
        size = torch.where(self.hard | self.none, 1, self.difference).abs()
        tail = F.logsigmoid(torch.where(self.hard, self.toward, 0)) + torch.log(self.beside)
        self.power = torch.exp(self.gamma * torch.where(self.hard, tail, torch.log(size)))
        self.power = torch.where(self.none & (self.gamma != 0), 0, self.power)
        # |d|^gamma is smooth for an even gamma, and d^gamma
        given = options.gamma if options.beta is None else options.beta
        self.even = int(given) if given in (2, 4, 6, 8) else 0
        if self.even:
            self.power = torch.where(self.none, self.difference**self.even, self.power)
        if self.positive is not None:
            self.power = torch.where(self.positive, 1, self.power)

    def _over(self, value: Tensor) -> Tensor:
        """value / d for what is not hard, 0 where d is."""
        apart = self.hard | self.none
        return torch.where(apart, 0, value / torch.where(apart, 1, self.difference))

    def _of_powers(self, value: Tensor) -> Tensor:
        value = self.gamma * value
        return value if self.positive is None else torch.where(self.positive, 0, value)

    def weigh(self, value: Tensor) -> Tensor:
        value = product(self.power, value)
        return value if self.weight is None else product(self.weight, value)

    def slope_logits(self) -> Tensor:
        easy = torch.sigmoid(-self.toward) / self.beside
        of_hard = torch.where(self.hard_0, easy, -easy)
        return self._of_powers(torch.where(self.hard, of_hard, self._over(self.step)))

    def slope_target_times(self, loss: Tensor) -> Tensor:
        # of hard ones d is sigma(+-z), and loss / d stays finite: log1p(x) / x (1 + x) with x = exp(+-z)
        x = torch.exp(torch.where(self.hard, self.toward, 0).clamp(-700, 80))
        ratio = log1p_ratio(x) * (1 + x)
        ratio = torch.where(self.toward > 0, F.softplus(self.toward) * self.grown, ratio)
        terms = self.terms
        own = torch.where(self.hard_0, terms.negative, terms.positive)
        other = torch.where(self.hard_0, terms.positive, terms.negative)  # 0, but not its derivative by y
        of_hard = (product(own, ratio) + other * (F.softplus(-self.toward).clamp_max(700) * self.grown)) / self.beside
        of_hard = torch.where(self.hard_0, -of_hard, of_hard)
        return self._of_powers(torch.where(self.hard, of_hard, -self._over(loss)))

    def at_zero(self, loss: Tensor, wrt: int) -> Tensor | None:
        """Where d is 0, the derivative of an even power times the loss: 0, but not its own derivative."""
        if not self.even:
            return None
        slope = self.even * self.difference ** (self.even - 1) * (self.step if wrt == 0 else -torch.ones_like(loss))
        value = torch.where(self.none, product(slope, loss), 0)
        return value if self.weight is None else product(self.weight, value)

    def by_own_weight(self, loss: Tensor) -> Tensor:
        if self.weight_slope is None:
            return torch.zeros_like(loss)
        return torch.where(self.weight_slope, loss, 0)


class Shifted:
    """p_m = max(sigma(z) - clip, 0) in the parts U = (1 + e) p_m and R = (1 + e) (1 - p_m)."""

    def __init__(self, z: Tensor, clip: float) -> None:
        self.is_negative = z < 0
        self.e = torch.exp(-torch.where(self.is_negative, -z, z))
        low, high = clip * self.e, (1 + clip) * self.e
        u = torch.where(self.is_negative, (1 - clip) * self.e - clip, (1 - clip) - low)
        self.there = u > 0
        self.u = torch.where(self.there, u, 0)
        self.r = torch.where(self.is_negative, (1 + clip) + low, clip + high)

    def softplus(self) -> Tensor:
        """-log(1 - p_m)"""
        return torch.log1p(self.u / self.r)

    def sigma(self) -> Tensor:
        """Its derivative by z."""
        return torch.where(self.there, self.e / (1 + self.e) / self.r, 0)


class Asymmetric(Power):
    """q^gamma with q = y sigma(-z) + (1 - y) p_m and gamma = gamma_pos y + gamma_neg (1 - y)."""

    def __init__(self, terms: _Terms, options: Options, shifted: Shifted | None) -> None:
        super().__init__(terms)
        z, y = self.z, terms.y
        negative = z < 0
        m = torch.where(negative, -z, z)
        self.e = torch.exp(-m)
        one = torch.ones_like(self.e)
        u = torch.where(negative, self.e, one) if shifted is None else shifted.u
        there = one.bool() if shifted is None else shifted.there
        of_positive = torch.where(negative, one, self.e)
        gamma_neg, gamma_pos = terms.constant(options.gamma_neg), terms.constant(options.gamma_pos)  # type: ignore[arg-type]
        self.gamma_slope = gamma_pos - gamma_neg
        self.gamma = gamma_neg + self.gamma_slope * y
        self.gamma = self.gamma + torch.where(y == 1, gamma_pos - (gamma_neg + self.gamma_slope), 0)
        # where q is e / (1 + e), which may underflow; times what is 1 and says how it depends on y
        self.is_positive = (y == 1) & ~negative
        is_negative = (y == 0) & negative if shifted is None else ~one.bool()
        self.tail = self.is_positive | is_negative
        self.grown = torch.exp(torch.where(self.tail, m, 0).clamp_max(self.exponent))
        rest = torch.where(negative, one, self.grown) if shifted is None else u * self.grown
        self.beside = torch.where(self.tail, y * torch.where(negative, self.grown, one) + (1 - y) * rest, 1)
        all_q = torch.where(self.tail, 1, y * of_positive + (1 - y) * u)  # (1 + e) q
        self.none = all_q == 0
        self.all_q = torch.where(self.none, 1, all_q)
        tail_or_not = torch.where(self.tail, torch.log(self.beside) - m, torch.log(self.all_q.abs()))
        self.log_q = tail_or_not - torch.log1p(self.e)
        self.power = torch.where(self.none & (self.gamma != 0), 0, torch.exp(self.gamma * self.log_q))
        self.direction = torch.where(there, 1 - y, 0) - y
        self.by_y = of_positive - u

    def slope_logits(self) -> Tensor:
        s = self.e / (1 + self.e)
        of_tail = 1 / ((1 + self.e) * self.beside)
        ratio = torch.where(self.tail, of_tail, torch.where(self.none, 0, s / self.all_q))
        return self.gamma * self.direction * ratio

    def slope_target_times(self, loss: Tensor) -> Tensor:
        ratio, terms = log1p_ratio(self.e), self.terms
        own = torch.where(self.is_positive, terms.positive, terms.negative)
        other = torch.where(self.is_positive, terms.negative, terms.positive)  # 0, but not its derivative by y
        one = torch.ones_like(self.e)
        of_other = torch.where(self.is_positive, terms.softplus(one), terms.softplus_minus(one)).clamp_max(700)
        over = (own * ratio + other * (of_other * self.grown)) / self.beside
        over = torch.where(self.tail, over, torch.where(self.none, 0, loss / self.all_q))
        by_gamma = product(self.gamma_slope * torch.where(self.none, 0, self.log_q), loss)
        return by_gamma + product(self.gamma * self.by_y, over)

"""Every elementwise loss with its definition, for the tests of all of them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mpmath

import fused_logistic as fl
from fused_logistic import ops, reference
from tests.conftest import grad_arguments, loss_arguments


class Member(NamedTuple):
    """A loss with some values of its parameters."""

    name: str
    public: object  # (inputs, targets, *, reduction, weight, ...)
    reference: object  # (logits, target), elementwise in float64
    options: dict  # as the ops have them
    exponents: tuple  # (of targets of 0, of 1)

    def __str__(self):
        return self.name

    def elements(self, logits, target, weight=None, pos_weight=None, mask=None, label_smoothing=0.0, ignore_index=None):
        """Every element's loss and gradient, from the kernels, without autograd."""
        tensors, rest = (logits, target, weight, pos_weight, mask), (ops.NONE, label_smoothing, ignore_index)
        one = logits.new_ones(())
        return (
            ops.bce(*loss_arguments(*tensors, *rest, **self.options)),
            ops.bce_backward(one, *grad_arguments(*tensors, *rest, **self.options)),
        )


def focal(alpha, gamma):
    """An alpha of -1: none, which the ops know as None."""
    options = {"gamma": gamma, "alpha": None if alpha == -1 else alpha}
    public = functools.partial(fl.sigmoid_focal_loss, alpha=alpha, gamma=gamma)
    definition = functools.partial(reference.sigmoid_focal_loss, alpha=alpha, gamma=gamma)
    return Member(f"focal {alpha} {gamma}", public, definition, options, (gamma, gamma))


def quality(beta):
    of = functools.partial
    public, definition = of(fl.quality_focal_loss, beta=beta), of(reference.quality_focal_loss, beta=beta)
    return Member(f"quality {beta}", public, definition, {"beta": beta}, (beta, beta))


def varifocal(alpha, gamma, iou_weighted=True):
    options = {"alpha": alpha, "gamma": gamma, "iou_weighted": iou_weighted}
    public = functools.partial(fl.varifocal_loss, **options)
    definition = functools.partial(reference.varifocal_loss, **options)
    return Member(f"varifocal {alpha} {gamma} {iou_weighted}", public, definition, options, (gamma, 0))


def asymmetric(gamma_neg, gamma_pos, clip):
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    public = functools.partial(fl.asymmetric_loss_with_logits, **options)
    definition = functools.partial(reference.asymmetric_loss_with_logits, **options)
    return Member(f"asymmetric {gamma_neg} {gamma_pos} {clip}", public, definition, options, (gamma_neg, gamma_pos))


PLAIN = Member("plain", fl.binary_cross_entropy_with_logits, reference.loss, {}, (0, 0))
# those beside the plain and the focal one; whole exponents, which have kernels of their own, and others
FAMILY = [
    quality(2.0), quality(0.7), varifocal(0.75, 2.0), varifocal(0.3, 1.5, False), asymmetric(4.0, 1.0, 0.05),
    asymmetric(2.0, 0.0, 0.0), asymmetric(2.5, 0.6, 0.1), asymmetric(3.3, 1.0, 0.0),
]  # fmt: skip


def exact(member, z, y):
    """Loss and gradient to 50 digits; for each what an error of one in every step, sigma(z) among them, is multiplied
    by; and the power."""
    with mpmath.workdps(50):
        z, y = mpmath.mpf(float(z)), mpmath.mpf(float(y))
        options = {name: mpmath.mpf(value) for name, value in member.options.items() if value is not None}
        minus = 1 / (1 + mpmath.exp(z))
        sigma = 1 / (1 + mpmath.exp(-z))
        plus_log, minus_log = mpmath.log1p(mpmath.exp(-z)), mpmath.log1p(mpmath.exp(z))
        plain = y * plus_log + (1 - y) * minus_log
        by_negative, step = sigma, sigma * minus
        if "gamma_neg" in options:
            clip = options["clip"]
            left = max(sigma - clip, mpmath.mpf(0))
            there = left > 0
            q = y * minus + (1 - y) * left
            gamma = options["gamma_pos"] * y + options["gamma_neg"] * (1 - y)
            negative = -mpmath.log1p(-left) if clip else minus_log
            plain = y * plus_log + (1 - y) * negative
            if clip:
                by_negative = step / (1 - left) if there else mpmath.mpf(0)
            q_grad = ((1 - y if there else 0) - y) * step
            lost = (1 - y) * (sigma + clip) if clip else mpmath.mpf(0)  # what q may be off by, in units of rounding
            weight = mpmath.mpf(1)
        elif member.name.startswith(("plain", "focal")):
            gamma, alpha = options.get("gamma", mpmath.mpf(0)), options.get("alpha")
            q, q_grad, lost = y * minus + (1 - y) * sigma, (1 - 2 * y) * step, mpmath.mpf(0)
            weight = mpmath.mpf(1) if alpha is None else alpha * y + (1 - alpha) * (1 - y)
        else:
            is_varifocal = "iou_weighted" in options
            gamma = options["gamma"] if is_varifocal else options["beta"]
            difference = (1 - y) * sigma - y * minus
            q, sign, weight = abs(difference), mpmath.sign(difference), mpmath.mpf(1)
            q_grad = sign * step
            lost = mpmath.mpf(0) if y in (0, 1) else sigma + y
            if is_varifocal and y > 0:
                gamma, lost, weight = mpmath.mpf(0), mpmath.mpf(0), y if options["iou_weighted"] else mpmath.mpf(1)
            elif is_varifocal:
                weight = options["alpha"]
        power = q**gamma if q or not gamma else mpmath.mpf(0)
        slope = gamma * q_grad * q ** (gamma - 1) if q and gamma else mpmath.mpf(0)
        loss, grad = power * plain, power * ((1 - y) * by_negative - y * minus) + slope * plain
        rate = lost / q if q else mpmath.mpf(0)
        sizes = power * ((1 - y) * by_negative + y * minus) + abs(slope * plain)
        return weight * loss, weight * grad, weight * loss * (1 + rate), weight * sizes * (1 + rate), power

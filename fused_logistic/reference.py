"""The loss and its derivatives in plain PyTorch operations: an independent check on the kernels.

Two descriptions stand here, and neither calls the extension:

* :func:`composed` is the textbook graph ``x, w, b -> z -> sigma -> L``, every node of it a tensor of its own, with
  hooks that capture the gradients at the inner nodes. It shows the chain rule, and it has the textbook's numerical
  flaws: it forms ``1 - sigma``, so it loses the tails.
* :func:`loss`, :func:`grad_logits` and the others are the closed forms, written so that both tails keep their digits.

With logit z, target y, sample weight w and positive weight p, and softplus(z) = log(1 + exp(z))::

    L = w (p y softplus(-z) + (1 - y) softplus(z))

follows from ``-(p y log sigma + (1 - y) log(1 - sigma))`` with ``log sigma(z) = -softplus(-z)`` and
``1 - sigma(z) = sigma(-z)``. Everything else is a derivative of that line by ``softplus'(z) = sigma(z)`` and
``sigma'(z) = sigma(z) sigma(-z)``; ``docs/derivation.md`` has each step.

A term whose coefficient is 0 contributes 0 even where its other factor is infinite (``z = inf, y = 1`` has loss 0), and
0 times an infinite weight is 0 (``y = 0, p = inf``). NaN in gives NaN out.

Shapes and dtypes, for all functions: the arguments broadcast against each other and the result has the broadcast shape;
nothing is reduced. The result has the dtype that PyTorch's promotion gives; float64 and float32 are meant, and float64
is the one to compare with. Targets may be bool or integer. :func:`loss` can be differentiated by autograd, to any
order; the derivatives are there to be evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = [
    "Composed",
    "asymmetric_loss_with_logits",
    "composed",
    "grad_logits",
    "grad_pos_weight",
    "grad_target",
    "grad_weight",
    "loss",
    "quality_focal_loss",
    "second_derivative",
    "sigmoid_focal_loss",
    "sigmoid_pair",
    "softplus",
    "varifocal_loss",
]


# ---- The textbook graph ---------------------------------------------------------------------------------------------


@dataclass
class Composed:
    """The nodes of ``L(sigma(w . x + b))`` and, once ``loss`` was differentiated, the gradients at the inner ones.

    ``dL_dsigma`` and ``dL_dz`` are None before the first backward pass and hold the latest pass's gradients after it.
    """

    z: Tensor
    sigma: Tensor
    loss: Tensor
    captured: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def dL_dsigma(self) -> Tensor | None:  # noqa: N802 - the name is the mathematics
        return self.captured.get("sigma")

    @property
    def dL_dz(self) -> Tensor | None:  # noqa: N802
        return self.captured.get("z")


def composed(x: Tensor, w: Tensor, b: Tensor, y: Tensor | float) -> Composed:
    """The graph x, w, b -> z = x w + b -> sigma = 1 / (1 + exp(-z)) -> L = -(y log sigma + (1 - y) log(1 - sigma)).

    Args:
        x: one sample ``[n]`` or a batch ``[..., n]``.
        w: the weights ``[n]``.
        b: the bias, ``[]`` or ``[1]`` (any shape that broadcasts with ``x w``).
        y: the targets in [0, 1], a number or a tensor that broadcasts with z.

    Returns:
        The nodes; ``loss`` is not reduced, so reduce it (``.sum()``) before ``.backward()`` unless it has one element.

    The gradients at z and sigma are captured with hooks, since autograd keeps those of leaves only. Deliberately naive,
    as one writes it on paper: in float32, ``1 - sigma`` is 0 from z = 17 on, and ``exp(-z)`` is inf below z = -88.7.
    """
    z = x @ w + b
    if isinstance(y, Tensor) and not y.is_floating_point():
        y = y.to(z.dtype)  # 1 - y is not defined for bool
    sigma = 1.0 / (1.0 + torch.exp(-z))
    elementwise = -(y * torch.log(sigma) + (1.0 - y) * torch.log(1.0 - sigma))
    nodes = Composed(z, sigma, elementwise)

    def capture(name: str, node: Tensor) -> None:
        # a closure over `captured`, not over `nodes`: a hook that owns its own tensor is a reference cycle
        captured = nodes.captured

        def hook(grad: Tensor) -> None:
            captured[name] = grad.detach()

        if node.requires_grad:
            node.register_hook(hook)

    capture("z", z)
    capture("sigma", sigma)
    return nodes


# ---- The closed forms -----------------------------------------------------------------------------------------------


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)) = -log sigma(-z) = max(z, 0) + log1p(exp(-|z|)), exact in both tails.

    Not ``torch.nn.functional.softplus``: that one returns z above 20, which in float64 drops six of the digits.
    """
    return -torch.nn.functional.logsigmoid(-z)


def sigmoid_pair(z: Tensor) -> tuple[Tensor, Tensor]:
    """(sigma(z), sigma(-z)), each to full relative precision: with e = exp(-|z|), one is 1/(1+e), the other e/(1+e).

    Not ``torch.sigmoid``: that one divides by exp(-z), so in float32 it is 0 for z < -88.7, where the truth is
    still representable as a subnormal number.
    """
    e = torch.exp(-z.abs())
    large = 1.0 / (1.0 + e)
    small = e * large
    return torch.where(z >= 0, large, small), torch.where(z >= 0, small, large)


def _scaled(coefficient: Tensor, value: Tensor) -> Tensor:
    """coefficient * value, but 0 where one of them is 0 and the other infinite; NaN stays NaN."""
    coefficient, value = torch.broadcast_tensors(coefficient, value)
    suppressed = ((coefficient == 0) & torch.isinf(value)) | ((value == 0) & torch.isinf(coefficient))
    zero = torch.zeros_like(value)
    return torch.where(suppressed, 0, coefficient) * torch.where(suppressed, zero, value)


def _terms(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, w, p, a) with the defaults filled in: y smoothed and in the logits' dtype, a = p y."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"reference: expected label_smoothing in [0, 1], got {label_smoothing}")
    one = torch.ones((), dtype=logits.dtype, device=logits.device)
    y = target if target.is_floating_point() else target.to(logits.dtype)
    if label_smoothing:
        y = y * (1.0 - label_smoothing) + 0.5 * label_smoothing
    w = one if weight is None else weight
    p = one if pos_weight is None else pos_weight
    return y, w, p, _scaled(p, y)


def loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """L = w (p y softplus(-z) + (1 - y) softplus(z)), elementwise.

    ``label_smoothing`` = s replaces y by ``(1 - s) y + s / 2``: the target is mixed with the uniform distribution over
    the two classes, which is what ``torch.nn.functional.cross_entropy`` does for a softmax over two.
    """
    y, w, p, a = _terms(logits, target, weight, pos_weight, label_smoothing)
    return _scaled(w, _scaled(a, softplus(-logits)) + _scaled(1.0 - y, softplus(logits)))


def grad_logits(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dL/dz = w ((1 - y) sigma(z) - p y sigma(-z)), elementwise; for p = 1 that is w (sigma(z) - y)."""
    y, w, p, a = _terms(logits, target, weight, pos_weight, label_smoothing)
    positive, negative = sigmoid_pair(logits)
    return _scaled(w, _scaled(1.0 - y, positive) - _scaled(a, negative))


def second_derivative(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """d2L/dz2 = w (p y + 1 - y) sigma(z) sigma(-z), elementwise."""
    y, w, p, a = _terms(logits, target, weight, pos_weight, label_smoothing)
    positive, negative = sigmoid_pair(logits)
    return _scaled(w, a + (1.0 - y)) * positive * negative


def grad_target(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dL/dy = w (p softplus(-z) - softplus(z)), elementwise, times 1 - s under label smoothing s; for p = 1, -w z."""
    y, w, p, a = _terms(logits, target, weight, pos_weight, label_smoothing)
    derivative = _scaled(w, _scaled(p, softplus(-logits)) - softplus(logits))
    # L is linear in y, so the target's value plays no part; its shape does
    derivative, _ = torch.broadcast_tensors(derivative, y)
    return _scaled(torch.full_like(derivative, 1.0 - label_smoothing), derivative)


def grad_weight(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dL/dw = p y softplus(-z) + (1 - y) softplus(z), elementwise: the loss itself at weight 1."""
    return loss(logits, target, None, pos_weight, label_smoothing)


def grad_pos_weight(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dL/dp = w y softplus(-z), elementwise (not yet summed over the dimensions that pos_weight was broadcast over)."""
    y, w, _, _ = _terms(logits, target, weight, None, label_smoothing)
    return _scaled(w, _scaled(y, softplus(-logits)))


# ---- Focal loss -----------------------------------------------------------------------------------------------------


def sigmoid_focal_loss(logits: Tensor, target: Tensor, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """FL = alpha_t (1 - p_t)^gamma CE(z, y), elementwise, computed and returned in float64 whatever comes in.

    With CE = y softplus(-z) + (1 - y) softplus(z), p_t = y sigma(z) + (1 - y) sigma(-z) and
    alpha_t = alpha y + (1 - alpha)(1 - y), or 1 where ``alpha`` is None or negative. The definition of Lin, Goyal,
    Girshick, He and Dollár, "Focal loss for dense object detection" (2017), section 3, with the class probabilities
    mixed where the target is soft. Where it is outside of [0, 1] and p_t above 1, |1 - p_t|^gamma stands for the power,
    negative where gamma is odd. ``1 - p_t`` is written as y sigma(-z) + (1 - y) sigma(z), which keeps its digits where
    p_t is almost 1.
    """
    z = logits.double()
    y = target.double()
    positive, negative = sigmoid_pair(z)
    one_minus_p_t = y * negative + (1.0 - y) * positive
    cross_entropy = loss(z, y)
    power = one_minus_p_t.abs() ** gamma
    if gamma % 2 == 1:
        power = torch.where(one_minus_p_t < 0, -power, power)
    focal = _scaled(power, cross_entropy)
    if alpha is None or alpha < 0:
        return focal
    return _scaled(alpha * y + (1.0 - alpha) * (1.0 - y), focal)


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """QFL = |sigma(z) - y|^beta CE(z, y), elementwise, in float64. Li et al., "Generalized Focal Loss" (2020)."""
    z, y = logits.double(), target.double()
    positive, negative = sigmoid_pair(z)
    return _scaled(((1.0 - y) * positive - y * negative).abs() ** beta, loss(z, y))


def varifocal_loss(
    logits: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
) -> Tensor:
    """VFL = y CE(z, y) for y > 0 (CE without iou_weighted), alpha |sigma(z) - y|^gamma CE(z, y) else, elementwise, in
    float64. Zhang, Wang, Dayoub and Sünderhauf, "VarifocalNet" (2021)."""
    y = target.double()
    positive = _scaled(y, loss(logits.double(), y)) if iou_weighted else loss(logits.double(), y)
    return torch.where(y > 0, positive, alpha * quality_focal_loss(logits, y, gamma))


def asymmetric_loss_with_logits(
    logits: Tensor, target: Tensor, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05
) -> Tensor:
    """ASL = (1 - p_t)^gamma_t (-y log sigma(z) - (1 - y) log(1 - p_m)), elementwise, in float64.

    p_m = max(sigma(z) - clip, 0), p_t = y sigma(z) + (1 - y)(1 - p_m), gamma_t = gamma_pos y + gamma_neg (1 - y).
    Ridnik et al., "Asymmetric Loss For Multi-Label Classification" (2020), with everything mixed where the target is
    soft, as timm has it.
    """
    z, y = logits.double(), target.double()
    positive, negative = sigmoid_pair(z)
    shifted = (positive - clip).clamp_min(0) if clip else positive
    of_negatives = -torch.log1p(-shifted) if clip else softplus(z)
    cross_entropy = _scaled(y, softplus(-z)) + _scaled(1.0 - y, of_negatives)
    one_minus_p_t = y * negative + (1.0 - y) * shifted
    return _scaled(one_minus_p_t ** (gamma_pos * y + gamma_neg * (1.0 - y)), cross_entropy)

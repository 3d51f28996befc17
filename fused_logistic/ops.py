"""Handles on ``torch.ops.fused_logistic`` and what the dispatcher needs to know of the ops beyond their kernels.

The schemas, the CPU kernels and the differentiable composition stand in ``csrc/ops.cpp``. All ops share the parameters
``(logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index)`` in front and ``(gamma=None,
alpha=None)`` at the end; with ``gamma`` the loss is the focal loss, without it the plain one:

========================  ============================================================================================
``bce``                   the loss, reduced as asked
``bce_with_grad``         the reduced loss and its gradient for the logits, in one pass over memory
``bce_backward``          the derivative for logits (``wrt=0``), target (1), weight (2) or pos_weight (3), elementwise
``scale_``                multiplies a gradient by a scalar tensor in place; does nothing where that is 1
========================  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._load import load

load()

bce = torch.ops.fused_logistic.bce.default
bce_with_grad = torch.ops.fused_logistic.bce_with_grad.default
bce_backward = torch.ops.fused_logistic.bce_backward.default
scale_ = torch.ops.fused_logistic.scale_.default

NONE, MEAN, SUM = 0, 1, 2  # torch's numbers for the reductions
LOGITS, TARGET, WEIGHT, POS_WEIGHT = range(4)  # the values of `wrt`


# ---- Shapes and dtypes without data (torch.compile, torch.export, meta tensors) ----------------------------------


def _loss_dtype(logits: Tensor, target: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or (target.dtype if target.is_floating_point() else logits.dtype)


def _check(logits: Tensor, target: Tensor, gamma: float | None) -> None:
    def message() -> str:
        op = "binary_cross_entropy_with_logits" if gamma is None else "sigmoid_focal_loss"
        return (
            f"{op}: expected target of shape "
            f"{list(logits.shape)} on {logits.device}, got {list(target.shape)} on {target.device}"
        )

    if logits.dim() != target.dim():
        raise ValueError(message())
    if logits.device != target.device:
        raise RuntimeError(message())
    for i in range(logits.dim()):
        torch._check_value(logits.shape[i] == target.shape[i], message)


def _fake_bce(
    logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index, dtype, gamma=None, alpha=None
):
    _check(logits, target, gamma)
    dtype = _loss_dtype(logits, target, dtype)
    return torch.empty_like(logits, dtype=dtype) if reduction == NONE else logits.new_empty((), dtype=dtype)


def _fake_bce_with_grad(logits, target, *rest):
    return _fake_bce(logits, target, *rest), torch.empty_like(logits)


def _fake_bce_backward(
    grad_output,
    logits,
    target,
    weight,
    pos_weight,
    mask,
    reduction,
    smoothing,
    ignore_index,
    wrt,
    gamma=None,
    alpha=None,
):
    return torch.empty_like(logits, dtype=(logits, target, weight, pos_weight)[wrt].dtype)


torch.library.register_fake("fused_logistic::bce", _fake_bce)
torch.library.register_fake("fused_logistic::bce_with_grad", _fake_bce_with_grad)
torch.library.register_fake("fused_logistic::bce_backward", _fake_bce_backward)
torch.library.register_fake("fused_logistic::scale_", lambda self, factor: None)


# ---- vmap --------------------------------------------------------------------------------------------------------
# A batched call is one unreduced call on the whole batch; what each sample reduces to is reduced afterwards.


def _to_front(info: Any, values: Sequence[Any], in_dims: Sequence[int | None], ndim: int) -> list[Any]:
    """Brings the batch dimension of every tensor to the front, so that what is behind it broadcasts as before."""
    result = []
    for value, dim in zip(values, in_dims, strict=True):
        if isinstance(value, Tensor) and dim is not None:
            value = value.movedim(dim, 0)
            value = value.reshape(value.shape[0], *(1,) * (ndim + 1 - value.dim()), *value.shape[1:])
        result.append(value)
    return result


def _batched(info: Any, in_dims: Sequence[int | None], args: Sequence[Any]) -> list[Any]:
    logits, dim = args[0], in_dims[0]
    ndim = logits.dim() - (dim is not None)
    moved = _to_front(info, args, in_dims, ndim)
    for i in (0, 1):  # logits and target must have the full shape
        if in_dims[i] is None:
            moved[i] = moved[i].expand(info.batch_size, *moved[i].shape)
    return moved


def _reduce_samples(loss: Tensor, kept: Tensor | None, reduction: int) -> Tensor:
    """The reduction of each sample of a batch of unreduced losses."""
    flat = loss.unsqueeze(-1).flatten(1)
    if reduction == SUM or kept is not None:
        total = flat.sum(1)
        return total / kept if reduction == MEAN and kept is not None else total
    return flat.mean(1)


def kept_elements(logits: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor:
    """Where elements are neither masked out nor ignored."""
    kept = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask.expand(logits.shape)
    if ignore_index is None:
        return kept
    # as int64: in a narrower integer dtype torch would wrap a value that it lacks to one that it has
    return kept & ((target if target.is_floating_point() else target.long()) != ignore_index)


def _count_kept(logits: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """How many elements of each sample the mean is taken over; None: all of them."""
    if mask is None and ignore_index is None:
        return None
    return kept_elements(logits, target, mask, ignore_index).unsqueeze(-1).flatten(1).sum(1)


def _vmap_bce(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Tensor, int]:
    tensors, (reduction, smoothing, ignore_index, dtype, *focal) = _batched(info, in_dims[:5], args[:5]), args[5:]
    if reduction == NONE:
        return bce(*tensors, NONE, smoothing, ignore_index, dtype, *focal), 0
    logits, target, _, _, mask = tensors
    dtype = _loss_dtype(logits, target, dtype)
    # a sum of half-precision losses is rounded once, at its end
    summed = dtype if dtype == torch.double else torch.float
    loss = bce(*tensors, NONE, smoothing, ignore_index, summed, *focal)
    return _reduce_samples(loss, _count_kept(logits, target, mask, ignore_index), reduction).to(dtype), 0


def _vmap_bce_backward(info: Any, in_dims: Sequence[int | None], grad_output: Tensor, *args: Any) -> tuple[Tensor, int]:
    tensors, (reduction, smoothing, ignore_index, wrt, *focal) = _batched(info, in_dims[1:6], args[:5]), args[5:]
    logits, target, _, _, mask = tensors
    if in_dims[0] is not None:
        grad_output = grad_output.movedim(in_dims[0], 0)
        grad_output = grad_output.reshape(
            grad_output.shape[0], *(1,) * (logits.dim() - grad_output.dim()), *grad_output.shape[1:]
        )
    if reduction == MEAN:
        kept = _count_kept(logits, target, mask, ignore_index)
        per_sample = logits[0].numel() if kept is None else kept.reshape(-1, *(1,) * (logits.dim() - 1))
        grad_output = grad_output / per_sample
    return bce_backward(grad_output, *tensors, NONE, smoothing, ignore_index, wrt, *focal), 0


def _vmap_bce_with_grad(info: Any, in_dims: Sequence[int | None], *args: Any):
    loss, _ = _vmap_bce(info, in_dims, *args)
    one = torch.ones((), dtype=args[0].dtype, device=args[0].device)
    grad, _ = _vmap_bce_backward(info, (None, *in_dims), one, *args[:8], LOGITS, *args[9:])
    return (loss, grad), (0, 0)


_VMAP_RULES: dict[str, Callable[..., Any]] = {
    "bce": _vmap_bce,
    "bce_with_grad": _vmap_bce_with_grad,
    "bce_backward": _vmap_bce_backward,
}
for _name, _rule in _VMAP_RULES.items():
    torch.library.register_vmap(f"fused_logistic::{_name}", _rule)

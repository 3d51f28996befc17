"""What torch asks of the ops beside their kernels: autograd, shapes without data, vmap, devices without a kernel.

Registered when the package is imported. The hot path comes by none of this but the kernels (:func:`ops.call_loss`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import (
    autograd,
    batching,
    checks,
    checks_layer,
    checks_pairs,
    composite,
    composite_pairs,
    layer,
    matrices,
    ops,
    pairs,
    targets,
    tiles,
)
from .ops import Layer

# ---- Autograd --------------------------------------------------------------------------------------------------------
# Whoever calls an op past autograd.py, such as compiled code, gets its Function. A transform of torch.func,
# forward-mode AD and a backward pass that is differentiated get the composition, which is right to any order.

_library = torch.library.Library("fused_logistic", "IMPL")


def _requires_grad(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _has_tangent(args: tuple[Any, ...]) -> bool:
    """Whether it is differentiated forwards: in what is compiled only the tensors themselves tell."""
    # a compressed sparse tensor has none, and cannot be asked
    tensors = [a for a in args if isinstance(a, Tensor) and a.layout in (torch.strided, torch.sparse_coo)]
    with torch._C._DisableTorchDispatch():  # a question, which no graph should record
        return any(torch._VF._unpack_dual(t, level=0).tangent is not None for t in tensors)


def _with_autograd(
    op: Any, check: Callable[..., None], composition: Callable[..., Any], function: Any = None
) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        forwards = _has_tangent(args)
        differentiated = forwards or _requires_grad(args)
        if differentiated and (function is None or forwards or ops.transformed() or not function.covers(args)):
            check(*args)
            return composition(*args)
        try:
            if differentiated:
                return function.apply(*args)
            return ops.past_autograd(op, *args)
        except RuntimeError as error:
            refusal = error
        try:
            check(*args)  # says what is wrong with them; if nothing is, it is what it was
            raise refusal
        finally:
            del refusal  # else a cycle with this frame, which would keep the tensors

    return kernel


_WRITTEN = {ops.bce_tile_: 4, ops.pairs_tile_: 3}  # so many of the first arguments; of others one


def _without_autograd(op: Any) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        if _requires_grad(args) or _has_tangent(args):
            raise RuntimeError(f"{op}: expected to be called where autograd is off: it has no derivative")
        with ops.below_autograd():
            result = op(*args)
        if op._schema.is_mutable:
            torch.autograd.graph.increment_version([t for t in args[: _WRITTEN.get(op, 1)] if t is not None])
        return result

    return kernel


def _count(*args: Any) -> Tensor:
    """A number without a derivative, whoever requires a gradient."""
    checks.bce_count(*args)
    with ops.below_autograd():
        return ops.bce_count(*args)


# ---- Shapes and dtypes without data (torch.compile, torch.export, meta tensors) --------------------------------------
# Each comes after the check of the same arguments.


def _like_bce(*args):
    logits, reduction, dtype = args[0], args[6], args[7]
    return torch.empty_like(logits, dtype=dtype) if reduction == ops.NONE else logits.new_empty((), dtype=dtype)


def _like_bce_with_grad(*args):
    return _like_bce(*args), torch.empty_like(args[0])


def _like_bce_with_grad_for(grad_output, *args):
    return _like_bce_with_grad(*args)


def _like_bce_backward(grad_output, *args):
    return torch.empty_like(args[0], dtype=args[args[7]].dtype)


def _like_bce_count(target, mask, ignore_index, ignore_nan=False):
    return target.new_empty((), dtype=torch.float64)


def _like_linear_bce(*args):
    of, (dtype, *_) = Layer.split(args)
    shape = [*of.input.shape[:-1], *of.linear_weight.shape[:-1]] if of.reduction == ops.NONE else ()
    return of.input.new_empty(shape, dtype=dtype)


def _like_gradients(of, output_mask):
    return tuple(
        of.input.new_empty(like.shape) if wanted and like is not None else of.input.new_empty((0,))
        for like, wanted in zip(of[:3], output_mask, strict=True)
    )


def _like_linear_bce_with_grad(*args):
    of, (_, output_mask, *_) = Layer.split(args)
    return _like_linear_bce(*args), *_like_gradients(of, output_mask)


def _like_linear_bce_backward(grad_output, *args):
    of, (output_mask, *_) = Layer.split(args)
    return _like_gradients(of, output_mask)


def _like_pairs(*args):
    return args[0].new_empty((), dtype=composite_pairs.pairs_dtype(args[0]))


def _like_pairs_with_grad(*args):
    shapes, dtype = [args[0].shape, args[1].shape, (), ()], composite_pairs.pairs_dtype(args[0])
    return _like_pairs(*args), *(
        args[0].new_empty(shape if wanted and like is not None else (0,), dtype=dtype)
        for shape, wanted, like in zip(shapes, args[5], args[:4], strict=True)
    )


def _like_pairs_backward(grad_output, *args):
    none = args[0].new_empty((0,), dtype=composite_pairs.pairs_dtype(args[0]))
    return tuple(
        none.clone() if like is None or not wanted else torch.empty_like(like, memory_format=torch.contiguous_format)
        for like, wanted in zip(args[:4], args[5], strict=True)
    )


# ---- Devices without a kernel ----------------------------------------------------------------------------------------


def _without_kernel(composition: Callable[..., Any]) -> Callable[..., Any]:
    warned = False

    def kernel(*args: Any) -> Any:
        nonlocal warned
        result = composition(*args)  # first: for a sparse tensor no kernel is missing, and the checks say so
        if not warned:
            warned = True
            device = next(a.device for a in args if isinstance(a, Tensor))
            warnings.warn(
                f"fused_logistic: no kernel for device {device} in this build; computing with torch's operations, "
                "correct but slower",
                stacklevel=2,
            )
        return result

    return kernel


def _tiled(kernel: Callable[..., Any], composition: Callable[..., Any]) -> Callable[..., Any]:
    """The pairs by tiles, where there is a kernel for these."""
    other = _without_kernel(composition)

    def chosen(*args: Any) -> Any:
        return (kernel if pairs.has_kernel(next(a for a in args if a.dim() == 2)) else other)(*args)

    return chosen


def _made_again(grad_logits: Tensor, grad_output: Tensor, made_for: Tensor | None, *args: Any) -> None:
    """bce_backward_ where no kernel can look at ``grad_output`` without waiting for the device."""
    grad_logits.copy_(composite.bce_backward(grad_output, *args[:7], ops.LOGITS, *args[7:]))


# ---- Registration ----------------------------------------------------------------------------------------------------


def _after(check: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any) -> Any:
        check(*args)
        return function(*args)

    return checked


def _register() -> None:
    for name, check, composition, like, *function in (
        ("bce", checks.bce, composite.bce, _like_bce, autograd.BinaryCrossEntropyWithLogits),
        ("bce_with_grad", checks.bce_with_grad, composite.bce_with_grad, _like_bce_with_grad),
        ("bce_with_grad_for", checks.bce_with_grad_for, composite.bce_with_grad_for, _like_bce_with_grad_for),
        ("bce_backward", checks.bce_backward, composite.bce_backward, _like_bce_backward),
        (
            "linear_bce",
            checks_layer.linear_bce,
            composite.linear_bce,
            _like_linear_bce,
            autograd.LinearBinaryCrossEntropy,
        ),
        (
            "linear_bce_with_grad",
            checks_layer.linear_bce_with_grad,
            composite.linear_bce_with_grad,
            _like_linear_bce_with_grad,
        ),
        (
            "linear_bce_backward",
            checks_layer.linear_bce_backward,
            composite.linear_bce_backward,
            _like_linear_bce_backward,
        ),
        ("pairs", checks_pairs.pairs, composite_pairs.pairs, _like_pairs, autograd.SigmoidContrastive),
        ("pairs_with_grad", checks_pairs.pairs_with_grad, composite_pairs.pairs_with_grad, _like_pairs_with_grad),
        ("pairs_backward", checks_pairs.pairs_backward, composite_pairs.pairs_backward, _like_pairs_backward),
    ):
        _library.impl(name, _with_autograd(getattr(ops, name), check, composition, *function), "Autograd")
        # the layer is computed in Python, on every device; of the losses this is what stands in for a kernel
        tiled = getattr(pairs, name, None)
        other = getattr(layer, name, None) or (
            _without_kernel(composition) if tiled is None else _tiled(tiled, composition)
        )
        _library.impl(name, _after(check, other), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fused_logistic::{name}", _after(check, like))
    for name in ("bce_backward_", "bce_tile_", "linear_bce_single", "pairs_tile_", "scale_"):
        _library.impl(name, _without_autograd(getattr(ops, name)), "Autograd")
    _library.impl("bce_backward_", _made_again, "CompositeExplicitAutograd")
    _library.impl("bce_tile_", tiles.bce_tile_, "CompositeExplicitAutograd")
    _library.impl("scale_", matrices.scale_, "CompositeExplicitAutograd")
    torch.library.register_fake("fused_logistic::bce_backward_", checks.bce_backward_)
    for op, rule in batching.RULES.items():
        torch.library.register_vmap(op, rule)
    _library.impl("bce_count", _count, "Autograd")
    _library.impl("bce_count", _without_kernel(targets.bce_count), "CompositeExplicitAutograd")
    torch.library.register_fake("fused_logistic::bce_count", _after(checks.bce_count, _like_bce_count))
    torch.library.register_fake("fused_logistic::empty", lambda size, dtype: torch.empty(size, dtype=dtype))


_register()

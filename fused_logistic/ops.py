"""The ops in ``torch.ops.fused_logistic``: handles, and how to call their kernels.

``csrc/ops.cpp`` has the schemas, ``csrc/cpu`` and ``csrc/cuda`` the kernels. The ops of the losses share the operands
``(logits, target, weight, pos_weight, mask, count)``, ``count`` being what a mean is divided by (a float64 scalar, from
:mod:`fused_logistic.divisor`; None: the number of elements). The target is of the logits' shape or, of an integer
dtype, class indices, of that shape without dimension 1 (0, where it is the only one). Every op ends with the options of
:class:`fused_logistic.options.Options`, in its order and with its defaults, which also say which loss it is.

=======================  =============================================================================================
``bce``                  ``(*operands, reduction, dtype, *options)``: the loss, reduced as asked, in that dtype
``bce_with_grad``        the same -> the reduced loss and its gradient for the logits, in one pass over memory
``bce_with_grad_for``    ``(grad_output, *the same)``: where the gradient is that for a ``grad_output``, one number
``bce_backward``         ``(grad_output, *operands, reduction, wrt, *options)``: the derivative for logits (``wrt=0``),
                         target (1), weight (2) or pos_weight (3), elementwise
``bce_backward_``        ``(grad_logits, grad_output, made_for, *operands, reduction, *options)``: turns the gradient
                         that came with the loss, for a ``grad_output`` of ``made_for`` (None: of 1), into that for
                         this one: nothing where it is the same
``bce_count``            ``(target, mask, ignore_index, ignore_nan=False)``: how many elements are neither masked out
                         nor ignored
``linear_bce``           ``(*Layer, dtype, *options)``: the whole layer, by :mod:`fused_logistic.layer`;
                         ``linear_bce_with_grad`` and ``linear_bce_backward`` give the gradients that ``output_mask``
                         asks for
``bce_tile_``            a kernel of the layer: the losses of a tile of its logits, whose gradients take their place;
                         sums are added to what ``loss_sum`` and ``bias_sum`` have (csrc/tile_operands.h)
``linear_bce_single``    another: a layer with one label in one pass over its input
``pairs``                ``(image_features, text_features, logit_scale, logit_bias, tile_bytes)``: the loss of pairs,
                         by :mod:`fused_logistic.pairs`; ``pairs_with_grad`` gives with it the gradients that
                         ``output_mask`` asks for, in the arithmetic's dtype, ``pairs_backward`` those in the operands'
``pairs_tile_``          a kernel of it: turns a tile's similarities into gradients, and adds to the sums
``scale_``               ``(gradient, factor)``: ``gradient *= factor``, one number; 0 stays 0 even times infinity, for
                         it may be of elements that are left out
``empty``                ``(size, dtype)``: memory on the CPU, a large one from the blocks that are kept
=======================  =============================================================================================

A raw op is right wherever it is called, or raises: where autograd or a transform looks on it is the differentiable
composition (:mod:`fused_logistic.registration`), and what writes in place or is a part of the layer refuses to be
there. :func:`call` and, for the losses, :func:`call_loss` are the ways past that, for those that have already decided
(:mod:`fused_logistic.autograd`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._load import load

load()

bce = torch.ops.fused_logistic.bce.default
bce_with_grad = torch.ops.fused_logistic.bce_with_grad.default
bce_with_grad_for = torch.ops.fused_logistic.bce_with_grad_for.default
bce_backward = torch.ops.fused_logistic.bce_backward.default
bce_backward_ = torch.ops.fused_logistic.bce_backward_.default
bce_count = torch.ops.fused_logistic.bce_count.default
bce_tile_ = torch.ops.fused_logistic.bce_tile_.default
linear_bce = torch.ops.fused_logistic.linear_bce.default
linear_bce_with_grad = torch.ops.fused_logistic.linear_bce_with_grad.default
linear_bce_backward = torch.ops.fused_logistic.linear_bce_backward.default
linear_bce_single = torch.ops.fused_logistic.linear_bce_single.default
pairs = torch.ops.fused_logistic.pairs.default
pairs_with_grad = torch.ops.fused_logistic.pairs_with_grad.default
pairs_backward = torch.ops.fused_logistic.pairs_backward.default
pairs_tile_ = torch.ops.fused_logistic.pairs_tile_.default
scale_ = torch.ops.fused_logistic.scale_.default
empty = torch.ops.fused_logistic.empty.default

NONE, MEAN, SUM = 0, 1, 2  # torch's numbers for the reductions
LOGITS, TARGET, WEIGHT, POS_WEIGHT = range(4)  # the values of `wrt`


class Layer(NamedTuple):
    """What stands first in every op of the layer. A sparse target comes as its values and their indices."""

    input: Tensor  # [..., features]
    linear_weight: Tensor  # [labels, features], or [features] for logits without a dimension of labels
    linear_bias: Tensor | None
    target: Tensor  # of the logits' shape; sparse: [nnz]
    crow_indices: Tensor | None
    col_indices: Tensor | None
    weight: Tensor | None
    pos_weight: Tensor | None
    mask: Tensor | None
    mean_count: Tensor | None  # the ops' `count`, which is what tuples call something else
    reduction: int
    chunk_bytes: int | None

    @classmethod
    def split(cls, arguments: Sequence[Any]) -> tuple[Layer, Sequence[Any]]:
        """The layer, and what follows it in the op's arguments."""
        size = len(cls._fields)
        return cls(*arguments[:size]), arguments[size:]


PLAIN = (Tensor, torch.nn.Parameter)  # types of tensors that nobody has extended
wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
_is_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled
_modes, _is_included = torch._C._len_torch_dispatch_stack, torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch
_keys = torch._C._dispatch_keys


def _key_set(*names: str) -> Any:
    first, *others = (getattr(torch._C.DispatchKey, name) for name in names)
    return functools.reduce(lambda found, key: found.add(key), others, torch._C.DispatchKeySet(first))


# By the keys of a tensor of plain memory, made outside of inference mode and in it, the kernels' own.
_BACKENDS = {
    _key_set(name, "Autocast" + name, *more).raw_repr(): kernel
    for name in ("CPU", "CUDA")
    for kernel in [_key_set(name)]
    for more in ((), ("ADInplaceOrView", "Autograd" + name))
}
_CONSTANTS = (int, torch.dtype, float, bool)


def recorded() -> bool:
    """Whether operations are recorded, by a dispatch mode, make_fx or torch.jit.trace: no value may decide anything."""
    return bool(_modes() or _is_included(_PRE_DISPATCH)) or torch._C._get_tracing_state() is not None


def transformed(grad_output: Tensor | None = None) -> bool:
    """Whether a torch.func transform or forward-mode AD is at work, which differentiate what they see.

    A backward pass has to ask by its ``grad_output``: that is batched by ``is_grads_batched``, a transform of its own.
    """
    if _transforms_active() or forward_ad._current_level >= 0:
        return True
    return grad_output is not None and _is_batched(grad_output)


def call(op: Callable[..., Any], *args: Any) -> Any:
    """The op's kernel, past its autograd: for a caller that needs no derivative of it, or makes it itself."""
    if torch.compiler.is_compiling():
        return op(*args)  # Dynamo knows no guards; a compiled graph has no overhead to save
    return past_autograd(op, *args)


def call_loss(op: Any, *args: Any) -> Any:
    """:func:`call` of an op of the losses, where neither autograd nor a transform looks on: straight to the kernel,
    where the dispatcher has nothing to decide. Asking it takes longer than a small loss.

    Nothing tells of torch's ``ExecutionTraceObserver``: it sees the Function then, and not the op.
    """
    looked_at = torch.compiler.is_compiling() or recorded() or _is_profiled()
    backend = None if looked_at else _backend_of(args)
    return call(op, *args) if backend is None else _run(op, op.redispatch, backend, *args)


def _backend_of(args: Sequence[Any]) -> Any:
    """The key of the kernel for an op's arguments, as the dispatcher finds it. None, where one of them is neither a
    tensor in plain memory (but a negated view, zeros without memory, one that a transform wrapped) nor a constant."""
    backend = None
    for arg in args:
        if type(arg) in PLAIN:
            own = _BACKENDS.get(_keys(arg).raw_repr())
            if own is None or not (backend is None or backend is own):
                return None
            backend = own
        elif arg is not None and type(arg) not in _CONSTANTS:
            return None
    return backend


def past_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """The op's kernel, whoever asks."""
    with below_autograd():
        return _run(op, op, *args)


def _run(op: object, kernel: Callable[..., Any], *args: Any) -> Any:
    """What the op's kernel returns; torch's own error where memory was lacking, which csrc has no exception for."""
    try:
        return kernel(*args)
    except RuntimeError as error:
        if not str(error).startswith("fused_logistic::empty: out of memory"):
            raise
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().query()  # raises where something that went wrong before is the reason
        raise torch.OutOfMemoryError(str(error)) from None
    except MemoryError:  # std::bad_alloc, of what a kernel adds up in
        raise torch.OutOfMemoryError(f"{op}: out of memory") from None

"""The functional interface: the drop-in replacement of ``torch.nn.functional``, and what all losses have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments, autograd, checks, divisor, nested, ops
from .options import LOSS, Options

_ELEMENTS = divisor.NORMALIZERS[0]
_NO_OPTIONS = Options()  # not in compiled code, which would take the numbers of a global for inputs
_DEPRECATED = "elementwise_mean"  # torch 0.4's name of the mean, which torch still takes
_REDUCTIONS = {"none": ops.NONE, "mean": ops.MEAN, "sum": ops.SUM, _DEPRECATED: ops.MEAN}


def number_of(reduction: str) -> int:
    """What the ops call that reduction."""
    if reduction == _DEPRECATED and not torch.compiler.is_compiling():
        _reduction.get_enum(reduction)  # warns, as torch does
    return _REDUCTIONS[reduction]


def check_reduction(op: str, reduction: object) -> None:
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: expected reduction 'none', 'mean' or 'sum', got {reduction!r}")


def _refuse(op: str, names: tuple[str, str], tensors: tuple[Any, ...], options: Options) -> None:
    """Raises what is wrong with the arguments, if it is one of the things that can be."""
    input, target, weight, pos_weight, mask = tensors
    required = dict(zip(names, (input, target), strict=True))
    checks.tensors(op, required, weight=weight, pos_weight=pos_weight, mask=mask)
    if nested.is_jagged(input):
        return  # it was their values that were refused, with a name
    checks.loss(*tensors, None, ops.SUM, *options, names=names)


def _loss(op: str, tensors: tuple[Any, ...], number: int, options: Options, promotes: bool, normalizer: Any) -> Tensor:
    args: Any = *tensors, number, options, promotes, arguments.normalizer(op, normalizer, number, tensors[0])
    return autograd.loss(*args)


def computed(
    op: str,
    names: tuple[str, str],
    tensors: tuple[Any, ...],
    reduction: str,
    options: Options,
    promotes: bool = False,
    normalizer: str | Tensor | float = "elements",
) -> Tensor:
    """The loss of ``(input, target, weight, pos_weight, mask)``, the first two being called ``names`` in messages; the
    weights may be numbers."""
    input, target, weight, pos_weight, mask = tensors
    if weight is not None:
        weight = arguments.beside(weight, input)
    if pos_weight is not None:
        pos_weight = arguments.beside(pos_weight, input)
    tensors = input, target, weight, pos_weight, mask
    rest = options, promotes, normalizer
    if torch.compiler.is_compiling():  # checked without data (registration.py)
        return _loss(op, tensors, number_of(reduction), *rest)
    try:
        number = number_of(reduction)
        if options is _NO_OPTIONS and mask is None and normalizer is _ELEMENTS:  # as in most calls
            loss = autograd.plain_loss(tensors, number)
            if loss is not None:
                return loss
        return _loss(op, tensors, number, *rest)
    except Exception as error:
        refusal = error
    try:  # whatever went wrong gets its name here, in torch's words; if it has none, it is what it was
        check_reduction(op, reduction)
        _refuse(op, names, tensors, options)
        raise refusal
    finally:
        del refusal  # else a cycle with this frame, which would keep the tensors


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | float | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | float | None = None,
    *,
    label_smoothing: float | Tensor | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    ignore_nan: bool = False,
    normalizer: str | Tensor | float = _ELEMENTS,
) -> Tensor:
    r"""Binary cross entropy between ``sigmoid(input)`` and ``target``, fused with the sigmoid.

    Equivalent to :func:`torch.nn.functional.binary_cross_entropy_with_logits`, one pass over memory for the loss and
    its gradient, and exact in both tails. With :math:`a = w p y` and :math:`b = w (1 - y)`:

    .. math:: \ell = a \log(1 + e^{-z}) + b \log(1 + e^{z}), \qquad
              \partial\ell / \partial z = b\,\sigma(z) - a\,\sigma(-z)

    Args:
        input: the logits :math:`z`, of any shape and layout; float64, float32, float16 or bfloat16.
        target: :math:`y` in [0, 1] (not checked, as in torch), of the same shape; any of those dtypes, bool or an
            integer dtype, read as it is. Or class indices, one against all: of an integer dtype and of the shape of
            ``input`` without dimension 1, that of the classes (``[]`` for an ``input`` of one dimension), as torch's
            ``cross_entropy`` takes them. :math:`y` is 1 for the class that the index names, else 0; an index that names
            none, below 0 or from the number of classes on (as detectors number the background), has no positive; also
            -100, which ``cross_entropy`` leaves out by itself and this only with ``ignore_index=-100``.
            There are two classes at least: of one, 0 would be the positive, and whoever forgot a dimension would not
            notice. The matrix of these :math:`y` is never in memory.
        weight: :math:`w`, of a shape that broadcasts to that of ``input``; or a number.
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` (the sum over what ``normalizer`` says) or ``"sum"``. (As in torch,
            ``"elementwise_mean"`` is the mean, with a warning that it is deprecated; so it is wherever we take one.)
        pos_weight: :math:`p`, the weight of positive examples, of a shape that broadcasts to that of ``input``; or a
            number.
        label_smoothing: :math:`s` in [0, 1], None being 0: the target becomes :math:`y (1 - s) + s / 2`. A tensor is
            differentiable and broadcasts to ``input``; its range is checked where it is one number, on the CPU, that
            requires no gradient. A number that changes is an input of
            what ``torch.compile`` makes.
        ignore_index: elements whose target has this value contribute nothing to the loss and to any derivative,
            whatever their logit and weights are (NaN included); ``"mean"`` divides by the number of those that remain,
            and is NaN if none does. A value that the target's dtype represents. Where the target is class indices, an
            index of this value leaves out all its classes.
        mask: bool, of a shape that broadcasts to that of ``input``; where it is False, as for ``ignore_index``.
        ignore_nan: elements whose target is NaN, a label that is missing, likewise. Targets of a floating dtype alone
            can be.
        normalizer: what a mean divides the sum of the losses by. ``"elements"``: the number of the elements that are
            left in, whatever their weight. ``"weights"``: the sum of ``weight`` over them, each as often as it has
            elements, so that ``weight`` alone makes a weighted mean; the number of elements without ``weight``.
            ``"positives"``: the number of those whose target (before smoothing) is above 0, at least 1. Or what is
            given: a tensor of one element, differentiable, or a number > 0. Nothing waits for the device. Where the
            divisor requires a gradient, the gradient by the logits takes a pass of its own. A tensor's value is not
            checked: over 0, also a sum of weights, the mean is infinite or NaN, as by torch's division. (In fp32 1 over
            it is a float32: from 1e-38 to 1e38.) Each process of DDP divides by its own, and DDP averages; for the mean
            over all processes give the number of all, divided by that of the processes::

                n = (target > 0).sum().float()
                torch.distributed.all_reduce(n, torch.distributed.ReduceOp.AVG)  # gloo: SUM, and / world_size
                loss = fl.binary_cross_entropy_with_logits(input, target, normalizer=n.clamp(min=1))

            A DTensor is divided by that of all shards. Under ``vmap`` each sample has its own.

    Returns:
        A scalar, or a tensor of the shape of ``input`` for ``reduction="none"``. Its dtype is the target's if that is a
        floating type, else the input's; under autocast float32. fp16 and bf16 are computed in fp32. Sums are made in
        a fixed order, in fp64 but for 32 losses at a time: the same bits for any number of threads. ``input``,
        ``target``, ``weight`` and ``pos_weight`` are differentiable.

    Raises:
        TypeError: an argument is not a tensor, ``mask`` is not of dtype bool, ``ignore_nan`` is not a bool, or
            ``normalizer`` nothing of what is said above.
        ValueError: ``target`` has neither the shape of ``input`` nor that of class indices, ``reduction`` is none of
            the three, ``label_smoothing`` is not in [0, 1], or ``normalizer`` is another name, not one element or a
            number that is not above 0, or is given where there is no mean.
        RuntimeError: ``weight``, ``pos_weight`` or ``mask`` does not broadcast, or one of them or ``normalizer`` is on
            another device.
        NotImplementedError: a dtype that is not supported; class indices beside a nested ``input``.

    Formula: the chain rule of L(sigma(z)); ``docs/derivation.md`` derives it, line by line of ``csrc/logistic.h``.
    """
    if has_torch_function_variadic(input, target, weight, pos_weight, mask, normalizer):
        return handle_torch_function(
            binary_cross_entropy_with_logits,
            (input, target, weight, pos_weight, mask, normalizer),
            input,
            target,
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            pos_weight=pos_weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            mask=mask,
            ignore_nan=ignore_nan,
            normalizer=normalizer,
        )
    options = _NO_OPTIONS
    if not (label_smoothing is ignore_index is None and ignore_nan is False) or torch.compiler.is_compiling():
        options = Options(
            0.0 if label_smoothing is None else arguments.option(LOSS, "label_smoothing", label_smoothing),
            arguments.integer(LOSS, "ignore_index", ignore_index),
            ignore_nan=arguments.flag(LOSS, "ignore_nan", ignore_nan),
        )
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)  # warns that they are deprecated, as torch does
    tensors = input, target, weight, pos_weight, mask
    return computed(LOSS, ("input", "target"), tensors, reduction, options, normalizer=normalizer)

"""The functional interface of the whole layer."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments, autograd, checks, checks_layer, nested, ops, sparse
from .functional import check_reduction, number_of
from .options import LAYER, Options

# Dynamo takes no sparse tensors: what is compiled calls this between two graphs.
_uncompiled_loss = torch._disable_dynamo(autograd.linear_loss)  # unlike torch.compiler.disable without importing it


def _parts(
    op: str, input: Tensor, linear_weight: Tensor, target: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(values, crow_indices, col_indices) of a sparse target; (target, None, None) of a dense one."""
    if target.layout == torch.strided or target.is_nested:
        return target, None, None
    if target.layout not in (torch.sparse_csr, torch.sparse_coo):
        layouts = "torch.strided, torch.sparse_csr or torch.sparse_coo"
        raise ValueError(f"{op}: expected target of layout {layouts}, got {checks.layout_name(target.layout)}")
    shape = (*input.shape[:-1], *linear_weight.shape[:-1])
    if target.shape != shape:
        raise ValueError(f"{op}: expected target of shape {list(shape)}, got {list(target.shape)}")
    if target.layout == torch.sparse_coo:
        if ops.wrapped(target):
            raise NotImplementedError(f"{op}: expected a sparse target that torch.func does not transform")
        if (target.sparse_dim(), target.dense_dim()) != (2, 0):
            raise ValueError(
                f"{op}: expected a sparse target of 2 sparse dimensions and no dense one, "
                f"got {target.sparse_dim()} and {target.dense_dim()}"
            )
        return sparse.csr_of_coo(target, op=op)
    return target.values(), target.crow_indices(), target.col_indices()


def _check(parts: Any, input: Any, linear_weight: Any, linear_bias: Any, target: Any, *others: Any) -> None:
    weight, pos_weight, mask, _, _, chunk_bytes, options = others
    rest: tuple[Any, ...] = (weight, pos_weight, mask, None, ops.SUM, chunk_bytes, *options)
    checks_layer.layer(input, linear_weight, linear_bias, *parts, *rest)


def _loss(*given: Any) -> Tensor:
    input, linear_weight, linear_bias, target, *others, reduction, normalizer, chunk_bytes, options = given
    parts = _parts(options.layer, input, linear_weight, target)
    sparse_input = input.layout != torch.strided and not nested.is_jagged(input)
    if sparse_input:  # no op checks these
        _check(parts, *given)
    has_sparse = sparse_input or parts[1] is not None
    # where nobody compiles, Dynamo stays unimported
    loss = _uncompiled_loss if has_sparse and "torch._dynamo" in sys.modules else autograd.linear_loss
    layer, number = (input, linear_weight, linear_bias), number_of(reduction)
    args = *others, number, chunk_bytes, options, arguments.normalizer(options.layer, normalizer, number, input)
    return loss(layer, parts, *args)


def _in_the_name_of(op: str, error: Exception) -> Exception:
    """What is wrong with sparse indices is found where nobody knows which of the layers it is."""
    said = str(error)
    if op == LAYER or not said.startswith(f"{LAYER}: "):
        return error
    return type(error)(op + said.removeprefix(LAYER)).with_traceback(error.__traceback__)


def computed(
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any,
    weight: Any,
    pos_weight: Any,
    mask: Any,
    reduction: str,
    normalizer: Any,
    chunk_bytes: int | None,
    options: Options,
) -> Tensor:
    """The layer's loss, whichever of the options it is."""
    w = None if weight is None else arguments.beside(weight, input)
    p = None if pos_weight is None else arguments.beside(pos_weight, input)
    given = input, linear_weight, linear_bias, target, w, p, mask, reduction, normalizer, chunk_bytes, options
    if torch.compiler.is_compiling():  # checked without data (registration.py)
        return _loss(*given)
    try:
        return _loss(*given)
    except Exception as error:
        refusal = _in_the_name_of(options.layer, error)
    try:
        check_reduction(options.layer, reduction)
        optional = {"linear_bias": linear_bias, "weight": w, "pos_weight": p, "mask": mask}
        required: dict[str, object] = {"input": input, "linear_weight": linear_weight, "target": target}
        checks.tensors(options.layer, required, **optional)
        if nested.is_jagged(input):
            raise refusal
        _check(_parts(options.layer, input, linear_weight, target), *given)
        raise refusal
    finally:
        del refusal


def linear_binary_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | float | None = None,
    pos_weight: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float | Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: str | Tensor | float = "elements",
    chunk_bytes: int | None = None,
    ignore_nan: bool = False,
) -> Tensor:
    r"""Binary cross entropy of a linear layer, logits and sigmoid included: the chain rule from the loss back to it.

    Equivalent to ``binary_cross_entropy_with_logits(F.linear(input, linear_weight, linear_bias), target, ...)``, but
    the logits are never stored: with one label, one walk over ``input`` makes the loss and all gradients, each row
    being read from memory once and from the cache once more; with many, a tile of the logits at a time goes through the
    matrix products of torch. For ``"mean"`` and ``"sum"`` the forward pass finishes the gradients that are needed:

    .. math:: z = x W^T + b, \quad G = \partial\ell/\partial z, \qquad
              \partial\ell/\partial W = G^T x, \quad \partial\ell/\partial b = \textstyle\sum_n G_n, \quad
              \partial\ell/\partial x = G W

    Args:
        input: :math:`x`, ``[..., features]``; float64, float32, float16 or bfloat16. Or ``torch.sparse_csr`` or
            ``torch.sparse_coo``, ``[rows, features]``, of which no gradient is required: torch's sparse product, in
            fp32 at least and under autocast too, makes the logits, all at once with a
            dense target, and the gradients of the other two.
        linear_weight: :math:`W`, ``[labels, features]``, or ``[features]`` for logits of shape ``[...]``; of the
            input's dtype, as for :func:`torch.nn.functional.linear`.
        target: in [0, 1] (not checked), ``[..., labels]``, of any dtype that ``binary_cross_entropy_with_logits``
            takes; or a ``torch.sparse_csr`` or ``torch.sparse_coo`` tensor ``[rows, labels]`` for a two-dimensional
            input, equal to its ``to_dense()`` in meaning (duplicates add up) without ever being dense: what it costs
            over targets that are all 0 grows with the number of its elements alone.
        linear_bias: :math:`b`, ``[labels]`` (``[]`` or ``[1]`` where ``linear_weight`` has one dimension).
        weight: weight of the elements' losses; broadcasts to ``[..., labels]``.
        pos_weight: weight of positive examples; broadcasts likewise.
        reduction: ``"none"``, ``"mean"`` (over what ``normalizer`` says) or ``"sum"``.
        ignore_index: elements whose target has this value contribute nothing; ``"mean"`` divides by the number of
            those that remain.
        label_smoothing: in [0, 1], None being 0; the target :math:`y` becomes :math:`y (1 - s) + s / 2`.
        mask: bool; broadcasts to ``[..., labels]``. Where it is False, as for ``ignore_index``, whatever the element's
            target, weight or ``grad_output`` is. A NaN in ``input`` itself reaches the weight's gradient as it does in
            torch, by the product 0 x NaN.
        normalizer: what ``"mean"`` divides by, as for :func:`fused_logistic.binary_cross_entropy_with_logits`; of a
            sparse target too. Where it requires a gradient, ``weight`` with ``"weights"`` included, the sum is
            divided by it, and the gradients are multiplied once more.
        chunk_bytes: how many bytes a tile of the logits may take. None: 8 MiB on the CPU, else 256 MiB. The products
            and the order of the sums depend on it, so results differ by rounding.
        ignore_nan: elements whose target is NaN, a label that is missing, contribute nothing, as for ``ignore_index``.
            A sparse target may list them.

    Returns:
        A scalar, or the losses ``[..., labels]`` for ``"none"``; of the target's dtype if that is a floating type,
        else the input's. Under autocast the products are computed in autocast's dtype, the loss is float32.
        With one label every sum is made in an order that the sizes alone fix: the same bits for any number of threads,
        for any instruction set and on CUDA. With many, the products are those of torch's BLAS.

        Differentiable in ``input``, ``linear_weight`` and ``linear_bias`` without storing the logits. Where ``target``,
        ``weight`` or ``pos_weight`` requires a gradient, under ``torch.func``, forward-mode AD, ``vmap`` and
        ``create_graph``, and for a DTensor, the composition above is computed instead: right, but with whole logits
        (and a dense target; ``torch.func.grad`` and its kin refuse a CSR one, as torch has them do). A weight that
        varies both over labels and over some, not all, of several leading dimensions is expanded.

    Raises:
        TypeError: an argument is not a tensor, or ``linear_weight`` or ``linear_bias`` is not of the input's dtype, or
            ``mask`` is not of dtype bool, or ``ignore_nan`` is not a bool.
        ValueError: a shape, layout, ``reduction``, ``label_smoothing``, ``normalizer`` or ``chunk_bytes`` that does not
            fit; indices of a sparse target that are out of range (on a GPU, which nobody waits for, an assertion of the
            device).
        RuntimeError: ``weight``, ``pos_weight`` or ``mask`` does not broadcast; tensors on different devices.
        NotImplementedError: a dtype that is not supported; a sparse input that requires a gradient.

    Formula: the chain rule of L(sigma(x W + b)); ``csrc/logistic.h``, ``docs/derivation.md``.
    """
    tensors = input, linear_weight, target, linear_bias, weight, pos_weight, mask, normalizer
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            linear_binary_cross_entropy,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            mask=mask,
            normalizer=normalizer,
            chunk_bytes=chunk_bytes,
            ignore_nan=ignore_nan,
        )
    smoothing = 0.0 if label_smoothing is None else arguments.option(LAYER, "label_smoothing", label_smoothing)
    options = Options(
        smoothing,
        arguments.integer(LAYER, "ignore_index", ignore_index),
        ignore_nan=arguments.flag(LAYER, "ignore_nan", ignore_nan),
    )
    layer = input, linear_weight, target, linear_bias
    return computed(*layer, weight, pos_weight, mask, reduction, normalizer, chunk_bytes, options)

"""The functional interface of the loss of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import arguments, autograd, checks, checks_pairs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OP = checks_pairs.PAIRS


def _loss(group: ProcessGroup | None, *args: Any) -> Tensor:
    if group is None:
        return autograd.pairs_loss(*args)
    from . import ring  # torch.distributed is not in every build of torch

    return ring.loss(group, *args)


def sigmoid_contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    group: ProcessGroup | None = None,
    tile_bytes: int | None = None,
) -> Tensor:
    r"""The sigmoid loss of all pairs of images and texts (SigLIP), of which text i belongs to image i and no other.

    With similarities :math:`s = I\,T^\top`, temperature :math:`t` and bias :math:`b`, for :math:`n` images:

    .. math:: \ell = \frac1n \sum_{i,j} -\log \sigma\bigl(y_{ij}\,(t\,s_{ij} + b)\bigr), \qquad
              y_{ij} = \begin{cases} 1 & i = j \\ -1 & i \ne j \end{cases}

    A tile of the similarities at a time goes through the matrix products of torch and is never stored, nor is any
    target; the forward pass finishes the gradients that are needed.

    Args:
        image_features: ``[pairs, features]``; float64, float32, float16 or bfloat16. They are not normalised here.
        text_features: of the same shape and dtype.
        logit_scale: :math:`t`, ``[]`` or ``[1]``, of any floating dtype, or a number: the temperature itself, as
            ``model.logit_scale.exp()``.
        logit_bias: :math:`b`, likewise; None: 0.
        group: over which processes the pairs are spread, each with as many: the loss of one is that of its images with
            the texts of all, divided by the number of its images, so that the mean of these losses, and of the
            gradients of parameters that :class:`~torch.nn.parallel.DistributedDataParallel` takes the mean of, is that
            of one process with all pairs. The gradient of ``text_features`` has the parts of all processes' losses,
            each times its own ``grad_output``; every process has to take part in the backward pass too. None: this
            process alone.
        tile_bytes: how many bytes a tile may take. None: 8 MiB on the CPU, else 256 MiB. The products and the order of
            the sums depend on it, so results differ by rounding.

    Returns:
        A scalar: float64 for float64 features, else float32. The similarities are of the same dtype, whatever that of
        the features. Under autocast features that are not float64 are taken in autocast's dtype.

        Differentiable in all four tensors. On the CPU the sums over a tile are made in an order that the tile's size
        fixes; the products are torch's. Under ``torch.func``, forward-mode AD, ``vmap`` and ``create_graph`` all
        similarities are stored at once; with ``group`` these are refused. float16: gradients are made in float32, and
        rounded when they have been multiplied by ``grad_output``.

    Raises:
        TypeError: an argument is not a tensor, or the features differ in dtype.
        ValueError: a shape or ``tile_bytes`` that does not fit; with ``group``, processes that differ in them.
        RuntimeError: tensors on different devices.
        NotImplementedError: a dtype or layout that is not supported; with ``group`` a derivative of a derivative.

    Formula: Zhai, Mustafa, Kolesnikov and Beyer, "Sigmoid loss for language image pre-training"; ``csrc/pairs.h``,
    ``docs/derivation.md``.
    """
    given = image_features, text_features, logit_scale, logit_bias
    if has_torch_function_variadic(*given):
        return handle_torch_function(sigmoid_contrastive_loss, given, *given, group=group, tile_bytes=tile_bytes)
    operands: Any = *given[:2], *(arguments.beside(n, image_features) for n in given[2:])
    if torch.compiler.is_compiling():  # checked without data (registration.py)
        return _loss(group, *operands, tile_bytes)
    try:
        return _loss(group, *operands, tile_bytes)
    except Exception as error:
        refusal = error
    try:
        names = "image_features", "text_features", "logit_scale"
        checks.tensors(_OP, dict(zip(names, operands, strict=False)), logit_bias=operands[3])
        dist = torch.distributed
        if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(f"{_OP}: expected group to be a ProcessGroup or None, got {type(group).__name__}")
        for name, number in zip(("logit_scale", "logit_bias"), operands[2:], strict=True):
            if number is not None:  # a sparse one has no shape that pairs_operands could give it
                checks.strided(_OP, name, number, NotImplementedError)
        checks_pairs.pairs(*(*autograd.pairs_operands(*operands), tile_bytes))
        raise refusal
    finally:
        del refusal

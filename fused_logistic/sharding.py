"""DTensor: how each op is computed on shards, and the mean over shards of different sizes.

Elementwise results are sharded as the logits are, along any dimension; a sum over shards is a partial sum. A mean of
local means would be wrong where the shards have different sizes, so the ops' own mean runs on replicated operands only,
and :func:`mean` makes it from the sum over the global number of elements, without gathering anything.

``torch.distributed.tensor`` is not imported here: where nobody has, there are no DTensors.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor; registers the ops' sharding rules before the first one is computed with."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not isinstance(tensor, module.DTensor):
        return False
    register()
    return True


def mean(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    label_smoothing: float,
    ignore_index: int | None,
    dtype: torch.dtype | None = None,
    *focal: float | None,
) -> Tensor:
    """The mean loss of sharded logits: a partial sum on each device, over the number of elements of all of them.

    Of elements that are masked out or ignored only their number goes from device to device.
    """
    if dtype is None:
        dtype = target.dtype if target.is_floating_point() else input.dtype
        if dtype != torch.double and torch.is_autocast_enabled(input.device.type):
            dtype = torch.float
    summed = torch.double if dtype == torch.double else torch.float  # a sum in half precision would overflow
    total = ops.bce(input, target, weight, pos_weight, mask, ops.SUM, label_smoothing, ignore_index, summed, *focal)
    if mask is None and ignore_index is None:
        return (total / input.numel()).to(dtype)
    count = _count(input, target, mask, ignore_index)
    # nothing left: NaN, but gradients of 0, as from the ops' own mean
    return (total / count.clamp(min=1) + 0.0 / count).to(dtype)


def _count(input: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int | None) -> Tensor:
    """The number of elements, on all devices, that are neither masked out nor ignored."""
    from torch.distributed.tensor import Replicate

    count: Any = ops.kept_elements(input, target, mask, ignore_index).sum()
    return count.redistribute(placements=[Replicate()] * count.device_mesh.ndim)


def _operand(spec: Any, ndim: int, dim: int) -> Any:
    """The placement of an operand that broadcasts to logits of ``ndim`` dimensions sharded along ``dim``."""
    from torch.distributed.tensor import Replicate, Shard

    if spec is None:
        return None
    own = dim - (ndim - len(spec.shape))
    return Shard(own) if own >= 0 and spec.shape[own] != 1 else Replicate()


def _placements(operands: Sequence[Any], shard_reduced: bool) -> list[tuple[int | None, list[Any]]]:
    """(the sharded dimension or None, the operands' placements), replicated first."""
    from torch.distributed.tensor import Replicate

    found: list[tuple[int | None, list[Any]]] = [(None, [None if s is None else Replicate() for s in operands])]
    ndim = len(operands[0].shape)
    if shard_reduced:
        found += [(dim, [_operand(s, ndim, dim) for s in operands]) for dim in range(ndim)]
    return found


@functools.cache
def register() -> None:
    """Registers the rules; ops that DTensor has no rule for raise."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def elementwise(dim: int | None) -> Any:
        return Replicate() if dim is None else Shard(dim)

    def reduced(dim: int | None) -> Any:
        return Replicate() if dim is None else Partial("sum")

    @register_sharding(ops.bce)
    def bce(*args: Any) -> list[Any]:
        operands, reduction = args[:5], args[5]
        output = elementwise if reduction == ops.NONE else reduced
        cases = _placements(operands, reduction != ops.MEAN)
        return [([output(dim)], [*placed, *[None] * (len(args) - 5)]) for dim, placed in cases]

    @register_sharding(ops.bce_with_grad)
    def bce_with_grad(*args: Any) -> list[Any]:
        cases = _placements(args[:5], args[5] != ops.MEAN)
        return [([reduced(dim), elementwise(dim)], [*placed, *[None] * (len(args) - 5)]) for dim, placed in cases]

    @register_sharding(ops.bce_backward)
    def bce_backward(grad_output: Any, *args: Any) -> list[Any]:
        operands, reduction = args[:5], args[5]
        ndim = len(operands[0].shape)
        result = []
        for dim, placed in _placements(operands, reduction != ops.MEAN):
            grad = Replicate() if dim is None else _operand(grad_output, ndim, dim)
            result.append(([elementwise(dim)], [grad, *placed, *[None] * (len(args) - 5)]))
        return result

    @register_sharding(ops.scale_)
    def scale_(self: Any, factor: Any) -> list[Any]:
        return [([], [elementwise(dim), Replicate()]) for dim in (None, *range(len(self.shape)))]

    # Which optional operands are there decides what the rules return, so it belongs to the key that DTensor caches
    # them under. By default that begins at the first int argument.
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo

    propagator = DTensor._op_dispatcher.sharding_propagator
    for op in (ops.bce, ops.bce_with_grad, ops.bce_backward):
        propagator.op_to_schema_info[op] = RuntimeSchemaInfo(static_argnum=0, needs_pytree=True)

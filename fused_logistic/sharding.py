"""DTensor: how each op is computed on shards, and the mean over shards of different sizes.

Elementwise results are sharded as the logits are, along any dimension; a sum over shards is a partial sum. A mean of
local means would be wrong where the shards have different sizes, so a mean is given the number of elements of all
shards, by which each shard divides: a partial sum again, and nothing is gathered.

``torch.distributed.tensor`` is not imported here: where nobody has, there are no DTensors.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops, targets


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor; registers the ops' sharding rules before the first one is computed with."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor) and register()


def replicated_like(tensor: Any, count: Any) -> Any:
    """A count, which each process has whole or its part of, as the count of all of them beside a DTensor; beside any
    other tensor as it is."""
    if not is_dtensor(tensor):
        return count
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * tensor.device_mesh.ndim
    if is_dtensor(count):
        return count.redistribute(placements=placements)
    return DTensor.from_local(count, tensor.device_mesh, placements, run_check=False)


def reduced(
    loss: Callable[..., Tensor],
    input: Any,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    count: Any,
    reduction: int,
    dtype: torch.dtype,
    *options: Any,
) -> Tensor:
    """``loss`` of sharded logits, given the number of elements of all shards.

    Of elements that are masked out or ignored only their number goes from device to device. What the shards add up is
    rounded to ``dtype`` once, at the end.
    """
    if count is None and reduction == ops.MEAN:
        count = torch.full((), input.numel(), dtype=torch.float64, device=input.device)
    if count is not None:
        count = replicated_like(input, count)
    summed = dtype if dtype == torch.float64 else torch.float32
    return loss(input, target, weight, pos_weight, mask, count, reduction, summed, *options).to(dtype)


def _operand(spec: Any, ndim: int, dim: int) -> Any:
    """The placement of an operand that broadcasts to logits of ``ndim`` dimensions sharded along ``dim``."""
    from torch.distributed.tensor import Replicate, Shard

    if spec is None:
        return None
    own = dim - (ndim - len(spec.shape))
    return Shard(own) if own >= 0 and spec.shape[own] != 1 else Replicate()


_Cases = list[tuple[int | None, list[Any]]]


def _placements(operands: Sequence[Any], shard_reduced: bool) -> _Cases:
    """(the sharded dimension or None, the operands' placements), replicated first."""
    from torch.distributed.tensor import Replicate

    found: _Cases = [(None, [None if s is None else Replicate() for s in operands])]
    ndim = len(operands[0].shape)
    if shard_reduced:
        found += [(dim, [_operand(s, ndim, dim) for s in operands]) for dim in range(ndim)]
    return found


def _of_classes(cases: _Cases, classes: int) -> _Cases:
    """Those where the target is class indices: one of them speaks of all classes, so that these stay together."""
    from torch.distributed.tensor import Shard

    for dim, placed in cases:
        if dim is not None:
            placed[1] = Shard(dim - (dim > classes))  # the target has no dimension of the classes
    return [(dim, placed) for dim, placed in cases if dim != classes]


def register() -> bool:
    """Registers the rules; ops that DTensor has no rule for raise."""
    _register()
    return True


register._dynamo_marked_constant = True  # type: ignore[attr-defined]  # Dynamo calls it, and does not trace it


@functools.cache
def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def elementwise(dim: int | None) -> Any:
        return Replicate() if dim is None else Shard(dim)

    def summed(dim: int | None) -> Any:
        return Replicate() if dim is None else Partial("sum")

    def cases(operands: Sequence[Any], reduction: int) -> _Cases:
        # a mean over shards has to know the number of elements of all of them
        found = _placements(operands, reduction != ops.MEAN or operands[5] is not None)
        shape, of_target = operands[0].shape, operands[1].shape
        return _of_classes(found, targets.class_dim(shape)) if len(of_target) < len(shape) else found

    @register_sharding(ops.bce)
    def bce(*args: Any) -> list[Any]:
        output = elementwise if args[6] == ops.NONE else summed
        rest = [None] * (len(args) - 6)
        return [([output(dim)], [*placed, *rest]) for dim, placed in cases(args[:6], args[6])]

    @register_sharding(ops.bce_with_grad)
    def bce_with_grad(*args: Any) -> list[Any]:
        rest = [None] * (len(args) - 6)
        return [([summed(dim), elementwise(dim)], [*placed, *rest]) for dim, placed in cases(args[:6], args[6])]

    @register_sharding(ops.bce_with_grad_for)
    def bce_with_grad_for(grad_output: Any, *args: Any) -> list[Any]:
        return [(results, [Replicate(), *given]) for results, given in bce_with_grad(*args)]

    @register_sharding(ops.bce_backward)
    def bce_backward(grad_output: Any, *args: Any) -> list[Any]:
        ndim, rest, result = len(args[0].shape), [None] * (len(args) - 6), []
        for dim, placed in cases(args[:6], args[6]):
            grad = Replicate() if dim is None else _operand(grad_output, ndim, dim)
            result.append(([elementwise(dim)], [grad, *placed, *rest]))
        return result

    @register_sharding(ops.bce_backward_)
    def bce_backward_(grad_logits: Any, grad_output: Any, made_for: Any, *args: Any) -> list[Any]:
        given, rest = [Replicate(), None if made_for is None else Replicate()], [None] * (len(args) - 6)
        return [([], [elementwise(dim), *given, *placed, *rest]) for dim, placed in cases(args[:6], args[6])]

    @register_sharding(ops.bce_count)
    def bce_count(target: Any, mask: Any, *ignored: Any) -> list[Any]:
        rest = [None] * len(ignored)
        return [([summed(dim)], [*placed, *rest]) for dim, placed in _placements([target, mask], True)]

    # Which optional operands are there decides what the rules return, so it belongs to the key that DTensor caches
    # them under. By default that begins at the first int argument.
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo

    propagator = DTensor._op_dispatcher.sharding_propagator
    for op in (ops.bce, ops.bce_with_grad, ops.bce_with_grad_for, ops.bce_backward, ops.bce_backward_, ops.bce_count):
        propagator.op_to_schema_info[op] = RuntimeSchemaInfo(static_argnum=0, needs_pytree=True)

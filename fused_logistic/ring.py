"""The loss of pairs that are spread over processes: the texts go round in a ring, and so do their gradients.

A process meets its own texts first and then those of the ring's last neighbours, one after the other, each on its way
while the ones before it are worked on. What its loss says of their gradient it keeps, for the backward pass, where each
process multiplies it by its own ``grad_output``: a sum sets out from the first process behind the owner, gathers a part
at each, and ends at the owner. Of the texts no process holds more than two blocks at a time, of the gradients all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import autograd, checks, checks_pairs, composite_pairs, ops
from .pairs import Tiles


def default_group(rank: int, world_size: int) -> dist.ProcessGroup:
    """torch.distributed's, if it is the one that is meant."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(f"SigLipLoss: expected torch.distributed to be initialized for world_size={world_size}")
    there = dist.get_rank(), dist.get_world_size()
    if there != (rank, world_size):
        raise RuntimeError(
            f"SigLipLoss: expected the default group's rank {there[0]} and world_size {there[1]}, "
            f"got {rank} and {world_size}"
        )
    assert dist.group.WORLD is not None
    return dist.group.WORLD


class _Ring:
    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.size, rank = group, dist.get_world_size(group), dist.get_rank(group)
        if rank < 0:
            raise ValueError(f"{checks_pairs.PAIRS}: expected a group that this process belongs to")
        self.next = dist.get_global_rank(group, (rank + 1) % self.size)
        self.previous = dist.get_global_rank(group, (rank - 1) % self.size)

    def check_alike(self, features: Tensor, has_gradient: bool) -> None:
        """That all processes have the same: a ring of different ones would hang. (This waits for the device.)"""
        code = checks.FLOATS.index(features.dtype)
        mine = torch.tensor([*features.shape, code, has_gradient], device=features.device)
        all_there = torch.stack([torch.empty_like(mine) for _ in range(self.size)])
        dist.all_gather(list(all_there.unbind()), mine, group=self.group)
        of_all = all_there.tolist()
        if any(of_one != of_all[0] for of_one in of_all):
            got = ", ".join(
                f"{checks.dtype_name(checks.FLOATS[code])} {shape}{'' if gradient else ' without gradient'}"
                for *shape, code, gradient in of_all
            )
            raise ValueError(
                f"{checks_pairs.PAIRS}: expected text_features alike in all processes of the group, got {got}"
            )

    def begin_shift(self, tensor: Tensor) -> tuple[Tensor, list[Any]]:
        """Sends it to the next process; -> where that of the previous one will be, and what to wait for."""
        received = torch.empty_like(tensor)
        exchange = [
            dist.P2POp(dist.isend, tensor, self.next, self.group),
            dist.P2POp(dist.irecv, received, self.previous, self.group),
        ]
        return received, dist.batch_isend_irecv(exchange)

    def shifted(self, tensor: Tensor) -> Tensor:
        received, works = self.begin_shift(tensor)
        for work in works:
            work.wait()
        return received


class RingOfPairs(torch.autograd.Function):
    """``apply(ring, *arguments of torch.ops.fused_logistic.pairs) -> loss``"""

    @staticmethod
    def forward(ctx: Any, ring: _Ring, *args: Any) -> Tensor:
        image, text, logit_scale, logit_bias, tile_bytes = args
        ctx.ring = ring
        ctx.output_mask = [t is not None and ctx.needs_input_grad[1 + i] for i, t in enumerate(args[:4])]
        tiles = Tiles(image, logit_scale, logit_bias, tile_bytes, ctx.output_mask)
        parts, block = [], text.contiguous()
        for step in range(ring.size):
            incoming, works = ring.begin_shift(block) if step + 1 < ring.size else (block, [])
            parts.append(tiles.add(block, paired=step == 0))
            for work in works:
                work.wait()
            block = incoming
        ctx.gradients = *tiles.gradients(None), *(tiles.finished(*parts) if ctx.output_mask[1] else ())
        ctx.save_for_backward(*args[:4])
        return tiles.loss()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(f"{checks_pairs.PAIRS}: expected no derivative of a derivative over a group")
        ring, parts = ctx.ring, ctx.gradients[4:]
        image, text, scale, bias = (g * grad_output for g in ctx.gradients[:4])
        if parts:
            # at each step every process has the sum for another one's texts in its hands; the last are its own
            text = parts[1 % ring.size] * grad_output
            for step in range(2, ring.size + 1):
                text = ring.shifted(text).addcmul_(parts[step % ring.size], grad_output)
        gradients = composite_pairs.like_operands((image, text, scale, bias), ctx.saved_tensors, ctx.output_mask)
        return None, *(g if asked else None for g, asked in zip(gradients, ctx.output_mask, strict=True)), None


@torch._disable_dynamo
def loss(group: dist.ProcessGroup, *args: Any) -> Tensor:
    """The loss of ``pairs``' arguments, which are this process's share."""
    if ops.transformed():
        raise NotImplementedError(
            f"{checks_pairs.PAIRS}: expected no transform of torch.func and no tangent over a group"
        )
    args = autograd.pairs_operands(*args)
    checks_pairs.pairs(*args)
    ring = _Ring(group)
    if not torch.is_grad_enabled():
        args = tuple(t.detach() if isinstance(t, Tensor) else t for t in args)
    ring.check_alike(args[1], args[1].requires_grad)
    return RingOfPairs.apply(ring, *args)

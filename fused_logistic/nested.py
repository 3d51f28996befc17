"""Jagged nested tensors: a loss of logits that are a list of parts is computed of their values, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_jagged(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_nested and tensor.layout == torch.jagged


def values(op: str, logits: Any, operands: dict[str, Any]) -> list[Any]:
    """The values of the logits and of operands of their structure; others as they are, if they fit to every part.

    Values beyond the last offset count, as in torch's own sums.

    Raises:
        NotImplementedError: ``logits`` have holes (``torch.nested.narrow``).
        ValueError: a nested operand has another structure.
        RuntimeError: another operand does not broadcast to every part.
    """
    if logits.lengths() is not None:
        raise NotImplementedError(f"{op}: expected nested logits without holes, got some of torch.nested.narrow")
    found = [logits.values()]
    for name, operand in operands.items():
        if is_jagged(operand):
            if not _same_structure(operand, logits):
                raise ValueError(f"{op}: expected {name} of the structure of the nested logits, got another")
            operand = operand.values()
        elif isinstance(operand, Tensor):
            missing = found[0].dim() - operand.dim()
            ragged = logits._ragged_idx - 1 - missing  # the operand's dimension that differs from part to part
            if missing < 0 or (ragged >= 0 and operand.shape[ragged] != 1):
                shape = list(operand.shape)
                raise RuntimeError(f"{op}: expected {name} that broadcasts to every part of the logits, got {shape}")
        found.append(operand)
    return found


def _same_structure(a: Any, b: Any) -> bool:
    if a.lengths() is not None or a._ragged_idx != b._ragged_idx:
        return False
    if a.offsets() is b.offsets():
        return True
    if torch.compiler.is_compiling():
        return a.shape[a._ragged_idx] == b.shape[b._ragged_idx]
    return torch.equal(a.offsets(), b.offsets())


def like(logits: Any, losses: Tensor) -> Tensor:
    """Elementwise losses as a nested tensor of the logits' structure."""
    return torch.nested.nested_tensor_from_jagged(losses, logits.offsets(), jagged_dim=logits._ragged_idx)

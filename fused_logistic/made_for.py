"""For which ``grad_output`` the forward pass makes gradients: the one that a backward pass of such a loss got last."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops


def known(grad_output: Tensor) -> float | None:
    """Its value: looked at only where that waits for no device and nothing records it, else None."""
    if type(grad_output) is not Tensor or not grad_output.is_cpu or torch.compiler.is_compiling() or ops.recorded():
        return None
    return grad_output.item()


class MadeFor(NamedTuple):
    """A ``grad_output``: a copy of our own, which nothing changes, and the number where it is known without waiting."""

    tensor: Tensor | None  # as the ops take it: None stands for 1
    value: float | None
    age: int = 0  # in backward passes


ONE = MadeFor(None, 1)
# What was last, by what kind_of tells of a loss; the oldest are forgotten. Empty where only 1 was known to be.
_last: dict[tuple[Any, ...], MadeFor] = {}
_MOST = 256
_RENEWED = 16  # backward passes, where nobody knows whether it is another number: on a GPU a copy is a launch
_forgetting = threading.Lock()


def kind_of(logits: Tensor, reduction: int, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """Losses among which ``grad_output`` is expected to stay what it is; None: of this one 1 is expected.

    By stream, in whose order the copies are written and read. Not while a CUDA graph is captured: a replay would write
    into the copies that were made then.
    """
    if type(logits) not in ops.PLAIN or ops.recorded():
        return None
    stream = 0
    if logits.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return None
        stream = torch._C._cuda_getCurrentRawStream(logits.get_device())
    elif not logits.is_cpu:
        return None
    return logits.device, stream, reduction, dtype, logits.numel()


def expected(logits: Tensor, reduction: int, dtype: torch.dtype) -> MadeFor:
    """What to make the gradient for."""
    kind = kind_of(logits, reduction, dtype) if _last else None
    return ONE if kind is None else _last.get(kind, ONE)


def remember(kind: tuple[Any, ...] | None, grad_output: Tensor, value: float | None) -> None:
    if kind is None or type(grad_output) is not Tensor:
        return
    if value == 1:
        _last.pop(kind, None)
    elif value is None or (value != 0 and not math.isnan(value)):  # those two are never recognised
        last = _last.get(kind, ONE)
        if value is None and last is not ONE and last.age + 1 < _RENEWED:
            _last[kind] = last._replace(age=last.age + 1)
        else:  # its owner may change a tensor in ways that no version tells
            _last[kind] = MadeFor(grad_output.detach().clone(), value)
    if len(_last) > _MOST:
        with _forgetting:
            while len(_last) > _MOST:
                _last.pop(list(_last)[0], None)

"""What users may give where an op takes a number, or a tensor beside the logits."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import torch
from torch import Tensor

from . import checks, divisor, ops
from .options import Options

_NUMBERS: Any = (int, float, numbers.Real)  # numpy's are of the last; Dynamo takes the first two
_DIVISORS: Any = (str, Tensor, *_NUMBERS)


def option(op: str, name: str, value: Any) -> float | Tensor:
    """An option as a number; as a tensor where its derivative or its elements are asked for, or where it may change.

    The ops take numbers. A tensor is computed with by torch's operations, differentiably
    (:func:`fused_logistic.autograd.loss`).

    Raises:
        TypeError: it is neither a number nor a real tensor.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{op}: expected {name} to be a real number or tensor, got {value.dtype}")
        return float(value) if _is_known(value) else value
    check_number(op, name, value, " or a torch.Tensor")
    if torch.compiler.is_compiling() and not _is_constant(value):
        if name != "alpha" or value != -1:
            Options()._replace(**{name: value}).check_ranges(op)  # which is not known of the tensor
        # one graph for all values: an op's number would be compiled in
        return torch.ones((), dtype=torch.float64, device="cpu") * value
    return float(value)


def number(op: str, name: str, value: Any) -> float:
    """An option that is a number and no tensor; in compiled code a constant.

    Raises:
        TypeError: it is something else.
    """
    check_number(op, name, value)
    return float(value)


def check_number(op: str, name: str, value: Any, or_else: str = "", *, refused: Any = ()) -> None:
    """Raises TypeError if it is no number, or of the ``refused`` types, such as bool."""
    if not isinstance(value, _NUMBERS) or isinstance(value, refused):
        raise TypeError(f"{op}: expected {name} to be a number{or_else}, got {type(value).__name__}")


def integer(op: str, name: str, value: Any) -> int | None:
    """An option that is an integer or None.

    Raises:
        TypeError: it is neither.
        ValueError: it has more than 64 bits.
    """
    if value is None:
        return value
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: expected {name} to be an int, got {value!r}") from None
    if not -(1 << 63) <= index < 1 << 63:
        raise ValueError(f"{op}: expected {name} to be an int of 64 bits, got {value!r}")
    return index


def flag(op: str, name: str, value: Any) -> bool:
    """An option that is True or False.

    Raises:
        TypeError: it is neither.
    """
    if type(value) is not bool:
        raise TypeError(f"{op}: expected {name} to be a bool, got {value!r}")
    return value


def _is_known(value: Tensor) -> bool:
    """Whether it can be looked at for free, and nobody asks for more than its value."""
    if type(value) is not Tensor or not value.is_cpu or value.dim() > 0 or torch.compiler.is_compiling():
        return False
    differentiated = (value.requires_grad and torch.is_grad_enabled()) or ops.transformed()
    return not (differentiated or ops.recorded())


def _is_constant(value: float) -> bool:
    """In compiled code, whether it is one, and not an input that has been seen to change."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # what is known of a constant, NaN included; a name instead of the number would be another input
    return statically_known_true(value <= 0.0) or statically_known_true(value > 0.0) or value != value


def beside(value: Any, logits: Any) -> Any:
    """A weight as torch takes it beside the logits: also a number, or one without dimensions that is on the CPU."""
    if not isinstance(logits, Tensor):
        return value  # refused later
    if isinstance(value, Tensor):
        return value.to(logits.device) if value.dim() == 0 and value.is_cpu and not logits.is_cpu else value
    if isinstance(value, _NUMBERS):
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64  # which the former has not
        return torch.ones((), dtype=dtype, device=logits.device) * value
    return value


def normalizer(op: str, value: Any, reduction: int, logits: Any) -> str | Tensor | None:
    """What a mean divides by, as :func:`fused_logistic.divisor.of` takes it: a name, None for the default, or what was
    given as one float64 tensor, differentiable.

    Raises:
        TypeError: it is neither a string nor a number nor a real tensor.
        ValueError: it is not a name, not a number > 0 or not one element, or there is no mean to divide.
        RuntimeError: it is on another device; one without dimensions may be on the CPU.
    """
    if isinstance(value, str) and value == divisor.NORMALIZERS[0]:
        return None
    if isinstance(value, bool) or not isinstance(value, _DIVISORS):
        raise TypeError(f"{op}: expected normalizer to be a str, a number or a tensor, got {type(value).__name__}")
    if isinstance(value, str):
        if value not in divisor.NORMALIZERS:
            names = ", ".join(map(repr, divisor.NORMALIZERS))
            raise ValueError(f"{op}: expected normalizer to be {names}, a number or a tensor, got {value!r}")
    elif isinstance(value, Tensor):
        checks.strided(op, "normalizer", value, ValueError)
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{op}: expected normalizer to be real, got {checks.dtype_name(value.dtype)}")
        if value.numel() != 1:
            raise ValueError(f"{op}: expected normalizer of one element, got {list(value.shape)}")
    elif not 0 < value < math.inf:
        raise ValueError(f"{op}: expected normalizer to be finite and > 0, got {value:g}")
    if reduction != ops.MEAN:
        got = "sum" if reduction == ops.SUM else "none"
        raise ValueError(f"{op}: expected reduction 'mean' with a normalizer, got {got!r}")
    if isinstance(value, str) or not isinstance(logits, Tensor):
        return value
    value = beside(value, logits)
    checks.same_device(op, "normalizer", value, logits)
    return value.reshape(()).double()

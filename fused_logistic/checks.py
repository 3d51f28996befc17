"""What the ops ask of their arguments, with torch's error classes: each message names what was expected and what came.

A kernel looks only whether its arguments fit, so that a good call pays nothing. These checks say what is wrong: after a
kernel refused, before a composition, and wherever there is no data to run a kernel on (fake and meta tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import targets
from .ops import PLAIN, wrapped
from .options import LAYER, Options

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_READABLE = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's own messages spell it: Float, Long, ComplexFloat."""
    return torch.empty(0, dtype=dtype, device="cpu").type().removeprefix("torch.").removesuffix("Tensor")


def layout_name(layout: torch.layout) -> str:
    """Likewise: Strided, Sparse, SparseCsr."""
    words = str(layout).removeprefix("torch.").removesuffix("_coo").split("_")
    return "".join(word.capitalize() for word in words)


_MAY_BE_NUMBERS = ("weight", "pos_weight")  # which are tensors by now


def tensors(op: str, required: dict[str, object], **optional: object) -> None:
    """Every value is a tensor or, where it is optional, None."""
    for name, value in (*required.items(), *optional.items()):
        if not isinstance(value, Tensor) and (name in required or value is not None):
            kind = "a number or a torch.Tensor" if name in _MAY_BE_NUMBERS else "a torch.Tensor"
            raise TypeError(f"{op}: expected {name} to be {kind}, got {type(value).__name__}")


def strided(op: str, name: str, tensor: Tensor, error: type[Exception], hint: str = "") -> None:
    if tensor.is_nested:
        layout = str(tensor.layout).removeprefix("torch.")
        raise error(f"{op}: expected a nested tensor as {name} only if all are, and of layout jagged, got {layout}")
    if tensor.layout != torch.strided:
        raise error(f"{op}: expected {name} of layout torch.strided, got {layout_name(tensor.layout)}{hint}")


def same_device(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise RuntimeError(f"{op}: expected {name} on {like.device}, got {tensor.device}")


def allocated(op: str, name: str, tensor: Tensor) -> None:
    """A storage that was freed, as by ``untyped_storage().resize_(0)``, has nothing to read; known of eager ones."""
    if type(tensor) not in PLAIN or tensor.is_meta or tensor.layout != torch.strided or torch.compiler.is_compiling():
        return
    if not wrapped(tensor) and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0:
        raise RuntimeError(f"{op}: expected {name} with a storage for its elements, got one of 0 bytes")


def equals(mine: Any, wanted: Any, message: Callable[[], str]) -> None:
    """Two sizes: numbers, symbols of them, or what torch.jit.trace makes of them."""
    equal = mine == wanted
    if isinstance(equal, torch.SymBool):
        torch._check_value(equal, message)
    elif not equal:
        raise ValueError(message())


def same_shape(op: str, name: str, tensor: Tensor, shape: Sequence[Any], hint: str = "") -> None:
    def message() -> str:
        return f"{op}: expected {name} of shape {list(shape)}, got {list(tensor.shape)}{hint}"

    equals(tensor.dim(), len(shape), message)
    for mine, wanted in zip(tensor.shape, shape, strict=True):
        equals(mine, wanted, message)


def broadcasts(op: str, name: str, tensor: Tensor, shape: Sequence[Any]) -> None:
    missing = len(shape) - tensor.dim()
    pairs = zip(tensor.shape, shape[max(missing, 0) :], strict=False)
    if missing < 0 or any(mine != 1 and mine != wanted for mine, wanted in pairs):
        raise RuntimeError(
            f"{op}: expected {name} of a shape that broadcasts to {list(shape)}, got {list(tensor.shape)}"
        )


def _one_of(dtypes: Sequence[torch.dtype]) -> str:
    *first, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"of dtype {', '.join(first)} or {last}"


def readable(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _READABLE:
        raise NotImplementedError(f"{op}: expected {name} {_one_of(_READABLE)}, got {dtype_name(tensor.dtype)}")


def floating(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise NotImplementedError(f"{op}: expected {name} {_one_of(FLOATS)}, got {dtype_name(tensor.dtype)}")


def boolean(op: str, mask: Tensor | None) -> None:
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"{op}: expected mask of dtype bool, got {dtype_name(mask.dtype)}")


def known_reduction(op: str, reduction: int) -> None:
    if reduction not in (0, 1, 2):
        raise ValueError(f"{op}: expected reduction 0 (none), 1 (mean) or 2 (sum), got {reduction}")


def size(op: str, name: str, value: object) -> None:
    """In bytes; None: what we choose."""
    if value is None:
        return
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: expected {name} to be an int or None, got {value!r}")
    if value <= 0:
        raise ValueError(f"{op}: expected {name} > 0, got {value}")


def reduced(op: str, reduction: int) -> None:
    """For the ops that give gradients with the loss, which is then a mean or a sum."""
    if reduction not in (1, 2):
        raise ValueError(f"{op}: expected reduction 1 (mean) or 2 (sum), got {reduction}")


def mean_count(op: str, count: Tensor | None, like: Tensor, partial: bool, reduction: int) -> None:
    if count is None:
        if partial and reduction == 1:
            raise ValueError(f"{op}: expected count for a mean over some of the elements (bce_count), got None")
        return
    if count.dtype != torch.float64 or count.dim() != 0:
        raise ValueError(
            f"{op}: expected count to be a float64 scalar, got {dtype_name(count.dtype)} {list(count.shape)}"
        )
    same_device(op, "count", count, like)


def fitting_options(op: str, options: Options, like: Tensor, logits: Sequence[Any]) -> None:
    """Those that are tensors; one without dimensions may be on the CPU, as in torch's own operations."""
    for name, option in zip(options._fields, options, strict=True):
        if isinstance(option, Tensor):
            broadcasts(op, name, option, logits)
            if option.dim() > 0 or not option.is_cpu:
                same_device(op, name, option, like)


def loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    count: Tensor | None,
    reduction: int,
    *options: Any,
    names: tuple[str, str] = ("logits", "target"),
) -> None:
    """What every op of the losses asks: see :func:`fused_logistic.binary_cross_entropy_with_logits`.

    The first two arguments are called ``names`` in messages.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as the public functions say.
    """
    given = Options(*options)
    op = given.loss
    of_logits, of_target = names
    floating(op, of_logits, logits)
    strided(op, of_logits, logits, NotImplementedError)
    strided(op, of_target, target, NotImplementedError, f"; {LAYER} takes sparse targets")
    if targets.are_classes(logits.shape, target):
        dim = targets.class_dim(logits.shape)
        same_shape(op, f"{of_target} of class indices", target, [*logits.shape[:dim], *logits.shape[dim + 1 :]])
    else:
        is_number = target.dtype.is_floating_point or target.dtype is torch.bool
        is_hint = is_number and logits.dim() > 1 and target.dim() == logits.dim() - 1
        hint = "; class indices are of an integer dtype" if is_hint else ""
        same_shape(op, of_target, target, logits.shape, hint)
    same_device(op, of_target, target, logits)
    readable(op, of_target, target)
    allocated(op, of_logits, logits)
    allocated(op, of_target, target)
    for name, tensor in (("weight", weight), ("pos_weight", pos_weight), ("mask", mask)):
        if tensor is None:
            continue
        strided(op, name, tensor, NotImplementedError)
        same_device(op, name, tensor, logits)
        broadcasts(op, name, tensor, logits.shape)
        readable(op, name, tensor)
        allocated(op, name, tensor)
    boolean(op, mask)
    known_reduction(op, reduction)
    given.check(op)
    fitting_options(op, given, logits, logits.shape)
    mean_count(op, count, logits, mask is not None or given.leaves_out, reduction)


# ---- By the ops' own arguments ---------------------------------------------------------------------------------------


def result_dtype(op: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise ValueError(f"{op}: expected a result {_one_of(FLOATS)}, got {dtype_name(dtype)}")


def bce(*args: Any) -> None:
    loss(*args[:7], *args[8:])
    result_dtype("bce", args[7])


def bce_with_grad(*args: Any) -> None:
    bce(*args)
    reduced("bce_with_grad", args[6])


def bce_with_grad_for(grad_output: Tensor, *args: Any) -> None:
    bce(*args)
    reduced("bce_with_grad_for", args[6])
    one_number("bce_with_grad_for", "grad_output", grad_output, args[0])


def one_number(op: str, name: str, tensor: Tensor, logits: Tensor) -> None:
    same_shape(op, name, tensor, ())
    same_device(op, name, tensor, logits)


def bce_backward(grad_output: Tensor, *args: Any) -> None:
    operands, wrt = args[:6], args[7]
    loss(*args[:7], *args[8:])
    broadcasts("bce_backward", "grad_output", grad_output, operands[0].shape)
    same_device("bce_backward", "grad_output", grad_output, operands[0])
    if wrt not in range(4) or operands[wrt] is None:
        raise ValueError(f"bce_backward: expected wrt between 0 and 3, of an operand that is given, got {wrt}")
    result_dtype("bce_backward", operands[wrt].dtype)


def bce_backward_(grad_logits: Tensor, grad_output: Tensor, made_for: Tensor | None, *args: Any) -> None:
    loss(*args)
    same_shape("bce_backward_", "grad_logits", grad_logits, args[0].shape)
    same_device("bce_backward_", "grad_logits", grad_logits, args[0])
    one_number("bce_backward_", "grad_output", grad_output, args[0])
    if made_for is not None:
        one_number("bce_backward_", "made_for", made_for, args[0])


def bce_count(target: Tensor, mask: Tensor | None, ignore_index: int | None, ignore_nan: bool = False) -> None:
    readable("bce_count", "target", target)
    if mask is None:
        return
    boolean("bce_count", mask)
    broadcasts("bce_count", "mask", mask, target.shape)
    same_device("bce_count", "mask", mask, target)

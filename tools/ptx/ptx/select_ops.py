"""Comparison, selection, moves and conversions."""

from __future__ import annotations

import numpy as np

from .formats import FLOATS, NUMPY, PACKED, PtxError, bits_of, is_signed, raw_type, size_of
from .memory import LOCAL_BASE, SHARED_BASE
from .operands import opcode
from .rounding import bf16_to_f32, f32_to_bf16, flush, round_to, to_f64

INTEGER_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
# Ordered comparisons are false where an operand is a NaN; the unordered ones (..u) are true there.
FLOAT_COMPARE = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
TO_FLOAT = ("rn", "rz", "rm", "rp")


@opcode("setp", "set")
def compare(operands, instruction):
    """setp writes predicates p|q = (comparison, its negation); set writes 1.0 or all ones where it holds."""
    kinds, others = instruction.split_modifiers({*INTEGER_COMPARE, *FLOAT_COMPARE, *COMBINE, "ftz"})
    kind = kinds[-1]
    as_predicate = instruction.opcode == "setp"
    combine = next((COMBINE[m] for m in others[1:] if m in COMBINE), None)
    instruction.expect_operands(4 if combine else 3)
    if len(kinds) != (1 if as_predicate else 2) or kind in PACKED or kinds[0] in PACKED:
        raise PtxError("comparison form")
    table = FLOAT_COMPARE if kind in FLOATS else INTEGER_COMPARE
    if others[0] not in table:
        raise PtxError(f"comparison .{others[0]}.{kind}")
    test = table[others[0]]
    result_kind = "pred" if as_predicate else kinds[0]
    writes = [operands.destination(name, result_kind) for name in operands.pair(instruction.operands[0])]
    left, right = (operands.source(text, kind) for text in instruction.operands[1:3])
    other = operands.source(instruction.operands[3], "pred") if combine else None
    flushing = "ftz" in others

    def run(wave, lanes):
        a, b = left(wave, lanes), right(wave, lanes)
        if kind == "bf16":
            a, b = bf16_to_f32(a), bf16_to_f32(b)
        if flushing:
            a, b = flush(a), flush(b)
        holds = test(a, b)
        results = [holds, ~holds] if len(writes) > 1 else [holds]
        if combine:
            with_other = other(wave, lanes)
            results = [combine(result, with_other) for result in results]
        if not as_predicate:
            results = [_as_value(result, result_kind) for result in results]
        for write, result in zip(writes, results, strict=False):
            write(wave, lanes, result)

    return run


def _as_value(holds: np.ndarray, kind: str) -> np.ndarray:
    if kind in ("f32", "f64", "f16"):
        return holds.astype(NUMPY[kind])
    if kind == "bf16":
        return f32_to_bf16(holds.astype(np.float32))
    return -holds.astype(f"i{size_of(kind)}")


@opcode("selp")
def select(operands, instruction):
    kind, _ = instruction.only_type()
    return operands.elementwise(instruction, lambda a, b, p: np.where(p, a, b), kind, kind, kind, "pred")


@opcode("mov")
def move(operands, instruction):
    kind, _ = instruction.only_type()
    destination, source = instruction.expect_operands(2)
    if destination.startswith("{"):
        return _unpack(operands, operands.vector(destination), source, kind)
    if source.startswith("{"):
        return _pack(operands, destination, operands.vector(source), kind)
    return operands.elementwise(instruction, lambda value: value, kind, kind)


def _part_type(kind: str, parts: int) -> str:
    bits = bits_of(kind) // parts
    if bits not in (16, 32):
        raise PtxError(f"mov of {parts} parts of .{kind}")
    return f"b{bits}"


def _unpack(operands, names: list[str], source: str, kind: str):
    part = _part_type(kind, len(names))
    whole, shift = raw_type(kind), bits_of(part)
    read = operands.source(source, kind)
    writes = [operands.destination(name, part) for name in names]

    def run(wave, lanes):
        value = read(wave, lanes).view(whole)
        for i, write in enumerate(writes):
            write(wave, lanes, (value >> whole(shift * i)).astype(NUMPY[part]))

    return run


def _pack(operands, destination: str, names: list[str], kind: str):
    part = _part_type(kind, len(names))
    whole, shift = raw_type(kind), bits_of(part)
    reads = [operands.source(name, part) for name in names]
    write = operands.destination(destination, kind)

    def run(wave, lanes):
        value = whole(0)
        for i, read in enumerate(reads):
            value = value | (read(wave, lanes).astype(whole) << whole(shift * i))
        write(wave, lanes, value.view(NUMPY[kind]))

    return run


@opcode("cvta")
def convert_address(operands, instruction):
    """Between the generic addresses and those of one space: the spaces lie at fixed distances."""
    kind, others = instruction.only_type({"to", "global", "shared", "local", "const"})
    if kind != "u64":
        raise PtxError("cvta type")
    base = np.uint64({"shared": SHARED_BASE, "local": LOCAL_BASE}.get(others[-1], 0))
    if "to" in others:
        return operands.elementwise(instruction, lambda address: address - base, kind, kind)
    return operands.elementwise(instruction, lambda address: address + base, kind, kind)


@opcode("cvt")
def convert(operands, instruction):
    kinds, others = instruction.split_modifiers({*TO_INTEGER, *TO_FLOAT, "ftz", "sat"})
    modes = [m for m in others if m in TO_INTEGER or m in TO_FLOAT]
    if len(kinds) != 2 or len(modes) > 1 or kinds[1] in PACKED:
        raise PtxError("conversion form")
    mode = modes[0] if modes else None
    target, source = kinds
    flushing, saturate = "ftz" in others, "sat" in others
    if target in PACKED:
        if source != "f32" or saturate or flushing:
            raise PtxError("packed conversion form")
        return _pack_floats(operands, instruction, target[:-2], mode)
    if source in FLOATS and target in FLOATS:
        function = _float_to_float(source, target, mode, flushing, saturate)
    elif source in FLOATS:
        function = _float_to_integer(source, target, mode, flushing)
    elif target in FLOATS:
        function = _integer_to_float(source, target, mode)
    elif saturate or mode:
        raise PtxError("saturating integer conversion")
    else:
        dtype = NUMPY[target]
        return operands.elementwise(instruction, lambda value: value.astype(dtype), target, source)
    return operands.elementwise(instruction, function, target, source)


def _pack_floats(operands, instruction, half: str, mode: str | None):
    """Two f32 to a pair of 16-bit floats, the first source in the upper half."""

    def run(high, low):
        high, low = (_narrow_f32(value, half, mode).view(np.uint16).astype(np.uint32) for value in (high, low))
        return (high << np.uint32(16)) | low

    if mode not in ("rn", "rz"):
        raise PtxError("packed conversion without rounding mode")
    return operands.elementwise(instruction, run, "b32", "f32", "f32")


def _narrow_f32(value: np.ndarray, target: str, mode: str) -> np.ndarray:
    if target == "bf16":
        return f32_to_bf16(value, mode)
    return value.astype(np.float16) if mode == "rn" else round_to(value.astype(np.float64), target, mode)


def _float_to_float(source: str, target: str, mode: str | None, flushing: bool, saturate: bool):
    if mode is None and (size_of(target) < size_of(source) or {source, target} == {"f16", "bf16"}):
        raise PtxError("narrowing conversion without rounding mode")
    plain = not flushing and not saturate

    if plain and mode is None and source == target:
        return lambda value: value
    if plain and source == "f32" and target in ("f16", "bf16"):
        return lambda value: _narrow_f32(value, target, mode)

    def run(value):
        if flushing and source == "f32":
            value = flush(value)
        value = to_f64(value, source)
        if mode in TO_INTEGER:
            value = TO_INTEGER[mode](value)
        if saturate:  # a NaN and -0 become 0
            value = np.where(value > 0, np.minimum(value, 1), 0)
        result = round_to(value, target, mode if mode in TO_FLOAT else "rn")
        return flush(result) if flushing and target == "f32" else result

    return run


def _float_to_integer(source: str, target: str, mode: str | None, flushing: bool):
    """Values out of range become the nearest integer in range.

    A NaN becomes the sign bit alone if the source is f64 or the target has 64 bits, else 0 (the PTX manual on cvt).
    """
    if mode not in TO_INTEGER:
        raise PtxError("float to integer without rounding mode")
    dtype = NUMPY[target]
    limits = np.iinfo(dtype)
    of_nan = 2.0 ** (bits_of(target) - 1) if source == "f64" or bits_of(target) == 64 else 0.0
    of_nan = -of_nan if is_signed(target) else of_nan

    def run(value):
        value = flush(value) if flushing and source == "f32" else value
        value = TO_INTEGER[mode](to_f64(value, source))
        value = np.where(np.isnan(value), of_nan, value)
        if size_of(target) < 8:
            return np.clip(value, limits.min, limits.max).astype(dtype)
        fits = (value < float(limits.max)) & (value >= limits.min)  # float(max) is 2**63 or 2**64
        extreme = np.where(value > 0, dtype(limits.max), dtype(limits.min))
        return np.where(fits, np.where(fits, value, 0).astype(dtype), extreme)

    return run


def _integer_to_float(source: str, target: str, mode: str | None):
    dtype = NUMPY[target]
    if mode is None and not (target == "f64" and size_of(source) < 8) or mode in TO_INTEGER:
        raise PtxError("integer to float without rounding mode")
    if mode in (None, "rn") and target in ("f32", "f64"):
        return lambda value: value.astype(dtype)
    if size_of(source) == 8:
        raise PtxError("conversion of a 64-bit integer")
    return lambda value: round_to(value.astype(np.float64), target, mode or "rn")

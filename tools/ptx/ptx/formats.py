"""PTX scalar types, their numpy counterparts, and literals."""

from __future__ import annotations

import re

import numpy as np


class PtxError(RuntimeError):
    """The kernel did something wrong, or uses something this interpreter does not know."""


# bf16 has no numpy type: its values stay the 16 raw bits. A packed pair is its 32 raw bits.
NUMPY = {
    "u8": np.uint8,
    "s8": np.int8,
    "b8": np.uint8,
    "u16": np.uint16,
    "s16": np.int16,
    "b16": np.uint16,
    "u32": np.uint32,
    "s32": np.int32,
    "b32": np.uint32,
    "u64": np.uint64,
    "s64": np.int64,
    "b64": np.uint64,
    "f16": np.float16,
    "bf16": np.uint16,
    "f32": np.float32,
    "f64": np.float64,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
    "pred": np.bool_,
}
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
FLOATS = frozenset({"f16", "bf16", "f32", "f64"})
PACKED = frozenset({"f16x2", "bf16x2"})

HEX_FLOAT = {
    "f": (re.compile(r"(-?)0[fF]([0-9a-fA-F]{8})"), np.uint32, np.float32),
    "d": (re.compile(r"(-?)0[dD]([0-9a-fA-F]{16})"), np.uint64, np.float64),
}
INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
OCTAL = re.compile(r"-?0\d+")
DECIMAL = re.compile(r"-?\d+\.\d*([eE][-+]?\d+)?")


def size_of(kind: str) -> int:
    """Bytes of one value of a PTX type."""
    return np.dtype(NUMPY[kind]).itemsize


def bits_of(kind: str) -> int:
    return 8 * size_of(kind)


def is_signed(kind: str) -> bool:
    return kind[0] == "s"


def raw_type(kind: str):
    """The unsigned integer type that holds the bits of a PTX type."""
    return RAW[size_of(kind)]


def parse_literal(text: str, kind: str) -> np.ndarray:
    """A literal operand as an array of one element of PTX type ``kind``."""
    for pattern, raw, real in HEX_FLOAT.values():
        match = pattern.fullmatch(text)
        if match:
            value = np.array([int(match[2], 16)], raw).view(real)
            value = -value if match[1] else value
            if size_of(kind) == value.itemsize:
                return value.view(NUMPY[kind])
            if kind in ("f32", "f64"):
                return value.astype(NUMPY[kind])
            raise PtxError(f"literal {text} as .{kind}")
    if INTEGER.fullmatch(text) and kind not in FLOATS:
        digits = text.rstrip("U")
        value = int(digits, 8) if OCTAL.fullmatch(digits) else int(digits, 0)
        if kind == "pred":
            return np.array([bool(value)])
        return np.array([value & ((1 << bits_of(kind)) - 1)], raw_type(kind)).view(NUMPY[kind])
    if DECIMAL.fullmatch(text) and kind in ("f32", "f64"):
        return np.array([float(text)], NUMPY[kind])
    raise PtxError(f"operand {text} as .{kind}")

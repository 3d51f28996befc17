"""Operands of one kernel as functions of a wave and a selection of its threads.

A *selection* is a slice of thread numbers or an index array: ``array[selection]`` works with both. ``read(wave,
selection)`` returns one value for each selected thread, or a single element that all share.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .formats import NUMPY, RAW, PtxError, parse_literal, raw_type, size_of

OPCODES: dict[str, Callable] = {}

_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|%laneid|%warpid|%lanemask_(eq|lt|le|gt|ge)")
_SYMBOL_PLUS = re.compile(r"(.+?)\s*\+\s*(-?\w+)")
_ADDRESS = re.compile(r"\[\s*(.+?)\s*(?:\+\s*(-?\w+))?\s*\]")


def opcode(*names: str):
    """Register a function (operands, instruction) -> run(wave, selection) for these opcodes."""

    def register(build):
        for name in names:
            OPCODES[name] = build
        return build

    return register


def constant(value: np.ndarray):
    return lambda wave, selection: value


class Operands:
    """Decodes operand text against the names that a program declares."""

    def __init__(self, program):
        self.program = program

    def register(self, name: str) -> np.dtype | None:
        """The storage type of a register; None if the name is none."""
        dtype = self.program.registers.get(name)
        return None if dtype is None else np.dtype(dtype)

    def source(self, text: str, kind: str):
        """-> read(wave, selection): the operand as an array of PTX type ``kind``."""
        negate = text.startswith("!")
        text = text.lstrip("!")
        storage = self.register(text)
        if storage is not None:
            return self._register_source(text, storage, kind, negate)
        if negate:
            raise PtxError(f"operand !{text}")
        dtype = NUMPY[kind]
        symbol = self._symbol(text, dtype)
        if symbol is not None:
            return symbol
        if text == "WARP_SZ":
            return constant(np.array([32]).astype(dtype))
        if text.startswith("%"):
            if not _SPECIAL.fullmatch(text):
                raise PtxError(f"special register {text}")
            return lambda wave, selection: wave.special[text][selection].astype(dtype)
        return constant(parse_literal(text, kind))

    def _register_source(self, name: str, storage: np.dtype, kind: str, negate: bool):
        if (storage == np.bool_) != (kind == "pred") or (negate and kind != "pred"):
            raise PtxError(f"register {name} used as .{kind}")
        if negate:
            return lambda wave, selection: ~wave.registers[name][selection]
        if kind == "pred":
            return lambda wave, selection: wave.registers[name][selection]
        dtype, size = NUMPY[kind], size_of(kind)
        if storage.itemsize < size:
            raise PtxError(f"register {name} is narrower than .{kind}")
        if storage.itemsize > size:
            raw = RAW[size]
            return lambda wave, selection: wave.registers[name][selection].astype(raw).view(dtype)
        if storage == dtype:
            return lambda wave, selection: wave.registers[name][selection]
        return lambda wave, selection: wave.registers[name][selection].view(dtype)

    def _symbol(self, text: str, dtype):
        """The address of a variable, with an optional offset; None if the text names none."""
        match = _SYMBOL_PLUS.fullmatch(text)
        name, extra = (match[1], int(match[2], 0)) if match else (text, 0)
        program = self.program
        if name == program.dynamic_shared:
            return lambda wave, selection: np.array([wave.dynamic_offset + extra]).astype(dtype)
        # a parameter of the kernel is at its offset in the parameter space
        for offsets in (program.shared_offsets, program.local_offsets, program.parameter_offsets):
            if name in offsets:
                return constant(np.array([offsets[name] + extra]).astype(dtype))
        if name in program.module_variables:
            return lambda wave, selection: np.array([wave.symbol_address(name) + extra]).astype(dtype)
        return None

    def destination(self, name: str, kind: str):
        """-> write(wave, selection, value): a value of type ``kind``, widened to the register as PTX says."""
        if name == "_":
            return lambda wave, selection, value: None
        storage = self.register(name)
        if storage is None:
            raise PtxError(f"destination {name}")
        dtype = np.dtype(NUMPY[kind])
        if (storage == np.bool_) != (kind == "pred") or storage.itemsize < dtype.itemsize:
            raise PtxError(f"register {name} written as .{kind}")
        if storage == dtype:

            def write_same(wave, selection, value):
                wave.registers[name][selection] = value

            return write_same
        if storage.itemsize == dtype.itemsize:

            def write(wave, selection, value):
                wave.registers[name][selection] = value.astype(dtype, copy=False).view(storage)

            return write
        wide = np.dtype(f"i{storage.itemsize}") if dtype.kind == "i" else storage
        raw = raw_type(kind)

        def write_widened(wave, selection, value):
            value = value.astype(dtype, copy=False)
            value = value.view(raw) if dtype.kind == "f" else value
            wave.registers[name][selection] = value.astype(wide).view(storage)

        return write_widened

    def elementwise(self, instruction, function, result: str, *kinds: str):
        """destination = function(sources...) for sources of the given types, lane by lane."""
        names = instruction.expect_operands(1 + len(kinds))
        write = self.destination(names[0], result)
        reads = [self.source(name, kind) for name, kind in zip(names[1:], kinds, strict=False)]
        if len(reads) == 1:
            (first,) = reads
            return lambda wave, lanes: write(wave, lanes, function(first(wave, lanes)))
        if len(reads) == 2:
            first, second = reads
            return lambda wave, lanes: write(wave, lanes, function(first(wave, lanes), second(wave, lanes)))
        return lambda wave, lanes: write(wave, lanes, function(*[read(wave, lanes) for read in reads]))

    def vector(self, text: str) -> list[str]:
        """The registers of '{%r1, %r2}', or the one operand."""
        return [name.strip() for name in text[1:-1].split(",")] if text.startswith("{") else [text]

    def pair(self, text: str) -> list[str]:
        """The one or two destinations of 'p|q'."""
        return [name.strip() for name in text.split("|")]

    def split_address(self, text: str) -> tuple[str, int]:
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise PtxError(f"address {text}")
        return match[1], int(match[2] or "0", 0)

    def address(self, text: str):
        """'[base+offset]' -> read(wave, selection): addresses as int64."""
        base, offset = self.split_address(text)
        storage = self.register(base)
        read = self.source(base, "u32" if storage is not None and storage.itemsize == 4 else "s64")
        step = np.int64(offset)
        if storage is not None and storage.itemsize == 4:
            return lambda wave, selection: read(wave, selection).astype(np.int64) + step
        if offset == 0:
            return read
        return lambda wave, selection: read(wave, selection) + step

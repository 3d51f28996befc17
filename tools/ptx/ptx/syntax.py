"""Pieces of PTX text: declarations, operand lists and the instruction record."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .formats import NUMPY, PtxError, size_of

DECLARATION = re.compile(r"(?:\.(?:visible|extern|weak|common)\s+)*\.(shared|local|global|const|param|reg)\b(.*)", re.S)
_POINTER_HINT = re.compile(r"\.ptr\b(\s+\.(?:global|shared|local|const)\b)?(\s+\.align\s+\d+)?")
_ALIGN = re.compile(r"\.align\s+(\d+)")
_VECTOR = re.compile(r"\.v[248]\b")
_TYPE_AND_NAMES = re.compile(r"\s*\.(\w+)\s*(.*)", re.S)
_NAME = re.compile(r"([\w$%.]+)\s*(?:<(\d+)>|((?:\[\d*\])*))\s*$")


@dataclass(frozen=True)
class Variable:
    """One declared name. ``count`` is 0 for an array without a size (dynamic shared memory)."""

    name: str
    space: str
    kind: str
    align: int
    count: int
    init: str = ""

    @property
    def nbytes(self) -> int:
        return self.count * size_of(self.kind)


@dataclass
class Instruction:
    """One PTX instruction; ``run`` and ``control`` are filled in by the decoder."""

    opcode: str
    modifiers: list[str]
    operands: list[str]
    predicate: str | None  # register that guards it
    negated: bool  # executes where the predicate is false
    line: int
    text: str
    where: str = ""  # CUDA source file:line, with nvcc -lineinfo
    control: str = ""  # bra, exit, bar, wsync, or "" for straight-line code
    target: int = -1  # of a branch
    run: Any = None
    hits: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" + (f" [{self.where}]" if self.where else "")

    def split_modifiers(self, allowed: Iterable[str] = ()) -> tuple[list[str], list[str]]:
        """Types and other modifiers, both in order. One that is not ``allowed`` is an error: never guess."""
        kinds = [m for m in self.modifiers if m in NUMPY]
        others = [m for m in self.modifiers if m not in NUMPY]
        for modifier in others:
            if modifier not in allowed:
                raise PtxError(f"modifier .{modifier}")
        return kinds, others

    def only_type(self, allowed: Iterable[str] = ()) -> tuple[str, list[str]]:
        """Like split_modifiers for an instruction that must name exactly one type."""
        kinds, others = self.split_modifiers(allowed)
        if len(kinds) != 1:
            raise PtxError(f"expected one type, found {kinds}")
        return kinds[0], others

    def expect_operands(self, count: int) -> list[str]:
        if len(self.operands) != count:
            raise PtxError(f"expected {count} operands, found {len(self.operands)}")
        return self.operands


def split_operands(text: str) -> list[str]:
    """Split at the commas outside brackets: '{%r1, %r2}, [%rd1+4]' gives two operands."""
    operands, depth, current = [], 0, ""
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += char
    if current.strip():
        operands.append(current.strip())
    return operands


def parse_declaration(statement: str) -> list[Variable]:
    """'.shared .align 4 .b8 part[128] = {...}' or '.reg .b32 %r<4>' as the variables it declares."""
    match = DECLARATION.match(statement)
    if not match:
        raise PtxError(f"cannot parse declaration: {statement}")
    space, rest = match.groups()
    rest, _, init = rest.partition("=")
    rest = _POINTER_HINT.sub("", rest)  # says where a pointer points, not how it is stored
    align = _ALIGN.search(rest)
    rest = _ALIGN.sub("", rest)
    match = _TYPE_AND_NAMES.match(rest)
    if not match or match[1] not in NUMPY or _VECTOR.search(rest):
        raise PtxError(f"cannot parse declaration: {statement}")
    kind, names = match.groups()
    variables = []

    def declare(name: str, count: int) -> None:
        variables.append(Variable(name, space, kind, int(align[1]) if align else size_of(kind), count, init.strip()))

    for text in split_operands(names):
        match = _NAME.match(text)
        if not match:
            raise PtxError(f"cannot parse declaration: {statement}")
        name, repeat, dimensions = match.groups()
        if repeat:
            for i in range(int(repeat)):
                declare(f"{name}{i}", 1)
        else:
            count = 1
            for size in re.findall(r"\[(\d*)\]", dimensions):
                count *= int(size or 0)
            declare(name, count)
    return variables

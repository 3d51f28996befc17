"""Plants faults into a copy of the CUDA kernels.

A fault names the C++ function it is in, and what of it is replaced, so that it stays where it is when code moves to
another file or line. Only the copy has it, compiled for CUDA; the CPU kernels that it is compared with do not.
"""

import re
import shutil
from typing import NamedTuple

import pytest
from cuda_kernels import CSRC, load


class Edit(NamedTuple):
    """``before``: C++ code, whatever its white space; the ``nth`` place of the function where it stands is changed."""

    before: str
    after: str = ""
    nth: int = 1


def fault(function: str, before: str, after: str = "", nth: int = 1) -> tuple[str, list[Edit]]:
    """``function``: its name, or struct::name."""
    return function, [Edit(before, after, nth)]


def without_comments(text: str) -> str:
    """As long as the text, comments and strings blanked out: their braces close nothing."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', lambda match: " " * len(match[0]), text, flags=re.DOTALL)


def closing(code: str, start: int) -> int:
    """The place after the bracket that closes the one at ``start``."""
    pair, depth = {"(": "()", "{": "{}"}[code[start]], 0
    for i in range(start, len(code)):
        depth += (code[i] == pair[0]) - (code[i] == pair[1])
        if depth == 0:
            return i + 1
    raise AssertionError("a bracket is not closed")


def bodies(code: str, function: str) -> list[tuple[int, int]]:
    """Where the bodies of the functions of that name begin and end; ``struct::name``: of those in the struct."""
    *scope, name = function.split("::")
    if scope:
        structs = [match.end() - 1 for match in re.finditer(rf"\b(?:struct|class)\s+{scope[0]}\s*{{", code)]
        places = [(begin, closing(code, begin)) for begin in structs]
        return [(a + x, a + y) for a, b in places for x, y in bodies(code[a:b], name)]
    found = []
    for match in re.finditer(rf"\b{name}\s*\(", code):
        end = closing(code, match.end() - 1)
        opened = re.compile(r"\s*(?:const\b\s*)?{").match(code, end)
        if opened:  # else a call or a declaration
            found.append((opened.end() - 1, closing(code, opened.end() - 1)))
    return found


def pattern(before: str) -> str:
    """A regular expression for the code, however it is spaced."""
    tokens = re.findall(r"\w+|[^\w\s]", before)
    return r"\s*".join(rf"\b{token}\b" if token[0].isalnum() else re.escape(token) for token in tokens)


def plant(csrc, function: str, edit: Edit) -> None:
    """Changes one place of a function, wherever in the sources that CUDA compiles the function is."""
    places = []
    for file in sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*.cuh"), *csrc.glob("cuda/*.h")]):
        code = without_comments(file.read_text())
        for begin, end in bodies(code, function):
            matches = re.compile(pattern(edit.before)).finditer(code, begin, end)
            places += [(file, match.start(), match.end()) for match in matches]
    if len(places) < edit.nth:
        found = f"`{edit.before}` is {len(places)} times in the function {function}"
        raise LookupError(f"{found}, and the fault is for number {edit.nth}: adapt the fault to the kernels")
    file, start, end = places[edit.nth - 1]
    text = file.read_text()
    file.write_text(text[:start] + edit.after + text[end:])


def build(folder, kernels, function="", edits=(), header="kernels.cuh"):
    """The kernels as they are, or with one fault."""
    shutil.copytree(CSRC, folder / "csrc")
    source = folder / "csrc" / "faulty.cu"
    source.write_text(f'#include "cuda/{header}"\nnamespace fused_logistic {{{kernels}}}\n')
    for edit in edits:
        plant(folder / "csrc", function, edit)
    return load(80, source, cache=folder)


def every_fault(checks, faults):
    """Parametrizes a test by the kernels and the name of each fault."""
    return pytest.mark.parametrize(
        "kernels,name",
        [
            pytest.param(kernels, name, id=f"{checks[kernels].__name__}: {name}")
            for kernels, of_kernels in faults.items()
            for name in of_kernels
        ],
    )

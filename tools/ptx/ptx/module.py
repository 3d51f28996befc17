"""A PTX file: its module-level variables, functions and kernels."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .formats import PtxError
from .kernel import Kernel
from .syntax import DECLARATION, Variable, parse_declaration, split_operands

_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_LINE_COMMENT = re.compile(r"//[^\n]*")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.M)
_VERSION = re.compile(r"\.version\s+([\d.]+)")
_TARGET = re.compile(r"\.target\s+([^\n]+)")
_SPACE = re.compile(r"\s*")
_LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size|file|loc|pragma)\b")
_SECTION = re.compile(r"(\.\w+\s+)*\.section\b")
_FUNCTION = re.compile(r"(\.(visible|weak|extern|common)\s+)*\.(entry|func)\b")
_SIGNATURE = re.compile(
    r"[^{]*?\.(?P<what>entry|func)\s*(\((?P<results>[^)]*)\))?\s*(?P<name>[\w$.]+)\s*(\((?P<parameters>[^)]*)\))?", re.S
)
_THREAD_LIMIT = re.compile(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)")
_BRACE = re.compile(r"[{}]")
MAX_THREADS = 1024


@dataclass
class Function:
    parameters: list[Variable]
    results: list[Variable]
    body: str
    line: int
    max_threads: int = MAX_THREADS


class Module:
    """Parsed PTX. ``module[name]`` finds a kernel by any unique part of its mangled or demangled name."""

    def __init__(self, text: str):
        self.files = {number: path.rsplit("/", 1)[-1] for number, path in _FILE.findall(text)}
        text = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)
        text = _LINE_COMMENT.sub("", text)
        version, target = _VERSION.search(text), _TARGET.search(text)
        self.version = version and version[1]
        self.target = target and target[1].strip()
        self.variables: dict[str, Variable] = {}
        self.functions: dict[str, Function] = {}
        entries: dict[str, Function] = {}
        position, line = 0, 1
        while True:
            start = _SPACE.match(text, position).end()
            line += text.count("\n", position, start)
            if start >= len(text):
                break
            position = self._statement(text, start, line, entries)
            line += text.count("\n", start, position)
        self.kernels = {name: Kernel(self, name, function) for name, function in entries.items()}

    def _statement(self, text: str, start: int, line: int, entries: dict) -> int:
        """Take in the statement that begins at ``start``; returns its end."""
        if _LINE_DIRECTIVE.match(text, start):
            return text.index("\n", start)
        if _SECTION.match(text, start):
            return text.index("}", start) + 1
        if _FUNCTION.match(text, start):
            return self._function(text, start, line, entries)
        end = text.index(";", start)
        statement = text[start:end].strip()
        if not DECLARATION.match(statement):
            raise PtxError(f"line {line}: cannot parse: {statement[:90]}")
        for variable in parse_declaration(statement):
            self.variables[variable.name] = variable
        return end + 1

    def _function(self, text: str, start: int, line: int, entries: dict) -> int:
        opening, semicolon = text.find("{", start), text.find(";", start)
        if semicolon != -1 and (opening == -1 or semicolon < opening):
            return semicolon + 1  # a declaration without a body
        signature = _SIGNATURE.match(text, start)
        depth = 0
        for brace in _BRACE.finditer(text, opening):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                break
        else:
            raise PtxError(f"line {line}: no end of {signature['name']}")
        limit = _THREAD_LIMIT.search(text[signature.end() : opening])
        function = Function(
            _variables(signature["parameters"]),
            _variables(signature["results"]),
            text[opening + 1 : brace.start()],
            line + text.count("\n", start, opening + 1),
            int(np.prod([int(size) for size in limit[1].split(",")])) if limit else MAX_THREADS,
        )
        (entries if signature["what"] == "entry" else self.functions)[signature["name"]] = function
        return brace.end()

    def __getitem__(self, name: str) -> Kernel:
        return self.kernels[match_name(name, list(self.kernels))]


def _variables(text: str | None) -> list[Variable]:
    return [variable for part in split_operands(text or "") if part for variable in parse_declaration(part)]


@lru_cache
def demangle(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as C++ writes them; the names themselves where c++filt is missing."""
    try:
        result = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return names
    return tuple(result.stdout.split("\n")[: len(names)])


def match_name(part: str, names: list[str]) -> str:
    """The one of the mangled ``names`` that is ``part``, or contains it in mangled or demangled form."""
    if part in names:
        return part
    readable = demangle(tuple(names))
    found = [name for name, text in zip(names, readable, strict=True) if part in name or part in text]
    if len(found) != 1:
        raise KeyError(f"{part!r} matches {len(found)} kernels of {list(readable)}")
    return found[0]


def load(text: str) -> Module:
    """Parse PTX text."""
    return Module(text)


def load_file(path) -> Module:
    """Parse a PTX file."""
    with open(path) as file:
        return Module(file.read())

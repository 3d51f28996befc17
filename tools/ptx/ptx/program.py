"""The body of one kernel as a flat list of decoded instructions."""

from __future__ import annotations

import re

import numpy as np

from . import copy_ops, float_ops, integer_ops, memory_ops, select_ops, warp_ops  # noqa: F401  (they register opcodes)
from .formats import RAW, PtxError, size_of
from .memory import Layout, round_up
from .operands import OPCODES, Operands
from .syntax import DECLARATION, Instruction, Variable, parse_declaration, split_operands

_INSTRUCTION = re.compile(r"(?:@(!?)\s*([\w$%]+)\s+)?([a-z][\w]*)((?:[.:]+\w+)*)\s*(.*)", re.S)
_MODIFIER_SEPARATOR = re.compile(r"[.]|(?<!:):(?!:)")
_BRACE_OR_LABEL = re.compile(r"\s*(?:([{}])|([\w$%]+)\s*:(?!:))?")
_DIRECTIVE = re.compile(r"\.(loc|file)\b")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_IDENTIFIER = re.compile(r"[%$A-Za-z_][\w$%]*(?:\.[xyz]\b)?")
_WARP_SYNCHRONOUS = ("shfl", "vote", "match", "redux")


class Program:
    """Decoded code and the storage it needs. Functions that the kernel calls are inlined.

    ``unsupported`` lists the instructions that the interpreter does not know; executing one is an error.
    """

    def __init__(self, module, function):
        self.module, self.module_variables = module, module.variables
        self.code: list[Instruction] = []
        self.registers: dict[str, type] = {}
        self.shared, self.local = Layout(), Layout()
        self.dynamic_shared: str | None = None
        self.parameter_offsets: dict[str, int] = {}
        self.parameters: list[tuple[Variable, int]] = []
        self.parameter_bytes = 0
        self.unsupported: list[str] = []
        self._labels: dict[str, int] = {}
        self._unique = 0
        self._where = ""
        for variable in function.parameters:
            offset = round_up(self.parameter_bytes, max(variable.align, 1))
            self.parameter_offsets[variable.name] = offset
            self.parameters.append((variable, offset))
            self.parameter_bytes = offset + variable.nbytes
        for variable in module.variables.values():
            if variable.space == "shared":
                self._place(variable.name, variable)
        self._add_block(function.body, function.line, [{}], None, ())
        self._emit(Instruction("exit", [], [], None, False, function.line, "exit"))
        self._decode()

    @property
    def shared_offsets(self) -> dict[str, int]:
        return self.shared.offsets

    @property
    def local_offsets(self) -> dict[str, int]:
        return self.local.offsets

    # ---- text to instructions
    def _place(self, unique: str, variable: Variable) -> None:
        if variable.space == "shared" and variable.count == 0:
            self.dynamic_shared = unique
        else:
            (self.shared if variable.space == "shared" else self.local).place(unique, variable)

    def _new_name(self, name: str) -> str:
        self._unique += 1
        return f"{name}#{self._unique}"

    def _declare(self, statement: str, scope: dict[str, str]) -> None:
        for variable in parse_declaration(statement):
            unique = self._new_name(variable.name)
            if variable.space == "reg":
                storage = np.bool_ if variable.kind == "pred" else RAW[max(2, size_of(variable.kind))]
                self.registers[unique] = storage
            elif variable.space in ("shared", "local", "param"):  # .param: an argument of an inlined call
                self._place(unique, variable)
            else:
                raise PtxError(f"declaration inside a function: {statement}")
            scope[variable.name] = unique

    def _add_block(self, body: str, line: int, scopes: list[dict], return_label: str | None, stack: tuple) -> None:
        """Add the statements of a function body; ``scopes`` maps declared names to unique ones, innermost last."""
        position, prefix, outer = 0, f"@{self._unique}:", len(scopes)
        while position < len(body):
            match = _BRACE_OR_LABEL.match(body, position)
            line += body.count("\n", position, match.end())
            position = match.end()
            if match[1] == "{":
                scopes.append({})
            elif match[1] == "}":
                scopes.pop()
            elif match[2]:
                self._labels[prefix + match[2]] = len(self.code)
            elif position < len(body):
                if _DIRECTIVE.match(body, position):
                    end = body.find("\n", position)
                    end = len(body) if end < 0 else end
                    self._note_location(body[position:end])
                else:
                    end = body.index(";", position) + 1
                    statement = " ".join(body[position : end - 1].split())
                    self._add_statement(statement, line, scopes, prefix, return_label, stack)
                line += body.count("\n", position, end)
                position = end
        del scopes[outer:]

    def _note_location(self, directive: str) -> None:
        location = _LOC.match(directive)
        if location:
            self._where = f"{self.module.files.get(location[1], '?')}:{location[2]}"

    def _add_statement(self, statement, line, scopes, prefix, return_label, stack) -> None:
        if not statement or statement.startswith(".pragma"):
            return
        if DECLARATION.match(statement):
            self._declare(statement, scopes[-1])
            return
        match = _INSTRUCTION.match(statement)
        if not match:
            raise PtxError(f"line {line}: cannot parse: {statement}")
        negated, predicate, opcode, modifiers, rest = match.groups()
        modifiers = [m for m in _MODIFIER_SEPARATOR.split(modifiers) if m]
        predicate = self._resolve(predicate, scopes) if predicate else None
        if opcode == "call":
            self._add_call(rest, line, scopes, stack, predicate, statement)
            return
        if opcode == "ret" and return_label:
            opcode, operands = "bra", [return_label]
        elif opcode in ("ret", "exit"):
            opcode, operands = "exit", []
        elif opcode == "bra":
            operands = [prefix + rest.strip()]
        else:
            operands = [self._resolve(text, scopes) for text in split_operands(rest)]
        self._emit(Instruction(opcode, modifiers, operands, predicate, bool(negated), line, statement))

    def _add_call(self, rest, line, scopes, stack, predicate, statement) -> None:
        """Inline a call: the names of its parameters stand for the variables that the caller passes."""
        parts = split_operands(rest)
        results = split_operands(parts.pop(0)[1:-1]) if parts[0].startswith("(") else []
        name = parts.pop(0)
        arguments = split_operands(parts[0][1:-1]) if parts else []
        function = self.module.functions.get(name)
        if function is None or predicate or name in stack:  # a recursive call stays and is unsupported
            self._emit(Instruction("call", [], [name], predicate, False, line, statement))
            return
        formal = function.results + function.parameters
        scope = {var.name: self._resolve(text, scopes) for var, text in zip(formal, results + arguments, strict=False)}
        end = self._new_name("@return")
        self._add_block(function.body, function.line, [scope, {}], end, stack + (name,))
        self._labels[end] = len(self.code)

    def _resolve(self, text: str, scopes: list[dict]) -> str:
        def unique(match):
            return next((scope[match[0]] for scope in reversed(scopes) if match[0] in scope), match[0])

        return _IDENTIFIER.sub(unique, text)

    def _emit(self, instruction: Instruction) -> None:
        instruction.where = self._where
        self.code.append(instruction)

    # ---- instructions to functions
    def _decode(self) -> None:
        leaders = {0, *self._labels.values()}
        operands = Operands(self)
        for i, instruction in enumerate(self.code):
            instruction.control = _control_kind(instruction)
            if instruction.control:
                leaders |= {i, i + 1}
            if instruction.control == "bra":
                if instruction.operands[0] not in self._labels:
                    raise PtxError(f"unknown label {instruction.operands[0]}")
                instruction.target = self._labels[instruction.operands[0]]
            if instruction.predicate and operands.register(instruction.predicate) != np.bool_:
                raise PtxError(f"{instruction}: the guard is not a predicate")
            try:
                build = OPCODES.get(instruction.opcode)
                if build is None:
                    raise PtxError(f"unknown opcode {instruction.opcode}")
                instruction.run = build(operands, instruction)
            except PtxError as error:
                self._refuse(instruction, str(error))
        # group leaders: instructions that control can reach other than by falling through
        self.leader = [i in leaders for i in range(len(self.code) + 1)]

    def _refuse(self, instruction: Instruction, reason: str) -> None:
        message = f"{instruction}: {reason}"
        self.unsupported.append(message)

        def fail(wave, lanes):
            raise PtxError(f"unsupported: {message}")

        instruction.run, instruction.control = fail, ""


def _control_kind(instruction: Instruction) -> str:
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode in ("bra", "exit"):
        return opcode
    if opcode in ("bar", "barrier"):
        return "wsync" if "warp" in modifiers else "bar"
    return "wsync" if opcode in _WARP_SYNCHRONOUS and "sync" in modifiers else ""

"""Kernels: arguments, launches, statistics and coverage."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .formats import PtxError, parse_literal, raw_type
from .memory import Buffer, Memory
from .program import Program
from .races import Shadow
from .syntax import Variable
from .wave import SCHEDULES, Wave


class Stats:
    """Counts of one launch.

    ``steps``: interpreter steps; ``thread_instructions``: instructions summed over threads; ``ops``: thread accesses
    of each kind and width, e.g. ops["ld.global 16 bytes"]; sectors: 32-byte pieces touched, counted for each warp
    access; ``warnings``: things that are no error but deserve a look, with how often they happened.
    """

    def __init__(self):
        self.steps = self.thread_instructions = self.barriers = 0
        self.load_bytes = self.store_bytes = self.load_sectors = self.store_sectors = 0
        self.ops: Counter = Counter()
        self.warnings: Counter = Counter()

    def __repr__(self) -> str:
        warnings = f", warnings {dict(self.warnings)}" if self.warnings else ""
        return (
            f"<{self.steps} steps, {self.thread_instructions} thread instructions, {self.barriers} barriers, "
            f"loads {self.load_bytes} B in {self.load_sectors} sectors, "
            f"stores {self.store_bytes} B in {self.store_sectors} sectors{warnings}>"
        )


@dataclass
class Launch:
    """What all waves of one launch share."""

    name: str
    program: Program
    memory: Memory
    symbols: dict[str, Buffer]
    parameters: np.ndarray
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    schedule: str
    random: np.random.Generator
    shadow: Shadow | None
    approx_noise: bool
    max_steps: int
    stats: Stats


class Kernel:
    """One .entry of a module, decoded when it is first used."""

    def __init__(self, module, name: str, function):
        self.module, self.name, self._function = module, name, function

    @cached_property
    def program(self) -> Program:
        return Program(self.module, self._function)

    def launch(
        self,
        grid,
        block,
        args,
        shared=0,
        schedule="lockstep",
        seed=0,
        racecheck=True,
        approx_noise=False,
        max_steps=10_000_000,
        max_lanes=1 << 15,
        mem=None,
        blocks=None,
    ) -> Stats:
        """Run the kernel to its end.

        ``grid``, ``block``: an int or up to three. ``args``: Buffers, ints (also addresses), floats, numpy scalars,
        or bytes for a struct by value. ``shared``: bytes of dynamic shared memory. ``schedule``: "lockstep",
        "serial", "reverse" or "random" (with ``seed``). ``mem``: the Memory, if no argument is a Buffer.
        Blocks run together up to ``max_lanes`` threads, one such wave after the other.
        ``blocks``: run only these block numbers of the grid; with Memory.window this checks the index arithmetic of
        launches over more than 2**31 elements.
        """
        program = self.program
        grid, block = _three(grid), _three(block)
        threads, count = int(np.prod(block)), int(np.prod(grid, dtype=object))
        limit = self._function.max_threads
        if not 1 <= threads <= limit or count < 1:
            raise PtxError(f"launch configuration: grid {grid} block {block}, at most {limit} threads")
        if schedule not in SCHEDULES:
            raise PtxError(f"schedule {schedule!r}: one of {', '.join(SCHEDULES)}")
        mem = _memory_of(args, mem)
        parameters = self._pack(args)
        symbols = self._symbols(mem)  # may enlarge the memory that the shadow must cover
        shadow = Shadow(len(mem.data)) if racecheck else None
        launch = Launch(
            self.name,
            program,
            mem,
            symbols,
            parameters,
            grid,
            block,
            shared,
            schedule,
            np.random.default_rng(seed),
            shadow,
            approx_noise,
            max_steps,
            Stats(),
        )
        order = np.arange(count) if blocks is None else np.asarray(blocks)
        if schedule == "reverse":
            order = order[::-1]
        elif schedule == "random":
            order = launch.random.permutation(order)
        together = max(1, max_lanes // ((threads + 31) // 32 * 32))
        with np.errstate(all="ignore"):
            for first in range(0, len(order), together):
                Wave(launch, order[first : first + together]).run()
        return launch.stats

    def _pack(self, args) -> np.ndarray:
        parameters = self.program.parameters
        if len(args) != len(parameters):
            raise PtxError(f"{self.name} takes {len(parameters)} arguments, got {len(args)}")
        packed = np.zeros(self.program.parameter_bytes, np.uint8)
        for (variable, offset), value in zip(parameters, args, strict=False):
            packed[offset : offset + variable.nbytes] = np.frombuffer(_argument_bytes(variable, value), np.uint8)
        return packed

    def _symbols(self, memory: Memory) -> dict[str, Buffer]:
        """Module-level variables, placed in a Memory by the first launch that uses it."""
        placed = {}
        for name, variable in self.module.variables.items():
            if variable.space in ("global", "const"):
                key = (self.module, name)
                if key not in memory.symbols:
                    readonly = variable.space == "const"
                    memory.symbols[key] = memory.array(_initial_values(variable), readonly)
                placed[name] = memory.symbols[key]
        return placed

    def unexecuted(self) -> list[str]:
        """PTX instructions that no launch so far has executed (the final implicit exit aside)."""
        return [str(instruction) for instruction in self.program.code[:-1] if not instruction.hits]

    def unexecuted_lines(self) -> list[str]:
        """CUDA source lines (nvcc -lineinfo) none of whose instructions were executed."""
        code = self.program.code[:-1]
        return sorted({i.where for i in code} - {i.where for i in code if i.hits})


def _three(size) -> tuple[int, int, int]:
    sizes = tuple(np.atleast_1d(size).tolist())
    if len(sizes) > 3:
        raise PtxError(f"launch configuration: {sizes} has more than three dimensions")
    return (sizes + (1, 1))[:3]


def _memory_of(args, memory: Memory | None) -> Memory:
    for value in args:
        if isinstance(value, Buffer):
            if memory not in (None, value.memory):
                raise PtxError("the arguments belong to different Memory objects")
            memory = value.memory
    if memory is None:
        raise PtxError("no argument is a Buffer: pass mem=")
    return memory


def _argument_bytes(variable: Variable, value) -> bytes:
    size = variable.nbytes
    if isinstance(value, Buffer):
        value = value.addr
    if isinstance(value, (bytes, bytearray)):
        raw = bytes(value)
    elif isinstance(value, (np.floating, np.ndarray)):
        raw = value.tobytes()
    elif isinstance(value, float):
        raw = np.array(value, np.float64 if size == 8 else np.float32).tobytes()
    else:
        raw = int(value).to_bytes(size, "little", signed=int(value) < 0)
    if len(raw) != size:
        raise PtxError(f"argument {variable.name}: {len(raw)} bytes given, {size} expected")
    return raw


def _initial_values(variable: Variable) -> np.ndarray:
    raw = raw_type(variable.kind)
    values = np.zeros(max(variable.count, 1), raw)
    for i, literal in enumerate(re.findall(r"[^\s{},]+", variable.init)):
        values[i] = parse_literal(literal, variable.kind).view(raw)[0]
    return values

"""Loads, stores, integer atomics and fences."""

from __future__ import annotations

import numpy as np

from .formats import FLOATS, NUMPY, PACKED, PtxError, raw_type, size_of
from .memory import INITIALISED, MAX_ACCESS, WRITABLE
from .operands import opcode
from .races import Access, check_read, check_write, record_atomic

SPACES = ("global", "shared", "local", "param", "const")
SCOPES = {"cta", "gpu", "sys"}
ORDER = {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"}
CACHE_HINTS = {
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::no_allocate",
    "L1::evict_first",
    "L1::evict_last",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::64B",
    "L2::128B",
    "L2::256B",
}
VECTORS = {"v2": 2, "v4": 4, "v8": 8}
ATOMICS = ("add", "inc", "dec", "exch", "min", "max", "and", "or", "xor")


def _form(instruction, extra=()):
    """-> type, memory space, elements for each thread, modifiers."""
    kind, others = instruction.only_type({*SPACES, *SCOPES, *ORDER, *CACHE_HINTS, *VECTORS, *extra})
    space = next((m for m in others if m in SPACES), "generic")
    count = next((VECTORS[m] for m in others if m in VECTORS), 1)
    if count * size_of(kind) > MAX_ACCESS:
        raise PtxError(f"access of more than {MAX_ACCESS} bytes")
    return kind, space, count, others


@opcode("ld")
def load(operands, instruction):
    kind, space, count, others = _form(instruction, {"nc"})
    names = operands.vector(instruction.expect_operands(2)[0])
    if len(names) != count:
        raise PtxError("vector length")
    writes = [operands.destination(name, kind) for name in names]
    if space == "param":
        return _load_parameter(operands, instruction.operands[1], writes, kind)
    return _load_memory(operands.address(instruction.operands[1]), writes, kind, space, others)


def _load_memory(address, writes, kind: str, space: str, modifiers):
    raw, dtype = raw_type(kind), NUMPY[kind]
    nbytes = size_of(kind) * len(writes)
    non_coherent = "nc" in modifiers
    strong = "acquire" in modifiers or "relaxed" in modifiers  # counts as an atomic read

    def run(wave, selection):
        lanes = wave.lanes[selection]
        segment, offsets, rows = wave.locate(space, address(wave, selection), lanes, nbytes, INITIALISED)
        if strong:
            wave.atomic_time[wave.block[lanes]] = wave.time
        elif wave.tracks(segment, rows, nbytes):
            check_read(Access(wave, segment, lanes, rows, nbytes), non_coherent)
        if segment.space == "global":
            wave.stats.load_bytes += nbytes * len(lanes)
            wave.stats.load_sectors += wave.sectors(offsets, lanes)
            wave.stats.ops[f"ld.global {nbytes} bytes"] += len(lanes)
        values = segment.elements(rows, raw, len(writes)).view(dtype)
        for i, write in enumerate(writes):
            write(wave, selection, values[:, i])

    return run


def _load_parameter(operands, text: str, writes, kind: str):
    base, offset = operands.split_address(text)
    program, size = operands.program, size_of(kind)
    if base in program.local_offsets:  # parameter of an inlined function
        return _load_memory(operands.address(text), writes, kind, "local", ())
    if operands.register(base) is not None:
        return _load_computed_parameter(operands.address(text), writes, kind)
    if base not in program.parameter_offsets:
        raise PtxError(f"parameter address {text}")
    first = program.parameter_offsets[base] + offset
    if offset < 0 or first + size * len(writes) > program.parameter_bytes:
        raise PtxError(f"parameter address {text}")

    def run(wave, selection):
        values = wave.parameters[first : first + size * len(writes)].copy().view(NUMPY[kind])
        for i, write in enumerate(writes):
            write(wave, selection, values[i : i + 1])

    return run


def _load_computed_parameter(address, writes, kind: str):
    """A parameter at an address in a register: somewhere in a struct that is passed by value."""
    size = size_of(kind)
    nbytes = size * len(writes)

    def run(wave, selection):
        first = np.broadcast_to(address(wave, selection), wave.lanes[selection].shape)
        bad = (first < 0) | (first + nbytes > len(wave.parameters)) | (first % nbytes != 0)
        if bad.any():
            i = np.flatnonzero(bad)[0]
            wave.fail(f"parameter access of {nbytes} bytes at {first[i]}", wave.lanes[selection][i])
        values = wave.parameters[first[:, None] + np.arange(nbytes)].view(NUMPY[kind])
        for i, write in enumerate(writes):
            write(wave, selection, values[:, i])

    return run


@opcode("st")
def store(operands, instruction):
    kind, space, count, others = _form(instruction)
    target, source = instruction.expect_operands(2)
    names = operands.vector(source)
    if len(names) != count:
        raise PtxError("vector length")
    if space == "param":  # argument of an inlined function
        space = "local"
    reads = [operands.source(name, kind) for name in names]
    address = operands.address(target)
    raw, nbytes = raw_type(kind), size_of(kind) * count
    strong = "release" in others or "relaxed" in others  # counts as an atomic write

    def run(wave, selection):
        lanes = wave.lanes[selection]
        segment, offsets, rows = wave.locate(space, address(wave, selection), lanes, nbytes, WRITABLE)
        values = np.empty((len(lanes), count), raw)
        for i, read in enumerate(reads):
            values[:, i] = read(wave, selection).view(raw)
        if wave.tracks(segment, rows, nbytes):
            access = Access(wave, segment, lanes, rows, nbytes)
            if strong:
                record_atomic(access)
            else:
                check_write(access, values.view(np.uint8))
        if "release" in others:
            wave.fence_time[wave.block[lanes]] = wave.time
        if segment.space == "global":
            wave.stats.store_bytes += nbytes * len(lanes)
            wave.stats.store_sectors += wave.sectors(offsets, lanes)
            wave.stats.ops[f"st.global {nbytes} bytes"] += len(lanes)
        segment.data.view(raw).reshape(-1, count)[rows] = values
        segment.flags.reshape(-1, nbytes)[rows] |= INITIALISED

    return run


@opcode("atom", "red")
def atomic(operands, instruction):
    """Read, change and write one integer; ``red`` is the same without a result."""
    kind, space, count, others = _form(instruction, ATOMICS)
    if kind in FLOATS or kind in PACKED:
        raise PtxError("float atomics are refused: they add in an order that varies, and so do the bits of the sum")
    names = [m for m in others if m in ATOMICS]
    if count != 1 or len(names) != 1 or size_of(kind) < 4:
        raise PtxError("form of the atomic operation")
    returns = instruction.opcode == "atom"
    instruction.expect_operands(3 if returns else 2)
    write = operands.destination(instruction.operands[0], kind) if returns else None
    address = operands.address(instruction.operands[-2])
    operand = operands.source(instruction.operands[-1], kind)
    name, nbytes, dtype = names[0], size_of(kind), NUMPY[kind]
    change = _atomic_function(name, dtype)

    def run(wave, selection):
        lanes = wave.lanes[selection]
        segment, offsets, rows = wave.locate(space, address(wave, selection), lanes, nbytes, INITIALISED | WRITABLE)
        if wave.tracks(segment, rows, nbytes):
            record_atomic(Access(wave, segment, lanes, rows, nbytes))
        memory = segment.data.view(dtype)
        values = np.broadcast_to(operand(wave, selection), lanes.shape)
        old = np.empty(len(lanes), dtype)
        for i in wave.atomic_order(len(lanes)):
            position = offsets[i] // nbytes
            old[i] = memory[position]
            memory[position] = change(old[i], values[i])
        wave.atomic_time[wave.block[lanes]] = wave.time
        if "release" in others or "acq_rel" in others:
            wave.fence_time[wave.block[lanes]] = wave.time
        wave.stats.ops[f"atomic {name}"] += len(lanes)
        if write:
            write(wave, selection, old)

    return run


def _atomic_function(name: str, dtype):
    return {
        "add": lambda old, value: old + value,
        "inc": lambda old, value: dtype(0) if old >= value else old + dtype(1),
        "dec": lambda old, value: value if old == 0 or old > value else old - dtype(1),
        "exch": lambda old, value: value,
        "min": min,
        "max": max,
        "and": lambda old, value: old & value,
        "or": lambda old, value: old | value,
        "xor": lambda old, value: old ^ value,
    }[name]


@opcode("membar", "fence")
def fence(operands, instruction):
    instruction.split_modifiers({"cta", "gl", "sys", "gpu", "sc", "acq_rel"})
    if "cta" in instruction.modifiers:  # orders nothing between blocks
        return lambda wave, selection: None

    def run(wave, selection):
        wave.fence_time[wave.block[selection]] = wave.time

    return run

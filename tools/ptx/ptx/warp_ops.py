"""Barriers, shuffles, votes, and the opcodes that change the flow of control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .formats import PtxError
from .operands import opcode

NAN_PATTERN = np.uint32(0x7FFFFFFF)  # what a shuffle reads from a lane that takes no part


@dataclass
class WarpOperation:
    """An instruction that waits until the lanes in its mask have arrived; then all of them execute it at once."""

    read_mask: Callable
    run: Callable

    def mask(self, wave, lanes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.read_mask(wave, lanes), lanes.shape).astype(np.int64)

    def __call__(self, wave, lanes: np.ndarray) -> None:
        self.run(wave, lanes)


@opcode("bra", "exit")
def branch(operands, instruction):
    """The wave follows branches and exits itself."""
    return


@opcode("trap")
def trap(operands, instruction):
    return lambda wave, selection: wave.fail("trap", wave.lanes[selection][0])


@opcode("call")
def call(operands, instruction):
    """Calls of functions in the same file are inlined before this; what is left has no body here."""
    if "__assertfail" in instruction.operands[0]:
        return lambda wave, selection: wave.fail("device assertion failed", wave.lanes[selection][0])
    raise PtxError(f"call of {instruction.operands[0]}")


@opcode("bar", "barrier")
def barrier(operands, instruction):
    others = [m for m in instruction.modifiers if m not in ("cta", "aligned")]
    if others == ["sync"]:
        if instruction.operands != ["0"]:
            raise PtxError("named or partial barrier")
        return None  # the wave releases it
    if others == ["warp", "sync"]:

        def run(wave, lanes):
            wave.warp_syncs[np.unique(wave.warp[lanes])] += 1

        return WarpOperation(operands.source(instruction.expect_operands(1)[0], "u32"), run)
    raise PtxError("form of the barrier")


@opcode("shfl")
def shuffle(operands, instruction):
    kind, others = instruction.only_type({"sync", "up", "down", "bfly", "idx"})
    if kind != "b32" or len(others) != 2 or others[0] != "sync":
        raise PtxError("form of the shuffle")
    mode = others[1]
    destination, value, shift, clamp, mask = instruction.expect_operands(5)
    writes = operands.pair(destination)
    write = operands.destination(writes[0], "b32")
    write_valid = operands.destination(writes[1], "pred") if len(writes) > 1 else None
    read, read_shift, read_clamp = (operands.source(text, "u32") for text in (value, shift, clamp))

    def run(wave, lanes):
        everyone = np.full(wave.size, NAN_PATTERN, np.uint32)
        everyone[lanes] = read(wave, lanes)
        lane = lanes & 31
        by = (read_shift(wave, lanes) & np.uint32(31)).astype(np.int64)
        packed = read_clamp(wave, lanes).astype(np.int64)
        source, valid = _source_lane(mode, lane, by, packed & 31, (packed >> 8) & 31)
        source = (lanes - lane) + np.where(valid, source, lane)
        if len(lanes) < wave.size:
            takes_part = np.zeros(wave.size, bool)
            takes_part[lanes] = True
            if not takes_part[source].all():
                wave.stats.warnings["shfl read a lane that takes no part (result is a NaN pattern)"] += 1
        write(wave, lanes, everyone[source])
        if write_valid:
            write_valid(wave, lanes, valid)

    return WarpOperation(operands.source(mask, "u32"), run)


def _source_lane(mode: str, lane, by, clamp, segment):
    """The lane to read, and whether it lies inside the segment of the warp (PTX manual, shfl.sync)."""
    limit = (lane & segment) | (clamp & ~segment)
    if mode == "up":
        source = lane - by
        return source, source >= limit
    if mode == "down":
        source = lane + by
    elif mode == "bfly":
        source = lane ^ by
    else:
        source = (lane & segment) | (by & ~segment)
    return source, source <= limit


def _lanes_of_warp(wave, lanes: np.ndarray) -> np.ndarray:
    """For each warp, the bits of those lanes."""
    bits = np.zeros(wave.size // 32, np.uint32)
    np.bitwise_or.at(bits, lanes >> 5, np.uint32(1) << (lanes & 31).astype(np.uint32))
    return bits


@opcode("vote")
def vote(operands, instruction):
    kind, others = instruction.only_type({"sync", "all", "any", "uni", "ballot"})
    if len(others) != 2 or others[0] != "sync":
        raise PtxError("form of the vote")
    destination, predicate, mask = instruction.expect_operands(3)
    write = operands.destination(destination, kind)
    read = operands.source(predicate, "pred")

    def run(wave, lanes):
        holds = np.broadcast_to(read(wave, lanes), lanes.shape)
        yes = _lanes_of_warp(wave, lanes[holds])[lanes >> 5]
        if others[1] == "ballot":
            return write(wave, lanes, yes)
        voters = _lanes_of_warp(wave, lanes)[lanes >> 5]
        result = {"any": yes != 0, "all": yes == voters, "uni": (yes == 0) | (yes == voters)}[others[1]]
        write(wave, lanes, result)
        return None

    return WarpOperation(operands.source(mask, "u32"), run)


@opcode("activemask")
def active_mask(operands, instruction):
    kind, _ = instruction.only_type()
    write = operands.destination(instruction.expect_operands(1)[0], kind)

    def run(wave, selection):
        lanes = wave.lanes[selection]
        write(wave, selection, _lanes_of_warp(wave, lanes)[lanes >> 5])

    return run

"""cp.async: copies from global to shared memory, which a thread waits for by groups.

What a copy brings is there, as if its thread had just written it, when that thread waits for the copy's group. Until
then the bytes are neither readable nor writable for anyone; other threads need a barrier after that wait, as for any
write. The source is read when the copy is issued.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .formats import PtxError
from .memory import IN_FLIGHT, INITIALISED, WRITABLE
from .memory_ops import CACHE_HINTS
from .operands import opcode
from .races import Access, check_read, check_write, record_write


@dataclass
class Copies:
    """What one execution of cp.async has on its way: a row for each thread."""

    lanes: np.ndarray
    group: np.ndarray  # how many groups the thread had committed before
    rows: np.ndarray  # of the segment, in units of a copy
    data: np.ndarray


@opcode("cp")
def copy(operands, instruction):
    _, others = instruction.split_modifiers(
        {"async", "shared", "shared::cta", "global", "commit_group", "wait_group", "wait_all", *CACHE_HINTS}
    )
    if others == ["async", "commit_group"]:
        instruction.expect_operands(0)
        return _commit
    if others in (["async", "wait_group"], ["async", "wait_all"]):
        return _wait(instruction, others[1])
    if others[:1] != ["async"] or others[1:2] not in (["ca"], ["cg"]) or others[3:4] != ["global"]:
        raise PtxError("form of the copy")
    if len(instruction.operands) not in (3, 4):
        raise PtxError(f"expected 3 or 4 operands, found {len(instruction.operands)}")
    target, source, size, *given = instruction.operands
    nbytes = int(size)
    if nbytes not in ((16,) if others[1] == "cg" else (4, 8, 16)):
        raise PtxError(f"copy of {nbytes} bytes")
    to, start = operands.address(target), operands.address(source)
    read_count = operands.source(given[0] if given else size, "u32")

    def run(wave, selection):
        lanes = wave.lanes[selection]
        count = np.broadcast_to(read_count(wave, selection), lanes.shape).astype(np.int64)
        if (count > nbytes).any():
            wave.fail(f"copy of {count.max()} into {nbytes} bytes", lanes[count.argmax()])
        data = _read(wave, np.broadcast_to(start(wave, selection), lanes.shape), lanes, count, nbytes)
        segment, offsets, _ = wave.locate("shared", to(wave, selection), lanes, nbytes, WRITABLE)
        rows = offsets // nbytes
        if wave.tracks(segment, rows, nbytes):
            check_write(Access(wave, segment, lanes, rows, nbytes), data)
        flags = segment.flags.reshape(-1, nbytes)
        flags[rows] = flags[rows] & ~np.uint8(INITIALISED | WRITABLE) | np.uint8(IN_FLIGHT)
        wave.copies.append(Copies(lanes, wave.groups[lanes], rows, data))
        wave.stats.ops[f"cp.async {nbytes} bytes"] += len(lanes)

    return run


def _read(wave, addresses, lanes, count, nbytes: int) -> np.ndarray:
    """The first ``count`` bytes of each thread, zeros behind them."""
    data = np.zeros((len(lanes), nbytes), np.uint8)
    misaligned = (addresses & (nbytes - 1) != 0) & (count > 0)
    if misaligned.any():
        i = np.flatnonzero(misaligned)[0]
        wave.fail(f"misaligned {nbytes}-byte global access at {addresses[i]:#x}", lanes[i])
    for first, size in [(0, nbytes), *((byte, 1) for byte in range(nbytes))]:
        here = count == nbytes if size == nbytes else (count > first) & (count < nbytes)
        if here.any():
            segment, offsets, rows = wave.locate("global", addresses[here] + first, lanes[here], size, INITIALISED)
            if wave.tracks(segment, rows, size):
                check_read(Access(wave, segment, lanes[here], rows, size), non_coherent=False)
            data[here, first : first + size] = segment.bytes_of(rows, size)
            wave.stats.load_bytes += size * len(rows if isinstance(rows, np.ndarray) else offsets)
            if size == nbytes:
                wave.stats.load_sectors += wave.sectors(offsets, lanes[here])
    return data


def _commit(wave, selection):
    wave.groups[selection] += 1


def _wait(instruction, which: str):
    pending = int(instruction.expect_operands(1)[0]) if which == "wait_group" else -1
    if which == "wait_all":
        instruction.expect_operands(0)

    def run(wave, selection):
        waited = np.zeros(wave.size, np.int64)  # how many of a thread's groups are there
        waited[selection] = wave.groups[selection] - pending
        remaining = []
        for copies in wave.copies:
            done = copies.group < waited[copies.lanes]
            if done.any():
                _arrive(wave, copies, done)
            if not done.all():
                kept = ~done
                remaining.append(Copies(copies.lanes[kept], copies.group[kept], copies.rows[kept], copies.data[kept]))
        wave.copies = remaining

    return run


def _arrive(wave, copies: Copies, done: np.ndarray) -> None:
    segment, rows, data = wave.memory.segments["shared"], copies.rows[done], copies.data[done]
    nbytes = data.shape[1]
    segment.data.reshape(-1, nbytes)[rows] = data
    flags = segment.flags.reshape(-1, nbytes)
    flags[rows] = flags[rows] & ~np.uint8(IN_FLIGHT) | np.uint8(INITIALISED | WRITABLE)
    if segment.shadow is not None:
        access = Access(wave, segment, copies.lanes[done], rows, nbytes)
        record_write(access, access.thread)

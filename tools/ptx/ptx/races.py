"""Data races: who touched each byte last, and whether anything orders that access before the next one."""

from __future__ import annotations

import numpy as np

UNTOUCHED, ATOMIC = -1, -3
ONE_THREAD, ONE_WARP, SEVERAL_WARPS = 0, 1, 2


class Shadow:
    """The last writer and last reader of every byte. Threads are known by their number in the whole grid."""

    def __init__(self, nbytes: int):
        self.writer = np.full(nbytes, UNTOUCHED, np.int64)
        self.write_barriers = np.zeros(nbytes, np.int32)  # bar.sync its block had passed by then
        self.write_warp_syncs = np.zeros(nbytes, np.int32)  # bar.warp.sync its warp had passed by then
        self.write_time = np.zeros(nbytes, np.int64)
        self.reader = np.full(nbytes, UNTOUCHED, np.int64)
        self.read_barriers = np.zeros(nbytes, np.int32)
        self.read_warp_syncs = np.zeros(nbytes, np.int32)
        self.readers = np.zeros(nbytes, np.uint8)  # ONE_THREAD, ONE_WARP or SEVERAL_WARPS


class Access:
    """One load, store or atomic of several threads, for the checks below.

    ``rows`` selects from tables with one row of ``nbytes`` for each access; every array here that is made from them
    has one row for each lane and one column for each byte.
    """

    def __init__(self, wave, segment, lanes, rows, nbytes):
        self.wave, self.segment, self.lanes, self.rows, self.nbytes = wave, segment, lanes, rows, nbytes
        self.thread = wave.global_thread[lanes][:, None]
        self.barriers = wave.barriers[wave.block[lanes]][:, None]
        self.warp_syncs = wave.warp_syncs[wave.warp[lanes]][:, None]

    def table(self, per_byte: np.ndarray) -> np.ndarray:
        return per_byte.reshape(-1, self.nbytes)[self.rows]

    def store(self, per_byte: np.ndarray, value) -> None:
        per_byte.reshape(-1, self.nbytes)[self.rows] = value

    def fail(self, clash: np.ndarray, what: str, other: np.ndarray | None = None, verb: str = "") -> None:
        lane, byte = np.argwhere(clash)[0]
        if other is not None:
            per_block = self.wave.threads_per_block
            block, thread = divmod(int(other[lane, byte]), per_block)
            what += f" that block {block} thread {thread} {verb}, nothing orders the two"
        self.wave.fail(what, self.lanes[lane])

    def repeated(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Pairs of positions in ``lanes`` that access the same bytes in this one step, None if there are none."""
        if isinstance(self.rows, slice) or (self.rows[1:] > self.rows[:-1]).all():
            return None
        order = np.argsort(self.rows, kind="stable")
        same = self.rows[order][1:] == self.rows[order][:-1]
        return (order[:-1][same], order[1:][same]) if same.any() else None


def check_read(access: Access, non_coherent: bool) -> None:
    """A read races with a write by another thread that no barrier, or fence and atomic, orders before it."""
    shadow, wave = access.segment.shadow, access.wave
    writer = access.table(shadow.writer)
    touched = writer != UNTOUCHED
    if touched.any():
        if non_coherent:
            access.fail(touched, "ld.global.nc of memory this launch has written")
        clash = _unordered_write(access, writer)
        if clash is not None:
            access.fail(clash, f"data race: read of a {access.segment.space} byte", writer, "wrote")
    per_block = wave.threads_per_block
    reader = access.table(shadow.reader)
    fresh = reader // per_block != access.thread // per_block
    fresh |= (reader < 0) | (access.table(shadow.read_barriers) != access.barriers)
    if fresh.all():
        access.store(shadow.readers, ONE_THREAD)
    else:
        before = access.table(shadow.readers)
        same_warp = reader // 32 == access.thread // 32
        grown = np.where(same_warp, np.maximum(before, ONE_WARP), SEVERAL_WARPS)
        kept = np.where(reader == access.thread, before, grown)
        access.store(shadow.readers, np.where(fresh, ONE_THREAD, kept))
    access.store(shadow.reader, access.thread)
    access.store(shadow.read_barriers, access.barriers)
    access.store(shadow.read_warp_syncs, access.warp_syncs)
    repeated = access.repeated()
    if repeated is not None:
        readers = shadow.readers.reshape(-1, access.nbytes)
        thread, (first, second) = access.thread[:, 0], repeated
        other = thread[first] != thread[second]
        rows = access.rows[second[other]]
        readers[rows] = np.maximum(readers[rows], ONE_WARP)
        readers[access.rows[second[thread[first] // 32 != thread[second] // 32]]] = SEVERAL_WARPS


def check_write(access: Access, new: np.ndarray) -> None:
    """A write races with a write or read by another thread. ``new``: the bytes, one row for each lane.

    Two threads that write the same value are counted as a warning, not as an error.
    """
    shadow, wave = access.segment.shadow, access.wave
    space = access.segment.space
    writer = access.table(shadow.writer)
    if (writer != UNTOUCHED).any():
        clash = _unordered_write(access, writer)
        if clash is not None:
            clash &= access.segment.bytes_of(access.rows, access.nbytes) != new
            if clash.any():
                access.fail(clash, f"data race: write of a {space} byte", writer, "wrote")
            wave.stats.warnings["two threads wrote the same value to one address"] += 1
    reader = access.table(shadow.reader)
    if (reader != UNTOUCHED).any():
        per_block = wave.threads_per_block
        readers = access.table(shadow.readers)
        clash = (reader >= 0) & (reader // per_block == access.thread // per_block)
        clash &= access.table(shadow.read_barriers) == access.barriers
        clash &= (reader != access.thread) | (readers != ONE_THREAD)
        one_warp = (reader // 32 == access.thread // 32) & (readers < SEVERAL_WARPS)
        clash &= ~(one_warp & (access.table(shadow.read_warp_syncs) != access.warp_syncs))
        if clash.any():
            access.fail(clash, f"data race: write of a {space} byte", reader, "read")
    repeated = access.repeated()
    if repeated is not None:
        different = new[repeated[0]] != new[repeated[1]]
        if different.any():
            wave.fail(
                f"data race: several threads write different values to one {space} address",
                access.lanes[repeated[1][different.any(axis=1)][0]],
            )
        wave.stats.warnings["two threads wrote the same value to one address"] += 1
    record_write(access, access.thread)


def record_atomic(access: Access) -> None:
    """Atomics never race with each other, and a later plain access of the byte counts as ordered by them."""
    record_write(access, ATOMIC)


def record_write(access: Access, writer) -> None:
    shadow = access.segment.shadow
    access.store(shadow.writer, writer)
    access.store(shadow.write_barriers, access.barriers)
    access.store(shadow.write_warp_syncs, access.warp_syncs)
    access.store(shadow.write_time, access.wave.time)
    access.store(shadow.reader, UNTOUCHED)


def _unordered_write(access: Access, writer: np.ndarray) -> np.ndarray | None:
    """Which bytes another thread wrote with nothing that orders that write before this access."""
    others = (writer >= 0) & (writer != access.thread)
    if not others.any():
        return None
    shadow, wave = access.segment.shadow, access.wave
    per_block = wave.threads_per_block
    same_block = writer // per_block == access.thread // per_block
    same_warp = writer // 32 == access.thread // 32
    clash = same_block & (access.table(shadow.write_barriers) == access.barriers)
    clash &= ~(same_warp & (access.table(shadow.write_warp_syncs) != access.warp_syncs))
    if access.segment.space == "global" and not same_block.all():
        clash |= ~same_block & ~_fenced(access, writer // per_block, access.table(shadow.write_time))
    clash &= others
    return clash if clash.any() else None


def _fenced(access: Access, writing_block: np.ndarray, write_time: np.ndarray) -> np.ndarray:
    """Did the writing block fence after its write, and the accessing block do an atomic after that?"""
    wave = access.wave
    atomic_time = wave.atomic_time[wave.block[access.lanes]][:, None]
    numbers = wave.block_numbers
    order = np.argsort(numbers)
    position = np.minimum(np.searchsorted(numbers[order], writing_block), len(numbers) - 1)
    writer = order[position]  # its index in this wave, if it is one of its blocks
    here = numbers[writer] == writing_block
    fenced_here = (wave.fence_time[writer] > write_time) & (atomic_time > write_time)
    return np.where(here, fenced_here, atomic_time >= 0)  # an earlier wave ended before this one began

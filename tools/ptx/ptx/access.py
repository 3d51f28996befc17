"""Checks of memory accesses: which bytes an address means, and whether a thread may touch them."""

from __future__ import annotations

import numpy as np

from .memory import (
    IN_FLIGHT,
    LOCAL_BASE,
    MAPPED,
    MAX_ACCESS,
    SHARED_BASE,
    VARIABLE_GAP,
    WRITABLE,
    Layout,
    Memory,
    Segment,
    round_up,
    rows_of,
)
from .races import Shadow

SECTOR = 32  # bytes; the unit in which a GPU moves memory


class AddressSpaces:
    """Global, shared and local memory of one wave."""

    def __init__(self, memory: Memory, shadow: Shadow | None, program, dynamic_bytes: int, blocks: int, lanes: int):
        self.memory = memory
        shared, local = program.shared, program.local
        self.dynamic_offset = round_up(shared.end + VARIABLE_GAP, MAX_ACCESS)
        dynamic = (self.dynamic_offset, self.dynamic_offset + dynamic_bytes)
        names = [*_names(shared), (self.dynamic_offset, "dynamic shared memory")]
        self.segments = {
            "global": Segment("global", memory.data, memory.flags, shadow),
            "shared": Segment.copies(
                "shared", blocks, round_up(dynamic[1], MAX_ACCESS), [*shared.ranges, dynamic], names
            ),
            "local": Segment.copies("local", lanes, round_up(local.end, MAX_ACCESS), local.ranges, _names(local)),
        }
        self.segments["const"] = self.segments["global"]
        if shadow is not None:
            shared_segment = self.segments["shared"]
            shared_segment.shadow = Shadow(len(shared_segment.data))

    def locate(self, wave, space: str, addresses: np.ndarray, lanes: np.ndarray, nbytes: int, need: int):
        """Check an access of ``nbytes`` at one address (or one for each lane) by ``lanes``.

        ``need``: INITIALISED for a read, WRITABLE for a write. -> the segment, byte offsets in it, rows of it.
        """
        addresses = np.broadcast_to(addresses, lanes.shape)
        if space == "generic":
            space, addresses = self._from_generic(wave, addresses)
        segment = self.segments[space]
        misaligned = addresses & (nbytes - 1)
        if misaligned.any():
            i = np.flatnonzero(misaligned)[0]
            wave.fail(f"misaligned {nbytes}-byte {space} access at {addresses[i]:#x}", lanes[i])
        if segment.space != "global":
            outside = (addresses < 0) | (addresses + nbytes > segment.stride)
            owner = wave.block[lanes] if space == "shared" else lanes
            offsets = addresses + owner * segment.stride
        else:
            offsets = self.memory.offsets(addresses)
            outside = (offsets < 0) | (offsets + nbytes > len(segment.data))
        if outside.any():
            i = np.flatnonzero(outside)[0]
            self._refuse(wave, segment, addresses[i], None, lanes[i], nbytes, need)
        rows = rows_of(offsets, nbytes)
        permitted = segment.permits(rows, nbytes, MAPPED | need)
        if permitted is not None:
            i = np.flatnonzero(~permitted)[0]
            flags = segment.flags[offsets[i] : offsets[i] + nbytes]
            self._refuse(wave, segment, addresses[i], flags, lanes[i], nbytes, need)
        return segment, offsets, rows

    def _from_generic(self, wave, addresses: np.ndarray) -> tuple[str, np.ndarray]:
        in_local = addresses >= LOCAL_BASE
        in_shared = (addresses >= SHARED_BASE) & ~in_local
        if in_shared.all():
            return "shared", addresses - SHARED_BASE
        if in_local.all():
            return "local", addresses - LOCAL_BASE
        if in_shared.any() or in_local.any():
            wave.fail("generic access mixes memory spaces in one step (not supported)")
        return "global", addresses

    def _refuse(self, wave, segment: Segment, address: int, flags, lane: int, nbytes: int, need: int) -> None:
        """``flags``: of the bytes, None if they lie outside the segment."""
        verb = "write" if need & WRITABLE else "read"
        if flags is None or not (flags & MAPPED).all():
            what = "out-of-bounds"
        elif (flags & IN_FLIGHT).any():
            what = "not waited for, what cp.async brings:"
        elif need & WRITABLE and not (flags & WRITABLE).all():
            what = "write to a readonly buffer:"
        else:
            what = "uninitialised"
        if segment.space == "global":
            wave.fail(f"{what} {nbytes}-byte global {verb} at {address:#x}", lane)
        if what == "out-of-bounds":
            wave.fail(f"{what} {nbytes}-byte {segment.space} access ({segment.describe(address)})", lane)
        wave.fail(f"{what} {segment.space} {verb} ({segment.describe(address)})", lane)


def _names(layout: Layout) -> list[tuple[int, str]]:
    """Variables for error messages; what follows # only tells apart equal names of different scopes."""
    return [(start, name.split("#")[0]) for name, start in layout.offsets.items()]


def needs_race_check(segment: Segment, rows, nbytes: int) -> bool:
    """False where no race can happen: memory of one thread, or bytes that no thread may write."""
    if segment.shadow is None:
        return False
    if segment.space != "global":
        return True
    return segment.any_flag(rows, nbytes, WRITABLE)


def count_sectors(offsets: np.ndarray, warps: np.ndarray) -> int:
    """32-byte pieces that each warp touches. An aligned access never lies in two of them."""
    key = warps.astype(np.int64) * (1 << 40) + offsets // SECTOR
    steps = key[1:] - key[:-1]
    if (steps >= 0).all():
        return 1 + int(np.count_nonzero(steps))
    return len(np.unique(key))

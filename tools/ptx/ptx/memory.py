"""Memory: the bytes, and for each byte whether it exists, may be written, and was ever written."""

from __future__ import annotations

import numpy as np

from .formats import RAW, PtxError, size_of
from .syntax import Variable

MAPPED, WRITABLE, INITIALISED = 1, 2, 4
IN_FLIGHT = 8  # instead of the last two: on its way by cp.async
MAX_ACCESS = 16  # bytes one thread moves at once; every size below is a multiple of it

# Generic addresses: global memory first, then windows (see Memory.window), then shared and local memory.
GLOBAL_BASE = 1 << 32
WINDOW_SPAN = 1 << 36
SHARED_BASE = 1 << 40
LOCAL_BASE = 1 << 41
GUARD = 256  # unmapped bytes after every allocation
VARIABLE_GAP = 128  # unmapped bytes before each shared or local variable


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Buffer:
    """An allocation in Memory. ``addr`` is what a kernel gets; ``buf.addr + 4`` passes a pointer off the grid."""

    def __init__(self, memory: Memory, offset: int, shape, dtype, nbytes: int, address: int | None = None):
        self.memory, self.offset, self.shape, self.dtype, self.nbytes = memory, offset, shape, dtype, nbytes
        self.addr = GLOBAL_BASE + offset if address is None else address

    def read(self) -> np.ndarray:
        """A copy of the contents."""
        stored = self.memory.data[self.offset : self.offset + self.nbytes]
        return stored.copy().view(self.dtype).reshape(self.shape)

    def initialised(self) -> bool:
        """True if every byte has been written."""
        flags = self.memory.flags[self.offset : self.offset + self.nbytes]
        return bool((flags & INITIALISED).all())


class Memory:
    """Global memory: allocations aligned to 256 bytes with unmapped gaps between them."""

    def __init__(self):
        self.data = np.zeros(4096, np.uint8)
        self.flags = np.zeros(4096, np.uint8)
        self.windows: list[tuple[int, int, int]] = []  # first address, end, distance to the stored bytes
        self.symbols: dict = {}  # module-level variables, placed by the first launch
        self._end = GUARD

    def _allocate(self, nbytes: int, flags: int) -> int:
        offset = self._end
        self._end = round_up(offset + nbytes + GUARD, GUARD)
        if self._end + GUARD > len(self.data):
            size = round_up(max(2 * len(self.data), self._end + 4096), GUARD)
            more = np.zeros(size - len(self.data), np.uint8)
            self.data, self.flags = np.concatenate([self.data, more]), np.concatenate([self.flags, more])
        self.flags[offset : offset + nbytes] = flags
        return offset

    def array(self, values, readonly: bool = False) -> Buffer:
        """A buffer with the contents of ``values``. Writing to a ``readonly`` one is an error."""
        values = np.asarray(values)
        shape = values.shape
        values = np.ascontiguousarray(values)
        offset = self._allocate(values.nbytes, MAPPED | INITIALISED | (0 if readonly else WRITABLE))
        self.data[offset : offset + values.nbytes] = values.reshape(-1).view(np.uint8)
        return Buffer(self, offset, shape, values.dtype, values.nbytes)

    def empty(self, shape, dtype) -> Buffer:
        """An uninitialised buffer: a kernel that reads it before writing is an error. Unwritten bytes are 0xFF."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        offset = self._allocate(nbytes, MAPPED | WRITABLE)
        self.data[offset : offset + nbytes] = 0xFF
        return Buffer(self, offset, shape, dtype, nbytes)

    def zeros(self, shape, dtype) -> Buffer:
        return self.array(np.zeros(shape, dtype))

    def window(self, total: int, start: int, values: np.ndarray, readonly: bool = False) -> Buffer:
        """A buffer of ``total`` elements of which only ``values``, at index ``start``, exist.

        No other element may be touched. With ``launch(..., blocks=[...])`` this checks the index arithmetic of
        launches over more than 2**31 elements without storing them.
        """
        part = self.array(values, readonly)
        size = values.dtype.itemsize
        base = (len(self.windows) + 1) * WINDOW_SPAN
        if total * size >= WINDOW_SPAN or base >= SHARED_BASE or start + values.size > total:
            raise PtxError("window too large")
        first = base + start * size
        self.windows.append((first, first + part.nbytes, part.addr - first))
        part.addr = base
        return part

    def offsets(self, addresses: np.ndarray) -> np.ndarray:
        """Addresses as positions in ``data``; the caller checks their range."""
        if self.windows:
            stored = addresses
            for first, end, distance in self.windows:
                inside = (addresses >= first) & (addresses < end)
                stored = np.where(inside, addresses + distance, stored)
            addresses = stored
        return addresses - GLOBAL_BASE


class Layout:
    """Positions of the variables in one copy of shared or local memory."""

    def __init__(self):
        self.offsets: dict[str, int] = {}
        self.ranges: list[tuple[int, int]] = []
        self.end = 0
        self.nbytes = 0

    def place(self, name: str, variable: Variable) -> None:
        start = round_up(self.end + VARIABLE_GAP, max(variable.align, size_of(variable.kind)))
        self.offsets[name] = start
        self.end = start + variable.nbytes
        self.ranges.append((start, self.end))
        self.nbytes += variable.nbytes


class Segment:
    """One memory space as the threads of a wave see it: bytes, flags and the history of accesses.

    Shared memory has one copy for each block and local memory one for each thread: ``stride`` is the size of a copy.
    Global memory has stride 0.
    """

    def __init__(self, space: str, data: np.ndarray, flags: np.ndarray, shadow=None, stride: int = 0, names=()):
        self.space, self.data, self.flags, self.shadow, self.stride = space, data, flags, shadow, stride
        self.names = list(names)  # (offset, variable) for error messages

    @classmethod
    def copies(cls, space: str, count: int, size: int, ranges, names=()) -> Segment:
        """``count`` uninitialised copies of ``size`` bytes of which only the (start, end) ``ranges`` are mapped."""
        flags = np.zeros(size, np.uint8)
        for start, end in ranges:
            flags[start:end] = MAPPED | WRITABLE
        return cls(space, np.zeros(count * size, np.uint8), np.tile(flags, count), stride=size, names=names)

    def _flags_of(self, rows, nbytes: int, flag: int):
        """The flags of the accessed bytes in words as wide as possible, and ``flag`` repeated over such a word."""
        width = min(nbytes, 8)
        flags = self.flags.view(RAW[width]).reshape(-1, nbytes // width)[rows]
        return flags, flags.dtype.type(int.from_bytes(bytes([flag]) * width, "little"))

    def any_flag(self, rows, nbytes: int, flag: int) -> bool:
        flags, pattern = self._flags_of(rows, nbytes, flag)
        return bool(np.bitwise_or.reduce(flags, axis=None) & pattern)

    def permits(self, rows, nbytes: int, need: int) -> np.ndarray | None:
        """None if every byte of the access has the flags ``need``; else one bool for each lane."""
        flags, want = self._flags_of(rows, nbytes, need)
        if np.bitwise_and.reduce(flags, axis=None) & want == want:
            return None
        return ((flags & want) == want).all(axis=1)

    def bytes_of(self, rows, nbytes: int) -> np.ndarray:
        return self.data.reshape(-1, nbytes)[rows]

    def elements(self, rows, dtype, count: int) -> np.ndarray:
        """The accessed values, one row of ``count`` for each lane; a view where ``rows`` is a slice."""
        return self.data.view(dtype).reshape(-1, count)[rows]

    def describe(self, address: int) -> str:
        """Where an address lies, by the variable before it."""
        offset, name = max(entry for entry in self.names + [(0, "address 0")] if entry[0] <= max(address, 0))
        return f"{name} + {address - offset} bytes"


def rows_of(offsets: np.ndarray, nbytes: int):
    """Aligned byte offsets as row numbers of an (n, nbytes) table; a slice if they follow each other.

    Neighbouring threads nearly always touch neighbouring elements, and slices are much cheaper than index arrays.
    """
    rows = offsets // nbytes
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and (rows[1:] - rows[:-1] == 1).all():
        return slice(first, last + 1)
    return rows

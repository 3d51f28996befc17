"""A wave: the blocks that run together, with their registers, memories and program counters.

Every register is an array with one element (a *lane*) for each thread, padded to whole warps, so that one step
executes one instruction for all lanes that stand at the same place. Divergent lanes have their own counter.
"""

from __future__ import annotations

import numpy as np

from .access import AddressSpaces, count_sectors, needs_race_check
from .formats import PtxError
from .syntax import Instruction

RUNNING, AT_BARRIER, AT_WARP_SYNC, EXITED = 0, 1, 2, 3
SCHEDULES = ("lockstep", "serial", "reverse", "random")
FULL_MASK = 0xFFFFFFFF
# What a register holds before it is written: patterns that are a NaN as a float and large as an integer.
POISON = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFF7FFFFFFF}
_LANE_BITS = np.int64(1) << np.arange(32, dtype=np.int64)


class Registers(dict):
    """Register arrays by name, made when first touched: kernels declare far more than one launch uses."""

    def __init__(self, types: dict[str, type], size: int):
        super().__init__()
        self._types, self._size = types, size

    def __missing__(self, name: str) -> np.ndarray:
        dtype = np.dtype(self._types[name])
        values = self[name] = np.empty(self._size, dtype)
        values.fill(POISON.get(dtype.itemsize, False))
        return values


class Wave:
    """State of one wave and the loop that advances it."""

    def __init__(self, launch, blocks: np.ndarray):
        self.launch, self.program, self.stats = launch, launch.program, launch.stats
        self.parameters, self.random, self.approx_noise = launch.parameters, launch.random, launch.approx_noise
        threads = int(np.prod(launch.block))
        self.threads_per_block = per_block = -(-threads // 32) * 32  # padded to whole warps
        self.block_numbers = np.asarray(blocks, np.int64)
        self.size = len(blocks) * per_block
        self.lanes = np.arange(self.size)
        self.block, self.warp, self.thread = self.lanes // per_block, self.lanes // 32, self.lanes % per_block
        self.exists = self.thread < threads
        self.global_thread = self.block_numbers[self.block] * per_block + self.thread
        self.special = _special_registers(launch, self.block_numbers[self.block], self.thread)
        self.registers = Registers(self.program.registers, self.size)
        self.status = np.where(self.exists, RUNNING, EXITED).astype(np.int8)
        self.counter = np.zeros(self.size, np.int64)
        self.memory = AddressSpaces(
            launch.memory, launch.shadow, self.program, launch.shared_bytes, len(blocks), self.size
        )
        self.dynamic_offset = self.memory.dynamic_offset
        # what the race checks call time: steps so far, barriers passed, and the last fence and atomic of each block
        self.time = 0
        self.barriers = np.zeros(len(blocks), np.int32)
        self.warp_syncs = np.zeros(self.size // 32, np.int32)
        self.fence_time = np.full(len(blocks), -1, np.int64)
        self.atomic_time = np.full(len(blocks), -1, np.int64)
        self.copies: list = []  # see copy_ops.py: on their way, and how many groups of them each thread has committed
        self.groups = np.zeros(self.size, np.int64)
        self.current: Instruction | None = None

    # ---- services to the instructions
    def symbol_address(self, name: str) -> int:
        return self.launch.symbols[name].addr

    def locate(self, space: str, addresses: np.ndarray, lanes: np.ndarray, nbytes: int, need: int):
        return self.memory.locate(self, space, addresses, lanes, nbytes, need)

    def tracks(self, segment, rows, nbytes: int) -> bool:
        return needs_race_check(segment, rows, nbytes)

    def sectors(self, offsets: np.ndarray, lanes: np.ndarray) -> int:
        return count_sectors(offsets, self.warp[lanes])

    def atomic_order(self, count: int):
        """The order in which the lanes of one atomic instruction reach memory."""
        if self.launch.schedule == "random":
            return self.random.permutation(count)
        return range(count - 1, -1, -1) if self.launch.schedule == "reverse" else range(count)

    def fail(self, message: str, lane: int | None = None) -> None:
        place = "" if lane is None else f" ({self.describe(lane)})"
        raise PtxError(f"{self.launch.name}: {self.current}{place}: {message}")

    def describe(self, lane: int) -> str:
        return f"block {self.block_numbers[self.block[lane]]} thread {self.thread[lane]}"

    # ---- the loop
    def run(self) -> None:
        """Advance groups of lanes, chosen by the schedule, until all have exited."""
        while True:
            pc, lanes, alone = self._pick()
            if lanes is not None:
                self._advance(pc, lanes, alone)
            elif not self._unblock():
                if (self.status == EXITED).all():
                    if self.copies:
                        self.stats.warnings["what cp.async brought was never waited for"] += len(self.copies)
                    return
                self._deadlock()

    def _pick(self):
        """-> program counter, the lanes that execute it, and whether the schedule would pick exactly them again."""
        running = self.status == RUNNING
        schedule = self.launch.schedule
        if schedule == "random":
            return self._pick_random(running)
        if schedule == "lockstep":
            candidates = np.flatnonzero(running)
        else:  # one warp until it blocks
            first = int(running.argmax()) if schedule == "serial" else self.size - 1 - int(running[::-1].argmax())
            start = first // 32 * 32
            candidates = np.flatnonzero(running[start : start + 32]) + start
        if not len(candidates):
            return None, None, False
        counters = self.counter[candidates]
        pc = counters.min()
        lanes = candidates[counters == pc]
        return int(pc), lanes, len(lanes) == len(candidates)

    def _pick_random(self, running: np.ndarray):
        """Random warps, and of their divergent paths a random one."""
        if not running.any():
            return None, None, False
        keep = self.random.random(self.size // 32) < (0.1, 0.5, 1.0)[self.random.integers(3)]
        chosen = running & keep[self.warp]
        candidates = np.flatnonzero(chosen)
        eligible = candidates if len(candidates) else np.flatnonzero(running)
        leader = eligible[self.random.integers(len(eligible))]
        if not len(candidates):
            chosen = running & (self.warp == self.warp[leader])
        pc = self.counter[leader]
        return int(pc), np.flatnonzero(chosen & (self.counter == pc)), False

    def _advance(self, pc: int, lanes: np.ndarray, alone: bool) -> None:
        """Execute from ``pc`` on until the schedule has to choose again."""
        code, leader, stats, limit = self.program.code, self.program.leader, self.stats, self.launch.max_steps
        group, count = as_selection(lanes), len(lanes)
        while True:
            instruction = self.current = code[pc]
            self.time += 1
            stats.steps += 1
            if stats.steps > limit:
                self.fail(f"no end after {limit} steps: endless loop?", lanes[0])
            if instruction.control:
                pc = self._control(instruction, pc, lanes, group)
                if pc is None:
                    return
            else:
                selection, active = group, count
                if instruction.predicate is not None:
                    guard = self.registers[instruction.predicate][group]
                    guard = ~guard if instruction.negated else guard
                    active = int(np.count_nonzero(guard))
                    if 0 < active < count:
                        selection = as_selection(lanes[guard])
                if active:
                    instruction.hits += active
                    stats.thread_instructions += active
                    instruction.run(self, selection)
                pc += 1
            if leader[pc] and not alone:
                self.counter[group] = pc
                return

    def _control(self, instruction: Instruction, pc: int, lanes: np.ndarray, group) -> int | None:
        """Execute an instruction that may part the group; -> where all of it goes on, None if it does not."""
        instruction.hits += len(lanes)
        self.stats.thread_instructions += len(lanes)
        taking = lanes
        if instruction.predicate is not None:
            guard = self.registers[instruction.predicate][group]
            guard = ~guard if instruction.negated else guard
            taking, staying = lanes[guard], lanes[~guard]
            if not len(taking):
                return pc + 1
            self.counter[staying] = pc + 1
        if instruction.control == "bra":
            if len(taking) == len(lanes):
                return instruction.target
            self.counter[taking] = instruction.target
        elif instruction.control == "exit":
            self.status[taking] = EXITED
        else:
            self.counter[taking] = pc
            if instruction.control == "bar":
                self.status[taking] = AT_BARRIER
                self._release_barriers()
            else:
                self.status[taking] = AT_WARP_SYNC
                self._release_warp_sync(pc)
        return None

    # ---- barriers
    def _release_barriers(self) -> bool:
        """Let the blocks go on all of whose living threads wait at a barrier; -> whether there are any."""
        status = self.status.reshape(-1, self.threads_per_block)
        waiting = status == AT_BARRIER
        ready = (waiting | (status == EXITED)).all(1) & waiting.any(1)
        if not ready.any():
            return False
        counters = self.counter.reshape(status.shape)
        exists = self.exists[: self.threads_per_block]
        for block in np.flatnonzero(ready):
            places = counters[block][waiting[block]]
            if (places != places[0]).any():
                where = "; ".join(
                    f"{self.program.code[pc]} ({(places == pc).sum()} threads)" for pc in np.unique(places)
                )
                self.fail(
                    f"barrier divergence in block {self.block_numbers[block]}: "
                    f"threads wait at different barriers: {where}"
                )
            if (~waiting[block] & exists).any():
                self.stats.warnings["barrier after some threads of the block exited"] += 1
        released = (waiting & ready[:, None]).ravel()
        self.status[released] = RUNNING
        self.counter[released] += 1
        self.barriers[ready] += 1
        self.stats.barriers += int(ready.sum())
        return True

    def _release_warp_sync(self, pc: int) -> bool:
        """Execute a warp-synchronous instruction for the warps whose member lanes have all arrived."""
        instruction = self.current = self.program.code[pc]
        here = (self.status == AT_WARP_SYNC) & (self.counter == pc)
        lanes = np.flatnonzero(here)
        mask = instruction.run.mask(self, lanes)
        missing = (mask & _LANE_BITS[lanes & 31]) == 0
        if missing.any():
            self.fail("executed by a lane outside its member mask", lanes[missing][0])
        everyone = len(lanes) == np.count_nonzero(self.status != EXITED)
        if not (everyone and (mask == FULL_MASK).all()):
            lanes = lanes[self._complete(here, lanes, mask)]
        if not len(lanes):
            return False
        instruction.run(self, lanes)
        self.status[lanes] = RUNNING
        self.counter[lanes] = pc + 1
        return True

    def _complete(self, here: np.ndarray, lanes: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """For each waiting lane: are all living lanes of its mask here, and do they name the same mask?"""
        alive = ((self.status != EXITED).reshape(-1, 32) * _LANE_BITS).sum(1)
        arrived = (here.reshape(-1, 32) * _LANE_BITS).sum(1)
        warp = lanes // 32
        complete = (mask & alive[warp] & ~arrived[warp]) == 0
        if (mask == mask[0]).all():
            return complete
        masks = np.full(self.size, -1, np.int64)
        masks[lanes] = mask
        members = ((mask[:, None] & _LANE_BITS) != 0) & here.reshape(-1, 32)[warp]
        return complete & ~(members & (masks.reshape(-1, 32)[warp] != mask[:, None])).any(1)

    def _unblock(self) -> bool:
        """No lane runs: release what an exit or a late arrival has completed; -> whether anything moved."""
        moved = self._release_barriers()
        for pc in np.unique(self.counter[self.status == AT_WARP_SYNC]):
            moved |= self._release_warp_sync(int(pc))
        return moved

    def _deadlock(self) -> None:
        waits = []
        for status, what in ((AT_BARRIER, "barrier"), (AT_WARP_SYNC, "warp-synchronous instruction")):
            for pc in np.unique(self.counter[self.status == status]):
                lanes = np.flatnonzero((self.status == status) & (self.counter == pc))
                waits.append(
                    f"{len(lanes)} threads (first: {self.describe(lanes[0])}) wait at {what}, {self.program.code[pc]}"
                )
        raise PtxError(f"{self.launch.name}: deadlock: {'; '.join(waits)}")


def as_selection(lanes: np.ndarray):
    """Lane numbers in ascending order as a slice where they follow each other: slices need no copies."""
    first, last = int(lanes[0]), int(lanes[-1])
    return slice(first, last + 1) if last - first == len(lanes) - 1 else lanes


def _special_registers(launch, block: np.ndarray, thread: np.ndarray) -> dict[str, np.ndarray]:
    """%tid, %ctaid and their like, one element for each lane."""
    registers = {"%laneid": thread % 32, "%warpid": thread // 32}
    threads_below, blocks_below = 1, 1
    for i, axis in enumerate("xyz"):
        registers[f"%tid.{axis}"] = thread // threads_below % launch.block[i]
        registers[f"%ctaid.{axis}"] = block // blocks_below % launch.grid[i]
        registers[f"%ntid.{axis}"] = np.full(len(thread), launch.block[i])
        registers[f"%nctaid.{axis}"] = np.full(len(thread), launch.grid[i])
        threads_below, blocks_below = threads_below * launch.block[i], blocks_below * launch.grid[i]
    bit = np.int64(1) << (thread % 32)
    for name, mask in (("eq", bit), ("lt", bit - 1), ("le", 2 * bit - 1), ("gt", -2 * bit), ("ge", -bit)):
        registers[f"%lanemask_{name}"] = mask & FULL_MASK
    return {name: values.astype(np.uint32) for name, values in registers.items()}

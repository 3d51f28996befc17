"""Timing that survives a noisy machine: all candidates in turn, round after round; medians and quantiles."""

from __future__ import annotations

import functools
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import torch


@dataclass(frozen=True)
class Candidate:
    """Something to time. ``before`` is called untimed ahead of every call, and ``run`` gets what it returned."""

    run: Callable[..., object]
    before: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds per call: quantiles over the rounds."""

    q20: float
    q25: float
    median: float
    q75: float
    q80: float

    @classmethod
    def of(cls, values: list[float]) -> Timing:
        if len(values) == 1:
            return cls(*values * 5)
        percent = statistics.quantiles(values, n=20, method="inclusive")
        return cls(percent[3], percent[4], percent[9], percent[14], percent[15])

    def times(self, factor: float) -> Timing:
        return Timing(*(factor * value for value in astuple(self)))


def _seconds_cpu(candidate: Candidate, calls: int) -> float:
    run, before = candidate.run, candidate.before
    if before is None:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    total = 0.0
    for _ in range(calls):
        argument = before()
        start = time.perf_counter()
        run(argument)
        total += time.perf_counter() - start
    return total / calls


_AHEAD = 1_000_000  # clocks that a GPU waits, so that what Python still has to launch is there in time


@functools.cache
def _flushed() -> torch.Tensor:
    """More memory than any L2 cache holds; writing it leaves nothing else there."""
    return torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The replay of a CUDA graph of the call, which takes the GPU's time and none of Python's; the call itself where it
    cannot be captured, because it waits for the device, say."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # warm-up, as torch asks
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        torch.cuda.synchronize()
        print(f"timed with its launches, for it cannot be captured: {str(error).splitlines()[0]}", file=sys.stderr)
        return run
    return graph.replay


def _seconds_cuda(candidate: Candidate, calls: int) -> float:
    """By events on the stream, the caches flushed; what is queued waits for ``before``, which so does not count."""
    total = 0.0
    for _ in range(calls):
        arguments = () if candidate.before is None else (candidate.before(),)
        _flushed().zero_()
        torch.cuda._sleep(_AHEAD)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        candidate.run(*arguments)
        end.record()
        torch.cuda.synchronize()
        total += start.elapsed_time(end) * 1e-3
    return total / calls


def _seconds_loop(candidate: Candidate, calls: int) -> float:
    """As a training loop takes it: one call after the other, waited for at the end."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        candidate.run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(
    candidates: Mapping[str, Candidate | Callable[[], object]],
    rounds: int = 21,
    min_seconds: float = 5e-3,
    device: str = "cpu",
    after_round: Callable[[], object] = lambda: None,
    loop: bool = False,
) -> dict[str, Timing]:
    """Times every candidate once a round, so that drift of the machine's speed hits all alike.

    Each round has an order of its own: threads that a candidate leaves spinning, and what it leaves in the caches, do
    not always meet the same other. A candidate faster than ``min_seconds`` is called several times a round, and its
    time divided. ``after_round`` is for a progress bar. On a GPU it is the GPU's time, or with ``loop`` the time that a
    loop of such calls takes.
    """
    given = {name: c if isinstance(c, Candidate) else Candidate(c) for name, c in candidates.items()}
    if device == "cpu":
        seconds_per_call = _seconds_cpu
    elif loop:
        seconds_per_call = _seconds_loop
    else:
        seconds_per_call = _seconds_cuda
        given = {name: Candidate(captured(c.run)) if c.before is None else c for name, c in given.items()}
    calls = {}
    for name, candidate in given.items():
        seconds_per_call(candidate, 1)  # compiles, allocates, starts threads
        calls[name] = max(1, int(min_seconds / max(seconds_per_call(candidate, 1), 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in given}
    shuffled = random.Random(0)
    for _ in range(rounds):
        for name in shuffled.sample(list(given), len(given)):
            seconds[name].append(seconds_per_call(given[name], calls[name]))
        after_round()
    return {name: Timing.of(values) for name, values in seconds.items()}


def count_launches(run: Callable[[], object]) -> int:
    """How many kernels one call starts on the GPU."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)

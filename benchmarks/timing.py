"""Timing that survives a noisy machine: all candidates in turn, round after round; medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm


@dataclass
class Timing:
    """Seconds per call: the median over rounds and the quartiles around it."""

    low: float
    median: float
    high: float


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int = 21, min_seconds: float = 2e-3, label: str = ""
) -> dict[str, Timing]:
    """Times every candidate once a round, so that drift of the machine's speed hits all alike.

    A candidate faster than ``min_seconds`` is called several times a round, and its time divided.
    """
    calls = {}
    for name, run in candidates.items():
        for _ in range(3):
            run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, int(min_seconds / max(time.perf_counter() - start, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(rounds), desc=label, leave=False):
        for name, run in candidates.items():
            repeat = range(calls[name])
            start = time.perf_counter()
            for _ in repeat:
                run()
            seconds[name].append((time.perf_counter() - start) / len(repeat))
    result = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        result[name] = Timing(low, median, high)
    return result

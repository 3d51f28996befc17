"""The peak memory of one call beyond what was there before it, measured in a process of its own.

On the CPU it is read from Linux: ``VmHWM`` (the largest resident set) after the call minus ``VmRSS`` before it, the
former reset in between. That sees every allocator; torch's profiler sees only torch's. Freed memory that an allocator
keeps would hide what the call needs, so blocks are returned to the system first. On CUDA it is torch's own
``max_memory_allocated``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from .cases import Case, Plan, all_cases
from .timing import Candidate

REPEATS = 5
ROOT = Path(__file__).resolve().parent.parent


def _status(field: str) -> int:
    """A memory field of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"benchmarks.memory: /proc/self/status has no {field}")


def _return_freed_memory() -> None:
    from fused_logistic import _C

    gc.collect()
    _C.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def peak_cpu(candidate: Candidate) -> int:
    arguments = () if candidate.before is None else (candidate.before(),)
    _return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    candidate.run(*arguments)
    return max(0, _status("VmHWM") - before)


def peak_cuda(candidate: Candidate) -> int:
    arguments = () if candidate.before is None else (candidate.before(),)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    candidate.run(*arguments)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(case: Case) -> dict[str, list[int]]:
    """Peaks in bytes of the case's providers that are there."""
    peak = peak_cuda if case.device == "cuda" else peak_cpu
    peaks = {}
    for provider, given in case.candidates().items():
        if provider in case.memory:
            candidate = given if isinstance(given, Candidate) else Candidate(given)
            peaks[provider] = [peak(candidate) for _ in range(REPEATS + 1)][1:]  # the first compiles, starts threads
    return peaks


def in_subprocess(case: Case, plan: Plan) -> dict[str, list[int]]:
    command = [sys.executable, "-m", "benchmarks.memory", case.key, "--device", plan.device]
    # every block of 64 KB or more comes from the system and returns to it
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    result = subprocess.run(
        command + (["--full"] if plan.full else []), env=environment, capture_output=True, text=True, cwd=ROOT
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"memory of {case.key}: not measured ({reason})", file=sys.stderr)
        return {}
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="The peak memory of a case (used by benchmarks.run)")
    parser.add_argument("case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    for case in all_cases(Plan(full=options.full, device=options.device)):
        if case.key == options.case:
            print(json.dumps(measure(case)))
            return
    sys.exit(f"benchmarks.memory: no case {options.case}")


if __name__ == "__main__":
    main()

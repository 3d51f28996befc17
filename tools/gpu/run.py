"""``make gpu``: what a GPU says of this commit, in one report.

    python tools/gpu/run.py [--device cpu] [--seconds N] [--report FILE] [PART ...]

PART: tests (those marked cuda), logits (every float32), random (configurations), sanitizers, speed; all by default,
in at most eight minutes. Exit status 1: something failed; 2: there is no GPU. ``--device cpu`` compares the CPU with
itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from compare import every_logit, random_configurations

import fused_logistic as fl

ROOT = Path(__file__).parents[2]
Part = Callable[[torch.device, float], tuple[bool | None, str]]  # (whether it is right; None: left out, what was seen)


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _last_line(seconds: float, *command: str) -> tuple[bool, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=seconds,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired:
        return False, f"no end after {seconds:.0f} s"
    lines = done.stdout.strip().splitlines() or ["no output"]
    return done.returncode == 0, lines[-1] if done.returncode == 0 else "\n".join(lines[-20:])


def tests(device: torch.device, seconds: float) -> tuple[bool | None, str]:
    if device.type == "cpu":
        return None, "needs a GPU"
    return _last_line(seconds, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests")


def sanitizers(device: torch.device, seconds: float) -> tuple[bool | None, str]:
    program = shutil.which("compute-sanitizer")
    if program is None or device.type == "cpu":
        return None, "needs a GPU" if device.type == "cpu" else "compute-sanitizer is not on PATH"
    right, seen = True, []
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = program, "--tool", tool, "--error-exitcode", "1", sys.executable, "tools/gpu/kernels.py"
        clean, last = _last_line(seconds / 4, *command)
        right &= clean
        seen.append(f"{tool}: {last}")
    return right, "; ".join(seen)


def speed(device: torch.device, seconds: float) -> tuple[bool | None, str]:
    if device.type == "cpu":
        return None, "`make bench` times the CPU"
    folder = ROOT / "build" / "gpu"
    command = sys.executable, "-m", "benchmarks", "--device", "cuda", "--output", str(folder)
    right, last = _last_line(seconds, *command)
    return right, f"{last} (figures and pictures: {folder.relative_to(ROOT)})" if right else last


PARTS: dict[str, tuple[Part, float]] = {
    "tests": (tests, 120),
    "logits": (every_logit, 90),
    "random": (random_configurations, 40),
    "sanitizers": (sanitizers, 80),
    "speed": (speed, 120),
}


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were seen on."""
    is_changed = bool(_output("git", "status", "--porcelain"))
    driver = (
        _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if device.type == "cuda" else ""
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "driver": driver.splitlines()[0] if driver else "none",
        "commit": _output("git", "rev-parse", "--short", "HEAD") + (", changed" if is_changed else ""),
        "torch": torch.__version__,
        "fused_logistic": fl.__version__,
        "instruction set": fl._C.isa(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def report(of: dict[str, str], results: list[tuple[str, bool | None, float, str]]) -> str:
    words = {True: "right", False: "WRONG", None: "left out"}
    lines = ["# What a GPU said", "", *(f"- {name}: {value}" for name, value in of.items()), ""]
    for name, right, seconds, seen in results:
        lines += [f"## {name}: {words[right]} ({seconds:.0f} s)", "", seen, ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, help="of each part; default: its own limit")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "gpu-report.md")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("make gpu: expected a GPU that this torch can use, found none", file=sys.stderr)
        return 2
    results = []
    for name in given.parts or PARTS:
        part, limit = PARTS[name]
        print(f"== {name}", flush=True)
        start = time.monotonic()
        right, seen = part(device, given.seconds or limit)
        results.append((name, right, time.monotonic() - start, seen))
        print(seen, flush=True)
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(report(machine(device), results))  # after each, for who stops it
    print(f"report: {given.report}")
    return int(any(right is False for _, right, _, _ in results))


if __name__ == "__main__":
    sys.exit(main())

"""Times the loss against its rivals and writes a CSV and pictures.

    python -m benchmarks             a short run, in under three minutes, into build/bench/
    python -m benchmarks --full      the whole one, in under twenty, into benchmarks/results/ and docs/images/

Every case is timed with all candidates in turn on the same tensors, next to the memory limit: a triad,
``torch.add(a, b, out=c)``, which like the fused step reads two arrays and writes one, and a read, ``a.sum()``. Compare
ratios within one run; absolute times drift on a shared machine. A GPU is timed too where torch sees one.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

import fused_logistic as fl
from fused_logistic import _C

from . import report, results
from .cases import NAMES, OURS, Case, Plan, all_cases
from .memory import in_subprocess
from .results import Row
from .timing import Candidate, Timing, count_launches, interleaved

ROOT = Path(__file__).resolve().parent.parent


def processor(device: str) -> str:
    """Its name, for the column that Liger-Kernel calls gpu_name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def commit() -> dict[str, str]:
    """That of the checkout, with a + where files differ from it; nothing where git or its folder is missing."""
    command = ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return {}
    return {} if done.returncode else {"commit": done.stdout.strip()}


def row(case: Case, provider: str, metric: str, unit: str, timing: Timing, **config: object) -> Row:
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "isa": _C.isa(), **commit()}
    return Row(
        kernel_name=case.kernel,
        kernel_provider=provider,
        kernel_operation_mode=case.mode,
        metric_name=metric,
        metric_unit=unit,
        x_name=case.x_name,
        x_label=case.x_label,
        x_value=case.x_value,
        y_value_50=timing.median,
        y_value_20=timing.q20,
        y_value_80=timing.q80,
        y_value_25=timing.q25,
        y_value_75=timing.q75,
        extra_benchmark_config_str=json.dumps({"dtype": case.dtype_name, **config, **environment}),
        gpu_name=processor(case.device),
        timestamp=datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        fused_logistic_version=fl.__version__,
    )


def timings(case: Case, bar: tqdm) -> Iterator[Row]:
    candidates = case.candidates()
    times = interleaved(candidates, case.rounds, device=case.device, after_round=bar.update)
    for provider, t in times.items():
        config: dict[str, object] = {}
        if case.bytes is not None:
            config["bytes"] = case.bytes
        if provider in case.targets:
            config["target"] = case.targets[provider]
        yield row(case, provider, "speed", "ms", t.times(1e3), **config)
    if case.device == "cuda":
        alone = {name: candidate for name, candidate in candidates.items() if not isinstance(candidate, Candidate)}
        for provider, t in interleaved(alone, min(case.rounds, 9), device="cuda", loop=True).items():
            yield row(case, provider, "loop", "ms", t.times(1e3))
        for provider, candidate in alone.items():
            yield row(case, provider, "launches", "kernels", Timing.of([float(count_launches(candidate))]))
    ours = times[OURS].median
    rivals = ", ".join(f"{NAMES.get(name, name)} {t.median / ours:.2f}" for name, t in times.items() if name != OURS)
    bar.write(
        f"{case.kernel} {case.mode} {case.dtype_name} {case.x_name} {case.x_value:,}: ours {ours * 1e6:,.1f} us; "
        f"as multiples of it: {rivals}",
        file=sys.stdout,
    )


def memory(case: Case, plan: Plan) -> Iterator[Row]:
    for provider, peaks in in_subprocess(case, plan).items():
        mb = Timing.of([peak / 1e6 for peak in peaks])
        target = {"target": case.memory_target / 1e6} if provider == OURS and case.memory_target else {}
        yield row(case, provider, "memory", "MB", mb, **target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sizes and dtypes, more rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], action="append", help="default: all that there are")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it, as /full/float32")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="for the CSV and the pictures")
    options = parser.parse_args()
    if options.output is not None:
        tables = images = options.output
    elif options.full and not options.only:
        tables, images = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
    else:
        tables = images = ROOT / "build" / "bench"
    devices = options.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

    for device in devices:
        plan = Plan(full=options.full, device=device)
        every = list(all_cases(plan))
        cases = [case for case in every if options.only in case.key]
        if not cases:
            parser.error(f"--only {options.only}: no such case; there are: " + ", ".join(case.key for case in every))
        print(
            f"{processor(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, instruction set "
            f"{_C.isa()}: {len(cases)} cases. torch.add(a, b, out=c), a.sum() and the matrix products alone are no "
            "rivals: what they take is the least that memory, or the products, allow.",
            flush=True,
        )
        rows: list[Row] = []
        measured = sum(bool(case.memory) for case in cases)
        with tqdm(total=sum(case.rounds for case in cases) + measured, unit="round", dynamic_ncols=True) as bar:
            for case in cases:
                bar.set_description(f"{case.name} {case.dtype_name} {case.x_value}")
                timed = list(timings(case, bar))
                gc.collect()
                rows += timed
                if case.memory:
                    bar.set_description(f"memory {case.dtype_name} {case.x_value}")
                    rows += memory(case, plan)
                    bar.update()
        path = tables / f"{device}.csv"
        results.write(rows, path)
        print(f"figures: {path}")
        from .plot import draw

        for picture in draw(path, images):
            print(f"picture: {picture}")
        print(report.text(rows), flush=True)


if __name__ == "__main__":
    main()

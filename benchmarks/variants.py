"""The loss and its rivals on the CPU in other surroundings: a malloc that keeps its blocks, smaller instruction sets.

    python -m benchmarks.variants      writes benchmarks/results/cpu_variants.csv

Each is read when a process starts, so each is a run of ``python -m benchmarks`` in a process of its own. The rows are
its rows, and name the variant in their configuration.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from .cases import ELEMENTWISE
from .results import Row, read, write

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).resolve().parent / "results" / "cpu_variants.csv"
KEEPS_BLOCKS, AVX2, BASELINE = "malloc keeps its blocks", "AVX2 at most", "baseline"
# torch's own kernels, and what torch.compile makes, are limited to the same instruction set as ours
VARIANTS = {
    KEEPS_BLOCKS: {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=2000000000:glibc.malloc.trim_threshold=8000000000:"
        "glibc.malloc.top_pad=100000000"
    },
    AVX2: {"FUSED_LOGISTIC_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2"},
    BASELINE: {"FUSED_LOGISTIC_ISA": "baseline", "ATEN_CPU_CAPABILITY": "default"},
}
SIZES = (1 << 20, 1 << 24)


def of_variant(table: Path, variant: str) -> list[Row]:
    """Its rows; none where the table has none, or is missing."""
    return [row for row in read(table) if row.config.get("variant") == variant] if table.exists() else []


def measured(variant: str, numel: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", "--full", "--device", "cpu", "--output", folder]
        command += ["--only", f"{ELEMENTWISE}/full/float32/cpu/numel={numel}"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **VARIANTS[variant]}, check=True)
        rows = [row for row in read(Path(folder) / "cpu.csv") if row.metric_name == "speed" and row.x_value == numel]
    configs = [{k: v for k, v in row.config.items() if k != "target"} | {"variant": variant} for row in rows]
    return [replace(r, extra_benchmark_config_str=json.dumps(c)) for r, c in zip(rows, configs, strict=True)]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.variants").parse_args()
    rows: list[Row] = []
    for variant, numel in itertools.product(VARIANTS, SIZES):
        try:
            rows += measured(variant, numel)
        except subprocess.CalledProcessError as error:  # such as torch.compile, which may not know the instruction set
            print(f"{variant}, {numel} elements: not measured: {error}", file=sys.stderr)
        write(rows, TABLE)
    print(f"figures: {TABLE}")


if __name__ == "__main__":
    main()

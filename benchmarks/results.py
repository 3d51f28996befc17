"""The figures: one row a provider and case, in a CSV with Liger-Kernel's columns and the quartiles."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .cases import LIMITS, OURS


@dataclass(frozen=True)
class Row:
    kernel_name: str
    kernel_provider: str
    kernel_operation_mode: str
    metric_name: str  # speed; on a GPU that is the GPU's time, and loop the time in a user's loop; memory, launches
    metric_unit: str  # ms, MB, kernels
    x_name: str
    x_label: str
    x_value: int
    y_value_50: float
    y_value_20: float
    y_value_80: float
    y_value_25: float
    y_value_75: float
    extra_benchmark_config_str: str  # JSON: dtype, bytes to be moved, target, torch, threads, instruction set
    gpu_name: str  # the processor, where it is not a GPU
    timestamp: str
    fused_logistic_version: str

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.extra_benchmark_config_str)

    @property
    def case(self) -> tuple[object, ...]:
        """What rows of one comparison share."""
        return (self.kernel_name, self.kernel_operation_mode, self.config["dtype"], self.x_value, self.metric_name)

    @property
    def is_rival(self) -> bool:
        return self.kernel_provider not in (OURS, *LIMITS)


def write(rows: Iterable[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()})


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [
            Row(
                **{
                    name: int(value) if name == "x_value" else float(value) if name.startswith("y_") else value
                    for name, value in line.items()
                }
            )
            for line in csv.DictReader(file)
        ]


def comparisons(rows: Iterable[Row]) -> list[dict[str, Row]]:
    """The rows of each case by provider, cases in the order of the file; those without ours are left out."""
    found: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.kernel_provider] = row
    return [case for case in found.values() if OURS in case]


def select(
    rows: Iterable[Row], kernel: str, metric: str = "speed", mode: str = "full", dtype: str = "float32"
) -> list[dict[str, Row]]:
    """The comparisons of one kernel, smallest x first."""
    chosen = [
        row
        for row in rows
        if (row.metric_name, row.kernel_operation_mode, row.config["dtype"]) == (metric, mode, dtype)
        and row.kernel_name == kernel
    ]
    return sorted(comparisons(chosen), key=lambda case: case[OURS].x_value)

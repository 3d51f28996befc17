"""Where we lose: the rows of a CSV in which a rival is faster or smaller, and the targets that are missed.

    python -m benchmarks.report [benchmarks/results/cpu.csv]

A report, not a test: figures of a shared machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from .cases import NAMES, OURS
from .results import Row, comparisons, read

DEFAULT = Path(__file__).resolve().parent / "results" / "cpu.csv"


def _title(row: Row) -> str:
    return f"{row.kernel_name} {row.kernel_operation_mode} {row.config['dtype']} {row.x_name} {row.x_value:,}"


def _name(row: Row) -> str:
    return NAMES.get(row.kernel_provider, row.kernel_provider)


def _value(row: Row) -> str:
    return f"{row.y_value_50:.4g} {row.metric_unit}"


def losses(rows: Iterable[Row]) -> list[str]:
    """One line a case and rival that is better than ours."""
    lines = []
    for case in comparisons(rows):
        ours = case[OURS]
        for rival in case.values():
            if not rival.is_rival or rival.y_value_50 >= ours.y_value_50:
                continue
            overlap = " (the quartiles overlap)" if rival.y_value_75 > ours.y_value_25 else ""
            lines.append(f"{_title(ours)}: {_name(rival)} {_value(rival)}, ours {_value(ours)}{overlap}")
    return lines


def missed_targets(rows: Iterable[Row]) -> tuple[list[str], int]:
    """One line a missed target, and the number of targets that there are."""
    lines, count = [], 0
    for case in comparisons(rows):
        ours = case[OURS]
        for row in case.values():
            target = row.config.get("target")
            if target is None:
                continue
            count += 1
            if row is ours:  # a bound on the value itself
                if ours.y_value_50 > target:
                    lines.append(f"{_title(ours)}: {_value(ours)}, target at most {target:g} {ours.metric_unit}")
            elif row.y_value_50 < target * ours.y_value_50:
                ratio = row.y_value_50 / ours.y_value_50
                lines.append(
                    f"{_title(ours)}: {_name(row)} / ours = {ratio:.2f}, target at least {target:.2f}"
                    + (f" (ours / {_name(row)} = {1 / ratio:.2f})" if ratio < 1 else "")
                )
    return lines, count


def text(rows: list[Row]) -> str:
    lost = losses(rows)
    missed, count = missed_targets(rows)
    rivals = sum(row.is_rival for case in comparisons(rows) for row in case.values())
    lines = [f"Where we lose: {len(lost)} of {rivals} comparisons with a rival", *(f"  {line}" for line in lost)]
    lines += [f"Targets missed: {len(missed)} of {count}", *(f"  {line}" for line in missed)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="?", type=Path, default=DEFAULT)
    print(text(read(parser.parse_args().csv)))


if __name__ == "__main__":
    main()

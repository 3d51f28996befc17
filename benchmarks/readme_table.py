"""The tables of README.md and docs/performance.md, from the CSV files that the benchmarks wrote.

    python -m benchmarks.readme_table             prints them
    python -m benchmarks.readme_table --write     puts them into these pages between their markers

A marked block begins with ``<!-- bench:NAME -->`` and ends with ``<!-- bench:end -->``. A test compares the
pages with what this prints, so no figure there is older than the committed CSV.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from . import report
from .cases import ELEMENTWISE, FAMILY, LAYER, LIMITS, NAMES, OURS, PAIRS
from .results import Row, comparisons, read, select
from .variants import KEEPS_BLOCKS, SIZES, TABLE, VARIANTS, of_variant

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "performance.md"]
RESULTS = Path(__file__).resolve().parent / "results"
# code as code
HEADERS = {provider: f"`{name}`" if "(" in name else name for provider, name in NAMES.items()}
Case = dict[str, Row]


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def duration(ms: float) -> str:
    value, unit = (ms * 1e3, "µs") if ms < 1 else (ms, "ms") if ms < 1000 else (ms / 1e3, "s")
    return f"{value:.3g} {unit}"


def elements(numel: int) -> str:
    exponent = numel.bit_length() - 1
    return f"2^{exponent} ({numel:,})" if numel > 1024 else f"{numel:,}"


def present(cases: list[Case]) -> list[str]:
    found = {provider for case in cases for provider in case}
    return [p for p in HEADERS if p in found] + sorted(found - set(HEADERS))


def times(cases: list[Case], first: str, label: Callable[[Case], str], without: tuple[str, ...] = ("read",)) -> str:
    """Our time, and everybody else's as a multiple of it."""
    names = [p for p in present(cases) if p not in without]
    body = []
    for case in cases:
        ours = case[OURS].y_value_50
        cells = [f"**{duration(ours)}**"]
        cells += [f"{case[p].y_value_50 / ours:.2f} ×" if p in case else "" for p in names if p != OURS]
        body.append([label(case), *cells])
    return markdown([first, *(HEADERS.get(p, p) for p in names)], body)


def speed(rows: list[Row], kernel: str = ELEMENTWISE) -> str:
    return times(select(rows, kernel=kernel), "elements", lambda case: elements(case[OURS].x_value))


def focal(rows: list[Row]) -> str:
    """Of the losses that give less weight to what is classified well."""

    def label(case: Case) -> str:
        return f"`{case[OURS].kernel_name}`, {elements(case[OURS].x_value)}"

    return times([case for name in FAMILY for case in select(rows, kernel=name)], "loss, elements", label)


def headline(rows: list[Row]) -> str:
    """Two sizes as people have them, the larger one in other surroundings too."""

    def label(case: Case) -> str:
        variant = case[OURS].config.get("variant")
        exponent = case[OURS].x_value.bit_length() - 1
        return f"2^{exponent}, {variant}" if variant else f"2^{exponent}"

    found = [case for case in select(rows, kernel=ELEMENTWISE) if case[OURS].x_value in SIZES]
    found += [case for case in _variants(KEEPS_BLOCKS) if case[OURS].x_value == SIZES[-1]]
    return times(found, "logits", label, without=("read", "unfused")).replace(" ×", "×")


def _variants(name: str) -> list[Case]:
    return select(of_variant(TABLE, name), kernel=ELEMENTWISE)


def variants(rows: list[Row]) -> str:
    """The sizes of the variants, as they are and in each of them."""

    def label(case: Case) -> str:
        return f"{elements(case[OURS].x_value)}, {case[OURS].config.get('variant', 'as it is')}"

    cases = [case for case in select(rows, kernel=ELEMENTWISE) if case[OURS].x_value in SIZES]
    cases += [case for name in VARIANTS for case in _variants(name)]
    return times(sorted(cases, key=lambda case: case[OURS].x_value), "elements", label)


def machine(rows: list[Row]) -> str:
    config = rows[0].config
    commit = f", commit {config['commit']}" if "commit" in config else ""
    return (
        f"Measured on: {rows[0].gpu_name}, {config['threads']} threads, instruction set {config['isa']}, "
        f"torch {config['torch']}, {rows[0].timestamp[:10]}{commit}."
    )


def dtypes(rows: list[Row]) -> str:
    found = []
    for dtype in ("bfloat16", "float16", "float64"):
        found += select(rows, dtype=dtype, kernel=ELEMENTWISE)[-1:]
    return times(found, "type, elements", lambda case: f"{case[OURS].config['dtype']}, {elements(case[OURS].x_value)}")


def modes(rows: list[Row]) -> str:
    found = []
    for mode in ("no-grad-forward", "forward", "backward"):
        found += select(rows, mode=mode, kernel=ELEMENTWISE)[-1:]
    return times(found, "pass", lambda case: f"{case[OURS].kernel_operation_mode}, {elements(case[OURS].x_value)}")


def options(rows: list[Row]) -> str:
    """Each option, float32 and bfloat16 at its largest size."""
    found: dict[tuple[str, str], Case] = {}
    for case in comparisons(rows):
        row = case[OURS]
        if row.kernel_name.startswith(f"{ELEMENTWISE}, ") and row.metric_name == "speed":
            key = row.config["dtype"], row.kernel_name
            found[key] = max(found.get(key, case), case, key=lambda case: case[OURS].x_value)
    if not found:
        return "Not measured yet."

    def label(case: Case) -> str:
        row = case[OURS]
        return f"{row.kernel_name.partition(', ')[2]}, {row.config['dtype']}, {elements(row.x_value)}"

    return times([found[key] for key in sorted(found, reverse=True)], "option, type, elements", label)


def pairs(rows: list[Row]) -> str:
    cases = select(rows, kernel=PAIRS)
    return times(cases, "training step of the pairs", lambda case: case[OURS].x_label) if cases else "Not measured yet."


def memory(rows: list[Row]) -> str:
    cases = select(rows, metric="memory", kernel=ELEMENTWISE)
    names = present(cases)
    body = [
        [elements(case[OURS].x_value), *(f"{case[p].y_value_50:.1f} MB" if p in case else "" for p in names)]
        for case in cases
    ]
    return markdown(["elements", *(HEADERS.get(p, p) for p in names)], body)


def layer(rows: list[Row]) -> str:
    def label(case: Case) -> str:
        row = case[OURS]
        return row.x_label + (f", {row.x_value:,} rows" if row.x_name == "rows" else "")

    cases = select(rows, kernel=LAYER)
    text = times(cases, "training step of the layer", label, without=()) if cases else ""
    used = select(rows, metric="memory", kernel=LAYER)
    if used:
        names = [p for p in present(used) if p not in LIMITS]
        body = [[label(c), *(f"{c[p].y_value_50:.0f} MB" if p in c else "" for p in names)] for c in used]
        text += "\n\n" + markdown(["peak memory beyond the parameters", *(HEADERS.get(p, p) for p in names)], body)
    return text


def losses(rows: list[Row]) -> str:
    lost = [line for line in report.losses(rows) if "overlap" not in line]
    missed, count = report.missed_targets(rows)
    text = f"Rows in which a rival is better by more than the quartiles' width: {len(lost) or 'none'}"
    text += ":\n\n" + "\n".join(f"* {line}" for line in lost) if lost else "."
    text += f"\n\nOf {count} targets that this project had set itself beforehand, {len(missed)} are missed"
    return text + (":\n\n" + "\n".join(f"* {line}" for line in missed) if missed else ".")


def exactness() -> str:
    with (RESULTS / "exactness.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    header = ["float32", *(HEADERS.get(name, name) for name in list(table[0])[1:])]
    return markdown(header, [list(row.values()) for row in table])


def blocks() -> dict[str, str]:
    rows = read(RESULTS / "cpu.csv")
    tables = headline, machine, speed, variants, options, dtypes, modes, memory, layer, pairs, focal, losses
    made = {table.__name__: table(rows) for table in tables}
    return {**made, "exactness": exactness()}


BLOCK = re.compile(r"(<!-- bench:(?!end)(\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)


def insert(text: str, made: dict[str, str]) -> str:
    """The text with the contents of its marked blocks made anew; an unknown name is a KeyError."""
    return BLOCK.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put them into the pages")
    made = blocks()
    if parser.parse_args().write:
        for page in PAGES:
            page.write_text(insert(page.read_text(encoding="utf-8"), made), encoding="utf-8")
            print(f"written: {page}")
    else:
        for name, text in made.items():
            print(f"<!-- bench:{name} -->\n{text}\n<!-- bench:end -->\n")


if __name__ == "__main__":
    main()

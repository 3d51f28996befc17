"""Pictures from a CSV that ``python -m benchmarks`` wrote.

    python -m benchmarks.plot [benchmarks/results/cpu.csv] [--output docs/images]

time.png: a step's time against the number of elements. bandwidth.png: what of the measured memory bandwidth it reaches.
memory.png: the peak of a step. speedup.png: the rivals' times over ours. layer.png: the same for the linear layer.
Those of another CSV have its name before theirs: cuda_time.png.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files are written; no display is needed
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of the backend
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter  # noqa: E402

from .cases import ELEMENTWISE, LAYER, LIMITS, NAMES, OURS  # noqa: E402
from .report import DEFAULT  # noqa: E402
from .results import Row, read, select  # noqa: E402
from .variants import KEEPS_BLOCKS, TABLE, of_variant  # noqa: E402

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
COLOURS = {
    "fused": "tab:blue",
    "eager": "tab:orange",
    "unfused": "tab:red",
    "compile": "tab:green",
    "scikit-learn": "tab:purple",
    "jax": "tab:brown",
    "triad": "black",
    "read": "gray",
    "plain": "tab:cyan",
    "products": "black",
}
# From here on no cache of a usual machine holds what a step reads and writes.
IN_MEMORY, PAGE_FAULTS = 1 << 22, 1 << 24
Case = dict[str, Row]


def style(provider: str) -> tuple[str, str]:
    return NAMES.get(provider, provider), COLOURS.get(provider, "tab:gray")


def device(row: Row) -> str:
    return "a GPU" if row.gpu_name.startswith("NVIDIA") else "the CPU"


def machine(row: Row) -> str:
    config = row.config
    on = [] if device(row) == "a GPU" else [f"{config['threads']} threads", config["isa"]]
    at = [f"commit {config['commit']}"] if "commit" in config else []
    return ", ".join([row.gpu_name, *on, f"torch {config['torch']}", *at, row.timestamp[:10]])


def size(numel: int) -> str:
    exponent = numel.bit_length() - 1
    return f"$2^{{{exponent}}}$" if numel == 1 << exponent and exponent > 0 else f"{numel:,}"


def providers(cases: Iterable[Case]) -> list[str]:
    """All that occur, ours first, in the order of NAMES."""
    present = {provider for case in cases for provider in case}
    return [p for p in NAMES if p in present] + sorted(present - set(NAMES))


def _finish(figure, row: Row, path: Path) -> Path:
    figure.text(0.995, 0.005, machine(row), ha="right", va="bottom", fontsize=7, color="dimgray")
    path.parent.mkdir(parents=True, exist_ok=True)
    # opaque: the text is black, whatever page the picture is on
    figure.savefig(path, dpi=130, metadata={"Software": None}, facecolor="white")
    plt.close(figure)
    return path


def _axes(width: float = 7.5, height: float = 4.4):
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _legend(figure, columns: int) -> None:
    """Above the axes, where it hides nothing."""
    figure.legend(loc="outside upper center", ncols=columns, fontsize=8, frameon=False)


def draw_time(cases: list[Case], path: Path) -> Path:
    figure, axis = _axes()
    for provider in providers(cases):
        if provider == "read":
            continue
        rows = [case[provider] for case in cases if provider in case]
        x = [row.x_value for row in rows]
        label, colour = style(provider)
        dashed = {"linestyle": "--", "linewidth": 1} if provider in LIMITS else {"marker": "o", "markersize": 3}
        axis.plot(x, [row.y_value_50 for row in rows], label=label, color=colour, **dashed)
        axis.fill_between(
            x, [row.y_value_25 for row in rows], [row.y_value_75 for row in rows], color=colour, alpha=0.2, linewidth=0
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set(
        title=f"A training step on {device(cases[0][OURS])}: forward and backward, float32, mean; median, quartiles",
        xlabel="elements",
        ylabel="milliseconds",
    )
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _finish(figure, cases[0][OURS], path)


def _bars(axis, cases: list[Case], rivals: list[str], value, text, bottom: float = 0.0) -> None:
    """A group of bars a case, each group in the middle of its tick whoever is missing in it."""
    width = 0.8 / len(rivals)
    for provider in rivals:
        x, heights = [], []
        for group, case in enumerate(cases):
            there = [p for p in rivals if p in case]
            if provider in case:
                x.append(group + (there.index(provider) - (len(there) - 1) / 2) * width)
                heights.append(value(case, provider))
        label, colour = style(provider)
        axis.bar(x, [h - bottom for h in heights], width, bottom=bottom, label=label, color=colour, zorder=2)
        for at, height in zip(x, heights, strict=True):
            up = height >= bottom
            axis.annotate(
                text(height),
                (at, height),
                (0, 2 if up else -2),
                textcoords="offset points",
                ha="center",
                va="bottom" if up else "top",
                fontsize=7,
            )


def draw_bandwidth(cases: list[Case], path: Path) -> Path:
    """The time of the triad over that of a step, which has to move as many bytes; only where no cache holds them."""
    figure, axis = _axes(height=3.8)
    names = [p for p in providers(cases) if p not in LIMITS]
    _bars(axis, cases, names, lambda case, p: case["triad"].y_value_50 / case[p].y_value_50, lambda v: f"{v:.0%}")
    rates = [case["triad"].config["bytes"] / case["triad"].y_value_50 * 1e-6 for case in cases]
    labels = [f"{size(c[OURS].x_value)} elements\n(100 % = {r:.0f} GB/s)" for c, r in zip(cases, rates, strict=True)]
    axis.axhline(1, color="black", linestyle="--", linewidth=1, label=NAMES["triad"])
    axis.set_xticks(range(len(cases)), labels)
    axis.set_ylim(0, 1.1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set(
        title=f"A training step on {device(cases[0][OURS])}, float32: share of the memory bandwidth",
        ylabel="of what torch.add reaches",
    )
    _legend(figure, 4)
    return _finish(figure, cases[0][OURS], path)


def draw_memory(cases: list[Case], path: Path) -> Path:
    case = cases[-1]
    figure, axis = _axes(height=3)
    names = providers([case])[::-1]
    per_element = [case[p].y_value_50 * 1e6 / case[p].x_value for p in names]
    bars = axis.barh([style(p)[0] for p in names], per_element, color=[style(p)[1] for p in names])
    axis.bar_label(bars, [f"{value:.1f}" for value in per_element], padding=3)
    axis.axvline(4, color="black", linestyle="--", linewidth=1, label="the gradient itself: 4 bytes")
    axis.set_xlim(0, 1.08 * max(per_element))
    axis.set(
        title=f"Peak memory of a training step, {size(case[OURS].x_value)} float32 elements", xlabel="bytes per element"
    )
    _legend(figure, 1)
    return _finish(figure, case[OURS], path)


def draw_ratios(cases: list[Case], path: Path, title: str, labels: list[str]) -> Path:
    """A group of bars a case: each rival's time over ours, upwards from 1 where it is longer, else downwards."""
    figure, axis = _axes(width=max(7.5, 1.7 * len(cases)), height=4)
    rivals = [p for p in providers(cases) if p not in (OURS, *LIMITS)]
    ratio = lambda case, p: case[p].y_value_50 / case[OURS].y_value_50  # noqa: E731
    axis.set_yscale("log")
    _bars(axis, cases, rivals, ratio, lambda r: f"{r:.{2 if r < 1 else 1 if r < 10 else 0}f}", bottom=1)
    ratios = [ratio(case, p) for case in cases for p in rivals if p in case]
    axis.set_ylim(min(0.8, 0.75 * min(ratios)), max(1.3, 1.4 * max(ratios)))
    axis.axhline(1, color=style(OURS)[1], linewidth=1.5, label="fused_logistic: 1", zorder=3)
    low, high = axis.get_ylim()
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if high > 5 else (0.2, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5)
    axis.set_yticks([tick for tick in ticks if low <= tick <= high])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xticks(range(len(cases)), labels, fontsize=9)
    axis.set_xlim(-0.6, len(cases) - 0.4)
    axis.grid(axis="y", alpha=0.3, zorder=0)
    axis.set(title=title, ylabel="time / ours")
    axis.title.set_fontsize(10)
    _legend(figure, 3)
    return _finish(figure, cases[0][OURS], path)


def _layer_label(row: Row) -> str:
    """Its sizes, a line each; rows are in the label already unless they are what x counts."""
    parts = row.x_label.split(", ")
    if row.x_name == "rows":
        parts.insert(1, f"{row.x_value:,} rows")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, 18))


def draw(table: Path, directory: Path) -> list[Path]:
    """The pictures for which the table has figures."""
    rows = read(table)
    prefix = "" if table.stem == "cpu" else table.stem + "_"
    step = select(rows, kernel=ELEMENTWISE)
    pictures = []
    if step:
        pictures.append(draw_time(step, directory / f"{prefix}time.png"))
        shown = [case for case in step if case[OURS].x_value in (1 << 10, 1 << 16, 1 << 20, 1 << 24)] or step
        on = device(shown[0][OURS])
        labels = [f"{size(case[OURS].x_value)} elements" for case in shown]
        if on == "the CPU":
            labels = [
                label + ("\n(page faults included)" if case[OURS].x_value >= PAGE_FAULTS else "")
                for label, case in zip(labels, shown, strict=True)
            ]
            kept = select(of_variant(table.with_name(TABLE.name), KEEPS_BLOCKS), kernel=ELEMENTWISE)
            kept = [case for case in kept if case[OURS].x_value >= PAGE_FAULTS]
            shown += kept
            labels += [f"{size(case[OURS].x_value)} elements,\nmalloc keeps its blocks" for case in kept]
        # older tables have no row of a loop: each step was timed as a loop issues it
        launched = on == "a GPU" and not any(row.metric_name == "loop" for row in rows)
        what = "launches included" if launched else "forward and backward"
        title = f"A training step on {on} in multiples of our time: {what}, float32, mean"
        pictures.append(draw_ratios(shown, directory / f"{prefix}speedup.png", title, labels))
    large = [case for case in step if case[OURS].x_value >= IN_MEMORY and "triad" in case]
    if large:
        pictures.append(draw_bandwidth(large, directory / f"{prefix}bandwidth.png"))
    memory = select(rows, metric="memory", kernel=ELEMENTWISE)
    if memory:
        pictures.append(draw_memory(memory, directory / f"{prefix}memory.png"))
    layer = select(rows, kernel=LAYER)
    if layer:
        title = f"A training step of the whole layer on {device(layer[0][OURS])} in multiples of our time, float32"
        labels = [_layer_label(case[OURS]) for case in layer]
        pictures.append(draw_ratios(layer, directory / f"{prefix}layer.png", title, labels))
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIRECTORY")
    options = parser.parse_args()
    for picture in draw(options.csv, options.output):
        print(picture)


if __name__ == "__main__":
    main()

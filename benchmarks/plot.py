"""Pictures from a CSV that ``python -m benchmarks`` wrote.

    python -m benchmarks.plot [benchmarks/results/cpu.csv] [--output docs/images]

time.png: a step's time against the number of elements. bandwidth.png: what of the measured memory bandwidth it reaches.
memory.png: the peak of a step. speedup.png: the rivals' times over ours. layer.png: the same for the linear layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files are written; no display is needed
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of the backend
from matplotlib.ticker import PercentFormatter  # noqa: E402

from .cases import ELEMENTWISE, LAYER, LIMITS, OURS  # noqa: E402
from .report import DEFAULT  # noqa: E402
from .results import Row, read, select  # noqa: E402

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
# provider -> label, colour
STYLES = {
    "fused": ("fused_logistic", "tab:blue"),
    "eager": ("eager torch", "tab:orange"),
    "unfused": ("sigmoid + BCELoss", "tab:red"),
    "compile": ("torch.compile", "tab:green"),
    "scikit-learn": ("scikit-learn", "tab:purple"),
    "jax": ("JAX / optax, jit", "tab:brown"),
    "triad": ("torch.add(a, b, out=c)", "black"),
    "read": ("a.sum()", "gray"),
    "plain": ("fused_logistic without the option", "tab:cyan"),
    "products": ("the matrix products alone", "black"),
}
Case = dict[str, Row]


def style(provider: str) -> tuple[str, str]:
    return STYLES.get(provider, (provider, "tab:gray"))


def machine(row: Row) -> str:
    config = row.config
    return f"{row.gpu_name}, {config['threads']} threads, {config['isa']}, torch {config['torch']}"


def size(numel: int) -> str:
    exponent = numel.bit_length() - 1
    return f"$2^{{{exponent}}}$" if numel == 1 << exponent and exponent > 0 else f"{numel:,}"


def providers(cases: list[Case]) -> list[str]:
    """All that occur, ours first, in the order of STYLES."""
    present = {provider for case in cases for provider in case}
    return [p for p in STYLES if p in present] + sorted(present - set(STYLES))


def _finish(figure, row: Row, path: Path) -> Path:
    figure.text(0.995, 0.005, machine(row), ha="right", va="bottom", fontsize=7, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path


def _axes(width: float = 7.5, height: float = 4.4):
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


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
        title="A training step: forward and backward, float32, mean (median and quartiles)",
        xlabel="elements",
        ylabel="ms",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _finish(figure, cases[0][OURS], path)


def draw_bandwidth(cases: list[Case], path: Path) -> Path:
    """The bytes that a step has to move, over its time, as a share of what the triad moves in its time."""
    figure, axis = _axes()
    cases = [case for case in cases if case[OURS].x_value >= 1 << 16 and "triad" in case]
    for provider in providers(cases):
        if provider in LIMITS:
            continue
        rows = [(case[provider], case["triad"]) for case in cases if provider in case]
        label, colour = style(provider)
        share = [triad.y_value_50 / row.y_value_50 for row, triad in rows]
        axis.plot([row.x_value for row, _ in rows], share, label=label, color=colour, marker="o", markersize=4)
        if provider == OURS:
            for (row, _), y in zip(rows, share, strict=True):
                rate = row.config["bytes"] / row.y_value_50 * 1e-6
                axis.annotate(f"{rate:.0f} GB/s", (row.x_value, y), (0, 6), textcoords="offset points", fontsize=7)
    axis.axhline(1, color="black", linestyle="--", linewidth=1, label=style("triad")[0])
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set(title="Share of the measured memory bandwidth, a training step, float32", xlabel="elements")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _finish(figure, cases[0][OURS], path)


def draw_memory(cases: list[Case], path: Path) -> Path:
    case = cases[-1]
    figure, axis = _axes(height=3)
    names = providers([case])[::-1]
    per_element = [case[p].y_value_50 * 1e6 / case[p].x_value for p in names]
    bars = axis.barh([style(p)[0] for p in names], per_element, color=[style(p)[1] for p in names])
    axis.bar_label(bars, [f"{value:.1f}" for value in per_element], padding=3)
    axis.axvline(4, color="black", linestyle="--", linewidth=1, label="the gradient itself")
    numel = case[OURS].x_value
    axis.set(title=f"Peak memory of a training step, {size(numel)} float32 elements", xlabel="bytes per element")
    axis.legend(fontsize=8, loc="lower right")
    return _finish(figure, case[OURS], path)


def draw_speedup(cases: list[Case], path: Path, title: str, labels: list[str]) -> Path:
    """A group of bars a case: how many times longer each rival takes."""
    figure, axis = _axes(height=3.6)
    rivals = [p for p in providers(cases) if p not in (OURS, *LIMITS)]
    width = 0.8 / len(rivals)
    for i, rival in enumerate(rivals):
        label, colour = style(rival)
        x = [g + (i - (len(rivals) - 1) / 2) * width for g, case in enumerate(cases) if rival in case]
        ratios = [case[rival].y_value_50 / case[OURS].y_value_50 for case in cases if rival in case]
        bars = axis.bar(x, ratios, width, label=label, color=colour)
        axis.bar_label(bars, [f"{r:.1f}" if r < 10 else f"{r:.0f}" for r in ratios], padding=1, fontsize=7)
    axis.axhline(1, color=style(OURS)[1], linewidth=1.5, label="fused_logistic = 1")
    axis.set_xticks(range(len(cases)), labels)
    axis.set(title=title, ylabel="time / ours")
    axis.legend(fontsize=8)
    return _finish(figure, cases[0][OURS], path)


def draw(table: Path, directory: Path) -> list[Path]:
    """The pictures for which the table has figures."""
    rows = read(table)
    prefix = "" if table.stem == "cpu" else table.stem + "_"
    step = select(rows, kernel=ELEMENTWISE)
    pictures = []
    if step:
        pictures.append(draw_time(step, directory / f"{prefix}time.png"))
        shown = [case for case in step if case[OURS].x_value in (1 << 10, 1 << 16, 1 << 20, 1 << 24)] or step
        title = "How much longer a training step takes elsewhere (float32, mean)"
        labels = [f"{size(case[OURS].x_value)} elements" for case in shown]
        pictures.append(draw_speedup(shown, directory / f"{prefix}speedup.png", title, labels))
    if any(case[OURS].x_value >= 1 << 16 and "triad" in case for case in step):
        pictures.append(draw_bandwidth(step, directory / f"{prefix}bandwidth.png"))
    memory = select(rows, metric="memory", kernel=ELEMENTWISE)
    if memory:
        pictures.append(draw_memory(memory, directory / f"{prefix}memory.png"))
    layer = select(rows, kernel=LAYER)
    if layer:
        title = "How much longer a training step of the whole layer takes elsewhere (float32)"
        labels = [case[OURS].x_label.replace(", ", "\n") for case in layer]
        pictures.append(draw_speedup(layer, directory / f"{prefix}layer.png", title, labels))
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

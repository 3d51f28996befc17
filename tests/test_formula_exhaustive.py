"""csrc/logistic.h and focal.h alone, scalar: the greatest errors of their functions in ulp. Slow tests: every float."""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWEEPS = Path(__file__).with_name("exhaustive")
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-mfma", "-pthread"]
# in ulp of the result, subnormal results included
LIMITS = {"float": {"loss": 2.2, "grad": 2.5}, "double": {"loss": 2.5, "grad": 2.5}}


def has_fma():
    try:
        return "fma" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A sweep of tests/exhaustive, as a function of its arguments."""
    if platform.machine() not in ("x86_64", "AMD64") or not has_fma():
        pytest.skip("the sweeps need an x86 CPU with FMA")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the sweeps need g++ (for libquadmath)")

    def compile_sweep(source):
        program = tmp_path_factory.mktemp("sweep") / source.stem
        build = [compiler, *FLAGS, str(source), "-o", str(program), "-lquadmath"]
        done = subprocess.run(build, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

        def run(*arguments):
            command = [program, *map(str, arguments)]
            return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

        return run

    return compile_sweep


@pytest.fixture(scope="module")
def formula(compiled):
    return compiled(SWEEPS / "formula_sweep.cpp")


@pytest.fixture(scope="module")
def functions(compiled):
    return compiled(SWEEPS / "functions_sweep.cpp")


def check(report):
    for scalar, limits in LIMITS.items():
        for what, worst in report[scalar].items():
            limit = limits[what.split(",")[0]]
            assert worst["ulp"] <= limit, f"{scalar} {what}: {worst['ulp']} ulp at logit {worst['logit']}"
    assert report["quotient_failures"] == 0
    assert report["nan_lost"] == 0


def stated_bounds():
    """What comments say, {name: (ulp in float, ulp in double)}: of the function below them, or of the one they name."""
    text = "".join((ROOT / "csrc" / name).read_text() for name in ("logistic.h", "focal.h"))
    bound = r"// At most ([\d.]+) \(float\) and ([\d.]+) \(double\) ulp"
    below = r".*\n(?://.*\n|template.*\n)*FL_(?:RARE_)?FN [\w<>]+ (\w+)\("
    named = r"(?:[^:\n]|\n//)*: (\w+::\w+)\.\n"
    found = re.findall(bound + below, text) + re.findall(bound + named, text)
    return {name: (float(single), float(double)) for single, double, name in found}


def check_functions(report):
    stated = stated_bounds()
    assert sorted(stated) == sorted(report["float"]), "each function that is measured has its bound above it"
    for name, bounds in stated.items():
        for scalar, bound in zip(("float", "double"), bounds, strict=True):
            worst = report[scalar][name]
            assert worst["ulp"] <= bound, f"{scalar} {name}: {worst['ulp']} ulp at {worst['at']}"
            assert worst["ulp"] > bound / 2, f"{scalar} {name}: {bound} ulp is far more than the {worst['ulp']} seen"


def test_sampled(formula):
    check(formula(499, 4000))


def test_functions_sampled(functions):
    check_functions(functions(499, 200000))


@pytest.mark.slow
def test_every_float(formula):
    report = formula(1, 40000)
    check(report)
    exactness = pytest.importorskip("benchmarks.exactness", reason="the figures of the README are there")
    for quantity, name in (("loss", "loss"), ("gradient", "grad")):
        found = max(worst["ulp"] for what, worst in report["float"].items() if what.startswith(name))
        assert found == pytest.approx(exactness.EVERY_FLOAT[quantity], abs=5e-4)


@pytest.mark.slow
def test_functions_of_every_float(functions):
    check_functions(functions(1, 4000000))


def test_coefficients_are_what_the_script_derives():
    pytest.importorskip("mpmath")
    script = ROOT / "csrc" / "coefficients.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""The formula alone (csrc/logistic.h, scalar): its greatest errors in ulp. The slow test tries every float."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("exhaustive") / "formula_sweep.cpp"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-mfma", "-pthread"]
# in ulp of the result, subnormal results included; with stride 1, every finite float: loss 2.183, grad 2.402
LIMITS = {"float": {"loss": 2.2, "grad": 2.5}, "double": {"loss": 2.5, "grad": 2.5}}


def has_fma():
    try:
        return "fma" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The compiled sweep as a function of its arguments."""
    if platform.machine() not in ("x86_64", "AMD64") or not has_fma():
        pytest.skip("the sweep needs an x86 CPU with FMA")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the sweep needs g++ (for libquadmath)")
    program = tmp_path_factory.mktemp("sweep") / "formula_sweep"
    build = [compiler, *FLAGS, str(SOURCE), "-o", str(program), "-lquadmath"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def run(stride, random_per_binade):
        output = subprocess.run(
            [program, str(stride), str(random_per_binade)], capture_output=True, text=True, check=True
        )
        return json.loads(output.stdout)

    return run


def check(report):
    for scalar, limits in LIMITS.items():
        for what, worst in report[scalar].items():
            limit = limits[what.split(",")[0]]
            assert worst["ulp"] <= limit, f"{scalar} {what}: {worst['ulp']} ulp at logit {worst['logit']}"
    assert report["quotient_failures"] == 0
    assert report["nan_lost"] == 0


def test_sampled(sweep):
    check(sweep(stride=499, random_per_binade=4000))


@pytest.mark.slow
def test_every_float(sweep):
    check(sweep(stride=1, random_per_binade=40000))


def test_coefficients_are_what_the_script_derives():
    pytest.importorskip("mpmath")
    script = ROOT / "csrc" / "coefficients.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

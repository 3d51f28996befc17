"""The instruction set that a variable asks for: see tests/test_bad_inputs.py for what functions are given."""

import os
import subprocess
import sys

import pytest

from fused_logistic import _C


def _import_with(isa):
    environment = {**os.environ, "FUSED_LOGISTIC_ISA": isa}
    command = "import fused_logistic; from fused_logistic import _C; print(_C.isa())"
    return subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)


def test_isa_override():
    assert _import_with("baseline").stdout.strip() == "baseline"
    unknown = _import_with("sse9")
    expected = f"FUSED_LOGISTIC_ISA: expected one of {', '.join(_C.isas_built())}, got 'sse9'\n"
    assert unknown.returncode != 0 and unknown.stderr.endswith(expected)
    assert "ebuild" not in unknown.stderr  # that would not help


def test_isa_that_this_cpu_lacks():
    missing = set(_C.isas_built()) - set(_C.isas_supported())
    if not missing:
        pytest.skip("this CPU supports every instruction set of the build")
    assert "this CPU does not support" in _import_with(missing.pop()).stderr

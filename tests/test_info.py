"""python -m fused_logistic.info: what it says is true, and its self-check fails where something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fused_logistic import _C, info, ops
from fused_logistic.version import __version__


def test_command():
    environment = os.environ | {"FUSED_LOGISTIC_ISA": "baseline"}
    run = subprocess.run(
        [sys.executable, "-m", "fused_logistic.info"], env=environment, capture_output=True, text=True, check=True
    )
    lines = {line[:20].strip(): line[21:] for line in run.stdout.splitlines()}
    assert lines["fused_logistic"] == f"{__version__}, {_C.__file__}"
    assert lines["torch"] == torch.__version__
    assert "in use: baseline" in lines["CPU kernels"] and lines["FUSED_LOGISTIC_ISA"] == "baseline"
    assert lines["ops on CPU"].startswith("kernels of bce, bce_backward, ")
    has_cuda = _C.CUDA_ARCHS is not None and torch.version.cuda is not None
    assert lines["ops on CUDA"].startswith("kernels of bce, " if has_cuda else "composed")
    assert lines["self-check"].startswith("passed: ") and "baseline" in lines["self-check"]


def test_the_instruction_set_in_use_stays(isa):
    assert info.self_check() == [] and _C.isa() == isa


def test_a_wrong_value_is_found(monkeypatch, capsys):
    monkeypatch.setattr(ops, "bce", lambda *args: torch.ops.fused_logistic.bce(*args) * (1 + 1e-6))
    assert info.main() == 1
    assert "self-check           FAILED\n  baseline: torch.float64 loss: expected" in capsys.readouterr().out


@pytest.mark.skipif(len(_C.isas_supported()) < 2, reason="this CPU supports one instruction set only")
def test_other_bits_are_found(monkeypatch):
    def bce_with_grad(*args):
        loss, grad = torch.ops.fused_logistic.bce_with_grad(*args)
        return loss, grad if _C.isa() == "baseline" else -grad

    monkeypatch.setattr(ops, "bce_with_grad", bce_with_grad)
    assert f"{_C.isas_supported()[0]}: other bits than baseline" in info.self_check()

"""``make gpu`` with the CPU in the GPU's place: what it compares, what it says of a difference, and without a GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "tools" / "gpu"))
import compare  # noqa: E402
import run  # noqa: E402


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Runs parts of it, of few logits; -> (exit status, report)."""
    monkeypatch.setattr(compare, "ALL_FLOATS", 2**14)
    monkeypatch.setattr(compare, "PIECE", 2**12)

    def say(*parts):
        status = run.main([*parts, "--device", "cpu", "--seconds", "2", "--report", str(tmp_path / "report.md")])
        return status, (tmp_path / "report.md").read_text()

    return say


def test_report(said):
    status, report = said()
    assert status == 0
    assert "- device: CPU" in report and f"- torch: {torch.__version__}" in report and "- commit: " in report
    assert "## logits: right" in report and "all 2^32 float32 logits" in report
    assert "## random: right" in report and ": 0 with other bits" in report
    assert all(f"## {part}: left out" in report for part in ("tests", "sanitizers", "speed"))


def test_a_difference_is_told(said, monkeypatch):
    exact, calls = compare._elements, []

    def other(z, y):
        calls.append(z)
        loss, grad = exact(z, y)
        return loss, -grad if len(calls) == 6 else grad

    monkeypatch.setattr(compare, "_elements", other)
    status, report = said("logits")
    assert status == 1 and "## logits: WRONG" in report and ": 0 other bits" not in report


def test_another_loss_is_told(said, monkeypatch):
    step, calls = compare._step, []

    def other(*given):
        calls.append(given)
        loss, grad = step(*given)
        return iter((loss, torch.nextafter(grad, torch.full_like(grad, 9)) if len(calls) % 2 else grad))

    monkeypatch.setattr(compare, "_step", other)
    status, report = said("random")
    assert status == 1 and "## random: WRONG" in report and "  - " in report


def test_sign_of_zero_and_nan():
    zero, nan = torch.zeros(3), torch.full((3,), torch.nan)
    assert compare.differing(zero, -zero) == 3 and compare.differing(nan, -nan) == 0


def test_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main([]) == 2
    assert "expected a GPU that this torch can use, found none" in capsys.readouterr().err

"""The faults of ``make mutants`` have their places, so that it finds them when it is run."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools" / "mutants"))
from faults import CPP, PYTHON  # noqa: E402


def test_enough_of_them():
    assert len({str(fault) for fault in (*PYTHON, *CPP)}) == len(PYTHON) + len(CPP) >= 60


@pytest.mark.parametrize("fault", [*PYTHON, *CPP], ids=str)
def test_has_its_place(fault):
    """And changes something, for tests that are there."""
    text = (ROOT / fault.file).read_text()
    place = fault.place(text)
    assert text[place:].startswith(fault.before) and fault.after != fault.before
    if fault.file.endswith(".py"):
        compile(text[:place] + fault.after + text[place + len(fault.before) :], fault.file, "exec")
    else:
        assert ";" not in fault.before + fault.after  # an expression
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in fault.tests.split())


def test_a_fault_without_a_place():
    with pytest.raises(LookupError, match="the expression is not there"):
        CPP[0]._replace(before="no such expression").place((ROOT / CPP[0].file).read_text())
    with pytest.raises(LookupError, match="is 0 times in the file"):
        CPP[0]._replace(at="no such function").place((ROOT / CPP[0].file).read_text())

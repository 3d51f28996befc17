"""When the interpreter's tests run: if something changed since all of them passed, and at no other time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PASSES = "def test_it():\n    pass\n"


@pytest.fixture
def tree(tmp_path):
    """A checkout with one test, which passes; -> its folder tools/ptx."""
    folder = tmp_path / "tools" / "ptx"
    for path, text in {
        folder / "ptx" / "program.py": "",
        folder / "tests" / "test_it.py": PASSES,
        tmp_path / "tests" / "requirements-cuda.txt": "nvcc==1\n",
    }.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
    shutil.copy(Path(__file__).parents[1] / "run_tests.py", folder)
    return folder


def run(tree, *arguments):
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take a second to load
    command = [sys.executable, tree / "run_tests.py", *arguments]
    result = subprocess.run(command, cwd=tree.parents[1], env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout


def test_they_run_once(tree):
    status, output = run(tree)
    assert status == 0 and "1 passed" in output and "commit tools/ptx/passed.sha256" in output
    assert run(tree) == (0, "tools/ptx: unchanged since its tests passed\n")
    assert "1 passed" in run(tree, "-v")[1]
    (tree / "tests" / "test_it.py").write_text(f"# changed\n{PASSES}")
    assert "1 passed" in run(tree)[1]


@pytest.mark.parametrize(
    "text, arguments, summary",
    [
        (PASSES.replace("pass", "assert False"), [], "1 failed"),
        (f"import pytest\n{PASSES.replace('pass', 'pytest.skip()')}", [], "1 skipped"),
        (f"import pytest\npytest.skip(allow_module_level=True)\n{PASSES}", [], "1 skipped"),
        (PASSES, ["-v"], "2 passed"),
    ],
)
def test_only_a_whole_run_is_recorded(tree, text, arguments, summary):
    (tree / "tests" / "test_it.py").write_text(text)
    (tree / "tests" / "test_other.py").write_text(PASSES)
    status, output = run(tree, *arguments)
    assert summary in output and status == ("failed" in summary)
    assert not (tree / "passed.sha256").exists()


def test_what_the_digest_is_made_of(tree):
    spec = importlib.util.spec_from_file_location("run_tests_of_a_tree", tree / "run_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = module.digest()
    (tree / "ptx" / "__pycache__").mkdir()
    for unrelated in ("ptx/__pycache__/program.pyc", "README.md", "passed.sha256"):
        (tree / unrelated).write_text("something")
    assert module.digest() == before
    seen = {before}
    for related in ("ptx/program.py", "tests/new.h", "run_tests.py", "../../tests/requirements-cuda.txt"):
        (tree / related).write_text("something")
        seen.add(module.digest())
    (tree / "tests" / "new.h").rename(tree / "tests" / "renamed.h")
    assert len(seen | {module.digest()}) == 6

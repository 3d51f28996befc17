"""Run the interpreter's own tests, unless nothing that they depend on has changed since they last passed.

    python tools/ptx/run_tests.py [arguments of pytest]

passed.sha256, which is committed, is the digest of the sources, the tests and the pinned compiler with which all tests
last passed. A run without arguments, in which no test was skipped, writes it; with arguments the tests always run and
nothing is written. Not in the digest: Python, numpy and g++.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PASSED = HERE / "passed.sha256"
SOURCES = (HERE / "run_tests.py", HERE / "ptx", HERE / "tests", ROOT / "tests" / "requirements-cuda.txt")


def digest() -> str:
    """Of the names and contents of all files of SOURCES."""
    total = hashlib.sha256()
    for source in SOURCES:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and "__pycache__" not in path.parts:
                name, content = path.relative_to(ROOT).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{content}  {name}\n".encode())
    return total.hexdigest()


class LeftOut:
    """A plugin of pytest: was any test skipped or deselected, for want of a compiler, say?"""

    found = False

    def pytest_runtest_logreport(self, report):
        self.found |= report.skipped

    def pytest_collectreport(self, report):
        self.found |= report.skipped

    def pytest_deselected(self, items):
        self.found = True


def main(arguments: list[str]) -> int:
    now = digest()  # before the tests run: what is changed meanwhile was not tested
    if not arguments and PASSED.exists() and PASSED.read_text().split() == [now]:
        print("tools/ptx: unchanged since its tests passed")
        return 0
    import pytest

    left_out = LeftOut()
    status = pytest.main([str(HERE / "tests"), *arguments], plugins=[left_out])
    if status or arguments:
        return int(status)
    if left_out.found:
        print("tools/ptx: tests were left out, so passed.sha256 stays as it is")
    else:
        PASSED.write_text(f"{now}\n")
        print("tools/ptx: all tests passed; commit tools/ptx/passed.sha256")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

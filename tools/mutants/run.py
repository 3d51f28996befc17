"""Plants the faults of ``faults.py`` into a copy of the tree, one at a time, and runs the tests that have to notice.

    python tools/mutants/run.py [PATTERN]     those whose text has the pattern; exit status 1: some went unnoticed

C++ faults stand in one build, side by side with what they replace; ``FL_FAULT`` says which is there. Those of the CUDA
kernels are planted by tests/test_cuda_*faults.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import CPP, PYTHON, Fault
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
# -O1: a quarter of the time to compile
COMPILER = '#!/bin/sh\nexec "{}" "$@" -O1 -include "{}"\n'
CHOICE = """#include <stdlib.h>
namespace fused_logistic {
inline int fault_from_environment() { const char* name = getenv("FL_FAULT"); return name == nullptr ? -1 : atoi(name); }
inline const int fault = fault_from_environment();
}  // namespace fused_logistic
"""
SECONDS = 900  # of a test run: a fault may make a loop endless


def copy_of_tree(folder: Path) -> None:
    names = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    )
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for library in (ROOT / "fused_logistic").glob("*.so"):
        shutil.copy2(library, folder / "fused_logistic")


def with_choices(text: str, faults: list[tuple[int, Fault]]) -> str:
    """The source with every fault beside what it replaces; from the end, so that places stay."""
    for number, fault in sorted(faults, key=lambda item: item[1].place(text), reverse=True):
        place = fault.place(text)
        choice = f"(::fused_logistic::fault == {number} ? ({fault.after}) : ({fault.before}))"
        text = text[:place] + choice + text[place + len(fault.before) :]
    return text


def build(folder: Path, numbered: list[tuple[int, Fault]]) -> None:
    for name in {fault.file for _, fault in numbered}:
        path = folder / name
        path.write_text(with_choices(path.read_text(), [item for item in numbered if item[1].file == name]))
    (folder / "choice.h").write_text(CHOICE)
    compiler = folder / "compiler"
    compiler.write_text(COMPILER.format(shutil.which(os.environ.get("CXX", "g++")), folder / "choice.h"))
    compiler.chmod(0o755)
    for library in (folder / "fused_logistic").glob("*.so"):
        library.unlink()
    environment = {**os.environ, "CXX": str(compiler), "USE_CUDA": "0", "FORCE_CUDA": "0"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)  # the compiler's messages are at its beginning


def noticed(folder: Path, tests: str, number: int | None = None) -> str | None:
    """The first test that fails; None: all pass."""
    files = [f"tests/test_{name}.py" for name in tests.split()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *files,
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    if number is not None:
        environment["FL_FAULT"] = str(number)
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode not in (1, 2) and done.returncode >= 0:
        raise RuntimeError(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"the process ended with {done.returncode}"


def main() -> int:
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [fault for fault in PYTHON if pattern in str(fault)]
    numbered = [(number, fault) for number, fault in enumerate(CPP) if pattern in str(fault)]
    print(f"{len(chosen)} faults in Python, {len(numbered)} in C++", flush=True)
    left, caught, start = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name, tqdm(total=len(chosen) + len(numbered)) as bar:
        folder = Path(name)
        copy_of_tree(folder)

        def record(fault: Fault, by: str | None) -> None:
            nonlocal caught
            caught += by is not None
            if by is None and not fault.equivalent:
                left.append(fault)
            if by is not None and fault.equivalent:
                sys.exit(f"{fault}: noticed by {by}, though {fault.equivalent}")
            bar.write(f"{'  ' if by else '! '}{fault}\n      {by or fault.equivalent or 'NOT NOTICED'}")
            bar.update()

        if numbered:
            build(folder, numbered)
        tests = sorted({test for fault in (*chosen, *(f for _, f in numbered)) for test in fault.tests.split()})
        if failed := noticed(folder, " ".join(tests)):
            sys.exit(f"without a fault: {failed}")
        for fault in chosen:
            path = folder / fault.file
            text = path.read_text()
            place = fault.place(text)
            path.write_text(text[:place] + fault.after + text[place + len(fault.before) :])
            record(fault, noticed(folder, fault.tests))
            path.write_text(text)
        for number, fault in numbered:
            record(fault, noticed(folder, fault.tests, number))
    equivalent = len(chosen) + len(numbered) - caught - len(left)
    print(f"{caught} noticed, {equivalent} equivalent, {len(left)} not noticed, {time.monotonic() - start:.0f} s")
    for fault in left:
        print(f"not noticed: {fault}")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())

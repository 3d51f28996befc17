"""Building and importing: success, or one clear message that says what to run; and what the binary holds."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_logistic
from fused_logistic import _C

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fused_logistic.__file__).parent
LIBRARIES = sorted(PACKAGE.glob("lib*.so"))  # that of the CPU first
NO_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
# all that setup.py asks of torch, without the seconds that importing it takes
TORCH = """import os, sys, types
__version__, version = "2.99.0", types.SimpleNamespace(cuda=os.environ["CUDA"] or None)
cpp_extension = types.ModuleType("torch.utils.cpp_extension")
from setuptools import Extension
from setuptools.command.build_ext import build_ext
vars(cpp_extension).update(CUDA_HOME=os.environ.get("CUDA_HOME"), BuildExtension=build_ext, CppExtension=Extension)
cpp_extension.CUDAExtension = Extension
sys.modules |= {"torch.utils": types.ModuleType("torch.utils"), "torch.utils.cpp_extension": cpp_extension}
"""


def python(*arguments, path, cwd, **variables):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))} | variables
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)


def setup(folder, stub, **variables):
    """Runs setup.py up to all that it decides; nothing is built."""
    (folder / "torch.py").write_text(stub)
    unset = dict.fromkeys(("USE_CUDA", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"), "")
    return python("setup.py", "--name", path=[folder], cwd=ROOT, **unset | variables)


def test_build_without_torch(tmp_path):
    run = setup(tmp_path, NO_TORCH)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "importing torch failed: No module named 'torch'" in run.stderr
    assert "pip install --no-build-isolation ." in run.stderr


def test_build_with_an_old_setuptools(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import setuptools; setuptools.__version__ = '65.5.0'\n")
    run = setup(tmp_path, TORCH, CUDA="")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "setuptools 65.5.0 is installed, and the build needs 77.0.3 or newer. Run:\npip install " in run.stderr


def test_build_without_the_headers_of_python(tmp_path):
    (tmp_path / "torch.py").write_text(TORCH)
    stub = "import sysconfig; old = sysconfig.get_path; "
    stub += f"sysconfig.get_path = lambda name, *a, **k: {str(tmp_path)!r} if name == 'include' else old(name, *a, **k)"
    (tmp_path / "sitecustomize.py").write_text(stub)
    command = ["setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
    run = python(*command, path=[tmp_path], cwd=ROOT, CUDA="", USE_CUDA="0")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert f"there is no {tmp_path}/Python.h" in run.stderr and "apt install python3-dev" in run.stderr


def test_cuda_is_built_where_torch_and_a_toolkit_are(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nprintf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\n'\n")
    nvcc.chmod(0o755)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcudart_static.a").touch()
    (tmp_path / "include" / "cuda_runtime_api.h").write_text("#define CUDART_VERSION  13000\n")
    found = {"CUDA": "13.0", "CUDA_HOME": str(tmp_path)}
    run = setup(tmp_path, TORCH, **found)
    assert f"CPU kernels, and CUDA kernels for 7.5 8.0 9.0+PTX with {nvcc}" in run.stdout, run.stderr
    run = setup(tmp_path, TORCH, **found, TORCH_CUDA_ARCH_LIST="8.6;8.9+PTX")
    assert "CUDA kernels for 8.6 8.9+PTX with" in run.stdout
    run = setup(tmp_path, TORCH, **found, USE_CUDA="0", FORCE_CUDA="1")
    assert "CPU kernels (no CUDA: USE_CUDA=0)" in run.stdout


@pytest.mark.parametrize(
    "cuda,home,why",
    [
        ("13.0", "/nowhere", "there is no compiler at /nowhere/bin/nvcc (set CUDA_HOME)"),
        ("13.0", "", "no CUDA toolkit was found (set CUDA_HOME)"),
    ],
)
def test_forcing_what_cannot_be_built_is_an_error(cuda, home, why, tmp_path):
    run = setup(tmp_path, TORCH, CUDA=cuda, CUDA_HOME=home)
    assert f"building against torch 2.99.0: CPU kernels (no CUDA: {why})" in run.stdout, run.stderr
    run = setup(tmp_path, TORCH, CUDA=cuda, CUDA_HOME=home, FORCE_CUDA="1")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert f"FORCE_CUDA=1, but {why}" in run.stderr


def test_cuda_kernels_do_not_depend_on_the_torch_that_builds_them(tmp_path):
    run = setup(tmp_path, TORCH, CUDA="", CUDA_HOME="/nowhere")
    assert "CPU kernels (no CUDA: torch 2.99.0 is a build without CUDA)" in run.stdout, run.stderr
    run = setup(tmp_path, TORCH, CUDA="", CUDA_HOME="/nowhere", FORCE_CUDA="1")
    assert "FORCE_CUDA=1, but there is no compiler at /nowhere/bin/nvcc (set CUDA_HOME)" in run.stderr


# ---- Importing ---------------------------------------------------------------------------------------------------


def test_torch_that_is_too_old(tmp_path):
    run = python("-c", "import torch; torch.__version__ = '2.10.1+cpu'; import fused_logistic", path=[], cwd=tmp_path)
    assert run.stderr.splitlines()[-2:] == [
        "ImportError: fused_logistic: torch 2.10.1+cpu is installed, and 2.11 or newer is needed. Run:",
        "pip install --upgrade 'torch>=2.11'",
    ]


def test_torch_that_is_newer(tmp_path):
    run = python("-c", "import torch; torch.__version__ = '3.0.1a'; import fused_logistic", path=[], cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_library_that_does_not_load(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "fused_logistic", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in (LIBRARIES[0].name, Path(_C.__file__).name):
        (copy / name).write_bytes(b"\x7fELF but not whole")
    run = python("-c", "import fused_logistic", path=[tmp_path], cwd=tmp_path)
    assert (
        f"ImportError: fused_logistic: its compiled library does not load with torch {torch.__version__}" in run.stderr
    )
    assert "Rebuild it, in a checkout:  pip install --no-build-isolation" in run.stderr


def test_source_tree_that_is_not_built(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "fused_logistic", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # an editable install's finder would still know where a library is
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; import fused_logistic"
    alone = "import importlib.metadata as m; m.distributions = lambda **name: []; " + code
    run = python("-c", alone, path=[tmp_path], cwd=tmp_path)
    message = run.stderr.splitlines()[-1]
    assert f"there is no compiled library in {tmp_path}/fused_logistic, " in message and "circular" not in run.stderr
    assert f"Build it in place, in {tmp_path}:  pip install --no-build-isolation --no-deps -e ." in message
    # as after `pip install .`, in the checkout: what was just done is no advice
    site = tmp_path / "site"
    (site / "fused_logistic").mkdir(parents=True)
    (site / "fused_logistic" / LIBRARIES[0].name).touch()
    (site / "fused_logistic-0.1.0.dist-info").mkdir()
    (site / "fused_logistic-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fused_logistic\n")
    for arguments in (("-c", code), ("-m", "fused_logistic.info")):
        run = python(*arguments, path=[tmp_path, site], cwd=tmp_path)
        message = run.stderr.splitlines()[-1]
        assert f"It hides the package that is installed in {site}: leave the folder {tmp_path}" in message
        assert "pip install" not in message


# ---- What is in the package ----------------------------------------------------------------------------------------


def test_stubs_name_what_the_module_has():
    tree = ast.parse((PACKAGE / "_C.pyi").read_text())
    functions = {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    assert values | functions.keys() == {name for name in dir(_C) if not name.startswith("_")}
    for name, arguments in functions.items():
        signature = getattr(_C, name).__doc__.splitlines()[0]  # pybind11's: name(a: int, b: str) -> int
        assert re.findall(r"[(,] ?(\w+):", signature) == arguments, signature


def test_version_stands_in_one_place():
    places = [
        path.relative_to(ROOT).as_posix()
        for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.py"), *PACKAGE.glob("*.py"), *ROOT.glob("csrc/**/*"))
        if path.is_file() and f'"{fused_logistic.__version__}"' in path.read_text()
    ]
    assert places == ["fused_logistic/version.py"]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_nothing_but_the_stable_abi_of_torch_is_used(library):
    """So that one binary serves every torch: what torch has to have is C functions, by names without C++'s mangling."""
    command = ["nm", "--dynamic", "--undefined-only", "--format=just-symbols", library]
    undefined = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    torchs = [name for name in undefined if re.search(r"at(en)?|c10|torch", name)]
    assert len(torchs) > 20
    assert [name for name in torchs if name.startswith("_Z") and not name.startswith("_ZN14fused_logistic")] == []
    needed = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_python" not in needed and "libcudart" not in needed and "libpython" not in needed


def test_the_ops_without_the_package(tmp_path):
    """As another program would load them: the library alone, no Python of ours."""
    code = f"""
import sys, torch
torch.ops.load_library({str(LIBRARIES[0])!r})
z, y = torch.tensor([0.0, 20.0]), torch.tensor([1.0, 0.0])
loss, grad = torch.ops.fused_logistic.bce_with_grad(z, y, None, None, None, None, 2, torch.float64)
print(round(loss.item(), 5), grad.tolist(), "fused_logistic" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "20.69315 [-0.5, 1.0] False\n"


@pytest.mark.skipif("avx2" not in _C.isas_built(), reason="no x86-64 build")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils are missing")
def test_wide_registers_only_where_the_cpu_was_asked():
    """On a CPU without AVX nothing but the kernels for AVX may use it: code that is shared, such as a std:: template
    that avx2.cpp and another file both instantiate, may have been taken from the file built for AVX."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", LIBRARIES[0]], stdout=subprocess.PIPE, text=True)
    wide, function = set(), ""
    for line in listing.stdout.splitlines():
        if line.endswith(">:"):
            function = line[: line.index(" ")].lstrip("0")
        elif re.search(r"%[yz]mm|%k[0-7]\b|^\s+[0-9a-f]+:\s+v(?!err|erw)\w+", line):  # a mnemonic with v: VEX or EVEX
            wide.add(function)
    # Symbols that are not shared with other files come after the FILE they belong to.
    file, origin = "", {}
    symbols = subprocess.run(["readelf", "-sW", LIBRARIES[0]], stdout=subprocess.PIPE, text=True).stdout
    for fields in map(str.split, symbols.splitlines()):
        if len(fields) == 8 and fields[3] == "FILE":
            file = fields[7]
        elif len(fields) == 8 and fields[3] == "FUNC":
            entry = re.search(r"avx(2|512)", fields[7])  # in the name: what the dispatcher calls
            origin[fields[1].lstrip("0")] = f"{entry[0]}.cpp" if entry else file
    assert {origin[address] for address in wide} == {"avx2.cpp", "avx512.cpp"}

"""Finding the CUDA compiler, compiling with a cache, and listing machine instructions."""

from __future__ import annotations

import os

import numpy as np
import pytest
from ptx import Memory, load_file, toolchain


def test_missing_compiler_is_explained(monkeypatch):
    monkeypatch.setattr(toolchain, "_nvidia_packages", list)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(toolchain.ToolchainMissing, match=r"pip install -r tests/requirements-cuda\.txt"):
        toolchain.find()


@pytest.fixture
def nvcc():
    try:
        return toolchain.find()
    except toolchain.ToolchainMissing as missing:
        pytest.skip(str(missing))


def test_compilation_is_cached_by_content(nvcc, tmp_path):
    source, header, cache = tmp_path / "k.cu", tmp_path / "value.h", tmp_path / "cache"
    header.write_text("#define VALUE 1\n")
    source.write_text('#include "value.h"\n__global__ void k(float* x) { x[threadIdx.x] = VALUE + OFFSET; }\n')

    def run(offset):
        path = toolchain.compile_ptx(source, 80, [f"OFFSET={offset}"], cache=cache)
        memory = Memory()
        out = memory.empty(32, np.float32)
        load_file(path)["k"].launch(1, 32, [out])
        return path, os.stat(path).st_mtime_ns, out.read()[0]

    first = run(10)
    assert first[2] == 11 and run(10) == first and run(20)[2] == 21
    header.write_text("#define VALUE 2\n")
    assert run(10)[2] == 12
    source.write_text("not C++")
    with pytest.raises(toolchain.CompileError, match="error"):
        run(10)


def test_machine_instructions(nvcc, tmp_path):
    source = tmp_path / "k.cu"
    source.write_text("template <class T> __global__ void k(T* x) { x[threadIdx.x] *= 3; }\n"
                      "template __global__ void k(float*);\ntemplate __global__ void k(double*);\n")  # fmt: skip
    cubin = toolchain.compile_cubin(source, "sm_80", cache=tmp_path)
    try:
        single, double = toolchain.sass(cubin, "k<float>"), toolchain.sass(cubin, "k<double>")
    except toolchain.ToolchainMissing as missing:
        pytest.skip(str(missing))
    assert any(text.startswith("FMUL ") for text in single) and any(text.startswith("DMUL ") for text in double)

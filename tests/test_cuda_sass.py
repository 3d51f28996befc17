"""What ptxas makes of the kernels: vector accesses, registers, and instructions an element in the hot loop.

The hot loop reads as many rows as `shape` in kernels.cuh says, 4 elements a thread by one load, 16 bytes in fp32.
Instructions set a second bound beside memory: an SM issues 4 warp instructions, 128 thread instructions, a clock.
  A100: 108 SMs x 128 x 1.41 GHz / 39 = 500 G elements/s; memory: 1555 GB/s / 12 bytes = 130 G elements/s
  H100: 132 SMs x 128 x 1.755 GHz / 39 = 760 G elements/s; memory: 3350 GB/s / 12 bytes = 279 G elements/s
So by this arithmetic fp32 (12 bytes an element) and bf16 (6 bytes: 259 and 558 G elements/s) wait for memory, not for
the instruction issue. It is arithmetic on listings; what an H200 and an H100 took is in docs/cuda.md.
"""

import re
from collections import Counter
from pathlib import Path

import pytest
from cuda_kernels import CSRC, FLAGS
from ptx import toolchain

SAMPLE, TILE_SAMPLE = (Path(__file__).with_name(f"cuda_{name}.cu") for name in ("sample", "tile_sample"))
ONE_PASS = (
    "elements_kernel<(fused_logistic::Output)1, fused_logistic::Bce, (fused_logistic::Terms)0, "
    "fused_logistic::Typed<{0}, fused_logistic::Types<{0}> > >"
)
LIMIT = 39  # instructions an element; last seen: fp32 31.5, fp16 35.4, bf16 37.8
# Type, and how many bits a load has and how many rows are in flight.
TYPES = {"float": (128, 8), "fused_logistic::Half": (64, 4), "fused_logistic::BFloat16": (64, 2)}


@pytest.fixture(scope="module", params=[80, 90])
def cubin(request):
    return toolchain.compile_cubin(SAMPLE, request.param, flags=FLAGS)


def opcode(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+ ", "", instruction).split()[0]


def hot_loop(code: list[str], load: str) -> list[str]:
    """The stretch between two branches that has the most loads of this kind."""
    branches = [-1, *(i for i, line in enumerate(code) if opcode(line) in ("BRA", "EXIT", "RET.REL.NODEC"))]
    stretches = [code[a + 1 : b + 1] for a, b in zip(branches, branches[1:], strict=False)]
    return max(stretches, key=lambda part: sum(load in opcode(line) for line in part))


@pytest.mark.parametrize("kind", TYPES)
def test_one_pass(cubin, kind, record_property):
    bits, rows = TYPES[kind]
    loop = hot_loop(toolchain.sass(cubin, ONE_PASS.format(kind)), f"LDG.E.{bits}")
    counts = Counter(opcode(line) for line in loop)
    loads = [i for i, line in enumerate(loop) if opcode(line).startswith("LDG")]
    stores = [i for i, line in enumerate(loop) if opcode(line).startswith("STG")]
    assert len(loads) == 2 * rows and len(stores) == rows, "one load of logits and of targets a row, one store"
    assert all(f"E.{bits}" in opcode(loop[i]) for i in loads + stores)
    assert max(loads) < min(stores), "all rows' loads are in flight before anything waits"
    elements = 4 * rows
    assert counts["MUFU.RCP"] == elements, "the loop is one straight stretch"
    # losses are grouped: nothing of an element is in fp64, but for the scale (once) by the compiler's choice
    assert counts["F2F.F64.F32"] == 0
    assert not [op for op in counts if op.startswith(("DADD", "DMUL", "DFMA", "DSETP"))]
    each = len(loop) / elements
    record_property("instructions_per_element", each)
    print(f"{kind}: {each:.1f} instructions an element")
    assert each <= LIMIT


def local_memory(cubin):
    """The functions that have some."""
    for function in re.findall(r"Function : (\S+)", toolchain._disassemble(str(cubin), Path(cubin).stat().st_mtime_ns)):
        if [line for line in toolchain.sass(cubin, function) if opcode(line).startswith(("LDL", "STL"))]:
            yield function


TILE = (
    "tile_kernel<(fused_logistic::Output)1, fused_logistic::Bce, (fused_logistic::Terms)0, "
    "fused_logistic::Typed<{0}, fused_logistic::Types<{0}> >, {1}>"
)


@pytest.fixture(scope="module", params=[80, 90])
def tile_cubin(request):
    return toolchain.compile_cubin(TILE_SAMPLE, request.param, flags=FLAGS)


@pytest.mark.parametrize("kind,sparse", [(kind, "false") for kind in TYPES] + [("float", "true")])
def test_tile(tile_cubin, kind, sparse):
    """In place: for a row of four one load of the logits, one of the targets, but for sparse ones, and one store."""
    bits = TYPES[kind][0]
    code = [opcode(line) for line in toolchain.sass(tile_cubin, TILE.format(kind, sparse))]
    store = code.index(f"STG.E.{bits}")
    first = [i for i in range(store) if code[i] == "MUFU.RCP"][-4]
    assert code[first - 100 : first].count(f"LDG.E.{bits}") == (1 if sparse == "true" else 2)
    assert not [op for op in code[first - 100 : first] if op.startswith("LDG.E") and op != f"LDG.E.{bits}"]
    assert sparse == "false" or "LDS.128" in code


def test_no_local_memory(cubin, tile_cubin):
    """Nothing spills, and no array ended up in memory."""
    assert list(local_memory(cubin)) == []


def test_pairs():
    """Nor there; two rows of similarities are read by vectors before 16-bit gradients are written, by vectors too."""
    cubin = toolchain.compile_cubin(CSRC / "cuda" / "pairs.cu", 90, flags=FLAGS)
    assert list(local_memory(cubin)) == []
    code = toolchain.sass(cubin, "pairs_kernel<true, float, fused_logistic::BFloat16>")
    loads = [i for i, line in enumerate(code) if opcode(line).startswith("LDG.E.128")]
    stores = [i for i, line in enumerate(code) if opcode(line).startswith("STG.E.64")]
    assert len(loads) == 2 and loads[1] < min(stores)

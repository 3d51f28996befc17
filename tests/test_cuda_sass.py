"""What ptxas makes of the kernels: vector accesses, registers, and instructions an element in the hot loop.

The hot loop reads two rows at a time, with 16-byte loads of logits and target and 16-byte stores of the gradient.
Instructions set a second bound beside memory: an SM issues 4 warp instructions, 128 thread instructions, a clock.
  A100: 108 SMs x 128 x 1.41 GHz / 36 = 541 G elements/s; memory: 1555 GB/s / 12 bytes = 130 G elements/s
  H100: 132 SMs x 128 x 1.755 GHz / 36 = 824 G elements/s; memory: 3350 GB/s / 12 bytes = 279 G elements/s
So by this arithmetic fp32 (12 bytes an element) and bf16 (6 bytes: 259 and 558 G elements/s) wait for memory, not for
the instruction issue. It is arithmetic on listings; what an H200 took, at commit c1cee28, is in docs/cuda.md.
"""

import re
from collections import Counter
from pathlib import Path

import pytest
from cuda_kernels import FLAGS
from ptx import toolchain

SAMPLE = Path(__file__).with_name("cuda_sample.cu")
ONE_PASS = "typed_kernel<(fused_logistic::Output)1, {0}, {0}>"
LIMIT = 36
# Type and elements in 16 bytes; last seen: 34.0, 35.0 and 35.1 instructions an element on sm_80, and as many on sm_90.
TYPES = {"float": 4, "fused_logistic::Half": 8, "fused_logistic::BFloat16": 8}


@pytest.fixture(scope="module", params=[80, 90])
def cubin(request):
    return toolchain.compile_cubin(SAMPLE, request.param, flags=FLAGS)


def opcode(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+ ", "", instruction).split()[0]


def hot_loop(code: list[str]) -> list[str]:
    """The stretch between two branches that has the most vector loads."""
    branches = [-1, *(i for i, line in enumerate(code) if opcode(line) in ("BRA", "EXIT", "RET.REL.NODEC"))]
    stretches = [code[a + 1 : b + 1] for a, b in zip(branches, branches[1:], strict=False)]
    return max(stretches, key=lambda part: sum(opcode(line).startswith("LDG.E.128") for line in part))


@pytest.mark.parametrize("kind", TYPES)
def test_one_pass(cubin, kind, record_property):
    loop = hot_loop(toolchain.sass(cubin, ONE_PASS.format(kind)))
    counts = Counter(opcode(line) for line in loop)
    elements = TYPES[kind] * counts["STG.E.128"]
    assert counts["STG.E.128"] == 2 and sum(n for op, n in counts.items() if op.startswith("LDG.E.128")) == 4
    assert counts["MUFU.RCP"] == elements, "the loop is one straight stretch over two rows"
    assert not [op for op in counts if op.startswith(("LDG", "STG")) and "128" not in op]
    # losses are grouped: nothing of an element is in fp64, but for the scale (once) by the compiler's choice
    assert counts["F2F.F64.F32"] == 0
    assert not [op for op in counts if op.startswith(("DADD", "DMUL", "DFMA", "DSETP"))]
    each = len(loop) / elements
    record_property("instructions_per_element", each)
    print(f"{kind}: {each:.1f} instructions an element")
    assert each <= LIMIT


def test_no_local_memory(cubin):
    """Nothing spills, and no array ended up in memory."""
    for function in re.findall(r"Function : (\S+)", toolchain._disassemble(str(cubin), Path(cubin).stat().st_mtime_ns)):
        code = toolchain.sass(cubin, function)
        assert not [line for line in code if opcode(line).startswith(("LDL", "STL"))], function

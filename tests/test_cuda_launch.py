"""The CUDA kernels' launch geometry; a sample of them compiled for other architectures, executed as PTX."""

from pathlib import Path

import pytest
import torch
from cuda_kernels import (
    CODES,
    COLUMNS,
    ROWS,
    SUMS,
    Operand,
    Output,
    Problem,
    compare,
    load,
    make_logits,
    make_target,
    make_weight,
)

from fused_logistic import _C

SAMPLE = Path(__file__).with_name("cuda_sample.cu")


def test_plan():
    """The grid covers the chunks, the workspace holds their sums, and small problems take one launch."""
    for n in (0, 1, 8192, 8193, 2**26, 2**40):
        full = Operand(4096, CODES[torch.float32], 1, n)
        problem = Problem(n, full, full, out_dtype=CODES[torch.float32])
        for output in Output:
            plan, chunks = _C.cuda_plan(bytes(problem), int(output), 132), -(-n // 8192)
            assert plan["grid"] == min(chunks, 132 * 32)
            assert plan["block"] * plan["per_thread"] == _C.LANES
            assert plan["finish"] == (output in SUMS and chunks != 1)
            assert plan["partials"] == (chunks if plan["finish"] else 0)
    with pytest.raises(ValueError, match="expected a Problem of"):
        _C.cuda_plan(b"", 0, 1)


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_other_architectures(arch):
    module = load(arch, SAMPLE)
    float32, bfloat16 = torch.float32, torch.bfloat16
    for z, y in [(float32, float32), (torch.float64, torch.bool), (torch.float16, torch.float16), (bfloat16, bfloat16)]:
        for n in (7, 8192 + 1029):
            logits, target = make_logits((1, n), z), make_target((1, n), y)
            compare(module, Output.LossSumAndGrad, logits, target, offsets=(n % 2, 0, 0))
    logits, target = make_logits((ROWS, COLUMNS), bfloat16), make_target((ROWS, COLUMNS), float32)
    compare(module, Output.GradLogits, logits, target)
    weights = {"weight": make_weight("row", torch.float16), "pos_weight": make_weight("column", bfloat16)}
    for z in (float32, torch.float16, bfloat16):
        logits = make_logits((ROWS, COLUMNS), z)
        compare(module, Output.LossSumAndGrad, logits, make_target((ROWS, COLUMNS), torch.int32), **weights)
    logits, target = make_logits((ROWS, COLUMNS), torch.float64), make_target((ROWS, COLUMNS), bfloat16)
    compare(module, Output.GradTarget, logits, target, out_dtype=bfloat16, **weights)
    logits, target = make_logits((ROWS, COLUMNS), bfloat16), make_target((ROWS, COLUMNS), float32)
    compare(module, Output.LossSumAndGrad, logits, target, gamma=1.7, alpha=0.25, **weights)

"""The CUDA kernels' launch geometry; a sample of them, also for other architectures, executed as PTX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_bits
from cuda_kernels import (
    CODES,
    COLUMNS,
    ROWS,
    SUMS,
    Launch,
    Operand,
    Output,
    Problem,
    cancelling,
    check,
    compare,
    load,
    make_logits,
    make_target,
    make_weight,
    on_cpu,
    place,
    run,
)
from ptx import Memory, PtxError

from fused_logistic import _C

SAMPLE = Path(__file__).with_name("cuda_sample.cu")


@pytest.fixture(scope="module")
def kernels():
    return load(80, SAMPLE)


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


def test_reciprocal_from_any_start_that_the_manual_allows(kernels):
    """rcp.approx may differ between GPUs within its error bound; the gradient does not."""
    logits, target = make_logits((1, 4096), torch.float32), make_target((1, 4096), torch.float32)
    expected = on_cpu(Output.LossSumAndGrad, logits, target)
    memory = Memory()
    out, total = memory.empty(4096, np.float32), memory.empty(1, np.float64)
    full = [Operand(place(memory, tensor, 0), CODES[torch.float32], 1, 4096) for tensor in (logits, target)]
    problem = Problem(4096, *full, out=out.addr, out_dtype=CODES[torch.float32], scale=1)
    launch = Launch(problem, divisor=1, result=total.addr, result_dtype=CODES[torch.float64])
    kernel = kernels["typed_kernel<(fused_logistic::Output)1, float, float>"]
    for seed in range(3):
        kernel.launch(1, 256, [bytes(launch)], mem=memory, approx_noise=True, seed=seed)
        assert same_bits(torch.from_numpy(out.read()), expected.out.view(-1))
        assert total.read()[0] == expected.sum.item()


def test_writing_out_of_bounds_is_noticed(kernels):
    """The harness has teeth: one element less of memory than the problem says is an error."""
    memory = Memory()
    logits = memory.array(np.zeros(9, np.float32), readonly=True)
    full = Operand(logits.addr, CODES[torch.float32], 1, 10)
    launch = Launch(Problem(10, full, full, out=memory.empty(10, np.float32).addr, out_dtype=1), divisor=1)
    with pytest.raises(PtxError):
        kernels["typed_kernel<(fused_logistic::Output)2, float, float>"].launch(1, 256, [bytes(launch)], mem=memory)


@pytest.mark.parametrize("schedule", ["lockstep", "serial", "reverse", "random"])
def test_same_bits_for_every_grid_and_schedule(kernels, schedule):
    logits, target = cancelling(5 * 8192 + 77)
    expected = on_cpu(Output.LossSumAndGrad, logits, target)
    for grid in (1, 2, 6, 9) if schedule == "lockstep" else (3,):
        check(run(kernels, Output.LossSumAndGrad, logits, target, grid=grid, schedule=schedule, seed=grid), expected)

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
    Terms,
    cancelling,
    check,
    compare,
    kernel_name,
    load,
    make_logits,
    make_target,
    make_weight,
    on_cpu,
    place,
    planned,
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
            plan, chunks = _C.cuda_plan(bytes(problem), int(output)), -(-n // 8192)
            assert plan["grid"] == chunks and plan["block"] == _C.LANES // 4
            assert plan["finish"] == (output in SUMS and chunks != 1)
            assert plan["partials"] == (chunks if plan["finish"] else 0)
    with pytest.raises(ValueError, match="expected a Problem of"):
        _C.cuda_plan(b"", 0)


READINGS = ["constant", "full", "repeated", "shared", "gathered"]  # enum class Reading


def test_layouts():
    """How a weight is read by how it lies; and that its place is found by a multiplication, at all the edges."""

    def layout_of(numel, inner, size, address=4096):
        full, weight = Operand(4096, 1, 1, numel), Operand(address, 1, inner, size)
        launch, problem = Launch(), Problem(numel, full, full, weight, out_dtype=1)
        plan = planned(launch, problem, Output.LossSum)
        layout = launch.layouts[1]
        return READINGS[layout.reading], plan["typed"], list(layout.divisions)

    for numel, inner, size, address, reading in [
        (6000, 1, 1, 4096, "constant"),
        (6000, 1, 6000, 4096, "full"),
        (6000, 1, 6000, 4100, "gathered"),
        (6000, 1, 60, 4096, "repeated"),
        (6000, 1, 60, 4100, "gathered"),
        (6000, 1, 30, 4096, "gathered"),
        (6000, 60, 100, 4100, "shared"),
        (6000, 30, 200, 4096, "gathered"),
        (2**33, 1, 2**33, 4096, "full"),
    ]:
        assert layout_of(numel, inner, size, address)[:2] == (reading, True)
    assert not layout_of(2**33, 1, 2**20)[1] and not layout_of(2**33, 1, 2**33, 4100)[1]
    for divisor in [2, 3, 5, 7, 31, 80, 641, 1000, 2**16 - 1, 2**16 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]:
        multiplier, shift = layout_of(2**32 - 1, 1, divisor)[2][2:]
        around = [k * divisor + d for k in (0, 1, 2, 3, (2**32 - 1) // divisor) for d in (-1, 0, 1)]
        for x in [x for x in [*around, 2**32 - 1] if 0 <= x < 2**32]:
            assert ((x * multiplier >> 32) + x) >> shift == x // divisor, (x, divisor)


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_other_architectures(arch):
    module = load(arch, SAMPLE)
    float32, bfloat16 = torch.float32, torch.bfloat16
    for z, y in [(float32, float32), (torch.float64, torch.bool), (torch.float16, torch.float16), (bfloat16, bfloat16)]:
        for n in (7, 8192 + 1029):
            logits, target = make_logits((1, n), z), make_target((1, n), y)
            compare(module, Output.LossSumAndGrad, logits, target)
    logits, target = make_logits((ROWS, COLUMNS), bfloat16), make_target((ROWS, COLUMNS), float32)
    compare(module, Output.GradLogits, logits, target)
    for z, y, weight in [
        (float32, float32, float32),
        (torch.float16, torch.int64, None),
        (bfloat16, bfloat16, bfloat16),
    ]:
        for shape, kept in [((90, 100), (100,)), ((ROWS, COLUMNS), (ROWS, 1))]:
            logits, target = make_logits(shape, z), make_target(shape, y)
            weights = weight and {"weight": (1 + torch.rand(shape[0], 1)).to(z), "pos_weight": 1 + torch.rand(shape[1])}
            mask = torch.rand(kept) < 0.7
            compare(module, Output.LossSumAndGrad, logits, target, mask=mask, label_smoothing=0.1, **weights or {})
    weights = {"weight": make_weight("row", torch.float16), "pos_weight": make_weight("column", bfloat16)}
    logits, target = make_logits((ROWS, COLUMNS), float32), make_target((ROWS, COLUMNS), torch.int32)
    compare(module, Output.LossSumAndGrad, logits, target, **weights)
    logits, target = make_logits((ROWS, COLUMNS), torch.float64), make_target((ROWS, COLUMNS), bfloat16)
    compare(module, Output.GradTarget, logits, target, out_dtype=bfloat16, **weights)
    logits, target = make_logits((ROWS, COLUMNS), bfloat16), make_target((ROWS, COLUMNS), float32)
    weights["weight"] = weights["weight"].to(bfloat16)
    compare(module, Output.LossSumAndGrad, logits, target, gamma=1.7, alpha=0.25, **weights)


def test_reciprocal_from_any_start_that_the_manual_allows(kernels):
    """rcp.approx may differ between GPUs within its error bound; the gradient does not."""
    logits, target = make_logits((1, 4096), torch.float32), make_target((1, 4096), torch.float32)
    expected = on_cpu(Output.LossSumAndGrad, logits, target)
    memory = Memory()
    out, total = memory.empty(4096, np.float32), memory.empty(1, np.float64)
    full = [Operand(place(memory, tensor, 0), CODES[torch.float32], 1, 4096) for tensor in (logits, target)]
    problem = Problem(4096, *full, out=out.addr, out_dtype=CODES[torch.float32], scale=1)
    launch = Launch(divisor=1, result=total.addr, result_dtype=CODES[torch.float64])
    plan = planned(launch, problem, Output.LossSumAndGrad)
    kernel = kernels[kernel_name(Output.LossSumAndGrad, problem, plan["typed"], Terms.Plain)]
    for seed in range(3):
        kernel.launch(1, 256, [bytes(launch)], mem=memory, approx_noise=True, seed=seed)
        assert same_bits(torch.from_numpy(out.read()), expected.out.view(-1))
        assert total.read()[0] == expected.sum.item()


def test_writing_out_of_bounds_is_noticed(kernels):
    """The harness has teeth: one element less of memory than the problem says is an error."""
    memory = Memory()
    logits = memory.array(np.zeros(9, np.float32), readonly=True)
    full = Operand(logits.addr, CODES[torch.float32], 1, 10)
    problem = Problem(10, full, full, out=memory.empty(10, np.float32).addr, out_dtype=1)
    launch = Launch(divisor=1)
    plan = planned(launch, problem, Output.Loss)
    with pytest.raises(PtxError):
        kernel = kernels[kernel_name(Output.Loss, problem, plan["typed"], Terms.Plain)]
        kernel.launch(1, plan["block"], [bytes(launch)], mem=memory)


@pytest.mark.parametrize("schedule", ["lockstep", "serial", "reverse", "random"])
def test_same_bits_for_every_schedule(kernels, schedule):
    logits, target = cancelling(5 * 8192 + 77)
    expected = on_cpu(Output.LossSumAndGrad, logits, target)
    for seed in range(3 if schedule == "random" else 1):
        check(run(kernels, Output.LossSumAndGrad, logits, target, schedule=schedule, seed=seed), expected)


@pytest.mark.parametrize("total", [2**31 + 8192 * 3 + 17, 2**32 + 5], ids=["2^31", "2^32"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
def test_more_than_2_31_elements(kernels, total, weighted):
    """Only the last two chunks exist in memory: any index that wraps around touches nothing and fails."""
    chunks = -(-total // 8192)
    start = (chunks - 2) * 8192
    n = total - start
    logits, target = make_logits((1, n), torch.float32), make_target((1, n), torch.float32)
    memory = Memory()

    def window(tensor):
        buffer = memory.window(total, start, tensor.view(-1).numpy(), readonly=True)
        return Operand(buffer.addr, CODES[torch.float32], 1, total)

    partials = memory.window(chunks, chunks - 2, np.zeros(2))
    out = memory.window(total, start, np.zeros(n, np.float32))
    operands, weights = [window(logits), window(target)], {}
    if weighted:  # a full weight, and one a column of 31, whose index is a remainder of the element's
        weight, columns = 1 + torch.rand(1, n), 1 + torch.rand(31)
        operands += [window(weight), Operand(place(memory, columns, 0), CODES[torch.float32], 1, 31)]
        weights = {"weight": weight, "pos_weight": columns[torch.arange(start, total) % 31].reshape(1, n)}
    problem = Problem(total, *operands, out=out.addr, out_dtype=1, scale=1)
    last = [chunks - 2, chunks - 1]
    launch = Launch(divisor=1, partials=partials.addr)
    plan = planned(launch, problem, Output.LossSumAndGrad)
    assert plan["typed"] == (not weighted or total < 2**32)  # of more elements no 32-bit division finds the column
    kind = kernel_name(Output.LossSumAndGrad, problem, plan["typed"], Terms(plan["terms"]))
    kernels[kind].launch(chunks, plan["block"], [bytes(launch)], mem=memory, blocks=last)
    expected = on_cpu(Output.LossSumAndGrad, logits, target, **weights)
    assert same_bits(torch.from_numpy(out.read()).view(1, n), expected.out)
    assert partials.read().sum() == expected.sum.item()

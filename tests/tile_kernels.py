"""Runs the CUDA kernels of a tile in the PTX interpreter on torch CPU tensors: a stand-in for csrc/cuda/tile.cpp."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from conftest import grad_arguments, loss_arguments, same_bits
from cuda_kernels import CODES, CPP, Operand, Options, Output, Problem, Result, Terms, loss_name, make_target
from ptx import Memory

from fused_logistic import _C

OPERANDS = ("logits", "target", "weight", "pos_weight", "mask", "grad_output", "out")


class Lie(ctypes.Structure):
    """csrc/cuda/tile.h"""

    _fields_ = [("row", ctypes.c_int64), ("column", ctypes.c_int64), ("reading", ctypes.c_int8)]


class TileLaunch(ctypes.Structure):
    """csrc/cuda/tile.h"""

    _fields_ = [
        ("problem", Problem),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        *[(name, Lie) for name in OPERANDS],
        ("crow_indices", ctypes.c_uint64),
        ("col_indices", ctypes.c_uint64),
        ("first_column", ctypes.c_int64),
        ("count", ctypes.c_uint64),
        ("loss_sum", ctypes.c_uint64),
        ("bias_sum", ctypes.c_uint64),
        ("bias_dtype", ctypes.c_int8),
        ("loss_sums", ctypes.c_uint64),
        ("column_sums", ctypes.c_uint64),
        ("shift", ctypes.c_int),
        ("strip_rows", ctypes.c_int),
        ("column_blocks", ctypes.c_int64),
        ("row_blocks", ctypes.c_int64),
    ]


def numpy_bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def put(memory: Memory, matrix: torch.Tensor, shift: int, readonly=True):
    """The memory that a matrix lies in, ``shift`` elements off a 256-byte boundary; -> buffer, address of its first."""
    size = matrix.element_size()
    length = sum((n - 1) * s for n, s in zip(matrix.shape, matrix.stride(), strict=True)) + 1
    raw = numpy_bytes(matrix.as_strided((length,), (1,), matrix.storage_offset()))
    buffer = memory.array(np.concatenate([np.full(shift * size, 0xA5, np.uint8), raw]), readonly=readonly)
    return buffer, buffer.addr + shift * size


def run(
    module,
    output: Output,
    logits: torch.Tensor,
    target,
    weight=None,
    pos_weight=None,
    mask=None,
    grad_output=None,
    scale=1.0,
    count=None,
    label_smoothing=0.0,
    ignore_index=None,
    gamma=None,
    alpha=None,
    ignore_nan=False,
    first_column=0,  # of a sparse target, which is (values, crow_indices, col_indices)
    losses_dtype=None,
    bias=None,  # the sums that the columns' are added to
    loss=0.0,
    padding=0,  # between the rows of logits and losses
    shift=0,  # of all operands from an aligned address, in elements
    strip_rows=None,  # other than by tile_plan, as only a large tile has them
    schedule="lockstep",
    seed=0,
    **family,  # the parameters of other losses
) -> Result:
    """``sum`` the losses, ``out`` the gradient or the losses, ``bias`` the columns' sums, ``stats``, ``plan``."""
    memory, result = Memory(), Result()
    rows, columns = logits.shape
    wide = torch.full((rows, columns + padding), -77.0, dtype=logits.dtype)
    wide[:, :columns] = logits
    logits = wide[:, :columns]
    is_double = torch.float64 in (logits.dtype, (target[0] if isinstance(target, tuple) else target).dtype)
    launch = TileLaunch(rows=rows, columns=columns)
    problem = Problem(
        logits.numel(),
        compute_double=is_double,
        scale=scale,
        options=Options.of(label_smoothing, ignore_index, gamma, alpha, ignore_nan=ignore_nan, **family),
    )

    def operand(name, matrix, readonly=True):
        """-> its buffer"""
        if matrix is None:
            setattr(problem, name, Operand(0, CODES[torch.float32], 1, 1))
            return None
        buffer, address = put(memory, matrix, shift, readonly)
        code = CODES[matrix.dtype]
        number = 0 if name == "logits" else matrix.numel()
        setattr(problem, name, Operand(address, code, 1, number))
        strides = [0 if n == 1 else s for n, s in zip(matrix.shape, matrix.stride(), strict=True)]
        strides = (matrix.stride(0), 1) if name == "logits" else strides
        setattr(launch, name, Lie(*_C.cuda_lie(address, code, number, *strides).values()))
        return buffer

    in_place = output in (Output.LossSumAndGrad, Output.GradLogits)
    out = operand("logits", logits, readonly=not in_place)
    for name, matrix in (("weight", weight), ("pos_weight", pos_weight), ("mask", mask), ("grad_output", grad_output)):
        operand(name, matrix)
    if isinstance(target, tuple):
        values, crow, col = target
        problem.target = Operand(put(memory, values, 0)[1] if len(values) else 0, CODES[values.dtype], 1, 0)
        launch.crow_indices = put(memory, crow, 0)[1]
        launch.col_indices = put(memory, col, 0)[1] if len(col) else 0
        launch.first_column = first_column
    else:
        operand("target", target)
    if in_place:
        problem.out, problem.out_dtype = problem.logits.data, problem.logits.dtype
    elif output == Output.Loss:
        logits = torch.full(wide.shape, -77.0, dtype=losses_dtype or logits.dtype)[:, :columns]
        out, problem.out = put(memory, logits, shift, readonly=False)
        problem.out_dtype = CODES[logits.dtype]
    if output != Output.LossSum:
        launch.out = Lie(*_C.cuda_lie(problem.out, problem.out_dtype, 0, logits.stride(0), 1).values())
    if count is not None:
        launch.count = put(memory, count, 0)[1]
    launch.problem = problem
    if output in (Output.LossSum, Output.LossSumAndGrad):
        total = memory.array(np.array([loss]))
        launch.loss_sum = total.addr
    if bias is not None:
        sums = memory.array(bias.numpy().copy())
        launch.bias_sum, launch.bias_dtype = sums.addr, CODES[bias.dtype]
    plan = _C.cuda_tile_plan(bytes(launch), int(output))
    launch = TileLaunch.from_buffer_copy(plan["launch"])
    if strip_rows is not None:
        launch.strip_rows, launch.row_blocks = strip_rows, -(-rows // (strip_rows * (128 >> launch.shift)))
        plan["grid"] = launch.row_blocks * launch.column_blocks
    if launch.loss_sum:
        launch.loss_sums = memory.empty(plan["grid"], "f8").addr
    if launch.bias_sum:
        launch.column_sums = memory.empty(launch.row_blocks * columns, "f8" if is_double else "f4").addr
    settings = {"mem": memory, "schedule": schedule, "seed": seed}
    kernel = module[kernel_name(plan, problem, isinstance(target, tuple))]
    result.stats.append(kernel.launch(plan["grid"], plan["block"], [bytes(launch)], **settings))
    if launch.loss_sum or launch.bias_sum:
        finish = module[f"finish_tile_kernel<{'double' if is_double else 'float'}>"]
        result.stats.append(finish.launch(plan["finish_grid"], _C.LANES, [bytes(launch)], **settings))
    assert not any(stats.warnings for stats in result.stats), [stats.warnings for stats in result.stats]
    result.plan = launch
    if launch.loss_sum:
        result.sum = torch.from_numpy(total.read()).reshape(())
    if bias is not None:
        result.bias = torch.from_numpy(sums.read())
    if output != Output.LossSum:
        flat = torch.from_numpy(out.read().copy())[shift * logits.element_size() :].view(logits.dtype)
        result.out = flat.as_strided(logits.shape, logits.stride()).clone()
        between = flat.as_strided((rows - 1, padding), (logits.stride(0), 1), columns)
        assert (between == torch.tensor(-77.0, dtype=logits.dtype)).all(), "written between the rows"
    return result


def kernel_name(plan: dict, problem: Problem, sparse: bool) -> str:
    target, terms = problem.target.dtype, Terms(plan["terms"])
    if plan["typed"]:
        logits, known = CPP[problem.logits.dtype], [problem.logits.dtype]
        if terms == Terms.Plain:
            known.append(CODES[torch.uint8])
        other = "unsigned char, long" + (", float" if problem.logits.dtype in (2, 3) else "")
        types = logits if sparse else CPP[target] if target in known else other
        types = f"Typed<{logits}, fused_logistic::Types<{types}> >"
    else:
        types, sparse = f"General<{'double' if problem.compute_double else 'float'}>", True
    loss = "Bce" if terms <= Terms.Options else loss_name(problem, plan["output"])
    enums = f"(fused_logistic::Output){plan['output']}, fused_logistic::{loss}, (fused_logistic::Terms){int(terms)}"
    return f"tile_kernel<{enums}, fused_logistic::{types}, {'true' if sparse else 'false'}>"


def on_cpu(output, logits, target, weight=None, pos_weight=None, mask=None, grad_output=None, scale=1.0,
           label_smoothing=0.0, ignore_index=None, gamma=None, alpha=None, ignore_nan=False,
           losses_dtype=None, **family):  # fmt: skip
    """The elements of the same by the elementwise ops on the CPU."""
    ops = torch.ops.fused_logistic
    target = target.expand(logits.shape)
    shared, options = (logits, target, weight, pos_weight, mask), (label_smoothing, ignore_index)
    last = {"gamma": gamma, "alpha": alpha, "ignore_nan": ignore_nan, **family}
    if output == Output.Loss:
        return ops.bce(*loss_arguments(*shared, 0, *options, losses_dtype or logits.dtype, **last))
    dtype = torch.float64 if torch.float64 in (logits.dtype, target.dtype) else torch.float32
    factor = torch.full((), scale, dtype=dtype)
    factor = factor if grad_output is None else factor * grad_output.to(dtype)
    return ops.bce_backward(factor, *grad_arguments(*shared, 2, *options, 0, **last))


def finish(module, losses, loss: float, columns, bias):
    """The loss and the bias's gradient after the blocks' sums of them have been added, by finish_tile_kernel."""
    memory = Memory()
    is_double = columns.dtype == torch.float64
    total, sums = memory.array(np.array([loss])), memory.array(bias.numpy().copy())
    launch = TileLaunch(columns=columns.shape[1], row_blocks=len(columns), column_blocks=len(losses) // len(columns))
    launch.loss_sum, launch.bias_sum, launch.bias_dtype = total.addr, sums.addr, CODES[bias.dtype]
    launch.loss_sums = memory.array(losses.numpy(), readonly=True).addr
    launch.column_sums = memory.array(columns.numpy(), readonly=True).addr
    kernel = module[f"finish_tile_kernel<{'double' if is_double else 'float'}>"]
    kernel.launch(1 + -(-columns.shape[1] // 32), _C.LANES, [bytes(launch)], mem=memory)
    return total.read()[0], torch.from_numpy(sums.read())


# ---- The comparison with the CPU -----------------------------------------------------------------------------------


def column_sums(grad: torch.Tensor, plan) -> torch.Tensor:
    """The sums of the columns of a gradient that is not rounded (of the arithmetic's type), in the kernels' order."""
    strips = 128 >> plan.shift
    blocks = []
    for row in range(0, len(grad), plan.strip_rows * strips):
        of_strips = []
        for strip in range(strips):
            part = grad[row + strip * plan.strip_rows :][: plan.strip_rows]
            total = torch.zeros_like(grad[0])
            for line in part:
                total = total + line
            of_strips.append(total)
        total = of_strips[0]
        for other in of_strips[1:]:
            total = total + other
        blocks.append(total)
    return added_lines(torch.stack(blocks))


def summed_losses(losses: torch.Tensor, plan) -> float:
    """The sum of losses that are added one by one, as those with weights, in the kernels' order."""
    width, strips, rows = 1 << plan.shift, 128 >> plan.shift, plan.strip_rows
    padded = torch.zeros(plan.row_blocks * strips * rows, plan.column_blocks * width * 4, dtype=torch.float64)
    padded[: losses.shape[0], : losses.shape[1]] = losses
    # [row block, strip, row, column block, thread, column] -> sums of the columns of strips
    parts = padded.view(plan.row_blocks, strips, rows, plan.column_blocks, width * 4).permute(2, 0, 3, 1, 4)
    lanes = torch.zeros_like(parts[0])
    for row in parts:
        lanes = lanes + row
    lanes = lanes.reshape(-1, 512)
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    return added_blocks(lanes[:, 0])


def added_blocks(losses: torch.Tensor) -> float:
    """The sum of what the blocks have of the loss."""
    lanes = torch.zeros(1024, dtype=torch.float64)
    for part in losses.split(1024):
        lanes[: len(part)] += part
    while len(lanes) > 1:
        lanes = lanes[::2] + lanes[1::2]
    return lanes.item()


def added_lines(blocks: torch.Tensor) -> torch.Tensor:
    """The sum of the blocks' columns, in fp64."""
    lines = torch.zeros(32, blocks.shape[1], dtype=torch.float64)
    for i, block in enumerate(blocks.double()):
        lines[i % 32] += block
    total = lines[0]
    for line in lines[1:]:
        total = total + line
    return total


def compare(kernels, output, logits, target, *, dense=None, bias=True, **options):
    """Elements by their bits; columns' sums too, where gradients are not rounded; losses to what their order allows:
    some ulp of fp64, or of the fp32 that 32 of them share."""
    wants_bias = bias and output in (Output.LossSumAndGrad, Output.GradLogits)
    is_double = torch.float64 in (logits.dtype, (target[0] if isinstance(target, tuple) else target).dtype)
    sums = torch.rand(logits.shape[1], dtype=torch.float64 if is_double else torch.float32) if wants_bias else None
    result = run(kernels, output, logits, target, bias=sums, loss=1.5, **options)
    harness = ("padding", "shift", "strip_rows", "schedule", "seed", "first_column", "count")
    given = {key: value for key, value in options.items() if key not in harness}
    if options.get("count") is not None:
        given["scale"] = 1 / options["count"].item()
    dense = target if dense is None else dense
    if output != Output.LossSum:
        expected = on_cpu(output, logits, dense, **given)
        assert same_bits(result.out, expected)
    if wants_bias and expected.dtype == (torch.float64 if is_double else torch.float32):
        exact = sums.double() + column_sums(expected, result.plan)
        assert same_bits(result.bias, exact.to(sums.dtype))
    elif wants_bias:  # each summand rounded to 16 bits in what is compared with
        bound = torch.finfo(expected.dtype).eps * expected.double().abs().sum(0) + 1e-6
        assert ((result.bias - sums).double() - expected.double().sum(0)).abs().le(bound).all()
    if result.sum is not None:
        given.pop("grad_output", None), given.pop("scale", None)
        losses = on_cpu(Output.Loss, logits, dense, **given, losses_dtype=torch.float64).double()
        error = abs(result.sum - 1.5 - losses.sum())
        assert error <= (1e-15 * losses.numel() if is_double else 2.0**-20) * (losses.abs().sum() + 1.5), (
            result.sum,
            losses.sum(),
        )
    return result


def sparse(rows, labels, number, dtype, seed=0):
    """(values, crow_indices, col_indices) whose columns rise, and the dense target."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(rows * labels, generator=generator)[:number].sort().values
    values = make_target((number,), dtype, seed)
    crow = torch.searchsorted(place, torch.arange(rows + 1) * labels)
    dense = torch.zeros(rows * labels, dtype=dtype)
    dense[place] = values
    return (values, crow, place % labels), dense.view(rows, labels)

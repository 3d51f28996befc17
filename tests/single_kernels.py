"""Runs the CUDA kernels of a layer with one label in the PTX interpreter: a stand-in for csrc/cuda/single.cpp."""

from __future__ import annotations

import ctypes

import torch
from conftest import same_bits
from cuda_kernels import CODES, CSRC, FLAGS, Memory, Options, Output, Problem, load, operand, place

from fused_logistic import _C, ops

CPP = {torch.float64: "double", torch.float32: "float", torch.float16: "Half", torch.bfloat16: "BFloat16"}
SHARED = (113 << 10, 227 << 10)  # what two blocks and what one may have of it on sm_90
SMALL = (48 << 10, 64 << 10)  # and about that on sm_75


class LinearProblem(ctypes.Structure):
    """csrc/linear.h"""

    _fields_ = [
        ("loss", Problem),
        ("input", ctypes.c_uint64),
        ("input_dtype", ctypes.c_int8),
        ("features", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("linear_weight", ctypes.c_uint64),
        ("bias", ctypes.c_double),
        ("rows_per_part", ctypes.c_int64),
        ("loss_and_grad_bias", ctypes.c_uint64),
        ("grad_weight", ctypes.c_uint64),
        ("grad_input", ctypes.c_uint64),
    ]


class SinglePlan(ctypes.Structure):
    """csrc/cuda/single_plan.h"""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("parts", "flush_rows", "scratch", "workspace")],
        *[(name, ctypes.c_int32) for name in ("tile_rows", "vectors", "row_bytes", "chunk_bytes", "shared_bytes")],
        ("by_chunks", ctypes.c_uint32 * 2),
        ("whole", ctypes.c_bool),
        ("whole_out", ctypes.c_bool),
    ]


class SingleLaunch(ctypes.Structure):
    """csrc/cuda/single_plan.h"""

    _fields_ = [
        ("problem", LinearProblem),
        ("plan", SinglePlan),
        ("output", ctypes.c_int8),
        ("linear_bias", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("divisor", ctypes.c_double),
        *[(name, ctypes.c_uint64) for name in ("scratch", "loss", "grad_weight", "grad_bias")],
        ("loss_dtype", ctypes.c_int8),
    ]


def load_single(arch: int = 80, source=CSRC / "cuda" / "single.cu", cache=None):
    return load(arch, source, cache)


def planned(launch: SingleLaunch, wants_grad_weight: bool, shared=SHARED) -> tuple[SingleLaunch, dict]:
    plan = _C.single_plan(bytes(launch), wants_grad_weight, *shared)
    return SingleLaunch.from_buffer_copy(plan["launch"]), plan


def single(
    module,
    input,
    linear_weight,
    linear_bias,
    target,
    weight=None,
    pos_weight=None,
    mask=None,
    grad_output=None,
    count=None,
    reduction=ops.MEAN,
    dtype=torch.float32,
    wanted=(True, True, True),
    label_smoothing=0.0,
    ignore_index=None,
    ignore_nan=False,
    *,
    offset=0,  # of the input from an aligned address, in elements
    shared=SHARED,
    **launched,
):
    """What ops.linear_bce_single does, by the kernels; -> its four tensors, and the plan."""
    memory, (n, features) = Memory(), input.shape
    stride = input.stride(0) if n > 1 else features
    # what lies between the rows is NaN, and behind the last there is nothing
    stored = torch.full((n, stride), torch.nan, dtype=input.dtype)
    stored[:, :features] = input
    stored = stored.view(-1)[: max(n - 1, 0) * stride + features] if n else stored.view(-1)
    output = Output.LossSumAndGrad if any(wanted) else Output.LossSum
    output = Output.GradLogits if grad_output is not None else Output.Loss if reduction == ops.NONE else output
    # the logits, which nobody reads, are as the target
    operands = [operand(memory, t, torch.Size([n]), 0) for t in (target, target, weight, pos_weight, mask, grad_output)]
    loss_problem = Problem(
        n,
        *operands,
        compute_double=torch.float64 in (input.dtype, target.dtype),
        options=Options.of(label_smoothing, ignore_index, ignore_nan=ignore_nan),
    )
    divisor = n if reduction == ops.MEAN else 1
    loss_problem.scale = 1 / divisor if divisor else float("inf")

    def empty(shape, dtype):
        tensor = torch.empty(shape, dtype=dtype)
        return memory.empty(max(tensor.nbytes, 1), "u1"), tensor

    results = {}
    if output == Output.Loss:
        results["loss"] = empty(n, dtype)
        loss_problem.out, loss_problem.out_dtype = results["loss"][0].addr, CODES[dtype]
    elif grad_output is None:
        results["loss"] = empty((), dtype)
    for name, asked, shape in [
        ("grad_input", wanted[0], (n, features)),
        ("grad_weight", wanted[1], features),
        ("grad_bias", wanted[2] and linear_bias is not None, 1),
    ]:
        if asked:
            results[name] = empty(shape, input.dtype)
    problem = LinearProblem(
        loss_problem,
        place(memory, stored, offset),
        CODES[input.dtype],
        features,
        stride,
        place(memory, linear_weight, 0),
    )
    if "grad_input" in results:
        problem.grad_input = results["grad_input"][0].addr
    launch = SingleLaunch(problem, output=int(output), divisor=divisor, loss_dtype=CODES[dtype])
    launch.linear_bias = 0 if linear_bias is None else place(memory, linear_bias, 0)
    launch.count = 0 if count is None or reduction != ops.MEAN else place(memory, count, 0)
    if output != Output.Loss and "loss" in results:
        launch.loss = results["loss"][0].addr
    launch, plan = planned(launch, "grad_weight" in results, shared)
    # the sums of parts that are not launched are 0
    workspace = (memory.zeros if "blocks" in launched else memory.empty)(max(plan["workspace"], 1), "f8").addr
    launch.scratch = workspace
    launch.problem.loss_and_grad_bias = workspace + 8 * plan["scratch"]
    if "grad_weight" in results:
        launch.problem.grad_weight = launch.problem.loss_and_grad_bias + 16 * plan["grid"]
    for name in ("grad_weight", "grad_bias"):
        if name in results:
            setattr(launch, name, results[name][0].addr)
    if plan["grid"]:
        c = "double" if loss_problem.compute_double else "float"
        kernel = module[f"single_kernel<{_cpp(input.dtype)}, {c}, {plan['vectors']}>"]
        stats = kernel.launch(
            plan["grid"], plan["block"], [bytes(launch)], mem=memory, shared=plan["shared"], **launched
        )
        assert not stats.warnings, stats.warnings
        plan["stats"] = stats
    if output != Output.Loss:
        threads = 2 + (features if "grad_weight" in results else 0)
        launched.pop("blocks", None)
        stats = module["single_sums_kernel"].launch(-(-threads // 64), 64, [bytes(launch)], mem=memory, **launched)
        assert not stats.warnings, stats.warnings

    def read(name):
        if name not in results:
            return torch.empty(0, dtype=input.dtype)
        buffer, tensor = results[name]
        if not tensor.numel():
            return tensor
        assert buffer.initialised(), f"{name} was not written"
        return torch.from_numpy(buffer.read()).view(tensor.dtype).reshape(tensor.shape)

    return [read(name) for name in ("loss", "grad_input", "grad_weight", "grad_bias")], plan


def _cpp(dtype) -> str:
    name = CPP[dtype]
    return name if dtype in (torch.float64, torch.float32) else f"fused_logistic::{name}"


def agree(module, input, linear_weight, linear_bias, target, **options):
    """The bits of the CPU; -> the plan."""
    result, plan = single(module, input, linear_weight, linear_bias, target, **options)
    given = {"weight": None, "pos_weight": None, "mask": None, "grad_output": None, "count": None,
             "reduction": ops.MEAN, "dtype": torch.float32, "wanted": (True, True, True),
             "label_smoothing": 0.0, "ignore_index": None}  # fmt: skip
    given |= {key: value for key, value in options.items() if key in given}
    given["wanted"] = list(given["wanted"])
    last = {"ignore_nan": options.get("ignore_nan", False)}
    expected = ops.linear_bce_single(input, linear_weight, linear_bias, target, *given.values(), **last)
    for name, a, b in zip(("loss", "grad_input", "grad_weight", "grad_bias"), result, expected, strict=True):
        assert same_bits(a, b), (name, a.flatten()[:5], b.flatten()[:5])
    return plan


__all__ = ["FLAGS", "SHARED", "SMALL", "agree", "load_single", "planned", "single"]

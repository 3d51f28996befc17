"""Runs the CUDA kernels in the PTX interpreter on torch CPU tensors: a stand-in for csrc/cuda/launch.cpp.

A test file that imports this is skipped where the toolchain is not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import grad_arguments, loss_arguments, same_bits
from cuda_structs import Launch, Layout, Operand, Options, Problem

from fused_logistic import _C

pytest.importorskip("ptx.toolchain", reason="the PTX interpreter needs numpy")
from ptx import Memory, load_file, toolchain  # noqa: E402

try:
    toolchain.find()
except toolchain.ToolchainMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

CSRC = Path(__file__).parents[1] / "csrc"
FLAGS = ("-std=c++20", "--expt-relaxed-constexpr", "-fmad=false")
LOSSES = ["Bce", "Focal", "Quality", "Asymmetric"]  # csrc/options.h: enum class Loss
FAMILY = ("beta", "iou_weighted", "gamma_neg", "gamma_pos", "clip")  # the parameters of the last two
Output = IntEnum("Output", "LossSum LossSumAndGrad Loss Count GradLogits GradTarget GradWeight GradPosWeight", start=0)
Terms = IntEnum("Terms", "Plain Options Weights All", start=0)
SUMS = (Output.LossSum, Output.LossSumAndGrad, Output.Count)
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# of the matrices, and what a weight may be of them
ROWS, COLUMNS = 37, 31
FORMS = {"absent": None, "scalar": (1,), "column": (COLUMNS,), "row": (ROWS, 1), "full": (ROWS, COLUMNS)}
CODES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.uint8: 4,
    torch.bool: 4,
    torch.int8: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
}
CPP = ["double", "float", "fused_logistic::Half", "fused_logistic::BFloat16", "unsigned char"]


def load(arch: int, source: Path = CSRC / "cuda" / "kernels.cu", cache=None):
    return load_file(toolchain.compile_ptx(source, arch, flags=FLAGS, cache=cache))


def place(memory: Memory, tensor: torch.Tensor, offset: int) -> int:
    """The tensor in read-only memory, ``offset`` elements off a 256-byte boundary; -> its address."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    padding = torch.full((offset * tensor.element_size(),), 0xA5, dtype=torch.uint8)
    return memory.array(torch.cat([padding, raw]).numpy(), readonly=True).addr + len(padding)


def operand(memory: Memory, tensor: torch.Tensor | None, shape: torch.Size, offset: int) -> Operand:
    """A scalar, full, [columns] or [rows, 1] tensor, as csrc/tensors.cpp describes it."""
    if tensor is None:
        return Operand(0, CODES[torch.float32], 1, 1)
    inner = shape[-1] if tensor.dim() == 2 and tensor.shape[1] == 1 and tensor.numel() > 1 else 1
    return Operand(place(memory, tensor, offset), CODES[tensor.dtype], inner, tensor.numel())


class Result:
    """``sum``, ``out`` and ``stats`` of what was launched."""

    def __init__(self):
        self.sum = self.out = None
        self.stats = []


def run(
    module,
    output: Output,
    logits: torch.Tensor,
    target: torch.Tensor,
    weight=None,
    pos_weight=None,
    mask=None,
    grad_output=None,
    mean=False,
    label_smoothing=0.0,
    ignore_index=None,
    gamma=None,
    alpha=None,
    ignore_nan=False,
    out_dtype=None,
    result_dtype=torch.float64,
    offsets=(0, 0, 0),  # of logits, target and output from an aligned address, in elements
    shift=0,  # the same of weights and mask
    general=False,  # a kernel for operands of any type even where there is one that knows them
    schedule="lockstep",
    seed=0,
    count=None,
    made=None,  # what the output already holds, made for a grad_output of 1 ...
    made_for=None,  # ... or of this
    **family,  # the parameters of other losses
) -> Result:
    """What launch.cpp does for one output of one problem."""
    memory, result, shape = Memory(), Result(), logits.shape
    out_dtype = out_dtype or logits.dtype
    tells = output != Output.Count or ignore_index is not None or ignore_nan
    tensors = (logits, target if tells else None, weight, pos_weight, mask, grad_output)
    places = (*offsets[:2], shift, shift, shift, shift)
    operands = [operand(memory, tensor, shape, offset) for tensor, offset in zip(tensors, places, strict=True)]
    if target.dim() < logits.dim() and not target.is_floating_point():  # class indices
        operands[1].inner, operands[1].classes = math.prod(shape[2:]), shape[1]
    problem = Problem(
        logits.numel(),
        *operands,
        compute_double=torch.float64 in (logits.dtype, target.dtype),
        out_dtype=CODES[out_dtype],
        options=Options.of(label_smoothing, ignore_index, gamma, alpha, ignore_nan=ignore_nan, **family),
    )
    if mean and count is None and (mask is not None or ignore_index is not None or ignore_nan):
        counted = {"mask": mask, "ignore_index": ignore_index, "ignore_nan": ignore_nan}
        count = run(module, Output.Count, logits, target, **counted).sum
    divisor = logits.numel() if mean and count is None else 1
    problem.scale = 1 / divisor
    launch = Launch(divisor=divisor, result_dtype=CODES[result_dtype])
    if count is not None:
        launch.count = place(memory, count, 0)
    if output in SUMS:
        scalar = memory.empty(torch.empty(0, dtype=result_dtype).element_size(), "u1")
        launch.result = scalar.addr
    if output not in (Output.LossSum, Output.Count):
        size = torch.empty(0, dtype=out_dtype).element_size()
        if made is None:
            out = memory.empty((offsets[2] + logits.numel()) * size, "u1")
        else:
            raw = made.contiguous().view(-1).view(torch.uint8)
            out = memory.array(torch.cat([torch.zeros(offsets[2] * size, dtype=torch.uint8), raw]).numpy())
            launch.is_made = True
            launch.made_for = operand(memory, made_for, shape, 0)
        problem.out = out.addr + offsets[2] * size
    plan = planned(launch, problem, output)
    if plan["partials"]:
        launch.partials = memory.empty(plan["partials"], "f8").addr
    kernel = module[kernel_name(output, problem, plan["typed"] and not general, Terms(plan["terms"]))]
    if plan["grid"]:
        result.stats.append(
            kernel.launch(plan["grid"], plan["block"], [bytes(launch)], mem=memory, schedule=schedule, seed=seed)
        )
    if plan["finish"]:
        finish = module["finish_kernel"]
        result.stats.append(finish.launch(1, _C.LANES, [bytes(launch)], mem=memory, schedule=schedule, seed=seed))
    assert not any(stats.warnings for stats in result.stats)
    if output in SUMS:
        assert scalar.initialised()
        result.sum = torch.from_numpy(scalar.read()).view(result_dtype)
    if output not in (Output.LossSum, Output.Count):
        first = out.offset + offsets[2] * size
        assert made is not None or not (memory.flags[out.offset : first] & 4).any(), "written before the output"
        assert (memory.flags[first : out.offset + out.nbytes] & 4).all(), "not written"
        result.out = torch.from_numpy(out.read()[offsets[2] * size :].copy()).view(out_dtype).reshape(shape)
    return result


def planned(launch: Launch, problem: Problem, output: Output) -> dict:
    """Puts the problem into the launch; -> the plan of csrc/cuda/plan.h."""
    plan = _C.cuda_plan(bytes(problem), int(output))
    launch.problem = problem
    launch.layouts = (Layout * 5).from_buffer_copy(plan["layouts"])
    return plan


def kernel_name(output: Output, problem: Problem, typed: bool, terms: Terms) -> str:
    target = problem.target.dtype
    if typed and output == Output.Count:
        types = "Counted"
    elif typed:
        logits, known = CPP[problem.logits.dtype], [problem.logits.dtype]
        if terms == Terms.Plain:
            known.append(CODES[torch.uint8])
        other = "unsigned char, long" + (", float" if problem.logits.dtype in (2, 3) else "")
        types = f"Typed<{logits}, fused_logistic::Types<{CPP[target] if target in known else other}> > "
    else:
        terms = max(terms, Terms.All if problem.options.loss else Terms.Options)
        types = f"General<{'double' if problem.compute_double else 'float'}> "
    loss = "Bce" if output == Output.Count else loss_name(problem, output)
    enums = f"(fused_logistic::Output){int(output)}, fused_logistic::{loss}, (fused_logistic::Terms){int(terms)}"
    return f"elements_kernel<{enums}, fused_logistic::{types}>"


def loss_name(problem: Problem, output: Output) -> str:
    """with_loss of csrc/losses.h"""
    options = problem.options
    if not options.loss:
        return "Bce"
    is_rare = output in (Output.GradTarget, Output.GradWeight, Output.GradPosWeight)
    whole = options.has_whole_powers and not problem.compute_double and not is_rare
    return f"{LOSSES[options.loss]}LossOf<{str(whole).lower()}>"


def second_stage(module, partials) -> float:
    """The result of finish_kernel of the chunks' sums."""
    memory = Memory()
    buffer, out = memory.array(partials), memory.empty(1, "f8")
    launch = Launch(Problem(_C.CHUNK * len(partials)), divisor=1, partials=buffer.addr, result=out.addr)
    module["finish_kernel"].launch(1, _C.LANES, [bytes(launch)], mem=memory)
    return float(out.read()[0])


def ordered_sum(partials: np.ndarray) -> float:
    """The same by csrc/problem.h."""
    while len(partials) > 1:
        sums = []
        for begin in range(0, len(partials), _C.CHUNK):
            chunk = partials[begin : begin + _C.CHUNK]
            lanes = np.zeros(_C.LANES)
            for row in range(0, len(chunk), _C.LANES):
                part = chunk[row : row + _C.LANES]
                lanes[: len(part)] += part
            while len(lanes) > 1:
                lanes = lanes[::2] + lanes[1::2]
            sums.append(lanes[0])
        partials = np.array(sums)
    return float(partials[0]) if len(partials) else 0.0


def on_cpu(output, logits, target, weight=None, pos_weight=None, mask=None, grad_output=None, mean=False,
           label_smoothing=0.0, ignore_index=None, gamma=None, alpha=None, ignore_nan=False,
           **others) -> Result:  # fmt: skip
    """The same from the CPU kernels, sums in fp64."""
    ops, result = torch.ops.fused_logistic, Result()
    shared = (logits, target, weight, pos_weight, mask)
    options = label_smoothing, ignore_index
    last = {"gamma": gamma, "alpha": alpha, "ignore_nan": ignore_nan}
    last |= {name: others[name] for name in FAMILY if name in others}
    reduction = 1 if mean else 2
    if output == Output.LossSum:
        result.sum = ops.bce(*loss_arguments(*shared, reduction, *options, torch.float64, **last))
    elif output == Output.LossSumAndGrad:
        made_for = torch.ones(()) if grad_output is None or grad_output.numel() != 1 else grad_output.reshape(())
        arguments = loss_arguments(*shared, reduction, *options, torch.float64, **last)
        result.sum, result.out = ops.bce_with_grad_for(made_for, *arguments)
    elif output == Output.Loss:
        result.out = ops.bce(*loss_arguments(*shared, 0, *options, logits.dtype, **last))
    else:
        wrt = output - Output.GradLogits
        arguments = grad_arguments(*shared, reduction if mean else 0, *options, wrt, **last)
        result.out = ops.bce_backward(grad_output, *arguments)
    return result


def cancelling(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets whose losses nearly cancel: their sum is made of rounding errors, which tell its order."""
    logits, target = 10 ** (12 * torch.rand(1, n)), torch.zeros(1, n)
    half = n // 2
    logits[:, half : 2 * half] = logits[:, :half]
    target[:, half:] = 2  # the loss is about z for a target of 0, and -z for 2
    return logits, target


# ---- Cases, and the comparison with the CPU ------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 6e-8, 20, -20, 88, -88, 104, -104, 700, -746, 6e4, -6e4]


def name(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else getattr(value, "name", str(value))


def make_logits(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    flat = logits.view(-1)
    for i, value in enumerate(SPECIAL[: flat.numel() // 2]):
        flat[(i * 97 + seed) % flat.numel()] = value
    return logits.to(dtype)


def make_target(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed + 1)
    if dtype.is_floating_point:
        soft = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.where(soft < 0.3, 0.0, torch.where(soft > 0.7, 1.0, soft)).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def make_weight(form, dtype):
    shape = FORMS[form]
    return None if shape is None else (1 + 3 * torch.rand(shape, dtype=torch.float64)).to(dtype)


def check(result, expected):
    if expected.sum is not None:
        assert same_bits(result.sum.reshape(()), expected.sum.double())
    if expected.out is not None:
        assert same_bits(result.out, expected.out)


def compare(kernels, output, logits, target, **options):
    if output >= Output.GradLogits and options.get("grad_output") is None:
        options["grad_output"] = make_logits(logits.shape, logits.dtype, seed=9)
    result = run(kernels, output, logits, target, **options)
    check(result, on_cpu(output, logits, target, **options))
    return result


UNEXECUTED = {  # source lines with an instruction that no launch can execute
    # divide() is asked twice in a row whether 32 bits do, of which the second yes cannot be; the compiler puts it here
    r"const int count = end - i < N \? int\(end - i\) : N;": "a division",
}


def unexecuted(module) -> list[str]:
    """The kinds of instruction of a source line that no launch executed, but for what is explained above."""
    hits, example = Counter(), {}
    for kernel in module.kernels.values():
        for instruction in kernel.program.code[:-1]:  # the last: an exit that the interpreter adds
            kind = instruction.where, ".".join([instruction.opcode, *instruction.modifiers])
            hits[kind] += instruction.hits
            example[kind] = instruction
    text = {file.name: ["", *file.read_text().splitlines()] for file in CSRC.glob("**/*.*") if file.suffix != ".py"}
    missed = [f"{name} was not launched" for name, k in module.kernels.items() if not k.program.code[0].hits]
    for (where, _), instruction in example.items():
        file, line = where.split(":")
        # Moves and jumps compute nothing; line 0 has none of ours, such as the inside of a 64-bit division
        if hits[where, _] == 0 and line != "0" and instruction.opcode not in ("mov", "bra"):
            source = text[file][int(line)].strip()
            if not any(re.match(pattern, source) for pattern in UNEXECUTED):
                missed.append(f"{instruction}: {source}")
    return missed

"""Floating-point add, sub, mul, fma, min, max, neg, abs, div, rcp, sqrt, ex2."""

from __future__ import annotations

import numpy as np

from .formats import FLOATS, NUMPY, PACKED, PtxError, bits_of, raw_type
from .operands import opcode
from .rounding import add_odd, bf16_to_f32, flush, fma32, fma64, round_to, to_f64

MODES = ("rn", "rz", "rm", "rp")
NATIVE = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
# Largest relative errors of the .approx forms, from the PTX manual. Forms without a bound that holds for every
# input (div.approx) or that these kernels have no use for (sin, cos, tanh, lg2, rsqrt) are not offered.
APPROX_ERROR = {"rcp": 2.0**-23, "ex2": 2.0**-22}
INFINITY = np.float32(np.inf)


def float_arithmetic(operands, instruction, name: str):
    """add, sub, mul or fma of a float type; called by the opcodes that also have integer forms."""
    kind, others = instruction.only_type({*MODES, "ftz", "sat"})
    if kind in PACKED:
        raise PtxError("packed arithmetic")
    function = arithmetic_function(name, kind, others)
    return operands.elementwise(instruction, function, kind, *[kind] * (3 if name == "fma" else 2))


@opcode("fma")
def fma(operands, instruction):
    return float_arithmetic(operands, instruction, "fma")


def arithmetic_function(name: str, kind: str, modifiers):
    """The exactly rounded operation, with .ftz and .sat around it."""
    mode = next((m for m in modifiers if m in MODES), "rn")
    core = _core(name, kind, mode)
    saturate, flushing = "sat" in modifiers, "ftz" in modifiers
    if (saturate or flushing) and kind not in ("f32", "f16"):
        raise PtxError(f"modifiers {modifiers} of .{kind}")
    if not saturate and not flushing:
        return core

    def run(*values):
        if flushing:
            values = [flush(value) for value in values]
        result = core(*values)
        if flushing:
            result = flush(result)
        if saturate:  # a NaN becomes 0
            result = np.where(result > 0, np.minimum(result, 1), 0).astype(result.dtype)
        return result

    return run


def _core(name: str, kind: str, mode: str):
    if mode == "rn" and kind in ("f32", "f64"):
        if name == "fma":
            return fma32 if kind == "f32" else fma64
        return NATIVE[name]
    if kind == "f64":
        raise PtxError(f"f64 rounding mode {mode}")

    def run(*values):
        values = [to_f64(value, kind) for value in values]
        if name == "mul":  # exact: at most 48 significant bits
            return round_to(values[0] * values[1], kind, mode)
        if name == "fma":
            left, right = values[0] * values[1], values[2]
        else:
            left, right = values[0], values[1] if name == "add" else -values[1]
        total = add_odd(left, right)
        if mode == "rm":  # x + (-x) is -0 when rounding down
            total = np.where((total == 0) & (np.signbit(left) != np.signbit(right)), -0.0, total)
        return round_to(total, kind, mode)

    return run


@opcode("neg")
def negate(operands, instruction):
    kind, others = instruction.only_type({"ftz"})
    if kind in PACKED:
        raise PtxError("packed arithmetic")
    if kind not in FLOATS:
        return operands.elementwise(instruction, np.negative, kind, kind)
    raw, dtype = raw_type(kind), NUMPY[kind]
    sign = raw(1 << (bits_of(kind) - 1))
    if "ftz" in others:
        return operands.elementwise(instruction, lambda a: (flush(a).view(raw) ^ sign).view(dtype), kind, kind)
    return operands.elementwise(instruction, lambda a: (a.view(raw) ^ sign).view(dtype), kind, kind)


@opcode("abs")
def absolute(operands, instruction):
    kind, others = instruction.only_type({"ftz"})
    if kind in PACKED:
        raise PtxError("packed arithmetic")
    if kind == "bf16":
        return operands.elementwise(instruction, lambda a: a & np.uint16(0x7FFF), kind, kind)
    if "ftz" in others:
        return operands.elementwise(instruction, lambda a: np.abs(flush(a)), kind, kind)
    return operands.elementwise(instruction, np.abs, kind, kind)


@opcode("copysign")
def copy_sign(operands, instruction):
    kind, _ = instruction.only_type()
    return operands.elementwise(instruction, lambda sign, value: np.copysign(value, sign), kind, kind, kind)


@opcode("min", "max")
def minimum_maximum(operands, instruction):
    kind, others = instruction.only_type({"ftz", "NaN"})
    smallest = instruction.opcode == "min"
    if kind in PACKED:
        raise PtxError("packed arithmetic")
    if kind not in FLOATS:
        if others:
            raise PtxError(f"modifiers {others} of .{kind}")
        return operands.elementwise(instruction, np.minimum if smallest else np.maximum, kind, kind, kind)
    choose = np.fmin if smallest else np.fmax  # a number wins over a NaN
    choose_zero = np.bitwise_or if smallest else np.bitwise_and  # of +0 and -0: IEEE 754-2019 orders them

    def run(a, b):
        if kind == "bf16":
            a, b = bf16_to_f32(a), bf16_to_f32(b)
        if "ftz" in others:
            a, b = flush(a), flush(b)
        result = choose(a, b)
        if not result.all():  # some zeros
            raw = np.dtype(f"u{result.itemsize}")
            zero = choose_zero(a.view(raw), b.view(raw)).view(result.dtype)
            result = np.where((a == 0) & (b == 0), zero, result)
        if "NaN" in others:
            result = np.where(np.isnan(a) | np.isnan(b), result.dtype.type(np.nan), result)
        return round_to(result, "bf16") if kind == "bf16" else result

    return operands.elementwise(instruction, run, kind, kind, kind)


def float_division(operands, instruction):
    return _rounded(operands, instruction, np.divide, 2)


@opcode("sqrt")
def square_root(operands, instruction):
    return _rounded(operands, instruction, np.sqrt, 1)


@opcode("rcp", "ex2")
def reciprocal_or_power_of_two(operands, instruction):
    function = np.reciprocal if instruction.opcode == "rcp" else np.exp2
    if "approx" in instruction.modifiers:
        return _approximate(operands, instruction, function)
    if instruction.opcode == "ex2":
        raise PtxError("ex2 without .approx")
    return _rounded(operands, instruction, function, 1)


def _rounded(operands, instruction, function, sources: int):
    """Division and roots: numpy rounds them correctly in float32 and float64."""
    kind, others = instruction.only_type({"rn", "ftz"})
    if "rn" not in others or kind not in ("f32", "f64"):
        raise PtxError("rounding mode or type")
    if "ftz" not in others:
        return operands.elementwise(instruction, function, kind, *[kind] * sources)
    return operands.elementwise(
        instruction, lambda *a: flush(function(*[flush(x) for x in a])), kind, *[kind] * sources
    )


def _approximate(operands, instruction, function):
    """The correctly rounded value; with approx_noise, f32 values moved at random within the documented error."""
    kind, others = instruction.only_type({"approx", "ftz"})
    if kind == "f64" and (instruction.opcode != "rcp" or "ftz" not in others) or kind not in ("f32", "f64"):
        raise PtxError(f".approx of .{kind}")
    destination, source = instruction.expect_operands(2)
    write, read = operands.destination(destination, kind), operands.source(source, kind)
    bound = APPROX_ERROR[instruction.opcode]
    flushing = "ftz" in others and kind == "f32"

    def run(wave, lanes):
        value = read(wave, lanes)
        if flushing:
            value = flush(value)
        exact = function(value.astype(np.float64, copy=False))
        if kind == "f64":  # the hardware gives the upper word only
            upper = exact.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)
            return write(wave, lanes, upper.view(np.float64))
        moved = exact
        if wave.approx_noise:
            noise = wave.random.uniform(-1, 1, np.shape(exact)) * (bound * np.abs(exact))
            moved = exact + np.where(np.isfinite(exact) & (exact != 0), noise, 0)
        result = round_to(moved, kind)
        back = result.astype(np.float64)  # rounding must not leave the bound
        beyond = np.abs(back - exact) > bound * np.abs(exact)
        result = np.where(beyond, np.nextafter(result, np.where(back > exact, -INFINITY, INFINITY)), result)
        write(wave, lanes, flush(result) if flushing else result)
        return None

    return run

"""Integer arithmetic, shifts and bit fields, and the opcodes add, sub, mul, div that also have float forms."""

from __future__ import annotations

import numpy as np

from .float_ops import float_arithmetic, float_division
from .formats import FLOATS, NUMPY, PACKED, PtxError, bits_of, is_signed, size_of
from .operands import opcode

LOW_WORD = np.uint64(0xFFFFFFFF)
ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


def _is_float(instruction) -> bool:
    return any(m in FLOATS or m in PACKED for m in instruction.modifiers)


@opcode("add", "sub")
def add_subtract(operands, instruction):
    if _is_float(instruction):
        return float_arithmetic(operands, instruction, instruction.opcode)
    kind, _ = instruction.only_type()
    return operands.elementwise(instruction, np.add if instruction.opcode == "add" else np.subtract, kind, kind, kind)


@opcode("mul", "mad")
def multiply(operands, instruction):
    """mul and mad: .lo and .hi keep that half of the product, .wide all of it."""
    if _is_float(instruction):
        return float_arithmetic(operands, instruction, "mul" if instruction.opcode == "mul" else "fma")
    kind, halves = instruction.only_type({"lo", "hi", "wide"})
    if len(halves) != 1:
        raise PtxError("which half of the product")
    result = f"{kind[0]}{2 * bits_of(kind)}" if halves[0] == "wide" else kind
    if result not in NUMPY:
        raise PtxError(f"product of .{kind}")
    product = {"lo": np.multiply, "hi": _high_half(kind), "wide": _wide_product(kind)}[halves[0]]
    if instruction.opcode == "mul":
        return operands.elementwise(instruction, product, result, kind, kind)
    return operands.elementwise(instruction, lambda a, b, c: product(a, b) + c, result, kind, kind, result)


def _wide_product(kind: str):
    wide = np.dtype(f"{'i' if is_signed(kind) else 'u'}{min(2 * size_of(kind), 8)}")
    return lambda a, b: np.multiply(a, b, dtype=wide)


def _high_half(kind: str):
    bits = bits_of(kind)
    if bits < 64:
        wide = _wide_product(kind)
        return lambda a, b: (wide(a, b) >> bits).astype(NUMPY[kind])
    if not is_signed(kind):
        return _high_word_64

    def signed(a, b):  # the unsigned result, less what the sign bits added
        unsigned_a, unsigned_b = a.view(np.uint64), b.view(np.uint64)
        high = _high_word_64(unsigned_a, unsigned_b)
        high = high - np.where(a < 0, unsigned_b, 0) - np.where(b < 0, unsigned_a, 0)
        return high.view(np.int64)

    return signed


def _high_word_64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper 64 bits of an unsigned product, by schoolbook multiplication of 32-bit halves."""
    half = np.uint64(32)
    a_high, a_low, b_high, b_low = a >> half, a & LOW_WORD, b >> half, b & LOW_WORD
    middle = a_high * b_low + (a_low * b_low >> half)
    other = a_low * b_high + (middle & LOW_WORD)
    return a_high * b_high + (middle >> half) + (other >> half)


@opcode("div", "rem")
def divide(operands, instruction):
    if _is_float(instruction):
        if instruction.opcode == "rem":
            raise PtxError("rem of a float type")
        return float_division(operands, instruction)
    kind, _ = instruction.only_type()

    def run(a, b):
        if not b.all():
            raise PtxError(f"{instruction}: integer division by zero")
        if instruction.opcode == "rem":
            return np.fmod(a, b)  # the sign of the dividend, as PTX says
        quotient = a // b
        if is_signed(kind):  # numpy rounds down, PTX towards zero
            quotient = quotient + ((quotient * b != a) & ((a < 0) != (b < 0))).astype(quotient.dtype)
        return quotient

    return operands.elementwise(instruction, run, kind, kind, kind)


# ---- bitwise logic
LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@opcode("and", "or", "xor")
def logic(operands, instruction):
    kind, _ = instruction.only_type()
    return operands.elementwise(instruction, LOGIC[instruction.opcode], kind, kind, kind)


@opcode("not")
def complement(operands, instruction):
    kind, _ = instruction.only_type()
    return operands.elementwise(instruction, np.invert, kind, kind)


@opcode("lop3")
def lookup_logic(operands, instruction):
    """Any logic function of three bits: bit 4a + 2b + c of the table is the result."""
    kind, _ = instruction.only_type()
    destination, a, b, c, table = instruction.expect_operands(5)
    table = int(table, 0)
    write = operands.destination(destination, kind)
    reads = [operands.source(text, kind) for text in (a, b, c)]
    terms = [term for term in range(8) if table >> term & 1]

    def run(wave, lanes):
        values = [read(wave, lanes) for read in reads]
        inputs = [(~value, value) for value in values]
        result = np.zeros_like(values[0])
        for term in terms:
            result = result | (inputs[0][term >> 2 & 1] & inputs[1][term >> 1 & 1] & inputs[2][term & 1])
        write(wave, lanes, result)

    return run


# ---- shifts
@opcode("shl", "shr")
def shift(operands, instruction):
    """Amounts of the width or more give 0, or the sign for an arithmetic right shift."""
    kind, _ = instruction.only_type()
    dtype, widest = NUMPY[kind], np.uint32(bits_of(kind) - 1)

    def run(value, amount):
        clamped = np.minimum(amount, widest).astype(dtype)
        if instruction.opcode == "shl":
            shifted = value << clamped
        else:
            shifted = value >> clamped
            if is_signed(kind):
                return shifted
        return np.where(amount > widest, dtype(0), shifted)

    return operands.elementwise(instruction, run, kind, kind, "u32")


@opcode("shf")
def funnel_shift(operands, instruction):
    kind, others = instruction.only_type({"l", "r", "wrap", "clamp"})
    if kind != "b32" or len(others) != 2:
        raise PtxError("funnel shift form")

    def run(low, high, amount):
        amount = amount & np.uint32(31) if "wrap" in others else np.minimum(amount, np.uint32(32))
        amount = amount.astype(np.uint64)
        both = _join(high, low)
        shifted = both >> (np.uint64(32) - amount) if "l" in others else both >> amount
        return (shifted & LOW_WORD).astype(np.uint32)

    return operands.elementwise(instruction, run, kind, kind, kind, kind)


def _join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)


# ---- bit counts and fields
def _bits(values: np.ndarray) -> np.ndarray:
    """One row of bits for each value, the lowest first."""
    column = np.ascontiguousarray(values)[:, None]
    return np.unpackbits(column.view(np.uint8), axis=1, bitorder="little")


@opcode("popc")
def population_count(operands, instruction):
    kind, _ = instruction.only_type()
    return operands.elementwise(instruction, lambda a: _bits(a).sum(1).astype(np.uint32), "u32", kind)


@opcode("clz")
def count_leading_zeros(operands, instruction):
    kind, _ = instruction.only_type()

    def run(a):
        leading = _bits(a)[:, ::-1].argmax(1)
        return np.where(a == 0, bits_of(kind), leading).astype(np.uint32)

    return operands.elementwise(instruction, run, "u32", kind)


@opcode("brev")
def reverse_bits(operands, instruction):
    kind, _ = instruction.only_type()

    def run(a):
        return np.packbits(_bits(a)[:, ::-1], axis=1, bitorder="little").view(NUMPY[kind])[:, 0]

    return operands.elementwise(instruction, run, kind, kind)


def _shift_left(value, amount: np.ndarray) -> np.ndarray:
    """64-bit shift in which an amount of 64 or more gives 0."""
    return np.where(amount < 64, value << np.minimum(amount, np.uint64(63)), np.uint64(0))


@opcode("bfe")
def extract_field(operands, instruction):
    """Bit field of a value; the part beyond its top is filled with 0, or with the sign for a signed type."""
    kind, _ = instruction.only_type()
    dtype, bits = NUMPY[kind], bits_of(kind)

    def run(value, start, length):
        start, length = (start & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
        raw = value.view(f"u{size_of(kind)}").astype(np.uint64)
        field = np.where(start < bits, raw >> np.minimum(start, np.uint64(63)), np.uint64(0))
        field = field & ~_shift_left(ALL_ONES, length)
        if is_signed(kind):
            end = np.maximum(start + length, np.uint64(1))
            sign = (raw >> np.minimum(end - np.uint64(1), np.uint64(bits - 1))) & np.uint64(1)
            available = np.where(start < bits, np.uint64(bits) - np.minimum(start, np.uint64(bits)), np.uint64(0))
            fill = _shift_left(ALL_ONES, np.minimum(length, available))
            field = np.where((sign == 1) & (length > 0), field | fill, field)
        return field.astype(f"u{size_of(kind)}").view(dtype)

    return operands.elementwise(instruction, run, kind, kind, "u32", "u32")


@opcode("bfi")
def insert_field(operands, instruction):
    kind, _ = instruction.only_type()

    def run(field, into, start, length):
        start, length = (start & np.uint32(255)).astype(np.uint64), (length & np.uint32(255)).astype(np.uint64)
        mask = _shift_left(~_shift_left(ALL_ONES, length), start)
        result = (into & ~mask) | (_shift_left(field.astype(np.uint64), start) & mask)
        return result.astype(NUMPY[kind])

    return operands.elementwise(instruction, run, kind, kind, kind, "u32", "u32")


@opcode("prmt")
def permute_bytes(operands, instruction):
    """Each nibble of the selector picks one of eight bytes, or its sign repeated if bit 3 is set."""
    kind, _ = instruction.only_type()
    if kind != "b32":
        raise PtxError("prmt form")

    def run(low, high, selector):
        source, selector = _join(high, low), selector.astype(np.uint64)
        result = np.uint64(0)
        for position in range(4):
            choice = (selector >> np.uint64(4 * position)) & np.uint64(15)
            byte = (source >> (np.uint64(8) * (choice & np.uint64(7)))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(choice & np.uint64(8), sign, byte)
            result = result | (byte << np.uint64(8 * position))
        return result.astype(np.uint32)

    return operands.elementwise(instruction, run, kind, kind, kind, kind)

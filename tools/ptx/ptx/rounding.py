"""Exactly rounded floating-point arithmetic for types and modes that numpy does not offer.

The common tool is *rounding to odd* (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008):
a result that was rounded to odd in a wider type may be rounded once more without a double-rounding error.
"""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

from .formats import NUMPY, PtxError

BF16_NAN = 0x7FFF
F32_TINY = np.finfo(np.float32).tiny
# float64 bits below the last bit of a float32, and their value exactly half way between two float32
F32_TAIL, F32_TIE = np.int64((1 << 29) - 1), np.int64(1 << 28)

_libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_f32(value: np.ndarray, kind: str) -> np.ndarray:
    """Values of f16, bf16 or f32 as float32, exactly."""
    return bf16_to_f32(value) if kind == "bf16" else value.astype(np.float32, copy=False)


def to_f64(value: np.ndarray, kind: str) -> np.ndarray:
    """Values of a PTX float type as float64, exactly."""
    return (bf16_to_f32(value) if kind == "bf16" else value).astype(np.float64, copy=False)


def flush(value: np.ndarray) -> np.ndarray:
    """The .ftz modifier: subnormal numbers become zero of the same sign."""
    tiny = np.finfo(value.dtype).tiny
    return np.where(np.abs(value) < tiny, np.copysign(value.dtype.type(0), value), value)


def round_to(value: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    """Round float64 values, exact or rounded to odd, to a PTX float type."""
    value = np.asarray(value, np.float64)
    if kind == "f64":
        return value
    if kind == "bf16":
        return f32_to_bf16(_f32_rounded_to_odd(value), mode)
    real = NUMPY[kind]
    rounded = value.astype(real)
    if mode == "rn":
        return rounded
    back = rounded.astype(np.float64)
    if mode == "rz":
        return np.where(np.abs(back) > np.abs(value), np.nextafter(rounded, real(0)), rounded)
    if mode == "rm":
        return np.where(back > value, np.nextafter(rounded, real(-np.inf)), rounded)
    if mode == "rp":
        return np.where(back < value, np.nextafter(rounded, real(np.inf)), rounded)
    raise PtxError(f"rounding mode {mode}")


def f32_to_bf16(value: np.ndarray, mode: str = "rn") -> np.ndarray:
    """Round float32 values to the bits of a bf16; a NaN becomes the one NaN that the hardware gives."""
    bits = value.view(np.uint32)
    if mode == "rn":
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    elif mode == "rz":
        rounded = bits >> np.uint32(16)
    else:
        raise PtxError(f"bf16 rounding mode {mode}")
    return np.where(np.isnan(value), BF16_NAN, rounded).astype(np.uint16)


def _f32_rounded_to_odd(value: np.ndarray) -> np.ndarray:
    nearest = value.astype(np.float32)
    bits = nearest.view(np.uint32)
    back = nearest.astype(np.float64)
    inexact_and_even = (back != value) & np.isfinite(back) & ((bits & 1) == 0)
    neighbour = np.where(np.abs(value) > np.abs(back), bits + 1, bits - 1)
    return np.where(inexact_and_even, neighbour, bits).astype(np.uint32).view(np.float32)


def two_sum(a, b):
    """a + b as the rounded sum and its exact error (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def add_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, rounded to odd."""
    total, error = two_sum(a, b)
    bits = total.view(np.int64)
    inexact_and_even = (error != 0) & np.isfinite(error) & ((bits & 1) == 0)
    if not np.count_nonzero(inexact_and_even):
        return total
    neighbour = np.where((error > 0) == (total > 0), bits + 1, bits - 1)
    return np.where(inexact_and_even, neighbour, bits).view(np.float64)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 fused multiply-add, rounded to nearest.

    The product of two float32 is exact in float64, and so the sum in float64 is right unless it was rounded onto a
    tie of float32, or the result is subnormal: only those few lanes take the slower way over rounding to odd.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    result = total.astype(np.float32)
    doubtful = (total.view(np.int64) & F32_TAIL) == F32_TIE
    doubtful |= np.abs(result) <= F32_TINY
    if np.count_nonzero(doubtful):
        product = np.broadcast_to(product, total.shape)[doubtful]
        addend = np.broadcast_to(c, total.shape)[doubtful].astype(np.float64)
        result[doubtful] = add_odd(product, addend).astype(np.float32)
    return result


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float64 fused multiply-add, rounded to nearest: Boldo and Melquiond's algorithm, libm where it may overflow."""
    a, b, c = np.broadcast_arrays(a, b, c)
    split = 134217729.0  # Dekker: 2**27 + 1
    a_high = a * split - (a * split - a)
    b_high = b * split - (b * split - b)
    a_low, b_low = a - a_high, b - b_high
    product = a * b
    product_error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    low, low_error = two_sum(c, product_error)
    high, high_error = two_sum(product, low)
    result = high + add_odd(low_error, high_error)
    safe = (np.abs(a) < 1e150) & (np.abs(b) < 1e150) & (np.abs(c) < 1e290)
    safe &= (np.abs(product) > 1e-270) & (np.abs(result) > 1e-270)
    if not safe.all():
        for i in np.flatnonzero(~safe):
            result[i] = _libm.fma(float(a[i]), float(b[i]), float(c[i]))
    return result

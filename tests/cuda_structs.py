"""What the CUDA kernels are given, as csrc's headers lay it out."""

from __future__ import annotations

import ctypes


class Operand(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_uint64),
        ("dtype", ctypes.c_int8),
        ("inner", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("classes", ctypes.c_int64),
    ]


class Options(ctypes.Structure):
    """csrc/options.h"""

    _fields_ = [
        ("label_smoothing", ctypes.c_double),
        ("has_ignore_index", ctypes.c_bool),
        ("ignore_index", ctypes.c_int64),
        ("loss", ctypes.c_int8),
        ("has_whole_powers", ctypes.c_bool),
        ("gamma", ctypes.c_double),
        ("alpha", ctypes.c_double),
        ("alpha_opposite", ctypes.c_double),
        ("is_varifocal", ctypes.c_bool),
        ("iou_weighted", ctypes.c_bool),
        ("gamma_pos", ctypes.c_double),
        ("clip", ctypes.c_double),
        ("ignore_nan", ctypes.c_bool),
    ]

    @classmethod
    def of(cls, label_smoothing, ignore_index, gamma=None, alpha=None, beta=None, iou_weighted=None, gamma_neg=None,
           gamma_pos=None, clip=None, ignore_nan=False):  # fmt: skip
        """options_of there"""
        focal, exponent = gamma is not None, next((g for g in (gamma, beta, gamma_neg) if g is not None), 0)
        quality = beta is not None or iou_weighted is not None
        loss = 3 if gamma_neg is not None else 2 if quality else 1 if focal else 0
        is_whole = exponent in range(5) and (gamma_pos or 0) in range(5)
        alphas = (1 if alpha is None else alpha, 1 if alpha is None or loss != 1 else 1 - alpha)
        left_out = ignore_index is not None, ignore_index or 0
        rest = iou_weighted is not None, bool(iou_weighted), gamma_pos or 0, clip or 0, ignore_nan
        return cls(label_smoothing, *left_out, loss, is_whole, exponent, *alphas, *rest)


class Problem(ctypes.Structure):
    """csrc/problem.h"""

    OPERANDS = ("logits", "target", "weight", "pos_weight", "mask", "grad_output")
    _fields_ = [
        ("numel", ctypes.c_int64),
        *[(name, Operand) for name in OPERANDS],
        ("compute_double", ctypes.c_bool),
        ("out", ctypes.c_uint64),
        ("out_dtype", ctypes.c_int8),
        ("scale", ctypes.c_double),
        ("options", Options),
    ]


class Layout(ctypes.Structure):
    """csrc/cuda/plan.h"""

    _fields_ = [("reading", ctypes.c_int8), ("divisions", ctypes.c_uint32 * 4)]


class Launch(ctypes.Structure):
    """csrc/cuda/kernels.h"""

    _fields_ = [
        ("problem", Problem),
        ("layouts", Layout * 5),
        ("count", ctypes.c_uint64),
        ("divisor", ctypes.c_double),
        ("partials", ctypes.c_uint64),
        ("result", ctypes.c_uint64),
        ("result_dtype", ctypes.c_int8),
        ("is_made", ctypes.c_bool),
        ("made_for", Operand),
    ]

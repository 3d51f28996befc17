"""Runs the CUDA kernels of a tile of pairs in the PTX interpreter: a stand-in for csrc/cuda/pairs.cpp."""

import ctypes

import torch
from conftest import same_bits
from cuda_kernels import CODES, place
from ptx import Memory

from fused_logistic import _C, ops

THREADS = _C.LANES // 4


class Pairs(ctypes.Structure):
    """csrc/pairs.h"""

    _fields_ = [
        ("numel", ctypes.c_int64),
        ("similarities", ctypes.c_uint64),
        ("dtype", ctypes.c_int8),
        ("scale", ctypes.c_uint64),
        ("bias", ctypes.c_uint64),
        ("positives", ctypes.c_uint32 * 3),
        ("grad", ctypes.c_uint64),
        ("grad_dtype", ctypes.c_int8),
        ("factor", ctypes.c_double),
    ]


class Launch(ctypes.Structure):
    """csrc/cuda/pairs.h"""

    _fields_ = [
        ("tile", Pairs),
        ("partials", ctypes.c_uint64),
        ("sums", ctypes.c_uint64),
        ("aligned", ctypes.c_bool),
    ]


def positives(rows, columns, diagonal):
    """diagonal_of, by looking at each pair."""
    if diagonal is None:
        return 0, 1, 0
    places = [r * columns + r + diagonal for r in range(rows) if 0 <= r + diagonal < columns]
    return (places[0], columns + 1, places[-1] + 1) if places else (0, 1, 0)


def run(module, x, scale, bias, diagonal, factor, grad_dtype=None, in_place=True, offset=0, sums=(0, 0, 0), **options):
    """What pairs.cpp does: -> the gradient and the sums; no ``grad_dtype``: the sum of the losses alone."""
    memory, (rows, columns) = Memory(), x.shape
    size, offset_bytes = x.element_size(), offset * x.element_size()
    raw = torch.cat([torch.zeros(offset_bytes, dtype=torch.uint8), x.reshape(-1).view(torch.uint8)]).numpy()
    buffer = memory.array(raw, readonly=grad_dtype is None or not in_place)
    tile = Pairs(
        x.numel(),
        buffer.addr + offset_bytes,
        CODES[x.dtype],
        place(memory, scale, 0),
        0 if bias is None else place(memory, bias, 0),
        (ctypes.c_uint32 * 3)(*positives(rows, columns, diagonal)),
        factor=factor,
    )
    out = buffer
    if grad_dtype is not None:
        size = torch.empty(0, dtype=grad_dtype).element_size()
        if not in_place:
            out = memory.empty((offset + x.numel()) * size, "u1")
        tile.grad, tile.grad_dtype = out.addr + offset * size, CODES[grad_dtype]
    total, chunks = memory.array(torch.tensor(sums, dtype=torch.double).numpy()), -(-x.numel() // _C.CHUNK)
    launch = Launch(tile, memory.empty(3 * chunks, "f8").addr, total.addr, offset == 0)
    wide = "double" if x.dtype == torch.double else "float"
    types = {torch.half: "fused_logistic::Half", torch.bfloat16: "fused_logistic::BFloat16"}
    kernel = f"pairs_kernel<{str(grad_dtype is not None).lower()}, {wide}, {types.get(grad_dtype, wide)}>"
    first = module[kernel].launch(chunks, THREADS, [bytes(launch)], mem=memory, **options)
    second = module["finish_pairs_kernel"].launch(3, _C.LANES, [bytes(launch)], mem=memory, **options)
    assert not first.warnings and not second.warnings
    grad = None
    if grad_dtype is not None:
        grad = torch.from_numpy(out.read()[offset * size :].copy()).view(grad_dtype).reshape(rows, columns)
    return grad, torch.from_numpy(total.read().copy())


def compare(module, x, scale=7.0, bias=-1.5, diagonal=0, factor=1.0, grad_dtype=None, in_place=True, **options):
    scale, bias = (None if n is None else torch.tensor(n, dtype=x.dtype) for n in (scale, bias))
    expected, sums = x.clone(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.double)
    grad = None if in_place else torch.empty_like(x, dtype=grad_dtype)
    ops.pairs_tile_(expected, grad, sums, scale, bias, diagonal, factor, grad_dtype is not None)
    given = factor, grad_dtype, in_place
    got, got_sums = run(module, x, scale, bias, diagonal, *given, sums=(1.0, 2.0, 3.0), **options)
    assert same_bits(got_sums, sums)
    if grad_dtype is not None:
        assert same_bits(got, expected if in_place else grad)
    return sums


def similarities(shape, dtype=torch.float, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.double)
    flat = x.view(-1)
    for i, value in enumerate([0.0, -0.0, 1e-45, 3e-39, 12.0, -15.0, 300.0, -300.0][: flat.numel() // 2]):
        flat[(i * 97 + seed) % flat.numel()] = value
    return x.to(dtype)

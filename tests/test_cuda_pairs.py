"""The CUDA kernels of a tile of pairs, executed as PTX in an interpreter, against the CPU kernel: the same bits."""

import pytest
import torch
from cuda_kernels import CSRC, load, name, unexecuted
from cuda_pairs import compare, similarities


@pytest.fixture(scope="module")
def kernels():
    return load(80, CSRC / "cuda" / "pairs.cu")


KINDS = [  # of the gradient, and whether it takes the similarities' place
    (torch.float, None, True),
    (torch.float, torch.float, True),
    (torch.float, torch.float, False),
    (torch.float, torch.half, False),
    (torch.float, torch.bfloat16, False),
    (torch.double, None, True),
    (torch.double, torch.double, True),
]


NARROW = [((40, 1), -20), ((40, 2), 1), ((41, 3), 0), ((1, 1), 0), ((5, 5), None), ((3, 7), 9)]


@pytest.mark.parametrize("turn,kind", list(enumerate(KINDS)), ids=name)
def test_tiles(kernels, turn, kind):
    """A whole chunk by vectors and a ragged one; and one of: misaligned, narrow so that a vector has several positives,
    without any."""
    dtype, grad_dtype, in_place = kind
    given = {"grad_dtype": grad_dtype, "in_place": in_place}
    compare(kernels, similarities((66, 125), dtype), diagonal=-3, factor=2.0 ** (15 * (turn % 2)), **given)
    shape, diagonal = NARROW[turn % 6]
    compare(kernels, similarities(shape, dtype), bias=None, diagonal=diagonal, schedule="reverse", **given)
    compare(kernels, similarities((9, 15), dtype), diagonal=2, offset=1, schedule="random", **given)


def test_a_positive_far_from_the_others(kernels):
    compare(kernels, similarities((2, 4200)), diagonal=4000, grad_dtype=torch.bfloat16, in_place=False)


@pytest.mark.parametrize("grad_dtype,in_place", [(None, True), (torch.float, True), (torch.bfloat16, False)], ids=name)
def test_sums_that_fp32_has_no_room_for(kernels, grad_dtype, in_place):
    """Are made in fp64, from the similarities on, which the gradient has not yet replaced."""
    x = similarities((70, 131))
    x[60, 60:80] = 3e37
    sums = compare(kernels, x, scale=2.0, grad_dtype=grad_dtype, in_place=in_place)
    assert sums.isfinite().all()
    sums = compare(kernels, x, scale=100.0, grad_dtype=grad_dtype, in_place=in_place)
    assert sums.isfinite().all() and sums[0] > torch.finfo(torch.float).max


def test_all_is_executed(kernels):
    """By the tests above; run alone, this one says what they would have."""
    if not any(instruction.hits for kernel in kernels.kernels.values() for instruction in kernel.program.code):
        pytest.skip("the other tests of this file have not run")
    assert unexecuted(kernels) == []

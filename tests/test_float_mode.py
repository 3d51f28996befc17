"""The bits do not depend on the mode of floating point arithmetic, which is a setting of each thread."""

import ctypes
import platform
from contextlib import contextmanager

import pytest
import torch

import fused_logistic as fl
from fused_logistic import _C, ops
from tests.conftest import grad_arguments, layer_arguments, loss_arguments, same_bits, tile_arguments

N = 3 * _C.CHUNK + 17


@contextmanager
def flushing():
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounding_upwards():
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("FE_UPWARD has another value here")
    math = ctypes.CDLL("libm.so.6")
    before = math.fegetround()
    math.fesetround(0x800)
    try:
        yield
    finally:
        math.fesetround(before)


MODES = pytest.mark.parametrize("mode", [flushing, rounding_upwards], ids=lambda mode: mode.__name__)


def in_every_mode(mode, compute):
    """What is computed as usual and, by several numbers of threads, in the mode."""
    expected, threads = compute(), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with mode():
                got = compute()
            for a, b in zip(got, expected, strict=True):
                assert same_bits(a, b), (number, a, b)
    finally:
        torch.set_num_threads(threads)
    return expected


def is_subnormal(tensor):
    return (tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_elements(dtype, mode, isa):
    """Losses and derivatives that are subnormal, of subnormal logits, weights and grad_output, in every type."""
    tail = 720 if dtype == torch.float64 else 92
    logits = (torch.randn(N, dtype=torch.double) * tail).to(dtype)
    logits[::7] = torch.finfo(dtype).tiny / 4
    hard, soft = (torch.arange(N) % 2).to(dtype), torch.rand(N).to(dtype)
    small = torch.full((N,), torch.finfo(dtype).tiny, dtype=dtype) * torch.rand(N).to(dtype)
    plain, weighted = (logits, hard, None, None, None), (logits, soft, small, small, torch.rand(N) < 0.9)

    def compute():
        found = [ops.bce(*loss_arguments(*plain, ops.NONE)), ops.bce(*loss_arguments(*weighted, ops.NONE))]
        for tensors in (plain, weighted):
            for gamma in (None, 0.5):
                found += ops.bce_with_grad(*loss_arguments(*tensors, ops.MEAN, gamma=gamma))
                for wrt in range(4 if tensors is weighted else 2):
                    arguments = grad_arguments(*tensors, ops.MEAN, wrt=wrt, gamma=gamma)
                    found += [ops.bce_backward(factor, *arguments) for factor in (small, hard)]
        return found

    expected = in_every_mode(mode, compute)
    assert sum(is_subnormal(t).any() for t in expected if t.dim() > 0) > 10


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_means(dtype, mode, isa):
    """A sum, a mean and its gradient that are themselves subnormal; fp16's are those of fp16."""
    z = {torch.float64: -740.0, torch.float16: -15.0}.get(dtype, -90.0)
    for n in (1, 100, N):
        logits = torch.full((n,), z, dtype=dtype)
        tensors, mask = (logits, torch.zeros(n, dtype=dtype), None, None), torch.arange(n) % 2 == 0

        def compute(logits=logits, tensors=tensors, mask=mask):
            found = []
            for given in (None, mask):
                found.append(ops.bce(*loss_arguments(*tensors, given, ops.MEAN)))
                found += ops.bce_with_grad(*loss_arguments(*tensors, given, ops.MEAN))
            z = logits.clone().requires_grad_()
            (3 * fl.binary_cross_entropy_with_logits(z, tensors[1])).backward()
            return [*found, z.grad]

        assert any(is_subnormal(t).any() for t in in_every_mode(mode, compute))


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_layer_of_one_output(dtype, mode, isa):
    """Gradients below the smallest normal number, by a bias that is one, features that are, and in the sums."""
    tiny, n, features = torch.finfo(dtype).tiny, 3_000, 37
    input = torch.randn(n, features).to(dtype)
    input[::3] *= tiny
    weight, bias = torch.randn(features).to(dtype), torch.tensor([tiny / 2], dtype=dtype)
    weight[::5] *= tiny
    target = torch.randint(0, 2, (n,)).to(dtype)
    factor = torch.tensor(tiny, dtype=dtype)

    def compute():
        arguments = layer_arguments(input, weight, bias, target, output_mask=[True] * 3)
        found = [*ops.linear_bce_with_grad(*arguments), ops.linear_bce(*layer_arguments(input, weight, bias, target))]
        backward = layer_arguments(input, weight, bias, target, output_mask=[True] * 3, backward=True)
        return [*found, *ops.linear_bce_backward(factor, *backward)]

    expected = in_every_mode(mode, compute)
    assert sum(is_subnormal(t).any() for t in expected) >= 1


@MODES
def test_tiles(mode, isa):
    """The losses of a tile of a layer with several outputs; its products are torch's."""
    logits, target = 92 * torch.randn(70, 300), torch.randint(0, 2, (70, 500)).float()

    def compute():
        found = []
        for part in (target[:, :300], target[:, 100:400]):
            grad = logits.clone()
            loss = torch.zeros((), dtype=torch.double)
            ops.bce_tile_(*tile_arguments(grad, part, scale=1e-3, whole=False, loss_sum=loss))
            found += [loss, grad]
        return found

    assert any(is_subnormal(t).any() for t in in_every_mode(mode, compute))


def test_the_callers_mode_stays():
    logits, target = torch.randn(N), torch.rand(N)
    tiny = torch.tensor([1e-40])
    with flushing():
        fl.binary_cross_entropy_with_logits(logits.requires_grad_(), target).backward()
        assert (tiny * 1).item() == 0
    fl.binary_cross_entropy_with_logits(logits, target)
    assert (tiny * 1).item() != 0

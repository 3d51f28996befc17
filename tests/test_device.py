"""What holds on every device: the bits of the CPU. And on a GPU: no waiting, graphs, streams, how many kernels run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.utils.backend_registration
from conftest import DTYPES, same_bits

import fused_logistic as fl

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def step(logits, target, **options):
    logits = logits.detach().requires_grad_()
    loss = fl.binary_cross_entropy_with_logits(logits, target, **options)
    (loss if loss.dim() == 0 else loss.sum()).backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("target_type", [None, torch.bool, torch.int64], ids=["like logits", "bool", "int64"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_the_cpu(dtype, reduction, target_type, device):
    """Loss and gradient, with and without weights and options; aligned and not; one chunk and several."""
    for n in (1, 1021, 8192, 3 * 8192 + 5):
        logits = (4 * torch.randn(n + 1)).to(dtype)
        target = torch.randint(0, 2, (n + 1,)).to(target_type or dtype)
        weights = {"weight": torch.rand(n), "pos_weight": 3 * torch.rand(1), "mask": torch.rand(n) < 0.9}
        for offset, options in ((0, {}), (1, {}), (0, weights | {"label_smoothing": 0.1})):
            z, y = logits[offset:][:n], target[offset:][:n]
            expected = step(z, y, reduction=reduction, **options)
            options = {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in options.items()}
            moved = (logits.to(device)[offset:][:n], target.to(device)[offset:][:n])
            for result, truth in zip(step(*moved, reduction=reduction, **options), expected, strict=True):
                assert same_bits(result.cpu(), truth), (n, offset, options.keys())


def test_the_same_bits_every_time(device):
    logits, target = 1e4 * torch.randn(100_003, device=device), torch.rand(100_003, device=device)
    first = step(logits, target)
    for _ in range(5):
        assert all(same_bits(a, b) for a, b in zip(step(logits, target), first, strict=True))


@pytest.mark.slow
def test_a_device_without_kernels():
    """What runs on CUDA around the kernels of the loss, and the composition, on a device that computes on the CPU."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch registers no backends from Python")
    script = Path(__file__).with_name("device_of_copies.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ steps of the loss, \d+ of the layer equal to the CPU's\n", done.stdout)
    assert "no kernel for device copies" in done.stderr


def large(device="cuda"):
    return torch.randn(40_000, device=device), torch.rand(40_000, device=device)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_waits_for_the_gpu(dtype):
    logits, target = (tensor.to(dtype) for tensor in large())
    mask = target > 0.2
    step(logits, target)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for reduction in ("none", "mean", "sum"):
            step(logits, target, reduction=reduction, mask=mask)
            step(logits, target, reduction=reduction)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.cuda
@needs_gpu
def test_cuda_graph():
    logits, target = large()
    logits.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up, as torch asks
        fl.binary_cross_entropy_with_logits(logits, target).backward()
    torch.cuda.current_stream().wait_stream(stream)
    logits.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = fl.binary_cross_entropy_with_logits(logits, target)
        loss.backward()
    for _ in range(3):
        with torch.no_grad():
            logits.copy_(torch.randn_like(logits))
        graph.replay()
        for result, expected in zip((loss.detach(), logits.grad), step(logits, target), strict=True):
            assert same_bits(result, expected)


def scaled_step(logits, target, factor):
    logits = logits.detach().requires_grad_()
    (factor * fl.binary_cross_entropy_with_logits(logits, target)).backward()
    return logits.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_factor_in_any_order(dtype, device):
    """What a gradient was made for ahead of time does not show in it."""
    logits, target = (4 * torch.randn(9000)).to(dtype), torch.rand(9000).to(dtype)
    factors = [1.0, 0.3, 0.3, 65536.0, 65536.0, 0.0, -0.0, 1.0, 1.0, torch.nan, 0.3]
    expected = [scaled_step(logits, target, factor) for factor in factors]
    for factor, gradient in zip(factors, expected, strict=True):
        assert same_bits(scaled_step(logits.to(device), target.to(device), factor).cpu(), gradient)


@pytest.mark.cuda
@needs_gpu
def test_a_factor_in_a_cuda_graph_and_on_streams():
    """A replay between a forward pass and its backward pass, each of which might use what the other left."""
    logits, target = large()
    factors = [torch.tensor(value, device="cuda") for value in (0.5, 3.0)]
    expected = [scaled_step(logits, target, factor) for factor in factors]
    stream, static = torch.cuda.Stream(), factors[0].clone()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        scaled_step(logits, target, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = scaled_step(logits, target, static)
    for turn in range(6):
        static.copy_(factors[turn % 2])
        leaf = logits.detach().requires_grad_()
        loss = factors[turn // 2 % 2] * fl.binary_cross_entropy_with_logits(leaf, target)
        graph.replay()
        with torch.cuda.stream(stream):
            stream.wait_stream(torch.cuda.current_stream())
            other = scaled_step(logits, target, factors[1 - turn % 2])
        torch.cuda.current_stream().wait_stream(stream)
        loss.backward()
        assert same_bits(captured, expected[turn % 2]) and same_bits(other, expected[1 - turn % 2])
        assert same_bits(leaf.grad, expected[turn // 2 % 2])


@pytest.mark.cuda
@needs_gpu
def test_out_of_memory():
    """torch's own error, which those catch that try smaller batches; and afterwards all works."""
    logits, target = torch.randn(1 << 26, device="cuda"), torch.rand(1 << 26, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            fl.binary_cross_entropy_with_logits(logits, target, reduction="none")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fl.binary_cross_entropy_with_logits(logits, target, reduction="none").isfinite().all()


@pytest.mark.cuda
@needs_gpu
def test_current_stream():
    logits, target = large()
    expected = step(logits, target)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # whatever ran on the default stream would not see what is written after this
        late = torch.zeros_like(logits).copy_(logits)
        results = step(late, target)
    stream.synchronize()
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_another_device_than_the_current_one():
    logits, target = large("cuda:1")
    results = step(logits, target)
    assert all(result.device == logits.device for result in results) and torch.cuda.current_device() == 0
    expected = step(logits.cpu(), target.cpu())
    assert all(same_bits(a.cpu(), b) for a, b in zip(results, expected, strict=True))


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("n,kernels", [(8192, 2), (8193, 3)])
def test_kernels_of_a_training_step(n, kernels):
    """docs/cuda.md"""
    logits, target = (tensor[:n] for tensor in large())
    step(logits, target)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(logits, target)
        torch.cuda.synchronize()
    assert sum("fused_logistic::" in event.name for event in profile.events()) == kernels

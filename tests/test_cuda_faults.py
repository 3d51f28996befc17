"""Would the checks of test_cuda_kernels.py notice a bug? Each fault, planted into a copy of the kernels, is found."""

import shutil

import numpy as np
import pytest
import torch
from conftest import same_bits
from cuda_kernels import CODES, CSRC, Launch, Operand, Output, Problem, cancelling, load, on_cpu, run
from ptx import Memory, PtxError

KERNELS = """#include "cuda/kernels.cuh"
namespace fused_logistic {
template __global__ void plain_kernel<Output::kLossSumAndGrad, float, float>(const Launch);
template __global__ void general_kernel<Output::kLossSumAndGrad, float>(const Launch);
template __global__ void focal_kernel<Output::kLossSumAndGrad, float>(const Launch);
}
"""
FAULTS = {
    "barrier before the lanes are written": (
        "  __syncthreads();  // the last fold has read",
        "  // the last fold has read",
    ),
    "barrier after the lanes are written": ("= lanes[k];\n  __syncthreads();", "= lanes[k];\n"),
    "barrier between two foldings": (
        "    }\n    __syncthreads();\n  }\n  double sum = 0;",
        "    }\n  }\n  double sum = 0;",
    ),
    "order of the sums": (
        "(shared[i] + shared[i + 2 * quarter]) + (shared[i + quarter] + ",
        "(shared[i] + shared[i + quarter]) + (shared[i + 2 * quarter] + ",
    ),
    "shuffle mask": ("0xffffffffu, sum", "0x0000ffffu, sum"),
    "shuffle distance": ("int half = 16; half >= 1", "int half = 8; half >= 1"),
    "second stage reads too far": ("if (i < count) lane[0]", "if (i <= count) lane[0]"),
    "second stage stops early": ("if (i < count) lane[0]", "if (i < count - 1) lane[0]"),
    "32-bit index": ("const int64_t begin = chunk * kChunk +", "const int64_t begin = int(chunk * kChunk) +"),
    "tail taken for a whole vector": ("const int count = last - i < N ? int(last - i) : N;", "const int count = N;"),
    "vectors beyond the end": ("if (aligned && end <= problem.numel)", "if (aligned && end <= problem.numel + kChunk)"),
    "target's alignment not looked at": (
        "is_aligned<Z, N>(logits) && is_aligned<Y, N>(target)",
        "is_aligned<Z, N>(logits)",
    ),
    "padding summed": ("lanes[k] += k < count ? double(term[k]) : 0.0;", "lanes[k] += double(term[k]);"),
    "lanes not cleared between chunks": ("    double lanes[N] = {};\n    const auto step", "    const auto step"),
    "a chunk left out": ("chunk += gridDim.x", "chunk += gridDim.x + 1"),
    "sum written by another thread": ("if (threadIdx.x == 0) write_sum", "if (threadIdx.x == 1) write_sum"),
    "mean not divided": ("= sum / (launch.count", "= sum + 0 * (launch.count"),
    "gradient not scaled": ("scale * factor[k] : scale;", "scale * factor[k] : C(1);"),
    "mask not looked at": ("x.y != settings.ignore_index && x.mask != C(0)", "x.y != settings.ignore_index"),
    "ignored target counted": ("x.y != settings.ignore_index && x.mask != C(0)", "x.mask != C(0)"),
    "weights exchanged": ("term_weights(x.y, x.p, kFocal ? x.w", "term_weights(x.y, x.w, kFocal ? x.p"),
    "smoothing left out": ("x.y = smooth(x.y, settings.smoothing);", ""),
    "focal loss without alpha": ("kFocal ? x.w * focal_alpha(x.y, settings.focal) : x.w", "x.w"),
    "focal loss without q^gamma": ("value = focal_loss(parts, weights, factors);", "value = loss(parts, weights);"),
    "gradient of q^gamma left out": (
        "focal_grad_logit(parts, weights, factors, x.y, settings.focal.gamma, x.factor)",
        "add_term(factors.power, grad_logit(parts, weights, C(1)), C(0)) * x.factor",
    ),
    "focal factor of the unsmoothed target": (
        "if constexpr (kFocal) factors = focal(parts, x.y,",
        "if constexpr (kFocal) factors = focal(parts, smooth(x.y, C(-0.1)),",
    ),
    "targets outside of [0, 1] not noticed": ("if constexpr (kFocal) x.y = focal_target(x.y);", ""),
    "column does not wrap": ("place + 1 == operand.size ? 0 : place + 1", "place + 1"),
    "row repeats one time too many": ("++rest == operand.inner", "rest++ == operand.inner"),
}


def build(folder, name=None):
    """The kernels as they are, or with one fault."""
    shutil.copytree(CSRC, folder / "csrc")
    (folder / "csrc" / "faulty.cu").write_text(KERNELS)
    if name:
        before, after = FAULTS[name]
        sources = [folder / "csrc" / "cuda" / file for file in ("kernels.cuh", "access.cuh")]
        hits = [source for source in sources if before in source.read_text()]
        assert len(hits) == 1, "the place for the fault is gone: adapt the fault to the kernels"
        text = hits[0].read_text()
        if name == "lanes not cleared between chunks":
            text = text.replace(
                "  for (int64_t chunk = blockIdx.x", "  double lanes[N] = {};\n  for (int64_t chunk = blockIdx.x", 1
            )
        hits[0].write_text(text.replace(before, after))
    return load(80, folder / "csrc" / "faulty.cu", cache=folder)


def check(module, logits, target, **options):
    result, expected = (
        call(*a, Output.LossSumAndGrad, logits, target, **options) for call, a in ((run, [module]), (on_cpu, []))
    )
    assert same_bits(result.sum.reshape(()), expected.sum) and same_bits(result.out, expected.out)


def check_everything(module):
    """A few cases of test_cuda_kernels.py."""
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(1, 3 * 8192 + 1031), torch.rand(1, 3 * 8192 + 1031)
    check(module, logits, target, mean=True, grid=1)
    check(module, logits[:, :1031], target[:, :1031], offsets=(0, 1, 0), schedule="reverse")
    check(module, logits[:, :8192], target[:, :8192], offsets=(0, 1, 0))
    check(module, *cancelling(3 * 8192 + 1031))
    shape = (90, 101)
    logits, target = 4 * torch.randn(shape), torch.randint(0, 2, shape)
    target[::3, 7] = -100
    mask = torch.rand(shape) < 0.7
    check(
        module, logits, target, weight=torch.rand(90, 1) + 1, pos_weight=3 * torch.rand(101) + 1, mask=mask, mean=True,
        label_smoothing=0.1, ignore_index=-100, count=(mask & (target != -100)).sum().double().reshape(1),
    )  # fmt: skip
    soft = torch.where(target == -100, 2.0, torch.rand(shape))
    check(module, logits, soft, label_smoothing=0.1, gamma=1.5, alpha=0.25)
    check(module, logits, torch.rand(shape), weight=torch.rand(90, 1) + 1, mask=mask, gamma=2.0, alpha=0.25)
    check_large_indices(module)


def check_large_indices(module):
    total = 2**31 + 8192
    start, n = total - 8192, 8192
    logits, target = torch.randn(1, n), torch.rand(1, n)
    memory, code = Memory(), CODES[torch.float32]
    windows = [memory.window(total, start, x.view(-1).numpy(), readonly=True) for x in (logits, target)]
    out, partials = (
        memory.window(total, start, np.zeros(n, np.float32)),
        memory.window(total // n, start // n, np.zeros(1)),
    )
    operands = [Operand(window.addr, code, 1, total) for window in windows]
    launch = Launch(Problem(total, *operands, out=out.addr, out_dtype=code, scale=1), divisor=1, partials=partials.addr)
    module["plain_kernel"].launch(total // n, 256, [bytes(launch)], mem=memory, blocks=[start // n])
    assert same_bits(torch.from_numpy(out.read()).view(1, n), on_cpu(Output.LossSumAndGrad, logits, target).out)


def test_without_a_fault(tmp_path):
    check_everything(build(tmp_path))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault, tmp_path):
    module = build(tmp_path, fault)
    with pytest.raises((AssertionError, PtxError)):
        check_everything(module)

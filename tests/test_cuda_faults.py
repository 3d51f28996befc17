"""Would the checks of test_cuda_kernels.py notice a bug? Each fault is found (cuda_planting.py plants it)."""

import functools
import shutil

import cuda_pairs as pairs
import numpy as np
import pytest
import torch
from conftest import same_bits
from cuda_kernels import (
    CODES,
    CSRC,
    Launch,
    Operand,
    Output,
    Problem,
    cancelling,
    on_cpu,
    ordered_sum,
    planned,
    run,
    second_stage,
)
from cuda_planting import Edit, build, every_fault, fault, plant
from ptx import Memory, PtxError

# What is compiled for a fault, and checked.
KERNEL = "template __global__ void elements_kernel<Output::{}>(const Launch);\n"
PLAIN = KERNEL.format("kLossSumAndGrad, Bce, Terms::kPlain, Typed<float, Types<float>>")
TYPED = "".join(
    KERNEL.format(f"kLossSumAndGrad, Bce, {kernel}")
    for kernel in ("Terms::kOptions, Typed<float, OtherTargets<float>>", "Terms::kAll, Typed<float, Types<float>>")
)
GENERAL = "".join(
    KERNEL.format(f"kLossSumAndGrad, {kernel}, General<float>")
    for kernel in (
        "Bce, Terms::kOptions",
        "Bce, Terms::kAll",
        "FocalLossOf<false>, Terms::kAll",
        "FocalLossOf<true>, Terms::kAll",
    )
)
FAMILY = "".join(
    KERNEL.format(f"kLossSumAndGrad, {kind}LossOf<{whole}>, Terms::kAll, General<float>")
    for kind in ("Quality", "Asymmetric")
    for whole in ("true", "false")
)
GRADIENTS = "".join(
    KERNEL.format(f"kGradLogits, Bce, {kernel}")
    for kernel in ("Terms::kPlain, Typed<float, Types<float>>", "Terms::kOptions, General<float>")
)
PAIRS = "".join(
    f"template __global__ void pairs_kernel<true, float, {kind}>(const PairsLaunch);\n"
    for kind in ("float", "BFloat16")
)


FAULTS = {
    PLAIN: {
        # sums
        "no barrier before the warps' sums are written": fault("fold", "__syncthreads();", nth=1),
        "no barrier after the warps' sums are written": fault("fold", "__syncthreads();", nth=2),
        "no barrier after the first thread's is written": fault("from_first_thread", "__syncthreads();"),
        "another order of the sums": fault(
            "fold", "int step = 1; step < kWarpSize; step *= 2", "int step = kWarpSize / 2; step >= 1; step /= 2"
        ),
        "some warps left out": fault("fold", "step < kWarps", "step < kWarps / 2"),
        "others joined": fault("folded", "joined(lanes[0], lanes[1])", "joined(lanes[0], lanes[2])"),
        "groups that overflow kept": fault("finish_chunk", "!(of_groups - of_groups == 0)", "false"),
        "a single loss in a group": fault("finish_chunk", "launch.problem.numel - chunk * kChunk == 1", "false"),
        "a group forgets": fault("with", "group.q + logit.e", "logit.e"),
        "shuffle mask": fault("from_later_thread", "0xffffffffu", "0x0000ffffu"),
        "second stage reads too far": fault("sum_of_chunks", "i < count", "i <= count"),
        "second stage stops early": fault("sum_of_chunks", "i < count", "i < count - 1"),
        "mean not divided": fault("write_result", "sum / (", "sum + 0 * ("),
        # the kernel
        "32-bit index": fault("elements_kernel", "begin = chunk * kChunk", "begin = int(chunk * kChunk)"),
        "tail taken for a whole vector": fault("elements_kernel", "end - i < N ? int(end - i) : N", "N"),
        "vectors beyond the end": fault("elements_kernel", "next <= problem.numel", "next <= problem.numel + kChunk"),
        "one row for another": fault("elements_kernel", "of[row]);", "of[row ^ 1]);", nth=2),
        "padding grouped": fault("evaluate_pack", "if (k < count) sums", "sums"),
        "padding summed": fault("evaluate_pack", "k < count ? double(term) : 0.0", "double(term)"),
        "sum written by another thread": fault("finish_chunk", "threadIdx.x == 0", "threadIdx.x == 1"),
        "gradient not scaled": fault("elements_kernel", "of.factor[k] : scale", "of.factor[k] : C(1)"),
        "gradient for 1, whatever is asked for": fault("elements_kernel", "scale * grad_output.value", "scale"),
    },
    TYPED: {
        "column does not wrap": fault("Source::read", "place = group -", "place = group - 0 *"),
        "columns of another matrix": fault(
            "Source::read", "group, operand.size, layout.by_size", "group, operand.size, layout.by_inner"
        ),
        "a row's value for the first element only": fault("Source::read", "out[k] = out[0]", "out[k] = C(1)"),
        "gathered by vectors": fault("Source::read", "reading != Reading::kGathered", "true"),
        "row by row for one value": fault("Source::read", "reading == Reading::kShared", "false"),
        "division by the next power of 2": fault("quotient", "__umulhi(x, by.multiplier)", "0 * by.multiplier"),
        "a type for another": fault("with_type", "dtype == kDType<T>", "true"),
        "target not read by its type": fault(
            "elements_kernel",
            "load(typename T::Target{}, problem.target, of.y)",
            "load(typename T::Logits{}, problem.logits, of.y)",
        ),
        "mask not read": fault(
            "elements_kernel", "mask.template read<kWhole>(problem.mask", "mask.template read<kWhole>(problem.target"
        ),
        "infinite weights not asked about": fault("evaluate_element", "result != result", "false"),
    },
    GENERAL: {
        # the kernel
        "padding grouped": fault("evaluate_pack", "if (k < count) sums", "sums"),
        "padding summed": fault("evaluate_pack", "k < count ? double(term) : 0.0", "double(term)"),
        "groups that overflow kept": fault("finish_chunk", "!(of_groups - of_groups == 0)", "false"),
        "gradient not scaled": fault("elements_kernel", "of.factor[k] : scale", "of.factor[k] : C(1)"),
        "gradient not divided by the count": fault("elements_kernel", "1 / *launch.count", "1"),
        "column does not wrap": fault("Source::read", "place + 1 == operand.size ? 0 : place + 1", "place + 1"),
        "row repeats one time too many": fault("Source::read", "++rest", "rest++"),
        # an element
        "mask not looked at": fault("evaluate", "at.mask() != zero", "y == y"),
        "ignored target counted": fault("evaluate", "y != splat<V>(settings.ignore_index)", "y == y"),
        "class indices of the row before": fault("read_classes", "first + of.inner", "first"),
        "a class for its neighbour": fault("read_classes", "own + 1 == of.classes", "own == of.classes"),
        "ignored class counted": fault("read_classes", "index == ignored", "false"),
        "missing target counted": fault("evaluate", "settings.ignore_nan", "false"),
        "weights exchanged": ("evaluate", [Edit("at.p()", "at.w()"), Edit("at.w()", "at.p()", nth=2)]),
        "smoothing left out": fault("evaluate", "smooth(y, settings.smoothing)", "y"),
        "factors of the unsmoothed target": fault("evaluate", "factors<kHard>(of, y,", "factors<kHard>(of, at.y(),"),
        # the focal loss
        "no alpha": fault("focal", "focal_alpha(y, constants) * of", "of"),
        "no q^gamma": fault(
            "Powered::value",
            "times(factors.power, L::plain(of, factors, terms), terms)",
            "L::plain(of, factors, terms)",
        ),
        "gradient of q^gamma left out": fault(
            "Powered::by_logit", "times(factors.slope, L::plain(of, factors, terms), terms)", "splat<V>(0)"
        ),
        "negative q, but not its sign": fault("focal_by_log", "splat<V>(constants.sign)", "one"),
        "negative q not seen": fault("focal_by_log", "-at_least(minus_absolute(u)", "at_least(u"),
        "the power of another whole gamma": fault("whole_power", "gamma == S(2)", "gamma == S(3)"),
        "whole gamma, and half a derivative": fault("focal", "s * (one - s)", "s"),
        "infinite weights not asked about": fault("evaluate_element", "result != result", "false"),
        "left out, but grouped": fault("evaluate", "select(kept, group.q, before.q)", "group.q"),
        "q above 1 as one below": fault(
            "power_of", "exp_two_parts(x, rest, any_positive)", "exp_two_parts(x, rest, false)"
        ),
    },
    FAMILY: {
        "positives with a power": fault("quality_power", "select(positive, one, of.power)", "of.power"),
        "no quality of positives": fault("quality_weight", "constants.iou_weighted ? y : one", "one"),
        "beside the target, another sign": fault("difference", "select(of < zero, -one, one)", "one"),
        "no margin": fault("shifted", "-(clip * minus)", "zero"),
        "negatives below the margin": fault("shifted", "at_least(u, zero)", "u"),
        "the exponent of positives for all": fault(
            "asymmetric", "select(positive, of_y.power, rest.power)", "of_y.power"
        ),
        "an exponent in one part": fault("asymmetric_gamma", "lost + low", "low - low"),
    },
    PAIRS: {
        "others joined": fault("fold_pairs", "lanes[1].losses", "lanes[2].losses"),
        "sums that overflow kept": fault("pairs_kernel", "!(all - all == 0)", "false"),
        "no target by vectors": fault("add_pack", "positive - i >= uint32_t(kPerThread)", "true"),
        "padding counted": fault("add_pack", "kWhole || k < count", "true"),
        "vectors beyond the end": fault("pairs_kernel", "numel - chunk >= uint32_t(kChunk)", "numel >= chunk"),
        "a diagonal without end": fault("positive_after", "positive + of.step < of.end", "true"),
        "one row for another": fault(
            "pairs_kernel",
            "add_pack<kGrad, decltype(whole)::value>(x[row]",
            "add_pack<kGrad, decltype(whole)::value>(x[row ^ 1]",
        ),
        "sums of the tile alone": fault("finish_pairs_kernel", "+= sum", "= sum"),
    },
    GRADIENTS: {
        "finished though not made": fault("elements_kernel", "launch.is_made", "true"),
        "finished for any grad_output": fault(
            "elements_kernel", "grad_output.value == Factor::make(launch.made_for, C(1)).value", "true"
        ),
        "finished for one grad_output an element": fault(
            "elements_kernel", "launch.layouts.grad_output.reading == Reading::kConstant", "true"
        ),
        "made for 1, whatever it was made for": fault("elements_kernel", "make(launch.made_for,", "make(Operand{},"),
        "0 as -0": fault("elements_kernel", "grad_output.value != C(0)", "true"),
        "never finished": fault("elements_kernel", "return;", ";"),
    },
}


# ---- The checks ----------------------------------------------------------------------------------------------------


def both_agree(module, logits, target, **options):
    result, expected = (
        call(*a, Output.LossSumAndGrad, logits, target, **options) for call, a in ((run, [module]), (on_cpu, []))
    )
    assert same_bits(result.sum.reshape(()), expected.sum) and same_bits(result.out, expected.out)


# A few cases of test_cuda_kernels.py each.


def check_plain(module):
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(1, 3 * 8192 + 1031), torch.rand(1, 3 * 8192 + 1031)
    both_agree(module, logits, target, mean=True)
    both_agree(module, logits[:, :1031], target[:, :1031], schedule="reverse", grad_output=torch.tensor([0.3]))
    both_agree(module, *cancelling(3 * 8192 + 1031))
    for i in range(20):
        both_agree(module, logits[:, i : i + 1], target[:, i : i + 1])
    both_agree(module, torch.full((1, 1031), 3e38), torch.zeros(1, 1031), mean=True)
    partials = torch.randn(2 * 8192, dtype=torch.float64).numpy()
    assert second_stage(module, partials) == ordered_sum(partials)
    check_large_indices(module)


def check_typed(module):
    """Rows of 100, which vectors do not leave, and of 101."""
    torch.manual_seed(0)
    for columns in (100, 101):
        logits, target = 4 * torch.randn(90, columns), torch.rand(90, columns)
        weights = [1 + torch.rand(size) for size in ((90, 1), (columns,), (90, columns))]
        masks = [torch.rand(size) < 0.7 for size in ((90, 1), (columns,), (90, columns))]
        for turn in range(3):
            both_agree(module, logits, target, weight=weights[turn], pos_weight=weights[turn - 1], mask=masks[turn - 2])
            both_agree(module, logits, target > 0.5, mask=masks[turn], label_smoothing=0.1)
            both_agree(module, logits, (target > 0.5).long(), mask=masks[turn], label_smoothing=0.1)
        infinite = torch.tensor([np.inf, 1, 0]).repeat(34)[:columns]
        both_agree(module, logits, (target > 0.5).float(), pos_weight=infinite)


def check_general(module):
    agree = functools.partial(both_agree, general=True)
    torch.manual_seed(0)
    shape = (90, 101)
    logits, target = 4 * torch.randn(shape), torch.randint(0, 2, shape)
    target[::3, 7] = -100
    mask = torch.rand(shape) < 0.7
    agree(
        module, logits, target, weight=torch.rand(90, 1) + 1, pos_weight=3 * torch.rand(101) + 1, mask=mask, mean=True,
        label_smoothing=0.1, ignore_index=-100, count=(mask & (target != -100)).sum().double().reshape(1),
    )  # fmt: skip
    classes = torch.randint(-1, 103, (90,))
    classes[::3] = 5
    agree(module, logits, classes, ignore_index=5)
    missing = torch.where(target == -100, np.nan, torch.rand(shape))
    agree(module, logits, missing, ignore_nan=True)
    soft = torch.where(target == -100, 2.0, torch.rand(shape))
    agree(module, logits, soft, label_smoothing=0.1, gamma=1.5, alpha=0.25)
    agree(module, logits, torch.rand(shape), weight=torch.rand(90, 1) + 1, mask=mask, gamma=2.0, alpha=0.25)
    for gamma in (3.0, 5.0):  # with a weight: of targets beyond [0, 1] the kernels without have other last bits
        outside = torch.where(mask, 3 * torch.rand(shape) - 1, 1e8)
        agree(module, logits, outside, weight=torch.rand(90, 1) + 1, gamma=gamma)
    agree(module, logits, (target == 1).float(), pos_weight=torch.tensor([np.inf, 1, 0]).repeat(34)[:101])
    for n in (1, 101):  # what pads the last vector would have a loss
        agree(module, logits[:1, :n], torch.rand(1, n), label_smoothing=0.1)
        agree(module, logits[:1, :n], torch.rand(1, n), weight=torch.rand(1, n))
    agree(module, logits, torch.rand(shape), mask=mask, mean=True, count=mask.sum().double().reshape(1))
    agree(
        module, torch.full(shape, 3e38), torch.zeros(shape), mask=mask, mean=True, count=mask.sum().double().reshape(1)
    )


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
    problem, launch = (
        Problem(total, *operands, out=out.addr, out_dtype=code, scale=1),
        Launch(divisor=1, partials=partials.addr),
    )
    plan = planned(launch, problem, Output.LossSumAndGrad)
    module["elements_kernel"].launch(plan["grid"], plan["block"], [bytes(launch)], mem=memory, blocks=[start // n])
    assert same_bits(torch.from_numpy(out.read()).view(1, n), on_cpu(Output.LossSumAndGrad, logits, target).out)


def check_family(module):
    torch.manual_seed(0)
    shape = (30, 101)
    logits, target = 4 * torch.randn(shape), torch.randint(0, 2, shape).float()
    mixed = torch.where(torch.rand(shape) < 0.5, torch.rand(shape), target)  # soft beside hard
    for losses in (
        {"beta": 3.0}, {"beta": 1.5}, {"gamma": 2.0, "alpha": 0.3, "iou_weighted": True},
        {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}, {"gamma_neg": 2.3, "gamma_pos": 0.7, "clip": 0.05},
    ):  # fmt: skip
        both_agree(module, logits, mixed, general=True, **losses)
        both_agree(module, logits, target, general=True, **losses)


def check_gradients(module):
    logits, target = torch.randn(1, 1031), torch.rand(1, 1031)
    made = torch.full_like(logits, torch.nan)
    for general in (False, True):
        one, other = {"grad_output": torch.ones(1)}, {"grad_output": torch.tensor([0.3])}
        for made_for, same in [(None, one), (other["grad_output"], other)]:
            options = {"general": general, "made": made, "made_for": made_for, **same}
            assert run(module, Output.GradLogits, logits, target, **options).stats[0].store_bytes == 0
        each, zero = {"grad_output": torch.rand(1, 1031)}, {"grad_output": torch.zeros(1), "made_for": -torch.zeros(1)}
        for made_before, options in [(made, other), (made, each), (None, one), (None, other), (made, zero)]:
            result = run(module, Output.GradLogits, logits, target, general=general, made=made_before, **options)
            assert same_bits(result.out, on_cpu(Output.GradLogits, logits, target, **options).out)


def check_pairs(module):
    x = pairs.similarities((66, 125))
    pairs.compare(module, x, diagonal=-3, grad_dtype=torch.bfloat16, in_place=False)
    pairs.compare(module, pairs.similarities((40, 1)), diagonal=-20, grad_dtype=torch.bfloat16, in_place=False)
    x[0, :9] = 1e38
    pairs.compare(module, x, scale=2.0, grad_dtype=torch.float)


CHECKS = {
    PLAIN: check_plain,
    TYPED: check_typed,
    GENERAL: check_general,
    FAMILY: check_family,
    GRADIENTS: check_gradients,
    PAIRS: check_pairs,
}


def header_of(kernels):
    return "pairs.cuh" if kernels is PAIRS else "kernels.cuh"


@pytest.mark.parametrize("kernels", CHECKS, ids=["plain", "typed", "general", "family", "gradients", "pairs"])
def test_without_a_fault(kernels, tmp_path):
    CHECKS[kernels](build(tmp_path, kernels, header=header_of(kernels)))


@every_fault(CHECKS, FAULTS)
def test_fault_is_found(kernels, name, tmp_path):
    module = build(tmp_path, kernels, *FAULTS[kernels][name], header=header_of(kernels))
    with pytest.raises((AssertionError, PtxError)):
        CHECKS[kernels](module)


def test_a_fault_that_has_no_place(tmp_path):
    """Code that moved out of reach is an error of its own, not a fault that was found."""
    shutil.copytree(CSRC, tmp_path / "csrc")
    with pytest.raises(LookupError, match="2 times in the function fold"):
        plant(tmp_path / "csrc", "fold", Edit("__syncthreads();", nth=3))
    with pytest.raises(LookupError, match="0 times in the function no_such_function"):
        plant(tmp_path / "csrc", "no_such_function", Edit("return"))

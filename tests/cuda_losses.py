"""The tests of test_cuda_kernels.py for the focal loss and its kin, collected there, where all launches count."""

import numpy as np
import pytest
import torch
from cuda_kernels import (
    COLUMNS,
    FLOATS,
    ROWS,
    SUMS,
    Output,
    compare,
    make_logits,
    make_target,
    make_weight,
    name,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=name)
def test_focal_of_targets_like_logits(kernels, dtype):
    """Without weights any exponent, with weights a whole one; and of more than a chunk."""
    rows = 9000 // COLUMNS if dtype == torch.float32 else ROWS
    logits, target = (make((rows, COLUMNS), dtype) for make in (make_logits, make_target))
    for output in (Output.LossSum, Output.LossSumAndGrad, Output.Loss, Output.GradLogits):
        compare(kernels, output, logits, target, gamma=2.0)
        compare(kernels, output, logits[:ROWS], target[:ROWS], gamma=1.7, alpha=0.25)
        compare(kernels, output, logits[:ROWS], target[:ROWS], gamma=2.0, weight=make_weight("column", dtype))


@pytest.mark.parametrize("output", [output for output in Output if output != Output.Count], ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_focal(kernels, dtype, output):
    """Hard, soft and integer targets; several exponents; alone, then with every other option; special logits."""
    shape = (30, 35)
    weights = {"weight": make_weight("scalar", torch.float32), "pos_weight": make_weight("scalar", torch.bfloat16)}
    for turn, (gamma, alpha) in enumerate(
        [(2.0, 0.25), (0.0, None), (0.3, 0.9), (2.7, None), (40.0, 0.5), (1.0, None)]
    ):
        kind = (
            FLOATS[turn % 4]
            if output == Output.GradTarget
            else (dtype, torch.float32, torch.bool, torch.int64, torch.int32, torch.int16)[turn]
        )
        logits, target = make_logits(shape, dtype, turn), make_target(shape, kind, turn)
        logits[0, :3] = torch.tensor([np.inf, -np.inf, np.nan])
        options = {"gamma": gamma, "alpha": alpha, "schedule": ["lockstep", "random", "reverse"][turn % 3]}
        if turn % 2 or output in (Output.GradWeight, Output.GradPosWeight):
            options |= {**weights, "mask": torch.rand(shape) < 0.9, "label_smoothing": 0.1, "ignore_index": 1}
        else:
            options["mean"] = True
        if output >= Output.GradTarget:
            operands = {Output.GradTarget: target, Output.GradWeight: weights["weight"]}
            options["out_dtype"] = operands.get(output, weights["pos_weight"]).dtype
        compare(
            kernels,
            output,
            logits[1:] if output in SUMS else logits,
            target[1:] if output in SUMS else target,
            **{key: value[1:] if key == "mask" and output in SUMS else value for key, value in options.items()},
        )


FAMILY = [  # whole exponents, of which without options fp32 and 16 bits have typed kernels; then others
    {"beta": 2.0},
    {"gamma": 2.0, "alpha": 0.75, "iou_weighted": True},
    {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
    {"gamma_neg": 3.0, "gamma_pos": 0.0, "clip": 0.0},
    {"beta": 0.7},
    {"gamma": 1.5, "alpha": 0.3, "iou_weighted": False},
    {"gamma_neg": 2.5, "gamma_pos": 0.6, "clip": 0.0},
    {"gamma_neg": 1.3, "gamma_pos": 2.0, "clip": 0.1},
    {"beta": 3.0},  # with options
]


@pytest.mark.parametrize("output", [output for output in Output if output != Output.Count], ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_family(kernels, dtype, output):
    """Quality, varifocal and asymmetric loss: hard and soft targets, alone and with every option; special logits."""
    shape = (9, 35)
    weights = {"weight": make_weight("scalar", torch.float32), "pos_weight": make_weight("scalar", torch.bfloat16)}
    for turn, losses in enumerate(FAMILY):
        logits = make_logits(shape, dtype, turn)
        logits[0, :4] = torch.tensor([np.inf, -np.inf, np.nan, 0])
        target = torch.rand(shape).to(dtype)
        target = torch.where(torch.rand(shape) < 0.6, target.round(), target)
        target[0, 3] = 0.5  # which is sigma(0)
        options = {**losses, "mean": turn % 2 == 0}
        if turn in (3, 5, 7, 8) or output in (Output.GradWeight, Output.GradPosWeight):
            options |= {**weights, "mask": torch.rand(shape) < 0.9, "label_smoothing": 0.1, "ignore_index": 1}
        if output >= Output.GradTarget:
            operands = {Output.GradTarget: target, Output.GradWeight: weights["weight"]}
            options["out_dtype"] = operands.get(output, weights["pos_weight"]).dtype
        if output in SUMS:  # without what makes it NaN
            options |= {"mask": options["mask"][1:]} if "mask" in options else {}
            logits, target = logits[1:], target[1:]
        compare(kernels, output, logits, target, **options)


@pytest.mark.parametrize("output", [output for output in Output if output != Output.Count], ids=name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_focal_targets_outside(kernels, dtype, output):
    """Negative q, q above 1 and q of 0, to an odd, an even and a broken power."""
    for turn, (gamma, alpha) in enumerate(
        [(1.0, 0.25), (2.0, None), (3.0, None), (0.5, 0.9), (4.0, None), (5.0, None)]
    ):
        logits, target = make_logits((30, 35), dtype, turn), 4 * torch.rand(30, 35).to(dtype) - 1.5
        logits[1], target[1] = np.log(2) + torch.arange(35) * torch.finfo(dtype).eps / 4 - 3e-7, 2
        target[2], target[3] = 1e3, -1e6
        weights = {"weight": make_weight("scalar", dtype), "pos_weight": make_weight("scalar", dtype)}
        options = {"gamma": gamma, "alpha": alpha, **(weights if output >= Output.GradWeight else {})}
        compare(kernels, output, logits, target, **options)


INFINITE = {
    "bce": {},
    "focal": {"gamma": 2.0, "alpha": 1.0},
    "asymmetric": {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.05},
}


@pytest.mark.parametrize("output", [output for output in Output if output != Output.Count], ids=name)
@pytest.mark.parametrize("loss", INFINITE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_infinite_weights(kernels, dtype, loss, output):
    logits, target = make_logits((28, 36), dtype), make_target((28, 36), dtype)
    logits[0, :2] = torch.tensor([np.inf, -np.inf])
    finite = [1.5, 1, 1, 1, 1, 1, 1, 1]
    pos_weight = torch.tensor([np.inf, 0, *finite, np.inf, 0.5] * 3, dtype=dtype)
    weight = torch.tensor([np.inf, 0, 1, 1, 0, 2, 1] * 4, dtype=dtype).reshape(28, 1)
    options = {"weight": weight, "pos_weight": pos_weight, **INFINITE[loss]}
    if output in SUMS:  # else a sum of infinities
        target[:, pos_weight == np.inf] = 0
        options["mask"] = (weight != np.inf).expand(28, 36)
    compare(kernels, output, logits, target, **options)

"""Would the checks of test_cuda_single.py notice a bug? See test_cuda_faults.py."""

import pytest
import torch
from cuda_planting import build, fault
from ptx import PtxError
from single_kernels import agree

from fused_logistic import ops

KERNEL = "template __global__ void single_kernel<float, float, 1>(const SingleLaunch);\n"
FEATURES, GAP = 34, 2
TILE = 10 << 10, 64 * (4 + 8) + 6 * 64 * 4  # what a plan keeps back; sums, and six rows of 34 features in 64
ONE_ROW = (sum(TILE), sum(TILE))  # shared memory for tiles of one row

FAULTS = {
    # the pipeline
    "no barrier": fault("single_kernel", "__syncthreads();"),
    "a tile too few waited for": fault("single_kernel", "kStages - 4", "kStages - 3"),
    "a tile fetched too early": fault(
        "single_kernel", "if (kStaged) fetch(step + kStages - 3)", "if (kStaged) fetch(step + kStages - 2)"
    ),
    "what is handed on, but in one place": fault("single_kernel", "const int slot = tile & 1;", "const int slot = 0;"),
    # rows and columns
    "the last tile taken for a whole one": fault("single_kernel", "return left < plan.tile_rows ? left :", "return"),
    "more than a row copied": fault("single_kernel", "left < kBytes ? left : kBytes", "kBytes"),
    "a gradient beyond its row": fault("single_kernel", "if (plan.whole_out)", "if (true)"),
    # sums
    "another order of the lanes": fault(
        "single_kernel", "half = kLanesOfRow / 2; half >= 1; half /= 2", "half = 1; half < kLanesOfRow; half *= 2"
    ),
    "another order of the parts": fault("single_sums_kernel", "from[part *", "from[(launch.plan.parts - 1 - part) *"),
    "the weight's gradient never flushed": fault("single_kernel", "int(plan.flush_rows) - pending", "1 << 20"),
    # losses
    "a gradient that is not scaled": fault("single_kernel", ": handed.scale", ": C(1)"),
    "the count not looked at": fault("single_sums_kernel", "launch.count != nullptr ? *launch.count :", ""),
}


def check(module):
    """Nine tiles of one row, more than the ring has; three parts; a part that is flushed twice."""
    torch.manual_seed(0)

    def layer(rows, features, gap=0):
        x, w = 3 * torch.randn(rows, features + gap)[:, :features], torch.randn(features)
        return x, w, torch.randn(1), torch.rand(rows)

    mask = torch.arange(9) % 3 > 0
    options = {"mask": mask, "weight": 1 + torch.rand(9), "count": mask.sum().double()}
    agree(module, *layer(9, FEATURES, GAP), shared=ONE_ROW, **options)
    x, w, b, y = layer(27, 900)
    x, w = x.abs(), w.abs()
    x[9:18] *= 1e18  # the losses of the second and the third part cancel, and nothing of the first is left
    x[18:], y[9:18], y[18:] = x[9:18], 0, 2
    agree(module, x, w, b, y, wanted=(False, True, True), dtype=torch.float64)
    rows = 256 * 81 + 1
    weight = (torch.arange(rows) < 162).float()
    options = {"weight": weight, "reduction": ops.SUM, "wanted": (False, True, False), "blocks": [0]}
    agree(module, *layer(rows, 100), **options)


def test_without_a_fault(tmp_path):
    check(build(tmp_path, KERNEL, header="single.cuh"))


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name, tmp_path):
    module = build(tmp_path, KERNEL, *FAULTS[name], header="single.cuh")
    with pytest.raises((AssertionError, PtxError)):
        check(module)

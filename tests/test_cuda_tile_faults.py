"""Would the checks of test_cuda_tile.py notice a bug? As test_cuda_faults.py, for the kernels of a tile."""

import pytest
import torch
from cuda_kernels import Output, cancelling
from cuda_planting import build, every_fault, fault
from ptx import PtxError
from tile_kernels import added_blocks, compare, finish, on_cpu, run, summed_losses

KERNEL = "template __global__ void tile_kernel<Output::kLossSumAndGrad, Bce, Terms::{}>(const TileLaunch);\n"
DENSE = KERNEL.format("kPlain, Typed<float, Types<float>>, false")
WEIGHTED = KERNEL.format("kAll, Typed<float, Types<float>>, false")
SPARSE = KERNEL.format("kPlain, Typed<float, Types<float>>, true")
FINISH = "template __global__ void finish_tile_kernel<float>(const TileLaunch);\n"

FAULTS = {
    DENSE: {
        "beyond the last row": fault("tile_kernel", "next_row < launch.rows ? next_row : launch.rows", "next_row"),
        "beyond the last column": fault(
            "tile_kernel", "launch.columns - column < N ? int(launch.columns - column) : N", "N"
        ),
        "rows as long as the tile is wide": fault("tile_kernel", "row * lie.row", "row * launch.columns"),
        "a group forgotten": fault("tile_kernel", "sum += double(loss(", "sum = double(loss("),
        "a group that goes on": fault("tile_kernel", "sums = {};"),
        "too large for a group": fault("tile_kernel", "if (!fits)", "if (false)"),
        "too large, and grouped": fault("tile_kernel", "sums = before;"),
        "strips of a block not added": fault("tile_kernel", "strip < strips", "strip < 1"),
        "columns of another block": fault("tile_kernel", "row_block * launch.columns", "0 * launch.columns"),
        "no barrier before the strips' sums": fault("tile_kernel", "__syncthreads();"),
    },
    WEIGHTED: {
        "one value for all": fault("tile_kernel", "data[k * lie.column]", "data[0]"),
        "the weight for pos_weight": fault(
            "tile_kernel", "problem.pos_weight, lies.pos_weight", "problem.weight, lies.weight"
        ),
        "the count not looked at": fault("tile_kernel", "1 / *launch.count", "1"),
        "mask not read": fault("tile_kernel", "problem.mask, lies.mask", "problem.weight, lies.weight"),
    },
    SPARSE: {
        "one column too far": fault("lower_bound", "columns[middle] < column", "columns[middle] <= column"),
        "another row's": fault("find", "launch.crow_indices[row + t]", "launch.crow_indices[row]"),
        "not where the tile begins": fault("gather", "launch.col_indices[i] - begin", "launch.col_indices[i]"),
        "groups without any": fault("find", "any[t] = true", "any[t] = false"),
        "targets of the group before": fault("gather", "store_pack(targets[row] + threadIdx.x * kPerThread, none);"),
        "no barrier before they are put": fault("gather", "__syncthreads();"),
        "no barrier after they are put": fault("gather", "__syncthreads();", nth=2),
        "no barrier after they are found": fault("find", "__syncthreads();"),
    },
    FINISH: {
        "a block too many": fault("finish_tile_kernel", "i < blocks", "i <= blocks"),
        "a loss that begins anew": fault("finish_tile_kernel", "*launch.loss_sum += sum", "*launch.loss_sum = sum"),
        "a bias that begins anew": fault("finish_tile_kernel", "double(data[column]) + sum", "sum"),
        "lines left out": fault("finish_tile_kernel", "line < kLines", "line < kLines - 1"),
        "no barrier": fault("finish_tile_kernel", "__syncthreads();"),
    },
}


def check_dense(module):
    torch.manual_seed(0)
    both = Output.LossSumAndGrad
    for rows, columns, padding, strip_rows in [(19, 13, 3, 8), (50, 12, 4, 24), (150, 6, 2, 16), (19, 260, 0, 8)]:
        logits, target = 3 * torch.randn(rows, columns), torch.rand(rows, columns)
        compare(module, both, logits, target, padding=padding, strip_rows=strip_rows, schedule="reverse")
    large = torch.full((9, 4), 3e38)
    exact = torch.nn.functional.binary_cross_entropy_with_logits(
        large.double(), torch.zeros(9, 4).double(), reduction="sum"
    )
    torch.testing.assert_close(run(module, both, large, torch.zeros(9, 4)).sum, exact, rtol=1e-14, atol=0)
    far = torch.full((16, 4), -0.5)
    far[0] = 1e37  # alone; the others of its group are grouped
    compare(module, both, far, torch.zeros(16, 4))
    logits = torch.zeros(8, 4)
    logits[0] = 3e36
    logits[1] = -3e36
    target = torch.zeros(8, 4)
    target[1] = -1  # whose losses cancel those of the first row
    assert abs(run(module, both, logits, target).sum - 32 * torch.log(torch.tensor(2.0))) < 32


def check_weighted(module):
    torch.manual_seed(0)
    shape, count = (10, 13), torch.tensor([7.0], dtype=torch.float64)
    options = {
        "weight": torch.rand(1, 13) + 1,
        "pos_weight": torch.rand(10, 1) + 1,
        "mask": torch.rand(13, 10).t() < 0.7,
    }
    compare(module, Output.LossSumAndGrad, torch.randn(shape), torch.rand(shape), count=count, **options)
    logits, target = (matrix.view(33, 5) for matrix in cancelling(165))
    result = run(module, Output.LossSumAndGrad, logits, target, weight=torch.ones(1, 1))
    losses = on_cpu(Output.Loss, logits, target, weight=torch.ones(1, 1))
    assert result.sum == summed_losses(losses, result.plan)


def check_sparse(module):
    torch.manual_seed(0)
    dense, logits = torch.rand(30, 520).where(torch.rand(30, 520) < 0.03, 0), torch.randn(25, 500)
    dense[11:19] = 0  # a group without any
    dense[3:7, 7] = dense[4:9, 506] = dense[5:9, 507] = 0.7  # beside the edges
    row, col = dense.nonzero().T
    crow = torch.searchsorted(row, torch.arange(31))
    tile, part = (dense[row, col], crow[3:29], col.contiguous()), dense[3:28, 7:507]
    for schedule, strip_rows in (("lockstep", 8), ("reverse", 24)):
        options = {"dense": part, "first_column": 7, "schedule": schedule, "strip_rows": strip_rows}
        compare(module, Output.LossSumAndGrad, logits, tile, **options)


def check_finish(module):
    torch.manual_seed(0)
    losses, columns, start = torch.randn(1100, dtype=torch.float64), torch.randn(50, 35), torch.randn(35)
    loss, bias = finish(module, losses[:1100], 0.5, columns, start)
    assert loss == 0.5 + added_blocks(losses)
    torch.testing.assert_close(bias, (start.double() + columns.double().sum(0)).float(), rtol=1e-6, atol=1e-6)


CHECKS = {DENSE: check_dense, WEIGHTED: check_weighted, SPARSE: check_sparse, FINISH: check_finish}


@pytest.mark.parametrize("kernels", CHECKS, ids=[check.__name__ for check in CHECKS.values()])
def test_without_a_fault(kernels, tmp_path):
    CHECKS[kernels](build(tmp_path, kernels + FINISH * (kernels != FINISH), header="tile.cuh"))


@every_fault(CHECKS, FAULTS)
def test_fault_is_found(kernels, name, tmp_path):
    module = build(tmp_path, kernels + FINISH * (kernels != FINISH), *FAULTS[kernels][name], header="tile.cuh")
    with pytest.raises((AssertionError, PtxError)):
        CHECKS[kernels](module)

"""The loss of pairs over two and four gloo processes, against one process that has all pairs."""

import pytest
import torch
import torch.nn.functional as F

from tests import pairs_worker as worker
from tests.conftest import result_of

pytestmark = pytest.mark.slow  # processes start, and import torch


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    """All cases run in one set of processes; a case that raised is its traceback."""
    folder = tmp_path_factory.mktemp("ring")
    torch.multiprocessing.spawn(worker.main, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def losses(image, text, scale, bias, world, groups=1):
    """Each process's, as open_clip defines them: its images with the texts of its group."""
    labels = 2 * torch.eye(len(image), dtype=torch.double) - 1
    each = -F.logsigmoid(labels * (scale * image @ text.T + bias))
    in_group = torch.arange(len(image)) // (len(image) // groups)
    each = torch.where(in_group[:, None] == in_group, each, 0)
    return each.view(world, -1).sum(1) / worker.EACH


def expected(world, dtype=torch.double, factors=None, groups=1):
    """-> of each process (loss, and the gradients of image, text, scale and bias)."""
    image, text = (t.double().requires_grad_() for t in worker.features(world, dtype))
    scale, bias = worker.numbers()
    of_each = losses(image, text, scale, bias, world, groups)
    factors = torch.ones(world) if factors is None else factors
    by_features = torch.autograd.grad((factors * of_each).sum(), (image, text), retain_graph=True)
    for rank in range(world):
        own = factors[rank] * of_each[rank]
        by_numbers = torch.autograd.grad(own, (scale, bias), retain_graph=True)
        yield of_each[rank].detach(), *(worker.share(g, rank).detach() for g in by_features), *by_numbers


def assert_close(got, wanted, eps=2.0**-53):
    """To some roundings; the gradients of 16-bit features are rounded to their type once."""
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=16 * eps, atol=64 * eps * b.abs().max().item())


@pytest.mark.parametrize("dtype", worker.DTYPES, ids=str)
def test_step(dtype, results):
    """Each process's grad_output goes into its part of the texts' gradients."""
    world = len(results)
    wanted = expected(world, dtype, torch.arange(1, world + 1))
    eps = torch.finfo(dtype).eps / 2
    for got, of_rank in zip(result_of(results, "step", dtype), wanted, strict=True):
        assert all(g.dtype == dtype for g in got[1:3])
        assert_close(got[1:3], of_rank[1:3], eps)
        assert_close([got[0], *got[3:]], [of_rank[0], *of_rank[3:]], min(eps, 2.0**-24))


def test_tiles(results):
    world = len(results)
    wanted = expected(world, factors=torch.arange(1, world + 1))
    for got, of_rank in zip(result_of(results, "step of tiles"), wanted, strict=True):
        assert_close(got, of_rank)


def test_module(results):
    for got, of_rank in zip(result_of(results, "module"), expected(len(results)), strict=True):
        assert_close(got, of_rank[:3])


def test_some_gradients(results):
    for got, of_rank in zip(result_of(results, "some_gradients"), expected(len(results)), strict=True):
        assert_close(got, (of_rank[0], of_rank[1], of_rank[4]))


def test_groups_of_two(results):
    world = len(results)
    wanted = expected(world, groups=world // 2)
    for got, of_rank in zip(result_of(results, "half_of_the_processes"), wanted, strict=True):
        assert_close(got, of_rank[:3])


def test_ddp(results):
    """Three steps with the mean of the processes' gradients end where one process with all pairs does."""
    world = len(results)
    alone = worker.train(worker.Towers(), lambda *given: losses(*given, world).mean(), *worker.features(world))
    for got in result_of(results, "ddp"):
        for a, b in zip(got, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_refusals(results):
    world = len(results)
    for rank, got in enumerate(result_of(results, "refusals")):
        assert got["uneven"].startswith(
            "ValueError: sigmoid_contrastive_loss: expected text_features alike in all processes of the group, got "
            "Double [5, 4], Double [4, 4]"
        )
        assert "got Double [5, 4] without gradient, Double [5, 4]" in got["gradient"]
        assert got["twice"].startswith("NotImplementedError: sigmoid_contrastive_loss: expected no derivative of a")
        assert got["transform"].startswith("NotImplementedError: sigmoid_contrastive_loss: expected no transform")
        assert (
            got["shape"] == "ValueError: sigmoid_contrastive_loss: expected text_features of shape [5, 4], got [2, 4]"
        )
        assert got["rank"] == (
            f"RuntimeError: SigLipLoss: expected the default group's rank {rank} and world_size {world}, "
            f"got {world} and {world + 1}"
        )

"""Two gloo processes against one: DTensor of every placement, DDP, FSDP2 and tensor-parallel logits."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl
from fused_logistic import ops, reference
from tests import distributed_worker as worker
from tests.conftest import result_of

pytestmark = pytest.mark.slow  # two processes start, and import torch
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All cases run in one pair of processes; a case that raised is its traceback."""
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(worker.main, (str(folder),), nprocs=worker.WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(worker.WORLD)]


def assert_all_same(a, b):
    a, b = torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("target_placement", worker.PLACEMENTS)
@pytest.mark.parametrize("logits_placement", worker.PLACEMENTS)
@pytest.mark.parametrize("weights", worker.WEIGHTS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_dtensor(reduction, weights, logits_placement, target_placement, results):
    z, y, w, p = worker.operands(weights)
    leaves = [t.requires_grad_() for t in (z, y, w, p) if t is not None]
    # torch's loss, taken apart: torch does not differentiate it by the weights
    positive = F.binary_cross_entropy_with_logits(z, torch.ones_like(z), reduction="none")
    negative = F.binary_cross_entropy_with_logits(z, torch.zeros_like(z), reduction="none")
    loss = (1 if w is None else w) * ((1 if p is None else p) * y * positive + (1 - y) * negative)
    loss = loss if reduction == "none" else getattr(loss, reduction)()
    expected = [loss.detach(), *torch.autograd.grad((loss * loss).sum(), leaves)]
    for result in result_of(results, "dtensor", reduction, weights, logits_placement, target_placement):
        assert_all_same(result, expected)


@pytest.mark.parametrize("placement", worker.PLACEMENTS)
@pytest.mark.parametrize("reduction", [ops.MEAN, ops.SUM])
def test_raw_ops_of_uneven_shards(reduction, placement, results):
    z, y, _, p = worker.operands("pos_weight")
    z.requires_grad_()
    loss = F.binary_cross_entropy_with_logits(z, y, pos_weight=p, reduction="mean" if reduction == ops.MEAN else "sum")
    (grad,) = torch.autograd.grad(loss, z)
    for result in result_of(results, "raw", reduction, placement):
        assert_all_same(result, [loss.detach(), loss.detach(), grad, grad])


@pytest.mark.parametrize("target_placement", worker.PLACEMENTS)
@pytest.mark.parametrize("placement", worker.PLACEMENTS)
@pytest.mark.parametrize("options", worker.OPTIONS)
@pytest.mark.parametrize("loss", worker.LOSSES)
def test_mean_over_what_remains(loss, options, placement, target_placement, results):
    """Divided by the number of elements that all processes together have left; uneven shards, none of them gathered."""
    z, (y, chosen) = worker.operands("plain")[0].requires_grad_(), worker.selection(options)
    result = worker.LOSSES[loss](z, y, reduction="mean", **chosen)
    (grad,) = torch.autograd.grad(result * 3, z)
    assert result.isnan().item() == (options == "nothing left")
    for of_rank in result_of(results, "left out", loss, options, placement, target_placement):
        assert_all_same(of_rank, [result.detach(), grad])


@pytest.mark.parametrize("ignored", [None, 0])
@pytest.mark.parametrize("target_placement", ["replicate", "shard 0"])
@pytest.mark.parametrize("placement", worker.PLACEMENTS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_class_indices(reduction, placement, target_placement, ignored, results):
    """An index is of all classes, wherever these are."""
    z, index = worker.operands("plain")[0].requires_grad_(), torch.tensor([2, 0, -1, 1, 3])
    mask = torch.tensor([True, False, True]) if ignored == 0 else None
    loss = fl.binary_cross_entropy_with_logits(z, index, reduction=reduction, ignore_index=ignored, mask=mask)
    expected = [loss.detach(), *torch.autograd.grad((loss * loss).sum(), z)]
    for result in result_of(results, "classes", reduction, placement, target_placement, ignored):
        assert_all_same(result, expected)


@pytest.mark.parametrize("placement", worker.PLACEMENTS)
@pytest.mark.parametrize("shape", worker.DIVIDED)
@pytest.mark.parametrize("normalizer", worker.NORMALIZERS)
def test_what_a_mean_divides_by(normalizer, shape, placement, results):
    """By the weights and the positives of all processes; learnt ones get their gradient."""
    expected = worker.divided(lambda tensor, _: tensor, normalizer, shape)
    for of_rank in result_of(results, "divided", normalizer, shape, placement):
        assert_all_same(of_rank, expected)


@pytest.mark.parametrize("target_placement", worker.PLACEMENTS)
@pytest.mark.parametrize("placement", worker.PLACEMENTS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_focal_loss(reduction, placement, target_placement, results):
    z, y, _, _ = worker.operands("plain")
    loss = reference.sigmoid_focal_loss(z.requires_grad_(), y.requires_grad_(), gamma=1.5)
    loss = loss if reduction == "none" else getattr(loss, reduction)()
    expected = [loss.detach(), *torch.autograd.grad((loss * loss).sum(), (z, y))]
    for result in result_of(results, "focal", reduction, placement, target_placement):
        assert_all_same(result, expected)


@pytest.mark.parametrize("placement", worker.PLACEMENTS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", worker.LOSSES)
def test_compiled(loss, reduction, placement, results):
    for eager, compiled in result_of(results, "compiled", loss, reduction, placement):
        assert_all_same(compiled, eager)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "tensor_parallel"])
def test_training(engine, results):
    expected = worker.train(worker.model(), *worker.batch())
    for result in result_of(results, engine):
        assert_all_same(result, expected)
    losses = expected[0]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@pytest.mark.parametrize("engine", ["layer_ddp", "layer_fsdp2"])
def test_training_of_the_fused_layer(engine, results):
    expected = worker.train_layer(worker.layer_model(), *worker.batch())
    for result in result_of(results, engine):
        assert_all_same(result, expected)


def test_predictions_of_the_fused_layer(results):
    module, (x, _) = worker.layer_model(), worker.batch()
    logits = F.linear(module.hidden(x).tanh(), module.head.weight, module.head.bias).detach()
    for result in result_of(results, "layer_fsdp2_predicts"):
        assert_all_same(result, [logits, logits.sigmoid()])


def test_fused_layer_of_dtensors(results):
    module, (x, y) = worker.layer_model(), worker.batch()
    loss = module.head(module.hidden(x).tanh(), y, torch.arange(4) < 3)
    expected = [loss.detach(), *torch.autograd.grad(loss, (module.head.weight, module.head.bias))]
    for result in result_of(results, "layer_dtensor"):
        assert_all_same(result, expected)


def test_no_import_cost():
    """DTensor is neither imported by this package nor looked for where nobody else imports it."""
    code = "import sys, fused_logistic as fl, torch; fl.binary_cross_entropy_with_logits(torch.rand(3), torch.rand(3))"
    code += "; assert 'torch.distributed.tensor' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_example_started_by_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(ROOT / "examples/train_ddp.py")], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "process 0 of 2: 600 samples" in run.stdout and "process 1 of 2: 600 samples" in run.stdout
    assert "the weights differ by at most" in run.stdout

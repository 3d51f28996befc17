"""Threads, worker processes and a second copy: the bits of one thread, or one clear message."""

import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fused_logistic as fl
from tests.conftest import same_bits

ROWS, FEATURES, LABELS = 300, 16, 40


def steps():
    """{name: (function of no arguments that makes a loss, the leaves)} of every public loss, on fixed operands."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    logits, target = randn(ROWS, LABELS), torch.rand((ROWS, LABELS), generator=generator)
    x, w, b = randn(ROWS, FEATURES), randn(LABELS, FEATURES), randn(LABELS)
    hard, scale = target.round(), torch.tensor(2.0)
    with warnings.catch_warnings():  # that CSR tensors are in beta state
        warnings.simplefilter("ignore")
        sparse = hard.to_sparse_csr()
    options = {"reduction": "mean"}
    head = {"linear_bias": b, "chunk_bytes": 4 * ROWS * 7}
    cases = {
        "bce": (lambda: fl.binary_cross_entropy_with_logits(logits, target), [logits, target]),
        "options": (
            lambda: fl.binary_cross_entropy_with_logits(
                logits, hard, pos_weight=b.abs(), mask=target > 0.1, label_smoothing=0.1, ignore_index=1
            ),
            [logits, b],
        ),
        "focal": (lambda: fl.sigmoid_focal_loss(logits, hard, **options), [logits]),
        "quality": (lambda: fl.quality_focal_loss(logits, target, 1.5, **options), [logits, target]),
        "varifocal": (lambda: fl.varifocal_loss(logits, target, **options), [logits]),
        "asymmetric": (lambda: fl.asymmetric_loss_with_logits(logits, hard, **options), [logits]),
        "layer": (lambda: fl.linear_binary_cross_entropy(x, w, hard, **head), [x, w, b]),
        "sparse layer": (lambda: fl.linear_binary_cross_entropy(x, w, sparse, **head), [x, w, b]),
        "one label": (lambda: fl.linear_binary_cross_entropy(x, w[0], hard[:, 0]), [x, w]),
        "focal layer": (lambda: fl.linear_sigmoid_focal_loss(x, w, hard, **head), [x, w, b]),
        "asymmetric layer": (lambda: fl.linear_asymmetric_loss_with_logits(x, w, hard, **head), [x, w, b]),
        "pairs": (lambda: fl.sigmoid_contrastive_loss(x, w[:1].expand(ROWS, -1), scale, None), [x, w, scale]),
    }
    for _, leaves in cases.values():
        for leaf in leaves:
            leaf.requires_grad_()
    return cases


CASES = steps()


def results(name):
    make, leaves = CASES[name]
    loss = make()
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def all_same(found, wanted):
    return all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_threads_that_share_operands(name):
    """Forward and backward at once, by eight threads."""
    wanted = results(name)
    with ThreadPoolExecutor(8) as pool:
        assert all(all_same(found, wanted) for found in pool.map(lambda _: results(name), range(40)))


def test_threads_with_all_losses_and_a_number_of_threads_that_changes():
    wanted, threads, done = {name: results(name) for name in CASES}, torch.get_num_threads(), threading.Event()

    def changes():
        number = 1
        while not done.wait(0.001):
            torch.set_num_threads(number := 3 - number)

    changing = threading.Thread(target=changes)
    changing.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda name: (name, results(name)), [*CASES] * 6))
    finally:
        done.set()
        changing.join()
        torch.set_num_threads(threads)
    for name, of in found:
        if "layer" in name:  # torch's products round by the number of threads
            torch.testing.assert_close(of, wanted[name])
        else:
            assert all_same(of, wanted[name]), name


class Losses(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        logits = torch.linspace(-4, 4, 50_000).roll(index).requires_grad_()
        loss = fl.sigmoid_focal_loss(logits, (logits > 1).float(), reduction="sum")
        return torch.cat([loss.detach().view(1), *torch.autograd.grad(loss, logits)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method):
    wanted = torch.stack([Losses()[index] for index in range(8)])
    loader = DataLoader(Losses(), batch_size=2, num_workers=2, multiprocessing_context=method)
    assert torch.equal(torch.cat(list(loader)), wanted)


FORK = """
import os, torch, fused_logistic as fl
logits, target = torch.randn(1 << 20), torch.rand(1 << 20)
wanted = fl.binary_cross_entropy_with_logits(logits, target)  # by all threads
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # torch's own do not survive a fork
    os._exit(0 if torch.equal(fl.binary_cross_entropy_with_logits(logits, target), wanted) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_after_use():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], cwd=Path(fl.__file__).parents[1], timeout=120)
    assert done.returncode == 0


SECOND = """
import importlib.util, sys, fused_logistic
place = sys.argv[1]
spec = importlib.util.spec_from_file_location("second", place + "/__init__.py", submodule_search_locations=[place])
sys.modules["second"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["second"])
"""


def test_a_second_copy_in_one_process(tmp_path):
    """It would put its kernels in the place of the first one's, and crash."""
    copy = shutil.copytree(Path(fl.__file__).parent, tmp_path / "fused_logistic")
    command = [sys.executable, "-c", SECOND, str(copy)]
    done = subprocess.run(command, cwd=Path(fl.__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert (
        f"ImportError: fused_logistic: expected one copy of the package in a process, got a second one in {copy}"
        in done.stderr
    )

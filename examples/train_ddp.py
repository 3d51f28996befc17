"""Logistic regression on two or more processes: each sees a part of the data, all end with the same weights.

    torchrun --nproc-per-node 2 examples/train_ddp.py

Every process prints its part; the first one then trains on all the data alone and prints how far apart the results are.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fused_logistic as fl

SAMPLES, FEATURES, LABELS, STEPS = 1200, 10, 3, 60


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from a logistic model that the training has to find; bool, and read as they are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    logits = x @ torch.randn(FEATURES, LABELS, generator=generator)
    return x, torch.rand(SAMPLES, LABELS, generator=generator) < torch.sigmoid(logits)


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Full-batch gradient descent; the loss of the last step."""
    criterion = fl.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 1.5, 2.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss = torch.zeros(())
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.detach()


def new_model() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(FEATURES, LABELS)


def main() -> None:
    if "RANK" not in os.environ:
        raise SystemExit("start it with torchrun:  torchrun --nproc-per-node 2 examples/train_ddp.py")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if SAMPLES % world:
        raise SystemExit(f"{SAMPLES} samples do not divide among {world} processes: DDP would weigh them unequally")
    x, y = data()
    part_x, part_y = x[rank::world], y[rank::world]
    model = DistributedDataParallel(new_model())
    loss = train(model, part_x, part_y)
    print(f"process {rank} of {world}: {len(part_x)} samples, {STEPS} steps, loss {loss:.4f}", flush=True)
    dist.all_reduce(loss)
    if rank == 0:
        alone = new_model()
        loss_alone = train(alone, x, y)
        apart = (alone.weight - model.module.weight).abs().max().item()
        with torch.no_grad():
            right = ((model.module(x) > 0) == y).float().mean().item()
        print(f"all processes: loss {loss / world:.4f}, {right:.1%} of the labels right")
        print(f"one process on all the data: loss {loss_alone:.4f}; the weights differ by at most {apart:.1e}")
        if apart > 1e-4:
            raise SystemExit("the processes together did not do what one does alone")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

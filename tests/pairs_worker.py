"""What each process of test_pairs_ring.py runs; each writes its results to a file."""

from __future__ import annotations

import traceback

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import fused_logistic as fl

EACH, FEATURES = 5, 4  # pairs of a process
DTYPES = [torch.double, torch.float, torch.half, torch.bfloat16]


def features(world, dtype=torch.double):
    """Of all processes' images and texts."""
    generator = torch.Generator().manual_seed(world)
    shape = world * EACH, FEATURES
    return [F.normalize(torch.randn(shape, generator=generator, dtype=torch.double), dim=1).to(dtype) for _ in "ab"]


def numbers():
    return [torch.tensor(x, dtype=torch.double, requires_grad=True) for x in (7.0, -1.0)]


def share(tensor, rank):
    return tensor[rank * EACH : (rank + 1) * EACH].clone().requires_grad_()


def step(rank, world, dtype, tile_bytes):
    """grad_output differs between the processes; a second backward pass gives the same."""
    leaves = [*(share(t, rank) for t in features(world, dtype)), *numbers()]
    loss = fl.sigmoid_contrastive_loss(*leaves, group=dist.group.WORLD, tile_bytes=tile_bytes)
    grads, again = (torch.autograd.grad((rank + 1) * loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    return [loss.detach(), *grads]


def module(rank, world):
    leaves = [*(share(t, rank) for t in features(world)), *numbers()]
    criterion = fl.SigLipLoss(rank=rank, world_size=world)
    with torch.no_grad():
        evaluated = criterion(*leaves)
    loss = criterion(*leaves, output_dict=True)["contrastive_loss"]
    assert torch.equal(loss.detach(), evaluated)
    return [loss.detach(), *torch.autograd.grad(loss, leaves[:2])]


def some_gradients(rank, world):
    """Those of the images and the bias alone: nothing travels back."""
    image, text, scale, bias = *(share(t, rank) for t in features(world)), *numbers()
    given = image, text.detach(), scale.detach(), bias
    loss = fl.sigmoid_contrastive_loss(*given, group=dist.group.WORLD)
    return [loss.detach(), *torch.autograd.grad(loss, (image, bias))]


def half_of_the_processes(rank, world):
    """Two by two, in groups of their own."""
    groups = [dist.new_group([i, i + 1]) for i in range(0, world, 2)]
    leaves = [*(share(t, rank) for t in features(world)), *numbers()]
    loss = fl.sigmoid_contrastive_loss(*leaves, group=groups[rank // 2])
    return [loss.detach(), *torch.autograd.grad(loss, leaves[:2])]


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = (torch.nn.Linear(FEATURES, 3).double() for _ in range(2))
        self.scale, self.bias = (torch.nn.Parameter(n.detach()) for n in numbers())

    def forward(self, image, text):
        towers = F.normalize(self.image(image), dim=1), F.normalize(self.text(text), dim=1)
        return *towers, self.scale.exp().clamp(max=20), self.bias


def train(model, criterion, image, text):
    """The parameters after some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        criterion(*model(image, text)).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def ddp(rank, world):
    parts = [share(t, rank).detach() for t in features(world)]
    return train(DistributedDataParallel(Towers()), fl.SigLipLoss(rank=rank, world_size=world), *parts)


def refusal(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def refusals(rank, world):
    image, text = (share(t, rank) for t in features(world))
    group, fewer = {"group": dist.group.WORLD}, EACH - (rank == 1)
    loss = fl.sigmoid_contrastive_loss(image, text, 2.0, **group)
    return {
        "uneven": refusal(lambda: fl.sigmoid_contrastive_loss(image[:fewer], text[:fewer], 2.0, **group)),
        "gradient": refusal(lambda: fl.sigmoid_contrastive_loss(image, text if rank else text.detach(), 2.0, **group)),
        "twice": refusal(lambda: torch.autograd.grad(loss, image, create_graph=True)),
        "transform": refusal(
            lambda: torch.func.grad(lambda t: fl.sigmoid_contrastive_loss(t, text, 2.0, **group))(image)
        ),
        "shape": refusal(lambda: fl.sigmoid_contrastive_loss(image, text[:2], 2.0, **group)),
        "rank": refusal(lambda: fl.SigLipLoss(rank=world, world_size=world + 1)(image, text, 2.0, None)),
    }


def cases(world):
    for dtype in DTYPES:
        yield ("step", dtype), lambda rank, dtype=dtype: step(rank, world, dtype, None)
    yield ("step of tiles",), lambda rank: step(rank, world, torch.double, 8 * 4)
    for case in (module, some_gradients, half_of_the_processes, ddp, refusals):
        yield (case.__name__,), lambda rank, case=case: case(rank, world)


def main(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    results = {}
    for name, case in cases(world):
        try:
            results[name] = case(rank)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()

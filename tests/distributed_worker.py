"""What each of the two processes of test_distributed.py runs; rank 0 writes all results to a file."""

from __future__ import annotations

import copy
import itertools
import traceback

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import fused_logistic as fl
from fused_logistic import ops

WORLD = 2
SHAPE = (5, 3)  # divided among two: 3 and 2 rows, 2 and 1 columns
PLACEMENTS = {"replicate": Replicate(), "shard 0": Shard(0), "shard 1": Shard(1)}
WEIGHTS = {"plain": (False, False), "weight": (True, False), "pos_weight": (False, True), "both": (True, True)}


def operands(weights):
    """(logits, target, weight, pos_weight); weight and pos_weight have the same shape."""
    generator = torch.Generator().manual_seed(1)
    z, y, w, p = (torch.rand(s, generator=generator, dtype=torch.double) for s in (SHAPE, SHAPE, (3,), (3,)))
    return 6 * z - 3, y, w if WEIGHTS[weights][0] else None, p if WEIGHTS[weights][1] else None


def model():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()


def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 6, generator=generator, dtype=torch.double)
    return x, torch.rand(8, 4, generator=generator, dtype=torch.double)


def train(module, x, y, steps=3):
    """The loss of each step and the parameters after the last."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    criterion, losses = fl.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0, dtype=torch.double)), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(whole(loss.detach()))
    return losses, [whole(p.detach()) for p in module.parameters()]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def dtensor(mesh, reduction, weights, logits_placement, target_placement):
    z, y, w, p = operands(weights)
    z = distribute_tensor(z, mesh, [PLACEMENTS[logits_placement]]).requires_grad_()
    y = distribute_tensor(y, mesh, [PLACEMENTS[target_placement]]).requires_grad_()
    w, p = (None if t is None else distribute_tensor(t, mesh, [Replicate()]).requires_grad_() for t in (w, p))
    loss = fl.binary_cross_entropy_with_logits(z, y, w, pos_weight=p, reduction=reduction)
    leaves = [t for t in (z, y, w, p) if t is not None]
    grads = torch.autograd.grad((loss * loss).sum(), leaves)
    sharded = "shard" in logits_placement + target_placement
    assert loss.placements[0].is_replicate() != sharded, loss.placements  # nothing was gathered
    return [whole(t.detach()) for t in (loss, *grads)]


OPTIONS = ("mask", "mask of one row", "ignored", "missing", "both", "nothing left")


def selection(options):
    """(target, the options that leave elements out): of each process's share another number of elements is left."""
    _, y, _, _ = operands("plain")
    if options in ("ignored", "missing", "both"):
        y[0], y[2, 1], y[4, 2] = [torch.nan if options == "missing" else -1] * 3
    mask = None
    if options in ("mask", "both"):
        mask = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
    elif options not in ("ignored", "missing"):
        mask = torch.tensor([True, False, True]) & (options != "nothing left")
    ignore_index = -1 if options in ("ignored", "both") else None
    return y, {"mask": mask, "ignore_index": ignore_index, "ignore_nan": options == "missing"}


def left_out(mesh, loss, options, placement, target_placement):
    """The mean over what remains of sharded logits: of the plain or the focal loss."""
    z, (y, chosen) = operands("plain")[0], selection(options)
    z = distribute_tensor(z, mesh, [PLACEMENTS[placement]]).requires_grad_()
    y = distribute_tensor(y, mesh, [PLACEMENTS[target_placement]])
    if (mask := chosen["mask"]) is not None:
        of_mask = [PLACEMENTS[placement] if mask.dim() == 2 else Replicate()]
        chosen["mask"] = distribute_tensor(mask, mesh, of_mask)
    with CommDebugMode() as communication:
        result = LOSSES[loss](z, y, reduction="mean", **chosen)
        (grad,) = torch.autograd.grad(result * 3, z)
    assert not result.placements[0].is_shard()
    if placement == target_placement:  # all fits: nothing but the count, a number, goes from one to the other
        assert set(communication.get_comm_counts()) <= {torch.ops.c10d_functional.all_reduce}
        assert grad.placements == z.placements
    return [whole(result.detach()), whole(grad)]


NORMALIZERS = ("weights", "learnt weights", "positives", "learnt tensor", 2.5)
DIVIDED = {"label": (3,), "row": (5, 1), "all": SHAPE}  # shapes of the weight


def divided(place, normalizer, shape, placement="replicate"):
    """(loss, gradients) of a mean with a mask and ignored targets; ``place`` puts an operand where it belongs."""
    z, (y, left_out) = operands("plain")[0], selection("both")
    mask, ignore_index = left_out["mask"], left_out["ignore_index"]
    generator = torch.Generator().manual_seed(4)
    w = torch.rand(DIVIDED[shape], generator=generator, dtype=torch.double) + 0.1
    z, y, mask = (place(t, placement) for t in (z, y, mask))
    w = place(w, placement if shape == "all" else "replicate")
    leaves, name = [z.requires_grad_()], str(normalizer).removeprefix("learnt ")
    if name == "tensor":  # the same number on each process
        leaves.append(torch.tensor(2.5, dtype=torch.double, requires_grad=True))
    elif normalizer == "learnt weights":
        leaves.append(w.requires_grad_())
    divisor = leaves[-1] if name == "tensor" else normalizer if isinstance(normalizer, float) else name
    loss = fl.binary_cross_entropy_with_logits(z, y, w, mask=mask, ignore_index=ignore_index, normalizer=divisor)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


def divided_dtensor(mesh, *case):
    with CommDebugMode() as communication:
        results = divided(lambda t, placement: distribute_tensor(t, mesh, [PLACEMENTS[placement]]), *case)
    # sums go from one to the other, but for distribute_tensor's own broadcast and scatter
    assert torch.ops.c10d_functional.all_gather_into_tensor not in communication.get_comm_counts()
    return [whole(t) for t in results]


LOSSES = {"bce": fl.binary_cross_entropy_with_logits, "focal": fl.sigmoid_focal_loss}


def focal(mesh, reduction, logits_placement, target_placement):
    z, y, _, _ = operands("plain")
    z = distribute_tensor(z, mesh, [PLACEMENTS[logits_placement]]).requires_grad_()
    y = distribute_tensor(y, mesh, [PLACEMENTS[target_placement]]).requires_grad_()
    loss = fl.sigmoid_focal_loss(z, y, gamma=1.5, reduction=reduction)
    grads = torch.autograd.grad((loss * loss).sum(), (z, y))
    return [whole(t.detach()) for t in (loss, *grads)]


def classes(mesh, reduction, placement, target_placement, ignore_index):
    """Class indices; where one process has not all classes the logits are gathered, else nothing but the count is."""
    z, index = operands("plain")[0], torch.tensor([2, 0, -1, 1, 3])
    z = distribute_tensor(z, mesh, [PLACEMENTS[placement]]).requires_grad_()
    index = distribute_tensor(index, mesh, [PLACEMENTS[target_placement]])
    mask = distribute_tensor(torch.tensor([True, False, True]), mesh, [Replicate()]) if ignore_index == 0 else None
    with CommDebugMode() as communication:
        loss = fl.binary_cross_entropy_with_logits(
            z, index, reduction=reduction, ignore_index=ignore_index, mask=mask
        )  # fmt: skip
        (grad,) = torch.autograd.grad((loss * loss).sum(), z)
    if placement == target_placement != "replicate":
        assert set(communication.get_comm_counts()) <= {torch.ops.c10d_functional.all_reduce}
    return [whole(loss.detach()), whole(grad)]


def raw_ops(mesh, reduction, placement):
    """The ops themselves, without the entry function: a mean of uneven shards must not be a mean of means."""
    z, y, _, p = operands("pos_weight")
    z, y = (distribute_tensor(t, mesh, [PLACEMENTS[placement]]) for t in (z, y))
    p = distribute_tensor(p, mesh, [Replicate()])
    loss, grad = ops.bce_with_grad(z, y, None, p, None, None, reduction, torch.double)
    one = distribute_tensor(torch.ones((), dtype=torch.double), mesh, [Replicate()])
    again = ops.bce_backward(one, z, y, None, p, None, None, reduction, ops.LOGITS)
    return [whole(t) for t in (ops.bce(z, y, None, p, None, None, reduction, torch.double), loss, grad, again)]


def ddp(mesh, rank):
    x, y = batch()
    losses, parameters = train(DistributedDataParallel(model()), x[rank::WORLD], y[rank::WORLD])
    for loss in losses:
        dist.all_reduce(loss)
    return [loss / WORLD for loss in losses], parameters


def fsdp2(mesh, rank):
    module, (x, y) = model(), batch()
    for layer in (module[0], module[2], module):
        fully_shard(layer, mesh=mesh)
    losses, parameters = train(module, x[rank::WORLD], y[rank::WORLD])
    for loss in losses:
        dist.all_reduce(loss)
    return [loss / WORLD for loss in losses], parameters


def tensor_parallel(mesh, rank):
    """The last layer's outputs, and with them the logits, stay divided among the processes."""
    module = copy.deepcopy(model())
    parallelize_module(module[2], mesh, ColwiseParallel(output_layouts=Shard(-1), use_local_output=False))
    x, y = batch()
    criterion = fl.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0, dtype=torch.double))
    criterion.pos_weight = distribute_tensor(criterion.pos_weight, mesh, [Replicate()])
    y = distribute_tensor(y, mesh, [Shard(1)])
    losses = []
    for _ in range(3):
        module.zero_grad()
        logits = module(x)
        assert list(logits.placements) == [Shard(1)]
        loss = criterion(logits, y)
        loss.backward()
        losses.append(whole(loss.detach()))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.5 * parameter.grad
    return losses, [whole(p.detach()) for p in module.parameters()]


class LayerModel(torch.nn.Module):
    """Its last layer is the fused one: called with the target, it returns the loss."""

    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(6, 8)
        self.head = fl.LinearBCEWithLogitsLoss(8, 4, pos_weight=torch.tensor(2.0, dtype=torch.double))

    def forward(self, x, target):
        return self.head(self.hidden(x).tanh(), target)


def layer_model():
    torch.manual_seed(2)
    return LayerModel().double()


def train_layer(module, x, y, steps=3):
    optimizer, losses = torch.optim.SGD(module.parameters(), lr=0.5), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module(x, y)
        loss.backward()
        optimizer.step()
        losses.append(whole(loss.detach()))
    return losses, [whole(p.detach()) for p in module.parameters()]


def mean_over_processes(losses, parameters):
    for loss in losses:
        dist.all_reduce(loss)
    return [loss / WORLD for loss in losses], parameters


def layer_ddp(mesh, rank):
    x, y = batch()
    return mean_over_processes(*train_layer(DistributedDataParallel(layer_model()), x[rank::WORLD], y[rank::WORLD]))


def layer_fsdp2(mesh, rank):
    module, (x, y) = layer_model(), batch()
    for part in (module.hidden, module.head, module):
        fully_shard(part, mesh=mesh)
    return mean_over_processes(*train_layer(module, x[rank::WORLD], y[rank::WORLD]))


def compiled(mesh, loss, reduction, placement):
    """Under torch.compile(fullgraph=True), with a grad_output that is not 1; uneven shards. -> eager's, compiled's."""
    torch._dynamo.reset()
    z, y, _, _ = operands("plain")
    mask = distribute_tensor(y < 0.7, mesh, [PLACEMENTS[placement]])
    y = distribute_tensor(y, mesh, [PLACEMENTS[placement]])
    results = []
    for run in (LOSSES[loss], torch.compile(LOSSES[loss], backend="aot_eager", fullgraph=True)):
        leaf = distribute_tensor(z, mesh, [PLACEMENTS[placement]]).requires_grad_()
        out = run(leaf, y, reduction=reduction, mask=mask)
        (3 * out).sum().full_tensor().backward()
        results.append([whole(out.detach()), whole(leaf.grad)])
    return results


def layer_fsdp2_predicts(mesh, rank):
    """The weight is gathered by a hook of the module's call, and only for it."""
    module, (x, _) = layer_model(), batch()
    fully_shard(module.head, mesh=mesh)
    hidden = module.hidden(x).tanh()
    return [module.head.logits(hidden).detach(), module.head.predict_proba(hidden).detach()]


def layer_dtensor(mesh, rank):
    """Labels divided among the processes."""
    module, (x, y) = layer_model(), batch()
    head = module.head
    w, b = (distribute_tensor(p.detach(), mesh, [Shard(0)]).requires_grad_() for p in (head.weight, head.bias))
    x, y, p = (
        distribute_tensor(t, mesh, [placement])
        for t, placement in (
            (module.hidden(x).tanh().detach(), Replicate()),
            (y, Shard(1)),
            (head.pos_weight, Replicate()),
        )
    )
    mask = distribute_tensor(torch.arange(4) < 3, mesh, [Replicate()])
    loss = fl.linear_binary_cross_entropy(x, w, y, linear_bias=b, pos_weight=p, mask=mask)
    return [whole(t.detach()) for t in (loss, *torch.autograd.grad(loss, (w, b)))]


def cases():
    for case in itertools.product(("none", "mean", "sum"), WEIGHTS, PLACEMENTS, PLACEMENTS):
        yield ("dtensor", *case), lambda mesh, rank, case=case: dtensor(mesh, *case)
    for case in itertools.product((ops.MEAN, ops.SUM), PLACEMENTS):
        yield ("raw", *case), lambda mesh, rank, case=case: raw_ops(mesh, *case)
    for case in itertools.product(LOSSES, OPTIONS, PLACEMENTS, PLACEMENTS):
        yield ("left out", *case), lambda mesh, rank, case=case: left_out(mesh, *case)
    for case in itertools.product(("none", "mean", "sum"), PLACEMENTS, ("replicate", "shard 0"), (None, 0)):
        yield ("classes", *case), lambda mesh, rank, case=case: classes(mesh, *case)
    for case in itertools.product(NORMALIZERS, DIVIDED, PLACEMENTS):
        yield ("divided", *case), lambda mesh, rank, case=case: divided_dtensor(mesh, *case)
    for case in itertools.product(("none", "mean", "sum"), PLACEMENTS, PLACEMENTS):
        yield ("focal", *case), lambda mesh, rank, case=case: focal(mesh, *case)
    for case in itertools.product(LOSSES, ("none", "mean", "sum"), PLACEMENTS):
        yield ("compiled", *case), lambda mesh, rank, case=case: compiled(mesh, *case)
    for case in (ddp, fsdp2, tensor_parallel, layer_ddp, layer_fsdp2, layer_fsdp2_predicts, layer_dtensor):
        yield (case.__name__,), case


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    mesh, results = init_device_mesh("cpu", (WORLD,)), {}
    for name, case in cases():
        try:
            results[name] = case(mesh, rank)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()

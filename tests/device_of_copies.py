"""A device of our own, "copies", for which nothing has a kernel: each operation of torch is carried out on CPU tensors.

What the package does for a device other than the CPU is run on it: the loss without a kernel of ours, and the layer as
it is on CUDA, torch's products around ``bce_tile_``, here that of fused_logistic/tiles.py: in it nothing may wait for
the device. ``python tests/device_of_copies.py`` compares with the CPU.
A process has room for one such device, hence the script. The registration of Python backends is experimental in torch.
"""

import functools
import itertools
import math

import torch
from conftest import layer_arguments, loss_arguments
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from fused_logistic import ops
from fused_logistic.autograd import BinaryCrossEntropyWithLogits, LinearBinaryCrossEntropy, linear_loss
from fused_logistic.options import Options

DEVICE = "copies"
aten = torch.ops.aten


class Copied(torch.Tensor):
    """``cpu_tensor`` holds the data."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def copied(cpu_tensor):
    tensor = torch._C._acc.create_empty_tensor(cpu_tensor.size(), cpu_tensor.dtype)
    tensor.__class__ = Copied
    tensor.cpu_tensor = cpu_tensor
    return tensor


def on_cpu(value):
    return value.cpu_tensor if isinstance(value, Copied) else value


# What reads a value, or makes a tensor whose size depends on values: on a GPU each waits until all before it is done.
WAITS = {
    getattr(getattr(aten, name), overload)
    for name, overload in [
        ("_local_scalar_dense", "default"), ("_copy_from", "default"), ("nonzero", "default"), ("equal", "default"),
        ("masked_select", "default"), ("_unique2", "default"), ("unique_dim", "default"), ("_coalesce", "default"),
        ("unique_consecutive", "default"), ("repeat_interleave", "Tensor"), ("bincount", "default"),
    ]
}  # fmt: skip
nothing_waits = False


def carry_out(op, *args, **kwargs):
    """``op`` on the CPU: any operation that torch dispatches to this device."""
    stays = op is aten._copy_from.default and all(isinstance(tensor, Copied) for tensor in args[:2])
    is_sized = op is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None
    if nothing_waits and op in WAITS and not stays and not is_sized:
        raise AssertionError(f"{op} waits for the device")
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Copied)]
    args, kwargs = tree_map(on_cpu, (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    if op is aten._copy_from.default:  # copy_ from or to this device
        op, args = aten.copy_.default, (args[1], args[0])
    if op in (aten.view.default, aten._reshape_alias.default, aten.as_strided.default):
        args = [args[0].contiguous(), *args[1:]]  # as the wrapper says that it is, and at the start of its memory
        if len(args) == 4 and args[3] is not None:
            args[3] += args[0].storage_offset()

    def wrapped(result):
        if not isinstance(result, torch.Tensor):
            return result
        same = [value for value in given if value.cpu_tensor is result]  # an operation in place
        return same[0] if same else copied(result)

    return tree_map(wrapped, op(*args, **kwargs))


# these would call their out= form with an empty tensor, and a wrapper cannot be resized
WHOLE = ["abs", "arange", "arange.start", "arange.start_step", "remainder.Scalar"]


def register():
    """-> what must live as long as the device does."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    everything, whole = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(carry_out, "PrivateUse1")
    for name in WHOLE:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(aten, packet), overload or "default")
        whole.impl(name, functools.partial(carry_out, op), "PrivateUse1")
    return everything, whole


def compare(op, leaves, *rest, factor=1.0, rtol=1e-12, atol=1e-13, may_wait=False):
    """A step with the same tensors on both devices; the leaves are those that a gradient is asked for."""
    global nothing_waits
    results = []
    for place in (copied, lambda tensor: tensor):
        here = [value if value is None else place(value.clone()).requires_grad_() for value in leaves]
        others = [place(value) if isinstance(value, torch.Tensor) else value for value in rest]
        nothing_waits = not may_wait
        loss = op(*here, *others)
        given = place(torch.full((), factor, dtype=loss.dtype))
        grads = torch.autograd.grad(loss if loss.dim() == 0 else loss.sum(), [t for t in here if t is not None], given)
        nothing_waits = False
        results.append([on_cpu(tensor) for tensor in (loss, *grads)])
    for a, b in zip(*results, strict=True):
        if not math.isfinite(factor):  # only what is finite then is the same in any order of the operations
            a, b = (torch.where(t.isfinite(), t, torch.nan) for t in (a, b))
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def losses():
    """-> how many steps of the elementwise loss were compared."""
    z, y = 3 * torch.randn(6, 5, dtype=torch.double), torch.rand(6, 5, dtype=torch.double)
    weights = [(None, None), (torch.rand(5, dtype=torch.double), torch.rand(6, 1, dtype=torch.double))]
    options = itertools.product(weights, [None, torch.rand(6, 5) < 0.7], [0, 1, 2], [0.0, 0.2], [None, 1], [None, 1.5])
    count = 0
    for (weight, pos_weight), mask, reduction, smoothing, ignored, gamma in options:
        target = y if ignored is None else (y > 0.5).long()
        rest = target, weight, pos_weight, mask, reduction, smoothing, ignored, None, gamma
        compare(lambda *given: BinaryCrossEntropyWithLogits.apply(*loss_arguments(*given)), [z], *rest, may_wait=True)
        count += 1
    return count


def layers():
    """-> how many steps of the layer were compared: one label and several, dense and sparse targets, chunks."""
    count = 0
    crow, col = torch.tensor([0, 2, 3, 3, 6, 6, 9]), torch.tensor([1, 1, 4, 0, 2, 3, 4, 0, 4])  # with a duplicate
    for labels, sparse in [(None, False), (1, False), (5, False), (5, True), (1, True)]:
        x, w = torch.randn(6, 3, dtype=torch.double), torch.randn(labels or 1, 3, dtype=torch.double)
        b, shape = torch.randn(labels or 1, dtype=torch.double), (6,) if labels is None else (6, labels)
        weights = [(None,) * 3, (*(torch.rand(s, dtype=torch.double) for s in (shape, 1)), torch.rand(shape) < 0.7)]
        options = itertools.product([None, b], weights, [0, 1, 2], [0.0, 0.2], [None, 1], [None, 24, 80])
        for bias, others, reduction, smoothing, ignored, chunk in options:
            target = torch.rand(9 if sparse else shape, dtype=torch.double)
            target = target if ignored is None else (target > 0.5).long()
            indices = (crow, col.clamp_max(labels - 1)) if sparse else (None, None)
            rest = target, *indices, *others, reduction, smoothing, ignored, chunk, None
            leaves = [x, w[0] if labels is None else w, bias]
            compare(lambda *given: LinearBinaryCrossEntropy.apply(*layer_arguments(*given)), leaves, *rest)
            count += 1
    return count


def half_layers():
    """-> likewise in fp16, whose tiles are fp32 on the CPU and get their factor late elsewhere."""
    count, eps = 0, torch.finfo(torch.half).eps
    x, w, b = torch.randn(6, 3).half(), torch.randn(5, 3).half(), torch.randn(5).half()
    mask, weight, target = torch.rand(6, 5) < 0.7, torch.rand(6, 1), torch.rand(6, 5)
    mask[2], mask[:, 1] = False, False
    function = lambda *given: LinearBinaryCrossEntropy.apply(*layer_arguments(*given))  # noqa: E731
    options = itertools.product([1.0, 1024.0, torch.inf], [0, 1, 2], [None, 20, 80], [None, weight])
    for factor, reduction, chunk, weights in options:
        rest = target, None, None, weights, None, mask, reduction, 0.0, None, chunk, None
        compare(function, [x, w, b], *rest, factor=factor, rtol=8 * eps, atol=8 * eps * min(factor, 1024))
        count += 1
    # what fp16 has no room for until it is divided by the number of elements, and a batch of nothing
    large = target, None, None, None, torch.tensor([2e5]), None, 1, 0.0, None, None, None
    compare(function, [x, w, b], *large, rtol=8 * eps, atol=0.5)
    nothing = target[:0], None, None, None, None, None, 2, 0.0, None, None, None
    compare(function, [x[:0], w, b], *nothing)
    return count + 2


def normalizers():
    """-> likewise of means over weights and positives; sparse targets, with and without what is ignored."""
    count = 0
    crow, col = torch.tensor([0, 2, 3, 3, 6, 6, 9]), torch.tensor([1, 1, 4, 0, 2, 3, 4, 0, 4])
    x, w, b = (torch.randn(*size, dtype=torch.double) for size in ((6, 3), (5, 3), (5,)))
    weights = [torch.rand(shape, dtype=torch.double) for shape in ((5,), (6, 1), (6, 5), ())]
    options = itertools.product(["weights", "positives"], weights, [None, torch.rand(6, 5) < 0.7], [None, 0, 1], [0, 1])
    for name, weight, mask, ignored, sparse in options:
        values = torch.rand(9 if sparse else (6, 5), dtype=torch.double).mul(3).floor()
        indices = (crow, col) if sparse else (None, None)

        def loss(x, w, b, values, crow, col, weight, mask, ignored, name):
            options = Options(0.0, ignored)
            return linear_loss((x, w, b), (values, crow, col), weight, None, mask, ops.MEAN, None, options, name)

        compare(loss, [x, w, b], values, *indices, weight, mask, ignored, name)
        count += 1
    return count


if __name__ == "__main__":
    library = register()
    torch.manual_seed(0)
    print(f"{losses()} steps of the loss, {layers() + half_layers() + normalizers()} of the layer equal to the CPU's")

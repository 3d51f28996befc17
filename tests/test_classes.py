"""Class indices as targets, one against all: what a dense one-hot target gives, to the bit. The CUDA kernels:
tests/test_cuda_kernels.py; DTensor: tests/test_distributed.py."""

import math

import pytest
import torch

import fused_logistic as fl
from fused_logistic import ops, targets
from tests.conftest import DTYPES, REDUCTIONS, grad_arguments, loss_arguments, same_bits
from tests.family import FAMILY

INDICES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
LOSSES = {"bce": fl.binary_cross_entropy_with_logits, "focal": fl.sigmoid_focal_loss}
IGNORED = 3
# shapes of logits; the first three are of more than a chunk of 8192 elements, the others of less
SHAPES = [
    (301, 37),
    (5, 7, 19, 17),
    (2, 3000, 3),
    (4, 2),
    (1, 5),
    (3, 2, 4),
    (6,),
    (2,),
    (7, 2, 3),
    (0, 3),
    (3, 0),
    (2, 3, 0),
]


def problem(shape, dtype=torch.float32, index=torch.int64):
    """(logits, class indices): of every class, below 0 where the dtype has it, and from the number of classes on."""
    logits = (3 * torch.randn(shape)).to(dtype)
    dim = targets.class_dim(shape)
    rows = [n for d, n in enumerate(shape) if d != dim]
    low = 0 if index == torch.uint8 else -2
    return logits, torch.randint(low, min(shape[dim], 100) + 3, rows).to(index)


def one_hot(logits, target, ignored=None):
    """(float32 target, mask) of the logits' shape."""
    dim = targets.class_dim(logits.shape)
    own = torch.arange(logits.shape[dim]).view(-1, *(1,) * (logits.dim() - dim - 1))
    index = target.long().unsqueeze(dim)
    hot = (index == own).float()
    kept = torch.ones_like(hot, dtype=torch.bool) if ignored is None else (index != ignored).expand(logits.shape)
    return hot, kept


def everything(logits, target, weight, pos_weight, mask, dtype, ignored, count, **options):
    """Every output of the ops for that target."""
    operands = logits, target, weight, pos_weight, mask
    wanted = [
        ops.LOGITS,
        *([ops.WEIGHT] if weight is not None else []),
        *([ops.POS_WEIGHT] if weight is not None else []),
    ]
    for reduction in range(3):
        given = count if reduction == ops.MEAN else None
        smoothing = options.get("label_smoothing", 0.0)
        rest = {key: value for key, value in options.items() if key != "label_smoothing"}
        loss = ops.bce(*operands, given, reduction, dtype, smoothing, ignored, **rest)
        yield loss
        if reduction != ops.NONE:
            yield from ops.bce_with_grad(*operands, given, reduction, dtype, smoothing, ignored, **rest)
        factor = torch.linspace(0.5, 2, loss.numel()).reshape(loss.shape)
        for wrt in wanted:
            yield ops.bce_backward(factor, *operands, given, reduction, wrt, smoothing, ignored, **rest)


def broadcast(shape):
    """weight and pos_weight: one value a class, one a row."""
    dim = targets.class_dim(shape)
    of_class = [n if d == dim else 1 for d, n in enumerate(shape)]
    of_row = [1 if d == dim else n for d, n in enumerate(shape)]
    return 0.5 + torch.rand(of_row), 0.5 + torch.rand(of_class)


@pytest.mark.parametrize("turn", range(20))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_has_the_bits_of_one_hot(shape, turn, isa):
    """By the kernels, with no option, with all of them, and of the focal loss; every dtype of both."""
    dtype, index = DTYPES[turn % 4], INDICES[turn % 5]
    logits, target = problem(shape, dtype, index)
    weight, pos_weight = broadcast(shape)
    mask = torch.rand(shape) < 0.8
    cases = [
        ({}, None, (None, None, None)),
        ({"label_smoothing": 0.1}, IGNORED, (None, None, mask)),
        ({"label_smoothing": 0.1}, 1, (weight, pos_weight, None)),  # a number that the one-hot target has
        ({"gamma": 2.0, "alpha": 0.25}, 0, (None, None, mask)),
        ({"gamma": 1.3}, None, (weight, pos_weight, None)),
    ]
    for options, ignored, (w, p, m) in cases:
        hot, kept = one_hot(logits, target, ignored)
        kept = kept if m is None else kept & m
        count = None if ignored is None and m is None else kept.sum().double()
        counted = targets.class_count(logits.shape, target, m, ignored)
        assert counted.item() == kept.sum() and counted.dtype == torch.float64
        got = everything(logits, target, w, p, m, dtype, ignored, count, **options)
        want = everything(logits, hot, w, p, None if count is None else kept, dtype, None, count, **options)
        for a, b in zip(got, want, strict=True):
            assert same_bits(a, b)


LAYOUTS = {
    "transposed": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "channels last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "narrowed": lambda z: torch.cat([z, z], -1)[..., : z.shape[-1]],
    "reversed": lambda z: z.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Of the logits, and of a target that lies otherwise than these or is expanded."""
    logits, target = problem((5, 7, 19, 17))
    logits = LAYOUTS[layout](logits)
    for given in (target, target.permute(2, 1, 0).contiguous().permute(2, 1, 0), target[:, :1].expand(-1, 19, -1)):
        hot, _ = one_hot(logits, given)
        for reduction in REDUCTIONS:
            a, b = (
                fl.binary_cross_entropy_with_logits(logits, t, reduction=reduction, pos_weight=torch.rand(7, 1, 1))
                if torch.manual_seed(0)
                else None
                for t in (given, hot)
            )
            assert same_bits(a, b)
        arguments = (grad_arguments(logits, t, reduction=ops.SUM) for t in (given, hot))
        assert same_bits(
            *(ops.bce_backward(torch.rand(5, 7, 1, 1) if torch.manual_seed(0) else None, *a) for a in arguments)
        )


def test_any_number_of_threads():
    logits, target = problem((700, 91))
    hot, _ = one_hot(logits, target)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found += [ops.bce_with_grad(*loss_arguments(logits, t)) for t in (target, hot)]
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_no_one_hot_matrix_is_made():
    """32 MB of logits: what a step allocates beside its gradient is less than such a matrix of bools would take."""
    logits, target = torch.randn(8000, 1000, requires_grad=True), torch.randint(0, 1000, (8000,))
    with torch.profiler.profile(profile_memory=True) as profiled:
        fl.binary_cross_entropy_with_logits(logits, target, ignore_index=3).backward()
    taken = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0]
    assert sum(n for n in taken if n >= 8_000_000) <= logits.nbytes, taken  # our own blocks are not seen at all


def step(function, logits, target, others=(), **options):
    logits = logits.clone().requires_grad_()
    leaves = {name: t.clone().requires_grad_() for name, t in dict(others).items()}
    loss = function(logits, target, **leaves, **options)
    factor = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, [logits, *leaves.values()], factor)


PUBLIC = [(5, 4), (5, 4, 3), (4,)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", PUBLIC, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_public_functions(name, shape, reduction):
    """Values and gradients against the dense target, by every way to leave rows out; no NaN of one that is."""
    logits, target = problem(shape, torch.double)
    weight, pos_weight = (t.double() for t in broadcast(shape))
    mask = torch.rand(shape) < 0.8
    smoothing = {"label_smoothing": 0.1} if name == "bce" else {"gamma": 1.5}
    for options, ignored in (
        ({}, None),
        ({"ignore_index": 1}, 1),
        ({"mask": mask}, None),
        ({"ignore_index": 2, "mask": mask}, 2),
    ):
        hot, kept = one_hot(logits, target, ignored)
        kept = kept & options.get("mask", torch.tensor(True))
        logits = torch.where(kept, logits, math.nan)
        others = {"weight": weight, "pos_weight": pos_weight}
        got = step(LOSSES[name], logits, target, others, reduction=reduction, ignore_nan=True, **smoothing, **options)
        want = step(LOSSES[name], logits, hot.double(), others, reduction=reduction, mask=kept, **smoothing)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, equal_nan=bool(kept.sum() == 0))
        logits = torch.where(kept, logits, 0.3)


def test_autocast_and_result_dtypes():
    """As for any integer target."""
    for dtype in DTYPES:
        logits, target = problem((5, 4), dtype)
        assert fl.binary_cross_entropy_with_logits(logits, target).dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            want = fl.binary_cross_entropy_with_logits(logits, one_hot(logits, target)[0].long()).dtype
            assert fl.binary_cross_entropy_with_logits(logits, target).dtype == want


def test_options_that_are_tensors():
    logits, target = problem((5, 4), torch.double)
    hot, kept = one_hot(logits, target, 1)
    for name, option in (("bce", "label_smoothing"), ("focal", "gamma"), ("focal", "alpha")):
        value = torch.full((4,), 0.3, dtype=torch.double)
        got = step(LOSSES[name], logits, target, {option: value}, reduction="mean", ignore_index=1)
        want = step(LOSSES[name], logits, hot.double(), {option: value}, reduction="mean", mask=kept)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_nothing_left():
    logits = torch.full((3, 2), math.nan, requires_grad=True)
    for reduction, want in (("none", [[0, 0]] * 3), ("sum", 0)):
        loss = fl.binary_cross_entropy_with_logits(logits, torch.full((3,), 1), ignore_index=1, reduction=reduction)
        assert loss.tolist() == want
    loss = fl.binary_cross_entropy_with_logits(logits, torch.full((3,), 1), ignore_index=1)
    assert loss.isnan() and torch.autograd.grad(loss, logits)[0].tolist() == [[0, 0]] * 3


def test_indices_are_compared_as_integers():
    """Not in the arithmetic's type, in which 2^24 and 2^24 + 1 are one; an ignored value that the dtype lacks."""
    logits, large = torch.randn(2, 3), 2**24
    loss = fl.binary_cross_entropy_with_logits
    none = loss(logits, torch.full((2,), -1))
    assert loss(logits, torch.full((2,), large + 1), ignore_index=large).equal(none)
    assert loss(logits, torch.tensor([2**62 + 1, -(2**63)]), ignore_index=2**62).equal(none)
    for index, value in ((torch.uint8, 256), (torch.int8, 257)):
        target = torch.tensor([0, 1], dtype=index)
        torch.testing.assert_close(loss(logits, target, ignore_index=value), loss(logits, target))


def test_module():
    logits, target = problem((5, 4))
    criterion = fl.BCEWithLogitsLoss(pos_weight=torch.rand(4), ignore_index=1, label_smoothing=0.1)
    want = fl.binary_cross_entropy_with_logits(
        logits, target, pos_weight=criterion.pos_weight, ignore_index=1, label_smoothing=0.1
    )
    assert criterion(logits, target).equal(want)


def test_what_takes_none():
    """The layer, nested logits, and the derivative by the target."""
    x, w, index = torch.randn(4, 5), torch.randn(3, 5), torch.zeros(4).long()
    layer = fl.linear_binary_cross_entropy
    for call in (
        lambda: layer(x, w, index),
        lambda: layer(x.requires_grad_(), w, index),
        lambda: layer(x.detach().to_sparse_csr(), w, index),
        lambda: torch.vmap(lambda x: layer(x, w, index))(torch.randn(2, 4, 5)),
        lambda: torch.func.grad(lambda w: layer(x.detach(), w, index))(w),
        lambda: ops.linear_bce_single(
            x.detach(), w[0], None, index[0], *[None] * 5, ops.SUM, torch.float32, [False] * 3
        ),
    ):
        with pytest.raises((ValueError, RuntimeError), match="target"):
            call()
    parts = [torch.randn(n, 3) for n in (2, 3)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    labels = torch.nested.nested_tensor([torch.zeros(n).long() for n in (2, 3)], layout=torch.jagged)
    same = torch.nested.nested_tensor_from_jagged(labels.values(), nested.offsets())
    for target in (labels, same):
        with pytest.raises(
            NotImplementedError, match="expected a target of the nested logits' shape, got class indices"
        ):
            fl.binary_cross_entropy_with_logits(nested, target)
    with pytest.raises(ValueError, match="result of dtype float64"):
        ops.bce_backward(torch.ones(()), torch.randn(4, 3), index, *[None] * 4, ops.SUM, ops.TARGET)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (3, 1, 2)])
def test_a_single_class_is_refused(shape):
    """Labels of 0 and 1 whose dimension was forgotten: as indices, 0 would be the positive."""
    logits, target = torch.randn(shape), torch.zeros(shape[:1] + shape[2:] if len(shape) > 1 else ()).long()
    for given in (logits, logits.clone().requires_grad_()):
        with pytest.raises(ValueError, match=r"expected target of shape \[.*1.*\], got"):
            fl.binary_cross_entropy_with_logits(given, target)
    if len(shape) > 1:  # a number beside one logit is that one's label
        with pytest.raises(ValueError, match="expected target of shape"):
            torch.func.vmap(fl.binary_cross_entropy_with_logits)(logits.unsqueeze(0), target.unsqueeze(0))
    with pytest.raises(ValueError, match="expected target of shape"):
        torch.func.grad(lambda z: fl.binary_cross_entropy_with_logits(z, target))(logits)


@pytest.mark.parametrize("member", FAMILY, ids=str)
def test_the_family_takes_them(member):
    logits, index = 3 * torch.randn(50, 7), torch.randint(-1, 9, (50,))
    one_hot = (index.unsqueeze(1) == torch.arange(7)).float()
    for options in ({}, {"weight": torch.rand(7), "mask": torch.rand(50, 7) < 0.8, "normalizer": "positives"}):
        a, b = (member.public(logits, y, reduction="mean", **options) for y in (index, one_hot))
        assert same_bits(a, b)

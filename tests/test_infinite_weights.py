"""0 times an infinite weight is 0: in the kernels, the layer, the composition and the reference; NaN stays NaN."""

import itertools
import math

import pytest
import torch

import fused_logistic as fl
from fused_logistic import _C, ops, reference
from tests.conftest import grad_arguments, layer_arguments, loss_arguments, same_bits, tile_arguments

INF = math.inf


def table(dtype):
    """Every combination of logits, targets and weights, among them 0 and infinity; -> z, y, p, w."""
    z = (-INF, -300.0, -1.5, 0.0, 0.7, 300.0, INF)
    rows = itertools.product(z, (0.0, 1.0, 0.25), (INF, 0.0, 1.0, 2.5), (INF, 0.0, 1.0, 0.5))
    return tuple(torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True))


def product(a, b):
    return 0.0 if a == 0 or b == 0 else a * b


def mathematics(z, y, p, w, gamma):
    """The loss and its derivatives by z, y, w and p, each term 0 where its weight is, by Python's numbers."""
    e = math.exp(-abs(z))
    small, large = math.log1p(e), abs(z) + math.log1p(e)
    below, above = (large, small) if z < 0 else (small, large)  # softplus(-z), softplus(z)
    s = e / (1 + e)
    up, down = (s, 1 / (1 + e)) if z < 0 else (1 / (1 + e), s)
    positive, q = product(p, y), y * down + (1 - y) * up

    def focal(value, slope, of):
        if gamma is None:
            return value
        return product(q**gamma, value + product(gamma * slope / q if q else 0.0, of))

    def loss(w):
        return product(product(w, positive), below) + product(product(w, 1 - y), above)

    by_z = product(product(w, 1 - y), up) - product(product(w, positive), down)
    by_y = product(w, product(p, below) - above)
    return (
        focal(loss(w), 0, 0), focal(by_z, (1 - 2 * y) * up * down, loss(w)), focal(by_y, down - up, loss(w)),
        focal(loss(1.0), 0, 0), focal(product(product(w, y), below), 0, 0),
    )  # fmt: skip


def computed(z, y, p, w, gamma=None, reduction=ops.NONE):
    one = torch.ones((), dtype=z.dtype)
    tensors = (z, y, w, p, None)
    derivatives = [
        ops.bce_backward(one, *grad_arguments(*tensors, reduction=reduction, wrt=wrt, gamma=gamma)) for wrt in range(4)
    ]
    return [ops.bce(*loss_arguments(*tensors, reduction=reduction, gamma=gamma)), *derivatives]


@pytest.mark.parametrize("gamma", [None, 2.0], ids=["bce", "focal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_combination(dtype, gamma, isa):
    operands = table(dtype)
    found = computed(*operands, gamma)
    for i, (z, y, p, w) in enumerate(zip(*(t.tolist() for t in operands), strict=True)):
        if gamma is not None and abs(z) > 100:
            continue  # q^gamma is 0, or infinite terms of both signs meet
        for k, (got, want) in enumerate(zip(found, mathematics(z, y, p, w, gamma), strict=True)):
            if k == 2 and (w == INF and abs(z) > 100 if gamma is None else INF in (p, w)):
                continue  # what the weight multiplies underflows; infinite terms of both signs
            value = torch.tensor(want, dtype=dtype)
            torch.testing.assert_close(
                got[i],
                value,
                rtol=1e-5,
                atol=1e-30,
                equal_nan=True,
                msg=f"output {k} at {z, y, p, w}: {got[i]}, {want}",
            )


def test_nan_stays(isa):
    for place, finite in itertools.product(
        range(4), ((0.5, 0.0, INF, 1.0), (0.5, 1.0, INF, 0.0), (0.5, 0.0, 2.0, INF))
    ):
        operands = [torch.tensor([math.nan if i == place else value]) for i, value in enumerate(finite)]
        loss, by_z, *_ = computed(*operands)
        assert loss.isnan().all() and by_z.isnan().all(), (place, finite)


@pytest.mark.parametrize("gamma", [None, 2.0, 0.5], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_neighbours_keep_their_bits(dtype, gamma, isa):
    """What is computed again with an infinite weight is what it was without, also as a sum's gradient and in place."""
    n = 2 * _C.CHUNK + 1029
    z, y = 9 * torch.randn(n).to(dtype), torch.rand(n).round(decimals=1).to(dtype)
    p, w = 3 * torch.rand(n).to(dtype), torch.rand(n).to(dtype)
    y[::5], w[::7] = 0, 0
    w[7::41] = -0.0
    others = torch.rand(n) < 0.999
    special = [torch.where(others, t, value) for t, value in ((z, z), (y, 0), (p, INF), (w, w))]
    for a, b in zip(computed(z, y, p, w, gamma), computed(*special, gamma), strict=True):
        assert same_bits(a[others], b[others])
    _, grad = ops.bce_with_grad(*loss_arguments(z, y, w, p, None, ops.SUM, gamma=gamma))
    loss, of_special = ops.bce_with_grad(
        *loss_arguments(*special[:2], special[3], special[2], None, ops.SUM, gamma=gamma)
    )
    assert same_bits(grad[others], of_special[others]) and loss.isfinite() and of_special.isfinite().all()
    finite = torch.where(special[2].isinf(), torch.ones_like(p), special[2])  # of a target of 0 it says nothing
    expected = ops.bce_with_grad(*loss_arguments(*special[:2], special[3], finite, None, ops.SUM, gamma=gamma))
    assert same_bits(loss, expected[0]) and same_bits(of_special, expected[1])
    if gamma is None:
        tiles = []
        for weights in (special[2], finite):
            tile = special[0].clone().view(1, n)
            loss, weights = torch.zeros((), dtype=torch.double), (special[3].view(1, n), weights.view(1, n))
            ops.bce_tile_(*tile_arguments(tile, special[1].view(1, n), *weights, loss_sum=loss))
            tiles += [tile, loss]
        assert same_bits(tiles[0], tiles[2]) and same_bits(tiles[1], tiles[3])
        assert same_bits(tiles[0].view(-1), expected[1])


@pytest.mark.parametrize("labels", [1, 5])
def test_layer(labels, isa):
    """A label without positives and with an infinite pos_weight; and one that has no weight at all. Sparse likewise."""
    x, target = torch.randn(50, 7), torch.randint(0, 2, (50, labels)).float()
    weight, bias = torch.randn(labels, 7), torch.randn(labels)
    infinite, finite, w = torch.ones(labels), torch.ones(labels), torch.ones(labels)
    infinite[0], target[:, 0] = INF, 0
    if labels > 1:
        infinite[1], w[1] = INF, 0
        finite[1] = 1
    for given in ((target,), (target.to_sparse_csr(),)):
        y, crow, col = given[0], None, None
        if y.layout != torch.strided:
            y, crow, col = y.values(), y.crow_indices(), y.col_indices()
        results = []
        for p in (infinite, finite):
            arguments = layer_arguments(x, weight, bias, y, crow, col, w, p, output_mask=[True] * 3)
            results.append(ops.linear_bce_with_grad(*arguments))
        for a, b in zip(*results, strict=True):
            assert a.isfinite().all() and same_bits(a, b)


# ---- The composition and the reference -------------------------------------------------------------------------------


def without_infinities():
    """Operands of which some are infinite where that says nothing, and finite ones that say the same."""
    z = torch.tensor([0.3, -2.0, 1.5, -0.4, 0.9], dtype=torch.double)
    y = torch.tensor([0.0, 0.0, 0.3, 1.0, 0.8], dtype=torch.double)
    p = torch.tensor([INF, INF, 2.0, INF, 0.5], dtype=torch.double)
    w = torch.tensor([0.5, 2.0, 1.0, 0.0, 0.7], dtype=torch.double)
    return (z, y, p, w), (z, y, torch.where(p.isinf(), 1, p), w)


@pytest.mark.parametrize("gamma", [None, 2.0], ids=["bce", "focal"])
def test_transforms(gamma):
    """By the logits and weights to the second order."""
    infinite, finite = without_infinities()

    def loss(z, w, y, p):
        return ops.bce(*loss_arguments(z, y, w, p, None, ops.SUM, gamma=gamma, alpha=gamma and 0.25))

    func, ours = torch.func, []
    for z, y, p, w in (infinite, finite):
        leaves = [t.clone().requires_grad_() for t in (z, w)]
        first = torch.autograd.grad(loss(*leaves, y, p), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum((g**2).sum() for g in second), leaves)
        sample = lambda z, w, y, p: loss(z[None], w[None], y[None], p[None])  # noqa: E731
        # where w is 0, an infinite p makes the derivative by w infinite
        at = w != 0
        ours.append(
            [
                loss(z, w, y, p), first[0], first[1][at], second[0][at], third[0][at],
                func.grad(loss)(z, w, y, p), func.grad(loss, 1)(z, w, y, p)[at],
                func.jvp(lambda z, w=w, y=y, p=p: loss(z, w, y, p), (z,), (z.cos(),))[1],
                func.hessian(loss)(z, w, y, p),
                func.vmap(sample)(z, w, y, p), func.vmap(func.grad(sample))(z, w, y, p),
                torch.compile(func.grad(loss), backend="aot_eager", fullgraph=True)(z, w, y, p),
            ]
        )  # fmt: skip
    for i, (a, b) in enumerate(zip(*ours, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, msg=f"{i}: {a}, {b}")


def test_composition_and_kernel_agree():
    """By every operand, at infinite weights that count too: infinite, or the largest number, which stands for it."""
    z, y, p, w = (t.clamp(-50, 50) if i == 0 else t for i, t in enumerate(table(torch.double)))
    leaves = [t.clone().requires_grad_() for t in (z, y, p, w)]
    one = torch.ones_like(z)
    kernel = computed(z, y, p, w)
    tensors = (leaves[0], leaves[1], leaves[3], leaves[2], None)
    composed = [ops.bce(*loss_arguments(*tensors, reduction=ops.NONE))]
    for wrt in range(4):
        composed.append(ops.bce_backward(one, *grad_arguments(*tensors, reduction=ops.NONE, wrt=wrt)))
    clamp = lambda t: t.detach().nan_to_num(nan=7.0, posinf=1e300, neginf=-1e300).clamp(-1e300, 1e300)  # noqa: E731
    for i, (a, b) in enumerate(zip(kernel, composed, strict=True)):
        torch.testing.assert_close(clamp(a), clamp(b), rtol=1e-9, atol=1e-15, msg=lambda text, i=i: f"{i}: {text}")


def test_reference():
    z, y, p, w = table(torch.double)
    found = computed(z, y, p, w)
    exact = (
        reference.loss(z, y, w, p), reference.grad_logits(z, y, w, p), reference.grad_target(z, y, w, p),
        reference.grad_weight(z, y, p), reference.grad_pos_weight(z, y, w),
    )  # fmt: skip
    # a soft target's terms are both infinite with the weight: NaN in the kernels, but w times a number in the reference
    clear = w.isfinite() | (y == 0) | (y == 1)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a[clear], b[clear], rtol=1e-12, atol=1e-300, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_without_positives(reduction):
    """The ratio of negatives and positives as pos_weight, as people write it."""
    target = torch.zeros(6)
    ratio = (target == 0).sum() / (target == 1).sum()
    logits = torch.randn(6, requires_grad=True)
    loss = fl.binary_cross_entropy_with_logits(logits, target, pos_weight=ratio, reduction=reduction)
    finite = torch.ones(())  # any: without it the losses are grouped, and their sum has other last bits
    plain = fl.binary_cross_entropy_with_logits(logits, target, pos_weight=finite, reduction=reduction)
    assert ratio.isinf() and same_bits(loss, plain)
    assert same_bits(*(torch.autograd.grad(t.sum(), logits)[0] for t in (loss, plain)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_weight_of_0_hides_none_that_is_infinite(reduction, isa):
    """alpha = 1: negatives weigh nothing, by the loss and by the gradient that is made with it."""
    logits, target = torch.randn(300), torch.zeros(300)
    logits[:3] = torch.tensor([INF, -INF, 100.0])
    logits.requires_grad_()
    loss = fl.sigmoid_focal_loss(logits, target, alpha=1.0, pos_weight=INF, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.count_nonzero() == 0 and grad.equal(torch.zeros(300))

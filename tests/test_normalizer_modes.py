"""What a mean divides by: under transforms, in the layer, of nested tensors and in modules."""

import pytest
import torch
import torch.nn.functional as F
from normalizer_formula import (
    FEATURES,
    LABELS,
    LEFT_OUT,
    NAMES,
    ROWS,
    WEIGHTS,
    assert_same,
    given,
    layer,
    operands,
    truth,
)

import fused_logistic as fl
from fused_logistic import made_for, ops
from tests.conftest import same_bits

# ---- Transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", ["nothing", "mask", "ignored"])
@pytest.mark.parametrize("name", ["weights", "positives", "tensor"])
def test_func(name, left_out):
    z, y, options = operands("label", left_out)
    w, n = options.pop("weight"), torch.tensor(2.5, dtype=torch.double)

    def loss_by(function):
        return lambda z, w, n: function(z, y, normalizer=n if name == "tensor" else name, weight=w, **options)

    ours, theirs = loss_by(fl.binary_cross_entropy_with_logits), loss_by(truth)
    every, func = (0, 1, 2), torch.func
    for transform in (func.grad, func.jacfwd, func.hessian):
        got, want = (transform(function, every)(z, w, n) for function in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    tangents = torch.randn_like(z), torch.randn_like(w), torch.ones_like(n)
    got, want = (func.jvp(function, (z, w, n), tangents) for function in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("left_out", ["nothing", "mask", "ignored"])
@pytest.mark.parametrize("name", ["weights", "positives", "tensor", "number"])
def test_vmap(name, left_out):
    """Each sample is divided by its own."""
    z, y, options = operands("all", left_out)
    w, n = options.pop("weight"), torch.rand(ROWS, dtype=torch.double) + 1
    mask = options.pop("mask", torch.ones(ROWS, LABELS, dtype=torch.bool))

    def loss(z, y, w, mask, n):
        normalizer = n if name == "tensor" else given(name)
        return fl.binary_cross_entropy_with_logits(z, y, w, mask=mask, normalizer=normalizer, **options)

    batch = z, y, w, mask, n
    each = [loss(*sample) for sample in zip(*batch, strict=True)]
    torch.testing.assert_close(torch.func.vmap(loss)(*batch), torch.stack(each), equal_nan=True)
    grads = torch.func.vmap(torch.func.grad(loss, (0, 2)))(*batch)
    each = [torch.func.grad(loss, (0, 2))(*sample) for sample in zip(*batch, strict=True)]
    for got, want in zip(grads, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want), equal_nan=True)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("left_out", ["nothing", "both"])
@pytest.mark.parametrize("name", ["weights", "positives", "tensor"])
def test_compile(name, left_out, requires_grad):
    torch._dynamo.reset()
    z, y, options = operands("label", left_out)
    normalizer = given(name)
    leaves = [z.requires_grad_(), options["weight"].requires_grad_(requires_grad)][: 1 + requires_grad]
    if name == "tensor" and requires_grad:
        leaves.append(normalizer.requires_grad_())
    compiled = torch.compile(fl.binary_cross_entropy_with_logits, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_same(compiled(z, y, normalizer=normalizer, **options), truth(z, y, normalizer, **options), leaves)


def test_a_number_that_changes_is_not_compiled_in():
    torch._dynamo.reset()
    z, y, _ = operands()
    compiled = torch.compile(fl.binary_cross_entropy_with_logits, backend="aot_eager", fullgraph=True)
    with torch._dynamo.utils.preserve_rng_state():
        for n in (2.0, 3.5, 7.25, 8.5):
            torch.testing.assert_close(compiled(z, y, normalizer=n), truth(z, y, n))


def test_export():
    class Loss(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.loss = fl.BCEWithLogitsLoss(weight=torch.rand(LABELS), normalizer=name)

        def forward(self, z, y, mask):
            return self.loss(z, y, mask)

    z, y, options = operands("label", "mask", torch.float)
    for name in ("elements", "weights", "positives", 2.5):
        module = Loss(name)
        exported = torch.export.export(module, (z, y, options["mask"])).module()
        torch.testing.assert_close(exported(z, y, options["mask"]), module(z, y, options["mask"]))


# ---- The layer, nested tensors, modules ------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_layer(name, weight, left_out, requires_grad):
    """Dense, with tiles of a few logits, and with one label."""
    _, y, options = operands(weight, left_out)
    normalizer, extra = given(name), []
    if requires_grad:
        extra = [t.requires_grad_() for t in (options["weight"], normalizer) if isinstance(t, torch.Tensor)]
    for labels, chunk in ((LABELS, None), (LABELS, 64), (1, None)):
        x, w, b = layer()
        few = {n: t[..., :labels] if isinstance(t, torch.Tensor) and t.dim() > 0 else t for n, t in options.items()}
        w, b, target = w[:labels], b[:labels], y[:, :labels]
        if few.get("mask") is not None and not few["mask"].any():
            few["mask"] = ~few["mask"]
        loss = fl.linear_binary_cross_entropy(
            x, w, target, linear_bias=b, normalizer=normalizer, chunk_bytes=chunk, **few
        )
        want = truth(F.linear(x, w, b), target, normalizer, **few)
        used = [t for t in extra if t is not normalizer or name == "tensor"]
        assert_same(loss, want, [x, w, b, *used], rtol=1e-9)


def sparse(y, layout, duplicates):
    """The target as a sparse tensor: what is 0 is not listed, but for one; with duplicates, halves."""
    listed = y != 0
    listed[2, 2] = True
    index = listed.nonzero().t()
    values = y[listed]
    if duplicates:
        index, values = torch.cat([index, index], 1), torch.cat([values, values]) / 2
    coo = torch.sparse_coo_tensor(index, values, y.shape)
    if layout == torch.sparse_coo:
        return coo
    return coo.to_sparse_csr()


@pytest.mark.parametrize("left_out", [*LEFT_OUT, "zeros"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", ["elements", "weights", "positives"])
def test_sparse_targets(name, weight, left_out):
    """zeros: all that is not listed is ignored."""
    _, y, options = operands(weight, left_out)
    if left_out == "zeros":
        options["ignore_index"] = 0
    leaves = x, w, b = layer()
    want = truth(F.linear(x, w, b), y, name, **options)
    for layout, duplicates in ((torch.sparse_csr, False), (torch.sparse_csr, True), (torch.sparse_coo, True)):
        target = sparse(y, layout, duplicates)
        loss = fl.linear_binary_cross_entropy(x, w, target, linear_bias=b, normalizer=name, **options)
        assert_same(loss, want, leaves, rtol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["elements", "weights", "positives"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
def test_sparse_targets_of_an_integer_dtype(dtype, name, masked):
    """Their values, a dimension less than the logits, are no class indices: what is listed as 0 is no positive."""
    x, w, b = layer()
    y = torch.randint(0, 2, (ROWS, LABELS), dtype=dtype)
    every = torch.arange(ROWS * LABELS)
    target = torch.sparse_coo_tensor(torch.stack([every // LABELS, every % LABELS]), y.flatten(), y.shape)
    options = {"weight": torch.rand(LABELS) + 0.1, "mask": torch.rand(ROWS, 1) < 0.6 if masked else None}
    losses = [
        fl.linear_binary_cross_entropy(x, w, t, linear_bias=b, normalizer=name, **options)
        for t in (y, target, target.to_sparse_csr())
    ]
    for got in losses[1:]:
        torch.testing.assert_close(got, losses[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["weights", "positives"])
def test_sparse_features(name):
    _, y, options = operands("label", "mask")
    x, w, b = layer()
    x = x.detach() * (x > 0)
    loss = fl.linear_binary_cross_entropy(x.to_sparse_csr(), w, y, linear_bias=b, normalizer=name, **options)
    assert_same(loss, truth(F.linear(x, w, b), y, name, **options), [w, b], rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_jagged(name):
    parts = [torch.randn(n, LABELS, dtype=torch.double) for n in (3, 1, 4)]
    target = [(torch.rand_like(p) > 0.5).double() for p in parts]
    w = torch.rand(LABELS, dtype=torch.double)
    z = torch.nested.nested_tensor(parts, layout=torch.jagged)
    y = torch.nested.nested_tensor_from_jagged(torch.cat(target), z.offsets())
    loss = fl.binary_cross_entropy_with_logits(z, y, w, normalizer=given(name))
    torch.testing.assert_close(loss, truth(torch.cat(parts), torch.cat(target), given(name), w))


def test_modules():
    z, y, options = operands("label", "mask")
    x, w, b = layer()
    mask, weight = options["mask"], options["weight"]
    head = fl.LinearBCEWithLogitsLoss(FEATURES, LABELS, weight=weight, normalizer="weights", dtype=torch.double)
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector([w, b]), head.parameters())
    assert_same(head(x, y, mask), truth(F.linear(x, w, b), y, "weights", **options), [x], rtol=1e-9)
    criterion = fl.BCEWithLogitsLoss(weight=weight, normalizer="positives")
    torch.testing.assert_close(criterion(z, y, mask), truth(z, y, "positives", **options))
    for n in (torch.tensor(3.0), 4, "weights"):  # set anew from step to step
        criterion.normalizer = n
        torch.testing.assert_close(criterion(z, y, mask), truth(z, y, n, **options))
    assert list(criterion.state_dict()) == ["weight"]


def test_repr():
    assert repr(fl.BCEWithLogitsLoss(normalizer="positives")) == "BCEWithLogitsLoss(normalizer='positives')"
    assert repr(fl.BCEWithLogitsLoss(normalizer=torch.tensor(3.0))) == "BCEWithLogitsLoss(normalizer=[])"
    layer = fl.LinearBCEWithLogitsLoss(3, 2, normalizer=2.5)
    assert repr(layer).endswith("in_features=3, num_labels=2, bias=True, normalizer=2.5)")


def test_autocast_and_loss_scale():
    """A loss scale that is not 1 has the gradient made for it from the second step on, over the same divisor."""
    made_for._last.clear()
    z, y, options = operands("label", "mask", torch.float)
    results = []
    for _ in range(3):
        leaf = z.clone().requires_grad_()
        loss = fl.binary_cross_entropy_with_logits(leaf, y, normalizer="weights", **options)
        (1024 * loss).backward()
        results.append(leaf.grad)
    assert all(same_bits(r, results[0]) for r in results)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fl.binary_cross_entropy_with_logits(z.bfloat16(), y, normalizer="weights", **options)
    assert loss.dtype == torch.float32


def test_the_raw_op_with_a_count_that_is_differentiated():
    """No Function differentiates it: the op is the composition there."""
    z, y, _ = operands()
    count = torch.tensor(2.5, dtype=torch.double, requires_grad=True)
    for requires_grad in (False, True):
        leaf = z.clone().requires_grad_(requires_grad)
        loss = ops.bce(leaf, y, None, None, None, count, ops.MEAN, torch.double)
        assert_same(loss, truth(leaf, y, count), [count] + [leaf] * requires_grad)
    x, w, b = layer()
    loss = ops.linear_bce(x, w, b, y, None, None, None, None, None, count, ops.MEAN, None, torch.double)
    assert_same(loss, truth(F.linear(x, w, b), y, count), [x, w, b, count], rtol=1e-9)

"""What a mean divides by: elements, weights, positives, or what is given. Against the formula in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

import fused_logistic as fl
from fused_logistic import made_for, ops
from tests.conftest import same_bits

ROWS, LABELS, FEATURES = 6, 5, 3
NAMES = ["elements", "weights", "positives", "tensor", "number"]
WEIGHTS = {"none": None, "number": 1.5, "scalar": (), "label": (LABELS,), "row": (ROWS, 1), "all": (ROWS, LABELS)}
LEFT_OUT = ["nothing", "mask", "mask of a row", "mask of labels", "ignored", "both"]


def operands(weight="label", left_out="nothing", dtype=torch.double):
    """(logits, target, options); -1 is the ignored target."""
    z, y = 3 * torch.randn(ROWS, LABELS, dtype=dtype), (torch.rand(ROWS, LABELS) * 2 - 1).clamp_min(0).to(dtype)
    shape = WEIGHTS[weight]
    w = shape if shape is None or isinstance(shape, float) else torch.rand(shape, dtype=dtype) + 0.1
    options = {"weight": w}
    if left_out in ("ignored", "both"):
        y[0], y[3, 1] = -1, -1
        options["ignore_index"] = -1
    if left_out in ("mask", "both"):
        options["mask"] = torch.rand(ROWS, LABELS) < 0.6
    if left_out.startswith("mask of"):
        options["mask"] = torch.rand((ROWS, 1) if left_out.endswith("row") else (LABELS,)) < 0.6
        options["mask"].view(-1)[0] = True
    return z, y, options


def given(name):
    return {"tensor": torch.tensor([2.5]), "number": 2.5}.get(name, name)


def kept_of(y, options):
    kept = torch.ones_like(y, dtype=torch.bool)
    if options.get("mask") is not None:
        kept = kept & options["mask"]
    return kept & (y != options["ignore_index"]) if options.get("ignore_index") is not None else kept


def truth(z, y, normalizer, weight=None, **options):
    """By the definition, composed of torch's operations."""
    kept = kept_of(y, options)
    w = torch.as_tensor(1.0 if weight is None else weight, dtype=z.dtype).expand_as(z)
    positives = ((y > 0) & kept).sum().clamp_min(1)
    s = options.get("label_smoothing") or 0
    target = torch.where(kept, y, 0) * (1 - s) + s / 2
    z, w = torch.where(kept, z, 0), torch.where(kept, w, 0)
    total = (w * (-target * F.logsigmoid(z) - (1 - target) * F.logsigmoid(-z)))[kept].sum()
    if isinstance(normalizer, str):
        weights = kept.sum() if weight is None else w.sum()
        return total / {"elements": kept.sum(), "weights": weights, "positives": positives}[normalizer]
    return total / torch.as_tensor(normalizer).double().reshape(())


def assert_same(loss, want, leaves, rtol=1e-12):
    torch.testing.assert_close(loss, want.to(loss.dtype), rtol=rtol, atol=0)
    got = torch.autograd.grad(3 * loss, leaves)
    wanted = torch.autograd.grad(3 * want, leaves, retain_graph=True)  # of several results
    # by a weight of all, "weights" has a gradient of 0: the difference of two terms of size 1, of 30 elements each
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=3e-14)


# ---- Values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_formula(name, weight, left_out):
    z, y, options = operands(weight, left_out)
    z.requires_grad_()
    for smoothing in (None, 0.2):  # positives are those before it
        options["label_smoothing"] = smoothing
        loss = fl.binary_cross_entropy_with_logits(z, y, normalizer=given(name), **options)
        assert_same(loss, truth(z, y, given(name), **options), [z])


@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("weight", ["scalar", "label", "row", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_everything(name, weight, left_out):
    """The weight's too, by which "weights" divides, and that of a normalizer."""
    z, y, options = operands(weight, left_out)
    normalizer = given(name)
    if name == "tensor":
        normalizer.requires_grad_()
    leaves = [z.requires_grad_(), options["weight"].requires_grad_()] + [normalizer] * (name == "tensor")
    if left_out != "ignored" and left_out != "both":
        leaves.append(y.requires_grad_())
    loss = fl.binary_cross_entropy_with_logits(z, y, normalizer=normalizer, **options)
    assert_same(loss, truth(z, y, normalizer, **options), leaves)


@pytest.mark.parametrize("name", ["weights", "tensor", "positives"])
def test_gradcheck(name):
    z, y, options = operands("label", "mask")
    w, n = options.pop("weight"), torch.tensor(2.5, dtype=torch.double)

    def loss(z, w, n):
        return fl.binary_cross_entropy_with_logits(z, y, w, normalizer=n if name == "tensor" else name, **options)

    leaves = [t.requires_grad_(t is not n or name == "tensor") for t in (z, w, n)]
    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, requires_grad, dtype):
    """The divisor is fp64, and so is what it is made of: nothing overflows in fp16, whose largest number is 65,504."""
    z, y = torch.randn(300, 400).to(dtype), (torch.rand(300, 400) < 0.6).to(dtype)
    w = torch.full((300, 1), 7.0, dtype=dtype)
    leaves = [z.requires_grad_()] + [w.requires_grad_()] * requires_grad
    normalizer = {"tensor": torch.tensor([1e5]), "number": 1e5}.get(name, name)
    loss = fl.binary_cross_entropy_with_logits(z, y, w, normalizer=normalizer)
    want = truth(z.double(), y.double(), normalizer, w.double())
    assert loss.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), want, rtol=2 * eps, atol=0)
    got, wanted = (torch.autograd.grad(t, leaves) for t in (loss, want))
    torch.testing.assert_close(got[0], wanted[0], rtol=4 * eps, atol=3e-8 if dtype == torch.float16 else 0)  # 2^-25
    for g, v in zip(got[1:], wanted[1:], strict=True):  # with "weights" the difference of two terms of that size
        torch.testing.assert_close(g, v, rtol=4 * eps, atol=4 * eps * want.item() / 300)


@pytest.mark.parametrize("gamma", [0, 1.5, torch.tensor(1.5, requires_grad=True)], ids=["0", "1.5", "learnt"])
@pytest.mark.parametrize("name", NAMES)
def test_focal(name, gamma):
    z, y, options = operands("label", "both")
    z.requires_grad_()
    options |= {"gamma": gamma, "alpha": 0.3}
    total = fl.sigmoid_focal_loss(z, y, reduction="sum", **options)
    kept = kept_of(y, options)
    count = {
        "elements": kept.sum(),
        "weights": options["weight"].expand_as(z)[kept].sum(),
        "positives": (y[kept] > 0).sum(),
    }.get(name, 2.5)
    loss = fl.sigmoid_focal_loss(z, y, reduction="mean", normalizer=given(name), **options)
    assert_same(loss, total / count, [z] + [gamma] * isinstance(gamma, torch.Tensor), rtol=1e-6)


def test_the_default_is_what_it_was():
    z, y, options = operands("row", "both", torch.float)
    options.pop("weight")
    results = []
    for normalizer in ({}, {"normalizer": "elements"}, {"normalizer": "weights"}):
        leaf = z.clone().requires_grad_()
        loss = fl.binary_cross_entropy_with_logits(leaf, y, **options, **normalizer)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


def test_integer_weights_and_targets():
    z, y = torch.randn(7, 4), torch.randint(0, 3, (7, 4))
    weights = torch.randint(1, 5, (7, 1)), torch.tensor([True, False, True, True])
    for w in weights:
        loss = fl.binary_cross_entropy_with_logits(z, y, w, normalizer="weights", ignore_index=2)
        kept = y != 2
        want = truth(z.double(), y.double(), "weights", w.double(), ignore_index=2)
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
        positives = fl.binary_cross_entropy_with_logits(z, y, normalizer="positives", ignore_index=2)
        total = fl.binary_cross_entropy_with_logits(z, y, reduction="sum", ignore_index=2)
        torch.testing.assert_close(positives, total / (y[kept] == 1).sum())
    loss = fl.binary_cross_entropy_with_logits(z, y == 1, normalizer="positives")
    total = fl.binary_cross_entropy_with_logits(z, y == 1, reduction="sum")
    torch.testing.assert_close(loss, total / (y == 1).sum())


# ---- What is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize("left_out", ["mask", "ignored", "both"])
@pytest.mark.parametrize("weight", ["label", "row", "all"])
def test_weights_of_what_is_left_out_do_not_matter(weight, left_out, wants):
    """NaN too, where nothing that counts has that weight."""
    z, y, options = operands(weight, left_out)
    kept = kept_of(y, options)
    kept[1], kept[:, 2] = False, False
    options["mask"] = kept
    w = options.pop("weight")
    unused = kept.sum_to_size(w.shape) == 0
    assert unused.any()
    results = []
    for value in (0.5, math.nan, math.inf):
        leaves = [z.clone().requires_grad_(), torch.where(unused, value, w).requires_grad_(wants)]
        loss = fl.binary_cross_entropy_with_logits(leaves[0], y, leaves[1], normalizer="weights", **options)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves[: 1 + wants])])
        assert (results[-1][1][~kept] == 0).all()
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_a_sum_of_weights_that_is_zero():
    """As torch's division has it; what is left out still gets 0."""
    z, y, mask = torch.randn(4), torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, True, False])
    for w in (torch.zeros(4), torch.tensor([1.0, -2.0, 1.0, 5.0])):
        for wants in (False, True):
            weight, leaf = w.clone().requires_grad_(wants), z.clone().requires_grad_()
            loss = fl.binary_cross_entropy_with_logits(leaf, y, weight, mask=mask, normalizer="weights")
            (grad,) = torch.autograd.grad(loss, leaf)
            assert not loss.isfinite() and not grad[:3].isfinite().any() and grad[3] == 0
            twice = fl.binary_cross_entropy_with_logits(leaf, y, weight, mask=mask, normalizer="weights")
            (grad,) = torch.autograd.grad(twice, leaf, create_graph=True)
            assert not grad[:3].isfinite().any() and grad[3] == 0


def test_no_positives_and_nothing_at_all():
    z, y = torch.randn(5, requires_grad=True), torch.zeros(5)
    loss = fl.binary_cross_entropy_with_logits(z, y, normalizer="positives")
    torch.testing.assert_close(loss, F.softplus(z).sum())
    empty = torch.zeros(0, 3, requires_grad=True)
    for name, value in (("positives", 0.0), ("weights", math.nan), ("elements", math.nan)):
        loss = fl.binary_cross_entropy_with_logits(empty, empty.detach(), torch.ones(3), normalizer=name)
        assert loss.item() == pytest.approx(value, nan_ok=True)
        loss.backward()
    nothing = torch.zeros(5, dtype=torch.bool)
    loss = fl.binary_cross_entropy_with_logits(z, y, mask=nothing, normalizer="positives")
    (grad,) = torch.autograd.grad(loss, z)
    assert loss == 0 and (grad == 0).all()


# ---- One pass, and no waiting ----------------------------------------------------------------------------------------


def calls(function):
    """Which of our ops ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return [e.name.split("::")[1] for e in profile.events() if e.name.startswith("fused_logistic::")]


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_for_loss_and_gradient(name):
    z, y, options = operands("label", "mask")
    z.requires_grad_()
    ran = calls(lambda: fl.binary_cross_entropy_with_logits(z, y, normalizer=given(name), **options).backward())
    assert [op for op in ran if op != "bce_count"] == ["bce_with_grad"]


def test_nothing_waits_for_the_device():
    """By construction: on meta tensors there is no value that anybody could look at."""
    z, y, options = operands("label", "both")
    options["mask"], options["weight"] = options["mask"].to("meta"), options["weight"].to("meta")
    for name in NAMES:
        for requires_grad in (False, True):
            leaf = z.to("meta").requires_grad_()
            options["weight"].requires_grad_(requires_grad)
            normalizer = given(name).to("meta") if name == "tensor" else given(name)
            loss = fl.binary_cross_entropy_with_logits(leaf, y.to("meta"), normalizer=normalizer, **options)
            loss.backward()
            assert loss.is_meta and leaf.grad.is_meta


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


def layer():
    x, w, b = torch.randn(ROWS, FEATURES), torch.randn(LABELS, FEATURES), torch.randn(LABELS)
    return [t.double().requires_grad_() for t in (x, w, b)]


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
    assert repr(layer).endswith("in_features=3, out_features=2, bias=True, normalizer=2.5)")


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


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", ["binary_cross_entropy_with_logits", "sigmoid_focal_loss", "linear_binary_cross_entropy"]
)
def test_errors(op):
    z, y, _ = operands()
    x, w, _ = layer()

    def loss(normalizer, reduction="mean"):
        first = (x, w) if op.startswith("linear") else (z,)
        return getattr(fl, op)(*first, y, reduction=reduction, normalizer=normalizer)

    for value, error, message in (
        (
            "weight",
            ValueError,
            "normalizer to be 'elements', 'weights', 'positives', a number or a tensor, got 'weight'",
        ),
        (None, TypeError, "normalizer to be a str, a number or a tensor, got NoneType"),
        (True, TypeError, "normalizer to be a str, a number or a tensor, got bool"),
        (2j, TypeError, "normalizer to be a str, a number or a tensor, got complex"),
        (0, ValueError, "normalizer to be finite and > 0, got 0"),
        (-2.5, ValueError, "normalizer to be finite and > 0, got -2.5"),
        (math.nan, ValueError, "normalizer to be finite and > 0, got nan"),
        (math.inf, ValueError, "normalizer to be finite and > 0, got inf"),
        (torch.ones(2), ValueError, "normalizer of one element, got [2]"),
        (torch.ones(()).bool(), TypeError, "normalizer to be real, got Bool"),
        (torch.ones((), dtype=torch.complex64), TypeError, "normalizer to be real, got ComplexFloat"),
        (torch.ones(1).to_sparse(), ValueError, "normalizer of layout torch.strided, got Sparse"),
        (torch.ones((), device="meta"), RuntimeError, "normalizer on cpu, got meta"),
    ):
        with pytest.raises(error) as raised:
            loss(value)
        assert str(raised.value) == f"{op}: expected {message}"
    for reduction in ("none", "sum"):
        for value in ("weights", "positives", 2.5, torch.tensor(2.5)):
            with pytest.raises(ValueError) as raised:
                loss(value, reduction)
            assert str(raised.value) == f"{op}: expected reduction 'mean' with a normalizer, got '{reduction}'"
        loss("elements", reduction)
    with pytest.raises(ValueError, match="expected reduction 'none', 'mean' or 'sum', got 'median'"):
        loss("weights", "median")
    with pytest.raises(RuntimeError, match="expected weight of a shape that broadcasts"):
        first = (x, w) if op.startswith("linear") else (z,)
        getattr(fl, op)(*first, y, weight=torch.ones(4), normalizer="weights", reduction="mean")

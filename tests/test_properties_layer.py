"""Properties of the layers and of the loss of pairs, for any tile: of logits that have no rounding, to the bit.

Features and weights are small integers over powers of two, so that torch's products are exact in whatever order: what a
tile's border, a sparse layout or a thread changes, it changes in our own arithmetic.
"""

import functools
import math

import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st

import fused_logistic as fl
from tests.conftest import DTYPES, REDUCTIONS, same_bits
from tests.family import PLAIN
from tests.pairs_formula import formula
from tests.properties import ASYMMETRICS, FOCALS, LAYOUTS, LAYS, PLAINS, SEEDS, examples, part_of, takes_smoothing
from tests.test_properties import smallest

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

LAYERS = {
    "binary_cross_entropy_with_logits": fl.linear_binary_cross_entropy,
    "sigmoid_focal_loss": fl.linear_sigmoid_focal_loss,
    "asymmetric_loss_with_logits": fl.linear_asymmetric_loss_with_logits,
}
SPARSE = ["dense", "csr", "coo"]


def layer_of(member):
    """The layer with the loss of that member."""
    if member is PLAIN:
        return fl.linear_binary_cross_entropy
    return functools.partial(LAYERS[member.public.func.__name__], **member.public.keywords)


def whole(shape, rng, most, share=1.0):
    """Small integers, of which that share is not 0."""
    values = torch.randint(-most, most + 1, shape, generator=rng)
    return values.where(torch.rand(shape, generator=rng) < share, 0)


def laid(tensor, layout):
    return {"dense": lambda: tensor, "csr": tensor.to_sparse_csr, "coo": tensor.to_sparse}[layout]()


@st.composite
def layers(draw, losses=None, reductions=REDUCTIONS):
    """(member, input, linear_weight, linear_bias, target, options, how the input and the target lie)."""
    member = draw(st.one_of(PLAINS, FOCALS, ASYMMETRICS) if losses is None else losses)
    rng = torch.Generator().manual_seed(draw(SEEDS))
    rows, features = draw(st.sampled_from([0, 1, 2, 7, 40, 130])), draw(st.sampled_from([1, 3, 8]))
    labels = draw(st.sampled_from([1, 2, 5, 33]))
    dtype = draw(st.sampled_from(DTYPES))
    # at most 8 features of 3 times 3, and 8: in halves 160 steps, which bf16 still has
    x, w = whole((rows, features), rng, 3, 0.7), whole((labels, features), rng, 3)
    x, w = LAYOUTS[draw(LAYS)]((x / 2).to(dtype)), LAYOUTS[draw(LAYS)](w.to(dtype))
    b = draw(st.sampled_from([None, whole((labels,), rng, 8).to(dtype)]))
    of_input, of_target = draw(st.sampled_from(SPARSE)), draw(st.sampled_from(SPARSE))
    is_hard = of_target != "dense" or draw(st.booleans())
    u = torch.rand(rows, labels, generator=rng)
    y = (u < 0.3).float() if is_hard else torch.floor(17 * u) / 16
    y_dtypes = [torch.float32, torch.float64, torch.bfloat16, *([torch.int64, torch.bool] if is_hard else [])]
    y = y.to(draw(st.sampled_from(y_dtypes)))
    options = {"reduction": draw(st.sampled_from(reductions))}
    if takes_smoothing(member) and draw(st.booleans()):
        options["label_smoothing"] = 0.25
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([0, 1]))
    for name in ("weight", "pos_weight", "mask"):
        if draw(st.booleans()):
            value = torch.rand(part_of(y.shape, draw(st.lists(st.booleans(), min_size=1, max_size=2))), generator=rng)
            options[name] = LAYOUTS[draw(LAYS)](value < 0.7 if name == "mask" else value + 0.25)
    if options["reduction"] == "mean":
        options["normalizer"] = draw(st.sampled_from(["elements", "weights", "positives", 3.5]))
    return member, x, w, b, y, options, of_input, of_target


def both(case, chunk_bytes, g=None):
    """(loss, gradients by the input, weight and bias) of the layer, then of the loss of its logits and these gradients
    in fp64, and what their terms come to."""
    member, x, w, b, y, options, of_input, of_target = case
    leaves = {"input": x, "linear_weight": w, "linear_bias": b}
    leaves = {n: t.detach().requires_grad_() for n, t in leaves.items() if t is not None}
    given_ = {n: t for n, t in leaves.items() if n != "input"}
    wanted = dict(leaves) if of_input == "dense" else given_
    loss = layer_of(member)(
        leaves["input"] if of_input == "dense" else laid(x, of_input), target=laid(y, of_target),
        chunk_bytes=chunk_bytes, **given_, **options,
    )  # fmt: skip
    logits = (x @ w.t() + (0 if b is None else b)).requires_grad_()
    its_loss = member.public(logits, y, **options)
    g = torch.ones_like(loss) if g is None else g.to(loss.dtype)
    grads = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), g), strict=True))
    (grad,) = (t.double() for t in torch.autograd.grad(its_loss, logits, g.to(its_loss.dtype)))
    products = {
        "input": (grad, w.double()), "linear_weight": (grad.t(), x.double()),
        "linear_bias": (grad.t(), torch.ones(len(x), 1).double()),
    }  # fmt: skip
    sums = {n: tuple((p @ q).reshape(t.shape) for p, q in ((a, c), (a.abs(), c.abs())))
            for n, t in wanted.items() for a, c in (products[n],)}  # fmt: skip
    return loss.detach(), grads, its_loss.detach().to(loss.dtype), sums  # a layer's has the target's dtype


@examples(200)
@given(layers(), st.sampled_from([None, 1, 64, 500, 5000]), st.sampled_from([1.0, -3.0, 512.0]))
def test_a_layer_is_the_loss_of_its_logits(case, chunk_bytes, factor):
    """Dense and sparse, of any tile: the losses to the bit, sums and gradients within what their order changes.

    A logit's gradient is rounded to the products' dtype, and again with a factor that is not 1; the loss's ulp are in
    both. A product adds up at most max(rows, labels) of them, in fp32 at least, and is rounded.
    """
    member, x, w, _, y, options, of_input, of_target = case
    assume(chunk_bytes != 1 or y.numel() < 300)  # a logit at a time takes a second then
    g = torch.tensor(factor) if options["reduction"] != "none" else torch.full(y.shape, factor)
    loss, grads, want, sums = both(case, chunk_bytes, g)
    event(f"{member.name.split()[0]}, {of_input} input, {of_target} target, {options['reduction']}")
    assume(not want.isnan().any())  # the mean of nothing
    wide = torch.float64 in (x.dtype, y.dtype)
    u = 2.0**-53 if wide and loss.dtype == torch.float64 else 2.0**-24
    assert loss.shape == want.shape and loss.dtype == want.dtype
    if options["reduction"] == "none":
        assert same_bits(loss, want)
    else:
        rtol = 2 * 24 * u + torch.finfo(loss.dtype).eps
        background = 2 * rtol if "label_smoothing" in options and of_target != "dense" else 0  # subtracted again
        torch.testing.assert_close(loss.double(), want.double(), rtol=rtol + background, atol=background * size(case))
    for name, got in grads.items():
        value, terms = sums[name]
        info, exact = torch.finfo(got.dtype), 2.0**-53 if got.dtype == torch.float64 else 2.0**-24
        allowed = terms * (2 * info.eps + (max(y.shape) + 8) * exact + 8 * u) + info.eps / 2 * value.abs()
        allowed = allowed + 64 * abs(factor) * max(3 * y.shape[0], 8) * smallest(got.dtype)
        beyond = (value.abs() + allowed >= info.max) & ~got.isfinite()
        assert (((got.double() - value).abs() <= allowed) | beyond).all(), (name, got, value)


def size(case):
    """Of the losses of a smoothed background, whatever is left of them."""
    member, x, w, b, y, options, *_ = case
    given_ = {k: v for k, v in options.items() if k not in ("mask", "ignore_index", "reduction", "normalizer")}
    logits = x.double() @ w.double().t() + (0 if b is None else b.double())
    total = member.public(logits, torch.zeros(y.shape).double(), reduction="sum", **given_).item()
    return total / max(1, member.public(logits, y, **options).numel())


@examples(40)
@given(layers(losses=PLAINS), st.sampled_from([None, 64]))
def test_threads_never_change_a_layer(case, chunk_bytes):
    """Of exact products: to the bit, for one label by one pass, for many by tiles."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss, grads, _, _ = both(case, chunk_bytes)
            found.append((loss, grads.get("linear_bias", loss)))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


# ---- Pairs -----------------------------------------------------------------------------------------------------------


@st.composite
def pairs(draw):
    rng = torch.Generator().manual_seed(draw(SEEDS))
    n, features = draw(st.sampled_from([1, 2, 3, 9, 33, 70])), draw(st.sampled_from([1, 3, 8]))
    dtype = draw(st.sampled_from(DTYPES))
    image, text = (LAYOUTS[draw(LAYS)]((whole((n, features), rng, 3) / 4).to(dtype)) for _ in range(2))
    wide = dtype if dtype == torch.float64 else torch.float32
    scale = torch.tensor(draw(st.sampled_from([0.25, 1.0, 8.0])), dtype=wide)
    bias = draw(st.sampled_from([None, torch.tensor(-2.0, dtype=wide), torch.tensor(0.5, dtype=wide)]))
    return image, text, scale, bias, draw(st.sampled_from([None, 4, 64, 1000]))


def step(image, text, scale, bias, tile_bytes, function=fl.sigmoid_contrastive_loss):
    leaves = [t.detach().requires_grad_() for t in (image, text, scale, bias) if t is not None]
    loss = function(*leaves, tile_bytes=tile_bytes)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@examples(150)
@given(pairs())
def test_pairs(case):
    """The formula, of logits that are exact: a loss within 24 half units, as a sum of groups is, and what one of tiles
    adds in fp64; a gradient by what its sums add, n and 8 units of the terms' sizes; images and texts changed places,
    which transposes the logits."""
    image, text, scale, bias, tile_bytes = case
    assume(tile_bytes != 4 or len(image) < 12)  # 5,000 tiles of a pair
    found = step(*case)
    truth = step(*(None if t is None else t.double() for t in case[:4]), None, formula)
    u = 2.0**-53 if image.dtype == torch.float64 else 2.0**-24
    n = len(image)
    rtol = 28 * u + n * n * 2.0**-53  # a tile has a pair at least
    torch.testing.assert_close(found[0].double(), truth[0], rtol=rtol, atol=0)
    s = image.double() @ text.double().t()
    g = (torch.sigmoid(scale.double() * s + (0 if bias is None else bias.double())) - torch.eye(n)).abs()
    t = scale.double() / n
    sizes = [t * g @ text.double().abs(), t * g.t() @ image.double().abs(), (g * s.abs()).sum() / n, g.sum() / n]
    for got, want, terms in zip(found[1:], truth[1:], sizes, strict=False):
        # the definition's sigmoid(z) - 1 has lost what is below a unit of 1; ours has not
        allowed = terms * (n + 8) * u + torch.finfo(got.dtype).eps / 2 * want.abs() + 2.0**-52 + smallest(got.dtype)
        assert ((got.double() - want).abs() <= allowed).all()
    turned = step(text, image, scale, bias, tile_bytes)
    torch.testing.assert_close(turned[0], found[0], rtol=2 * rtol, atol=0)
    for got, other, terms in zip(turned[1:3], (found[2], found[1]), (sizes[1], sizes[0]), strict=True):
        allowed = 2 * terms * ((n + 8) * u + torch.finfo(got.dtype).eps) + smallest(got.dtype)
        assert ((got.double() - other.double()).abs() <= allowed).all()


@examples(40)
@given(pairs())
def test_threads_never_change_pairs(case):
    assume(case[-1] != 4 or len(case[0]) < 12)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss, *grads = step(*case)
            found.append((loss, *grads[2:]))  # the others are torch's products
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@examples(60)
@given(pairs(), SEEDS)
def test_pairs_in_another_order(case, seed):
    """The loss is that of the pairs, wherever they stand, and their gradients go with them."""
    image, text, scale, bias, tile_bytes = case
    assume(tile_bytes != 4 or len(image) < 12)
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
    found, other = step(*case), step(image[order], text[order], scale, bias, tile_bytes)
    u = 2.0**-53 if image.dtype == torch.float64 else 2.0**-24
    torch.testing.assert_close(other[0], found[0], rtol=2 * (28 * u + len(image) ** 2 * 2.0**-53), atol=0)
    for a, b, features in zip(other[1:3], found[1:3], (text, image), strict=True):
        most = scale.item() * features.double().abs().max().item()  # of the n terms of 1 / n each
        unit_of = (len(image) + 8) * u + torch.finfo(a.dtype).eps
        torch.testing.assert_close(a.double(), b[order].double(), rtol=0, atol=2 * most * unit_of + smallest(a.dtype))
    assert math.isfinite(other[0].item())

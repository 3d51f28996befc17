"""Properties of every elementwise loss, whatever its input: against its definition, and to the bit against itself.

hypothesis chooses the inputs (tests/properties.py); `HYPOTHESIS_PROFILE=search` tries many more, others in each run.
"""

import math

import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st

from fused_logistic import _C, ops, reference
from fused_logistic.reference import sigmoid_pair
from tests.conftest import DTYPES, loss_arguments, same_bits
from tests.family import PLAIN, exact
from tests.properties import (
    FOCALS,
    LAYOUTS,
    LAYS,
    LOSSES,
    PLAINS,
    SEEDS,
    divisor_of,
    examples,
    kept_of,
    limit,
    logits_of,
    numel,
    problems,
    takes_smoothing,
    truth,
    unit,
)  # fmt: skip
from tests.test_exact import TYPES, ulps


def grads_of(problem, grad_output, **others):
    """The loss, and its derivatives by every operand that has one."""
    leaves = problem.leaves()
    loss = problem.call(**leaves | others)
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), grad_output), strict=True))


def grad_output_for(problem, rng, dtype, factor=1.0):
    shape = problem.tensors["logits"].shape if problem.options["reduction"] == "none" else ()
    return (factor * (0.5 + torch.rand(shape, generator=rng))).to(dtype)


def smallest(dtype):
    """Number above 0."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def assert_within(got, want, allowed, what):
    """But for the rounding to got's dtype, and for what is out of its range."""
    info = torch.finfo(got.dtype)
    allowed = allowed + info.eps / 2 * want.abs() + smallest(got.dtype)
    off = (got.double() - want).abs() > allowed
    beyond = (want.abs() + allowed >= info.max) & (got.isinf() | (got.abs() == info.max))
    off = (off & ~beyond) | (got.isnan() & want.isfinite())
    assert not off.any(), (what, got[off], want[off], allowed[off] if allowed.shape == off.shape else allowed)


# ---- Against the definition ------------------------------------------------------------------------------------------


@examples(250)
@given(problems(), SEEDS, st.sampled_from([1.0, -3.0, 1024.0]))
def test_the_definition(problem, seed, factor):
    """All options, broadcasts, layouts, dtypes and reductions at once; every derivative, for any grad_output.

    An element is off by its loss's limit, 4 more ulp for w, p, their products and grad_output, and what a sum adds: 24
    half units in a group, less than 2 elsewhere. A gradient by what was broadcast is one of torch's sums, in its dtype.
    """
    tensors, member = problem.tensors, problem.member
    kept = kept_of(problem)
    u = unit(problem)
    clip = member.options.get("clip") or 1  # 1 - p_m may be as small, and is what the negatives' slope is divided by
    definition = 16 * (1 + limit(member)) * 2.0**-53 / clip  # what the definition may be off by itself
    dtype = problem.call().dtype
    g = grad_output_for(problem, torch.Generator().manual_seed(seed), dtype, factor)
    assume(problem.options["reduction"] != "mean" or divisor_of(problem, kept) > 0)
    loss, grads = grads_of(problem, g)
    want = truth(problem, g.double())
    event(f"{member.name.split()[0]}, {problem.options['reduction']}")
    per_element = 2 * u * (limit(member) + 4) + definition
    # what is subnormal on the way is off by a subnormal number, which is multiplied by the others
    least = 64 / clip * abs(factor) * smallest(torch.float64 if u == 2.0**-53 else torch.float32)
    per_sum = 0 if problem.options["reduction"] == "none" else 26 * u
    assert_within(loss, want.loss, want.loss_size * (per_element + per_sum) + least, "loss")
    for name, got in grads.items():
        grad, size = want.grads[name]
        added = numel(tensors["logits"].shape) // max(1, got.numel())
        share = per_element + per_sum  # which is in the derivative by the weights that a mean is divided by
        if added > 1:
            share += (math.log2(added) + 4) * torch.finfo(got.dtype).eps
        if problem.options.get("normalizer") == "weights":  # torch divides by it, in fp32 at least, in two parts
            wide = torch.promote_types(dtype, torch.float32)
            share += 4 * max(torch.finfo(d).eps for d in (got.dtype, wide))
        assert got.shape == tensors[name].shape and got.dtype == tensors[name].dtype
        assert_within(got, grad, size * share + least, name)


FLOATS = {
    torch.float32: st.floats(-120, 120, width=32),
    torch.float64: st.floats(-800, 800),
}
UNIT = {
    torch.float32: st.floats(0, 1, width=32, allow_subnormal=False),
    torch.float64: st.floats(0, 1, allow_subnormal=False),
}


@examples(150)
@given(st.data(), LOSSES, st.sampled_from(list(FLOATS)))
def test_50_digits(data, member, dtype):
    """hypothesis' own numbers, each loss with its own exponents: within its bound of ulp, of the terms that cancel.

    4 + 2.8 gamma, and 2 for the weight that alpha makes of a soft target. Where sigma(z) is the target the power has no
    derivative: tests/test_family_exact.py.
    """
    pairs = st.tuples(FLOATS[dtype], st.sampled_from([0.0, 1.0, 0.5]) | UNIT[dtype])
    z, y = (torch.tensor(t, dtype=dtype) for t in zip(*data.draw(st.lists(pairs, min_size=1, max_size=8)), strict=True))
    info = torch.finfo(dtype)
    values = [exact(member, a, b) for a, b in zip(z, y, strict=True)]
    loss, grad, loss_size, grad_size, power = zip(*values, strict=True)
    of_alpha = 2 if member.options.get("alpha") is not None else 0
    for got, wanted, scale in zip(member.elements(z, y), (loss, grad), (loss_size, grad_size), strict=True):
        # a power, or alpha times it, that is not normal has fewer digits, whatever it multiplies
        least = info.tiny / (member.options.get("alpha") or 1)
        # as has what is not normal of sigma(-|z|), by whatever clip it is divided
        clip = member.options.get("clip")
        most = -math.log(info.tiny) if clip else math.inf
        kink = y.double() if "beta" in member.options else torch.tensor(clip or math.inf)
        at_kink = (torch.sigmoid(z.double()) - kink).abs() < 8 * info.eps  # a slope of its own on either side
        at_kink &= (y != 0) & (y != 1) | (clip is not None)
        for i, p in enumerate(power):
            if (p > least or p == 0) and scale[i] < info.max and abs(z[i]) < most and not at_kink[i]:
                (error,) = ulps(got[i : i + 1].numpy().astype(TYPES[dtype]), wanted[i : i + 1], scale[i : i + 1])
                assert error <= limit(member) + of_alpha, (z[i].item(), y[i].item(), got[i].item(), float(wanted[i]))


# ---- To the bit ------------------------------------------------------------------------------------------------------


def special(logits):
    """With infinities and NaN in it."""
    at = torch.arange(logits.numel()).view(logits.shape)
    for rest, value in ((3, math.inf), (7, -math.inf), (11, math.nan)):
        logits = torch.where(at % 13 == rest, value, logits)
    return logits


@examples(200)
@given(problems(reductions=["none"]), LAYS, LAYS, SEEDS)
def test_layout_never_changes_bits(problem, of_logits, of_others, seed):
    """Strided, broadcast, expanded, offset: the losses and gradients are those of contiguous copies in full size."""
    shape = problem.tensors["logits"].shape
    full = {name: t.expand(shape).contiguous() for name, t in problem.tensors.items()}
    full["logits"] = special(full["logits"])
    given_ = problem.tensors | {"logits": LAYOUTS[of_logits](full["logits"])}
    given_ |= {n: LAYOUTS[of_others](t) for n, t in given_.items() if n in ("weight", "pos_weight") and t.numel() > 1}
    g = grad_output_for(problem, torch.Generator().manual_seed(seed), problem.call().dtype)
    (loss, grads), (want, wanted) = (
        grads_of(problem._replace(tensors=tensors), g_)
        for tensors, g_ in ((given_, LAYOUTS[of_others](g)), (full, g))
    )  # fmt: skip
    assert same_bits(loss, want)
    for name in ("logits", "target"):
        assert name not in grads or same_bits(grads[name], wanted[name]), name


@examples(60)
@given(problems(shapes=st.sampled_from([(20_001,), (3, 9_000), (130, 140)])))
def test_threads_never_change_bits(problem):
    """Of losses, sums and gradients. (The sum of a broadcast operand's gradient is torch's.)"""
    assume(problem.options["reduction"] != "mean" or divisor_of(problem, kept_of(problem)) > 0)
    before, found = torch.get_num_threads(), []
    g = grad_output_for(problem, torch.Generator().manual_seed(0), problem.call().dtype)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(grads_of(problem, g))
    finally:
        torch.set_num_threads(before)
    for loss, grads in found[1:]:
        assert same_bits(loss, found[0][0])
        for name in {"logits", "target"} & set(grads):
            assert same_bits(grads[name], found[0][1][name]), name


@examples(120)
@given(st.one_of(PLAINS, FOCALS), SEEDS, st.sampled_from(DTYPES), st.sampled_from(["usual", "wide", "tails", "tiny"]),
       st.booleans())  # fmt: skip
def test_a_label_and_its_opposite(member, seed, dtype, kind, soft):
    """L(z, y) = L(-z, 1 - y), and the gradients are each other's negative. With alpha: 1 - alpha."""
    rng = torch.Generator().manual_seed(seed)
    z = special(logits_of(kind, (67,), rng, dtype))
    u = torch.rand(67, generator=rng)
    y = (torch.floor(16 * u) / 16 if soft else u.round()).to(dtype)
    z = z.where(z != 0, 1)  # there sigma(z) and sigma(-z) are both the larger one
    other = member._replace(options=dict(member.options))
    if member.options.get("alpha") is not None:
        alpha = torch.floor(64 * torch.tensor(member.options["alpha"])).item() / 64  # so that 1 - alpha is exact
        member = member._replace(options={**member.options, "alpha": alpha})
        other = member._replace(options={**member.options, "alpha": 1 - alpha})
    (loss, grad), (mirrored, its_grad) = member.elements(z, y), other.elements(-z, 1 - y)
    assert same_bits(loss, mirrored)
    assert same_bits(grad + 0, 0 - its_grad)  # whatever the sign of a gradient of 0


@examples(120)
@given(problems(shapes=st.sampled_from([(70,), (8, 9), (1025,), (20_000,)])), st.data())
def test_a_whole_is_its_parts(problem, data):
    """The losses and gradients of a slice are the slices of those of the whole, wherever it is cut."""
    problem.options["reduction"] = "none"
    problem.options.pop("normalizer", None)
    shape = problem.tensors["logits"].shape
    full = {name: t.expand(shape) for name, t in problem.tensors.items()}
    loss, grads = grads_of(problem._replace(tensors=full), torch.ones(shape, dtype=problem.call().dtype))
    borders = [b for b in (16, 64, 1024, _C.CHUNK, 2 * _C.CHUNK) if b < shape[0]]
    cut = data.draw(st.sampled_from([1, *borders]) | st.integers(1, shape[0] - 1))
    for part in (slice(0, cut), slice(cut, shape[0])):
        of_part = problem._replace(tensors={name: t[part] for name, t in full.items()})
        its_loss, its_grads = grads_of(of_part, torch.ones_like(loss[part]))
        assert same_bits(its_loss, loss[part])
        for name, grad in its_grads.items():
            assert same_bits(grad, grads[name][part]), name


def added(sums):
    """Neighbours first, until one is left."""
    while len(sums) > 1:
        sums = [sum(sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return sums[0]


@examples(60)
@given(LOSSES, SEEDS, st.integers(1, 6), st.sampled_from([1, 2, 77, 1023, 1024, 1025, 4097, _C.CHUNK]), st.booleans(),
       st.sampled_from(DTYPES), st.booleans())  # fmt: skip
def test_a_sum_is_that_of_its_chunks(member, seed, chunks, rest, weighted, dtype, masked):
    """To the bit, in the order that csrc/problem.h states: each chunk's sum, then neighbours."""
    n, rng = (chunks - 1) * _C.CHUNK + rest, torch.Generator().manual_seed(seed)
    z = logits_of("wide", (n,), rng, dtype)
    rand = torch.rand(4, n, generator=rng)
    w, mask = (rand[1] + 0.5 if weighted else None), (rand[2] < 0.8 if masked else None)
    tensors = z, rand[0].to(dtype), w, None, mask

    def of(*tensors):
        given_ = loss_arguments(*tensors, reduction=ops.SUM, dtype=torch.double, **member.options)
        return ops.bce(*given_).item()

    parts = zip(*([None] * chunks if t is None else t.split(_C.CHUNK) for t in tensors), strict=True)
    assert of(*tensors) == added([of(*part) for part in parts])


@examples(150)
@given(problems(), SEEDS)
def test_left_out_is_deleted(problem, seed):
    """By a mask, an ignored value or NaN: 0 there, and elsewhere the bits of a call without these elements."""
    shape, kept = problem.tensors["logits"].shape, kept_of(problem)
    assume(kept.sum() > 0)
    if problem.options.get("normalizer") == "weights":  # a sum of torch's, of other numbers in another order
        problem.options["normalizer"] = "positives"
    full = {name: t.expand(shape) for name, t in problem.tensors.items()}
    full["logits"] = torch.where(kept, full["logits"], torch.nan)
    rest = problem._replace(tensors={name: t[kept] for name, t in full.items() if name != "mask"})
    g = grad_output_for(problem, torch.Generator().manual_seed(seed), problem.call().dtype)
    reduced = problem.options["reduction"] != "none"
    loss, grads = grads_of(problem._replace(tensors=full), g)
    its_loss, its_grads = grads_of(rest, g if reduced else g[kept])
    for name, grad in grads.items():
        assert (grad[~kept] == 0).all(), name
        assert same_bits(grad[kept], its_grads[name]), name
    if not reduced:
        assert (loss[~kept] == 0).all() and same_bits(loss[kept], its_loss)
    else:  # sums in other lanes: a unit of the result each, and 24 half units of its losses, which have one sign
        u = torch.finfo(loss.dtype).eps + 2 * 24 * unit(problem)
        torch.testing.assert_close(loss.double(), its_loss.double(), rtol=u, atol=1e-37 if u > 1e-9 else 0)


# ---- Between losses --------------------------------------------------------------------------------------------------


@examples(100)
@given(problems(losses=LOSSES.filter(takes_smoothing), dtypes=[torch.float32, torch.float64]), SEEDS)
def test_smoothing_is_its_soft_target(problem, seed):
    """To the bit: y (1 - s) + s / 2 is exact for these y and s, in torch too."""
    s = problem.options.pop("label_smoothing")
    kept, y = kept_of(problem), problem.tensors["target"]
    soft = (y.double() * (1 - s) + s / 2).to(y.dtype if y.is_floating_point() else problem.tensors["logits"].dtype)
    mask = {"mask": kept}
    plain = problem._replace(options={k: v for k, v in problem.options.items() if not k.startswith("ignore")})
    if plain.options.get("normalizer") == "positives":
        plain.options["normalizer"] = divisor_of(problem, kept).item()
        problem.options["normalizer"] = plain.options["normalizer"]
    g = grad_output_for(problem, torch.Generator().manual_seed(seed), problem.call().dtype)
    smoothed = problem._replace(options={**problem.options, "label_smoothing": s}, tensors=problem.tensors | mask)
    loss, grads = grads_of(smoothed, g)
    its_loss, its_grads = grads_of(plain._replace(tensors=problem.tensors | mask | {"target": soft}), g)
    assert same_bits(loss, its_loss)
    for name in set(grads) - {"target"}:  # whose derivative has the factor 1 - s
        assert same_bits(grads[name], its_grads[name]), name


@examples(60)
@given(SEEDS, st.floats(0, 1), st.sampled_from(["usual", "wide", "tails"]))
def test_any_smoothing(seed, s, kind):
    """In fp32 s, 1 - s and the soft target are rounded, by two units of 1 in all: a loss moves by z times that."""
    rng = torch.Generator().manual_seed(seed)
    z, y = logits_of(kind, (200,), rng, torch.float32), torch.floor(17 * torch.rand(200, generator=rng)) / 16
    loss, grad = PLAIN.elements(z, y, label_smoothing=s)
    want, slope = (f(z.double(), y.double(), label_smoothing=s) for f in (reference.loss, reference.grad_logits))
    ulps_of, moved = 2.0**-23 * limit(PLAIN), 2.0**-23
    assert ((loss - want).abs() <= ulps_of * want + moved * z.abs()).all()
    assert ((grad - slope).abs() <= ulps_of * (sigmoid_pair(z.double())[0] + y * (1 - s) + s / 2) + moved).all()


@examples(150)
@given(problems())
def test_no_loss_is_negative(problem):
    """Nor NaN: of targets in [0, 1] and weights that are not negative."""
    loss = problem.call()
    assume(problem.options["reduction"] != "mean" or divisor_of(problem, kept_of(problem)) > 0)
    assert (loss >= 0).all()


@examples(100)
@given(SEEDS, st.sampled_from(list(FLOATS)), st.sampled_from([0.0, 0.25, 1.0]), st.floats(0.01, 100),
       st.sampled_from([(4, 20), (100, 12)]))  # fmt: skip
def test_the_plain_loss_is_convex(seed, dtype, y, p, grid):
    """In the middle of two logits it is at most their mean, and the gradient rises; but for the bounds of ulp.

    The logits are on a grid, so that middles have no rounding, and from one step to far apart. With a pos_weight: two
    more roundings each.
    """
    (most, bits), rng = grid, torch.Generator().manual_seed(seed)
    middle = torch.randint(-(most << bits), (most << bits) + 1, (3000,), generator=rng)
    half = (2 ** ((bits + math.log2(most)) * torch.rand(3000, generator=rng))).long()
    a, middle, b = ((t / 2.0**bits).to(dtype) for t in (middle - half, middle, middle + half))
    target, weight = torch.full_like(a, y), torch.tensor(p, dtype=dtype)
    (at_a, by_a), (at_b, by_b), (at_middle, _) = (PLAIN.elements(z, target, None, weight) for z in (a, b, middle))
    ulp = torch.finfo(dtype).eps * (4 + 2)
    mean = at_a / 2 + at_b / 2
    assert (at_middle <= mean + ulp * (at_middle + mean) + torch.finfo(dtype).tiny).all()
    sizes = (1 - y) + p * y  # of both terms, which cancel
    assert (by_b - by_a >= -2 * ulp * sizes).all()


@examples(120)
@given(problems(dtypes=[torch.float32, torch.float64, torch.bfloat16]), st.integers(-8, 8), SEEDS)
def test_grad_output_is_a_factor(problem, exponent, seed):
    """Of a power of two: exactly. And what a second backward pass makes has the bits of the first one's."""
    assume(problem.options["reduction"] != "mean" or divisor_of(problem, kept_of(problem)) > 0)
    g = grad_output_for(problem, torch.Generator().manual_seed(seed), problem.call().dtype)
    names = ["logits", *({"target"} & set(problem.leaves()))]
    leaves = problem.leaves()
    loss = problem.call(**leaves)
    factor = 2.0**exponent
    first, times, second = (
        torch.autograd.grad(loss, [leaves[n] for n in names], value, retain_graph=True)
        for value in (g, factor * g, g)
    )  # fmt: skip
    for name, a, b, c in zip(names, first, times, second, strict=True):
        assert same_bits(a, c), name
        wide, infos = a.double() * factor, [torch.finfo(d) for d in (a.dtype, torch.float32)]
        size, least = wide.abs().minimum(a.double().abs()), 2 * max(info.tiny for info in infos)
        normal = (size >= least) & (wide.abs() <= min(info.max for info in infos))
        assert torch.equal(b.double()[normal], wide[normal]), name


@examples(80)
@given(problems(reductions=["none", "mean", "sum"], soft=False, shapes=st.lists(st.integers(2, 9), min_size=1,
       max_size=3).map(tuple)), SEEDS, st.sampled_from([torch.int64, torch.int32, torch.int8]))  # fmt: skip
def test_class_indices_are_their_one_hot_matrix(problem, seed, dtype):
    """To the bit, any index that names no class included."""
    shape = problem.tensors["logits"].shape
    dim = min(1, len(shape) - 1)
    problem.options.pop("ignore_index", None)
    problem.options.pop("ignore_nan", None)
    of_rows = shape[:dim] + shape[dim + 1 :]
    index = torch.randint(-1, shape[dim] + 1, of_rows, generator=torch.Generator().manual_seed(seed))
    classes = torch.arange(shape[dim]).view([-1 if d == dim else 1 for d in range(len(shape))])
    one_hot = (index.unsqueeze(dim) == classes).to(torch.int64)
    g = grad_output_for(problem, torch.Generator().manual_seed(seed), problem.call(target=one_hot).dtype)
    (loss, grads), (want, wanted) = (
        grads_of(problem._replace(tensors=problem.tensors | {"target": y}), g) for y in (index.to(dtype), one_hot)
    )
    assert same_bits(loss, want)
    assert all(same_bits(grads[name], wanted[name]) for name in grads)

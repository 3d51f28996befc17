"""The sigmoid contrastive loss against open_clip's formula: values, gradients of every order, tiles, dtypes, errors."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import DTYPES, same_bits
from pairs_formula import formula, in_double, operands, ours, step

import fused_logistic as fl
from fused_logistic import _C, ops, pairs

SIZES = [(1, 1), (2, 3), (7, 5), (33, 16), (100, 20)]
NAMES = ["loss", "image", "text", "scale", "bias"]


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("tile", [None, 1, 3, 4, 1000], ids=lambda side: f"tile {side}")
@pytest.mark.parametrize("n,features", SIZES)
def test_equals_the_formula(n, features, tile, factor, isa):
    """In fp64; tiles of one pair, of several in both directions, and of all."""
    if tile == 1 and n > 10:
        pytest.skip("10,000 tiles of one pair take seconds")
    tile_bytes = None if tile is None else 8 * tile**2
    for bias in (True, False):
        leaves = operands(n, features) if bias else [*operands(n, features)[:3], None]
        results = [step(f, leaves, factor, tile_bytes=tile_bytes) for f in (ours, formula)]
        for name, a, b in zip(NAMES, *results, strict=False):
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14 * factor, msg=lambda m, name=name: f"{name}: {m}")


def bounds(image, text, scale, bias, eps, features):
    """How far the loss and the gradients may be off in fp32.

    A similarity is off by at most features eps sum |x y| <= features eps (its vectors have a length of 1), so a logit
    by scale times that and two roundings; loss and gradient follow with a slope of at most 1 and 1/4. What is added up
    afterwards is off by at most as many eps as there are additions in the longest chain, of the sum of the sizes.
    """
    n = len(image)
    x = image @ text.T
    z = scale * x + bias
    g = torch.sigmoid(z) - torch.eye(n, dtype=x.dtype)
    z_error = eps * (features * scale + 2 * z.abs() + 1)
    g_error = z_error / 4 + 4 * eps * g.abs()
    chain = (n + 8) * eps
    loss = (z_error + 4 * eps * F.softplus(z)).sum() + 32 * eps * F.softplus(z.abs()).sum()
    by_image = scale * (g_error @ text.abs() + chain * (g.abs() @ text.abs()))
    by_text = scale * (g_error.T @ image.abs() + chain * (g.abs().T @ image.abs()))
    by_scale = (g_error * x.abs() + (features + 32) * eps * g.abs()).sum()
    return [t / n for t in (loss, by_image, by_text, by_scale, (g_error + 32 * eps * g.abs()).sum())]


@pytest.mark.parametrize("scale,bias", [(10.0, -10.0), (100.0, 3.0), (1.0, 0.0)])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_low_precision(dtype, scale, bias, isa):
    """fp32, and 16-bit features, whose similarities and sums are fp32: their gradients are rounded once, at the end."""
    leaves = operands(150, 40, dtype, scale, bias)
    truth = in_double(leaves)
    expected, got = step(formula, truth), step(ours, leaves, tile_bytes=4 * 64**2)
    assert got[0].dtype == torch.float32 and all(g.dtype == t.dtype for g, t in zip(got[1:], leaves, strict=True))
    allowed = bounds(*(t.detach() for t in truth), 2.0**-24, 40)
    for name, a, b, bound in zip(NAMES, got, expected, allowed, strict=True):
        info = torch.finfo(a.dtype)
        rounding = info.eps * b.abs() + info.smallest_normal * info.eps
        assert ((a.double() - b).abs() <= bound + rounding).all(), name


@pytest.mark.parametrize("bias", [-3.0, -18.0])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_gradients_of_16_bits_for_the_products(dtype, bias, monkeypatch):
    """As on CUDA: a tile's gradients are rounded to the features' dtype, and do not underflow in it."""

    def product(into, a, b, first=True):
        into.copy_(a.float() @ b.float()) if first else into.add_(a.float() @ b.float())

    monkeypatch.setattr(pairs, "_has_wide_products", lambda features: True)
    monkeypatch.setattr(pairs, "add_product", product)
    leaves = operands(70, 40, dtype, 10.0, bias)
    truth = in_double(leaves)
    expected, got = step(formula, truth), step(ours, leaves, tile_bytes=6 * 32**2)
    image, text, scale, shift = (t.detach() for t in truth)
    g = (torch.sigmoid(scale * image @ text.T + shift) - torch.eye(70, dtype=torch.double)).abs()
    rounded = scale / 70 * torch.finfo(dtype).eps / 2
    allowed = bounds(image, text, scale, shift, 2.0**-24, 40)
    allowed[1] += rounded * g @ text.abs()
    allowed[2] += rounded * g.T @ image.abs()
    for name, a, b, bound in zip(NAMES, got, expected, allowed, strict=True):
        info = torch.finfo(a.dtype)
        rounding = info.eps * b.abs() + info.smallest_normal * info.eps
        assert ((a.double() - b).abs() <= bound + rounding).all(), name


def test_half_gradients_do_not_underflow():
    """Those of a mean over many pairs are below what fp16 has: made in fp32, multiplied by the loss scale, rounded."""
    leaves = operands(400, 16, torch.half, 5.0, -12.0)
    expected, got = (step(f, given, 65536.0) for f, given in ((formula, in_double(leaves)), (ours, leaves)))
    for a, b in zip(got[1:3], expected[1:3], strict=True):
        error = (a.double() - b).abs() / b.abs().max()
        assert error.max() < 2**-11 and (a == 0).sum() == 0


def test_a_sum_that_overflows_in_fp32(isa):
    """32 similarities of 1.4e37 that are added up in fp32, as a group: their mean over 128 images is finite."""
    image, text = torch.zeros(128, 1), torch.zeros(128, 1)
    image[0:64:8], text[:4] = 1.4e37, 1.0
    leaves = image, text, torch.tensor(1.0), None
    expected = fl.sigmoid_contrastive_loss(*in_double(leaves))
    torch.testing.assert_close(fl.sigmoid_contrastive_loss(*leaves), expected.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38], ids=str)
def test_huge_scales(scale, isa):
    """The loss and the gradients are finite where they truly are, though logits and sums in fp32 are not."""
    torch.manual_seed(1)
    leaves = operands(64, 8, torch.float, scale, -10.0)
    leaves[0].data *= 4
    expected, got = step(formula, in_double(leaves)), step(ours, leaves)
    mean_is_finite = expected[0] < torch.finfo(torch.float).max
    assert got[0].isfinite() == mean_is_finite
    if mean_is_finite:
        torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-5, atol=0)
    for a, b in zip(got[3:], expected[3:], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_tails_keep_their_digits(isa):
    leaves = operands(1, 4)
    leaves[0].data[:], leaves[1].data[:] = 1.0, 1.0  # a similarity of 4
    for z in (-80.0, -30.0, 30.0, 80.0):
        low = [leaves[0].detach().float(), leaves[1].detach().float(), torch.tensor(z / 4), torch.tensor(0.0)]
        low = [t.requires_grad_() for t in low]
        loss, *grads = step(ours, low)
        truth = math.log1p(math.exp(-z)) if z > -30 else -z + math.exp(z)
        assert abs(loss.item() / truth - 1) < 3 * 2**-24
        slope = -1 / (1 + math.exp(z))
        for grad, inner in zip(grads, (z / 4, z / 4, 4, 1), strict=True):
            assert ((grad / (slope * inner) - 1).abs() < 8 * 2**-24).all()


def tile(rows, columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.double).to(dtype)
    return x, torch.tensor(7.0, dtype=dtype), torch.tensor(-1.5, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "rows,columns,diagonal",
    [(1, 1, 0), (3, 5, 1), (5, 3, -2), (5, 3, 0), (4, 4, None), (4, 4, 4), (4, 4, -4), (90, 101, -7), (3, 9000, 5000)],
)
def test_tile(rows, columns, diagonal, dtype, isa):
    """The op itself: which pairs are positive, the gradient in place and in 16 bits, the sums that it adds to."""
    x, scale, bias = tile(rows, columns, dtype)
    r, c = torch.arange(rows)[:, None], torch.arange(columns)
    y = torch.zeros(rows, columns, dtype=dtype) if diagonal is None else (c == r + diagonal).to(dtype)
    fma = (scale.double() * x.double() + bias.double()).to(dtype)  # exact but for the last rounding
    one = torch.ones((), dtype=dtype)
    g = ops.bce_backward(one, fma, y, None, None, None, None, ops.SUM, ops.LOGITS)
    losses = ops.bce(fma, y, None, None, None, None, ops.NONE, dtype)
    sums = torch.tensor([1.0, 2.0, 3.0], dtype=torch.double)
    rest = scale, bias, diagonal
    only_loss = sums.clone()
    ops.pairs_tile_(x.clone(), None, only_loss, *rest, 1.0, False)
    in_place = x.clone()
    ops.pairs_tile_(in_place, None, sums, *rest, 1.0, True)
    if dtype == torch.float32:  # else the fma above is rounded twice
        assert same_bits(in_place, g)
    torch.testing.assert_close(in_place, g, rtol=1e-12 if dtype == torch.double else 0, atol=1e-15)
    for low in (torch.float16, torch.bfloat16) if dtype == torch.float32 else ():
        untouched, grad, again = (
            x.clone(),
            torch.empty_like(x, dtype=low),
            torch.tensor([1.0, 2.0, 3.0], dtype=torch.double),
        )
        ops.pairs_tile_(untouched, grad, again, *rest, 2.0**15, True)
        assert torch.equal(untouched, x) and same_bits(grad, (in_place * 2**15).float().to(low))
        assert same_bits(again, sums)
    assert only_loss[0] == sums[0] and only_loss[1:].tolist() == [2, 3]
    eps = torch.finfo(dtype).eps
    for k, terms in enumerate((losses, g * x, g)):
        error = abs(sums[k] - (k + 1) - terms.double().sum())
        assert error <= 24 * eps * terms.double().abs().sum() + 1e-13


def test_same_bits_everywhere():
    """Every instruction set and number of threads; a chunk and a half, so that sums of several are there."""
    results, before, threads = [], _C.isa(), torch.get_num_threads()
    try:
        for isa in _C.isas_supported():
            for count in (1, 2):
                _C.set_isa(isa)
                torch.set_num_threads(count)
                for dtype in (torch.float32, torch.float64):
                    x, scale, bias = tile(123, 171, dtype)
                    x[5, 7], x[50, 50] = 30, -40
                    sums = torch.zeros(3, dtype=torch.double)
                    ops.pairs_tile_(x, None, sums, scale, bias, 3, 1.0, True)
                    results.append((dtype, x, sums))
    finally:
        _C.set_isa(before)
        torch.set_num_threads(threads)
    for dtype, x, sums in results:
        first = next(r for r in results if r[0] == dtype)
        assert same_bits(x, first[1]) and same_bits(sums, first[2])


def test_sides():
    """Square tiles that divide the pairs evenly, a multiple of 256 where they are large, and never too large."""
    for longest in (0, 1, 2, 255, 256, 257, 1000, 16384, 16385, 65536, 100_000):
        for elements in (1, 2, 5, 65_535, 65_536, 2 << 20, 44 << 20):
            side = pairs._side(longest, elements)
            assert side >= 1 and side**2 <= max(elements, 1) and (side % 256 == 0 or side < 256 or longest <= side)
    assert pairs._side(16384, 2 << 20) == 1280 and pairs._side(65536, (256 << 20) // 6) == 6656


def test_no_pairs():
    leaves = operands(0, 3)
    loss, *grads = step(ours, leaves)
    assert loss.isnan() and grads[0].shape == grads[1].shape == (0, 3)


# ---- The module ----------------------------------------------------------------------------------------------------


def test_module():
    leaves = operands(6, 3)
    module = fl.SigLipLoss(cache_labels=True, rank=0, world_size=1, dist_impl="shift")
    assert same_bits(module(*leaves), ours(*leaves))
    assert list(module(*leaves, output_dict=True)) == ["contrastive_loss"] and not list(module.parameters())
    assert repr(module) == "SigLipLoss(rank=0, world_size=1)"
    with pytest.raises(ValueError, match="dist_impl to be one of None, 'bidir', .*, got 'ring'"):
        fl.SigLipLoss(dist_impl="ring")
    with pytest.raises(RuntimeError, match="expected torch.distributed to be initialized for world_size=2"):
        fl.SigLipLoss(world_size=2)(*leaves)


# ---- Memory --------------------------------------------------------------------------------------------------------


def test_memory():
    """Beyond the gradients a tile, and no B x B, which is 144 MiB and what the formula needs several times."""
    code = (
        "from benchmarks.memory import peak_cpu; from benchmarks.pairs import candidates; "
        "from benchmarks.timing import Candidate; "
        "[candidates(300, 16, 'cpu')[name]() for name in ('fused', 'eager')]; "
        "print(*(peak_cpu(Candidate(candidates(6144, 16, 'cpu')[name])) >> 20 for name in ('fused', 'eager')))"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    fused, eager = map(int, run.stdout.split())
    assert fused < 24 and eager > 144


# ---- Errors --------------------------------------------------------------------------------------------------------

X, T, S, B = (t.detach() for t in operands(4, 3, torch.float))


@pytest.mark.parametrize(
    "args,message",
    [
        ((torch.rand(4), None, torch.zeros(3).double(), S, B, 0, 1.0, True), "matrix"),
        ((torch.rand(4, 4).half(), None, torch.zeros(3).double(), S, B, 0, 1.0, True), "matrix"),
        ((torch.rand(4, 4), None, torch.zeros(3), S, B, 0, 1.0, True), "sums"),
        ((torch.rand(4, 4), None, torch.zeros(3).double(), S.double(), B, 0, 1.0, True), "scale or bias"),
        ((torch.rand(4, 4), torch.rand(4, 3), torch.zeros(3).double(), S, B, 0, 1.0, True), "grad"),
        ((torch.rand(4, 4), torch.rand(4, 4).double(), torch.zeros(3).double(), S, B, 0, 1.0, True), "grad"),
        ((torch.rand(4, 4, requires_grad=True), None, torch.zeros(3).double(), S, B, 0, 1.0, True), "no derivative"),
    ],
)
def test_misuse_of_the_tile(args, message):
    with pytest.raises(RuntimeError, match=message):
        ops.pairs_tile_(*args)


def test_texts_that_come_in_blocks():
    """As round a ring: the images' gradient is the sum of the blocks'."""
    image, *texts = (torch.randn(6, 4, dtype=torch.double) for _ in range(3))
    numbers = torch.tensor(3.0, dtype=torch.double), torch.tensor(-1.0, dtype=torch.double)
    both = pairs.Tiles(image, *numbers, 64, [True] * 4)
    of_texts = both.finished(*(both.add(text, paired=text is texts[0]) for text in texts))
    leaves = [t.clone().requires_grad_() for t in (image, *texts)]
    z = numbers[0] * leaves[0] @ torch.cat(leaves[1:]).t() + numbers[1]
    F.binary_cross_entropy_with_logits(z, torch.eye(6, 12, dtype=torch.double), reduction="sum").div(6).backward()
    for got, leaf in zip((both.gradients(None)[0], *of_texts), leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad)

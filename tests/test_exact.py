"""The numerics contract: errors in ulp against 50 digits, the same bits everywhere, special values."""

import math

import mpmath
import numpy as np
import pytest
import torch

from fused_logistic import _C, ops
from tests.conftest import grad_arguments, loss_arguments, same_bits

TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def elements(logits, target, **options):
    """Every element's loss and gradient, from the kernels, without autograd."""
    tensors = (logits, target, options.get("weight"), options.get("pos_weight"), options.get("mask"))
    rest = (ops.NONE, options.get("label_smoothing", 0.0), options.get("ignore_index"))
    one = torch.ones((), dtype=logits.dtype)
    loss = ops.bce(*loss_arguments(*tensors, *rest))
    return loss, ops.bce_backward(one, *grad_arguments(*tensors, *rest))


def ulps(got: np.ndarray, exact: list, scale: list | None = None) -> np.ndarray:
    """|got - exact| in units of the spacing of got's type at the exact value, or at another scale."""
    with np.errstate(over="ignore", under="ignore"):
        spacing = np.spacing(np.abs(np.array([float(v) for v in scale or exact])).astype(got.dtype)).astype(np.float64)
    smallest = float(np.finfo(got.dtype).smallest_subnormal)
    with mpmath.workdps(50):
        pairs = zip(got, exact, spacing, strict=True)
        return np.array([float(abs(mpmath.mpf(float(g)) - e) / max(s, smallest)) for g, e, s in pairs])


def logits_of_every_binade(dtype, per_binade):
    info = np.finfo(dtype)
    low, high = int(math.log2(float(info.smallest_subnormal))), info.maxexp
    rng = np.random.default_rng(1)
    values = [math.ldexp(m, e) for e in range(low, high) for m in (1.0, *rng.uniform(1, 2, per_binade - 1))]
    dense = rng.uniform(0, 110 if dtype == np.float32 else 750, 40 * per_binade)  # where neither term is negligible
    values = np.concatenate([np.array(values), dense]).astype(dtype)
    values = np.unique(values[(values > 0) & np.isfinite(values)])
    return np.concatenate([-values, values])


def exact_values(z: float, y: int):
    """Loss and gradient to 50 digits."""
    with mpmath.workdps(50):
        x = mpmath.mpf(float(z)) * (1 if y == 0 else -1)  # loss = softplus(x), gradient = +-sigma(x)
        if abs(x) > 1e6:  # exp would only make a huge or tiny number of what is 0 or x already
            return (x, mpmath.mpf(1 - 2 * y)) if x > 0 else (mpmath.mpf(0), mpmath.mpf(0))
        return mpmath.log1p(mpmath.exp(x)), (1 - 2 * y) / (1 + mpmath.exp(-x))


@pytest.mark.parametrize("dtype,loss_limit,grad_limit", [(torch.float32, 3, 2.5), (torch.float64, 4, 4)], ids=str)
def test_ulp_sweep(dtype, loss_limit, grad_limit, isa):
    z = logits_of_every_binade(TYPES[dtype], 8 if dtype == torch.float32 else 2)
    for y in (0, 1):
        loss, grad = elements(torch.from_numpy(z), torch.full((z.size,), y, dtype=dtype))
        exact = [exact_values(v, y) for v in z]
        loss_error, grad_error = ulps(loss.numpy(), [e[0] for e in exact]), ulps(grad.numpy(), [e[1] for e in exact])
        assert loss_error.max() <= loss_limit, (z[loss_error.argmax()], loss_error.max())
        assert grad_error.max() <= grad_limit, (z[grad_error.argmax()], grad_error.max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_logit(dtype, isa):
    """All 65,536; fp64 is exact enough to judge 8 or 11 bits."""
    z = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    z = z[z.isfinite()]
    wide = z.double()
    for y in (0.0, 1.0):
        loss, grad = elements(z, torch.full_like(z, y))
        x = wide if y == 0 else -wide
        exact_loss, exact_grad = torch.logaddexp(x, torch.zeros_like(x)), (1 - 2 * y) / (1 + torch.exp(-x))
        for got, exact in ((loss, exact_loss), (grad, exact_grad)):
            finite = exact.abs() <= torch.finfo(dtype).max
            above = torch.nextafter(exact.abs().to(dtype), torch.tensor(torch.inf, dtype=dtype)).double()
            below = torch.nextafter(exact.abs().to(dtype), torch.tensor(-1.0, dtype=dtype)).double()
            ulp = torch.where(
                above.isinf(), exact.abs().to(dtype).double() - below, above - exact.abs().to(dtype).double()
            )
            assert ((got.double() - exact).abs() / ulp)[finite].max() <= 1


def test_torch_loses_what_we_keep():
    z = torch.tensor([-20.0])
    assert torch.nn.functional.binary_cross_entropy_with_logits(z, torch.zeros(1)).item() == 0
    loss, _ = elements(z, torch.zeros(1))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def _sample(n, dtype):
    scale = torch.tensor([0.01, 1, 5, 30, 80, 200])[torch.randint(0, 6, (n,))]
    logits = (torch.randn(n) * scale).to(dtype)
    special = torch.tensor([0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -104, 88.5]).to(dtype)
    logits[: min(n, 8)] = special[:n]
    target = torch.where(torch.rand(n) < 0.8, torch.randint(0, 2, (n,)).float(), torch.rand(n)).to(dtype)
    return logits, target


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_same_bits_on_every_isa(dtype, weighted, isa):
    logits, target = _sample(70_003, dtype)
    options = (
        {"weight": torch.rand(70_003), "pos_weight": torch.tensor(1.7), "label_smoothing": 0.1} if weighted else {}
    )
    got = elements(logits, target, **options)
    _C.set_isa("baseline")
    for ours, baseline in zip(got, elements(logits, target, **options), strict=True):
        assert same_bits(ours, baseline)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_target_of_minus_0(dtype, isa):
    """The same zeros, whichever options and weights there are: none of the kernels takes it for +0."""
    logits, target = torch.tensor([-200.0, -1.0, 0.0, 200.0], dtype=dtype), torch.full((4,), -0.0, dtype=dtype)
    plain = elements(logits, target)
    ones, true = torch.ones(4), torch.ones(4, dtype=torch.bool)
    for options in ({"weight": ones}, {"mask": true}, {"weight": ones, "mask": true}, {"ignore_index": -5}):
        assert all(same_bits(a, b) for a, b in zip(elements(logits, target, **options), plain, strict=True)), options


SIZES = [*range(71), 1023, 1024, 1025, _C.CHUNK - 1, _C.CHUNK, _C.CHUNK + 1, 3 * _C.CHUNK + 17, 200_001]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_same_sums_on_every_isa_and_thread_count(dtype, isa):
    """Also: the one-pass kernel's gradient is the elementwise one, divided; and every length works."""
    before = torch.get_num_threads()
    try:
        for n in SIZES:
            logits, target = torch.randn(n).to(dtype), torch.rand(n).to(dtype)
            args = (None, None, None, None, ops.SUM, torch.float64)
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append((*ops.bce_with_grad(logits, target, *args), ops.bce(logits, target, *args)))
            _C.set_isa("baseline")
            results.append((*ops.bce_with_grad(logits, target, *args), ops.bce(logits, target, *args)))
            _C.set_isa(isa)
            for loss, grad, loss_only in results:
                assert loss.item() == results[0][0].item() == loss_only.item()
                assert same_bits(grad, results[0][1])
            loss, grad = elements(logits, target)
            assert same_bits(grad, results[0][1])
            if dtype == torch.float64:
                assert results[0][0].item() == pytest.approx(math.fsum(loss.tolist()), rel=1e-14)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("columns", [2, 3, 7, 48, 100, 511, 1000, 1023, 1025, 2049])
def test_a_weight_per_column(columns):
    """Wherever a row of the kernel, of 1,024 elements, begins among the columns."""
    z, y = torch.randn(6000 // columns, columns), torch.rand(6000 // columns, columns)
    weight, pos_weight = torch.rand(columns), torch.rand(columns)
    whole = (t.expand_as(z).contiguous() for t in (weight, pos_weight))
    results = (elements(z, y, weight=w, pos_weight=p) for w, p in ((weight, pos_weight), whole))
    for ours, expected in zip(*results, strict=True):
        assert same_bits(ours, expected)


def test_the_weighted_gradient_is_rounded_once(isa):
    """3 sigma(z) - 3 y nearly cancels: a product that was rounded before it would show."""
    z = -torch.linspace(1, 8, 10_000)
    sigma = elements(z, torch.zeros_like(z))[1]
    y = (sigma * 2**18).round() / 2**18  # 3 y and 3 (1 - y) are exact
    gradient = elements(z, y, weight=torch.full_like(z, 3))[1]
    assert gradient.equal((3 * sigma.double() - 3 * y.double()).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_every_alignment(dtype, isa):
    logits, target = _sample(400, dtype)
    loss, grad = elements(logits, target)
    for shift in range(1, 65):
        a, b = (torch.cat([t[:shift], t])[shift:] for t in (logits, target))
        for got, want in zip(elements(a, b), (loss, grad), strict=True):
            assert same_bits(got, want)
        for got, want in zip(elements(logits[shift:], target[shift:]), (loss, grad), strict=True):
            assert same_bits(got, want[shift:])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_special_values(dtype, weighted, isa):
    inf, nan = math.inf, math.nan
    table = [  # logit, target, loss, gradient
        (inf, 1, 0, 0), (-inf, 0, 0, 0), (inf, 0, inf, 1), (-inf, 1, inf, -1),
        (0.0, 0, math.log(2), 0.5), (-0.0, 0, math.log(2), 0.5),
        (0.0, 1, math.log(2), -0.5), (-0.0, 1, math.log(2), -0.5),
        (nan, 0, nan, nan), (nan, 1, nan, nan), (0.0, nan, nan, nan),
        (torch.finfo(dtype).tiny, 0, math.log(2), 0.5), (torch.finfo(dtype).max, 0, torch.finfo(dtype).max, 1),
    ]  # fmt: skip
    z, y, loss, grad = (torch.tensor(column, dtype=dtype) for column in zip(*table, strict=True))
    options = {"weight": torch.ones(len(table)), "pos_weight": torch.ones(())} if weighted else {}
    for got, want in zip(elements(z, y, **options), (loss, grad), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, rtol=torch.finfo(dtype).eps, atol=0)


def test_a_weight_of_zero_leaves_nothing_of_an_infinite_loss(isa):
    loss, grad = elements(torch.tensor([math.inf, -math.inf]), torch.tensor([0.0, 1.0]), weight=torch.zeros(2))
    assert loss.tolist() == [0, 0] and grad.tolist() == [0, 0]


def test_what_is_left_out_does_not_leak(isa):
    logits = torch.tensor([math.nan, 1.0, math.inf, 2.0])
    target = torch.tensor([0.0, 1.0, 0.0, -100.0])
    mask = torch.tensor([False, True, False, True])
    loss, grad = elements(logits, target, mask=mask, ignore_index=-100)
    assert loss[[0, 2, 3]].tolist() == [0, 0, 0] == grad[[0, 2, 3]].tolist()
    mean = ops.bce(*loss_arguments(logits, target, mask=mask, ignore_index=-100))
    assert mean.item() == loss[1].item()


@pytest.mark.parametrize("is_double,limit", [(False, 1.5), (True, 1.5)])
def test_elementary_functions(is_double, limit):
    """exp and log1p themselves, through the test hooks."""
    dtype = np.float64 if is_double else np.float32
    rng = np.random.default_rng(0)
    x = -rng.uniform(0, 700 if is_double else 87, 4_000).astype(dtype)
    e = np.concatenate([rng.uniform(0, 1, 2_000), 2.0 ** -rng.uniform(0, 100, 2_000), [0, 1]]).astype(dtype)
    for values, hook, exact in ((x, _C.exp_nonpositive_, mpmath.exp), (e, _C.log1p_unit_, mpmath.log1p)):
        got = values.copy()
        hook(got.ctypes.data, got.size, is_double)
        with mpmath.workdps(50):
            error = ulps(got, [exact(mpmath.mpf(float(v))) for v in values])
        assert error.max() <= limit, (values[error.argmax()], error.max())


@pytest.mark.parametrize("p", [1e-12, 1e-3, 3.0, 1e12])
def test_extreme_pos_weights(p, isa):
    """a + b is not formed through p - 1, which would lose a small p."""
    logits, target = torch.linspace(-30, 30, 61), torch.tensor(1.0).expand(61)
    loss, grad = elements(logits, target, pos_weight=torch.tensor(p))
    exact = torch.nn.functional.softplus(-logits.double()) * torch.tensor(p).double()
    torch.testing.assert_close(loss.double(), exact, rtol=5e-7, atol=0)
    exact_grad = -torch.sigmoid(-logits.double()) * torch.tensor(p).double()
    torch.testing.assert_close(grad.double(), exact_grad, rtol=5e-7, atol=0)

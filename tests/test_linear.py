"""The whole layer against the composed graph: values, gradients of every order, chunks, layouts, dtypes, errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fused_logistic as fl
from fused_logistic import _C, ops
from fused_logistic.autograd import LinearBinaryCrossEntropy
from tests.conftest import DTYPES, REDUCTIONS, layer_arguments, same_bits
from tests.properties import examples

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def torchs_logits(input, linear_weight, linear_bias):
    if linear_weight.dim() == 2:
        return F.linear(input, linear_weight, linear_bias)
    return input @ linear_weight + (0 if linear_bias is None else linear_bias.reshape(()))


def torchs(input, linear_weight, target, *, linear_bias=None, chunk_bytes=None, ignore_index=None, label_smoothing=0.0,
           mask=None, reduction="mean", **options):  # fmt: skip
    """The composed graph with torch's own loss; what torch has no option for is worked into the target."""
    logits = torchs_logits(input, linear_weight, linear_bias)
    y = target.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, y, reduction="none", **options)
    if ignore_index is None and mask is None:
        return loss if reduction == "none" else getattr(loss, reduction)()
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    kept = kept if mask is None else kept & mask
    loss = torch.where(kept, loss, 0)
    return loss if reduction == "none" else loss.sum() / (kept.sum() if reduction == "mean" else 1)


def layer(lead, features, labels, bias=True, dtype=torch.double):
    """input, linear_weight, linear_bias and the shape of the logits; labels None: a weight of one dimension."""
    out = () if labels is None else (labels,)
    rand = lambda *shape: torch.randn(shape, dtype=torch.double).to(dtype).requires_grad_()  # noqa: E731
    return rand(*lead, features), rand(*out, features), rand(*out) if bias else None, (*lead, *out)


def step(function, x, w, b, target, **options):
    """The loss and the gradients of all three, with a grad_output that differs between elements."""
    loss = function(x, w, target, linear_bias=b, **options)
    factor = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, [t for t in (x, w, b) if t is not None], factor)


def assert_same(ours, torchs, rtol=1e-11, atol=1e-13):
    for a, b in zip(ours, torchs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


@examples(150)
@given(
    lead=st.sampled_from([(), (1,), (5,), (40,), (2, 3), (0,), (3, 0), (2, 1, 4)]),
    features=st.sampled_from([0, 1, 3, 31, 32, 33, 100]),
    labels=st.sampled_from([None, 0, 1, 2, 7, 64, 1000]),
    bias=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
    option=st.sampled_from(["plain", "weights", "per row", "smoothing", "ignore", "mask", "all"]),
    chunk_bytes=st.sampled_from([None, 1, 8, 64, 1000, 8000, 20_000]),
    seed=st.integers(0, 1000),
)
def test_random_layers(lead, features, labels, bias, reduction, option, chunk_bytes, seed):
    """All options; chunks of everything, of blocks and down to a single logit."""
    torch.manual_seed(seed)
    x, w, b, shape = layer(lead, features, labels, bias)
    if labels == 1000 and chunk_bytes is not None and chunk_bytes < 1000:
        chunk_bytes = 1000  # a single logit at a time takes a second then
    options = {"chunk_bytes": chunk_bytes, "reduction": reduction}
    target = torch.rand(shape, dtype=torch.double)
    if option in ("weights", "all"):
        options |= {"weight": torch.rand(shape, dtype=torch.double), "pos_weight": 2 * torch.rand(shape[-1:]).double()}
    if option == "per row" and shape:
        options |= {"weight": torch.rand(*shape[:-1], 1).double(), "pos_weight": torch.rand(()).double()}
    if option in ("smoothing", "all"):
        options["label_smoothing"] = 0.2
    if option in ("ignore", "all"):
        target = torch.randint(0, 3, shape).double()
        options["ignore_index"] = 2
    if option in ("mask", "all"):
        options["mask"] = torch.rand(shape if option == "all" else shape[-1:]) < 0.7
    assert_same(step(fl.linear_binary_cross_entropy, x, w, b, target, **options),
                step(torchs, x, w, b, target, **options))  # fmt: skip


@pytest.mark.parametrize("labels", [None, 1, 2, 300])
@pytest.mark.parametrize("rows", [1, 7, 600, 5_000])
def test_more_rows_than_a_block_and_a_part(rows, labels, isa):
    x, w, b, shape = layer((rows,), 70, labels)
    target = torch.rand(shape, dtype=torch.double)
    for options in ({"reduction": "none"}, {"reduction": "mean", "chunk_bytes": 100_000}):
        assert_same(step(fl.linear_binary_cross_entropy, x, w, b, target, **options),
                    step(torchs, x, w, b, target, **options))  # fmt: skip


@pytest.mark.parametrize("labels", [None, 1, 5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_layouts(reduction, labels):
    """Rows with a stride are read in place; whatever else is not contiguous is right too."""
    x, w, b, shape = layer((6, 4), 9, labels)
    views = {
        "rows": torch.randn(6, 4, 20, dtype=torch.double)[..., 3:12],
        "features": torch.randn(6, 4, 18, dtype=torch.double)[..., ::2],
        "transposed": torch.randn(9, 4, 6, dtype=torch.double).permute(2, 1, 0),
        "expanded": torch.randn(1, 4, 9, dtype=torch.double).expand(6, 4, 9),
        "flipped": torch.randn(4, 6, 9, dtype=torch.double).transpose(0, 1),
    }
    target = torch.rand(shape[::-1], dtype=torch.double).permute(*range(len(shape))[::-1])
    weight = torch.randn(9, w.numel() // 9, dtype=torch.double).t().reshape(w.shape).requires_grad_()
    for chunk_bytes in (None, 50):
        for view in views.values():
            options = {"reduction": reduction, "chunk_bytes": chunk_bytes}
            results = [step(f, view.clone(memory_format=torch.preserve_format).requires_grad_()
                            if f is torchs else view.detach().requires_grad_(), weight, b, target, **options)
                       for f in (fl.linear_binary_cross_entropy, torchs)]  # fmt: skip
            assert_same(*results)


@pytest.mark.parametrize("labels", [None, 1, 4])
@pytest.mark.parametrize("target_dtype", [*DTYPES, torch.bool, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, target_dtype, labels):
    """The dtypes of the composition, and at most its error against fp64 beyond one rounding of the result."""
    x, w, b, shape = layer((50,), 40, labels, dtype=dtype)
    target = torch.randint(0, 2, shape).to(target_dtype)
    exact = step(torchs, *(t.detach().double().requires_grad_() for t in (x, w, b)), target.double(), reduction="sum")
    ours = step(fl.linear_binary_cross_entropy, x, w, b, target, reduction="sum", chunk_bytes=300)
    assert ours[0].dtype == (target_dtype if target_dtype.is_floating_point else dtype)
    for a, e, like in zip(ours[1:], exact[1:], (x, w, b), strict=True):
        assert a.dtype == dtype and a.shape == like.shape
        # the sum of 50 products each of which may be off by a few eps of its size
        error, eps = (a.double() - e).abs().max() / e.abs().max(), torch.finfo(dtype).eps
        assert error <= 8 * eps, error / eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [5, 32, 100, 513])
def test_single_output_has_the_same_bits_everywhere(features, dtype):
    """Whatever the instruction set and the number of threads: loss and all gradients, with every option."""
    x, w, b, _ = layer((3_000,), features, 1, dtype=dtype)
    target = torch.randint(0, 2, (3_000, 1))
    cases = [
        {},
        {"reduction": "none"},
        {"weight": torch.rand(3_000, 1), "pos_weight": torch.tensor([2.5]), "label_smoothing": 0.1},
    ]
    threads, before = torch.get_num_threads(), _C.isa()
    try:
        for options in cases:
            results = []
            for isa in _C.isas_supported():
                for count in (1, 2, 3, 7):
                    torch.set_num_threads(count)
                    _C.set_isa(isa)
                    results.append(step(fl.linear_binary_cross_entropy, x, w, b, target, **options))
            assert all(same_bits(a, c) for r in results for a, c in zip(r, results[0], strict=True))
    finally:
        torch.set_num_threads(threads)
        _C.set_isa(before)


def test_single_output_is_exact_in_fp32():
    """262,144 rows: the weight's gradient is as good as the inputs' own rounding; eager torch sums in fp32."""
    n, d = 1 << 18, 64
    x, w = torch.randn(n, d) + 1, (torch.randn(1, d) / 8).requires_grad_()
    target = torch.randint(0, 2, (n, 1)).float()
    loss = fl.linear_binary_cross_entropy(x, w, target)
    (grad,) = torch.autograd.grad(loss, w)
    wd = w.detach().double().requires_grad_()
    exact = F.binary_cross_entropy_with_logits(F.linear(x.double(), wd), target.double())
    (want,) = torch.autograd.grad(exact, wd)
    scale = (x.abs().double().mean(0)).max()  # the size of the terms that are added up
    assert (grad.double() - want).abs().max() <= 2 * torch.finfo(torch.float).eps * scale
    assert abs(loss.item() - exact.item()) <= torch.finfo(torch.float).eps * exact.item()


def test_single_output_adds_few_rows_in_fp32():
    """512 at most, each of which rounds by 2^-24 of the sum; 4,096 like these, the rows of a part, are off by 6e-5."""
    n, target = 1 << 20, torch.tensor(0.806)
    x, w = torch.ones(n, 16), torch.zeros(1, 16, requires_grad=True)
    fl.linear_binary_cross_entropy(x, w, target.expand(n, 1), reduction="sum").backward()
    exact = n * (0.5 - target.double())
    torch.testing.assert_close(w.grad.double(), exact.expand(1, 16), rtol=512 * 2**-24, atol=0)


@pytest.mark.parametrize("factor", [1.0, 2.0**15])
@pytest.mark.parametrize("chunk_bytes", [None, 1 << 20])
@pytest.mark.parametrize("labels", [1, 1 << 12])
def test_a_mean_over_many_elements_does_not_underflow_in_fp16(labels, chunk_bytes, factor):
    """2^24 elements: every gradient by a logit, divided by their number, is less than fp16 has."""
    rows, features = (1 << 24) // labels, 2
    x, w = torch.rand(rows, features) + 0.5, torch.rand(labels, features) / 8
    b, target = torch.full((labels,), 0.0 if factor == 1 else -12.0), torch.zeros(rows, labels, dtype=torch.bool)
    x, w, b = (t.half().requires_grad_() for t in (x, w, b))
    loss = fl.linear_binary_cross_entropy(x, w, target, linear_bias=b, chunk_bytes=chunk_bytes)
    wanted = (x, w, b) if labels > 1 else (w, b)  # of one label nothing adds up to the input's
    got = torch.autograd.grad(loss, wanted, torch.full((), factor).half())
    exact = [t.detach().double() for t in (x, w, b)]
    g = (exact[0] @ exact[1].t() + exact[2]).sigmoid_().mul_(factor / target.numel())
    want = (g @ exact[1], g.t() @ exact[0], g.sum(0))[-len(wanted) :]
    eps = torch.finfo(torch.half).eps
    for a, c in zip(got, want, strict=True):
        assert ((a.double() - c).abs() <= eps * c.abs() + 2.0**-25).all()  # one rounding, of the smallest too
        assert c.abs().min() > 2.0**-20


# ---- Autograd -----------------------------------------------------------------------------------------------------

OPTIONS = [{}, {"label_smoothing": 0.2}, {"ignore_index": 1}, {"weights": True}, {"mask": True}, {"chunk_bytes": 40}]


def checked(labels, options, bias=True):
    """(function of input, linear_weight and linear_bias, operands) for gradcheck."""
    x, w, b, shape = layer((4,), 3, labels, bias)
    options, target = dict(options), torch.rand(shape, dtype=torch.double)
    target[0] = 1
    if options.pop("weights", False):
        options |= {"weight": torch.rand(shape, dtype=torch.double), "pos_weight": torch.rand(1, dtype=torch.double)}
    if options.pop("mask", False):
        options["mask"] = torch.rand(shape) < 0.7
    return lambda x, w, b: fl.linear_binary_cross_entropy(x, w, target, linear_bias=b, **options), (x, w, b)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("labels", [None, 1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, labels, options):
    function, operands = checked(labels, {**options, "reduction": reduction})
    assert gradcheck(function, operands)
    assert gradgradcheck(function, operands)


@pytest.mark.parametrize("labels", [None, 1, 3])
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_gradcheck_of_the_python_function(reduction, labels):
    x, w, b, shape = layer((4,), 3, labels)
    target = torch.rand(shape, dtype=torch.double)

    def function(x, w, b):
        return LinearBinaryCrossEntropy.apply(
            *layer_arguments(x, w, b, target, reduction=reduction, label_smoothing=0.1)
        )

    assert gradcheck(function, (x, w, b))
    assert gradgradcheck(function, (x, w, b))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("labels", [1, 6])
def test_only_what_requires_grad(labels, needs):
    x, w, b, shape = layer((5,), 4, labels)
    target = torch.rand(shape, dtype=torch.double)
    operands = [t.detach().requires_grad_(bool(need)) for t, need in zip((x, w, b), needs, strict=True)]
    arguments = layer_arguments(*(t.detach() for t in operands), target, output_mask=[bool(n) for n in needs])
    loss, *grads = ops.linear_bce_with_grad(*arguments)
    assert [g.numel() > 0 for g in grads] == [bool(n) for n in needs]
    results = []
    for function in (fl.linear_binary_cross_entropy, torchs):
        leaves = [t.clone().detach().requires_grad_(t.requires_grad) for t in operands]
        function(leaves[0], leaves[1], target, linear_bias=leaves[2]).backward()
        assert [t.grad is not None for t in leaves] == [bool(n) for n in needs]
        results.append([t.grad for t in leaves if t.grad is not None])
    assert_same(*results)


@pytest.mark.parametrize("other", ["target", "weight", "pos_weight"])
@pytest.mark.parametrize("labels", [None, 3])
def test_other_operands_that_require_grad(labels, other):
    """Their gradients are right too: the composition computes them."""
    x, w, b, shape = layer((4,), 3, labels)
    rand = {name: torch.rand(shape, dtype=torch.double) for name in ("target", "weight", "pos_weight")}
    rand[other].requires_grad_()
    target = rand.pop("target")

    def function(x, w, b, extra):
        options = {**rand, other: extra} if other != "target" else rand
        return fl.linear_binary_cross_entropy(x, w, extra if other == "target" else target, linear_bias=b, **options)

    assert gradcheck(function, (x, w, b, target if other == "target" else rand[other]))


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck(reduction, labels):
    for requires_grad in (False, True):
        x, w, b, shape = layer((4,), 3, labels)
        tensors = [t.detach().requires_grad_(requires_grad) for t in (x, w, b)]
        tensors += [torch.rand(shape).double()]
        options = {"reduction": reduction, "label_smoothing": 0.1}
        torch.library.opcheck(ops.linear_bce, layer_arguments(*tensors, **options))
        if reduction:
            arguments = layer_arguments(*tensors, **options, output_mask=[True, True, True])
            torch.library.opcheck(ops.linear_bce_with_grad, arguments)
        arguments = layer_arguments(*tensors, **options, output_mask=[True, False, True], backward=True)
        grad_output = torch.rand(() if reduction else shape, dtype=torch.double)
        torch.library.opcheck(ops.linear_bce_backward, (grad_output, *arguments))


# ---- The module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_module(bias):
    options = {"weight": torch.rand(5), "pos_weight": torch.rand(3, 1), "reduction": "sum"}
    head, linear = fl.LinearBCEWithLogitsLoss(4, 5, bias, **options), torch.nn.Linear(4, 5, bias)
    linear.load_state_dict(head.state_dict())
    head.load_state_dict(linear.state_dict())
    x, target = torch.randn(3, 4), torch.rand(3, 5)
    criterion = torch.nn.BCEWithLogitsLoss(**options)
    torch.testing.assert_close(head(x, target), criterion(linear(x), target))
    torch.testing.assert_close(head.logits(x), linear(x))
    torch.testing.assert_close(head.predict_proba(x), linear(x).sigmoid())
    assert {n for n, _ in head.named_buffers()} == {"loss_weight", "pos_weight"}
    assert torch.equal(head(x), head.logits(x))


@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, True, True])])
def test_one_label_with_integer_targets_and_a_smoothing_that_is_learnt(mask):
    """Integers of a dimension less than the input are no class indices here."""
    x, w, y = torch.randn(5, 3, dtype=torch.double), torch.randn(3, dtype=torch.double), torch.randint(0, 2, (5,))
    s = torch.tensor(0.1, dtype=torch.double, requires_grad=True)
    losses = [fl.linear_binary_cross_entropy(x, w, t, label_smoothing=s, mask=mask) for t in (y, y.double())]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in losses))

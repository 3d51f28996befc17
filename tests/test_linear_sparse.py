"""Sparse targets: equal to the dense ones, to the last bit but for the order in which the losses are added up."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fused_logistic as fl
from fused_logistic import sparse
from tests.conftest import same_bits
from tests.properties import examples

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def sparse_target(rows, labels, count, dtype=torch.float32):
    """Duplicates, unsorted columns, explicit zeros and empty rows included."""
    counts = torch.randint(0, max(rows, 1), (count,)).bincount(minlength=rows)
    crow = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    values = torch.rand(count).to(dtype) if dtype.is_floating_point else torch.randint(0, 2, (count,)).to(dtype)
    values[::5] = 0
    column = torch.randint(0, labels, (count,))
    return torch.sparse_csr_tensor(crow, column, values, (rows, labels), check_invariants=False)


def step(x, w, b, target, **options):
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    loss = fl.linear_binary_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], **options)
    factor = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, leaves, factor)


@examples(100)
@given(
    shape=st.sampled_from([(5, 7, 3), (40, 30, 16), (3, 2000, 8), (64, 1, 4), (1, 9, 2), (0, 4, 3), (2000, 3, 5)]),
    count=st.sampled_from([0, 1, 12, 300]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
    target_dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]),
    option=st.sampled_from(
        ["plain", "smoothing", "ignore 1", "ignore 0", "weights", "per row", "full", "mask", "masked rows"]
    ),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    chunk_bytes=st.sampled_from([None, 64, 3000]),
    seed=st.integers(0, 1000),
)
def test_equals_dense(shape, count, dtype, target_dtype, option, reduction, chunk_bytes, seed):
    torch.manual_seed(seed)
    rows, labels, features = shape
    target = sparse_target(rows, labels, count if rows else 0, target_dtype)
    x, w, b = (torch.randn(s).to(dtype) for s in ((rows, features), (labels, features), (labels,)))
    options = {
        "plain": {},
        "smoothing": {"label_smoothing": 0.1},
        "ignore 1": {"ignore_index": 1},
        "ignore 0": {"ignore_index": 0},
        "weights": {"weight": torch.rand(labels), "pos_weight": torch.rand(labels)},
        "per row": {"weight": torch.rand(rows, 1), "pos_weight": torch.tensor(3.0)},
        "full": {"weight": torch.rand(rows, labels), "pos_weight": torch.rand(rows, labels), "label_smoothing": 0.3},
        "mask": {"mask": torch.rand(rows, labels) < 0.7, "ignore_index": 1, "label_smoothing": 0.3},
        "masked rows": {"mask": torch.rand(rows, 1) < 0.7, "ignore_index": 0},
    }[option]
    options |= {"reduction": reduction, "chunk_bytes": chunk_bytes}
    sparse, dense = step(x, w, b, target, **options), step(x, w, b, target.to_dense(), **options)
    assert all(same_bits(s, d) for s, d in zip(sparse[1:], dense[1:], strict=True))
    if reduction == "none":
        assert same_bits(sparse[0], dense[0])
    else:  # sums in another order and other groups, each off by 24 half units at most (docs/derivation.md)
        single = 2 * 24 * 2.0**-24
        rtol = 1e-13 if dense[0].dtype == torch.double else max(2 * torch.finfo(dense[0].dtype).eps, single)
        torch.testing.assert_close(sparse[0], dense[0], rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.parametrize("chunk_bytes", [None, 200])
def test_a_smoothed_background_leaves_nothing(chunk_bytes):
    """Losses of the positives' places, which are subtracted again, are not there to the last bit."""
    x, w, kept = torch.randn(400, 3), torch.randn(30, 3), torch.rand(400, 30) < 0.3
    ones = kept.float().to_sparse_csr()
    options = {"mask": kept, "ignore_index": 1, "label_smoothing": 0.1, "chunk_bytes": chunk_bytes}
    assert fl.linear_binary_cross_entropy(x, w, ones, reduction="sum", **options) == 0  # nothing is left
    assert fl.linear_binary_cross_entropy(x, w, ones, **options).isnan()
    fits = {"label_smoothing": 1e-7, "linear_bias": torch.full((30,), 15.0), "chunk_bytes": chunk_bytes}
    every = torch.ones(400, 30)
    losses = [
        fl.linear_binary_cross_entropy(x, 0 * w, y, reduction="sum", **fits) for y in (every, every.to_sparse_csr())
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def coo(csr, order):
    """The same elements as a COO tensor in another order, duplicates included."""
    row = torch.repeat_interleave(torch.arange(csr.shape[0]), csr.crow_indices().diff())
    indices = torch.stack([row, csr.col_indices()])[:, order]
    return torch.sparse_coo_tensor(indices, csr.values()[order], csr.shape, check_invariants=True)


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("labels", [1, 7])
def test_coo(labels, reduction, target_dtype):
    """The bits of its CSR form, coalesced or not."""
    target = sparse_target(6, labels, 20, target_dtype)
    x, w, b = torch.randn(6, 3), torch.randn(labels, 3), torch.randn(labels)
    coalesced = coo(target, torch.arange(20)).coalesce()
    same = torch.sparse_csr_tensor(*sparse.csr_of_coo(coalesced)[1:], coalesced.values(), target.shape)
    assert torch.equal(same.to_dense(), target.to_dense())
    for options in ({}, {"ignore_index": 1, "mask": torch.rand(6, 1) < 0.7}, {"ignore_index": 0, "chunk_bytes": 24}):
        options["reduction"] = reduction
        want = step(x, w, b, same, **options)
        for target_coo in (coalesced, coo(target, torch.arange(20)), coo(target, torch.randperm(20))):
            got = step(x, w, b, target_coo, **options)
            if target_dtype in (torch.int64, torch.bool) or target_coo is coalesced:
                assert all(same_bits(a, c) for a, c in zip(got, want, strict=True))
            else:  # duplicates are added up in another order
                eps = torch.finfo(target_dtype).eps
                torch.testing.assert_close(got, want, rtol=8 * eps, atol=8 * eps)


def test_an_empty_coo_target():
    x, w, b = torch.randn(6, 3), torch.randn(4, 3), torch.randn(4)
    for rows in (0, 6):
        target = torch.sparse_coo_tensor(size=(rows, 4))
        want = step(x[:rows], w, b, torch.zeros(rows, 4), reduction="sum")
        torch.testing.assert_close(step(x[:rows], w, b, target, reduction="sum"), want)


def test_coo_under_compile():
    torch._dynamo.reset()
    x, w, b = torch.randn(6, 3), torch.randn(4, 3), torch.randn(4)
    target = (torch.rand(6, 4) < 0.3).float().to_sparse()
    compiled = torch.compile(fl.linear_binary_cross_entropy, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, target, linear_bias=b), step(x, w, b, target)[0])


def test_the_background_of_a_positive_does_not_count():
    """A logit of +inf costs nothing where it is a positive, and everything where it is not."""
    x, w = torch.tensor([[torch.inf], [1.0]]), torch.tensor([[1.0], [2.0]])
    target = torch.sparse_csr_tensor([0, 2, 2], [0, 1], torch.ones(2), (2, 2))
    loss = fl.linear_binary_cross_entropy(x, w, target, reduction="sum")
    want = torch.nn.functional.softplus(torch.tensor([1.0, 2.0]).double()).sum()
    assert loss.item() == pytest.approx(want.item(), rel=1e-7)
    swapped = torch.sparse_csr_tensor([0, 0, 2], [0, 1], torch.ones(2), (2, 2))
    assert fl.linear_binary_cross_entropy(x, w, swapped, reduction="sum").item() == torch.inf


def test_a_wrong_bit_would_be_seen():
    """Leaving one positive out changes the result: the comparison above can fail."""
    x, w, b = torch.randn(40, 16), torch.randn(30, 16), torch.randn(30)
    target = sparse_target(40, 30, 300).to_dense()
    other = target.clone()
    other[3, 4] = 1 - other[3, 4]
    assert not same_bits(step(x, w, b, target)[1], step(x, w, b, other)[1])


def test_gradients_of_higher_order_and_of_the_values():
    x, w = (torch.randn(s, dtype=torch.double).requires_grad_() for s in ((5, 3), (4, 3)))
    # no duplicates: the backward pass of torch.sparse_csr_tensor itself is wrong there
    crow, column = torch.tensor([0, 2, 2, 3, 3, 4]), torch.tensor([0, 2, 3, 1])
    values = torch.rand(4, dtype=torch.double).requires_grad_()

    def function(x, w, values):
        target = torch.sparse_csr_tensor(crow, column, values, (5, 4), check_invariants=False)
        return fl.linear_binary_cross_entropy(x, w, target)

    assert torch.autograd.gradcheck(function, (x, w, values))
    ordered, others = torch.tensor([[0, 0, 2, 4], [0, 2, 3, 1]]), torch.tensor([[4, 0, 2, 0], [1, 2, 3, 2]])
    for indices in (ordered, others):  # the latter with a duplicate, unsorted

        def of_coo(x, w, values, indices=indices):
            target = torch.sparse_coo_tensor(indices, values, (5, 4), check_invariants=True)
            return fl.linear_binary_cross_entropy(x, w, target)

        assert torch.autograd.gradcheck(of_coo, (x, w, values))
    fixed = values.detach()
    assert torch.autograd.gradgradcheck(lambda x, w: function(x, w, fixed), (x, w))


@pytest.mark.parametrize("positives", [64 * 20])
@pytest.mark.slow
def test_a_million_labels_in_bounded_memory(positives):
    """Batch 64, 128 features: what is resident beyond weights and gradient stays under 256 MB, torch itself aside."""
    code = f"""
import resource, torch, fused_logistic as fl
torch.set_num_threads(2)
fl.linear_binary_cross_entropy(torch.rand(2, 3), torch.rand(5, 3), torch.rand(2, 5))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
labels, features, batch = 1_000_000, 128, 64
before = peak()
w = torch.zeros(labels, features).requires_grad_()
x = torch.randn(batch, features, requires_grad=True)
column = torch.randint(0, labels, ({positives},))
crow = torch.arange(0, {positives} + 1, {positives} // batch)
target = torch.sparse_csr_tensor(crow, column, torch.ones({positives}), (batch, labels), check_invariants=False)
for _ in range(2):
    w.grad = None
    loss = fl.linear_binary_cross_entropy(x, w, target, reduction="sum")
    loss.backward()
assert abs(loss.item() - batch * labels * 0.6931471805599453) < 1e-6 * loss.item()
print(peak() - before - 2 * labels * features * 4 / 2**20)
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 256, result.stdout


@pytest.mark.slow
def test_logits_of_2_gb_are_never_whole():
    """The peak of a step whose logits, target and gradient would take 2 GB each, dense: chunks, nnz and the layer."""
    code = """
import resource, torch, fused_logistic as fl
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rows, labels, features = 8192, 65536, 4
x, w = torch.randn(rows, features).requires_grad_(), torch.randn(labels, features).requires_grad_()
target = torch.sparse_csr_tensor(torch.arange(rows + 1), torch.arange(rows), torch.ones(rows), (rows, labels))
fl.linear_binary_cross_entropy(x[:8], w, torch.rand(8, labels)).backward()
before = peak()
loss = fl.linear_binary_cross_entropy(x, w, target)
loss.backward()
assert loss.item() > 0 and w.grad.abs().max() > 0
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 100, result.stdout

"""The whole layer: its messages, and the corners in which two of its paths could disagree."""

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import first_requires_grad, layer_arguments, loss_arguments
from torch.func import vmap

import fused_logistic as fl

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


OP = "linear_binary_cross_entropy: expected "
X, W, Y = torch.randn(8, 3), torch.randn(5, 3), torch.rand(8, 5)


@pytest.mark.parametrize(
    "arguments,options,error,message",
    [
        ((X, W, Y[0]), {}, ValueError, "target of shape [8, 5], got [5]"),
        ((X, W, Y.t()), {}, ValueError, "target of shape [8, 5], got [5, 8]"),
        ((X, W[0], Y), {}, ValueError, "target of shape [8], got [8, 5]"),
        ((X, W[:1], Y[:, 0]), {}, ValueError, "target of shape [8, 1], got [8]"),
        ((X, W[:, :2], Y), {}, ValueError, "input of 2 features (linear_weight is [5, 2]), got [8, 3]"),
        ((X, W[None], Y), {}, ValueError, "linear_weight of shape [labels, features] or [features], got [1, 5, 3]"),
        ((X[0, 0], W, Y), {}, ValueError, "input of shape [..., features], got []"),
        ((X, W, Y), {"linear_bias": torch.ones(4)}, ValueError, "linear_bias of shape [5], got [4]"),
        ((X, W, Y), {"linear_bias": torch.ones(1)}, ValueError, "linear_bias of shape [5], got [1]"),
        ((X, W[0], Y[:, 0]), {"linear_bias": torch.ones(2)}, ValueError, "linear_bias of shape [1] or [], got [2]"),
        ((X, W.double(), Y), {}, TypeError, "linear_weight of the input's dtype Float, got Double"),
        ((X, W, Y), {"linear_bias": torch.ones(5).half()}, TypeError, "linear_bias of the input's dtype Float, got"),
        ((X.long(), W.long(), Y), {}, NotImplementedError, "input of dtype float64, float32, float16 or bfloat16, got"),
        ((X, W, Y), {"weight": torch.ones(8)}, RuntimeError, "weight of a shape that broadcasts to [8, 5], got [8]"),
        ((X, W, Y), {"mask": torch.ones(8) > 0}, RuntimeError, "mask of a shape that broadcasts to [8, 5], got [8]"),
        ((X, W, Y), {"mask": torch.ones(5)}, TypeError, "mask of dtype bool, got Float"),
        ((X, W, Y), {"mask": True}, TypeError, "mask to be a torch.Tensor, got bool"),
        ((X, W, Y.to_sparse_csr()), {"mask": Y}, TypeError, "mask of dtype bool, got Float"),
        ((X, W, Y.to_sparse_csr()), {"mask": Y[0, :4] > 0}, RuntimeError, "mask of a shape that broadcasts to [8, 5]"),
        ((X, W, Y), {"mask": (Y > 0).to_sparse()}, ValueError, "mask of layout torch.strided, got Sparse"),
        ((X, W, Y), {"pos_weight": torch.ones(2, 8, 5)}, RuntimeError, "pos_weight of a shape that broadcasts to"),
        ((X, W, Y), {"reduction": "average"}, ValueError, "reduction 'none', 'mean' or 'sum', got 'average'"),
        ((X, W, Y), {"label_smoothing": 1.5}, ValueError, "label_smoothing between 0 and 1, got 1.5"),
        ((X, W, Y), {"chunk_bytes": 0}, ValueError, "chunk_bytes > 0, got 0"),
        ((X, W, 1.0), {}, TypeError, "target to be a torch.Tensor, got float"),
        (([1.0], W, Y), {}, TypeError, "input to be a torch.Tensor, got list"),
        ((X, W, Y), {"weight": "2"}, TypeError, "weight to be a torch.Tensor, got str"),
        ((X, W, Y.to_sparse_csc()), {}, ValueError, "target of layout torch.strided, torch.sparse_csr or"),
        ((X, W, Y.to_sparse(1)), {}, ValueError, "a sparse target of 2 sparse dimensions and no dense one"),
        ((X, W[0], Y[:, 0].to_sparse()), {}, ValueError, "a sparse target of 2 sparse dimensions and no dense one"),
        ((X, W, Y[:, :4].to_sparse()), {}, ValueError, "target of shape [8, 5], got [8, 4]"),
        ((X[None], W, Y[None].to_sparse()), {}, ValueError, "a sparse target of 2 sparse dimensions and no dense one"),
        ((X, W, Y[:, :4].to_sparse_csr()), {}, ValueError, "target of shape [8, 5], got [8, 4]"),
        ((X[None], W, Y.to_sparse_csr()), {}, ValueError, "target of shape [1, 8, 5], got [8, 5]"),
        ((X.to_sparse_csc(), W, Y), {}, ValueError, "input of layout torch.strided, torch.sparse_csr or"),
        ((X.to_sparse(1), W, Y), {}, ValueError, "a sparse input of 2 dimensions, none of them dense, got 2, 1"),
        ((X[None].to_sparse(), W, Y[None]), {}, ValueError, "a sparse input of 2 dimensions, none of them dense, got"),
        ((X.long().to_sparse(), W.long(), Y), {}, NotImplementedError, "input of dtype float64, float32, float16 or"),
        ((X.to_sparse(), W.double(), Y), {}, TypeError, "linear_weight of the input's dtype Float, got Double"),
        ((X.to_sparse_csr(), W[:, :2], Y), {}, ValueError, "input of 2 features (linear_weight is [5, 2]), got [8, 3]"),
        ((X.to_sparse_csr(), W, Y[:4]), {}, ValueError, "target of shape [8, 5], got [4, 5]"),
        ((X.to_sparse(), W, Y), {"linear_bias": torch.ones(4)}, ValueError, "linear_bias of shape [5], got [4]"),
        ((X.to_sparse(), W, Y), {"chunk_bytes": 0}, ValueError, "chunk_bytes > 0, got 0"),
        ((X.to_sparse(), W, Y), {"mask": Y}, TypeError, "mask of dtype bool, got Float"),
        ((X, W.to_sparse_csr(), Y), {}, ValueError, "linear_weight of layout torch.strided, got SparseCsr"),
        ((X, W, Y), {"linear_bias": W[:, 0].to_sparse()}, ValueError, "linear_bias of layout torch.strided, got"),
        ((X, W, Y), {"weight": Y.to_sparse()}, ValueError, "weight of layout torch.strided, got Sparse"),
        ((X, W, Y), {"pos_weight": Y.to_sparse()}, ValueError, "pos_weight of layout torch.strided, got Sparse"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("requires_grad", [False, True])
def test_message(arguments, options, error, message, requires_grad):
    if requires_grad and not (isinstance(arguments[0], torch.Tensor) and arguments[0].layout != torch.strided):
        arguments = first_requires_grad(arguments, requires_grad)
    with pytest.raises(error, match=re.escape(OP + message)):
        fl.linear_binary_cross_entropy(*arguments, **options)


@pytest.mark.parametrize(
    "crow,col,message",
    [
        ([0, 1, 3], [0, 1], "crow_indices of a sparse target that rise from 0 to 2"),
        ([0, 2, 1], [0, 1], "crow_indices of a sparse target that rise from 0 to 2"),
        ([1, 1, 2], [0, 1], "crow_indices of a sparse target that rise from 0 to 2"),
        ([0, 1, 2], [0, 5], "column indices of a sparse target in [0, 5)"),
        ([0, 1, 2], [-1, 0], "column indices of a sparse target in [0, 5)"),
    ],
)
def test_wrong_indices(crow, col, message):
    target = torch.sparse_csr_tensor(crow, col, torch.ones(2), (2, 5), check_invariants=False)
    for weight in (None, torch.ones(5, requires_grad=True)):  # the latter goes through the composition
        with pytest.raises(ValueError, match=re.escape(OP + message)):
            fl.linear_binary_cross_entropy(X[:2], W, target, weight=weight)


@pytest.mark.parametrize("row,column", [([0, 1], [0, 5]), ([0, 8], [0, 4]), ([-1, 0], [0, 0])])
@pytest.mark.parametrize("coalesced", [False, True])
def test_wrong_coo_indices(row, column, coalesced):
    target = torch.sparse_coo_tensor(
        [row, column], torch.ones(2), (8, 5), check_invariants=False, is_coalesced=coalesced
    )
    with pytest.raises(ValueError, match=re.escape(OP + "indices of a sparse target inside of [8, 5]")):
        fl.linear_binary_cross_entropy(X, W, target)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_a_sparse_input_that_requires_a_gradient(layout):
    x = X.to_sparse(layout=layout).requires_grad_()
    message = "a sparse input that requires no gradient, got one that does"
    with pytest.raises(NotImplementedError, match=OP + message):
        fl.linear_binary_cross_entropy(x, W, Y)
    with torch.no_grad():
        torch.testing.assert_close(fl.linear_binary_cross_entropy(x, W, Y), fl.linear_binary_cross_entropy(X, W, Y))


def test_wrong_indices_of_a_sparse_input():
    csr = torch.sparse_csr_tensor([0, 1, 2], [0, 3], torch.ones(2), (2, 3), check_invariants=False)
    with pytest.raises(ValueError, match=re.escape(OP + "column indices of a sparse input in [0, 3)")):
        fl.linear_binary_cross_entropy(csr, W, Y[:2])
    coo = torch.sparse_coo_tensor([[0, 2], [0, 0]], torch.ones(2), (2, 3), check_invariants=False)
    with pytest.raises(ValueError, match=re.escape(OP + "indices of a sparse input inside of [2, 3]")):
        fl.linear_binary_cross_entropy(coo, W, Y[:2])


def test_the_raw_op_takes_no_sparse_input():
    with pytest.raises(ValueError, match="input of layout torch.strided, got SparseCsr"):
        torch.ops.fused_logistic.linear_bce(*layer_arguments(X.to_sparse_csr(), W.clone().requires_grad_(), None, Y))


def test_wrong_indices_under_vmap():
    target = torch.sparse_csr_tensor([0, 1, 2], [0, 5], torch.ones(2), (2, 5), check_invariants=False)
    with pytest.raises(ValueError, match=re.escape(OP + "column indices of a sparse target in [0, 5)")):
        vmap(lambda x: fl.linear_binary_cross_entropy(x, W, target))(X[None, :2])


def test_a_coo_target_in_a_batch_of_vmap():
    target = Y.to_sparse()
    with pytest.raises(NotImplementedError, match=OP + "a sparse target that torch.func does not transform"):
        vmap(lambda target: fl.linear_binary_cross_entropy(X, W, target))(torch.stack([target, target]))
    constant = vmap(lambda x: fl.linear_binary_cross_entropy(x, W, target))(X[None])
    torch.testing.assert_close(constant[0], fl.linear_binary_cross_entropy(X, W, Y))


def test_target_dtype_without_labels():
    with pytest.raises(NotImplementedError, match="got ComplexFloat"):
        fl.linear_binary_cross_entropy(X, W[:0], torch.ones(8, 0, dtype=torch.complex64))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_ops_with_gradients_reduce(requires_grad):
    x = X.clone().requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=re.escape("bce_with_grad: expected reduction 1 (mean) or 2 (sum), got 0")):
        torch.ops.fused_logistic.bce_with_grad(*loss_arguments(x, x.detach(), reduction=0))
    with pytest.raises(ValueError, match=re.escape("linear_bce_with_grad: expected reduction 1 (mean) or 2 (sum)")):
        torch.ops.fused_logistic.linear_bce_with_grad(
            *layer_arguments(x, W, None, Y, reduction=0, output_mask=[True] * 3)
        )


@pytest.mark.parametrize("dtype,ignored", [(torch.uint8, 256), (torch.int8, 255), (torch.int16, -65536)])
@pytest.mark.parametrize("labels", [1, 5])
def test_ignored_value_that_the_targets_dtype_lacks(dtype, ignored, labels):
    target = (Y[:, :labels] > 0.5).to(dtype)
    if dtype == torch.int8:
        target[0, 0] = -1  # 255 would wrap to it
    got = fl.linear_binary_cross_entropy(X, W[:labels], target, ignore_index=ignored)
    expected = fl.binary_cross_entropy_with_logits(F.linear(X, W[:labels]), target)
    torch.testing.assert_close(got, expected)


def test_second_derivative_without_labels():
    x, w = X.clone().requires_grad_(), torch.ones(0, 3, requires_grad=True)
    loss = fl.linear_binary_cross_entropy(x, w, torch.ones(8, 0), reduction="sum")
    grads = torch.autograd.grad(loss, (x, w), create_graph=True)
    assert [g.shape for g in grads] == [x.shape, w.shape] and not grads[0].any()


def test_compiled_under_no_grad_computes_no_gradient():
    names = []

    def backend(module, _):
        names.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    for function in (
        lambda x, w, y: fl.linear_binary_cross_entropy(x, w, y),
        lambda x, w, y: fl.binary_cross_entropy_with_logits(w, y[:5, :3]),
    ):
        torch._dynamo.reset()
        names.clear()
        with torch.no_grad():
            got = torch.compile(function, backend=backend, fullgraph=True)(X, W.clone().requires_grad_(), Y)
            torch.testing.assert_close(got, function(X, W, Y))
        assert not any("autograd" in name or "grad" in name for name in names if "no_grad" not in name), names

"""The layer: messages beside those of tests/test_bad_inputs.py, and corners in which two of its paths may disagree."""

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import layer_arguments, loss_arguments
from torch.func import vmap

import fused_logistic as fl

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


OP = "linear_binary_cross_entropy: expected "
X, W, Y = torch.randn(8, 3), torch.randn(5, 3), torch.rand(8, 5)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_a_sparse_input_under_no_grad(layout):
    """Whether it requires one does not matter there."""
    x = X.to_sparse(layout=layout).requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(fl.linear_binary_cross_entropy(x, W, Y), fl.linear_binary_cross_entropy(X, W, Y))


def test_the_raw_op_takes_no_sparse_input():
    with pytest.raises(ValueError, match="input of layout torch.strided, got SparseCsr"):
        torch.ops.fused_logistic.linear_bce(*layer_arguments(X.to_sparse_csr(), W.clone().requires_grad_(), None, Y))


def test_wrong_indices_under_vmap():
    target = torch.sparse_csr_tensor([0, 1, 2], [0, 5], torch.ones(2), (2, 5), check_invariants=False)
    with pytest.raises(ValueError, match=re.escape(OP + "column indices of a sparse target in [0, 5)")):
        vmap(lambda x: fl.linear_binary_cross_entropy(x, W, target))(X[None, :2])
    falling = torch.sparse_csr_tensor([0, 2, 1, 2], [0, 1], torch.ones(2), (3, 5), check_invariants=False)
    with pytest.raises(ValueError, match=OP + "crow_indices of a sparse target that rise from 0 to 2"):
        vmap(lambda x: fl.linear_binary_cross_entropy(x, W, falling))(X[None, :3])


@pytest.mark.parametrize("columns", [[1, 1, 4], [4, 1, 1]], ids=str)
def test_a_place_that_a_sparse_target_has_twice(columns):
    """Its values are added up, sorted or not."""
    values = torch.tensor([0.25, 0.5, 0.125])
    target = torch.sparse_csr_tensor([0, 3, 3], columns, values, (2, 5), check_invariants=False)
    dense = torch.zeros(2, 5).index_put_((torch.zeros(3, dtype=torch.long), torch.tensor(columns)), values, True)
    ours, expected = (fl.linear_binary_cross_entropy(X[:2], W, t) for t in (target, dense))
    torch.testing.assert_close(ours, expected)


def test_a_coo_target_in_a_batch_of_vmap():
    target = Y.to_sparse()
    with pytest.raises(NotImplementedError, match=OP + "a sparse target that torch.func does not transform"):
        vmap(lambda target: fl.linear_binary_cross_entropy(X, W, target))(torch.stack([target, target]))
    constant = vmap(lambda x: fl.linear_binary_cross_entropy(x, W, target))(X[None])
    torch.testing.assert_close(constant[0], fl.linear_binary_cross_entropy(X, W, Y))


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

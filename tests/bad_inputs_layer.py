"""Those of the layers: see tests/bad_inputs.py."""

import torch

import fused_logistic as fl
from tests.bad_inputs import FLOATS, FREED, READABLE, STRIDED, Bad, freed, quantized

X, W, Y = torch.randn(8, 3), torch.randn(5, 3), torch.rand(8, 5)
LAYERS = [fl.linear_binary_cross_entropy, fl.linear_sigmoid_focal_loss, fl.linear_asymmetric_loss_with_logits]
SHAPED = "of a shape that broadcasts to [8, 5], got "
LAYOUTS = "of layout torch.strided, torch.sparse_csr or torch.sparse_coo, got "
SPARSE_INPUT = "a sparse input of 2 dimensions, none of them dense, got "
SPARSE_TARGET = "a sparse target of 2 sparse dimensions and no dense one, got "
CSR, COO = Y.to_sparse_csr(), Y.to_sparse()


def csr(crow, col, columns):
    """Of two rows, whose indices torch has not looked at."""
    return torch.sparse_csr_tensor(crow, col, torch.ones(2), (2, columns), check_invariants=False)


def coo(row, column, rows, columns, is_coalesced=False):
    return torch.sparse_coo_tensor(
        [row, column], torch.ones(2), (rows, columns), check_invariants=False, is_coalesced=is_coalesced
    )


OF_LAYERS = [
    # what is no tensor
    Bad({"input": [1.0]}, TypeError, "input to be a torch.Tensor, got list"),
    Bad({"linear_weight": None}, TypeError, "linear_weight to be a torch.Tensor, got NoneType"),
    Bad({"target": 1.0}, TypeError, "target to be a torch.Tensor, got float"),
    Bad({"linear_bias": 1.0}, TypeError, "linear_bias to be a torch.Tensor, got float"),
    Bad({"weight": "2"}, TypeError, "weight to be a number or a torch.Tensor, got str"),
    Bad({"pos_weight": [2.0]}, TypeError, "pos_weight to be a number or a torch.Tensor, got list"),
    Bad({"mask": True}, TypeError, "mask to be a torch.Tensor, got bool"),
    # shapes
    Bad({"target": Y[0]}, ValueError, "target of shape [8, 5], got [5]"),
    Bad({"target": Y.t()}, ValueError, "target of shape [8, 5], got [5, 8]"),
    Bad({"target": torch.zeros(8).long()}, ValueError,
        "target of shape [8, 5], got [8]; class indices are for losses of logits"),
    Bad({"linear_weight": W[0]}, ValueError, "target of shape [8], got [8, 5]"),
    Bad({"linear_weight": W[:1], "target": Y[:, 0]}, ValueError, "target of shape [8, 1], got [8]"),
    Bad({"linear_weight": W[:, :2]}, ValueError, "input of 2 features (linear_weight is [5, 2]), got [8, 3]"),
    Bad({"linear_weight": W[None]}, ValueError,
        "linear_weight of shape [labels, features] or [features], got [1, 5, 3]"),
    Bad({"linear_weight": W[0, 0]}, ValueError, "linear_weight of shape [labels, features] or [features], got []"),
    Bad({"input": X[0, 0]}, ValueError, "input of shape [..., features], got []"),
    Bad({"linear_bias": torch.ones(4)}, ValueError, "linear_bias of shape [5], got [4]"),
    Bad({"linear_bias": torch.ones(1)}, ValueError, "linear_bias of shape [5], got [1]"),
    Bad({"linear_weight": W[0], "target": Y[:, 0], "linear_bias": torch.ones(2)}, ValueError,
        "linear_bias of shape [1] or [], got [2]"),
    Bad({"weight": torch.ones(8)}, RuntimeError, "weight " + SHAPED + "[8]"),
    Bad({"pos_weight": torch.ones(2, 8, 5)}, RuntimeError, "pos_weight " + SHAPED + "[2, 8, 5]"),
    Bad({"mask": torch.ones(8) > 0}, RuntimeError, "mask " + SHAPED + "[8]"),
    Bad({"target": CSR, "mask": Y[0, :4] > 0}, RuntimeError, "mask " + SHAPED + "[4]"),
    Bad({"chunk_bytes": 0}, ValueError, "chunk_bytes > 0, got 0"),
    Bad({"chunk_bytes": -8}, ValueError, "chunk_bytes > 0, got -8"),
    Bad({"chunk_bytes": "8MB"}, TypeError, "chunk_bytes to be an int or None, got '8MB'"),
    Bad({"chunk_bytes": 1.5}, TypeError, "chunk_bytes to be an int or None, got 1.5"),
    # dtypes
    Bad({"linear_weight": W.double()}, TypeError, "input and linear_weight of one dtype, got Float and Double"),
    Bad({"linear_bias": torch.ones(5).half()}, TypeError, "input and linear_bias of one dtype, got Float and Half"),
    Bad({"input": X.long(), "linear_weight": W.long()}, NotImplementedError, "input " + FLOATS + "Long"),
    Bad({"input": X * 1j, "linear_weight": W * 1j}, NotImplementedError, "input " + FLOATS + "ComplexFloat"),
    Bad({"input": quantized(X)}, NotImplementedError, "input " + FLOATS + "quantized.QUInt8"),
    Bad({"linear_weight": quantized(W)}, TypeError,
        "input and linear_weight of one dtype, got Float and quantized.QUInt8"),
    Bad({"target": Y * 1j}, NotImplementedError, "target " + READABLE + "ComplexFloat"),
    Bad({"linear_weight": W[:0], "target": Y[:, :0] * 1j}, NotImplementedError, "target " + READABLE + "ComplexFloat"),
    Bad({"weight": Y * 1j}, NotImplementedError, "weight " + READABLE + "ComplexFloat"),
    Bad({"pos_weight": Y.to(torch.uint16)}, NotImplementedError, "pos_weight " + READABLE + "UInt16"),
    Bad({"mask": torch.ones(5)}, TypeError, "mask of dtype bool, got Float"),
    Bad({"target": CSR, "mask": Y}, TypeError, "mask of dtype bool, got Float"),
    # layouts
    Bad({"target": Y.to_sparse_csc()}, ValueError, "target " + LAYOUTS + "SparseCsc"),
    Bad({"target": Y.to_mkldnn()}, ValueError, "target " + LAYOUTS + "Mkldnn"),
    Bad({"target": Y.to_sparse(1)}, ValueError, SPARSE_TARGET + "1 and 1"),
    Bad({"linear_weight": W[0], "target": Y[:, 0].to_sparse()}, ValueError, SPARSE_TARGET + "1 and 0"),
    Bad({"input": X[None], "target": Y[None].to_sparse()}, ValueError, SPARSE_TARGET + "3 and 0"),
    Bad({"target": Y[:, :4].to_sparse()}, ValueError, "target of shape [8, 5], got [8, 4]"),
    Bad({"target": Y[:, :4].to_sparse_csr()}, ValueError, "target of shape [8, 5], got [8, 4]"),
    Bad({"input": X[None], "target": CSR}, ValueError, "target of shape [1, 8, 5], got [8, 5]"),
    Bad({"input": X.to_sparse_csc()}, ValueError, "input " + LAYOUTS + "SparseCsc"),
    Bad({"input": X.to_mkldnn()}, ValueError, "input " + LAYOUTS + "Mkldnn"),
    Bad({"input": X.to_sparse(1)}, ValueError, SPARSE_INPUT + "2, 1 of them dense"),
    Bad({"input": X[None].to_sparse(), "target": Y[None]}, ValueError, SPARSE_INPUT + "3, 0 of them dense"),
    Bad({"input": X.long().to_sparse(), "linear_weight": W.long()}, NotImplementedError, "input " + FLOATS + "Long"),
    Bad({"input": X.to_sparse(), "linear_weight": W.double()}, TypeError,
        "input and linear_weight of one dtype, got Float and Double"),
    Bad({"input": X.to_sparse_csr(), "linear_weight": W[:, :2]}, ValueError,
        "input of 2 features (linear_weight is [5, 2]), got [8, 3]"),
    Bad({"input": X.to_sparse_csr(), "target": Y[:4]}, ValueError, "target of shape [8, 5], got [4, 5]"),
    Bad({"input": X.to_sparse(), "linear_bias": torch.ones(4)}, ValueError, "linear_bias of shape [5], got [4]"),
    Bad({"input": X.to_sparse(), "chunk_bytes": 0}, ValueError, "chunk_bytes > 0, got 0"),
    Bad({"input": X.to_sparse(), "mask": Y}, TypeError, "mask of dtype bool, got Float"),
    Bad({"linear_weight": W.to_sparse_csr()}, ValueError, "linear_weight " + STRIDED + "SparseCsr"),
    Bad({"linear_weight": W.to_mkldnn()}, ValueError, "linear_weight " + STRIDED + "Mkldnn"),
    Bad({"linear_bias": W[:, 0].to_sparse()}, ValueError, "linear_bias " + STRIDED + "Sparse"),
    Bad({"weight": COO}, ValueError, "weight " + STRIDED + "Sparse"),
    Bad({"pos_weight": COO}, ValueError, "pos_weight " + STRIDED + "Sparse"),
    Bad({"mask": (Y > 0).to_sparse()}, ValueError, "mask " + STRIDED + "Sparse"),
    # devices
    Bad({"input": X.to("meta")}, RuntimeError, "linear_weight on meta, got cpu"),
    Bad({"linear_weight": W.to("meta")}, RuntimeError, "linear_weight on cpu, got meta"),
    Bad({"linear_bias": W[:, 0].to("meta")}, RuntimeError, "linear_bias on cpu, got meta"),
    Bad({"target": Y.to("meta")}, RuntimeError, "target on cpu, got meta"),
    Bad({"weight": Y.to("meta")}, RuntimeError, "weight on cpu, got meta"),
    Bad({"mask": (Y > 0).to("meta")}, RuntimeError, "mask on cpu, got meta"),
    # indices
    *(
        Bad({"input": X[:2], "target": csr(crow, [0, 1], 5)}, ValueError,
            "crow_indices of a sparse target that rise from 0 to 2")
        for crow in ([0, 1, 3], [0, 2, 1], [1, 1, 2])
    ),
    *(
        Bad({"input": X[:2], "target": csr([0, 1, 2], col, 5), **composed}, ValueError,
            "column indices of a sparse target in [0, 5)")
        for col in ([0, 5], [-1, 0]) for composed in ({}, {"weight": torch.ones(5, requires_grad=True)})
    ),
    *(
        Bad({"target": coo(row, column, 8, 5, coalesced)}, ValueError, "indices of a sparse target inside of [8, 5]")
        for row, column in (([0, 1], [0, 5]), ([0, 8], [0, 4]), ([-1, 0], [0, 0])) for coalesced in (False, True)
    ),
    Bad({"input": csr([0, 1, 2], [0, 3], 3), "target": Y[:2]}, ValueError,
        "column indices of a sparse input in [0, 3)"),
    Bad({"input": coo([0, 2], [0, 0], 2, 3), "target": Y[:2]}, ValueError,
        "indices of a sparse input inside of [2, 3]"),
    Bad({"input": X.to_sparse_csr().requires_grad_()}, NotImplementedError,
        "a sparse input that requires no gradient, got one that does"),
    Bad({"input": X.to_sparse().requires_grad_()}, NotImplementedError,
        "a sparse input that requires no gradient, got one that does"),
    # what is no longer there
    Bad({"input": freed(X)}, RuntimeError, "input " + FREED),
    Bad({"linear_weight": freed(W)}, RuntimeError, "linear_weight " + FREED),
    Bad({"linear_bias": freed(W[:, 0])}, RuntimeError, "linear_bias " + FREED),
    Bad({"target": freed(Y)}, RuntimeError, "target " + FREED),
    Bad({"weight": freed(Y)}, RuntimeError, "weight " + FREED),
    Bad({"mask": freed(Y > 0)}, RuntimeError, "mask " + FREED),
]  # fmt: skip

"""Inputs that every public function has to refuse: what is given in place of a good argument, the error, its message.

A message is `function: expected ..., got ...`; the tables have what follows `expected`, to where nothing new is said.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

import fused_logistic as fl

INF, NAN = math.inf, math.nan
FLOATS = "of dtype float64, float32, float16 or bfloat16, got "
READABLE = "of dtype float64, float32, float16, bfloat16, bool, uint8, int8, int16, int32 or int64, got "
REDUCTION = "reduction 'none', 'mean' or 'sum', got "
STRIDED = "of layout torch.strided, got "
FREED = "with a storage for its elements, got one of 0 bytes"
ANY = "to be a number or a torch.Tensor, got "


class Bad(NamedTuple):
    arguments: dict[str, Any]
    error: type[Exception]
    message: str


def quantized(t):
    return torch.quantize_per_tensor(t, 0.1, 0, torch.quint8)


def freed(t):
    """As FSDP frees what it has used."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def nested(t):
    return torch.nested.nested_tensor(list(t))


def jagged(t):
    return torch.nested.nested_tensor(list(t), layout=torch.jagged)


# ---- The losses ------------------------------------------------------------------------------------------------------

Z, Y = torch.randn(8, 3), torch.rand(8, 3)
LOSSES = [
    fl.binary_cross_entropy_with_logits, fl.sigmoid_focal_loss, fl.quality_focal_loss, fl.varifocal_loss,
    fl.asymmetric_loss_with_logits,
]  # fmt: skip
ONES, LABELS = torch.ones(8, 3), torch.zeros(8, dtype=torch.long)
SHAPED = "of a shape that broadcasts to [8, 3], got "
OF_LOSSES = [
    # what is no tensor; {input} and {target} are called inputs and targets by some
    Bad({"input": [1.0]}, TypeError, "{input} to be a torch.Tensor, got list"),
    Bad({"input": None}, TypeError, "{input} to be a torch.Tensor, got NoneType"),
    Bad({"input": Z.numpy()}, TypeError, "{input} to be a torch.Tensor, got ndarray"),
    Bad({"target": 1.0}, TypeError, "{target} to be a torch.Tensor, got float"),
    Bad({"target": None}, TypeError, "{target} to be a torch.Tensor, got NoneType"),
    Bad({"weight": "2"}, TypeError, "weight to be a number or a torch.Tensor, got str"),
    Bad({"weight": [1.0, 2.0, 3.0]}, TypeError, "weight to be a number or a torch.Tensor, got list"),
    Bad({"weight": 2j}, TypeError, "weight to be a number or a torch.Tensor, got complex"),
    Bad({"pos_weight": [2.0]}, TypeError, "pos_weight to be a number or a torch.Tensor, got list"),
    Bad({"mask": True}, TypeError, "mask to be a torch.Tensor, got bool"),
    Bad({"mask": [True] * 3}, TypeError, "mask to be a torch.Tensor, got list"),
    # dtypes
    Bad({"input": Z.long()}, NotImplementedError, "{input} " + FLOATS + "Long"),
    Bad({"input": Y > 0.5}, NotImplementedError, "{input} " + FLOATS + "Bool"),
    Bad({"input": Z.to(torch.complex64)}, NotImplementedError, "{input} " + FLOATS + "ComplexFloat"),
    Bad({"input": Z.to(torch.float8_e4m3fn)}, NotImplementedError, "{input} " + FLOATS + "Float8_e4m3fn"),
    Bad({"input": quantized(Z)}, NotImplementedError, "{input} " + FLOATS + "quantized.QUInt8"),
    Bad({"target": Y.to(torch.complex64)}, NotImplementedError, "{target} " + READABLE + "ComplexFloat"),
    Bad({"target": Y.to(torch.uint16)}, NotImplementedError, "{target} " + READABLE + "UInt16"),
    Bad({"target": Y.to(torch.float8_e5m2)}, NotImplementedError, "{target} " + READABLE + "Float8_e5m2"),
    Bad({"target": quantized(Y)}, NotImplementedError, "{target} " + READABLE + "quantized.QUInt8"),
    Bad({"weight": ONES * 1j}, NotImplementedError, "weight " + READABLE + "ComplexFloat"),
    Bad({"pos_weight": ONES.to(torch.uint64)}, NotImplementedError, "pos_weight " + READABLE + "UInt64"),
    Bad({"mask": ONES}, TypeError, "mask of dtype bool, got Float"),
    Bad({"mask": ONES.to(torch.uint8)}, TypeError, "mask of dtype bool, got Byte"),
    # shapes
    Bad({"target": Y[0]}, ValueError, "{target} of shape [8, 3], got [3]"),
    Bad({"target": Y[:, :2]}, ValueError, "{target} of shape [8, 3], got [8, 2]"),
    Bad({"target": Y.t()}, ValueError, "{target} of shape [8, 3], got [3, 8]"),
    Bad({"target": Y[:, :1]}, ValueError, "{target} of shape [8, 3], got [8, 1]"),
    Bad({"target": Y[None]}, ValueError, "{target} of shape [8, 3], got [1, 8, 3]"),
    Bad({"target": Y[0, 0]}, ValueError, "{target} of shape [8, 3], got []"),
    Bad({"input": Z[:0]}, ValueError, "{target} of shape [0, 3], got [8, 3]"),
    Bad({"weight": torch.ones(8)}, RuntimeError, "weight " + SHAPED + "[8]"),
    Bad({"weight": torch.ones(2, 8, 3)}, RuntimeError, "weight " + SHAPED + "[2, 8, 3]"),
    Bad({"weight": torch.ones(0)}, RuntimeError, "weight " + SHAPED + "[0]"),
    Bad({"pos_weight": torch.ones(2)}, RuntimeError, "pos_weight " + SHAPED + "[2]"),
    Bad({"mask": torch.ones(2) > 0}, RuntimeError, "mask " + SHAPED + "[2]"),
    # class indices
    Bad({"target": LABELS[:5]}, ValueError, "{target} of class indices of shape [8], got [5]"),
    Bad({"target": LABELS[:3]}, ValueError, "{target} of class indices of shape [8], got [3]"),
    Bad({"target": LABELS.float()}, ValueError,
        "{target} of shape [8, 3], got [8]; class indices are of an integer dtype"),
    Bad({"target": LABELS > 0}, ValueError, "{target} of shape [8, 3], got [8]"),
    Bad({"input": Z[:, :1], "target": LABELS}, ValueError, "{target} of shape [8, 1], got [8]"),
    Bad({"input": Z.view(2, 4, 3), "target": LABELS.view(2, 4)}, ValueError,
        "{target} of class indices of shape [2, 3], got [2, 4]"),
    Bad({"input": Z[0, 0], "target": LABELS[:1]}, ValueError, "{target} of shape [], got [1]"),
    # layouts and devices
    Bad({"input": Z.to_sparse()}, NotImplementedError, "{input} " + STRIDED + "Sparse"),
    Bad({"input": Z.to_sparse_csr()}, NotImplementedError, "{input} " + STRIDED + "SparseCsr"),
    Bad({"input": Z.to_mkldnn()}, NotImplementedError, "{input} " + STRIDED + "Mkldnn"),
    Bad({"target": Y.to_sparse()}, NotImplementedError, "{target} " + STRIDED + "Sparse; linear_"),
    Bad({"target": Y.to_sparse_csc()}, NotImplementedError, "{target} " + STRIDED + "SparseCsc; linear_"),
    Bad({"target": Y.to_mkldnn()}, NotImplementedError, "{target} " + STRIDED + "Mkldnn"),
    Bad({"weight": Y.to_sparse()}, NotImplementedError, "weight " + STRIDED + "Sparse"),
    Bad({"pos_weight": Y.to_mkldnn()}, NotImplementedError, "pos_weight " + STRIDED + "Mkldnn"),
    Bad({"mask": (Y > 0).to_sparse()}, NotImplementedError, "mask " + STRIDED + "Sparse"),
    Bad({"target": nested(Y)}, NotImplementedError, "a nested tensor as {target} only if all are"),
    Bad({"target": Y.to("meta")}, RuntimeError, "{target} on cpu, got meta"),
    Bad({"input": Z.to("meta")}, RuntimeError, "{target} on meta, got cpu"),
    Bad({"weight": ONES.to("meta")}, RuntimeError, "weight on cpu, got meta"),
    Bad({"pos_weight": ONES.to("meta")}, RuntimeError, "pos_weight on cpu, got meta"),
    Bad({"mask": (Y > 0).to("meta")}, RuntimeError, "mask on cpu, got meta"),
    # what is no longer there
    Bad({"input": freed(Z)}, RuntimeError, "{input} " + FREED),
    Bad({"target": freed(Y)}, RuntimeError, "{target} " + FREED),
    Bad({"weight": freed(ONES)}, RuntimeError, "weight " + FREED),
    Bad({"pos_weight": freed(ONES[0])}, RuntimeError, "pos_weight " + FREED),
    Bad({"mask": freed(Y > 0)}, RuntimeError, "mask " + FREED),
]  # fmt: skip

# ---- Options, of the losses and the layers ---------------------------------------------------------------------------

OF_ALL = [
    Bad({"reduction": "average"}, ValueError, REDUCTION + "'average'"),
    Bad({"reduction": None}, ValueError, REDUCTION + "None"),
    Bad({"reduction": 1}, ValueError, REDUCTION + "1"),
    Bad({"reduction": "median", "normalizer": "weights"}, ValueError, REDUCTION + "'median'"),
    Bad({"ignore_index": 1.5}, TypeError, "ignore_index to be an int, got 1.5"),
    Bad({"ignore_index": "1"}, TypeError, "ignore_index to be an int, got '1'"),
    Bad({"ignore_index": 2**63}, ValueError, "ignore_index to be an int of 64 bits, got 9223372036854775808"),
    Bad({"ignore_nan": 1}, TypeError, "ignore_nan to be a bool, got 1"),
    Bad({"ignore_nan": None}, TypeError, "ignore_nan to be a bool, got None"),
    Bad({"ignore_nan": "yes"}, TypeError, "ignore_nan to be a bool, got 'yes'"),
    Bad({"ignore_nan": torch.tensor(True)}, TypeError, "ignore_nan to be a bool, got tensor(True)"),
    Bad({"normalizer": "weight"}, ValueError,
        "normalizer to be 'elements', 'weights', 'positives', a number or a tensor, got 'weight'"),
    Bad({"normalizer": None}, TypeError, "normalizer to be a str, a number or a tensor, got NoneType"),
    Bad({"normalizer": True}, TypeError, "normalizer to be a str, a number or a tensor, got bool"),
    Bad({"normalizer": 2j}, TypeError, "normalizer to be a str, a number or a tensor, got complex"),
    Bad({"normalizer": 0}, ValueError, "normalizer to be finite and > 0, got 0"),
    Bad({"normalizer": -2.5}, ValueError, "normalizer to be finite and > 0, got -2.5"),
    Bad({"normalizer": NAN}, ValueError, "normalizer to be finite and > 0, got nan"),
    Bad({"normalizer": INF}, ValueError, "normalizer to be finite and > 0, got inf"),
    Bad({"normalizer": torch.ones(2)}, ValueError, "normalizer of one element, got [2]"),
    Bad({"normalizer": torch.ones(()) > 0}, TypeError, "normalizer to be real, got Bool"),
    Bad({"normalizer": torch.ones(()) * 1j}, TypeError, "normalizer to be real, got ComplexFloat"),
    Bad({"normalizer": torch.ones(1).to_sparse()}, ValueError, "normalizer of layout torch.strided, got Sparse"),
    Bad({"normalizer": torch.ones((), device="meta")}, RuntimeError, "normalizer on cpu, got meta"),
    *(
        Bad({"normalizer": value, "reduction": reduction}, ValueError,
            f"reduction 'mean' with a normalizer, got '{reduction}'")
        for reduction in ("none", "sum") for value in ("weights", "positives", 2.5, torch.tensor(2.5))
    ),
]  # fmt: skip


def of_tensor_option(name: str, high: str, labels: int) -> list[Bad]:
    """Of an option that may be a tensor."""
    return [
        Bad({name: "1"}, TypeError, f"{name} {ANY}str"),
        Bad({name: [0.3]}, TypeError, f"{name} {ANY}list"),
        Bad({name: 1j}, TypeError, f"{name} {ANY}complex"),
        Bad({name: torch.tensor(1j)}, TypeError, f"{name} to be a real number or tensor, got torch.complex64"),
        Bad({name: torch.tensor(True)}, TypeError, f"{name} to be a real number or tensor, got torch.bool"),
        Bad({name: torch.rand(2)}, RuntimeError, f"{name} of a shape that broadcasts to [8, {labels}], got [2]"),
        Bad({name: torch.rand(2, 8, labels)}, RuntimeError, f"{name} of a shape that broadcasts to [8, {labels}], got"),
        Bad({name: torch.rand(labels, device="meta")}, RuntimeError, f"{name} on cpu, got meta"),
        *(Bad({name: v}, ValueError, f"{name} between 0 and {high}, got {v:g}") for v in (-0.5, INF, NAN)),
        *(Bad({name: v}, ValueError, f"{name} between 0 and {high}, got") for v in (torch.tensor(-2.0), -1e-9)),
    ]


def of_number(name: str, high: str) -> list[Bad]:
    """Of one that may not."""
    return [
        Bad({name: torch.ones(3)}, TypeError, f"{name} to be a number, got Tensor"),
        Bad({name: "2"}, TypeError, f"{name} to be a number, got str"),
        *(Bad({name: v}, ValueError, f"{name} between 0 and {high}, got {v:g}") for v in (-1, 2e30, INF, NAN)),
    ]


def of_clip() -> list[Bad]:
    wrong = [Bad({"clip": v}, ValueError, f"clip to be 0 or between 1e-09 and 1, got {v:g}") for v in
             (1e-12, 1.5, -0.1, NAN)]  # fmt: skip
    return [*wrong, Bad({"clip": "0.05"}, TypeError, "clip to be a number, got str")]


def own(labels: int) -> dict[str, list[Bad]]:
    """By what the losses have of their own; `linear_` and the name has the same."""
    smoothing = of_tensor_option("label_smoothing", "1", labels)
    exponents = [*of_number("gamma_neg", "1e+30"), *of_number("gamma_pos", "1e+30"), *of_clip()]
    alphas = of_tensor_option("alpha", "1, or -1 for none", labels)
    return {
        "binary_cross_entropy_with_logits": smoothing,
        "sigmoid_focal_loss": [*of_tensor_option("gamma", "1e+30", labels), *alphas],
        "quality_focal_loss": of_number("beta", "1e+30"),
        "varifocal_loss": [
            *of_number("gamma", "1e+30"),
            *of_number("alpha", "1"),
            Bad({"iou_weighted": 1}, TypeError, "iou_weighted to be a bool, got int"),
        ],
        "asymmetric_loss_with_logits": [*smoothing, *exponents],
    }


# ---- Pairs -----------------------------------------------------------------------------------------------------------

X, T, S, B = torch.randn(4, 3), torch.randn(4, 3), torch.tensor(10.0), torch.tensor(-2.0)
OF_PAIRS = [
    Bad({"image_features": X.tolist()}, TypeError, "image_features to be a torch.Tensor, got list"),
    Bad({"text_features": None}, TypeError, "text_features to be a torch.Tensor, got NoneType"),
    Bad({"logit_scale": "10"}, TypeError, "logit_scale to be a torch.Tensor, got str"),
    Bad({"logit_scale": None}, TypeError, "logit_scale to be a torch.Tensor, got NoneType"),
    Bad({"logit_bias": [1.0]}, TypeError, "logit_bias to be a torch.Tensor, got list"),
    Bad({"image_features": X[0], "text_features": T[0]}, ValueError,
        "image_features of shape [pairs, features], got [3]"),
    Bad({"image_features": X[None], "text_features": T[None]}, ValueError,
        "image_features of shape [pairs, features], got [1, 4, 3]"),
    Bad({"text_features": T[:3]}, ValueError, "text_features of shape [4, 3], got [3, 3]"),
    Bad({"text_features": T[:, :2]}, ValueError, "text_features of shape [4, 3], got [4, 2]"),
    Bad({"text_features": T.double()}, TypeError, "text_features of the images' dtype Float, got Double"),
    Bad({"image_features": X.long(), "text_features": T.long()}, NotImplementedError,
        "image_features " + FLOATS + "Long"),
    Bad({"text_features": T * 1j}, NotImplementedError, "text_features " + FLOATS + "ComplexFloat"),
    Bad({"image_features": quantized(X)}, NotImplementedError, "image_features " + FLOATS + "quantized.QUInt8"),
    Bad({"image_features": X.to_sparse_csr()}, NotImplementedError, "image_features " + STRIDED + "SparseCsr"),
    Bad({"image_features": X.to_mkldnn()}, NotImplementedError, "image_features " + STRIDED + "Mkldnn"),
    Bad({"text_features": T.to_sparse()}, NotImplementedError, "text_features " + STRIDED + "Sparse"),
    Bad({"logit_scale": S.to_sparse()}, NotImplementedError, "logit_scale " + STRIDED + "Sparse"),
    Bad({"logit_bias": B.to_sparse()}, NotImplementedError, "logit_bias " + STRIDED + "Sparse"),
    Bad({"logit_scale": S.long()}, NotImplementedError, "logit_scale " + FLOATS + "Long"),
    Bad({"logit_bias": B * 1j}, NotImplementedError, "logit_bias " + FLOATS + "ComplexFloat"),
    Bad({"logit_scale": torch.ones(2)}, ValueError, "logit_scale of shape [] or [1], got [2]"),
    Bad({"logit_bias": torch.ones(4, 1)}, ValueError, "logit_bias of shape [] or [1], got [4, 1]"),
    Bad({"image_features": X.to("meta")}, RuntimeError, "text_features on meta, got cpu"),
    Bad({"text_features": T.to("meta")}, RuntimeError, "text_features on cpu, got meta"),
    Bad({"logit_scale": S.to("meta")}, RuntimeError, "logit_scale on cpu, got meta"),
    Bad({"logit_bias": B.to("meta")}, RuntimeError, "logit_bias on cpu, got meta"),
    Bad({"image_features": freed(X)}, RuntimeError, "image_features " + FREED),
    Bad({"text_features": freed(T)}, RuntimeError, "text_features " + FREED),
    Bad({"tile_bytes": 0}, ValueError, "tile_bytes > 0, got 0"),
    Bad({"tile_bytes": -1}, ValueError, "tile_bytes > 0, got -1"),
    Bad({"tile_bytes": "8"}, TypeError, "tile_bytes to be an int or None, got '8'"),
    Bad({"group": "world"}, TypeError, "group to be a ProcessGroup or None, got str"),
]  # fmt: skip

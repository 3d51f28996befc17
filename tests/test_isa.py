"""Every error: torch's class, and a message that names the op, what was expected and what came."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import first_requires_grad

import fused_logistic as fl
from fused_logistic import _C

OP = "binary_cross_entropy_with_logits: expected "
Z, Y = torch.randn(8, 3), torch.rand(8, 3)


@pytest.mark.parametrize(
    "arguments,options,error,message",
    [
        ((Z, Y[0]), {}, ValueError, "target of shape [8, 3], got [3]"),
        ((Z, Y[:, :2]), {}, ValueError, "target of shape [8, 3], got [8, 2]"),
        ((Z, Y.t()), {}, ValueError, "target of shape [8, 3], got [3, 8]"),
        ((Z, Y), {"reduction": "average"}, ValueError, "reduction 'none', 'mean' or 'sum', got 'average'"),
        ((Z, Y), {"reduction": None}, ValueError, "reduction 'none', 'mean' or 'sum', got None"),
        (([1.0], Y), {}, TypeError, "input to be a torch.Tensor, got list"),
        ((Z, 1.0), {}, TypeError, "target to be a torch.Tensor, got float"),
        ((Z, Y), {"weight": "2"}, TypeError, "weight to be a torch.Tensor, got str"),
        ((Z, Y), {"pos_weight": [2.0]}, TypeError, "pos_weight to be a torch.Tensor, got list"),
        ((Z, Y), {"weight": torch.ones(8)}, RuntimeError, "weight of a shape that broadcasts to [8, 3], got [8]"),
        ((Z, Y), {"pos_weight": torch.ones(2)}, RuntimeError, "pos_weight of a shape that broadcasts to [8, 3], got"),
        ((Z, Y), {"weight": torch.ones(2, 8, 3)}, RuntimeError, "weight of a shape that broadcasts to [8, 3], got [2,"),
        ((Z.long(), Y), {}, NotImplementedError, "logits of dtype float64, float32, float16 or bfloat16, got Long"),
        ((Z.to(torch.complex64), Y), {}, NotImplementedError, "logits of dtype float64, float32, float16 or bfloat16"),
        ((Z, Y.to(torch.complex64)), {}, NotImplementedError, "a floating point, integer or bool tensor"),
        ((Z, Y.to_sparse()), {}, NotImplementedError, "target of layout torch.strided, got Sparse; linear_"),
        ((Z, Y), {"weight": Y.to_sparse()}, NotImplementedError, "weight of layout torch.strided, got Sparse"),
        ((Z, Y), {"mask": (Y > 0).to_sparse()}, NotImplementedError, "mask of layout torch.strided, got Sparse"),
        ((Z.to_sparse(), Y), {}, NotImplementedError, "logits of layout torch.strided, got Sparse"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("requires_grad", [False, True])
def test_message(arguments, options, error, message, requires_grad):
    with pytest.raises(error, match=re.escape(OP + message)):
        fl.binary_cross_entropy_with_logits(*first_requires_grad(arguments, requires_grad), **options)


def test_devices_must_agree():
    with pytest.raises(RuntimeError):
        fl.binary_cross_entropy_with_logits(Z, Y.to("meta"))


def _import_with(isa):
    environment = {**os.environ, "FUSED_LOGISTIC_ISA": isa}
    command = "import fused_logistic; from fused_logistic import _C; print(_C.isa())"
    return subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)


def test_isa_override():
    assert _import_with("baseline").stdout.strip() == "baseline"
    unknown = _import_with("sse9")
    expected = f"FUSED_LOGISTIC_ISA: expected one of {', '.join(_C.isas_built())}, got 'sse9'\n"
    assert unknown.returncode != 0 and unknown.stderr.endswith(expected)
    assert "ebuild" not in unknown.stderr  # that would not help


def test_isa_that_this_cpu_lacks():
    missing = set(_C.isas_built()) - set(_C.isas_supported())
    if not missing:
        pytest.skip("this CPU supports every instruction set of the build")
    assert "this CPU does not support" in _import_with(missing.pop()).stderr

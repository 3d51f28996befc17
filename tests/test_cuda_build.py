"""Which ops have CUDA kernels in this build: all of them or none, as setup.py said."""

import os

import pytest
import torch

import fused_logistic  # noqa: F401  (registers the ops)

OPS = ("bce", "bce_with_grad", "bce_backward", "scale_")


def registered() -> list[bool]:
    return [torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_logistic::{op}", "CUDA") for op in OPS]


def test_all_ops_or_none():
    assert len(set(registered())) == 1


def test_every_op_has_a_cuda_kernel():
    if os.environ.get("FORCE_CUDA") != "1":
        pytest.skip("FORCE_CUDA=1 is not set: the build may be for the CPU alone")
    assert all(registered())

"""Runs a transform on our loss and on torch's own, in fp64, and compares what comes out."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import fused_logistic as fl
from tests.conftest import REDUCTIONS

WEIGHTS = ["plain", "weight", "pos_weight", "both"]


def torchs_loss(z, y, w=None, pos_weight=None, reduction="mean"):
    """torch's own loss. torch refuses to differentiate it by its weights; being linear in them, it is taken apart."""
    if not any(
        t is not None and (t.requires_grad or forward_ad.unpack_dual(t).tangent is not None) for t in (w, pos_weight)
    ):
        return F.binary_cross_entropy_with_logits(z, y, w, pos_weight=pos_weight, reduction=reduction)
    positive = F.binary_cross_entropy_with_logits(z, torch.ones_like(z), reduction="none")
    negative = F.binary_cross_entropy_with_logits(z, torch.zeros_like(z), reduction="none")
    loss = (1 if w is None else w) * ((1 if pos_weight is None else pos_weight) * y * positive + (1 - y) * negative)
    return loss if reduction == "none" else getattr(loss, reduction)()


OURS_AND_TORCHS = (fl.binary_cross_entropy_with_logits, torchs_loss)


def rand(*shape):
    return torch.rand(shape, dtype=torch.double)


def operands(weights="plain", shape=(4, 3)):
    """(logits, target, weight, pos_weight); the weights broadcast."""
    weight = rand(shape[0], 1) if weights in ("weight", "both") else None
    pos_weight = 2 * rand(shape[1]) if weights in ("pos_weight", "both") else None
    return 3 * torch.randn(shape, dtype=torch.double), rand(*shape), weight, pos_weight


def losses(reduction, tensors):
    """Ours and torch's as functions of all four operands, of which those that are None stay None."""
    for function in OURS_AND_TORCHS:

        def loss(*present, function=function):
            given = iter(present)
            z, y, w, p = (None if t is None else next(given) for t in tensors)
            return function(z, y, w, pos_weight=p, reduction=reduction)

        yield loss


def flat(result):
    return [t.detach() for t in torch.utils._pytree.tree_leaves(result)]


def assert_same(ours, torchs):
    ours, torchs = flat(ours), flat(torchs)
    assert len(ours) == len(torchs) > 0
    for a, b in zip(ours, torchs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * largest + 1e-15)


def compare(transform, reduction="mean", weights="plain", tensors=None):
    """transform(loss, tensors) must give the same for both losses; returns ours to look at."""
    tensors = operands(weights) if tensors is None else tensors
    present = [t for t in tensors if t is not None]
    ours, torchs = (transform(loss, present) for loss in losses(reduction, tensors))
    assert_same(ours, torchs)
    return flat(ours)


cases = pytest.mark.parametrize("reduction,weights", list(itertools.product(REDUCTIONS, WEIGHTS)))


def scalar(loss):
    """A scalar function whatever the reduction; not a plain sum, so that grad_output differs between elements."""
    return lambda *tensors: (loss(*tensors) ** 2).sum()

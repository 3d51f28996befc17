"""The loss of pairs as open_clip writes it, ours, and what both are asked with."""

import torch
import torch.nn.functional as F

import fused_logistic as fl


def formula(image, text, scale, bias=None, tile_bytes=None):
    """As open_clip and big_vision define it."""
    logits = scale * image @ text.T + (0 if bias is None else bias)
    labels = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def ours(*given, tile_bytes=None):
    return fl.sigmoid_contrastive_loss(*given, tile_bytes=tile_bytes)


def operands(n, features, dtype=torch.double, scale=10.0, bias=-2.0):
    image, text = (F.normalize(torch.randn(n, features, dtype=torch.double), dim=1).to(dtype) for _ in range(2))
    numbers = (torch.tensor(x, dtype=torch.double if dtype == torch.double else torch.float) for x in (scale, bias))
    return [t.requires_grad_() for t in (image, text, *numbers)]


def step(function, leaves, factor=1.0, **options):
    loss = function(*leaves, **options)
    return loss.detach(), *torch.autograd.grad(factor * loss, [t for t in leaves if t is not None])


def in_double(leaves):
    return [None if t is None else t.detach().double().requires_grad_() for t in leaves]

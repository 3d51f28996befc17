"""What a mean divides by, by its definition, and what the tests of it share."""

import torch
import torch.nn.functional as F

ROWS, LABELS, FEATURES = 6, 5, 3
NAMES = ["elements", "weights", "positives", "tensor", "number"]
WEIGHTS = {"none": None, "number": 1.5, "scalar": (), "label": (LABELS,), "row": (ROWS, 1), "all": (ROWS, LABELS)}
LEFT_OUT = ["nothing", "mask", "mask of a row", "mask of labels", "ignored", "both"]


def operands(weight="label", left_out="nothing", dtype=torch.double):
    """(logits, target, options); -1 is the ignored target."""
    z, y = 3 * torch.randn(ROWS, LABELS, dtype=dtype), (torch.rand(ROWS, LABELS) * 2 - 1).clamp_min(0).to(dtype)
    shape = WEIGHTS[weight]
    w = shape if shape is None or isinstance(shape, float) else torch.rand(shape, dtype=dtype) + 0.1
    options = {"weight": w}
    if left_out in ("ignored", "both"):
        y[0], y[3, 1] = -1, -1
        options["ignore_index"] = -1
    if left_out in ("mask", "both"):
        options["mask"] = torch.rand(ROWS, LABELS) < 0.6
    if left_out.startswith("mask of"):
        options["mask"] = torch.rand((ROWS, 1) if left_out.endswith("row") else (LABELS,)) < 0.6
        options["mask"].view(-1)[0] = True
    return z, y, options


def given(name):
    return {"tensor": torch.tensor([2.5]), "number": 2.5}.get(name, name)


def kept_of(y, options):
    kept = torch.ones_like(y, dtype=torch.bool)
    if options.get("mask") is not None:
        kept = kept & options["mask"]
    return kept & (y != options["ignore_index"]) if options.get("ignore_index") is not None else kept


def truth(z, y, normalizer, weight=None, **options):
    """By the definition, composed of torch's operations."""
    kept = kept_of(y, options)
    w = torch.as_tensor(1.0 if weight is None else weight, dtype=z.dtype).expand_as(z)
    positives = ((y > 0) & kept).sum().clamp_min(1)
    s = options.get("label_smoothing") or 0
    target = torch.where(kept, y, 0) * (1 - s) + s / 2
    z, w = torch.where(kept, z, 0), torch.where(kept, w, 0)
    total = (w * (-target * F.logsigmoid(z) - (1 - target) * F.logsigmoid(-z)))[kept].sum()
    if isinstance(normalizer, str):
        weights = kept.sum() if weight is None else w.sum()
        return total / {"elements": kept.sum(), "weights": weights, "positives": positives}[normalizer]
    return total / torch.as_tensor(normalizer).double().reshape(())


def assert_same(loss, want, leaves, rtol=1e-12):
    torch.testing.assert_close(loss, want.to(loss.dtype), rtol=rtol, atol=0)
    got = torch.autograd.grad(3 * loss, leaves)
    wanted = torch.autograd.grad(3 * want, leaves, retain_graph=True)  # of several results
    # by a weight of all, "weights" has a gradient of 0: the difference of two terms of size 1, of 30 elements each
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=3e-14)


def layer():
    x, w, b = torch.randn(ROWS, FEATURES), torch.randn(LABELS, FEATURES), torch.randn(LABELS)
    return [t.double().requires_grad_() for t in (x, w, b)]

"""fl.patch() and the losses of other libraries, which stand-ins have the signatures and formulas of.

torchvision, timm and mmdet need not be installed: what is written here is what their documentation says.
"""

import types

import pytest
import torch
import torch.nn.functional as F
from patches import is_ours, torchs_function_is_back  # noqa: F401 (a fixture)

import fused_logistic as fl
from fused_logistic import adapters

ROWS, CLASSES = 12, 5


def theirs(function_or_class, module):
    """As if it had been defined there."""
    function_or_class.__module__ = module
    function_or_class.__qualname__ = function_or_class.__name__
    return function_or_class


def sigmoid_focal_loss(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
    """torchvision's."""
    p = torch.sigmoid(inputs)
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    loss = cross_entropy * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[reduction]()


def py_sigmoid_focal_loss(pred, target, weight=None, gamma=2.0, alpha=0.25, reduction="mean", avg_factor=None):
    """mmdet's."""
    loss = sigmoid_focal_loss(pred, target.type_as(pred), alpha, gamma)
    if weight is not None:
        if weight.shape != loss.shape:
            weight = weight.view(-1, 1) if weight.size(0) == loss.size(0) else weight.view(loss.size(0), -1)
        loss = loss * weight
    if avg_factor is None or reduction == "none":
        return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[reduction]()
    assert reduction == "mean"
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)


torchvisions = theirs(types.FunctionType(sigmoid_focal_loss.__code__, globals(), "sigmoid_focal_loss",
                                         sigmoid_focal_loss.__defaults__), "torchvision.ops.focal_loss")  # fmt: skip
mmdets = theirs(types.FunctionType(py_sigmoid_focal_loss.__code__, globals(), "py_sigmoid_focal_loss",
                                   py_sigmoid_focal_loss.__defaults__), "mmdet.models.losses.focal_loss")  # fmt: skip


def module(**names):
    found = types.ModuleType("their_head")
    vars(found).update(names)
    return found


def operands():
    z = torch.randn(ROWS, CLASSES, dtype=torch.double, requires_grad=True)
    return z, (torch.rand(ROWS, CLASSES) < 0.2).double()


def assert_same_loss(ours, reference, *args, **options):
    z, y = operands()
    got, want = (loss(z, y, *args, **options) for loss in (ours, reference))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(loss.sum(), z)[0] for loss in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torchvisions_focal_loss(reduction):
    head = module(focal=torchvisions, other=F.binary_cross_entropy)
    with fl.patch(head):
        assert head.focal is fl.sigmoid_focal_loss and head.other is F.binary_cross_entropy
        assert_same_loss(head.focal, sigmoid_focal_loss, 0.3, 1.5, reduction)
        assert_same_loss(head.focal, sigmoid_focal_loss, -1, reduction=reduction)
    assert head.focal is torchvisions


WEIGHTS = {"none": None, "of priors": (ROWS,), "of elements": (ROWS, CLASSES), "flat": (ROWS * CLASSES,)}


@pytest.mark.parametrize("avg_factor", [None, 7, 0, torch.tensor(3.0), torch.tensor(4)])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_mmdets_focal_loss(weight, avg_factor):
    head = module(py_sigmoid_focal_loss=mmdets)
    w = None if WEIGHTS[weight] is None else torch.rand(WEIGHTS[weight], dtype=torch.double)
    with fl.patch(head):
        ours = head.py_sigmoid_focal_loss
        assert ours is not mmdets
        assert_same_loss(ours, py_sigmoid_focal_loss, w, 1.5, 0.3, "mean", avg_factor)
        assert_same_loss(ours, py_sigmoid_focal_loss, weight=w, reduction="none", avg_factor=avg_factor)
        if avg_factor is None:
            assert_same_loss(ours, py_sigmoid_focal_loss, w, reduction="sum")
        else:
            with pytest.raises(ValueError, match="^py_sigmoid_focal_loss: expected no avg_factor with reduction 'sum'"):
                ours(*operands(), w, reduction="sum", avg_factor=avg_factor)


def test_mmdets_dtypes():
    """The targets take the dtype of the predictions, and integers are read as they are."""
    z, y = operands()
    with fl.patch(head := module(loss=mmdets)):
        for dtype in (torch.float32, torch.float16):
            logits = z.detach().to(dtype)
            for target in (y, y.float(), y.long(), y.bool()):
                got = head.loss(logits, target)
                assert got.dtype == dtype
                want = py_sigmoid_focal_loss(logits.double(), target)
                torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=0)


def varifocal_loss(pred, target, weight=None, alpha=0.75, gamma=2.0, iou_weighted=True, reduction="mean",
                   avg_factor=None):  # fmt: skip
    """mmdet's."""
    p, target = pred.sigmoid(), target.type_as(pred)
    positive = (target > 0.0).to(p.dtype)
    background = alpha * (p - target).abs().pow(gamma) * (1 - positive)
    loss = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
    loss = loss * ((target if iou_weighted else 1) * positive + background)
    loss = loss if weight is None else loss * weight
    if avg_factor is None or reduction == "none":
        return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[reduction]()
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("avg_factor", [None, 7, torch.tensor(3.0)])
@pytest.mark.parametrize("iou_weighted", [True, False])
def test_mmdets_varifocal_loss(iou_weighted, avg_factor):
    mmdets = theirs(types.FunctionType(varifocal_loss.__code__, globals(), "varifocal_loss",
                                       varifocal_loss.__defaults__), "mmdet.models.losses.varifocal_loss")  # fmt: skip
    w = torch.rand(ROWS, CLASSES, dtype=torch.double)
    with fl.patch(head := module(varifocal_loss=mmdets)):
        assert head.varifocal_loss is not mmdets
        assert_same_loss(head.varifocal_loss, varifocal_loss, None, 0.6, 1.5, iou_weighted, "mean", avg_factor)
        assert_same_loss(head.varifocal_loss, varifocal_loss, w, iou_weighted=iou_weighted, reduction="none")
    assert head.varifocal_loss is mmdets


def quality_focal_loss(pred, target, weight=None, reduction="mean", avg_factor=None, beta=2.0):
    """mmdet's, with what its decorator does."""
    label, score = target
    p = pred.sigmoid()
    loss = F.binary_cross_entropy_with_logits(pred, torch.zeros_like(pred), reduction="none") * p.pow(beta)
    rows = ((label >= 0) & (label < pred.size(1))).nonzero().squeeze(1)
    classes = label[rows].long()
    of_rows = F.binary_cross_entropy_with_logits(pred[rows, classes], score[rows], reduction="none")
    loss[rows, classes] = of_rows * (score[rows] - p[rows, classes]).abs().pow(beta)
    loss = loss.sum(dim=1)
    loss = loss if weight is None else loss * weight
    if avg_factor is None or reduction == "none":
        return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[reduction]()
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("reduction,avg_factor", [("none", None), ("mean", None), ("mean", 3.0), ("sum", None)])
def test_mmdets_quality_focal_loss(reduction, avg_factor):
    """Targets are a class and its quality; of no class are those below 0 and from the number of classes on."""
    mmdets = theirs(types.FunctionType(quality_focal_loss.__code__, globals(), "quality_focal_loss",
                                       quality_focal_loss.__defaults__), "mmdet.models.losses.gfocal_loss")  # fmt: skip
    pred = torch.randn(ROWS, CLASSES, dtype=torch.double, requires_grad=True)
    target = torch.arange(ROWS) % (CLASSES + 2) - 1, torch.rand(ROWS, dtype=torch.double)
    with fl.patch(head := module(loss=mmdets)):
        assert head.loss is not mmdets
        for weight in (None, torch.rand(ROWS, dtype=torch.double)):
            given = pred, target, weight, reduction, avg_factor
            ours, exact = head.loss(*given, beta=1.5), quality_focal_loss(*given, beta=1.5)
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-15)
            grads = [torch.autograd.grad(t.sum(), pred)[0] for t in (ours, exact)]
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-13)


def test_a_mean_of_half_precision_has_room_for_its_sum():
    mmdets = theirs(types.FunctionType(quality_focal_loss.__code__, globals(), "quality_focal_loss",
                                       quality_focal_loss.__defaults__), "mmdet.models.losses.gfocal_loss")  # fmt: skip
    pred, target = torch.randn(4000, 80), (torch.arange(4000) % 80, torch.rand(4000))
    with fl.patch(head := module(loss=mmdets)):
        ours = head.loss(pred.half(), target)
        assert head.loss(pred[:0], (target[0][:0], target[1][:0])).isnan()
    torch.testing.assert_close(ours.float(), quality_focal_loss(pred.half().float(), target), rtol=2e-3, atol=0)


class AsymmetricLossMultiLabel(torch.nn.Module):
    """timm's."""

    def __init__(self, gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8, disable_torch_grad_focal_loss=False):
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip, self.eps = gamma_neg, gamma_pos, clip, eps
        self.disable_torch_grad_focal_loss = disable_torch_grad_focal_loss

    def forward(self, x, y):
        p = torch.sigmoid(x)
        opposite = 1 - p
        if self.clip is not None and self.clip > 0:
            opposite = (opposite + self.clip).clamp(max=1)
        log = y * torch.log(p.clamp(min=self.eps)) + (1 - y) * torch.log(opposite.clamp(min=self.eps))
        right = p * y + opposite * (1 - y)
        return -(log * torch.pow(1 - right, self.gamma_pos * y + self.gamma_neg * (1 - y))).sum()


def test_timms_asymmetric_loss():
    theirs(AsymmetricLossMultiLabel, "timm.loss.asymmetric_loss")
    head, original = module(Loss=AsymmetricLossMultiLabel), AsymmetricLossMultiLabel.forward
    for arguments in ((), (2, 0, None), (3.5, 0.5, 0.1)):
        criterion, reference = AsymmetricLossMultiLabel(*arguments), AsymmetricLossMultiLabel(*arguments)
        with fl.patch(head):
            assert AsymmetricLossMultiLabel.forward is adapters.asymmetric_forward
            assert_same_loss(criterion, lambda x, y, loss=reference: original(loss, x, y))
            with pytest.raises(NotImplementedError, match="expected disable_torch_grad_focal_loss=False"):
                AsymmetricLossMultiLabel(disable_torch_grad_focal_loss=True)(*operands())
    assert AsymmetricLossMultiLabel.forward is original


class BinaryCrossEntropy(torch.nn.Module):
    """timm's: it calls torch's function, so that no module has to be given."""

    def __init__(self, smoothing=0.1, target_threshold=None, weight=None, reduction="mean", sum_classes=False,
                 pos_weight=None):  # fmt: skip
        super().__init__()
        self.smoothing, self.target_threshold, self.sum_classes = smoothing, target_threshold, sum_classes
        self.reduction = "none" if sum_classes else reduction
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, x, target):
        if target.shape != x.shape:
            off = self.smoothing / x.shape[-1]
            target = torch.full_like(x, off).scatter_(1, target.long().view(-1, 1), 1 - self.smoothing + off)
        if self.target_threshold is not None:
            target = target.gt(self.target_threshold).to(target.dtype)
        loss = F.binary_cross_entropy_with_logits(
            x, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
        return loss.sum(-1).mean() if self.sum_classes else loss


def test_timms_binary_cross_entropy():
    z, labels = torch.randn(ROWS, CLASSES, requires_grad=True), torch.randint(CLASSES, (ROWS,))
    p = torch.rand(CLASSES)
    for options in ({}, {"target_threshold": 0.2, "sum_classes": True}, {"weight": p, "pos_weight": p}):
        criterion = BinaryCrossEntropy(**options)
        want = torch.autograd.grad(criterion(z, labels), z)
        with fl.patch():
            torch.testing.assert_close(torch.autograd.grad(criterion(z, labels), z), want)
            assert is_ours(BinaryCrossEntropy())
    assert not is_ours(BinaryCrossEntropy())


class Scaled(torch.nn.Module):
    """A loss that is a class, for the table."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, y):
        return self.factor * F.binary_cross_entropy_with_logits(x, y)


def test_a_class_in_the_table(monkeypatch):
    """Its instances are served, those that were there before too."""
    scaled = theirs(type("Scaled", (Scaled,), {"forward": Scaled.forward}), "their.losses")
    monkeypatch.setitem(adapters.KNOWN, ("their.losses", "Scaled"), lambda self, x, y: ("ours", self.factor))
    head, before = module(Loss=scaled), scaled(2)
    with fl.patch(head) as first:
        second = fl.patch(head)
        assert before(None, None) == ("ours", 2) and head.Loss(3)(None, None) == ("ours", 3)
        assert "Scaled.forward" in repr(first)
    assert before(None, None) == ("ours", 2)
    second.undo()
    z, y = operands()
    torch.testing.assert_close(before(z, y), 2 * F.binary_cross_entropy_with_logits(z, y))
    assert scaled.forward is Scaled.forward


def test_nested_and_imported_under_a_patch():
    head = module(focal=torchvisions)
    first, second = fl.patch(head), fl.patch(head)
    later = module(focal=head.focal)
    first.undo()
    assert head.focal is fl.sigmoid_focal_loss
    with fl.patch(later):
        assert later.focal is fl.sigmoid_focal_loss
    second.undo()
    assert head.focal is torchvisions


def test_somebody_elses_function_of_that_name_is_left_alone():
    own = theirs(types.FunctionType(sigmoid_focal_loss.__code__, globals(), "sigmoid_focal_loss"), "somebody.losses")
    with pytest.raises(ValueError, match="^patch: expected modules that imported .* got their_head, which has none$"):
        fl.patch(module(sigmoid_focal_loss=own))
    head = module(focal=torchvisions)
    handle = fl.patch(head)
    head.focal = own
    with pytest.warns(RuntimeWarning, match="their_head.focal was replaced by somebody else"):
        handle.undo()
    assert head.focal is own


def test_compiled_code_notices():
    torch._dynamo.reset()
    head = module(focal=torchvisions)
    compiled = torch.compile(lambda z, y: head.focal(z, y, reduction="sum"), backend="aot_eager", fullgraph=True)
    z, y = torch.tensor([-20.0, 20.0]), torch.tensor([0.0, 1.0])
    assert compiled(z, y) == 0  # in fp32 theirs is
    with fl.patch(head):
        assert compiled(z, y) > 0
    assert compiled(z, y) == 0

"""The raw ops, ``torch.ops.fused_logistic``: right wherever they are called, or an error; and what records them."""

import gc
import io
import weakref

import pytest
import torch
from conftest import grad_arguments, layer_arguments, loss_arguments, same_bits, tile_arguments
from torch.fx.experimental.proxy_tensor import make_fx

import fused_logistic as fl
from fused_logistic import composite, ops

Z, Y = torch.randn(4, 3), torch.rand(4, 3)
INT = torch.ones(4, 3, dtype=torch.int64)
ONE, HALF = torch.ones(()), torch.full((), 0.5)
NOTHING = torch.empty(0)
REST = (None,) * 4
GRAD = (*REST, ops.SUM)  # after the target of bce_backward_
SINGLE = (torch.randn(4, 2), torch.randn(2), None, Y[:, 0], None, None, None)


@pytest.mark.parametrize("loss", [{}, {"gamma": 2.0, "alpha": 0.3}], ids=str)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "ignore_index": 1}], ids=str)
@pytest.mark.parametrize("wrt", range(4))
@pytest.mark.parametrize("reduction", [ops.NONE, ops.MEAN, ops.SUM])
def test_the_composition_has_the_kernels_derivatives(reduction, wrt, options, loss):
    """What runs on devices without kernels: within an ulp of each of some dozen operations on numbers below 10."""
    shape = 4, 3
    given = torch.randn(shape), torch.rand(shape).round(), torch.rand(3) + 0.5, torch.rand(3) + 0.5
    given = tuple(t.double() for t in given)
    grad_output = torch.rand(shape if reduction == ops.NONE else (), dtype=torch.double)
    arguments = grad_output, *grad_arguments(*given, reduction=reduction, wrt=wrt, **options, **loss)
    expected = ops.bce_backward(*arguments)
    assert (expected != 0).any()
    torch.testing.assert_close(composite.bce_backward(*arguments), expected, rtol=5e-14, atol=5e-14)


@pytest.mark.parametrize(
    "op,arguments,message",
    [
        (ops.bce, (Z, Y, *REST, ops.MEAN, torch.bool), "result of dtype float64"),
        (ops.bce, (Z, Y, *REST, ops.NONE, torch.int8), "result of dtype float64"),
        (ops.bce, (Z, Y, *REST, 3, torch.float32), "reduction"),
        (ops.bce, (Z, Y, None, None, None, ONE, ops.MEAN, torch.float32), "count"),
        (ops.bce, (Z, Y, None, None, None, torch.ones(2).double(), ops.MEAN, torch.float32), "count"),
        (ops.bce, (Z, Y, None, None, Y > 0.5, None, ops.MEAN, torch.float32), "count"),
        (ops.bce_with_grad, (Z, Y, *REST, ops.MEAN, torch.int32), "result of dtype float64"),
        (ops.bce_with_grad, (Z, Y, *REST, ops.NONE, torch.float32), "reduction"),
        (ops.bce_backward, (ONE, Z, INT, *REST, ops.SUM, ops.TARGET), "result of dtype float64"),
        (ops.bce_backward, (ONE, Z, Y, *REST, ops.SUM, ops.WEIGHT), "wrt"),
        (ops.bce_backward, (ONE, Z, Y, *REST, ops.SUM, 4), "wrt"),
        (ops.bce_backward_, (Z[:2].clone(), ONE, None, Z, Y, *GRAD), "grad_logits"),
        (ops.bce_backward_, (Z[:2].clone(), HALF, None, Z, Y, *GRAD), "grad_logits"),
        (ops.bce_backward_, (Z.double(), HALF, None, Z, Y, *GRAD), "grad_logits"),
        (ops.bce_backward_, (torch.empty(3, 4).t(), HALF, None, Z, Y, *GRAD), "grad_logits"),
        (ops.bce_backward_, (Z.clone(), Y, None, Z, Y, *GRAD), "grad_"),
        (ops.bce_tile_, tile_arguments(Z.clone(), Y, losses=Z[:2].clone()), "losses"),
        (ops.bce_tile_, tile_arguments(Z.clone(), Y[0]), "target"),
        (ops.bce_tile_, tile_arguments(Z.clone(), Y[:, :2], whole=False), "target is not"),
        (ops.bce_tile_, tile_arguments(Z.clone(), Y, Y[:3], whole=False), "broadcast"),
        (ops.bce_tile_, tile_arguments(Z[0].clone(), Y), "matrix"),
        (ops.bce_tile_, tile_arguments(Z.clone(), Y, loss_sum=ONE.clone()), "loss_sum is not one float64"),
        (ops.bce_tile_, tile_arguments(Z.clone(), Y, bias_sum=torch.zeros(3)), "for other devices"),
        (ops.linear_bce_single, (*SINGLE, None, None, 7, torch.float32, [True] * 3), "reduction"),
        (ops.linear_bce_single, (*SINGLE, None, None, ops.NONE, torch.float32, [True] * 3), "reduction"),
        (torch.ops.fused_logistic.empty, ([-1], torch.float32), "negative"),
        (torch.ops.fused_logistic.empty, ([1 << 40, 1 << 40], torch.float32), "addresses"),
    ],
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", ""),
)
def test_misuse_raises(op, arguments, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        op(*arguments)


def test_operands_of_no_derivative_refuse_one():
    z = Z.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no derivative"):
        ops.bce_backward_(Z.clone(), HALF, None, z, Y, *GRAD)
    with pytest.raises(RuntimeError, match="no derivative"):
        ops.linear_bce_single(z[:, :2], *SINGLE[1:], None, None, ops.SUM, torch.float32, [True] * 3)


def test_what_writes_in_place_says_so():
    """Autograd refuses to go on with a tensor that was changed after it was saved."""
    grad = ops.bce_with_grad(*loss_arguments(Z, Y))[1]
    for tensor, write in (
        (grad, lambda: ops.bce_backward_(grad, HALF, None, *grad_arguments(Z, Y)[:7])),
        (logits := Z.clone(), lambda: ops.bce_tile_(*tile_arguments(logits, Y))),
    ):
        factor = torch.ones(4, 3, requires_grad=True)
        product = (tensor * factor).sum()
        write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_a_refused_call_keeps_no_tensor():
    def refused(function, *arguments, **options):
        z = torch.randn(4, 3)
        with pytest.raises((RuntimeError, ValueError)):
            function(z, *arguments, **options)
        return weakref.ref(z)

    gc.disable()
    try:
        assert refused(fl.binary_cross_entropy_with_logits, Y[:2])() is None
        assert refused(fl.sigmoid_focal_loss, Y[:2])() is None
        assert refused(fl.linear_binary_cross_entropy, torch.randn(5, 2), torch.rand(4, 5))() is None
        assert refused(ops.bce, Y[:2], *REST, ops.MEAN, torch.float32)() is None
    finally:
        gc.enable()


class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = fl.LinearBCEWithLogitsLoss(3, 2)

    def forward(self, z, y):
        return fl.binary_cross_entropy_with_logits(z, y) + self.layer(z, y[:, :2])


def test_torch_jit_trace():
    """The values of the example decide nothing: the trace holds the ops, and its gradients are eager's."""
    head, z, y = Head(), Z.clone().requires_grad_(), Y
    traced = torch.jit.trace(head, (z, y))
    assert "fused_logistic::bce" in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for module in (traced, torch.jit.load(file)):
        other = torch.randn(7, 3, requires_grad=True)
        target = torch.rand(7, 3)
        expected, got = (f(other, target) for f in (head, module))
        torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad(3 * loss, other)[0] for loss in (expected, got)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_of_a_step(mode, pre_dispatch):
    """A graph recorded where grad_output was 1 is right where it is not."""

    def step(z, y, scale):
        z = z.detach().requires_grad_()
        loss = fl.binary_cross_entropy_with_logits(z, y) * scale
        return torch.autograd.grad(loss, z)[0]

    graph = make_fx(step, tracing_mode=mode, pre_dispatch=pre_dispatch)(Z, Y, ONE)
    for scale in (1.0, 3.0):
        torch.testing.assert_close(graph(Z, Y, torch.tensor(scale)), step(Z, Y, torch.tensor(scale)))


def test_a_wrapper_that_outlived_its_transform():
    """Left over from torch.func it is the tensor that it wraps."""
    kept = []
    torch.func.grad(lambda z: (kept.append(z), z.sum())[1])(Z)
    for function in (fl.binary_cross_entropy_with_logits, fl.sigmoid_focal_loss):
        assert same_bits(function(kept[0], Y), function(Z, Y))


def test_autocast_takes_float64_logits_as_they_are_but_for_the_result():
    with torch.autocast("cpu"):
        assert fl.binary_cross_entropy_with_logits(Z.double(), INT).dtype is torch.float32
        assert fl.binary_cross_entropy_with_logits(Z.double(), Y.double()).dtype is torch.float64


@pytest.mark.parametrize(
    "op,arguments",
    [
        (ops.bce, loss_arguments(Z, Y.double(), reduction=ops.NONE)),
        (ops.bce, loss_arguments(Z, Y.double(), reduction=ops.SUM)),
        (ops.bce_with_grad, loss_arguments(Z, Y.double(), reduction=ops.SUM)),
        (ops.bce_backward, (ONE, *grad_arguments(Z, Y.double(), reduction=ops.SUM, wrt=ops.TARGET))),
        (ops.linear_bce_with_grad, layer_arguments(Z, Z, Z[:, 0], Z @ Z.t(), output_mask=[False, True, False])),
        (ops.linear_bce_with_grad, layer_arguments(Z, Z, None, Z @ Z.t(), output_mask=[True, False, True])),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_without_data_shapes_and_dtypes_are_the_same(op, arguments):
    """That is what compilers and meta tensors see."""

    def described(results):
        return [(t.shape, t.dtype) for t in (results if isinstance(results, tuple) else (results,))]

    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    assert described(op(*meta)) == described(op(*arguments))


def test_versions_of_all_that_a_tile_writes():
    logits = Z.clone()
    for given in ({"losses": torch.empty(4, 3)}, {"loss_sum": torch.zeros((), dtype=torch.double)}):
        written = logits, *given.values()
        before = [t._version for t in written]
        ops.bce_tile_(*tile_arguments(logits, Y, **given))
        assert all(t._version > v for t, v in zip(written, before, strict=True))

"""The layer under torch.func, vmap, forward-mode AD, torch.compile and autocast, against the composed graph."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import fused_logistic as fl
from fused_logistic import ops
from tests.conftest import REDUCTIONS, layer_arguments
from tests.test_linear import assert_same, layer, step, torchs

OURS_AND_TORCHS = (fl.linear_binary_cross_entropy, torchs)


def functions(labels, reduction="mean"):
    """Ours and torch's as functions of (input, linear_weight, linear_bias), and their operands."""
    x, w, b, shape = layer((4,), 3, labels)
    target = torch.rand(shape, dtype=torch.double)
    losses = [
        lambda x, w, b, f=f: (f(x, w, target, linear_bias=b, reduction=reduction) ** 2).sum() for f in OURS_AND_TORCHS
    ]
    return losses, tuple(t.detach() for t in (x, w, b))


@pytest.mark.parametrize("reduction", [ops.MEAN, ops.SUM])
@pytest.mark.parametrize("batched", [(0, 0, 0), (0, None, None), (None, 0, 0)], ids=str)
def test_vmap_of_the_ops_themselves(batched, reduction):
    """Where no gradient is asked for, the rules of the raw ops are what vmap calls."""
    operands = [torch.randn(5, *shape, dtype=torch.double) for shape in ((4, 3), (2, 3), (2,))]
    operands = [t if dim == 0 else t[0] for t, dim in zip(operands, batched, strict=True)]
    target, grad_output = torch.rand(5, 4, 2, dtype=torch.double), torch.rand((), dtype=torch.double)
    given = {"reduction": reduction, "output_mask": [True] * 3}

    def with_grad(*tensors):
        return ops.linear_bce_with_grad(*layer_arguments(*tensors, **given))

    def backward(*tensors):
        return ops.linear_bce_backward(grad_output, *layer_arguments(*tensors, **given, backward=True))

    for op in (with_grad, backward):
        samples = [[t if dim is None else t[i] for t, dim in zip(operands, batched, strict=True)] for i in range(5)]
        looped = [op(*sample, target[i]) for i, sample in enumerate(samples)]
        for got, expected in zip(vmap(op, (*batched, 0))(*operands, target), zip(*looped, strict=True), strict=True):
            torch.testing.assert_close(got, torch.stack(expected), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian", "jvp", "grad of grad", "dual"])
@pytest.mark.parametrize("labels", [None, 1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_transforms(reduction, labels, transform):
    losses, operands = functions(labels, reduction)
    every = (0, 1, 2)

    def dual(f):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(*(forward_ad.make_dual(t, t.cos()) for t in operands))).tangent

    results = []
    for f in losses:
        out = {
            "grad": lambda f=f: grad(f, every)(*operands),
            "jacrev": lambda f=f: jacrev(f, every)(*operands),
            "jacfwd": lambda f=f: jacfwd(f, every)(*operands),
            "hessian": lambda f=f: hessian(f, every)(*operands),
            "jvp": lambda f=f: jvp(f, operands, tuple(t.cos() for t in operands)),
            "grad of grad": lambda f=f: grad(lambda *t: grad(f, 1)(*t).sin().sum(), every)(*operands),
            "dual": lambda f=f: dual(f),
        }[transform]()
        results.append(torch.utils._pytree.tree_leaves(out))
    assert all(t.abs().max() > 0 for t in results[0])
    assert_same(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("labels", [None, 1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap(reduction, labels):
    """Over samples, over models, and the gradient of each."""
    x, w, b, shape = (t.detach() if isinstance(t, torch.Tensor) else t for t in layer((4,), 3, labels))
    target = torch.rand(5, *shape, dtype=torch.double)
    xs, ws = torch.randn(5, 4, 3, dtype=torch.double), torch.randn(*w.shape, 5, dtype=torch.double)
    results = []
    for f in OURS_AND_TORCHS:
        loss = lambda x, w, y, f=f: f(x, w, y, linear_bias=b, reduction=reduction)  # noqa: E731
        total = lambda x, w, y, loss=loss: loss(x, w, y).sum()  # noqa: E731
        results.append(
            [
                vmap(loss, (0, None, 0))(xs, w, target),
                vmap(loss, (None, -1, None))(x, ws, target[0]),
                *vmap(grad(total, (0, 1)), (0, -1, 0))(xs, ws, target),
            ]
        )
    assert_same(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("features,labels", [(0, None), (0, 2), (3, 0), (0, 0)])
def test_vmap_of_nothing(features, labels):
    x, w, b, shape = (t.detach() if isinstance(t, torch.Tensor) else t for t in layer((4,), features, labels))
    xs, target = torch.randn(5, *x.shape, dtype=torch.double), torch.rand(shape, dtype=torch.double)
    results = []
    for f in OURS_AND_TORCHS:
        loss = lambda x, w, b, f=f: f(x, w, target, linear_bias=b, reduction="sum")  # noqa: E731
        arguments = (0, None, None)
        results.append([vmap(loss, arguments)(xs, w, b), *vmap(grad(loss, (0, 1, 2)), arguments)(xs, w, b)])
    assert_same(*results)


def test_per_sample_gradients_of_the_module():
    head = fl.LinearBCEWithLogitsLoss(3, 2).double()
    x, target = torch.randn(6, 3, dtype=torch.double), torch.rand(6, 2, dtype=torch.double)
    parameters = {n: p.detach() for n, p in head.named_parameters()}
    loss = lambda p, x, y: functional_call(head, p, (x, y))  # noqa: E731
    batched = vmap(grad(loss), (None, 0, 0))(parameters, x, target)
    for i in range(6):
        head.zero_grad()
        head(x[i], target[i]).backward()
        torch.testing.assert_close(batched["weight"][i], head.weight.grad, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(batched["bias"][i], head.bias.grad, rtol=1e-10, atol=1e-14)


def test_is_grads_batched():
    results = []
    x, w, b, shape = layer((4,), 3, 2)
    target = torch.rand(shape, dtype=torch.double)
    for f in OURS_AND_TORCHS:
        loss = f(x, w, target, linear_bias=b, reduction="none")
        basis = torch.eye(loss.numel(), dtype=torch.double).reshape(-1, *loss.shape)
        results.append(torch.autograd.grad(loss, (x, w, b), basis, is_grads_batched=True))
    assert_same(*results)


# ---- torch.compile ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("labels", [None, 1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled(reduction, labels, dynamic, backend):
    """One graph, for all sizes where they are dynamic; with an operand that the Function does not differentiate too."""
    for weight_requires_grad in (False, True):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)

        def ours(x, w, target, linear_bias, weight):
            return fl.linear_binary_cross_entropy(x * 2, w, target, linear_bias=linear_bias, weight=weight,
                                                  reduction=reduction)  # fmt: skip

        compiled = torch.compile(ours, fullgraph=True, dynamic=dynamic, backend=counter)
        for rows in (4, 7, 33) if dynamic else (4,):
            x, w, b, shape = layer((rows,), 3, labels)
            b = b.detach().reshape(-1).requires_grad_()
            target = torch.rand(shape, dtype=torch.double)
            weight = torch.rand(1, dtype=torch.double, requires_grad=weight_requires_grad)
            results = [step(f, x, w, b, target, weight=weight) for f in (compiled, ours)]
            assert_same(*results)
            assert all(t.abs().max() > 0 for t in results[0])
        # Inductor guards on the sizes of the composition's own products
        if backend != "inductor" or not weight_requires_grad:
            assert counter.frame_count == 1


def test_sparse_target_under_compile():
    """torch.compile takes no sparse tensor into a graph: it breaks there, and the result is right."""
    x, w, b, _ = layer((6,), 3, 4)
    target = (torch.rand(6, 4, dtype=torch.double) < 0.3).double().to_sparse_csr()
    compiled = torch.compile(fl.linear_binary_cross_entropy, backend="aot_eager")
    assert_same(*(step(f, x, w, b, y) for f, y in ((compiled, target), (torchs, target.to_dense()))))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_autograd(reduction):
    """Compiled autograd traces the Functions' backward passes, which hand out what the forward passes made."""
    x, w, b, shape = layer((6,), 3, 4)
    target = torch.rand(shape, dtype=torch.double)
    grads = []
    for compiled in (False, True):
        for twice in (False, True):
            loss = fl.linear_binary_cross_entropy(x * 2, w, target, linear_bias=b, reduction=reduction).sum()
            z = x @ w.T
            loss = loss + fl.binary_cross_entropy_with_logits(z, target, reduction=reduction).sum()
            context = compiled_autograd._enable(torch.compile(backend="aot_eager")) if compiled else nullcontext()
            for tensor in (x, w, b):
                tensor.grad = None
            with context:
                if twice:
                    loss.backward(retain_graph=True)
                loss.backward()
            grads.append([tensor.grad / (1 + twice) for tensor in (x, w, b)])
    for got in grads[1:]:
        assert_same(got, grads[0])


def test_compiled_training_of_the_module():
    weights = []
    for compile_it in (True, False):
        torch.manual_seed(3)
        head = fl.LinearBCEWithLogitsLoss(6, 2, pos_weight=torch.tensor([1.0, 3.0]))
        optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
        x, y = torch.randn(20, 6), torch.randint(0, 2, (20, 2))
        function = torch.compile(head, fullgraph=True, backend="aot_eager") if compile_it else head
        for _ in range(5):
            optimizer.zero_grad()
            function(x, y).backward()
            optimizer.step()
        weights.append(head.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


# ---- Autocast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast(dtype, target_dtype, labels, compiled):
    """torch's dtypes: products in bf16 (fp64 stays), the loss in fp32, gradients in the parameters' dtypes."""
    x, w, b, shape = layer((30,), 16, labels, dtype=dtype)
    target = torch.randint(0, 2, shape).to(target_dtype)
    ours = fl.linear_binary_cross_entropy
    if compiled:
        ours = torch.compile(ours, fullgraph=True, backend="aot_eager")

    def under_autocast(function):
        for t in (x, w, b):
            t.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = function()
        loss.backward()
        return loss.detach(), x.grad, w.grad, b.grad

    results = [
        under_autocast(lambda: ours(x, w, target, linear_bias=b)),
        under_autocast(lambda: fl.binary_cross_entropy_with_logits(F.linear(x, w, b), target)),
    ]
    eps = torch.finfo(torch.bfloat16 if dtype != torch.float64 else torch.float64).eps
    for a, c in zip(*results, strict=True):
        assert a.dtype == c.dtype and a.shape == c.shape
        assert (a.double() - c.double()).abs().max() <= 8 * eps * c.double().abs().max()

"""torch.compile, torch.export and AOTInductor: whole graphs, static and dynamic shapes, equal to eager.

Most cases run on the ``aot_eager`` backend: Dynamo and AOTAutograd, which is where an extension goes wrong, without the
seconds of C++ compilation. The ``slow`` ones run Inductor.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jvp, vmap

import fused_logistic as fl
from tests.conftest import REDUCTIONS

WEIGHTS = ["plain", "weight", "pos_weight", "both"]
inductor = pytest.param("inductor", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def operands(rows=4, weights="plain", requires_grad=True):
    """The weights' shapes stay as they are when the number of rows changes."""
    weight = torch.rand(3, dtype=torch.double) if weights in ("weight", "both") else None
    pos_weight = 2 * torch.rand(1, 3, dtype=torch.double) if weights in ("pos_weight", "both") else None
    logits, target = torch.randn(rows, 3, dtype=torch.double), torch.rand(rows, 3, dtype=torch.double)
    return [None if t is None else t.requires_grad_(requires_grad) for t in (logits, target, weight, pos_weight)]


def step(loss, tensors, reduction):
    """The loss and its gradients for all operands, with a grad_output that is not 1."""
    leaves = [t for t in tensors if t is not None]
    out = loss(*tensors, reduction)
    factor = torch.linspace(0.5, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return out.detach(), *torch.autograd.grad(out, leaves, factor)


def ours(logits, target, weight, pos_weight, reduction):
    return fl.binary_cross_entropy_with_logits(logits * 2, target, weight, pos_weight=pos_weight, reduction=reduction)


def assert_same(a, b, rtol=1e-12, atol=1e-14):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_forward_and_backward(reduction, weights, dynamic, backend):
    """One graph; with dynamic shapes one graph for all sizes."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(ours, fullgraph=True, dynamic=dynamic, backend=counter)
    sizes = (4, 7, 33) if dynamic else (4,)
    for rows in sizes:
        tensors = operands(rows, weights)
        results = step(compiled, tensors, reduction)
        assert_same(results, step(ours, tensors, reduction))
        assert all(t.abs().max() > 0 for t in results)
    assert counter.frame_count == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_graph_holds_our_ops(reduction):
    """Nothing is decomposed, and the reduced loss is computed together with its gradient in the forward graph."""
    from functorch.compile import aot_function, make_boxed_func

    seen = {"forward": set(), "backward": set()}

    def look(kind):
        def compiler(graph, _):
            # an op that writes in place is an argument of the node that makes it functional
            values = [str(value) for n in graph.graph.nodes for value in (n.target, *n.args)]
            seen[kind] |= {value for value in values if value.startswith("fused_logistic.")}
            return make_boxed_func(graph.forward)

        return compiler

    def backend(graph, inputs):
        return aot_function(graph, fw_compiler=look("forward"), bw_compiler=look("backward"))

    tensors = operands()
    tensors[1].requires_grad_(False)
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    compiled(*tensors, reduction).sum().backward()
    forward, backward = ("bce", "bce_backward") if reduction == "none" else ("bce_with_grad", "bce_backward_")
    assert seen["forward"] == {f"fused_logistic.{forward}.default"}
    assert seen["backward"] == {f"fused_logistic.{backward}.default"}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "transform", ["grad", "grad of target", "grad of grad", "vmap of grad", "vmap", "jvp", "hessian"]
)
def test_compiled_transforms(transform, reduction, dynamic):
    """torch.func inside of torch.compile, against torch's loss in eager: a zero here would be silent."""

    def transformed(loss):
        f = lambda z, y: loss(z, y, reduction=reduction)  # noqa: E731
        return {
            "grad": grad(f),
            "grad of target": grad(f, 1),
            "grad of grad": grad(lambda z, y: grad(f)(z, y).sin().sum()),
            "vmap of grad": vmap(grad(f)),
            "vmap": vmap(f),
            "jvp": lambda z, y: jvp(f, (z, y), (z.cos(), y.sin()))[1],
            "hessian": hessian(f),
        }[transform]

    compiled = torch.compile(
        transformed(fl.binary_cross_entropy_with_logits), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for rows in (4, 6) if dynamic else (4,):
        logits, target, _, _ = operands(rows, requires_grad=False)
        result = compiled(logits, target)
        assert_same([result], [transformed(F.binary_cross_entropy_with_logits)(logits, target)], rtol=1e-10)
        assert result.abs().max() > 0


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_under_autocast(reduction, backend):
    """bf16 logits, autocast inside and outside of the compiled function: torch's dtype, eager's values."""
    linear = torch.nn.Linear(5, 3)
    x, target = torch.randn(4, 5), torch.rand(4, 3)

    def loss(x, target):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fl.binary_cross_entropy_with_logits(linear(x), target, reduction=reduction)

    results = []
    for function in (torch.compile(loss, fullgraph=True, backend=backend), loss):
        out = function(x, target)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), tuple(linear.parameters()))))
    assert_same(results[0][:1], results[1][:1], rtol=1e-6, atol=1e-7)
    # the linear layer's gradients are bf16 sums, and Inductor rounds them at other places than eager
    assert_same(results[0][1:], results[1][1:], rtol=2**-7, atol=1e-3)
    logits = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    for target_dtype in (torch.float32, torch.bfloat16):
        target = target.to(target_dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            compiled = torch.compile(fl.binary_cross_entropy_with_logits, fullgraph=True, backend=backend)
            out = compiled(logits, target, reduction=reduction)
            torchs = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
        assert out.dtype == torchs.dtype == torch.float32
        (g,) = torch.autograd.grad(out.sum(), logits)
        assert g.dtype == torch.bfloat16
        torch.testing.assert_close(out, torchs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(g, torch.autograd.grad(torchs.sum(), logits)[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_integer_targets(dtype):
    logits, target = torch.randn(9, requires_grad=True), torch.randint(0, 2, (9,)).to(dtype)
    compiled = torch.compile(fl.binary_cross_entropy_with_logits, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, fl.binary_cross_entropy_with_logits):
        out = function(logits, target)
        results.append((out.detach(), *torch.autograd.grad(out, logits)))
    assert_same(*results, rtol=0, atol=0)


def test_training_step_and_module():
    """The compiled module takes the steps that the eager one takes."""
    weights = []
    for compile_it in (True, False):
        torch.manual_seed(3)
        model, criterion = torch.nn.Linear(6, 2), fl.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        x, y = torch.randn(20, 6), torch.randint(0, 2, (20, 2))

        def loss(x, y, model=model, criterion=criterion):
            return criterion(model(x), y)

        function = torch.compile(loss, fullgraph=True, backend="aot_eager") if compile_it else loss
        for _ in range(5):
            optimizer.zero_grad()
            function(x, y).backward()
            optimizer.step()
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


def test_wrong_shapes_raise():
    compiled = torch.compile(fl.binary_cross_entropy_with_logits, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"expected target of shape \[4, 3\]"):
        compiled(torch.randn(4, 3), torch.rand(4))


# ---- torch.export -------------------------------------------------------------------------------------------------


class Head(torch.nn.Module):
    def __init__(self, reduction):
        super().__init__()
        self.linear = torch.nn.Linear(5, 3)
        self.criterion = fl.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]), reduction=reduction)

    def forward(self, x, target):
        return self.criterion(self.linear(x), target)


def export(reduction):
    head, rows = Head(reduction), torch.export.Dim("rows", min=2, max=1000)
    example = torch.randn(4, 5), torch.rand(4, 3)
    return head, torch.export.export(head, example, dynamic_shapes={"x": {0: rows}, "target": {0: rows}})


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_export(reduction):
    head, program = export(reduction)
    for module in (program.module(), program.run_decompositions().module()):
        for rows in (2, 4, 77):
            x, target = torch.randn(rows, 5), torch.rand(rows, 3)
            torch.testing.assert_close(module(x, target), head(x, target), rtol=1e-6, atol=1e-7)
    x, target = torch.randn(6, 5), torch.rand(6, 3)
    expected = torch.autograd.grad(head(x, target).sum(), tuple(head.parameters()))
    module = program.module()
    for a, b in zip(torch.autograd.grad(module(x, target).sum(), tuple(module.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert a.abs().max() > 0


class Losses(torch.nn.Module):
    """Every public function, with options."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = torch.nn.Linear(5, 3), fl.LinearBCEWithLogitsLoss(5, 3, label_smoothing=0.1)

    def forward(self, x, target, mask):
        z = self.linear(x)
        plain = fl.binary_cross_entropy_with_logits(z, target, mask=mask, ignore_index=1)
        return plain + fl.sigmoid_focal_loss(z, target, reduction="sum") + self.head(x, target)


@pytest.mark.parametrize("strict", [False, True])
def test_export_to_core_operators(strict):
    """Of any converter: nothing of ours is left for it to know, and the program loads without this package."""
    module, inputs = Losses(), (torch.randn(4, 5), torch.rand(4, 3).round(), torch.rand(4, 3) < 0.8)
    program = torch.export.export(module, inputs, strict=strict)
    for exported in (program, program.run_decompositions()):
        targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
        assert {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)} <= {"aten", "prims"}
        torch.testing.assert_close(exported.module()(*inputs), module(*inputs))
    expected = torch.autograd.grad(module(*inputs), tuple(module.parameters()))
    exported = program.module()
    torch.testing.assert_close(torch.autograd.grad(exported(*inputs), tuple(exported.parameters())), expected)


def test_export_refuses_what_eager_refuses():
    class Wrong(torch.nn.Module):
        def forward(self, z, y):
            return fl.binary_cross_entropy_with_logits(z, y, pos_weight=torch.ones(2))

    with pytest.raises(RuntimeError, match="pos_weight of a shape that broadcasts"):
        torch.export.export(Wrong(), (torch.randn(4, 3), torch.rand(4, 3)))


def test_warnings_as_errors():
    """Compiling ours warns of nothing, as compiling torch's does not."""
    z, y = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3).round()
    head = fl.LinearBCEWithLogitsLoss(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (fl.binary_cross_entropy_with_logits, fl.sigmoid_focal_loss, head):
            compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
            compiled(z, y).sum().backward()


def test_exported_program_is_saved_and_loaded(tmp_path):
    head, program = export("mean")
    torch.export.save(program, tmp_path / "head.pt2")
    x, target = torch.randn(9, 5), torch.rand(9, 3)
    loaded = torch.export.load(tmp_path / "head.pt2").module()
    torch.testing.assert_close(loaded(x, target), head(x, target), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_aot_inductor(reduction, tmp_path):
    with torch.no_grad():
        head, program = export(reduction)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "head.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        for rows in (2, 4, 77):
            x, target = torch.randn(rows, 5), torch.rand(rows, 3)
            torch.testing.assert_close(compiled(x, target), head(x, target), rtol=1e-5, atol=1e-6)

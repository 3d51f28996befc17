"""Every argument of every public function in every form: right, or an error that names it.

Right is the formula in fp64, composed of torch's operations here, with its derivative by whatever requires a gradient.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_logistic as fl

ROWS, LABELS, FEATURES = 6, 4, 5
MASK = torch.tensor([True, True, False, True]).repeat(ROWS, 1) ^ (torch.arange(ROWS) == 2).unsqueeze(1)
REFUSALS = (TypeError, ValueError, RuntimeError)  # NotImplementedError is a RuntimeError


def double(*shape):
    return torch.rand(*shape, dtype=torch.double)


def base():
    """The arguments of each function, all of them given but those that torch has deprecated."""
    torch.manual_seed(0)
    z, y = 4 * double(ROWS, LABELS) - 2, double(ROWS, LABELS)
    losses = {"weight": double(LABELS), "pos_weight": double(ROWS, 1), "mask": MASK, "reduction": "mean"}
    losses |= {"label_smoothing": 0.2, "ignore_index": 7, "ignore_nan": True, "normalizer": 3.5}
    return {
        fl.binary_cross_entropy_with_logits: {"input": z, "target": y, **losses},
        fl.sigmoid_focal_loss: {
            "inputs": z,
            "targets": y,
            "alpha": 0.3,
            "gamma": 1.5,
            **{name: value for name, value in losses.items() if name != "label_smoothing"},
        },
        fl.linear_binary_cross_entropy: {
            "input": 2 * double(ROWS, FEATURES) - 1,
            "linear_weight": 2 * double(LABELS, FEATURES) - 1,
            "linear_bias": double(LABELS),
            "target": y,
            "chunk_bytes": None,
            **losses,
        },
    }


FUNCTIONS = list(base())
CASES = [
    pytest.param(function, name, id=f"{function.__name__}-{name}")
    for function, arguments in base().items()
    for name in arguments
]
every_argument = pytest.mark.parametrize("function,name", CASES)
TENSORS = ("input", "inputs", "target", "targets", "linear_weight", "linear_bias", "weight", "pos_weight", "mask")
LEFT_OUT = ("input", "target", "inputs", "targets", "weight", "pos_weight")  # may be NaN where an element is left out
COMPOSED = ("label_smoothing", "alpha", "gamma")
NUMBERS = ("weight", "pos_weight", "normalizer", *COMPOSED)  # or tensors without dimensions


def of(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def truth(function, arguments):
    """By the definition, in fp64."""
    a = {name: of(value) for name, value in arguments.items()}
    z, y = (a.get(name, a.get(f"{name}s")) for name in ("input", "target"))
    if "linear_weight" in a:
        z = F.linear(z, a["linear_weight"], a["linear_bias"])
    kept = torch.ones_like(z, dtype=torch.bool) if a["mask"] is None else a["mask"].expand_as(z)
    if a["ignore_index"] is not None:
        kept = kept & (y != a["ignore_index"])
    z, y = z.where(kept, 0), y.where(kept, 0)
    s, w, p = (a.get(name, default) for name, default in (("label_smoothing", 0), ("weight", 1), ("pos_weight", 1)))
    s, w, p = 0 if s is None else s, 1 if w is None else w, 1 if p is None else p
    w, p = (t.expand_as(z).where(kept, 0) if isinstance(t, torch.Tensor) else t for t in (w, p))
    y = y * (1 - s) + s / 2
    loss = w * (p * y * -F.logsigmoid(z) - (1 - y) * F.logsigmoid(-z))
    if function is fl.sigmoid_focal_loss:
        alpha, q = a["alpha"], y * torch.sigmoid(-z) + (1 - y) * torch.sigmoid(z)
        loss = loss * q ** a["gamma"] * (alpha * y + (1 - alpha) * (1 - y))
    return loss.where(kept, 0).sum() / a["normalizer"]


def assert_right_or_raises(function, arguments, name, run=None):
    """-> whether it was right."""
    leaves = [v for v in arguments.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    try:
        loss = (run or function)(**arguments)
        grads = torch.autograd.grad(2 * loss, leaves) if leaves else ()
    except REFUSALS as error:
        # of logits of another shape it is the target that does not fit
        named = ("input", "target", "mask") if name in ("input", "inputs") else (name.removesuffix("s"),)
        assert any(n in str(error) for n in named), f"an error that does not name {name}: {error}"
        return False
    want = truth(function, arguments)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-9)
    if leaves:
        torch.testing.assert_close(grads, torch.autograd.grad(2 * want, leaves), rtol=1e-5, atol=1e-8)
    return True


def with_argument(function, name, value):
    return base()[function] | {name: value}


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def test_no_argument_is_left_out():
    deprecated = {"size_average", "reduce"}
    for function, arguments in base().items():
        assert set(inspect.signature(function).parameters) - deprecated == set(arguments)
    assert {f.__name__ for f in FUNCTIONS} == {n for n in fl.__all__ if n.islower() and n not in NO_LOSS}


# or one with tests of its own: tests/test_pairs.py, tests/test_family.py
FAMILY = ("quality_focal_loss", "varifocal_loss", "asymmetric_loss_with_logits")
LAYERS = ("linear_sigmoid_focal_loss", "linear_asymmetric_loss_with_logits")
NO_LOSS = ("__version__", "patch", "reference", "sigmoid_contrastive_loss", *FAMILY, *LAYERS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_base(function):
    assert assert_right_or_raises(function, base()[function], "")


@every_argument
def test_a_float(function, name):
    right = assert_right_or_raises(function, with_argument(function, name, 0.75), name)
    assert right == (name in NUMBERS)


@every_argument
def test_a_tensor_without_dimensions(function, name):
    for value in (torch.tensor(0.75), torch.tensor(0.75, dtype=torch.double), torch.tensor(0.75).bfloat16()):
        right = assert_right_or_raises(function, with_argument(function, name, value), name)
        assert right == (name in NUMBERS)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@every_argument
def test_a_tensor_without_dimensions_that_requires_grad(function, name, mode):
    value = torch.tensor(0.75, dtype=torch.double, requires_grad=True)
    run = compiled(function) if mode == "compiled" else None
    if mode == "compiled" and name not in NUMBERS:
        pytest.skip("no tensor without dimensions: eager says so")
    right = assert_right_or_raises(function, with_argument(function, name, value), name, run)
    assert right == (name in NUMBERS)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@every_argument
def test_a_tensor_that_requires_grad(function, name, mode):
    """Alone, and beside logits that require one."""
    arguments = base()[function]
    if name in COMPOSED:
        arguments[name] = 0.1 + double(LABELS)
    if name not in TENSORS + COMPOSED or name == "mask":
        pytest.skip("no floating point tensor")
    run = compiled(function) if mode == "compiled" else None
    arguments[name] = arguments[name].clone().requires_grad_()
    assert assert_right_or_raises(function, arguments, name, run)
    first = next(iter(arguments))
    arguments[first] = arguments[first].detach().clone().requires_grad_()
    assert assert_right_or_raises(function, arguments, name, run)


@every_argument
def test_a_tensor_that_torch_func_differentiates(function, name):
    if name not in TENSORS + COMPOSED or name == "mask":
        pytest.skip("no floating point tensor")
    arguments = base()[function]
    value = 0.1 + double(LABELS) if name in COMPOSED else arguments[name]

    def loss(value):
        return function(**arguments | {name: value})

    leaf = value.clone().requires_grad_()
    (want,) = torch.autograd.grad(truth(function, arguments | {name: leaf}), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(value), want)
    tangent = torch.rand_like(value)
    torch.testing.assert_close(torch.func.jvp(loss, (value,), (tangent,))[1], (want * tangent).sum())


@every_argument
def test_on_another_device(function, name):
    """One operand on meta, or all but one, is an error: not a kernel that reads what is not there."""
    arguments = base()[function]
    if name in COMPOSED:
        arguments[name] = double(LABELS)
    if not isinstance(arguments[name], torch.Tensor):
        pytest.skip("no tensor")
    for requires_grad in (False, True):
        first = next(iter(arguments))
        arguments[first] = arguments[first].detach().requires_grad_(requires_grad)
        elsewhere = arguments | {name: arguments[name].detach().to("meta")}
        with pytest.raises(RuntimeError, match="meta"):
            function(**elsewhere)
        others = {n: v.to("meta") if isinstance(v, torch.Tensor) and n != name else v for n, v in arguments.items()}
        with pytest.raises(RuntimeError, match="meta"):
            function(**others)


WRONG = {
    "a dimension too many": lambda t: t.new_ones(2, *t.shape),
    "another size": lambda t: t.new_ones(*t.shape[:-1], t.shape[-1] + 2),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("wrong", WRONG)
@every_argument
def test_wrong_alike_with_and_without_data(function, name, wrong):
    """Real, meta and fake tensors: the same class of error with the same message; where one passes, all do."""
    if name not in TENSORS:
        pytest.skip("no tensor")
    arguments = with_argument(function, name, WRONG[wrong](base()[function][name]))
    if arguments[name].is_sparse and name in ("input", "target") and function is fl.linear_binary_cross_entropy:
        pytest.skip("the layer takes it")

    def refusal(place):
        try:
            function(**{n: place(v) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()})
        except REFUSALS as error:
            assert str(error).startswith(f"{function.__name__}: expected "), error
            return type(error), str(error)
        return None

    real, meta = refusal(lambda t: t), refusal(lambda t: t.to("meta"))
    assert real == meta
    assert real is not None
    with FakeTensorMode() as mode:
        assert refusal(mode.from_tensor) == real


@pytest.mark.parametrize("mode", ["eager", "twice", "func", "compiled"])
@every_argument
def test_what_is_left_out_does_not_matter(function, name, mode):
    """NaN and infinity where elements are left out: the bits of every gradient are those without."""
    if name not in LEFT_OUT or (function is fl.linear_binary_cross_entropy and name == "input"):
        pytest.skip("nothing of it is left out")
    arguments = base()[function]
    given = arguments[name].expand(ROWS, LABELS)
    names = [n for n, v in arguments.items() if n in TENSORS and n != "mask"]
    results = []
    for value in (0.5, float("nan"), float("inf"), -float("inf")):
        leaves = [
            (given.where(MASK, value) if n == name else arguments[n]).detach().clone().requires_grad_() for n in names
        ]

        def loss(*tensors):
            return function(**arguments | dict(zip(names, tensors, strict=True)))

        if mode == "func":
            results.append(torch.func.grad(loss, tuple(range(len(names))))(*(t.detach() for t in leaves)))
            continue
        run = compiled(loss) if mode == "compiled" else loss
        for grad_output in (1.0, float("inf")):
            out = run(*leaves)
            grads = torch.autograd.grad(out, leaves, torch.full_like(out, grad_output), create_graph=mode == "twice")
            assert all(g.shape == t.shape for g, t in zip(grads, leaves, strict=True))
            at = grads[names.index(name)]
            assert (at[~MASK] == 0).all(), f"{value} times {grad_output}"
            if grad_output == 1:
                if mode == "twice":
                    grads = torch.autograd.grad(sum((g**2).sum() for g in grads), leaves)
                results.append((out.detach(), *(g.detach() for g in grads)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)

"""Every bad input of the tables: torch's error class, and a message that names the op, what was expected, what came."""

import inspect

import pytest
import torch

import fused_logistic as fl
from tests import bad_inputs, bad_inputs_layer
from tests.bad_inputs import OF_ALL, OF_LOSSES, OF_PAIRS, own

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested")

GOOD = {
    "losses": {"input": bad_inputs.Z, "target": bad_inputs.Y, "reduction": "mean"},
    "layers": {"input": bad_inputs_layer.X, "linear_weight": bad_inputs_layer.W, "target": bad_inputs_layer.Y,
               "reduction": "mean"},
    "pairs": {"image_features": bad_inputs.X, "text_features": bad_inputs.T, "logit_scale": bad_inputs.S,
              "logit_bias": bad_inputs.B},
}  # fmt: skip
OPERANDS = {*GOOD["losses"], *GOOD["layers"], *GOOD["pairs"], "linear_bias", "weight", "pos_weight", "mask"}
OF_LOSS, OF_LAYER = own(3), own(5)
TABLE = [
    *((f, "losses", bad) for f in bad_inputs.LOSSES for bad in (*OF_LOSSES, *OF_ALL, *OF_LOSS[f.__name__])),
    *((fl.linear_binary_cross_entropy, "layers", bad) for bad in OF_LAYER["binary_cross_entropy_with_logits"]),
    *((f, "layers", bad) for f in bad_inputs_layer.LAYERS[1:] for bad in OF_LAYER[f.__name__.removeprefix("linear_")]),
    *((f, "layers", bad) for f in bad_inputs_layer.LAYERS for bad in (*bad_inputs_layer.OF_LAYERS, *OF_ALL)),
    *((fl.sigmoid_contrastive_loss, "pairs", bad) for bad in OF_PAIRS),
]  # fmt: skip


def named(function, arguments):
    """By the function's own names: some have inputs and targets."""
    names = inspect.signature(function).parameters
    return {name if name in names else name + "s": value for name, value in arguments.items()}


def refused(function, arguments, bad):
    with pytest.raises(bad.error) as raised:
        function(**named(function, arguments))
    assert raised.type is bad.error
    own_names = dict(zip(("input", "target"), named(function, {"input": 0, "target": 0}), strict=True))
    wanted = f"{function.__name__}: expected {bad.message.format(**own_names)}"
    assert str(raised.value).startswith(wanted), raised.value
    return str(raised.value)


def leaf(value):
    is_one = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
    return value.detach().requires_grad_() if is_one and value.dtype in (torch.float32, torch.float64) else value


def described(value):
    function, _, bad = value
    return f"{function.__name__}-{'-'.join(bad.arguments)}"


@pytest.mark.parametrize("case", TABLE, ids=described)
def test_message(case):
    """The same where a gradient is asked for, and where there is no data."""
    function, kind, bad = case
    arguments = GOOD[kind] | bad.arguments
    message = refused(function, arguments, bad)
    with_index = ("sparse target that rise", "sparse target in", "sparse target inside", "sparse input in")
    assert ", got " in message or any(words in message for words in with_index)
    first = next(iter(GOOD[kind]))
    assert refused(function, arguments | {first: leaf(arguments[first])}, bad) == message
    tensors = [t for t in arguments.values() if isinstance(t, torch.Tensor)]
    if all(t.device.type == "cpu" and t.layout == torch.strided and not t.is_quantized and not t.is_nested
           and t.untyped_storage().nbytes() > 0 for t in tensors):  # fmt: skip
        is_operand = {n for n in arguments if n in OPERANDS}
        meta = {n: t.to("meta") if n in is_operand and isinstance(t, torch.Tensor) else t for n, t in arguments.items()}
        refused(function, meta, bad)


def test_the_good_ones_are_good():
    """What the tables put something bad into is refused for that alone."""
    for function, kind, _ in TABLE:
        assert function(**named(function, GOOD[kind])).isfinite()


def test_every_function_is_in_the_table():
    public = {n for n in fl.__all__ if n.islower() and n not in ("__version__", "patch", "reference")}
    assert {function.__name__ for function, _, _ in TABLE} == public


CHANGED = {
    **dict.fromkeys(bad_inputs.LOSSES, (bad_inputs.Z, bad_inputs.Y)),
    **dict.fromkeys(bad_inputs_layer.LAYERS, (bad_inputs_layer.X, bad_inputs_layer.W, bad_inputs_layer.Y)),
    fl.sigmoid_contrastive_loss: (bad_inputs.X, bad_inputs.T, bad_inputs.S),
}


WAYS = {
    "in place": lambda t: t.detach().mul_(2),
    "resized": lambda t: t.resize_(1),
    "freed": lambda t: t.untyped_storage().resize_(0),
}


@pytest.mark.parametrize(
    "function,how",
    # of the pairs it is torch's products that read what was freed, and they do not look
    [(f, how) for f in CHANGED for how in WAYS if (f, how) != (fl.sigmoid_contrastive_loss, "freed")],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_changed_between_forward_and_backward(function, how):
    """Of an operand that backward reads: an error, torch's or ours. Never a gradient of other numbers."""
    for which in range(1 if how == "resized" else 0, len(CHANGED[function])):  # torch resizes nothing that requires one
        first, *rest = (t.clone() for t in CHANGED[function])
        tensors = [leaf(first), *rest]
        loss = function(*tensors)
        (want,) = torch.autograd.grad(loss, tensors[:1], torch.full_like(loss, 2.0), retain_graph=True)
        WAYS[how](tensors[which])
        try:
            (grad,) = torch.autograd.grad(loss, tensors[:1], torch.full_like(loss, 3.0))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error) or "storage" in str(error)
        else:  # the forward pass had made it
            torch.testing.assert_close(grad, 1.5 * want)

"""One pass for any grad_output: the gradient is made for the last one, and what is handed out never depends on it."""

import threading

import pytest
import torch
from conftest import DTYPES, grad_arguments, loss_arguments, same_bits

import fused_logistic as fl
from fused_logistic import made_for as memory
from fused_logistic import ops

FACTORS = [1.0, 0.3, -2.0, 65536.0, 1e30, 0.0, -0.0, torch.inf, torch.nan]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """-> what each gradient that was made again had been made for."""
    calls = []
    real = ops.call_loss

    def counted(op, *args):
        if op is ops.bce_backward_:
            calls.append(args[2])
        return real(op, *args)

    monkeypatch.setattr(ops, "call_loss", counted)
    return calls


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """No number is known on the host: tensors are remembered, and compared where they are."""
    monkeypatch.setattr(memory, "known", lambda grad_output: None)


def step(logits, target, factor, **options):
    """The gradient of the loss times factor; of a loss with one pass for each factor, for comparison, of none."""
    logits = logits.detach().requires_grad_()
    loss = fl.binary_cross_entropy_with_logits(logits, target, **options)
    loss.backward(factor if isinstance(factor, torch.Tensor) else torch.tensor(factor, dtype=loss.dtype))
    return logits.grad


def truth(logits, target, factor, **options):
    memory._last.clear()
    return step(logits, target, factor, **options)


def data(dtype, n=9000):
    return (4 * torch.randn(n)).to(dtype), torch.rand(n).to(dtype)


@pytest.mark.parametrize("device_like", [False, True], ids=["known", "as on a GPU"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "pos_weight": torch.tensor(3.0)}], ids=["", "options"]
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_do_not_depend_on_what_is_expected(dtype, reduction, options, device_like, request):
    if device_like:
        request.getfixturevalue("as_on_a_gpu")
    logits, target = data(dtype)
    expected = [truth(logits, target, factor, reduction=reduction, **options) for factor in FACTORS]
    for before in FACTORS:
        for factor, gradient in zip(FACTORS, expected, strict=True):
            step(logits, target, before, reduction=reduction, **options)
            assert same_bits(step(logits, target, factor, reduction=reduction, **options), gradient), (before, factor)


def test_one_pass_from_the_second_step_on(forgotten):
    logits, target = data(torch.float32)
    for factor in (0.3, 1024.0, 1.0):
        passes = []
        for _ in range(3):
            forgotten.clear()
            step(logits, target, factor)
            passes.append(len(forgotten))
        assert passes == [1, 0, 0]
    assert not memory._last, "1 is what nothing remembers"
    for factor in (0.0, torch.nan):
        step(logits, target, factor)
        assert not memory._last


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_kernel_that_looks_gets_what_the_gradient_was_made_for(forgotten):
    """A copy is made at once of the first number, then now and again."""
    logits, target = data(torch.float32)
    often = memory._RENEWED
    for factor in [0.3] * (often + 1) + [0.7] * (2 * often):
        step(logits, target, factor)
    seen = [made_for if made_for is None else round(made_for.item(), 3) for made_for in forgotten]
    # the copies: after step 1, of 0.3; after often + 1, the last with 0.3; after 2 often + 1
    assert seen == [None, *[0.3] * (2 * often), *[0.7] * often]
    copies = {id(made_for): made_for for made_for in forgotten if made_for is not None}
    assert len(copies) == 3


def test_losses_of_several_kinds(forgotten):
    """Sizes, reductions and dtypes each have their own: a weighted sum of losses takes one pass."""
    logits, target = data(torch.float32)

    def total(z):
        mean = fl.binary_cross_entropy_with_logits(z, target)
        part = fl.binary_cross_entropy_with_logits(z[:100], target[:100])
        double = fl.binary_cross_entropy_with_logits(z, target.double())
        return (
            0.5 * mean + 0.25 * part + 2 * double + fl.binary_cross_entropy_with_logits(z, target, reduction="sum") / 7
        )

    gradients = []
    for _ in range(2):
        forgotten.clear()
        z = logits.clone().requires_grad_()
        total(z).backward()
        gradients.append(z.grad)
    assert not forgotten and same_bits(*gradients)


def test_grad_scaler(forgotten):
    """fp16 with a loss scale, which grows: a pass more where it changes, and only there."""
    logits, target = data(torch.float16, 4096)
    weight = torch.nn.Parameter(torch.ones(()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    passes = []
    for _ in range(6):
        forgotten.clear()
        optimizer.zero_grad()
        loss = fl.binary_cross_entropy_with_logits(weight.half() * logits, target.float())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        passes.append(len(forgotten))
    assert passes == [1, 0, 1, 0, 1, 0]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_grad_output_that_its_owner_changes(when):
    """In ways that its version tells, and in others."""
    logits, target = data(torch.float32)
    expected = truth(logits, target, 0.5), truth(logits, target, 4.0)
    owned = torch.tensor(0.5)
    assert same_bits(truth(logits, target, owned), expected[0])
    if when == "before":
        owned.data.fill_(4.0)
        assert same_bits(step(logits, target, 0.5), expected[0])
    z = logits.clone().requires_grad_()
    loss = fl.binary_cross_entropy_with_logits(z, target)  # made for 0.5
    owned.data.fill_(4.0)
    loss.backward(owned if when == "between" else torch.tensor(4.0))
    assert same_bits(z.grad, expected[1])


def test_forgets_the_oldest():
    for n in range(1, memory._MOST + 50):
        step(*data(torch.float32, n), 0.5)
    assert len(memory._last) == memory._MOST
    assert min(kind[-1] for kind in memory._last) == 50


def test_threads_that_forget():
    """More kinds than are kept, in several threads at once; nothing is kept of the memory that a number comes from."""
    wrong = []

    def train(seed):
        try:
            for n in range(1 + seed, 1200, 3):
                step(torch.zeros(n), torch.zeros(n), torch.full((1000,), 0.5)[seed])
        except RuntimeError as error:
            wrong.append(error)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(memory._last) <= memory._MOST
    assert all(made_for.tensor.untyped_storage().nbytes() == 4 for made_for in memory._last.values())


def test_threads():
    logits, target = data(torch.float32)
    expected = {factor: truth(logits, target, factor) for factor in (0.25, 1.0, 3.0)}
    wrong = []

    def train(factor):
        for _ in range(200):
            if not same_bits(step(logits, target, factor), expected[factor]):
                wrong.append(factor)

    threads = [threading.Thread(target=train, args=(factor,)) for factor in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_expected_of_what_is_captured():
    """Compiled, recorded or of a subclass: made for 1, whatever this process has seen."""
    logits, target = data(torch.float32)
    expected = truth(logits, target, 0.5)
    assert memory._last
    z = logits.clone().requires_grad_()

    def traced(z, target):
        return fl.binary_cross_entropy_with_logits(z, target)

    graph = torch.fx.experimental.proxy_tensor.make_fx(traced)(logits, target)
    assert "bce_with_grad_for" not in graph.code
    (torch.compile(traced, backend="aot_eager")(z, target) * 0.5).backward()
    assert same_bits(z.grad, expected)
    assert memory.kind_of(torch.nn.Buffer(logits), 1, torch.float32) is not None
    assert memory.kind_of(torch.empty(3, device="meta"), 1, torch.float32) is None
    with torch._subclasses.FakeTensorMode() as mode:
        assert memory.kind_of(mode.from_tensor(logits), 1, torch.float32) is None


def test_the_raw_ops():
    logits, target = data(torch.float32, 100)
    arguments = loss_arguments(logits, target, reduction=ops.SUM)
    made_for = torch.tensor(0.5)
    loss, grad = ops.bce_with_grad_for(made_for, *arguments)
    assert same_bits(loss, ops.bce(*arguments))
    assert same_bits(grad, truth(logits, target, 0.5, reduction="sum"))
    torch.library.opcheck(ops.bce_with_grad_for, (made_for, *arguments))
    batch = torch.tensor([0.5, 1.0])
    _, grads = torch.func.vmap(lambda factor: ops.bce_with_grad_for(factor, *arguments))(batch)
    assert same_bits(grads[0], grad) and same_bits(grads[1], ops.bce_with_grad(*arguments)[1])
    for wrong, error in [(torch.ones(2), ValueError), (torch.ones((), device="meta"), RuntimeError)]:
        with pytest.raises(error, match="bce_with_grad_for: expected grad_output"):
            ops.bce_with_grad_for(wrong, *arguments)
        with pytest.raises(RuntimeError, match="bce_backward_: .*made_for"):
            ops.bce_backward_(grad, made_for, wrong, *grad_arguments(logits, target)[:7])

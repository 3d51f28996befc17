"""Atheris on the public losses: bytes become a call, whose result is the reference's, or whose error is documented.

    python tests/sanitize/fuzz_api.py CORPUS -max_total_time=300        (libFuzzer's arguments; `make fuzz` runs this)

A call that nothing is wrong with has to give the loss, and its gradients by the logits and weights, of ``reference.py``
in float64; one that something is wrong with has to raise the error class of its docstring, in a message of ours.
"""

from __future__ import annotations

import itertools
import sys

import atheris
import torch

# Atheris leaks what a comparison of tensors gives, of which the reference is full.
with atheris.instrument_imports(include=["fused_logistic"], exclude=["fused_logistic.reference"]):
    import fused_logistic as fl
    from fused_logistic import reference

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGETS = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SHAPES = ((5,), (4, 3), (2, 3, 4), (), (1,), (0,), (3, 0), (1, 7), (33, 2), (2, 1030), (9000,))
VALUES = (0.0, -0.0, 1e-3, 0.5, -0.5, 3.0, -3.0, 20.0, -20.0, 88.8, -88.8, 104.0, -104.0, 750.0, -750.0, 3e4, -1e-30)
ERRORS = (ValueError, TypeError, RuntimeError, NotImplementedError)
calls = itertools.count(1)
raised = itertools.count(1)


class Call:
    """What is drawn, and what of it is wrong: ``errors`` are the classes of which one has to be raised."""

    def __init__(self, data: atheris.FuzzedDataProvider):
        self.data = data
        self.generator = torch.Generator().manual_seed(data.ConsumeIntInRange(0, 2**31))
        self.errors: list[type[Exception]] = []

    def one_in(self, n: int) -> bool:
        return self.data.ConsumeIntInRange(0, n - 1) == n - 1  # zeros, which stand behind the data's end: no

    def of(self, choices):
        return choices[self.data.ConsumeIntInRange(0, len(choices) - 1)]

    def wrong(self, error: type[Exception], value):
        self.errors.append(error)
        return value

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values, otherwise in memory."""
        how = self.data.ConsumeIntInRange(0, 4)
        if how == 1 and tensor.dim() > 1:
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if how == 2 and tensor.dim() > 0:  # every second of a larger one
            larger = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
            larger[..., ::2] = tensor
            return larger[..., ::2]
        if how == 3 and tensor.dim() > 0 and tensor.shape[0] > 0:  # the same row many times
            return tensor[:1].clone().expand_as(tensor)
        if how == 4:  # not where the memory begins
            return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
        return tensor

    def uniform(self, shape, low: float, high: float) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64) * (high - low) + low

    def logits(self, shape) -> torch.Tensor:
        values = self.uniform(shape, -10, 10)
        flat = values.view(-1)
        for _ in range(min(self.data.ConsumeIntInRange(0, 8), flat.numel())):
            flat[self.data.ConsumeIntInRange(0, flat.numel() - 1)] = self.of(VALUES)
        dtype = self.wrong(NotImplementedError, torch.complex64) if self.one_in(40) else self.of(FLOATS)
        return self.laid_out(values.to(dtype))

    def target(self, shape) -> torch.Tensor:
        hard = self.one_in(2)
        values = self.uniform(shape, 0, 1).round() if hard else self.uniform(shape, 0, 1)
        if self.one_in(30):
            values = self.wrong(ValueError, values.new_zeros(*shape, 2, 2))
        return self.laid_out(values.to(self.of(TARGETS)))

    def beside(self, shape) -> tuple[int, ...]:
        """A shape that broadcasts, or one that does not."""
        own = [size if self.one_in(2) else 1 for size in shape][self.data.ConsumeIntInRange(0, len(shape)) :]
        if self.one_in(30):
            own = [3, *own, 11]
        try:
            fits = torch.broadcast_shapes(own, shape) == torch.Size(shape)
        except RuntimeError:
            fits = False
        return tuple(own) if fits else self.wrong(RuntimeError, tuple(own))

    def weight(self, shape):
        how = self.data.ConsumeIntInRange(0, 5)
        if how < 2:
            return None
        if how == 2:
            return self.of((0.0, 1.0, 2.5))
        values = self.uniform(self.beside(shape), 0, 3)
        return self.laid_out(values.to(self.of(FLOATS)))

    def mask(self, shape):
        if not self.one_in(3):
            return None
        values = self.uniform(self.beside(shape), 0, 1) < 0.7
        return self.wrong(TypeError, values.int()) if self.one_in(20) else self.laid_out(values)

    def exponent(self) -> float:
        """For others than these the derivative of the power is not Lipschitz, and no bound of ours holds for all q."""
        if self.one_in(30):
            return self.wrong(ValueError, self.of((-1.0, float("nan"), float("inf"), 1e31)))
        return self.of((2.0, 3.0, 2.5, 4.0, 6.25, 30.0))

    def unit(self) -> float:
        return (
            self.wrong(ValueError, self.of((-0.1, 1.5, float("nan")))) if self.one_in(30) else self.of((0.25, 0.0, 1.0))
        )


def draw(call: Call):
    """The public function, its arguments, the reference of one element's unweighted loss, and the largest exponent."""
    which = call.data.ConsumeIntInRange(0, 5)
    if which == 1:
        given = {"gamma": call.exponent(), "alpha": call.unit()}
        return fl.sigmoid_focal_loss, given, reference.sigmoid_focal_loss, given["gamma"]
    if which == 2:
        given = {"beta": call.exponent()}
        return fl.quality_focal_loss, given, reference.quality_focal_loss, given["beta"]
    if which == 3:
        given = {"alpha": call.unit(), "gamma": call.exponent(), "iou_weighted": call.one_in(2)}
        return fl.varifocal_loss, given, reference.varifocal_loss, given["gamma"]
    if which == 4:
        given = {"gamma_neg": call.exponent(), "gamma_pos": call.exponent(), "clip": call.of((0.05, 0.0, 0.4))}
        exponent = max(given["gamma_neg"], given["gamma_pos"])
        return fl.asymmetric_loss_with_logits, given, reference.asymmetric_loss_with_logits, exponent
    return fl.binary_cross_entropy_with_logits, {}, None, 0.0


def one_call(bytes_: bytes) -> None:
    call = Call(atheris.FuzzedDataProvider(bytes_))
    function, given, elementwise, gamma = draw(call)
    shape = call.of(SHAPES)
    z, y = call.logits(shape), call.target(shape)
    weight, pos_weight, mask = call.weight(shape), None, call.mask(shape)
    reduction = call.wrong(ValueError, call.of(("all", "", 3))) if call.one_in(40) else call.of(("none", "mean", "sum"))
    ignore_index = call.of((0, 1)) if call.one_in(4) else None
    ignore_nan = call.one_in(4)
    smoothing = 0.0
    if elementwise is None:
        pos_weight = call.weight(shape)
        smoothing = call.unit() if call.one_in(3) else 0.0
        given = {"label_smoothing": smoothing}
    if ignore_nan and y.is_floating_point() and y.numel() > 0 and call.one_in(2):
        y = y.clone(memory_format=torch.contiguous_format)
        y.view(-1)[0] = float("nan")
    options = {**given, "weight": weight, "pos_weight": pos_weight, "mask": mask, "ignore_index": ignore_index,
               "ignore_nan": ignore_nan, "reduction": reduction}  # fmt: skip
    wanted = [t for t in (z, weight, pos_weight) if isinstance(t, torch.Tensor)]
    for tensor in wanted:
        tensor.requires_grad_()
    try:
        loss = function(z, y, **options)
    except ERRORS as error:
        explain_error(call, function, error)
        return
    assert not call.errors, f"{function.__name__} took what {call.errors} stand for: {options}"
    assert loss.shape == (z.shape if reduction == "none" else ()), f"shape {tuple(loss.shape)}"
    grads = torch.autograd.grad(loss.sum(), wanted)
    compare(
        function,
        z,
        y,
        options,
        elementwise,
        given,
        gamma,
        smoothing,
        loss,
        dict(zip(map(id, wanted), grads, strict=True)),
    )


def explain_error(call: Call, function, error: Exception) -> None:
    next(raised)
    name = function.__name__
    if not call.errors:
        raise AssertionError(f"{name} refused a good call") from error
    # bad values of several arguments: which one is told is not said
    assert isinstance(error, tuple(call.errors)), (
        f"{name}: {type(error).__name__}, expected one of {call.errors}: {error}"
    )
    assert str(error).startswith(name), f"{name}: not our message: {error}"


def compare(function, z, y, options, elementwise, given, gamma, smoothing, loss, grads) -> None:
    """In float64, by torch's autograd of the reference, all operands in full."""
    double = torch.float64
    logits = z.detach().to(double)
    logits = torch.where(
        logits == 0, 1e-300, logits
    ).requires_grad_()  # |z|, of which the reference is made, has no slope at 0
    target = y.to(double)

    def full(value):
        return (
            torch.as_tensor(1.0 if value is None else value, dtype=double)
            .detach()
            .expand(z.shape)
            .clone()
            .requires_grad_()
        )

    w, p = full(options["weight"]), full(options["pos_weight"])
    kept = torch.ones(z.shape, dtype=torch.bool)
    if options["mask"] is not None:
        kept = kept & options["mask"]
    if options["ignore_index"] is not None:
        kept = kept & (y != options["ignore_index"])
    if options["ignore_nan"]:
        kept = kept & ~target.isnan()
    target = torch.where(kept, target, 0)
    if elementwise is None:
        elements = reference.loss(logits, target, w, p, label_smoothing=smoothing)
    else:
        elements = w * elementwise(logits, target, **given)
    elements = torch.where(kept, elements, 0)
    divisor = 1
    if options["reduction"] == "mean":
        divisor = int(kept.sum())
    if divisor == 0:
        assert loss.isnan(), f"a mean of nothing is {loss}"
        return
    exact = (elements if options["reduction"] == "none" else elements.sum()) / divisor
    exact_grads = torch.autograd.grad(exact.sum(), (logits, w), allow_unused=True)
    # One unit of everything that is rounded: the terms and powers, which are at most 1, whose relative error is of the
    # order of gamma units (4 + 2.8 gamma, tests/test_family_exact.py); their derivatives have another factor of gamma.
    wide = z.dtype == double or y.dtype == double
    eps = torch.finfo(double if wide else torch.float32).eps
    size = torch.where(kept, w.detach() * p.detach().clamp(min=1) * (1 + z.detach().abs().to(double)), 0)
    units = 16 + 8 * gamma
    within = units * eps * size / divisor
    check("loss", loss, exact, within if options["reduction"] == "none" else within.sum())
    check("gradient by the logits", grads[id(z)], exact_grads[0], (1 + gamma) * within)
    if isinstance(options["weight"], torch.Tensor) and exact_grads[1] is not None:
        unit = units * eps * torch.where(kept, p.detach().clamp(min=1) * (1 + z.detach().abs().to(double)), 0) / divisor
        own = options["weight"].shape
        exact, unit = exact_grads[1].sum_to_size(own), unit.sum_to_size(own)
        check("gradient by weight", grads[id(options["weight"])], exact, 2 * unit, kept.numel())


def check(what: str, got: torch.Tensor, exact: torch.Tensor, within: torch.Tensor, added: int = 1) -> None:
    """``added``: how many results of that dtype torch has added up, each of which is rounded to it."""
    info = torch.finfo(got.dtype)
    got, exact = got.detach().to(torch.float64), exact.detach()
    within = within + exact.abs() * info.eps + info.smallest_normal * info.eps
    if added > 1:
        within = within + info.eps * added * within / torch.finfo(torch.float32).eps
    fits = ((got - exact).abs() <= within) | (exact.abs() + within >= info.max)
    if not fits.all():
        at = int((~fits).reshape(-1).nonzero()[0])
        raise AssertionError(
            f"{what}: {got.reshape(-1)[at]} at {at}, expected {exact.reshape(-1)[at]} within {within.reshape(-1)[at]}"
        )


def test_one_input(bytes_: bytes) -> None:
    next(calls)
    one_call(bytes_)


if __name__ == "__main__":
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()

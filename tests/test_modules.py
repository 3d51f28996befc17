"""The modules among torch's tools: hooks that compute a weight, TorchScript, copies, repr."""

import copy
import functools
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fused_logistic as fl

X, Y = torch.randn(8, 6), torch.rand(8, 3)
ROOT = Path(__file__).parent.parent


# ---- Hooks of the layer ----------------------------------------------------------------------------------------------


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def pruned(head):
    prune.l1_unstructured(head, "weight", amount=0.5)
    return lambda: head.weight_orig * head.weight_mask


def weight_normed(head):
    torch.nn.utils.weight_norm(head)
    return lambda: head.weight_v * (head.weight_g / head.weight_v.norm(dim=1, keepdim=True))


def spectrally_normed(head):
    torch.nn.utils.spectral_norm(head.eval())
    return lambda: head.weight_orig / (head.weight_u @ head.weight_orig @ head.weight_v)


def parametrized(head):
    parametrize.register_parametrization(head, "weight", Doubled())
    return lambda: 2 * head.parametrizations.weight.original


def orthogonal(head):
    parametrizations.orthogonal(head)
    return lambda: head.weight


WEIGHTS = [pruned, weight_normed, spectrally_normed, parametrized, orthogonal]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("computed", WEIGHTS)
def test_predictions_see_the_weight_as_it_is_now(computed):
    """A hook of the call computes it from parameters, which a step has changed since the last one."""
    head = fl.LinearBCEWithLogitsLoss(6, 3)
    weight = computed(head)
    for _ in range(2):
        loss = head(X, Y)
        want = F.linear(X, weight(), head.bias)
        torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(want, Y))
        loss.backward()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter -= parameter.grad
        want = F.linear(X, weight(), head.bias)
        torch.testing.assert_close(head.predict_proba(X), want.sigmoid())
        with torch.no_grad():
            for parameter in head.parameters():
                parameter *= 1.5
        want = F.linear(X, weight(), head.bias)
        torch.testing.assert_close(head.logits(X), want)
        torch.testing.assert_close(head(X), want)


def test_a_users_hooks_see_every_call():
    head, seen = fl.LinearBCEWithLogitsLoss(6, 3), []
    head.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    head.register_forward_hook(lambda module, args, output: seen.append((len(args), output.shape)))
    logits = F.linear(X + 1, head.weight, head.bias)
    torch.testing.assert_close(head(X, Y), F.binary_cross_entropy_with_logits(logits, Y))
    torch.testing.assert_close(head.logits(X), logits)
    torch.testing.assert_close(head.predict_proba(X), logits.sigmoid())
    assert seen == [(2, ()), (1, (8, 3)), (1, (8, 3))]


def test_compiled_predictions():
    head = fl.LinearBCEWithLogitsLoss(6, 3)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: (head(x, y), head(x), head.predict_proba(x)), fullgraph=True, backend="eager")
    for got, want in zip(compiled(X, Y), (head(X, Y), head(X), head.predict_proba(X)), strict=True):
        torch.testing.assert_close(got, want)


# ---- TorchScript -----------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """Its forward does not use the loss."""

    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(6, 3), loss

    def forward(self, x):
        return self.layer(x)


class UsesTheLoss(Model):
    def forward(self, x, y):
        return self.loss(self.layer(x), y, None)


class UsesTheHead(Model):
    def forward(self, x, y):
        return self.loss(x, y, None)


class Predicts(Model):
    def forward(self, x):
        return self.loss(x), self.loss.logits(x), self.loss.predict_proba(x), self.loss.predict(x, 0.3)


OPTIONS = [{}, {"weight": torch.rand(3), "pos_weight": torch.rand(3), "label_smoothing": 0.1, "ignore_index": -1}]
LOSSES = [fl.BCEWithLogitsLoss, functools.partial(fl.LinearBCEWithLogitsLoss, 6, 3)]
scripts = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")


def saved_and_loaded(scripted):
    torch.jit.save(scripted, file := io.BytesIO())
    file.seek(0)
    return torch.jit.load(file)


@scripts
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "options"])
@pytest.mark.parametrize("make", LOSSES, ids=["loss", "layer"])
def test_script_of_a_model_that_owns_a_loss(make, options):
    model = Model(make(**options))
    scripted = torch.jit.script(model)
    for module in (scripted, saved_and_loaded(scripted)):
        torch.testing.assert_close(module(X), model(X))


@scripts
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "options"])
def test_script_of_a_model_that_uses_the_loss(options):
    model = UsesTheLoss(LOSSES[0](**options))
    scripted = torch.jit.script(model)
    results = []
    for module in (scripted, model):
        loss = module(X, Y)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(got, want) for got, want in zip(*results, strict=True))
    with pytest.raises(RuntimeError, match="Could not export Python function call 'forward'"):
        saved_and_loaded(scripted)
    with pytest.raises(torch.jit.Error, match="LinearBCEWithLogitsLoss: expected no target in what torch.jit.script"):
        torch.jit.script(UsesTheHead(LOSSES[1](**options)))(X, Y)


@scripts
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "options"])
def test_script_of_a_model_that_predicts(options):
    head = LOSSES[1](**options)
    for model in (Predicts(head), torch.nn.Sequential(torch.nn.Linear(6, 6), head)):
        scripted = torch.jit.script(model)
        for module in (scripted, saved_and_loaded(scripted)):
            torch.testing.assert_close(module(X), model(X), rtol=0, atol=0)


def test_the_import_warns_of_nothing():
    subprocess.run([sys.executable, "-W", "error", "-c", "import fused_logistic"], cwd=ROOT, check=True)


# ---- Copies and repr -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "options"])
def test_copies(options):
    for module, input in ((LOSSES[0](**options), torch.randn(8, 3)), (LOSSES[1](**options), X)):
        for copied in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(copied) is type(module) and repr(copied) == repr(module)
            assert torch.equal(copied(input, Y), module(input, Y))


def test_repr_shows_what_is_not_the_default():
    assert repr(fl.BCEWithLogitsLoss()) == "BCEWithLogitsLoss()"
    assert repr(fl.LinearBCEWithLogitsLoss(6, 3)) == ("LinearBCEWithLogitsLoss(in_features=6, num_labels=3, bias=True)")
    assert repr(LOSSES[0](**OPTIONS[1], reduction="sum")) == (
        "BCEWithLogitsLoss(weight=[3], reduction='sum', pos_weight=[3], label_smoothing=0.1, ignore_index=-1)"
    )
    assert repr(LOSSES[1](**OPTIONS[1], chunk_bytes=64)) == (
        "LinearBCEWithLogitsLoss(in_features=6, num_labels=3, bias=True, loss_weight=[3], pos_weight=[3], "
        "label_smoothing=0.1, ignore_index=-1, chunk_bytes=64)"
    )


# ---- Wrong arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[1.0, 2.0], np.ones(3), "5", True], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("make", [*LOSSES, fl.AsymmetricLoss])
def test_a_weight_is_a_number_or_a_tensor(make, name, value):
    got = rf"expected (loss_)?{name} to be a number or a torch.Tensor, got {type(value).__name__}$"
    with pytest.raises(TypeError, match=got):
        make(**{name: value})

"""What the tests of fl.patch() share."""

import pytest
import torch
import torch.nn.functional as F

from fused_logistic import patching

TORCHS = F.binary_cross_entropy_with_logits
OURS = patching.binary_cross_entropy_with_logits  # what F's name holds

# At this logit torch's loss in fp32 is 0 and ours is right, so a value tells which of them computed it.
TAIL = torch.tensor([-20.0]), torch.tensor([0.0])


def is_ours(loss):
    value = loss(*TAIL).item()
    assert value == 0 or value == pytest.approx(2.0611536e-9, rel=1e-6)
    return value != 0


@pytest.fixture(autouse=True)
def torchs_function_is_back():
    assert F.binary_cross_entropy_with_logits is TORCHS
    yield
    assert F.binary_cross_entropy_with_logits is TORCHS and not patching._places
    assert (TORCHS.__module__, TORCHS.__qualname__) == ("torch.nn.functional", "binary_cross_entropy_with_logits")

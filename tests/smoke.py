"""Does an installed package work? `make dist` and `make check-wheel` run it, by `python -I` outside of the tree."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import fused_logistic as fl

folder = Path(fl.__file__).parent
assert folder.is_relative_to(sys.prefix), f"{folder} is not what was installed into {sys.prefix}"
assert {"py.typed", "_C.pyi"} <= {path.name for path in folder.iterdir()}, "no type information"
assert version("fused_logistic") == fl.__version__

model = torch.nn.Linear(8, 3)
x, y = torch.randn(500, 8), torch.randint(0, 2, (500, 3))
for ours, torchs, target in (
    (fl.BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss(), y.float()),
    (fl.BCEWithLogitsLoss(pos_weight=torch.ones(3)), torch.nn.BCEWithLogitsLoss(), y),
):
    gradients = []
    for criterion, labels in ((ours, target), (torchs, y.float())):
        model.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)

subprocess.run([sys.executable, "-I", "-m", "fused_logistic.info"], check=True)

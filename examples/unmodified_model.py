"""A model that knows nothing of fused_logistic, trained with it: ``fl.patch()`` instead of an edit.

    python examples/unmodified_model.py [--steps 12]

The first part of this file stands for somebody else's package: a multi-label tagger with a loss in the style of the
vision libraries, which adds a focal term computed from torch's ``binary_cross_entropy_with_logits`` to
``torch.nn.BCEWithLogitsLoss``. The second part trains it twice from the same start, once as it is and once patched, and
prints the losses of both, which have to agree, and the time of both.
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import fused_logistic as fl

try:
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"unmodified_model: {error}; the example needs: pip install tqdm")

# ---- Somebody else's package ----------------------------------------------------------------------------------------


class FocalTerm(nn.Module):
    def __init__(self, alpha=0.25):
        super().__init__()
        self.alpha = alpha

    def forward(self, logits, targets):
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        alpha_t = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (alpha_t * (1 - torch.exp(-cross_entropy)) * cross_entropy).mean()


class Tagger(nn.Module):
    """Documents as bags of words -> the loss of all their tags."""

    def __init__(self, words, tags, hidden=16):
        super().__init__()
        self.encoder = nn.EmbeddingBag(words, hidden, mode="mean")
        self.head = nn.Linear(hidden, tags)
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=torch.full((tags,), 5.0))
        self.focal = FocalTerm()

    def forward(self, documents, targets):
        logits = self.head(torch.relu(self.encoder(documents)))
        return self.criterion(logits, targets) + 0.1 * self.focal(logits, targets)


def train(model, batches, lr=3000.0):
    """The loss of every step, and the seconds of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses, seconds = [], []
    for documents, targets in batches:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(documents, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return losses, seconds


# ---- What its user adds ---------------------------------------------------------------------------------------------


def make_batches(steps, documents=256, words=5000, tags=8000):
    """Synthetic: every word favours one tag, a document has 20 words and the tags that they favour."""
    generator = torch.Generator().manual_seed(0)
    favoured = torch.randint(0, tags, (words,), generator=generator)
    for _ in range(steps):
        bag = torch.randint(0, words, (documents, 20), generator=generator)
        yield bag, torch.zeros(documents, tags).scatter_(1, favoured[bag], 1.0)


def main():
    parser = argparse.ArgumentParser(description="Train an unmodified model with and without fl.patch().")
    parser.add_argument("--steps", type=int, default=12, help="of each of the six runs (default: 12)")
    steps = parser.parse_args().steps

    batches = list(make_batches(steps))
    torch.manual_seed(0)
    start = Tagger(words=5000, tags=8000).state_dict()

    curves, times = {}, {"as it is": [], "patched": []}
    in_turn = ["as it is", "patched"] * 3  # so that drift of the machine's speed hits both
    for name in tqdm(in_turn, desc="runs", file=sys.stdout, leave=False):
        model = Tagger(words=5000, tags=8000)
        model.load_state_dict(start)
        if name == "patched":
            with fl.patch():
                curves[name], seconds = train(model, batches)
        else:
            curves[name], seconds = train(model, batches)
        times[name] += seconds

    print(f"{'step':>4}{'as it is':>14}{'patched':>14}")
    for step in sorted({0, steps // 2, steps - 1}):
        print(f"{step:4}{curves['as it is'][step]:14.7f}{curves['patched'][step]:14.7f}")
    difference = max(abs(a - b) / abs(a) for a, b in zip(curves["as it is"], curves["patched"], strict=True))
    print(f"largest relative difference of a loss: {difference:.1e}")

    plain, patched = (statistics.median(times[name]) for name in ("as it is", "patched"))
    numel = len(batches[0][0]) * batches[0][1].shape[1]
    print(f"a whole training step with {numel:,} logits: {1e3 * plain:.1f} ms, patched {1e3 * patched:.1f} ms")
    if not difference <= 1e-5:
        sys.exit(f"unmodified_model: expected the same losses to 1e-5, got {difference:.1e}")


if __name__ == "__main__":
    main()

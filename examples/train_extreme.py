"""Extreme multi-label classification: very many labels, few of them positive, through the fused layer.

    python examples/train_extreme.py [--labels N] [--samples N] [--features N] [--steps N]

The data is made up, in the shape that tagging and recommendation have:

* label frequencies follow a power law: label k of L (k = 0, 1, ...) is drawn with a probability proportional to
  1 / (k + 10); a sample draws 8 labels, and has those that are distinct;
* each label has a random direction u_k of unit length; a sample's features are the mean of its labels' directions times
  4, plus standard normal noise times 1 / sqrt(features).

The targets are torch.sparse_csr: no dense target and no whole logits ever exist, only a tile of 8 MiB. Printed are
the precision at 1, 3 and 5 on held-out samples, of the model and of always naming the most frequent labels, and the
peak of the memory beside what the weights, their gradient and Adagrad's state need.
"""

import argparse
import resource
import sys
import time
import warnings

import torch

try:
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"train_extreme: {error}; the example needs: pip install tqdm")

import fused_logistic as fl

DRAWS = 8
BATCH = 256


def make_data(samples, labels, features, generator):
    """(features [samples, features], drawn labels [samples, DRAWS], sorted)."""
    directions = torch.randn(labels, features, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    frequency = (torch.arange(labels, dtype=torch.double) + 10).reciprocal().cumsum(0)
    uniform = torch.rand(samples, DRAWS, generator=generator, dtype=torch.double) * frequency[-1]
    drawn = torch.searchsorted(frequency, uniform).clamp_(max=labels - 1).sort(dim=1).values
    noise = torch.randn(samples, features, generator=generator) / features**0.5
    return 4 * directions[drawn].mean(1) + noise, drawn


def sparse_target(drawn, labels):
    """sparse CSR [samples, labels] with a 1 for every label that a sample has."""
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    crow = torch.cat([torch.zeros(1, dtype=torch.long), first.sum(1).cumsum(0)])
    column = drawn[first]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            crow, column, torch.ones(len(column)), (len(drawn), labels), check_invariants=False
        )


def precision(top, drawn, ks=(1, 3, 5)):
    """Of the first k labels named, the fraction that the sample has, for each k."""
    hit = (top[:, :, None] == drawn[:, None, :]).any(2).double()
    return [hit[:, :k].mean().item() for k in ks]


def main():
    parser = argparse.ArgumentParser(description="Extreme multi-label training through the fused layer.")
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    labels, generator = options.labels, torch.Generator().manual_seed(0)
    x, drawn = make_data(options.samples + 1000, labels, options.features, generator)
    x_test, drawn_test = x[-1000:], drawn[-1000:]
    print(f"{options.samples:,} samples, {labels:,} labels, {options.features} features, batches of {BATCH}")

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    torch.manual_seed(0)
    head = fl.LinearBCEWithLogitsLoss(options.features, labels, reduction="sum")
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, -10.0)  # a label is rare
    optimizer = torch.optim.Adagrad(head.parameters(), lr=0.2, foreach=False)
    start = time.perf_counter()
    bar = tqdm(range(options.steps), unit="step", file=sys.stdout)
    for _ in bar:
        batch = torch.randint(0, options.samples, (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = head(x[batch], sparse_target(drawn[batch], labels)) / BATCH
        loss.backward()
        optimizer.step()
        bar.set_postfix_str(f"loss of a sample {loss.item():.3f}", refresh=False)
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() * p.element_size() for p in head.parameters()) / 2**20
    beyond = peak() - before - 3 * parameters

    with torch.no_grad():
        top = torch.cat([head.logits(part).topk(5).indices for part in x_test.split(64)])
    frequent = drawn[: options.samples].flatten().bincount(minlength=labels).topk(5).indices.expand(1000, 5)
    for name, named in (("model", top), ("most frequent labels", frequent)):
        at = precision(named, drawn_test)
        print(f"held out: precision@1 {at[0]:.3f}, @3 {at[1]:.3f}, @5 {at[2]:.3f} ({name})")
    print(f"time of a step: {seconds / options.steps * 1e3:.0f} ms")
    whole = 2 * BATCH * labels * 4 / 2**20
    print(
        f"peak memory: {peak():.0f} MiB; while training {beyond:.0f} MiB beyond weights, gradient and Adagrad's state "
        f"of {parameters:.0f} MiB each; whole logits and a dense target would be {whole:.0f} MiB"
    )


if __name__ == "__main__":
    main()

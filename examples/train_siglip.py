"""Contrastive training (SigLIP) on scikit-learn's digits: which lower half belongs to which upper half?

    python examples/train_siglip.py [--output DIRECTORY] [--steps N] [--largest N]

Each of the 1,797 digits is cut into its upper and its lower 4 rows. Two towers turn the halves into vectors of length
1, and fused_logistic.SigLipLoss trains them with temperature and bias to tell the pairs that belong together from all
others of the batch, which is the whole training set: 1.8 million pairs a step, none of which is stored. Printed is how
often, among the 450 held-out lower halves, the right one is the first or one of the first five that an upper half
finds, which by chance is 0.2 % and 1.1 %.

Then the peak memory of a step is measured (on Linux) for batches up to --largest, of the fused loss and of open_clip's
formula on whole similarities, and saved as a picture.
"""

import argparse
import ctypes
import gc
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

try:
    import matplotlib
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"train_siglip: {error}; the examples need: pip install matplotlib scikit-learn tqdm")

import fused_logistic as fl

matplotlib.use("Agg")  # a file is written; no display is needed
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of the backend

FEATURES = 32


class Towers(torch.nn.Module):
    """Upper and lower halves as vectors of length 1, temperature and bias as SigLIP begins with them."""

    def __init__(self):
        super().__init__()

        def tower():
            return torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.GELU(), torch.nn.Linear(256, FEATURES))

        self.upper, self.lower = tower(), tower()
        self.logit_scale = torch.nn.Parameter(torch.tensor(10.0).log())
        self.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))

    def forward(self, upper, lower):
        towers = F.normalize(self.upper(upper), dim=1), F.normalize(self.lower(lower), dim=1)
        return *towers, self.logit_scale.exp(), self.logit_bias


def load_data():
    """(upper, lower) halves to train on, and (upper, lower) to test with, standardised."""
    pixels = torch.from_numpy(load_digits().data).float()
    pixels = (pixels - pixels.mean()) / pixels.std()
    return [torch.from_numpy(part).split(32, dim=1) for part in train_test_split(pixels.numpy(), random_state=0)]


def found(model, upper, lower):
    """The fraction of the upper halves for which the right lower one is the first, and among the first five."""
    with torch.no_grad():
        upper, lower, _, _ = model(upper, lower)
        similarities = upper @ lower.T
    better = (similarities > similarities.diagonal()[:, None]).sum(1)
    return [(better < k).float().mean().item() for k in (1, 5)]


# ---- Memory --------------------------------------------------------------------------------------------------------


def formula(image, text, scale, bias):
    """As open_clip computes it."""
    labels = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(labels * (scale * image @ text.T + bias)).sum() / len(image)


def status(field):
    """A field of what Linux says of this process's memory, in MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def peak_of_a_step(loss, batch):
    """MiB beyond what the process held before the step."""
    leaves = [torch.randn(batch, FEATURES), torch.randn(batch, FEATURES), torch.tensor(1.0), torch.tensor(-1.0)]
    leaves = [t.requires_grad_() for t in leaves]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what the step needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    loss(*leaves).backward()
    return status("VmHWM") - before


def draw(batches, curves, path):
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (name, peaks), color in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        axes.plot(batches, [max(peak, 0.1) for peak in peaks], "o-", color=color, label=name)
    axes.set(xscale="log", yscale="log", xlabel="pairs in a batch", ylabel="peak memory of a step, MiB")
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Contrastive training on halves of digits.")
    parser.add_argument("--output", type=Path, default=Path("."), help="where the picture goes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--largest", type=int, default=8192, help="the largest batch whose memory is measured")
    options = parser.parse_args()
    torch.manual_seed(0)
    train, test = load_data()
    model, criterion = Towers(), fl.SigLipLoss()
    print(f"{len(train[0]):,} pairs to train on, all in one batch, and {len(test[0])} held out")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    start = time.perf_counter()
    bar = tqdm(range(options.steps), unit="step", file=sys.stdout)
    for _ in bar:
        optimizer.zero_grad()
        loss = criterion(*model(*train))
        loss.backward()
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    print(f"time of a step: {(time.perf_counter() - start) / options.steps * 1e3:.0f} ms")
    first, five = found(model, *test)
    print(f"held out: the right half is the first {first:.1%} of the time, among the first five {five:.1%}")

    batches = [2**k for k in range(10, options.largest.bit_length())]
    curves = {}
    for name, loss in (("fused", fl.sigmoid_contrastive_loss), ("whole similarities", formula)):
        curves[name] = [peak_of_a_step(loss, batch) for batch in (64, *batches)][1:]  # the first loads more
        shown = [f"{batch:,}: {peak:.0f} MiB" for batch, peak in zip(batches, curves[name], strict=True)]
        print(f"memory of a step, {name}: {', '.join(shown)}")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "siglip_memory.png"
    draw(batches, curves, path)
    print(f"memory curve: {path}")


if __name__ == "__main__":
    main()

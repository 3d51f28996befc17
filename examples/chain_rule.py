"""The chain rule of L(sigma(w . x + b)) in numbers: captured by hooks, from the formulas, and fused.

    python examples/chain_rule.py

The composed graph is the one everybody writes first: z = w . x + b, sigma = 1 / (1 + exp(-z)),
L = -(y log sigma + (1 - y) log(1 - sigma)). Hooks capture the gradient at each node as autograd walks back through it.
The formulas are evaluated in float64. The fused loss goes from z to L in one step, never forms sigma, and is computed
in float32 like the composed graph. A second table moves z into the tail, where the composed graph has no digits left.
"""

import sys

import torch

import fused_logistic as fl
from fused_logistic import reference

# Relative to the formula: whatever differs by more than this is wrong, not rounded.
FUSED_TOLERANCE = 1e-6
HOOK_TOLERANCE = 1e-5  # 1 + exp(-5) and log(sigma) near sigma = 1 cost two digits of float32


def hook_captured(x, w, b, y):
    """Every gradient of the composed graph, in the dtype of the arguments: {name: value}."""
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    nodes = reference.composed(x, w, b, y)
    nodes.loss.backward()
    return {
        "L": nodes.loss.item(),
        "dL/dσ": nodes.dL_dsigma.item(),
        "dL/dz": nodes.dL_dz.item(),
        "dL/db": b.grad.item(),
        **{f"dL/dw{i}": g for i, g in enumerate(w.grad.tolist(), 1)},
    }


def formula(x, w, b, y):
    """The same from the closed forms, in float64. Where sigma and 1 - sigma occur, each is exact by itself."""
    x, w, b = x.double(), w.double(), b.double()
    z = w.dot(x) + b
    sigma, one_minus_sigma = reference.sigmoid_pair(z)
    dL_dz = reference.grad_logits(z, y)
    return {
        "L": reference.loss(z, y).item(),
        "dL/dσ": (-(y / sigma - (1 - y) / one_minus_sigma)).item(),
        "dL/dz": dL_dz.item(),
        "dL/db": dL_dz.item(),
        **{f"dL/dw{i}": g for i, g in enumerate((dL_dz * x).tolist(), 1)},
    }


def fused(x, w, b, y):
    """The same through fused_logistic, which has no sigma and so no dL/dσ."""
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    z = w.dot(x) + b
    z.retain_grad()
    loss = fl.binary_cross_entropy_with_logits(z, y)
    loss.backward()
    return {
        "L": loss.item(),
        "dL/dσ": None,
        "dL/dz": z.grad.item(),
        "dL/db": b.grad.item(),
        **{f"dL/dw{i}": g for i, g in enumerate(w.grad.tolist(), 1)},
    }


def print_table(x, w, b, y):
    """Print the three columns and their differences; return the relative ones of hooks and of fused."""
    columns = [f(x, w, b, y) for f in (hook_captured, formula, fused)]
    print(f"{'':8}{'hook-captured':>16}{'formula':>16}{'fused':>16}{'|hook - formula|':>18}{'|fused - formula|':>19}")
    relative = [], []
    for name, exact in columns[1].items():
        captured, one_step = columns[0][name], columns[2][name]
        differences = [None if value is None else abs(value - exact) for value in (captured, one_step)]
        for seen, difference in zip(relative, differences, strict=True):
            if difference is not None:
                seen.append(difference / abs(exact))
        values = [f"{v:16.8g}" if v is not None else f"{'not formed':>16}" for v in (captured, exact, one_step)]
        shown = ["-" if d is None else f"{d:.1e}" for d in differences]
        print(f"{name:8}{''.join(values)}{shown[0]:>18}{shown[1]:>19}")
    return relative


def main():
    x = torch.tensor([1.0, 2.0])
    w = torch.tensor([2.0, 1.0])
    b = torch.tensor([1.0])
    y = torch.tensor([1.0])

    print("The chain rule of L(σ(w·x + b)) at x = (1, 2), w = (2, 1), b = 1, y = 1, so z = 5")
    hooks, one_step = print_table(x, w, b, y)
    rounded = {name: f"{value:.4f}" for name, value in hook_captured(x, w, b, y).items()}
    print(
        f"to four digits: dL/dσ {rounded['dL/dσ']}, dL/dz {rounded['dL/dz']}, dL/db {rounded['dL/db']}, "
        f"dL/dw ({rounded['dL/dw1']}, {rounded['dL/dw2']})"
    )
    print(f"largest relative difference from the formula: hook-captured {max(hooks):.1e}, fused {max(one_step):.1e}")

    print()
    print("The same at b = 16, so z = 20: in float32 σ rounds to 1, 1 - σ to 0, and 0 · log 0 is NaN")
    _, tail = print_table(x, w, b + 15.0, y)
    z = torch.tensor([20.0], requires_grad=True)
    torch.nn.functional.binary_cross_entropy_with_logits(z, y).backward()
    print(f"largest relative difference from the formula: fused {max(tail):.1e}")
    print(f"dL/dz of torch's own binary_cross_entropy_with_logits there: {z.grad.item():g}")

    # in this form a NaN fails too
    if not all(d <= HOOK_TOLERANCE for d in hooks) or not all(d <= FUSED_TOLERANCE for d in one_step + tail):
        sys.exit(f"chain_rule: expected at most {HOOK_TOLERANCE} (hooks) and {FUSED_TOLERANCE} (fused)")


if __name__ == "__main__":
    main()

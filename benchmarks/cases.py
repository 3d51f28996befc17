"""What is measured: a case is one operation at one size, done by several providers on the same tensors.

A file that has cases registers a function that lists them::

    @register
    def cases(plan: Plan) -> Iterator[Case]:
        yield Case(kernel="...", mode="full", x_value=n, candidates=lambda: {"fused": step, "eager": their_step}, ...)

and is imported in :func:`all_cases`. ``candidates`` is called when the case's turn comes, so that only its tensors are
alive. The provider that is ours is called ``fused``; those in LIMITS are what no implementation can
beat, not rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from .timing import Candidate

OURS = "fused"
ELEMENTWISE, FOCAL, LAYER = "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "linear_binary_cross_entropy"
PAIRS = "sigmoid_contrastive_loss"
FAMILY = (FOCAL, "quality_focal_loss", "varifocal_loss", "asymmetric_loss_with_logits")
# products: the matrix products of a layer alone; plain: our loss without the option, or the power, that is measured
LIMITS = ("triad", "read", "products", "plain")
# What a provider is called wherever it is shown, in this order.
NAMES = {
    OURS: "fused_logistic",
    "plain": "fused_logistic without it",
    "eager": "eager torch",
    "unfused": "sigmoid + BCELoss",
    "compile": "torch.compile",
    "scikit-learn": "scikit-learn",
    "jax": "JAX / optax",
    "triad": "torch.add(a, b, out=c)",
    "read": "a.sum()",
    "products": "the matrix products alone",
}


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    full: bool
    device: str

    @property
    def is_large(self) -> bool:
        """Whether a layer or pairs are of full size: a GPU is busy with nothing less."""
        return self.full or self.device == "cuda"

    def targets(self, **least: float) -> dict[str, float]:
        """What a case's ``targets`` are: those of a layer or of pairs are for the CPU's full sizes."""
        return least if self.full and self.device == "cpu" else {}

    @property
    def measured(self) -> tuple[str, ...]:
        """The providers whose memory is measured, of a layer or of pairs; not in a GPU's short run."""
        return (OURS, "eager") if self.full or self.device == "cpu" else ()

    def rounds(self, expensive: bool) -> int:
        """How often each candidate is timed; ``expensive``: a round takes about a second or more."""
        return (11 if expensive else 101) if self.full else (3 if expensive else 9)


@dataclass(frozen=True)
class Case:
    kernel: str
    mode: str  # full: forward and backward; forward: with the graph recorded; backward; no-grad-forward
    x_value: int
    candidates: Callable[[], Mapping[str, Candidate | Callable[[], object]]]
    rounds: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    x_name: str = "numel"
    x_label: str = "number of elements"
    # What has to cross the memory bus at least, for GB/s: None where memory is not the limit.
    bytes: int | None = None
    # provider -> (its time / ours) has to be at least this; the report says where it is not.
    targets: Mapping[str, float] = field(default_factory=dict)
    # the providers whose peak memory is measured too
    memory: tuple[str, ...] = ()
    # the most extra memory that ours may take, in bytes
    memory_target: int | None = None

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """The mode and, behind a comma in the kernel's name, the option."""
        return ", ".join([self.mode, *self.kernel.split(", ")[1:]])

    @property
    def key(self) -> str:
        """Names the case, for the process that measures its memory."""
        return f"{self.kernel}/{self.mode}/{self.dtype_name}/{self.device}/{self.x_name}={self.x_value}"


_sources: list[Callable[[Plan], Iterable[Case]]] = []


def register(source: Callable[[Plan], Iterable[Case]]) -> Callable[[Plan], Iterable[Case]]:
    _sources.append(source)
    return source


def all_cases(plan: Plan) -> list[Case]:
    from . import focal, linear, options, pairs, providers  # noqa: F401 - imported to register their cases

    return [case for source in _sources for case in source(plan)]

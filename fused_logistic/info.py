"""``python -m fused_logistic.info``: what was built, what runs here, and whether it computes what it should.

The exit status is 0 if the self-check passes, else 1. A bug report should begin with this output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import torch

from . import _C, ops
from .version import __version__

_VARIABLES = ("FUSED_LOGISTIC_ISA", "FUSED_LOGISTIC_CACHE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_HOME")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Logits and targets, then the loss and the gradient to 17 digits: three in the tails, where 1 - sigmoid(z) would be 0.
_KNOWN = (
    (0.0, 1.0, 0.69314718055994531, -0.5),
    (-2.0, 0.0, 0.12692801104297250, 0.11920292202211756),
    (1.5, 0.25, 1.3264132779827524, 0.56757447619364366),
    (-20.0, 0.0, 2.0611536203143807e-9, 2.0611536181902036e-9),
    (30.0, 1.0, 9.3576229688397368e-14, -9.3576229688392990e-14),
    (float("inf"), 1.0, 0.0, 0.0),
)
_TOLERANCE = 2e-7  # relative, in fp32: 3 ulp are 1.8e-7
_COMPOSED = "composed of torch's operations, right and slower"


def _lines() -> Iterator[tuple[str, str]]:
    yield "fused_logistic", f"{__version__}, {_C.__file__}"
    yield "torch", torch.__version__
    yield "compiler", _C.COMPILER
    built, supported = _C.isas_built(), _C.isas_supported()
    names = [name if name in supported else f"{name} (not on this CPU)" for name in built]
    yield "CPU kernels", f"{', '.join(names)}; in use: {_C.isa()}, {torch.get_num_threads()} threads"
    cuda = "not built" if _C.CUDA_ARCHS is None else f"built with CUDA {_C.CUDA_VERSION} for {_C.CUDA_ARCHS}"
    yield "CUDA kernels", f"{cuda}; {torch.cuda.device_count()} devices, torch's CUDA: {torch.version.cuda or 'none'}"
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
    for key in ("CPU", "CUDA"):
        registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
        own = sorted(op.split("::")[1] for op in registered if op.startswith("fused_logistic::"))
        without = "; this torch has no CUDA" if key == "CUDA" and torch.version.cuda is None else ""
        yield f"ops on {key}", f"kernels of {', '.join(own)} for {dtypes}" if own else _COMPOSED + without
    yield "other devices", _COMPOSED
    for name in _VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]


def _check(name: str, device: str) -> list[str]:
    """What is wrong with the loss and the gradient of known logits on a device; nothing if all is well."""
    logits, target, *expected = torch.tensor(_KNOWN, dtype=torch.float64).unbind(1)
    absent = (None,) * 4
    for dtype in (torch.float64, torch.float32):
        z, y = logits.to(device, dtype), target.to(device, dtype)
        one = torch.ones_like(z)
        results = (
            ops.bce(z, y, *absent, ops.NONE, dtype),
            ops.bce_backward(one, z, y, *absent, ops.NONE, ops.LOGITS),
        )
        for what, result, truth in zip(("loss", "gradient"), results, expected, strict=True):
            close = torch.isclose(result.double().cpu(), truth, rtol=_TOLERANCE, atol=0)
            if not close.all():
                return [f"{name}: {dtype} {what}: expected {truth.tolist()}, got {result.tolist()}"]
    return []


def _results() -> list[torch.Tensor]:
    """A loss with its gradient in every dtype, over several chunks and a tail."""
    logits = torch.linspace(-90, 90, 3 * _C.CHUNK + 77, dtype=torch.float64)
    target = torch.arange(logits.numel()) % 2 == 0
    rest = (*(None,) * 4, ops.MEAN, torch.float64)
    return [result for t in _DTYPES[1:] for result in ops.bce_with_grad(logits.to(t), target, *rest)]


def self_check() -> list[str]:
    """Known losses and gradients by every instruction set and on the GPU; bits that agree. Returns what is wrong."""
    wrong, in_use = [], _C.isa()
    reference = None
    try:
        for isa in reversed(_C.isas_supported()):
            _C.set_isa(isa)
            wrong += _check(isa, "cpu")
            results = _results()
            reference = reference or results
            if not all(a.equal(b) for a, b in zip(results, reference, strict=True)):
                wrong.append(f"{isa}: other bits than {_C.isas_supported()[-1]}")
    finally:
        _C.set_isa(in_use)
    if torch.cuda.is_available() and _C.CUDA_ARCHS is not None:
        wrong += _check("cuda", "cuda")
    return wrong


def main() -> int:
    """Prints the report; returns the exit status."""
    for name, value in _lines():
        print(f"{name:<20} {value}")
    wrong = self_check()
    checked = ", ".join(_C.isas_supported())
    print(f"{'self-check':<20} {'FAILED' if wrong else f'passed: {checked}'}", *wrong, sep="\n  " if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

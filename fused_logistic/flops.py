"""What torch's FlopCounterMode counts for the layer's ops: the products of nn.Linear and its loss.

One product for the logits and one for each gradient that is asked for. The logits that a backward pass makes once more
are not counted, nor is what is not a product: the number says how much work the model is, not how it is done.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from math import prod
from typing import Any

from . import ops

_MODULE = "torch.utils.flop_counter"


def _product(input: Sequence[int], linear_weight: Sequence[int]) -> int:
    """Of shapes; the same number for the logits, the gradient of the input and that of the weight."""
    return 2 * prod(input) * prod(linear_weight[:-1])


def _linear_bce(input: Any, linear_weight: Any, *args: Any, **_: Any) -> int:
    return _product(input, linear_weight)


def _gradients(input: Any, linear_weight: Any, output_mask: Sequence[bool]) -> int:
    return _product(input, linear_weight) * (output_mask[0] + output_mask[1])  # a bias has a sum


def _linear_bce_with_grad(*args: Any, **_: Any) -> int:
    of, (_dtype, output_mask, *_options) = ops.Layer.split(args)
    return _linear_bce(*of) + _gradients(of.input, of.linear_weight, output_mask)


def _linear_bce_backward(grad_output: Any, *args: Any, **_: Any) -> int:
    of, (output_mask, *_options) = ops.Layer.split(args)
    return _gradients(of.input, of.linear_weight, output_mask)


def _linear_bce_single(input: Any, linear_weight: Any, *args: Any, **_: Any) -> int:
    grad_output, output_mask = args[5], args[9]
    return (_product(input, linear_weight) if grad_output is None else 0) + _gradients(
        input, linear_weight, output_mask
    )


def _pairs(image_features: Any, *args: Any, **_: Any) -> int:
    return _product(image_features, image_features)


def _pairs_with_grad(*args: Any, **_: Any) -> int:
    return _pairs(*args) * (1 + args[5][0] + args[5][1])


def _pairs_backward(grad_output: Any, *args: Any, **_: Any) -> int:
    return _pairs(*args) * (args[5][0] + args[5][1])


def _register(module: Any) -> None:
    packets = {
        ops.linear_bce: _linear_bce,
        ops.linear_bce_with_grad: _linear_bce_with_grad,
        ops.linear_bce_backward: _linear_bce_backward,
        ops.linear_bce_single: _linear_bce_single,
        ops.pairs: _pairs,
        ops.pairs_with_grad: _pairs_with_grad,
        ops.pairs_backward: _pairs_backward,
    }
    for op, formula in packets.items():
        module.register_flop_formula(op.overloadpacket)(formula)


class _AfterImport:
    """Registers as soon as somebody imports the counter, which itself imports triton, where that is installed."""

    searching = False

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != _MODULE or self.searching:
            return None
        self.searching = True  # the others find it
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register(module)

            loader.exec_module = exec_module
        return spec


if _MODULE in sys.modules:
    _register(sys.modules[_MODULE])
else:
    sys.meta_path.insert(0, _AfterImport())

"""What is wrong with the arguments of the loss of pairs, as :mod:`fused_logistic.checks` says it of the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import checks

PAIRS = "sigmoid_contrastive_loss"


def pairs(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    tile_bytes: int | None,
) -> None:
    """What every op of the pairs asks: see :func:`fused_logistic.sigmoid_contrastive_loss`.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as the public function says.
    """
    checks.tensors(PAIRS, {"logit_scale": logit_scale})  # the schema asks it of a kernel, of which this may be in place
    for name, tensor in (("image_features", image_features), ("text_features", text_features)):
        checks.strided(PAIRS, name, tensor, NotImplementedError)
        checks.floating(PAIRS, name, tensor)
        checks.allocated(PAIRS, name, tensor)
    if image_features.dim() != 2:
        raise ValueError(
            f"{PAIRS}: expected image_features of shape [pairs, features], got {list(image_features.shape)}"
        )
    checks.same_shape(PAIRS, "text_features", text_features, image_features.shape)
    if text_features.dtype != image_features.dtype:
        raise TypeError(
            f"{PAIRS}: expected text_features of the images' dtype {checks.dtype_name(image_features.dtype)}, "
            f"got {checks.dtype_name(text_features.dtype)}"
        )
    checks.same_device(PAIRS, "text_features", text_features, image_features)
    for name, number in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        if number is None:
            continue
        checks.strided(PAIRS, name, number, NotImplementedError)
        checks.floating(PAIRS, name, number)
        if list(number.shape) not in ([], [1]):
            raise ValueError(f"{PAIRS}: expected {name} of shape [] or [1], got {list(number.shape)}")
        checks.same_device(PAIRS, name, number, image_features)
    checks.size(PAIRS, "tile_bytes", tile_bytes)


def pairs_with_grad(*args: Any) -> None:
    pairs(*args[:-1])


def pairs_backward(grad_output: Tensor, *args: Any) -> None:
    pairs(*args[:-1])
    checks.one_number("pairs_backward", "grad_output", grad_output, args[0])

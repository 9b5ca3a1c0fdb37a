"""Threat model: pixels in [0, 1], an L-infinity ball of radius eps around each image, and checks of the input."""

import math
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn

from noiseprop.errors import InputError

_ROUNDING_ULPS = 4  # pixels may leave [0, 1] by this many units in the last place


def check_module(model: object) -> None:
    """Raise an InputError if a model is not a module, whose modes and noise could not be found."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"attacks: the model is a {type(model).__name__}, expected a torch.nn.Module; wrap its networks in a "
            "module whose forward makes this call, so that their modes and noise can be found"
        )


def check_images(x: object, y: object, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Check one batch of images and labels, and detach both from any graph.

    Args:
        x: images (B, ...), floating point, every value in [0, 1] up to rounding; a tensor, or a NumPy array.
        y: labels (B,), integers; a tensor, a NumPy array or a list.
        model: images in NumPy arrays get its dtype and device.

    Returns:
        x, detached, and y as int64 on the device of x. Neither is copied unless necessary; attacks clone before they
        write. Pixels outside [0, 1] by rounding are clamped.

    Raises:
        InputError: if either has another shape, dtype or range.

    Examples:
        >>> x, y = check_images(torch.zeros(2, 1, 28, 28), [3, 1])
        >>> check_images(2 * torch.ones(1, 4), torch.tensor([0]))
        Traceback (most recent call last):
        ...
        noiseprop.errors.InputError: attacks: images lie in [2, 2], expected [0, 1]; divide 8-bit pixels by 255 ...
    """
    if model is not None:
        check_module(model)
    x = x if isinstance(x, Tensor) else _match_model(_to_tensor("images", x), model)
    y = _to_tensor("labels", y)
    if not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        raise InputError(
            f"attacks: images have dtype {x.dtype} and shape {tuple(x.shape)}, expected a non-empty floating point "
            "batch (B, ...); add a batch axis or convert with .float()"
        )
    if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(
            f"attacks: labels have dtype {y.dtype} and shape {tuple(y.shape)}, expected integers of shape "
            f"({len(x)},), one per image; pass class indices, not scores or one-hot rows"
        )
    with torch.inference_mode(False):  # gradients cannot be taken of an inference tensor, but of a copy
        x, y = (v.clone() if v.is_inference() else v.detach() for v in (x, y))
        return _clamp_rounding(x), y.to(x.device, torch.int64)


def check_logits(logits: object, y: Tensor, draws: int | None = None) -> Tensor:
    """Check the logits of a model for labels y (B,), and return them.

    Args:
        logits: expected floating point and finite, of shape (B, classes), or (draws, B, classes) where draws is given.
        y: labels (B,), expected in 0..classes - 1.
        draws: number of noise draws in the logits, None for logits without this axis.

    Raises:
        InputError: the shape is another, a value is NaN or infinite, or a label is not one of the classes.
    """
    rows = (len(y),) if draws is None else (draws, len(y))
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape[:-1] != rows:
        got = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        expected = ", ".join(str(row) for row in rows)
        raise InputError(
            f"attacks: the model returned {got} for {len(y)} images, expected floating point logits ({expected}, "
            "classes); wrap the model so that it returns one row of scores per image"
        )
    if not bool(torch.isfinite(logits.detach()).all()):
        raise InputError(
            "attacks: the model returned NaN or infinite logits, expected finite ones; check its weights and how it "
            "was trained before evaluating it"
        )
    low, high = (int(value) for value in torch.aminmax(y))
    if low < 0 or high >= logits.shape[-1]:
        raise InputError(
            f"attacks: labels lie in {low}..{high}, but the model has {logits.shape[-1]} classes; expected labels in "
            f"0..{logits.shape[-1] - 1}, so check that model and data set belong together"
        )
    return logits


def check_number(name: str, value: object) -> float:
    """Return value as a float if it is finite and not negative, else raise an InputError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InputError(
            f"attacks: {name} is {value!r}, expected a finite number of at least 0, in input units ([0, 1])"
        )
    return float(value)


def check_count(name: str, value: object) -> int:
    """Return value as an int if it is a whole number of at least 1, else raise an InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"attacks: {name} is {value!r}, expected a whole number of at least 1")
    return int(value)


def linf_ball(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return corners (low, high) of the L-infinity ball of radius eps around x, cut to [0, 1]; each has x's shape.

    Projection onto it is `x_adv.clamp(low, high)`. In bfloat16 and float16 the corners are rounded inwards, so that no
    point of the ball is further from x than eps; in float32 and float64 they are exact up to rounding.

    Examples:
        >>> linf_ball(torch.tensor([0.0, 0.5]), 0.25)
        (tensor([0.0000, 0.2500]), tensor([0.2500, 0.7500]))
    """
    if x.dtype.itemsize >= 4:
        return (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
    wide = x.to(torch.float32 if x.device.type == "mps" else torch.float64)
    low, high = (wide - eps).clamp_(min=0).to(x.dtype), (wide + eps).clamp_(max=1).to(x.dtype)
    # Corners are not negative, so the next number up or down has the next bit pattern.
    low = torch.where(wide - low.to(wide.dtype) > eps, (low.view(torch.int16) + 1).view(x.dtype), low)
    high = torch.where(high.to(wide.dtype) - wide > eps, (high.view(torch.int16) - 1).view(x.dtype), high)
    return low, high


def _to_tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.tensor(np.ascontiguousarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"attacks: {name} are a {type(value).__name__}, expected a tensor or an array of numbers ({error})"
        ) from error


def _match_model(x: Tensor, model: nn.Module | None) -> Tensor:
    """Return images from NumPy, which prefers float64, in the dtype and on the device of the model."""
    if not x.is_floating_point():
        return x
    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return x.to(like.device, like.dtype)


def _clamp_rounding(x: Tensor) -> Tensor:
    """Return images in [0, 1], clamped if they leave it by rounding."""
    low, high = (value.item() for value in torch.aminmax(x))
    rounding = _ROUNDING_ULPS * torch.finfo(x.dtype).eps
    if not (low >= -rounding and high <= 1 + rounding):  # also true for NaN
        number = np.float64 if x.dtype == torch.float64 else np.float32  # NumPy prints as many digits as it takes
        ends = ", ".join(str(number(end)).removesuffix(".0") for end in (low, high))
        raise InputError(
            f"attacks: images lie in [{ends}], expected [0, 1]; divide 8-bit pixels by 255 and leave "
            "normalisation to the model, or clamp the images with x.clamp(0, 1) if they leave [0, 1] by rounding"
        )
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)

"""The threat model: pixels in [0, 1], an L-infinity ball of radius eps around each image, and checks of the input."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from noiseprop.errors import InputError


def check_images(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check one batch of images and labels, and detach both from any graph.

    Args:
        x: images (B, ...), floating point, every value in [0, 1].
        y: labels (B,), integers.

    Returns:
        x, detached, and y as int64. Neither is copied where that is not needed; attacks clone before they write.

    Raises:
        InputError: if either has another shape, dtype or range.

    Examples:
        >>> x, y = check_images(torch.zeros(2, 1, 28, 28), torch.tensor([3, 1]))
        >>> check_images(2 * torch.ones(1, 4), torch.tensor([0]))
        Traceback (most recent call last):
        ...
        noiseprop.errors.InputError: attacks: images lie in [2, 2], expected [0, 1]; divide 8-bit pixels by 255 ...
    """
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
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise InputError(
            f"attacks: images lie in [{low:.4g}, {high:.4g}], expected [0, 1]; divide 8-bit pixels by 255 and leave "
            "normalisation to the model"
        )
    with torch.inference_mode(False):  # where a copy of an inference tensor is one that gradients can be taken of
        x, y = (v.clone() if v.is_inference() else v.detach() for v in (x, y))
        return x, y.long()


def check_logits(logits: object, y: Tensor, draws: int | None = None) -> Tensor:
    """Check what a model returned for the labels y (B,), and return it.

    Args:
        logits: expected floating point and finite, of shape (B, classes), or (draws, B, classes) where draws is given.
        y: labels (B,), expected in 0..classes - 1.
        draws: how many noise draws the model was asked for at once, if it was.

    Raises:
        InputError: if the shape is another, a value is NaN or infinite, or a label is not one of the classes.
    """
    rows = (len(y),) if draws is None else (draws, len(y))
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape[:-1] != rows:
        came = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        expected = ", ".join(str(row) for row in rows)
        raise InputError(
            f"attacks: the model returned {came} for {len(y)} images, expected floating point logits ({expected}, "
            "classes); wrap the model so that it returns one row of scores per image"
        )
    if not bool(torch.isfinite(logits.detach()).all()):
        raise InputError(
            "attacks: the model returned NaN or infinite logits, expected finite ones; check its weights and how it "
            "was trained before judging it"
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
    """Corners (low, high) of the L-infinity ball of radius eps around x, cut to [0, 1]; each has the shape of x.

    Projection onto it is `x_adv.clamp(low, high)`.

    Examples:
        >>> linf_ball(torch.tensor([0.0, 0.5]), 0.25)
        (tensor([0.0000, 0.2500]), tensor([0.2500, 0.7500]))
    """
    return (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)

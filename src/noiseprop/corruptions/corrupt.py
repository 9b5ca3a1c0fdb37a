"""Single entry point to all corruptions, with exact pixels in and 8-bit pixels out."""

import operator
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noiseprop.corruptions import contrast, gaussian_noise, glass_blur, impulse_noise
from noiseprop.corruptions.arrays import Floats
from noiseprop.errors import InputError
from noiseprop.files.checksum import derive_seed

KINDS = ("gaussian_noise", "impulse_noise", "glass_blur", "contrast")
PARAMS = ("cifar10", "tiny-imagenet", "mnist")
SEVERITIES = (1, 2, 3, 4, 5)

CHUNK = 128  # images processed at once, so that they fit the CPU cache; the draws follow these chunks


def corrupt(x: Tensor, kind: str, *, severity: SupportsIndex, params: str, generator: torch.Generator) -> Tensor:
    """Corrupt images as the generators of Hendrycks and Dietterich do, bit by bit for the same draws.

    Images with 1 channel are the 2-D grey arrays of the definition, others its (H, W, C) arrays. Pixels that equal
    k/255 up to the rounding of their dtype become exactly k/255 in float64, as in the definition.

    Args:
        x: (B, C, H, W), floating, in [0, 1].
        kind: one of KINDS.
        severity: 1 to 5.
        params: "cifar10" (CIFAR-10-C), "tiny-imagenet" (Tiny-ImageNet-C) or "mnist" (MNIST-C, ImageNet-C's values).
        generator: source of all draws; "contrast" draws nothing.

    Returns:
        A new tensor of x's shape, dtype and device, in [0, 1]; for "cifar10" and "tiny-imagenet" truncated to k/255,
        since these sets are stored as 8-bit images, for "mnist" not.

    Raises:
        InputError: another kind, severity or params; x not a float batch of images in [0, 1].

    Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    ICLR 2019, and the generators released with it.

    Examples:
        >>> x = torch.rand(2, 3, 32, 32)
        >>> seed = torch.Generator().manual_seed(0)
        >>> noisy = corrupt(x, "gaussian_noise", severity=1, params="cifar10", generator=seed)
        >>> bool(((noisy * 255 - (noisy * 255).round()).abs() < 1e-4).all())
        True
    """
    severity = check_severity(severity, "corrupt")
    _check_arguments(x, kind, params)
    pixels = x.detach().cpu()
    pixels = (pixels.float() if x.dtype == torch.bfloat16 else pixels).numpy()  # NumPy has no bfloat16
    tolerance = 2 * torch.finfo(x.dtype).eps
    out = np.empty_like(pixels)
    for start in range(0, len(x), CHUNK):
        chunk = slice(start, start + CHUNK)
        exact = _snap_to_grid(pixels[chunk].transpose(0, 2, 3, 1), tolerance)
        draws = _draw_chunk(_get_array_shape(exact.shape), kind, severity - 1, params, generator)
        corrupted = _corrupt_chunk(exact, draws, kind, severity - 1, params)
        out[chunk] = corrupted.transpose(0, 3, 1, 2)
    return torch.from_numpy(out).to(x)


def skip(
    shape: tuple[int, ...], kind: str, *, severity: SupportsIndex, params: str, generator: torch.Generator
) -> None:
    """Advance a generator past the draws of `corrupt` for skipped images; the next images keep theirs.

    Args:
        shape: shape (B, C, H, W) of the skipped images; B is a multiple of 128, or the rest.
        kind: one of KINDS.
        severity: 1 to 5.
        params: one of PARAMS.
        generator: generator to advance.
    """
    severity = check_severity(severity, "skip")
    count, channels, height, width = shape
    for start in range(0, count, CHUNK):
        chunk = (min(CHUNK, count - start), height, width, channels)
        _draw_chunk(_get_array_shape(chunk), kind, severity - 1, params, generator)


def corruption_seed(dataset: str, kind: str, severity: SupportsIndex) -> int:
    """Return the seed of a corrupted data set, 62 bits of the SHA-256 of "dataset/kind/severity".

    Args:
        dataset: name of the data set, such as "mnist".
        kind: one of KINDS.
        severity: 1 to 5.

    Returns:
        A seed for `torch.Generator().manual_seed`, the same on every machine.

    Examples:
        >>> corruption_seed("mnist", "glass_blur", 3) == corruption_seed("mnist", "glass_blur", 3)
        True
    """
    return derive_seed(dataset, kind, operator.index(severity))


def _corrupt_chunk(x: Floats, draws: Any, kind: str, level: int, params: str) -> Floats:
    """Corrupt images (B, H, W, C); a single channel is removed and restored."""
    grey = x.shape[3] == 1
    out = _apply_draws(x[..., 0] if grey else x, draws, kind, level, params)
    if params != "mnist":
        out = (out * 255).astype(np.uint8) / 255.0
    return out[..., None] if grey else out


def _get_array_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the definition's arrays: (B, H, W) for one channel, otherwise (B, H, W, C)."""
    return shape[:3] if shape[3] == 1 else shape


def _draw_chunk(shape: tuple[int, ...], kind: str, level: int, params: str, generator: torch.Generator) -> Any:
    match kind:
        case "gaussian_noise":
            return gaussian_noise.draw_gaussian(shape, generator)
        case "impulse_noise":
            return impulse_noise.draw_impulses(shape, generator)
        case "glass_blur":
            return glass_blur.draw_offsets(shape, glass_blur.GLASS_BLUR[params][level], generator)
        case _:
            return None


def _apply_draws(x: Floats, draws: Any, kind: str, level: int, params: str) -> Floats:
    match kind:
        case "gaussian_noise":
            return gaussian_noise.apply_gaussian_noise(x, draws, gaussian_noise.GAUSSIAN_SIGMA[params][level])
        case "impulse_noise":
            return impulse_noise.apply_impulse_noise(x, draws, impulse_noise.IMPULSE_AMOUNT[params][level])
        case "glass_blur":
            return glass_blur.apply_glass_blur(x, draws, glass_blur.GLASS_BLUR[params][level])
        case _:
            return contrast.apply_contrast(x, contrast.FACTOR[params][level])


def _snap_to_grid(x: npt.NDArray[np.floating], tolerance: float) -> Floats:
    """Convert pixels to C-contiguous float64; those within `tolerance` of k/255 become the float64 k/255."""
    wide = np.ascontiguousarray(x, dtype=np.float64).clip(0, 1)  # rounding may have left the range
    grid = np.rint(wide * 255) / 255
    return np.where(np.abs(wide - grid) <= tolerance, grid, wide)


def check_severity(severity: SupportsIndex, caller: str) -> int:
    """Return a severity as an int; NumPy's integers are accepted.

    Raises:
        InputError: it is not a whole number from 1 to 5; the message starts with `caller`.
    """
    try:
        level = 0 if isinstance(severity, bool) else operator.index(severity)
    except TypeError:
        level = 0
    if level not in SEVERITIES:
        raise InputError(f"{caller}: severity is {severity!r}, expected a whole number from 1 to 5.")
    return level


def _check_arguments(x: Tensor, kind: str, params: str) -> None:
    if kind not in KINDS:
        raise InputError(f"corrupt: unknown kind {kind!r}; choose one of {', '.join(KINDS)}.")
    if params not in PARAMS:
        raise InputError(f"corrupt: unknown params {params!r}; choose one of {', '.join(PARAMS)}.")
    if x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
        raise InputError(
            f"corrupt: images have shape {tuple(x.shape)} and dtype {x.dtype}, expected a floating (B, C, H, W); "
            "divide 8-bit images by 255."
        )
    low, high = (float(end) for end in torch.aminmax(x.detach()))
    rounding = 4 * torch.finfo(x.dtype).eps
    if not (low >= -rounding and high <= 1 + rounding):  # NaN fails both
        number = np.float64 if x.dtype == torch.float64 else np.float32  # NumPy prints as many digits as it takes
        raise InputError(
            f"corrupt: pixels run from {number(low)!s} to {number(high)!s}, expected [0, 1]; corrupt before "
            "normalising, or clamp the images with x.clamp(0, 1) if they leave [0, 1] by rounding."
        )

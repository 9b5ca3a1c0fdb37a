"""Tensors as small PNG pictures inside the page."""

import base64
import io
import math

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn import functional

MOST_SIDE = 64  # pixels; larger images are shrunk, as a page has hundreds
_COLOURS = 64  # steps of the colour scale
_Bytes = npt.NDArray[np.uint8]


def encode_photo(image: Tensor) -> str:
    """Return a data: URI of an image (C, H, W) in [0, 1]: in colour for 3 channels, otherwise their mean in grey."""
    pixels = (shrink_image(image.detach().cpu().float()).clamp(0, 1) * 255).round().byte()
    if len(pixels) == 3:
        return _encode_uri(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    return _encode_uri(Image.fromarray(pixels.float().mean(0).round().byte().numpy()))


def encode_heatmap(values: Tensor, *, low: float, high: float, background: bool = False) -> str:
    """Return a data: URI of a map (H, W) in the colours of `encode_scale`; NaN is transparent.

    Args:
        values: the map.
        low: value of the first colour; smaller values get it too.
        high: value of the last colour; larger values get it too.
        background: start with black instead of dark blue, for a light picture on a dark ground.
    """
    numbers = values.detach().cpu().double().numpy()
    with np.errstate(invalid="ignore"):  # infinite sigmas
        steps = (numbers - low) / (high - low) if high > low else np.full_like(numbers, 0.5)
    indices: _Bytes = (1 + np.nan_to_num(steps).clip(0, 1) * (_COLOURS - 1)).round().astype(np.uint8)
    indices[np.isnan(numbers)] = 0
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([0, 0, 0, *_make_palette("gray" if background else "cividis").flatten().tolist()])
    return _encode_uri(picture, transparency=0)


def encode_saliency(values: Tensor) -> str:
    """Return a data: URI of a saliency map (H, W), black at 0, white at its 99th percentile."""
    small = shrink_image(values)
    return encode_heatmap(small, low=0.0, high=float(small.flatten().quantile(0.99)), background=True)


def shrink_image(maps: Tensor) -> Tensor:
    """Return maps (..., H, W) reduced by averaging to sides of at most `MOST_SIDE`; smaller ones stay unchanged."""
    height, width = maps.shape[-2:]
    most = max(height, width)
    if most <= MOST_SIDE:
        return maps
    size = (max(1, height * MOST_SIDE // most), max(1, width * MOST_SIDE // most))
    return functional.adaptive_avg_pool2d(maps.reshape(-1, 1, height, width), size).reshape(*maps.shape[:-2], *size)


def encode_scale() -> str:
    """Return the colours of `encode_heatmap` as a CSS gradient, from low to high."""
    stops = [f"rgb({r},{g},{b})" for r, g, b in _make_palette("cividis")[:: _COLOURS // 8].tolist()]
    return f"linear-gradient(90deg,{','.join(stops)})"


def tile_channels(maps: Tensor, columns: int) -> Tensor:
    """Return maps (n, H, W) side by side as one sheet with a pixel of NaN between them."""
    n, height, width = maps.shape
    rows = math.ceil(n / columns)
    sheet = maps.new_full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan)
    for i in range(n):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = maps[i]
    return sheet


def fold_square(values: Tensor) -> Tensor:
    """Return a vector (n,) as a nearly square map, row by row, filled with NaN."""
    columns = math.ceil(math.sqrt(2 * len(values)))
    rows = math.ceil(len(values) / columns)
    sheet = values.new_full((rows * columns,), math.nan)
    sheet[: len(values)] = values
    return sheet.view(rows, columns)


def _make_palette(name: str) -> _Bytes:
    return (colormaps[name](np.linspace(0, 1, _COLOURS))[:, :3] * 255).round().astype(np.uint8)


def _encode_uri(picture: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")

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


def photo(image: Tensor) -> str:
    """A data: URI of an image (C, H, W) in [0, 1], as colours of 3 channels, else their mean in grey."""
    pixels = (shrunk(image.detach().cpu().float()).clamp(0, 1) * 255).round().byte()
    if len(pixels) == 3:
        return _uri(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    return _uri(Image.fromarray(pixels.float().mean(0).round().byte().numpy()))


def heat(values: Tensor, *, low: float, high: float, background: bool = False) -> str:
    """A data: URI of a map (H, W) in the colours of `scale`; NaN is transparent.

    Args:
        values: the map.
        low: what gets the first colour, with all below.
        high: what gets the last colour, with all above.
        background: begin with black rather than dark blue, as a picture of light on a dark ground.
    """
    numbers = values.detach().cpu().double().numpy()
    with np.errstate(invalid="ignore"):  # infinite sigmas
        steps = (numbers - low) / (high - low) if high > low else np.full_like(numbers, 0.5)
    indices: _Bytes = (1 + np.nan_to_num(steps).clip(0, 1) * (_COLOURS - 1)).round().astype(np.uint8)
    indices[np.isnan(numbers)] = 0
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([0, 0, 0, *_palette("gray" if background else "cividis").flatten().tolist()])
    return _uri(picture, transparency=0)


def saliency(values: Tensor) -> str:
    """A data: URI of a saliency map (H, W), black at 0, white at its 99th percentile."""
    small = shrunk(values)
    return heat(small, low=0.0, high=float(small.flatten().quantile(0.99)), background=True)


def shrunk(maps: Tensor) -> Tensor:
    """Maps (..., H, W) as means over their parts, no side longer than `MOST_SIDE`; smaller ones as they are."""
    height, width = maps.shape[-2:]
    most = max(height, width)
    if most <= MOST_SIDE:
        return maps
    size = (max(1, height * MOST_SIDE // most), max(1, width * MOST_SIDE // most))
    return functional.adaptive_avg_pool2d(maps.reshape(-1, 1, height, width), size).reshape(*maps.shape[:-2], *size)


def scale() -> str:
    """The colours of `heat` as a CSS gradient, from low to high."""
    stops = [f"rgb({r},{g},{b})" for r, g, b in _palette("cividis")[:: _COLOURS // 8].tolist()]
    return f"linear-gradient(90deg,{','.join(stops)})"


def tiled(maps: Tensor, columns: int) -> Tensor:
    """Maps (n, H, W) side by side as one (rows, columns) sheet with a pixel of NaN between them."""
    n, height, width = maps.shape
    rows = math.ceil(n / columns)
    sheet = maps.new_full((rows * (height + 1) - 1, columns * (width + 1) - 1), math.nan)
    for i in range(n):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = maps[i]
    return sheet


def square(values: Tensor) -> Tensor:
    """A vector (n,) as a nearly square map, row by row, with NaN where it has ended."""
    columns = math.ceil(math.sqrt(2 * len(values)))
    rows = math.ceil(len(values) / columns)
    sheet = values.new_full((rows * columns,), math.nan)
    sheet[: len(values)] = values
    return sheet.view(rows, columns)


def _palette(name: str) -> _Bytes:
    return (colormaps[name](np.linspace(0, 1, _COLOURS))[:, :3] * 255).round().astype(np.uint8)


def _uri(picture: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")

"""Glass blur: a Gaussian filter, exchanges of neighbouring pixels in a fixed order, and the filter again.

The definition exchanges pixel (h, w) with (h + dy, w + dx) for h, then w, going down from N - delta to delta + 1. On a
2-D grey array this is a true exchange. On an RGB array `x[h, w], x[h', w'] = x[h', w'], x[h, w]` assigns views of one
array to each other and so *copies* (h', w') to (h, w) and leaves (h', w') unchanged. This module does both for the
whole batch at once, bit by bit equal.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from noiseprop.corruptions.arrays import Floats

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class GlassBlur(NamedTuple):
    """Sigma of the filter in pixels, largest distance of an exchange in pixels, and number of passes over the image."""

    sigma: float
    delta: int
    iterations: int


_SEVERITIES = {  # sigma, delta, iterations of severities 1 to 5
    "cifar10": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "tiny-imagenet": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "mnist": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
}
GLASS_BLUR = {params: tuple(GlassBlur(*values) for values in rows) for params, rows in _SEVERITIES.items()}


def draw_offsets(shape: tuple[int, ...], blur: GlassBlur, generator: torch.Generator) -> npt.NDArray[np.int8]:
    """Return offsets dx and dy in [-delta, delta), (iterations, B, rows, columns, 2), of images (B, H, W[, C]).

    Row and column 0 belong to h = delta + 1 and w = delta + 1, the pixel that is exchanged last.
    """
    batch, height, width = shape[:3]
    rows, columns = (max(0, n - 2 * blur.delta) for n in (height, width))
    size = (blur.iterations, batch, rows, columns, 2)
    drawn = torch.randint(-blur.delta, blur.delta, size, dtype=torch.int8, generator=generator, device=generator.device)
    return drawn.cpu().numpy()


def apply_glass_blur(x: Floats, draws: npt.NDArray[np.int8], blur: GlassBlur) -> Floats:
    """Filter, truncate to 8 bits, exchange pixels, filter again, and clip to [0, 1].

    Args:
        x: (B, H, W, C), for which an exchange is a copy, or grey (B, H, W), for which it is an exchange.
        draws: offsets from `draw_offsets`.
        blur: sigma, delta and iterations.

    Source: Hendrycks and Dietterich 2019, `glass_blur`. Google's MNIST-C departs from it: it makes each exchange only
    with probability 1/2, and its call of scikit-image filters along the rows only. This function does neither.
    """
    batch, height, width = x.shape[:3]
    pixels = (_filter_gaussian(x, blur.sigma) * 255).astype(np.uint8)
    for offsets in draws:
        if x.ndim == 3:
            pixels = _exchange_pixels(pixels, offsets, blur.delta)
        else:
            sources = _trace_sources(offsets, height, width, blur.delta)
            pixels = pixels.reshape(batch * height * width, -1).take(sources, axis=0).reshape(x.shape)
    return np.clip(_filter_gaussian(pixels / 255.0, blur.sigma), 0, 1)


def _filter_gaussian(x: Floats, sigma: float) -> Floats:
    """Filter as scikit-image's `gaussian`: along rows, then columns, nearest border, radius int(4 sigma + 0.5)."""
    if int(4 * sigma + 0.5) == 0:
        return x  # one tap of weight 1
    return gaussian_filter(x, sigma, mode="nearest", truncate=4.0, axes=(1, 2))


def _trace_sources(offsets: npt.NDArray[np.int8], height: int, width: int, delta: int) -> Indices:
    """Return the index, (B*H*W,), of the pixel whose old value each pixel has after copies in the definition's order.

    Each pixel p of the inner region is written once, from its neighbour q. If q comes before p in the order (has the
    higher index) and is itself written, p gets the new value of q, otherwise the old one. So each p points at q, and
    pointers at rewritten pixels are followed to their end, all at once and with doubling reach. With delta = 1, q never
    comes before p, and no pointer needs to be followed.
    """
    batch = offsets.shape[0]
    inner = np.zeros((height, width), dtype=np.bool_)
    inner[delta + 1 : height - delta + 1, delta + 1 : width - delta + 1] = True
    place = np.arange(batch * height * width).reshape(batch, height, width)
    step = offsets[..., 1].astype(np.int64) * width + offsets[..., 0]  # (B, rows, columns)
    source = place.copy()
    source[:, inner] += step.reshape(batch, -1)
    source = source.reshape(-1)
    if delta == 1:
        return source
    is_rewritten = (source > place.reshape(-1)) & np.tile(inner.reshape(-1), batch).take(source)
    pending = np.flatnonzero(is_rewritten)
    while pending.size:
        target = source[pending]
        source[pending], is_rewritten[pending] = source[target], is_rewritten[target]
        pending = pending[is_rewritten[pending]]
    return source


def _exchange_pixels(pixels: Bytes, offsets: npt.NDArray[np.int8], delta: int) -> Bytes:
    """Return grey images (B, H, W) after true exchanges in the definition's order."""
    batch, _, width = pixels.shape
    flat = pixels.reshape(batch, -1).T.reshape(-1)  # (H*W*B,), a copy with one pixel of all images side by side
    images = np.arange(batch)
    step = offsets[..., 1].astype(np.int64) * width + offsets[..., 0]  # (B, rows, columns)
    for rows, columns in _iterate_waves(offsets.shape[1], offsets.shape[2], delta):
        places = (rows + delta + 1) * width + columns + delta + 1
        partners = (places + step[:, rows, columns]).T * batch + images  # (pixels, B)
        places = places[:, None] * batch + images
        flat[places], flat[partners] = flat[partners], flat[places]
    return flat.reshape(-1, batch).T.reshape(pixels.shape)


def _iterate_waves(rows: int, columns: int, delta: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield groups of pixels that can be exchanged at once, in an order with the same result as the definition's.

    Exchanges overlap only if both rows and columns differ by less than 2 delta. Along 2 delta h + w = constant none
    overlap, and of two that overlap, the earlier one has the greater 2 delta h + w.
    """
    row, column = (axis.ravel() for axis in np.indices((rows, columns)))
    wave = 2 * delta * row + column
    order = np.argsort(-wave, kind="stable")
    starts = np.flatnonzero(np.diff(wave[order])) + 1
    for group in np.split(order, starts) if order.size else []:
        yield row[group], column[group]

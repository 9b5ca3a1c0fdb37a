"""Glass blur: a Gaussian filter, pixels exchanged with near ones in a fixed order, and the filter again.

The definition exchanges pixel (h, w) with (h + dy, w + dx) for h, then w, going down from N - delta to delta + 1. On a
2-D grey array that is a true exchange. On an RGB array `x[h, w], x[h', w'] = x[h', w'], x[h, w]` assigns views of one
array to each other and so *copies* (h', w') to (h, w), leaving (h', w') as it was. Both are done here for the whole
batch at once, and to the bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class Glass(NamedTuple):
    """Sigma of the filter in pixels, the farthest exchange in pixels, and how often the image is gone through."""

    sigma: float
    delta: int
    iterations: int


# severities 1 to 5
GLASS = {
    "cifar10": (Glass(0.05, 1, 1), Glass(0.25, 1, 1), Glass(0.4, 1, 1), Glass(0.25, 1, 2), Glass(0.4, 1, 2)),
    "tiny-imagenet": (Glass(0.1, 1, 1), Glass(0.5, 1, 1), Glass(0.6, 1, 2), Glass(0.7, 2, 1), Glass(0.9, 2, 2)),
    "mnist": (Glass(0.7, 1, 2), Glass(0.9, 2, 1), Glass(1.0, 2, 3), Glass(1.1, 3, 2), Glass(1.5, 4, 2)),
}


def draw(shape: tuple[int, ...], glass: Glass, generator: torch.Generator) -> npt.NDArray[np.int8]:
    """Offsets (iterations, B, rows, columns, 2) for images (B, H, W) or (B, H, W, C): dx and dy from -delta to delta-1.

    Row and column 0 belong to h = delta + 1 and w = delta + 1, the pixel that is exchanged last.
    """
    batch, height, width = shape[:3]
    rows, columns = (max(0, n - 2 * glass.delta) for n in (height, width))
    size = (glass.iterations, batch, rows, columns, 2)
    drawn = torch.randint(
        -glass.delta, glass.delta, size, dtype=torch.int8, generator=generator, device=generator.device
    )
    return drawn.cpu().numpy()


def apply(x: Floats, draws: npt.NDArray[np.int8], glass: Glass) -> Floats:
    """Filter, truncate to 8 bits, exchange, filter again, clip to [0, 1].

    Args:
        x: (B, H, W, C), where the exchange is a copy, or grey (B, H, W), where it is one.
        draws: as from `draw`.
        glass: sigma, delta and iterations.

    Source: Hendrycks and Dietterich 2019, `glass_blur`. Google's MNIST-C departs from it (it makes each exchange only
    with probability 1/2, and its call of scikit-image filters the rows' direction alone); that is not copied.
    """
    batch, height, width = x.shape[:3]
    pixels = (_filter(x, glass.sigma) * 255).astype(np.uint8)
    for offsets in draws:
        if x.ndim == 3:
            pixels = _exchange(pixels, offsets, glass.delta)
        else:
            sources = _sources(offsets, height, width, glass.delta)
            pixels = pixels.reshape(batch * height * width, -1).take(sources, axis=0).reshape(x.shape)
    return np.clip(_filter(pixels / 255.0, glass.sigma), 0, 1)


def _filter(x: Floats, sigma: float) -> Floats:
    """scikit-image's `gaussian`: rows' direction, then columns', nearest border, radius int(4 sigma + 0.5)."""
    if int(4 * sigma + 0.5) == 0:
        return x  # one tap of weight 1
    return gaussian_filter(x, sigma, mode="nearest", truncate=4.0, axes=(1, 2))


def _sources(offsets: npt.NDArray[np.int8], height: int, width: int, delta: int) -> Indices:
    """Which pixel's old value ends at each pixel after copying in the definition's order; indices (B*H*W,) of both.

    Each pixel p of the inner region is written once, from its neighbour q. If q comes before p in the order (it has
    the higher index) and is written itself, p gets q's new value, else q's old one. So each p points at q, and pointers
    at rewritten pixels are followed to their end, all at once and with doubling reach. With delta = 1, q never comes
    before p and nothing is to be followed.
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
    follow = (source > place.reshape(-1)) & np.tile(inner.reshape(-1), batch).take(source)
    todo = np.flatnonzero(follow)
    while todo.size:
        target = source[todo]
        source[todo], follow[todo] = source[target], follow[target]
        todo = todo[follow[todo]]
    return source


def _exchange(pixels: Bytes, offsets: npt.NDArray[np.int8], delta: int) -> Bytes:
    """The grey images (B, H, W) after true exchanges in the definition's order."""
    batch, _, width = pixels.shape
    flat = pixels.reshape(batch, -1).T.reshape(-1)  # (H*W*B,), a copy in which one pixel of all images lies together
    images = np.arange(batch)
    step = offsets[..., 1].astype(np.int64) * width + offsets[..., 0]  # (B, rows, columns)
    for rows, columns in _waves(offsets.shape[1], offsets.shape[2], delta):
        here = (rows + delta + 1) * width + columns + delta + 1
        there = (here + step[:, rows, columns]).T * batch + images  # (pixels, B)
        here = here[:, None] * batch + images
        flat[here], flat[there] = flat[there], flat[here]
    return flat.reshape(-1, batch).T.reshape(pixels.shape)


def _waves(rows: int, columns: int, delta: int) -> Iterator[tuple[Indices, Indices]]:
    """Pixels that can be exchanged at once, in an order that the definition's result does not notice.

    Exchanges touch each other only if both rows and columns differ by less than 2 delta. Along 2 delta h + w = constant
    none do, and of two that touch the one that comes first has the greater 2 delta h + w.
    """
    row, column = (axis.ravel() for axis in np.indices((rows, columns)))
    wave = 2 * delta * row + column
    order = np.argsort(-wave, kind="stable")
    starts = np.flatnonzero(np.diff(wave[order])) + 1
    for group in np.split(order, starts) if order.size else []:
        yield row[group], column[group]

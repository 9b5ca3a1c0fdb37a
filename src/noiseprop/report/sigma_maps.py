"""Pictures of sigma per neuron: maps over the feature map, or the neurons row by row."""

from collections.abc import Sequence
from dataclasses import dataclass

from noiseprop.report.network_views import Sigma
from noiseprop.report.png import encode_heatmap, fold_square, shrink_image, tile_channels

_PIXELS = 16 * 1024  # most neurons of a layer that are shown individually
_CHANNELS, _COLUMNS = 16, 4  # most channels of a feature map that are shown, and channels per row
_MOST_LAYERS = 40


@dataclass(frozen=True)
class SigmaMap:
    """Pictures of one layer, with its shape as text, and the range and median of its sigmas.

    Attributes:
        layer: name of the layer.
        shape: shape of sigma as text.
        mean: mean over the channels of a feature map, otherwise None.
        each: the individual neurons, or the channels side by side.
        shown: description of `each`.
        rows: number of rows of the picture `each`.
        low: the smallest sigma, which has the first colour in `each`.
        middle: the median.
        high: the largest.
    """

    layer: str
    shape: str
    mean: str | None
    each: str
    shown: str
    rows: int
    low: float
    middle: float
    high: float


def draw_sigma_maps(sigmas: Sequence[Sigma]) -> list[SigmaMap]:
    """Return the pictures of the first layers."""
    return [_draw_map(sigma) for sigma in sigmas[:_MOST_LAYERS]]


def _draw_map(sigma: Sigma) -> SigmaMap:
    values = sigma.values.float()
    low, high = float(values.min()), float(values.max())
    if values.dim() == 3 and values[0].numel() > 1:
        average = shrink_image(values.mean(0))
        mean = encode_heatmap(average, low=float(average.min()), high=float(average.max()))
        channels = values[: max(1, min(_CHANNELS, _PIXELS // values[0].numel()))]
        sheet = tile_channels(shrink_image(channels), _COLUMNS)
        shown = _count_shown(len(channels), len(values), "channel")
    else:
        mean, sheet = None, fold_square(values.flatten()[:_PIXELS])
        shown = f"{_count_shown(min(values.numel(), _PIXELS), values.numel(), 'neuron')}, row by row"
    shape = " × ".join(map(str, values.shape)) or "1"
    each = encode_heatmap(sheet, low=low, high=high)
    return SigmaMap(sigma.layer, shape, mean, each, shown, len(sheet), low, float(values.median()), high)


def _count_shown(shown: int, all_of_them: int, what: str) -> str:
    plural = what if all_of_them == 1 else f"{what}s"
    return f"{shown} {plural}" if shown == all_of_them else f"first {shown} of {all_of_them} {plural}"

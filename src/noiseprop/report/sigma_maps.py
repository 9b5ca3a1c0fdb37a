"""Sigma of each neuron as pictures: maps over the feature map, or the neurons row by row."""

from collections.abc import Sequence
from dataclasses import dataclass

from noiseprop.report.network_views import Sigma
from noiseprop.report.png import heat, shrunk, square, tiled

_PIXELS = 16 * 1024  # neurons shown one by one of a layer, at most
_CHANNELS, _COLUMNS = 16, 4  # channels of a feature map that are shown, and how many side by side
_MOST_LAYERS = 40


@dataclass(frozen=True)
class SigmaMap:
    """One layer: its shape as text, pictures, and the ends and the middle of its sigmas.

    Attributes:
        layer: its name.
        shape: of sigma, as text.
        mean: the mean over channels of a feature map, else None.
        each: the neurons one by one, or the channels side by side.
        shown: what `each` shows, in words.
        rows: of the picture `each`.
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


def sigma_maps(sigmas: Sequence[Sigma]) -> list[SigmaMap]:
    """The pictures of the first layers."""
    return [_map(sigma) for sigma in sigmas[:_MOST_LAYERS]]


def _map(sigma: Sigma) -> SigmaMap:
    values = sigma.values.float()
    low, high = float(values.min()), float(values.max())
    if values.dim() == 3 and values[0].numel() > 1:
        average = shrunk(values.mean(0))
        mean = heat(average, low=float(average.min()), high=float(average.max()))
        channels = values[: max(1, min(_CHANNELS, _PIXELS // values[0].numel()))]
        sheet = tiled(shrunk(channels), _COLUMNS)
        shown = _count(len(channels), len(values), "channel")
    else:
        mean, sheet = None, square(values.flatten()[:_PIXELS])
        shown = f"{_count(min(values.numel(), _PIXELS), values.numel(), 'neuron')}, row by row"
    shape = " × ".join(map(str, values.shape)) or "1"
    each = heat(sheet, low=low, high=high)
    return SigmaMap(sigma.layer, shape, mean, each, shown, len(sheet), low, float(values.median()), high)


def _count(shown: int, all_of_them: int, what: str) -> str:
    plural = what if all_of_them == 1 else f"{what}s"
    return f"{shown} {plural}" if shown == all_of_them else f"first {shown} of {all_of_them} {plural}"

"""Line charts as SVG geometry, with a table of the same figures for the script of the page and for readers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

# The picture, small so that its text is readable on a phone, and in it the ends of the axes
FRAME = {"width": 360, "height": 240, "left": 40, "right": 350, "top": 10, "base": 198}
_MOST_POINTS = 200  # drawn of a line, evenly spaced
_MARKED = 16  # lines of so many points have markers
_COLOURS, _DASHES = 7, ("", "7 3", "2 3", "8 3 2 3")
_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.4-3.4h6.8v6.8h-6.8z",
    "M0-4.6L4.4 3.4H-4.4z",
    "M0-4.8L4.4 0L0 4.8L-4.4 0z",
    "M0 4.6L4.4-3.4H-4.4z",
    "M-1.5-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z",
    "M-4.2-2.6L-2.6-4.2L0-1.6L2.6-4.2L4.2-2.6L1.6 0L4.2 2.6L2.6 4.2L0 1.6L-2.6 4.2L-4.2 2.6L-1.6 0z",
)

Number = float | None
Format = Callable[[float], str]


@dataclass(frozen=True)
class Style:
    """Style of the line of one name: colour class, dash pattern and marker."""

    colour: int
    dash: str
    marker: str


@dataclass(frozen=True)
class Series:
    """Line of a chart: name, values at the x of the chart (None if missing), and the ends of its band."""

    name: str
    values: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None


@dataclass(frozen=True)
class Line:
    """Drawn series: SVG path data of its line and band, and its points (row of the table, x, y)."""

    name: str
    style: Style
    path: str
    band: str
    points: tuple[tuple[int, float, float], ...]
    marked: bool


@dataclass(frozen=True)
class Chart:
    """Drawn chart: ticks as (position, text), lines, and rows (text of x, its position, a text for each line)."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    rows: tuple[tuple[str, float, tuple[str, ...]], ...]


def assign_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each name, in order: seven colours, then the same with other dashes."""
    return {
        name: Style(i % _COLOURS + 1, _DASHES[i // _COLOURS % len(_DASHES)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def draw_chart(
    title: str,
    x: Sequence[float],
    series: Sequence[Series],
    look: Mapping[str, Style],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    x_format: Format = "{:g}".format,
    y_format: Format = "{:.3f}".format,
    fraction: bool = False,
) -> Chart:
    """Lay out a chart.

    Args:
        title: title of the chart.
        x: rising values, common to all series.
        series: at least one; all as long as x.
        look: style of each series by its name.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        x_ticks: positions of the ticks; round numbers by default.
        x_format: formats a value of x in the table.
        y_format: formats a value of y in the table.
        fraction: whether y always ranges from 0 to 1.
    """
    keep = _thin_indices(len(x))
    x, series = [x[i] for i in keep], [_select_points(s, keep) for s in series]
    left, right = (x[0], x[-1]) if x[-1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
    ends = [v for s in series for part in (s.values, s.low, s.high) for v in part or () if v is not None]
    y_ticks = [0, 0.2, 0.4, 0.6, 0.8, 1] if fraction else _round_ticks(min(ends, default=0), max(ends, default=1))
    bottom, top = y_ticks[0], y_ticks[-1]

    def across(value: float) -> float:
        return round(FRAME["left"] + (value - left) / (right - left) * (FRAME["right"] - FRAME["left"]), 1)

    def up(value: float) -> float:
        share = (min(max(value, bottom), top) - bottom) / (top - bottom)
        return round(FRAME["base"] - share * (FRAME["base"] - FRAME["top"]), 1)

    places = [across(value) for value in x]
    whole = all(float(value).is_integer() for value in x)
    ticks = x_ticks if x_ticks is not None else [t for t in _round_ticks(left, right, whole) if left <= t <= right]
    return Chart(
        title,
        x_label,
        y_label,
        tuple((across(t), f"{t:g}") for t in ticks),
        tuple((up(t), f"{t:g}") for t in y_ticks),
        tuple(_draw_line(s, look[s.name], places, up) for s in series),
        tuple((x_format(x[i]), places[i], tuple(_format_point(s, i, y_format) for s in series)) for i in range(len(x))),
    )


def _draw_line(series: Series, style: Style, places: Sequence[float], up: Callable[[float], float]) -> Line:
    points = [(i, places[i], up(v)) for i, v in enumerate(series.values) if v is not None]
    band = ""
    if series.low is not None and series.high is not None and len(points) > 1:
        ends = [
            (places[i], up(low), up(high))
            for i, (low, high) in enumerate(zip(series.low, series.high, strict=True))
            if low is not None and high is not None
        ]
        there = [f"{px} {high}" for px, _, high in ends]
        back = [f"{px} {low}" for px, low, _ in reversed(ends)]
        band = f"M{'L'.join([*there, *back])}z" if ends else ""
    path = "M" + "L".join(f"{px} {py}" for _, px, py in points) if points else ""
    return Line(series.name, style, path, band, tuple(points), len(points) <= _MARKED)


def _format_point(series: Series, i: int, y_format: Format) -> str:
    value = series.values[i]
    if value is None:
        return "–"
    low, high = (part[i] if part is not None else None for part in (series.low, series.high))
    if low is None or high is None:
        return y_format(value)
    return f"{y_format(value)} [{y_format(low)}, {y_format(high)}]"


def _round_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers that enclose a range; integers if `whole`."""
    if not high > low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)]


def _thin_indices(count: int) -> list[int]:
    if count <= _MOST_POINTS:
        return list(range(count))
    return sorted({math.floor(i) for i in np.linspace(0, count - 1, _MOST_POINTS)})


def _select_points(series: Series, keep: Sequence[int]) -> Series:
    low, high = ([part[i] for i in keep] if part is not None else None for part in (series.low, series.high))
    return Series(series.name, [series.values[i] for i in keep], low, high)

"""Measurements of `inspect_noise` as a table, as a picture, and per neuron as a file."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from safetensors.torch import save_file
from torch import Tensor

from noiseprop.evaluation.text_summary import format_text_table
from noiseprop.files.atomic import write_aside
from noiseprop.noise.diagnostics.inspect_noise import LayerNoise

_MOST = 400  # points drawn per layer; of more, evenly spaced quantiles
_SIGMA, _SPREAD, _LESS, _MORE, _UNCLEAR = "#0072B2", "#E69F00", "#D55E00", "#009E73", "0.6"  # Wong's palette
_Values = npt.NDArray[np.floating[Any]]


def format_noise_table(layers: Sequence[LayerNoise]) -> str:
    """Return one line per noise layer: medians, and in square brackets the range of the middle 80 % of its sigmas.

    The last two columns give the shares of sigmas that the loss would lower or raise: their mean gradient is more than
    two standard errors from 0. By chance alone each would be about 2 %.
    """
    rows = [["layer", "sigmas", "|sigma|", "sigma / own std", "SNR", "less", "more"]]
    for layer in layers:
        row = [
            _layer_name(layer),
            f"{layer.sigma.numel():,}",
            _format_range(layer.sigma),
            _format_range(layer.relative),
        ]
        if layer.snr is None:
            rows.append([*row, "fixed", "-", "-"])
        else:
            less, more = _share_of_directions(layer.snr, layer.floor)
            rows.append([*row, _format_number(_compute_quantiles(layer.snr.abs())[1]), f"{less:.0%}", f"{more:.0%}"])
    return format_text_table(rows)


def list_noise_figures(layers: Sequence[LayerNoise]) -> list[dict[str, Any]]:
    """Return the table for programs: the deciles 1, 5 and 9 of each layer's figures, None where they are infinite."""
    rows: list[dict[str, Any]] = []
    for layer in layers:
        row: dict[str, Any] = {
            "layer": _layer_name(layer),
            "sigmas": layer.sigma.numel(),
            "learned": layer.snr is not None,
        }
        columns = {"sigma": layer.sigma, "own_std": layer.spread, "sigma_over_own_std": layer.relative}
        if layer.snr is not None:
            row["wants_less"], row["wants_more"] = _share_of_directions(layer.snr, layer.floor)
            columns["gradient_snr"] = layer.snr
        for key, values in columns.items():
            row[key] = [value if math.isfinite(value) else None for value in _compute_quantiles(values)]
        rows.append(row)
    return rows


def write_noise_tensors(layers: Sequence[LayerNoise], path: Path) -> None:
    """Write every neuron's figures as safetensors: `<layer>.sigma`, `.own_std`; if learned, `.gradient` and `.snr`.

    Raises:
        RunError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        columns = {"sigma": layer.sigma, "own_std": layer.spread, "gradient": layer.gradient, "snr": layer.snr}
        tensors |= {
            f"{_layer_name(layer)}.{key}": value.contiguous() for key, value in columns.items() if value is not None
        }
    write_aside(path, lambda aside: save_file(tensors, aside))


def draw_noise(layers: Sequence[LayerNoise], path: Path, *, title: str = "") -> None:
    """Write the picture as PNG; equal figures give equal pixels.

    Raises:
        RunError: the file cannot be written.
    """
    learned = any(layer.snr is not None for layer in layers)
    size = (max(8.4, 1.8 + 0.8 * len(layers)), 8.6 if learned else 5.9)
    figure = Figure(figsize=size, layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(figure.subplots(3 if learned else 2, 1, sharex=True, squeeze=False)[:, 0])
    _draw_levels(panels[0], layers)
    _draw_relative(panels[1], layers)
    if learned:
        _draw_directions(panels[2], layers)
    for axes in panels:
        axes.grid(axis="y", color="0.92", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(-0.6, len(layers) - 0.4)
    if len(layers) < 9:
        labels = [f"{_layer_name(layer)}\n{layer.sigma.numel():,}" for layer in layers]
        panels[-1].set_xticks(range(len(layers)), labels, fontsize=9)
    else:
        labels = [f"{_layer_name(layer)} ({layer.sigma.numel():,})" for layer in layers]
        panels[-1].set_xticks(range(len(layers)), labels, fontsize=9, rotation=50, rotation_mode="anchor", ha="right")
    panels[-1].set_xlabel(
        "Noise layers from input to output, with their numbers of sigmas. A point is a sigma (at most "
        f"{_MOST} per layer), a bar the median.\nPoints outside a frame are drawn on its edge.",
        fontsize=9,
        color="0.35",
    )
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    write_aside(path, lambda aside: figure.savefig(aside, format="png", metadata={"Software": None}))


def _draw_levels(axes: Axes, layers: Sequence[LayerNoise]) -> None:
    low, high = _set_log_axis(axes, [layer.spread for layer in layers] + [layer.sigma for layer in layers])
    for i, layer in enumerate(layers):
        _draw_swarm(
            axes, i - 0.18, layer.spread.clamp(low, high), _SPREAD, "standard deviation of the pre-activation", i
        )
        _draw_swarm(axes, i + 0.18, layer.sigma.clamp(low, high), _SIGMA, "|sigma|", i)
    _set_title(axes, "Noise and signal", "units of the pre-activation")
    _add_legend(axes)


def _draw_relative(axes: Axes, layers: Sequence[LayerNoise]) -> None:
    low, high = _set_log_axis(axes, [layer.relative for layer in layers] + [torch.ones(1)])
    for i, layer in enumerate(layers):
        _draw_swarm(axes, i, layer.relative.clamp(low, high), _SIGMA, "", i, width=0.6)
    axes.axhline(1, color="0.4", lw=1, ls=":", label="noise as large as the signal")
    _set_title(axes, "Noise relative to signal", "|sigma| / own std")
    _add_legend(axes)


def _draw_directions(axes: Axes, layers: Sequence[LayerNoise]) -> None:
    floor, most = layers[0].floor, 0.0
    axes.axhspan(-floor, floor, color="0.94", lw=0, label="within 2 standard errors of 0")
    for i, layer in enumerate(layers):
        if layer.snr is None:
            axes.text(i, 0, "fixed", ha="center", va="center", fontsize=9, color="0.35")
            continue
        values, x = _place_points(layer.snr)
        most = max(most, *np.abs(values))
        colours = np.where(values > floor, _LESS, np.where(values < -floor, _MORE, _UNCLEAR))
        axes.scatter(i + 0.6 * x, values, s=9, c=list(colours), alpha=0.6, lw=0)
        _draw_median(axes, i, values, 0.36)
    axes.plot([], [], "o", ms=4, color=_LESS, label="the loss would lower it")
    axes.plot([], [], "o", ms=4, color=_MORE, label="the loss would raise it")
    axes.axhline(0, color="0.4", lw=1, ls=":")
    if most > 5:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    _set_title(axes, "Direction of sigma", "gradient of |sigma|: mean / std")
    _add_legend(axes)


def _draw_swarm(axes: Axes, at: float, of: Tensor, colour: str, label: str, layer: int, width: float = 0.26) -> None:
    values, x = _place_points(of)
    named = label if layer == 0 else ""
    axes.scatter(at + width * x, values, s=9, color=colour, alpha=0.5, lw=0, label=named or None)
    _draw_median(axes, at, values, 0.6 * width)


def _draw_median(axes: Axes, at: float, values: _Values, half: float) -> None:
    if len(values):
        axes.plot([at - half, at + half], [np.median(values)] * 2, color="black", lw=1.6, solid_capstyle="butt")


def _place_points(of: Tensor) -> tuple[_Values, _Values]:
    """Return at most `_MOST` of the values (evenly spaced quantiles of more), and positions across in (-1/2, 1/2)."""
    values: _Values = of.flatten().double().sort().values.numpy()
    if len(values) > _MOST:
        values = values[np.linspace(0, len(values) - 1, _MOST).round().astype(int)]
    across = (np.arange(1, len(values) + 1) * 0.6180339887498949) % 1 - 0.5  # the golden ratio's even spread
    return values, across


def _set_log_axis(axes: Axes, shown: Sequence[Tensor]) -> tuple[float, float]:
    """Set a logarithmic axis that holds 98 % of each layer's values, and return its ends."""
    positive = [values[(values > 0) & values.isfinite()].double().numpy() for values in shown]
    ends = [q for values in positive if len(values) for q in np.quantile(values, (0.01, 0.99))] or [1.0]
    low, high = min(ends) / 1.5, max(ends) * 1.5
    axes.set(yscale="log", ylim=(low, high))
    if high / low < 300:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    return low, high


def _set_title(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel(unit, fontsize=9)


def _add_legend(axes: Axes) -> None:
    """Add a legend to the right of the title."""
    legend = axes.legend(
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1, 0.99),
        borderpad=0,
        handlelength=1.3,
        handletextpad=0.4,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _share_of_directions(snr: Tensor, floor: float) -> tuple[float, float]:
    """Return the shares of the sigmas that the loss would lower, and raise."""
    return (snr > floor).double().mean().item(), (snr < -floor).double().mean().item()


def _format_range(values: Tensor) -> str:
    """Return the median and the range of the middle 80 % as text."""
    low, middle, high = map(_format_number, _compute_quantiles(values))
    return f"{middle} [{low}, {high}]"


def _compute_quantiles(values: Tensor) -> list[float]:
    """Return the quantiles at 10, 50 and 90 %, each one of the values."""
    return np.quantile(values.double().numpy(), (0.1, 0.5, 0.9), method="nearest").tolist()


def _format_number(value: float) -> str:
    """Format a number with two significant digits, without an exponent up to a million."""
    text = f"{value:.2g}"
    return f"{float(text):.0f}" if 99 <= value < 1e6 else text


def _layer_name(layer: LayerNoise) -> str:
    return layer.path.removesuffix("noise").removesuffix(".") or "model"

"""The demo's record as a picture: accuracy against eps, and sigma over the epochs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noiseprop.files.atomic import write_aside
from noiseprop.paper.demo_table import NOISE

# Wong's palette, told apart with colour-blind eyes too; the markers tell them apart in grey.
COLOURS = {"MLP": "#0072B2", "MLP+": "#D55E00", "MLPN": "#009E73"}
MARKERS = {"MLP": "o", "MLP+": "s", "MLPN": "^"}
_LAYERS = {"fc1": ("#56B4E9", "-"), "fc2": ("#E69F00", "--"), "fc3": ("#CC79A7", "-.")}


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG to `path`; its text chunk "Source" holds `digest(record)`.

    Raises:
        RunError: the file cannot be written.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _accuracy(left, record)
    _sigma(right, record)
    figure.supxlabel(caption(record), fontsize=9, color="0.35")
    write_aside(path, lambda aside: figure.savefig(aside, format="png", metadata={"Source": digest(record)}))


def caption(record: Mapping[str, Any]) -> str:
    """What the lines and bands are, and what the attack does at other eps than Table 2's."""
    seeds, data = len(record["settings"]["seeds"]), record["data"]
    lines = f"Lines: mean of {seeds} training seeds; bands: ± 1 standard deviation over them."
    return f"{lines} {data['test']} test digits of {data['name']}. At every eps PGD's steps have size eps/5."


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, by which a picture is known to belong to it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _accuracy(axes: Axes, record: Mapping[str, Any]) -> None:
    settings = record["settings"]
    eps = 255 * np.array(settings["curve_eps"])
    for name, runs in record["models"].items():
        _band(axes, eps, [run["curve"] for run in runs], COLOURS[name], f"{name} ({NOISE[name]})", MARKERS[name])
    axes.axhline(0.1, color="0.5", lw=1, ls=":")
    axes.text(eps[-1], 0.11, "chance", color="0.35", ha="right", va="bottom", fontsize=9)
    axes.axvline(255 * settings["pgd_eps"], color="0.5", lw=1, ls="--")
    axes.text(255 * settings["pgd_eps"], 0.985, " Table 2's eps", color="0.35", va="top", fontsize=9)
    axes.set(xlabel="eps of the attack (in 1/255; pixels are 0 to 255)", ylabel="accuracy", ylim=(0, 1))
    eot = f"EOT-{settings['eot_draws']} where there is noise"
    axes.set_title(f"Accuracy under PGD-{settings['pgd_steps']}, {eot}", fontsize=11)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))


def _sigma(axes: Axes, record: Mapping[str, Any]) -> None:
    runs = record["models"]["MLPN"]
    epochs = np.arange(len(runs[0]["validation"]) + 1)
    sizes = {"fc1": "100 neurons", "fc2": "50 neurons", "fc3": "10 logits"}
    for layer, (colour, style) in _LAYERS.items():
        curves = [[1.0, *run["sigma"][layer]] for run in runs]
        _band(axes, epochs, curves, colour, f"{layer} ({sizes[layer]})", None, style)
    axes.axhline(1, color=COLOURS["MLP+"], lw=1, ls=":")
    axes.text(epochs[-1], 1.01, "MLP+: fixed at 1", color=COLOURS["MLP+"], ha="right", va="bottom", fontsize=9)
    axes.set(xlabel="epoch", ylabel="sigma, mean over the layer's neurons", ylim=(0, 1.1), xlim=(0, epochs[-1]))
    axes.set_title("MLPN: sigma of each layer while it learns", fontsize=11)
    axes.legend(frameon=False, loc="lower left")


def _band(
    axes: Axes,
    x: np.ndarray[Any, Any],
    curves: Sequence[Sequence[float]],
    colour: str,
    label: str,
    marker: str | None,
    style: str = "-",
) -> None:
    """The mean over seeds, with a band of one sample standard deviation to each side where there are several."""
    values = np.array(curves)  # (seeds, points)
    mean = values.mean(0)
    axes.plot(x, mean, color=colour, ls=style, marker=marker, ms=5, lw=1.8, label=label)
    if len(values) > 1:
        std = values.std(0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
    axes.grid(color="0.92", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)

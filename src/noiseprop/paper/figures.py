"""Figure 3: how MLP, MLP+ and MLPN (ReLU) learn, epoch by epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from noiseprop.files.atomic import write_aside
from noiseprop.paper.protocol import FIGURE_3
from noiseprop.paper.results import Record, runs_of

PANELS = {
    "train_loss": "training loss",
    "validation_loss": "validation loss",
    "test_accuracy": "test accuracy",
}
_COLOURS = ("#444444", "#d95f02", "#1b7f8c")


def figure_3(record: Record) -> Figure:
    """Training loss, validation loss and test accuracy over epochs: means over seeds, bands of ± one deviation.

    Where runs stopped early, each epoch is the mean of those that reached it.

    Args:
        record: of Table 3, or of its ReLU rows.

    Raises:
        RunError: the record lacks one of the three networks.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for row, colour in zip(FIGURE_3, _COLOURS, strict=True):
            _curve(axes, [run["course"][name] for run in runs_of(record, row.name)], row.name, colour)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if name.endswith("loss"):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.axes[0].legend(frameon=False)
    return figure


def draw_figure_3(record: Record, stem: Path) -> tuple[Path, Path]:
    """Write Figure 3 as `stem`.svg and `stem`.png, each aside and renamed; equal records give equal bytes."""
    figure = figure_3(record)
    svg, png = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    with rc_context({"svg.hashsalt": "figure3", "svg.fonttype": "none"}):
        write_aside(svg, lambda aside: figure.savefig(aside, format="svg", metadata={"Date": None}))
    write_aside(png, lambda aside: figure.savefig(aside, format="png", dpi=120))
    return svg, png


def _curve(axes: Any, runs: Sequence[Sequence[float]], label: str, colour: str) -> None:
    """One network's mean over its runs, and the band around it."""
    reached = [[run[epoch] for run in runs if epoch < len(run)] for epoch in range(max(map(len, runs)))]
    epochs = np.arange(1, len(reached) + 1)
    mean = np.array([np.mean(values) for values in reached])
    std = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in reached])
    axes.plot(epochs, mean, color=colour, label=label, marker=".", markersize=4)
    axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)

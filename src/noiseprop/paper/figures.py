"""Figure 3: training of MLP, MLP+ and MLPN (ReLU), epoch by epoch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from noiseprop.files.atomic import write_aside
from noiseprop.paper.results import TableResult, TrainingCourse
from noiseprop.paper.specs import FIGURE_3

_PANELS: dict[str, Callable[[TrainingCourse], Sequence[float]]] = {
    "training loss": lambda course: course.train_loss,
    "validation loss": lambda course: course.validation_loss,
    "test accuracy": lambda course: course.test_accuracy,
}
_COLOURS = ("#444444", "#d95f02", "#1b7f8c")


def draw_figure_3(record: TableResult) -> Figure:
    """Return training loss, validation loss and test accuracy by epoch: means over seeds, bands of ± one deviation.

    After early stops, each epoch is the mean of the runs that reached it.

    Args:
        record: result of Table 3, or of its ReLU rows.

    Raises:
        RunError: the record lacks one of the three networks.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (title, select) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for row, colour in zip(FIGURE_3, _COLOURS, strict=True):
            runs = [select(run.course) for run in record.find_runs(row.name)]
            epochs = np.arange(1, max(map(len, runs)) + 1)
            draw_band(axes, epochs, runs, color=colour, label=row.name, marker=".", markersize=4)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if "loss" in title:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.axes[0].legend(frameon=False)
    return figure


def write_figure_3(record: TableResult, stem: Path) -> tuple[Path, Path]:
    """Write Figure 3 as `stem`.svg and `stem`.png, each atomically; equal results give equal bytes."""
    figure = draw_figure_3(record)
    svg, png = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    with rc_context({"svg.hashsalt": "figure3", "svg.fonttype": "none"}):
        write_aside(svg, lambda aside: figure.savefig(aside, format="svg", metadata={"Date": None}))
    write_aside(png, lambda aside: figure.savefig(aside, format="png", dpi=120))
    return svg, png


def draw_band(axes: Any, x: Any, runs: Sequence[Sequence[float]], *, color: str, **line: Any) -> None:
    """Draw the mean over runs at each x that a run reached, and a band of ± one sample standard deviation."""
    reached = [[run[i] for run in runs if i < len(run)] for i in range(max(map(len, runs)))]
    mean = np.array([np.mean(values) for values in reached])
    std = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in reached])
    axes.plot(x[: len(mean)], mean, color=color, **line)
    axes.fill_between(x[: len(mean)], mean - std, mean + std, color=color, alpha=0.2, linewidth=0)

"""Charts of a report: accuracy against eps and severity, training, and sigma over the epochs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS
from noiseprop.evaluation.statistics import mean_std, wilson
from noiseprop.report.accuracy import NAMES, find_severities
from noiseprop.report.eps_curve import Curve
from noiseprop.report.network_views import NetworkView
from noiseprop.report.run_groups import Group
from noiseprop.report.svg import Chart, Number, Series, Style, assign_styles, draw_chart
from noiseprop.training import Epoch

_MOST_LAYERS = 60  # lines of one chart
_LARGEST = 1e12  # of a loss or a sigma


@dataclass(frozen=True)
class Panel:
    """Charts that share the names of their lines and therefore a legend; the title is empty for a single panel."""

    title: str
    charts: tuple[Chart, ...]
    legend: Mapping[str, Style]
    caption: str


def make_eps_panels(groups: Sequence[Group], looks: Mapping[Path, NetworkView]) -> list[Panel]:
    """Return charts of accuracy against eps, one per attack, in a panel for each set of eps and images."""
    look = assign_styles([group.label for group in groups])
    kinds: dict[tuple[str, tuple[float, ...], int], list[tuple[str, list[Curve]]]] = defaultdict(list)
    for group in groups:
        by_kind: dict[tuple[str, tuple[float, ...], int], list[Curve]] = defaultdict(list)
        for run in group.runs:
            curve = looks[run.path].curve
            if curve and run.settings:
                by_kind[run.settings.data.name, curve.eps, curve.images].append(curve)
        for kind, curves in by_kind.items():
            kinds[kind].append((group.label, curves))
    panels: list[Panel] = []
    for (data, eps, images), members in kinds.items():
        attacks = [name for name in CONDITIONS if any(name in c.accuracy for _, curves in members for c in curves)]
        lines = {
            (attack, label): _summarize_runs(
                label, [c.accuracy[attack] for c in curves if attack in c.accuracy], images
            )
            for attack in attacks
            for label, curves in members
        }
        charts = tuple(
            draw_chart(
                NAMES[attack],
                [255 * value for value in eps],
                [line for (name, _), line in lines.items() if name == attack and line],
                look,
                x_label="eps in 1/255 of the pixels' range",
                y_label="accuracy",
                x_format=lambda value: f"{value:.3g}/255",
                fraction=True,
            )
            for attack in attacks
        )
        caption = _describe_eps_panel(data, images, [curve for _, curves in members for curve in curves])
        panels.append(Panel(data if len(kinds) > 1 else "", charts, _select_used_styles(look, charts), caption))
    return panels


def _describe_eps_panel(data: str, images: int, curves: Sequence[Curve]) -> str:
    noisy = [curve for curve in curves if curve.score_draws > 1]
    text = f"The first {images} test images of {data[:100]}."
    if noisy:
        draws, score_draws = noisy[0].draws, noisy[0].score_draws
        text += (
            f" Networks with noise: gradients are means over {draws} draws (EOT-{draws}); accuracies are those of one "
            f"draw, as means over {score_draws} fresh draws."
        )
    return (
        f"{text} PGD keeps its number of steps and the ratio of its step to eps. L-BFGS, which has no bound, is "
        "projected onto the ball. Each curve is an upper bound of the remaining accuracy."
    )


def make_corruption_panels(groups: Sequence[Group]) -> list[Panel]:
    """Return charts of accuracy against severity, one per corruption, in a panel for each data set."""
    look = assign_styles([group.label for group in groups])
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.evaluations:
            by_data[group.evaluations[0].dataset].append(group)
    panels: list[Panel] = []
    for data, members in by_data.items():
        charts: list[Chart] = []
        for kind in CORRUPTIONS:
            found = {group.label: [find_severities(e, kind) for e in group.evaluations] for group in members}
            levels = sorted({level for runs in found.values() for run in runs for level in run})
            if not levels:
                continue
            lines = [
                _summarize_runs(
                    label, [[run.get(level) for level in levels] for run in runs], _count_images(members, label)
                )
                for label, runs in found.items()
            ]
            charts.append(
                draw_chart(
                    NAMES[kind],
                    levels,
                    [line for line in lines if line],
                    look,
                    x_label="severity (0: clean)",
                    y_label="accuracy",
                    x_ticks=levels,
                    x_format=lambda level: f"severity {level:g}" if level else "clean",
                    fraction=True,
                )
            )
        if charts:
            caption = "All evaluated test images, with one draw of the noise if there is any."
            title = data if len(by_data) > 1 else ""
            panels.append(Panel(title, tuple(charts), _select_used_styles(look, charts), caption))
    return panels


def make_training_panel(groups: Sequence[Group]) -> Panel | None:
    """Return charts of losses and accuracies by epoch."""
    look = assign_styles([group.label for group in groups])
    members = [group for group in groups if any(run.epochs for run in group.runs)]
    if not members:
        return None
    last = max(len(run.epochs) for group in members for run in group.runs)
    epochs = range(1, last + 1)

    def draw_figure(title: str, y_label: str, value: Callable[[Epoch], float]) -> Chart:
        lines = [
            _summarize_runs(
                group.label, [_pad_values([value(e) for e in run.epochs], last) for run in group.runs if run.epochs]
            )
            for group in members
        ]
        kept = [line for line in lines if line]
        return draw_chart(title, epochs, kept, look, x_label="epoch", y_label=y_label, x_format="epoch {:g}".format)

    charts = (
        draw_figure("Validation accuracy", "accuracy", lambda e: e.validation_accuracy),
        draw_figure("Validation loss", "cross-entropy, nats", lambda e: e.validation_loss),
        draw_figure("Training loss", "cross-entropy, nats", lambda e: e.train_loss),
    )
    caption = "Training figures are measured during training, before each update; validation uses one draw."
    return Panel("", charts, _select_used_styles(look, charts), caption)


def make_sigma_panels(groups: Sequence[Group]) -> list[Panel]:
    """Return charts of the mean |sigma| of each layer by epoch, in a panel for each group with learned noise."""
    panels: list[Panel] = []
    for group in groups:
        runs = [run.epochs for run in group.runs if run.epochs and run.epochs[-1].sigma]
        if not runs or _is_fixed(runs):
            continue
        layers = list(runs[0][0].sigma)[:_MOST_LAYERS]
        last = max(map(len, runs))
        short = {layer: layer.removesuffix("noise").removesuffix(".") or "model" for layer in layers}
        look = assign_styles(list(short.values()))
        lines: list[Series] = []
        for layer in layers:
            by_part = [
                _average_runs([_pad_values([_get_level(e, layer, part) for e in run], last) for run in runs])
                for part in ("mean", "low", "high")
            ]
            lines.append(Series(short[layer], *by_part))
        drawn = draw_chart(
            "|sigma| by layer",
            range(1, last + 1),
            lines,
            look,
            x_label="epoch",
            y_label="|sigma|, mean over neurons",
            x_format="epoch {:g}".format,
            y_format="{:.3g}".format,
        )
        n = f", means over {len(runs)} seeds" if len(runs) > 1 else ""
        panels.append(Panel(group.label, (drawn,), look, f"Bands: ± 1 standard deviation over the neurons{n}."))
    return panels


def _is_fixed(runs: Sequence[Sequence[Epoch]]) -> bool:
    """Return whether every sigma stayed constant and equal to all others of its layer."""
    first = runs[0][0].sigma
    same = all(epoch.sigma == first for run in runs for epoch in run)
    return same and all(layer.min == layer.max for layer in first.values())


def _get_level(epoch: Epoch, layer: str, part: str) -> Number:
    """Return the mean |sigma| of a layer, or the mean minus or plus the deviation over its neurons."""
    s = epoch.sigma.get(layer)
    if s is None:
        return None
    ends = {"mean": s.mean, "low": max(s.min, s.mean - s.std), "high": min(s.max, s.mean + s.std)}
    return ends[part]


def _summarize_runs(name: str, runs: Sequence[Sequence[Number]], images: int | None = None) -> Series | None:
    """Return the mean over runs with a band of ± 1 standard deviation; one run over `images` gets Wilson's interval."""
    if not runs:
        return None
    means: list[Number] = []
    lows: list[Number] = []
    highs: list[Number] = []
    for column in zip(*runs, strict=True):
        values = [value for value in column if value is not None]
        if not values:
            ends = (None, None, None)
        elif len(values) > 1:
            spread = mean_std(values)
            std = spread.std or 0.0
            ends = (spread.mean, spread.mean - std, spread.mean + std)
            if images:
                ends = (spread.mean, max(0.0, spread.mean - std), min(1.0, spread.mean + std))
        elif images:
            interval = wilson(round(values[0] * images), images)
            ends = (values[0], min(interval.low, values[0]), max(interval.high, values[0]))
        else:
            ends = (values[0], None, None)
        for part, value in zip((means, lows, highs), ends, strict=True):
            part.append(value)
    return Series(name, means, lows, highs)


def _average_runs(runs: Sequence[Sequence[Number]]) -> list[Number]:
    columns = [[value for value in column if value is not None] for column in zip(*runs, strict=True)]
    return [sum(values) / len(values) if values else None for values in columns]


def _pad_values(values: Sequence[Number], length: int) -> list[Number]:
    """Return the values, bounded so that their mean cannot overflow, and None for the missing epochs."""
    bounded = [None if value is None else min(max(value, -_LARGEST), _LARGEST) for value in values]
    return [*bounded, *[None] * (length - len(values))]


def _count_images(groups: Sequence[Group], label: str) -> int:
    evaluations: tuple[Evaluation, ...] = next(group.evaluations for group in groups if group.label == label)
    return evaluations[0].images


def _select_used_styles(look: Mapping[str, Style], charts: Sequence[Chart]) -> dict[str, Style]:
    names = {line.name for drawn in charts for line in drawn.lines}
    return {name: style for name, style in look.items() if name in names}

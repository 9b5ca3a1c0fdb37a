"""Which charts a report has: accuracy against eps and severity, training, and sigma over the epochs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS
from noiseprop.evaluation.statistics import mean_std, wilson
from noiseprop.report.accuracy import NAMES, severities
from noiseprop.report.eps_curve import Curve
from noiseprop.report.network_views import Look
from noiseprop.report.run_groups import Group
from noiseprop.report.svg import Chart, Number, Series, Style, chart, styles
from noiseprop.training import Epoch

_MOST_LAYERS = 60  # lines of one chart
_LARGEST = 1e12  # of a loss or a sigma


@dataclass(frozen=True)
class Panel:
    """Charts that share the names of their lines, and so a legend; with a title where a section has several."""

    title: str
    charts: tuple[Chart, ...]
    legend: Mapping[str, Style]
    caption: str


def eps_panels(groups: Sequence[Group], looks: Mapping[Path, Look]) -> list[Panel]:
    """Accuracy against eps, a chart for each attack; a panel for each set of eps and images."""
    look = styles([group.label for group in groups])
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
            (attack, label): _spread(label, [c.accuracy[attack] for c in curves if attack in c.accuracy], images)
            for attack in attacks
            for label, curves in members
        }
        charts = tuple(
            chart(
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
        caption = _eps_caption(data, images, [curve for _, curves in members for curve in curves])
        panels.append(Panel(data if len(kinds) > 1 else "", charts, _used(look, charts), caption))
    return panels


def _eps_caption(data: str, images: int, curves: Sequence[Curve]) -> str:
    noisy = [curve for curve in curves if curve.score_draws > 1]
    text = f"The first {images} test images of {data[:100]}."
    if noisy:
        draws, score_draws = noisy[0].draws, noisy[0].score_draws
        text += (
            f" Of networks with noise: gradients are means over {draws} draws (EOT-{draws}), accuracies those of one "
            f"draw, as means over {score_draws} draws that no attack has seen."
        )
    return (
        f"{text} PGD keeps its number of steps and the ratio of its step to eps; L-BFGS, which knows no bound, is "
        "projected onto the ball. Each is an upper bound of the accuracy that is left."
    )


def corruption_panels(groups: Sequence[Group]) -> list[Panel]:
    """Accuracy against severity, a chart for each corruption; a panel for each data set."""
    look = styles([group.label for group in groups])
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.evaluations:
            by_data[group.evaluations[0].dataset].append(group)
    panels: list[Panel] = []
    for data, members in by_data.items():
        charts: list[Chart] = []
        for kind in CORRUPTIONS:
            found = {group.label: [severities(e, kind) for e in group.evaluations] for group in members}
            levels = sorted({level for runs in found.values() for run in runs for level in run})
            if not levels:
                continue
            lines = [
                _spread(label, [[run.get(level) for level in levels] for run in runs], _images(members, label))
                for label, runs in found.items()
            ]
            charts.append(
                chart(
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
            caption = "All test images, as judged: one draw of the noise where there is any."
            title = data if len(by_data) > 1 else ""
            panels.append(Panel(title, tuple(charts), _used(look, charts), caption))
    return panels


def training_panel(groups: Sequence[Group]) -> Panel | None:
    """Losses and accuracies by epoch."""
    look = styles([group.label for group in groups])
    members = [group for group in groups if any(run.epochs for run in group.runs)]
    if not members:
        return None
    last = max(len(run.epochs) for group in members for run in group.runs)
    epochs = range(1, last + 1)

    def drawn(title: str, y_label: str, value: Callable[[Epoch], float]) -> Chart:
        lines = [
            _spread(group.label, [_padded([value(e) for e in run.epochs], last) for run in group.runs if run.epochs])
            for group in members
        ]
        kept = [line for line in lines if line]
        return chart(title, epochs, kept, look, x_label="epoch", y_label=y_label, x_format="epoch {:g}".format)

    charts = (
        drawn("Validation accuracy", "accuracy", lambda e: e.validation_accuracy),
        drawn("Validation loss", "cross-entropy, nats", lambda e: e.validation_loss),
        drawn("Training loss", "cross-entropy, nats", lambda e: e.train_loss),
    )
    caption = "Training figures are taken as the training goes, before each update; validation is one draw."
    return Panel("", charts, _used(look, charts), caption)


def sigma_panels(groups: Sequence[Group]) -> list[Panel]:
    """Mean |sigma| of each layer by epoch, a panel for each group whose noise is learned."""
    panels: list[Panel] = []
    for group in groups:
        runs = [run.epochs for run in group.runs if run.epochs and run.epochs[-1].sigma]
        if not runs or _fixed(runs):
            continue
        layers = list(runs[0][0].sigma)[:_MOST_LAYERS]
        last = max(map(len, runs))
        short = {layer: layer.removesuffix("noise").removesuffix(".") or "model" for layer in layers}
        look = styles(list(short.values()))
        lines: list[Series] = []
        for layer in layers:
            by_part = [
                _mean([_padded([_level(e, layer, part) for e in run], last) for run in runs])
                for part in ("mean", "low", "high")
            ]
            lines.append(Series(short[layer], *by_part))
        drawn = chart(
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


def _fixed(runs: Sequence[Sequence[Epoch]]) -> bool:
    """Whether every sigma stayed as it was and is like all others of its layer."""
    first = runs[0][0].sigma
    same = all(epoch.sigma == first for run in runs for epoch in run)
    return same and all(layer.min == layer.max for layer in first.values())


def _level(epoch: Epoch, layer: str, part: str) -> Number:
    """Mean |sigma| of a layer, or that less or more the deviation over its neurons, within their range."""
    s = epoch.sigma.get(layer)
    if s is None:
        return None
    ends = {"mean": s.mean, "low": max(s.min, s.mean - s.std), "high": min(s.max, s.mean + s.std)}
    return ends[part]


def _spread(name: str, runs: Sequence[Sequence[Number]], images: int | None = None) -> Series | None:
    """The mean over runs with a band of ± 1 standard deviation; of one run over `images`, Wilson's interval."""
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


def _mean(runs: Sequence[Sequence[Number]]) -> list[Number]:
    columns = [[value for value in column if value is not None] for column in zip(*runs, strict=True)]
    return [sum(values) / len(values) if values else None for values in columns]


def _padded(values: Sequence[Number], length: int) -> list[Number]:
    """The values, none so large that a mean over them would overflow, and None for epochs that a run has not."""
    bounded = [None if value is None else min(max(value, -_LARGEST), _LARGEST) for value in values]
    return [*bounded, *[None] * (length - len(values))]


def _images(groups: Sequence[Group], label: str) -> int:
    evaluations: tuple[Evaluation, ...] = next(group.evaluations for group in groups if group.label == label)
    return evaluations[0].images


def _used(look: Mapping[str, Style], charts: Sequence[Chart]) -> dict[str, Style]:
    names = {line.name for drawn in charts for line in drawn.lines}
    return {name: style for name, style in look.items() if name in names}

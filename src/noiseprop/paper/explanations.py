"""Explanations of a result: where sigma went, what noise does in training and at inference, and what it costs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import msgspec

from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.evaluation.statistics import mean_std
from noiseprop.paper.comparison import compute_relative_gain, find_failed_attacks, find_guessing, is_guess
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import TableResult
from noiseprop.paper.specs import RESNETS, TABLES
from noiseprop.paper.tables import Rows

BENCHMARKS = {"table3": "step-mlp-fp32", "table4": "step-cnn-fp32", "table5": "step-resnet18-bf16"}
"""Files of results/benchmarks/ that time a training step, by table."""

_EPOCHS_SHOWN = (1, 2, 5, 10, 20, 30, 50)


class StepCost(msgspec.Struct, frozen=True):
    """Duration of a training step with learned noise, divided by that of one without, over pairs of measurements."""

    median: float
    quartile_1: float
    quartile_3: float
    rounds: int


class _StepFigures(msgspec.Struct, frozen=True):
    noiseprop: StepCost


class _StepBenchmark(msgspec.Struct, frozen=True):
    figures: _StepFigures


def read_step_costs(folder: Path) -> dict[str, StepCost]:
    """Return the costs of a training step by name of the benchmark; missing benchmarks are left out."""
    paths = {name: folder / f"{name}.json" for name in BENCHMARKS.values()}
    return {
        name: msgspec.convert(json.loads(path.read_text(encoding="utf-8")), _StepBenchmark).figures.noiseprop
        for name, path in paths.items()
        if path.exists()
    }


@dataclass(frozen=True)
class SigmaChange:
    """Change of learned sigma of a row: its layers with mean |sigma| after the first and last epoch, and the ratio."""

    row: str
    layers: tuple[tuple[str, float, float], ...]
    remaining: float


@dataclass(frozen=True)
class NoiseEffect:
    """Change of accuracy by noise in training and, unless None, at inference, on clean images and under PGD."""

    row: str
    clean: tuple[float, float | None]
    pgd: tuple[float, float | None]


@dataclass(frozen=True)
class SigmaLimit:
    """Largest move of any sigma before the head, and the largest that the steps allow."""

    row: str
    moved: float
    allowed: float
    steps: int
    learning_rate: float


def find_noiseless_row(row: str) -> str:
    """Return the row of the same network without noise.

    Examples:
        >>> find_noiseless_row("MLP+, Sigmoid"), find_noiseless_row("CNN-AN")
        ('MLP, Sigmoid', 'CNN')
    """
    if row.startswith("MLP"):
        return f"MLP, {row.split(', ')[1]}"
    return row.split("-")[0]


def choose_epochs(record: TableResult) -> list[int]:
    """Return the epochs that tables show."""
    last = max(run.course.epochs for run in record.runs)
    return [epoch for epoch in range(1, last + 1) if epoch in (*_EPOCHS_SHOWN, last) or last <= 5]


def average_epochs(curves: Sequence[Sequence[float]], epochs: Sequence[int]) -> list[str]:
    """Return the means over runs after each of some epochs, – where no run came so far."""
    values = [[curve[epoch - 1] for curve in curves if epoch <= len(curve)] for epoch in epochs]
    return [f"{fmean(found):.3f}" if found else "–" for found in values]


def _group_layers(record: TableResult, row: str) -> dict[str, list[str]]:
    """Return the noise layers of a row by heading: each by itself, but those before the head of a ResNet together."""
    layers = list(record.find_runs(row)[0].course.sigma)
    head = [layer for layer in layers if layer.startswith("head.")] or layers
    before = [layer for layer in layers if layer not in head]
    return {layer: [layer] for layer in head} | ({f"{len(before)} layers before the head": before} if before else {})


def _find_learned_rows(record: TableResult) -> list[str]:
    """Return the rows whose sigma changed in training."""
    runs = [run for run in record.runs for layer in run.course.sigma.values() if len(set(layer.mean)) > 1]
    rows = {row.name for row in TABLES[record.table] if row.has_learned_noise} if record.table in RESNETS else set()
    return [row for row in record.rows if row in rows | {run.row for run in runs}]


def measure_sigma_changes(record: TableResult) -> list[SigmaChange]:
    """Return the changes of learned sigma, averaged over neurons and seeds."""
    changes: list[SigmaChange] = []
    for row in _find_learned_rows(record):
        layers: list[tuple[str, float, float]] = []
        for name, group in _group_layers(record, row).items():
            curves = [run.course.sigma[layer].mean for run in record.find_runs(row) for layer in group]
            layers.append((name, fmean(curve[0] for curve in curves), fmean(curve[-1] for curve in curves)))
        remaining = sum(last for _, _, last in layers) / sum(first for _, first, _ in layers)
        changes.append(SigmaChange(row, tuple(layers), remaining))
    return changes


def tabulate_sigma(record: TableResult) -> Rows:
    """Return the mean of learned |sigma| by layer and epoch; a ResNet's layers before the head with their range."""
    shown = choose_epochs(record)
    table: Rows = [["mean of |sigma| after epoch", *map(str, shown)]]
    for row in _find_learned_rows(record):
        runs = record.find_runs(row)
        for name, group in _group_layers(record, row).items():
            curves = [run.course.sigma[layer].mean for run in runs for layer in group]
            cells = average_epochs(curves, shown)
            if len(group) > 1:
                by_layer = [average_epochs([run.course.sigma[layer].mean for run in runs], shown) for layer in group]
                ranges = [f" ({min(values)} to {max(values)})" for values in zip(*by_layer, strict=True)]
                cells = [cell + text for cell, text in zip(cells, ranges, strict=True)]
            table.append([f"{row}: {name}", *cells])
    return table if len(table) > 1 else []


def find_sigma_limit(record: TableResult) -> SigmaLimit | None:
    """Return how far any sigma before the head moved under Eq. 7, if that is a small part of what was possible."""
    row = TABLES[record.table][-1].name
    if record.table not in RESNETS or row not in record.rows or {"sigma-start", "sigma-adam"} & set(record.departures):
        return None
    layers = [
        layer
        for run in record.find_runs(row)
        for name, layer in run.course.sigma.items()
        if not name.startswith("head.")
    ]
    moved = max(abs(curve[-1] - 1) for layer in layers for curve in (layer.min, layer.max))
    steps = record.epochs * math.ceil(record.data.train / record.recipe.batch_size)
    allowed = steps * record.recipe.sigma_lr
    return SigmaLimit(row, moved, allowed, steps, record.recipe.sigma_lr) if moved <= allowed / 5 else None


def measure_noise_effects(record: TableResult) -> list[NoiseEffect]:
    """Return what noise does in training and at inference, by row with noise."""
    effects: list[NoiseEffect] = []
    for row in record.rows:
        run, plain = record.find_runs(row)[0], find_noiseless_row(row)
        if not run.course.sigma or plain not in record.rows:
            continue
        pairs: list[tuple[float, float | None]] = []
        for condition in ("clean", "pgd"):
            never, off = (
                record.compute_spread(plain, condition).mean,
                record.compute_spread(row, condition, "off", 0).mean,
            )
            pairs.append((off - never, record.compute_spread(row, condition).mean - off if run.noisy else None))
        effects.append(NoiseEffect(row, *pairs))
    return effects


def tabulate_noise_effects(record: TableResult) -> Rows:
    """Return accuracies without any noise, with noise in training alone, and at inference, too."""
    states = ("never noise", "noise off", "one draw")
    table: Rows = [["", *(f"{name}: {state}" for name in ("clean", "PGD") for state in states)]]
    for effect in measure_noise_effects(record):
        row, cells = effect.row, list[str]()
        for condition in ("clean", "pgd"):
            cells += [record.format_cell(find_noiseless_row(row), condition)]
            cells += [record.format_cell(row, condition, "off", 0)]
            cells += [record.format_cell(row, condition) if record.find_runs(row)[0].noisy else "–"]
        table.append([row, *cells])
    return table if len(table) > 1 else []


def tabulate_inference_noise(record: TableResult) -> Rows:
    """Return accuracies under PGD with the noise off and on, with their numbers of images and the difference."""
    noisy = [row for row in record.rows if record.find_runs(row)[0].noisy]
    plain, draws = TABLES[record.table][0].name, max(record.settings.attack_draws)
    table: Rows = [["PGD", "noise off", f"one draw, EOT-{draws}", "by noise at inference"]]
    if plain in record.rows:
        table.append([plain, _format_pgd(record, plain, 0), "–", "–"])
    for row in noisy:
        cells = [_format_pgd(record, row, 0), _format_pgd(record, row, draws), _format_pgd_gain(record, row, draws)]
        table.append([row, *cells])
    return table if noisy else []


def _format_pgd(record: TableResult, row: str, draws: int) -> str:
    state = "one" if draws else "off"
    n = record.find_runs(row)[0].find_scores("pgd", state, draws)[0].images
    return f"{record.format_cell(row, 'pgd', state, draws)} (n = {n:,})"


def _format_pgd_gain(record: TableResult, row: str, draws: int) -> str:
    runs = record.find_runs(row)
    gain = mean_std([run.accuracy("pgd", "one", draws) - run.accuracy("pgd", "off", 0) for run in runs])
    if len(runs) > 1:
        return str(gain)
    error = math.hypot(runs[0].image_error("pgd", "one", draws), runs[0].image_error("pgd", "off", 0))
    return f"{gain.mean:+.3f} ± {error:.3f}"


def tabulate_validation(record: TableResult) -> Rows:
    """Return validation accuracy by epoch, each network with its noise."""
    shown = choose_epochs(record)
    rows: Rows = [["validation accuracy after epoch", *map(str, shown)]]
    for row in record.rows:
        rows.append([row, *average_epochs([run.course.validation_accuracy for run in record.find_runs(row)], shown)])
    return rows


def tabulate_seconds(record: TableResult) -> Rows:
    """Return seconds per epoch, and their ratio to those of the network without noise."""
    plain = TABLES[record.table][0].name
    seconds = {row: mean_std([run.seconds_per_epoch for run in record.find_runs(row)]).mean for row in record.rows}
    table: Rows = [["", "seconds per epoch", f"× {plain}"]]
    for row, value in seconds.items():
        table.append([row, f"{value:.1f}", f"{value / seconds[plain]:.2f}" if plain in seconds else "–"])
    return table


def choose_percentage_rows(record: TableResult) -> tuple[str, str]:
    """Return the two rows that the paper compares in per cent."""
    names = {"table3": ("MLPN, Sigmoid", "MLP, Sigmoid"), "table4": ("CNN-MLPN", "CNN")}
    return names.get(record.table, (TABLES[record.table][-1].name, TABLES[record.table][0].name))


def tabulate_percentages(record: TableResult) -> Rows:
    """Return relative differences of accuracy in the paper and here, with intervals over seeds or with group means."""
    first, second = choose_percentage_rows(record)
    if not {first, second} <= set(record.rows) or {first, second} & set(find_guessing(record)):
        return []
    return _tabulate_ratios(record) if record.table in RESNETS else _tabulate_ratio_intervals(record)


def _tabulate_ratio_intervals(record: TableResult) -> Rows:
    first, second = choose_percentage_rows(record)
    rows: Rows = [["", "the paper", "here", "95 % interval"]]
    for condition, heading in COLUMNS.items():
        gain = compute_relative_gain(record, first, second, condition)
        ours = ("–", "–") if gain is None else (f"{gain.estimate:+.1%}", f"{gain.low:+.1%} to {gain.high:+.1%}")
        rows.append(
            [heading, f"{record.printed[first][condition] / record.printed[second][condition] - 1:+.1%}", *ours]
        )
    return [] if all(row[2] == "–" for row in rows[1:]) else rows


def _tabulate_ratios(record: TableResult) -> Rows:
    best, plain = choose_percentage_rows(record)
    printed, failed = record.printed, find_failed_attacks(record)
    rows: Rows = [["", "the paper", "here"]]
    for group, conditions in (("white box", ATTACKS), ("black box", TRANSFERS), ("corrupted", CORRUPTIONS)):
        found: list[list[float]] = []
        for condition in conditions:
            ours = [record.compute_spread(row, condition).mean for row in (best, plain)]
            useless = all(is_guess(record, row, condition) for row in (best, plain))
            usable = ours[1] and not useless and not any(condition in failed.get(row, ()) for row in (best, plain))
            ratio = ours[0] / ours[1] - 1 if usable else math.nan
            found.append([printed[best][condition] / printed[plain][condition] - 1, ratio])
            rows.append([COLUMNS[condition], *map(_format_percent, found[-1])])
        rows.append([f"mean, {group}", *(_format_percent(fmean(values)) for values in zip(*found, strict=True))])
    return rows


def _format_percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1%}"


def find_weak_lbfgs(record: TableResult) -> list[str]:
    """Return the rows where L-BFGS, which may change an image without limit, leaves more than PGD in its ball."""
    if record.table in RESNETS:
        return []
    spreads = {
        row: (record.compute_spread(row, "lbfgs").mean, record.compute_spread(row, "pgd").mean) for row in record.rows
    }
    return [row for row, (lbfgs, pgd) in spreads.items() if lbfgs > pgd + TOLERANCE]

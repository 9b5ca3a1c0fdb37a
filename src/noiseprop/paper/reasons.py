"""Why a table came out as it did: where sigma went, what noise does in training and at inference, what it costs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from noiseprop.evaluation.statistics import mean_std
from noiseprop.paper.results import Record, cell, runs_of, spread
from noiseprop.paper.tables import Rows, markdown, rows_of

BENCHMARKS = {"table3": "step-mlp-fp32", "table4": "step-cnn-fp32", "table5": "step-resnet18-bf16"}
"""For each table the file of results/benchmarks/ that times a training step of its networks."""

_TIMED = {"table5": ", where a ResNet18 with one Linear layer as its head has noise everywhere"}
"""The network that was timed, where it is not the table's own."""

_MOST, _STEADY = 0.2, 0.05  # of sigma is left: nearly nothing below the one, a change worth telling above the other


def without_noise(row: str) -> str:
    """The row of the same network without noise.

    Examples:
        >>> without_noise("MLP+, Sigmoid"), without_noise("CNN-AN")
        ('MLP, Sigmoid', 'CNN')
    """
    if row.startswith("MLP"):
        return f"MLP, {row.split(', ')[1]}"
    return row.split("-")[0]


def where_sigma_went(record: Record) -> list[str]:
    """The course of learned sigmas over training as lines of Markdown; none where no sigma moved."""
    learned = [row for row in rows_of(record) if _moves(record, row)]
    if not learned:
        return []
    last = max(len(run["course"]["validation_loss"]) for run in record["runs"])
    shown = [epoch for epoch in (1, 2, 5, 10, 20, 30) if epoch < last] + [last]
    table: Rows = [["mean size of sigma after epoch", *map(str, shown)]]
    sentences: list[str] = []
    for row in learned:
        courses = [run["course"]["sigma"] for run in runs_of(record, row)]
        ends: list[str] = []
        first = end = 0.0
        for layer in courses[0]:
            sizes = [course[layer]["mean"] for course in courses]
            table.append([f"{row}: {layer}", *after(sizes, shown)])
            began, ended = (mean_std([size[i] for size in sizes]).mean for i in (0, -1))
            ends.append(f"{layer} {began:.3f} to {ended:.3f}")
            first, end = first + began, end + ended
        sentences.append(f"- {row}: {', '.join(ends)}. {_where(end / first)}")
    says = "Means over the neurons of a layer and over seeds, after the first epoch and after the last:"
    return [says, "", *sentences, "", *_why_there(record), markdown(table), ""]


def _where(left: float) -> str:
    """What became of sigma, by the share that is left."""
    if left < _MOST:
        return f"Training takes nearly all noise away ({left:.0%} is left): what is judged hardly has any."
    if left < 1 - _STEADY:
        return f"Training takes noise away; {left:.0%} is left."
    if left <= 1 + _STEADY:
        return f"Training leaves the noise about as it was ({left:.0%})."
    return f"Training makes more noise ({left:.0%})."


def _why_there(record: Record) -> list[str]:
    """What moves sigma under this protocol."""
    if "gradient-sign" in record["departures"]:
        says = "Every sigma below zero is moved against its gradient here (`gradient-sign`): its size grows where the "
        return [f"{says}exact gradient would make it shrink.", ""]
    says = (
        "The loss is that of clean images, which noise raises, so its exact gradient (Eq. 3) lowers sigma; nothing in "
    )
    return [f"{says}it asks for robustness.", ""]


def _moves(record: Record, row: str) -> bool:
    """Whether sigma changed in training."""
    return any(len(set(layer["mean"])) > 1 for run in runs_of(record, row) for layer in run["course"]["sigma"].values())


def after(courses: Sequence[Sequence[float]], epochs: Sequence[int]) -> list[str]:
    """Cells with the mean over runs after each of some epochs, – where no run came so far."""
    at = [[course[epoch - 1] for course in courses if epoch <= len(course)] for epoch in epochs]
    return [f"{fmean(values):.3f}" if values else "–" for values in at]


def what_noise_does(record: Record) -> list[str]:
    """Accuracy without any noise, with noise in training alone and at inference too, as lines of Markdown."""
    noisy = [row for row in rows_of(record) if runs_of(record, row)[0]["course"]["sigma"]]
    table: Rows = [
        ["", *(f"{of}: {how}" for of in ("clean", "PGD") for how in ("never noise", "noise off", "one draw"))]
    ]
    sentences: list[str] = []
    for row in noisy:
        plain, on = without_noise(row), runs_of(record, row)[0]["noisy"]
        cells: list[str] = []
        changes: list[str] = []
        for condition in ("clean", "pgd"):
            cells += [cell(record, plain, condition), cell(record, row, condition, state="off", draws=0)]
            cells.append(cell(record, row, condition) if on else "–")
            never = spread(record, plain, condition).mean
            off = spread(record, row, condition, state="off", draws=0).mean
            now = spread(record, row, condition).mean
            changes.append(f"{off - never:+.3f} by training" + (f" and {now - off:+.3f} at inference" if on else ""))
        table.append([row, *cells])
        sentences.append(f"- {row}: {changes[0]} on clean images; {changes[1]} under PGD.")
    if not noisy:
        return []
    says = (
        "A network that was trained with noise can be used without. What noise does to accuracy in training (noise off "
    )
    says += "against a network that never had any), and what it does at inference (one draw against noise off):"
    return [says, "", *sentences, "", markdown(table), ""]


def what_it_costs(record: Record, steps: Mapping[str, Any]) -> list[str]:
    """The time of a training step with learned noise over one without, from the benchmarks, as lines of Markdown.

    Args:
        record: of a table.
        steps: the benchmarks that are at hand, by name: of each its content.
    """
    name = BENCHMARKS.get(record["table"], "")
    where = "[docs/performance.md](performance.md)"
    if name not in steps:
        return [f"It is measured on a quiet machine, not here, where runs share the cores: see {where}.", ""]
    ours = steps[name]["figures"]["noiseprop"]
    says = f"A training step with learned noise takes {ours['median']:.2f} times as long as one without"
    says += f"{_TIMED.get(record['table'], '')} (median of "
    says += f"{ours['rounds']} pairs; quartiles {ours['quartile_1']:.2f} and {ours['quartile_3']:.2f}; "
    says += f"`results/benchmarks/{name}.json`, which {where} explains). {_cost(ours['median'])}"
    return [says, ""]


def _cost(ratio: float) -> str:
    if ratio < 1.1:
        return "The claim holds there."
    return f"That is {ratio - 1:.0%} more, so for networks of this size the claim does not hold in wall time."


def markdown_list(lines: Sequence[str]) -> list[str]:
    """Bullets, and the empty line after them."""
    return [*(f"- {line}" for line in lines), ""]

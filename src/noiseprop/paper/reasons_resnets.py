"""Why Tables 5 and 6 came out as they did: percentages, course, cost, where sigma went, noise at inference."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.evaluation.statistics import mean_std
from noiseprop.paper.claims_resnets import failed_attacks, guesses, guessing
from noiseprop.paper.protocol import TABLES
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.reasons import BENCHMARKS, after, what_it_costs
from noiseprop.paper.results import Record, accuracy, cell, count, image_error, runs_of, spread
from noiseprop.paper.tables import Rows, listed, markdown, rows_of

_SHOWN = (1, 2, 3, 4, 5, 10, 20, 50)  # epochs


def percentages(record: Record) -> list[str]:
    """By how many per cent noise everywhere is better than none, as the paper counts, as lines of Markdown."""
    plain, best = TABLES[record["table"]][0].name, TABLES[record["table"]][-1].name
    if not {plain, best} <= set(rows_of(record)):
        return []
    title = ["### The paper's percentages", ""]
    if idle := [row for row in guessing(record) if row in (plain, best)]:
        return [*title, f"None: {listed(idle)} may be guessing, and a percentage would tell of no defence.", ""]
    printed, failed = PUBLISHED[record["table"]], failed_attacks(record)
    rows: Rows = [["", "the paper's table", "here"]]
    for group, of in (("white box", ATTACKS), ("black box", TRANSFERS), ("corrupted", CORRUPTIONS)):
        found: list[list[float]] = []
        for what in of:
            ours = [spread(record, row, what).mean for row in (best, plain)]
            useless = all(guesses(record, row, what) for row in (best, plain))
            told = ours[1] and not useless and not any(what in failed.get(row, ()) for row in (best, plain))
            pair = [printed[best][what] / printed[plain][what] - 1, ours[0] / ours[1] - 1 if told else math.nan]
            rows.append([COLUMNS[what], *map(_percent, pair)])
            found.append(pair)
        rows.append([f"mean, {group}", *(_percent(fmean(values)) for values in zip(*found, strict=True))])
    says = f"By how much the accuracy of {best} is above that of {plain}, relative to the latter, as the paper counts; "
    says += "estimates without their error, which is large where accuracies are small: the differences above have it. "
    says += "None (–) where both are no better than guessing, the latter is 0 or the attack failed."
    return [*title, says, "", markdown(rows), ""]


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1%}"


def course(record: Record) -> list[str]:
    """How fast the networks learned, as lines of Markdown."""
    last = max(len(run["course"]["validation_loss"]) for run in record["runs"])
    shown = sorted({epoch for epoch in _SHOWN if epoch < last} | {last})
    rows: Rows = [["validation accuracy after epoch", *map(str, shown)]]
    for row in rows_of(record):
        courses = [run["course"]["validation_accuracy"] for run in runs_of(record, row)]
        rows.append([row, *after(courses, shown)])
    says = "Each network with its noise, as it is used. A schedule that is planned for its number of epochs tells "
    says += "little of how soon another one would have been there, so this is not tested."
    return ["### Learned noise trains faster?", "", says, "", markdown(rows), ""]


def cost(record: Record, steps: Mapping[str, Any]) -> list[str]:
    """What noise costs in training, as lines of Markdown: by the benchmark if there is one, and as the runs went."""
    rows, plain = rows_of(record), TABLES[record["table"]][0].name
    seconds = {row: mean_std([run["seconds_per_epoch"] for run in runs_of(record, row)]).mean for row in rows}
    table: Rows = [["", "seconds an epoch", f"× {plain}"]]
    for row, value in seconds.items():
        table.append([row, f"{value:.1f}", f"{value / seconds[plain]:.2f}" if plain in seconds else "–"])
    measured = what_it_costs(record, steps) if record["table"] in BENCHMARKS else []
    note = "The runs themselves, which shared the machine with other work, so that no verdict is drawn from them "
    note += "(medians over epochs, validation included):"
    return ["### Nearly no extra cost?", "", *measured, note, "", markdown(table), ""]


def where_sigma_went(record: Record) -> list[str]:
    """Learned sigma after the first epoch and the last: the head's layers one by one, the others together."""
    last = max(len(run["course"]["validation_loss"]) for run in record["runs"])
    at = {"after the first epoch": 0, "after the last": -1} if last > 1 else {"after the only epoch": 0}
    table: Rows = [["mean of sigma's size", *at]]
    learned = {row.name for row in TABLES[record["table"]] if row.learned}
    for row in (row for row in rows_of(record) if row in learned):
        courses = [run["course"]["sigma"] for run in runs_of(record, row)]
        head = [layer for layer in courses[0] if layer.startswith("head.")]
        for layer in head:
            ends = [fmean(course[layer]["mean"][end] for course in courses) for end in at.values()]
            table.append([f"{row}: {layer}", *(f"{end:.3f}" for end in ends)])
        others = [layer for layer in courses[0] if layer not in head]
        if others:
            means = [[fmean(c[layer]["mean"][end] for c in courses) for layer in others] for end in at.values()]
            cells = [f"{fmean(end):.3f} (layers from {min(end):.3f} to {max(end):.3f})" for end in means]
            table.append([f"{row}: {len(others)} layers before the head", *cells])
    if len(table) == 1:
        return []
    start = [] if "sigma-start" in record["departures"] else ["Each sigma starts at 1.", ""]
    return ["### Why: where sigma went", "", *start, markdown(table), "", *_still(record)]


def _still(record: Record) -> list[str]:
    """How far any sigma before the head moved under Eq. 7, where that is a small part of how far it could have."""
    row, recipe = TABLES[record["table"]][-1].name, record["recipe"]
    if row not in rows_of(record) or {"sigma-start", "sigma-adam"} & set(record["departures"]):
        return []
    courses = [run["course"]["sigma"] for run in runs_of(record, row)]
    before = [sizes for course in courses for layer, sizes in course.items() if not layer.startswith("head.")]
    moved = max(abs(sizes[end][-1] - 1) for sizes in before for end in ("min", "max"))
    steps = record["epochs"] * math.ceil(record["images"]["train"] / recipe["batch_size"])
    most = steps * recipe["sigma_lr"]
    if moved > most / 5:
        return []
    says = f"The noise before the head is all but fixed: no sigma of {row} there moved by more than {moved:.3f}, where "
    says += f"{steps:,} steps of {recipe['sigma_lr']:g} allow {most:.2f}. Its gradients have no steady sign or are "
    says += "small, and Eq. 7, whose eps of 1e-8 stands inside the root, takes ever smaller steps at gradients below "
    says += "1e-4."
    return [says, ""]


def live(record: Record) -> list[str]:
    """What noise at inference adds by itself under PGD, as lines of Markdown."""
    noisy = [row for row in rows_of(record) if runs_of(record, row)[0]["noisy"]]
    if not noisy:
        return []
    plain, draws = TABLES[record["table"]][0].name, max(record["settings"]["attack_draws"])
    table: Rows = [["PGD", "noise off", f"one draw, EOT-{draws}", "by noise at inference"]]
    if plain in rows_of(record):
        table.append([plain, _pgd(record, plain, "off", 0), "–", "–"])
    for row in noisy:
        table.append([row, _pgd(record, row, "off", 0), _pgd(record, row, "one", draws), _more(record, row, draws)])
    says = "The same trained network, attacked and scored with its noise off, and with it; n images, of which the "
    says += "fewer are the first of the more."
    return ["### Why: trained with noise, or random at inference?", "", says, "", markdown(table), ""]


def _pgd(record: Record, row: str, state: str, draws: int) -> str:
    n = count(runs_of(record, row)[0], "pgd", state=state, draws=draws)
    return f"{cell(record, row, 'pgd', state=state, draws=draws)} (n = {n:,})"


def _more(record: Record, row: str, draws: int) -> str:
    """What noise at inference adds; with one seed ± what the images leave open."""
    runs, states = runs_of(record, row), (("one", draws), ("off", 0))
    on, off = ([accuracy(run, "pgd", state=state, draws=of) for run in runs] for state, of in states)
    gain = mean_std([a - b for a, b in zip(on, off, strict=True)])
    if len(runs) > 1:
        return str(gain)
    error = math.hypot(*(image_error(runs[0], "pgd", state=state, draws=of) for state, of in states))
    return f"{gain.mean:+.3f} ± {error:.3f}"

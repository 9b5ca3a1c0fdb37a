"""An evaluation in plain text: one line per condition, one column per state, and what makes a figure doubtful."""

from dataclasses import asdict
from typing import Any

from noiseprop.evaluation.results import STATES, Evaluation, Measurement, State
from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS

_HEADINGS: dict[State, str] = {"off": "noise off", "one": "one draw", "vote": "vote"}


def summary(evaluation: Evaluation) -> str:
    """The table that `noiseprop evaluate` prints.

    Single conditions come with Wilson's 95 % interval. The average over a corruption's severities comes without one:
    its five figures share their images.

    Args:
        evaluation: what `evaluate` returned or `read` read.

    Returns:
        Lines of plain text: a row per condition, a column per state, then what was measured and what is doubtful.
    """
    states: list[State] = [s for s in STATES if any(m.state == s for m in evaluation.measurements)]
    rows = [["accuracy", *(_heading(s, evaluation) for s in states)]]
    for condition in (c for c in CONDITIONS if c in evaluation.settings.conditions):
        kept = [m for m in evaluation.measurements if m.condition == condition]
        if condition in CORRUPTIONS:
            rows.append([condition, *(_mean_cell(kept, state) for state in states)])
            continue
        for draws in sorted({m.attack_draws for m in kept}):
            label = f"{condition}, EOT-{draws}" if draws else condition
            rows.append([label, *(_cell([m for m in kept if m.attack_draws == draws], state) for state in states)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*table, *_notes(evaluation)])


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """The table for programs, JSON-able: every measurement with Wilson's interval, and the findings."""
    measured = [
        {
            "condition": m.condition,
            "state": m.state,
            "attack_draws": m.attack_draws,
            "severity": m.severity,
            "images": int(m.correct.size),
            "accuracy": m.accuracy,
            "interval": [m.interval.low, m.interval.high],
        }
        for m in evaluation.measurements
    ]
    return {
        "about": dict(evaluation.about),
        "data": evaluation.dataset,
        "noisy": evaluation.noisy,
        "images": evaluation.images,
        "settings": asdict(evaluation.settings),
        "measurements": measured,
        "findings": [asdict(finding) for finding in evaluation.findings],
    }


def _heading(state: State, evaluation: Evaluation) -> str:
    return f"vote of {evaluation.settings.vote_draws}" if state == "vote" else _HEADINGS[state]


def _cell(measurements: list[Measurement], state: State) -> str:
    for m in measurements:
        if m.state == state:
            return f"{m.accuracy:.3f} [{m.interval.low:.3f}, {m.interval.high:.3f}]"
    return "-"


def _mean_cell(measurements: list[Measurement], state: State) -> str:
    found = [m.accuracy for m in measurements if m.state == state]
    return f"{sum(found) / len(found):.3f}" if found else "-"


def _notes(evaluation: Evaluation) -> list[str]:
    attacked = min(evaluation.images, evaluation.settings.attack_images)
    notes = [
        f"{evaluation.dataset}: {evaluation.images} test images clean and corrupted, the first {attacked} of them "
        "under attack; [95 % Wilson interval, of this one training run]."
    ]
    recipe, epochs = (evaluation.about.get(name) for name in ("recipe", "epochs"))
    if recipe not in (None, "table1"):
        notes.append(f"The network was trained by the {recipe} recipe, not the paper's: {epochs} epochs.")
    if set(evaluation.settings.conditions) & set(CORRUPTIONS):
        notes.append("Of a corruption, the mean over its five severities.")
    if evaluation.noisy:
        notes.append(
            "One draw is a single pass with fresh noise. With noise off, the network without its noise is attacked."
        )
    notes += [f"{finding.outcome}: {finding.sentence}" for finding in evaluation.findings]
    return notes + [f"doubtful: {sentence}" for sentence in weak_lbfgs(evaluation)]


def weak_lbfgs(evaluation: Evaluation) -> list[str]:
    """L-BFGS knows no bound, PGD does: an L-BFGS that leaves more has not converged."""
    state = "one" if evaluation.noisy else "off"
    if not {"lbfgs", "pgd"} <= {m.condition for m in evaluation.measurements if m.state == state}:
        return []
    lbfgs, pgd = (evaluation.accuracy(condition) for condition in ("lbfgs", "pgd"))
    if lbfgs <= pgd + TOLERANCE:
        return []
    return [
        f"L-BFGS may change an image as much as it likes and still leaves {lbfgs:.3f}, PGD in its ball only "
        f"{pgd:.3f}; its {evaluation.settings.lbfgs_steps} steps of fixed length have not converged."
    ]

"""Text summary of an evaluation: a row per condition, a column per state, and notes on doubtful figures."""

from collections.abc import Sequence

import msgspec

from noiseprop.evaluation.results import STATES, Evaluation, Finding, Measurement, Scalar, State
from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS, Settings

_STATE_HEADINGS: dict[State, str] = {"off": "noise off", "one": "one draw", "vote": "vote"}


def format_summary(evaluation: Evaluation) -> str:
    """Return the table that `noiseprop evaluate` prints.

    Single conditions have Wilson's 95 % interval. The mean over a corruption's severities has none, because its five
    figures share their images.

    Args:
        evaluation: result of `evaluate` or `read_evaluation`.

    Returns:
        Lines of plain text: a row per condition, a column per state, then notes on the images and doubtful figures.
    """
    states: list[State] = [s for s in STATES if any(m.state == s for m in evaluation.measurements)]
    rows = [["accuracy", *(_format_heading(s, evaluation) for s in states)]]
    for condition in (c for c in CONDITIONS if c in evaluation.settings.conditions):
        kept = [m for m in evaluation.measurements if m.condition == condition]
        if condition in CORRUPTIONS:
            rows.append([condition, *(_format_mean(kept, state) for state in states)])
            continue
        for draws in sorted({m.attack_draws for m in kept}):
            label = f"{condition}, EOT-{draws}" if draws else condition
            rows.append(
                [label, *(_format_accuracy([m for m in kept if m.attack_draws == draws], state) for state in states)]
            )
    return "\n".join([format_text_table(rows), *_format_notes(evaluation)])


def format_text_table(rows: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Return rows of equal length as text with aligned columns.

    >>> print(format_text_table([["a", "b"], ["long", "1"]]))
    a     b
    long  1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


class MeasurementFigures(msgspec.Struct, frozen=True):
    """Accuracy of one measurement with Wilson's 95 % interval; other fields as in `Measurement`."""

    condition: str
    state: State
    attack_draws: int
    severity: int
    images: int
    accuracy: float
    interval: tuple[float, float]


class EvaluationFigures(msgspec.Struct, frozen=True):
    """Figures of an evaluation for programs; fields as in `Evaluation`."""

    about: dict[str, Scalar]
    data: str
    noisy: bool
    images: int
    settings: Settings
    measurements: list[MeasurementFigures]
    findings: tuple[Finding, ...]


def summary_figures(evaluation: Evaluation) -> EvaluationFigures:
    """Return the figures of the table for programs: every measurement, and the findings."""
    measurements = [
        MeasurementFigures(*m.key, m.correct.size, m.accuracy, (m.interval.low, m.interval.high))
        for m in evaluation.measurements
    ]
    return EvaluationFigures(
        about=dict(evaluation.about),
        data=evaluation.dataset,
        noisy=evaluation.noisy,
        images=evaluation.images,
        settings=evaluation.settings,
        measurements=measurements,
        findings=evaluation.findings,
    )


def _format_heading(state: State, evaluation: Evaluation) -> str:
    return f"vote of {evaluation.settings.vote_draws}" if state == "vote" else _STATE_HEADINGS[state]


def _format_accuracy(measurements: list[Measurement], state: State) -> str:
    for m in measurements:
        if m.state == state:
            return f"{m.accuracy:.3f} [{m.interval.low:.3f}, {m.interval.high:.3f}]"
    return "-"


def _format_mean(measurements: list[Measurement], state: State) -> str:
    found = [m.accuracy for m in measurements if m.state == state]
    return f"{sum(found) / len(found):.3f}" if found else "-"


def _format_notes(evaluation: Evaluation) -> list[str]:
    attacked = min(evaluation.images, evaluation.settings.attack_images)
    notes = [
        f"{evaluation.dataset}: {evaluation.images} test images clean and corrupted, the first {attacked} of them "
        "under attack; [95 % Wilson interval, of this one training run]."
    ]
    recipe, epochs = (evaluation.about.get(name) for name in ("recipe", "epochs"))
    if recipe not in (None, "table1"):
        notes.append(f"The network was trained by the {recipe} recipe, not the paper's: {epochs} epochs.")
    if set(evaluation.settings.conditions) & set(CORRUPTIONS):
        notes.append("Corruptions: mean over five severities.")
    if evaluation.noisy:
        notes.append(
            "One draw is a single pass with fresh noise. With noise off, the network without its noise is attacked."
        )
    notes += [f"{finding.outcome}: {finding.sentence}" for finding in evaluation.findings]
    return notes + [f"doubtful: {sentence}" for sentence in find_weak_lbfgs(evaluation)]


def find_weak_lbfgs(evaluation: Evaluation) -> list[str]:
    """Return a sentence if L-BFGS, which has no bound, leaves more than PGD and so has not converged."""
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

"""Table of a report: accuracies of runs and of their groups, with the doubts about each figure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from noiseprop.evaluation.results import STATES, Evaluation, State
from noiseprop.evaluation.settings import ATTACKS, CONDITIONS, CORRUPTIONS
from noiseprop.evaluation.statistics import mean_std
from noiseprop.evaluation.text_summary import find_weak_lbfgs
from noiseprop.report.run_groups import Group, Run

NAMES = {
    "clean": "clean",
    "fgsm": "FGSM",
    "lbfgs": "L-BFGS",
    "pgd": "PGD",
    "fgsm-transfer": "FGSM, transfer",
    "lbfgs-transfer": "L-BFGS, transfer",
    "gaussian_noise": "Gaussian noise",
    "impulse_noise": "impulse noise",
    "glass_blur": "glass blur",
    "contrast": "contrast",
}
"""Names of the conditions on the page."""

STATE_NAMES: dict[State, str] = {"off": "off", "one": "one draw", "vote": "vote"}

MAX_FINDINGS = 50  # shown of a run; an evaluation has six

# Conditions whose figures a failed sanity check makes doubtful
_AFFECTED_CONDITIONS: dict[str, tuple[str, ...]] = {
    "noise": CONDITIONS,
    "convergence": ("pgd",),
    "single step": ("fgsm", "pgd"),
    "transfer": ("fgsm", "lbfgs"),
    "large eps": ATTACKS,
    "frozen noise": ATTACKS,
    "L-BFGS": ("lbfgs",),
}


@dataclass
class Doubt:
    """Failed check that makes figures of a group doubtful, with its sentence for each affected run."""

    number: int
    group: str
    check: str
    sentences: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """Accuracy with its ± or interval as text, the ends of its error bar, and the doubts about it."""

    value: float
    spread: str
    low: float
    high: float
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True)
class Row:
    """Row of the table: a group (`run` is None) or one of its runs, in one state of its noise."""

    group: str
    run: str | None
    data: str
    state: str
    is_reported: bool
    runs: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """Table with the conditions of its columns, its rows, and the doubts that they refer to."""

    conditions: tuple[str, ...]
    rows: tuple[Row, ...]
    doubts: tuple[Doubt, ...]


def tabulate_accuracies(groups: Sequence[Group]) -> Table:
    """Return all figures of the groups that were evaluated."""
    measured = {m.condition for group in groups for e in group.evaluations for m in e.measurements}
    conditions = tuple(condition for condition in CONDITIONS if condition in measured)
    doubts = {group.label: _find_doubts(group) for group in groups}
    numbered = [doubt for found in doubts.values() for doubt in found]
    for number, doubt in enumerate(numbered, 1):
        doubt.number = number
    rows: list[Row] = []
    for group in groups:
        for state in STATES:
            members = [run for run in group.runs if run.evaluation and _has_measurement(run.evaluation, state)]
            if not members:
                continue
            rows.append(_make_row(group, None, members, state, conditions, doubts[group.label]))
            if len(group.runs) > 1:
                rows += [_make_row(group, run, [run], state, conditions, doubts[group.label]) for run in members]
    return Table(conditions, tuple(rows), tuple(numbered))


def group_doubts(doubts: Sequence[Doubt]) -> dict[str, list[Doubt]]:
    """Return the doubts about each condition, by its name on the page."""
    return {NAMES[c]: [doubt for doubt in doubts if _affects(doubt.check, c)] for c in CONDITIONS}


def choose_reported_state(evaluation: Evaluation) -> State:
    """Return the state of a network as deployed: one draw of its noise, or off without noise."""
    return "one" if evaluation.noisy else "off"


def find_severities(evaluation: Evaluation, kind: str) -> dict[int, float]:
    """Return the accuracy by severity of a corruption in the reported state; 0 is clean, empty is not measured."""
    state = choose_reported_state(evaluation)
    found = {m.severity: m.accuracy for m in evaluation.measurements if m.condition == kind and m.state == state}
    clean = [m.accuracy for m in evaluation.measurements if m.condition == "clean" and m.state == state]
    return {0: clean[0], **found} if clean and found else found


def _find_doubts(group: Group) -> list[Doubt]:
    by_check: dict[str, Doubt] = {}
    for run in group.runs:
        if run.evaluation is None:
            continue
        findings = run.evaluation.findings[:MAX_FINDINGS]
        failed = [(f.name, f.sentence) for f in findings if f.outcome == "failed"]
        failed += [("L-BFGS", sentence) for sentence in find_weak_lbfgs(run.evaluation)]
        for check, sentence in failed:
            doubt = by_check.setdefault(check, Doubt(0, group.label, check))
            doubt.sentences.append((run.seed, sentence))
    return list(by_check.values())


def _make_row(
    group: Group,
    run: Run | None,
    members: Sequence[Run],
    state: State,
    conditions: Sequence[str],
    doubts: Sequence[Doubt],
) -> Row:
    evaluations = [member.evaluation for member in members if member.evaluation]
    touching = [d for d in doubts if run is None or any(who == run.seed for who, _ in d.sentences)]
    first = evaluations[0]
    return Row(
        group.label,
        run.seed if run else None,
        first.dataset,
        STATE_NAMES[state] if first.noisy else "none",
        all(state == choose_reported_state(e) for e in evaluations),
        len(members),
        tuple(_make_cell(evaluations, condition, state, touching) for condition in conditions),
    )


def _make_cell(evaluations: Sequence[Evaluation], condition: str, state: State, doubts: Sequence[Doubt]) -> Cell | None:
    """Return a mean ± the standard deviation over seeds, or the accuracy of one run with Wilson's interval."""
    values = [e.accuracy(condition, state=state) for e in evaluations if _has_measurement(e, state, condition)]
    if not values:
        return None
    as_judged = state == choose_reported_state(evaluations[0])
    touching = tuple(d for d in doubts if _affects(d.check, condition) and (as_judged or state == "vote"))
    spread = mean_std(values)
    if spread.std is not None:
        low, high = max(0.0, spread.mean - spread.std), min(1.0, spread.mean + spread.std)
        return Cell(spread.mean, f"± {spread.std:.3f}", low, high, touching)
    if condition in CORRUPTIONS:
        return Cell(values[0], "", values[0], values[0], touching)
    (m,) = next(e for e in evaluations if _has_measurement(e, state, condition)).select(condition, state=state)
    return Cell(m.accuracy, f"[{m.interval.low:.3f}, {m.interval.high:.3f}]", m.interval.low, m.interval.high, touching)


def _affects(check: str, condition: str) -> bool:
    """Return whether a check concerns a condition; an unknown check concerns all."""
    return condition in _AFFECTED_CONDITIONS.get(check, CONDITIONS)


def _has_measurement(evaluation: Evaluation, state: State, condition: str | None = None) -> bool:
    return any(m.state == state and condition in (None, m.condition) for m in evaluation.measurements)

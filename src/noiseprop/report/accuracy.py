"""The table of a report: accuracies of runs and of their groups, and beside each figure what makes it doubtful."""

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
"""The conditions as people read them."""

STATE_NAMES: dict[State, str] = {"off": "off", "one": "one draw", "vote": "vote"}

MOST_FINDINGS = 50  # shown of a run; an evaluation has six

# The figures on which a finding of `evaluation.trust` casts doubt
_TOUCHES: dict[str, tuple[str, ...]] = {
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
    """What makes figures of a group doubtful: a check that failed, and for each run where it did, its sentence."""

    number: int
    group: str
    check: str
    sentences: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One figure: accuracy, what stands behind its ±, the ends of its bar's whisker, and the doubts about it."""

    value: float
    spread: str
    low: float
    high: float
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table: a group (`run` is None) or one of its runs, in one state of its noise."""

    group: str
    run: str | None
    data: str
    state: str
    judged: bool
    runs: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """The whole: the conditions of its columns, its rows, and the doubts that they point to."""

    conditions: tuple[str, ...]
    rows: tuple[Row, ...]
    doubts: tuple[Doubt, ...]


def table(groups: Sequence[Group]) -> Table:
    """All figures of the groups that were evaluated."""
    measured = {m.condition for group in groups for e in group.evaluations for m in e.measurements}
    conditions = tuple(condition for condition in CONDITIONS if condition in measured)
    doubts = {group.label: _doubts(group) for group in groups}
    numbered = [doubt for found in doubts.values() for doubt in found]
    for number, doubt in enumerate(numbered, 1):
        doubt.number = number
    rows: list[Row] = []
    for group in groups:
        for state in STATES:
            members = [run for run in group.runs if run.evaluation and _has(run.evaluation, state)]
            if not members:
                continue
            rows.append(_row(group, None, members, state, conditions, doubts[group.label]))
            if len(group.runs) > 1:
                rows += [_row(group, run, [run], state, conditions, doubts[group.label]) for run in members]
    return Table(conditions, tuple(rows), tuple(numbered))


def by_condition(doubts: Sequence[Doubt]) -> dict[str, list[Doubt]]:
    """The doubts about each condition, by its name for people."""
    return {NAMES[c]: [doubt for doubt in doubts if _touches(doubt.check, c)] for c in CONDITIONS}


def judged_state(evaluation: Evaluation) -> State:
    """The state of a network as it is used: one draw of its noise, or off where it has none."""
    return "one" if evaluation.noisy else "off"


def severities(evaluation: Evaluation, kind: str) -> dict[int, float]:
    """Accuracy by severity of a corruption, as judged; 0 is clean. Empty where it was not measured."""
    state = judged_state(evaluation)
    found = {m.severity: m.accuracy for m in evaluation.measurements if m.condition == kind and m.state == state}
    clean = [m.accuracy for m in evaluation.measurements if m.condition == "clean" and m.state == state]
    return {0: clean[0], **found} if clean and found else found


def _doubts(group: Group) -> list[Doubt]:
    by_check: dict[str, Doubt] = {}
    for run in group.runs:
        if run.evaluation is None:
            continue
        findings = run.evaluation.findings[:MOST_FINDINGS]
        failed = [(f.name, f.sentence) for f in findings if f.outcome == "failed"]
        failed += [("L-BFGS", sentence) for sentence in find_weak_lbfgs(run.evaluation)]
        for check, sentence in failed:
            doubt = by_check.setdefault(check, Doubt(0, group.label, check))
            doubt.sentences.append((run.seed, sentence))
    return list(by_check.values())


def _row(
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
        all(state == judged_state(e) for e in evaluations),
        len(members),
        tuple(_cell(evaluations, condition, state, touching) for condition in conditions),
    )


def _cell(evaluations: Sequence[Evaluation], condition: str, state: State, doubts: Sequence[Doubt]) -> Cell | None:
    """A mean ± the deviation over seeds; of one run, with Wilson's interval where one sample of images stands alone."""
    values = [e.accuracy(condition, state=state) for e in evaluations if _has(e, state, condition)]
    if not values:
        return None
    as_judged = state == judged_state(evaluations[0])
    touching = tuple(d for d in doubts if _touches(d.check, condition) and (as_judged or state == "vote"))
    spread = mean_std(values)
    if spread.std is not None:
        low, high = max(0.0, spread.mean - spread.std), min(1.0, spread.mean + spread.std)
        return Cell(spread.mean, f"± {spread.std:.3f}", low, high, touching)
    if condition in CORRUPTIONS:
        return Cell(values[0], "", values[0], values[0], touching)
    (m,) = next(e for e in evaluations if _has(e, state, condition)).select(condition, state=state)
    return Cell(m.accuracy, f"[{m.interval.low:.3f}, {m.interval.high:.3f}]", m.interval.low, m.interval.high, touching)


def _touches(check: str, condition: str) -> bool:
    """A check that this version does not know touches everything."""
    return condition in _TOUCHES.get(check, CONDITIONS)


def _has(evaluation: Evaluation, state: State, condition: str | None = None) -> bool:
    return any(m.state == state and condition in (None, m.condition) for m in evaluation.measurements)

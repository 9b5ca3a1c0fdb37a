"""Paired tests of a report: two runs on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from noiseprop.corruptions import SEVERITIES
from noiseprop.errors import InputError
from noiseprop.evaluation.compare import compare
from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS
from noiseprop.evaluation.statistics import Paired, holm
from noiseprop.report.run_groups import Group, Run

MOST = 10  # runs of which all pairs are compared


@dataclass(frozen=True)
class Line:
    """Test of one condition, with its p-value corrected for all lines of the pair."""

    condition: str
    severity: int
    test: Paired
    p_value: float


@dataclass(frozen=True)
class Pair:
    """Two runs by name, with the lines of their comparison or the reason why there are none."""

    a: str
    b: str
    lines: tuple[Line, ...]
    trouble: str


def compare_all_pairs(groups: Sequence[Group]) -> tuple[Pair, ...]:
    """Return all pairs of the first evaluated runs of the groups, or of a single group's runs; at most `MOST` runs."""
    heads = [(group.label, run) for group in groups for run in group.runs if run.evaluation]
    if len(groups) > 1:
        seen: set[str] = set()
        heads = [(label, run) for label, run in heads if not (label in seen or seen.add(label))]
    return tuple(_compare_pair(*a, *b) for a, b in combinations(heads[:MOST], 2))


def _compare_pair(label_a: str, a: Run, label_b: str, b: Run) -> Pair:
    names = (f"{label_a}, {a.seed}", f"{label_b}, {b.seed}")
    assert a.evaluation is not None
    assert b.evaluation is not None
    try:
        tests = _run_paired_tests(a.evaluation, b.evaluation)
    except InputError as error:
        return Pair(*names, (), str(error))
    corrected = holm([test.p_value for _, _, test in tests])
    lines = tuple(Line(*test, p) for test, p in zip(tests, corrected, strict=True))
    return Pair(*names, lines, "" if lines else "They have no condition in common.")


def _run_paired_tests(a: Evaluation, b: Evaluation) -> list[tuple[str, int, Paired]]:
    there = [{(m.condition, m.severity) for m in e.measurements} for e in (a, b)]
    found: list[tuple[str, int, Paired]] = []
    for condition in CONDITIONS:
        for severity in SEVERITIES if condition in CORRUPTIONS else (0,):
            if all((condition, severity) in measured for measured in there):
                found.append((condition, severity, compare(a, b, condition, severity=severity)))
    return found

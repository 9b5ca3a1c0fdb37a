"""Claims of the paper as comparisons of two rows, tested over training seeds or over images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from scipy.stats import norm

from noiseprop.evaluation.sanity_checks import TOLERANCE
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERRED_ATTACKS, TRANSFERS
from noiseprop.evaluation.statistics import Interval, Spread, holm, mean_std, welch
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import TableResult
from noiseprop.paper.specs import RESNETS, TABLES

LEVEL = 0.05
VALIDATION_LOSS, VALIDATION_ACCURACY = 0.2, 0.94  # "trains faster": the epochs until these
EPOCHS_TO_LOSS, EPOCHS_TO_ACCURACY = "epochs to the loss", "epochs to the accuracy"
HEADINGS = COLUMNS | {
    EPOCHS_TO_LOSS: f"epochs to validation loss {VALIDATION_LOSS:g}",
    EPOCHS_TO_ACCURACY: f"epochs to validation accuracy {VALIDATION_ACCURACY:g}",
}
_ROUNDING = 1e-9  # of means over severities

Basis = Literal["seeds", "images"]
_Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Claim:
    """Sentence of the paper, as comparisons: in each of `pairs` the first has more.

    More means a higher accuracy under a condition, or fewer epochs. `denied` marks a claim that the paper contradicts.
    """

    sentence: str
    pairs: _Pairs
    conditions: tuple[str, ...]
    denied: bool = False


@dataclass(frozen=True)
class Comparison:
    """Two rows under one condition.

    Attributes:
        first: row that is claimed to be better.
        second: the other row.
        condition: condition, or kind of epochs.
        spreads: mean and spread of the values of both rows.
        gain: advantage of the first in the claimed direction, in accuracy or in epochs saved.
        error: half the 95 % interval of the gain: Welch's over seeds, or that of the choice of images; None for epochs.
        printed: gain in the table of the paper; None where it prints no such number.
        p_value: two-sided, with Holm's correction within the claim; None if it cannot be tested.
        basis: sampling that the test reflects.
    """

    first: str
    second: str
    condition: str
    spreads: tuple[Spread, Spread]
    gain: float
    error: float | None
    printed: float | None
    p_value: float | None
    basis: Basis

    @property
    def verdict(self) -> int:
        """Return 1 for a significant difference as claimed, -1 for one in the other direction, otherwise 0."""
        if self.p_value is None or self.p_value >= LEVEL:
            return 0
        return 1 if self.gain > 0 else -1


def _make_noise_claims(learned: _Pairs, over_fixed: _Pairs, fixed: _Pairs, *, denied: bool) -> tuple[Claim, ...]:
    """Return the claims about all tables.

    Args:
        learned: pairs of a network with learned noise and the one without.
        over_fixed: pairs of learned and fixed noise.
        fixed: pairs of fixed noise and none.
        denied: whether the paper denies that fixed noise defends.
    """
    backwards = tuple((without, noisy) for noisy, without in fixed)
    return (
        Claim("Learned noise raises accuracy on clean images", learned, ("clean",)),
        Claim("Learned noise raises accuracy under white-box attacks", learned, ATTACKS),
        Claim("Learned noise raises accuracy under black-box attacks", learned, TRANSFERS),
        Claim("Learned noise raises accuracy on corrupted images", learned, CORRUPTIONS),
        Claim("Learned noise defends better than fixed noise", over_fixed, (*ATTACKS, *TRANSFERS)),
        Claim("Fixed noise raises accuracy under white-box attacks", fixed, ATTACKS, denied),
        Claim("Fixed noise lowers accuracy on clean images", backwards, ("clean",)),
    )


def _pair_mlps(first: str, second: str) -> _Pairs:
    return tuple((f"{first}, {activation}", f"{second}, {activation}") for activation in ("ReLU", "Sigmoid"))


def _make_deep_claims(table: str) -> tuple[Claim, ...]:
    base, head_fixed, all_fixed, head_learned, all_learned = (row.name for row in TABLES[table])
    claims = _make_noise_claims(
        ((head_learned, base), (all_learned, base)),
        ((head_learned, head_fixed), (all_learned, all_fixed)),
        ((head_fixed, base), (all_fixed, base)),
        denied=table in RESNETS,
    )
    if table not in RESNETS:
        return (*claims, Claim("Noise in the head alone is best", ((head_learned, all_learned),), tuple(COLUMNS)))
    pairs = tuple((all_learned, row) for row in (base, head_fixed, all_fixed, head_learned))
    return (*claims, Claim("Learned noise everywhere is best in all cases", pairs, tuple(COLUMNS)))


CLAIMS = {
    "table3": (
        *_make_noise_claims(
            _pair_mlps("MLPN", "MLP"), _pair_mlps("MLPN", "MLP+"), _pair_mlps("MLP+", "MLP"), denied=False
        ),
        Claim(
            "Sigmoid does better than ReLU",
            tuple((f"{model}, Sigmoid", f"{model}, ReLU") for model in ("MLP", "MLP+", "MLPN")),
            tuple(COLUMNS),
        ),
        Claim(
            "Learned noise trains faster",
            (("MLPN, ReLU", "MLP, ReLU"), ("MLPN, ReLU", "MLP+, ReLU")),
            (EPOCHS_TO_LOSS, EPOCHS_TO_ACCURACY),
        ),
    ),
    **{table: _make_deep_claims(table) for table in ("table4", *RESNETS)},
}
"""Claims of sections 4.2 to 4.4 of the paper about each table."""


class TestStrategy(Protocol):
    """Test of two rows against each other, and selection of the rows and attacks that can be compared."""

    def is_excluded(self, record: TableResult, row: str, condition: str) -> bool:
        """Return whether a row must not be compared under a condition."""
        ...

    def run_test(self, record: TableResult, comparison: Comparison) -> Comparison:
        """Return the comparison with error and p-value."""
        ...


class SeedStrategy:
    """Welch's test over seeds; rows with one seed are untested, and their error is that of their images."""

    def is_excluded(self, record: TableResult, row: str, condition: str) -> bool:
        """Exclude nothing."""
        return row not in record.rows

    def run_test(self, record: TableResult, comparison: Comparison) -> Comparison:
        """Return the comparison with Welch's error and p-value, or without p-value for one seed."""
        first, second, condition = comparison.first, comparison.second, comparison.condition
        test = welch(list_values(record, first, condition), list_values(record, second, condition))
        if test is not None:
            error = (test.difference.high - test.difference.low) / 2
            return replace(comparison, error=error, p_value=test.p_value)
        error = combine_image_errors(record, first, second, condition) if condition in COLUMNS else None
        return replace(comparison, error=error)


class ImageStrategy(SeedStrategy):
    """Welch's test over seeds where both rows have several that differ, otherwise a test over images.

    The latter compares the first seeds, two-sided, by the normal approximation, as if the two networks had been
    evaluated on different images. They share their images, on which networks tend to err together, so p is rather too
    large. Rows that have not learned and attacks that failed are excluded.
    """

    def is_excluded(self, record: TableResult, row: str, condition: str) -> bool:
        """Exclude missing rows, those that may be guessing, and failed attacks."""
        if super().is_excluded(record, row, condition) or row in find_guessing(record):
            return True
        return condition in find_failed_attacks(record).get(row, ())

    def run_test(self, record: TableResult, comparison: Comparison) -> Comparison:
        """Return the comparison with error and p-value over seeds or images."""
        several = all(spread.n > 1 for spread in comparison.spreads)
        if several and any((spread.std or 0) > _ROUNDING for spread in comparison.spreads):
            return super().run_test(record, comparison)
        first, second, condition = comparison.first, comparison.second, comparison.condition
        gain = record.find_runs(first)[0].accuracy(condition) - record.find_runs(second)[0].accuracy(condition)
        error = combine_image_errors(record, first, second, condition)
        p_value = 2 * float(norm.sf(abs(gain) / error * norm.isf(0.025)))
        return replace(comparison, gain=gain, error=error, p_value=p_value, basis="images")


def choose_strategy(table: str) -> TestStrategy:
    """Return the test of a table: over seeds for MNIST, over seeds or images for ResNets, which have few seeds."""
    return ImageStrategy() if table in RESNETS else SeedStrategy()


def compare_claim(record: TableResult, claim: Claim) -> list[Comparison]:
    """Return all comparisons of a claim that a record allows, with p after Holm's correction within the claim."""
    strategy = choose_strategy(record.table)
    found = [
        strategy.run_test(record, _compare_rows(record, first, second, condition))
        for first, second in claim.pairs
        for condition in claim.conditions
        if not any(strategy.is_excluded(record, row, condition) for row in (first, second))
    ]
    p_values = [c.p_value for c in found if c.p_value is not None]
    if len(p_values) < len(found):
        return found
    return [replace(c, p_value=p) for c, p in zip(found, holm(p_values), strict=True)]


def _compare_rows(record: TableResult, first: str, second: str, condition: str) -> Comparison:
    spreads = (
        mean_std(list_values(record, first, condition)),
        mean_std(list_values(record, second, condition)),
    )
    is_accuracy = condition in COLUMNS
    gain = (1 if is_accuracy else -1) * (spreads[0].mean - spreads[1].mean)  # fewer epochs are better
    printed = record.printed[first][condition] - record.printed[second][condition] if is_accuracy else None
    return Comparison(first, second, condition, spreads, gain, None, printed, None, "seeds")


def combine_image_errors(record: TableResult, first: str, second: str, condition: str) -> float:
    """Return half the 95 % interval of the difference between the first seeds of two rows, over images."""
    return math.hypot(*(record.find_runs(row)[0].image_error(condition) for row in (first, second)))


def list_values(record: TableResult, row: str, condition: str) -> list[float]:
    """Return one number for each run of a row: its accuracy under a condition, or the epochs that it took.

    Between two epochs the course counts as a straight line. A value that is reached by the end of the first epoch
    counts as one epoch; one that is never reached, as one epoch more than the run had.
    """
    runs = record.find_runs(row)
    if condition in COLUMNS:
        return [run.accuracy(condition) for run in runs]
    if condition == EPOCHS_TO_LOSS:
        return [_count_epochs([VALIDATION_LOSS - v for v in run.course.validation_loss]) for run in runs]
    return [_count_epochs([v - VALIDATION_ACCURACY for v in run.course.validation_accuracy]) for run in runs]


def _count_epochs(above: Sequence[float]) -> float:
    """Return when a course by epoch first reaches zero from below."""
    end = next((epoch for epoch, value in enumerate(above) if value >= 0), None)
    if end is None:
        return float(len(above) + 1)
    if end == 0:
        return 1.0
    low, high = above[end - 1], above[end]
    return end + low / (low - high)


def compute_relative_gain(record: TableResult, first: str, second: str, condition: str) -> Interval | None:
    """Return the relative advantage of the first row over seeds; None for one seed or an accuracy of 0.

    Logarithms of accuracies are compared, so the ratio is that of geometric means.
    """
    a, b = list_values(record, first, condition), list_values(record, second, condition)
    test = welch([math.log(v) for v in a], [math.log(v) for v in b]) if min(*a, *b) > 0 else None
    if test is None:
        return None
    d = test.difference
    return Interval(math.expm1(d.estimate), math.expm1(d.low), math.expm1(d.high), d.confidence)


def chance_level(record: TableResult) -> float:
    """Return the accuracy of guessing one class."""
    return 1 / record.data.classes


def is_guess(record: TableResult, row: str, condition: str) -> bool:
    """Return whether no run of a row is shown to do better than guessing."""
    return max(run.image_interval(condition)[0] for run in record.find_runs(row)) <= chance_level(record)


def find_guessing(record: TableResult) -> list[str]:
    """Return the rows that may be guessing on clean images; their accuracy under attack is a guess, too."""
    return [row for row in record.rows if is_guess(record, row, "clean")]


def find_failed_attacks(record: TableResult) -> dict[str, list[str]]:
    """Return the white-box attacks that failed, by row: by transfer, the same attack leaves clearly less.

    The attack had the gradients and achieved less than one that had none, so its result is not robustness. Rows that
    may be guessing are left out.
    """
    found: dict[str, list[str]] = {}
    guessing = find_guessing(record)
    for row in (row for row in record.rows if row not in guessing):
        for transfer, attack in TRANSFERRED_ATTACKS.items():
            if record.compute_spread(row, attack).mean > record.compute_spread(row, transfer).mean + TOLERANCE:
                found.setdefault(row, []).append(attack)
    return found


def judge_claim(found: Sequence[Comparison]) -> str:
    """Return the verdict on a claim: holds, in part, mixed, not shown, no, the reverse, or untested."""
    n = len(found)
    if any(c.p_value is None for c in found):
        return "untested"
    holds, against = (sum(c.verdict == sign for c in found) for sign in (1, -1))
    if holds:
        return "holds" if holds == n else "mixed" if against else "in part"
    if against:
        return "the reverse" if against == n else "no"
    return "not shown"


def count_differences(found: Sequence[Comparison]) -> str:
    """Return the number of comparisons, and how many differ significantly and in which direction."""
    n = len(found)
    if judge_claim(found) == "untested":
        return f"{sum(c.gain > 0 for c in found)} of {n} as claimed"
    directions = [
        (sum(c.verdict == sign for c in found), text) for sign, text in ((1, "as claimed"), (-1, "the other way"))
    ]
    return f"of {n}, " + (" and ".join(f"{count} {text}" for count, text in directions if count) or "none significant")

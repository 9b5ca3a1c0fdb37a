"""The paper's claims about Tables 3 and 4, each as comparisons of two rows, tested over training seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from scipy.stats import ttest_ind

from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.evaluation.statistics import Spread, mean_std
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import Record, accuracy, runs_of

LEVEL = 0.05
VALIDATION_LOSS, VALIDATION_ACCURACY = 0.2, 0.94  # "trains faster": the epochs until these

EPOCHS_TO_LOSS, EPOCHS_TO_ACCURACY = "epochs to the loss", "epochs to the accuracy"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the comparisons that it amounts to: in each of `pairs` the first has more.

    Where `what` is an accuracy's condition, more means higher; where it is a number of epochs, the first needs fewer.
    """

    sentence: str
    pairs: tuple[tuple[str, str], ...]
    what: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two rows under one condition, over seeds.

    Attributes:
        first: the row that is claimed to be better.
        second: the other one.
        what: condition, or kind of epochs.
        ours: mean and spread of both rows' values.
        gain: how much better the first is, in the claim's direction: in accuracy, or in epochs saved.
        printed: the same from the paper's table; None where it prints no such number.
        p_value: two-sided, of Welch's test over seeds, after Holm's correction within the claim; None for one seed.
    """

    first: str
    second: str
    what: str
    ours: tuple[Spread, Spread]
    gain: float
    printed: float | None
    p_value: float | None

    @property
    def verdict(self) -> int:
        """1 where the difference is significant and as claimed, -1 where it is significant the other way, else 0."""
        if self.p_value is None or self.p_value >= LEVEL:
            return 0
        return 1 if self.gain > 0 else -1


_BOTH = ("ReLU", "Sigmoid")


def _mlps(first: str, second: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{first}, {act}", f"{second}, {act}") for act in _BOTH)


CLAIMS = {
    "table3": (
        Claim("Learned noise raises accuracy on clean images", _mlps("MLPN", "MLP"), ("clean",)),
        Claim("Learned noise raises accuracy under white-box attacks", _mlps("MLPN", "MLP"), ATTACKS),
        Claim("Learned noise raises accuracy under black-box attacks", _mlps("MLPN", "MLP"), TRANSFERS),
        Claim("Learned noise raises accuracy on corrupted images", _mlps("MLPN", "MLP"), CORRUPTIONS),
        Claim("Learned noise defends better than fixed noise", _mlps("MLPN", "MLP+"), (*ATTACKS, *TRANSFERS)),
        Claim("Fixed noise raises accuracy under white-box attacks", _mlps("MLP+", "MLP"), ATTACKS),
        Claim("Fixed noise lowers accuracy on clean images", _mlps("MLP", "MLP+"), ("clean",)),
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
    "table4": (
        Claim("Learned noise raises accuracy on clean images", (("CNN-MLPN", "CNN"), ("CNN-AN", "CNN")), ("clean",)),
        Claim(
            "Learned noise raises accuracy under white-box attacks", (("CNN-MLPN", "CNN"), ("CNN-AN", "CNN")), ATTACKS
        ),
        Claim(
            "Learned noise raises accuracy under black-box attacks", (("CNN-MLPN", "CNN"), ("CNN-AN", "CNN")), TRANSFERS
        ),
        Claim(
            "Learned noise raises accuracy on corrupted images", (("CNN-MLPN", "CNN"), ("CNN-AN", "CNN")), CORRUPTIONS
        ),
        Claim(
            "Learned noise defends better than fixed noise",
            (("CNN-MLPN", "CNN-MLP+"), ("CNN-AN", "CNN-A+")),
            (*ATTACKS, *TRANSFERS),
        ),
        Claim("Fixed noise raises accuracy under white-box attacks", (("CNN-MLP+", "CNN"), ("CNN-A+", "CNN")), ATTACKS),
        Claim("Fixed noise lowers accuracy on clean images", (("CNN", "CNN-MLP+"), ("CNN", "CNN-A+")), ("clean",)),
        Claim("Noise in the head alone is best", (("CNN-MLPN", "CNN-AN"),), tuple(COLUMNS)),
    ),
}
"""What section 4.2 of the paper says of its Tables 3 and 4 and of Figure 3."""


def compare(record: Record, claim: Claim) -> list[Comparison]:
    """All comparisons of a claim on a record."""
    found = [_compare(record, first, second, what) for first, second in claim.pairs for what in claim.what]
    tested = [c.p_value for c in found]
    if any(p is None for p in tested):
        return found
    corrected = holm([cast(float, p) for p in tested])
    return [replace(c, p_value=p) for c, p in zip(found, corrected, strict=True)]


def _compare(record: Record, first: str, second: str, what: str) -> Comparison:
    a, b = values(record, first, what), values(record, second, what)
    sign = 1 if what in COLUMNS else -1  # fewer epochs are better
    printed = None
    if what in COLUMNS:
        printed = PUBLISHED[record["table"]][first][what] - PUBLISHED[record["table"]][second][what]
    ours = (mean_std(a), mean_std(b))
    return Comparison(first, second, what, ours, sign * (ours[0].mean - ours[1].mean), printed, welch(a, b))


def values(record: Record, row: str, what: str) -> list[float]:
    """One number for each run of a row: its accuracy under a condition, or the epochs that it took.

    A run that never came there counts as one epoch more than it had.
    """
    runs = runs_of(record, row)
    if what in COLUMNS:
        return [accuracy(run, what) for run in runs]
    courses = [run["course"] for run in runs]
    if what == EPOCHS_TO_LOSS:
        return [_first([loss <= VALIDATION_LOSS for loss in course["validation_loss"]]) for course in courses]
    return [_first([value >= VALIDATION_ACCURACY for value in course["validation_accuracy"]]) for course in courses]


def _first(reached: Sequence[bool]) -> float:
    return float(next((epoch for epoch, there in enumerate(reached, 1) if there), len(reached) + 1))


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t-test that two means are equal; None where a sample has fewer than two values.

    >>> round(welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), 6)
    0.021312
    """
    if min(len(a), len(b)) < 2:
        return None
    if len(set(a)) == len(set(b)) == 1:  # no spread at all, where the test divides 0 by 0
        return 1.0 if a[0] == b[0] else 0.0
    p = float(cast(Any, ttest_ind(a, b, equal_var=False)).pvalue)
    return 1.0 if math.isnan(p) else p


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several tests at once, in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = so_far
    return corrected

"""The paper's claims about its tables, each as comparisons of two rows, tested over training seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.evaluation.statistics import Interval, Spread, holm, mean_std, welch
from noiseprop.paper.published import COLUMNS, PUBLISHED
from noiseprop.paper.results import Record, accuracy, image_error, runs_of

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
        error: half the gain's 95 % interval: Welch's over seeds, or, for one seed, what its images leave open (None for
            epochs).
        printed: the gain in the paper's table; None where it prints no such number.
        p_value: two-sided, of Welch's test over seeds, after Holm's correction within the claim; None for one seed.
    """

    first: str
    second: str
    what: str
    ours: tuple[Spread, Spread]
    gain: float
    error: float | None
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


_Pairs = tuple[tuple[str, str], ...]


def _noise_claims(learned: _Pairs, over_fixed: _Pairs, fixed: _Pairs) -> tuple[Claim, ...]:
    """What the paper says of every table.

    Args:
        learned: pairs of a network with learned noise and the one without.
        over_fixed: pairs of learned and fixed noise.
        fixed: pairs of fixed noise and none.
    """
    backwards = tuple((without, noisy) for noisy, without in fixed)
    return (
        Claim("Learned noise raises accuracy on clean images", learned, ("clean",)),
        Claim("Learned noise raises accuracy under white-box attacks", learned, ATTACKS),
        Claim("Learned noise raises accuracy under black-box attacks", learned, TRANSFERS),
        Claim("Learned noise raises accuracy on corrupted images", learned, CORRUPTIONS),
        Claim("Learned noise defends better than fixed noise", over_fixed, (*ATTACKS, *TRANSFERS)),
        Claim("Fixed noise raises accuracy under white-box attacks", fixed, ATTACKS),
        Claim("Fixed noise lowers accuracy on clean images", backwards, ("clean",)),
    )


CLAIMS = {
    "table3": (
        *_noise_claims(_mlps("MLPN", "MLP"), _mlps("MLPN", "MLP+"), _mlps("MLP+", "MLP")),
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
        *_noise_claims(
            (("CNN-MLPN", "CNN"), ("CNN-AN", "CNN")),
            (("CNN-MLPN", "CNN-MLP+"), ("CNN-AN", "CNN-A+")),
            (("CNN-MLP+", "CNN"), ("CNN-A+", "CNN")),
        ),
        Claim("Noise in the head alone is best", (("CNN-MLPN", "CNN-AN"),), tuple(COLUMNS)),
    ),
}
"""What section 4.2 of the paper says of its Tables 3 and 4 and of Figure 3."""

PERCENTAGES = {"table3": ("MLPN, Sigmoid", "MLP, Sigmoid"), "table4": ("CNN-MLPN", "CNN")}
"""The two rows of which section 4.2 says by how many per cent the first is better."""


def compare(record: Record, claim: Claim) -> list[Comparison]:
    """All comparisons of a claim on a record."""
    return corrected(differences(record, claim))


def corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons of one claim with each p after Holm's correction; as they are where any has no p."""
    p_values = [c.p_value for c in found if c.p_value is not None]
    if len(p_values) < len(found):
        return list(found)
    return [replace(c, p_value=p) for c, p in zip(found, holm(p_values), strict=True)]


def differences(record: Record, claim: Claim) -> list[Comparison]:
    """All comparisons of a claim on a record, each p by itself, without Holm's correction."""
    return [_compare(record, first, second, what) for first, second in claim.pairs for what in claim.what]


def _compare(record: Record, first: str, second: str, what: str) -> Comparison:
    a, b = values(record, first, what), values(record, second, what)
    ours, test = (mean_std(a), mean_std(b)), welch(a, b)
    sign = 1 if what in COLUMNS else -1  # fewer epochs are better
    error = printed = None
    if test is not None:
        error = (test.difference.high - test.difference.low) / 2
    elif what in COLUMNS:
        error = both_errors(record, first, second, what)
    if what in COLUMNS:
        printed = PUBLISHED[record["table"]][first][what] - PUBLISHED[record["table"]][second][what]
    gain = sign * (ours[0].mean - ours[1].mean)
    return Comparison(first, second, what, ours, gain, error, printed, test.p_value if test else None)


def both_errors(record: Record, first: str, second: str, what: str) -> float:
    """Half the 95 % interval that the choice of images gives the difference between two rows' first seeds."""
    return math.hypot(*(image_error(runs_of(record, row)[0], what) for row in (first, second)))


def outcome(found: Sequence[Comparison]) -> str:
    """What becomes of a claim, in a word: holds, in part, mixed, not shown, no or the reverse."""
    n = len(found)
    holds, against = (sum(c.verdict == sign for c in found) for sign in (1, -1))
    if holds:
        return "holds" if holds == n else "mixed" if against else "in part"
    if against:
        return "the reverse" if against == n else "no"
    return "not shown"


def counted(found: Sequence[Comparison], none: str) -> str:
    """How many differences are significant and which way; `none` where none is."""
    ways = [(sum(c.verdict == sign for c in found), way) for sign, way in ((1, "as claimed"), (-1, "the other way"))]
    return " and ".join(f"{count} {way}" for count, way in ways if count) or none


def relative_gain(record: Record, first: str, second: str, what: str) -> Interval | None:
    """By what share the first row's accuracy is above the second's, over seeds; None for one seed or an accuracy of 0.

    Compared are the logarithms of accuracies, so the share is that of their geometric means.
    """
    a, b = values(record, first, what), values(record, second, what)
    test = welch([math.log(v) for v in a], [math.log(v) for v in b]) if min(*a, *b) > 0 else None
    if test is None:
        return None
    d = test.difference
    return Interval(math.expm1(d.estimate), math.expm1(d.low), math.expm1(d.high), d.confidence)


def values(record: Record, row: str, what: str) -> list[float]:
    """One number for each run of a row: its accuracy under a condition, or the epochs that it took.

    Between two epochs the course is taken as a straight line; what is there at the end of the first epoch counts as one
    epoch, what never comes as one epoch more than the run had.
    """
    runs = runs_of(record, row)
    if what in COLUMNS:
        return [accuracy(run, what) for run in runs]
    if what == EPOCHS_TO_LOSS:
        return [_epochs_to([VALIDATION_LOSS - v for v in run["course"]["validation_loss"]]) for run in runs]
    return [_epochs_to([v - VALIDATION_ACCURACY for v in run["course"]["validation_accuracy"]]) for run in runs]


def _epochs_to(above: Sequence[float]) -> float:
    """When a course by epoch first comes to zero from below."""
    end = next((epoch for epoch, value in enumerate(above) if value >= 0), None)
    if end is None:
        return float(len(above) + 1)
    if end == 0:
        return 1.0
    low, high = above[end - 1], above[end]
    return end + low / (low - high)

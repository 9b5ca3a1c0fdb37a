"""Intervals and tests for accuracies: Wilson for one run, McNemar for two models, spread and Welch over seeds."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, ttest_ind

from noiseprop.errors import InputError


@dataclass(frozen=True)
class Interval:
    """Estimate with the two ends of its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `n` runs; `std` is None for a single run, which shows no spread."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        """Return the mean with its ±, or the bare mean of a single run."""
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: `difference` is accuracy of A minus accuracy of B, with its interval.

    `only_a` and `only_b` count the images that one model alone gets right; `p_value` is that of the exact McNemar test.
    """

    n: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    difference: Interval
    p_value: float


@dataclass(frozen=True)
class Unpaired:
    """Two groups of runs: `difference` is the mean of A minus the mean of B, with its interval, and Welch's p-value."""

    difference: Interval
    p_value: float


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion of `n` independent outcomes.

    centre = (p + z²/2n) / (1 + z²/n), half width = z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n), with p = successes / n.

    Args:
        successes: number of successes among the n outcomes, 0 to n.
        n: number of outcomes, at least 1.
        confidence: nominal coverage, between 0 and 1.

    Returns:
        The proportion and its interval, which never leaves [0, 1].

    Raises:
        InputError: n < 1, successes outside 0..n or confidence outside (0, 1).

    Examples:
        >>> interval = wilson(81, 263)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.2553, 0.3662)

    Source: Wilson 1927; the example is Newcombe 1998a (Statistics in Medicine 17:857), Table I.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"wilson: got {successes} successes of {n}, expected 0 <= successes <= n and n >= 1.")
    _check_confidence(confidence)
    return _wilson_interval(successes, n, confidence)


@lru_cache(maxsize=10_000)  # pages and coverage studies ask for the same intervals often
def _wilson_interval(successes: int, n: int, confidence: float) -> Interval:
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(successes / n), float(interval.low), float(interval.high), confidence)


def mean_std(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation (n - 1 in the denominator) of one figure over training seeds.

    Args:
        values: one figure per run, at least one.

    Returns:
        The spread; its `std` is None for a single run.

    Raises:
        InputError: values is empty, or a value is not finite.

    Examples:
        >>> str(mean_std([0.97, 0.98, 0.96])), str(mean_std([0.97]))
        ('0.970 ± 0.010', '0.970')
    """
    values = [float(value) for value in values]
    if not values or not all(math.isfinite(value) for value in values):
        raise InputError(f"mean_std: expected at least one finite value, got {values}.")
    if len(values) == 1:
        return Spread(values[0], None, 1)
    if min(values) == max(values):  # otherwise rounding would spread them
        return Spread(values[0], 0.0, len(values))
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance), len(values))


def paired(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_], *, confidence: float = 0.95) -> Paired:
    """Compare two models on the same images: exact McNemar test and Newcombe's interval for the paired difference.

    The test asks whether the images on which the models disagree favour one side by more than a fair coin would
    (two-sided binomial with p = 1/2). The interval is Newcombe's method 10: Wilson intervals of the two accuracies,
    combined by squares with the outcomes' correlation.

    Args:
        correct_a: (N,) bool, whether model A is right on each image.
        correct_b: (N,) bool, the same for model B on the same images in the same order.
        confidence: nominal coverage of the interval, between 0 and 1.

    Returns:
        Accuracies, discordant counts, difference A - B with its interval, and the two-sided p-value.

    Raises:
        InputError: the two are not equally long one-dimensional boolean arrays of at least one image.

    Examples:
        >>> right = np.array([True] * 80 + [False] * 20)
        >>> found = paired(right, np.roll(right, 10))
        >>> found.only_a, found.only_b, found.difference.estimate, found.p_value
        (10, 10, 0.0, 1.0)

    Source: McNemar 1947; Newcombe 1998b, Statistics in Medicine 17:2635, method 10.
    """
    correct_a, correct_b = np.asarray(correct_a), np.asarray(correct_b)
    if correct_a.dtype != np.bool_ or correct_b.dtype != np.bool_ or correct_a.ndim != 1 or correct_a.size == 0:
        raise InputError(
            f"paired: expected two boolean arrays of shape (N,), got {correct_a.dtype} {correct_a.shape} "
            f"and {correct_b.dtype} {correct_b.shape}."
        )
    if correct_a.shape != correct_b.shape:
        raise InputError(
            f"paired: got {correct_a.size} and {correct_b.size} outcomes; the two models must be scored on the same "
            "images, so evaluate both with the same test split and number of images."
        )
    n = correct_a.size
    both = int((correct_a & correct_b).sum())
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    discordant = only_a + only_b
    p_value = 1.0 if discordant == 0 else float(binomtest(only_a, discordant, 0.5).pvalue)
    difference = _newcombe_interval(both, only_a, only_b, n - both - discordant, confidence)
    return Paired(n, (both + only_a) / n, (both + only_b) / n, only_a, only_b, difference, p_value)


def welch(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Unpaired | None:
    """Compare one figure over two groups of runs with unequal spreads: Welch's t-test and interval.

    t = (mean a - mean b) / s with s² = var a / n_a + var b / n_b, at s⁴ / sum (var / n)² / (n - 1) degrees of freedom.

    Args:
        a: the figure for each run of the first group.
        b: the same for the second group.
        confidence: nominal coverage of the interval, between 0 and 1.

    Returns:
        Difference a - b with its interval, and the two-sided p-value that the means are equal; None if a group has
        fewer than two runs. If neither group varies, the interval has no width and p is 0, or 1 for equal means.

    Raises:
        InputError: a group is empty, a figure is not finite, or the confidence lies outside (0, 1).

    Examples:
        >>> found = welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
        >>> round(found.p_value, 6), round(found.difference.low, 3)
        (0.021312, -5.267)

    Source: Welch 1947.
    """
    first, second = mean_std(a), mean_std(b)
    _check_confidence(confidence)
    if first.std is None or second.std is None:
        return None
    difference = first.mean - second.mean
    if first.std == second.std == 0:
        return Unpaired(Interval(difference, difference, difference, confidence), float(difference == 0))
    with warnings.catch_warnings():  # SciPy warns where one group does not vary
        warnings.simplefilter("ignore", RuntimeWarning)
        test: Any = ttest_ind(np.asarray(a), np.asarray(b), equal_var=False)
    interval = test.confidence_interval(confidence)
    return Unpaired(Interval(difference, float(interval.low), float(interval.high), confidence), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction for several tests, in the order given.

    Examples:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]

    Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = so_far
    return corrected


def _newcombe_interval(both: int, only_a: int, only_b: int, neither: int, confidence: float) -> Interval:
    """Return Newcombe's method 10 for the difference of two paired proportions, with continuity-corrected phi."""
    n = both + only_a + only_b + neither
    a, b = wilson(both + only_a, n, confidence=confidence), wilson(both + only_b, n, confidence=confidence)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = 0.0
    if margins > 0:
        product = both * neither - only_a * only_b
        corrected = max(product - n / 2, 0.0) if product > 0 else float(product)
        phi = corrected / math.sqrt(margins)
    difference = (only_a - only_b) / n
    below = _combine_errors(a.estimate - a.low, b.high - b.estimate, phi)
    above = _combine_errors(a.high - a.estimate, b.estimate - b.low, phi)
    return Interval(difference, difference - below, difference + above, confidence)


def _combine_errors(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(first * first - 2 * phi * first * second + second * second, 0.0))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: got {confidence}, expected a number between 0 and 1, such as 0.95.")

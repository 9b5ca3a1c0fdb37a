import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import multinomial, norm
from scipy.stats import t as student_t

from noiseprop.errors import InputError
from noiseprop.evaluation.statistics import holm, mean_std, paired, welch, wilson


def bits(both, only_a, only_b, neither):
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 29), (15, 148), (81, 263), (29, 29), (9731, 10000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_its_formula(successes, n, confidence):
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    ours = wilson(successes, n, confidence=confidence)
    p, z = successes / n, norm.ppf(0.5 + confidence / 2)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)
    assert ours.estimate == successes / n
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [  # Newcombe 1998b, Table II, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((0, 0, 0, 50), -0.0714, 0.0714),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_newcombe_matches_the_published_examples(cells, low, high):
    result = paired(*bits(*cells))
    assert result.difference.low == pytest.approx(low, abs=6e-5)
    assert result.difference.high == pytest.approx(high, abs=6e-5)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says():
    """Exact coverage over all tables of n = 24, for a pair of models that mostly agree."""
    n, cells = 24, (0.6, 0.2, 0.08, 0.12)
    law = multinomial(n, cells)
    truth = cells[1] - cells[2]
    covered = 0.0
    for both, only_a, only_b in product(range(n + 1), repeat=3):
        neither = n - both - only_a - only_b
        if neither < 0:
            continue
        interval = paired(*bits(both, only_a, only_b, neither)).difference
        if interval.low <= truth <= interval.high:
            covered += law.pmf([both, only_a, only_b, neither])
    assert 0.93 < covered < 0.98


def test_mcnemar_is_the_exact_binomial_tail():
    result = paired(*bits(100, 15, 5, 30))
    tail = sum(math.comb(20, k) for k in range(6)) / 2**20
    assert result.p_value == pytest.approx(2 * tail, rel=1e-12)
    assert (result.only_a, result.only_b, result.n) == (15, 5, 150)
    assert result.difference.estimate == pytest.approx(10 / 150)
    assert result.accuracy_a - result.accuracy_b == pytest.approx(10 / 150)


def test_swapping_the_models_mirrors_the_comparison():
    a, b = bits(40, 9, 4, 7)
    forth, back = paired(a, b), paired(b, a)
    assert forth.p_value == back.p_value
    assert (forth.difference.low, forth.difference.high) == pytest.approx((-back.difference.high, -back.difference.low))


def test_equal_models_differ_by_nothing():
    a, _ = bits(40, 0, 0, 10)
    result = paired(a, a)
    assert result.p_value == 1.0
    assert result.difference.low == pytest.approx(-result.difference.high, abs=1e-12)


def test_mean_and_sample_deviation_over_seeds():
    spread = mean_std([0.5, 0.7, 0.9, 0.3])
    assert spread.mean == pytest.approx(0.6)
    assert spread.std == pytest.approx(np.std([0.5, 0.7, 0.9, 0.3], ddof=1))
    assert spread.n == 4
    assert mean_std([0.8]).std is None
    alike = mean_std([0.023] * 3)  # whose mean, computed, is not 0.023
    assert (alike.mean, alike.std) == (0.023, 0.0)


def test_welch_equals_its_formula_and_ends_where_p_is_a_twentieth():
    rng = np.random.default_rng(0)
    for n, m in ((2, 2), (3, 5), (5, 5), (10, 3)):
        a, b = list(rng.normal(0.9, 0.01, n)), list(rng.normal(0.89, 0.03, m))
        ours, difference = welch(a, b), np.mean(a) - np.mean(b)
        parts = np.var(a, ddof=1) / n, np.var(b, ddof=1) / m
        law = student_t(sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1)))
        error = math.sqrt(sum(parts))
        ends = difference - error * law.ppf(0.975), difference + error * law.ppf(0.975)
        assert ours.p_value == pytest.approx(2 * law.sf(abs(difference) / error), rel=1e-9)
        assert (ours.difference.low, ours.difference.high) == pytest.approx(ends, rel=1e-9)
        assert ours.difference.estimate == pytest.approx(difference)
        shifted = welch([v - ours.difference.low for v in a], b)
        assert shifted.p_value == pytest.approx(0.05)


def test_welch_where_nothing_varies_or_nothing_can():
    assert welch([0.5], [0.6, 0.7]) is None
    assert welch([0.5, 0.5], [0.5, 0.5]).p_value == 1.0
    one_varies = welch([0.5, 0.5], [0.6, 0.8])  # t = -2 with one degree of freedom
    assert one_varies.p_value == pytest.approx(2 * student_t(1).sf(2))
    apart = welch([2.0, 2.0], [4.0, 4.0])
    assert (apart.p_value, apart.difference.low, apart.difference.high) == (0.0, -2.0, -2.0)


def test_holm():
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 0),
        lambda: wilson(5, 4),
        lambda: wilson(-1, 4),
        lambda: wilson(1, 4, confidence=1.0),
        lambda: mean_std([]),
        lambda: welch([0.1, 0.2], [0.3, math.inf]),
        lambda: welch([0.1, 0.2], [0.3, 0.4], confidence=0.0),
        lambda: mean_std([0.5, math.nan]),
        lambda: paired(np.ones(3, bool), np.ones(4, bool)),
        lambda: paired(np.ones(3), np.ones(3)),
        lambda: paired(np.ones((2, 2), bool), np.ones((2, 2), bool)),
    ],
)
def test_bad_input_raises_an_error(call):
    with pytest.raises(InputError):
        call()

"""Tests over shared seeds, their correction, how many seeds they need; who wins how often."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segcredit.errors import StudyError
from segcredit.study.statistics import (
    holm,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p,
    smallest_p,
    student_p,
)


def sign_flips(differences: list[float]) -> float:
    """The share of all choices of signs whose mean is at least as far from 0."""
    flips = itertools.product([-1, 1], repeat=len(differences))
    sums = [abs(np.dot(signs, differences)) for signs in flips]
    return float(np.mean([found >= abs(sum(differences)) - 1e-9 for found in sums]))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_sign_flip_counts_all_choices_of_signs(values: list[int]) -> None:
    differences = [value / 7 for value in values]  # with ties, and fractions that round
    assert sign_flip_p(differences) == pytest.approx(sign_flips(differences))


def test_sign_flip_at_the_edges() -> None:
    assert math.isnan(sign_flip_p([]))
    assert sign_flip_p([0.3, math.nan]) == 1
    for seeds in (2, 3, 6, 14):
        assert sign_flip_p([0.1] * seeds) == pytest.approx(smallest_p(seeds))
    assert (smallest_p(1), smallest_p(3), smallest_p(6)) == (1, 0.25, 0.03125)
    assert math.isnan(smallest_p(0))


def test_many_differences_are_signed_at_random_but_repeatably() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, size=16)
    found = sign_flip_p(differences)
    assert found == pytest.approx(sign_flips(list(differences)), abs=0.01)
    assert found == sign_flip_p(differences)
    assert 0 < sign_flip_p([1.0] * 40) < 2e-4


def test_student_p_is_scipys() -> None:
    differences = [0.1, 0.3, -0.05]
    assert student_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (student_p([0.1, 0.1]), student_p([0.0, 0.0])) == (0, 1)
        assert math.isnan(student_p([0.1]))


def slow_holm(p_values: list[float]) -> list[float]:
    """For each p: the largest, over those as small, of p times how many are not smaller."""
    found = []
    for p in p_values:
        ranked = sorted(p_values)
        steps = [(len(ranked) - i) * other for i, other in enumerate(ranked) if other <= p]
        found.append(min(1.0, max(steps)))
    return found


@given(st.lists(st.integers(0, 20).map(lambda value: value / 20), min_size=1, max_size=8))
def test_holm_steps_down(p_values: list[float]) -> None:
    assert list(holm(p_values)) == pytest.approx(slow_holm(p_values))


def test_holm_leaves_out_what_is_not_known() -> None:
    found = holm([0.04, math.nan, 0.01, 0.03])
    assert list(found) == pytest.approx([0.06, math.nan, 0.03, 0.06], nan_ok=True)
    assert np.isnan(holm([math.nan])).all()
    assert holm([]).shape == (0,)


def with_effect(effect: float) -> list[float]:
    """Two differences whose mean is that many of their standard deviations."""
    return [effect - math.sqrt(0.5), effect + math.sqrt(0.5)]


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (-0.5, 34)])
def test_seeds_needed_are_those_of_the_power_tables(effect: float, seeds: int) -> None:
    """The one-sample t test at .05 with power .8, as in Cohen's tables and G*Power."""
    assert seeds_needed(with_effect(effect)) == seeds


def test_so_many_seeds_find_the_difference_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    effect, alpha = 1.1, 0.01
    n = int(seeds_needed(with_effect(effect), power=0.8, alpha=alpha))

    def found(seeds: int) -> float:
        draws = generator.normal(effect, 1, size=(40_000, seeds))
        return float(np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue <= alpha))

    assert found(n) >= 0.8 - 0.005
    assert found(n - 1) < 0.8 + 0.005


def test_seeds_needed_at_the_edges() -> None:
    assert math.isnan(seeds_needed([0.3, math.nan]))
    assert seeds_needed([0.1, -0.1]) == seeds_needed([0.0, 0.0]) == math.inf
    assert seeds_needed([0.1, 0.2, -0.3]) == math.inf  # their sum is 5e-17
    assert seeds_needed([0.1, 0.1]) == 2
    assert seeds_needed(with_effect(1e4)) == 2
    assert 1e9 < seeds_needed(with_effect(1e-5)) < 1e11
    assert seeds_needed(with_effect(0.003)) == pytest.approx(7.8489 / 0.003**2, rel=1e-3)
    for wrong in ({"power": 1}, {"alpha": 0}, {"power": 0.01}):
        with pytest.raises(StudyError, match="0 < alpha < power < 1"):
            seeds_needed([1.0, 2.0], **wrong)


def wins(x: list[int], y: list[int]) -> float:
    results = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]
    return sum(results) / len(results)


some = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@given(some, some)
def test_probability_of_improvement_counts_wins(x: list[int], y: list[int]) -> None:
    there, low, high = probability_of_improvement([*x, math.nan], y)
    back, back_low, back_high = probability_of_improvement(y, x)
    assert there == pytest.approx(wins(x, y))
    assert there + back == pytest.approx(1)
    if min(len(x), len(y)) > 1:
        assert 0 <= low <= there <= high <= 1
        assert low < high
        assert (low, high) == pytest.approx((1 - back_high, 1 - back_low), abs=1e-6)
    else:
        assert math.isnan(low)
        assert math.isnan(high)


@pytest.mark.parametrize(("x", "y"), [([1, 3, 5, 7], [2, 2, 4]), ([5, 6, 7], [1, 2, 3])])
def test_newcombes_interval_holds_what_is_not_too_far(x: list[int], y: list[int]) -> None:
    """A scan: all probabilities that lie within 1.96 of their own standard errors."""
    seen, low, high = probability_of_improvement(x, y)
    more = (len(x) + len(y)) / 2 - 1
    held = []
    for theta in np.linspace(0, 1, 20_001):
        ratio = 1 + more * (1 - theta) / (2 - theta) + more * theta / (1 + theta)
        error = math.sqrt(theta * (1 - theta) * ratio / (len(x) * len(y)))
        held += [theta] if abs(theta - seen) <= 1.959964 * error else []
    assert (low, high) == pytest.approx((min(held), max(held)), abs=1e-4)


def test_bootstrap_of_improvement_resamples_both() -> None:
    x, y = np.array([0.1, 0.4, 0.5, 0.9]), np.array([0.2, 0.3, 0.45])
    generator = np.random.default_rng(9)
    drawn = [wins(list(generator.choice(x, 4)), list(generator.choice(y, 3))) for _ in range(4000)]
    expected = np.quantile(drawn, [0.1, 0.9])
    found = probability_of_improvement(x, y, interval="bootstrap", confidence=0.8)
    assert found[1:] == pytest.approx(tuple(expected), abs=0.03)
    apart = probability_of_improvement([3, 4], [1, 2], interval="bootstrap")
    assert apart == (1, 1, 1)  # a point, which is why it is not the default
    assert probability_of_improvement([3, 4], [1, 2])[1] < 0.5


def test_strata_are_averaged() -> None:
    x = np.array([[1.0, 5.0], [3.0, 6.0], [math.nan, 7.0]])
    y = np.array([[2.0, 1.0], [2.0, 2.0]])
    found = probability_of_improvement(x, y)
    assert found[0] == pytest.approx((0.5 + 1) / 2)
    alike = probability_of_improvement(
        np.repeat(x[:2, :1], 4, axis=1), np.repeat(y[:, :1], 4, axis=1)
    )
    one = probability_of_improvement(x[:2, 0], y[:, 0])
    assert alike[0] == one[0] == 0.5
    assert one[1] < alike[1] < 0.5 < alike[2] < one[2]  # four strata say more than one


def test_probability_of_improvement_is_rliables() -> None:
    """The number is from rliable 1.2.0, metrics.probability_of_improvement."""
    x = [[0.5, 0.2], [0.6, 0.2], [0.4, 0.9]]
    y = [[0.5, 0.1], [0.3, 0.2], [0.7, 0.3], [0.1, 0.2]]
    assert probability_of_improvement(x, y)[0] == pytest.approx(0.6458333333333333)


def test_wrong_options_are_sentences() -> None:
    with pytest.raises(StudyError, match="There are: newcombe, bootstrap"):
        probability_of_improvement([1, 2], [1, 2], interval="wald")  # pyright: ignore
    with pytest.raises(StudyError, match="1 and 2"):
        probability_of_improvement([[1], [2]], [[1, 2], [3, 4]])
    assert all(math.isnan(value) for value in probability_of_improvement([], [1.0]))

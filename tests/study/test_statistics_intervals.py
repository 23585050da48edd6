"""Intervals of one statistic: against slow oracles, exact enumeration, and their own promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segcredit.errors import StudyError
from segcredit.study.statistics import (
    bootstrap_interval,
    bootstrap_intervals,
    interquartile_mean,
    stratified_bootstrap,
    stratified_student,
    student_interval,
    student_intervals,
)

TABLE = np.array([[0.31, 0.9, 0.12], [0.45, 0.8, 0.2], [0.52, 0.7, 0.94], [0.05, 0.6, 0.33]])
"""Four seeds on three tasks."""

numbers = st.floats(-100, 100).map(lambda value: round(value, 3))


def test_interval_matches_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert (low, high) == bootstrap_interval(values)


def test_interval_is_that_of_the_drawn_means() -> None:
    values = np.random.default_rng(1).exponential(size=7)
    generator = np.random.default_rng(5)
    means = [values[generator.integers(7, size=7)].mean() for _ in range(300)]
    expected = np.quantile(means, [0.1, 0.9])
    found = bootstrap_interval(values, confidence=0.8, resamples=300, seed=5)
    assert found == pytest.approx(tuple(expected))


@pytest.mark.parametrize("draws", [1, 16, 10**6])
def test_batches_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch, draws: int) -> None:
    values = np.random.default_rng(1).normal(size=9)
    whole = bootstrap_interval(values, resamples=200)
    monkeypatch.setattr("segcredit.study.statistics.intervals._DRAWS_AT_ONCE", draws)
    assert bootstrap_interval(values, resamples=200) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("many", "one"),
    [(bootstrap_intervals, bootstrap_interval), (student_intervals, student_interval)],
)
def test_a_matrix_gives_the_interval_of_each_row(many, one) -> None:
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(40, 6))
    matrix[generator.random(matrix.shape) < 0.3] = math.nan
    matrix[3], matrix[4, 1:] = math.nan, math.nan
    low, high = many(matrix)
    assert low.shape == high.shape == (40,)
    assert np.isnan(low).sum() >= 2
    for row, ends in zip(matrix, zip(low, high, strict=True), strict=True):
        assert ends == pytest.approx(one(row), nan_ok=True)


def test_interval_at_the_edges() -> None:
    for interval in (bootstrap_interval, student_interval):
        assert all(math.isnan(end) for end in interval([]))
        assert all(math.isnan(end) for end in interval([1.0]))
        assert all(math.isnan(end) for end in interval([math.nan, 1.0]))
        assert interval([2.0, 2.0, math.nan]) == (2.0, 2.0)
        for confidence in (95, 0, 1, math.nan):
            with pytest.raises(StudyError, match="between 0 and 1"):
                interval([1.0, 2.0], confidence=confidence)
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    with pytest.raises(StudyError, match="at least one resample"):
        bootstrap_interval([1.0, 2.0], resamples=0)


def test_student_interval_by_hand() -> None:
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of .975 with 2 degrees of freedom
    assert student_interval([0.5, 0.6, 0.7]) == pytest.approx((0.6 - half, 0.6 + half))
    wide = student_interval([0.5, 0.6, 0.7], confidence=0.99)
    assert wide[1] == pytest.approx(0.6 + 9.924843 * 0.1 / math.sqrt(3))


def test_three_normal_seeds_are_covered_by_student_and_not_by_the_bootstrap() -> None:
    rows = np.random.default_rng(0).normal(size=(4000, 3))

    def covered(ends: tuple[np.ndarray, np.ndarray]) -> float:
        return float(np.mean((ends[0] <= 0) & (ends[1] >= 0)))

    assert covered(student_intervals(rows)) == pytest.approx(0.95, abs=0.012)
    assert covered(bootstrap_intervals(rows, resamples=500)) == pytest.approx(0.75, abs=0.025)


@given(st.lists(numbers, min_size=1, max_size=30))
def test_interquartile_mean_is_that_of_the_middle_half(values: list[float]) -> None:
    ordered, cut = sorted(values), len(values) // 4
    middle = ordered[cut : len(ordered) - cut]
    expected = sum(middle) / len(middle)
    assert interquartile_mean([*values, math.nan]) == pytest.approx(expected, abs=1e-9)


def test_interquartile_mean_of_nothing_is_nan() -> None:
    assert math.isnan(interquartile_mean([]))
    assert math.isnan(interquartile_mean([math.nan]))


def test_interquartile_mean_is_rliables() -> None:
    """The number is from rliable 1.2.0, metrics.aggregate_iqm."""
    assert interquartile_mean(TABLE) == pytest.approx(0.485)


def test_stratified_bootstrap_agrees_with_rliable() -> None:
    """From rliable 1.2.0, get_interval_estimates with 20,000 resamples; both are random."""
    tasks = list(TABLE.T)
    assert stratified_bootstrap(tasks, "iqm") == pytest.approx((0.335, 0.66167), abs=0.01)
    assert stratified_bootstrap(tasks) == pytest.approx((0.3775, 0.6275), abs=0.01)


@pytest.mark.parametrize("statistic", ["mean", "median", "iqm"])
def test_stratified_bootstrap_against_all_resamples(statistic: str) -> None:
    """Two strata of three have 27² equally likely resamples, of which quantiles are exact."""
    strata = [[0.0, 0.4, 1.0], [10.0, 11.0, 13.1]]
    function = {"mean": np.mean, "median": np.median, "iqm": interquartile_mean}[statistic]
    resamples = itertools.product(*(itertools.product(values, repeat=3) for values in strata))
    every = sorted(float(function(np.concatenate(drawn))) for drawn in resamples)
    low, high = stratified_bootstrap(strata, statistic, confidence=0.7, resamples=40_000)
    for end, tail in ((low, 0.15), (high, 0.85)):
        below, above = np.quantile(every, [tail - 0.015, tail + 0.015])
        assert below - 1e-9 <= end <= above + 1e-9


def test_seeds_stay_in_their_stratum() -> None:
    assert stratified_bootstrap([[0.0, 0.0], [1.0, 1.0, 1.0]]) == (0.6, 0.6)
    assert stratified_student([[0.0, 0.0], [1.0, 1.0, 1.0]]) == (0.6, 0.6)


def test_one_stratum_is_the_ordinary_interval() -> None:
    values = [0.3, 0.5, 0.9, 0.2]
    assert stratified_bootstrap([values]) == pytest.approx(bootstrap_interval(values))
    assert stratified_student([values]) == pytest.approx(student_interval(values))
    assert stratified_student([[], values]) == pytest.approx(student_interval(values))


def test_student_over_strata_by_hand() -> None:
    strata = [[0.0, 1.0, 2.0], [5.0, 7.0]]
    # Σ n v = 3·(2/3) + 2·1 = 4; N = 5, M = 2; √(N/(N−M)) = √(5/3)
    half = stats.t.ppf(0.975, 3) * math.sqrt(4) / 5 * math.sqrt(5 / 3)
    assert stratified_student(strata) == pytest.approx((3 - half, 3 + half))


def test_student_error_of_the_median_is_the_bootstraps() -> None:
    values = np.random.default_rng(3).normal(size=11)
    generator = np.random.default_rng(0)
    medians = [float(np.median(generator.choice(values, 11))) for _ in range(4_000)]
    half = stats.t.ppf(0.975, 10) * np.std(medians) * math.sqrt(11 / 10)
    centre = float(np.median(values))
    expected = (centre - half, centre + half)
    assert stratified_student([values], "median") == pytest.approx(expected, rel=0.05)


def test_too_little_for_an_interval_is_nan_and_a_wrong_name_a_sentence() -> None:
    for interval in (stratified_bootstrap, stratified_student):
        for strata in ([], [[]], [[1.0]], [[1.0, 2.0], [3.0]], [[math.nan, 1.0]]):
            assert all(math.isnan(end) for end in interval(strata))
        with pytest.raises(StudyError, match="There are: mean, iqm, median"):
            interval([[1.0, 2.0]], "modus")

"""Measures how often intervals of segcredit.study.statistics cover what they should, by seeds.

python docs/explain/statistics_coverage.py      prints the table of statistics.md (some minutes)

Values are drawn from three distributions of a run's last accuracy, and the share of intervals that
hold the true value is counted: 95% is asked of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from segcredit.study.statistics import (
    bootstrap_intervals,
    probability_of_improvement,
    stratified_bootstrap,
    stratified_student,
    student_intervals,
)

SEEDS = (2, 3, 5, 10, 20)
TRIALS = 2000
RESAMPLES = 1000

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Seeds that scatter evenly."""
    return generator.normal(0.7, 0.05, shape)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Seeds below a ceiling, with a long tail downwards."""
    return 0.8 - generator.exponential(0.05, shape)


def collapsing(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One seed in five learns nothing."""
    values = generator.normal(0.7, 0.03, shape)
    return np.where(generator.random(shape) < 0.2, values - 0.5, values)


DISTRIBUTIONS: dict[str, Draw] = {"normal": normal, "skewed": skewed, "collapsing": collapsing}


def truths(draw: Draw) -> dict[str, float]:
    """The statistics of the distribution itself."""
    many = draw(np.random.default_rng(99), (4_000_000,))
    middle = float(stats.trim_mean(many, 0.25))
    return {"mean": float(many.mean()), "iqm": middle, "median": float(np.median(many))}


def share(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    """Returns the share of intervals that hold the truth, ends included but for rounding."""
    return float(np.mean((low <= truth + 1e-12) & (truth <= high + 1e-12)))


def of_mean(rows: np.ndarray, truth: float) -> Iterator[tuple[str, float]]:
    """Intervals of the mean, a row of seeds each."""
    yield "mean, student", share(*student_intervals(rows), truth)
    yield "mean, bootstrap", share(*bootstrap_intervals(rows, resamples=RESAMPLES), truth)


def of_statistics(rows: np.ndarray, truth: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Intervals of the interquartile mean and the median."""
    methods = {"student": stratified_student, "bootstrap": stratified_bootstrap}
    for statistic in ("iqm", "median"):
        for name, method in methods.items():
            ends = [method([row], statistic, resamples=RESAMPLES) for row in rows]
            yield f"{statistic}, {name}", share(*np.transpose(ends), truth[statistic])


def of_improvement(
    draw: Draw, generator: np.random.Generator, n: int, better: float
) -> Iterator[tuple[str, float]]:
    """Intervals of the probability that one method's run ends above one of another."""
    gap = better * float(draw(np.random.default_rng(98), (1_000_000,)).std())
    many = draw(generator, (2, 4_000_000))
    truth = float(np.mean(many[0] + gap > many[1]))
    x, y = draw(generator, (2, TRIALS, n))
    for name in ("newcombe", "bootstrap"):
        found = [
            probability_of_improvement(a + gap, b, interval=name, resamples=RESAMPLES)[1:]
            for a, b in zip(x, y, strict=True)
        ]
        yield f"improvement of {truth:.2f}, {name}", share(*np.transpose(found), truth)


def column(name: str, n: int) -> Iterator[tuple[str, float]]:
    """Every interval with n seeds of one distribution."""
    draw, generator = DISTRIBUTIONS[name], np.random.default_rng(n)
    truth = truths(draw)
    rows = draw(generator, (TRIALS, n))
    yield from of_mean(rows, truth["mean"])
    yield from of_statistics(rows, truth)
    for better in (0.0, 1.0):
        yield from of_improvement(draw, generator, n, better)


def main() -> None:
    """Prints the table."""
    print("| interval | values | " + " | ".join(f"{n} seeds" for n in SEEDS) + " |")
    print("|---|---|" + "---|" * len(SEEDS))
    for name in DISTRIBUTIONS:
        columns = [dict(column(name, n)) for n in SEEDS]
        for row in zip(*(found.items() for found in columns), strict=True):
            label = row[0][0]
            cells = " | ".join(f"{100 * covered:.0f}%" for _, covered in row)
            print(f"| {label} | {name} | {cells} |")


if __name__ == "__main__":
    main()

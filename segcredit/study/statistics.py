"""Means over seeds with bootstrap intervals: what a table of results shows."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcredit.errors import StudyError
from segcredit.study.tables import Runs, require_known

_DRAWS_AT_ONCE = 4_000_000
"""Bounds the memory of one batch of resamples, in drawn values."""


def bootstrap_interval(
    values: Iterable[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    The unit that is resampled is one value: give one a seed, not one a response, since responses
    of one run share its chance. With few seeds (below about 8) the percentile interval is too
    narrow; read it as a lower bound on the uncertainty.

    Args:
        values: one a seed, in any unit; NaN is left out.
        confidence: the share that the interval is to cover, in (0, 1).
        resamples: how many means are drawn.
        seed: of the draws.

    Returns:
        The lower and the upper end, in the unit of ``values``; both NaN for fewer than two values.

    Raises:
        StudyError: ``confidence`` is not in (0, 1) or ``resamples`` is below 1.

    Source:
        Efron, 1979, "Bootstrap methods: another look at the jackknife".
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise StudyError(
            f"The confidence is {confidence} and the resamples are {resamples}; expected a"
            " confidence between 0 and 1 (such as 0.95) and at least one resample."
        )
    finite = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(finite) < 2:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(finite, resamples, seed), [tail, 1 - tail])
    return float(low), float(high)


def summarise(runs: Runs, by: Sequence[str], metric: str) -> pd.DataFrame:
    """The last recorded value of a metric, averaged over the runs that share some settings.

    A run is the unit: runs that differ in nothing named in ``by`` (normally in the seed alone)
    are one group. Runs that never recorded the metric do not count as seeds.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs``, such as "segmenter".
        metric: a column of ``runs.steps``, such as "accuracy".

    Returns:
        A row a group: the columns of ``by``, then ``mean``, ``low`` and ``high`` (95% bootstrap
        over seeds) and ``start`` (mean of the first recorded values), in the metric's unit;
        ``seeds``; ``tokens_sampled`` and ``cpu_seconds``, the mean cost up to the last value.

    Raises:
        StudyError: a column or the metric does not exist, or ``by`` is empty.
    """
    by = [by] if isinstance(by, str) else list(by)
    if not by:
        raise StudyError(
            "No column to group by was given; expected at least one config column, such as"
            " 'method' or 'segmenter'."
        )
    require_known("config column", by, runs.runs.columns)
    require_known("metric", [metric], metrics_of(runs))
    ends = runs.runs[list(dict.fromkeys(["run", *by]))].merge(
        _ends(runs.steps, metric), on="run", how="left"
    )
    groups = ends.groupby(by, sort=False, dropna=False)
    rows = [{**group.iloc[0][by].to_dict(), **_summary(group)} for _, group in groups]
    return pd.DataFrame(rows).sort_values(by, key=_sortable, ignore_index=True)


def metrics_of(runs: Runs) -> list[str]:
    """The names that ``metric`` may have: every column of ``.steps`` that is measured."""
    return [str(column) for column in runs.steps.columns if column not in ("run", "step")]


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    means = [
        values[generator.integers(len(values), size=(size, len(values)))].mean(axis=1)
        for size in sizes
    ]
    return np.concatenate(means)


def _ends(steps: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row a run: the metric's first and last recorded values, and the cost up to the last."""
    ordered = steps.sort_values(["run", "step"], kind="stable")
    cost = ["tokens_sampled", "cpu_seconds"]
    kept = pd.DataFrame({"run": ordered["run"], "value": ordered[metric]})
    kept[cost] = ordered.groupby("run")[cost].ffill()
    recorded = kept.dropna(subset=["value"]).groupby("run")
    # nth, since first() and last() would skip NaN in each column on its own.
    last = recorded.nth(-1).assign(last=lambda row: row["value"])
    start = recorded.nth(0).assign(start=lambda row: row["value"])
    return last.merge(start[["run", "start"]], on="run")


def _summary(group: pd.DataFrame) -> dict[str, Any]:
    low, high = bootstrap_interval(group["last"])
    return {
        "mean": group["last"].mean(),
        "low": low,
        "high": high,
        "seeds": len(group["last"].dropna()),
        "start": group["start"].mean(),
        "tokens_sampled": group["tokens_sampled"].mean(),
        "cpu_seconds": group["cpu_seconds"].mean(),
    }


def _sortable(column: pd.Series) -> pd.Series:
    """Numbers by value, everything else (text beside numbers, too) as text."""
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)

"""Performance profiles: the share of runs above each threshold."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_interval, require_known
from segcredit.study.statistics.groups import Group, groups_of, note_of
from segcredit.study.statistics.intervals import Floats
from segcredit.study.statistics.run_values import Measure, run_values
from segcredit.study.statistics.stratified import stratified_bootstrap

Band = Literal["wilson", "bootstrap"]


def performance_profile(
    runs: Runs,
    by: Sequence[str],
    metric: str,
    thresholds: ArrayLike,
    *,
    measure: Measure = "last",
    per: str = "step",
    budget: float | None = None,
    interval: Band = "wilson",
    confidence: float = 0.95,
    strata: Sequence[str] = (),
) -> pd.DataFrame:
    """The share of a group's runs whose value exceeds each threshold.

    One profile above another everywhere is a method that is better in its bad runs and its good
    ones alike. The band is pointwise, of each threshold by itself.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs`` whose values make the groups.
        metric: a column of ``runs.steps``, such as "accuracy".
        thresholds: in the metric's unit.
        measure: "last", "area" or "at_cost", with ``per`` and ``budget``; see ``run_values``.
        per: "step", "tokens_sampled", "cpu_seconds", or another cost that is counted up.
        budget: in the unit of ``per``; by default the largest that every run reached.
        interval: "wilson", or rliable's "bootstrap" (percentiles, stratified), which shrinks to a
            point where all runs are on one side, however few. The unit of both is a run; the former
            is too wide rather than too narrow where strata differ.
        confidence: the share that the band is to cover at each threshold, in (0, 1).
        strata: columns of ``runs.runs``, such as "task", within whose values the seeds vary.

    Returns:
        A row a group and threshold: the columns of ``by``, ``threshold``, ``share`` in [0, 1],
        ``low`` and ``high`` (NaN for fewer than two seeds), ``seeds`` and ``note``.

    Raises:
        StudyError: a name is unknown, an option impossible, or a threshold NaN.

    Source:
        Agarwal et al., 2021, arXiv 2108.13264, section 4.2 (the run-score distribution). The
        interval by default: Wilson, 1927, "Probable inference, the law of succession, and
        statistical inference".
    """
    require_interval(confidence)
    require_known("interval", [interval], ["wilson", "bootstrap"])
    require_known("config column", strata, runs.runs.columns)
    levels = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if np.isnan(levels).any():
        raise StudyError("A threshold is NaN; expected numbers in the unit of the metric.")
    values = run_values(runs, metric, measure, per=per, budget=budget)
    parts = [
        _profile(group, levels, interval, confidence, strata)
        for group in groups_of(runs, by, values)
    ]
    return pd.concat(parts, ignore_index=True)


def _profile(
    group: Group, levels: Floats, interval: Band, confidence: float, strata: Sequence[str]
) -> pd.DataFrame:
    found = [part.to_numpy() for part in group.strata(strata)]
    rows = [
        _row([(part > level).astype(float) for part in found], interval, confidence)
        for level in levels
    ]
    table = pd.DataFrame(rows, columns=pd.Index(["share", "low", "high"]))
    table.insert(0, "threshold", levels)
    for place, (name, value) in enumerate(group.settings.items()):
        table.insert(place, name, value)
    return table.assign(seeds=len(group.measured), note=note_of(group, strata))


def _row(above: list[Floats], interval: Band, confidence: float) -> dict[str, Any]:
    """``above``: for each stratum 1 for each run above the threshold, 0 for the others."""
    every = np.concatenate(above) if above else np.zeros(0)
    low, high = float("nan"), float("nan")
    if interval == "bootstrap":
        low, high = stratified_bootstrap(above, confidence=confidence)
    elif len(every) > 1:
        low, high = _wilson(int(every.sum()), len(every), confidence)
    return {"share": every.mean() if len(every) else float("nan"), "low": low, "high": high}


@cache
def _wilson(above: int, runs: int, confidence: float) -> tuple[float, float]:
    """Cached, since a profile asks for the same few counts at every threshold."""
    test: Any = stats.binomtest(above, runs)
    low, high = test.proportion_ci(confidence, method="wilson")
    return float(low), float(high)

"""A row a group of runs: a statistic over seeds with its interval."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from segcredit.records.tables import Runs, require_known
from segcredit.study.statistics.groups import Group, groups_of, note_of, table_of
from segcredit.study.statistics.intervals import FEWEST
from segcredit.study.statistics.run_values import known_metric, last_steps, limits_of, run_values
from segcredit.study.statistics.stratified import IntervalKind, Statistic, aggregate, interval_of


def summarise(
    runs: Runs,
    by: Sequence[str],
    metric: str,
    statistic: Statistic = "mean",
    *,
    interval: IntervalKind = "student",
    confidence: float = 0.95,
    strata: Sequence[str] = (),
) -> pd.DataFrame:
    """Summarises the last recorded value of a metric over the runs that share some settings.

    A run is the unit: runs that differ in nothing named in ``by`` (normally in the seed alone)
    are one group. Runs that never recorded the metric do not count as seeds. A run that failed, or
    has not finished, counts with its last value, since to leave out what failed would flatter the
    methods that fail; ``note`` and ``steps`` say so.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs``, such as "segmenter".
        metric: a column of ``runs.steps``, such as "accuracy".
        statistic: "mean", "iqm" (interquartile mean) or "median", over all values of a group.
        interval: "student" (statistic ± t · standard error) or "bootstrap" (percentiles; too
            narrow below some ten seeds). The unit of both is a run, that is, a seed.
        confidence: the share that the interval is to cover, in (0, 1).
        strata: columns of ``runs.runs``, such as "task", within whose values the seeds vary; by
            default the runs of a group differ by chance alone.

    Returns:
        A row a group: the columns of ``by``, then one named as the statistic, ``low`` and ``high``
        (of two seeds their range, of one NaN; of a share inside [0, 1]), ``seeds``, ``start`` (mean
        of the first recorded values), in the metric's unit; ``tokens_sampled`` and ``cpu_seconds``,
        the mean cost up to the last value; ``steps``, where the last values were recorded: "20", or
        "5 to 20"; and ``note``, what sets the runs of a group apart, '' where nothing does.

    Raises:
        StudyError: a column or the metric does not exist, ``by`` is empty, or an option is
            impossible.
    """
    values = run_values(runs, metric)
    limits = limits_of(known_metric(runs, metric))
    row = _row_maker(runs, statistic, interval, confidence, strata, limits)
    groups = groups_of(runs, by, values)
    rows = [
        {
            **group.settings,
            **(found := row(group)),
            "start": group.measured["start"].mean(),
            "tokens_sampled": group.measured["tokens_sampled"].mean(),
            "cpu_seconds": group.measured["cpu_seconds"].mean(),
            "steps": last_steps(group.measured["step"]),
            "note": _joined(_interval_note(found, limits), note_of(group, strata)),
        }
        for group in groups
    ]
    return table_of(rows, groups)


def learning_areas(
    runs: Runs,
    by: Sequence[str],
    metric: str,
    *,
    per: str = "step",
    budget: float | None = None,
    statistic: Statistic = "mean",
    interval: IntervalKind = "student",
    confidence: float = 0.95,
    strata: Sequence[str] = (),
) -> pd.DataFrame:
    """Computes the normalised area under the learning curve: how good a method was on the way.

    (1 / budget) ∫₀^budget of the metric over steps or cost, for each run (see ``run_values`` for
    the curve and the critic's warm-up), then the statistic over seeds. It is the metric's mean
    over the budget, in the metric's unit; all runs are followed up to the same budget.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs``, such as "segmenter".
        metric: a column of ``runs.steps``, such as "accuracy".
        per: "step", "tokens_sampled", "cpu_seconds", or another cost that is counted up.
        budget: in the unit of ``per``; by default the largest that every run reached.
        statistic: as for ``summarise``.
        interval: as for ``summarise``.
        confidence: as for ``summarise``.
        strata: as for ``summarise``.

    Returns:
        A row a group: the columns of ``by``, one named as the statistic, ``low``, ``high``,
        ``seeds``; ``per`` and ``budget``; and ``note``, which also says how many runs did not
        reach a given budget, or which run set the common one where others went further.

    Raises:
        StudyError: as ``summarise``; or ``per`` goes down, or there is no common budget.
    """
    limits = limits_of(known_metric(runs, metric))
    row = _row_maker(runs, statistic, interval, confidence, strata, limits)
    values = run_values(runs, metric, "area", per=per, budget=budget)
    limit = {"per": per, "budget": values["budget"].iloc[0] if len(values) else float("nan")}
    bound = budget_note(values) if budget is None else ""
    groups = groups_of(runs, by, values)
    rows = [
        {
            **group.settings,
            **(found := row(group)),
            **limit,
            "note": _joined(bound, _interval_note(found, limits), note_of(group, strata)),
        }
        for group in groups
    ]
    return table_of(rows, groups)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


RowMaker = Callable[[Group], dict[str, Any]]


def _row_maker(
    runs: Runs,
    statistic: Statistic,
    interval: IntervalKind,
    confidence: float,
    strata: Sequence[str],
    limits: tuple[float, float] | None,
) -> RowMaker:
    """Returns the statistic, its interval and the seeds of a group."""
    require_known("config column", strata, runs.runs.columns)

    def row(group: Group) -> dict[str, Any]:
        parts = group.strata(strata)
        low, high = interval_of(parts, statistic, interval, confidence, limits)
        centre = aggregate(group.measured["value"], statistic)
        return {statistic: centre, "low": low, "high": high, "seeds": len(group.measured)}

    return row


def _interval_note(row: Mapping[str, Any], limits: tuple[float, float] | None) -> str:
    """Says where ``low`` and ``high`` are no interval, or not all of one."""
    if 1 < row["seeds"] < FEWEST:
        return f"of {row['seeds']} runs the range is given, which is no interval"
    if limits is None or row["low"] == row["high"]:
        return ""
    beyond = [end for end in (row["low"], row["high"]) if end in limits]
    return f"too few runs to tell: the interval ends at {beyond[0]:g} alone" if beyond else ""


def budget_note(values: Any) -> str:
    """Names the run that set the common budget, where some run went on a tenth longer or more."""
    if values.empty or values["reached"].max() < 1.1 * values["reached"].min():
        return ""
    least = values.loc[values["reached"].idxmin()]
    return (
        f"the budget is that of run {least['run']}, others reached up to"
        f" {values['reached'].max():g}"
    )

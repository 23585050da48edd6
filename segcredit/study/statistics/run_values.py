"""One number a run: its last value, the area under its learning curve, its value at a cost."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.schemas import COLUMNS, RENAMED
from segcredit.records.tables import Runs, current_name, require_known
from segcredit.study.statistics.intervals import Floats

Measure = Literal["last", "area", "at_cost"]

COSTS = ("tokens_sampled", "cpu_seconds")
"""Costs that a run has spent so far, as every row of ``.steps`` counts them."""


def metrics_of(runs: Runs) -> list[str]:
    """Returns the names that ``metric`` may have: every column of ``.steps`` that is measured."""
    return [str(column) for column in runs.steps.columns if column not in ("run", "step")]


def limits_of(metric: str) -> tuple[float, float] | None:
    """Returns the least and the largest value that a metric can have; None where there is none."""
    column = COLUMNS["steps"].get(metric)
    share = metric.startswith("pass_at_") or (column is not None and column.unit[:5] == "share")
    return (0.0, 1.0) if share else None


def known_metric(runs: Runs, metric: str) -> str:
    """Returns the name of today of a metric of the runs.

    Raises:
        StudyError: they have no metric of that name; lists those that they have.
    """
    metric = current_name(metric, RENAMED["steps"])
    require_known("metric", [metric], metrics_of(runs))
    return metric


def run_values(
    runs: Runs,
    metric: str,
    measure: Measure = "last",
    *,
    per: str = "step",
    budget: float | None = None,
) -> pd.DataFrame:
    """Returns one value a run, which the tables of this package summarise over seeds.

    "last" is the last recorded value. For the others, a run's learning curve joins its recorded
    values by straight lines over ``per`` and is held at its first value before the first: a critic
    is warmed up before the policy moves, so that what the warm-up costs, which step 0's row
    carries, is a flat beginning of the curve. "area" is (1 / budget) ∫₀^budget of the curve, by the
    trapezoid rule; "at_cost" is the curve at the budget.

    Args:
        runs: as ``read_runs`` returns them.
        metric: a column of ``runs.steps``.
        measure: "last", "area" or "at_cost".
        per: "step", or a column of ``runs.steps`` that counts a cost up, such as "tokens_sampled",
            which includes those of Monte-Carlo simulations, or "cpu_seconds", which says as much
            of the machine and its load as of the method.
        budget: how far the curve is followed, in the unit of ``per``; by default as far as every
            run that recorded the metric has recorded it.

    Returns:
        A row a run that recorded the metric: ``run``; ``value``, in the metric's unit, NaN where
        the run did not reach the budget; ``start``, the first recorded value; ``step``, where the
        last recorded one is; ``tokens_sampled`` and ``cpu_seconds`` up to there; for "area" and
        "at_cost" also ``reached``, in the unit of ``per``, and ``budget``.

    Raises:
        StudyError: a name is unknown, ``per`` goes down within a run, or the budget is not above 0.
    """
    require_known("measure", [measure], ["last", "area", "at_cost"])
    metric = known_metric(runs, metric)
    require_known("cost", [per], ["step", *metrics_of(runs)])
    recorded = _recorded(runs.steps, metric, per)
    ends = _ends(recorded)
    if measure == "last" or ends.empty:
        return ends
    curves = _curves(recorded, ends["run"], per)
    ends["reached"] = [curves[run][0][-1] for run in ends["run"]]
    ends["budget"] = _budget(ends, per) if budget is None else _positive(budget)
    follow = _area if measure == "area" else _at_cost
    ends["value"] = [
        follow(*curves[run], limit) for run, limit in zip(ends["run"], ends["budget"], strict=True)
    ]
    return ends


def _recorded(steps: pd.DataFrame, metric: str, per: str) -> pd.DataFrame:
    """Returns the recorded values: run, step, value, place, and the cost up to there."""
    ordered = steps.sort_values(["run", "step"], kind="stable").reset_index(drop=True)
    names = ordered["run"].astype(str)
    # A row that does not say what was spent has spent at least what the row before had.
    spent = ordered[list(dict.fromkeys([*COSTS, per]))].groupby(names).ffill()
    kept = pd.DataFrame({"run": names, "step": ordered["step"], "value": ordered[metric]})
    return kept.assign(place=spent[per], **{name: spent[name] for name in COSTS}).dropna(
        subset=["value"]
    )


def _ends(recorded: Any) -> Any:
    """Returns a row a run: the last recorded value and where it is, and the first."""
    groups = recorded.groupby("run")
    # nth, since first() and last() would skip NaN in each column on its own.
    start = groups.nth(0).rename(columns={"value": "start"})[["run", "start"]]
    ends = groups.nth(-1).merge(start, on="run")
    return ends[["run", "value", "start", "step", *COSTS]]


def _curves(recorded: Any, runs: Iterable[str], per: str) -> dict[str, tuple[Floats, Floats]]:
    """Places and values of each run, where its cost is known."""
    known = recorded.dropna(subset=["place"])
    place, value = (known[name].to_numpy(dtype=np.float64) for name in ("place", "value"))
    rows = known.groupby("run").indices
    empty = np.zeros(0, dtype=np.int64)
    curves = {run: (place[rows.get(run, empty)], value[rows.get(run, empty)]) for run in runs}
    for run, (places, _) in curves.items():
        _require_forward(run, places, per)
    return curves


def _require_forward(run: str, places: Floats, per: str) -> None:
    if not len(places) or np.any(np.diff(places) < 0) or places[0] < 0:
        found = "goes down, or below 0," if len(places) else "was not recorded"
        raise StudyError(
            f"'{per}' {found} in run {run}; expected a cost that is counted up from the start of"
            " the run. Usually the name is that of a metric: give 'step', 'tokens_sampled' or"
            " 'cpu_seconds'."
        )


def _budget(ends: pd.DataFrame, per: str) -> float:
    """Returns the cost that all runs have reached."""
    least = ends.loc[ends["reached"].idxmin()]
    if least["reached"] <= 0:
        raise StudyError(
            f"Run {least['run']} has recorded the metric up to {per} {least['reached']:g} only,"
            " hence there is no budget that every run reached; expected more than 0. Usually the"
            " run failed or has just begun: give a budget (runs that did not reach it are then"
            " left out, and said to be), or read the runs without it."
        )
    return float(least["reached"])


def _positive(budget: float) -> float:
    if not 0 < budget < math.inf:
        raise StudyError(f"The budget is {budget}; expected a number above 0.")
    return float(budget)


def _at_cost(place: Floats, value: Floats, budget: float) -> float:
    return float(np.interp(budget, place, value)) if place[-1] >= budget else math.nan


def _area(place: Floats, value: Floats, budget: float) -> float:
    if place[-1] < budget:
        return math.nan
    inside = place <= budget
    x = np.concatenate([[0.0], place[inside], [budget]])
    y = np.concatenate([value[:1], value[inside], [np.interp(budget, place, value)]])
    return float(np.trapezoid(y, x) / budget)


def last_steps(steps: Iterable[float]) -> str:
    """Writes the last steps: '20', or '5 to 20' where runs end apart; '' for none."""
    found = sorted({int(step) for step in steps})
    return " to ".join(str(step) for step in dict.fromkeys([found[0], found[-1]])) if found else ""

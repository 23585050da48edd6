"""Figures of a study, for a paper or a page; drawn without a display and without global state."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segcredit.atomic import write_atomically
from segcredit.errors import StudyError
from segcredit.study.statistics import bootstrap_interval, metrics_of
from segcredit.study.tables import Runs, require_known

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, told apart with every kind of colour blindness; without the yellow,
which is faint on white."""

_LINES = ("-", "--", ":", "-.")
_UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
"""Metadata by format: without the time of drawing, the same runs give the same bytes."""

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "segcredit",
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default Type 3 fonts
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def learning_curves(
    runs: Runs,
    path: Path | str,
    *,
    metric: str = "accuracy",
    by: Sequence[str] = ("method", "segmenter"),
) -> Path:
    """Draws a metric over training: a line a group, a band over its seeds, a thin line a seed.

    The line is the mean over the runs that recorded the metric at that step; the band is their
    95% bootstrap interval, absent where there is one run.

    Args:
        runs: as ``read_runs`` returns them.
        path: the file to write; its extension is .pdf, .svg or .png.
        metric: a column of ``runs.steps``.
        by: the columns of ``runs.runs`` whose values, joined, name the groups.

    Returns:
        The path written.

    Raises:
        StudyError: the format, the metric or the column is unknown, or nothing was recorded.
        RecordError: the file cannot be written.
    """
    path = Path(path)
    require_known("figure format", [path.suffix.removeprefix(".").lower()], _UNDATED)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        _draw_groups(axes, _recorded(runs, metric, by))
        axes.set(xlabel="step", ylabel=metric.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right upper", frameon=False, title=", ".join(by))
        _write(figure, path)
    return path


def _recorded(runs: Runs, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """Columns run, step, value and group of every recorded value."""
    require_known("metric", [metric], metrics_of(runs))
    require_known("config column", by, runs.runs.columns)
    settings = runs.runs[list(by)].astype(object).where(runs.runs[list(by)].notna(), "none")
    names = settings.astype(str).agg(" ".join, axis=1)
    groups = pd.DataFrame({"run": runs.runs["run"], "group": names})
    steps = pd.DataFrame(
        {"run": runs.steps["run"], "step": runs.steps["step"], "value": runs.steps[metric]}
    )
    values = steps.dropna(subset=["value"]).merge(groups, on="run")
    if values.empty:
        raise StudyError(
            f"No run in {runs.path} recorded '{metric}'; expected at least one value to draw."
            " Usually the runs were not evaluated, or failed at once: see the column 'error' of"
            " .runs."
        )
    return values.sort_values(["run", "step"], kind="stable")


def _draw_groups(axes: Axes, values: pd.DataFrame) -> None:
    """One colour a group, in the order of the last means, as the eye meets the lines."""
    curves = {
        str(group): rows.pivot_table(index="step", columns="run", values="value")
        for group, rows in values.groupby("group", sort=False)
    }
    names = sorted(curves, key=str)
    for group in sorted(names, key=lambda name: -curves[name].mean(axis=1).iloc[-1]):
        # Colour by name, so that a group keeps its colour from figure to figure.
        number = names.index(group)
        colour = PALETTE[number % len(PALETTE)]
        _draw_curve(axes, group, curves[group], colour, _LINES[number // len(PALETTE) % 4])


def _draw_curve(axes: Axes, group: str, curve: pd.DataFrame, colour: str, line: str) -> None:
    """Draws one group; ``curve`` has a row a step and a column a run."""
    for run in curve.columns:
        values = curve[run].dropna()
        axes.plot(values.index, values, color=colour, linewidth=0.5, alpha=0.4)
    seeds = len(curve.columns)
    label = f"{group} ({seeds} {'seed' if seeds == 1 else 'seeds'})"
    # A marker where there is one step only: a line of one point is invisible.
    marker = "o" if len(curve) == 1 else None
    mean = curve.mean(axis=1)
    axes.plot(mean.index, mean, color=colour, linestyle=line, marker=marker, label=label)
    ends = [bootstrap_interval(row, resamples=2000) for row in curve.to_numpy()]
    low, high = zip(*ends, strict=True)
    axes.fill_between(curve.index, low, high, color=colour, alpha=0.15, linewidth=0)


def _write(figure: Figure, path: Path) -> None:
    kind = path.suffix.removeprefix(".").lower()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=200, metadata=_UNDATED[kind])
    write_atomically(path, buffer.getvalue())

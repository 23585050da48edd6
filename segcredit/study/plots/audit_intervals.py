"""A metric of an audit for every segmenter, estimator and advantage scheme, with intervals."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from segcredit.credit_audit.metric_list import METRICS
from segcredit.errors import StudyError
from segcredit.study.plots.audit_rows import (
    in_order,
    interval_note,
    marked_segmenters,
    one_audit,
    place_of,
    rows_of,
)
from segcredit.study.plots.dots import (
    MOST_KINDS,
    Dot,
    dot_of,
    dot_style,
    draw_panels,
    panels_height,
)
from segcredit.study.plots.groups import Group
from segcredit.study.plots.sheet import finish, new_sheet
from segcredit.study.plots.style import COLUMN, PAGE, STYLE, label

MARKS = {one.name: one.chance for one in METRICS if isinstance(one.chance, float)}
"""Values of blind credit or of chance, which a thin line marks; 0 of all other metrics."""
_MOST_ACROSS = 4


def audit_intervals(
    audit: pd.DataFrame,
    metric: str = "correlation",
    at: str = "",
    *,
    run: str = "",
    width: float = PAGE,
) -> Figure:
    """Draws a metric of an audit as dots with intervals: a row a segmenter, a mark an estimator.

    Each advantage scheme has a panel, all of one scale; metrics that no scheme has a part in have
    one panel, those of the segmenter alone one marker. Segmenters stand in the order of the table.
    The thin line is at what blind credit or chance has (0; 1 of ratios, see ``MARKS``). A pair
    that was not audited, or has no such metric, leaves a gap. Two intervals that do not overlap
    differ; two that do may differ as well: ``segcredit.credit_audit.metrics.difference``.

    Args:
        audit: as ``read_runs(path).audit`` gives it.
        metric: a name of the column ``metric``.
        at: where it was taken, as in the column ``at``; by default the first place, such as
            "gradient" of a correlation.
        run: which audit, where the table holds several.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: the table is empty or holds several audits of which none was named; the
            metric, the place or the audit is unknown; no segmenter has the metric; or there are
            more estimators than can be told apart.
    """
    whole = one_audit(audit, run)
    place = place_of(whole, metric, at)
    rows = rows_of(whole, metric, place)
    names = marked_segmenters(rows)
    _require_segmenters(metric, names)
    estimators = in_order(rows["estimator"])
    _require_told_apart(estimators)
    panels = _panels(rows, list(names), estimators)
    said = f"{label(metric)} ({place})" if place else label(metric)
    mark = MARKS.get(metric, 0.0)
    across = min(len(panels), 2 if width < 1.5 * COLUMN else _MOST_ACROSS)
    kinds = max(len(estimators), 1)
    with matplotlib.rc_context(STYLE):
        height = panels_height(len(panels), across, len(names), kinds)
        sheet = new_sheet(width, height, f"{said} by segmenter, estimator and advantage")
        how: Any = {"mark": mark, "across": across, "axis": said}
        is_cut = draw_panels(sheet, panels, list(names.values()), kinds, **how)
        legend = [(Group(name, number, ()), "") for number, name in enumerate(estimators)]
        note = interval_note(rows, is_cut, f"thin line: {mark:g}")
        finish(sheet, note, legend, "estimator", style=dot_style)
    return sheet


def _require_segmenters(metric: str, names: Any) -> None:
    if not names:
        raise StudyError(
            f"The metric {metric!r} is of no segmenter, so that there are no rows to draw; expected"
            " one such as 'correlation' or 'share_on_boundaries'. Those of the policy's signals"
            " are drawn by 'lift_curves'."
        )


def _require_told_apart(estimators: Sequence[str]) -> None:
    if len(estimators) > MOST_KINDS:
        raise StudyError(
            f"There are {len(estimators)} estimators; expected at most {MOST_KINDS}, which can be"
            " told apart. Draw a part of the table: audit[audit['estimator'].isin([...])]."
        )


def _panels(
    rows: pd.DataFrame, segmenters: Sequence[str], estimators: Sequence[str]
) -> dict[str, list[Dot]]:
    """Returns the dots of each advantage scheme, in order; '' where there is none."""
    found: dict[str, list[Dot]] = {scheme: [] for scheme in in_order(rows["advantage"])}
    for one in rows.to_dict("records"):
        scheme = "" if pd.isna(one["advantage"]) else str(one["advantage"])
        kind = 0 if pd.isna(one["estimator"]) else estimators.index(str(one["estimator"]))
        row = segmenters.index(str(one["segmenter"]))
        found.setdefault(scheme, []).append(dot_of(one, row, kind))
    return found

"""Moves of the true value: on and inside the segments of each definition, beside chance."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from segcredit.credit_audit.metric_list import with_references
from segcredit.errors import StudyError
from segcredit.records.tables import require_known
from segcredit.study.plots.audit_rows import in_order, interval_note, marked_segmenters, one_audit
from segcredit.study.plots.dots import Dot, dot_of, dot_style, draw_panels, panels_height
from segcredit.study.plots.groups import Group
from segcredit.study.plots.sheet import finish, new_sheet
from segcredit.study.plots.style import COLUMN, PAGE, STYLE

_KINDS = ("definition", "random cuts", "oracle")
_BOUNDARIES = with_references("share_on_boundaries")
_WITHIN = with_references("share_within")


def movement_shares(
    audit: pd.DataFrame, *, fork: str = "end", run: str = "", width: float = PAGE
) -> Figure:
    """Draws the shares of squared value change on the boundaries and lost inside the segments.

    A row a segmenter, in the order of the table. In both panels the definition stands beside its
    random twin, which cuts as often anywhere; on boundaries also beside the oracle, which cuts as
    often at the largest changes of one part of the truth. On boundaries more is better, inside
    segments less. The oracle's share falls with the noise of the truth.

    Args:
        audit: as ``read_runs(path).audit`` gives it.
        fork: which side of a boundary its token is on, "end" or "start".
        run: which audit, where the table holds several.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: the table is empty or holds several audits of which none was named; the audit
            or the fork is unknown; or it has no metrics of movement.
    """
    whole = one_audit(audit, run)
    rows = whole.loc[whole["metric"].isin([*_BOUNDARIES, *_WITHIN]), :]
    if rows.empty:
        raise StudyError(
            "The audit's table has no metrics of where the value moves; expected rows such as"
            " 'share_on_boundaries'. Usually a part of it was chosen that leaves them out."
        )
    forks = [at for at in in_order(rows["at"]) if at]
    require_known("side of a boundary (fork)", [fork], forks)
    names = marked_segmenters(rows)
    panels = {
        f"on boundaries ({fork})": _dots(rows, list(names), _BOUNDARIES, fork),
        "inside segments": _dots(rows, list(names), _WITHIN, ""),
    }
    across = 1 if width < 1.5 * COLUMN else 2
    with matplotlib.rc_context(STYLE):
        height = panels_height(len(panels), across, len(names), len(_KINDS))
        title = "Share of the true squared value change on boundaries and inside segments"
        sheet = new_sheet(width, height, title)
        how: Any = {"mark": 0.0, "across": across, "axis": "share of squared value change"}
        is_cut = draw_panels(sheet, panels, list(names.values()), len(_KINDS), **how)
        legend = [(Group(name, number, ()), "") for number, name in enumerate(_KINDS)]
        finish(sheet, interval_note(rows, is_cut), legend, style=dot_style)
    return sheet


def _dots(
    rows: pd.DataFrame, segmenters: list[str], metrics: tuple[str, ...], at: str
) -> list[Dot]:
    """Returns the dots of one panel; a kind a metric."""
    chosen: Any = rows[rows["metric"].isin(metrics) & (rows["at"] == at)]
    return [
        dot_of(one, segmenters.index(str(one["segmenter"])), metrics.index(str(one["metric"])))
        for one in chosen.to_dict("records")
    ]

"""Lift: how much more the value moves where a signal of the policy is high."""

# pandas and matplotlib type little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segcredit.credit_audit.metric_list import SIGNALS, lift_name
from segcredit.errors import StudyError
from segcredit.study.plots.audit_rows import in_order, interval_note, require_audit
from segcredit.study.plots.groups import Group
from segcredit.study.plots.sheet import finish, new_axes, new_sheet
from segcredit.study.plots.style import COLUMN, LOOKS, PAGE, STYLE, look


def lift_curves(audit: pd.DataFrame, *, of_jumps: bool = False, width: float = PAGE) -> Figure:
    """Draws lift over a signal's quantile: a panel a signal, a line an audit, a band its interval.

    The squared value change of the tokens whose signal (entropy, surprisal) is above its quantile,
    over that of all tokens. The line at 1 is chance. Bands are of one point each: they do not hold
    a whole line with the confidence that they have at a point.

    Args:
        audit: as ``read_runs(path).audit`` gives it; of one audit or of several.
        of_jumps: count jumps of at least the audit's threshold instead, as SAPO does; noise in the
            truth draws this towards 1.
        width: in inches; ``COLUMN`` or ``PAGE``.

    Raises:
        StudyError: the table is empty, or has no Lift, or holds more audits than can be told apart.

    Source:
        Segment-Aligned Policy Optimization, 2026, arXiv 2605.01327, eq. 12. Deliberate difference:
        by default without its threshold, since every change counts by its square.
    """
    require_audit(audit)
    names = {lift_name(signal, of_jumps=of_jumps): signal for signal in SIGNALS}
    names = {name: names[name] for name in in_order(audit["metric"]) if name in names}
    rows = audit.loc[audit["metric"].isin(names), :]
    _require_lift(rows)
    runs = in_order(rows["run"])
    with matplotlib.rc_context(STYLE):
        beside = width > 1.5 * COLUMN
        shape = (1, len(names)) if beside else (len(names), 1)
        sheet = new_sheet(width, 2.0 * shape[0], "Lift over quantiles of the policy's signals")
        panes = new_axes(sheet, *shape, sharey=True)
        for axes, (name, signal) in zip(panes, names.items(), strict=True):
            for number, run in enumerate(runs):
                chosen = (rows["metric"] == name) & (rows["run"] == run)
                _draw(axes, rows.loc[chosen, :], number)
            axes.axhline(1.0, color="0.4", linewidth=0.6, label="_mark", zorder=1)
            axes.set_xlabel(f"tokens above this quantile of {signal}")
        for axes in panes[:1] if beside else panes:
            axes.set_ylabel("Lift (jumps)" if of_jumps else "Lift")
        legend = [(Group(run, number, ()), "") for number, run in enumerate(runs)]
        note = interval_note(rows, False, "thin line: 1, chance").replace("Bars", "Bands")
        finish(sheet, note, legend if len(runs) > 1 else (), "audit")
    return sheet


def _require_lift(rows: pd.DataFrame) -> None:
    if rows.empty:
        raise StudyError(
            "The audit's table has no Lift; expected rows such as 'lift_entropy'. Usually a part of"
            " it was chosen that leaves the section 'signals' out."
        )
    count = len(in_order(rows["run"]))
    if count > LOOKS:
        raise StudyError(
            f"There are {count} audits; expected at most {LOOKS}, which can be told apart. Choose"
            " some: audit[audit['run'].isin([...])]."
        )


def _draw(axes: Axes, rows: pd.DataFrame, number: int) -> None:
    """Draws one audit's line and band; their labels are _lift and _interval."""
    quantiles = rows["at"].astype(str).astype(float)
    ordered = rows.assign(quantile=quantiles).sort_values("quantile")
    style = look(number)
    place, value, low, high = (
        ordered[name].to_numpy() for name in ("quantile", "value", "low", "high")
    )
    band: Any = {"color": style["color"], "alpha": 0.13, "linewidth": 0, "label": "_interval"}
    axes.fill_between(place, low, high, **band)
    axes.plot(place, value, **style, label="_lift", zorder=3)

"""Figures of audits: credit and movement by segmenter, and Lift of the policy's signals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from segcredit.credit_audit.metric_list import METRICS, SIGNALS, lift_name, with_references
from segcredit.errors import StudyError
from segcredit.records.tables import require_known
from segcredit.study.plots.dots import MOST_KINDS, Dot, dot_style, draw_dots, row_names, rows_height
from segcredit.study.plots.sheet import Canvas, room, sheet
from segcredit.study.plots.style import COLUMN, LOOKS, PAGE, label, letters, look, wrapped

MARKS = {one.name: one.chance for one in METRICS if isinstance(one.chance, float)}
"""Values of blind credit or of chance, which a thin line marks; 0 of all other metrics."""
DAGGER = "†"
"""Behind the name of a segmenter that is not causal."""
NOT_CAUSAL = f"{DAGGER}: not causal, so that its baseline may bias the gradient."
"""Meaning of the dagger, for a note."""
_KINDS = ("definition", "random cuts", "oracle")
_BOUNDARIES = with_references("share_on_boundaries")
_WITHIN = with_references("share_within")
_KIND_OF = dict(zip([*_BOUNDARIES, *_WITHIN], [*_KINDS, *_KINDS[:2]], strict=True))


def audit_intervals(
    audit: pd.DataFrame,
    metric: str = "correlation",
    at: str = "",
    *,
    run: str = "",
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws a metric of an audit as dots with intervals: a row a segmenter, a mark an estimator.

    Each advantage scheme has a panel, all of one scale; metrics that no scheme has a part in have
    one panel, those of the segmenter alone one marker. On top stands the segmenter with the highest
    value of the first estimator in the first panel. The thin line is at what blind credit or chance
    has (0; 1 of ratios, see ``MARKS``). A pair that was not audited, or has no such metric, leaves
    a gap. Two intervals that do not overlap differ; two that do may differ as well:
    ``segcredit.credit_audit.metrics.difference``.

    Args:
        audit: as ``read_runs(path).audit`` gives it.
        metric: a name of the column ``metric``.
        at: where it was taken, as in the column ``at``; by default the first place, such as
            "gradient" of a correlation.
        run: which audit, where the table holds several.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: the table is empty or holds several audits of which none was named; the
            metric, the place or the audit is unknown; no segmenter has the metric; or there are
            more estimators than can be told apart.
    """
    whole = _one_audit(audit, run)
    place = _place_of(whole, metric, at)
    rows = whole.loc[(whole["metric"] == metric) & (whole["at"] == place), :]
    if not marked_segmenters(rows):
        raise StudyError(
            f"The metric {metric!r} is of no segmenter, so that there are no rows to draw; expected"
            " one such as 'correlation' or 'share_on_boundaries'. Those of the policy's signals"
            " are drawn by 'lift_curves'."
        )
    estimators = in_order(rows["estimator"])
    if len(estimators) > MOST_KINDS:
        raise StudyError(
            f"There are {len(estimators)} estimators; expected at most {MOST_KINDS}, which can be"
            " told apart. Draw a part of the table: audit[audit['estimator'].isin([...])]."
        )
    panels, kinds = (rows[name].astype(object).fillna("") for name in ("advantage", "estimator"))
    said = f"{label(metric)} ({place})" if place else label(metric)
    how: Any = {"kinds": estimators, "by": "estimator", "mark": MARKS.get(metric, 0.0)}
    how |= {"axis": said, "title": _extremes(rows, said)}
    named = f"{said} by segmenter, estimator and advantage"
    return _dots_figure(rows.assign(panel=panels, kind=kinds), named, width, figure, **how)


def movement_shares(
    audit: pd.DataFrame,
    *,
    fork: str = "end",
    run: str = "",
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws the shares of squared value change on the boundaries and lost inside the segments.

    A row a segmenter, the one with the highest share on its boundaries on top. In both panels the
    definition stands beside its random twin, which cuts as often anywhere; on boundaries also
    beside the oracle, which cuts as often at the largest changes of one part of the truth. On
    boundaries more is better, inside segments less. The oracle's share falls with the noise of the
    truth. The title counts definitions whose interval on boundaries lies above that of their twin.

    Args:
        audit: as ``read_runs(path).audit`` gives it.
        fork: which side of a boundary its token is on, "end" or "start".
        run: which audit, where the table holds several.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: the table is empty or holds several audits of which none was named; the audit
            or the fork is unknown; or it has no metrics of movement.
    """
    whole = _one_audit(audit, run)
    rows = whole.loc[whole["metric"].isin([*_BOUNDARIES, *_WITHIN]), :]
    if rows.empty:
        raise StudyError(
            "The audit's table has no metrics of where the value moves; expected rows such as"
            " 'share_on_boundaries'. Usually a part of it was chosen that leaves them out."
        )
    require_known("side of a boundary (fork)", [fork], [at for at in in_order(rows["at"]) if at])
    on, inside = f"on boundaries ({fork})", "inside segments"
    metrics = rows["metric"].astype(str)
    kinds = metrics.map(_KIND_OF)
    rows = rows.assign(panel=metrics.isin(_BOUNDARIES).map({True: on, False: inside}), kind=kinds)
    rows = rows.loc[(rows["at"] == fork) | (rows["panel"] == inside), :]
    own = rows.loc[rows["panel"] == on, :]
    ends = own.pivot(index="segmenter", columns="kind", values=["low", "high"])
    ahead = list(ends["low", _KINDS[0]] > ends["high", _KINDS[1]]).count(True)
    title = f"{ahead} of {len(ends)} definitions cut where the value moves more than random cuts do"
    how: Any = {"kinds": _KINDS, "axis": "share of squared value change", "title": title}
    named = "Share of the true squared value change on boundaries and inside segments"
    return _dots_figure(rows, named, width, figure, **how)


def lift_curves(
    audit: pd.DataFrame,
    *,
    of_jumps: bool = False,
    width: float = PAGE,
    figure: Canvas | None = None,
) -> Figure:
    """Draws lift over a signal's quantile: a panel a signal, a line an audit, a band its interval.

    The squared value change of the tokens whose signal (entropy, surprisal) is above its quantile,
    over that of all tokens. The line at 1 is chance. Bands are of one point each: they do not hold
    a whole line with the confidence that they have at a point.

    Args:
        audit: as ``read_runs(path).audit`` gives it; of one audit or of several.
        of_jumps: count jumps of at least the audit's threshold instead, as SAPO does; noise in the
            truth draws this towards 1.
        width: in inches; ``COLUMN`` or ``PAGE``.
        figure: a figure or subfigure to draw the panels into; best with layout="constrained".

    Raises:
        StudyError: the table is empty, or has no Lift, or holds more audits than can be told apart.

    Source:
        Segment-Aligned Policy Optimization, 2026, arXiv 2605.01327, eq. 12. Deliberate difference:
        by default without its threshold, since every change counts by its square.
    """
    _require_rows(audit)
    names = {lift_name(signal, of_jumps=of_jumps): signal for signal in SIGNALS}
    names = {name: names[name] for name in in_order(audit["metric"]) if name in names}
    rows = audit.loc[audit["metric"].isin(names), :]
    rows = rows.assign(quantile=rows["at"].astype(str).astype(float)).sort_values("quantile")
    runs = in_order(audit.loc[audit["metric"].isin(names), "run"])
    if rows.empty:
        raise StudyError(
            "The audit's table has no Lift; expected rows such as 'lift_entropy'. Usually a part of"
            " it was chosen that leaves the section 'signals' out."
        )
    if len(runs) > LOOKS:
        raise StudyError(
            f"There are {len(runs)} audits; expected at most {LOOKS}, which can be told apart."
            " Choose some: audit[audit['run'].isin([...])]."
        )
    across = len(names) if room(width, figure) > 1.5 * COLUMN else 1
    named = "Lift over quantiles of the policy's signals"
    with sheet(width, 2.0 * len(names) / across, named, figure=figure) as page:
        panes = page.panels(len(names), across, sharey=True)
        for number, (axes, (name, signal)) in enumerate(zip(panes, names.items(), strict=True)):
            for kind, run in enumerate(runs):
                one = rows.loc[(rows["metric"] == name) & (rows["run"] == run), :]
                style = look(kind)
                band: Any = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
                places = one["quantile"].to_numpy()
                axes.fill_between(places, one["low"], one["high"], **band, label="_interval")
                axes.plot(places, one["value"], **style, label="_lift", zorder=3)
            axes.axhline(1.0, color="0.4", linewidth=0.6, label="_mark", zorder=1)
            axes.set_xlabel(f"tokens above this quantile of {signal}")
            if number % across == 0:
                axes.set_ylabel("Lift (jumps)" if of_jumps else "Lift")
        top = rows.sort_values("value").iloc[-1]
        what = "Jumps of the value are" if of_jumps else "The squared value change is"
        where = f"above quantile {top['at']} of {names[str(top['metric'])]}"
        title = f"{what} up to {top['value']:.3g} times the average: {where}"
        note = interval_note(rows, False, "thin line: 1, chance").replace("Bars", "Bands")
        page.finish(title, note, dict(enumerate(runs)) if len(runs) > 1 else {}, "audit")
    return page.figure


def in_order(column: Iterable[Any]) -> list[str]:
    """Returns the different values of a column, in their order; missing ones left out."""
    return list(dict.fromkeys(str(value) for value in column if not pd.isna(value)))


def marked_segmenters(audit: pd.DataFrame) -> dict[str, str]:
    """Returns the name of each segmenter in a figure, in the order of their rows."""
    named = audit.loc[audit["segmenter"].notna(), :]
    causal = dict(zip(named["segmenter"].astype(str), named["causal"], strict=True))
    return {name: name if is_causal else f"{name}{DAGGER}" for name, is_causal in causal.items()}


def units_of(rows: pd.DataFrame) -> str:
    """Returns the units of some rows' intervals, as '64 prompts'; '' where there is none."""
    counts = sorted({int(count) for count in rows.loc[rows["low"].notna(), "prompts"]})
    unit = "batches" if in_order(rows["section"]) == ["gradient"] else "prompts"
    return f"{'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} {unit}" if counts else ""


def interval_note(rows: pd.DataFrame, is_cut: bool, *parts: str) -> str:
    """Returns the sentence below a figure: its intervals' units, whether one is cut, and parts."""
    unit = units_of(rows)
    said = [f"Bars: the audit's intervals over {unit}" if unit else "No intervals"]
    said += ["where one reaches the frame, it goes on"] if is_cut else []
    names = marked_segmenters(rows)
    looks_ahead = any(name != shown for name, shown in names.items())
    return "; ".join([*said, *parts]) + "." + (f" {NOT_CAUSAL}" if looks_ahead else "")


def _dots_figure(
    rows: pd.DataFrame,
    named: str,
    width: float,
    figure: Canvas | None,
    *,
    kinds: Sequence[str],
    axis: str,
    title: str,
    by: str = "",
    mark: float = 0.0,
) -> Figure:
    """Draws the rows' dots, in the panel and of the kind that two more columns name.

    All panels are on one scale; segmenters are sorted by the first kind in the first panel.
    """
    panels, width = in_order(rows["panel"]), room(width, figure)
    first = rows.loc[(rows["panel"] == panels[0]) & (rows["kind"] == rows["kind"].iloc[0]), :]
    means = first.groupby(first["segmenter"].astype(str))["value"].mean().dropna()
    segmenters = marked_segmenters(rows)
    order = sorted(segmenters, key=lambda name: -means.get(name, -math.inf))
    shown, count = row_names([segmenters[name] for name in order], width), max(len(kinds), 1)
    dots: dict[str, list[Dot]] = {panel: [] for panel in panels}
    for row in rows.to_dict("records"):
        dots[row["panel"]].append(_dot(row, order, kinds))
    everything = list(itertools.chain(*dots.values()))
    across = min(len(panels), 2 if width < 1.5 * COLUMN else 4)
    height = -(-len(panels) // across) * rows_height(shown, count)
    with sheet(width, height, named, figure=figure) as page:
        panes = page.panels(len(panels), across, sharex=True, sharey=True)
        cuts: list[bool] = []
        for number, (axes, panel) in enumerate(zip(panes, panels, strict=True)):
            cuts += [draw_dots(axes, dots[panel], shown, kinds=count, mark=mark, scale=everything)]
            axes.set_title(wrapped(panel, letters(width / (across + 1))))
            if number + across >= len(panels):
                axes.set_xlabel(wrapped(axis, letters(width / (across + 1))))
        note = interval_note(rows, any(cuts), f"thin line: {mark:g}")
        page.finish(title, note, dict(enumerate(kinds)), by, style=dot_style)
    return page.figure


def _dot(row: Mapping[Any, Any], segmenters: Sequence[str], kinds: Sequence[str]) -> Dot:
    """Returns one row of an audit's table as a dot; the ends of a share stay inside [0, 1]."""
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    if "share" in str(row["metric"]).split("_"):  # an estimate corrected for noise may be below 0
        low, high = max(low, min(value, 0.0)), min(high, max(value, 1.0))
    kind = kinds.index(row["kind"]) if row["kind"] in kinds else 0
    return Dot(segmenters.index(str(row["segmenter"])), kind, value, low, high)


def _extremes(rows: pd.DataFrame, said: str) -> str:
    """Returns the title of a figure: where a metric is highest and lowest."""
    known: Any = rows.dropna(subset="value").sort_values("value")
    if len(known) < 2:
        return said
    ends: list[str] = []
    for place in (-1, 0):
        row = known.iloc[place]
        keys = [row[key] for key in ("segmenter", "estimator", "advantage")]
        keys = keys if known["advantage"].nunique() > 1 else keys[:2]
        shown = ", ".join(in_order(keys))
        ends.append(f"with {shown} ({row['value']:.2g})")
    return f"{said[:1].upper()}{said[1:]} is highest {ends[0]}, lowest {ends[1]}"


def _require_rows(audit: pd.DataFrame) -> None:
    if audit.empty:
        raise StudyError(
            "The audit's table has no rows; expected a row a metric, as `read_runs(path).audit`"
            " gives them. Usually the directory holds no finished audit: run `segcredit audit`"
            " first, or again, which keeps what is there."
        )


def _one_audit(audit: pd.DataFrame, run: str) -> pd.DataFrame:
    """Returns the rows of one audit, which need not be named where there is one."""
    _require_rows(audit)
    names = in_order(audit["run"])
    if not run and len(names) > 1:
        raise StudyError(
            f"The table holds {len(names)} audits: {', '.join(names[:12])}; expected one, since"
            " their metrics are of different truths. Name one with run=, or draw each by itself."
        )
    run = run or names[0]
    require_known("audit", [run], names)
    return audit.loc[audit["run"] == run, :]


def _place_of(audit: pd.DataFrame, metric: str, at: str) -> str:
    """Returns where a metric is to be read: ``at``, or the first place at which it was taken."""
    require_known("metric of this audit", [metric], in_order(audit["metric"]))
    places = in_order(audit.loc[audit["metric"] == metric, "at"])
    if at and places == [""]:
        raise StudyError(
            f"The metric {metric!r} was taken at no place in particular, but at={at!r} was given;"
            " leave it out."
        )
    require_known(f"place of {metric!r}", [at] if at else [], places)
    return at or places[0]

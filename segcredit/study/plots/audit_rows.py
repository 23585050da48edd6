"""Rows of an audit's table: those of an audit, of a metric, of a segmenter."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.tables import require_known

DAGGER = "†"
"""Behind the name of a segmenter that is not causal."""
NOT_CAUSAL = f"{DAGGER}: not causal, so that its baseline may bias the gradient."
"""Meaning of the dagger, for a note."""


def require_audit(audit: pd.DataFrame) -> None:
    """Refuses a table without rows.

    Raises:
        StudyError: it has none.
    """
    if audit.empty:
        raise StudyError(
            "The audit's table has no rows; expected a row a metric, as `read_runs(path).audit`"
            " gives them. Usually the directory holds no finished audit: run `segcredit audit`"
            " first, or again, which keeps what is there."
        )


def one_audit(audit: pd.DataFrame, run: str = "") -> pd.DataFrame:
    """Returns the rows of one audit.

    Args:
        audit: as ``read_runs(path).audit`` gives it.
        run: the audit's name; may be left out where there is one.

    Raises:
        StudyError: there are no rows, no such audit, or several of which none was named.
    """
    require_audit(audit)
    names = in_order(audit["run"])
    if not run and len(names) > 1:
        raise StudyError(
            f"The table holds {len(names)} audits: {', '.join(names[:12])}; expected one, since"
            " their metrics are of different truths. Name one with run=, or draw each by itself."
        )
    run = run or names[0]
    require_known("audit", [run], names)
    return audit.loc[audit["run"] == run, :]


def place_of(audit: pd.DataFrame, metric: str, at: str = "") -> str:
    """Returns where a metric is to be read: ``at``, or the first place at which it was taken.

    Raises:
        StudyError: the metric or the place is unknown; lists what there is.
    """
    require_known("metric of this audit", [metric], in_order(audit["metric"]))
    rows = audit.loc[audit["metric"] == metric, :]
    places = in_order(rows["at"])
    if at and places == [""]:
        raise StudyError(
            f"The metric {metric!r} was taken at no place in particular, but at={at!r} was given;"
            " leave it out."
        )
    require_known(f"place of {metric!r}", [at] if at else [], places)
    return at or places[0]


def rows_of(audit: pd.DataFrame, metric: str, at: str = "") -> pd.DataFrame:
    """Returns the rows of one metric at one place, see ``place_of``.

    Raises:
        StudyError: the metric or the place is unknown.
    """
    place = place_of(audit, metric, at)
    return audit.loc[(audit["metric"] == metric) & (audit["at"] == place), :]


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
    """Returns the sentence below a figure: its intervals' units, and what else is to be said.

    Args:
        rows: those that are drawn.
        is_cut: whether an interval goes on beyond the frame.
        parts: what else.
    """
    unit = units_of(rows)
    said = [f"Bars: the audit's intervals over {unit}" if unit else "No intervals"]
    said += ["where one reaches the frame, it goes on"] if is_cut else []
    names = marked_segmenters(rows)
    looks_ahead = any(name != shown for name, shown in names.items())
    return "; ".join([*said, *parts]) + "." + (f" {NOT_CAUSAL}" if looks_ahead else "")

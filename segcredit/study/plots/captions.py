"""Captions of figures: what is drawn, over what its intervals are, what is missing."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segcredit.records.tables import Runs
from segcredit.study.plots.curves import INTERVALS, Curve
from segcredit.study.plots.groups import Group, failed_runs, unit_of
from segcredit.study.statistics import FEWEST


def curve_note(runs: Runs, curves: Sequence[Curve], *, seeds: bool = True, window: int = 1) -> str:
    """Returns the sentence below curves: the meaning of line and band, and the runs they are over.

    Args:
        runs: as ``read_runs`` returns them.
        curves: those that are drawn.
        seeds: whether the runs are drawn one by one, too.
        window: how many steps make a point.
    """
    unit = unit_of(runs, [curve.values.columns for curve in curves])
    parts = ["Line: mean", _band(unit, curves)]
    parts += [f"thin: {unit}s"] if seeds else []
    drawn = {run for curve in curves for run in curve.values.columns}
    if seeds and drawn & failed_runs(runs):
        parts.append("×: where a run failed")
    if len(drawn) < len(runs):
        parts.append(f"{len(runs) - len(drawn)} of {len(runs)} runs recorded none")
    if window > 1:
        parts.append(f"a point: {window} steps")
    return "; ".join(parts) + "."


def _band(unit: str, curves: Sequence[Curve]) -> str:
    """Returns the part of a caption on intervals: their unit, and their number if it is needed."""
    counts = [curve.seeds for curve in curves]
    if max(most for _, most in counts) < 2:
        return f"one {unit} each, so no intervals"
    if max(most for _, most in counts) < FEWEST:
        return f"band: range over {unit}s (n = 2: too few for an interval)"
    few = any(1 < least < FEWEST for least, _ in counts)
    of_two = "; of two, their range" if few else ""
    kind = INTERVALS[curves[0].interval]
    return f"band: {kind} over {unit}s (n = {_usual(counts)[0]}){of_two}"


def legend_entries(curves: Sequence[Curve]) -> list[tuple[Group, str]]:
    """Returns the groups drawn, each with its number of runs where that is not the note's."""
    usual = _usual([curve.seeds for curve in curves])
    return [
        (curve.group, "" if curve.seeds == usual else f" (n = {_range(*curve.seeds)})")
        for curve in curves
    ]


def _usual(counts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the number of runs that most groups have throughout; the largest where none has."""
    whole = [pair for pair in counts if pair[0] == pair[1]]
    most = max(most for _, most in counts)
    return Counter(whole).most_common(1)[0][0] if whole else (most, most)


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}–{most}"

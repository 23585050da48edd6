"""Findings of a comparison, in sentences that may stand alone or above a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from segcredit.study.statistics.intervals import FEWEST


def finding(row: Mapping[str, Any], confidence: float, power: float, pairs: int, test: str) -> str:
    """Returns the sentence for one row of ``compare``, with what must be known of its runs.

    Args:
        row: the other columns of the row.
        confidence: of the intervals; the level of the test is 1 less this.
        power: of the seeds needed.
        pairs: how many the p values are corrected for.
        test: "sign_flip" or "student".
    """
    note = f" Note: {row['note']}." if row["note"] else ""
    return _found(row, 1 - confidence, power, pairs, test) + note


def title(metric: str, means: Mapping[str, float], tested: int, apart: int) -> str:
    """Returns which groups end highest and lowest, and how many pairs the seeds separate.

    Args:
        metric: its name, as on an axis.
        means: of the groups, by name; at least one.
        tested: how many pairs have a p value.
        apart: how many of these are separated.
    """
    ordered = sorted(means, key=means.__getitem__)
    low, high = (f"{name} ({means[name]:.3g})" for name in (ordered[0], ordered[-1]))
    metric = f"{metric[:1].upper()}{metric[1:]} at the end"
    if len(ordered) == 1:
        return f"{metric}: {high}"
    found = f"{metric}: highest with {high}, lowest with {low}"
    if tested == 1:
        return f"{found}; the seeds {'' if apart else 'do not '}separate them"
    return f"{found}; the seeds separate {apart or 'none'} of {tested} pairs" if tested else found


def _found(row: Mapping[str, Any], level: float, power: float, pairs: int, test: str) -> str:
    a, b, seeds = row["a"], row["b"], row["shared_seeds"]
    if seeds == 0:
        return (
            f"{b} and {a} have no seed for which both recorded the metric, so nothing is compared;"
            " run both with the same seeds."
        )
    difference = f"{b} minus {a} is {row['difference']:+.3g}"
    if seeds == 1:
        return f"{difference} for the one shared seed, which says nothing of chance; run more."
    ends = f"[{row['low']:.3g}, {row['high']:.3g}]"
    if seeds < FEWEST:
        ends = f"(range {row['low']:.3g} to {row['high']:.3g})"
    known = f"{difference} {ends} over {seeds} shared seeds ({_p(row)})"
    if row["p_adjusted"] <= level:
        return f"{known}: the data separate them."
    limit = _limit(row, level, pairs) if test == "sign_flip" else ""
    return f"{known}: the data do not separate them; {_outlook(row, power)}{limit}."


def _p(row: Mapping[str, Any]) -> str:
    """Writes p, and the corrected p where the correction changed it."""
    p, adjusted = row["p"], row["p_adjusted"]
    return f"p {p:.3g}" if p == adjusted else f"p {p:.3g}, corrected {adjusted:.3g}"


def _outlook(row: Mapping[str, Any], power: float) -> str:
    """Says how many seeds would be needed."""
    seeds, needed = row["shared_seeds"], row["seeds_needed"]
    if math.isinf(needed):
        return "their means are the same, which no number of seeds would tell apart"
    # The test may fail where its power was to suffice: the difference seen is itself an estimate.
    needed = max(needed, seeds + 1)
    return (
        f"about {needed:,.0f} seeds would be needed to detect a difference of this size with power"
        f" {power:g}"
    )


def _limit(row: Mapping[str, Any], level: float, pairs: int) -> str:
    """Says that so few seeds could not have separated anything, where that is so."""
    if row["smallest_p"] * pairs <= level:
        return ""
    correction = f" before the correction for {pairs} pairs" if pairs > 1 else ""
    return f" ({row['shared_seeds']} cannot give a p below {row['smallest_p']:.3g}{correction})"

"""The sections of a report on audits: credit, movement, values, costs, and a few completions."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from segcredit.credit_audit.metric_list import (
    GRADIENT,
    Place,
    Section,
    headlines,
    metric,
    reported,
)
from segcredit.records.tables import Runs
from segcredit.study.plots import audit_intervals, lift_curves, movement_shares
from segcredit.study.plots.audits import NOT_CAUSAL, in_order, marked_segmenters, units_of
from segcredit.study.plots.style import label
from segcredit.study.report import view
from segcredit.study.report.completions import audited
from segcredit.study.report.drawings import drawn
from segcredit.study.report.overview import MOST_ROWS
from segcredit.study.report.view import Block, Cell, Listing, Note, Table
from segcredit.study.report.view import Section as PageSection

Places = Sequence[Place]
"""Metrics with the level at which each is read, as in the columns ``metric`` and ``at``."""

LEADING = [place for place in headlines("credit") if place[0] == "correlation"]
"""The metric that orders credits: as the gradient weighs them, or by token in older audits."""
KEYS = ("segmenter", "estimator", "advantage")
"""Columns that name a row of a table; the first of them, or all."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One audit's table, to be asked for single metrics."""

    table: pd.DataFrame
    confidence: str
    """'95% intervals', where it is known."""
    rows: dict[tuple[str, ...], dict[str, Any]]
    """Rows by metric, place, segmenter, estimator and scheme ('' where it is of none)."""
    failed: dict[str, str]
    """Reasons by what the audit left out."""

    def get(self, name: str, at: str, *of: str) -> dict[str, Any] | None:
        """Returns a metric's row, of a segmenter, estimator and scheme or the first of these."""
        known = [*of, "", "", ""][:3]
        tries = [known, [known[0], known[1], ""], [known[0], "", ""]]
        found = (self.rows.get((name, at, *key)) for key in tries)
        return next((row for row in found if row is not None), None)

    def number(self, name: str) -> float:
        """Returns a metric that is of no segmenter; NaN where it was not measured."""
        row = self.rows.get((metric(name).name, "", "", "", ""))
        return math.nan if row is None else float(row["value"])

    def places(self, wanted: Places) -> Places:
        """Returns the places that were measured of anything."""
        measured = {key[:2] for key, row in self.rows.items() if not math.isnan(row["value"])}
        return [place for place in wanted if place in measured]

    def of(self, section: Section) -> pd.DataFrame:
        """Returns the rows of one section."""
        return self.table.loc[self.table["section"] == section, :]


def is_audit(runs: Runs) -> dict[str, bool]:
    """Tells by run whether it is an audit, finished or not, and no training."""
    table: Any = runs.runs
    asked = [name for name in table if str(name).startswith("audit.")]
    any_key = table[asked].notna().any(axis=1) if asked else [False] * len(table)
    return {str(run): bool(flag) for run, flag in zip(table["run"], any_key, strict=True)}


def audit_sections(runs: Runs, *, named: bool) -> Iterator[PageSection]:
    """Yields the sections of every audit that has a table, one audit after the other.

    Args:
        runs: among which audits are.
        named: whether the titles say which audit it is.
    """
    for number, run in enumerate(in_order(runs.audit["run"]), 1):
        found = _found(runs, run)
        parts = {
            "credit": ("Credit", _credit),
            "movement": ("Where the value moves", _movement),
            "values": ("Values", _values),
            "costs": ("Costs", _costs),
        }
        for name, (title, blocks) in parts.items():
            place = f"audit-{number}-{name}"
            shown = f"{run}: {title[0].lower()}{title[1:]}" if named else title
            yield PageSection(place, shown, list(blocks(found, place)))
        place = f"audit-{number}-completions"
        shown = f"{run}: completions" if named else "Completions"
        yield PageSection(place, shown, list(_completions(found, runs.directories[run])))


def _found(runs: Runs, run: str) -> _Found:
    table: Any = runs.audit.loc[runs.audit["run"] == run, :]
    names = ["metric", "at", *KEYS]
    keys = table[names].astype(object).where(table[names].notna(), "")
    rows = {
        tuple(map(str, key)): row
        for key, row in zip(
            keys.itertuples(index=False, name=None), table.to_dict("records"), strict=True
        )
    }
    config: Any = runs.runs.set_index(runs.runs["run"].astype(str)).loc[run]
    share = config.get("audit.confidence", math.nan)
    said = "intervals" if pd.isna(share) else f"{100 * float(share):g}% intervals"
    # Loads torch and transformers, which a report on training runs does without.
    from segcredit.credit_audit import failed_units

    return _Found(table, said, rows, failed_units(runs.directories[run]))


def _credit(found: _Found, place: str) -> Iterator[Block]:
    credits = found.of("credit")
    yield Note(_lead(found, credits))
    if found.failed:
        yield Note(f"Left out, since they failed: {view.counted(len(found.failed), 'pair')}.")
        yield Listing([f"{unit}: {reason}" for unit, reason in found.failed.items()])
    unit, batches = units_of(credits), units_of(found.of("gradient"))
    caption = (
        f"A row a credit, with {found.confidence} over {unit or 'prompts'}"
        + (f" (those of gradients over {batches})" if batches else "")
        + ". At gradient tokens count by the squared gradient of their log-prob, at token all"
        " alike, also those that the policy is sure of, whose credit moves nothing. Correlation,"
        " slope, cosine and explained variance are best at 1, as is mass, which returns exceed;"
        " sign agreement has a ceiling below 1. The noise ratio is 1 for a token a segment, and of"
        " credits with equal slopes less is better; it is blank where such credit was not audited"
        " or is zero. Sharpening above 0 pays likely tokens for being likely. Credit of zero has 0."
        " Tokens are those sampled for the values."
    )
    if LEADING[0] not in found.places(LEADING):
        yield Note(
            "This audit has no metrics at the level gradient: an older version made it, or its"
            " policy has no logit_gradients(). Credit is compared by token, which counts tokens"
            " that the policy is sure of; run the audit again, which adds what is missing."
        )
    yield _table(found, caption, _credits(credits), found.places(headlines()))
    noise = headlines("credit")[1]
    for name, at in (*found.places(LEADING)[:1], noise, headlines("gradient")[0]):
        if found.places([(name, at)]):
            yield drawn(
                f"{place}-{name}",
                lambda width, name=name, at=at: audit_intervals(found.table, name, at, width=width),
                f"{metric(name).summary} Credits share their prompts, so that intervals which"
                " overlap do not say that two are alike: segcredit.credit_audit.metrics.difference"
                " does.",
            )
    if gradients := found.places(reported("gradient")):
        caption = f"Gradients of all parameters, with {found.confidence} over {batches}."
        yield _table(found, caption, _credits(found.of("gradient")), gradients, "Gradients")


def _lead(found: _Found, credits: pd.DataFrame) -> str:
    counts = {key: len(in_order(credits[key])) for key in KEYS}
    said = (
        f"{view.counted(counts['segmenter'], 'segmenter')} with"
        f" {view.counted(counts['estimator'], 'estimator')} under"
        f" {view.counted(counts['advantage'], 'advantage scheme')}, judged on a frozen policy."
    )
    leading = _leading(found, credits)
    ordered = leading.dropna(subset=["value"]).sort_values("value", kind="stable")
    if len(ordered):
        ends = [ordered.iloc[0], ordered.iloc[-1]]
        low, high = (
            f"{view.number(row['value'], 2)} ({', '.join(str(row[key]) for key in KEYS)})"
            for row in ends
        )
        weighed = ordered["at"].iloc[0] == GRADIENT
        how = "As the gradient weighs tokens" if weighed else "By token"
        said += f" {how}, credit correlates with the true advantages from {low} to {high}."
    checks = {
        "split_correlation": "The splits of the truth correlate by token at",
        "reference_cosine": "The splits of the reference gradient have a cosine of",
    }
    known = {text: found.number(name) for name, text in checks.items()}
    said += "".join(
        f" {text} {view.number(x, 2)}." for text, x in known.items() if not math.isnan(x)
    )
    return said


def _movement(found: _Found, place: str) -> Iterator[Block]:
    rows = found.of("movement")
    segmenters = [(name,) for name in in_order(rows["segmenter"])]
    caption = (
        "A row a definition: shares of the true squared value change, with"
        f" {found.confidence} over {units_of(rows) or 'prompts'}. On boundaries more is better than"
        " at random, inside segments less; a baseline without bias has 0."
    )
    yield _table(found, caption, segmenters, found.places(reported("movement")))
    yield drawn(
        f"{place}-shares",
        lambda width: movement_shares(found.table, width=width),
        "The definition beside as many cuts at random, and beside the oracle, which cuts as often"
        " where the value changes most. The oracle's share falls with the noise of the truth.",
    )
    yield drawn(
        f"{place}-lift",
        lambda width: lift_curves(found.table, width=width),
        "Lift: the squared value change of the tokens whose signal is high, over that of all"
        " tokens; 1 is chance.",
    )
    yield from _shares(
        found,
        "A row a class of tokens, by what stands at their first character: its share of the squared"
        " value change, and that over its share of the tokens",
        "class",
        {"class_share": "share of change", "class_ratio": "over share of tokens"},
    )
    yield from _shares(
        found,
        "A row a turn: its share of the squared value change, that over its share of the tokens,"
        " and the squared change itself, a mean of the completions that reach the turn",
        "turn",
        {
            "turn_share": "share of change",
            "turn_ratio": "over share of tokens",
            "turn_movement": "squared change",
        },
    )


def _shares(found: _Found, caption: str, of: str, columns: Mapping[str, str]) -> Iterator[Block]:
    """Yields a table with a row for each place at which metrics of the value's change were taken.

    Args:
        found: the audit.
        caption: of the table.
        of: heading of the places.
        columns: the metrics' headings by their names; without the first there is no table.
    """
    signals = found.of("signals")
    names = in_order(signals.loc[signals["metric"] == next(iter(columns)), "at"])
    if not names:
        return
    cells = [_cells([found.get(one, name) for name in names]) for one in columns]
    caption += f"; {found.confidence} over {units_of(signals) or 'prompts'}."
    rows = zip([view.text(name) for name in names], *cells, strict=True)
    yield Table(caption, [of, *columns.values()], list(rows))


def _values(found: _Found, place: str) -> Iterator[Block]:
    rows = found.of("values")
    caption = (
        "A row an estimator at a definition's anchors: its values beside the true ones, with"
        f" {found.confidence} over {units_of(rows) or 'prompts'}. Early and late: anchors in the"
        " first half of their completion, and the rest. Tokens: the states before all tokens, where"
        " an anchor's value holds until the next, so that definitions are compared on the same"
        " states. Slope and explained variance are best at"
        " 1; bias, error and noise at 0."
    )
    yield _table(found, caption, _pairs(rows), found.places(reported("values")))
    # Audits of the version before have no values before every token.
    places = found.places([*headlines("values"), ("explained_variance", "late")])
    name, part = next(iter(places), headlines("values")[0])
    says = {
        "tokens": "Explained variance before every token: the same states for every definition.",
        "late": "Explained variance at late anchors: an estimator that knows no more than how hard"
        " a prompt is does well early on, and gives no credit inside a completion.",
    }
    yield drawn(
        f"{place}-explained",
        lambda width: audit_intervals(found.table, name, part, width=width),
        says[part],
    )


def _costs(found: _Found, _: str) -> Iterator[Block]:
    rows = found.of("cost")
    spent = [found.number(name) for name in ("truth_tokens", "truth_cpu_seconds")]
    tokens, seconds = (view.number(x, 0) for x in spent)
    yield Note(f"The truth took {tokens} tokens and {seconds} CPU-seconds.")
    caption = (
        "A row an estimator with a definition: tokens sampled for its values, those that it learned"
        " from included, and CPU-seconds, which say as much of the machine as of the method."
    )
    yield _table(found, caption, _pairs(rows), found.places(reported("cost")))


def _completions(found: _Found, path: Path) -> Iterator[Block]:
    """Yields completions of the scheme that leads, averaged over its credits."""
    rows = found.of("credit")
    leading = _leading(found, rows)
    schemes = in_order(rows["advantage"])
    if not schemes:
        yield Note("No completion is shown: the audit has no credit.")
    else:
        means = leading.groupby(leading["advantage"].astype(str))["value"].mean().fillna(-1.0)
        yield from audited(path, max(schemes, key=lambda one: means.get(one, -1.0)))


def _leading(found: _Found, rows: pd.DataFrame) -> Any:
    """Returns the rows of the leading metric."""
    name, at = next(iter(found.places(LEADING)), LEADING[0])
    return rows[(rows["metric"] == name) & (rows["at"] == at)]


def _credits(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Returns segmenter, estimator and scheme of each credit, in the order of the table."""
    return _different(rows, KEYS)


def _pairs(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    return _different(rows, KEYS[:2])


def _different(rows: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, ...]]:
    whole: Any = rows[list(names)].dropna().astype(str).drop_duplicates()
    return list(whole.itertuples(index=False, name=None))


def _table(
    found: _Found,
    caption: str,
    of: Sequence[tuple[str, ...]],
    places: Places,
    folded: str = "",
) -> Table:
    """Returns a row for each of some segmenters (with estimator, and scheme), a column a metric."""
    names = marked_segmenters(found.table)
    if len(of) > MOST_ROWS:
        caption += f" {MOST_ROWS} of {len(of):,} rows are shown."
    shown = of[:MOST_ROWS]
    keys = KEYS[: len(shown[0])] if shown else ()
    columns = [[view.text(names[key[0]]) for key in shown]]
    columns += [[view.text(key[number]) for key in shown] for number in range(1, len(keys))]
    columns += [_cells([found.get(name, at, *key) for key in shown]) for name, at in places]
    headings = [
        *keys,
        *(f"{label(name)} ({at})" if at else label(name) for name, at in places),
    ]
    notes = [NOT_CAUSAL] if any(names[key[0]] != key[0] for key in shown) else []
    return Table(caption, headings, list(zip(*columns, strict=True)), notes, folded)


def _cells(rows: Sequence[dict[str, Any] | None]) -> list[Cell]:
    """Returns the cells of one metric, each with its interval, to be sorted by the estimate."""
    values = [math.nan if row is None else float(row["value"]) for row in rows]
    decimals = min(view.decimals_for(values), 3)
    return [_cell(row, value, decimals) for row, value in zip(rows, values, strict=True)]


def _cell(row: dict[str, Any] | None, value: float, decimals: int) -> Cell:
    said = view.number(value, decimals)
    if row is not None and not math.isnan(row["low"] + row["high"]):
        low, high = (view.number(row[end], decimals) for end in ("low", "high"))
        said += f" [{low}, {high}]"
    return Cell(said, value)

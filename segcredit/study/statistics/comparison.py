"""Pairs of groups over the seeds that they share, each with a sentence on what was found."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, require_interval, require_known
from segcredit.study.statistics.groups import (
    Group,
    columns_of,
    differing,
    group_name,
    groups_of,
    named_groups,
    note_of,
    varying,
)
from segcredit.study.statistics.improvement import improvement
from segcredit.study.statistics.paired import (
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_p,
    student_p,
)
from segcredit.study.statistics.run_values import (
    Measure,
    known_metric,
    last_steps,
    limits_of,
    run_values,
)
from segcredit.study.statistics.sentences import finding, title
from segcredit.study.statistics.stratified import IntervalKind, interval_of
from segcredit.study.statistics.summary import budget_note

Test = Literal["sign_flip", "student"]

COLUMNS = (
    "a",
    "b",
    "difference",
    "low",
    "high",
    "shared_seeds",
    "p",
    "p_adjusted",
    "smallest_p",
    "probability_of_improvement",
    "improvement_low",
    "improvement_high",
    "seeds_needed",
    "note",
    "finding",
)


def compare(
    runs: Runs,
    by: Sequence[str] | Mapping[str, Iterable[str]],
    metric: str,
    *,
    baseline: str | None = None,
    measure: Measure = "last",
    per: str = "step",
    budget: float | None = None,
    pair_on: Sequence[str] = ("seed",),
    interval: IntervalKind = "student",
    test: Test = "sign_flip",
    confidence: float = 0.95,
    power: float = 0.8,
) -> pd.DataFrame:
    """Computes the mean difference of each pair of groups over shared seeds, and its tests.

    A seed gives the runs of all methods the same prompts, so that what it does to both falls out
    of their difference. Only the runs of seeds that both groups have are used, for every metric of
    the row. The data separate two groups where ``p_adjusted`` ≤ 1 − ``confidence``.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs`` whose values make the groups; or the groups themselves, the
            names of their runs by those of the groups.
        metric: a column of ``runs.steps``, such as "accuracy".
        baseline: the name of the group (its values joined by spaces, 'none' for a missing option)
            that each other is compared with; by default all pairs are.
        measure: "last" recorded value, "area" under the learning curve, or "at_cost"; the latter
            two over ``per`` up to ``budget``, see ``run_values``.
        per: "step", "tokens_sampled", "cpu_seconds", or another cost that is counted up.
        budget: in the unit of ``per``; by default the largest that every run reached.
        pair_on: columns of ``runs.runs`` that tell which run of one group goes with which of the
            other: ("seed", "task") where each seed was run on several tasks. A pair is then one of
            both, and ``probability_of_improvement`` is the mean over the tasks.
        interval: of the difference: "student" or "bootstrap" (percentiles, too narrow below some
            ten seeds). The unit of both is a shared seed. It is of this pair alone, not corrected.
        test: "sign_flip", exact for every distribution, which can find nothing in fewer than six
            seeds (for one pair at 95%); or "student", the paired t test, which can but takes the
            differences to be normal.
        confidence: the share that the intervals are to cover, in (0, 1).
        power: of ``seeds_needed``, in (1 − confidence, 1).

    Returns:
        A row a pair (columns: ``COLUMNS``): ``difference`` (mean of b minus a, in the metric's
        unit), ``low``, ``high`` (of two seeds the range); ``shared_seeds``; ``p``, and
        ``p_adjusted``, Holm's over the pairs of the table; ``smallest_p``, the least p that so many
        seeds can give in the sign-flip test, before correction; ``probability_of_improvement``,
        that a run of b ends above one of a, with Newcombe's interval; ``seeds_needed`` to find such
        a difference with that ``power`` at the level (1 − confidence) / (pairs with a p), never
        fewer than the test itself can work with; ``note``, what sets the runs apart that were
        compared, and which were missing; ``finding``, all this in a sentence. What cannot be known
        from so few seeds is NaN.

    Raises:
        StudyError: a name is unknown or an option impossible, there are fewer than two groups, or a
            group has several runs for one value of ``pair_on``.
    """
    require_interval(confidence)
    require_known("config column", pair_on, runs.runs.columns)
    require_known("test", [test], _TESTS)
    values = run_values(runs, metric, measure, per=per, budget=budget)
    named = isinstance(by, Mapping)
    groups = named_groups(runs, by, values) if named else groups_of(runs, by, values)
    pairs = _pairs(groups, baseline)
    sides = {group.name: _one_each(group, list(pair_on)) for group in groups}
    shared = [_shared(sides[a.name], sides[b.name], list(pair_on)) for a, b in pairs]
    notes: dict[tuple[str, ...], str] = {}
    bound = budget_note(values) if measure != "last" and budget is None else ""
    table = pd.DataFrame(
        {
            "a": [a.name for a, _ in pairs],
            "b": [b.name for _, b in pairs],
            "shared_seeds": [len(rows) for rows in shared],
            "note": [
                _pair_note(*pair, rows, pair_on, bound, notes)
                for pair, rows in zip(pairs, shared, strict=True)
            ],
        }
    )
    # Two shares are at most 1 apart.
    limits = (-1.0, 1.0) if limits_of(known_metric(runs, metric)) else None
    measured = [_measured(rows, pair_on, interval, test, confidence, limits) for rows in shared]
    table = pd.concat([table, pd.DataFrame(measured)], axis=1)
    table["p_adjusted"] = holm(table["p"])
    tested = max(1, len(table["p"].dropna()))
    level = (1 - confidence) / tested
    table["seeds_needed"] = [_needed(rows, power, level, test) for rows in shared]
    sentences = [finding(row, confidence, power, tested, test) for row in table.to_dict("records")]
    return table.assign(finding=sentences).reindex(columns=list(COLUMNS))


def headline(runs: Runs, by: Sequence[str] | str, metric: str, said: str = "") -> str:
    """Returns what the last values of a metric show, in one sentence, as a figure's title.

    Which groups end highest and lowest, and how many of all pairs their shared seeds separate at
    the level .05, as ``compare`` finds; without the latter where it cannot compare them.

    Args:
        runs: as ``read_runs`` returns them.
        by: columns of ``runs.runs`` whose values make the groups.
        metric: a column of ``runs.steps``; some run recorded it.
        said: the metric's name in the sentence.

    Raises:
        StudyError: the metric or a column is unknown.
    """
    named = varying(runs, columns_of(runs, by))
    groups = [
        group for group in groups_of(runs, by, run_values(runs, metric)) if len(group.measured)
    ]
    means = {
        group_name({name: group.settings[name] for name in named}): group.measured["value"].mean()
        for group in groups
    }
    p: Any = np.array([])
    if "seed" in runs.runs and not any(one.measured["seed"].duplicated().any() for one in groups):
        sides = [group.measured.set_index("seed")["value"] for group in groups]
        differences = [(b - a).dropna() for a, b in itertools.combinations(sides, 2)]
        p = np.array([sign_flip_p(one) for one in differences if len(one) > 1])
    return title(said or metric, means, len(p), int((holm(p) <= 0.05).sum()))


def _pairs(groups: list[Group], baseline: str | None) -> list[tuple[Group, Group]]:
    names = [group.name for group in groups]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise StudyError(
            f"The groups are named {', '.join(names)}; expected at least two, each with a name of"
            " its own. Usually 'by' does not name what differs between the runs: give the config"
            " column that does."
        )
    if baseline is None:
        return list(itertools.combinations(groups, 2))
    require_known("group", [baseline], names)
    first = groups[names.index(baseline)]
    return [(first, group) for group in groups if group is not first]


def _shared(a: Any, b: Any, pair_on: list[str]) -> Any:
    """Pairs runs: the columns of ``pair_on``, then those of both, as _a and _b."""
    return a.merge(b, on=pair_on, suffixes=("_a", "_b"))


def _one_each(group: Group, pair_on: list[str]) -> Any:
    """Returns the runs of a group that have a value, one for each value of ``pair_on``."""
    measured = group.measured
    doubled = measured[measured.duplicated(pair_on, keep=False)]
    if len(doubled):
        first = doubled[(doubled[pair_on] == doubled.iloc[0][pair_on]).all(axis=1)]
        key = ", ".join(f"{name} {first.iloc[0][name]}" for name in pair_on)
        raise StudyError(
            f"Group '{group.name}' has {len(first)} runs with {key} ({', '.join(first['run'][:2])},"
            f" ...), {differing(first, group.config)}; expected one, so that each has its"
            " counterpart in the other group. Name what differs in 'by', or in 'pair_on' where it"
            " is to be paired like the seed, or read the runs of one value of it only."
        )
    return measured[[*pair_on, "run", "value", "step"]]


def _measured(
    rows: Any,
    pair_on: Sequence[str],
    interval: IntervalKind,
    test: Test,
    confidence: float,
    limits: tuple[float, float] | None,
) -> dict[str, Any]:
    """Compares one pair of groups over its shared seeds."""
    differences = rows["value_b"] - rows["value_a"]
    low, high = interval_of([differences], "mean", interval, confidence, limits)
    probable = improvement(_strata(rows, pair_on), confidence=confidence)
    names = ("probability_of_improvement", "improvement_low", "improvement_high")
    return {
        "difference": differences.mean(),
        "low": low,
        "high": high,
        # One difference says nothing of chance, though its sign-flip p is 1.
        "p": _TESTS[test](differences) if len(rows) > 1 else math.nan,
        "smallest_p": smallest_p(len(rows)),
        **dict(zip(names, probable, strict=True)),
    }


def _strata(rows: Any, pair_on: Sequence[str]) -> list[Any]:
    """Returns the values of b and of a, apart for each task or what else is paired on."""
    columns = [name for name in pair_on if name != "seed"]
    parts = (
        [part for _, part in rows.groupby(columns, dropna=False, observed=True)]
        if columns
        else [rows]
    )
    return [(part["value_b"].to_numpy(), part["value_a"].to_numpy()) for part in parts]


def _needed(rows: Any, power: float, level: float, test: Test) -> float:
    """Estimates the seeds needed; no fewer than the sign-flip test needs: 2^(1 − n) ≤ level."""
    needed = seeds_needed(rows["value_b"] - rows["value_a"], power=power, alpha=level)
    return max(needed, math.ceil(1 - math.log2(level))) if test == "sign_flip" else needed


def _pair_note(
    a: Group,
    b: Group,
    rows: Any,
    pair_on: Sequence[str],
    bound: str,
    notes: dict[tuple[str, ...], str],
) -> str:
    """Notes what must be known of the runs compared, and of those that have no value.

    Seeds that only one group was run with do not matter here. ``notes`` keeps what was said of the
    same runs of a group in another pair, since it takes most of a comparison's time.
    """
    parts = [bound]
    for group, side in ((a, "run_a"), (b, "run_b")):
        key = (group.name, *sorted(rows[side]))
        if key not in notes:
            used = group.runs[group.runs["run"].isin(rows[side]) | group.runs["value"].isna()]
            notes[key] = note_of(Group(group.name, group.settings, used, group.config), pair_on)
        parts += [f"{group.name}: {notes[key]}"] if notes[key] else []
    ends = [last_steps(rows[side]) for side in ("step_a", "step_b")]
    if ends[0] != ends[1]:
        parts.append(f"{a.name} ends at step {ends[0]}, {b.name} at {ends[1]}")
    return "; ".join(filter(None, parts))


_TESTS = {"sign_flip": sign_flip_p, "student": student_p}

"""The sections of a report on what was found: results, comparisons and costs."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, comparable, setting_text
from segcredit.study.plots.style import label
from segcredit.study.report import view
from segcredit.study.report.drawings import comparison_drawing
from segcredit.study.report.grouping import config_cells
from segcredit.study.report.view import Block, Cell, Listing, Note, Section, Table
from segcredit.study.statistics import compare, learning_areas, summarise
from segcredit.types import LARGE_ADVANTAGE

EVALUATIONS = ("accuracy", "accuracy_greedy", "process_correct", "majority")
"""Metrics that judge a run, shown beside the one that was asked for."""
COSTS = ("tokens_sampled", "cpu_seconds", "gpu_seconds")
"""Costs of a run, counted up over its steps, so that the last value is that of the whole."""
INTERVAL = "95%\u00a0interval"
"""A heading, kept on one line."""
_UNIT = Note(
    "Intervals are mean ± t · standard error at 95%; their unit is a run of the group, which is"
    " normally a seed. Of two runs the range is given, and of one nothing; no interval of a share"
    " goes below 0 or above 1."
)
_MOST_GROUPS = 24
"""Groups of which every pair is compared; they make 276 pairs."""


def results_section(runs: Runs, by: Sequence[str], metric: str) -> Section:
    """Builds the section of last values, of the metric and of every evaluation, with intervals."""
    names = [name for name in dict.fromkeys([metric, *EVALUATIONS]) if is_recorded(runs, name)]
    blocks: list[Block] = [] if metric in names else [Note(_unrecorded(runs, metric))]
    blocks += [_UNIT, *(_results(runs, by, name) for name in names)] if names else []
    blocks += _large_credit(runs)
    return Section("results", "Results", blocks)


def _large_credit(runs: Runs) -> list[Block]:
    """Returns a note on the runs whose advantages went beyond what credit normally is."""
    if not is_recorded(runs, "advantage_max"):
        return []
    sizes: Any = runs.steps.groupby("run", observed=True)["advantage_max"].max()
    largest: dict[str, float] = sizes.to_dict()
    beyond = {run: size for run, size in largest.items() if size > LARGE_ADVANTAGE}
    if not beyond:
        return []
    worst = max(beyond, key=beyond.__getitem__)
    return [
        Note(
            f"{view.counted(len(beyond), 'run')} had an advantage above {LARGE_ADVANTAGE} in size"
            f" (advantage_max; {beyond[worst]:.3g} in {worst}), which credit normally never has:"
            " look at the scale of rewards, the critic, and the advantage scheme before these"
            " results are read."
        )
    ]


def comparisons_section(runs: Runs, by: Sequence[str], metric: str) -> Section:
    """Builds the findings of each pair of groups: a dot, a sentence, and a row of a table."""
    return Section("comparisons", "Comparisons", list(_comparisons(runs, by, metric)))


def costs_section(runs: Runs, by: Sequence[str], metric: str) -> Section:
    """Builds the costs of each group's runs, and the areas under their learning curves."""
    costs = [name for name in COSTS if is_recorded(runs, name)]
    simulated = ["tokens_simulated"] if is_recorded(runs, "tokens_simulated") else []
    if not costs:
        return Section("costs", "Costs", [Note("No run recorded what it spent.")])
    blocks: list[Block] = [_UNIT, _costs(runs, by, [*costs, *simulated])]
    if is_recorded(runs, metric):
        blocks += [_areas(runs, by, metric, per) for per in ("step", *costs)]
    return Section("costs", "Costs", blocks)


def is_recorded(runs: Runs, metric: str) -> bool:
    """Tells whether any run recorded a metric."""
    return metric in runs.steps and bool(runs.steps[metric].notna().any())


def _unrecorded(runs: Runs, metric: str) -> str:
    return (
        f"None of the {view.counted(len(runs), 'run')} recorded '{metric}'. Usually they were not"
        " evaluated yet, or failed before they were: see what was run, above."
    )


def _results(runs: Runs, by: Sequence[str], metric: str) -> Table:
    summary = summarise(runs, by, metric)
    headings, columns = _summary(summary, by, label(metric))
    columns += [view.numbers(summary["start"], view.decimals_for(summary["mean"]))]
    columns += [_texts(summary["steps"])]
    headings += ["at first", "at step"]
    caption = f"The last recorded {label(metric)}: its mean over the runs of a group."
    return _table(caption, headings, columns, _notes(summary, by))


def _summary(summary: Any, by: Sequence[str], name: str) -> tuple[list[str], list[list[Cell]]]:
    """Returns headings and columns of what ``summarise`` and ``learning_areas`` both give."""
    low, mean, high = (summary[end].tolist() for end in ("low", "mean", "high"))
    places = view.decimals_for(mean)
    columns = [
        *(config_cells(summary[setting]) for setting in by),
        view.numbers(mean, places),
        view.ends(low, high, places),
        view.intervals(low, mean, high),
        view.numbers(summary["seeds"], 0),
    ]
    return [*by, name, INTERVAL, "", "runs"], columns


def _table(
    caption: str, headings: list[str], columns: list[list[Cell]], notes: Sequence[str] = ()
) -> Table:
    """Returns a table from its columns."""
    return Table(caption, headings, list(zip(*columns, strict=True)), notes)


def _notes(summary: Any, by: Sequence[str]) -> list[str]:
    """Joins the notes on the groups, once where several share one."""
    noted: dict[str, list[str]] = defaultdict(list)
    for row in summary.to_dict("records"):
        for note in filter(None, row["note"].split("; ")):
            noted[note].append(" ".join(setting_text(row[name]) for name in by))
    return [
        f"{'All groups' if 1 < len(groups) == len(summary) else view.listed(groups)}: {note}."
        for note, groups in noted.items()
    ]


def _texts(values: Any) -> list[Cell]:
    return [Cell(str(value)) for value in values]


def _comparisons(runs: Runs, by: Sequence[str], metric: str) -> Iterator[Block]:
    if not is_recorded(runs, metric):
        yield Note(_unrecorded(runs, metric))
        return
    groups = count_groups(runs, by)
    if groups > _MOST_GROUPS:
        yield Note(
            f"The columns {', '.join(by)} make {groups:,} groups, too many to compare each with"
            f" each (at most {_MOST_GROUPS}). Name fewer columns with --by, or compare in Python"
            " with one of them: compare(runs, by, metric, baseline=...)."
        )
        return
    try:
        pairs = compare(runs, by, metric)
    except StudyError as error:
        yield Note(f"Nothing is compared: {error}")
        return
    yield comparison_drawing(runs, by, metric)
    yield Listing(pairs["finding"].tolist(), open=8)
    yield _pairs_table(pairs, metric)


def count_groups(runs: Runs, by: Sequence[str]) -> int:
    """Counts the groups that the runs make."""
    settings = comparable(runs.runs[list(by)])
    return len(settings.drop_duplicates()) if len(settings.columns) else len(runs)


def _pairs_table(pairs: Any, metric: str) -> Table:
    low, middle, high = (pairs[name].tolist() for name in ("low", "difference", "high"))
    places = view.decimals_for([*low, *middle, *high])
    columns = [
        _texts(pairs["a"]),
        _texts(pairs["b"]),
        view.numbers(middle, places),
        view.ends(low, high, places),
        view.intervals(low, middle, high, zero=True),
        view.numbers(pairs["shared_seeds"], 0),
        view.probabilities(pairs["p"]),
        view.probabilities(pairs["p_adjusted"]),
        view.numbers(pairs["probability_of_improvement"], 2),
        view.ends(pairs["improvement_low"].tolist(), pairs["improvement_high"].tolist(), 2),
        view.numbers(pairs["seeds_needed"], 0),
    ]
    headings = ["a", "b", "b − a", INTERVAL, "", "shared seeds", "p", "p corrected"]
    headings += ["b ends above a", INTERVAL, "seeds needed"]
    caption = (
        f"Mean difference of {label(metric)}, b − a, over shared seeds, which are the unit of every"
        " interval here; intervals are of one pair alone. p is of the exact sign-flip test,"
        " corrected by Holm over the pairs of this table; the line marks 0."
    )
    return _table(caption, headings, columns)


def _costs(runs: Runs, by: Sequence[str], costs: Sequence[str]) -> Table:
    """Builds a table with a pair of columns for each cost."""
    headings, columns = list(by), []
    for cost in costs:
        summary = summarise(runs, by, cost)
        columns = columns or [config_cells(summary[setting]) for setting in by]
        places = view.decimals_for(summary["mean"])
        columns += [
            view.numbers(summary["mean"], places),
            view.ends(summary["low"].tolist(), summary["high"].tolist(), places),
        ]
        headings += [label(cost), INTERVAL]
    caption = (
        "What one run of a group spent up to its last step: means. Tokens sampled include those of"
        " Monte-Carlo simulations; seconds say as much of the machine and its load as of a method."
    )
    return _table(caption, headings, columns)


def _areas(runs: Runs, by: Sequence[str], metric: str, per: str) -> Block:
    """Returns the area under the learning curve over one cost, or why there is none."""
    try:
        areas = learning_areas(runs, by, metric, per=per)
    except StudyError as error:
        return Note(f"No area under the learning curve over {label(per)}: {error}")
    budget = float(areas["budget"].iloc[0])
    # Whole where it counts something, and exact enough where it is seconds.
    until = view.number(budget, 0 if budget.is_integer() else view.decimals_for([budget]))
    caption = (
        f"Normalised area under the learning curve: the mean {label(metric)} over the first"
        f" {until} {'steps' if per == 'step' else label(per)}, as far as every run came; what a"
        " critic's warm-up costs is among them."
    )
    headings, columns = _summary(areas, by, "area")
    return _table(caption, headings, columns, _notes(areas, by))

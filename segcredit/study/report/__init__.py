"""A study as one HTML file: what was run, what was found and how sure it is, how it was found."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segcredit.errors import StudyError
from segcredit.study.figures.style import label
from segcredit.study.report import drawings, findings, overview, view
from segcredit.study.report.grouping import default_by
from segcredit.study.report.page import require_place, write_page
from segcredit.study.report.view import Note, Section
from segcredit.study.statistics import metrics_of
from segcredit.study.tables import Runs, read_runs, require_known


def write_report(
    path: Path | str,
    output: Path | str | None = None,
    *,
    by: Sequence[str] | str = (),
    metric: str = "accuracy",
    title: str = "",
) -> Path:
    """Writes what is known of some runs into one HTML file that needs nothing but a browser.

    Figures, tables and style are inside the file; it asks nothing of a network, and is read
    without JavaScript, which only sorts its tables. What was not recorded is said in a sentence.
    Runs may still be going on. Of the recorded tables the steps are read whole, of the segments
    their places, and neither texts nor tokens. The same runs give the same bytes.

    Args:
        path: runs at any depth below it.
        output: the file; ``report.html`` in ``path`` by default. An earlier report there is
            replaced; nothing else is.
        by: config columns whose values make the groups to compare; by default those that tell all
            runs apart but for their seeds (``grouping.default_by``).
        metric: the column of ``.steps`` to compare by.
        title: of the page; by default it names ``path``.

    Returns:
        The file.

    Raises:
        StudyError: there is no run, none can be read, a column or the metric does not exist, or
            ``output`` is a directory or someone else's file.
        RecordError: the file cannot be written.
    """
    path = Path(path)
    output = path / "report.html" if output is None else Path(output)
    require_place(output)
    runs, damaged = _undamaged(read_runs(path, damaged="skip"))
    columns = _columns(runs, by)
    require_known("metric", [metric], metrics_of(runs))
    sections = _sections(runs, columns, metric)
    # Last, when whatever is damaged has been met; first on the page.
    first = overview.runs_section(runs, columns, {**damaged, **runs.left_out})
    title = title or f"Report on {path.resolve().name or path}"
    write_page(output, title, [Note(_lead(runs, columns, metric))], [first, *sections])
    return output


def _undamaged(runs: Runs) -> tuple[Runs, dict[str, str]]:
    """The runs whose config and status can be read, and the sentences on the others by name."""
    table: Any = runs.runs
    is_damaged = table["status"] == "damaged"
    if len(table) == len(runs) and not is_damaged.any():
        return runs, {}
    lost = table[is_damaged]
    reasons = {str(run): str(error) for run, error in zip(lost["run"], lost["error"], strict=True)}
    if len(lost) == len(table):
        raise StudyError(
            f"None of the {view.counted(len(runs), 'run')} in {runs.path} can be read; expected at"
            f" least one. The first: {next(iter(reasons.values()), 'it was removed.')}"
        )
    return runs.select(table.loc[~is_damaged, "run"]), reasons


def _columns(runs: Runs, by: Sequence[str] | str) -> list[str]:
    """What to group by, checked."""
    names = list(dict.fromkeys([by] if isinstance(by, str) else by)) or default_by(runs)
    require_known("config column", names, runs.runs.columns)
    return names


def _sections(runs: Runs, by: Sequence[str], metric: str) -> list[Section]:
    """In the order in which a reader asks."""
    return [
        findings.results_section(runs, by, metric),
        findings.comparisons_section(runs, by, metric),
        drawings.curves_section(runs, by, metric),
        drawings.heat_map_section(runs, by, metric),
        findings.costs_section(runs, by, metric),
        *drawings.training_sections(runs, by),
        overview.settings_section(runs, by),
        overview.environment_section(runs),
        overview.python_section(runs, by, metric),
    ]


def _lead(runs: Runs, by: Sequence[str], metric: str) -> str:
    groups = view.counted(findings.count_groups(runs, by), "group")
    return (
        f"{view.counted(len(runs), 'run')} in {runs.path}, in {groups} by {', '.join(by)},"
        f" compared by {label(metric)}. Every mean stands with its interval; no order on this"
        " page is a ranking."
    )

"""A study as one HTML file: what was run, what was found and how sure it is, how it was found."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segcredit.errors import StudyError
from segcredit.records.tables import Runs, default_by, read_runs, require_known
from segcredit.study.look.recorded import USUAL
from segcredit.study.plots.style import label
from segcredit.study.report import audits, drawings, findings, overview, view
from segcredit.study.report.completions import trained_section
from segcredit.study.report.page import require_place, write_page
from segcredit.study.report.view import Note, Section
from segcredit.study.statistics import known_metric


def write_report(
    path: Path | str,
    output: Path | str | None = None,
    *,
    by: Sequence[str] | str = (),
    metric: str = "accuracy",
    title: str = "",
    segmenters: Sequence[str] = USUAL,
) -> Path:
    """Writes what is known of some runs into one HTML file that needs nothing but a browser.

    Figures, tables and style are inside the file; it asks nothing of a network, and is read
    without JavaScript, which only sorts its tables and browses its completions. What was not
    recorded is said in a sentence. Runs may still be going on. Of the recorded tables the steps are
    read whole, of the segments their places, no tokens, and texts of a few runs. The same runs give
    the same bytes.

    Args:
        path: runs at any depth below it.
        output: the file; ``report.html`` in ``path`` by default. An earlier report there is
            replaced; nothing else is.
        by: config columns whose values make the groups to compare; by default those that tell all
            runs apart but for their seeds (``grouping.default_by``).
        metric: the column of ``.steps`` to compare by.
        title: of the page; by default it names ``path``.
        segmenters: of text alone, by which recorded completions are cut besides as they were
            trained; names or inline TOML tables.

    Returns:
        The file.

    Raises:
        StudyError: there is no run, none can be read, a column or the metric does not exist, a
            segmenter needs more than text, or
            ``output`` is a directory or someone else's file.
        RecordError: the file cannot be written.
    """
    path = Path(path)
    output = path / "report.html" if output is None else Path(output)
    found = read_runs(path, damaged="skip")
    require_place(output)
    runs, damaged = _undamaged(found)
    columns = _columns(runs, by)
    metric = known_metric(runs, metric)
    audited = audits.is_audit(runs)
    sections = _sections(runs, audited, columns, metric, segmenters)
    # Last, when whatever is damaged has been met; first on the page.
    first = overview.runs_section(runs, columns, {**damaged, **runs.left_out})
    title = title or f"Report on {path.resolve().name or path}"
    write_page(output, title, [Note(_lead(runs, audited, columns, metric))], [first, *sections])
    return output


def _undamaged(runs: Runs) -> tuple[Runs, dict[str, str]]:
    """Returns the runs that can be read, and sentences on the others by name."""
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
    """Returns the columns to group by, checked; by default those that tell training runs apart."""
    names = list(dict.fromkeys([by] if isinstance(by, str) else by))
    require_known("config column", names, runs.runs.columns)
    trained = [run for run, is_audit in audits.is_audit(runs).items() if not is_audit]
    return names or default_by(runs.select(trained) if trained else runs)


def _sections(
    runs: Runs,
    audited: Mapping[str, bool],
    by: Sequence[str],
    metric: str,
    segmenters: Sequence[str],
) -> list[Section]:
    """Builds the sections in the order in which a reader asks: training, audits, what they were."""
    trained = [run for run, is_audit in audited.items() if not is_audit]
    some = {"trained": bool(trained), "audited": len(trained) < len(audited)}
    sections: list[Section] = []
    if trained:
        chosen = runs.select(trained) if some["audited"] else runs
        sections += _training_sections(chosen, by, metric, segmenters)
        runs.left_out |= chosen.left_out
    if some["audited"]:
        sections += audits.audit_sections(runs, named=len(audited) > 1)
    return [
        *sections,
        overview.settings_section(runs, by),
        overview.environment_section(runs),
        overview.python_section(runs, by, metric, **some),
    ]


def _training_sections(
    runs: Runs, by: Sequence[str], metric: str, segmenters: Sequence[str]
) -> list[Section]:
    return [
        findings.results_section(runs, by, metric),
        findings.comparisons_section(runs, by, metric),
        drawings.curves_section(runs, by, metric),
        drawings.heat_map_section(runs, by, metric),
        findings.costs_section(runs, by, metric),
        *drawings.training_sections(runs, by),
        trained_section(runs, by, segmenters),
    ]


def _lead(runs: Runs, audited: Mapping[str, bool], by: Sequence[str], metric: str) -> str:
    trained = [run for run, is_audit in audited.items() if not is_audit]
    count = len(audited) - len(trained)
    said = f"{view.counted(count, 'credit audit')} in {runs.path}. " if count else ""
    if trained:
        chosen = runs.select(trained)
        groups = view.counted(findings.count_groups(chosen, by), "group")
        said += (
            f"{view.counted(len(chosen), 'run')} in {runs.path}, in {groups} by {', '.join(by)},"
            f" compared by {label(metric)}. "
        )
    what = "mean" if trained and not count else "figure"
    return f"{said}Every {what} stands with its interval; no order on this page is a ranking."

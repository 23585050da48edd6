"""Progress bars, tables and coloured segments, as the command line shows them."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite, isnan, nan
from typing import TYPE_CHECKING, Any, get_args

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from segcredit.study.look.completions import cut_at, visible
from segcredit.study.look.terminal import written

# A command waits for the modules it uses, and for no other command's.
if TYPE_CHECKING:
    from segcredit.credit_audit import AuditProgress
    from segcredit.registry import PluginInfo
    from segcredit.study.evaluation import MetricEstimate
    from segcredit.study.grid import Cell, GridProgress
    from segcredit.study.segmenting.cut import TextSegments
    from segcredit.study.segmenting.tables import Summary
    from segcredit.study.segmenting.texts import Document
    from segcredit.training.pretraining import PretrainingProgress, Watch

_NARROWEST = 24
"""Columns of the terminal below which a text beside others is hard to read."""
_LINES = 10
"""Most sentences of one segmenter's failures, and most texts named for each."""


def training_progress(
    out: Console,
    run: Callable[[Watch], Iterable[Mapping[str, float]]],
    steps: int,
) -> None:
    """Consumes a run; shows a bar with speed and remaining time beside its latest metrics.

    Args:
        out: where it is shown.
        run: returns the run's rows, given what is to be told of value pretraining.
        steps: of the run.
    """
    with _progress(out) as progress:
        stages: dict[str, TaskID] = {}

        def show(told: PretrainingProgress) -> None:
            if told.stage not in stages:
                name = f"value pretraining: {told.stage}"
                stages[told.stage] = progress.add_task(name, total=told.total, note="")
            progress.update(stages[told.stage], completed=told.done + 1)

        bar = progress.add_task("starting", total=steps, note="")
        for row in run(show):
            step = int(row["step"])
            progress.update(bar, completed=step, description=f"step {step}", note=_note(row))
            if "accuracy" in row:
                out.print(f"step {step:4d}  {_note(row)}")


def _note(row: Mapping[str, float]) -> str:
    shown = ("reward", "accuracy", "process_correct")
    return "  ".join(f"{name} {row[name]:.3f}" for name in shown if name in row)


class GridDisplay:
    """A table of the cells that run, under a line about the whole grid; endings stay above."""

    def __init__(self, out: Console, before: GridProgress) -> None:
        self._out = out
        self._live = Live(console=out, auto_refresh=False, transient=True)
        self._told = {cell.directory for cell in before.of("failed", "finished")}
        self._before = len(self._told)
        self._estimated = False

    def __enter__(self) -> GridDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, progress: GridProgress) -> None:
        """Brings the table up to date; says what ended since."""
        for cell in progress.of("failed", "finished"):
            self._tell(cell, progress.states[cell.directory])
        self._estimate(progress)
        self._live.update(_grid_table(progress), refresh=True)

    def _estimate(self, progress: GridProgress) -> None:
        """Prints the time left once, for those who read a log; the table goes on counting.

        The first cells may have made, or waited for, what all others share.
        """
        left = progress.seconds_left()
        ended = len(progress.of("finished", "failed")) - self._before
        if left and not self._estimated and ended > 2 * progress.workers:
            self._estimated = True
            speed = f"{progress.seconds_a_step:.2f} s a policy step in {ended} cells"
            self._out.print(f"about {_duration(left)} left ({speed}, {progress.workers} at a time)")

    def _tell(self, cell: Cell, state: str) -> None:
        if cell.directory not in self._told:
            self._told.add(cell.directory)
            self._out.print(f"{state}: {escape(cell.label)}", soft_wrap=True)


def _grid_table(progress: GridProgress) -> Table:
    left = progress.seconds_left()
    time_left = f", about {_duration(left)} left" if left else ""
    ended = len(progress.of("finished", "failed"))
    table = Table(
        title=f"{ended} of {len(progress.cells)} cells ended{time_left}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for name in ("running", "", "step", "accuracy", "reward"):
        table.add_column(name, justify="left" if name in ("running", "") else "right")
    for cell in progress.running:
        row, steps = cell.last_row(), cell.config.train.steps
        done = int(row.get("step", 0))
        metrics = (f"{row[key]:.3f}" if key in row else "" for key in ("accuracy", "reward"))
        bar = ProgressBar(max(steps, 1), done, width=16)
        table.add_row(escape(cell.label), bar, f"{done}/{steps}", *metrics)
    for cell in progress.elsewhere:
        table.add_row(escape(cell.label), "in another process", "", "", "")
    return table


def plan_lines(progress: GridProgress) -> Iterator[str]:
    """Yields what a grid is about to do, before it does it."""
    from segcredit.study.grid.cells import State

    counts = Counter(progress.states.values())
    parts = ", ".join(f"{counts[state]} {state}" for state in get_args(State) if counts[state])
    yield f"{len(progress.cells)} cells, all checked: {parts}"
    if steps := progress.steps_left():
        yield f"{steps} policy steps to do; what they cost is estimated after the first cells"


def cell_rows(progress: GridProgress) -> list[dict[str, Any]]:
    """Returns a row a cell: its label, state, directory and what stopped it."""
    return [
        {
            "cell": cell.label,
            "state": progress.states[cell.directory],
            "directory": str(cell.directory),
            "error": progress.lost.get(cell.directory, cell.error()),
        }
        for cell in progress.cells
    ]


_COLOURED = {"failed": "red", "damaged": "red", "interrupted": "yellow", "running": "cyan"}


def runs_table(progress: Any, settings: Any, apart: Sequence[str]) -> Table:
    """Builds the table of runs: what sets each apart, how far it has come, what stopped it.

    Args:
        progress: ``Runs.progress``.
        settings: ``Runs.runs``.
        apart: the config columns that tell the runs apart, but for their seeds.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    seeded = "seed" in settings
    table.add_column("run", overflow="fold")
    table.add_column("settings", overflow="fold")
    for name in (*["seed"] * seeded, "status", "steps", "left"):
        table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    named = [name for name in apart if name != "run"]
    rows = zip(progress.to_dict("records"), settings[named].to_dict("records"), strict=True)
    for row, own in rows:
        status, left = str(row["status"]), row["seconds_left"]
        table.add_row(
            escape(str(row["run"])),
            escape(_settings_text(own)),
            *[_text(row["seed"])] * seeded,
            Text(status, style=_COLOURED.get(status, "")),
            _steps(row),
            "" if isnan(left) else _duration(left),
        )
    return table


def _settings_text(settings: Mapping[str, Any]) -> str:
    """Writes settings in a line: names of plug-ins as they are, options with their last part."""
    shown = [(name, _text(value)) for name, value in settings.items()]
    return " ".join(
        f"{name.rpartition('.')[2]}={text}" if "." in name else text
        for name, text in shown
        if text != "none"
    )


def _text(value: Any) -> str:
    from segcredit.records.tables import setting_text

    return setting_text(value)


def _steps(row: Mapping[str, Any]) -> str:
    """Writes the steps done of those to do; nothing for an audit, which has none."""
    done, steps = row["steps_done"], row["steps"]
    return f"{done}/{steps}" if isinstance(steps, int) else ""


def runs_lines(progress: Any) -> Iterator[str]:
    """Yields what stopped runs, then how many stand how, and the steps that are left."""
    for run, status, error in zip(
        progress["run"], progress["status"], progress["error"], strict=True
    ):
        if error:
            yield f"[{_COLOURED.get(str(status), 'red')}]{status}[/] {escape(f'{run}: {error}')}"
    counts = Counter(str(status) for status in progress["status"])
    parts = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    unfinished = progress[progress["status"] != "finished"]
    left = int((unfinished["steps"] - unfinished["steps_done"]).sum())
    yield f"{parts}; {left} policy steps to do" if left else parts


def settings_table(settings: Any, a: str, b: str) -> Table:
    """Builds the table of config keys in which two sides of a comparison differ.

    Options of a plug-in that differs itself are counted alone: two plug-ins hardly share any.
    """
    title = "config keys that differ" if len(settings) else "the configs differ in no key"
    table = Table("key", escape(a), escape(b), title=title, box=box.SIMPLE, pad_edge=False)
    keys = set(settings["key"])
    for row in settings.itertuples(index=False):
        if row.key.rpartition(".")[0] not in keys:
            table.add_row(*(Text(str(value), overflow="fold") for value in row))
    if options := len(settings) - table.row_count:
        table.add_row(Text(f"and {options} of their options", "dim"), "", "")
    return table


def comparison_table(difference: Any, metric: str) -> Table:
    """Builds the table of ``statistics.compare``: the difference, its interval and its tests."""
    title = "b minus a over shared seeds, 95 % interval (Student's t)"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    names = ("metric", "difference", "interval", "shared seeds", "p", "seeds needed")
    for name in names:
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for row in difference.to_dict("records"):
        needed = row["seeds_needed"]
        table.add_row(
            metric,
            "–" if isnan(row["difference"]) else f"{row['difference']:+.3g}",
            _ends(row["low"], row["high"], row["shared_seeds"]),
            str(row["shared_seeds"]),
            "–" if isnan(row["p"]) else f"{row['p']:.3g}",
            "–" if not isfinite(needed) else f"{needed:,.0f}",
        )
    return table


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else "1 min"


def _progress(out: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Speed(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=out,
    )


class _Speed(TextColumn):
    """Speed in steps a second, blank until there are two readings."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        """Returns the speed of one bar."""
        return Text(f"{task.speed:.2f} steps/s" if task.speed else "")


class AuditDisplay:
    """A bar for each stage of an audit, with the time that is left of it."""

    def __init__(self, out: Console) -> None:
        self._bars = _progress(out)
        self._known: dict[bool, Any] = {}

    def __enter__(self) -> AuditDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, progress: AuditProgress) -> None:
        """Moves the bar of the truth, or that of the credits."""
        of_truth = progress.stage == "truth"
        if of_truth not in self._known:
            name = "truth" if of_truth else "credits"
            self._known[of_truth] = self._bars.add_task(name, total=progress.total, note="")
        note = "" if of_truth else progress.stage
        self._bars.update(self._known[of_truth], completed=progress.done, note=note)


def audit_table(audit: Any) -> Table:
    """Returns what the gradient feels of each credit, then what all tokens alike say of it.

    A row a credit: correlation and noise ratio at the level "gradient" with intervals, and the
    plain correlation without, for which a terminal has no room.
    """
    from segcredit.credit_audit.metric_list import headlines

    credit = headlines("credit")
    shown = [*credit[:2], credit[-1]]
    title = "credit beside the truth: metric and 95 % interval, over prompts"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    axes = ["segmenter", "estimator", "advantage"]
    for name in axes:
        table.add_column(name, overflow="fold", min_width=8)
    for name, at in shown:
        heading = [*textwrap.wrap(name.replace("_", " "), 14), f"({at})"]
        table.add_column("\n".join(heading), justify="right", no_wrap=True)
    credits = audit[audit["advantage"].notna()]
    for names, rows in credits.groupby(axes, observed=True, sort=False):
        places = rows.drop_duplicates(["metric", "at"]).set_index(["metric", "at"])
        *felt, (plain, _, _) = (_numbers_at(places, place) for place in shown)
        cells = [*map(_with_interval, felt), "–" if isnan(plain) else f"{plain:.2f}"]
        table.add_row(*(escape(str(name)) for name in names), *cells)
    return table


def _numbers_at(places: Any, place: tuple[str, str]) -> tuple[float, float, float]:
    """Returns value and ends of a metric; NaN where it was not measured."""
    if place not in places.index:
        return nan, nan, nan
    value, low, high = (float(places.loc[place, name]) for name in ("value", "low", "high"))
    return value, low, high


def _with_interval(numbers: tuple[float, float, float]) -> str:
    value, low, high = numbers
    if isnan(value):
        return "–"
    return f"{value:.2f}" if isnan(low) else f"{value:.2f} {low:.2f}–{high:.2f}"


_FEW_PROMPTS = 10
"""Prompts from which bootstrap percentiles cover what they say: docs/explain/statistics.md."""


def evaluation_table(estimates: Sequence[MetricEstimate], step: int) -> Table:
    """Builds the table of an evaluation: each metric with its interval over prompts."""
    title = f"policy after step {step}: metrics and 95 % intervals over prompts (bootstrap)"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("metric")
    for name in ("value", "interval", "prompts"):
        table.add_column(name, justify="right", no_wrap=True)
    if any(one.prompts < _FEW_PROMPTS for one in estimates):
        table.caption = "of fewer than ten prompts these intervals are too narrow, of two a range"
    for one in estimates:
        table.add_row(
            one.name,
            _number(one.value) if one.prompts else "–",
            _ends(one.low, one.high, one.prompts),
            str(one.prompts),
        )
    return table


def results_table(summary: Any, by: Sequence[str], metric: str, statistic: str = "mean") -> Table:
    """Builds the table of ``statistics.summarise``: a row a group, its interval over seeds."""
    from segcredit.records.tables import setting_text

    title = f"{metric}: {statistic} over seeds, 95 % interval (Student's t)"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for name in by:
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "interval", "seeds", "tokens", "CPU-s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.to_dict("records"):
        table.add_row(
            *(escape(setting_text(row[name])) for name in by),
            _number(row["start"]),
            _number(row[statistic]),
            _ends(row["low"], row["high"], row["seeds"]),
            str(int(row["seeds"])),
            f"{row['tokens_sampled']:,.0f}",
            f"{row['cpu_seconds']:.1f}",
        )
    return table


def _ends(low: float, high: float, count: int) -> str:
    """Writes an interval; of two values their range."""
    if low != low:  # NaN, as of a single seed, or of prompts that are all alike
        return "unknown"
    return f"{'range ' * (count < 3)}{_number(low)}–{_number(high)}"


def _number(value: float) -> str:
    """Writes a number to three decimals, or to three significant digits where it is small."""
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.3f}"


def plugin_table(rows: Iterable[tuple[str, PluginInfo]]) -> Table:
    """Builds the table of plug-ins: what each is, or why it cannot be had, and where it is from."""
    table = Table("kind", "name", "what it is, and where it comes from", box=None)
    for kind, info in rows:
        what = f"[red]{escape(info.error)}[/]" if info.error else escape(info.summary)
        origin = f"{info.distribution} {info.version}  {info.file}".strip()
        table.add_row(kind, info.name, f"{what}\n[dim]{escape(origin)}[/]")
    return table


def method_list(rows: Sequence[Mapping[str, object]]) -> Table:
    """Builds the table of presets, with the columns of their rows."""
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    return table


def show_segments(out: Console, document: Document, found: Mapping[str, TextSegments]) -> None:
    """Shows a text with its segments in alternating colours.

    A column a segmenter, or a row each where columns would be too narrow to read.
    """
    cells = {label: _coloured(document.text, segments) for label, segments in found.items()}
    title = Text(visible(f"text {document.name}"))
    if out.width >= len(cells) * _NARROWEST:
        table = Table(title=title, expand=True)
        for label in cells:
            table.add_column(escape(label), ratio=1)
        table.add_row(*cells.values())
    else:
        table = Table(title=title, expand=True, show_header=False, show_lines=True)
        for label, cell in cells.items():
            table.add_row(Text(label), cell)
    out.print(table)


def _coloured(text: str, found: TextSegments) -> Text:
    if found.error:
        return Text(visible(found.error), style="red")
    return written(visible(text), cut_at(len(text), found.starts, found.ends))


def show_summary(out: Console, summaries: Mapping[str, Summary]) -> None:
    """Shows the number and lengths of each segmenter's segments, and where it failed."""
    for label, summary in summaries.items():
        made, texts = len(summary.characters), summary.texts
        # A line that no terminal breaks, for those who search in it.
        line = f"{label}: {made} segments in {texts} texts, {made / max(texts, 1):.1f} a text"
        out.print(Text(line), soft_wrap=True)
    out.print(_summary_table(summaries))
    for line in _failures(summaries):
        out.print(Text.assemble(("failed ", "red"), visible(line)), soft_wrap=True)


def _summary_table(summaries: Mapping[str, Summary]) -> Table:
    with_tokens = any(summary.tokens for summary in summaries.values())
    table = Table(
        title="a text: median (range); lengths: median (10th–90th percentile)",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("segmenter", overflow="fold")
    names = ["texts", "segments", "a text", "characters", *["tokens"] * with_tokens, "failed"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for label, summary in summaries.items():
        table.add_row(
            Text(label),
            f"{summary.texts:,}",
            f"{len(summary.characters):,}",
            _spread(summary.counts, 0.0, 1.0),
            _spread(summary.characters, 0.1, 0.9),
            *[_spread(summary.tokens, 0.1, 0.9)] * with_tokens,
            Text(str(summary.failed), style="red" if summary.failed else ""),
        )
    return table


def _failures(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """Yields each sentence with which a segmenter failed, and the texts that it failed on."""
    for label, summary in summaries.items():
        for sentence, names in itertools.islice(summary.failures.items(), _LINES):
            more = f" and {len(names) - _LINES} more" if len(names) > _LINES else ""
            texts = f"text{'s' * (len(names) > 1)} {', '.join(names[:_LINES])}{more}"
            yield f"{label} on {texts}: {sentence}"
        left = list(summary.failures.values())[_LINES:]
        if left:
            yield f"{label} on {sum(map(len, left))} more, with other sentences"


def _spread(values: list[int], low: float, high: float) -> str:
    from segcredit.study.segmenting.tables import quantiles

    if not values:
        return "–"
    middle, bottom, top = quantiles(values, 0.5, low, high)
    return f"{middle:,.0f} ({bottom:,.0f}–{top:,.0f})"

"""What the command line shows: progress bars, tables and coloured segments."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
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
from rich.table import Table
from rich.text import Text

from segcredit import registry
from segcredit.protocols import TextSegmenter
from segcredit.study.grid import Cell

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def training_progress(out: Console, rows: Iterable[Mapping[str, float]], steps: int) -> None:
    """Consume a run, a bar with speed and remaining time above its latest figures."""
    with _progress(out) as progress:
        bar = progress.add_task("starting", total=steps, note="")
        for row in rows:
            step = int(row["step"])
            progress.update(bar, completed=step, description=f"step {step}", note=_note(row))
            if "accuracy" in row:
                out.print(f"step {step:4d}  {_note(row)}")


def _note(row: Mapping[str, float]) -> str:
    shown = ("reward", "accuracy", "faithful")
    return "  ".join(f"{name} {row[name]:.3f}" for name in shown if name in row)


class GridDisplay:
    """One bar a running cell, and one for the whole grid in policy steps."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._progress = _progress(out)
        self._bars: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __enter__(self) -> GridDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, cells: Sequence[Cell]) -> None:
        """Bring every bar up to date."""
        total = sum(cell.config.train.steps for cell in cells)
        self._advance("all cells", sum(cell.steps_done() for cell in cells), total)
        for cell in cells:
            status, steps = cell.status(), cell.config.train.steps
            if status == "running":
                self._advance(cell.label, cell.steps_done(), steps)
            elif status in ("finished", "failed") and cell.label in self._bars:
                self._retire(cell, status)

    def _retire(self, cell: Cell, status: str) -> None:
        self._progress.remove_task(self._bars.pop(cell.label))
        if cell.label not in self._told:
            self._told.add(cell.label)
            self._out.print(f"{status}: {escape(cell.label)}")

    def _advance(self, label: str, done: int, total: int) -> None:
        if label not in self._bars:
            self._bars[label] = self._progress.add_task(escape(label), total=total, note="")
        self._progress.update(self._bars[label], completed=done)


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
    """Steps a second, blank until there are two readings."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        """The speed of one bar."""
        return Text(f"{task.speed:.2f} steps/s" if task.speed else "")


def results_table(summary: Any, by: Sequence[str], metric: str) -> Table:
    """A table of ``statistics.summarise``: a row a group, its interval over seeds."""
    table = Table(title=f"{metric}: mean over seeds, 95 % bootstrap interval", box=box.SIMPLE)
    for name in (*by, "before", "after", "interval", "seeds", "tokens", "CPU-s"):
        table.add_column(name, justify="left" if name in by else "right", no_wrap=True)
    for row in summary.to_dict("records"):
        table.add_row(
            *(str(row[name]) for name in by),
            f"{row['start']:.3f}",
            f"{row['mean']:.3f}",
            f"{row['low']:.3f}–{row['high']:.3f}",
            str(int(row["seeds"])),
            f"{row['tokens_sampled']:,.0f}",
            f"{row['cpu_seconds']:.1f}",
        )
    return table


def plugin_table() -> Table:
    """Every plug-in; one that cannot be imported is a row with its error."""
    table = Table("kind", "name", "what it is, and where it comes from", box=None)
    for plugins in registry.ALL.values():
        for name in plugins.names():
            info = plugins.info(name)
            what = f"[red]{escape(info.error)}[/]" if info.error else escape(info.summary)
            origin = f"{info.distribution} {info.version}  {info.file}".strip()
            table.add_row(plugins.kind, name, f"{what}\n[dim]{escape(origin)}[/]")
    return table


def show_segments(
    out: Console,
    texts: Iterable[str],
    segmenters: Mapping[str, TextSegmenter],
    limit: int | None,
) -> None:
    """Each text with its segments in alternating colours, then how many there were."""
    counts = dict.fromkeys(segmenters, 0)
    shown = 0
    for text in itertools.islice(texts, limit):
        shown += 1
        table = Table(*segmenters, title=f"text {shown}", expand=True, show_lines=False)
        columns: list[Text] = []
        for name, segmenter in segmenters.items():
            pieces = list(_pieces(text, segmenter))
            counts[name] += len(pieces)
            columns.append(_coloured(pieces))
        table.add_row(*columns)
        out.print(table)
    for name, count in counts.items():
        mean = count / shown if shown else 0.0
        out.print(f"{name}: {count} segments in {shown} texts, {mean:.1f} a text")


def _pieces(text: str, segmenter: TextSegmenter) -> Iterator[str]:
    edges = sorted({0, *segmenter.split(text), len(text)})
    for start, end in itertools.pairwise(edges):
        yield text[start:end]


def _coloured(pieces: Sequence[str]) -> Text:
    shown = Text()
    for number, (piece, colour) in enumerate(zip(pieces, itertools.cycle(COLOURS), strict=False)):
        # A mark as well: colours are lost in a pipe, and not everybody tells them apart.
        shown.append("¦" if number else "", style="bold white")
        shown.append(piece, style=colour)
    return shown

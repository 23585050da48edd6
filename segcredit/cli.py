"""The command line: train, grid, results, segment, new-segmenter, list, config; plug-ins add to it.

Every ``SegcreditError`` ends as one sentence on standard error and exit status 1.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from segcredit.errors import SegcreditError
from segcredit.study.plugin_commands import with_plugin_commands

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Segment definitions, value estimators and advantage schemes under one loop.",
)
out = Console()

Overrides = Annotated[
    list[str] | None, typer.Argument(help="dotted.key=value, laid over the config.")
]
Code = Annotated[
    list[str] | None, typer.Option("--code", help="A Python file that registers plug-ins.")
]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A preset's name or a TOML file.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="The run directory; default runs/HASH.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint.")
    ] = False,
    code: Code = None,
) -> None:
    """Train one run."""
    from segcredit.config import load_config
    from segcredit.display import training_progress
    from segcredit.loop import iterate, run_directory
    from segcredit.loose_files import load_code

    load_code(code or [])
    checked = load_config(config, overrides or [])
    directory = run_directory(checked, output)
    training_progress(out, iterate(checked, directory, resume=resume), checked.train.steps)
    out.print(f"Recorded in {directory}", soft_wrap=True)


@app.command()
def grid(
    config: Annotated[str, typer.Argument(help="A TOML file with a [grid] table.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Every cell has a directory below.")] = Path("runs"),
    workers: Annotated[int, typer.Option(min=1, help="Processes, one torch thread each.")] = 1,
    code: Code = None,
) -> None:
    """Run every cell of an ablation grid; running it again continues."""
    from segcredit.display import GridDisplay
    from segcredit.study.grid import run_grid

    with GridDisplay(out) as display:
        cells = run_grid(
            config,
            output,
            workers=workers,
            overrides=overrides or [],
            code=code or [],
            watch=display.show,
        )
    failed = [cell for cell in cells if not cell.done()]
    for cell in failed:
        out.print(f"[red]failed[/] {cell.label}: {cell.error()}", soft_wrap=True)
    out.print(f"{len(cells) - len(failed)} of {len(cells)} cells finished, in {output}")
    out.print(f"Next: segcredit results {output}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def results(
    directory: Annotated[Path, typer.Argument(help="Runs, at any depth below.")],
    by: Annotated[str, typer.Option(help="Config columns, comma-separated.")] = "method,segmenter",
    metric: Annotated[str, typer.Option(help="A column of the steps.")] = "accuracy",
    figure: Annotated[
        Path | None, typer.Option(help="Also draw learning curves (PNG, PDF or SVG).")
    ] = None,
) -> None:
    """A table with intervals over seeds, and the learning curves."""
    from segcredit.display import results_table
    from segcredit.study.figures import learning_curves
    from segcredit.study.statistics import summarise
    from segcredit.study.tables import read_runs

    runs = read_runs(directory)
    columns = [name.strip() for name in by.split(",") if name.strip()]
    out.print(results_table(summarise(runs, columns, metric), columns, metric))
    if figure is not None:
        drawn = learning_curves(runs, figure, metric=metric, by=columns)
        out.print(f"Learning curves: {drawn}", soft_wrap=True)
    line = f'import segcredit; runs = segcredit.read_runs("{directory}"); runs.steps'
    out.print(f"In Python: {line}", soft_wrap=True, highlight=False)


@app.command()
def segment(
    source: Annotated[
        str, typer.Argument(help="A text, a file (plain or JSONL), or - for standard input.")
    ],
    segmenter: Annotated[
        list[str] | None,
        typer.Option("--segmenter", "-s", help="Once for each: a name or an inline TOML table."),
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="The key of JSONL that holds texts; default text.")
    ] = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="The key that holds the prompts, for --policy.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Whose tokens and signals to cut by: a name or a table.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task that a tiny policy imitates: a name or a table.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Read this many texts at most.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write a row a segment: *.parquet or *.jsonl.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show the summary alone.")] = False,
    code: Code = None,
) -> None:
    """Show the segments of texts in colour, several segmenters side by side."""
    from segcredit.display import show_segments, show_summary
    from segcredit.loose_files import load_code
    from segcredit.study.segmenting import cut, tables
    from segcredit.study.segmenting.texts import read_documents

    load_code(code or [])
    if output is not None:
        tables.require_output(output, source)
    chosen = cut.chosen_segmenters(segmenter or ["newline"], policy=policy is not None)
    documents = itertools.islice(read_documents(source, field, prompt_field), limit)
    loaded = None if policy is None else cut.load_policy(policy, task)
    found = cut.segment_documents(documents, chosen, loaded)
    if output is not None:
        found = tables.written(found, output)
    summaries = show_segments(out, found, chosen, quiet=quiet)
    show_summary(out, summaries)
    if output is not None:
        out.print(f"Segments written to {output}", soft_wrap=True, markup=False)
    if any(summary.failed and not summary.texts for summary in summaries.values()):
        raise typer.Exit(1)


@app.command()
def new_segmenter(
    name: Annotated[str, typer.Argument(help="What it will be registered as, such as my_rule.")],
    output: Annotated[
        Path | None, typer.Option(help="The package's folder; default ./segcredit-NAME.")
    ] = None,
) -> None:
    """Write an installable package with a segmenter to begin from, and its test."""
    from segcredit.study.new_segmenter import write_package

    folder = write_package(name, output)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            out.print(f"  {file}", soft_wrap=True, highlight=False)
    out.print(f"Next: read {folder / 'README.md'}", soft_wrap=True)


@app.command("list")
def list_plugins(code: Code = None) -> None:
    """Every registered plug-in with its distribution, file and first docstring line."""
    from segcredit.display import plugin_table
    from segcredit.loose_files import load_code

    load_code(code or [])
    out.print(plugin_table())


@app.command()
def config(
    source: Annotated[str | None, typer.Argument(help="A preset's name or a TOML file.")] = None,
    overrides: Overrides = None,
    code: Code = None,
) -> None:
    """Print the complete config with every default; without a source, list the presets."""
    import tomli_w

    from segcredit.config import load_config, presets
    from segcredit.loose_files import load_code

    load_code(code or [])
    if source is None:
        out.print("\n".join(presets()))
        return
    values = load_config(source, overrides or []).model_dump()
    sys.stdout.write(tomli_w.dumps(_without_none(values)))


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a key that is None is left out."""
    pairs = ((key, value) for key, value in values.items() if value is not None)
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in pairs}  # pyright: ignore[reportUnknownArgumentType]


def main(arguments: Iterable[str] | None = None) -> None:
    """Run a command; an error of ours is a sentence, not a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with_plugin_commands(app)(args=None if arguments is None else list(arguments))
    except SegcreditError as error:
        Console(stderr=True).print(f"[red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if "SEGCREDIT_TRACEBACK" in os.environ:
            raise
        text = (
            f"unexpected {type(error).__name__}: {error}. This is a fault of segcredit, of a"
            " plug-in or of a library, rather than of your input. SEGCREDIT_TRACEBACK=1 shows"
            " where; a run's status.json holds it too."
        )
        Console(stderr=True).print(f"[red]error:[/] {_escaped(text)}", soft_wrap=True)
        sys.exit(1)


def _escaped(text: str) -> str:
    """Square brackets in a message are not rich's markup."""
    return text.replace("[", "\\[")

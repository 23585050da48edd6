"""The commands: train, grid, results, report, segment, list and more; plug-ins add to them.

What ends one that fails is in ``entry_point``.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from segcredit.cli import completion
from segcredit.cli.json_output import Json, printed
from segcredit.errors import ConfigError, SegcreditError, shown

if TYPE_CHECKING:
    from segcredit.study.grid import GridProgress


class Stopped(SegcreditError):
    """An interrupted command; may say why.

    Args:
        reason: as a sentence; "" where it was stopped from the keyboard.
        going_on: the command that goes on; "" for the same once more.
    """

    def __init__(self, reason: str, going_on: str = "") -> None:
        super().__init__(reason or "stopped.")
        self.going_on = going_on


@contextmanager
def _resumed_by(command: str) -> Generator[None]:
    """Says which command goes on, should what is inside be interrupted."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(str(stop), command) from stop


class _Commands(TyperGroup):
    """The group of commands; one that is interrupted ends in a word, as in typer none does."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(str(stop)) from stop


def _print_version(wanted: bool) -> None:
    if wanted:
        import segcredit

        typer.echo(f"segcredit {segcredit.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console()


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Trains and studies segment definitions, value estimators and advantage schemes."""


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="dotted.key=value, laid over the config.", autocompletion=completion.override
    ),
]
Code = Annotated[
    list[str] | None, typer.Option("--code", help="A Python file that registers plug-ins.")
]

RunsBelow = Annotated[
    str,
    typer.Argument(
        help="A folder with runs at any depth, or a run; the beginning of its name will do.",
        autocompletion=completion.run,
    ),
]
Metric = Annotated[
    str, typer.Option(help="A column of the steps.", autocompletion=completion.metric)
]
_SIDE = (
    "A run, a folder of runs or the beginning of a run's name; or settings as"
    ' "method=sapo segmenter=newline".'
)
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code that the run's stored config names.")
]


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A preset's name or a TOML file; with --resume also a run.",
            autocompletion=completion.preset_or_run,
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="The run directory; default runs/HASH.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint.")
    ] = False,
    trust: Trust = False,
    code: Code = None,
) -> None:
    """Trains one run; under torchrun, in as many processes as it starts."""
    from segcredit.cli.display import training_progress
    from segcredit.config import load_run
    from segcredit.register import load_code
    from segcredit.study.stored_policy import stored_config, stored_run
    from segcredit.training.build import started_processes
    from segcredit.training.loop import iterate, run_directory

    load_code(code or [])
    run = stored_run(config) if resume else None
    if run is None:
        checked = load_run(config, overrides or [])
        directory = run_directory(checked, output)
    else:
        checked = stored_config(run, overrides or [], trust=trust)
        directory = output or run
    shown = out if started_processes(checked).first else Console(quiet=True)
    more = [part for file in code or [] for part in ("--code", file)] + ["--trust"] * trust
    with _resumed_by(shlex.join(["segcredit", "train", str(directory), "--resume", *more])):
        training_progress(
            shown,
            lambda watch: iterate(checked, directory, resume=resume, watch=watch),
            checked.train.steps,
        )
    shown.print(f"Recorded in {directory}", soft_wrap=True)
    shown.print(
        f"Next: segcredit report {directory}; segcredit evaluate {directory}", soft_wrap=True
    )


@app.command()
def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            help="A run, or the beginning of its name; a config, for its untrained policy.",
            autocompletion=completion.preset_or_run,
        ),
    ],
    overrides: Overrides = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Held-out prompts; default evaluate.prompts.")
    ] = None,
    completions: Annotated[
        int | None, typer.Option(min=1, help="Of each prompt; default evaluate.completions.")
    ] = None,
    k: Annotated[
        str | None, typer.Option(help="Of pass@k, comma-separated; default powers of two.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file; default the run's last checkpoint.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time; default all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A directory; default RUN/evaluation/step_N.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the evaluation that is there.")
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
    code: Code = None,
) -> None:
    """Judges a policy on held-out prompts: accuracy, pass@k, maj@k."""
    from segcredit.cli.display import evaluation_table
    from segcredit.register import load_code
    from segcredit.study.evaluation import evaluate_policy, evaluated_policy

    ks = None if k is None else _whole_numbers("--k", k)
    load_code(code or [])
    chosen = evaluated_policy(
        source,
        overrides or [],
        prompts=prompts,
        completions=completions,
        saved=checkpoint,
        output=output,
        trust=trust,
    )
    with printed(out, as_json=as_json) as page:
        found = evaluate_policy(chosen, ks=ks, batch=batch, overwrite=overwrite)
        rows = [{"step": chosen.step, **asdict(one)} for one in found]
        page.table("evaluation", rows, evaluation_table(found, chosen.step))
        out.print(f"Recorded in {chosen.output}", soft_wrap=True)


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    # Not isdigit, for which a superscript is a digit; no number of completions is longer.
    if not parts or not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise ConfigError(f"{option} is {shown(text)}; expected whole numbers such as 1,4,16.")
    return [int(part) for part in parts]


@app.command()
def grid(
    config: Annotated[str, typer.Argument(help="A TOML file with a grid table.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Every cell has a directory below.")] = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; default 1, or what Ray has.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="A Ray cluster's address, or local; default: processes.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the cells that failed, and no others.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every cell, print the plan, run nothing.")
    ] = False,
    as_json: Json = False,
    code: Code = None,
) -> None:
    """Runs every cell of an ablation grid; running it again continues."""
    from segcredit.cli.display import GridDisplay, cell_rows, plan_lines
    from segcredit.register import load_code
    from segcredit.study.grid import plan, run_grid, survey

    load_code(code or [])
    with printed(out, as_json=as_json) as page:
        before = survey(plan(config, output, overrides or []))
        for line in plan_lines(before):
            out.print(line, soft_wrap=True)
        if dry_run:
            page.keep("cells", cell_rows(before))
            lines = [f"  {before.states[c.directory]:9} {escaped(c.label)}" for c in before.cells]
            out.print("\n".join(lines), soft_wrap=True)
            ended = True
        else:
            with GridDisplay(out, before) as display:
                after = run_grid(
                    config,
                    output,
                    workers=workers,
                    ray=ray,
                    retry_failed=retry_failed,
                    overrides=overrides or [],
                    code=code or [],
                    watch=display.show,
                )
            page.keep("cells", cell_rows(after))
            ended = _concluded(after, output)
            if after.of("finished"):
                _say(f"Next: segcredit results {output}; segcredit report {output}")
    if not ended:
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="The folder of runs, picture, page and grid file.")
    ] = Path("demo"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default one a core, up to 8.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Trains four methods with five seeds in minutes: a table, a picture, a page."""
    from segcredit.atomic_files import write_atomically
    from segcredit.cli.display import GridDisplay, cell_rows, plan_lines, results_table
    from segcredit.records.tables import read_runs
    from segcredit.study.grid import DEMO, plan, run_grid, survey
    from segcredit.study.plots import learning_curves, save
    from segcredit.study.report import write_report
    from segcredit.study.statistics import summarise

    columns, file = ["method", "segmenter"], output / DEMO.name
    team = workers or min(8, os.cpu_count() or 1)
    with printed(out, as_json=as_json) as page:
        before = survey(plan(DEMO, output))
        for line in plan_lines(before):
            out.print(line, soft_wrap=True)
        out.print("about four minutes on two cores, less on more; Ctrl-C and again: it goes on")
        with GridDisplay(out, before) as display:
            after = run_grid(DEMO, output, workers=team, watch=display.show)
        page.keep("cells", cell_rows(after))
        if not file.exists():  # it may have been changed since
            write_atomically(file, DEMO.read_bytes())
        again = f"segcredit grid {shlex.quote(str(file))} --output"
        if not _concluded(after, output):
            _say(f"Once the cause is gone: {again} {shlex.quote(str(output))} --retry-failed")
            raise typer.Exit(1)
        runs = read_runs(output)
        summary: Any = summarise(runs, columns, "accuracy")
        page.table("summary", summary, results_table(summary, columns, "accuracy"))
        out.print("The five seeds start from one policy and one critic, and draw their own steps.")
        drawn = save(learning_curves(runs, by=columns), output / "learning_curves.png")
        _say(f"Picture: {drawn}")
        _say(f"Page:    {write_report(output, by=columns)}")
        arms = "method=grpo 'method=segment_td segmenter=newline'"
        _say("To try next:")
        _say(f"  segcredit compare {arms} --in {shlex.quote(str(output))} --measure area")
        _say("  segcredit new-segmenter my_rule")
        _say(f"  {again} mine    # once {file} is changed: another segmenter, more seeds")


def _concluded(progress: GridProgress, output: Path) -> bool:
    """Prints each cell that is not done, with its reason, then the counts; tells if all ended."""
    for cell in progress.of("failed"):
        out.print(f"[red]failed[/] {escaped(f'{cell.label}: {cell.error()}')}", soft_wrap=True)
    stopped = progress.of("new", "begun", "damaged")
    for cell in stopped:
        reason = progress.lost.get(cell.directory, "not run; run the grid again to continue.")
        out.print(f"[red]unfinished[/] {escaped(f'{cell.label}: {reason}')}", soft_wrap=True)
    failed, finished = len(progress.of("failed")), len(progress.of("finished"))
    if failed:
        out.print("Failed cells run again with --retry-failed.")
    counts = f"{failed} failed, " * bool(failed) + f"{len(stopped)} unfinished, " * bool(stopped)
    _say(f"{counts}{finished} of {len(progress.cells)} cells finished, in {output}")
    return not failed and not stopped


@app.command()
def audit(
    config: Annotated[
        str,
        typer.Argument(
            help="A preset's name or a TOML file with an audit table.",
            autocompletion=completion.preset,
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="The audit's directory; default runs/HASH.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="The true values, measured before; default OUTPUT/truth.")
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(
            "--segmenter",
            "-s",
            help="Judge these instead of the config's.",
            autocompletion=completion.segmenter,
        ),
    ] = None,
    as_json: Json = False,
    code: Code = None,
) -> None:
    """Judges segmenters, estimators and advantages on a frozen policy, without training it."""
    from segcredit.cli.display import AuditDisplay, audit_table
    from segcredit.credit_audit import audit as run_audit
    from segcredit.credit_audit import audit_directory, failed_units, load_audit_config
    from segcredit.records.tables import read_runs
    from segcredit.register import load_code

    load_code(code or [])
    chosen = [f"audit.segmenters={_inline_list(segmenter)}"] if segmenter else []
    checked = load_audit_config(config, [*(overrides or []), *chosen])
    directory = audit_directory(checked, output)
    with printed(out, as_json=as_json) as page:
        with AuditDisplay(out) as display:
            run_audit(checked, directory, truth=truth, watch=display.show)
        found = read_runs(directory).audit
        page.table("audit", found, audit_table(found))
        failed = failed_units(directory)
        page.keep("left_out", [{"unit": unit, "error": why} for unit, why in failed.items()])
        for unit, sentence in failed.items():
            out.print(f"[red]left out[/] {escaped(f'{unit}: {sentence}')}", soft_wrap=True)
        out.print(f"Recorded in {directory}; next: segcredit report {directory}", soft_wrap=True)
        line = f'import segcredit; segcredit.read_runs("{directory}").audit'
        _say(f"In Python: {line}")


def _inline_list(plugins: list[str]) -> str:
    """Writes names and inline tables as a list of TOML."""
    return f"[{', '.join(text if text.lstrip()[:1] == '{' else repr(text) for text in plugins)}]"


@app.command()
def runs(
    directory: RunsBelow = "runs",
    as_json: Json = False,
) -> None:
    """Lists runs: finished, failed and why, running and for how long yet."""
    from segcredit.cli.display import runs_lines, runs_table
    from segcredit.records.tables import default_by, named_path, read_runs

    with printed(out, as_json=as_json) as page:
        found = read_runs(named_path(directory), damaged="skip")
        page.table(
            "runs", found.progress, runs_table(found.progress, found.runs, default_by(found))
        )
        for line in runs_lines(found.progress):
            out.print(line, soft_wrap=True, highlight=False)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help=_SIDE, autocompletion=completion.run)],
    b: Annotated[str, typer.Argument(help="Likewise.", autocompletion=completion.run)],
    folder: Annotated[
        str, typer.Option("--in", help="The runs that settings are looked for in.")
    ] = "runs",
    metric: Metric = "accuracy",
    measure: Annotated[
        str,
        typer.Option(
            help="last (value), area (under the learning curve), or at_cost.",
            autocompletion=completion.measure,
        ),
    ] = "last",
    per: Annotated[str, typer.Option(help="Cost of --measure: step, tokens_sampled, ...")] = "step",
    pair_on: Annotated[
        str, typer.Option(help="Config columns that pair runs, comma-separated.")
    ] = "seed",
    as_json: Json = False,
) -> None:
    """Compares two runs, or two groups of runs over the seeds that they share: b minus a."""
    from segcredit.cli.display import comparison_table, settings_table
    from segcredit.study.statistics import compare as compare_groups
    from segcredit.study.statistics import differing_settings, two_sides

    with printed(out, as_json=as_json) as page:
        found, sides = two_sides(a, b, folder)
        difference: Any = compare_groups(
            found, sides, metric, measure=cast("Any", measure), per=per, pair_on=_names(pair_on)
        )
        for sentence in difference["finding"]:
            _say(sentence)
        page.table("comparison", difference, comparison_table(difference, metric))
        settings = differing_settings(found, sides)
        page.table("settings", settings, settings_table(settings, a, b))


def _names(text: str) -> list[str]:
    """Returns names that were typed with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def results(
    directory: RunsBelow,
    by: Annotated[str, typer.Option(help="Config columns, comma-separated.")] = "method,segmenter",
    metric: Metric = "accuracy",
    statistic: Annotated[
        str,
        typer.Option(help="Over seeds: mean, iqm or median.", autocompletion=completion.statistic),
    ] = "mean",
    compare: Annotated[
        bool, typer.Option("--compare", help="Also say which differences the seeds show.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Also write the table: *.csv, *.parquet, *.md or *.tex.")
    ] = None,
    table: Annotated[
        str, typer.Option(help="What --export writes; another table: runs, steps, ...")
    ] = "summary",
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw learning curves, or with --compare, groups (PNG, ...)."),
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out runs with damaged files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prints a table with intervals over seeds, what they show, and the learning curves."""
    from segcredit.atomic_files import require_writable
    from segcredit.cli.display import results_table
    from segcredit.records.tables import named_path, read_runs
    from segcredit.study.export_tables import require_format, require_table, table_of, write_table
    from segcredit.study.statistics import compare as compare_groups
    from segcredit.study.statistics import require_statistic, summarise

    # What can be refused is, before tables of many gigabytes are read.
    require_statistic(statistic)
    if export is not None:
        require_format(export)
        require_table(table, ["summary", *["comparison"][: int(compare)]])
    if figure is not None:
        from segcredit.study.plots import require_figure_format

        require_figure_format(figure)
    for target in filter(None, (export, figure)):
        require_writable(target)
    folder = named_path(directory)
    with printed(out, as_json=as_json) as page:
        chosen = read_runs(folder, damaged="skip" if skip_damaged else "raise").whole()
        columns = _names(by)
        summary: Any = summarise(chosen, columns, metric, cast("Any", statistic))
        page.table("summary", summary, results_table(summary, columns, metric, statistic))
        for row in summary.to_dict("records"):
            if row["note"]:
                group = ", ".join(f"{name} {row[name]}" for name in columns)
                out.print(f"{escaped(group)}: {escaped(row['note'])}", soft_wrap=True)
        found: dict[str, Any] = {"summary": summary}
        if compare:
            found["comparison"] = cast("Any", compare_groups(chosen, columns, metric))
            page.keep("comparison", found["comparison"])
            for sentence in found["comparison"]["finding"]:
                _say(sentence)
        if figure is not None:
            from segcredit.study.plots import comparison, learning_curves, save

            draw, what = (
                (comparison, "Comparison") if compare else (learning_curves, "Learning curves")
            )
            drawn = save(draw(chosen, metric=metric, by=columns), figure)
            _say(f"{what}: {drawn}")
        if export is not None:
            written = write_table(table_of(chosen, table, found), export)
            _say(f"Table {table}: {written}")
        for run, sentence in chosen.left_out.items():
            out.print(f"[red]left out[/] {escaped(f'{run}: {sentence}')}", soft_wrap=True)
        line = f'import segcredit; runs = segcredit.read_runs("{folder}"); runs.steps'
        _say(f"In Python: {line}")


@app.command()
def report(
    directory: RunsBelow,
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; default DIRECTORY/report.html.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Config columns, comma-separated; default: those that differ.")
    ] = "",
    metric: Metric = "accuracy",
    title: Annotated[str, typer.Option(help="Of the page; default: the directory's name.")] = "",
    segmenter: Annotated[
        list[str] | None,
        typer.Option(
            "--segmenter",
            "-s",
            help="Cut the completions by it as well; once for each, of text alone.",
            autocompletion=completion.segmenter,
        ),
    ] = None,
) -> None:
    """Writes figures and tables into one HTML file that opens without a network."""
    from segcredit.records.tables import named_path
    from segcredit.study.look.recorded import USUAL
    from segcredit.study.report import write_report

    place = named_path(directory)
    written = write_report(
        place, output, by=_names(by), metric=metric, title=title, segmenters=segmenter or USUAL
    )
    _say(f"Report: {written}")


@app.command()
def segment(
    source: Annotated[
        str, typer.Argument(help="A text, a file (plain or JSONL), or - for standard input.")
    ],
    segmenter: Annotated[
        list[str] | None,
        typer.Option(
            "--segmenter",
            "-s",
            help="Once for each: a name or an inline TOML table.",
            autocompletion=completion.segmenter,
        ),
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
    as_json: Json = False,
    code: Code = None,
) -> None:
    """Shows the segments of texts in colour, several segmenters side by side."""
    from segcredit.cli.display import show_segments, show_summary
    from segcredit.register import load_code
    from segcredit.study.segmenting import cut, tables
    from segcredit.study.segmenting.texts import read_documents

    load_code(code or [])
    if output is not None:
        tables.require_output(output, source)
    chosen = cut.chosen_segmenters(segmenter or ["newline"], policy=policy is not None)
    with printed(out, as_json=as_json) as page:
        documents = itertools.islice(read_documents(source, field, prompt_field), limit)
        loaded = None if policy is None else cut.load_policy(policy, task)
        found = cut.segment_documents(documents, chosen, loaded)
        if output is not None:
            found = tables.written(found, output)
        summaries = {label: tables.Summary() for label in chosen}
        rows: list[dict[str, Any]] = []
        for document, segments in tables.counted(found, summaries):
            if as_json and not quiet:
                rows += tables.rows(document, segments)
            elif not quiet:
                show_segments(out, document, segments)
        if not quiet:
            page.keep("segments", rows)
        page.keep("summary", tables.summary_rows(summaries))
        if not as_json:
            show_summary(out, summaries)
        if output is not None:
            _say(f"Segments written to {output}")
    if any(summary.failed and not summary.texts for summary in summaries.values()):
        raise typer.Exit(1)


NewName = Annotated[str, typer.Argument(help="What it will be registered as, such as my_rule.")]
NewFolder = Annotated[
    Path | None, typer.Option(help="The package's folder; default ./segcredit-NAME.")
]


@app.command()
def new_segmenter(name: NewName, output: NewFolder = None) -> None:
    """Writes an installable package with a segmenter to begin from, and its test."""
    _write_package("segmenter", name, output)


@app.command()
def new_environment(name: NewName, output: NewFolder = None) -> None:
    """Writes an installable package with an environment to begin from, and its test."""
    _write_package("environment", name, output)


def _write_package(kind: str, name: str, output: Path | None) -> None:
    from segcredit.cli.new_plugin import write_package

    folder = write_package(kind, name, output)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            _say(f"  {file}")
    out.print(f"Next: read {folder / 'README.md'}", soft_wrap=True)


@app.command()
def save_policy(
    run: Annotated[
        str,
        typer.Argument(
            help="A run, or the beginning of its name; its last checkpoint is taken.",
            autocompletion=completion.run,
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge adapters into the weights; else them alone.")
    ] = False,
    trust: Trust = False,
    code: Code = None,
) -> None:
    """Writes a run's policy as a checkpoint of transformers, or its adapters as one of peft."""
    from segcredit.records.tables import named_path
    from segcredit.register import load_code
    from segcredit.study.export_policy import save_policy as write

    load_code(code or [])
    written = write(named_path(run), folder, merged=merged, trust=trust)
    _say(f"Policy: {written}")


@app.command()
def serve(
    source: Annotated[
        str,
        typer.Argument(
            help="A run, a config for its untrained policy, or a folder of transformers.",
            autocompletion=completion.preset_or_run,
        ),
    ],
    overrides: Overrides = None,
    python: Annotated[
        str,
        typer.Option(
            envvar="SEGCREDIT_VLLM_PYTHON",
            help="The Python of the environment with vLLM; default: this one.",
        ),
    ] = "",
    host: Annotated[
        str, typer.Option(help="Where it listens; whoever reaches it may command it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Likewise.")] = 8000,
    vllm: Annotated[
        str, typer.Option(help="More options of vLLM, such as '--max-model-len 4096'.")
    ] = "",
    trust: Trust = False,
    code: Code = None,
) -> None:
    """Starts a vLLM server for the sampler vllm, with the options that training needs."""
    from segcredit.register import load_code
    from segcredit.study.serving import Place
    from segcredit.study.serving import serve as start

    def ready(url: str) -> None:
        _say(f"Serving at {url}, until Ctrl-C. In the run's config:")
        _say(f'sampler = {{ name = "vllm", url = "{url}" }}')

    load_code(code or [])
    start(
        source,
        overrides or [],
        python=python,
        place=Place(host, port),
        more=shlex.split(vllm),
        trust=trust,
        ready=ready,
    )


@app.command("list")
def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(help="methods: the presets, and not the plug-ins."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Of methods: those nearest to this preset, and which settings differ.",
            autocompletion=completion.preset,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Import each; exit status 1 where one fails.")
    ] = False,
    as_json: Json = False,
    code: Code = None,
) -> None:
    """Lists every plug-in with its distribution, file and first docstring line; or the presets."""
    from segcredit.cli.display import method_list, plugin_table
    from segcredit.cli.plugin_list import plugin_rows
    from segcredit.register import load_code

    load_code(code or [])
    if kind is not None or like is not None:
        from segcredit.study.method_table import method_rows

        if kind != "methods":
            raise ConfigError(
                f"the kind is {shown(kind)}; expected 'segcredit list' for the plug-ins,"
                " or 'segcredit list methods' for the presets, which alone has --like."
            )
        with printed(out, as_json=as_json) as page:
            methods = method_rows(like)
            page.table("methods", methods, method_list(methods))
        return
    with printed(out, as_json=as_json) as page:
        rows = list(plugin_rows(check=check))
        plain = [{"kind": kind, **asdict(info)} for kind, info in rows]
        page.table("plugins", plain, plugin_table(rows))
    if check and any(info.error for _, info in rows):
        raise typer.Exit(1)


@app.command()
def config(
    source: Annotated[
        str | None,
        typer.Argument(help="A preset's name or a TOML file.", autocompletion=completion.preset),
    ] = None,
    overrides: Overrides = None,
    code: Code = None,
) -> None:
    """Prints the complete config with every default; without a source, lists the presets."""
    if source is None:  # at once: the options of a whole config are those of classes over torch
        out.print("\n".join(completion.preset("")))
        return
    from segcredit.config import load_config
    from segcredit.records.stored_config import toml_text
    from segcredit.register import load_code

    load_code(code or [])
    sys.stdout.write(toml_text(load_config(source, overrides or []).model_dump()))


def _say(text: str) -> None:
    """Prints a line as it is: not wrapped, not coloured, brackets and all."""
    out.print(text, soft_wrap=True, markup=False, highlight=False)


def escaped(text: str) -> str:
    """Escapes the square brackets of a message, which are not rich's markup."""
    return text.replace("[", "\\[")

"""``segcredit fit-boundaries``: train, cross-validate, calibrate and write a boundary model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from .corpus import Corpus
    from .training import Fitted

_METRICS = ("f1", "precision", "recall")


def fit_boundaries(
    data: Annotated[
        Path, typer.Argument(help="JSONL: text, boundaries, problem (or id), perhaps source.")
    ],
    output: Annotated[Path, typer.Option(help="The model file to write (skops).")],
    folds: Annotated[int, typer.Option(min=3, help="Parts into which the problems fall.")] = 5,
    candidates: Annotated[
        Literal["fast", "all"],
        typer.Option(help="all: also before lower-case words and operators."),
    ] = "fast",
    annotator: Annotated[
        str | None, typer.Option(help="Read this annotator's 'annotations', not 'boundaries'.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print tables as one JSON document instead.")
    ] = False,
) -> None:
    """Trains the segmenter `learned` on segmented texts, cross-validated by problem."""
    from rich.console import Console

    from segcredit import errors

    errors.require_package("skops", "learned", "fit-boundaries")
    from .corpus import read_corpus
    from .model_file import require_writable, save_model
    from .training import fit

    require_writable(output)
    out = Console(stderr=as_json)
    corpus = read_corpus(data, annotator)
    with out.status("reading") as status:
        fitted = fit(corpus, folds=folds, which=candidates, watch=status.update)
    save_model(fitted.model, output)
    rows = list(_rows(corpus, fitted))
    if as_json:
        print(json.dumps({"boundaries": [_measured(*row) for row in rows]}))
    else:
        out.print(_table(rows))
    for sentence in _sentences(fitted, output):
        out.print(sentence, soft_wrap=True, highlight=False)


def _rows(corpus: Corpus, fitted: Fitted) -> Iterator[tuple[str, Any]]:
    """Yields names and counts by document: of the model, in all and by source; of spaCy."""
    from .agreement import counts_of
    from .sentences import sentence_starts

    yield "learned", fitted.counts_D3
    sources = sorted(set(corpus.sources))
    if len(sources) > 1:
        for source in sources:
            rows = [row for row, name in enumerate(corpus.sources) if name == source]
            yield f"  {source or '(no source)'}", fitted.counts_D3[rows]
    sentences_D3 = counts_of(sentence_starts(corpus.texts), corpus.boundaries)
    yield "spaCy's sentences", sentences_D3


def _measured(name: str, counts_D3: Any) -> dict[str, Any]:
    """Returns the cross-validated metrics of one row, each with its interval."""
    from .agreement import intervals, measures

    totals = counts_D3.sum(0)
    found = zip(_METRICS, measures(totals), intervals(counts_D3), strict=True)
    row: dict[str, Any] = {"name": name.strip(), "documents": len(counts_D3)}
    row["boundaries"] = int(totals[2])
    for metric, value, (low, high) in found:
        row |= {metric: float(value), f"{metric}_low": float(low), f"{metric}_high": float(high)}
    return row


def _table(rows: Iterable[tuple[str, Any]]) -> Any:
    """Builds a table of cross-validated metrics, in all and by source, beside spaCy's sentences."""
    from rich.table import Table

    table = Table(title="Boundaries of problems kept back (95 % bootstrap over documents)")
    table.add_column("", no_wrap=True)
    for heading in ("documents", "boundaries", "F1", "precision", "recall"):
        table.add_column(heading, justify="right")
    for name, counts_D3 in rows:
        row = _measured(name, counts_D3)
        cells = [
            f"{row[metric]:.3f} ({row[f'{metric}_low']:.3f} to {row[f'{metric}_high']:.3f})"
            for metric in _METRICS
        ]
        table.add_row(name, f"{row['documents']:,}", f"{row['boundaries']:,}", *cells)
    return table


def _sentences(fitted: Fitted, output: Path) -> list[str]:
    model, size = fitted.model, output.stat().st_size
    low, high = min(fitted.thresholds), max(fitted.thresholds)
    return [
        f"Threshold {model.threshold:.3f} (the folds chose {low:.3f} to {high:.3f}, each on the"
        f" other folds), blend {model.blend:.2f}. {fitted.reachable:.1%} of the boundaries stand"
        " where the model looks.",
        "The figures hold for new problems of the same sources. On another source the threshold is"
        " wrong: set per_100_tokens, or fit again.",
        f"Wrote {output} ({size / 1e6:.2f} MB). In a config:"
        f' segmenter = {{name = "learned", model = "{output}"}}',
    ]

"""A figure of how near segmentations are to each other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segcredit.atomic_files import write_atomically
from segcredit.records.tables import require_known
from segcredit.study.agreement.summary import ERRORS, matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
"""Metadata by format: without the time of drawing, the same table gives the same bytes."""

_TITLES = {
    "f1": "boundary F1, pooled",
    "precision": "boundary precision, pooled",
    "recall": "boundary recall, pooled",
    "document_f1": "boundary F1, mean",
    "pk": "P_k, mean (0 is agreement)",
    "window_diff": "WindowDiff, mean (0 is agreement)",
    "boundary_similarity": "boundary similarity, mean",
}
_SYMMETRIC = ("f1", "document_f1", "boundary_similarity")


def agreement_figure(pairs: pd.DataFrame, path: Path | str, metric: str = "f1") -> Path:
    """Draws ``matrix`` as a heat map with its numbers: darker is nearer.

    Args:
        pairs: as ``agreement`` gives them.
        path: the file to write; its extension is .pdf, .svg or .png.
        metric: one of ``METRICS``.

    Returns:
        The path written.

    Raises:
        StudyError: the format or the metric is unknown, or there is nothing to draw.
        RecordError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    require_known("figure format", [kind], _UNDATED)
    table = matrix(pairs, metric)
    rows, columns = table.shape
    count = len(np.unique(pairs["document"]))
    buffer = io.BytesIO()
    # Outlines as TrueType: journals refuse matplotlib's default Type 3 fonts.
    with matplotlib.rc_context({"svg.hashsalt": "segcredit", "pdf.fonttype": 42}):
        figure = Figure(figsize=(2.2 + 0.5 * columns, 1.4 + 0.42 * rows), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, table, metric)
        documents = "document" if count == 1 else "documents"
        axes.set_title(f"{_TITLES[metric]}, {count} {documents}", fontsize=10)
        figure.savefig(buffer, format=kind, dpi=200, metadata=_UNDATED[kind])
    write_atomically(path, buffer.getvalue())
    return path


def _draw(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Draws squares with their numbers, white on dark ones."""
    values = np.asarray(table, dtype=np.float64)
    nearness = 1 - values if metric in ERRORS else values
    axes.imshow(nearness, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(
        range(table.shape[1]), list(table.columns), rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(table.shape[0]), list(table.index))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if metric not in _SYMMETRIC:
        axes.set(xlabel="other", ylabel="reference")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if nearness[row, column] > 0.55 else "black"
            text = f"{value:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)

"""Numbers and lengths of the segments that documents are cut into.

    segments = segment_table(texts, {"newline": registry.segmenters.build("newline")})
    lengths(segments)
    lengths(segments.merge(styles, on="document"), by=["segmenter", "style"])

What is counted, and how: docs/explain/agreement.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcredit.errors import StudyError
from segcredit.records.tables import require_known
from segcredit.study.agreement.boundaries import Cuts, Documents, boundaries_of
from segcredit.study.agreement.metrics import segment_lengths
from segcredit.study.statistics import bootstrap_interval


def segment_table(
    documents: Documents,
    segmentations: Mapping[str, Cuts],
    *,
    tokens: Sequence[Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Returns every segment of every document, under every segmentation.

    Args:
        documents: texts or lengths.
        segmentations: by name, segmenters or boundaries.
        tokens: for each document the first character of each token, ascending.

    Returns:
        A row a segment: ``document``, ``segmenter``, ``segment`` (from 0), ``start`` and ``length``
        (in characters, or in the units of the documents), and ``tokens``, the tokens that begin in
        it, if they were given. An empty document has no segments.

    Raises:
        StudyError: as for ``boundaries_of``, or ``tokens`` and documents differ in number.
    """
    table, found = boundaries_of(documents, segmentations)
    if tokens is not None and len(tokens) != len(table):
        raise StudyError(
            f"Tokens are given for {len(tokens)} documents; expected {len(table)}, one list of"
            " first characters for each."
        )
    if not found:
        raise StudyError("No segmentation was given; expected at least one, by name.")
    parts = [_segments(name, table, boundaries, tokens) for name, boundaries in found.items()]
    return pd.concat(parts, ignore_index=True)


def lengths(segments: pd.DataFrame, by: Sequence[str] = ("segmenter",)) -> pd.DataFrame:
    """Summarises how many segments a document has, and how long they are.

    Args:
        segments: as ``segment_table`` gives them; columns may have been merged to them.
        by: columns whose values make the groups, such as "segmenter" and "style".

    Returns:
        A row a group and unit: the columns of ``by``; ``unit``, "length" (characters, or the units
        of the documents) or "tokens"; ``documents``; ``segments`` in all; ``per_document``, the
        mean, with ``low`` and ``high`` (95% bootstrap over documents); ``whole``, the share of
        documents in one segment; then of the segments' lengths the ``mean``, the standard deviation
        ``std`` (of the segments themselves: divided by n), ``min``, ``p10``, ``median``, ``p90``
        and ``max`` (linear between values). Segments in which no token begins do not count where
        the unit is tokens.

    Raises:
        StudyError: a column of ``by`` does not exist, or ``by`` is empty.
    """
    by = [by] if isinstance(by, str) else list(by)
    if not by:
        raise StudyError("No column to group by was given; expected some, such as 'segmenter'.")
    require_known("column of segments", by, map(str, segments.columns))
    units = [unit for unit in ("length", "tokens") if unit in segments.columns]
    rows: list[dict[str, Any]] = []
    for _, group in segments.groupby(by, sort=False, dropna=False):
        key = group.iloc[0][by].to_dict()
        counted = [unit for unit in units if np.any(np.asarray(group[unit]))]
        rows += [{**key, "unit": unit, **_length_statistics(group, unit)} for unit in counted]
    return pd.DataFrame(rows)


def _segments(
    segmenter: str,
    table: pd.DataFrame,
    boundaries: Sequence[list[int] | None],
    tokens: Sequence[Sequence[int]] | None,
) -> pd.DataFrame:
    """Returns the segments of one segmentation."""
    sizes = table["length"].tolist()
    present = [row for row, inner in enumerate(boundaries) if inner is not None and sizes[row]]
    starts = [[0, *(boundaries[row] or ())] for row in present]
    counts = [len(document) for document in starts]
    cuts = list(zip(starts, (sizes[row] for row in present), strict=True))
    data: dict[str, Any] = {
        "document": table["document"].to_numpy()[np.repeat(np.asarray(present, np.int64), counts)],
        "segmenter": segmenter,
        "segment": _concatenated(np.arange(count) for count in counts),
        "start": _concatenated(starts),
        "length": _concatenated(segment_lengths(*cut) for cut in cuts),
    }
    if tokens is not None:
        units = (tokens[row] for row in present)
        inside = zip(cuts, units, strict=True)
        data["tokens"] = _concatenated(segment_lengths(*cut, document) for cut, document in inside)
    return pd.DataFrame(data)


def _concatenated(parts: Iterable[Sequence[int] | NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _length_statistics(segments: pd.DataFrame, unit: str) -> dict[str, float]:
    counted = segments[segments[unit] > 0]
    size = np.asarray(counted[unit], dtype=np.float64)
    counts = np.asarray(counted.groupby("document", sort=False).size(), dtype=np.float64)
    low, high = bootstrap_interval(counts)
    p10, median, p90 = np.quantile(size, [0.1, 0.5, 0.9])
    return {
        "documents": len(counts),
        "segments": len(size),
        "per_document": counts.mean(),
        "low": low,
        "high": high,
        "whole": (counts == 1).mean(),
        "mean": size.mean(),
        "std": size.std(),
        "min": size.min(),
        "p10": p10,
        "median": median,
        "p90": p90,
        "max": size.max(),
    }

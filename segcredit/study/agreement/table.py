"""Table of the agreement of segmentations, pair by pair and document by document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.tables import require_known
from segcredit.study.agreement.boundaries import Cuts, Documents, boundaries_of
from segcredit.study.agreement.metrics import (
    BoundaryEdits,
    Matches,
    boundary_edits,
    match_boundaries,
    segment_ranks,
    window_errors,
)

_COLUMNS = (
    "document",
    "reference",
    "other",
    "matches",
    "reference_boundaries",
    "other_boundaries",
    "precision",
    "recall",
    "f1",
    "pk",
    "window_diff",
    "boundary_similarity",
    "edit_distance",
)


def agreement(
    documents: Documents,
    segmentations: Mapping[str, Cuts],
    *,
    references: Sequence[str] | None = None,
    tolerance: int = 0,
    window: int | None = None,
    n_t: int = 2,
    skip_space: bool = True,
) -> pd.DataFrame:
    """Compares segmentations pair by pair, document by document.

    Args:
        documents: texts, by name or in order; or lengths, in the units in which boundaries count.
        segmentations: by name, segmenters of text, or boundaries of every document (None for a
            document that is not to be compared). People's annotations are such.
        references: the names to compare all others with; all by default, so that each pair comes
            twice, each of the two being the reference once.
        tolerance: how far apart two boundaries may be and still match, for precision, recall and
            F1. In characters, as are ``window`` and ``n_t``, or in the units of the documents.
        window: of P_k and WindowDiff; by default half the reference's mean segment, in each
            document.
        n_t: positions that a move of the boundary edit distance may span, its ends included.
        skip_space: first move every boundary to the next character that is not white space.

    Returns:
        A row a document and pair: ``document``, ``reference``, ``other``, ``matches``,
        ``reference_boundaries``, ``other_boundaries``, ``precision``, ``recall``, ``f1``, ``pk``,
        ``window_diff``, ``boundary_similarity`` and ``edit_distance``.

    Raises:
        StudyError: an option is out of its range, a reference is not among the segmentations, or
            documents and boundaries do not fit (as for ``boundaries_of``).
    """
    if len(segmentations) < 2:
        raise StudyError(
            f"Only {len(segmentations)} segmentation was given; expected at least two to compare."
        )
    references = list(segmentations) if references is None else list(references)
    require_known("segmentation", references, segmentations)
    table, found = boundaries_of(documents, segmentations, skip_space=skip_space)
    rows: list[tuple[Any, ...]] = []
    for number, (document, length) in enumerate(table.itertuples(index=False)):
        present = {name: cut for name, cuts in found.items() if (cut := cuts[number]) is not None}
        pairs = _compare(present, length, references, tolerance, window, n_t)
        rows += [(document, *pair) for pair in pairs]
    return pd.DataFrame(rows, columns=pd.Index(_COLUMNS))


def _compare(
    present: Mapping[str, list[int]],
    length: int,
    references: Sequence[str],
    tolerance: int,
    window: int | None,
    n_t: int,
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of one document, without its name."""
    names = list(present)
    ranks_DN = segment_ranks(list(present.values()), length)
    # What is symmetric is computed once for both directions.
    shared: dict[tuple[str, str], tuple[Matches, BoundaryEdits]] = {}
    for reference in (name for name in names if name in references):
        windows_2D = window_errors(ranks_DN, names.index(reference), window)
        for column, other in enumerate(names):
            if other == reference:
                continue
            if (other, reference) in shared:
                matched, edits = shared.pop((other, reference))
                matched = matched.swapped()
            else:
                sides = present[reference], present[other], length
                matched = match_boundaries(*sides, tolerance)
                edits = boundary_edits(*sides, n_t)
                shared[reference, other] = matched, edits
            counts = matched.matches, matched.reference, matched.other
            shares = matched.precision, matched.recall, matched.f1
            errors = (float(error_D[column]) for error_D in windows_2D)
            yield reference, other, *counts, *shares, *errors, edits.similarity, edits.distance

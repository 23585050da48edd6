"""Agreement of segmentations over many documents: averages with intervals, and a matrix."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcredit.errors import StudyError
from segcredit.records.tables import require_known

METRICS = (
    "f1",
    "precision",
    "recall",
    "document_f1",
    "pk",
    "window_diff",
    "boundary_similarity",
)
"""Metrics that ``summary`` and ``matrix`` give. The first three are pooled: the boundaries of all
documents are counted at once (micro-average). The others are means over documents."""

_COUNTS = ("matches", "reference_boundaries", "other_boundaries")
_MEANS = {name: name for name in ("pk", "window_diff", "boundary_similarity")} | {
    "document_f1": "f1"
}
"""Metrics that are means over documents, with the column that is averaged."""
ERRORS = ("pk", "window_diff")
"""Metrics of which 0 is agreement."""


def summary(
    pairs: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Summarises each pair of segmentations over all documents, with bootstrap intervals.

    Documents are resampled, not boundaries, since the boundaries of one text share its style; all
    pairs share the resamples. Intervals are of percentiles, as in ``bootstrap_interval``, whose
    caution about few values holds of few documents.

    Args:
        pairs: as ``agreement`` gives them.
        confidence: the share that an interval is to cover, in (0, 1).
        resamples: how many times the documents are drawn.
        seed: of the draws.

    Returns:
        A row a pair and metric: ``reference``, ``other``, ``metric`` (of ``METRICS``), ``value``,
        ``low`` and ``high`` (NaN for fewer than two documents), ``documents``.

    Raises:
        StudyError: there is nothing to summarise, ``confidence`` is not in (0, 1), or
            ``resamples`` is below 1.
    """
    draws = _Draws(confidence, resamples, seed)
    parts: list[pd.DataFrame] = []
    for (reference, other), group in _by_pair(pairs).items():
        low, high = draws.interval(draws.metrics(group))
        columns = {"reference": reference, "other": other, "metric": METRICS}
        columns |= {"value": _over_all(group), "low": low, "high": high, "documents": len(group)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def paired_difference(
    pairs: pd.DataFrame,
    reference: str,
    first: str,
    second: str,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compares how well two segmentations agree with a reference, on the same documents.

    Args:
        pairs: as ``agreement`` gives them.
        reference: the segmentation that both are compared with.
        first: the segmentation whose metrics come first in the difference.
        second: the one whose metrics are subtracted.
        confidence: the share that an interval is to cover, in (0, 1).
        resamples: how many times the documents are drawn, the same for both.
        seed: of the draws.

    Returns:
        A row a metric: ``metric``, ``first`` and ``second`` (their values), ``difference``, ``low``
        and ``high``, ``documents`` (those in which all three have boundaries to compare). For P_k
        and WindowDiff a negative difference is to the first one's credit.

    Raises:
        StudyError: one of the names is not among the pairs, no document has all three, or as for
            ``summary``.
    """
    groups = _by_pair(pairs)
    require_known("reference", [reference], dict.fromkeys(key[0] for key in groups))
    others = [other for name, other in groups if name == reference]
    require_known("segmentation compared with it", [first, second], others)
    ours, theirs = groups[reference, first], groups[reference, second]
    common = ours[["document"]].merge(theirs[["document"]])
    if common.empty:
        raise StudyError(
            f"No document has boundaries of {reference!r}, {first!r} and {second!r}; expected at"
            " least one in which all three can be compared."
        )
    ours, theirs = common.merge(ours), common.merge(theirs)
    draws = _Draws(confidence, resamples, seed)
    low, high = draws.interval(draws.metrics(ours) - draws.metrics(theirs))
    one, two = _over_all(ours), _over_all(theirs)
    columns = {"metric": METRICS, "first": one, "second": two, "difference": one - two}
    return pd.DataFrame({**columns, "low": low, "high": high, "documents": len(common)})


def matrix(pairs: pd.DataFrame, metric: str = "f1") -> pd.DataFrame:
    """Returns one metric of every pair, over all documents: a row a reference, a column an other.

    Args:
        pairs: as ``agreement`` gives them.
        metric: one of ``METRICS``.

    Returns:
        Names in the order in which segmentations were given, for both axes; on the diagonal what
        perfect agreement is (0 for P_k and WindowDiff, 1 otherwise); NaN for what was not compared.

    Raises:
        StudyError: the metric does not exist, or there is nothing to show.
    """
    require_known("metric", [metric], METRICS)
    groups = _by_pair(pairs)
    references = list(dict.fromkeys(reference for reference, _ in groups))
    names = list(dict.fromkeys([*references, *(other for _, other in groups)]))
    values = np.full((len(references), len(names)), np.nan)
    np.fill_diagonal(values, 0 if metric in ERRORS else 1)
    for (reference, other), group in groups.items():
        place = references.index(reference), names.index(other)
        values[place] = _over_all(group)[METRICS.index(metric)]
    rows, columns = pd.Index(references, name="reference"), pd.Index(names, name="other")
    return pd.DataFrame(values, index=rows, columns=columns)


class _Draws:
    """Documents drawn with replacement, the same draws for every table of as many documents."""

    def __init__(self, confidence: float, resamples: int, seed: int) -> None:
        if not 0 < confidence < 1 or resamples < 1:
            raise StudyError(
                f"The confidence is {confidence} and the resamples are {resamples}; expected a"
                " confidence between 0 and 1 (such as 0.95) and at least one resample."
            )
        self._tail = (1 - confidence) / 2
        self._resamples, self._seed = resamples, seed
        self._weights: dict[int, NDArray[np.float64]] = {}

    def metrics(self, group: pd.DataFrame) -> NDArray[np.float64]:
        """Returns (R,M) the metrics of one pair in every resample of its documents."""
        count = len(group)
        if count not in self._weights:
            self._weights[count] = self._draw(count)
        return _metrics(self._weights[count] @ _summed(group), count)

    def interval(
        self, values_RM: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the lower and upper ends for each of M metrics; NaN without resamples."""
        if not len(values_RM):
            unknown_M = np.full(values_RM.shape[1], np.nan)
            return unknown_M, unknown_M
        low_M, high_M = np.quantile(values_RM, [self._tail, 1 - self._tail], axis=0)
        return low_M, high_M

    def _draw(self, count: int) -> NDArray[np.float64]:
        """Returns (R,count) how often each document was drawn; no resamples of fewer than two."""
        weights = np.zeros((self._resamples if count > 1 else 0, count))
        generator = np.random.default_rng(self._seed)
        for resample in weights:
            resample += np.bincount(generator.integers(count, size=count), minlength=count)
        return weights


def _by_pair(pairs: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Groups the rows by reference and other."""
    if pairs.empty:
        raise StudyError(
            "There is no pair of segmentations to look at; expected a table of `agreement` with at"
            " least one row. Usually no document has boundaries of two segmentations."
        )
    groups = pairs.groupby(["reference", "other"], sort=False)
    return {(str(key[0]), str(key[1])): group for key, group in cast("Any", groups)}


def _summed(group: pd.DataFrame) -> NDArray[np.float64]:
    """Returns (documents,C) the columns of which metrics are made."""
    return np.asarray(group[[*_COUNTS, *_MEANS.values()]], dtype=np.float64)


def _over_all(group: pd.DataFrame) -> NDArray[np.float64]:
    """Returns (M,) the metrics of one pair over its documents."""
    return _metrics(_summed(group).sum(axis=0), len(group))


def _metrics(sums: NDArray[np.float64], documents: int) -> NDArray[np.float64]:
    """Returns (..., M) ``METRICS`` in their order, from sums over documents in the last axis."""
    matches, reference, other = np.moveaxis(sums[..., :3], -1, 0)
    neither = reference + other == 0
    values = {
        "f1": np.where(neither, 1, _ratio(2 * matches, reference + other)),
        "precision": np.where(neither, 1, _ratio(matches, other)),
        "recall": np.where(neither, 1, _ratio(matches, reference)),
    }
    for column, name in enumerate(_MEANS, start=3):
        values[name] = sums[..., column] / documents
    return np.stack([values[name] for name in METRICS], axis=-1)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divides; 0 where the whole is 0."""
    return part / np.where(whole > 0, whole, 1)

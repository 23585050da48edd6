"""Paired differences of metrics between plug-ins, on the same draws of the same prompts."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd

from segcredit.credit_audit.finished_audit import Audit
from segcredit.credit_audit.metric_functions import CREDIT, MOVEMENT
from segcredit.credit_audit.metric_list import Place
from segcredit.credit_audit.metrics import Estimate, Truth, difference, metrics_of_moments
from segcredit.credit_audit.table import JUDGES, arrays
from segcredit.records.tables import require_known

Axis = Literal["segmenter", "estimator", "advantage"]
_AXES: tuple[Axis, ...] = ("segmenter", "estimator", "advantage")
Key = tuple[str, ...]
"""Segmenter, estimator, scheme; the last two '' for a metric of the segmenter alone."""


def compare_credits(
    audit: Audit, metric: str = "correlation", at: str = "gradient", *, between: Axis = "segmenter"
) -> pd.DataFrame:
    """Compares every two plug-ins of one axis by a metric, all else equal, in pairs.

    Two intervals that overlap do not say that two metrics are alike: most of what makes them
    uncertain, which prompts were drawn, is common to both. An interval that holds 0 is no ranking;
    of many pairs, one in twenty leaves 0 out by chance.

    Args:
        audit: as ``load_audit`` gives it.
        metric: of where the value moves ("share_within", ...), of credit ("correlation", ...) or
            of gradients ("cosine", ...).
        at: where it is taken, as in ``.audit``.
        between: the axis whose plug-ins are compared.

    Returns:
        A row a pair: the two other axes, ``first``, ``second``, their values, ``difference``
        (the first's less the second's), ``low``, ``high``.

    Raises:
        StudyError: the metric, the place or the axis does not exist, or an older audit or a
            policy without ``logit_gradients`` has nothing at the place "gradient".
    """
    require_known("axis", [between], _AXES)
    found = _estimates(audit, metric, at)
    place = _AXES.index(between)
    groups: dict[Key, list[Key]] = {}
    for key in found:
        groups.setdefault(key[:place] + key[place + 1 :], []).append(key)
    pairs = (pair for keys in groups.values() for pair in itertools.combinations(keys, 2))
    return pd.DataFrame([_row(found, first, second, place) for first, second in pairs])


def _estimates(audit: Audit, metric: str, at: str) -> dict[Key, Estimate]:
    known = [*MOVEMENT, *CREDIT, *_gradient_places(audit)]
    require_known("metric", [metric], dict.fromkeys(name for name, _ in known))
    require_known(f"place of {metric}", [at], [where for name, where in known if name == metric])
    judge = arrays(audit.truth, audit.resampling).keep(JUDGES)
    if (metric, at) in MOVEMENT:
        return _of_segments(audit, judge, (metric, at))
    return dict(_of_credits(audit, judge, metric, at))


def _of_segments(audit: Audit, judge: Truth, place: tuple[str, str]) -> dict[Key, Estimate]:
    ids = {found.segmenter: found.sampled_ids for found in audit.credits}
    return {(name, "", ""): MOVEMENT[place](judge, ids_BT) for name, ids_BT in ids.items()}


def _of_credits(audit: Audit, judge: Truth, metric: str, at: str) -> Iterator[tuple[Key, Estimate]]:
    for found in audit.credits:
        for scheme in found.advantages:
            key = (found.segmenter, found.estimator, scheme)
            if (metric, at) in CREDIT:
                credit = found.of(scheme, audit.bases.get(found.estimator))
                yield key, CREDIT[metric, at](judge, credit)
            else:
                moments = {at: {metric: found.gradients[scheme][at][metric]}}
                made = metrics_of_moments(moments, resampling=audit.resampling)
                yield key, made[at][metric]


def _gradient_places(audit: Audit) -> list[Place]:
    """Returns the metrics of gradients, at each group of parameters whose gradients were taken."""
    gradients = audit.credits[0].gradients
    return [
        (name, group)
        for by_group in gradients.values()
        for group, found in by_group.items()
        for name in found
    ]


def _row(found: dict[Key, Estimate], first: Key, second: Key, place: int) -> dict[str, Any]:
    apart = difference(found[first], found[second])
    same = {axis: first[n] for n, axis in enumerate(_AXES) if n != place and first[n]}
    return {
        **same,
        "first": first[place],
        "second": second[place],
        "first_value": found[first].value,
        "second_value": found[second].value,
        "difference": apart.value,
        "low": apart.low,
        "high": apart.high,
    }

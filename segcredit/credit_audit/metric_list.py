"""Which figures an audit has of what: one list each of definitions, values, credits and gradients.

Every entry has a figure's name and where it was taken (``at``): a level, a side of the boundary, a
part of the response, a group of parameters; '' where there is but one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import get_args

import numpy as np

from segcredit.credit_audit import metrics
from segcredit.credit_audit.credits import Batches
from segcredit.credit_audit.metrics import Credit, Figure, Resampling, Truth
from segcredit.credit_audit.metrics.arrays import Anchor, Floats, Ints
from segcredit.credit_audit.metrics.credit_quality import Level
from segcredit.credit_audit.metrics.estimate import quotient
from segcredit.credit_audit.metrics.moments import Fork, of
from segcredit.credit_audit.metrics.value_quality import Part

Place = tuple[str, str]
"""A figure's name, and where it is taken."""
Found = Iterator[tuple[str, str, Figure]]

_FORKS: tuple[Fork, ...] = get_args(Fork)


def _segments(truth: Truth, ids_BT: Ints) -> Figure:
    counts_B = ids_BT.max(1, initial=-1) + 1
    return of(truth, quotient, counts_B, np.ones_like(counts_B))


MOVEMENT: dict[Place, Callable[[Truth, Ints], Figure]] = {
    ("segments", ""): _segments,
    **{("share_on_boundaries", f): partial(metrics.share_on_boundaries, fork=f) for f in _FORKS},
    **{
        ("random_share_on_boundaries", f): partial(metrics.random_share_on_boundaries, fork=f)
        for f in _FORKS
    },
    **{("boundary_ratio", f): partial(metrics.boundary_ratio, fork=f) for f in _FORKS},
    ("share_within", ""): metrics.share_within,
    ("random_share_within", ""): metrics.random_share_within,
    **{
        ("baseline_bias", anchor): partial(metrics.baseline_bias, anchor=anchor)
        for anchor in get_args(Anchor)
    },
}
"""Where the value moves, of segment ids (B,T); the oracle's figures aside."""

CREDIT: dict[Place, Callable[[Truth, Credit], Figure]] = {
    **{
        (figure.__name__, level): partial(figure, level=level)
        for level in get_args(Level)
        for figure in (
            metrics.correlation,
            metrics.slope,
            metrics.noise,
            metrics.sign_agreement,
            metrics.sign_ceiling,
        )
    },
    ("mass_kept", ""): metrics.mass_kept,
    ("mass_error", ""): metrics.mass_error,
}
"""How good credit is."""


def movement(judge: Truth, whole: Truth, ids_BT: Ints) -> Found:
    """Where the value moves, of a definition of segments.

    Args:
        judge: the parts of the truth that no plug-in has seen.
        whole: all parts, of which the oracle chooses on each and is judged on the others.
        ids_BT: (B,T) the definition's segments.
    """
    for (name, at), figure in MOVEMENT.items():
        yield name, at, figure(judge, ids_BT)
    for fork in _FORKS:
        yield "oracle_share", fork, metrics.oracle_share(whole, ids_BT, fork=fork)
        for name, found in metrics.jump_agreement(judge, ids_BT, fork=fork).items():
            yield f"jump_{name}", fork, found


def credit(judge: Truth, given: Credit) -> Found:
    """How good credit is."""
    for (name, at), figure in CREDIT.items():
        yield name, at, figure(judge, given)


def values(judge: Truth, given: Credit, token_values_BT: Floats | None) -> Found:
    """How good an estimator's values are at its anchors, and along the segments.

    Args:
        judge: the parts of the truth that no plug-in has seen.
        given: with the values at the anchors.
        token_values_BT: (B,T) the same estimator's before every token; None = no consistency.
    """
    for part in get_args(Part):
        for name, found in metrics.value_figures(judge, given, part).items():
            yield name, part, found
    if token_values_BT is not None:
        consistency = metrics.value_consistency(judge, given.segment_ids, token_values_BT)
        for name, found in consistency.items():
            yield f"consistency_{name}", "", found


def gradients(moments: Batches, resampling: Resampling) -> Found:
    """What credit does to the gradient, by group of parameters."""
    for group, found in metrics.figures_of_moments(moments, resampling=resampling).items():
        for name, figure in found.items():
            yield name, group, figure


def signals(
    judge: Truth,
    signals_BT: Mapping[str, Floats],
    quantiles: Sequence[float],
    jump: float,
    classes: tuple[Ints, list[str]],
) -> Found:
    """Where the value moves whatever the definition: Lift of the policy's signals, and classes.

    Args:
        judge: the parts of the truth that no plug-in has seen.
        signals_BT: (B,T) by name, such as entropies.
        quantiles: of the signals, each in [0,1).
        jump: what counts as one where Lift has a threshold, in reward units.
        classes: (B,T) the number of each token's class, −1 for none, and their names.
    """
    for name, signal_BT in signals_BT.items():
        for q, found in metrics.lift(judge, signal_BT, quantiles).items():
            yield f"lift_{name}", f"{q:g}", found
        for q, found in metrics.lift(judge, signal_BT, quantiles, threshold=jump).items():
            yield f"lift_{name}_of_jumps", f"{q:g}", found
    for name, (share, ratio) in metrics.share_by_class(judge, *classes).items():
        yield "class_share", name, share
        yield "class_ratio", name, ratio

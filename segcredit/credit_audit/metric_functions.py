"""The functions behind the metrics of ``metric_list``, called for every level of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import get_args

import numpy as np

from segcredit.credit_audit import metrics
from segcredit.credit_audit.credits import Batches
from segcredit.credit_audit.metric_list import GRADIENT, Place, lift_name, metric
from segcredit.credit_audit.metrics import Credit, Estimate, Resampling, Truth
from segcredit.credit_audit.metrics.arrays import Floats, Ints
from segcredit.credit_audit.metrics.credit_quality import Level
from segcredit.credit_audit.metrics.estimates import quotient
from segcredit.credit_audit.metrics.moments import Fork, of, square
from segcredit.credit_audit.metrics.value_quality import Part

Found = Iterator[tuple[str, str, Estimate]]
"""Name, level and estimate of each metric."""


def segments(truth: Truth, ids_BT: Ints) -> Estimate:
    """Computes the mean number of segments of a completion."""
    counts_B = ids_BT.max(1, initial=-1) + 1
    return of(truth, quotient, counts_B, np.ones_like(counts_B))


def _by_level(
    function: Callable[..., Estimate], option: str
) -> dict[Place, Callable[[Truth, Ints], Estimate]]:
    """Returns a function of segments at every level that its metric is taken at."""
    name = function.__name__
    return {(name, at): partial(function, **{option: at}) for at in metric(name).levels}


MOVEMENT: dict[Place, Callable[[Truth, Ints], Estimate]] = {
    ("segments", ""): segments,
    **_by_level(metrics.share_on_boundaries, "fork"),
    **_by_level(metrics.random_share_on_boundaries, "fork"),
    **_by_level(metrics.boundary_ratio, "fork"),
    ("share_within", ""): metrics.share_within,
    ("random_share_within", ""): metrics.random_share_within,
    **_by_level(metrics.baseline_bias, "anchor"),
    ("true_noise_ratio", GRADIENT): metrics.true_noise_ratio,
}
"""Functions of segment ids (B,T) that say where the value moves; the oracle's aside."""

CREDIT: dict[Place, Callable[[Truth, Credit], Estimate]] = {
    **{
        (function.__name__, level): partial(function, level=level)
        for level in get_args(Level)
        for function in (
            metrics.correlation,
            metrics.slope,
            metrics.noise,
            metrics.sign_agreement,
            metrics.sign_ceiling,
        )
    },
    ("credit_noise_ratio", GRADIENT): metrics.credit_noise_ratio,
    ("credit_noise", GRADIENT): metrics.credit_noise,
    ("sharpening", GRADIENT): metrics.sharpening,
    ("mass_kept", ""): metrics.mass_kept,
    ("mass_error", ""): metrics.mass_error,
}
"""Functions of credit that say how good it is."""


def movement(judge: Truth, whole: Truth, ids_BT: Ints) -> Found:
    """Yields where the value moves, given a definition of segments.

    Args:
        judge: the splits of the truth that no plug-in has seen.
        whole: all splits, of which the oracle chooses on each and is judged on the others.
        ids_BT: (B,T) the definition's segments.
    """
    for (name, at), function in MOVEMENT.items():
        if measurable(judge, at):
            yield name, at, function(judge, ids_BT)
    for fork in get_args(Fork):
        yield "oracle_share", fork, metrics.oracle_share(whole, ids_BT, fork=fork)
        for name, found in metrics.jump_agreement(judge, ids_BT, fork=fork).items():
            yield f"jump_{name}", fork, found


def credit(judge: Truth, given: Credit) -> Found:
    """Yields how good credit is."""
    for (name, at), function in CREDIT.items():
        if measurable(judge, at):
            yield name, at, function(judge, given)


def measurable(judge: Truth, at: str) -> bool:
    """Tells whether there are metrics at a level: at "gradient" where the policy gave scores."""
    return at != GRADIENT or judge.scores is not None


def values(judge: Truth, given: Credit) -> Found:
    """Yields how good an estimator's values are: at its anchors, before every token, in segments.

    Args:
        judge: the splits of the truth that no plug-in has seen.
        given: with the values at the anchors; consistency in segments where ``token_values`` are.
    """
    for part in get_args(Part):
        for name, found in metrics.value_metrics(judge, given, part).items():
            yield name, part, found
    if given.token_values is not None:
        consistency = metrics.value_consistency(judge, given.segment_ids, given.token_values)
        for name, found in consistency.items():
            yield f"consistency_{name}", "", found


def gradients(moments: Batches, resampling: Resampling) -> Found:
    """Yields what credit does to the gradient, by group of parameters."""
    for group, found in metrics.metrics_of_moments(moments, resampling=resampling).items():
        for name, estimate in found.items():
            yield name, group, estimate


def signals(
    judge: Truth,
    signals_BT: Mapping[str, Floats],
    quantiles: Sequence[float],
    jump: float,
    classes: tuple[Ints, list[str]],
) -> Found:
    """Yields where the value moves whatever the definition: Lift of signals, and classes.

    Args:
        judge: the splits of the truth that no plug-in has seen.
        signals_BT: (B,T) by name, such as entropies.
        quantiles: of the signals, each in [0,1).
        jump: what counts as one where Lift has a threshold, in reward units.
        classes: (B,T) the number of each token's class, −1 for none, and their names.
    """
    for name, signal_BT in signals_BT.items():
        for q, found in metrics.lift(judge, signal_BT, quantiles).items():
            yield lift_name(name), f"{q:g}", found
        for q, found in metrics.lift(judge, signal_BT, quantiles, threshold=jump).items():
            yield lift_name(name, of_jumps=True), f"{q:g}", found
    for name, (share, ratio) in metrics.share_by_class(judge, *classes).items():
        yield "class_share", name, share
        yield "class_ratio", name, ratio


def turns(judge: Truth, turns_BT: Ints) -> Found:
    """Yields in which turns the value moves, and by how much; turns are counted from 1.

    By token, as everything else: over a turn as a whole the expected square is the same, since
    what sampling does to the value in one turn is uncorrelated with what it does in others.

    Args:
        judge: the splits of the truth that no plug-in has seen.
        turns_BT: (B,T) the number of each token's turn, from 0 on; −1 for none.
    """
    yield "turns", "", segments(judge, turns_BT)
    names = [str(number) for number in range(1, turns_BT.max(initial=-1) + 2)]
    for name, (share, ratio) in metrics.share_by_class(judge, turns_BT, names).items():
        yield "turn_share", name, share
        yield "turn_ratio", name, ratio
    squares_BT = square(judge.advantages)
    for number, name in enumerate(names):
        inside_BT = turns_BT == number
        yield "turn_movement", name, of(judge, quotient, squares_BT * inside_BT, inside_BT.any(1))

"""Quality of an estimator's values: beside the true ones at its anchors, and along segments.

Letters as in ``segcredit.credit_audit.metrics.arrays``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from segcredit.credit_audit.metrics import noise_corrected
from segcredit.credit_audit.metrics.arrays import (
    Credit,
    Floats,
    Ints,
    Truth,
    require_ids,
    require_shape,
)
from segcredit.credit_audit.metrics.credit_quality import anchors
from segcredit.credit_audit.metrics.estimates import Combine, Estimate
from segcredit.credit_audit.metrics.moments import of, segment_lengths, segment_sums, square
from segcredit.credit_audit.metrics.noise_corrected import Matched
from segcredit.errors import StudyError
from segcredit.records.tables import require_known

Part = Literal["tokens", "all", "early", "late"]
"""The state before every token; or anchors: all, those in the first half of their completion
(2t < n for the state before token t of n), those in the second."""


def value_metrics(truth: Truth, credit: Credit, part: Part = "all") -> dict[str, Estimate]:
    """Compares the estimator's values with the true ones, at its anchors or before every token.

    At anchors there is one place a segment, so that definitions are compared on states of their
    own, and ``whole`` at the prompt alone. "tokens" are the same states for all: where an
    estimator values anchors alone, an anchor's value holds until the next, and the tokens before
    the first are left out (there are some only where the anchor is the last token). Products with
    the truth are debiased.

    Args:
        truth: of the completions.
        credit: with ``state_values``; anchors without a value (NaN) are left out. At "tokens" its
            ``token_values`` count, where it has them.
        part: which states.

    Returns:
        - ``explained_variance``: 1 − var(V − v) / var V; 1 is best, 0 any constant, below 0 worse
          than a constant.
        - ``calibration_slope``, ``calibration_intercept``: of E[V | v], the line that calibrates
          the values; 1 and 0 are calibrated, a slope below 1 is overconfident. NaN for values that
          do not vary.
        - ``bias``: E(v − V), in reward units.
        - ``error``: E(v − V)² / var V; 0 is best, 1 is what the mean of V itself has.

    Raises:
        StudyError: the credit has no values, or the part does not exist.
    """
    require_known("part of a completion", [part], _PARTS)
    at = _at_tokens(truth, credit) if part == "tokens" else _anchored(truth, credit, part)
    return {name: at.metric(truth, combine) for name, combine in _METRICS.items()}


def value_consistency(
    truth: Truth, segment_ids: ArrayLike, token_values: ArrayLike
) -> dict[str, Estimate]:
    """Computes how much an estimator's values, one a token, and V vary inside segments.

    The spread is the mean of (v_t − v̄_k)² over tokens, v̄_k the mean over the token's segment.

    Args:
        truth: of the completions.
        segment_ids: (B,T) of the definition.
        token_values: (B,T) the estimator's value of the state before each token.

    Returns:
        - ``spread``: the estimator's, in units of var V over all tokens.
        - ``true_spread``: the truth's, in the same unit: small where a definition's segments are
          coherent, so that one value serves a segment.
        - ``noise``: the spread of v − V, in the same unit. 0 for values that follow V exactly;
          equal to ``true_spread`` for values that are constant inside segments.
    """
    ids_BT = require_ids(truth, segment_ids)
    values_BT = np.asarray(token_values, dtype=np.float64)
    require_shape("token_values", values_BT, ids_BT.shape)
    values_B1T = np.where(truth.mask, values_BT, 0.0)[:, None]
    states_BHT = truth.states
    variance = truth.mask, states_BHT.mean(1), square(states_BHT)
    spreads = {
        "spread": _spread_of_estimate(values_B1T[:, 0], ids_BT),
        "true_spread": _spread(states_BHT, ids_BT),
        "noise": _spread(values_B1T - states_BHT, ids_BT),
    }
    return {name: of(truth, _per_variance, x_B, *variance) for name, x_B in spreads.items()}


def _at_tokens(truth: Truth, credit: Credit) -> Matched:
    """Returns values and truth before every token, (B,T)."""
    ids_BT = require_ids(truth, credit.segment_ids)
    values_BT = credit.token_values
    if values_BT is None:
        places_BS = anchors(ids_BT, credit.anchor)
        anchored_BS = np.take_along_axis(_state_values(credit), places_BS, axis=1)
        own_BT = np.take_along_axis(places_BS, np.maximum(ids_BT, 0), axis=1)
        # Before its own segment's anchor a token still has the value of the one before.
        held_BT = ids_BT - (np.arange(ids_BT.shape[1]) < own_BT)
        values_BT = np.take_along_axis(anchored_BS, np.maximum(held_BT, 0), axis=1)
        values_BT = np.where(held_BT >= 0, values_BT, np.nan)
    return Matched(values_BT, truth.states, truth.mask & ~np.isnan(values_BT))


def _state_values(credit: Credit) -> Floats:
    if credit.state_values is None:
        raise StudyError(
            "the credit has no state_values; expected the estimator's value at each anchor. An"
            " estimator that values no state, such as a group's mean, has no such metrics."
        )
    return credit.state_values


def _anchored(truth: Truth, credit: Credit, part: Part) -> Matched:
    """Returns values and truth at the anchors, (B,S)."""
    ids_BT = require_ids(truth, credit.segment_ids)
    places_BS = anchors(ids_BT, credit.anchor)
    estimate_BS = np.take_along_axis(_state_values(credit), places_BS, axis=1)
    true_BHS = np.take_along_axis(truth.states, places_BS[:, None], axis=2)
    early_BS = 2 * places_BS < truth.lengths[:, None]
    there_BS = (segment_lengths(ids_BT) > 0) & ~np.isnan(estimate_BS)
    chosen_BS = {"all": there_BS, "early": there_BS & early_BS, "late": there_BS & ~early_BS}
    return Matched(estimate_BS, true_BHS, chosen_BS[part])


_PARTS = ("tokens", "all", "early", "late")
_METRICS: dict[str, Combine] = {
    "explained_variance": noise_corrected.explained,
    "calibration_slope": noise_corrected.calibration,
    "calibration_intercept": noise_corrected.intercept,
    "bias": noise_corrected.offset,
    "error": noise_corrected.relative_error,
}


def _spread(x_BHT: Floats, ids_BT: Ints) -> Floats:
    """Computes (B,) Σ (x − x̄_k)² by products of different splits."""
    sums_BHS = np.stack([segment_sums(x_BT, ids_BT) for x_BT in np.moveaxis(x_BHT, 1, 0)], axis=1)
    between_BS = square(sums_BHS) / np.maximum(segment_lengths(ids_BT), 1)
    return square(np.where(ids_BT[:, None] >= 0, x_BHT, 0.0)).sum(1) - between_BS.sum(1)


def _spread_of_estimate(x_BT: Floats, ids_BT: Ints) -> Floats:
    """Computes (B,) the same of what has no noise, as two equal splits."""
    return _spread(np.repeat(x_BT[:, None], 2, axis=1), ids_BT)


def _per_variance(moments: Floats) -> Floats:
    spread, number, value, squares = np.moveaxis(moments, -1, 0)
    return (spread / number) / (squares / number - (value / number) ** 2)

"""The credit audit: judge a definition of segments, and the credit made with it, without training.

The metrics are functions of arrays: of a ``Truth`` (values of every state, in independent splits)
and of segment ids or ``Credit``. Formulas, sources, what a good value is and what fools each:
docs/explain/audit.md.

    truth = Truth(values_BHE, mask_BT, prompts_B, rewards_B)
    share_on_boundaries(truth, segment_ids_BT)
    correlation(truth, Credit(segment_ids_BT, advantages_BT))
"""

from segcredit.credit_audit.metrics.arrays import Credit, Scores, Truth
from segcredit.credit_audit.metrics.credit_quality import (
    baseline_bias,
    correlation,
    credit_noise,
    credit_noise_ratio,
    mass_error,
    mass_kept,
    noise,
    sharpening,
    sign_agreement,
    sign_ceiling,
    slope,
    true_noise_ratio,
)
from segcredit.credit_audit.metrics.estimates import Estimate, Resampling, difference, estimate
from segcredit.credit_audit.metrics.gradient import (
    gradient_metrics,
    gradient_moments,
    metrics_of_moments,
)
from segcredit.credit_audit.metrics.lift import lift
from segcredit.credit_audit.metrics.value_jumps import jump_agreement, oracle_ids, oracle_share
from segcredit.credit_audit.metrics.value_movement import (
    boundary_ratio,
    random_share_on_boundaries,
    random_share_within,
    share_by_class,
    share_on_boundaries,
    share_within,
)
from segcredit.credit_audit.metrics.value_quality import value_consistency, value_metrics

__all__ = [
    "Credit",
    "Estimate",
    "Resampling",
    "Scores",
    "Truth",
    "baseline_bias",
    "boundary_ratio",
    "correlation",
    "credit_noise",
    "credit_noise_ratio",
    "difference",
    "estimate",
    "gradient_metrics",
    "gradient_moments",
    "jump_agreement",
    "lift",
    "mass_error",
    "mass_kept",
    "metrics_of_moments",
    "noise",
    "oracle_ids",
    "oracle_share",
    "random_share_on_boundaries",
    "random_share_within",
    "share_by_class",
    "share_on_boundaries",
    "share_within",
    "sharpening",
    "sign_agreement",
    "sign_ceiling",
    "slope",
    "true_noise_ratio",
    "value_consistency",
    "value_metrics",
]

"""Credit that one segmenter with one estimator gives a truth's completions, scheme by scheme.

Letters: ``B`` completions, ``T`` tokens, ``N`` batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segcredit.credit_audit.metrics import Credit
from segcredit.credit_audit.metrics.arrays import Floats, Ints
from segcredit.segmentation import Anchor

Batches = dict[str, dict[str, list[float]]]
"""By group of parameters, by metric: a number a batch, see ``audit.gradient_moments``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credits:
    """Segments, values and advantages of some completions, by one segmenter and one estimator."""

    segmenter: str
    estimator: str
    causal: bool
    anchor: Anchor
    segment_ids: Ints
    """(B,T) −1 off the mask."""
    state_values: Floats
    """(B,T) the value at the anchor of each token's segment."""
    token_values: Floats | None
    """(B,T) the value before each token, of an estimator that has learned; else None."""
    advantages: Mapping[str, Floats]
    """(B,T) by scheme."""
    gradients: Mapping[str, Batches] = field(default_factory=dict[str, Batches])
    """By scheme; empty where none were asked for."""
    tokens: int
    """Sampled for these values, those that the estimator learned from included."""
    cpu_seconds: float
    """Time of learning, sampling included, and of valuing; not of the gradients."""

    def of(self, advantage: str) -> Credit:
        """Returns the credit of one scheme, as the metrics take it."""
        return Credit(self.segment_ids, self.advantages[advantage], self.state_values, self.anchor)

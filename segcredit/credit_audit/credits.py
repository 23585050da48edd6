"""Credit that one segmenter with one estimator gives a truth's completions, scheme by scheme.

Letters: ``B`` completions, ``T`` tokens, ``N`` batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

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

    @property
    def by_token(self) -> bool:
        """True where every token is a segment of its own."""
        places_T = np.arange(self.segment_ids.shape[1])
        return bool(((self.segment_ids == places_T) | (self.segment_ids < 0)).all())

    def of(self, advantage: str, base: Credits | None = None) -> Credit:
        """Returns the credit of one scheme, as the metrics take it.

        Args:
            advantage: the scheme.
            base: credits by the same estimator with a segment for each token, see ``bases_of``.
        """
        return Credit(
            self.segment_ids,
            self.advantages[advantage],
            self.state_values,
            self.anchor,
            self.token_values,
            None if base is None else base.advantages[advantage],
        )


Bases = Mapping[str, Credits]
"""By estimator, credits with a segment for each token, which credit noise is held against."""


def bases_of(credits: Iterable[Credits]) -> Bases:
    """Returns those of some credits that have a segment for each token, by estimator."""
    return {found.estimator: found for found in reversed([*credits]) if found.by_token}

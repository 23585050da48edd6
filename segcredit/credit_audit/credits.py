"""Credit that one segmenter with one estimator gives a truth's completions, scheme by scheme.

Letters: ``B`` completions, ``T`` tokens, ``N`` batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from segcredit.credit_audit.metrics import Credit
from segcredit.credit_audit.metrics.arrays import Floats, Ints, moved_left
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
        there_BT = self.segment_ids >= 0
        return bool((there_BT.cumsum(1) - 1 == self.segment_ids)[there_BT].all())

    @property
    def sampled_ids(self) -> Ints:
        """(B,T) segment ids of the sampled tokens alone, as metrics take them, see ``of``."""
        return moved_left(self.segment_ids, self.segment_ids >= 0, -1)

    def of(self, advantage: str, base: Credits | None = None) -> Credit:
        """Returns the credit of one scheme, as the metrics take it: of sampled tokens alone.

        Where observations are between them, the tokens of a row are moved to its left.

        Args:
            advantage: the scheme.
            base: credits by the same estimator with a segment for each token, see ``bases_of``.
        """
        there_BT = self.segment_ids >= 0

        def sampled(x_BT: Floats | None) -> Floats | None:
            return None if x_BT is None else moved_left(x_BT, there_BT, 0.0)

        return Credit(
            self.sampled_ids,
            moved_left(self.advantages[advantage], there_BT, 0.0),
            sampled(self.state_values),
            self.anchor,
            sampled(self.token_values),
            sampled(None if base is None else base.advantages[advantage]),
        )


Bases = Mapping[str, Credits]
"""By estimator, credits with a segment for each token, which credit noise is held against."""


def bases_of(credits: Iterable[Credits]) -> Bases:
    """Returns those of some credits that have a segment for each token, by estimator."""
    return {found.estimator: found for found in reversed([*credits]) if found.by_token}

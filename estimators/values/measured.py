"""Values that somebody has measured, read from the rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from segcredit import Anchor, Reading, RolloutBatch, Segmentation, Simulator, ValueEstimator


@dataclass(frozen=True, slots=True)
class Measured(ValueEstimator):
    """V(s_m) = ``rollouts.token_values`` at the segment's anchor.

    Nothing is estimated: whoever made the rollouts knew the values, by Monte-Carlo continuations
    or by enumeration. The control of every other estimator: what a definition of segments could
    have with values as good as these.

    Assumption: the values are of the policy that sampled. Degenerate case: constant values are no
    baseline but a constant. Cost: none here.

    Args:
        anchor: the state that a segment's value is of, see ``Segmentation.anchors``.

    Raises:
        ValueError: from ``estimate``, rollouts without ``token_values``.

    Source:
        A control of ours.
    """

    anchor: Anchor = "start"

    @property
    def reads(self) -> frozenset[Reading]:
        """The values that somebody measured."""
        return frozenset({"token_values"})

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the measured value at each anchor."""
        if rollouts.token_values is None:
            raise ValueError(
                "measured reads rollouts.token_values, but these rollouts have none. An audit sets"
                " them from the continuations that do not judge; a training loop measures no"
                " values: choose an estimator that makes its own, such as 'monte_carlo'."
            )
        anchors_BS = segmentation.anchors(self.anchor)
        values_BT = rollouts.token_values.to(rollouts.token_rewards.dtype)
        return values_BT.gather(1, anchors_BS).masked_fill(~segmentation.mask, 0)

"""Segments that hold equally many of a completion's least probable tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Le

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading, top_fraction


@dataclass(frozen=True, slots=True)
class Probability(Segmenter):
    """Boundaries at low-probability tokens, so that a segment holds n of them.

    The low-probability tokens of a row are the max(ceil(fraction m), 1) of its m action tokens
    with the lowest log-probs, of equals the earlier; or, where ``below`` is given, those with
    exp(log-prob) < below. With fork ``ends`` the n-th, 2n-th, ... of them end a segment, with
    ``starts`` the (n+1)-th, (2n+1)-th, ... begin one: either way every segment but the last holds
    n, and the last at most n.

    Causal with ``below`` and fork ``ends`` alone: a row's share depends on later tokens, and
    whether a token of low probability starts a segment depends on which token it is.

    Assumption: an improbable token is a decision. Degenerate case: equal log-probs select the
    first tokens of the row; with ``below``, a row without low-probability tokens is one segment.
    Cost: one selection a row, no forward pass.

    Args:
        fraction: share of the action tokens that are of low probability, in (0,1]. At 0.3 and one
            token a segment it cuts as often as ``entropy`` does by default.
        below: probability under the sampling policy, in (0,1]; None = by ``fraction``, which is
            ignored otherwise.
        tokens_per_segment: n.
        fork: every n-th low-probability token ``ends`` its segment, or the one after it
            ``starts`` the next.

    Source:
        The "prob" baseline of SAPO, arXiv 2605.01327, table 3, of which neither the rule nor code
        is published: this is our reading, the twin of its entropy rule with −log-prob for the
        entropy, and not a reproduction. ``cutpoint`` is SPO's rule (arXiv 2505.23564): a fixed
        probability, and the first low-probability token is a cutpoint too. The two agree with
        ``below`` at n = 1 and fork ``ends``, and at any n with fork ``starts`` where ``cutpoint``
        has ``first="join"``.
    """

    fraction: float = 0.3
    below: float | None = None
    tokens_per_segment: Annotated[int, Le(10**9)] = 1
    fork: Literal["ends", "starts"] = "ends"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"fraction is {self.fraction}; expected a share above 0 and at most 1, such as 0.3"
                " for 30 %."
            )
        if self.below is not None and not 0 < self.below <= 1:
            raise ValueError(
                f"below is {self.below}; expected a probability above 0 and at most 1, such as 0.9,"
                " or None to take a share of each completion."
            )
        if self.tokens_per_segment < 1:
            raise ValueError(
                f"tokens_per_segment is {self.tokens_per_segment}; expected at least 1, such as 5."
            )
        if self.fork not in ("ends", "starts"):
            raise ValueError(
                f"fork is {self.fork!r}; expected 'ends' or 'starts', for example fork='ends'."
            )

    @property
    def causal(self) -> bool:
        """A fixed probability, and a boundary behind the token that it is asked of."""
        return self.below is not None and self.fork == "ends"

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Log-probs alone."""
        return frozenset({"logprobs"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts at every n-th low-probability token."""
        mask_BT = rollouts.action_mask
        if self.below is None:
            low_BT = top_fraction(-rollouts.logprobs, mask_BT, self.fraction)
        else:
            low_BT = mask_BT & (rollouts.logprobs.exp() < self.below)
        rank_BT = low_BT.cumsum(1)
        if self.fork == "ends":
            return Segmentation.from_ends(
                low_BT & (rank_BT % self.tokens_per_segment == 0), mask_BT
            )
        opens_BT = low_BT & (rank_BT > 1) & ((rank_BT - 1) % self.tokens_per_segment == 0)
        return Segmentation.from_starts(opens_BT, mask_BT)

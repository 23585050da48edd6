"""Segments between every n-th of the tokens that the policy was not sure of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Le

from segcredit import RolloutBatch, Segmentation, Segmenter, SegmenterReading
from segcredit.errors import require_one_of


@dataclass(frozen=True, slots=True)
class Cutpoint(Segmenter):
    """Boundaries at low-probability tokens: a completion's first one and every n-th after it.

    A token is of low probability where exp(log-prob) < below. Of a row's low-probability action
    tokens the ranks 1, 1 + every, 1 + 2 every, ... are cutpoints; tokens in holes are not counted.

    Causal with fork ``ends``: whether a boundary follows token t depends on the tokens up to t.
    Not with ``starts``: whether a boundary precedes token t depends on which token t is.

    Assumption: an improbable token is a decision. Degenerate case: a row without low-probability
    tokens is one segment. Cost: elementwise, no forward pass.

    Args:
        below: probability under the sampling policy, in (0,1]; the paper's is 0.9.
        every: low-probability tokens from one cutpoint to the next; the paper's is 5.
        fork: a cutpoint ``starts`` its segment (SPO: the state before it is valued) or ``ends`` it.
        first: what the tokens before the first cutpoint are: a ``segment`` of their own, valued at
            the prompt, or part of the first cutpoint's, which they ``join``. With fork ``ends``
            they are part of it in any case.

    Source:
        SPO-chain, Guo et al. 2025, arXiv 2505.23564. The released code counts cutpoints one token
        earlier (its cut c is the state after token c, where a segment begins at c + 1) and gives
        the tokens before the first cutpoint no credit; here they are credited as any segment is.
    """

    below: float = 0.9
    every: Annotated[int, Le(10**9)] = 5
    fork: Literal["starts", "ends"] = "starts"
    first: Literal["segment", "join"] = "segment"

    def __post_init__(self) -> None:
        if not 0 < self.below <= 1:
            raise ValueError(
                f"below is {self.below}; expected a probability above 0 and at most 1, such as 0.9."
            )
        if self.every < 1:
            raise ValueError(f"every is {self.every}; expected at least 1, such as 5.")
        require_one_of("fork", self.fork, ("starts", "ends"))
        require_one_of("first", self.first, ("segment", "join"))

    @property
    def causal(self) -> bool:
        """A segment that starts with a cutpoint begins where the token itself says so."""
        return self.fork == "ends"

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Log-probs alone."""
        return frozenset({"logprobs"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts at the first low-probability token of each row and at every n-th after it."""
        mask_BT = rollouts.action_mask
        low_BT = mask_BT & (rollouts.logprobs.exp() < self.below)
        place_BT = low_BT.cumsum(1) - 1
        cuts_BT = low_BT & (place_BT % self.every == 0)
        if self.fork == "ends":
            return Segmentation.from_ends(cuts_BT, mask_BT)
        if self.first == "join":
            cuts_BT = cuts_BT & (place_BT > 0)
        return Segmentation.from_starts(cuts_BT, mask_BT)

"""A truth: completions of a frozen policy and the value of each of their states."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from segcredit.protocols import Prompt
from segcredit.types import RolloutBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValuedCompletions:
    """Completions of a frozen policy, with the value of each of their states.

    Letters as in ``segcredit.credit_audit.truth.measure``.
    """

    rollouts: RolloutBatch
    """The completions, whole: whatever a plug-in reads, without the policy."""
    prompts: list[Prompt]
    prompt_numbers: Int[Tensor, "B"]
    """Places in ``prompts``, of each completion."""
    values: Float[Tensor, "B H E"]
    """float64, in reward units, H independent splits; NaN beyond a completion's end. What was
    earned before a state is part of its value, see ``earned``."""
    errors: Float[Tensor, "B H E"]
    """Standard errors of one split's values; 0 where the truth is exact."""
    jump_errors: Float[Tensor, "B H T"]
    """Standard errors of one split's V(t+1) - V(t)."""
    counts: Int[Tensor, "B H T"]
    """Continuations that left at each token."""
    tokens: int
    """Tokens sampled for the values; 0 where nothing was."""
    logit_gradients: Float[Tensor, "B T"] | None = None
    """Squared norms of the log-probs' gradients by the logits; None where they are not known."""

    @property
    def earned(self) -> Float[Tensor, "B T"]:
        """Rewards of the turns before each token, float64; 0 in a completion of one turn."""
        rewards_BT = self.rollouts.token_rewards.double()
        return rewards_BT.cumsum(1) - rewards_BT

"""How an importance ratio is kept from moving the policy too far: one pure function a bound.

Each takes ratios or log-ratios and advantages, one a token, and returns losses, one a token,
with where it took a token's gradient away. Shapes: ``B`` completions, ``T`` completion tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segcredit.errors import ShapeError


def clip(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    low: float,
    high: float,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """PPO's pessimistic loss: the larger of −A ρ and −A times ρ held within [low, high].

    Source:
        PPO, Schulman et al. 2017, arXiv 1707.06347, eq. 7.
    """
    free_BT = -advantages * ratio
    held_BT = -advantages * ratio.clamp(low, high)
    return torch.maximum(free_BT, held_BT), held_BT > free_BT


def dual_clip(
    loss: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], ceiling: float
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """A second bound where A < 0, min(loss, −A ceiling), for actions likely by now but bad.

    Source:
        Ye et al. 2019, arXiv 1912.09729, eq. 5.
    """
    most_BT = -advantages * ceiling
    held_BT = (advantages < 0) & (most_BT < loss)
    return torch.where(held_BT, most_BT, loss), held_BT


def log_clip(
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    low: float,
    high: float,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Token log-ratios before any mean: sgn(A) min(sgn(A) x, sgn(A) clip(x, −low, high)).

    Source:
        GMPO, Zhao et al. 2025, arXiv 2507.20673.
    """
    sign_BT = advantages.sign()
    held_BT = log_ratio.clamp(-low, high)
    bounded_BT = sign_BT * torch.minimum(sign_BT * log_ratio, sign_BT * held_BT)
    return bounded_BT, sign_BT * held_BT < sign_BT * log_ratio


def capped_weight(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    low: float,
    high: float,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The ratio as a weight, −sg[clip(ρ, low, high)] A log π: every token keeps its gradient.

    The second result is where the weight was capped.

    Source:
        CISPO, MiniMax 2025, arXiv 2506.13585.
    """
    weight_BT = ratio.detach().clamp(low, high)
    return -weight_BT * advantages * logprobs, weight_BT != ratio.detach()


def soft_gate(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    positive: float,
    negative: float,
) -> Float[Tensor, "B T"]:
    """A gradient that fades with the distance of ρ from 1, −A σ(τ (ρ − 1)) 4/τ, and never stops.

    τ is ``positive`` where A > 0 and ``negative`` elsewhere; at ρ = 1 the gradient is −A.

    Raises:
        ShapeError: a τ is not above 0.

    Source:
        Soft Adaptive Policy Optimization, Gao et al. 2025, arXiv 2511.20347.
    """
    if not min(positive, negative) > 0:
        raise ShapeError(
            f"gate_positive is {positive} and gate_negative is {negative}; expected both above 0,"
            " such as 1.0 and 1.05: the loss is divided by them."
        )
    # Of the ratio's own type from the start: 1.05 in float32 is another number in float64.
    steepness_BT = torch.where(
        advantages > 0, ratio.new_tensor(positive), ratio.new_tensor(negative)
    )
    return -advantages * torch.sigmoid(steepness_BT * (ratio - 1)) * 4 / steepness_BT

"""Which segmentations leave the policy gradient unbiased, by exact enumeration.

Every completion of a toy policy over three symbols and four tokens is weighed by its probability,
with exact values as the baseline, so that the expected surrogate gradient and the gradient of the
expected reward are both sums without chance.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segcredit.credit import advantages, lambda_returns, segment_values
from segcredit.objective import surrogate_loss
from segcredit.segmentation import Segmentation, top_fraction
from segcredit.testing import ToyPolicy, ToySimulator
from segcredit.types import RolloutBatch

NEWLINE = 2  # the id of "\n" among the toy's symbols


def simulator() -> ToySimulator:
    """A policy in float64 whose next-token distributions are far from uniform."""
    policy = ToyPolicy(length=4, prompts=1, hidden_size=6, seed=3).double()
    with torch.no_grad():
        policy.output.weight.mul_(3)
    return ToySimulator(policy)


def whole(rollouts: RolloutBatch) -> Segmentation:
    mask = rollouts.action_mask
    return Segmentation.from_starts(torch.zeros_like(mask), mask)


def per_token(rollouts: RolloutBatch) -> Segmentation:
    return Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)


def threshold_ends(rollouts: RolloutBatch) -> Segmentation:
    level = rollouts.entropies.median()
    return Segmentation.from_ends(rollouts.entropies > level, rollouts.action_mask)


def marker_ends(rollouts: RolloutBatch) -> Segmentation:
    return Segmentation.from_ends(rollouts.completion_ids == NEWLINE, rollouts.action_mask)


def top_k(rollouts: RolloutBatch) -> Segmentation:
    mask = rollouts.action_mask
    return Segmentation.from_ends(top_fraction(rollouts.entropies, mask, 0.3), mask)


def marker_starts(rollouts: RolloutBatch) -> Segmentation:
    return Segmentation.from_starts(rollouts.completion_ids == NEWLINE, rollouts.action_mask)


def flat_gradient(loss: Tensor, policy: ToyPolicy) -> Tensor:
    parameters = list(policy.parameters())
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def relative_error(cut: object, ratio: str, lam: float = 1.0) -> float:
    """Distance of the expected surrogate gradient from the gradient of the expected reward."""
    source = simulator()
    everything = source.enumerate()
    segmentation = cut(everything)
    values_BS = source.values(everything).gather(1, segmentation.anchors())
    values = segment_values(everything, segmentation, values_BS)
    credit = advantages(segmentation, values, lambda_returns(values, lam=lam) - values.values)
    shares = everything.logprobs.sum(1).exp()
    logprobs = source.policy(everything).logprobs
    # The advantage times the completion's probability: one loss is the expectation.
    loss, _ = surrogate_loss(
        logprobs,
        everything.logprobs,
        credit.per_token * shares[:, None],
        everything.action_mask,
        segmentation,
        ratio=ratio,
        clip_low=0.2,
        clip_high=0.2,
        aggregate="sequence_mean_token_sum",
        denominator=1.0,
    )
    found = flat_gradient(-loss, source.policy)
    exact = source.policy(everything).logprobs.sum(1).exp() @ everything.rewards
    want = flat_gradient(exact, source.policy)
    return float((found - want).norm() / want.norm())


@pytest.mark.parametrize("ratio", ["none", "token", "segment"])
@pytest.mark.parametrize("cut", [whole, per_token, threshold_ends, marker_ends])
def test_causal_segments_leave_the_gradient_unbiased(cut: object, ratio: str) -> None:
    assert relative_error(cut, ratio) < 1e-10


@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("cut", [per_token, threshold_ends, marker_ends])
def test_exact_values_are_unbiased_with_any_lambda(cut: object, lam: float) -> None:
    assert relative_error(cut, "token", lam) < 1e-10


@pytest.mark.parametrize("cut", [top_k, marker_starts])
def test_segments_that_look_ahead_bias_the_gradient(cut: object) -> None:
    assert relative_error(cut, "token") > 1e-3


def test_the_cuts_differ() -> None:
    """The cases above are not all the same segmentation."""
    everything = simulator().enumerate()
    seen = [cut(everything).segment_ids for cut in (whole, per_token, threshold_ends, marker_ends)]
    seen += [top_k(everything).segment_ids, marker_starts(everything).segment_ids]
    for place, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:place])

"""Steps 2 and 3 of the loop: segment, value, credit, over the rollouts of step 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit.config import LossConfig
from segcredit.errors import blame, require_type
from segcredit.objective import loss_masks, returns
from segcredit.protocols import Prompt, Segmenter
from segcredit.rng import stream
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run
from segcredit.training.distributed.all_gather import everyones, own_rows
from segcredit.training.rollouts.sampling import Sampled, sample
from segcredit.training.rollouts.simulator import PolicySimulator, SharedSimulator
from segcredit.types import Advantages, RolloutBatch, SamplingParams, SegmentValues, require_shape


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """One step's rollouts and the credit drawn from them: this process's rows."""

    rollouts: RolloutBatch
    simulator: PolicySimulator
    """Knows the prompts of all processes."""
    segmentation: Segmentation
    ratio_segmentation: Segmentation
    values: SegmentValues
    targets: Tensor
    """(B,S) regression targets of the values."""
    advantages: Advantages
    token_weights: Tensor
    """(B,T) how far the loss takes each token."""
    count_weights: Tensor
    """(B,T) how far its denominators count each token."""
    sampled: Sampled
    whole: SegmentValues
    """The values of all processes, process 0's first."""


def collect(run: Run, step: int) -> TrainingBatch:
    """Sample a batch under the current policy and assign credit to its segments.

    Raises:
        TrainingError: every completion is empty (``segcredit.training.rollouts.sampling``).
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    return assign(run, sample(run, step), step)


def assign(run: Run, sampled: Sampled, step: int) -> TrainingBatch:
    """Segment, value and credit rollouts that are there already.

    Args:
        run: whose plug-ins do it.
        sampled: the rollouts, and the prompts that an estimator may ask for again.
        step: names the random streams.

    Raises:
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    with run.whole():
        return _assigned(run, sampled, step)


def _assigned(run: Run, sampled: Sampled, step: int) -> TrainingBatch:
    rollouts, config, processes = sampled.rollouts, run.config, run.processes
    simulator = _simulator(run, sampled, step)
    weights_BT, counts_BT = _loss_tokens(run, rollouts)
    estimator = run.method.estimator
    with torch.no_grad(), blame("estimator", config.estimator["name"], estimator):
        keys = list(simulator.prompts)
        estimator.meet(run.state.module, keys, SharedSimulator(simulator, processes))
    with processes.error_barrier():
        segmentation, ratio_segmentation = _segmentations(run, rollouts)
        values = _values(run, rollouts, segmentation, simulator, weights_BT)
    whole, size = everyones(processes, values), values.mask.shape
    with processes.error_barrier():
        with torch.no_grad(), blame("estimator", config.estimator["name"], estimator):
            every_target_BS = estimator.targets(whole)
            require_shape("targets", every_target_BS, whole.mask.shape)
        with blame("advantage", config.advantage["name"], run.method.advantage):
            every_BS = run.method.advantage(whole)
            require_shape("the advantage scheme", every_BS, whole.mask.shape)
    own_BS = own_rows(processes, every_BS, len(rollouts))[:, : size[1]]
    targets_BS = own_rows(processes, every_target_BS, len(rollouts))[:, : size[1]]
    advantages = returns.advantages(segmentation, values, own_BS)
    return TrainingBatch(
        rollouts=rollouts,
        simulator=simulator,
        segmentation=segmentation,
        ratio_segmentation=ratio_segmentation,
        values=values,
        targets=targets_BS,
        advantages=advantages,
        token_weights=weights_BT,
        count_weights=counts_BT,
        sampled=sampled,
        whole=whole,
    )


def _simulator(run: Run, sampled: Sampled, step: int) -> PolicySimulator:
    """Draws from this process's stream, for the prompts of all."""
    here: dict[str, Prompt] = {prompt.key: prompt for prompt in sampled.prompts}
    return PolicySimulator(
        policy=run.actor,
        task=run.task,
        prompts={
            key: prompt for share in run.processes.gather(here) for key, prompt in share.items()
        },
        params=SamplingParams(max_new_tokens=run.config.rollouts.max_new_tokens),
        micro_tokens=run.config.train.micro_tokens,
        generator=stream(run.config.seed, run.processes.named("estimator"), step),
    )


def _segmentations(run: Run, rollouts: RolloutBatch) -> tuple[Segmentation, Segmentation]:
    """Of credit, and of the ratio."""
    config = run.config
    segmentation = _segment(run.method.segmenter, config.segmenter["name"], rollouts)
    if run.method.ratio_segmenter is None or config.loss.ratio_segmenter is None:
        return segmentation, segmentation
    name = config.loss.ratio_segmenter["name"]
    return segmentation, _segment(run.method.ratio_segmenter, name, rollouts)


def _values(
    run: Run,
    rollouts: RolloutBatch,
    segmentation: Segmentation,
    simulator: PolicySimulator,
    weights_BT: Tensor,
) -> SegmentValues:
    """Values and rewards of the segments."""
    estimator = run.method.estimator
    with torch.no_grad(), blame("estimator", run.config.estimator["name"], estimator):
        values_BS = estimator.estimate(run.state.module, rollouts, segmentation, simulator)
        require_shape("estimate", values_BS, segmentation.mask.shape)
    return returns.segment_values(
        rollouts,
        segmentation,
        values_BS,
        process_rewards_BS=_process(run, rollouts, segmentation),
        token_weights=weights_BT,
    )


def _loss_tokens(run: Run, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
    """(B,T) how far the loss takes each token, and how far its denominators count it."""
    loss: LossConfig = run.config.loss
    every_BT = rollouts.action_mask.to(rollouts.logprobs.dtype)
    if loss.shared_tokens == "once":
        every_BT = loss_masks.shared_token_weights(rollouts.node_ids, rollouts.action_mask)
    if loss.tokens == "low_probability":
        chosen_BT = loss_masks.low_probability(
            rollouts.logprobs, rollouts.action_mask, loss.probability_below
        )
    elif loss.tokens == "high_entropy":
        own_N = loss_masks.action_entropies(rollouts.entropies, rollouts.action_mask)
        chosen_BT = loss_masks.high_entropy(
            rollouts.entropies,
            rollouts.action_mask,
            loss.entropy_share,
            among=run.processes.joined(own_N),
        )
    else:
        chosen_BT = rollouts.action_mask
    weights_BT = every_BT * chosen_BT
    return weights_BT, every_BT if loss.count == "all" else weights_BT


def _segment(segmenter: Segmenter, name: str, rollouts: RolloutBatch) -> Segmentation:
    with blame("segmenter", name, segmenter):
        segmentation = segmenter.segment(rollouts)
        require_type("segment", segmentation, Segmentation)
        segmentation.require_covers(rollouts.action_mask)
    return segmentation


def _process(run: Run, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor | None:
    if run.method.process_reward is None or run.config.process_reward is None:
        return None
    plugin = run.method.process_reward
    with blame("process reward", run.config.process_reward["name"], plugin):
        rewards_BS = plugin.reward(rollouts, segmentation)
        require_shape("reward", rewards_BS, segmentation.mask.shape)
    return rewards_BS

"""Steps 2 and 3 of the loop: segment, value, credit, over the rollouts of step 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segcredit.config import LossConfig
from segcredit.errors import blame
from segcredit.objective import loss_masks, returns
from segcredit.protocols import Prompt, checked_segments
from segcredit.rng import stream
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run
from segcredit.training.distributed.all_gather import all_rows, own_rows
from segcredit.training.rollouts.sampling import Sampled, sample
from segcredit.training.rollouts.simulator import PolicySimulator, SharedSimulator
from segcredit.types import Advantages, RolloutBatch, SegmentValues, require_values


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
    """Regression targets of the values, (B,S)."""
    advantages: Advantages
    token_weights: Tensor
    """Weights of tokens in the loss, (B,T), in [0,1]."""
    count_weights: Tensor
    """Weights of tokens in the loss's denominators, (B,T), in [0,1]."""
    sampled: Sampled
    """The sampling step that the rollouts are of."""
    whole: SegmentValues
    """The values of all processes, process 0's first."""


def collect(run: Run, step: int) -> TrainingBatch:
    """Samples a batch under the current policy and assigns credit to its segments.

    Raises:
        TrainingError: every completion is empty, or another process failed.
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    return assign(run, sample(run, step), step)


def assign(run: Run, sampled: Sampled, step: int) -> TrainingBatch:
    """Assigns credit to rollouts that are there already: cuts and values their segments first.

    Args:
        run: whose plug-ins do it.
        sampled: the rollouts, and the prompts that an estimator may ask for again.
        step: names the random generators.

    Raises:
        TrainingError: another process failed; gives its sentence.
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    with run.whole():
        return _assigned(run, sampled, step)


def _assigned(run: Run, sampled: Sampled, step: int) -> TrainingBatch:
    rollouts, config, processes = sampled.rollouts, run.config, run.processes
    simulator = _simulator(run, sampled, step)
    weights_BT, counts_BT = _loss_tokens(run, rollouts)
    estimator = run.method.estimator
    # Prompts of all processes: each meets every one, so that the state stays the same on all.
    with torch.no_grad(), blame("estimator", config.estimator["name"], estimator):
        keys = list(simulator.prompts)
        estimator.meet(run.state.module, keys, SharedSimulator(simulator, processes))
    with processes.error_barrier():
        segmentation, ratio_segmentation = _segmentations(run, rollouts)
        values = _values(run, rollouts, segmentation, simulator, weights_BT)
    # Schemes read statistics of the whole batch, such as a standard deviation: every process
    # computes the advantages of all rows, and keeps its own.
    whole, size = all_rows(processes, values), values.mask.shape
    with processes.error_barrier():
        with torch.no_grad(), blame("estimator", config.estimator["name"], estimator):
            every_target_BS = estimator.targets(whole)
            known = (whole.values, whole.rewards)
            require_values("targets", every_target_BS, whole.mask, *known)
        with blame("advantage", config.advantage["name"], run.method.advantage):
            every_BS = run.method.advantage(whole)
            require_values("the advantage scheme", every_BS, whole.mask, *known)
    # The widest process decides the columns of all rows; beyond its own there are no segments.
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
    """Builds a simulator for the prompts of all processes, with this process's own generator."""
    here: dict[str, Prompt] = {prompt.key: prompt for prompt in sampled.prompts}
    return PolicySimulator(
        policy=run.actor,
        task=run.task,
        prompts={
            key: prompt for share in run.processes.gather(here) for key, prompt in share.items()
        },
        params=run.config.rollouts.sampling(),
        micro_tokens=run.config.train.micro_tokens,
        generator=stream(run.config.seed, run.processes.named("estimator"), step),
    )


def _segmentations(run: Run, rollouts: RolloutBatch) -> tuple[Segmentation, Segmentation]:
    """Cuts the rollouts into segments of credit, and into those of the importance ratio."""
    config = run.config
    segmentation = checked_segments(run.method.segmenter, config.segmenter["name"], rollouts)
    if run.method.ratio_segmenter is None or config.loss.ratio_segmenter is None:
        return segmentation, segmentation
    name = config.loss.ratio_segmenter["name"]
    return segmentation, checked_segments(run.method.ratio_segmenter, name, rollouts)


def _values(
    run: Run,
    rollouts: RolloutBatch,
    segmentation: Segmentation,
    simulator: PolicySimulator,
    weights_BT: Tensor,
) -> SegmentValues:
    """Estimates the values of segments, and joins them with their rewards.

    Raises:
        PluginError: the estimator or the process reward raised, or returned what does not fit.
    """
    estimator = run.method.estimator
    with torch.no_grad(), blame("estimator", run.config.estimator["name"], estimator):
        values_BS = estimator.estimate(run.state.module, rollouts, segmentation, simulator)
        require_values("estimate", values_BS, segmentation.mask, rollouts.rewards)
    return returns.segment_values(
        rollouts,
        segmentation,
        values_BS,
        process_rewards_BS=_process(run, rollouts, segmentation),
        token_weights=weights_BT,
    )


def _loss_tokens(run: Run, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
    """Computes (B,T) weights of tokens in the loss, and those in its denominators."""
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
            among=run.processes.all_gather(own_N),
        )
    else:
        chosen_BT = rollouts.action_mask
    weights_BT = every_BT * chosen_BT
    return weights_BT, every_BT if loss.count == "all" else weights_BT


def _process(run: Run, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor | None:
    """Computes (B,S) process rewards; None where the method has none."""
    if run.method.process_reward is None or run.config.process_reward is None:
        return None
    plugin = run.method.process_reward
    with blame("process reward", run.config.process_reward["name"], plugin):
        rewards_BS = plugin.reward(rollouts, segmentation)
        require_values("reward", rewards_BS, segmentation.mask)
    return rewards_BS

"""The frozen policy with its judged completions: on it each segmenter and estimator is worked out.

Letters: ``B`` completions, ``T`` tokens, ``S`` segments, ``N`` batches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from segcredit.credit_audit.credits import Batches, Credits
from segcredit.credit_audit.metrics import gradient_moments
from segcredit.credit_audit.metrics.arrays import Floats
from segcredit.credit_audit.policy_gradients import Parameters, parameter_groups, policy_gradient
from segcredit.credit_audit.settings import Unit
from segcredit.credit_audit.truth import ValuedCompletions
from segcredit.errors import blame
from segcredit.objective import returns
from segcredit.protocols import AdvantageScheme, Policy, readable
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run, with_credit
from segcredit.training.credit_assignment import TrainingBatch, assign
from segcredit.training.pretraining import pretrain
from segcredit.training.rollouts.completions import with_extras
from segcredit.training.rollouts.sampling import Sampled, sample
from segcredit.training.update import improve
from segcredit.types import require_values


@dataclass(frozen=True, slots=True, eq=False)
class FrozenPolicy:
    """The policy under audit, with all that the units of an audit have in common."""

    run: Run
    """The policy and the task."""
    judged: Sampled
    """The completions that are judged, see ``frozen_rollouts``."""
    practice: Practice
    """Batches that an estimator with a state learns from."""
    schemes: Mapping[str, AdvantageScheme]
    batches: Sequence[Tensor]
    """Row numbers of the completions whose gradients are taken together."""
    reference: Parameters | None
    """(2,D) the reference gradient; None where no gradients are asked for."""


class Practice:
    """The batches that estimators learn from: of the frozen policy, sampled once for all of them.

    Args:
        run: whose policy samples, on training prompts.
        steps: how many batches.
    """

    def __init__(self, run: Run, steps: int) -> None:
        self._run = run
        self._steps = steps
        self._batches: list[Sampled] = []
        self.cpu_seconds = 0.0
        """Spent on sampling."""

    def batches(self) -> list[Sampled]:
        """Returns all batches, numbered −1, −2, ... as in a warm-up; they are sampled once."""
        started = time.process_time()
        while len(self._batches) < self._steps:
            self._batches.append(sample(self._run, -len(self._batches) - 1))
        self.cpu_seconds += time.process_time() - started
        return self._batches


def frozen_rollouts(truth: ValuedCompletions, split: int, policy: Policy) -> Sampled:
    """Returns a truth's completions, with one split of its values for plug-ins that read values.

    Values of what is still to come, as plug-ins know them. On the policy's device, and with what
    the policy reads of the prompts besides their ids.
    """
    device = next(cast(nn.Module, policy).parameters()).device
    values_BT = (truth.values[:, split, :-1] - truth.earned).nan_to_num(0.0)
    rollouts = truth.rollouts.replace(token_values=values_BT.to(truth.rollouts.rewards.dtype))
    rollouts = with_extras(rollouts.to(device), policy, truth.prompts)
    prompts = tuple(truth.prompts[number] for number in truth.prompt_numbers.tolist())
    return Sampled(rollouts, prompts, tokens=0, rounds=1)


def batches_of(truth: ValuedCompletions, count: int) -> list[Tensor]:
    """Deals whole prompts into batches: row numbers, of as many batches as asked for at most."""
    pieces = torch.arange(len(truth.prompts)).tensor_split(min(count, len(truth.prompts)))
    return [torch.isin(truth.prompt_numbers, piece).nonzero()[:, 0] for piece in pieces]


def credits_of(frozen: FrozenPolicy, unit: Unit) -> Credits:
    """Lets an estimator learn on the frozen policy, then values and credits the judged completions.

    Raises:
        PluginError: a plug-in raised, or returned what does not fit; names it.
    """
    # Of a sum of credits, that of the top-level keys is judged.
    alone = {"credit": (), "credit_scheme": None}
    run = with_credit(frozen.run, unit.config.model_copy(update=alone))
    learns = bool(run.state.module.state_dict())
    # What is made once for several estimators counts for each of them in full: pretrained states,
    # and the batches that the others learn from.
    pretrained = pretrain(run)
    started, shared, learned_on = time.process_time(), 0.0, 0
    if pretrained is not None:
        shared, learned_on = pretrained.cpu_seconds, pretrained.tokens
    elif learns:
        shared = frozen.practice.cpu_seconds
        learned_on = _learn(run, frozen.practice)
    found = assign(run, frozen.judged, 0)
    spent = time.process_time() - started + shared
    advantages = {name: _spread(found, scheme, name) for name, scheme in frozen.schemes.items()}
    return Credits(
        segmenter=unit.segmenter,
        estimator=unit.estimator,
        causal=run.method.segmenter.causal,
        anchor=run.method.estimator.anchor,
        segment_ids=found.segmentation.segment_ids.cpu().numpy(),
        state_values=_numbers(found.segmentation.spread(found.values.values)),
        token_values=_numbers(_token_values(run, found)) if learns else None,
        advantages={name: _numbers(given_BT) for name, given_BT in advantages.items()},
        gradients=_gradients(frozen, advantages),
        tokens=learned_on + found.simulator.tokens,
        cpu_seconds=spent,
    )


def _learn(run: Run, practice: Practice) -> int:
    """Trains the estimator's state; returns the tokens that it took."""
    tokens = 0
    for number, sampled in enumerate(practice.batches(), 1):
        batch = assign(run, sampled, -number)
        improve(run, batch, -number, policy=False)
        tokens += sampled.tokens + batch.simulator.tokens
    return tokens


def _spread(found: TrainingBatch, scheme: AdvantageScheme, name: str) -> Tensor:
    """Returns (B,T) the advantages of one scheme."""
    with blame("advantage", name, scheme):
        per_segment = scheme(found.values)
        known = (found.values.values, found.values.rewards)
        require_values("the advantage scheme", per_segment, found.values.mask, *known)
        return returns.advantages(found.segmentation, found.values, per_segment).per_token


def _token_values(run: Run, found: TrainingBatch) -> Tensor:
    """Returns (B,T) the value of every state, by the same estimator over segments of one token."""
    if found.states is not found.segmentation:
        return found.states.spread(found.state_values.values)
    mask_BT = found.rollouts.action_mask
    every, estimator = Segmentation.from_starts(mask_BT, mask_BT), run.method.estimator
    read = readable(found.rollouts, estimator.reads)
    with torch.no_grad(), blame("estimator", run.config.estimator["name"], estimator):
        values_BS = estimator.estimate(run.state.module, read, every, found.simulator)
        require_values("estimate", values_BS, every.mask, found.rollouts.rewards)
    return every.spread(values_BS)


def _gradients(frozen: FrozenPolicy, advantages: Mapping[str, Tensor]) -> dict[str, Batches]:
    """Returns by scheme the moments of its gradients beside the reference."""
    if frozen.reference is None:
        return {}
    groups = parameter_groups(cast(nn.Module, frozen.run.actor))
    moments: dict[str, Batches] = {}
    for name, given_BT in advantages.items():
        gradients_ND = policy_gradient(frozen.run, frozen.judged.rollouts, given_BT, frozen.batches)
        by_group = gradient_moments(gradients_ND, frozen.reference, groups)
        moments[name] = {
            group: {metric: values.tolist() for metric, values in by_figure.items()}
            for group, by_figure in by_group.items()
        }
    return moments


def _numbers(x: Tensor) -> Floats:
    return x.detach().double().cpu().numpy()

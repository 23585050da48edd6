"""The loss of supervised fine-tuning on demonstrations, for any policy: its own scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from segcredit.episodes import Demonstration, blank_rollouts, with_opening
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.types import RolloutBatch


def imitation_losses(
    policy: CausalPolicy, shown: Sequence[Demonstration], batch: int
) -> Iterator[Callable[[], Tensor]]:
    """Yields a function for each batch in turn that computes its loss, with gradients.

    The loss is the mean cross-entropy, in nats, of the tokens of all turns, and of end tokens where
    no stop string ends a turn.

    Args:
        policy: is trained.
        shown: demonstrations, in order.
        batch: demonstrations of a batch; the last one may be smaller.

    Raises:
        PolicyError: a prompt cannot be encoded; raised as its batch's function is called.
    """
    for first in range(0, len(shown), batch):
        yield partial(_loss, policy, shown[first : first + batch])


def _loss(policy: CausalPolicy, batch: Sequence[Demonstration]) -> Tensor:
    rollouts = _as_sampled(policy, batch)
    return -policy(rollouts).logprobs[rollouts.action_mask].mean()


def _as_sampled(policy: CausalPolicy, batch: Sequence[Demonstration]) -> RolloutBatch:
    """Builds the batch that sampling the demonstrations would give, for scoring alone."""
    prompts = [with_opening(shown.prompt, shown.opening) for shown in batch]
    prompt_ids, prompt_mask, extras = policy.encode_prompts(prompts)
    end, device = policy.end_ids[0], prompt_ids.device
    said = [text for shown in batch for text, _, _ in shown.turns]
    encoded: Any = policy.tokenizer(said, add_special_tokens=False)["input_ids"]
    own = iter([list[int](ids) for ids in encoded])
    rows: list[Tensor] = []
    masks: list[Tensor] = []
    for shown in batch:
        ids: list[int] = []
        mask: list[bool] = []
        for _, stopped, observation in shown.turns:
            turn = [*next(own), *([] if stopped else [end])]
            read = policy.encode_observations([shown.prompt], [observation], turn[-1:])[0]
            ids += [*turn, *read] if observation else turn
            mask += [*[True] * len(turn), *[False] * (len(read) if observation else 0)]
        rows.append(torch.tensor(ids))
        masks.append(torch.tensor(mask))
    return blank_rollouts(
        prompts,
        prompt_ids,
        prompt_mask,
        pad_sequence(rows, batch_first=True, padding_value=policy.pad_id).to(device),
        pad_sequence(masks, batch_first=True).to(device),
        extras,
    )

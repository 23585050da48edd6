"""The loss of supervised fine-tuning on demonstrations, for any policy: its own scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from segcredit.policy.causal_lm import CausalPolicy
from segcredit.protocols import Prompt
from segcredit.types import RolloutBatch

Demonstrations = Sequence[tuple[Prompt, str]]


def imitation_losses(
    policy: CausalPolicy, pairs: Demonstrations, batch: int
) -> Iterator[Callable[[], Tensor]]:
    """Yields a function for each batch in turn that computes its loss, with gradients.

    The loss is the mean cross-entropy, in nats, of the completions' tokens and their end tokens.

    Args:
        policy: is trained.
        pairs: prompts and the completions to imitate, in order.
        batch: pairs of a batch; the last one may be smaller.

    Raises:
        PolicyError: a prompt cannot be encoded; raised as its batch's function is called.
    """
    for first in range(0, len(pairs), batch):
        yield partial(_loss, policy, pairs[first : first + batch])


def _loss(policy: CausalPolicy, pairs: Demonstrations) -> Tensor:
    rollouts = _demonstrated(policy, pairs)
    return -policy(rollouts).logprobs[rollouts.action_mask].mean()


def _demonstrated(policy: CausalPolicy, pairs: Demonstrations) -> RolloutBatch:
    """Builds the batch that sampling the demonstrations would give, for scoring alone.

    Rewards, texts' spans and whatever else scoring does not read are blank.
    """
    prompt_ids, prompt_mask, extras = policy.encode_prompts([prompt for prompt, _ in pairs])
    texts = tuple(text for _, text in pairs)
    ids: list[list[int]] = policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    end, device = policy.end_ids[0], prompt_ids.device
    rows = [torch.tensor([*row, end]) for row in ids]
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=policy.pad_id).to(device)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    mask_BT = torch.arange(ids_BT.shape[1], device=device) < lengths_B[:, None]
    blank_BT = torch.zeros(ids_BT.shape, device=device)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_keys=tuple(prompt.key for prompt, _ in pairs),
        completion_ids=ids_BT,
        action_mask=mask_BT,
        logprobs=blank_BT,
        entropies=blank_BT,
        group=torch.arange(len(pairs), device=device),
        texts=texts,
        token_spans=torch.zeros(*ids_BT.shape, 2, dtype=torch.long, device=device),
        rewards=blank_BT.sum(1),
        token_rewards=blank_BT,
        truncated=torch.zeros(len(pairs), dtype=torch.bool, device=device),
        extras=extras,
    )

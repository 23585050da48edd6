"""verl's batches as segcredit's rollouts, and what credit writes into them for the losses.

Shapes: ``B`` completions of a batch or a micro-batch, ``T`` completion tokens.
"""

# verl is not installed where types are checked: whatever comes from it is Any.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from segcredit.errors import ConfigError
from segcredit.integrations import LossCounts, Run, TrainingBatch
from segcredit.objective.returns import token_rewards
from segcredit.policy.token_spans import place_spans, text_and_spans
from segcredit.segmentation import Segmentation
from segcredit.types import Advantages, RolloutBatch, SegmentValues, TokenScores

Decode = Callable[[list[int]], str]
"""Decodes a row of token ids to text, without special tokens."""

PREFIX = "segcredit_"
"""Begins the names of the fields that credit writes into verl's batch."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeBatch:
    """A batch of verl that advantage functions may read beyond what the registry gives them."""

    tensors: Mapping[str, Tensor]
    """(B,...) by verl's names, padded on the right, prompts on either side."""
    decode: Decode
    assigned: list[tuple[Run, TrainingBatch]]
    """Credit as it was assigned; empty before."""

    def get(self, *names: str) -> Tensor | None:
        """Returns the tensor of the first name that is there."""
        there = set(self.tensors.keys())  # "in" asks a TensorDict for a value
        return next((self.tensors[name] for name in names if name in there), None)


WHOLE: ContextVar[WholeBatch | None] = ContextVar("whole_batch", default=None)


@contextmanager
def whole_batch(tensors: Mapping[str, Tensor], decode: Decode) -> Generator[WholeBatch]:
    """Lets advantage functions inside read a batch of verl, as its trainer 'segcredit' does.

    Args:
        tensors: (B,...) such as ``DataProto.batch``, by verl's names: ids of both parts,
            ``attention_mask``, ``old_log_probs``, and where there are any ``entropys``, ``values``,
            ``ref_log_prob``, ``rollout_log_probs``, ``token_level_scores``.
        decode: of the policy's tokenizer.
    """
    whole = WholeBatch(tensors, decode, [])
    token = WHOLE.set(whole)
    try:
        yield whole
    finally:
        WHOLE.reset(token)


def rollouts_of(
    token_level_rewards: Tensor, mask_BT: Tensor, uids: Any, whole: WholeBatch | None
) -> RolloutBatch:
    """Builds rollouts of what verl gives; what it does not give is NaN, or missing."""
    given = WholeBatch({}, _no_text, []) if whole is None else whole
    blank_BT = torch.zeros_like(mask_BT, dtype=torch.long)
    unread_BT = token_level_rewards.new_full((), torch.nan).expand_as(mask_BT)
    ids_BT = _or(given.get("responses"), blank_BT)
    prompts_BP = _or(given.get("prompts"), blank_BT[:, :1])
    attended = given.get("attention_mask")
    prompt_mask_BP = (
        torch.ones_like(prompts_BP) if attended is None else attended[:, : prompts_BP.shape[1]]
    )
    texts, spans_BT2 = _texts(ids_BT, mask_BT, given.decode)
    scores_BT = _or(given.get("token_level_scores", "rm_scores"), token_level_rewards)
    # verl's reward stands on the last token of all; behind a hole that is none of the policy's.
    outside_B = token_level_rewards.masked_fill(mask_BT, 0).sum(1)
    inside_BT = token_level_rewards.masked_fill(~mask_BT, 0)
    return RolloutBatch(
        prompt_ids=prompts_BP,
        prompt_mask=prompt_mask_BP.bool(),
        prompt_keys=tuple(map(str, uids)),
        completion_ids=ids_BT,
        action_mask=mask_BT,
        logprobs=_or(given.get("old_log_probs"), unread_BT),
        entropies=_or(given.get("entropys", "entropy"), unread_BT),
        group=torch.as_tensor(np.unique(list(map(str, uids)), return_inverse=True)[1]).to(
            mask_BT.device
        ),
        texts=texts,
        token_spans=spans_BT2,
        rewards=scores_BT.sum(1),
        token_rewards=inside_BT + token_rewards(outside_B, mask_BT),
        truncated=torch.zeros_like(mask_BT[:, 0]),
        reference_logprobs=given.get("ref_log_prob"),
        sampler_logprobs=given.get("rollout_log_probs"),
        token_values=given.get("values"),
    )


def _or(found: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if found is None else found


def _no_text(ids: list[int]) -> str:
    return ""


def _texts(ids_BT: Tensor, mask_BT: Tensor, decode: Decode) -> tuple[tuple[str, ...], Tensor]:
    """Decodes the tokens that the policy chose: those of tools are in no text."""
    rows: list[list[int]] = [
        ids[mask].tolist() for ids, mask in zip(ids_BT.cpu(), mask_BT.cpu(), strict=True)
    ]
    texts, spans = text_and_spans(rows, decode)
    return texts, place_spans(spans, mask_BT)


def written_fields(
    run: Run,
    batch: TrainingBatch,
    minibatches: Int[Tensor, "B"],
    value_minibatches: Int[Tensor, "B"],
) -> dict[str, Tensor]:
    """Returns what losses need of credit, as fields of verl's batch.

    Args:
        run: assigned it.
        batch: with credit.
        minibatches: (B,) number of the policy's minibatch that each row is in, over all ranks.
        value_minibatches: (B,) the same of the critic's.

    Returns:
        (B,T) and (B,4) tensors by name. The last holds each row's reward, and the denominators of
        its minibatches, which are sums over all of their rows.
    """
    row_B4 = torch.zeros(len(batch.rollouts), 4)
    row_B4[:, 0] = batch.rollouts.rewards
    for number in minibatches.unique():
        rows = (minibatches == number).nonzero()[:, 0]
        counts = LossCounts.of(run, batch, rows)
        row_B4[rows, 1], row_B4[rows, 2] = counts.tokens.cpu(), counts.imitated.cpu()
    for number in value_minibatches.unique():
        rows = (value_minibatches == number).nonzero()[:, 0]
        row_B4[rows, 3] = LossCounts.of(run, batch, rows).segments.cpu()
    found = {
        "segments": batch.ratio_segmentation.segment_ids,
        "states": batch.states.segment_ids,
        "values": batch.states.spread(batch.state_values.values),
        "weights": batch.token_weights,
        "counts": batch.count_weights,
        "row": row_B4,
    }
    fields = {PREFIX + name: value for name, value in found.items()}
    if batch.corrections is not None:
        fields["rollout_is_weights"] = batch.corrections
    return fields


@dataclass(frozen=True, slots=True, eq=False)
class PolicyRows:
    """Rows of a micro-batch, as ``segcredit.integrations.policy_loss`` reads them."""

    rollouts: RolloutBatch
    advantages: Advantages
    ratio_segmentation: Segmentation
    token_weights: Tensor
    count_weights: Tensor
    corrections: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class ValueRows:
    """Rows of a micro-batch, as ``segcredit.integrations.value_loss`` reads them."""

    rollouts: RolloutBatch
    states: Segmentation
    state_values: SegmentValues
    targets: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """A micro-batch's part of what credit wrote into verl's batch, padded."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, data: Any) -> Carried:
        """Reads the fields of a micro-batch of verl, a ``TensorDict``.

        Raises:
            ConfigError: they are not there.
        """
        there = set(data.keys())
        names = [name for name in there if name.startswith(PREFIX)]
        if not names:
            raise ConfigError(
                "verl's batch holds nothing of segcredit's credit; expected the fields that its"
                " trainer 'segcredit' writes. Set trainer.v1.trainer_mode=segcredit."
            )
        return cls(data.select(*names, *there & {"ref_log_prob"}).to_padded_tensor())

    def token(self, name: str) -> Tensor:
        """Returns the (B,T) field of a name."""
        return self.tensors[PREFIX + name]

    def cut(self, name: str, mask_BT: Tensor) -> Segmentation:
        """Returns the segments of a name: padding is none."""
        return Segmentation(self.token(name).long().masked_fill(~mask_BT, -1))

    @property
    def rewards(self) -> Tensor:
        """(B,) the verifier's rewards."""
        return self.token("row")[:, 0]

    def counts(self) -> LossCounts:
        """Returns the denominators: all rows of a minibatch hold the same."""
        tokens, imitated, segments = self.token("row")[0, 1:]
        return LossCounts(tokens, imitated, segments)


CARRIED: ContextVar[Carried | None] = ContextVar("carried", default=None)


def scored_rollouts(
    mask_BT: Bool[Tensor, "B T"], logprobs_BT: Tensor, carried: Carried | None
) -> RolloutBatch:
    """Builds rollouts of what a loss reads: log-probs, mask, rewards and the reference."""
    blank_BT = torch.zeros_like(mask_BT, dtype=torch.long)
    zeros_BT = torch.zeros_like(logprobs_BT)
    rewards_B = zeros_BT[:, 0] if carried is None else carried.rewards
    return RolloutBatch(
        prompt_ids=blank_BT[:, :1],
        prompt_mask=torch.ones_like(mask_BT[:, :1]),
        prompt_keys=("",) * len(mask_BT),
        completion_ids=blank_BT,
        action_mask=mask_BT,
        logprobs=logprobs_BT,
        entropies=zeros_BT,
        group=blank_BT[:, 0],
        texts=("",) * len(mask_BT),
        token_spans=torch.zeros_like(blank_BT)[..., None].expand(-1, -1, 2),
        rewards=rewards_B,
        token_rewards=zeros_BT,
        truncated=torch.zeros_like(mask_BT[:, 0]),
        reference_logprobs=None if carried is None else carried.tensors.get("ref_log_prob"),
    )


def per_token(advantages_BT: Tensor) -> Advantages:
    """Wraps verl's advantages; losses read them token by token."""
    return Advantages(per_segment=advantages_BT[:, :0], per_token=advantages_BT)


def scores_of(logprobs_BT: Tensor) -> TokenScores:
    """Wraps log-probs; entropies and hidden states are read by no loss here, and NaN."""
    unread_BT = logprobs_BT.detach().new_full((), torch.nan).expand_as(logprobs_BT)
    return TokenScores(logprobs=logprobs_BT, entropies=unread_BT, hidden=unread_BT[..., None])

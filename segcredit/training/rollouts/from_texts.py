"""Rollouts of given texts, as if a policy had written them: with its log-probs and entropies.

Letters as in ``segcredit.types``; ``L`` tokens that the policy makes of a text, those that it puts
around it included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segcredit.episodes import Completions
from segcredit.errors import PolicyError
from segcredit.protocols import Policy, Prompt, Verdict
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import RolloutBatch


def rollouts_of_texts(
    policy: Policy, prompts: Sequence[str], texts: Sequence[str], *, micro_tokens: int = 16384
) -> RolloutBatch:
    """Builds rollouts of texts as completions of prompts: tokenised, and scored by a policy.

    Nobody knows by which tokens a text was written, or whether an end token followed it: here they
    are those of the policy's tokenizer, without one, and the rollouts count as truncated. Rewards
    are 0, and the prompt's text is its key.

    Args:
        policy: its ``encode`` gives the tokens, its call log-probs and entropies.
        prompts: one for each text. Where it is empty, the text follows what the policy puts in
            front of every text, such as a begin token; where it puts nothing there, a newline:
            something has to stand before the first token.
        texts: none empty, since an empty one has no tokens.
        micro_tokens: most tokens in one pass.

    Raises:
        PolicyError: the tokens of a text, decoded, are not the text to the character.
    """
    prompt_ids, prompt_mask = policy.encode(_with_tokens(policy, prompts))
    ids_BT, mask_BT = _completion_tokens(policy, texts)
    decoded, token_spans = policy.decode(ids_BT, mask_BT)
    for text, found in zip(texts, decoded, strict=True):
        if found != text:
            raise PolicyError(_difference(text, found))
    unknown = Verdict(reward=0.0, correct=False)
    given = Completions(
        prompts=tuple(Prompt(key=prompt, text=prompt, answer=None) for prompt in prompts),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        ids=ids_BT,
        mask=mask_BT,
        truncated=torch.ones(len(texts), dtype=torch.bool, device=ids_BT.device),
        texts=decoded,
        token_spans=token_spans,
        verdicts=(unknown,) * len(texts),
        node_ids=torch.arange(ids_BT.numel(), device=ids_BT.device).view(ids_BT.shape),
    )
    return as_rollouts(given, policy, micro_tokens=micro_tokens)


def _with_tokens(policy: Policy, prompts: Sequence[str]) -> list[str]:
    """Returns the prompts, with a newline for empty ones of which the policy makes no token."""
    if all(prompts):
        return list(prompts)
    try:
        policy.encode([""])
    except PolicyError:  # the one way in which a policy tells that nothing goes before a text
        return [prompt or "\n" for prompt in prompts]
    return list(prompts)


def _completion_tokens(policy: Policy, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encodes the texts alone: (B,T) ids and mask, right-padded.

    What a policy puts around a prompt, such as a begin token, has no characters: it goes, as do
    other tokens without characters before the text's first one and after its last.
    """
    ids_BL, mask_BL = policy.encode(texts)
    _, spans_BL2 = policy.decode(ids_BL, mask_BL)
    # Inside a text such tokens stay: a character may be whole only with its last token.
    wide_BL = mask_BL & (spans_BL2[..., 1] > spans_BL2[..., 0])
    begun_BL = wide_BL.cumsum(1) > 0
    unfinished_BL = wide_BL.flip(1).cumsum(1).flip(1) > 0
    keep_BL = mask_BL & begun_BL & unfinished_BL
    width = int(keep_BL.sum(1).max())
    # A stable sort of the mask moves the kept tokens to the left, in their order.
    order_BT = torch.argsort(~keep_BL, dim=1, stable=True)[:, :width]
    return ids_BL.gather(1, order_BT), keep_BL.gather(1, order_BT)


def _difference(text: str, found: str) -> str:
    """Writes the sentence for a text that its tokens do not decode to."""
    pairs = enumerate(zip(text, found, strict=False))
    place = next((at for at, (a, b) in pairs if a != b), min(len(text), len(found)))
    return (
        f"the policy's tokens do not say this text again: after {place} characters the text goes on"
        f" {text[place : place + 20]!r} and its tokens {found[place : place + 20]!r}; expected the"
        " same, since segments are places in the text. Usually the text has characters that the"
        " tokenizer does not know or changes (a tiny policy knows its task's alphabet alone), or"
        " names one of its special tokens: choose another policy, or take that out of the text."
    )

"""The rules for policies: those for all, and those of each capability that a policy offers."""

# Tensor.tolist carries no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from segcredit.protocols import (
    Prompt,
    SupportsAlternatives,
    SupportsBackbone,
    SupportsLogitGradients,
    SupportsResume,
)
from segcredit.testing.checked_plugin import CheckedPlugin, shuffled
from segcredit.types import Generation, RolloutBatch, SamplingParams, TokenScores

DEFAULT_PROMPTS = tuple(Prompt(text, text, None) for text in ("1", "12", "0", "2"))
"""Texts that any tokenizer reads, and the toy policy too."""
_LIMIT = 5
"""Tokens of the longest completion."""
_MICRO_TOKENS = 64


@dataclass(frozen=True)
class CheckedPolicy(CheckedPlugin):
    """The policy under test, with prompts that it can read."""

    prompts: Sequence[Prompt] = DEFAULT_PROMPTS

    def generate(
        self, *, limit: int = _LIMIT, greedy: bool = False, seed: int = 0, each: int = 1
    ) -> RolloutBatch:
        """Returns completions of the prompts as rollouts, checked; rewards are 0."""
        prompts = [prompt for prompt in self.prompts for _ in range(each)]
        with self.using("encode_prompts()"):
            ids_BP, mask_BP, extras = self.plugin.encode_prompts(prompts, room=limit)
        with self.using("generate()"):
            found = self.plugin.generate(
                ids_BP,
                mask_BP,
                extras,
                params=SamplingParams(max_new_tokens=limit, greedy=greedy),
                generator=torch.Generator().manual_seed(seed),
            )
        self._require_generation(found, len(prompts), limit)
        return self._as_rollouts(prompts, ids_BP, mask_BP, extras, found)

    def _require_generation(self, found: Generation, rows: int, limit: int) -> None:
        shape = tuple(found.ids.shape)
        lengths_B = found.mask.sum(1)
        columns_T = torch.arange(found.ids.shape[1], device=found.mask.device)
        faults = {
            f"ids of shape {shape}": len(shape) == 2
            and shape[0] == rows
            and 1 <= shape[1] <= limit,
            "a mask with holes": torch.equal(found.mask, columns_T < lengths_B[:, None]),
            "a completion without a token": bool((lengths_B > 0).all()),
            "a truncated completion that is shorter than others": bool(
                (lengths_B[found.truncated] == shape[1]).all()
            ),
        }
        for fault, fine in faults.items():
            if not fine:
                self.broke(
                    "generate() gives completions up to their first end token and it",
                    found=fault,
                    expected=f"{rows} rows of at most {limit} tokens, a mask that is True from the"
                    " first token to the last, and truncation only at the limit",
                    cause="the end token left out of the mask, or the prompt in the ids",
                )

    def _as_rollouts(
        self, prompts: Sequence[Prompt], ids_BP: Any, mask_BP: Any, extras: Any, found: Generation
    ) -> RolloutBatch:
        with self.using("decode()"):
            texts, spans = self.plugin.decode(found.ids, found.mask)
        device = found.ids.device
        blank_BT = torch.zeros(found.ids.shape, device=device)
        return RolloutBatch(
            prompt_ids=ids_BP,
            prompt_mask=mask_BP,
            prompt_keys=tuple(prompt.key for prompt in prompts),
            completion_ids=found.ids,
            action_mask=found.mask,
            logprobs=blank_BT,
            entropies=blank_BT,
            group=torch.arange(len(prompts), device=device),
            texts=texts,
            token_spans=spans,
            rewards=blank_BT.sum(1),
            token_rewards=blank_BT,
            truncated=found.truncated,
            extras=extras,
        )

    def score(self, rollouts: RolloutBatch, what: str = "its own completions") -> TokenScores:
        """Returns scores without gradients, checked."""
        with self.using(f"the score of {what}"), torch.no_grad():
            scores = self.plugin(rollouts)
        self._require_scores(scores, rollouts, what)
        return scores

    def _require_scores(self, scores: TokenScores, rollouts: RolloutBatch, what: str) -> None:
        mask_BT = rollouts.action_mask
        faults = {
            "log-probs above 0": bool((scores.logprobs <= 1e-5).all()),
            "entropies below 0": bool((scores.entropies >= -1e-5).all()),
            f"hidden states of shape {tuple(scores.hidden.shape)}": tuple(scores.hidden.shape)
            == (*mask_BT.shape, self.plugin.hidden_size),
            "scores on masked tokens": not any(
                bool(x[~mask_BT].any()) for x in (scores.logprobs, scores.entropies, scores.hidden)
            ),
        }
        for fault, fine in faults.items():
            if not fine:
                self.broke(
                    "a score has log-probs, entropies and hidden states of the action tokens",
                    found=f"{fault} on {what}",
                    expected="log-probs of at most 0, entropies of at least 0, states of width"
                    f" {self.plugin.hidden_size}, and 0 off the action mask",
                    cause="logits in place of log-probs, or the mask not applied",
                )

    def require_same_scores(
        self, found: TokenScores, wanted: TokenScores, *, rule: str, cause: str
    ) -> None:
        """Requires equal log-probs, entropies and states, but for rounding."""
        for name in ("logprobs", "entropies", "hidden"):
            pair = getattr(found, name), getattr(wanted, name)
            self.require_close(*pair, rule=rule, cause=cause)


PolicyRule = Callable[[CheckedPolicy], None]


def _prompts_are_padded_on_the_left(checked: CheckedPolicy) -> None:
    with checked.using("encode_prompts()"):
        ids_BP, mask_BP, extras = checked.plugin.encode_prompts(checked.prompts)
    rising = bool((mask_BP[:, 1:] >= mask_BP[:, :-1]).all()) and bool(mask_BP[:, -1:].all())
    if ids_BP.shape != mask_BP.shape or mask_BP.dtype != torch.bool or not rising:
        checked.broke(
            "prompts are padded on the left",
            found=f"ids of shape {tuple(ids_BP.shape)} and a mask of {mask_BP.dtype} that ends in"
            f" {mask_BP[:, -1:].flatten().tolist()}",
            expected="a bool mask of the ids' shape, whose rows end in True",
            cause="the tokenizer's own padding, which is on the right",
        )
    for row, prompt in enumerate(checked.prompts):
        with checked.using("encode_prompts() of one prompt"):
            alone, mask, _ = checked.plugin.encode_prompts([prompt])
        if alone[mask].tolist() != ids_BP[row][mask_BP[row]].tolist():
            checked.broke(
                "a prompt's ids do not depend on the rest of the batch",
                found=f"{alone[mask].tolist()} alone and {ids_BP[row][mask_BP[row]].tolist()}",
                expected="the same ids",
                cause="rows in another order, or padding counted as tokens",
            )
    if len(extras) not in (0, len(checked.prompts)):
        checked.broke(
            "extras are one mapping a row, or none at all",
            found=f"{len(extras)} for {len(checked.prompts)} prompts",
            expected=f"0 or {len(checked.prompts)}",
            cause="extras of the prompts with images alone",
        )


def _spans_cover_the_text(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    rows = zip(rollouts.texts, rollouts.token_spans, rollouts.action_mask, strict=True)
    for text, spans_T2, mask_T in rows:
        spans = [(int(first), int(end)) for first, end in spans_T2]
        inside = [span for span, kept in zip(spans, mask_T, strict=True) if kept]
        covered = {place for first, end in inside for place in range(first, end)}
        ordered = all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(spans))
        if covered != {*range(len(text))} or not ordered or any(a > b for a, b in spans):
            checked.broke(
                "decode() says which characters each token has",
                found=f"the spans {spans} for {text!r}",
                expected=f"ascending spans that cover 0 to {len(text)}",
                cause="bytes counted for characters, or special tokens that are in the spans and"
                " not in the text",
            )


def _prompts_survive_the_tokenizer(checked: CheckedPolicy) -> None:
    for prompt in checked.prompts:
        with checked.using("decode() of what encode() gave"):
            (text,), _ = checked.plugin.decode(*checked.plugin.encode([prompt.text]))
        if text.strip() != prompt.text.strip():
            checked.broke(
                "decode() undoes encode()",
                found=f"{text!r} for {prompt.text!r}",
                expected="the same text, but for white space at its ends",
                cause="special tokens left in the text, or characters that the tokenizer lacks",
            )


def _shorter_limits_cut_the_same_completion(checked: CheckedPolicy) -> None:
    whole = checked.generate(greedy=True)
    lengths_B = whole.action_mask.sum(1)
    for limit in range(1, _LIMIT):
        cut = checked.generate(limit=limit, greedy=True)
        kept_BT = whole.action_mask[:, :limit]
        same = kept_BT.shape == cut.action_mask.shape and torch.equal(kept_BT, cut.action_mask)
        same = same and torch.equal(
            whole.completion_ids[:, :limit][kept_BT], cut.completion_ids[kept_BT]
        )
        if not same or not torch.equal(cut.truncated, (lengths_B > limit) | whole.truncated):
            checked.broke(
                "max_new_tokens cuts a completion, and truncated says so",
                found=f"{cut.completion_ids.tolist()}, truncated {cut.truncated.tolist()} with"
                f" max_new_tokens={limit}",
                expected=f"the first tokens of {whole.completion_ids.tolist()} (lengths"
                f" {lengths_B.tolist()}), truncated where that is not all",
                cause="truncated where the last token is the end token, or the other way round",
            )


def _generate_follows_its_generator(checked: CheckedPolicy) -> None:
    first = checked.generate(each=4, seed=1).completion_ids
    torch.rand(3)
    if not torch.equal(first, checked.generate(each=4, seed=1).completion_ids):
        checked.broke(
            "the generator's state alone decides what is sampled",
            found="other tokens from a generator in the same state",
            expected="the same tokens",
            cause="a draw from torch's global generator, or dropout",
        )


def _scores_are_those_of_sampling(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=48, seed=2)
    scores = checked.score(rollouts)
    # Where sampling and scoring agree, a token's log-prob is minus the entropy on average.
    surplus_N = (scores.logprobs + scores.entropies)[rollouts.action_mask].double()
    apart = float(surplus_N.sum() / surplus_N.square().sum().sqrt().clamp(min=1e-9))
    if abs(apart) > 6:
        checked.broke(
            "log-probs and entropies are of the distribution that is sampled from",
            found=f"sampled tokens that are too {'likely' if apart > 0 else 'unlikely'}: their"
            f" log-probs lie {abs(apart):.1f} standard deviations from minus the entropies",
            expected="fewer than 6",
            cause="the temperature or suppressed ids in sampling alone, or in scoring alone",
        )


def _score_ignores_padding(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    width, noise = rollouts.completion_ids.shape[1], int(rollouts.completion_ids[0, 0])
    blank_BT = pad(rollouts.logprobs, (0, 2))
    wide = rollouts.replace(
        prompt_ids=pad(rollouts.prompt_ids, (3, 0), value=noise),
        prompt_mask=pad(rollouts.prompt_mask, (3, 0)),
        completion_ids=pad(rollouts.completion_ids, (0, 2), value=noise),
        action_mask=pad(rollouts.action_mask, (0, 2)),
        logprobs=blank_BT,
        entropies=blank_BT,
        token_rewards=blank_BT,
        token_spans=pad(rollouts.token_spans, (0, 0, 0, 2)),
        node_ids=pad(rollouts.node_ids, (0, 2)),
    )
    found = checked.score(wide, "completions with more padding on both sides")
    checked.require_same_scores(
        _cut(found, width),
        checked.score(rollouts),
        rule="padding changes no score",
        cause="positions that count the padding, or attention to it",
    )


def _cut(scores: TokenScores, width: int) -> TokenScores:
    """Returns the scores of the first columns."""
    return TokenScores(
        logprobs=scores.logprobs[:, :width],
        entropies=scores.entropies[:, :width],
        hidden=scores.hidden[:, :width],
    )


def _rows(scores: TokenScores, rows: Sequence[int]) -> TokenScores:
    index = list(rows)
    return TokenScores(
        logprobs=scores.logprobs[index],
        entropies=scores.entropies[index],
        hidden=scores.hidden[index],
    )


def _score_ignores_the_batch(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    whole = checked.score(rollouts)
    for rows in (shuffled(len(rollouts)), [1]):
        checked.require_same_scores(
            checked.score(rollouts.select(rows), f"the rows {rows}"),
            _rows(whole, rows),
            rule="a completion's score does not depend on the rest of the batch",
            cause="rows put back in another order, or a statistic over the batch",
        )


def _score_is_causal(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=4)
    whole = checked.score(rollouts)
    for position in range(rollouts.completion_ids.shape[1]):
        ids_BT = rollouts.completion_ids.clone()
        ids_BT[:, position:] = ids_BT[:, position:].roll(5, 0)
        found = checked.score(rollouts.replace(completion_ids=ids_BT), "other later tokens")
        checked.require_close(
            found.logprobs[:, :position],
            whole.logprobs[:, :position],
            rule="a token's log-prob depends on nothing after it",
            cause="attention to later tokens, or log-probs shifted by one",
        )
        checked.require_close(
            found.hidden[:, : position + 1],
            whole.hidden[:, : position + 1],
            rule="hidden[:, t] is the state before token t",
            cause="the state that has read token t, one column too late",
        )


def _gradients_reach_parameters(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    parameters = [p for p in checked.plugin.parameters() if p.requires_grad]
    with checked.using("the score with gradients"):
        scores = checked.plugin(rollouts)
        total = scores.logprobs.sum() + scores.entropies.sum()
        gradients = torch.autograd.grad(
            total, parameters, allow_unused=True, materialize_grads=True
        )
    found = list(gradients)
    if not any(bool(x.any()) for x in found) or not all(bool(x.isfinite().all()) for x in found):
        checked.broke(
            "gradients of the score reach the parameters",
            found="no gradient on any of them, or one that is not finite",
            expected="finite gradients",
            cause="a detach(), or a log-softmax over logits of -inf times a probability of 0",
        )


def _score_has_no_dropout(checked: CheckedPolicy) -> None:
    rollouts, training = checked.generate(), checked.plugin.training
    wanted = checked.score(rollouts)
    checked.plugin.train()
    found = checked.score(rollouts, "its own completions after train()")
    checked.plugin.train(training)
    checked.require_same_scores(
        found,
        wanted,
        rule="scores are the same in training mode",
        cause="dropout, with which the first importance ratio of a step is not 1",
    )


def _state_round_trips(checked: CheckedPolicy) -> None:
    rollouts = checked.generate()
    with checked.using("copy.deepcopy() and load_state_dict()"), torch.no_grad():
        again = copy.deepcopy(checked.plugin)
        for parameter in again.parameters():
            parameter.add_(0.1)
        again.load_state_dict(copy.deepcopy(checked.plugin.state_dict()))
    checked.require_same_scores(
        CheckedPolicy(checked.kind, again, checked.prompts).score(rollouts, "a loaded copy"),
        checked.score(rollouts),
        rule="state_dict() holds the whole state",
        cause="weights kept as plain attributes; make them parameters or buffers",
    )


def _policy_works_on_another_device(checked: CheckedPolicy) -> None:
    def scored(device: torch.device) -> Tensor:
        there = replace(checked, plugin=copy.deepcopy(checked.plugin).to(device))
        rollouts = there.generate(greedy=True)
        ids_BT = rollouts.completion_ids.masked_fill(~rollouts.action_mask, 0)
        return torch.stack([ids_BT.double(), there.score(rollouts).logprobs.double()])

    checked.require_same_elsewhere(scored, "the policy")


def _resumed(
    checked: CheckedPolicy, rollouts: RolloutBatch, position: int, **options: Any
) -> Generation:
    """Goes on greedily from a position of every row."""
    rows_N = torch.arange(len(rollouts))
    with checked.using(f"resume() from position {position}"):
        return checked.plugin.resume(
            rollouts,
            rows_N,
            torch.full_like(rows_N, position),
            params=SamplingParams(max_new_tokens=_LIMIT, greedy=True),
            micro_tokens=_MICRO_TOKENS,
            generator=torch.Generator().manual_seed(0),
            **options,
        )


def _lists(ids_NT: Tensor, mask_NT: Tensor) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(ids_NT, mask_NT, strict=True)]


def _resume_reproduces_greedy_completions(checked: CheckedPolicy) -> None:
    whole = checked.generate(greedy=True)
    for position in range(int(whole.action_mask.sum(1).min())):
        found = _resumed(checked, whole, position)
        rest = _lists(whole.completion_ids[:, position:], whole.action_mask[:, position:])
        same = _lists(found.ids, found.mask) == rest
        if not same or not torch.equal(found.truncated, whole.truncated):
            checked.broke(
                "a greedy completion that is resumed goes on as it did",
                found=f"{_lists(found.ids, found.mask)} from position {position}",
                expected=f"{rest}",
                cause="a limit that counts new tokens alone, or a prefix cut one token early",
            )


def _resume_puts_a_token_instead(checked: CheckedPolicy) -> None:
    whole = checked.generate(greedy=True)
    longer_N = (whole.action_mask.sum(1) > 1).nonzero()[:, 0]
    if not len(longer_N):
        return
    some = whole.select(longer_N)
    for seed in range(5, 9):
        others_N = checked.generate(seed=seed).completion_ids[longer_N, 0]
        ids_NT = torch.cat([others_N[:, None], some.completion_ids[:, 1:]], 1)
        found = _resumed(checked, some, 1, instead_N=others_N)
        wanted = _resumed(checked, some.replace(completion_ids=ids_NT), 1)
        pairs = zip(_lists(found.ids, found.mask), _lists(wanted.ids, wanted.mask), strict=True)
        for row, (one, two) in enumerate(pairs):
            # After an end token there is nothing new; a rollout never has tokens after one.
            if one and one != two:
                checked.broke(
                    "instead_N stands in the place of the token before the position",
                    found=f"{one} after token {int(others_N[row])}",
                    expected=f"{two}, as after a completion with that token",
                    cause="a cache that holds the old token",
                )


def _alternatives_are_other_tokens(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    counts_BT = rollouts.action_mask.long() * (1 + torch.arange(rollouts.action_mask.shape[1]) % 3)
    with checked.using("alternatives()"):
        found_N = checked.plugin.alternatives(
            rollouts,
            counts_BT,
            micro_tokens=_MICRO_TOKENS,
            generator=torch.Generator().manual_seed(0),
        )
    taken_N = rollouts.completion_ids.flatten().repeat_interleave(counts_BT.flatten())
    if found_N.shape != taken_N.shape or bool((found_N == taken_N).any()):
        checked.broke(
            "alternatives() draws as many other tokens as it was asked for",
            found=f"{tuple(found_N.shape)} tokens, some of them those that were chosen"
            if found_N.shape == taken_N.shape
            else f"tokens of shape {tuple(found_N.shape)}",
            expected=f"{len(taken_N)} tokens, row by row, none of them the token that is there",
            cause="the token that is there not left out before the shares are renormalised",
        )


def _logit_gradients_follow_the_scores(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    mask_BT = rollouts.action_mask
    with checked.using("logit_gradients()"):
        found_BT = checked.plugin.logit_gradients(rollouts, micro_tokens=_MICRO_TOKENS)
    # The rest of the distribution, 1 - p, is on at least one other token.
    rest_BT = -torch.expm1(checked.score(rollouts).logprobs.double()).clamp(max=0.0)
    fits = found_BT.shape == mask_BT.shape and not found_BT.requires_grad
    if fits:
        low_BT, high_BT = rest_BT.square() - 1e-5, 2 * rest_BT.square() + 1e-5
        inside_BT = (low_BT <= found_BT) & (found_BT <= high_BT)
        fits = bool(torch.where(mask_BT, inside_BT, found_BT == 0).all())
    if not fits:
        checked.broke(
            "logit_gradients() lies between (1 - p)² and 2 (1 - p)², and is 0 off the mask",
            found=f"{found_BT.tolist()} for 1 - p = {rest_BT.masked_fill(~mask_BT, 0).tolist()}",
            expected=f"numbers of shape {tuple(mask_BT.shape)}, without gradients, in that range",
            cause="logits before the temperature or with the suppressed ids, or a norm not squared",
        )


def _backbone_states(checked: CheckedPolicy, rollouts: RolloutBatch) -> Float[Tensor, "B T H"]:
    with checked.using("backbone()(rollouts)"), torch.no_grad():
        states_BTH = checked.plugin.backbone()(rollouts)
    return states_BTH.masked_fill(~rollouts.action_mask[..., None], 0)


def _backbone_is_a_copy(checked: CheckedPolicy) -> None:
    rollouts = checked.generate(each=2)
    before = checked.score(rollouts)
    checked.require_close(
        _backbone_states(checked, rollouts),
        before.hidden,
        rule="the backbone gives the policy's hidden states",
        cause="states after the token instead of before it, or another layer's",
    )
    with checked.using("a step on backbone()"), torch.no_grad():
        for parameter in checked.plugin.backbone().parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    checked.require_same_scores(
        checked.score(rollouts, "its own completions after a step on its backbone's copy"),
        before,
        rule="training the backbone leaves the policy as it is",
        cause="the network itself returned instead of a copy",
    )


POLICY_RULES: tuple[PolicyRule, ...] = (
    _prompts_are_padded_on_the_left,
    _prompts_survive_the_tokenizer,
    _spans_cover_the_text,
    _shorter_limits_cut_the_same_completion,
    _generate_follows_its_generator,
    _scores_are_those_of_sampling,
    _score_ignores_padding,
    _score_ignores_the_batch,
    _score_is_causal,
    _gradients_reach_parameters,
    _score_has_no_dropout,
    _state_round_trips,
    _policy_works_on_another_device,
)
CAPABILITY_RULES: dict[type, tuple[PolicyRule, ...]] = {
    SupportsResume: (_resume_reproduces_greedy_completions, _resume_puts_a_token_instead),
    SupportsAlternatives: (_alternatives_are_other_tokens,),
    SupportsLogitGradients: (_logit_gradients_follow_the_scores,),
    SupportsBackbone: (_backbone_is_a_copy,),
}
"""Rules of the policies that offer a capability."""

"""The kit holds policies to their contract, and names the rule that a wrong one breaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit import registry
from segcredit.errors import PluginError
from segcredit.testing import ToyPolicy, check_policy, policy_checks
from segcredit.types import Generation

NUMBERED = "prompts_survive_the_tokenizer"
"""The rule that the toy breaks: its prompts are numbers, its completions are not."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGCREDIT_CACHE", str(tmp_path))


def loaded(name: str, task: Any, temperature: float = 0.7, **options: Any) -> Any:
    sampler = registry.samplers.build("lean")
    source: Any = registry.policies.build(name, **options)
    return source.load(task, sampler, temperature=temperature, seed=0)


def tiny() -> Any:
    return loaded("tiny", registry.tasks.build("arithmetic"), steps=0, hidden_size=32, layers=1)


def test_tiny_keeps_the_contract() -> None:
    check_policy(tiny())


def test_a_checkpoint_keeps_the_contract(tmp_path: Path) -> None:
    policy = tiny()
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    task = registry.tasks.build("arithmetic")
    check_policy(loaded("hf", task, model=str(tmp_path / "model")))


def test_a_policy_of_images_keeps_the_contract() -> None:
    task = registry.tasks.build("bars", bars=2)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "layers": 1, "heads": 2}
    check_policy(loaded("tiny_vlm", task, steps=0, **sizes), task.evaluation(2))


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=name)
        for name, check in policy_checks(ToyPolicy())
        if name != NUMBERED
    ],
)
def test_the_toy_keeps_the_contract_but_for_its_numbered_prompts(check: Any) -> None:
    check()


class PaddedRight(ToyPolicy):
    def encode_prompts(self, prompts, *, room=0):
        ids, mask, extras = super().encode_prompts(prompts, room=room)
        mask[0, -1] = False
        return ids, mask, extras


class OneSpan(ToyPolicy):
    def decode(self, ids, mask):
        texts, spans = super().decode(ids, mask)
        return texts, spans.clamp(max=1)


class NeverTruncated(ToyPolicy):
    def generate(self, *prompts, params, generator):
        found = super().generate(*prompts, params=params, generator=generator)
        return Generation(found.ids, found.mask, torch.zeros_like(found.truncated))


class GlobalDraws(ToyPolicy):
    def generate(self, *prompts, params, generator):
        return super().generate(*prompts, params=params, generator=torch.default_generator)


class ColdScores(ToyPolicy):
    """Samples at another temperature than it scores at."""

    def generate(self, *prompts, params, generator):
        self.temperature = 0.2
        found = super().generate(*prompts, params=params, generator=generator)
        self.temperature = 1.0
        return found


class Changed(ToyPolicy):
    """Scores by the toy, with one thing changed."""

    def forward(self, rollouts):
        scores = super().forward(rollouts)
        hidden = self.change(scores.hidden, rollouts)
        mask = rollouts.action_mask[..., None]
        return replace(scores, hidden=hidden.masked_fill(~mask, 0))

    def change(self, hidden, rollouts):
        return hidden


class ReadsWidth(Changed):
    def change(self, hidden, rollouts):
        return hidden * rollouts.action_mask.shape[1]


class BatchMean(Changed):
    def change(self, hidden, rollouts):
        return hidden - hidden.mean(0)


class ReadsAhead(Changed):
    def change(self, hidden, rollouts):
        return hidden + rollouts.completion_ids[..., None]


class Detached(ToyPolicy):
    def forward(self, rollouts):
        with torch.no_grad():
            scores = super().forward(rollouts)
        nothing = 0 * self.output.bias.sum()
        return replace(scores, logprobs=scores.logprobs + nothing)


class Dropout(Changed):
    def change(self, hidden, rollouts):
        return torch.nn.functional.dropout(hidden, 0.5, self.training)


class PlainAttribute(Changed):
    """Weights that no state_dict knows, shifted by every copy."""

    scale = 1.0

    def __deepcopy__(self, memo):
        other = PlainAttribute()
        other.scale = 2.0
        return other

    def change(self, hidden, rollouts):
        return hidden * self.scale


class CPUPrompts(ToyPolicy):
    def encode_prompts(self, prompts, *, room=0):
        ids, mask, extras = super().encode_prompts(prompts, room=room)
        return ids.cpu(), mask.cpu(), extras


class CountsNewTokens(ToyPolicy):
    def resume(self, rollouts, rows_N, positions_N, **options):
        return super().resume(rollouts, rows_N, (positions_N - 1).clamp(min=0), **options)


class ForgetsInstead(ToyPolicy):
    def resume(self, rollouts, rows_N, positions_N, *, instead_N=None, **options):
        return super().resume(rollouts, rows_N, positions_N, **options)


class SameToken(ToyPolicy):
    def alternatives(self, rollouts, counts_BT, **_):
        return rollouts.completion_ids.flatten().repeat_interleave(counts_BT.flatten())


class GradientNotSquared(ToyPolicy):
    def logit_gradients(self, rollouts, **options):
        return super().logit_gradients(rollouts, **options).sqrt()


class SharedBackbone(ToyPolicy):
    def backbone(self):
        return self.states


WRONG = [
    (PaddedRight, "prompts_are_padded_on_the_left", "padded on the left"),
    (ToyPolicy, NUMBERED, "decode() undoes encode()"),
    (OneSpan, "spans_cover_the_text", "which characters each token has"),
    (NeverTruncated, "shorter_limits_cut_the_same_completion", "truncated says so"),
    (GlobalDraws, "generate_follows_its_generator", "generator's state alone"),
    (ColdScores, "scores_are_those_of_sampling", "too likely"),
    (ReadsWidth, "score_ignores_padding", "padding changes no score"),
    (BatchMean, "score_ignores_the_batch", "on the rest of the batch"),
    (ReadsAhead, "score_is_causal", "the state before token t"),
    (Detached, "gradients_reach_parameters", "gradients of the score"),
    (Dropout, "score_has_no_dropout", "in training mode"),
    (PlainAttribute, "state_round_trips", "holds the whole state"),
    (CPUPrompts, "policy_works_on_another_device", "the policy on another device than the CPU"),
    (CountsNewTokens, "resume_reproduces_greedy_completions", "goes on as it did"),
    (ForgetsInstead, "resume_puts_a_token_instead", "in the place of the token before"),
    (SameToken, "alternatives_are_other_tokens", "as many other tokens"),
    (GradientNotSquared, "logit_gradients_follow_the_scores", "between (1 - p)² and 2 (1 - p)²"),
    (SharedBackbone, "backbone_is_a_copy", "leaves the policy as it is"),
]


# Wrong on purpose; run-time type checks would speak before the kit does.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "rule", "sentence"), WRONG)
def test_wrong_policies_are_caught_by_the_rule(plugin: Any, rule: str, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        dict(policy_checks(plugin()))[rule]()
    assert f"policy {plugin.__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for _, rule, _ in WRONG} == {name for name, _ in policy_checks(ToyPolicy())}

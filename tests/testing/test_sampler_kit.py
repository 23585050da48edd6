"""The kit holds samplers to their contract, and names the rule that a wrong one breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from segcredit import SampledTokens
from segcredit.errors import PluginError
from segcredit.protocols import Sampler
from segcredit.testing import check_sampler, sampler_checks


class Plain(Sampler):
    """A loop without a cache, right: every wrong sampler below changes one thing of it."""

    def sample(self, model, prompt_ids, prompt_mask, *, params, pad_id, generator, **_):
        ids, mask, logprobs = prompt_ids, prompt_mask, []
        ended = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        with torch.no_grad():
            for step in range(params.max_new_tokens):
                logits = self.logits(model, ids, mask, params, step)
                drawn = self.draw(logits, params, generator, step)
                logprobs.append(logits.log_softmax(1).gather(1, drawn[:, None])[:, 0])
                ended |= torch.isin(drawn, drawn.new_tensor(params.stop_ids))
                ids = torch.cat([ids, drawn[:, None]], 1)
                mask = pad(mask, (0, 1), value=1)
                if params.ended is not None:
                    ended |= self.told(params.ended, ids, prompt_ids.shape[1])
                if ended.all():
                    break
        return self.result(ids[:, prompt_ids.shape[1] :], torch.stack(logprobs, 1), prompt_ids)

    def told(self, ended, ids, width) -> Tensor:
        return ended(ids[:, width:], torch.arange(len(ids), device=ids.device))

    def logits(self, model, ids, mask, params, step) -> Tensor:
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=places).logits
        suppressed = ids.new_tensor(params.suppressed_ids, dtype=torch.long)
        logits = logits[:, -1].index_fill(1, suppressed, -torch.inf)
        return logits / params.temperature

    def draw(self, logits, params, generator, step) -> Tensor:
        if params.greedy:
            return logits.argmax(1)
        shares = logits.softmax(1).to(generator.device)
        return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)

    def result(self, ids, logprobs, prompt_ids) -> Any:
        return SampledTokens(ids, logprobs)


def test_a_right_sampler_keeps_the_contract() -> None:
    check_sampler(Plain())


class BareIds(Plain):
    def result(self, ids, logprobs, prompt_ids):
        return ids


class WithPrompts(Plain):
    def result(self, ids, logprobs, prompt_ids):
        return SampledTokens(torch.cat([prompt_ids, ids], 1))


class Inference(Plain):
    def result(self, ids, logprobs, prompt_ids):
        with torch.inference_mode():
            return SampledTokens(ids.clone())


class BaseTwo(Plain):
    def result(self, ids, logprobs, prompt_ids):
        return SampledTokens(ids, logprobs / torch.tensor(2.0).log())


class CountsThePrompt(Plain):
    def sample(self, model, prompt_ids, prompt_mask, *, params, **options):
        fewer = replace(params, max_new_tokens=max(params.max_new_tokens - 2, 1))
        return super().sample(model, prompt_ids, prompt_mask, params=fewer, **options)


class Warm(Plain):
    def draw(self, logits, params, generator, step):
        return super().draw(logits, replace(params, greedy=False), generator, step)


class FirstColumnPositions(Plain):
    def logits(self, model, ids, mask, params, step):
        logits = model(input_ids=ids).logits[:, -1]
        return logits.index_fill(1, torch.tensor(params.suppressed_ids).long(), -torch.inf)


class LeavesOutTheEnd(Plain):
    def sample(self, model, prompt_ids, prompt_mask, *, params, **options):
        found = super().sample(model, prompt_ids, prompt_mask, params=params, **options)
        ends = torch.isin(found.ids, torch.tensor(params.stop_ids))
        return SampledTokens(found.ids.masked_fill(ends, 0))


class AsksWithPrompts(Plain):
    def told(self, ended, ids, width):
        return ended(ids, torch.arange(len(ids)))


class NoBatch(Plain):
    def result(self, ids, logprobs, prompt_ids):
        return SampledTokens(ids.squeeze(0))


class NoTemperature(Plain):
    def logits(self, model, ids, mask, params, step):
        return super().logits(model, ids, mask, replace(params, temperature=1.0), step)

    def result(self, ids, logprobs, prompt_ids):
        return SampledTokens(ids)


class TopFew(Plain):
    def draw(self, logits, params, generator, step):
        last = logits.topk(40, dim=1).values[:, -1:]
        return super().draw(logits.masked_fill(logits < last, -torch.inf), params, generator, step)


class NoTemperatureLater(NoTemperature):
    def logits(self, model, ids, mask, params, step):
        if step == 0:
            return Plain.logits(self, model, ids, mask, params, step)
        return super().logits(model, ids, mask, params, step)


class GlobalDraws(Plain):
    def draw(self, logits, params, generator, step):
        return super().draw(logits, params, torch.default_generator, step)


class FixedSeed(Plain):
    def sample(self, *args, generator, **options):
        return super().sample(*args, generator=torch.Generator().manual_seed(0), **options)


class Lowers(NoTemperature):
    """Makes suppressed ids unlikely only."""

    def logits(self, model, ids, mask, params, step):
        none = replace(params, suppressed_ids=())
        plain = Plain.logits(self, model, ids, mask, none, step)
        plain[:, list(params.suppressed_ids)] -= 2.0
        return plain


class IgnoresThemInGreedy(Plain):
    def sample(self, model, prompt_ids, prompt_mask, *, params, **options):
        kept = () if params.greedy else params.suppressed_ids
        changed = replace(params, suppressed_ids=kept)
        return super().sample(model, prompt_ids, prompt_mask, params=changed, **options)


class ReadsTwice(Plain):
    """Goes on after the cache with the whole prompt."""

    def sample(self, model, prompt_ids, prompt_mask, *, cache=None, **options):
        if cache is not None:
            prompt_ids = torch.cat([prompt_ids, prompt_ids], 1)
            prompt_mask = torch.cat([prompt_mask, prompt_mask], 1)
        return super().sample(model, prompt_ids, prompt_mask, **options)


class DrawsInPlace(Plain):
    """Draws on the model's device, with a generator that is elsewhere."""

    def draw(self, logits, params, generator, step) -> Tensor:
        return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


class LocalLambda(Plain):
    def __init__(self) -> None:
        self.rule = lambda logits: logits


WRONG = [
    (BareIds(), "sampler_gives_token_ids", "returns SampledTokens"),
    (WithPrompts(), "sampler_gives_token_ids", "the ids of new tokens"),
    (Inference(), "sampler_gives_token_ids", "for inference alone"),
    (BaseTwo(), "sampler_gives_token_ids", "those that its tokens were drawn with"),
    (CountsThePrompt(), "sampler_keeps_the_limit", "as many tokens as are allowed"),
    (Warm(), "greedy_takes_the_likeliest_token", "takes the likeliest token"),
    (FirstColumnPositions(), "greedy_takes_the_likeliest_token", "takes the likeliest token"),
    (LeavesOutTheEnd(), "sampler_stops_at_end_tokens", "any of the stop ids ends a completion"),
    (AsksWithPrompts(), "sampler_ends_rows_where_it_is_told", "until params.ended says"),
    (FirstColumnPositions(), "sampler_ignores_padding", "padding and the rest of the batch"),
    (NoBatch(), "sampler_survives_one_row", "one completion a row"),
    (NoTemperature(), "first_tokens_come_as_often_as_the_model_says", "at temperature 0.5"),
    (TopFew(), "first_tokens_come_as_often_as_the_model_says", "at temperature 1.0"),
    (NoTemperatureLater(), "later_tokens_come_as_often_as_the_model_says", "too unlikely"),
    (GlobalDraws(), "sampler_follows_its_generator", "generator's state alone decides"),
    (FixedSeed(), "sampler_follows_its_generator", "another state of the generator"),
    (Lowers(), "sampler_never_takes_suppressed_ids", "suppressed ids"),
    (IgnoresThemInGreedy(), "sampler_never_takes_suppressed_ids", "in greedy decoding too"),
    (ReadsTwice(), "sampler_goes_on_from_a_cache", "keys and values changes no token"),
    (DrawsInPlace(), "sampler_works_on_another_device", "the generator is the CPU's"),
    (LocalLambda(), "sampler_pickles", "on pickling"),
]


def class_name(case: object) -> str:
    return "" if isinstance(case, str) else type(case).__name__


# Wrong on purpose; run-time type checks would speak before the kit does.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "rule", "sentence"), WRONG, ids=class_name)
def test_wrong_samplers_are_caught_by_the_rule(plugin: Any, rule: str, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        dict(sampler_checks(plugin))[rule]()
    assert f"sampler {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for _, rule, _ in WRONG} == {name for name, _ in sampler_checks(Plain())}

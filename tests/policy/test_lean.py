"""The sampler ``lean`` draws what ``generate`` draws: the same greedy tokens, the same chances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM

from sampling_models import (
    ENDS,
    MODELS,
    SIZES,
    SUPPRESSED,
    drawn_by,
    made,
    some_prompts,
    up_to_the_end,
)
from segcredit import load_config, registry
from segcredit.episodes import complete
from segcredit.errors import PolicyError
from segcredit.policy.samplers import lean
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.samplers.lean import Lean
from segcredit.policy.samplers.llama_decoding import LlamaSteps, is_small_llama
from segcredit.policy.vlm import vision_policy
from segcredit.protocols import Prompt
from segcredit.training.build import build
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import SamplingParams
from small import SMALL
from vision_models import BEGIN, CLASSES, PAD, UNKNOWN, image

FAST = {"llama", "tied", "long", "qwen"}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model = made(name)
    assert is_small_llama(model) == (name in FAST)
    found = up_to_the_end(drawn_by(Lean(), model, greedy=True))
    assert found == up_to_the_end(drawn_by(Generate(), model, greedy=True))
    lengths = {len(row) for row in found}
    assert len(lengths) > 2, "rows ought to end at different times"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Logits of each step, as drawn from."""
    seen: list[Tensor] = []
    own = lean._Draw.__call__

    def record(draw: Any, logits_NV: Tensor) -> Tensor:
        seen.append(logits_NV)
        return own(draw, logits_NV)

    monkeypatch.setattr(lean._Draw, "__call__", record)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_every_step_draws_from_the_models_own_distribution(
    name: str, recorded: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "KEPT", 0.0)  # rows keep their places, so that they can be compared
    model = made(name)
    ids, mask = some_prompts()
    drawn = drawn_by(Lean(), model)
    whole, seen = (
        torch.cat([ids, drawn], 1),
        torch.nn.functional.pad(mask, (0, drawn.shape[1]), value=True),
    )
    places = (seen.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=whole, attention_mask=seen.long(), position_ids=places).logits
    for step, found in enumerate(recorded):
        expected = logits[:, ids.shape[1] - 1 + step]
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_rows_that_have_ended_leave_and_the_others_do_not_notice(
    name: str, recorded: list[Tensor]
) -> None:
    model = made(name)
    found = up_to_the_end(drawn_by(Lean(), model, greedy=True))
    rows = [len(logits) for logits in recorded]
    assert rows[0] == 24
    assert rows[-1] < 24
    for step, count in enumerate(rows):
        open_ = sum(len(row) > step for row in found)
        assert open_ <= count <= max(open_ / lean.KEPT, 1) + 1
    assert len(rows) == max(map(len, found))


def test_equal_prompts_are_read_once() -> None:
    model = made("llama")
    read: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, __, options: read.append(len(options["input_ids"])), with_kwargs=True
    )
    drawn_by(Lean(), model)
    assert read == [12]


def _shares(logits_V: Tensor, temperature: float) -> Tensor:
    logits_V = logits_V.double().index_fill(0, torch.tensor(SUPPRESSED), -torch.inf)
    return (logits_V / temperature).softmax(0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_come_as_often_as_the_model_says(temperature: float) -> None:
    model = made("llama")
    ids, mask = some_prompts()
    rows = 20_000
    found = Lean().sample(
        model,
        ids[4:5].expand(rows, -1),
        mask[4:5].expand(rows, -1),
        params=SamplingParams(
            max_new_tokens=1, temperature=temperature, stop_ids=ENDS, suppressed_ids=SUPPRESSED
        ),
        pad_id=0,
        generator=torch.Generator().manual_seed(2),
    )
    counts = found.ids[:, 0].bincount(minlength=30).double()
    with torch.no_grad():
        places = (mask[4:5].long().cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids[4:5], attention_mask=mask[4:5].long(), position_ids=places)
    assert not counts[list(SUPPRESSED)].any()

    def chance(of: float) -> float:
        expected = _shares(logits.logits[0, -1], of) * rows
        often = expected >= 5
        seen = torch.cat([counts[often], counts[~often].sum()[None]])
        due = torch.cat([expected[often], expected[~often].sum()[None]])
        return float(stats.chisquare(seen[due > 0], due[due > 0]).pvalue)

    assert chance(temperature) > 1e-3
    assert chance(temperature * 1.1) < 1e-6, "the test could not tell another temperature"


def test_no_token_of_no_share_is_drawn_and_chances_of_zero_are_drawn_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.zeros(size, dtype=torch.float64))
    draw = lean._Draw(1.0, False, torch.tensor([0, 1]), torch.Generator())
    assert draw(torch.zeros(3, 5)).tolist() == [2, 2, 2]


def test_the_generator_decides_and_the_global_one_is_left() -> None:
    model = made("llama")
    state = torch.get_rng_state()
    first, again = (drawn_by(Lean(), model) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(
        first, drawn_by(Lean(), model, generator=torch.Generator().manual_seed(9))
    )
    assert drawn_by(Lean(), model, max_new_tokens=0).shape == (24, 0)
    # What is drawn can be trained on: tensors made for inference alone could not.
    model(input_ids=first).logits.sum().backward()


def test_the_step_by_hand_is_for_plain_layers_alone() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.5

    model = made("llama")
    plain = up_to_the_end(drawn_by(Lean(), model, greedy=True))
    layer = model.model.layers[1].self_attn
    adapted = Adapted(32, 32, bias=False)
    adapted.load_state_dict(layer.q_proj.state_dict())
    layer.q_proj = adapted
    assert not is_small_llama(model)
    found = up_to_the_end(drawn_by(Lean(), model, greedy=True))
    assert found == up_to_the_end(drawn_by(Generate(), model, greedy=True)) != plain
    assert not is_small_llama(made("llama").bfloat16())


@pytest.mark.parametrize(
    ("make", "config", "sentence"),
    [
        (
            MistralForCausalLM,
            MistralConfig(**SIZES, sliding_window=4),
            "keeps DynamicSlidingWindowLayer .* expected every layer to keep all",
        ),
        (Phi3ForCausalLM, Phi3Config(**SIZES), "makes its inputs by a rule of its own"),
    ],
)
def test_what_cannot_be_sampled_is_a_sentence(make: Any, config: Any, sentence: str) -> None:
    with pytest.raises(PolicyError, match=sentence) as found:
        drawn_by(Lean(), make(config).eval())
    assert "sampler.name='generate'" in str(found.value)


# Under a policy.


@pytest.fixture(scope="module")
def run() -> Any:
    return build(load_config("grpo", [*SMALL, "sampler.name=lean"]))


def _both(policy: Any) -> Iterator[Any]:
    for sampler in (Lean(), Generate()):
        policy.sampler = sampler
        yield policy


def test_it_is_found_by_its_name(run: Any) -> None:
    assert run.actor.sampler == registry.samplers.build("lean") == Lean()


@pytest.mark.parametrize("by_hand", [True, False])
def test_greedy_continuations_are_those_of_generate(
    run: Any, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    own = LlamaSteps.advance
    monkeypatch.setattr(LlamaSteps, "advance", lambda steps, ids: used.append(1) or own(steps, ids))
    if not by_hand:
        monkeypatch.setattr(lean, "is_small_llama", lambda model: False)
    prompts = [prompt for prompt in run.task.evaluation(12) for _ in range(2)]
    source = torch.Generator().manual_seed(0)
    rollouts = as_rollouts(
        complete(
            run.actor, run.task, prompts, params=SamplingParams(max_new_tokens=24), generator=source
        ),
        run.actor,
        micro_tokens=4096,
    )
    rows, positions = rollouts.action_mask.nonzero()[::3].unbind(1)
    found = [
        policy.resume(
            rollouts,
            rows,
            positions,
            params=SamplingParams(max_new_tokens=24, greedy=True),
            micro_tokens=2048,
            generator=source,
        )
        for policy in _both(run.actor)
    ]
    for name in ("ids", "mask", "truncated"):
        assert torch.equal(*(getattr(each, name) for each in found))
    assert bool(used) == by_hand
    # What was sampled has the log-probs that it was sampled with: those of one pass.
    assert rollouts.logprobs.isfinite().all()


@pytest.mark.parametrize("name", list(CLASSES))
def test_images_are_seen_or_refused_in_a_sentence(name: str) -> None:
    model, processor = CLASSES[name]()
    policy = vision_policy(model, processor, Lean(), suppressed_ids=(PAD, BEGIN, UNKNOWN))
    prompts = [
        Prompt("one", "what is it?", None, (image(0),)),
        Prompt("two", "is <image> less than <image>?", None, (image(1, 64), image(2, 32, 64))),
    ]
    given = policy.encode_prompts([prompt for prompt in prompts for _ in range(3)])
    greedy = SamplingParams(max_new_tokens=10, greedy=True)
    options: dict[str, Any] = {"params": greedy, "generator": torch.Generator()}
    if name in ("paligemma", "gemma3"):
        with pytest.raises(PolicyError, match=r"sampler\.name='generate'"):
            policy.generate(*given, **options)
        return
    found = [each.generate(*given, **options) for each in _both(policy)]
    for name in ("ids", "mask", "truncated"):
        assert torch.equal(*(getattr(each, name) for each in found))

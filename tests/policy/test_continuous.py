"""The sampler ``continuous`` draws what ``generate`` draws, more rows than it has places for."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from scipy import stats

from sampling_models import ENDS, SUPPRESSED, drawn_by, made, some_prompts, up_to_the_end
from segcredit import registry
from segcredit.errors import PolicyError
from segcredit.policy.samplers.continuous import Continuous
from segcredit.policy.samplers.generate import Generate


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model = made(name)
    found = up_to_the_end(drawn_by(Continuous(rows=5, tokens=9), model, greedy=True))
    assert found == up_to_the_end(drawn_by(Generate(), model, greedy=True))
    assert len({len(row) for row in found}) > 2, "rows ought to end at different times"


def test_the_generator_decides_and_the_global_one_is_left() -> None:
    model = made("llama")
    state, level = torch.get_rng_state(), logging.getLogger("ContinuousBatchingLogger").level
    first, again = (drawn_by(Continuous(), model) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert logging.getLogger("ContinuousBatchingLogger").level == level
    other = drawn_by(Continuous(), model, generator=torch.Generator().manual_seed(9))
    assert not torch.equal(first, other)
    assert drawn_by(Continuous(), model, max_new_tokens=0).shape == (24, 0)
    assert model.config._attn_implementation == "sdpa"


def test_first_tokens_come_as_often_as_the_model_says() -> None:
    model = made("llama")
    ids, mask = (x[4:5] for x in some_prompts())
    rows, temperature = 3000, 0.7
    found = Continuous(rows=500).sample(
        model,
        ids.expand(rows, -1),
        mask.expand(rows, -1),
        max_new_tokens=1,
        temperature=temperature,
        greedy=False,
        end_ids=ENDS,
        pad_id=0,
        suppressed_ids=SUPPRESSED,
        generator=torch.Generator().manual_seed(2),
    )
    counts = found[:, 0].bincount(minlength=30).double()
    assert not counts[list(SUPPRESSED)].any()
    with torch.no_grad():
        logits = model(input_ids=ids[mask][None]).logits[0, -1].double()
    never = torch.tensor(SUPPRESSED)

    def chance(of: float) -> float:
        due = (logits.index_fill(0, never, -torch.inf) / of).softmax(0) * rows
        often = due >= 5
        seen = torch.cat([counts[often], counts[~often].sum()[None]])
        due = torch.cat([due[often], due[~often].sum()[None]])
        return float(stats.chisquare(seen[due > 0], due[due > 0]).pvalue)

    assert chance(temperature) > 1e-3
    assert chance(1.0) < 1e-6, "the test could not tell another temperature"


def test_what_cannot_be_sampled_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    with pytest.raises(PolicyError, match=r"come with pixel_values; .* sampler\.name='generate'"):
        drawn_by(Continuous(), model, inputs={"pixel_values": torch.zeros(1)})

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(model.model, "forward", broken)
    with pytest.raises(PolicyError, match=r"gave no completions: .* lower sampler\.rows"):
        drawn_by(Continuous(), model)


def test_it_is_found_by_its_name() -> None:
    assert registry.samplers.build("continuous", rows=3) == Continuous(rows=3)
    with pytest.raises(ValueError, match="tokens is 0; expected at least 1"):
        Continuous(tokens=0)

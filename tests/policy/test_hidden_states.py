"""States of tokens: a prompt is read once for all of its completions, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from sampling_models import MODELS, SIZES, made
from segcredit import RolloutBatch
from segcredit.policy import hidden_states as file
from segcredit.policy.hidden_states import token_states
from segcredit.policy.model_inputs import ModelInputs

ORDER = [0, 1, 0, 2, 3, 3, 1, 0]
"""The prompt of each row: four prompts, their rows apart from each other."""
WIDTHS = (5, 6)


def rollouts(order: list[int] = ORDER, completion_width: int = WIDTHS[1]) -> RolloutBatch:
    """Left-padded prompts of which one is the end of another, and completions with holes."""
    source = torch.Generator().manual_seed(5)
    prompt_mask = torch.arange(WIDTHS[0]) >= torch.tensor([0, 2, 3, 1])[:, None]
    prompts = torch.randint(3, 30, (4, WIDTHS[0]), generator=source)
    prompts[2] = prompts[0]
    prompts = prompts.where(prompt_mask, 0)
    shape = (len(order), completion_width)
    blank = torch.zeros(shape)
    return RolloutBatch(
        prompt_ids=prompts[order],
        prompt_mask=prompt_mask[order],
        prompt_keys=tuple(map(str, order)),
        completion_ids=torch.randint(3, 30, shape, generator=source),
        action_mask=torch.rand(shape, generator=source) < 0.7,
        logprobs=blank,
        entropies=blank,
        group=torch.tensor(order),
        texts=("",) * len(order),
        token_spans=torch.zeros((*shape, 2), dtype=torch.long),
        rewards=torch.zeros(len(order)),
        token_rewards=blank,
        truncated=torch.zeros(len(order), dtype=torch.bool),
    )


def one_row_at_a_time(base: Any, batch: RolloutBatch) -> Tensor:
    """The oracle: each row by itself, without padding and without a cache."""
    rows = []
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        ids = torch.cat([prompt, batch.completion_ids[row]])[None]
        states = base(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        rows.append(states * batch.action_mask[row][:, None])
    return torch.stack(rows)


def gradients(base: Any, states: Tensor) -> list[Tensor | None]:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    parameters = list(base.parameters())
    return list(torch.autograd.grad((states * weights).sum(), parameters, allow_unused=True))


@pytest.mark.parametrize("name", MODELS)
def test_states_and_gradients_are_those_of_each_row_alone(name: str) -> None:
    base, batch = made(name).base_model, rollouts()
    found, true = token_states(base, batch, ModelInputs()), one_row_at_a_time(base, batch)
    torch.testing.assert_close(found, true, rtol=0, atol=2e-5)
    for mine, theirs in zip(gradients(base, found), gradients(base, true), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            scale = float(theirs.abs().max().clamp(min=1e-6))
            torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=2e-5)


def columns_read(base: Any, batch: RolloutBatch) -> list[tuple[int, ...]]:
    """Shapes of the ids of each pass."""
    seen: list[tuple[int, ...]] = []

    def note(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        seen.append(tuple(given["input_ids"].shape))

    hook = base.register_forward_pre_hook(note, with_kwargs=True)
    token_states(base, batch, ModelInputs())
    hook.remove()
    return seen


def test_a_prompt_is_read_once() -> None:
    base = made("llama").base_model
    assert columns_read(base, rollouts()) == [(4, 5), (8, 5)]
    assert columns_read(base, rollouts([0, 1, 2, 3])) == [(4, 10)], "nothing is shared"
    assert columns_read(base, rollouts(completion_width=1)) == [(4, 5)]


def test_a_single_column_is_of_the_prompt_alone() -> None:
    base, batch = made("qwen").base_model, rollouts(completion_width=1)
    found = token_states(base, batch, ModelInputs())
    torch.testing.assert_close(found, one_row_at_a_time(base, batch), rtol=0, atol=2e-5)


def test_sliding_windows_are_read_row_by_row() -> None:
    torch.manual_seed(0)
    base = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)).eval().base_model
    batch = rollouts()
    assert columns_read(base, batch) == [(8, 10)]
    found = token_states(base, batch, ModelInputs())
    torch.testing.assert_close(found, one_row_at_a_time(base, batch), rtol=0, atol=2e-5)


def test_a_model_that_returns_no_cache_is_read_row_by_row(monkeypatch: Any) -> None:
    base, batch = made("llama").base_model, rollouts()
    true = token_states(base, batch, ModelInputs())
    monkeypatch.setattr(file, "cache_name", lambda model: "attentions")  # as if it had kept none
    torch.testing.assert_close(token_states(base, batch, ModelInputs()), true, rtol=0, atol=2e-5)

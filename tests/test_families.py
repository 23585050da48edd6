"""Model families of transformers, tiny and random: one policy class has to serve them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from checkpoints import TASK, drawn, tiny
from segcredit.errors import PolicyError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate, generation_config, own_defaults
from segcredit.policy.samplers.lean import Lean
from segcredit.types import SamplingParams

IDS: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
HEADS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
GROUPED = HEADS | {"num_key_value_heads": 2}
WINDOWS = "keeps DynamicSlidingWindowLayer"
RULE = "makes its inputs by a rule of its own"

# Config class, its sizes, and why the sampler `lean` refuses the family ("" where it does not).
FAMILIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "llama": (hf.LlamaConfig, GROUPED, ""),
    "qwen2": (hf.Qwen2Config, GROUPED, ""),
    "qwen3": (hf.Qwen3Config, GROUPED | {"head_dim": 8}, ""),
    "gpt2": (
        hf.GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.2},
        "",
    ),
    "gpt_neox": (hf.GPTNeoXConfig, HEADS, ""),
    "phi3": (hf.Phi3Config, GROUPED | {"original_max_position_embeddings": 96}, RULE),
    "mistral": (hf.MistralConfig, GROUPED | {"sliding_window": 16}, WINDOWS),
    "gemma": (hf.GemmaConfig, GROUPED | {"head_dim": 8}, ""),
    "opt": (
        hf.OPTConfig,
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 96,
            "dropout": 0.1,
            "init_std": 0.2,
        },
        "",
    ),
    "falcon": (
        hf.FalconConfig,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "initializer_range": 0.2,
        },
        "",
    ),
    "mixtral": (
        hf.MixtralConfig,
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        "",
    ),
    "olmo2": (hf.Olmo2Config, GROUPED, ""),
    "bloom": (hf.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}, ""),
}
UNUSED = {"mixtral": "experts"}
"""Parts of a family's names of which some may be of no use to a batch."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny().tokenizer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: Any) -> tuple[str, Callable[..., Any]]:
    name: str = request.param
    config_class, sizes, _ = FAMILIES[name]
    config = config_class(vocab_size=len(tokenizer), **sizes, **IDS)

    def made(sampler: Any) -> Any:
        torch.manual_seed(3)
        model = hf.AutoModelForCausalLM.from_config(config)
        return CausalPolicy(model, tokenizer, sampler, temperature=0.8, suppressed_ids=(0, 2))

    return name, made


def test_scores_are_those_of_sampling_and_gradients_reach_everything(
    family: tuple[str, Callable[..., Any]],
) -> None:
    name, made = family
    policy = made(Generate())
    batch = drawn(policy)
    assert not batch.prompt_mask.all(), "prompts ought to differ in length"
    torch.testing.assert_close(batch.logprobs, sampled_logprobs(policy, batch), atol=1e-4, rtol=0)
    policy(batch).logprobs.sum().backward()
    missed = {n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {n for n in missed if UNUSED.get(name, "?") not in n}


def sampled_logprobs(policy: Any, batch: Any) -> torch.Tensor:
    """(B,T) of the tokens drawn, by the model's own generation: token by token, with its cache."""
    config = generation_config(
        SamplingParams(
            max_new_tokens=batch.completion_ids.shape[1],
            temperature=policy.temperature,
            stop_ids=policy.end_ids,
            suppressed_ids=policy.suppressed_ids,
        ),
        pad_id=policy.pad_id,
    )
    config.update(output_scores=True, return_dict_in_generate=True)
    forced = Forced(batch)
    with own_defaults(policy.model), torch.no_grad():
        policy.model.generate(
            input_ids=batch.prompt_ids,
            attention_mask=batch.prompt_mask.long(),
            generation_config=config,
            logits_processor=hf.LogitsProcessorList([forced]),
        )
    scores_BTV = torch.stack(forced.seen, 1) / policy.temperature
    scores_BTV[..., list(policy.suppressed_ids)] = -torch.inf
    ids_BT1 = batch.completion_ids[:, : len(forced.seen), None]
    logprobs_BT = scores_BTV.log_softmax(2).gather(2, ids_BT1)[..., 0]
    return logprobs_BT.masked_fill(~batch.action_mask, 0.0)


class Forced(hf.LogitsProcessor):
    """Notes the logits of each step, and lets the tokens that were drawn before be drawn again."""

    def __init__(self, batch: Any) -> None:
        self.ids_BT = batch.completion_ids
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.clone())
        forced = torch.full_like(scores, -1e9)
        # A pad token is suppressed; what follows an end is of no interest.
        ids_B = self.ids_BT[:, len(self.seen) - 1].clamp(min=1)
        return forced.scatter(1, ids_B[:, None], 0.0)


def test_lean_draws_the_same_greedy_tokens_or_says_why_not(
    family: tuple[str, Callable[..., Any]],
) -> None:
    name, made = family
    reason = FAMILIES[name][2]
    if reason:
        with pytest.raises(PolicyError, match=rf"{reason}.* [Tt]ake sampler.name='generate'"):
            greedy(made(Lean()))
        return
    expected, found = greedy(made(Generate())), greedy(made(Lean()))
    assert torch.equal(found, expected)


def greedy(policy: Any) -> torch.Tensor:
    prompts = TASK.prompts(8, torch.Generator().manual_seed(0))
    ids, mask, _ = policy.encode_prompts(prompts)
    generator = torch.Generator().manual_seed(0)
    return policy.generate(
        ids, mask, params=SamplingParams(max_new_tokens=12, greedy=True), generator=generator
    ).ids

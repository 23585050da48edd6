"""Small models with random weights, and what a sampler draws from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from segcredit.policy.samplers.lean import Lean
from segcredit.types import SampledTokens, SamplingParams

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "long": (
        LlamaForCausalLM,
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
    ),
    "biased": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "qwen": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4),
    ),
}
ENDS = (1, 7)
SUPPRESSED = (0, 2, 5)


def made(name: str) -> Any:
    make, config = MODELS[name]
    torch.manual_seed(3)
    model = make(config).eval()
    with torch.no_grad():  # norms and biases that do nothing would hide a forgotten one
        for key, x in model.named_parameters():
            if x.ndim == 1:
                x.add_(0.3 * torch.randn_like(x)) if "bias" not in key else x.normal_(0, 0.3)
    return model


def some_prompts(rows: int = 24, width: int = 7) -> tuple[Tensor, Tensor]:
    """Left-padded, of unequal lengths; each one comes twice."""
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30, (rows // 2, width), generator=source)
    mask = torch.arange(width) >= torch.arange(rows // 2)[:, None] % width
    ids = ids.where(mask, 0)
    return ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0)


def drawn_by(sampler: Any, model: nn.Module, **changed: Any) -> Tensor:
    ids, mask = some_prompts()
    generator = changed.pop("generator", None) or torch.Generator().manual_seed(0)
    chosen: dict[str, Any] = {"max_new_tokens": 24} | changed
    params = SamplingParams(stop_ids=ENDS, suppressed_ids=SUPPRESSED, **chosen)
    return sampler.sample(model, ids, mask, params=params, pad_id=0, generator=generator).ids


def up_to_the_end(ids_BT: Tensor, ends: tuple[int, ...] = ENDS) -> list[list[int]]:
    """Each row up to its first end token."""
    rows: list[list[int]] = []
    for row in ids_BT.tolist():
        places = [place for place, token in enumerate(row) if token in ends]
        rows.append(row[: places[0] + 1] if places else row)
    return rows


class Warm(Lean):
    """Draws as ``lean`` does, and says that the log-probs were -.5 all."""

    def sample(self, *args: Any, **options: Any) -> SampledTokens:
        drawn = super().sample(*args, **options)
        assert drawn.logprobs is None
        return SampledTokens(drawn.ids, torch.full(drawn.ids.shape, -0.5))

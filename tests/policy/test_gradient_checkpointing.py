"""Gradient checkpointing: the same gradients with fewer tensors kept."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from checkpoints import drawn, load, tiny, tiny_checkpoint
from segcredit.errors import PolicyError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.checkpoints.lora import LoRA
from segcredit.policy.gradient_checkpointing import recompute_layers
from segcredit.policy.samplers.generate import Generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), layers=4)


def kept(policy: Any, batch: Any) -> tuple[int, torch.Tensor, dict[str, torch.Tensor]]:
    """Bytes of different memory that backward waits for, weights left out; and what it gives."""
    own = {x.untyped_storage().data_ptr() for x in policy.parameters()}
    sizes: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(x)  # such that no address is given twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        scores = policy(batch)
    loss = scores.logprobs.sum() + 0.1 * scores.entropies.sum()
    loss.backward()
    return sum(sizes.values()), loss.detach(), {n: p.grad for n, p in policy.named_parameters()}


@pytest.mark.parametrize("lora", [None, LoRA(4)])
def test_gradients_are_the_same_and_less_is_kept(folder: Path, lora: LoRA | None) -> None:
    plain, again = (load(folder, lora=lora, gradient_checkpointing=on) for on in (False, True))
    batch = drawn(plain)
    before, loss, expected = kept(plain, batch)
    after, same, found = kept(again, batch)
    torch.testing.assert_close(same, loss, atol=1e-6, rtol=0)
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-6)
    tokens = batch.prompt_ids.numel() + batch.completion_ids.numel()
    inputs = 4 * tokens * 64 * 4  # of four layers, which checkpoints hold by themselves
    assert after + inputs < 0.4 * before


def test_sampling_and_copies_go_on_as_before(folder: Path) -> None:
    plain, again = load(folder), load(folder, gradient_checkpointing=True)
    batch = drawn(plain)
    assert torch.equal(drawn(again).completion_ids, batch.completion_ids)
    for twin in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        own = twin(batch).logprobs
        with torch.no_grad():
            torch.testing.assert_close(own, twin(batch).logprobs)
        assert not torch.allclose(own, again(batch).logprobs), "its layers are its own"


def test_dropout_stays_off() -> None:
    """OPT's layers drop units by their own flag, which transformers' switch would need set."""
    policy = tiny()
    config = OPTConfig(
        vocab_size=policy.model.config.vocab_size,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        dropout=0.5,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = OPTForCausalLM(config)
    recompute_layers(model)
    other: Any = CausalPolicy(model, policy.tokenizer, Generate()).train()
    batch = drawn(other)
    with torch.no_grad():
        expected = other(batch).logprobs
    torch.testing.assert_close(other(batch).logprobs, expected)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(PolicyError, match="Linear has no layers that transformers can compute"):
        recompute_layers(nn.Linear(2, 2))

"""GGUF files: a tiny Llama is written with llama.cpp's own package, and read back as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit.errors import MissingPackageError, PolicyError
from segcredit.policy.checkpoints.pretrained import Pretrained
from segcredit.policy.samplers.generate import Generate
from segcredit.tasks.arithmetic import Arithmetic

TOKENS = ["<pad>", "<end>", "<begin>", *"0123456789+-=Ġ", "12"]
CHAT = "{% for m in messages %}<begin>{{ m['content'] }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS = 4


def llama(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        initializer_range=0.4,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # such that float16 holds them exactly
        parameter.data = parameter.data.half().float()
    return model


def interleaved(weight: Tensor) -> Tensor:
    """Rows in llama.cpp's order of rotary pairs."""
    rows, columns = weight.shape
    halves = weight.view(HEADS, 2, rows // HEADS // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def write(path: Path, model: LlamaForCausalLM, *, norms: type = np.float32) -> Path:
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(100.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["1 2"])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_chat_template(CHAT)
    for name, x in tensors(model).items():
        kind = norms if x.ndim == 1 else np.float16
        writer.add_tensor(name, x.numpy().astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: LlamaForCausalLM) -> dict[str, Tensor]:
    state = {k: x.detach() for k, x in model.named_parameters()}
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for layer in range(2):
        for own, other in NAMES.items():
            x = state[f"model.layers.{layer}.{own}.weight"]
            turned = other in ("attn_q", "attn_k")
            found[f"blk.{layer}.{other}.weight"] = interleaved(x) if turned else x
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGCREDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(model: str | Path, **options: Any) -> Any:
    source = Pretrained(str(model), **options)
    return source.load(Arithmetic(), Generate(), temperature=1.0, seed=0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_the_one_that_was_written(tmp_path: Path, tied: bool) -> None:
    expected = llama(tied=tied)
    policy = load(write(tmp_path / "toy.gguf", expected))
    ids = torch.tensor([[2, 4, 13, 5, 15]])
    torch.testing.assert_close(policy.model(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)
    assert (policy.model.lm_head.weight is policy.model.model.embed_tokens.weight) == tied
    assert policy.model.dtype == torch.float32
    config = policy.model.config.to_dict()
    assert "quantization_config" not in config
    assert policy.end_ids == (1,)
    assert policy.suppressed_ids == (0, 2)


def test_its_tokenizer_comes_along_with_the_chat_template(tmp_path: Path) -> None:
    policy = load(write(tmp_path / "toy.gguf", llama(tied=True)))
    ids, _ = policy.encode(["12+3="])
    assert policy.tokenizer.convert_ids_to_tokens(ids[0])[-4:] == ["12", "+", "3", "="]
    assert policy.tokenizer.chat_template == CHAT


def test_it_is_taken_apart_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "toy.gguf", llama(tied=True))
    load(path)
    assert "Taking toy.gguf apart" in capsys.readouterr().err
    (folder,) = cache.glob("gguf-*[!k]")
    load(path.rename(tmp_path / "renamed.gguf"))
    assert "apart" not in capsys.readouterr().err
    other = llama(tied=True)
    other.model.norm.weight.data.mul_(2)
    load(write(tmp_path / "toy.gguf", other))
    assert "apart" in capsys.readouterr().err
    assert len([*cache.glob("gguf-*[!k]")]) == 2
    assert (folder / "model.safetensors").exists()


def test_a_file_inside_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "toy_weights"
    package.mkdir()
    (package / "__init__.py").write_text("import a_requirement_that_is_missing")
    write(package / "toy.gguf", llama(tied=True))
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = load("toy_weights:toy.gguf", dtype="bfloat16")
    assert policy.model.dtype == torch.bfloat16
    assert "toy_weights" not in sys.modules


@pytest.mark.parametrize("name", ["nowhere.gguf", "no_package:file.gguf", "json:file.gguf"])
def test_a_file_that_is_not_there(name: str) -> None:
    with pytest.raises(PolicyError, match=rf"^there is no file '{name}'; expected .* check policy"):
        load(name)


def test_a_damaged_file_is_told_in_a_sentence(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "toy.gguf", llama(tied=True))
    path.write_bytes(b"no weights" + path.read_bytes()[10:])
    with pytest.raises(PolicyError, match=r"toy.gguf' cannot be read \(.*take the model's safe"):
        load(path)
    assert not [*cache.glob("gguf-*[!k]")]


def test_a_missing_package_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "toy.gguf", llama(tied=True))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'segcredit\[gguf\]'"):
        load(path)

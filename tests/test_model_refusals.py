"""What a model, a checkpoint or the memory refuses ends as a sentence, on the command line too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import TASK, drawn, load, tiny_checkpoint
from segcredit import load_config, read_runs, train
from segcredit.cli import main
from segcredit.credit_audit import audit, load_audit_config
from segcredit.episodes import complete
from segcredit.errors import PluginError, PolicyError, StudyError, TrainingError
from segcredit.protocols import Prompt
from segcredit.training.out_of_memory import memory_advice
from segcredit.types import SamplingParams
from small import SMALL

OPTIONS = [key for key in SMALL if not key.startswith("policy.")]
CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model")


def refused(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, *more: str) -> str:
    """What ``segcredit train`` says of a checkpoint."""
    policy = f"policy={{name='hf', model='{folder}'}}"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "grpo", policy, *OPTIONS, *more, "--output", str(tmp_path / "run")])
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_pickled_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.remove(folder / "model.safetensors")
    torch.save(load_state(tmp_path), folder / "pytorch_model.bin")
    said = refused(capsys, folder, tmp_path)
    assert "has its weights in pytorch_model.bin, a pickle, and unpickling runs whatever" in said
    code = said.partition('python -c "')[2].partition('"')[0]
    exec(code)  # what it says to do
    assert load(folder).model.dtype == torch.float32


def load_state(tmp_path: Path) -> dict[str, Tensor]:
    return load(tiny_checkpoint(tmp_path / "other")).model.state_dict()


def own_code(folder: Path) -> Path:
    """A checkpoint whose class is a file beside it, which leaves a trace when it is run."""
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "toy_llama",
        "architectures": ["ToyForCausalLM"],
        "auto_map": {
            "AutoConfig": "own_code.ToyConfig",
            "AutoModelForCausalLM": "own_code.ToyForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_code.py").write_text(
        f"""from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({str(folder / "was_run")!r}).touch()
class ToyConfig(LlamaConfig):
    model_type = "toy_llama"
class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig
"""
    )
    return folder


def test_code_of_its_own_is_run_when_asked_for_alone(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    own_code(folder)
    said = refused(capsys, folder, tmp_path)
    assert "of type 'toy_llama', which transformers does not know" in said
    assert "own_code.ToyConfig, own_code.ToyForCausalLM" in said
    assert "policy.trust_remote_code=true" in said
    assert not (folder / "was_run").exists()
    policy = load(folder, trust_remote_code=True)
    assert (folder / "was_run").exists()
    assert type(policy.model).__name__ == "ToyForCausalLM"


def test_code_beside_a_class_that_transformers_knows_is_not_run(folder: Path) -> None:
    own_code(folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load(folder).model).__name__ == "LlamaForCausalLM"
    assert not (folder / "was_run").exists()


def test_a_tokenizer_without_an_end_token(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["eos_token"]
    file.write_text(json.dumps(config))
    said = refused(capsys, folder, tmp_path)
    assert "has no end token; expected one" in said
    assert "set eos_token in the checkpoint's tokenizer_config.json" in said
    status = read_runs(tmp_path / "run").runs.status
    assert status.tolist() == ["failed"]


def test_a_prompt_that_leaves_no_room_in_the_context(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 28}))
    said = refused(capsys, folder, tmp_path)
    assert "tokens and 24 are to follow it, but the context of LlamaForCausalLM is 28" in said
    assert "Lower rollouts.max_new_tokens" in said


def test_the_context_may_be_filled_to_its_last_token(folder: Path) -> None:
    policy = load(folder)
    policy.model.config.max_position_embeddings = 12
    prompts = [Prompt("short", "1+1=", None), Prompt("long", "1+1+1+1=", None)]  # and a begin token
    generator = torch.Generator()
    policy.encode_prompts(prompts, room=3)
    with pytest.raises(PolicyError, match=r"^prompt 'long' has 9 tokens and 4 are to follow it"):
        complete(
            policy,
            TASK,
            prompts,
            params=SamplingParams(max_new_tokens=4, greedy=True),
            generator=generator,
        )
    policy.encode_prompts(prompts[:1], room=4)
    del policy.model.config.max_position_embeddings
    policy.encode_prompts(prompts, room=1000)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError(CPU), "CPU"),
        (MemoryError("Unable to allocate 728. TiB"), "CPU"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "device"),
    ],
)
def test_what_to_lower_when_memory_ran_out(error: Exception, where: str) -> None:
    advice = str(memory_advice(error))
    assert advice.startswith(f"the memory of the {where} ran out ({str(error).rstrip('. ')}).")
    wrapped = PluginError("estimator 'critic' raised it")
    wrapped.__cause__ = error
    assert memory_advice(wrapped) == f"estimator 'critic': {advice}"


def test_other_errors_are_no_shortage_and_the_real_one_is() -> None:
    assert memory_advice(RuntimeError("shapes do not fit")) is None
    with pytest.raises(RuntimeError) as real:
        torch.empty(10**15)
    assert memory_advice(real.value)


def _starved(*_: Any, **__: Any) -> None:
    torch.empty(10**15)


def test_a_training_run_that_runs_out_of_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcredit.training.loop.improve", _starved)
    with pytest.raises(TrainingError, match=r"of the CPU ran out .* The last good checkpoint is"):
        train(load_config("grpo", SMALL), tmp_path / "python")
    assert "Lower train.micro_tokens first" in read_runs(tmp_path / "python").runs.error[0]
    with pytest.raises(SystemExit):
        main(["train", "grpo", *SMALL, "--output", str(tmp_path / "run")])
    assert "Lower train.micro_tokens first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "starved",
    [
        "segcredit.credit_audit.runner.measure_truth",
        "estimators.values.group_mean.GroupMean.estimate",
    ],
)
def test_an_audit_that_runs_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starved: str
) -> None:
    """Whether the truth does, or one unit after the other."""
    small = [key for key in SMALL if not key.startswith("record.")]
    cheap = ["audit.prompts=2", "audit.completions=2", "audit.gradient_samples=0"]
    settings = load_audit_config("grpo", [*small, *cheap, "audit.continuations=0.2"])
    monkeypatch.setattr(starved, _starved)
    with pytest.raises(StudyError, match=r"Lower train.micro_tokens first"):
        audit(settings, tmp_path / "audit")
    status = json.loads((tmp_path / "audit" / "status.json").read_text())
    assert "Lower train.micro_tokens first" in status["message"]


def test_nothing_is_refused_without_need(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"what a trainer leaves")
    assert len(drawn(load(folder), count=4)) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", None),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": 5}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": "many"}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"5"),
        ("model.gguf", b"GGUF"),
        ("model.gguf", b"GGUF" + bytes(99)),
    ],
)
def test_a_torn_or_foreign_file_is_a_sentence(
    folder: Path, name: str, content: bytes | None
) -> None:
    whole = (folder / name).read_bytes() if content is None else b""
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    source = folder / name if name.endswith(".gguf") else folder
    with pytest.raises(PolicyError, match=r"cannot be read \(.*\); expected"):
        load(source)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PolicyError, match=r"its weights lack .*mlp.up_proj.weight"):
        load(folder)


def test_a_pipe_in_a_model_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(PolicyError, match="no plain file"):
        load(folder)

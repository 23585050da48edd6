"""Adapters: they alone are trained and kept; everything else is the model under them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from checkpoints import drawn, load, tiny_checkpoint
from segcredit import load_config, read_runs, train
from segcredit.cli import main
from segcredit.errors import MissingPackageError, PolicyError, RecordError, RegistryError
from segcredit.policy.checkpoints.lora import LoRA, merge_adapters, merged_parameters, save_adapters
from segcredit.policy.module_copies import copy_of_trained, frozen_copy
from segcredit.policy.samplers.lean import Lean
from segcredit.policy.samplers.llama_decoding import is_small_llama
from segcredit.study.export_policy import save_policy
from segcredit.training.build import build
from segcredit.training.loop import iterate
from segcredit.types import SamplingParams
from small import SMALL

OPTIONS = [key for key in SMALL if not key.startswith("policy.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), steps=40)


def config(folder: Path, method: str = "ppo", *more: str) -> Any:
    policy = f"policy={{name='hf', model='{folder}', lora={{rank=4, alpha=8}}}}"
    return load_config(method, [policy, *OPTIONS, "train.learning_rate=1e-2", *more])


def shaken(module: Any) -> Any:
    """Adapters as after training: B is no longer 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def test_the_table_of_a_config_is_checked_key_by_key(folder: Path) -> None:
    found = config(folder)
    assert found.policy["lora"] == {"rank": 4, "alpha": 8.0, "targets": ()}
    assert load_config(found.model_dump()).policy == found.policy
    for override, message in (
        ("policy.lora.rnk=4", r"option 'lora.rnk' is 4; unexpected"),
        ("policy.lora.rank=0", "rank of at least 1"),
        ("policy.lora.rank=a", r"option 'lora.rank' is 'a'; input should be a valid integer"),
    ):
        with pytest.raises(RegistryError, match=message):
            config(folder, "ppo", override)


def test_fresh_adapters_change_nothing_and_are_decided_by_the_seed(folder: Path) -> None:
    plain, adapted, again = load(folder), load(folder, lora=LoRA(4)), load(folder, lora=LoRA(4))
    assert type(adapted.model) is type(plain.model)
    ids = torch.tensor([[2, 4, 7, 5]])
    assert torch.equal(adapted.model(ids).logits, plain.model(ids).logits)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7, "two layers of seven projections, A and B"
    assert all("lora_" in name for name in trained)
    assert all(torch.equal(x, dict(again.named_parameters())[n]) for n, x in trained.items())
    only = load(folder, lora=LoRA(4, targets=("q_proj", "lm_head")))
    assert sum(p.requires_grad for p in only.parameters()) == 2 * (2 + 1)


def test_layers_that_are_not_there_and_a_missing_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PolicyError, match=r"takes no adapters in \['c_attn'\] .* Leave policy"):
        load(folder, lora=LoRA(targets=("c_attn",)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'segcredit\[lora\]'"):
        load(folder, lora=LoRA())


@pytest.mark.parametrize("targets", [(), ("q_proj", "lm_head")])
def test_samplers_and_scoring_read_the_adapters(folder: Path, targets: tuple[str, ...]) -> None:
    lora = LoRA(4, targets=targets)
    policy, lean = shaken(load(folder, lora=lora)), shaken(load(folder, Lean(), lora=lora))
    assert is_small_llama(load(folder).model), "the case that has steps of its own without adapters"
    prompts = policy.encode(["9-3+2=", "1+1="] * 4)
    drawn = [
        p.generate(
            *prompts,
            params=SamplingParams(max_new_tokens=20, greedy=True),
            generator=torch.Generator().manual_seed(0),
        ).ids
        for p in (policy, lean, load(folder))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])


def test_scores_are_those_of_the_merged_model_and_gradients_reach_adapters_alone(
    folder: Path, tmp_path: Path
) -> None:
    run = build(config(folder))
    batch, policy = drawn(run.actor), shaken(run.actor)
    scores = policy(batch)
    (scores.logprobs.sum() + scores.entropies.sum()).backward()
    for parameter, master in run.policy.master_weights._pairs:
        assert parameter is master
        assert parameter.grad.abs().sum() > 0
    assert all(p.grad is None for p in policy.parameters() if not p.requires_grad)
    save_adapters(policy.model, tmp_path / "adapters")
    ids = torch.tensor([[2, 4, 7, 5]])
    base = AutoModelForCausalLM.from_pretrained(folder)
    read = PeftModel.from_pretrained(base, tmp_path / "adapters")
    torch.testing.assert_close(read(ids).logits, policy.model(ids).logits)
    merge_adapters(policy.model)
    assert not any("lora" in name for name, _ in policy.named_parameters())
    torch.testing.assert_close(policy(batch).logprobs, scores.logprobs, atol=1e-4, rtol=0)
    policy.model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(found(ids).logits, policy.model(ids).logits)


def test_merged_parameters_are_those_of_the_merged_model_which_stays_as_it_is(
    folder: Path, tmp_path: Path
) -> None:
    model: Any = shaken(load(folder, lora=LoRA(rank=4, alpha=8.0))).model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = merged_parameters(model)
    model.save_pretrained(tmp_path, state_dict=found)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    merge_adapters(model)
    wanted = dict(model.named_parameters())
    assert {*found} == {*wanted}
    for name, x in read.named_parameters():
        assert torch.allclose(x, wanted[name], atol=1e-6), name


def test_the_reference_is_the_model_without_a_second_copy_of_it(folder: Path) -> None:
    run = build(config(folder, "ppo", "loss.kl_loss=0.1"))
    own = {p.data_ptr() for p in run.actor.parameters() if not p.requires_grad}
    shared = {p.data_ptr() for p in run.reference.parameters()} & own
    assert shared == own
    assert not any(p.requires_grad for p in run.reference.parameters())
    batch = drawn(run.actor)
    before = run.reference(batch).logprobs
    torch.testing.assert_close(before, load(folder)(batch).logprobs)
    moved = shaken(run.actor)(batch).logprobs
    assert (moved - before).abs().max() > 0.01
    assert torch.equal(run.reference(batch).logprobs, before)


def test_the_critic_trains_adapters_of_its_own_over_the_same_weights(folder: Path) -> None:
    run = build(config(folder))
    policy = {p.data_ptr(): p.requires_grad for p in run.actor.model.model.parameters()}
    backbone = {p.data_ptr(): p.requires_grad for p in run.state.module.backbone.parameters()}
    assert [policy[x] for x in policy.keys() & backbone.keys()] == [False] * sum(
        not needs for needs in policy.values()
    )
    assert sum(backbone.values()) == sum(policy.values()) == 28
    assert len(run.state.parameters) == 28 + 2


def test_whole_copies_share_nothing(folder: Path) -> None:
    plain = load(folder)
    for twin in (copy_of_trained(plain), frozen_copy(plain)):
        addresses = {p.data_ptr() for p in plain.parameters()}
        assert not addresses & {p.data_ptr() for p in twin.parameters()}


def test_a_run_keeps_adapters_alone_learns_and_resumes_to_the_bit(
    folder: Path, tmp_path: Path
) -> None:
    settings = config(folder, "ppo", "checkpoint.every=1", "checkpoint.keep=9", "train.steps=3")
    whole = train(settings, tmp_path / "whole")
    for row in iterate(settings, tmp_path / "cut"):
        if row["step"] == 2:
            break
    train(settings, tmp_path / "cut", resume=True)
    states = {
        (name, step): torch.load(tmp_path / name / "checkpoints" / f"step_00000{step}.pt")
        for name in ("whole", "cut")
        for step in (1, 3)
    }
    modules = {key: state["policy"]["module"] for key, state in states.items()}
    assert all("lora_" in name for name in modules["whole", 3])
    assert len(modules["whole", 3]) == 28
    for name, x in modules["whole", 3].items():
        assert torch.equal(x, modules["cut", 3][name]), name
        assert not torch.equal(x, modules["whole", 1][name]), name
    size = (whole / "checkpoints" / "step_000003.pt").stat().st_size
    assert size < 400_000, "two sets of adapters with their moments; the model alone has 338 kB"
    assert read_runs(whole).runs["policy.lora.rank"].tolist() == [4]


def test_a_runs_policy_is_saved_as_adapters_or_whole(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, and read by peft, transformers and the policy `hf`."""
    run = train(config(folder, "grpo", "train.steps=1"), tmp_path / "run")
    for name, options in (("adapters", []), ("merged", ["--merged"])):
        with pytest.raises(SystemExit):
            main(["save-policy", str(run), str(tmp_path / name), *options])
    assert f"Policy: {tmp_path / 'merged'}" in capsys.readouterr().out
    assert not list((tmp_path / "adapters").glob("model*"))
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[2, 4, 7, 5]])
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapters")(ids).logits
    assert not torch.equal(adapted, before)
    merged = load(tmp_path / "merged")
    torch.testing.assert_close(merged.model(ids).logits, adapted, atol=1e-5, rtol=0)
    with pytest.raises(SystemExit):
        main(["save-policy", str(run), str(tmp_path / "merged")])
    assert "merged is not empty; expected a new folder" in capsys.readouterr().err


def test_a_tiny_policy_is_saved_too_and_nothing_is_not(tmp_path: Path) -> None:
    run = train(load_config("grpo", [*SMALL, "train.steps=1"]), tmp_path / "run")
    state = torch.load(run / "checkpoints" / "step_000001.pt")["policy"]["module"]
    loaded = load(save_policy(run, tmp_path / "model"))
    assert torch.equal(loaded.state_dict()["model.lm_head.weight"], state["model.lm_head.weight"])
    with pytest.raises(RecordError, match="has no checkpoint; expected one"):
        save_policy(tmp_path, tmp_path / "other")

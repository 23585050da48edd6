"""SegmentTrainer: losses and gradients are our own; rewards, tools, checkpoints, refusals.

Needs the package trl, and so an environment of its own: ``make test-trl``.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checked import (
    CHANGES,
    DATA,
    Checked,
    arguments,
    model,
    outcome,
    resumed,
    right,
    save_model,
    trainer,
)
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoTokenizer
from trl import GRPOTrainer

from segcredit.config import load_config, presets
from segcredit.errors import ConfigError, RecordError, TaskError, TrainingError
from segcredit.integrations.trl import DECIDED_BY_METHOD, DECIDED_BY_TRL, _refusals

HERE = Path(__file__).parent
REFUSED = {
    "spo_tree": "rollouts.layout is 'tree'",
    "single_stream": "rollouts.prompt_choice is 'weighted'",
    "dapo": "rollouts.dynamic_sampling is true",
    "high_entropy_mask": "rollouts.dynamic_sampling is true",
    "gigpo": "the [[credit]] tables are a sum of credits",
    "mt_grpo": "the [[credit]] tables are a sum of credits",
    "tree_grpo": "the [[credit]] tables are a sum of credits",
    "kl_cov": "loss.bound is 'covariance_penalty'",
    "seq_mask_tis": "loss.correction is 'reject'",
}
"""Presets that do not run as they stand, and how their sentences begin."""
NEVER = ("spo_tree", "single_stream", "gigpo", "mt_grpo", "tree_grpo", "kl_cov", "seq_mask_tis")
"""Those that run with no setting that leaves them what they are."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    save_model(place)
    return place


def require_equal(found: dict[str, float], steps: int = 4) -> None:
    assert found["steps"] == steps
    assert found["size"] > 1e-4  # there are gradients
    assert found["moved"] > 1e-3  # second passes have ratios other than 1
    assert found["loss"] < 1e-5
    assert found["gradient"] < 1e-5
    assert found["logprobs"] < 1e-4  # of single tokens, some of them very unlikely by now


@pytest.mark.parametrize("method", [name for name in presets() if name not in NEVER])
def test_losses_and_gradients_of_every_preset_are_our_own(method: str, folder: Path) -> None:
    found = outcome(folder, method)
    print(json.dumps({"method": method, **found}))
    require_equal(found)


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_a_preset_that_does_not_fit_is_refused(method: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(REFUSED[method])):
        trainer(folder, tmp_path, method)


@pytest.mark.parametrize(
    ("method", "case", "steps"),
    [
        ("sapo", "pieces", 4),
        ("vapo", "minibatches", 8),
        ("dr_grpo", "both", 8),
        ("pure", "both", 8),
    ],
)
def test_steps_of_several_passes_have_one_denominator(
    method: str, case: str, steps: int, folder: Path
) -> None:
    require_equal(outcome(folder, method, case), steps)


@pytest.mark.parametrize(
    "network",
    ["head", "reader"],
)
def test_other_critics(network: str, folder: Path) -> None:
    """The copy of the policy is the presets' own."""
    critic = f'estimator={{name="critic",network="{network}"}}'
    require_equal(outcome(folder, "ppo", settings=[critic, "train.value.warmup_iterations=1"]))


PROCESSES = ["sapo:one", "vineppo:one", "cispo:one", "vapo:pieces", "ppo:both", "sapo:resumed"]


def test_two_processes_have_the_denominators_of_one(folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", "checked.py", str(folder), *PROCESSES],
        cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case')]
    assert [line["case"] for line in lines] == PROCESSES
    *others, last = lines
    assert last["difference"] < 1e-6
    for line in others:
        print(line)
        require_equal(line, 8 if line["case"].endswith("both") else 4)


# A completion of another engine: TRL gets it with log-probs, and with tokens that no policy chose.


def rolled(noise: float) -> Any:
    """A rollout function that puts a tool's answer into every completion."""

    def rollout(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        actor, tokenizer = trainer.credit.actor, trainer.processing_class
        ids, mask = actor.encode(list(prompts))
        params = trainer.credit.config.rollouts.sampling()
        generator = torch.Generator().manual_seed(trainer.state.global_step)
        made = actor.generate(ids, mask, params=params, generator=generator)
        tool = tokenizer("12", add_special_tokens=False)["input_ids"]
        rows = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
        for row in range(len(prompts)):
            own = made.ids[row][made.mask[row]].tolist()
            at = min(3, len(own))
            rows["prompt_ids"].append(ids[row][mask[row]].tolist())
            rows["completion_ids"].append([*own[:at], *tool, *own[at:]])
            rows["env_mask"].append([1] * at + [0] * len(tool) + [1] * (len(own) - at))
            told = [-noise * (column + 1) for column in range(len(own) + len(tool))]
            told[0] = None  # as where vLLM cannot tell
            rows["logprobs"].append(told)
        return rows

    return rollout


def test_tokens_of_tools_are_holes_and_the_samplers_log_probs_correct(folder: Path) -> None:
    seen: dict[str, Any] = {}

    class Kept(Checked):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            seen.update(found=found, batch=self._batch, logs=dict(self._metrics["train"]))
            return found

    changes = {"kind": Kept, "rollout_func": rolled(0.2)}
    settings = ["loss.correction=truncate", "train.value.warmup_iterations=0"]
    made = trainer_of(folder, "sapo", settings, **changes)
    made.train()
    require_equal(made.found)
    found, batch = seen["found"], seen["batch"]
    holes_BT = found["completion_mask"].bool() & ~found["tool_mask"].bool()
    assert holes_BT.any(1).all()
    assert torch.equal(
        batch.rollouts.action_mask, (found["completion_mask"] * found["tool_mask"]).bool()
    )
    assert all("12" in text for text in batch.rollouts.texts)
    assert not batch.advantages.per_token[holes_BT].any()
    told_BT, rollouts = batch.rollouts.sampler_logprobs, batch.rollouts
    torch.testing.assert_close(told_BT[:, 0], rollouts.logprobs[:, 0])
    mask_BT = rollouts.action_mask.clone()
    mask_BT[:, 0] = False
    torch.testing.assert_close(told_BT[mask_BT], found["sampling_per_token_logps"][mask_BT])
    assert (batch.corrections[mask_BT] != 1).any()
    assert seen["logs"]["segcredit/sampler_ratio_max"][0] > 1


def trainer_of(folder: Path, method: Any, settings: Sequence[str] = (), **changes: Any) -> Any:
    return trainer(folder, folder.parent / "output", method, settings, **changes)


def test_the_reference_of_adapters_is_the_model_without_them(folder: Path) -> None:
    adapters = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", lora_dropout=0.1)
    adapters.target_modules = ["q_proj", "v_proj", "down_proj"]
    settings = ["loss.kl_loss=0.1", "train.value.warmup_iterations=1"]
    made = trainer_of(folder, "sapo", settings, kind=Checked, peft_config=adapters)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    made.train()
    require_equal(made.found)
    rollouts = made._batch.rollouts
    with torch.no_grad(), made.model.disable_adapter():
        without_BT = made.credit.actor(rollouts).logprobs
    torch.testing.assert_close(rollouts.reference_logprobs, without_BT, atol=1e-5, rtol=0)
    assert (rollouts.logprobs - without_BT).abs().max() > 1e-3


# Rewards


def sometimes(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[Any]:
    """The share of digits, of every other text or so."""
    shares = [sum(map(str.isdigit, text)) / max(len(text), 1) for text in completions]
    return [share if odd(text) else None for share, text in zip(shares, completions, strict=True)]


def odd(text: str) -> bool:
    return sum(map(ord, text)) % 2 == 1


def test_rewards_are_weighted_and_what_none_judged_is_left_out(folder: Path) -> None:
    made = trainer_of(
        folder,
        "vineppo",
        ["estimator.continuations=2"],
        kind=Checked,
        reward_funcs=[sometimes, sometimes],
        args={"reward_weights": [1.0, 0.5]},
    )
    made.train()
    require_equal(made.found)
    rollouts = made._batch.rollouts
    assert 0 < len(rollouts) < 16
    assert all(map(odd, rollouts.texts))
    for text, reward in zip(rollouts.texts, rollouts.rewards.tolist(), strict=True):
        assert reward == pytest.approx(1.5 * sometimes([""], [text])[0])
        prompt = made._batch.sampled.prompts[0]
        assert made.credit.task.verify(prompt, text, truncated=False).reward == pytest.approx(
            reward
        )


def test_completions_that_nothing_judged_stop_the_run(folder: Path) -> None:
    silent = trainer_of(
        folder, "grpo", reward_funcs=lambda prompts, **columns: [None] * len(prompts)
    )
    with pytest.raises(TrainingError, match="no reward function judged any of the 16"):
        silent.train()


def test_what_samples_is_judged_by_plain_functions_alone(folder: Path) -> None:
    async def slow(prompts: Sequence[str], **columns: Any) -> list[float]:
        return [0.0] * len(prompts)

    with pytest.raises(ConfigError, match=r"'monte_carlo' does not work here.*coroutines"):
        trainer_of(folder, "vineppo", reward_funcs=slow)
    with pytest.raises(ConfigError, match=r"'monte_carlo' does not work here.*tools or rollout"):
        trainer_of(folder, "vineppo", rollout_func=rolled(0.1))
    with pytest.raises(TaskError, match="tools or rollout_func these cannot be judged"):
        trainer_of(folder, "remax", rollout_func=rolled(0.1)).train()
    # Nothing is sampled but by TRL.
    trainer_of(folder, "rloo", reward_funcs=slow, args={"max_steps": 1}).train()


def test_conversations_are_written_as_trl_writes_them(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    rows = [[{"role": "user", "content": text}] for text in DATA["prompt"]]

    def judged(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        texts = [prompt[-1]["content"] for prompt in prompts]
        return right(texts, [completion[0]["content"] for completion in completions])

    made = trainer_of(
        folder,
        "remax",
        kind=Checked,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": rows}),
        reward_funcs=judged,
    )
    made.train()
    require_equal(made.found)
    batch = made._batch
    ids, mask, _ = made.credit.actor.encode_prompts(batch.sampled.prompts)
    assert torch.equal(ids[mask], batch.rollouts.prompt_ids[batch.rollouts.prompt_mask])


# The value estimator's own passes, metrics, evaluations, checkpoints


def steps_of(made: Any) -> int:
    """Steps of the value estimator's optimizer."""
    (state, *_) = made.credit.state.optimizer.state.values()
    return int(state["step"])


def test_a_first_pass_has_ratio_1_in_bfloat16(folder: Path) -> None:
    """Scores are made in the precision of training."""
    made = trainer_of(folder, "sapo", ["train.value.warmup_iterations=0"], args={"bf16": True})
    made.train()
    ratios = [row["segcredit/ratio_max"] for row in made.state.log_history[:2]]
    assert ratios[0] < 1.02 < ratios[1]


def test_passes_that_nothing_corrects_are_warned_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match="TRL makes 2 optimizer steps of each generation batch"):
        trainer_of(folder, "rloo")


def test_the_value_estimator_makes_its_own_passes(folder: Path) -> None:
    args = {"num_iterations": 1, "max_steps": 2}
    settings = ["train.value.epochs=3", "train.value.warmup_iterations=2"]
    made = trainer_of(folder, "sapo", settings, args=args)
    made.train()
    assert steps_of(made) == 2 * 3 + 2 * 3  # warm-up, then two generations
    made = trainer_of(folder, "sapo", ["train.value.epochs=1", "train.value.warmup_iterations=0"])
    made.train()
    assert steps_of(made) == 2  # one of two passes, of two generations


def test_metrics_are_in_the_log_and_evaluations_leave_training_alone(folder: Path) -> None:
    run = {
        "eval_dataset": DATA.select(range(4)),
        "args": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8},
    }
    made = trainer_of(folder, "vineppo", ["estimator.continuations=2"], kind=Checked, **run)
    made.train()
    require_equal(made.found)
    rows = [row for row in made.state.log_history if "segcredit/kl" in row]
    assert len(rows) == 4
    assert rows[0]["segcredit/tokens_simulated"] > 0
    # Sampling's pass and the loss's have other shapes: a float32 log-prob of -16 nats may differ by
    # its last bit, 1.9e-6. The page's bound of all such differences is 1e-5.
    assert rows[0]["segcredit/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert rows[1]["segcredit/ratio_max"] > 1.001
    assert rows[0]["segcredit/reward"] == pytest.approx(rows[0]["reward"])
    assert rows[0]["segcredit/entropy"] > 0
    evaluated = [row for row in made.state.log_history if "eval_reward" in row]
    assert len(evaluated) == 4
    assert all(math.isfinite(row["eval_loss"]) for row in evaluated)


def test_a_resumed_run_is_the_run_that_was_not_stopped(folder: Path, tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 2}
    settings = ["train.value.warmup_iterations=1"]
    assert resumed(folder, tmp_path / "run", "sapo") == 0
    # Another method, and a checkpoint that is not ours.
    other = trainer(folder, tmp_path / "run", "ppo", settings, args=args)
    with pytest.raises(RecordError, match=r"is of another method: .*segmenter"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    theirs = GRPOTrainer(
        model=model(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=right,
        train_dataset=DATA,
        args=arguments(tmp_path / "theirs", **args),
    )
    theirs.train()
    with pytest.raises(RecordError, match="holds no state of segcredit"):
        other.train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-2"))


# Refusals, each before the first step


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"top_k": 5}, "top_k of GRPOConfig is 5: tokens would be drawn from another distribution"),
        ({"top_p": 0.9}, "top_p of GRPOConfig is 0.9"),
        ({"min_p": 0.1}, "min_p of GRPOConfig is 0.1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty of GRPOConfig is 1.1"),
        ({"generation_kwargs": {"min_new_tokens": 3}}, "generation_kwargs name min_new_tokens"),
        (
            {
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 2,
                "steps_per_generation": 1,
            },
            "steps_per_generation is 1 and gradient_accumulation_steps 2",
        ),
    ],
)
def test_arguments_that_do_not_fit(args: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        trainer_of(folder, "grpo", args=args)


OTHERWISE: dict[str, Any] = {
    "beta": 0.1,
    "use_bias_correction_kl": False,
    "sync_ref_model": True,
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    "scale_rewards": "none",
    "multi_objective_aggregation": "normalize_then_sum",
    "use_adaptive_entropy": True,
    "mask_truncated_completions": True,
    "vllm_importance_sampling_mode": "token_mask",
}
"""Values of arguments that are no numbers."""


@pytest.mark.parametrize("name", sorted(DECIDED_BY_METHOD))
def test_arguments_that_the_method_decides(name: str, folder: Path) -> None:
    given = {name: OTHERWISE.get(name, 0.77)}
    if name == "sync_ref_model":
        given["beta"] = 0.1
    if name.endswith("clip_min"):
        given[name] = 0.1
    asked = "beta" if name == "sync_ref_model" else name
    with pytest.raises(ConfigError, match=f"^{asked} of GRPOConfig is .* the method decides"):
        trainer_of(folder, "grpo", args=given)


@pytest.mark.parametrize("key", sorted(DECIDED_BY_TRL))
def test_settings_that_trl_decides(key: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"settings name {key}.*, which TRL decides"):
        trainer_of(folder, "grpo", [f"{key}=1"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["rollouts.stop=['x']"], r"rollouts.stop is \['x'\]"),
        (["loss.correction=truncate"], "loss.correction is 'truncate', and TRL samples with the"),
        (["segmenter=value_jump"], "'value_jump' reads token_values; TRL's trainer gives"),
        (["segmenter=nowhere"], "segmenter: "),
    ],
)
def test_methods_that_do_not_fit(settings: list[str], sentence: str, folder: Path) -> None:
    with pytest.raises((ConfigError, LookupError), match=sentence):
        trainer_of(folder, "grpo", settings)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"task": "pointer"}, "task 'pointer' has an environment of several turns, and turns are"),
        ({"environment": "python_tool"}, "environment is 'python_tool', and turns are decided by"),
    ],
)
def test_turns_are_decided_by_trl(keys: dict[str, str], sentence: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        trainer_of(folder, {"method": "grpo", **keys})


def test_models_that_do_not_fit(folder: Path) -> None:
    tokens = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ConfigError, match="the adapter is a PromptTuningConfig"):
        trainer_of(folder, "grpo", peft_config=tokens)
    dropping = model(folder)
    dropping.config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"attention_dropout of the model is 0\.1"):
        trainer_of(folder, "grpo", model=dropping)


@pytest.fixture(scope="module")
def built(folder: Path) -> Any:
    return trainer_of(folder, "grpo")


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [
        ("use_vllm", True, "vllm_importance_sampling_correction is true"),
        ("_is_vlm", True, "the processing class reads images"),
        ("is_fsdp_enabled", True, "the model is sharded by FSDP or DeepSpeed"),
        ("is_deepspeed_enabled", True, "the model is sharded by FSDP or DeepSpeed"),
        ("aux_loss_enabled", True, "the model is a mixture of experts"),
        (
            "args.per_device_train_batch_size",
            6,
            "a process has 6 completions of a generation batch",
        ),
    ],
)
def test_engines_that_are_not_here_are_refused_all_the_same(
    attribute: str, value: object, sentence: str, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need vLLM, accelerators or more processes: the trainer is told of them."""
    config = load_config("grpo")
    assert not list(_refusals(built, config))
    owner, _, name = attribute.rpartition(".")
    monkeypatch.setattr(built.args if owner else built, name, value)
    assert next(iter(_refusals(built, config))).startswith(sentence)


def test_a_stream_of_prompts_has_no_warm_up(folder: Path) -> None:
    rows = DATA.to_iterable_dataset()
    with pytest.raises(TaskError, match="train_dataset is a IterableDataset"):
        trainer_of(folder, "sapo", train_dataset=rows).train()
    settings = ["train.value.warmup_iterations=0"]
    trainer_of(folder, "sapo", settings, train_dataset=rows, args={"max_steps": 2}).train()


# The page


PAGE = (HERE.parents[2] / "docs/how-to/trl.md").read_text(encoding="utf-8")


def test_the_pages_script_runs_with_three_lines_changed(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(?:python [^\n]*|text)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    model_of, script, difference = blocks
    changed, lines = script, difference.splitlines()
    assert sum(line.startswith("-") for line in lines) == 2
    assert sum(line.startswith("+") for line in lines) == 4  # of which one is a further import
    old, new = [], []
    for line in [*lines, " "]:
        if line[0] == "-" and new:
            changed, old, new = replaced(changed, old, new), [], []
        (old if line[0] == "-" else new).append(line[1:])
    changed = replaced(changed, old, new[:-1])
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    (tmp_path / "segments.py").write_text(changed, encoding="utf-8")
    for command in (["-c", model_of], ["train.py"], ["segments.py"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert "segcredit/tokens_simulated" in done.stdout


def replaced(text: str, old: list[str], new: list[str]) -> str:
    assert text.count("\n".join(old) + "\n") == 1
    return text.replace("\n".join(old) + "\n", "\n".join(new) + "\n")


def test_the_pages_table_says_what_runs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in rows] == presets()
    for name, runs, passes in rows:
        assert load_config(name).train.epochs == int(passes)
        if name in NEVER:
            assert runs.startswith("no: ")
        elif name in REFUSED:
            (setting,) = CHANGES[name]
            assert runs == f"with `{setting}`"
        else:
            assert runs == "yes"

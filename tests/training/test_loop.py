"""The loop end to end: what is recorded, bit-identical reruns, resuming, and what stops a run."""

import json
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from flat_loss import surrogate_loss
from processes_cases import ROUNDING, Steps
from segcredit import (
    PolicySource,
    ProcessReward,
    SampledTokens,
    Sampler,
    Verdict,
    load_config,
    read_runs,
    registry,
    train,
)
from segcredit.errors import PluginError, PolicyError, RecordError, TaskError, TrainingError
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.training.build import build, run_hash
from segcredit.training.credit_assignment import assign, collect
from segcredit.training.loop import iterate
from segcredit.training.rollouts.completions import micro_batches
from segcredit.training.update import improve
from small import SMALL

TIMES = ["cpu_seconds"]


def metrics(path):
    return read_runs(path).steps.drop(columns=["run", *TIMES])


@pytest.mark.parametrize("method", ["grpo", "ppo", "sapo"])
def test_a_run_is_recorded_whole_and_finite(method, tmp_path):
    path = train(load_config(method, SMALL), tmp_path / "run")
    runs = read_runs(path)
    assert runs.runs.status.tolist() == ["finished"]
    assert runs.runs.method.tolist() == [method]
    assert runs.steps.step.tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(runs.steps.loss[1:]).all()
    assert runs.steps.accuracy.notna().tolist() == [True, False, True, False, True]
    assert len(runs.completions) == 4 * 16
    assert runs.completions.segments.sum() == len(runs.segments)
    assert runs.completions.tokens.sum() == len(runs.tokens)
    joined = runs.segments.groupby(["step", "prompt", "completion"]).text.agg("".join)
    texts = runs.completions.set_index(["step", "prompt", "completion"]).text
    assert (joined.sort_index() == texts.sort_index()).all()


def test_the_same_config_and_seed_give_the_same_run_bit_for_bit(tmp_path, monkeypatch):
    # The first run trains the starting policy, the second finds it in the cache.
    monkeypatch.setenv("SEGCREDIT_CACHE", str(tmp_path / "cache"))
    config = load_config("sapo", SMALL)
    first, second = train(config, tmp_path / "a"), train(config, tmp_path / "b")
    assert metrics(first).equals(metrics(second))
    other = train(load_config("sapo", [*SMALL, "seed=1"]), tmp_path / "c")
    assert not metrics(first).equals(metrics(other))


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def test_a_killed_run_resumes_to_the_same_metrics(tmp_path, monkeypatch):
    config = load_config("ppo", SMALL)
    whole = train(config, tmp_path / "whole")

    def killed_at_three(run, sampled, step):
        if step == 3:
            raise Killed
        return assign(run, sampled, step)

    with monkeypatch.context() as patch:
        patch.setattr("segcredit.training.loop.assign", killed_at_three)
        with pytest.raises(Killed):
            train(config, tmp_path / "cut")
    with pytest.raises(RecordError, match="--resume"):
        train(config, tmp_path / "cut")
    resumed = train(config, tmp_path / "cut", resume=True)
    assert metrics(whole).equals(metrics(resumed))
    tables = read_runs(whole).segments, read_runs(resumed).segments
    assert tables[0].drop(columns="run").equals(tables[1].drop(columns="run"))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    config = load_config("grpo", SMALL)
    path = train(config, tmp_path / "run")
    before = (path / "metrics.jsonl").stat().st_mtime_ns
    train(config, path)
    assert (path / "metrics.jsonl").stat().st_mtime_ns == before


def test_methods_with_one_seed_meet_the_same_prompts_and_start(tmp_path):
    paths = [train(load_config(m, SMALL), tmp_path / m) for m in ("grpo", "sapo")]
    first, second = (read_runs(path) for path in paths)
    assert first.steps.accuracy[0] == second.steps.accuracy[0]
    assert first.completions.prompt.tolist() == second.completions.prompt.tolist()


def test_the_ratio_is_one_on_the_first_minibatch():
    run = build(load_config("sapo", SMALL))
    batch = collect(run, 1)
    rollouts = batch.rollouts
    _, found = surrogate_loss(
        run.policy.module(rollouts).logprobs,
        rollouts.logprobs,
        batch.advantages.per_token,
        rollouts.action_mask,
        batch.segmentation,
        ratio="token",
        clip_low=0.2,
        clip_high=0.2,
        aggregate="token_mean",
    )
    assert abs(float(found["ratio_max"]) - 1) < 1e-4
    assert abs(float(found["kl"])) < 1e-5


ONCE = ["train.epochs=1", "train.minibatches=1", "train.value.epochs=2", "policy.steps=150"]


@pytest.mark.parametrize("method", ["grpo", "sapo", "ppo"])
def test_a_single_pass_is_not_made_twice(method):
    """The scores of sampling train the policy; made anew, they give the same gradients."""
    head = ["estimator.network=head"] if method == "ppo" else []  # reads the policy's states
    losses, steps = [], Steps()
    for anew in (False, True):
        run, passes = build(load_config(method, [*SMALL, *ONCE, *head])), []
        run.policy.module.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        with steps.compared() if anew else steps.recorded():
            for step in (1, 2):
                batch = collect(run, step)
                assert batch.sampled.scores is not None
                if anew:
                    batch = replace(batch, sampled=replace(batch.sampled, scores=None))
                before = len(passes)
                found = improve(run, batch, step)
                # The value's second epoch passes without the policy's gradients, where it reads.
                assert len(passes) - before == anew + (method == "ppo")
                assert abs(found["kl"]) < 1e-5
                losses.append(found["loss"])
    assert steps.off < ROUNDING
    np.testing.assert_allclose(losses[:2], losses[2:], atol=1e-6)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (1, ["train.epochs=2"]),
        (1, ["train.minibatches=2"]),
        (1, ["train.micro_tokens=40"]),
        (-1, []),
    ],
)
def test_scores_are_kept_for_a_single_pass_alone(step, changes):
    run = build(load_config("grpo", [*SMALL, *ONCE, *changes]))
    assert collect(run, step).sampled.scores is None


def test_micro_batches_change_nothing(tmp_path):
    steps = Steps()
    with steps.recorded():
        one = train(load_config("ppo", SMALL), tmp_path / "one")
    with steps.compared():
        many = train(load_config("ppo", [*SMALL, "train.micro_tokens=40"]), tmp_path / "many")
    # Pieces change the order of sums in every block, forward and backward, and errors of blocks
    # add up: attention and MLP of two layers, and the output. Seen is .71 of one rounding; a piece
    # that is left out is off by 1.5 million of them.
    assert steps.off < 2 * (2 * 2 + 1) * ROUNDING
    losses = [metrics(path).loss[1:].to_numpy() for path in (one, many)]
    np.testing.assert_allclose(*losses, atol=1e-6)
    mask = torch.rand(9, 13) < 0.5
    rows = torch.cat(list(micro_batches(mask, 20)))
    assert sorted(rows.tolist()) == list(range(9))


def test_kl_terms_reach_rewards_and_loss(tmp_path):
    config = load_config("ppo", [*SMALL, "loss.kl_penalty=0.1", "loss.kl_loss=0.1"])
    steps = read_runs(train(config, tmp_path / "run")).steps
    assert steps.reference_kl[1:].notna().all()
    assert np.isfinite(steps.loss[1:]).all()


def test_the_hash_names_config_and_code(monkeypatch):
    sapo = load_config("sapo", SMALL)
    assert run_hash(sapo) == run_hash(load_config("sapo", SMALL))
    assert run_hash(sapo) != run_hash(load_config("sapo", [*SMALL, "seed=1"]))
    monkeypatch.setattr("segcredit.registry.Registry.identity", lambda self, name: "edited")
    edited = run_hash(sapo)
    monkeypatch.undo()
    assert run_hash(sapo) != edited


def status(path):
    return json.loads((path / "status.json").read_text())


def test_a_verifier_that_raises_is_named_and_recorded(tmp_path, monkeypatch):
    def broken(self, prompt, text, *, truncated):
        raise ZeroDivisionError("no answer")

    monkeypatch.setattr("segcredit.tasks.arithmetic.Arithmetic.verify", broken)
    with pytest.raises(TaskError, match=r"verifier of task 'Arithmetic' raised ZeroDivisionError"):
        train(load_config("grpo", SMALL), tmp_path / "run")
    assert status(tmp_path / "run")["status"] == "failed"


def test_equal_rewards_from_the_start_stop_the_run_after_patience(tmp_path):
    hopeless = [*SMALL, "rollouts.max_new_tokens=1", "train.patience=2"]
    with pytest.raises(TrainingError, match="all rewards of the first 2 steps were equal"):
        train(load_config("grpo", hopeless), tmp_path / "run")
    assert read_runs(tmp_path / "run").steps.step.tolist() == [0, 1, 2]


def test_a_group_of_equal_rewards_under_a_critic_keeps_its_credit_small(tmp_path, monkeypatch):
    """A = 1 - V, of which a spread of 0 made up to 1,000,000."""
    right = Verdict(reward=1.0, correct=True)
    monkeypatch.setattr("segcredit.tasks.arithmetic.Arithmetic.verify", lambda *_, **__: right)
    train(load_config("grpo", [*SMALL, "estimator.name=critic"]), tmp_path / "run")
    steps = read_runs(tmp_path / "run").steps[1:]
    assert (steps.reward_std == 0).all()
    assert ((steps.advantage_max > 0) & (steps.advantage_max < 2)).all()


def test_large_credit_is_told_once(tmp_path, monkeypatch):
    huge = [*SMALL, "estimator.name=zero", "advantage.name=full_return"]

    def rewarded(run, sampled, step):
        batch = assign(run, sampled, step)
        batch.advantages.per_token.mul_(0).add_(250.0 * batch.rollouts.action_mask)
        return batch

    monkeypatch.setattr("segcredit.training.loop.assign", rewarded)
    with pytest.warns(RuntimeWarning, match="has an advantage of 250 in size; .*a critic") as told:
        path = train(load_config("grpo", huge), tmp_path / "run")
    assert len(told) == 1
    assert read_runs(path).steps.advantage_max[1:].tolist() == [250.0] * 4


def test_equal_rewards_stop_no_run_that_is_shorter_than_its_patience(tmp_path):
    hopeless = ["rollouts.max_new_tokens=1", "train.steps=2", "train.patience=3"]
    path = train("grpo", tmp_path / "run", overrides=[*SMALL, *hopeless])
    assert status(path)["status"] == "finished"
    assert read_runs(path).steps.reward.nunique() == 1


def test_a_start_that_failed_leaves_its_directory_to_the_corrected_config(tmp_path, monkeypatch):
    wrong = load_config("grpo", [*SMALL, "rollouts.max_new_tokens=900"])
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("SEGCREDIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PolicyError):
        train(wrong, tmp_path / "run")
    monkeypatch.undo()
    assert status(tmp_path / "run")["status"] == "failed"
    train(wrong, tmp_path / "run", overrides=SMALL)
    assert status(tmp_path / "run")["status"] == "finished"
    with pytest.raises(RecordError, match="another config"):
        train(wrong, tmp_path / "run", seed=3)


def test_empty_completions_stop_the_run(tmp_path, monkeypatch):
    def nothing(self, *args, **options):
        made = generate(self, *args, **options)
        return replace(made, mask=torch.zeros_like(made.mask))

    from segcredit.policy.causal_lm import CausalPolicy

    generate = CausalPolicy.generate
    monkeypatch.setattr(CausalPolicy, "generate", nothing)
    with pytest.raises(TrainingError, match="all 16 completions of step 1 are empty"):
        train(load_config("grpo", SMALL), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    def spoilt(run, sampled, step):
        batch = assign(run, sampled, step)
        if step == 3:
            batch.advantages.per_token.fill_(math.nan)
        return batch

    monkeypatch.setattr("segcredit.training.loop.assign", spoilt)
    with pytest.raises(TrainingError, match=r"loss of step 3 is not finite.*step_000002\.pt"):
        train(load_config("grpo", SMALL), tmp_path / "run")
    assert read_runs(tmp_path / "run").steps.step.tolist() == [0, 1, 2]
    monkeypatch.undo()
    finished = train(load_config("grpo", SMALL), tmp_path / "run", resume=True)
    assert status(finished)["status"] == "finished"


def test_a_plugin_that_raises_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("segmenters.entropy.top_fraction", lambda *a: 1 / 0)
    with pytest.raises(PluginError, match=r"'entropy' \(.*entropy\.py, .*raised Zero"):
        train(load_config("sapo", SMALL), tmp_path / "run")


@dataclass(frozen=True)
class NoPolicy:
    def load(self, task, sampler, *, temperature, seed):
        return torch.nn.Linear(2, 2)


def test_a_policy_that_lacks_members_is_refused_by_their_names(monkeypatch):
    monkeypatch.setitem(registry.policies._local, "none", NoPolicy)
    config = load_config("grpo", [*SMALL, "policy=none"])
    said = r"policy 'none' loaded a Linear that lacks decode, encode, .*sync, temperature;"
    with pytest.raises(PolicyError, match=said):
        build(config)


class Plain(torch.nn.Module):
    """A policy without capabilities: what every method needs, and no more."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.hidden_size, self.temperature = inner.hidden_size, inner.temperature
        for name in (
            "samples_in_process",
            "encode",
            "encode_prompts",
            "decode",
            "generate",
            "sync",
        ):
            setattr(self, name, getattr(inner, name))

    def forward(self, rollouts):
        return self.inner(rollouts)


@dataclass(frozen=True)
class PlainSource(PolicySource):
    def load(self, task, sampler, *, temperature, seed):
        return Plain(Tiny(steps=2).load(task, sampler, temperature=temperature, seed=seed))


def test_a_capability_is_missed_when_the_run_is_built_and_by_whom_it_is_needed(monkeypatch):
    monkeypatch.setitem(registry.policies._local, "plain", PlainSource)
    small = [key for key in SMALL if not key.startswith("policy.")] + ["policy=plain"]
    improve(run := build(load_config("grpo", small)), collect(run, 1), 1)
    for preset, said in (
        ("vineppo", "estimator 'monte_carlo' needs a policy .*SupportsResume, and Plain lacks"),
        ("spo_tree", "layout='tree' needs a policy with the methods of segcredit.SupportsResume"),
        ("ppo", "estimator 'critic' needs a policy .*SupportsBackbone, and Plain lacks backbone"),
    ):
        with pytest.raises(PolicyError, match=said):
            build(load_config(preset, [*small, "rollouts.completions=8"]))


@dataclass(frozen=True)
class Telling(Sampler):
    """Samples greedily by hand, tells its log-probs, and counts how often weights came."""

    synced: ClassVar[list[float]] = []

    @torch.no_grad()
    def sample(self, model, prompt_ids, prompt_mask, *, params, pad_id, generator, **_):
        ids, mask, told = prompt_ids, prompt_mask.long(), []
        for _ in range(params.max_new_tokens):
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, -1]
            logits[:, list(params.suppressed_ids)] = -torch.inf
            shares = (logits / params.temperature).log_softmax(1)
            drawn = torch.multinomial(shares.exp(), 1, generator=generator)
            told.append(shares.gather(1, drawn))
            ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, mask[:, -1:]], 1)
        return SampledTokens(ids[:, prompt_ids.shape[1] :], torch.cat(told, 1))

    def sync(self, model):
        self.synced.append(float(next(model.parameters()).detach().sum()))


def test_a_sampler_hears_of_new_weights_and_its_log_probs_reach_the_batch(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.samplers._local, "telling", Telling)
    Telling.synced.clear()
    config = load_config("grpo", [*SMALL, "sampler=telling", "train.steps=2"])
    run = build(config)
    rollouts = collect(run, 1).rollouts
    torch.testing.assert_close(rollouts.sampler_logprobs, rollouts.logprobs, atol=1e-5, rtol=1e-5)
    assert rollouts.sampler_logprobs[rollouts.action_mask].lt(0).any()
    train(config, tmp_path / "run")
    assert len(Telling.synced) == len(set(Telling.synced)) == 2
    again = load_config("grpo", [*SMALL, "sampler=telling", "train.steps=3", "checkpoint.every=2"])
    stopped = iterate(again, tmp_path / "again")
    for row in stopped:
        if row["step"] == 2:
            stopped.close()
            break
    train(again, tmp_path / "again", resume=True)
    assert len(Telling.synced) == 2 + 2 + 2  # two steps, the checkpoint, and one step more


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    import errno
    import os

    config = load_config("grpo", SMALL)
    written, fsync = 0, os.fsync

    def full(descriptor):
        nonlocal written
        written += 1
        if written > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RecordError, match=r"[Nn]o space|full"):
            train(config, tmp_path / "run")
    train(config, tmp_path / "whole")
    resumed = train(config, tmp_path / "run", resume=True)
    assert metrics(resumed).equals(metrics(tmp_path / "whole"))


def test_a_pretrained_model_runs_through_the_same_loop(tmp_path):
    policy = build(load_config("grpo", SMALL)).actor
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    model = f"policy={{name='hf', model='{tmp_path / 'model'}'}}"
    small = [key for key in SMALL if not key.startswith("policy.")]
    pretrained = train(load_config("sapo", [model, *small]), tmp_path / "hf")
    embedded = train(load_config("sapo", SMALL), tmp_path / "tiny")
    assert read_runs(pretrained).steps.accuracy[0] == read_runs(embedded).steps.accuracy[0]


def test_process_rewards_are_added_to_the_segments(tmp_path, monkeypatch):
    @dataclass(frozen=True, slots=True)
    class Tenth(ProcessReward):
        def reward(self, rollouts, segmentation):
            return torch.full(segmentation.mask.shape, 0.1)

    monkeypatch.setattr(registry.process_rewards, "_local", {"tenth": Tenth})
    config = load_config("sapo", [*SMALL, "process_reward=tenth"])
    segments = read_runs(train(config, tmp_path / "run")).segments
    last = segments.groupby(["step", "prompt", "completion"]).segment.transform("max")
    np.testing.assert_allclose(segments.reward[segments.segment < last], 0.1, atol=1e-6)


def test_the_ratio_may_have_a_segmentation_of_its_own(tmp_path):
    own = [*SMALL, "loss.ratio=segment", "loss.ratio_segmenter=newline"]
    by_line = read_runs(train(load_config("ppo", own), tmp_path / "line")).steps
    by_token = read_runs(train(load_config("ppo", SMALL), tmp_path / "token")).steps
    assert by_line.ratio_max[4] != by_token.ratio_max[4]
    assert by_line.segments_per_completion[1] == by_token.segments_per_completion[1]

"""Stored truths: whole after any interruption, one process at a time, refused to another policy."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from segcredit import load_config, registry
from segcredit.credit_audit.truth import load_truth, measure_truth
from segcredit.credit_audit.truth.parts import read_part
from segcredit.episodes import complete
from segcredit.errors import BusyError, StudyError
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.records.run_lock import run_lock
from segcredit.rng import stream
from segcredit.training.build import build
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import SamplingParams


@dataclass(frozen=True)
class Words(Task):
    """Prompts of unequal lengths; every text has a reward of its own."""

    salt: int = 0
    most: int = 50

    def prompts(self, count, generator):
        return self.evaluation(count)

    def evaluation(self, count):
        return [
            Prompt(key=f"p{n}", text="ab "[: 1 + n % 3], answer={"n": [n, "ä"]})
            for n in range(min(count, self.most))
        ]

    def verify(self, prompt, text, *, truncated):
        reward = zlib.crc32(f"{prompt.key}/{text}/{truncated}".encode()) % 97 / 97
        return Verdict(reward=reward, correct=False)

    def alphabet(self):
        return "abc "


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr(registry.tasks, "_local", {"words": Words})


def config_of(*overrides):
    return load_config(
        "sapo",
        [
            "task=words",
            "policy.steps=0",
            "policy.initializer_range=0.2",
            "segmenter=whole",
            "estimator=zero",
            "advantage=full_return",
            "rollouts.max_new_tokens=5",
            "rollouts.temperature=0.8",
            "seed=3",
            *overrides,
        ],
    )


SIZES = {"prompts": 20, "completions": 2, "continuations": 2}
FIELDS = ("values", "errors", "jump_errors", "counts", "prompt_numbers")


def measured(path, *overrides, **changes):
    return measure_truth(config_of(*overrides), path, **{**SIZES, **changes})


def assert_same(one, other):
    for name in FIELDS:
        assert torch.equal(getattr(one, name).nan_to_num(-1), getattr(other, name).nan_to_num(-1))
    for name in ("completion_ids", "logprobs", "entropies", "rewards", "token_spans"):
        assert torch.equal(getattr(one.rollouts, name), getattr(other.rollouts, name))
    assert one.rollouts.texts == other.rollouts.texts
    assert (one.tokens, one.completion_tokens) == (other.tokens, other.completion_tokens)


def part(path, number):
    return path / "parts" / f"part_{number:05d}.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished truth of three parts; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.tasks, "_local", {"words": Words})
        path = tmp_path_factory.mktemp("truth") / "whole"
        yield measured(path)


# ---- what is stored


def test_a_loaded_truth_is_what_was_measured(whole):
    assert_same(load_truth(whole.path), whole)
    assert whole.values.shape == (40, 2, whole.rollouts.completion_ids.shape[1] + 1)
    assert whole.prompt_numbers.tolist() == [n // 2 for n in range(40)]
    assert [p.key for p in whole.prompts] == [f"p{n}" for n in range(20)]
    assert whole.prompts[7] == Prompt(key="p7", text="ab", answer={"n": [7, "ä"]})
    assert whole.tokens > 0 < whole.cpu_seconds
    assert whole.completion_tokens == whole.rollouts.action_mask.sum()
    lengths = whole.rollouts.action_mask.sum(1)
    ends = whole.values.gather(2, lengths[:, None, None].expand(-1, 2, 1))[..., 0]
    assert torch.equal(ends, whole.rollouts.rewards.double()[:, None].expand(-1, 2))
    assert torch.equal(whole.values.isnan().sum(2)[:, 0], whole.values.shape[2] - 1 - lengths)


def test_the_rollouts_are_those_that_were_sampled(whole):
    """Every field that a plug-in reads, but for the ids of padding."""
    config = config_of()
    run = build(config)
    prompts = [prompt for prompt in whole.prompts[:8] for _ in range(2)]
    completions = complete(
        run.actor,
        run.task,
        prompts,
        params=SamplingParams(max_new_tokens=5),
        generator=stream(config.seed, "truth/completions", 0),
    )
    sampled = as_rollouts(completions, run.actor, micro_tokens=config.train.micro_tokens)
    found = whole.rollouts.select(range(16))
    assert len(set(sampled.action_mask.sum(1).tolist())) > 2
    assert found.prompt_keys == sampled.prompt_keys
    assert found.texts == sampled.texts
    width = sampled.completion_ids.shape[1]
    for name in ("action_mask", "logprobs", "entropies", "token_rewards", "token_spans"):
        assert torch.equal(getattr(found, name)[:, :width], getattr(sampled, name))
    for name in ("rewards", "truncated", "group", "prompt_mask"):
        assert torch.equal(getattr(found, name), getattr(sampled, name))
    mask = sampled.action_mask
    assert torch.equal(found.completion_ids[:, :width][mask], sampled.completion_ids[mask])
    mask = sampled.prompt_mask
    assert torch.equal(found.prompt_ids[mask], sampled.prompt_ids[mask])
    whole.require_policy(run.actor, micro_tokens=1000)


def test_parts_are_tables_of_a_row_a_completion(whole):
    table = pq.read_table(part(whole.path, 1)).to_pandas()
    assert len(table) == 16
    assert set(table["prompt"]) == {f"p{n}" for n in range(8, 16)}
    values = table["values"][3][1]
    assert values.tolist() == whole.values[19, 1, : len(values)].tolist()
    stored = json.loads((whole.path / "truth.json").read_text())
    assert stored["finished"] is True
    assert (stored["hash"], stored["tokens"]) == (whole.hash, whole.tokens)
    assert stored["environment"]["seed"] == 3


def test_a_finished_truth_is_read_without_its_policy(whole, monkeypatch):
    monkeypatch.setattr("segcredit.credit_audit.truth.store.build", None)
    seen = []
    assert_same(measured(whole.path, watch=seen.append), whole)
    assert seen == []


def test_what_judges_it_later_makes_no_other_truth(whole):
    found = measured(whole.path, "segmenter=newline", "train.steps=7", "loss.bound.low=0.1")
    assert found.hash == whole.hash
    found.require_config(config_of("estimator=group_mean"))


def test_progress_is_told_with_the_time_that_is_left(tmp_path):
    seen = []
    measured(tmp_path, continuations=0.1, watch=seen.append)
    assert [(p.done, p.parts) for p in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert math.isnan(seen[0].seconds_left)
    assert seen[1].seconds_left > 0 == seen[3].seconds_left
    assert 0 == seen[0].tokens < seen[1].tokens < seen[3].tokens


# ---- interruptions


def damaged(file, how):
    data = file.read_bytes()
    if how == "absent":
        file.unlink()
    elif how == "another part":
        file.write_bytes(part(file.parent.parent, 0).read_bytes())
    else:
        half = len(data) // 2
        changed = bytes([data[half // 2] ^ 255])
        file.write_bytes(
            {
                "empty": b"",
                "truncated": data[:half],
                "flipped": data[: half // 2] + changed + data[half // 2 + 1 :],
                "no table": b"hello",
            }[how]
        )


@pytest.mark.parametrize(
    "how", ["absent", "empty", "truncated", "flipped", "no table", "another part"]
)
def test_what_is_missing_or_damaged_is_measured_again_and_nothing_else(whole, tmp_path, how):
    path = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole.path), str(path)], check=True)
    (path / "parts" / ".part_00001.parquet.7.tmp").write_bytes(b"half")
    before = part(path, 0).stat().st_mtime_ns
    damaged(part(path, 2), how)
    with pytest.raises(StudyError, match=r"holds 2 of the 3 parts.* damaged are 2\."):
        load_truth(path)
    seen = []
    again = measured(path, watch=seen.append)
    assert_same(again, whole)
    assert [p.done for p in seen] == [2, 3]
    assert part(path, 0).stat().st_mtime_ns == before
    assert not list(path.rglob("*.tmp"))


def test_a_byte_that_the_disk_changed_is_never_read_as_if_it_were_whole(whole, tmp_path):
    file, data = tmp_path / "part", part(whole.path, 0).read_bytes()
    file.write_bytes(data)
    expected = read_part(file, 0, whole.hash)
    assert expected is not None
    for place in range(4, len(data), len(data) // 150):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found = read_part(file, 0, whole.hash)
        assert found is None or found == expected


SCRIPT = """
import os, sys
sys.path[:0] = {tests!r}
from test_truth_store import *
registry.tasks._local["words"] = Words
def watch(progress):
    if progress.done == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
measured(Path({path!r}), watch=watch)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_measurement_goes_on_bit_for_bit(whole, tmp_path, after):
    path = tmp_path / "killed"
    script = SCRIPT.format(
        tests=[str(p) for p in Path(__file__).parents[:2]], after=after, path=str(path)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert json.loads((path / "truth.json").read_text())["finished"] is False
    assert len(list((path / "parts").glob("part_*"))) == after if after else True
    assert_same(measured(path), whole)
    assert json.loads((path / "truth.json").read_text())["finished"] is True


def test_one_process_measures_at_a_time(tmp_path):
    with run_lock(tmp_path), pytest.raises(BusyError, match="another process"):
        measured(tmp_path)


# ---- refusals


@pytest.mark.parametrize(
    ("overrides", "changes", "words"),
    [
        (["policy.hidden_size=32"], {}, r"policy.hidden_size \(there 64, now 32\)"),
        (["task.salt=1"], {}, r"task.salt \(there 0, now 1\)"),
        (["seed=4"], {}, r"seed \(there 3, now 4\)"),
        (["rollouts.temperature=1.0"], {}, r"rollouts.temperature \(there 0.8, now 1.0\)"),
        (["rollouts.max_new_tokens=6"], {}, r"rollouts.max_new_tokens"),
        ([], {"continuations": 3}, r"truth.continuations \(there 2.0, now 3.0\)"),
        ([], {"splits": 3}, r"truth.halves"),
        ([], {"prompts": 19}, r"prompts \(there '.*truth.prompts \(there 20, now 19\)"),
    ],
)
def test_another_truth_is_refused_and_says_what_differs(whole, overrides, changes, words):
    with pytest.raises(StudyError, match=words):
        measured(whole.path, *overrides, **changes)
    if overrides:
        with pytest.raises(StudyError, match=words):
            whole.require_config(config_of(*overrides))
    assert_same(load_truth(whole.path), whole)


def test_other_code_behind_the_task_is_another_truth(whole, monkeypatch):
    @dataclass(frozen=True)
    class Other(Task):
        salt: int = 0
        most: int = 50
        evaluation, verify, prompts = Words.evaluation, Words.verify, Words.prompts

    monkeypatch.setattr(registry.tasks, "identity", lambda name: "sha256:other")
    with pytest.raises(StudyError, match=r"plugins.task \(there 'sha256:.*now 'sha256:other'\)"):
        measured(whole.path)


def test_other_weights_under_the_same_name_are_refused(whole, tmp_path, monkeypatch):
    policy = build(config_of()).actor
    with torch.no_grad():
        policy.model.lm_head.weight *= 1.1
    with pytest.raises(StudyError, match="nats off on average"):
        whole.require_policy(policy, micro_tokens=1000)
    path = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole.path), str(path)], check=True)
    part(path, 1).unlink()

    def other(config):
        run = build(config)
        with torch.no_grad():
            run.actor.model.lm_head.weight *= 1.1
        return run

    monkeypatch.setattr("segcredit.credit_audit.truth.store.build", other)
    with pytest.raises(StudyError, match="another policy under the same name"):
        measured(path)
    assert not part(path, 1).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": 0}, "prompts are 0"),
        ({"completions": 0}, "completions 0"),
        ({"continuations": 0}, "continuations 0"),
        ({"splits": 1}, "splits 1"),
        ({"prompts": 51}, "has 50 evaluation prompts; expected the 51"),
    ],
)
def test_numbers_that_say_nothing_are_refused_before_anything_is_made(tmp_path, changes, words):
    with pytest.raises(StudyError, match=words):
        measured(tmp_path / "none", **changes)
    assert not (tmp_path / "none").exists()


def test_answers_that_cannot_be_stored_are_refused(tmp_path, monkeypatch):
    prompts = [Prompt(key="p", text="a", answer={1, 2})]
    monkeypatch.setattr(Words, "evaluation", lambda self, count: prompts)
    with pytest.raises(StudyError, match=r"answer of prompt 'p' .* cannot be stored"):
        measured(tmp_path / "none", prompts=1)


@pytest.mark.parametrize("text", ["", "{}", '{"hash": "0", "identity": {}, "prompts": []}', "[1]"])
def test_what_is_no_truth_is_a_sentence(tmp_path, text):
    with pytest.raises(StudyError, match="Usually the directory holds no truth"):
        load_truth(tmp_path)
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(StudyError, match=r"truth.json cannot be read"):
        load_truth(tmp_path)


def test_a_policy_that_never_ends_has_a_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(Words, "verify", lambda *_, truncated: Verdict(float(not truncated), False))
    found = measured(tmp_path, "rollouts.max_new_tokens=1", prompts=3)
    assert found.rollouts.truncated.any()
    cut = found.rollouts.truncated
    assert (found.values[cut][:, :, 1] == 0).all()

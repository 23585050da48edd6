"""Runs, an audit and faults through real vLLM servers: ``make test-vllm``.

Slow, and in need of the environment that SEGCREDIT_VLLM_PYTHON names; a server is started by
``segcredit serve`` for each of three models, and that of the runs twice more after it was killed.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import vllm_wire
from segcredit import load_config, read_runs, registry, train
from segcredit.credit_audit import audit, load_audit_config
from segcredit.episodes import Completions, complete
from segcredit.errors import PolicyError
from segcredit.policy.samplers import vllm
from segcredit.policy.samplers.vllm import VLLM
from segcredit.records.run_directory import read_status
from segcredit.testing import sampler_checks, sampler_rules
from segcredit.training.build import Run, build
from segcredit.training.rollouts.completions import score, unscored_rollouts
from segcredit.types import SamplingParams
from small import SMALL

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]
TINY = [
    *SMALL,
    "policy.heads=2",
    "task.min_steps=3",
    "task.max_steps=4",
    "rollouts.max_new_tokens=32",
]
"""Heads of 32, the smallest that vLLM has for CPUs."""
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


class Served:
    """A server that ``segcredit serve`` starts, and its processes."""

    def __init__(self, folder: Path, *words: str) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.words, self.log = words, folder / f"serve-{self.port}.log"
        self.start()
        self.ready()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sampler(self) -> str:
        return f'sampler={{name="vllm", url="{self.url}"}}'

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "segcredit",
            "serve",
            *self.words,
            "--port",
            f"{self.port}",
        ]
        self.process = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def ready(self) -> None:
        """Waits until it says how it is sampled from."""
        while self.process.poll() is None:
            if "\nsampler = " in self.log.read_text(errors="replace"):
                return
            time.sleep(1)
        raise AssertionError(self.log.read_text(errors="replace")[-3000:])

    def kill(self) -> None:
        """Kills all of its processes, as the system does for want of memory."""
        own = psutil.Process(self.process.pid)
        for one in [own, *own.children(recursive=True)]:
            one.kill()
        self.process.wait()

    def stop(self) -> None:
        own = psutil.Process(self.process.pid)
        parts = own.children(recursive=True)
        self.process.terminate()
        assert self.process.wait(60) == 130, self.log.read_text(errors="replace")[-3000:]
        _, left = psutil.wait_procs(parts, timeout=30)
        assert not left, "processes that the server left behind"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("served"), "grpo", *TINY)
    yield found
    found.stop()


def run_with(served: Served, *more: str) -> Run:
    return build(load_config("grpo", [*TINY, served.sampler, *more]))


def drawn(run: Run, *, seed: int = 0, **options: Any) -> Completions:
    prompts = [prompt for prompt in run.task.evaluation(8) for _ in range(4)]
    return complete(
        run.actor,
        run.task,
        prompts,
        params=SamplingParams(max_new_tokens=32, **options),
        generator=torch.Generator().manual_seed(seed),
    )


def apart(run: Run, completions: Completions) -> float:
    """The largest difference, in nats, between the server's log-probs and our scoring."""
    scores = score(run.actor, unscored_rollouts(completions), micro_tokens=65536)
    assert completions.sampler_logprobs is not None
    difference = scores.logprobs - completions.sampler_logprobs
    return float(difference[completions.mask].abs().max())


def moved(run: Run, seed: int) -> None:
    """Changes the weights, as an update does."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in run.actor.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_scoring_before_and_after_updates(
    temperature: float, served: Served
) -> None:
    run = run_with(served, f"rollouts.temperature={temperature}")
    first = drawn(run)
    print("apart", apart(run, first))
    assert apart(run, first) <= 1e-4
    assert torch.equal(first.ids, drawn(run).ids)
    groups = [first.texts[start : start + 4] for start in range(0, len(first.texts), 4)]
    assert all(len({*group}) > 1 for group in groups), "equal prompts, equal completions"
    for seed in (1, 2):
        moved(run, seed)
        run.actor.sync()
        found = drawn(run, stop=("=1",) if seed == 2 else ())
        print("apart", apart(run, found))
        assert apart(run, found) <= 1e-4


def test_greedy_completions_are_those_of_generate(served: Served) -> None:
    run = run_with(served)
    texts = drawn(run, greedy=True).texts
    run.actor.sampler = registry.samplers.build("generate")
    assert texts == drawn(run, greedy=True).texts


def test_weights_that_were_not_sent_and_prefixes_that_were_kept_would_be_seen(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(served)
    whole = unscored_rollouts(drawn(run))
    width, position = whole.action_mask.shape[1], 24
    assert width > position + 1
    assert whole.prompt_mask.sum(1).min() + position > 32, "shorter than a block of the cache"
    rows = torch.arange(len(whole))
    late = torch.full_like(rows, position)

    def after_prefixes() -> float:
        made = run.actor.resume(
            whole,
            rows,
            late,
            params=SamplingParams(max_new_tokens=32),
            micro_tokens=65536,
            generator=torch.Generator().manual_seed(1),
        )
        more = width - position
        new, mask = made.ids[:, :more], made.mask[:, :more]
        ids = torch.cat([whole.completion_ids[:, :position], new], 1)
        # Every token before the position is read, also after an end.
        known = torch.ones_like(whole.action_mask[:, :position])
        rollouts = whole.replace(completion_ids=ids, action_mask=torch.cat([known, mask], 1))
        own = score(run.actor, rollouts, micro_tokens=65536).logprobs[:, position:]
        assert made.logprobs is not None
        return float((own - made.logprobs[:, :more])[mask].abs().max())

    assert after_prefixes() <= 1e-4
    moved(run, 3)
    stale = after_prefixes()
    monkeypatch.setattr(vllm._Server, "forget_prefixes", lambda self: None)
    run.actor.sync()
    kept = after_prefixes()
    monkeypatch.undo()
    moved(run, 4)
    run.actor.sync()
    print("stale weights", stale, "stale prefixes", kept, "right", after_prefixes())
    assert stale > 0.01
    assert kept > 0.01
    assert after_prefixes() <= 1e-4


def test_weights_of_another_run_are_found_at_the_next_draw(served: Served) -> None:
    run, other = run_with(served), run_with(served)
    drawn(run)
    moved(other, 5)
    other.actor.sync()
    with pytest.raises(PolicyError, match="which this run did not send"):
        drawn(run)
    vllm_wire.asked(f"{served.url}/update_weight_version", {"new_version": "default"})


@pytest.mark.parametrize("method", ["grpo", "sapo", "vineppo", "spo_tree"])
def test_a_method_runs(method: str, served: Served, tmp_path: Path) -> None:
    options = [*TINY, served.sampler, "train.steps=2", "evaluate.every=1"]
    if method == "spo_tree":
        options += ["rollouts.branches=[2, 2]"]
    rows = read_runs(train(method, tmp_path / "a", overrides=options)).steps
    assert rows["step"].tolist() == [0, 1, 2]
    print(rows[["step", "sampler_kl", "sampler_ratio_max", "reward", "cpu_seconds"]])
    assert rows["sampler_kl"].iloc[1:].abs().max() < 1e-5
    assert rows["sampler_ratio_max"].iloc[1:].max() < 1 + 1e-4
    again = read_runs(train(method, tmp_path / "b", overrides=options)).steps
    same = ["reward", "tokens_sampled", "accuracy", "completion_length"]
    assert rows[same].equals(again[same])


def test_completions_one_step_ahead(served: Served, tmp_path: Path) -> None:
    options = [*TINY, served.sampler, "rollouts.ahead=1", 'loss.correction="truncate"']
    rows = read_runs(train("grpo", tmp_path, overrides=options)).steps
    # The first step's are of the policy that trains on them, up to rounding; the others' are not.
    assert rows["sampler_ratio_max"].iloc[1] < 1 + 1e-4
    assert (rows["sampler_ratio_max"].iloc[2:] > 1.001).all()


def test_an_audit_runs(served: Served, tmp_path: Path) -> None:
    options = [
        "audit.prompts=4",
        "audit.completions=2",
        "audit.continuations=0.5",
        "audit.training_steps=1",
        "audit.gradient_samples=24",
        "audit.gradient_batches=3",
        "audit.resamples=50",
        'audit.segmenters=["newline"]',
        'audit.estimators=["measured", "group_mean"]',
        'audit.advantages=["td"]',
    ]
    config = load_audit_config("sapo", [*TINY, served.sampler, *options])
    found = read_runs(audit(config, tmp_path)).audit
    assert {*found["estimator"].dropna()} == {"measured", "group_mean"}


def recorded_step(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) - 1 if file.exists() else -1


def begun(served: Served, run: Path, *words: str) -> subprocess.Popen[str]:
    """A run in a process of its own, after its first step."""
    command = [sys.executable, "-m", "segcredit", "train", *words]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while recorded_step(run) < 1:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


def test_a_killed_server_loses_no_run(served: Served, tmp_path: Path) -> None:
    served.ready()
    run = tmp_path / "run"
    options = [*TINY, served.sampler, "train.steps=40", "checkpoint.every=1", "evaluate.every=40"]
    # Started anew while the run waits: the run goes on by itself.
    process = begun(served, run, "grpo", *options, "sampler.retries=30", "--output", str(run))
    served.kill()
    before = recorded_step(run)
    served.start()
    served.ready()
    while recorded_step(run) <= before + 1:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    # Gone for good: a sentence, and nothing is lost.
    served.kill()
    process.terminate()
    assert process.wait(120) == 130
    lost = subprocess.run(
        [sys.executable, "-m", "segcredit", "train", str(run), "--resume"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(lost.stderr)
    assert lost.returncode == 1
    assert "is gone (ConnectionRefusedError" in lost.stderr
    assert "Continue with --resume." in " ".join(lost.stderr.split())
    assert read_status(run)["status"] == "interrupted"
    steps = recorded_step(run)
    served.start()
    served.ready()
    done = subprocess.run(
        [sys.executable, "-m", "segcredit", "train", str(run), "--resume"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = read_runs(run).steps
    assert 1 <= steps < 40
    assert rows["step"].tolist() == [*range(41)]
    assert rows["sampler_ratio_max"].iloc[1:].max() < 1 + 1e-4


def test_a_run_leaves_no_weights_in_memory(served: Served, tmp_path: Path) -> None:
    before = {*Path("/dev/shm").glob("segcredit-vllm-*")}
    options = [*TINY, served.sampler.replace("127.0.0.1", "localhost"), "train.steps=1"]
    command = [sys.executable, "-m", "segcredit", "train", "grpo", *options]
    subprocess.run([*command, "--output", str(tmp_path / "run")], env=ENVIRONMENT, check=True)
    assert {*Path("/dev/shm").glob("segcredit-vllm-*")} <= before


def test_the_sampler_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the kit's own model, but for the size of a head, which vLLM does not have for CPUs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    usual = sampler_rules._model().config.to_dict()
    config = LlamaConfig(**usual | {"head_dim": 32, "initializer_range": 0.2})
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    # A copy each time: a rule moves its own to another device.
    monkeypatch.setattr(sampler_rules, "_model", lambda: copy.deepcopy(model))
    served = Served(tmp_path, str(tmp_path / "model"), "--vllm", "--skip-tokenizer-init")
    try:
        for name, check in sampler_checks(VLLM(served.url)):
            print(name)
            check()
    finally:
        served.stop()


def test_recorded_answers_are_those_of_the_server(tmp_path: Path) -> None:
    """What ``tests/policy/test_vllm.py`` plays is what a server of today says."""
    folder = tmp_path / "model"
    command = [sys.executable, str(Path(vllm_wire.__file__)), str(folder)]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    served = Served(tmp_path, str(folder))
    try:
        found = vllm_wire.record(served.url)
    finally:
        served.stop()
    recorded = json.loads(vllm_wire.RECORDED.read_text())

    def draws(of: Any) -> list[Any]:
        return sorted(
            (
                one["weights"],
                str(one["request"]),
                [x["token_ids"] for x in one["answer"]["choices"]],
            )
            for one in of["draws"]
        )

    assert draws(found) == draws(recorded)
    assert found["get_model_inspection"] == recorded["get_model_inspection"]

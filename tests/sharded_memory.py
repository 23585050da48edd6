"""A step of a model of 134 million parameters, by one process or by several that share it.

    export MALLOC_MMAP_THRESHOLD_=1048576   # what is freed goes back to the system at once
    python tests/sharded_memory.py FILE                                     # one process
    torchrun --standalone --nproc_per_node 2 tests/sharded_memory.py FILE   # shards

Samples by an engine of its own, scores, values with a critic as large as the policy, trains both.
Writes what came out, and the peak memory of every process by stage, to FILE;
``tests/training/test_processes.py`` compares. Without the first line the C library keeps freed
memory for later, in holes that the next parameters do not fit into: no matter of sharding.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

import segcredit
from estimators.values.critic import Critic
from segcredit import Prompt, SampledTokens, Sampler, Verdict, load_config
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.policy.tiny.warm_start import alphabet_of
from segcredit.protocols import whole_tensor
from segcredit.records import checkpoint
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.training.build import Run, build
from segcredit.training.credit_assignment import TrainingBatch, collect
from segcredit.training.distributed.processes import Processes
from segcredit.training.loop import _load_state, _state
from segcredit.training.optimizer import Trained
from segcredit.training.rollouts.ahead import Ahead
from segcredit.training.rollouts.completions import score
from segcredit.training.update import improve

WIDTH = 8
CONFIG = [
    "train.parallel=sharded",
    "task=big_task",
    "policy=big_policy",
    "sampler=engine",
    "estimator.name=lively_critic",
    "loss.kl_loss=0.1",
    "rollouts.prompts=5",
    "rollouts.completions=2",
    f"rollouts.max_new_tokens={WIDTH}",
    # Processes of 6 and 4 rows then make 3 and 2 passes.
    f"train.micro_tokens={2 * WIDTH}",
    "train.epochs=1",
    "train.minibatches=1",
    "train.value.epochs=1",
    # Not clipped: torch's norm of four million entries is off by 9e-5, and would enter every one.
    "train.gradient_clip=1e9",
    "train.value.gradient_clip=1e9",
    "train.device=cpu",
]


@dataclass(frozen=True, slots=True)
class Engine(Sampler):
    """Tokens by the prompt and the row's place in its group: the same in whichever process."""

    in_process: ClassVar[bool] = False
    pushed: ClassVar[list[int]] = []

    def sample(
        self, model: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor, *, params: Any, **_: Any
    ) -> SampledTokens:
        rows, met = [], dict[tuple[int, ...], int]()
        for ids, mask in zip(prompt_ids, prompt_mask, strict=True):
            prompt = tuple(ids[mask].tolist())
            met[prompt] = met.get(prompt, 0) + 1
            seeded = torch.Generator().manual_seed(sum(prompt) * 1000 + met[prompt])
            rows.append(torch.randint(3, 18, (params.max_new_tokens,), generator=seeded))
        return SampledTokens(torch.stack(rows))

    def sync(self, model: nn.Module) -> None:
        self.pushed.append(sum(x.numel() for _, x in segcredit.whole_weights(model)))


@dataclass(frozen=True, slots=True)
class BigPolicy(segcredit.PolicySource):
    """A Llama of random weights."""

    def load(
        self, task: segcredit.Task, sampler: Sampler, *, temperature: float, seed: int
    ) -> nn.Module:
        width = {"hidden_size": 1024, "intermediate_size": 4096}
        sizes = Tiny(**width, layers=8, heads=8, initializer_range=0.02)  # Llama's own
        return sizes.untrained(alphabet_of(task), sampler, temperature, seed)


@dataclass(frozen=True, slots=True)
class BigTask(Arithmetic):
    """Any completion earns something: its share of digits."""

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(reward=sum(c.isdigit() for c in text) / max(len(text), 1), correct=False)


@dataclass(frozen=True, slots=True)
class LivelyCritic(Critic):
    """A critic whose first values are not all 0."""

    def start(self, policy: segcredit.Policy) -> nn.Module:
        state: Any = Critic.start(self, policy)
        nn.init.normal_(state.output.weight, std=0.1)
        return state


def peak() -> int:
    """Takes the largest resident size since the last call, in MiB, and begins anew."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


@contextmanager
def gradients() -> Generator[list[tuple[float, float, Tensor]]]:
    """Keeps of every gradient its largest entry, its norm, and about a thousand entries."""
    step, found = Trained.step, list[tuple[float, float, Tensor]]()

    def keep(trained: Trained[Any]) -> None:
        for parameter in trained.parameters:
            entries = whole_tensor(parameter.grad).flatten()
            every = max(1, len(entries) // 1000)
            norm = float(entries.double().norm())
            found.append((float(entries.abs().max()), norm, entries[::every].clone()))
        step(trained)

    with patch.object(Trained, "step", keep):
        yield found


def outcome(run: Run, batch: TrainingBatch, losses: dict[str, float]) -> dict[str, Any]:
    """Gathers what has to be equal, whoever made it; process 0's rows come first."""
    after = None
    with run.processes.error_barrier():
        after = score(run.actor, batch.rollouts, micro_tokens=WIDTH)
    rows = {
        "logprobs": batch.rollouts.logprobs,
        "entropies": batch.rollouts.entropies,
        "reference": batch.rollouts.reference_logprobs,
        "values": batch.values.values,
        "advantages": batch.advantages.per_token,
        "after": after.logprobs,
    }
    found = {name: run.processes.all_gather(x) for name, x in rows.items()}
    return found | {"losses": losses, "pushed": list(Engine.pushed)}


def main(file: str) -> None:
    segcredit.register.task("big_task")(BigTask)
    segcredit.register.policy("big_policy")(BigPolicy)
    segcredit.register.sampler("engine")(Engine)
    segcredit.register.estimator("lively_critic")(LivelyCritic)
    processes = Processes.started(cpu=True)
    stages = {"imports": peak()}
    run = build(load_config("ppo", CONFIG), processes)
    stages["build"] = peak()
    batch = collect(run, 1)
    stages["score and value"] = peak()
    with gradients() as stepped:
        losses = improve(run, batch, 1)
    stages["train"] = peak()
    found = outcome(run, batch, losses) | {"gradients": stepped}
    stages["score again"] = peak()
    folder = Path(file).with_suffix("")
    state = _state(run, {"step": run.config.train.steps}, Ahead(run), folder)
    with processes.error_barrier():
        if processes.first and state is not None:
            checkpoint.save(folder, run.config.train.steps, state)
    stages["save"] = peak()
    del state
    for trained in (run.policy, run.state):  # who resumes has no moments yet
        assert trained.optimizer is not None
        trained.optimizer.state.clear()
    _load_state(run, checkpoint.load_run(checkpoint.found(folder)[0], whole=False), folder)
    stages["resume"] = peak()
    every = processes.gather(stages)
    if processes.first:
        torch.save(found | {"peaks": every}, file)
        print(*every, losses, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""Environments in a config and in a run: the key, the wrapping, the limit, what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from segcredit import Environment, Prompt, Transition, load_config, register, registry
from segcredit.environments import (
    InEnvironment,
    LimitedObservations,
    cut_observation,
    played,
    turns_of,
)
from segcredit.errors import PolicyError, RegistryError, TaskError
from segcredit.protocols import asked, judged, opened
from segcredit.tasks.pointer import Pointer
from segcredit.testing import check_environment, check_task
from segcredit.training.build import build, run_hash, task_of
from small import SMALL

PROMPT = Prompt("k", "t", None)


@dataclass(frozen=True, slots=True)
class Echo(Environment):
    """Says again what it is told, ``times`` times; '=' ends."""

    times: int = 1

    @property
    def max_turns(self) -> int:
        return 4

    def step(self, state: Any, text: str) -> Transition:
        return Transition(state=state, observation=text * self.times, done="=" in text)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.environments, "_local", {})
    register.environment("echo")(Echo)


def test_configs_without_an_environment_keep_their_name() -> None:
    plain, none = load_config("grpo"), load_config("grpo", ["environment=none"])
    assert run_hash(plain) == run_hash(none)
    assert "environment" not in plain.model_dump()
    assert "observation_limit" not in plain.model_dump()["rollouts"]
    same = load_config("grpo", rollouts__observation_limit=2000)
    assert run_hash(same) == run_hash(plain)
    assert run_hash(load_config("grpo", rollouts__observation_limit=100)) != run_hash(plain)


@pytest.mark.usefixtures("echo")
def test_an_environment_is_named_like_any_plugin() -> None:
    config = load_config("grpo", ["environment=echo"])
    assert config.environment == {"name": "echo", "times": 1}
    twice = load_config("grpo", ["environment.name=echo", "environment.times=2"])
    assert len({run_hash(load_config("grpo")), run_hash(config), run_hash(twice)}) == 3
    with pytest.raises(RegistryError, match="there is no environment 'ecko'; did you mean 'echo'"):
        load_config("grpo", ["environment=ecko"])
    with pytest.raises(RegistryError, match="environment: environment 'echo' has no option 'time'"):
        load_config("grpo", environment={"name": "echo", "time": 2})


@pytest.mark.usefixtures("echo")
def test_a_task_in_an_environment_is_itself_but_for_that() -> None:
    config = load_config("grpo", ["environment=echo", "task=pointer"])
    task, inner = task_of(config), Pointer()
    assert task == InEnvironment(inner, Echo())
    assert task.environment() == Echo()
    prompts = task.evaluation(3)
    assert prompts == inner.evaluation(3)
    seeded = torch.Generator().manual_seed
    assert task.prompts(3, seeded(0)) == inner.prompts(3, seeded(0))
    assert task.demonstrations(3, seeded(0)) == inner.demonstrations(3, seeded(0))
    assert (task.alphabet(), task.judges()) == (inner.alphabet(), inner.judges())
    right = f"={prompts[0].answer[3]}."
    assert judged(task, prompts[0], right, truncated=False).correct
    check_task(InEnvironment(inner, inner.environment()))
    assert task_of(load_config("grpo", ["task=pointer"])) == inner


def test_a_faulty_verifier_inside_is_named() -> None:
    class Faulty(Pointer):
        def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Any:
            raise KeyError(text)

    with pytest.raises(TaskError, match="the verifier of task 'Faulty' raised KeyError"):
        judged(InEnvironment(Faulty(), Echo()), PROMPT, "a", truncated=False)


def test_observations_are_cut_with_a_mark() -> None:
    assert cut_observation("abcdef", 6) == "abcdef"
    assert cut_observation("abcdefg", 6) == "abcdef ... [1 characters cut]"
    cut = LimitedObservations(Echo(1000), 10)
    assert asked(cut, 0, "ab").observation == "ababababab ... [1,990 characters cut]"
    assert asked(cut, 0, "=").done
    assert opened(cut, PROMPT) == (PROMPT, "")
    assert (cut.max_turns, cut.stop, cut.turn_tokens, cut.workers) == (4, (), None, 1)
    check_environment(cut)


def test_faults_behind_the_limit_name_the_environment_itself() -> None:
    class Mute(Echo):
        def step(self, state: Any, text: str) -> Any:
            raise KeyError(text)

    with pytest.raises(TaskError, match=r"^environment 'Mute' \(.*test_environments.py, line \d+"):
        asked(LimitedObservations(Mute(), 10), 0, "a")


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("?c.?f.=d.", ["?c.", "?f.", "=d."]),
        ("?c.?f", ["?c.", "?f"]),
        ("..", [".", "."]),
        ("", [""]),
        ("a!b.", ["a!", "b."]),
    ],
)
def test_a_demonstration_is_cut_behind_its_stop_strings(text: str, turns: list[str]) -> None:
    assert turns_of(text, (".", "!")) == turns
    assert turns_of(text, ()) == [text]


def test_episodes_are_played_to_their_end_or_the_limit() -> None:
    assert len(list(played(Echo(), PROMPT, ["a"] * 9))) == 4
    assert len(list(played(Echo(), PROMPT, ["a", "=", "a"]))) == 2


@pytest.mark.usefixtures("echo", "unchecked")
def test_a_policy_without_turns_is_refused_by_name() -> None:
    small = [key for key in SMALL if not key.startswith("task.")]
    config = load_config("grpo", [*small, "task=arithmetic", "environment=echo", "policy.steps=0"])
    run = build(load_config("grpo", [*small, "task=arithmetic", "policy.steps=0"]))
    assert type(run.task).__name__ == "Arithmetic"

    class Deaf(type(run.actor)):
        encode_observations = None

    policy: Any = run.policy.module
    policy.__class__ = Deaf
    with pytest.raises(PolicyError, match="environment 'echo', of several turns, needs a policy"):
        build(config, policy=policy)

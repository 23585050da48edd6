"""The kit holds environments to their contract, and names the rule that a wrong one breaks."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from segcredit import Environment, Prompt, Transition, registry
from segcredit.errors import PluginError
from segcredit.protocols import SingleTurn
from segcredit.testing import (
    check_environment,
    environment_checks,
    parametrize_with_checks,
)

CALL = "<python>print(len({'a', 'b'}))</python>"
TURNS = {
    "python_tool": (CALL, "<python>while True: pass</python>", "<python>1 +</python>", "2"),
    "trl": ('<tool_call>{"name": "hear", "arguments": {"text": "a"}}</tool_call>', "b"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "python_tool": {"timeout": 0.2},
    "trl": {"factory": f"{__name__}:Hears"},
}


class Hears:
    """A class as TRL's trainer takes it as ``environment_factory``."""

    def reset(self, **row: Any) -> str:
        self.heard: list[str] = []
        return "Say something."

    def hear(self, text: str) -> str:
        """
        Hears a text.

        Args:
            text: what is said.
        """
        self.heard.append(text)
        return ", ".join(self.heard)


@pytest.mark.parametrize("name", registry.environments.names())
def test_registered_environments_keep_the_contract(name: str) -> None:
    plugin = registry.environments.build(name, **OPTIONS.get(name, {}))
    check_environment(plugin, turns=TURNS.get(name, ()))


@dataclass(frozen=True)
class Adds(Environment):
    """Adds up the numbers that it is told, right: every wrong one below changes one thing of it."""

    @property
    def max_turns(self) -> int:
        return 5

    @property
    def stop(self) -> tuple[str, ...]:
        return (".",)

    def start(self, prompt: Prompt) -> tuple[Any, str]:
        return 0, ""

    def step(self, state: Any, text: str) -> Transition:
        if text == "=.":
            return Transition(state=state, done=True, reward=float(state), correct=state > 3)
        number = text.removesuffix(".")
        known = number.isascii() and number.isdigit() and len(number) < 5
        state = state + int(number) if known else state
        return Transition(state=state, observation=f"{state};" if known else "no number;")


@parametrize_with_checks([Adds(), SingleTurn()])
def test_right_environments_pass(check: Any) -> None:
    check()


@dataclass(frozen=True)
class Limits(Adds):
    """Limits as they are set."""

    max_turns: Any = 5
    stop: Any = (".",)
    turn_tokens: Any = None
    workers: Any = 1


class Raises(Adds):
    def step(self, state, text):
        return super().step(state + int(text.removesuffix(".") or 0), text)


class Nothing(Adds):
    def step(self, state, text):
        return None if text == "" else super().step(state, text)


class NotFinite(Adds):
    def step(self, state, text):
        return Transition(state=state, reward=float("inf") if "9" in text else 0.0)


class DrawsStart(Adds):
    def start(self, prompt):
        return random.random(), ""


class StartsWithoutText(Adds):
    def start(self, prompt):
        return 0


class MarksPrompt(Adds):
    def start(self, prompt):
        prompt.answer.append(1) if isinstance(prompt.answer, list) else None
        return 0, ""


class Draws(Adds):
    def step(self, state, text):
        return Transition(state=state, observation=f"{random.random()}")


class Appends(Adds):
    def start(self, prompt):
        return [], ""

    def step(self, state, text):
        state.append(text)
        return Transition(state=state)


@dataclass(frozen=True)
class Remembers(Adds):
    """Answers otherwise once it has seen enough turns."""

    turns: list[int] = field(default_factory=lambda: [0])

    def step(self, state, text):
        self.turns[0] += text == "2."
        return Transition(state=state, observation=f"{self.turns[0] > 6}")


class Bare:
    """A state that does not compare."""


class BareState(Adds):
    def start(self, prompt):
        return 0, ""

    def step(self, state, text):
        return Transition(state=Bare())


class OneAtATime(Adds):
    """Keeps the turn where every thread writes."""

    workers = 4

    def step(self, state, text):
        type(self).now = threading.get_ident()
        time.sleep(0.0005)
        mixed = type(self).now != threading.get_ident()
        return Transition(state=state, observation=f"{mixed}")


class LocalLambda(Adds):
    def __init__(self) -> None:
        object.__setattr__(self, "rule", lambda text: text)


class HiddenState(Adds):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1  # another process would count anew
        object.__setattr__(self, "own", type(self).made)

    def __reduce__(self):
        return HiddenState, ()

    def step(self, state, text):
        return Transition(state=state, observation=f"{self.own}")


WRONG = [
    (Limits(max_turns=0), "limits_are_valid", "found max_turns 0"),
    (Limits(turn_tokens=1.5), "limits_are_valid", "found turn_tokens 1.5"),
    (Limits(workers=True), "limits_are_valid", "found workers True"),
    (Limits(stop=("",)), "limits_are_valid", "a stop string is ''"),
    (Limits(stop="."), "limits_are_valid", "stop returned str; expected tuple"),
    (DrawsStart(), "start_is_fixed", "are pure: found two answers of start()"),
    (StartsWithoutText(), "start_is_fixed", "start returned 0; expected a pair"),
    (MarksPrompt(), "start_is_fixed", "start() changed the prompt"),
    (Raises(), "step_answers_any_text", "raised ValueError"),
    (Nothing(), "step_answers_any_text", "step returned nothing"),
    (NotFinite(), "step_answers_any_text", "the reward inf; expected a finite number"),
    (Draws(), "step_is_pure", "are pure: found two answers of step()"),
    (Appends(), "step_is_pure", "step() changed the state"),
    (BareState(), "step_is_pure", "does not compare"),
    (Remembers(), "episodes_can_be_replayed", "are pure: found two answers of an episode"),
    (OneAtATime(), "episodes_can_be_played_at_once", "among others in threads"),
    (LocalLambda(), "environment_pickles", "on pickling"),
    (HiddenState(), "environment_pickles", "the unpickled plug-in"),
]
PROMPTS = [Prompt("a", "1+1", ["2"]), Prompt("b", "1+2", ["3"])]


def class_name(case: object) -> str:
    return "" if isinstance(case, str) else type(case).__name__


# Wrong on purpose; run-time type checks would speak before the kit does.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "rule", "sentence"), WRONG, ids=class_name)
def test_wrong_environments_are_caught_by_the_rule(plugin: Any, rule: str, sentence: str) -> None:
    turns = ("2.", "3.", "2.", "=.")
    with pytest.raises(PluginError) as caught:
        dict(environment_checks(plugin, PROMPTS, turns))[rule]()
    assert f"environment {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for _, rule, _ in WRONG} == {name for name, _ in environment_checks(Adds())}

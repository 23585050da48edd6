"""The guard round an environment: what it raises or answers is named in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from segcredit import Environment, Prompt, Transition
from segcredit.errors import TaskError
from segcredit.protocols import SingleTurn, asked, opened

_PROMPT = Prompt(key="k", text="t", answer=None)


@dataclass(frozen=True, slots=True)
class _Answers(Environment):
    """Whatever it is told to answer."""

    answer: Any
    first: Any = (0, "")

    def start(self, prompt: Prompt) -> tuple[Any, str]:
        return self.first

    def step(self, state: Any, text: str) -> Transition:
        match self.answer:
            case BaseException():
                raise self.answer
            case {**fields}:
                return Transition(state=0, **fields)
            case _:
                return self.answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ValueError("no such move"), "raised ValueError: no such move"),
        (SystemExit(3), "SystemExit"),
        (None, "step returned nothing"),
        (["state", "text"], "step returned list"),
        ({"reward": math.nan}, "the reward nan"),
        ({"reward": "1"}, "the reward '1'"),
        ({"observation": 7}, "the observation 7"),
        ({"observation": "\ud800"}, "the observation '\\ud800'"),
        ({"anchor": 3}, "the anchor 3"),
        ({"done": 1}, "the done 1"),
        ({"correct": 1}, "the correct 1"),
    ],
)
def test_a_faulty_answer_is_named_with_environment_file_and_turn(
    answer: Any, said: str, unchecked: None
) -> None:
    with pytest.raises(TaskError) as caught:
        asked(_Answers(answer), 0, "?c.")
    message = str(caught.value)
    assert all(part in message for part in (said, "'_Answers'", __file__, "'?c.'")), message
    assert "\n" not in message


@pytest.mark.parametrize("first", [None, 0, (0,), (0, 1), [0, ""], (0, "", "")])
def test_a_start_that_is_no_pair_is_named(first: Any) -> None:
    with pytest.raises(TaskError, match=r"'_Answers'.*start returned .*expected a pair"):
        opened(_Answers(None, first), _PROMPT)


def test_a_fault_of_what_the_environment_asks_keeps_its_own_sentence() -> None:
    with pytest.raises(TaskError, match=r"^the sandbox is gone$"):
        asked(_Answers(TaskError("the sandbox is gone")), 0, "x")


def test_whole_answers_pass() -> None:
    answer = asked(_Answers({"observation": "f;", "reward": 1.0, "anchor": "c"}), 0, "x")
    assert answer == Transition(state=0, observation="f;", reward=1.0, anchor="c")
    assert opened(SingleTurn(), _PROMPT) == (_PROMPT, "")
    assert asked(SingleTurn(), _PROMPT, "x").done

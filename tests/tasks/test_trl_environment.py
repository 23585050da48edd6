"""TRL's environment classes by replay: calls, rewards, what is refused, and a run."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from segcredit import Prompt
from segcredit.environments import played
from segcredit.errors import TaskError
from segcredit.protocols import asked, opened
from segcredit.tasks.trl_environment import TRLEnvironment
from segcredit.testing import check_environment

PROMPT = Prompt("k", "Count to 3.", 3, chat=(("system", "Be brief."),))


class Counter:
    """As ``environment_factory`` of TRL's trainer takes it."""

    def __init__(self) -> None:
        self.count, self.goal = -1, -1

    @property
    def broken(self) -> int:
        raise RuntimeError("a property is no tool, and is not asked")

    def reset(self, answer: int = 0, **row: Any) -> str | None:
        self.count, self.goal = 0, answer
        self.row = row
        return " Begin at 0."

    def add(self, n: int) -> int:
        """
        Adds a number.

        Args:
            n: what is added.

        Returns:
            The count.
        """
        if n < 0:
            raise ValueError("n is negative")
        self.count += n
        return self.count

    async def look(self) -> dict[str, int]:
        """Looks at the count."""
        return {"count": self.count}

    def echo(self, text: str) -> Any:
        """
        Says a text again.

        Args:
            text: what is said.
        """
        return [{"type": "text", "text": text}, {"type": "text", "text": "!"}]

    def _hidden(self) -> str:
        return "no tool"

    async def get_reward(self) -> float:
        return float(self.count == self.goal)


class Judged(Counter):
    get_reward = None  # the task judges


class Impure(Counter):
    drawn = itertools.count()

    def add(self, n: int) -> int:
        return next(self.drawn)


class Sees(Counter):
    def add(self, n: int) -> Any:
        return [{"type": "image", "image": b""}]


class Undocumented(Counter):
    def add(self, n):
        return n


class Demanding(Counter):
    def reset(self, secret: str) -> None: ...


class Tool:
    def add(self, n: int) -> int:
        return n


def world(kind: type = Counter, **options: Any) -> TRLEnvironment:
    return TRLEnvironment(f"{__name__}:{kind.__name__}", **options)


def call(name: str, **arguments: Any) -> str:
    said = json.dumps({"name": name, "arguments": arguments})
    return f"So:\n<tool_call>\n{said}\n</tool_call>"


def test_calls_change_an_object_and_states_stay() -> None:
    env = world()
    state, text = opened(env, PROMPT)
    assert text.startswith(" Begin at 0.\n\n# Tools")
    tools = text.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    names = [json.loads(tool)["function"]["name"] for tool in tools]
    assert names == ["add", "echo", "look"]
    first = asked(env, state, call("add", n=2))
    second = asked(env, first.state, call("look"))
    assert (first.observation, second.observation) == ("2", "{'count': 2}")
    assert asked(env, first.state, call("add", n=1)).observation == "3"  # a fork
    assert asked(env, first.state, call("add", n=1)).observation == "3"
    assert asked(env, state, call("look") + call("add", n=1)).observation == "{'count': 0}\n1"
    assert asked(env, state, call("echo", text="a\ud800")).observation == "a?\n!"
    end = asked(env, asked(env, first.state, call("add", n=1)).state, "Done.")
    assert (end.done, end.reward, end.correct) == (True, 1.0, True)
    end = asked(env, first.state, "Done.")
    assert (end.done, end.reward, end.correct) == (True, 0.0, False)


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (call("sub", n=1), "Tool sub not found."),
        (call("_hidden"), "Tool _hidden not found."),
        (call("reset"), "Tool reset not found."),
        (call("get_reward"), "Tool get_reward not found."),
        (call("broken"), "Tool broken not found."),
        (call("add", n=-1), "n is negative"),
        (call("add", m=1), "unexpected keyword argument 'm'"),
        ("<tool_call>{add(2)}</tool_call>", "the call is no JSON: "),
        ("<tool_call>" + "[" * 10**5 + "</tool_call>", "the call is no JSON: "),
        ("<tool_call>[1]</tool_call>", "a call is a JSON object with a name"),
        ('<tool_call>{"name": "add", "arguments": "n"}</tool_call>', "a call is a JSON object"),
        ("<tool_call>add", "no call was found; expected <tool_call>"),
        ("</tool_call>", "no call was found; expected <tool_call>"),
    ],
)
def test_what_is_no_call_is_answered_as_trl_answers(turn: str, said: str) -> None:
    env = world()
    state, _ = opened(env, PROMPT)
    answer = asked(env, state, turn)
    assert not answer.done
    assert answer.observation.startswith("{'error': ")
    assert said in answer.observation
    assert asked(env, answer.state, call("add", n=2)).observation == "2"


def test_rows_are_trls() -> None:
    seen: list[dict[str, Any]] = []

    class Keeps(Counter):
        def reset(self, **row: Any) -> None:
            seen.append(row)
            row.get("board", []).append(9)  # the prompt's own is not touched

    globals()["Keeps"] = Keeps
    env = world(Keeps, describe=False)
    prompt = Prompt("k", "Go", {"board": [1], "seed": 3}, chat=PROMPT.chat)
    for _ in range(2):
        assert opened(env, prompt)[1] == ""
    message = {"role": "user", "content": "Go"}
    assert seen[0]["prompt"] == [{"role": "system", "content": "Be brief."}, message]
    assert [row["board"] for row in seen] == [[1, 9], [1, 9]]
    opened(env, Prompt("k", "Go", "42"))
    assert seen[-1] == {"answer": "42", "prompt": [message]}


def test_the_limit_of_turns_is_rewarded_and_truncates() -> None:
    env = world(max_turns=2)
    answers = list(played(env, PROMPT, [call("add", n=1), call("add", n=2)]))
    assert [(x.observation, x.reward, x.done) for x in answers] == [
        ("1", 0, False),
        ("3", 1, False),
    ]


def test_without_a_reward_of_its_own_the_task_judges() -> None:
    state, _ = opened(world(Judged), PROMPT)
    end = asked(world(Judged), state, "3")
    assert (end.done, end.reward, end.correct) == (True, 0.0, None)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Impure, r"Impure answered the turn '.*' with '0', and with '1' when the same calls"),
        (Sees, r"Sees answered with an image; expected text"),
        (Undocumented, r"tools of .*Undocumented cannot be described .*describe=false"),
        (Demanding, r"reset of .*Demanding, given the arguments answer, prompt, raised TypeError"),
        (Tool, r"Tool makes objects with the tools add, and without reset"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(kind: type, said: str) -> None:
    Impure.drawn = itertools.count()
    env = world(kind, describe=kind is Undocumented)
    turns = [call("add", n=1), call("add", n=1)]
    with pytest.raises(TaskError, match=f"(?s){said}"):
        list(played(env, PROMPT, turns))


def test_a_factory_that_is_not_there_is_refused() -> None:
    with pytest.raises(TaskError, match=r"could not be imported .*PYTHONPATH"):
        opened(TRLEnvironment("no_such_module:World"), PROMPT)
    with pytest.raises(ValueError, match="expected module:name"):
        TRLEnvironment("World")
    with pytest.raises(ValueError, match="max_turns is 1"):
        world(max_turns=1)


def test_the_contract_of_environments_holds() -> None:
    turns = (call("add", n=1), call("look"), call("none"), "done")
    check_environment(world(describe=False), turns=turns)

"""Environments that were written for TRL's trainer, as environments of ours."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import re
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

from segcredit.errors import UNREADABLE, TaskError, parser_words, shown, told
from segcredit.protocols import Environment, Prompt, Transition

_BEGIN, _END = "<tool_call>", "</tool_call>"
_CALL = re.compile(f"{_BEGIN}(.*?){_END}", re.DOTALL)
_TOOLS = f"""

# Tools

You may call a function in each of your messages. These are the functions:
<tools>
%s
</tools>
To call one, end the message with a JSON object of its name and arguments, like this:
{_BEGIN}
{{"name": "...", "arguments": {{...}}}}
{_END}"""
"""Text that tells the policy what it may call; much as Qwen's chat template does."""


@dataclass(frozen=True, slots=True)
class TRLEnvironment(Environment):
    """A class that TRL's ``GRPOTrainer`` takes as ``environment_factory`` (1.16), played by replay.

    Its public methods are tools, ``reset`` begins an episode and may return text that is added to
    the prompt, and ``get_reward``, where there is one, gives the reward. A turn calls by

        <tool_call>
        {"name": "add", "arguments": {"n": 2}}
        </tool_call>

    and is answered with the text of what the method returned, or ``{'error': ...}`` as TRL writes
    it, also where what is called is unknown or malformed. A turn without a call ends the episode:
    ``get_reward`` judges it, or else the task. Where the limit of turns comes first its reward
    counts too, as in TRL, on an episode that is truncated.

    ``reset`` gets, by name, ``prompt`` (messages as TRL has them) and the prompt's answer: its
    entries where that is a mapping, else ``answer``.

    Assumption: what a class answers follows from ``reset``'s arguments and the calls before. A
    state is the turns so far: each step makes a new object and feeds it all calls again. What it
    then answers otherwise than before ends the run with a sentence; rewards, which are asked for
    once, are not compared. Images as answers are refused.

    Cost: n(n + 1) / 2 calls for n turns, one after the other, in the trainer's own process.
    """

    factory: str
    """``module:name`` of the class, or of a function that makes one of its objects."""
    max_turns: int = 8  # pyright: ignore[reportIncompatibleMethodOverride]  # frozen, like a property
    """Turns of an episode, at least 2: that of the answer included."""
    turn_tokens: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """Tokens of the longest turn; None = the completion's limit alone."""
    describe: bool = True
    """True: the tools are told behind the prompt, by their types and docstrings; False where the
    prompt or the chat's template (its option ``tools``) does."""
    correct_from: float = 1.0
    """The least ``get_reward`` of an episode that counts as correct."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:\w+", self.factory):
            raise ValueError(
                f"factory is {self.factory!r}; expected module:name of a class with the method"
                " reset, such as 'my_package.worlds:Counter'."
            )
        if not 2 <= self.max_turns <= 1000:
            raise ValueError(f"max_turns is {self.max_turns}; expected a number from 2 to 1000.")
        if self.turn_tokens is not None and self.turn_tokens < 1:
            raise ValueError(f"turn_tokens is {self.turn_tokens}; expected at least 1.")

    @property
    def stop(self) -> tuple[str, ...]:
        """The string that ends a call."""
        return (_END,)

    def named_code(self) -> Mapping[str, object]:
        """Returns the factory."""
        return {"factory": self.factory}

    def start(self, prompt: Prompt) -> tuple[_Episode, str]:
        """Resets an object of the class; adds what it says, and its tools, to the prompt."""
        world = _World(self.factory)
        text = world.reset(prompt)
        tools = _TOOLS % "\n".join(world.schemas()) if self.describe and world.tools else ""
        return _Episode(prompt, text), text + tools

    def step(self, state: _Episode, text: str) -> Transition:
        """Replays the turns so far and makes the calls of this one."""
        world = _World(self.factory)
        self._require_equal("reset()", state.text, world.reset(state.prompt))
        for turn, before in state.turns:
            self._require_equal(f"the turn {shown(turn)}", before, world.answer(turn))
        done = _BEGIN not in text and _END not in text
        observation = "" if done else world.answer(text)
        state = _Episode(state.prompt, state.text, (*state.turns, (text, observation)))
        if not done and len(state.turns) < self.max_turns:
            return Transition(state=state, observation=observation)
        reward = world.reward()
        correct = reward >= self.correct_from if done and reward is not None else None
        return Transition(
            state=state, observation=observation, reward=reward or 0.0, done=done, correct=correct
        )

    def _require_equal(self, occasion: str, before: str, now: str) -> None:
        """Raises a TaskError where the class answered the same otherwise than before."""
        if now != before:
            raise TaskError(
                f"{self.factory} answered {occasion} with {shown(before)}, and with {shown(now)}"
                " when the same calls were made again; expected the same, since every turn replays"
                " those before it. Usually it draws random numbers, reads the clock, or asks a"
                " server that keeps a state: seed it in reset() from the row, or use the class in"
                " TRL's own trainer."
            )


@dataclass(frozen=True, slots=True)
class _Episode:
    """Everything done so far, from which a class is brought to where it was."""

    prompt: Prompt
    text: str
    """Text that ``reset`` added to the prompt."""
    turns: tuple[tuple[str, str], ...] = ()
    """Text of each turn, and its observation."""


class _World:
    """A new object of a class that was written for TRL."""

    def __init__(self, factory: str) -> None:
        self.factory = factory
        environment = _made(factory)
        # Listed on the class as TRL does: on the object properties would be evaluated.
        names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
        self.methods: dict[str, Callable[..., Any]] = {x: getattr(environment, x) for x in names}
        self.tools = {
            name: method
            for name, method in self.methods.items()
            if name not in ("reset", "get_reward") and not name.startswith("_")
        }

    def reset(self, prompt: Prompt) -> str:
        """Begins an episode; returns the text that is added to the prompt."""
        if "reset" not in self.methods:
            raise TaskError(
                f"{self.factory} makes objects with the tools {', '.join(self.tools) or 'none'},"
                " and without reset; expected a class as environment_factory of TRL's GRPOTrainer"
                " takes it."
            )
        before = [{"role": role, "content": text} for role, text in prompt.chat or ()]
        answer: Any = copy.deepcopy(prompt.answer)
        row = {"answer": answer}
        if isinstance(answer, Mapping):
            row = dict(cast("Mapping[str, Any]", answer))
        row["prompt"] = [*before, {"role": "user", "content": prompt.text}]
        said = self._own("reset", **row)
        return "" if said is None else self._text(said)

    def answer(self, turn: str) -> str:
        """Makes the calls of a turn; returns what they are answered."""
        calls = _CALL.findall(turn) or [None]
        return "\n".join(self._called(call) for call in calls)

    def _called(self, call: str | None) -> str:
        if call is None:
            return _error(f"no call was found; expected {_BEGIN}, a JSON object and {_END}")
        try:
            found = json.loads(call)
        except UNREADABLE as error:
            return _error(f"the call is no JSON: {parser_words(error)}")
        wanted = cast("dict[str, Any]", found if isinstance(found, dict) else {})
        name, given = wanted.get("name"), wanted.get("arguments")
        if not isinstance(name, str) or not isinstance(given, dict):
            return _error("a call is a JSON object with a name and an object of arguments")
        if name not in self.tools:
            return _error(f"Tool {name} not found.")
        try:
            said = _waited(self.tools[name](**cast("dict[str, Any]", given)))
        except Exception as error:  # as TRL does: it is the tool's answer
            return _error(str(error))
        return self._text(said)

    def reward(self) -> float | None:
        """Returns the class's own reward; None where it leaves that to others."""
        if "get_reward" not in self.methods:
            return None
        found = self._own("get_reward")
        return None if found is None else float(found)

    def _own(self, name: str, **given: Any) -> Any:
        """Returns what a method returns that is no tool.

        Raises:
            TaskError: it raised.
        """
        try:
            return _waited(self.methods[name](**given))
        except (Exception, SystemExit) as error:
            names = f"the arguments {', '.join(sorted(given))}" if given else "no arguments"
            raise TaskError(
                f"{name} of {self.factory}, given {names}, raised {told(error)}; expected"
                " a return. Usually reset names a column that is neither prompt nor answer: take"
                " a task whose answers are mappings, or end reset's signature with **columns."
            ) from error

    def _text(self, said: Any) -> str:
        """Returns what a method said as text that can be written as UTF-8."""
        if isinstance(said, list):
            parts = cast("list[Any]", said)
            kinds = [cast("dict[str, Any]", x) for x in parts if isinstance(x, dict)]
            if any("image" in part for part in kinds):
                raise TaskError(
                    f"{self.factory} answered with an image; expected text, since a policy here"
                    " reads observations as text. Use the class in TRL's own trainer."
                )
            if len(kinds) == len(parts):
                said = "\n".join(str(part.get("text", part)) for part in kinds)
        return _utf8(str(cast(object, said)))

    def schemas(self) -> list[str]:
        """Returns the description of each tool in JSON."""
        templates: Any = import_module("transformers.utils.chat_template_utils")  # slow to load
        try:
            return [json.dumps(templates.get_json_schema(tool)) for tool in self.tools.values()]
        except Exception as error:  # of docstrings that are not as it expects them
            raise TaskError(
                f"the tools of {self.factory} cannot be described ({told(error)}); expected type"
                " hints and a docstring with Args on every public method, as TRL does. Add them,"
                " or set environment.describe=false and describe the tools in the prompt."
            ) from error


def _made(factory: str) -> object:
    """Returns a new object of a class.

    Raises:
        TaskError: there is no such class.
    """
    try:
        make = _found(factory)
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"environment.factory is {factory!r}, which could not be imported ({told(error)});"
            " expected module:name. Usually the module is not installed, or lies in a folder that"
            " is not on PYTHONPATH."
        ) from error
    return make()


@lru_cache(maxsize=64)
def _found(factory: str) -> Callable[[], object]:
    module, _, name = factory.partition(":")
    return getattr(import_module(module), name)


def _waited(found: Any) -> Any:
    """Returns what a method returned, waited for where it is a coroutine."""
    if not inspect.iscoroutine(found):
        return found
    coroutine = cast("Coroutine[Any, Any, Any]", found)
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """Returns one event loop for all, in a thread of its own: a notebook's own loop is running."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _error(said: str) -> str:
    return _utf8(str({"error": said}))


def _utf8(text: str) -> str:
    """Returns a text without lone surrogates, which JSON may bring."""
    return text.encode("utf-8", "replace").decode("utf-8")

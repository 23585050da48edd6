"""The rules for environments."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from segcredit.errors import PluginError, TaskError, require_type
from segcredit.protocols import Prompt, Transition, asked, opened
from segcredit.testing.checked_plugin import CheckedPlugin
from segcredit.types import stop_strings

ODD_TURNS = (
    "",
    " \n\t\n",
    "\x00",
    "\ufeff#1",
    "é ٣ ² ½ 数 👩‍🚀 e\u0301",
    "<|endoftext|><|im_end|></s><tool_call>",
    '{"name": "f", "arguments": {"x": [',
    "<python>",
    "{0} {question} %s %d $1 \\1",
    "nan",
    "?.=.;",
    "9" * 5000,
    "(" * 3000,
    "a 1\n" * 5000,
)
"""Turns that a policy may well write, and that careless environments raise on."""
_LONGEST = 20
"""Turns of the longest episode that is played."""


@dataclass(frozen=True)
class CheckedEnvironment(CheckedPlugin):
    """The environment under test, prompts to start it on, and an episode that it understands."""

    prompts: tuple[Prompt, ...] = ()
    turns: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Turns of all kinds: odd ones, with and without the string that ends them, and its own."""
        odd = [text for turn in ODD_TURNS for text in (turn, *(turn + end for end in self._ends))]
        return [*self.turns, *odd]

    @property
    def episodes(self) -> list[Sequence[str]]:
        """Turns to be played one after the other: its own, and malformed ones."""
        end = next(iter(self._ends), "")
        return [self.turns, [f"{text}{end}" for text in ("", "a", "9", "a")] * 3, self.turns[1:]]

    @property
    def _ends(self) -> tuple[str, ...]:
        with self.using("stop"):
            return tuple(self.plugin.stop)[:2]

    def answered(self, act: Callable[..., Any], *given: Any) -> Any:
        """Returns what ``opened`` or ``asked`` gives, its sentence as this kit's error."""
        try:
            return act(self.plugin, *given)
        except TaskError as error:
            raise PluginError(f"{self.name} breaks the contract: {error}") from error

    def played(self, prompt: Prompt, turns: Sequence[str]) -> list[Transition]:
        """Returns the answers of an episode, up to its end or the limit of turns."""
        state, _ = self.answered(opened, prompt)
        answers: list[Transition] = []
        for turn in turns[: min(self.plugin.max_turns, _LONGEST)]:
            answers.append(self.answered(asked, state, turn))
            if answers[-1].done:
                break
            state = answers[-1].state
        return answers


EnvironmentRule = Callable[[CheckedEnvironment], None]


def _alike(one: object, other: object) -> bool:
    """Tells whether two values are the same: as they are written, or as they compare."""
    try:
        return repr(one) == repr(other) or bool(one == other)
    except Exception:  # arrays have no truth
        return False


def _disturb_global_generators() -> None:
    torch.rand(3)
    random.random()


def _limits_are_valid(checked: CheckedEnvironment) -> None:
    with checked.using("max_turns, turn_tokens, workers and stop"):
        plugin = checked.plugin
        limits: dict[str, object] = {
            "max_turns": plugin.max_turns,
            "workers": plugin.workers,
            "turn_tokens": 1 if plugin.turn_tokens is None else plugin.turn_tokens,
        }
        stop_strings(plugin.stop)
        require_type("stop", plugin.stop, tuple)
    for name, found in limits.items():
        if type(found) is not int or found < 1:
            checked.broke(
                "limits are whole numbers of at least 1",
                found=f"{name} {found!r}",
                expected="an int of 1 or more; of turn_tokens, None where there is no limit",
                cause="0 for 'no limit'; give a large number, or None as turn_tokens",
            )


def _start_is_fixed(checked: CheckedEnvironment) -> None:
    for prompt in checked.prompts:
        before = copy.deepcopy(prompt)
        first = checked.answered(opened, prompt)
        _disturb_global_generators()
        _require_alike(checked, "start()", first, checked.answered(opened, prompt), prompt.key)
        _require_kept(checked, "start()", "the prompt", before, prompt)


def _step_answers_any_text(checked: CheckedEnvironment) -> None:
    for prompt in checked.prompts:
        state, _ = checked.answered(opened, prompt)
        for text in checked.texts:
            answer = checked.answered(asked, state, text)
            if not answer.done:
                checked.answered(asked, answer.state, text)


def _step_is_pure(checked: CheckedEnvironment) -> None:
    state, _ = checked.answered(opened, checked.prompts[0])
    before = copy.deepcopy(state)
    first = [checked.answered(asked, state, text) for text in checked.texts]
    _require_kept(checked, "step()", "the state", before, state)
    _disturb_global_generators()
    again = [checked.answered(asked, state, text) for text in reversed(checked.texts)][::-1]
    for text, one, other in zip(checked.texts, first, again, strict=True):
        _require_alike(checked, "step()", one, other, text)


def _episodes_can_be_replayed(checked: CheckedEnvironment) -> None:
    first = [checked.played(prompt, turns) for prompt, turns in _cases(checked)]
    kept = copy.deepcopy(first)
    _disturb_global_generators()
    again = [checked.played(prompt, turns) for prompt, turns in reversed(_cases(checked))][::-1]
    for (prompt, _), one, other, before in zip(_cases(checked), first, again, kept, strict=True):
        _require_alike(checked, "an episode", one, other, prompt.key)
        _require_kept(checked, "step()", "an earlier state", before, one)


def _cases(checked: CheckedEnvironment) -> list[tuple[Prompt, Sequence[str]]]:
    return [(prompt, turns) for prompt in checked.prompts for turns in checked.episodes]


def _episodes_can_be_played_at_once(checked: CheckedEnvironment) -> None:
    if checked.plugin.workers == 1:
        return
    cases = _cases(checked) * 2
    wanted = list(itertools.starmap(checked.played, cases))
    with ThreadPoolExecutor(min(checked.plugin.workers, 8)) as threads:
        found = list(threads.map(checked.played, *zip(*cases, strict=True)))
    for (prompt, _), one, other in zip(cases, wanted, found, strict=True):
        _require_alike(checked, "an episode among others in threads", one, other, prompt.key)


def _environment_pickles(checked: CheckedEnvironment) -> None:
    plugin = checked.unpickled().plugin
    elsewhere = CheckedEnvironment(checked.kind, plugin, checked.prompts, checked.turns)
    for prompt, turns in _cases(checked):
        one, other = checked.played(prompt, turns), elsewhere.played(prompt, turns)
        _require_alike(checked, "an episode of the unpickled plug-in", one, other, prompt.key)


def _require_alike(
    checked: CheckedEnvironment, what: str, one: object, other: object, given: str
) -> None:
    if not _alike(one, other):
        checked.broke(
            "start() and step() are pure",
            found=f"two answers of {what} to {given[:60]!r}: {one!r:.200} and {other!r:.200}",
            expected="the same answer to the same arguments, always",
            cause="a draw from a global generator, what an earlier episode left behind, or a state"
            " that does not compare; keep a seed and all else in the state, a frozen dataclass",
        )


def _require_kept(
    checked: CheckedEnvironment, method: str, what: str, before: object, after: object
) -> None:
    if not _alike(before, after):
        checked.broke(
            "start() and step() change none of their arguments",
            found=f"that {method} changed {what}",
            expected="the same state, since episodes are continued from any of their turns",
            cause="an append or an assignment; make a new state, as dataclasses.replace does",
        )


ENVIRONMENT_RULES: tuple[EnvironmentRule, ...] = (
    _limits_are_valid,
    _start_is_fixed,
    _step_answers_any_text,
    _step_is_pure,
    _episodes_can_be_replayed,
    _episodes_can_be_played_at_once,
    _environment_pickles,
)

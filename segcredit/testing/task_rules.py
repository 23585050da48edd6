"""The rules for tasks."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from segcredit.environments import turns_of
from segcredit.errors import TaskError, require_type
from segcredit.protocols import (
    IMAGE_SLOT,
    Environment,
    Prompt,
    PromptStream,
    Transition,
    Verdict,
)
from segcredit.testing.checked_plugin import CheckedPlugin, Rule
from segcredit.testing.environment_rules import ENVIRONMENT_RULES, CheckedEnvironment

_SEEDS = 8
"""Generator states from which training prompts are drawn."""
_COUNT = 4
"""Prompts of one draw."""
_HELD_OUT = (8, 4, 2, 1)
"""Evaluation prompts asked for; fewer where the task has no more."""
_PAIRS = 32
"""Demonstrations of which at least one has to be right."""

ODD_TEXTS = (
    "",
    " \n\t\n",
    "\x00",
    "\ufeff#1",
    "é ٣ ² ½ 数 👩‍🚀 e\u0301",
    "<|endoftext|><image></s>",
    "####",
    "#\n#\n#1",
    "\\boxed{",
    "\\boxed{}}",
    "{0} {question} %s %d $1 \\1",
    "nan",
    "-inf",
    "1/0",
    "0x",
    "9" * 5000,
    "(" * 3000,
    "a 1\n" * 5000,
)
"""Completions that a policy may well write, and that careless verifiers raise on."""

Episode = list[Transition]
"""Answers of an environment, to one turn after the other."""
_Content = tuple[str, object, tuple[bytes, ...]]


def _content(prompt: Prompt) -> _Content:
    """Returns all of a prompt that a policy sees."""
    return prompt.text, prompt.chat, prompt.images


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _disturb_global_generators() -> None:
    torch.rand(3)
    random.random()


def _drawn(checked: CheckedPlugin, seed: int, count: int = _COUNT) -> Sequence[Prompt]:
    """Returns training prompts, checked, that follow from a generator's state."""
    with checked.using(f"prompts({count}, generator)"):
        found = checked.plugin.prompts(count, _generator(seed))
    return _require_prompts(checked, found, count, "prompts()")


def _taken(
    checked: CheckedPlugin, stream: PromptStream, step: int, count: int = _COUNT
) -> Sequence[Prompt]:
    """Returns a step's prompts of a stream, checked."""
    with checked.using(f"stream().take({count}, generator)"):
        found = stream.take(count, _generator(step))
    return _require_prompts(checked, found, count, "stream().take()")


def _training(checked: CheckedPlugin) -> list[Prompt]:
    """Draws training prompts in all ways that a run draws them."""
    drawn = [prompt for seed in range(_SEEDS) for prompt in _drawn(checked, seed)]
    stream = _stream(checked)
    return drawn + [prompt for step in range(2) for prompt in _taken(checked, stream, step)]


def _stream(checked: CheckedPlugin) -> PromptStream:
    with checked.using("stream(7)"):
        return checked.plugin.stream(7)


def _held_out(checked: CheckedPlugin) -> Sequence[Prompt]:
    """Returns evaluation prompts, checked: as many as the task has, up to eight."""
    for count in _HELD_OUT:
        with checked.using(f"evaluation({count})"):
            try:
                found = checked.plugin.evaluation(count)
            except TaskError:
                if count == _HELD_OUT[-1]:
                    raise
                continue
        return _require_prompts(checked, found, count, "evaluation()")
    return []


def _demonstrated(checked: CheckedPlugin, seed: int = 0) -> Sequence[tuple[Prompt, str]]:
    """Returns prompts with completions to imitate, checked; none where the task has none."""
    with checked.using(f"demonstrations({_PAIRS}, generator)"):
        try:
            pairs = checked.plugin.demonstrations(_PAIRS, _generator(seed))
        except TaskError:
            return []
        prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    _require_prompts(checked, prompts, _PAIRS, "demonstrations()")
    if not all(isinstance(text, str) for text in texts):
        checked.broke(
            "a demonstration is a prompt and the text of a completion",
            found=f"completions of the types {sorted({type(text).__name__ for text in texts})}",
            expected="texts without special tokens",
            cause="token ids, or a list of lines; join them",
        )
    return pairs


def _require_prompts(
    checked: CheckedPlugin, found: Sequence[Any], count: int, source: str
) -> Sequence[Prompt]:
    if len(found) != count or not all(isinstance(prompt, Prompt) for prompt in found):
        checked.broke(
            f"{source} gives as many prompts as it was asked for",
            found=f"{len(found)} of the types {sorted({type(one).__name__ for one in found})}",
            expected=f"{count} of segcredit.Prompt",
            cause="a data set that ends; begin another pass over it, or raise a TaskError that says"
            " how many there are",
        )
    for prompt in found:
        _require_fields(checked, prompt, source)
    return found


def _require_fields(checked: CheckedPlugin, prompt: Prompt, source: str) -> None:
    key, text, images = _fields(prompt)
    slots = str(text).count(IMAGE_SLOT)
    faults = {
        f"the key {key!r}": isinstance(key, str) and key != "",
        f"a text of type {type(text).__name__}": isinstance(text, str),
        "images that are not bytes": all(isinstance(image, bytes) for image in images),
        f"{len(images)} images for {slots} places": slots in (0, len(images)),
    }
    for fault, fine in faults.items():
        if not fine:
            checked.broke(
                f"{source} gives whole prompts",
                found=f"{fault} in {str(prompt)[:200]}",
                expected="a key and a text as strings, and the bytes of an image file for each"
                f" {IMAGE_SLOT} of the text, or for none",
                cause="a number as key (write str(...)), or a decoded image in place of its file",
            )


def _fields(prompt: Prompt) -> tuple[object, object, Sequence[object]]:
    """Returns key, text and images, of whatever type the task made them."""
    return prompt.key, prompt.text, prompt.images


def _prompts_are_whole(checked: CheckedPlugin) -> None:
    _drawn(checked, 0, count=1)
    _training(checked)
    _held_out(checked)


def _prompts_follow_the_generator(checked: CheckedPlugin) -> None:
    first = [_drawn(checked, seed) for seed in range(_SEEDS)]
    _disturb_global_generators()
    again = [_drawn(checked, seed) for seed in reversed(range(_SEEDS))][::-1]
    keys = [[prompt.key for prompt in prompts] for prompts in first]
    if keys != [[prompt.key for prompt in prompts] for prompts in again]:
        checked.broke(
            "the generator's state alone decides which prompts are drawn",
            found="other prompts from a generator in the same state",
            expected="the same prompts in the same order",
            cause="a draw from Python's, numpy's or torch's global generator, or a position that"
            " the task keeps; a position belongs into stream()",
        )
    if len({key for draw in keys for key in draw}) > 1 and all(draw == keys[0] for draw in keys):
        checked.broke(
            "another state of the generator draws other prompts",
            found=f"the prompts {keys[0]} from {_SEEDS} generators with different seeds",
            expected="prompts that change with the seed",
            cause="the generator is not used, so that every step meets the same prompts",
        )


def _keys_name_prompts(checked: CheckedPlugin) -> None:
    known: dict[str, tuple[_Content, str]] = {}
    for prompt in [*_training(checked), *_held_out(checked), *_training(checked)]:
        # An answer may be anything, so that it is compared as it is written.
        found = _content(prompt), repr(prompt.answer)
        if known.setdefault(prompt.key, found) != found:
            checked.broke(
                "a key names one prompt",
                found=f"two prompts with the key {prompt.key!r}: {known[prompt.key][0][0]!r} and"
                f" {prompt.text!r}",
                expected="a key that no other prompt has, and the same prompt whenever it comes",
                cause="keys that are counted anew in every draw or split; take them from the"
                " problem itself",
            )


def _evaluation_is_fixed(checked: CheckedPlugin) -> None:
    first = _held_out(checked)
    _disturb_global_generators()
    _training(checked)
    if [prompt.key for prompt in first] != [prompt.key for prompt in _held_out(checked)]:
        checked.broke(
            "evaluation() is a fixed list",
            found="other prompts at the second call",
            expected="the same prompts in the same order, always and everywhere",
            cause="a random draw, or an iterator that goes on; draw with a seed of its own",
        )
    if len({prompt.key for prompt in first}) < len(first):
        checked.broke(
            "evaluation() gives different prompts",
            found=f"the keys {[prompt.key for prompt in first]}",
            expected="no prompt twice",
            cause="draws with replacement",
        )


def _evaluation_is_held_out(checked: CheckedPlugin) -> None:
    held_out = _held_out(checked)
    keys, contents = {p.key for p in held_out}, {_content(p) for p in held_out}
    demonstrated = [prompt for prompt, _ in _demonstrated(checked)]
    for prompt in [*_training(checked), *demonstrated]:
        if prompt.key in keys or _content(prompt) in contents:
            checked.broke(
                "no prompt for evaluation is trained on",
                found=f"the evaluation prompt {prompt.text!r} (key {prompt.key!r}) among those for"
                " training",
                expected="prompts that prompts(), stream() and demonstrations() never give",
                cause="the same problem under two keys, or a split by place; split by a checksum"
                " of the problem",
            )


def _judged(checked: CheckedPlugin, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
    """Returns a verdict, checked."""
    shown = repr(text if len(text) < 60 else f"{text[:50]}... ({len(text)} characters)")
    with checked.using(f"verify() of the completion {shown}"):
        verdict = checked.plugin.verify(prompt, text, truncated=truncated)
    if not _is_plain(verdict):
        checked.broke(
            "verify() gives a Verdict with a finite reward for any text",
            found=f"{verdict!r} for {shown}",
            expected="a segcredit.Verdict of plain Python values: a finite number, True or False,"
            " and the answer as a text",
            cause="a bare number, a tensor or a value of numpy; or a reward computed from an answer"
            " that is missing",
        )
    return verdict


def _is_plain(verdict: object) -> bool:
    """Tells whether a verdict is one, with fields of the types that tables are written of."""
    if not isinstance(verdict, Verdict):
        return False
    reward, correct, faithful, answer, timed_out = dataclasses.astuple(verdict)
    return (
        isinstance(reward, float | int)
        and math.isfinite(reward)
        and isinstance(correct, bool)
        and isinstance(faithful, bool | None)
        and isinstance(answer, str | None)
        and isinstance(timed_out, bool)
    )


def _verify_judges_any_text(checked: CheckedPlugin) -> None:
    for prompt in (_drawn(checked, 0)[0], _held_out(checked)[0]):
        for text in ODD_TEXTS:
            _judged(checked, prompt, text, truncated=False)
        for text in ODD_TEXTS[:4]:
            _judged(checked, prompt, text, truncated=True)


def _cases(checked: CheckedPlugin) -> list[tuple[Prompt, str]]:
    """Returns prompts with texts, among them some that are right where the task shows any."""
    prompts = [*_drawn(checked, 0), *_held_out(checked)]
    answered = [(prompt, str(prompt.answer)) for prompt in prompts]
    return [*answered, *_demonstrated(checked)[:8], (prompts[0], ""), (prompts[0], "#1\n#2")]


def _verify_is_pure(checked: CheckedPlugin) -> None:
    cases = _cases(checked)
    before = copy.deepcopy(cases)
    first = [_judged(checked, *case, truncated=False) for case in cases]
    _disturb_global_generators()
    again = [_judged(checked, *case, truncated=False) for case in reversed(cases)][::-1]
    for (_, text), one, two in zip(cases, first, again, strict=True):
        if one != two:
            checked.broke(
                "the same completion always earns the same verdict",
                found=f"{one} and then {two} for {text!r}",
                expected="the same verdict",
                cause="a random draw, or a state that earlier completions left behind",
            )
    for (old, _), (prompt, _) in zip(before, cases, strict=True):
        checked.require_untouched(old, prompt, "verify()")


def _environment(
    checked: CheckedPlugin, prompts: Sequence[Prompt], turns: Sequence[str] = ()
) -> CheckedEnvironment:
    with checked.using("environment()"):
        found = checked.plugin.environment()
        require_type("environment", found, Environment)
    return CheckedEnvironment(f"{checked.name}: environment", found, tuple(prompts), tuple(turns))


def _episode(checked: CheckedPlugin, prompt: Prompt, text: str) -> tuple[list[str], Episode]:
    """Returns the turns of a demonstration, and what they are answered."""
    environment = _environment(checked, [prompt])
    turns = turns_of(text, environment.plugin.stop)
    return turns, environment.played(prompt, turns)


def _is_right(checked: CheckedPlugin, prompt: Prompt, text: str) -> bool:
    """Tells whether a demonstration's episode ends well."""
    turns, answers = _episode(checked, prompt, text)
    if answers[-1].done and answers[-1].correct is None:
        return _judged(checked, prompt, turns[len(answers) - 1], truncated=False).correct
    return bool(answers[-1].correct)


def _environment_keeps_the_contract(checked: CheckedPlugin) -> None:
    shown = _demonstrated(checked)[:1]
    turns = _episode(checked, *shown[0])[0] if shown else []
    prompts = [*(prompt for prompt, _ in shown), _drawn(checked, 0)[0], _held_out(checked)[0]]
    for rule in ENVIRONMENT_RULES:
        rule(_environment(checked, prompts, turns))


def _demonstrations_can_be_right(checked: CheckedPlugin) -> None:
    pairs = _demonstrated(checked)
    # A tutor may err on purpose, but not always.
    if pairs and not any(_is_right(checked, *pair) for pair in pairs):
        checked.broke(
            "verify() accepts what demonstrations() shows",
            found=f"none of {_PAIRS} demonstrations right, such as {pairs[0][1]!r} for"
            f" {pairs[0][0].text!r}",
            expected="at least one that is right",
            cause="demonstrations in a form that the verifier does not read",
        )
    if _demonstrated(checked) != pairs:
        checked.broke(
            "the generator's state alone decides which demonstrations are drawn",
            found="others from a generator in the same state",
            expected="the same pairs in the same order",
            cause="a draw from a global generator",
        )


def _alphabet_covers_texts(checked: CheckedPlugin) -> None:
    with checked.using("alphabet()"):
        alphabet = checked.plugin.alphabet()
    if not isinstance(alphabet, str):
        checked.broke(
            "alphabet() is a text",
            found=f"{type(alphabet).__name__}",
            expected="a string of characters, '' where any may come",
            cause="a list or a set; join it",
        )
    pairs = _demonstrated(checked)
    texts = [prompt.text for prompt in [*_training(checked), *_held_out(checked)]]
    texts += [text for prompt, completion in pairs for text in (prompt.text, completion)]
    texts += [answer.observation for pair in pairs for answer in _episode(checked, *pair)[1]]
    missing = {*"".join(texts).replace(IMAGE_SLOT, "")} - {*alphabet}
    if alphabet and missing:
        checked.broke(
            "alphabet() has every character of prompts, demonstrations and observations",
            found=f"{sorted(missing)} in texts and not in {alphabet!r}",
            expected="all of them, or '' where any may come",
            cause="a line break or a space forgotten",
        )


def _stream_follows_its_seed(checked: CheckedPlugin) -> None:
    streams = [_stream(checked), _stream(checked), _stream(checked.unpickled())]
    for step in range(3):
        # In turns: two streams of one task do not move each other.
        found = [[p.key for p in _taken(checked, stream, step)] for stream in streams]
        _disturb_global_generators()
        if found != [found[0]] * 3:
            checked.broke(
                "a stream follows from its seed and the calls before alone",
                found=f"the prompts {found} in step {step} of two streams of one seed, and of one"
                " in another process",
                expected="the same prompts from all three",
                cause="a position kept in the task or the module instead of the stream, or a draw"
                " from a global generator",
            )


def _stream_goes_on_from_its_position(checked: CheckedPlugin) -> None:
    stream = _stream(checked)
    for step in range(2):
        _taken(checked, stream, step)
    with checked.using("stream().state_dict()"):
        state = copy.deepcopy(stream.state_dict())
    with checked.using("writing stream().state_dict(), which holds plain values, as JSON"):
        json.dumps(state)
    whole = [[p.key for p in _taken(checked, stream, step)] for step in range(2, 5)]
    resumed = _stream(checked)
    with checked.using("stream().load_state_dict() of its own state"):
        resumed.load_state_dict(state)
    rest = [[p.key for p in _taken(checked, resumed, step)] for step in range(2, 5)]
    if rest != whole:
        checked.broke(
            "a stream goes on from the position of its state_dict",
            found=f"the prompts {rest[0]} after loading",
            expected=f"{whole[0]}, as without the interruption",
            cause="a state that leaves something out, such as the number of the pass",
        )


def _task_pickles(checked: CheckedPlugin) -> None:
    again = checked.unpickled()
    same = _drawn(checked, 0) == _drawn(again, 0) and all(
        _judged(checked, *case, truncated=False) == _judged(again, *case, truncated=False)
        for case in _cases(checked)
    )
    if not same:
        checked.broke(
            "a plug-in survives pickling",
            found="other prompts or verdicts from the unpickled plug-in",
            expected="the same",
            cause="state outside the dataclass's fields",
        )


TASK_RULES: tuple[Rule, ...] = (
    _prompts_are_whole,
    _prompts_follow_the_generator,
    _keys_name_prompts,
    _evaluation_is_fixed,
    _evaluation_is_held_out,
    _verify_judges_any_text,
    _verify_is_pure,
    _environment_keeps_the_contract,
    _demonstrations_can_be_right,
    _alphabet_covers_texts,
    _stream_follows_its_seed,
    _stream_goes_on_from_its_position,
    _task_pickles,
)

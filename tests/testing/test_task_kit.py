"""The kit holds tasks to their contract, and names the rule that a wrong one breaks."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from segcredit.errors import PluginError
from segcredit.protocols import Environment, Prompt, PromptStream, Task, Transition, Verdict
from segcredit.testing import check_task, task_checks


class Sums(Task):
    """Sums of two digits, right: every wrong task below changes one thing of it."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        found: list[Prompt] = []
        while len(found) < count:
            a, b = torch.randint(100, (2,), generator=generator).tolist()
            found += [self.prompt(a, b)] * ((a + b) % 5 > 0)
        return found

    def evaluation(self, count: int) -> Sequence[Prompt]:
        return [self.prompt(a, 5 - a % 5) for a in range(count)]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        right = not truncated and text == prompt.answer
        return Verdict(float(right), right, answer=text)

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        return [(prompt, prompt.answer) for prompt in self.prompts(count, generator)]

    def alphabet(self) -> str:
        return "0123456789+="

    def stream(self, seed: int) -> PromptStream:
        return Counted(self, seed)

    def prompt(self, a: int, b: int) -> Prompt:
        return Prompt(f"{a}+{b}", f"{a}+{b}=", str(a + b))


@dataclasses.dataclass
class Counted(PromptStream):
    task: Sums
    seed: int
    step: int = 0

    def take(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        self.step += 1
        return self.task.prompts(count, torch.Generator().manual_seed(self.seed + self.step))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]


def test_a_right_task_keeps_the_contract() -> None:
    check_task(Sums())


class OneTooFew(Sums):
    def prompts(self, count, generator):
        return super().prompts(count - 1, generator)


class NumberedKeys(Sums):
    def prompt(self, a, b):
        return dataclasses.replace(super().prompt(a, b), key=a)


class MissingImage(Sums):
    def prompt(self, a, b):
        return Prompt(f"{a}+{b}", f"<image><image> {a}+{b}=", str(a + b), (b"PNG",))


class GlobalDraws(Sums):
    def prompts(self, count, generator):
        seed = random.randrange(100)
        return super().prompts(count, torch.Generator().manual_seed(seed))


class Deaf(Sums):
    def prompts(self, count, generator):
        return super().prompts(count, torch.Generator().manual_seed(0))


class PlaceAsKey(Sums):
    def prompts(self, count, generator):
        found = super().prompts(count, generator)
        return [dataclasses.replace(p, key=str(place)) for place, p in enumerate(found)]


class AnotherAnswer(Sums):
    def prompts(self, count, generator):
        found = super().prompts(count, generator)
        return [dataclasses.replace(p, key=str(int(p.answer) % 10)) for p in found]


class DrawnEvaluation(Sums):
    def evaluation(self, count):
        first = random.randrange(1000)
        return [self.prompt(first + a, 5 - (first + a) % 5) for a in range(count)]


class Leak(Sums):
    """The same problem under two keys."""

    def evaluation(self, count):
        found = [prompt for seed in range(count) for prompt in self.prompts(1, seeded(seed))]
        return [dataclasses.replace(prompt, key=f"test/{prompt.key}") for prompt in found]


class TaughtTheTest(Sums):
    def demonstrations(self, count, generator):
        return [(prompt, prompt.answer) for prompt in self.evaluation(count)]


class ReadsNumbers(Sums):
    def verify(self, prompt, text, *, truncated):
        right = text != "" and int(text) == int(prompt.answer)
        return Verdict(float(right), right)


class DigitsAreNumbers(Sums):
    """Python takes '²' for a digit, and refuses to read it."""

    def verify(self, prompt, text, *, truncated):
        numbers = [int(letter) for letter in text if letter.isdigit()]
        return Verdict(float(sum(numbers)), False)


class Distance(Sums):
    def verify(self, prompt, text, *, truncated):
        number = float(text) if text in {"nan", "-inf"} else 0.0
        return Verdict(-abs(number - float(prompt.answer)), False)


class BareReward(Sums):
    def verify(self, prompt, text, *, truncated):
        return float(text == prompt.answer)


class TensorReward(Sums):
    def verify(self, prompt, text, *, truncated):
        right = torch.tensor(text == prompt.answer)
        return Verdict(right.float(), bool(right))


class Moody(Sums):
    def verify(self, prompt, text, *, truncated):
        return Verdict(random.random(), False)


class Remembers(Sums):
    def __init__(self) -> None:
        self.seen: set[str] = set()

    def verify(self, prompt, text, *, truncated):
        new = text not in self.seen
        self.seen.add(text)
        return Verdict(float(new), False)


class Marks(Sums):
    def prompt(self, a, b):
        return Prompt(f"{a}+{b}", f"{a}+{b}=", [str(a + b)])

    def demonstrations(self, count, generator):
        return [(prompt, prompt.answer[0]) for prompt in self.prompts(count, generator)]

    def verify(self, prompt, text, *, truncated):
        right = text == prompt.answer[0]
        prompt.answer.append(text)
        return Verdict(float(right), right)


@dataclasses.dataclass
class Counts(Environment):
    """Answers with the number of turns that it ever saw."""

    seen: int = 0
    max_turns = 3

    def step(self, state, text):
        self.seen += 1
        return Transition(state=state, observation=f"{self.seen}", done=text == "2")


class ImpureEnvironment(Sums):
    def environment(self):
        return Counts()


class NoEnvironment(Sums):
    def environment(self):
        return None


@dataclasses.dataclass(frozen=True)
class Speaks(Environment):
    """Answers with a character that no prompt has."""

    max_turns = 3

    def step(self, state, text):
        return Transition(state=state, observation="!", done=text == "2")


class UnreadObservations(Sums):
    def environment(self):
        return Speaks()


class NeverRight(Sums):
    def demonstrations(self, count, generator):
        return [(prompt, f"{prompt.answer}\n") for prompt in self.prompts(count, generator)]

    def alphabet(self):
        return ""


class TokenIds(Sums):
    def demonstrations(self, count, generator):
        return [(prompt, [1, 2]) for prompt in self.prompts(count, generator)]


class UnseededTutor(Sums):
    def demonstrations(self, count, generator):
        pairs = super().demonstrations(count, generator)
        return [(prompt, random.choice([text, "1"])) for prompt, text in pairs]


class NoEqualsSign(Sums):
    def alphabet(self):
        return "0123456789+"


class AlphabetList(Sums):
    def alphabet(self):
        return list("0123456789+=")


class SharedPosition(Sums):
    """One position for all streams of the task."""

    def __init__(self) -> None:
        self.position = 0

    def stream(self, seed):
        return Shared(self, seed)


class Shared(Counted):
    def take(self, count, generator):
        self.task.position += 1
        return self.task.prompts(count, torch.Generator().manual_seed(self.task.position))


class Forgets(Sums):
    def stream(self, seed):
        return Forgetful(self, seed)


class Forgetful(Counted):
    def load_state_dict(self, state):
        pass


class TensorState(Sums):
    def stream(self, seed):
        return WithTensor(self, seed)


class WithTensor(Counted):
    def state_dict(self):
        return {"step": torch.tensor(self.step)}


class LocalLambda(Sums):
    def __init__(self) -> None:
        self.rule = lambda text: text


class HiddenState(Sums):
    offset = 0

    def __init__(self) -> None:
        type(self).offset += 1  # another process would count anew
        self.own = type(self).offset

    def __reduce__(self):
        return HiddenState, ()

    def prompt(self, a, b):
        return Prompt(f"{a}+{b}", f"{a}+{b}=", str(a + b + self.own))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WRONG = [
    (OneTooFew(), "prompts_are_whole", "gives as many prompts as it was asked for"),
    (NumberedKeys(), "prompts_are_whole", "gives whole prompts: found the key"),
    (MissingImage(), "prompts_are_whole", "1 images for 2 places"),
    (GlobalDraws(), "prompts_follow_the_generator", "the generator's state alone decides"),
    (Deaf(), "prompts_follow_the_generator", "another state of the generator draws other"),
    (PlaceAsKey(), "keys_name_prompts", "a key names one prompt"),
    (AnotherAnswer(), "keys_name_prompts", "a key names one prompt"),
    (DrawnEvaluation(), "evaluation_is_fixed", "evaluation() is a fixed list"),
    (Leak(), "evaluation_is_held_out", "no prompt for evaluation is trained on"),
    (TaughtTheTest(), "evaluation_is_held_out", "no prompt for evaluation is trained on"),
    (ReadsNumbers(), "verify_judges_any_text", "raised ValueError on verify() of the completion"),
    (DigitsAreNumbers(), "verify_judges_any_text", "²"),
    (Distance(), "verify_judges_any_text", "a finite reward for any text"),
    (BareReward(), "verify_judges_any_text", "gives a Verdict"),
    (TensorReward(), "verify_judges_any_text", "of plain Python values"),
    (Moody(), "verify_is_pure", "always earns the same verdict"),
    (Remembers(), "verify_is_pure", "always earns the same verdict"),
    (Marks(), "verify_is_pure", "verify() changed Prompt.answer"),
    (ImpureEnvironment(), "environment_keeps_the_contract", "environment 'Counts' breaks the rule"),
    (NoEnvironment(), "environment_keeps_the_contract", "environment returned nothing"),
    (UnreadObservations(), "alphabet_covers_texts", "found ['!'] in texts"),
    (NeverRight(), "demonstrations_can_be_right", "accepts what demonstrations() shows"),
    (TokenIds(), "demonstrations_can_be_right", "the text of a completion"),
    (UnseededTutor(), "demonstrations_can_be_right", "decides which demonstrations are drawn"),
    (NoEqualsSign(), "alphabet_covers_texts", "found ['='] in texts"),
    (AlphabetList(), "alphabet_covers_texts", "alphabet() is a text"),
    (SharedPosition(), "stream_follows_its_seed", "from its seed and the calls before alone"),
    (Forgets(), "stream_goes_on_from_its_position", "from the position of its state_dict"),
    (TensorState(), "stream_goes_on_from_its_position", "as JSON"),
    (LocalLambda(), "task_pickles", "on pickling"),
    (HiddenState(), "task_pickles", "survives pickling"),
]


def class_name(case: object) -> str:
    return "" if isinstance(case, str) else type(case).__name__


# Wrong on purpose; run-time type checks would speak before the kit does.
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("plugin", "rule", "sentence"), WRONG, ids=class_name)
def test_wrong_tasks_are_caught_by_the_rule(plugin: Any, rule: str, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        dict(task_checks(plugin))[rule]()
    assert f"task {type(plugin).__name__!r}" in str(caught.value)
    assert sentence in str(caught.value)


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for _, rule, _ in WRONG} == {name for name, _ in task_checks(Sums())}

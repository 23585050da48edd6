"""The arithmetic task: its split, its verifier and its tutor."""

from __future__ import annotations

import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Task
from segcredit.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
WORKED = "9-3=6\n6+2=8\n8+3=1\n#1"
PROMPT = Prompt(key="9-3+2+3", text="9-3+2+3=", answer="1")
LINE = re.compile(r"([a-h]?)(\d)([+-])(\d)=(\d)")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prompts_are_decided_by_the_generator_and_advance_it() -> None:
    generator = _generator(3)
    first, second = TASK.prompts(16, generator), TASK.prompts(16, generator)
    assert first == TASK.prompts(16, _generator(3))
    assert first != second
    assert isinstance(TASK, Task)


def test_prompts_have_the_right_form_length_and_answer() -> None:
    lengths = set()
    for prompt in TASK.prompts(300, _generator()):
        assert re.fullmatch(r"\d([+-][123])+=", prompt.text)
        assert prompt.text == f"{prompt.key}="
        assert prompt.answer == str(eval(prompt.key) % 10)
        lengths.add(len(prompt.key) // 2)
    assert lengths == {4, 5, 6, 7, 8}


def test_evaluation_is_fixed_different_and_disjoint_from_training() -> None:
    task = Arithmetic(min_steps=1, max_steps=2)
    held = task.evaluation(30)
    assert held == task.evaluation(30)
    assert held[:10] == task.evaluation(10)
    keys = {prompt.key for prompt in held}
    assert len(keys) == 30
    trained = {prompt.key for prompt in task.prompts(3000, _generator())}
    demonstrated = {prompt.key for prompt, _ in task.demonstrations(3000, _generator(1))}
    assert not keys & (trained | demonstrated)
    assert len(trained) > 300, "nearly all of the 420 expressions ought to have come"


def test_too_many_evaluation_prompts_are_refused_in_a_sentence() -> None:
    with pytest.raises(TaskError, match=r"different evaluation prompts; 500 were asked for"):
        Arithmetic(min_steps=1, max_steps=1).evaluation(500)


@pytest.mark.parametrize(
    ("option", "value"),
    [("min_steps", 0), ("min_steps", 9), ("max_operand", 10), ("tutor_bug", 2.0)],
)
def test_options_out_of_range_are_named(option: str, value: int) -> None:
    with pytest.raises(TaskError, match=rf"task\.{option} .* is {value}; expected"):
        Arithmetic(**{option: value})


@pytest.mark.parametrize(
    ("text", "correct", "process_correct"),
    [
        (WORKED, True, True),
        ("#1", True, False),
        ("9-3=6\n6+2=8\n#1", True, False),
        ("9-3=7\n7+2=8\n8+3=1\n#1", True, False),
        ("9-3=6\n8+3=1\n6+2=8\n#1", True, False),
        ("a" + WORKED, True, False),
        (WORKED + "\n", False, False),
        (WORKED + " ", False, False),
        (WORKED + "1", False, False),
        (WORKED + "\n9-3=6", False, False),
        (WORKED.replace("#", "##"), False, False),
        ("#1\n" + WORKED, False, False),
        ("9-3=6\n6+2=8\n8+3=1#1", False, False),
        (WORKED.replace("#1", "#2"), False, False),
        (WORKED.replace("#1", "#11"), False, False),
        (WORKED.replace("#1", "# 1"), False, False),
        (WORKED.replace("\n#1", "\n1"), False, False),
        (WORKED.replace("\n#1", ""), False, False),
        ("", False, False),
    ],
)
def test_the_verifier_is_strict(text: str, correct: bool, process_correct: bool) -> None:
    verdict = TASK.verify(PROMPT, text, truncated=False)
    assert verdict.reward == verdict.correct == correct
    assert verdict.process_correct == process_correct


def test_truncated_completions_earn_nothing() -> None:
    verdict = TASK.verify(PROMPT, WORKED, truncated=True)
    assert (verdict.reward, verdict.correct, verdict.process_correct) == (0.0, False, False)


@given(st.text(alphabet=TASK.alphabet(), max_size=12))
def test_no_text_makes_the_verifier_fail(text: str) -> None:
    verdict = TASK.verify(PROMPT, text, truncated=False)
    assert verdict.correct == (
        text.endswith("#1") and text.count("#") == 1 and (text == "#1" or text[-3] == "\n")
    )


def test_a_tutor_without_mistakes_is_faithful() -> None:
    task = Arithmetic(tutor_error=0.0, tutor_bug=0.0)
    for prompt, text in task.demonstrations(100, _generator()):
        assert task.verify(prompt, text, truncated=False).process_correct
        assert set(prompt.text + text) <= set(task.alphabet())
        assert 26 <= len(text) <= 50


def test_the_tutor_is_mostly_wrong_where_a_step_wraps_and_right_elsewhere() -> None:
    wrapped = _right_results(Arithmetic(tutor_error=0.0), wraps=True)
    plain = _right_results(Arithmetic(tutor_error=0.0), wraps=False)
    assert 0.42 < sum(wrapped) / len(wrapped) < 0.48
    assert all(plain)
    careless = _right_results(Arithmetic(tutor_error=0.5, tutor_bug=0.0), wraps=False)
    assert 0.72 < sum(careless) / len(careless) < 0.78, "half of all slips are wrong results"


def _right_results(task: Arithmetic, *, wraps: bool) -> list[bool]:
    """Whether each line that wraps (or does not) states its own sum rightly."""
    found: list[bool] = []
    for _, text in task.demonstrations(1500, _generator()):
        for _, value, sign, operand, result in LINE.findall(text):
            exact = int(value) + int(sign + operand)
            if (not 0 <= exact <= 9) == wraps:
                found.append(exact % 10 == int(result))
    return found


def test_the_tutor_goes_on_from_its_own_results() -> None:
    for _, text in TASK.demonstrations(200, _generator()):
        *lines, last = text.split("\n")
        parts = [LINE.fullmatch(line) for line in lines]
        values = [part[2] for part in parts if part] + [last[1:]]
        assert values[1:] == [part[5] for part in parts if part]
        assert len(values) == len(lines) + 1


def test_filler_is_uniform_and_decides_nothing() -> None:
    task = Arithmetic(filler=True, tutor_error=0.0, tutor_bug=0.0)
    letters: list[str] = []
    for prompt, text in task.demonstrations(400, _generator()):
        assert task.verify(prompt, text, truncated=False).process_correct
        other = re.sub("^[a-h]", "h", text, flags=re.MULTILINE)
        assert task.verify(prompt, other, truncated=False).process_correct
        letters += [letter for letter, *_ in LINE.findall(text)]
    shares = [letters.count(letter) / len(letters) for letter in "abcdefgh"]
    assert min(shares) > 0.09
    assert max(shares) < 0.16
    assert set("abcdefgh") <= set(task.alphabet())


def test_prompts_are_fast() -> None:
    generator = _generator()
    TASK.prompts(32, generator)
    started = time.process_time()
    for _ in range(20):
        TASK.prompts(32, generator)
    assert (time.process_time() - started) / 20 < 0.02, "some 0.3 ms are expected"

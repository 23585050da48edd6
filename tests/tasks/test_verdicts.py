"""Verdicts on final answers: a corpus of true answers, texts and what is right, and data sets."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit.episodes import verify
from segcredit.errors import TaskError
from segcredit.protocols import Prompt
from segcredit.tasks.dataset import Dataset
from segcredit.tasks.verifiers.answer_extraction import FinalAnswer, after_cue, last_box
from segcredit.tasks.verifiers.choice_answers import chosen
from segcredit.tasks.verifiers.judge_process import JUDGES
from segcredit.tasks.verifiers.math_text import expression, located, plain

pytest.importorskip("math_verify")
CORPUS = [
    json.loads(line)
    for line in Path(__file__).with_name("verdicts.jsonl").read_text("utf-8").splitlines()
]


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_every_verdict_of_the_corpus_is_right(part: int) -> None:
    """Bare LaTeX, several answers, boxes, separators, scripts, sizes; English and Chinese."""
    wrong: list[Any] = []
    for case in CORPUS[part::3]:
        task = Dataset("unread.jsonl", final=case["final"], verifier=case["verifier"])
        verdict = task.verify(Prompt("p", "?", case["answer"]), case["text"], truncated=False)
        if verdict.correct != case["right"]:
            wrong.append(case)
    assert not wrong
    assert len(CORPUS) > 1000
    assert min(Counter(case["right"] for case in CORPUS).values()) > 400


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("12497500", "\\binom{5000}{2}", True),
        ("12497500", "\\binom{5000}{4998}", True),
        ("0", "\\binom{3}{5}", True),
        ("\\binom{n}{2}", "\\frac{n(n-1)}{2}", True),
        ("2", "\\binom{1000000}{500000}", False),
        ("\\pi", "\\int_0^{\\pi} x \\sin(x) \\, dx", True),
        ("-1", "\\int_0^1 \\ln(x) \\, dx", True),
        ("\\frac{\\pi^2}{6}", "\\sum_{k=1}^{\\infty} \\frac{1}{k^2}", True),
        ("0", "\\int_0^{\\infty} \\frac{\\sin(x)}{x} \\, dx", False),
        ("2", "\\int_0^{1000} \\sin(e^x) \\, dx", False),
        ("2", "\\int_0^{100} \\sin(x^5) \\cos(x^7) \\, dx", False),
        ("10^{-31}", "\\int_0^1 x^{50} (1-x)^{50} \\, dx", False),
        ("x^2", "\\int 2x \\, dx", True),
        ("x^2 + 1", "\\int \\frac{\\sqrt{x^7+1}}{\\ln(x+3)} \\, dx", False),
        ("x", "\\int e^{x^3} \\sin(x^2) \\, dx", False),
    ],
)
def test_what_is_left_to_be_computed_is_compared_in_time(
    answer: str, said: str, right: bool
) -> None:
    task = Dataset("unread.jsonl")
    verdict = task.verify(Prompt("p", "?", answer), f"\\boxed{{{said}}}", truncated=False)
    assert (verdict.correct, verdict.timed_out) == (right, False)


FORMS = ("\\boxed{%s}", "$%s$", "<answer>%s</answer>", "It is so.\n#### %s")


def answers(folder: Path) -> Iterator[str]:
    for file, column in (("gsm8k/test.jsonl", "final"), ("math/math500.jsonl", "answer")):
        for line in (folder / file).read_text("utf-8").splitlines():
            yield json.loads(line)[column]


def near_misses(answer: str) -> Iterator[str]:
    """Yields answers that are almost the true one."""
    bare = answer.replace(",", "")
    if bare.lstrip("-").isdigit():
        yield from (str(int(bare) + 1), str(int(bare) - 1), f"{bare}.5", f"{bare} + x")
        yield f"{bare} or {int(bare) + 1}"
        if int(bare):  # 0x is 0
            yield from (f"{bare}0", f"{bare}x", f"{bare}\\sqrt{{2}}", str(-int(bare)))
    elif any(sign.isdigit() for sign in answer) and "text" not in answer and "mbox" not in answer:
        yield from (f"{answer} + 1", f"\\frac{{{answer}}}{{7}}")


@pytest.mark.slow
@pytest.mark.skipif("SEGCREDIT_DATA" not in os.environ, reason="SEGCREDIT_DATA names no folder")
def test_true_answers_of_data_sets_are_right_and_near_misses_are_not() -> None:
    """GSM8K and MATH-500, in the folder that SEGCREDIT_DATA names: prints how many."""
    whole, tag = Dataset("unread.jsonl"), Dataset("unread.jsonl", final="answer_tag")
    told: Counter[Any] = Counter()
    for answer in answers(Path(os.environ["SEGCREDIT_DATA"])):
        prompt = Prompt("p", "?", answer)
        for form in FORMS:
            task = tag if "tag" in form or "<answer>" in form else whole
            told["right", form] += task.verify(prompt, form % answer, truncated=False).correct
            told["true", form] += 1
        for miss in near_misses(answer):
            told["near misses"] += 1
            verdict = whole.verify(prompt, f"\\boxed{{{miss}}}", truncated=False)
            told["near misses right"] += verdict.correct
            if verdict.correct:
                print("near miss", answer, miss)
    print(dict(told))
    assert all(told["right", form] == told["true", form] > 1000 for form in FORMS)
    assert told["near misses right"] == 0


# Time.

UNITS = ["1,", "9", "\n", "answer is ", "the answer of ", "$", "{", "\\boxed{", "\\text{", "a", "("]
UNITS += [
    "((x",
    "<answer>",
    "</answer>",
    " ",
    "答案是",
    "1.000",
    "#### ",
    "\\[",
    "10^",
    "½",
    "√",
    "or ",
]


@pytest.mark.parametrize(
    "read",
    [
        plain,
        after_cue,
        last_box,
        chosen,
        expression,
        lambda text: located(text, first=False),
        lambda text: located(text, first=True),
        *(FinalAnswer(place=place).place_of for place in ("answer_tag", "first_line", "last_line")),
    ],
)
def test_patterns_of_ours_take_linear_time(read: Callable[[str], object]) -> None:
    """A quadratic one takes minutes on the longest of them."""
    for unit in UNITS:
        began = time.process_time()
        read((unit * 20_000)[:20_000])
        assert time.process_time() - began < 2.0, unit


@pytest.mark.parametrize(
    "option", [{"final": r"(a+)+$"}, {"final": r"(a+)+$", "verifier": "exact"}]
)
def test_a_users_pattern_has_the_verifiers_time_limit(option: dict[str, Any]) -> None:
    task = Dataset("unread.jsonl", seconds=0.5, **option)
    verdict = task.verify(Prompt("p", "?", "1"), "a" * 40 + "!", truncated=False)
    assert (verdict.reward, verdict.timed_out) == (0.0, True)
    assert task.verify(Prompt("p", "?", "aaa"), "aaa", truncated=False).timed_out is False


def test_an_answer_pattern_without_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "?", "answer": "a" * 40 + "!"}))
    task = Dataset(str(tmp_path / "p.jsonl"), answer_pattern=r"(a+)+$", seconds=0.5)
    with pytest.raises(TaskError, match=r"answer_pattern is .*takes more than 0.5 seconds"):
        task.prompts(1, torch.Generator())


def test_a_text_that_ran_out_of_time_is_remembered_and_holds_up_nobody() -> None:
    task = Dataset("unread.jsonl", seconds=1.5)
    count = 8 * JUDGES
    texts = [
        "\\boxed{\\sum_{k=1}^{\\infty} \\frac{\\sin(k^2)}{k^3}}",
        *("\\boxed{2}" for _ in range(count - 1)),
    ]
    prompts = [Prompt(str(n), "?", "2") for n in range(count)]
    for allowed in (20.0, 1.0):
        began = time.monotonic()
        verdicts = verify(task, prompts, texts, [False] * count)
        assert [one.timed_out for one in verdicts] == [True] + [False] * (count - 1)
        assert [one.correct for one in verdicts] == [False] + [True] * (count - 1)
        assert time.monotonic() - began < allowed

"""The route task: its one fork, its verifier and its tutor."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segcredit.errors import TaskError
from segcredit.protocols import Prompt
from segcredit.tasks.route import Route

TASK = Route()
WALK = "uwxfe\nzed\nqqtvdc\nswcb\n#"
PROMPT = Prompt(key="xqrfb", text="xqrfb=", answer="fedcb")
STATIONS = "abcdefghijklmn"


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _walk(text: str) -> str:
    """The stations that a text reaches, behind the one it starts from."""
    lines = [line.lstrip("qrstuvwxyz") for line in text.split("\n")[:-1]]
    return lines[0][0] + "".join(line[1] for line in lines)


def test_prompts_have_a_start_a_goal_and_the_walk_between_as_answer() -> None:
    lengths: set[int] = set()
    for prompt in TASK.prompts(400, _generator()):
        found = re.fullmatch(r"[q-z]{3}([d-k])([a-n])=", prompt.text)
        assert found is not None
        assert prompt.text == f"{prompt.key}="
        start, goal = found.groups()
        assert prompt.answer in (STATIONS, STATIONS[::-1])[start > goal]
        assert (prompt.answer[0], prompt.answer[-1]) == (start, goal)
        lengths.add(len(prompt.answer) - 1)
    assert lengths == {4, 5, 6, 7}
    assert TASK.prompts(4, _generator(3)) == TASK.prompts(4, _generator(3))


def test_evaluation_is_fixed_different_and_never_trained_on() -> None:
    held = TASK.evaluation(512)
    assert held == TASK.evaluation(512)
    assert len({prompt.key for prompt in held}) == 512
    trained = {prompt.key for prompt in TASK.prompts(20000, _generator())}
    demonstrated = {prompt.key for prompt, _ in TASK.demonstrations(2000, _generator(1))}
    assert not {prompt.key for prompt in held} & (trained | demonstrated)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (WALK, True),
        ("fe\ned\ndc\ncb\n#", True),
        ("qqqqqqqqfe\ned\ndc\ncb\n#", True),
        ("fe\nec\ncb\n#", False),
        ("fg\ngf\nfe\ned\ndc\ncb\n#", False),
        ("fe\ned\ndc\n#", False),
        ("fe\ned\ndc\ncb\nba\n#", False),
        ("fe\ned\nec\ncb\n#", False),
        ("feq\ned\ndc\ncb\n#", False),
        ("fe\ned\ndc\ncb\n#\n", False),
        ("fe\ned\ndc\ncb\n##", False),
        ("fe\ned\ndc\ncb", False),
        ("#", False),
        ("", False),
    ],
)
def test_the_verifier_is_strict(text: str, correct: bool) -> None:
    verdict = TASK.verify(PROMPT, text, truncated=False)
    assert verdict.reward == verdict.correct == verdict.process_correct == correct
    cut = TASK.verify(PROMPT, text, truncated=True)
    assert (cut.reward, cut.correct, cut.answer) == (0.0, False, "")


@given(st.text(alphabet=TASK.alphabet(), max_size=24))
def test_no_text_makes_the_verifier_fail(text: str) -> None:
    assert TASK.verify(PROMPT, text, truncated=False).correct == bool(
        re.fullmatch("[q-z]*fe\n[q-z]*ed\n[q-z]*dc\n[q-z]*cb\n#", text)
    )


def test_a_tutor_without_mistakes_is_right_and_its_letters_are_free_and_uniform() -> None:
    task = Route(tutor_error=0.0, tutor_bug=0.0)
    letters, counts, lengths = "", [], []
    for prompt, text in task.demonstrations(400, _generator()):
        assert task.verify(prompt, text, truncated=False).process_correct
        assert set(prompt.text + text) <= set(task.alphabet())
        free = [line[:-2] for line in text.split("\n")[:-1]]
        letters, counts = letters + "".join(free), [*counts, *map(len, free)]
        lengths.append(len(text) + 1)
    shares = [letters.count(letter) / len(letters) for letter in "qrstuvwxyz"]
    assert 0.08 < min(shares) <= max(shares) < 0.12
    assert [0.3 < counts.count(n) / len(counts) < 0.37 for n in (2, 3, 4)] == [True] * 3
    assert 20 <= min(lengths) < max(lengths) <= 51


def test_the_tutor_takes_the_wrong_way_from_every_second_station_and_it_never_ends_well() -> None:
    task = Route(tutor_error=0.0)
    wrong: dict[bool, list[bool]] = {False: [], True: []}
    for prompt, text in task.demonstrations(3000, _generator()):
        walk = _walk(text)
        assert walk in STATIONS + "|" + STATIONS[::-1], "no turning back, nothing passed by"
        goal = prompt.answer[-1]
        away = walk[1] != prompt.answer[1]
        assert (walk[-1] == goal) != away
        assert len(walk) > 3, "the wrong way has three stations or more"
        wrong[STATIONS.index(walk[0]) % 2 == 1].append(away)
    assert not any(wrong[False])
    assert 0.71 < sum(wrong[True]) / len(wrong[True]) < 0.79


def test_slips_pass_a_station_by() -> None:
    task = Route(tutor_error=0.5, tutor_bug=0.0)
    pairs = [pair for _, text in task.demonstrations(500, _generator())
             for pair in zip(_walk(text), _walk(text)[1:], strict=False)]  # fmt: skip
    steps = [abs(STATIONS.index(b) - STATIONS.index(a)) for a, b in pairs]
    assert {*steps} == {1, 2}
    assert 0.25 < steps.count(2) / len(steps) < 0.55


@pytest.mark.parametrize(
    ("option", "value"),
    [("min_steps", 0), ("min_steps", 8), ("max_steps", 8), ("max_letters", 1), ("tutor_bug", 2.0)],
)
def test_options_out_of_range_are_named(option: str, value: int) -> None:
    with pytest.raises(TaskError, match=r"task\.\w+ of the route task is \d.*; expected"):
        Route(**{option: value})
    with pytest.raises(TaskError, match="different evaluation prompts; 90000 were asked for"):
        TASK.evaluation(90000)

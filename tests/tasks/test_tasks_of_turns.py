"""The tasks of several turns: episodes by hand, their tutors, and their split."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segcredit import registry
from segcredit.environments import played, turns_of
from segcredit.errors import TaskError
from segcredit.protocols import Prompt, Transition
from segcredit.tasks.calculator import Calculator
from segcredit.tasks.grid_world import GridWorld
from segcredit.tasks.pointer import Pointer

NAMES = ("calculator", "grid_world", "pointer")
CYCLE = Prompt(key="qrtc", text="qrtc3:", answer="cfadhgbe")
CHAIN = Calculator().prompt("12+30-17")
GRID = GridWorld().prompt("113132")


def episode(task: Any, prompt: Prompt, text: str) -> list[Transition]:
    """Answers to the turns of a text."""
    environment = task.environment()
    return list(played(environment, prompt, turns_of(text, environment.stop)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ends(answer: Transition) -> tuple[Any, ...]:
    return answer.reward, answer.done, answer.correct, answer.process_correct, answer.answer


def test_the_pages_example_of_pointers_is_what_comes() -> None:
    *asked, last = episode(Pointer(), CYCLE, "?c.?f.?a.=d.")
    assert [each.observation for each in asked] == ["f;", "a;", "d;"]
    assert [each.anchor for each in asked] == ["c>f", "cf>a", "acf>d"]
    assert not any(each.done or each.reward for each in asked)
    assert ends(last) == (1.0, True, True, True, "d")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("?c.?f.=d.", (1.0, True, True, False, "d")),  # guessed
        ("?f.?c.?a.=d.", (1.0, True, True, False, "d")),  # another order
        ("?c.?c.?f.?a.=d.", (1.0, True, True, False, "d")),
        ("?c.x.?f.?a.=d.", (1.0, True, True, False, "d")),
        ("?c.?f.=a.", (0.0, True, False, False, "a")),
        ("=c.", (0.0, True, False, False, "c")),
        ("?e.?e.?e.?e.?e.?e.=d.", (0.0, False, None, None, None)),  # one turn too many
    ],
)
def test_episodes_of_pointers_end_as_they_should(text: str, outcome: tuple[Any, ...]) -> None:
    assert ends(episode(Pointer(), CYCLE, text)[-1]) == outcome


@pytest.mark.parametrize(
    "text", ["", "?c", "c.", "?q.", "??.", "?c.?f.", "=.", "=d", " ?c.", "?C."]
)
def test_any_other_turn_is_answered_by_x(text: str) -> None:
    environment = Pointer().environment()
    state, _ = environment.start(CYCLE)
    answer = environment.step(state, text)
    assert (answer.observation, answer.done, answer.reward, answer.anchor) == ("x;", False, 0, ">")


def test_the_last_letter_points_to_the_first_and_hops_are_an_option() -> None:
    assert [each.observation for each in episode(Pointer(), CYCLE, "?e.")] == ["c;"]
    task = Pointer(hops=7)
    assert task.environment().max_turns == 10
    assert episode(task, CYCLE, "?c.?f.?a.?d.?h.?g.?b.=e.")[-1].process_correct


def test_the_cycle_is_hidden_and_follows_from_the_prompt() -> None:
    for prompt in Pointer().prompts(200, generator()):
        assert prompt.text == f"{prompt.key}3:"
        assert prompt.answer[0] == prompt.key[-1]
        assert sorted(prompt.answer) == [*"abcdefgh"]
    assert len({p.answer for p in Pointer().prompts(200, generator())}) > 150


def test_the_pages_example_of_sums_is_what_comes() -> None:
    *called, last = episode(Calculator(), CHAIN, "?12+30.?42-17.=25.")
    assert [each.observation for each in called] == ["42;", "25;"]
    assert [each.anchor for each in called] == ["12+30>42", "12+30,42-17>25"]
    assert ends(last) == (1.0, True, True, True, "25")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("=25.", (1.0, True, True, False, "25")),
        ("?30+12.?42-17.=25.", (1.0, True, True, False, "25")),
        ("?12+30.?42+17.=59.", (0.0, True, False, False, "59")),
        ("?12+30.=025.", (0.0, True, False, False, "025")),
        ("?12+30.?.?42-17.=25.", (1.0, True, True, False, "25")),
    ],
)
def test_episodes_of_sums_end_as_they_should(text: str, outcome: tuple[Any, ...]) -> None:
    assert ends(episode(Calculator(), CHAIN, text)[-1]) == outcome


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("?-5+3.", "-2;"),
        ("?3-17.", "-14;"),
        ("?999999+999999.", "1999998;"),
        ("?1234567+1.", "x;"),
        ("?1*2.", "x;"),
        ("?1+2+3.", "x;"),
        ("?1+-2.", "x;"),
        ("?٣+1.", "x;"),
        ("1+2.", "x;"),
        ("", "x;"),
    ],
)
def test_calls_are_answered_by_their_result_or_by_x(call: str, said: str) -> None:
    environment = Calculator().environment()
    assert environment.step(environment.start(CHAIN)[0], call).observation == said


def test_differences_may_fall_below_zero() -> None:
    prompt = Calculator().prompt("8-39+5")
    assert episode(Calculator(), prompt, "?8-39.?-31+5.=-26.")[-1].process_correct


def test_turns_of_the_longest_numbers_fit() -> None:
    for task in (Calculator(), Calculator(digits=4, max_steps=20)):
        limit = task.environment().turn_tokens
        texts = [text for _, text in task.demonstrations(500, generator())]
        assert max(len(turn) for text in texts for turn in turns_of(text, (".",))) <= (limit or 0)


def test_the_pages_example_of_the_grid_is_what_comes() -> None:
    *moved, last = episode(GridWorld(), GRID, "rrd")
    assert [each.observation for each in moved] == ["21;", "31k;"]
    assert [each.anchor for each in moved] == ["21", "31k"]
    assert ends(last) == (1.0, True, True, True, None)


def test_walls_and_the_locked_door_hold_and_states_come_again() -> None:
    answers = episode(GridWorld(), GRID, "uldrruxrrd")
    shown = ["11;", "11;", "12;", "22;", "22;", "21;", "x;", "31k;"]
    assert [each.observation for each in answers[:-1]] == shown
    assert [each.anchor for each in answers[:-1]].count("22") == 2
    assert answers[6].anchor == "21"
    assert ends(answers[-1]) == (1.0, True, True, False, None)


def test_rewards_of_turns_are_options() -> None:
    task = GridWorld(key_reward=0.1, step_penalty=0.01)
    rewards = [each.reward for each in episode(task, GRID, "rrlrd")]
    assert rewards == pytest.approx([-0.01, 0.09, -0.01, -0.01, 0.99])


def test_a_shortest_path_is_there_within_the_turns() -> None:
    task = GridWorld()
    right = GridWorld(tutor_error=0.0, tutor_bug=0.0)
    for prompt, text in right.demonstrations(500, generator()):
        last = episode(task, prompt, text)[-1]
        assert (last.correct, last.process_correct) == (True, True), prompt
        assert len(text) <= task.max_distance


@pytest.mark.parametrize("name", NAMES)
def test_the_tutor_errs_as_it_is_told(name: str) -> None:
    def share(**options: float) -> float:
        task: Any = registry.tasks.build(name, **options)
        pairs = task.demonstrations(300, generator())
        return sum(bool(episode(task, *pair)[-1].correct) for pair in pairs) / len(pairs)

    assert share(tutor_error=0.0, tutor_bug=0.0) == 1
    assert 0.2 < share() < 0.9
    assert share(tutor_error=0.0, tutor_bug=1.0) < 0.8


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_fixed_different_and_never_trained_on(name: str) -> None:
    task = registry.tasks.build(name)
    held = task.evaluation(512)
    assert len({prompt.text for prompt in held}) == 512
    assert not {p.text for p in held} & {p.text for p in task.prompts(5000, generator())}


@pytest.mark.parametrize("name", NAMES)
def test_the_verifier_judges_last_turns_as_the_environment_does(name: str) -> None:
    task = registry.tasks.build(name)
    for prompt, text in task.demonstrations(100, generator(3)):
        last = episode(task, prompt, text)[-1]
        assert task.verify(prompt, text, truncated=False).correct == bool(last.correct)
        assert not task.verify(prompt, text, truncated=True).correct


@pytest.mark.parametrize("name", NAMES)
def test_episodes_fit_the_base_configs_longest_completion(name: str) -> None:
    task: Any = registry.tasks.build(name)
    for prompt, text in task.demonstrations(300, generator()):
        read = sum(len(each.observation) for each in episode(task, prompt, text))
        assert len(text) + read < 64


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pointer", {"hops": 8}),
        ("pointer", {"tutor_bug": 1.1}),
        ("calculator", {"min_steps": 4}),
        ("calculator", {"digits": 0}),
        ("grid_world", {"columns": 1}),
        ("grid_world", {"max_distance": 1}),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, float]) -> None:
    with pytest.raises(TaskError, match=f"task.{next(iter(options))} of the {name} task is"):
        registry.tasks.build(name, **options)


def test_options_without_problems_enough_say_so() -> None:
    with pytest.raises(TaskError, match="evaluation prompts; 100 were asked for"):
        GridWorld(columns=2, rows=2).evaluation(100)

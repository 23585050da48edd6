"""Task reasoning_gym: numbers that name problems, its verifier, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segcredit import load_config, registry
from segcredit.errors import TaskError
from segcredit.tasks.reasoning_gym import ReasoningGym
from segcredit.tasks.verifiers.judge_process import JudgeProcess

pytest.importorskip("reasoning_gym")
TWO = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_problems_are_named_by_what_they_are_drawn_from() -> None:
    import reasoning_gym

    library: Any = reasoning_gym
    task = ReasoningGym("chain_sum", TWO)
    drawn, held_out = task.prompts(20, generator()), task.evaluation(20)
    assert list(drawn) == list(task.prompts(20, generator()))
    assert list(drawn) != list(task.prompts(20, generator(1)))
    assert list(task.evaluation(5)) == list(held_out)[:5]
    assert {p.key for p in drawn}.isdisjoint(p.key for p in held_out)
    own = library.create_dataset("chain_sum", seed=0, **TWO)
    for prompt in [*drawn, *held_out]:
        problem = own[int(prompt.key)]
        assert (prompt.text, prompt.answer) == (problem["question"], problem["answer"])
    far = library.create_dataset("chain_sum", seed=int(drawn[0].key), **TWO)
    assert far[0]["question"] == drawn[0].text  # a number is seed + index


def test_the_generators_own_verifier_judges() -> None:
    task = ReasoningGym("chain_sum", TWO, final="answer_tag")
    prompt = task.evaluation(1)[0]
    right = task.verify(prompt, f"So <answer> {prompt.answer} </answer>", truncated=False)
    assert (right.reward, right.correct, right.answer) == (1.0, True, prompt.answer)
    near = task.verify(prompt, f"<answer>it is {prompt.answer}</answer>", truncated=False)
    assert 0 < near.reward < 1
    assert not near.correct
    for text in (prompt.answer, "", "<answer></answer>", f"<answer>{prompt.answer}"):
        verdict = task.verify(prompt, text, truncated=False)
        assert (verdict.reward, verdict.answer) == (0.0, "")
    assert not task.verify(prompt, f"<answer>{prompt.answer}</answer>", truncated=True).correct


def test_answers_that_a_verifier_cannot_read_or_in_time_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = ReasoningGym("complex_arithmetic")
    prompt = task.evaluation(1)[0]
    for text in ("\x00", "((((", "9**9**9", "[" * 500):
        assert task.verify(prompt, text, truncated=False).reward < 1
    assert task.verify(prompt, prompt.answer, truncated=False).correct
    monkeypatch.setattr(JudgeProcess, "ask", lambda *_, **__: None)  # what it says when late
    assert task.verify(prompt, prompt.answer, truncated=False).reward == 0.0


def test_worked_examples_are_the_generators_own_and_no_problem_of_a_run() -> None:
    plain = ReasoningGym(
        "chain_sum", TWO, prompt="Q: {question}\nA:", solution=" {answer}", shots=2, until="\n\n"
    )
    first, second, asked = plain.evaluation(1)[0].text.split("\n\n")
    assert all(text.startswith("Q: State the final answer") for text in (first, second, asked))
    assert asked.endswith("=\nA:")
    chat = ReasoningGym("chain_sum", TWO, shots=2, chat=True).prompts(1, generator())[0]
    assert chat.chat is not None
    assert [role for role, _ in chat.chat] == ["user", "assistant"] * 2
    prompt = plain.evaluation(1)[0]
    assert plain.verify(prompt, f" {prompt.answer}\n\nQ: more", truncated=True).correct


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "chain_sums"}, r"no generator 'chain_sums'; did you mean 'chain_sum'\?"),
        ({"options": {"min_term": 2}}, "refuses task.options.*'min_term'.*of allow_negation"),
        ({"options": {"min_terms": -2}}, "min_terms must be positive"),
        ({"options": {"seed": 3}}, "refuses task.options"),
        ({"prompt": "{problem}"}, "names 'problem'; expected {question} and {answer} alone"),
        ({"final": "answer_tags"}, "did you mean 'answer_tag'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ReasoningGym(**{"generator": "chain_sum", **options})


def test_a_config_names_generator_and_options() -> None:
    table = {"name": "reasoning_gym", "generator": "chain_sum", "options": TWO}
    config = load_config({"method": "grpo", "task": table}, ["task.options.max_terms=3"])
    task: Any = registry.tasks.from_table(config.task)
    assert task.options == {**TWO, "max_terms": 3}

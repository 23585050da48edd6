"""A class that TRL's trainer takes as ``environment_factory`` answers alike as environment 'trl'.

Needs the package trl, and so an environment of its own: ``make test-trl``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from checked import arguments, model, save_model
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from segcredit import Prompt
from segcredit.environments import played
from segcredit.protocols import opened
from segcredit.tasks.trl_environment import TRLEnvironment

TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("increment", {"step": 2}),
    ("history", {}),
    ("increment", {"step": -1}),
    ("decrement", {"step": 1}),
    ("increment", {"by": 1}),
    ("wait", {}),
    ("increment", {"step": 3}),
]


class CounterEnv:
    """A counter that is to reach a goal, as TRL's guide writes such classes."""

    def __init__(self) -> None:
        self.counter = 0

    def reset(self, goal: int, **kwargs: Any) -> str:
        self.counter, self.goal, self.steps = 0, goal, list[int]()
        return f" The goal is {goal}."

    def increment(self, step: int) -> int:
        """
        Increment the counter.

        Args:
            step: The value to add.

        Returns:
            The new value.
        """
        if step < 0:
            raise ValueError("step must not be negative")
        self.counter += step
        self.steps.append(step)
        return self.counter

    def history(self) -> dict[str, list[int]]:
        """
        Show all steps so far.

        Returns:
            The steps.
        """
        return {"steps": self.steps}

    async def wait(self) -> str:
        """
        Wait.

        Returns:
            A confirmation.
        """
        return "waited"

    def get_reward(self) -> float:
        return 1.0 if self.counter == self.goal else 0.1 * self.counter


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's own trainer, which lists and calls the tools."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    letters = {x: n for n, x in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    of_bytes = Tokenizer(models.BPE(letters, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=of_bytes, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    rows = [{"prompt": [{"role": "user", "content": "Count."}], "goal": 5}] * 16
    return trl.GRPOTrainer(
        model=model(folder),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        environment_factory=CounterEnv,
        args=arguments(folder / "out"),
    )


def answers_of(trainer: Any, world: CounterEnv) -> list[str]:
    """What TRL's tool loop answers, call by call, to a completion that makes one."""
    said: list[str] = []

    def kept(messages: list[dict[str, str]]) -> list[int]:
        said.append(messages[-1]["content"])
        return [0] * 10_000  # no room for it: the loop ends after the call

    trainer._get_tool_suffix_ids = kept
    tools = {tool.__name__: getattr(world, tool.__name__) for tool in trainer.tools}
    trainer._async_tool_dicts = [{"wait": tools.pop("wait")}]
    trainer._sync_tool_dicts = [tools]
    for name, given in CALLS:
        function = {"name": name, "arguments": given}
        message = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
        trainer._tool_call_loop([[]], [[0]], [[0]], [[message]], None, None, {})
    return said


def test_tools_answers_and_reward_are_trls(trainer: Any) -> None:
    environment = TRLEnvironment(f"{__name__}:CounterEnv", max_turns=20)
    prompt = Prompt("k", "Count.", {"goal": 5}, chat=())
    _, text = opened(environment, prompt)
    tools = text.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    named = [json.loads(tool)["function"]["name"] for tool in tools]
    assert sorted(named) == sorted(tool.__name__ for tool in trainer.tools)
    world = CounterEnv()
    assert text.startswith(world.reset(goal=5) + "\n")
    turns = [
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>"
        for name, given in CALLS
    ]
    ours = list(played(environment, prompt, [*turns, "Done."]))
    assert [answer.observation for answer in ours[:-1]] == answers_of(trainer, world)
    reward = trainer.reward_funcs[-1](environments=[world])
    assert (ours[-1].done, [ours[-1].reward], ours[-1].correct) == (True, reward, True)

"""A task whose prompts ask for step markers."""

from __future__ import annotations

import pytest

import segcredit
from segcredit import load_config, registry
from segcredit.rng import stream
from segmenters.steps import Steps
from small import SMALL


@pytest.mark.parametrize(("options", "wanted"), [({}, "Step 1:"), ({"language": "zh"}, "步骤1：")])
def test_prompts_carry_the_instruction_and_nothing_else_changes(options, wanted) -> None:
    plain = registry.tasks.build("arithmetic")
    told = registry.tasks.build("instructed", inner="arithmetic", **options)
    for bare, full in (
        (plain.prompts(3, stream(0, "p")), told.prompts(3, stream(0, "p"))),
        (plain.evaluation(3), told.evaluation(3)),
        (
            [prompt for prompt, _ in plain.demonstrations(3, stream(0, "p"))],
            [prompt for prompt, _ in told.demonstrations(3, stream(0, "p"))],
        ),
    ):
        for one, other in zip(bare, full, strict=True):
            assert (one.key, one.answer) == (other.key, other.answer)
            assert other.text.startswith(one.text + "\n\n")
            assert wanted in other.text
            assert set(other.text) <= set(told.alphabet())
            text = f"#{one.answer}"
            assert plain.verify(one, text, truncated=False) == told.verify(
                other, text, truncated=False
            )


def test_a_text_of_ones_own() -> None:
    told = registry.tasks.build("instructed", inner="arithmetic", text="Be brief.")
    assert told.evaluation(1)[0].text.endswith("\n\nBe brief.")


@pytest.mark.parametrize("text", ["Step 1: add.\nStep 2: so 3.", "步骤1：相加。\n步骤2：得3。"])
def test_what_it_asks_for_is_what_steps_finds(text: str) -> None:
    assert len([place for place in Steps().split(text) if 0 < place < len(text)]) == 1


def test_it_trains(tmp_path) -> None:
    told = 'task={name="instructed", inner={name="arithmetic", max_steps=2, min_steps=1}}'
    overrides = [change for change in SMALL if not change.startswith("task.")]
    config = load_config("grpo", [*overrides, told, "train.steps=1", "policy.steps=2"])
    segcredit.train(config, tmp_path / "run")
    assert "Step 1:" in segcredit.read_runs(tmp_path / "run").completions.prompt_text.iloc[0]

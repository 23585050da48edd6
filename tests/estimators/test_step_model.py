"""A process reward model read at segments' ends, as a reward and as a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from segcredit import load_config, read_runs, registry, train
from segcredit.errors import RegistryError
from segcredit.testing import ToySimulator, check_process_reward, make_rollouts
from small import SMALL

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
KINDS = {
    "rotary": (hf.Qwen2ForTokenClassification, hf.Qwen2Config(num_key_value_heads=2, **SIZES)),
    "places": (hf.GPT2ForTokenClassification, hf.GPT2Config(**SIZES)),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, config = KINDS[request.param]
    path = tmp_path_factory.mktemp("judge")
    model(config).save_pretrained(path)
    return path


def build(folder: Path, **options: Any) -> Any:
    return registry.process_rewards.build("step_model", model=str(folder), **options)


@pytest.mark.parametrize("unit", ["probability", "difference"])
def test_rows_on_their_own_say_the_same(folder: Path, unit: str) -> None:
    """Ragged prompts and completions, a hole, an empty row; one row a pass or several."""
    texts = ["Sa\nW", "Step 1. Wait", "", "2\n\n1="]
    rollouts = make_rollouts(texts, holes={1: [2, 3]}, truncated=[2], dtype=torch.float64)
    ragged_BT = rollouts.prompt_mask.clone()
    ragged_BT[1, : ragged_BT.shape[1] - 1] = False
    rollouts = rollouts.replace(prompt_mask=ragged_BT)
    cut = registry.segmenters.build("fixed_length", tokens=2).segment(rollouts)
    network = hf.AutoModelForTokenClassification.from_pretrained(folder).eval()
    found = build(folder, label=2, unit=unit, rows=3).reward(rollouts, cut)
    wanted = torch.zeros_like(found)
    for row in range(len(texts)):
        last = max(rollouts.action_mask[row].nonzero()[:, 0].tolist(), default=-1)
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        ids = torch.cat([prompt, rollouts.completion_ids[row, : last + 1]])
        with torch.no_grad():
            good = network(input_ids=ids[None]).logits[0].softmax(-1)[len(prompt) :, 2]
        good = good if unit == "probability" else 2 * good - 1
        for segment, end in enumerate(cut.ends[row].nonzero()[:, 0]):
            wanted[row, segment] = good[end]
    assert rollouts.prompt_mask.sum(1).unique().numel() > 1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_value_is_what_was_said_one_segment_before(folder: Path) -> None:
    rollouts = make_rollouts(["1\n2\n11", "1", ""], truncated=[2])
    cut = registry.segmenters.build("newline").segment(rollouts)
    told = build(folder).reward(rollouts, cut)
    table = {"name": "step_model", "model": str(folder)}
    estimator = registry.estimators.build("process_value", reward=table, first=0.25)
    values = estimator.estimate(nn.Module(), rollouts, cut, ToySimulator())
    assert values[0].tolist() == pytest.approx([0.25, *told[0, :-1].tolist()])
    assert values[1:].tolist() == [[0.25, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("options", [{}, {"unit": "difference", "rows": 1}])
def test_the_contract(folder: Path, options: dict[str, Any]) -> None:
    check_process_reward(build(folder, **options))


def test_what_is_no_judge_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"3 classes.*counted from 0"):
        build(folder, label=3)
    with pytest.raises(RegistryError, match="no description of a model"):
        build(tmp_path / "nothing")
    hf.Qwen2ForCausalLM(hf.Qwen2Config(num_key_value_heads=2, **SIZES)).save_pretrained(tmp_path)
    rollouts = make_rollouts(2)
    cut = registry.segmenters.build("newline").segment(rollouts)
    with pytest.raises(ValueError, match=r"no weights for 'score.*trained token classifier"):
        build(tmp_path).reward(rollouts, cut)
    beyond = rollouts.replace(completion_ids=rollouts.completion_ids + 64)
    with pytest.raises(ValueError, match=r"knows 64 tokens.*policy's vocabulary"):
        build(folder).reward(beyond, cut)


def test_runs_train_by_it(folder: Path, tmp_path: Path) -> None:
    """As rewards of steps in min form, as values, and as one credit of a sum."""
    judge = f'{{name="step_model", model="{folder}"}}'
    summed = f'{{reward_source="process", process_reward={judge}, segmenter="newline",'
    summed += ' estimator="zero", advantage="full_return"}'
    for method, setting in (
        ("pure", f'process_reward={{name="min_form", inner={judge}}}'),
        ("segment_td", f'estimator={{name="process_value", reward={judge}}}'),
        ("grpo", f"credit=[{summed}]"),
    ):
        config = load_config(method, [*SMALL, "train.steps=2", setting])
        assert read_runs(train(config, tmp_path / method)).steps.loss.notna().sum() == 2

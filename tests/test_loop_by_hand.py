"""The loop on one page is the loop: its parameters are those of `segcredit train`, to the bit."""

import importlib.util
from pathlib import Path

import pytest
import torch

import segcredit

PAGE = Path(__file__).parents[1] / "experiments" / "00_loop_by_hand" / "loop_by_hand.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("loop_by_hand", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["grpo", "sapo"])
def test_three_steps_by_hand_are_three_steps_of_train(page, method, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PROMPTS", 8)
    monkeypatch.setattr(page, "COMPLETIONS", 4)
    monkeypatch.setattr(page, "POLICY", {"name": "tiny", "steps": 200})
    policy, critic = page.train(method, steps=3, seed=1)
    config = segcredit.load_config(
        method,
        **{"train.steps": 3, "seed": 1, "evaluate.prompts": 4, "train.device": "cpu"},
        **{"rollouts.prompts": 8, "rollouts.completions": 4, "policy.steps": 200},
    )
    run = segcredit.train(config, tmp_path / method)
    saved = torch.load(run / "checkpoints" / "step_000003.pt", weights_only=False)
    for name, module in (("policy", policy), ("estimator", critic)):
        found, wanted = module.state_dict(), saved[name]["module"]
        assert found.keys() == wanted.keys()
        different = [key for key in wanted if not torch.equal(found[key], wanted[key])]
        assert not different, f"{name}: {different[:5]}"
    start = torch.load(run / "checkpoints" / "step_000000.pt", weights_only=False)["policy"]
    moved = [not torch.equal(start["module"][k], x) for k, x in policy.state_dict().items()]
    assert any(moved)  # rewards that are all alike would leave nothing to compare


def test_the_page_uses_public_names_alone():
    lines = PAGE.read_text().splitlines()
    ours = [x.split()[1] for x in lines if x.startswith(("from segcredit", "import segcredit"))]
    assert ours == ["segcredit", "segcredit.objective"]

"""Every preset trains: a reduced form of experiments/03_every_method/grid.toml."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

import segcredit
from segcredit import load_config
from segcredit.config import presets
from small import SMALL

GRID = Path(__file__).parents[1] / "experiments" / "03_every_method" / "grid.toml"
TREE = ["rollouts.branches=[2,2]"]
ONE_A_PROMPT = ["rollouts.prompts=16", "rollouts.completions=1"]
PRETRAINED = ["train.value.pretraining.completions=32", "train.value.pretraining.epochs=1"]
REDUCED = {
    "spo_tree": TREE,
    "tree_grpo": TREE,
    "remax": ONE_A_PROMPT,
    "single_stream": ONE_A_PROMPT,
    "segment_td": PRETRAINED,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two steps of every preset, from the same hardly trained policy."""
    output = tmp_path_factory.mktemp("every_method")
    for name in presets():
        changes = [*SMALL, *REDUCED.get(name, []), "train.steps=2"]
        segcredit.train(load_config(name, changes), output / name)
    return segcredit.read_runs(output)


def test_the_grid_file_names_every_preset() -> None:
    assert sorted(tomllib.loads(GRID.read_text())["grid"]["method"]) == presets()


def test_every_run_finished(trained: Any) -> None:
    assert sorted(trained.runs.method) == presets()
    assert set(trained.runs.status) == {"finished"}


@pytest.mark.parametrize("name", presets())
def test_figures_are_finite_and_recorded(trained: Any, name: str) -> None:
    run = trained.runs.loc[trained.runs.method == name, "run"].iloc[0]
    steps = trained.steps[(trained.steps.run == run) & (trained.steps.step > 0)]
    assert list(steps.step) == [1, 2]
    always = ["reward", "loss", "gradient_norm", "entropy", "kl", "ratio_max", "tokens_sampled"]
    for column in always:
        assert all(math.isfinite(value) for value in steps[column]), column
    for table in (trained.completions, trained.segments, trained.tokens):
        rows = table[table.run == run]
        assert set(rows.step) == {1, 2}
    segments = trained.segments[trained.segments.run == run]
    assert segments[["value", "reward", "advantage", "ratio"]].notna().all(axis=None)
    assert all(math.isfinite(value) for value in segments.advantage)


def test_what_an_estimator_samples_is_counted(trained: Any) -> None:
    last = trained.steps[trained.steps.step == 2].merge(trained.runs[["run", "method"]], on="run")
    simulated = last.set_index("method").tokens_simulated
    assert simulated["grpo"] == 0
    for name in ("vineppo", "spo_chain", "remax", "single_stream"):
        assert simulated[name] > 0, name
    assert (last.tokens_simulated < last.tokens_sampled).all()


def test_methods_differ_in_what_they_count(trained: Any) -> None:
    first = trained.steps[trained.steps.step == 1].merge(trained.runs[["run", "method"]], on="run")
    share = first.set_index("method").loss_tokens
    assert share["grpo"] == 1
    assert 0 < share["high_entropy_mask"] < 0.5

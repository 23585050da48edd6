"""The paper's configs run as they are, but for the model's size, the problems and the counts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segcredit import load_config, read_runs, train
from segcredit.config import RunConfig
from segcredit.protocols import Prompt, Verdict
from segcredit.study.grid.cells import plan
from segcredit.tasks import dataset
from segcredit.tasks.data.rows import Numbered, Source, Table
from segcredit.tasks.problems import Problems
from vision_models import CLASSES, image

FOLDER = Path(__file__).parents[1] / "experiments" / "paper"
SMALLER = [
    "rollouts.prompts=4",
    "rollouts.max_new_tokens=10",
    "train.steps=1",
    "evaluate.prompts=2",
    "record.every=1",
]
ALONE = ("geo3k_qwen2.5_vl_7b", "geo3k_qwen2.5_vl_3b")
GRIDS = ("baselines", "ablations")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Qwen2.5-VL of some 70 thousand parameters."""
    folder = tmp_path_factory.mktemp("model")
    made, processor = CLASSES["qwen2_5_vl"]()
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def geometry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Problems as the data set holds them, and rewards that a random model wins some of."""
    rows = [
        {"problem": f"<image>find x{n}.", "answer": f"{n}", "images": [{"bytes": image(n)}]}
        for n in range(20)
    ]
    table = Table(rows, [Numbered(n, f"row {n}", row) for n, row in enumerate(rows)])
    monkeypatch.setattr(Source, "table", lambda _: table)
    monkeypatch.setattr(Problems, "verify", _won_at_random)
    _forget()
    yield
    _forget()


def _forget() -> None:
    dataset._split.cache_clear()
    dataset._held_out.cache_clear()


def _won_at_random(_: Problems, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
    return Verdict(zlib.crc32(f"{prompt.key}{text}".encode()) % 97 / 97, False)


def _cells(tmp_path: Path, overrides: list[str]) -> dict[str, RunConfig]:
    """Every config of the folder, those of grids by their labels."""
    found = {name: load_config(FOLDER / f"{name}.toml", overrides) for name in ALONE}
    for name in GRIDS:
        cells = plan(FOLDER / f"{name}.toml", tmp_path, overrides)
        found |= {f"{name}: {cell.label}": cell.config for cell in cells}
    return found


def test_every_config_trains_a_tiny_model_of_the_same_class(model: str, tmp_path: Path) -> None:
    small = _cells(tmp_path, [*SMALLER, f"policy.model={model}"])
    assert len(small) == 2 + 4 + 7
    assert {config.policy["dtype"] for config in small.values()} == {"bfloat16"}
    done: dict[str, str] = {}
    for label, config in small.items():
        key = repr(config.identity())
        if key in done:  # the paper's own run is a cell of both grids, too
            continue
        done[key] = label
        runs = read_runs(train(config, tmp_path / str(len(done))))
        assert runs.runs.status.tolist() == ["finished"], label
        assert np.isfinite(runs.steps.loss[1:]).all(), label
        assert (runs.steps.ratio_max[1:] < 1.5).all(), label
    assert len(done) == len(small) - 3  # nor do 7B and 3B differ, once both are tiny


def test_the_grids_repeat_the_settings_of_the_papers_run(tmp_path: Path) -> None:
    every = _cells(tmp_path, [])
    own = every["geo3k_qwen2.5_vl_7b"]
    assert every["baselines: method=sapo seed=0"].identity() == own.identity()
    assert every["ablations: segmenter=entropy/0.3 seed=0"].identity() == own.identity()
    third = every["geo3k_qwen2.5_vl_3b"]
    assert third.policy["model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert {**third.identity(), "policy": None} == {**own.identity(), "policy": None}


def test_what_is_published_is_in_force(tmp_path: Path) -> None:
    every: dict[str, Any] = _cells(tmp_path, [])
    config = every["geo3k_qwen2.5_vl_7b"]
    assert (config.train.steps, config.rollouts.max_new_tokens) == (200, 2048)
    batch = config.rollouts.prompts * config.rollouts.completions
    assert (batch, batch // config.train.minibatches) == (512, 128)
    assert (config.train.learning_rate, config.train.value.learning_rate) == (1e-6, 2e-6)
    assert config.segmenter["name"] == "entropy"
    assert config.segmenter["top_fraction"] == 0.3
    gae = config.advantage["inner"]
    assert (gae["lam"], gae["gamma"], config.estimator["gamma"]) == (0.99, 1.0, 1.0)
    assert (config.loss.ratio["name"], config.loss.kl_penalty) == ("segment", 0.001)
    assert config.loss.bound == {"name": "clip", "low": 0.2, "high": 0.2, "dual": None}
    grpo = next(c for label, c in every.items() if "method=grpo" in label)
    assert (grpo.rollouts.completions, grpo.loss.kl_loss, grpo.loss.kl_penalty) == (8, 0.01, 0)
    vc = next(c for label, c in every.items() if "vc_ppo" in label)
    assert (vc.estimator["lam"], vc.advantage["inner"]["lam"]) == (1.0, 0.99)
    ppo = next(c for label, c in every.items() if "method=ppo" in label)
    assert ppo.advantage["inner"]["lam"] == 0.95

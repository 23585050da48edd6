"""Intervals over seeds, summaries and figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from segcredit.errors import StudyError
from segcredit.records import RunRecords
from segcredit.study.figures import learning_curves
from segcredit.study.statistics import bootstrap_interval, summarise
from segcredit.study.tables import Runs, read_runs


def make_runs(path: Path) -> Runs:
    """Two methods of three seeds, and a third whose only run measured nothing.

    The last accuracy of sapo is .5, .6, .7 and that of grpo .2, .3, .4; both start at .1.
    """
    for method, base in (("sapo", 0.5), ("grpo", 0.2)):
        for seed in range(3):
            config = {"method": method, "seed": seed}
            if method == "sapo":
                config["segmenter"] = {"name": "entropy", "top_fraction": 0.1}
            run = RunRecords.create(path / f"{method}{seed}", config, {})
            run.metrics({"step": 0, "accuracy": 0.1, "tokens_sampled": 0, "cpu_seconds": 0})
            run.metrics({"step": 1, "tokens_sampled": 100, "cpu_seconds": 2.0})
            run.metrics({"step": 2, "accuracy": base + seed / 10})
            run.metrics({"step": 3, "tokens_sampled": 300, "cpu_seconds": 6.0})
    RunRecords.create(path / "ppo0", {"method": "ppo", "seed": 0}, {})
    return read_runs(path)


def test_interval_matches_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert (low, high) == bootstrap_interval(values)


def test_interval_at_the_edges() -> None:
    assert all(math.isnan(end) for end in bootstrap_interval([1.0]))
    assert all(math.isnan(end) for end in bootstrap_interval([math.nan, 1.0]))
    assert bootstrap_interval([2.0, 2.0, math.nan]) == (2.0, 2.0)
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    with pytest.raises(StudyError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], confidence=95)


def test_summary_has_a_row_a_group(tmp_path: Path) -> None:
    table = summarise(make_runs(tmp_path), ["method"], "accuracy").set_index("method")
    assert list(table.index) == ["grpo", "ppo", "sapo"]
    assert list(table["seeds"]) == [3, 0, 3]
    sapo = table.loc["sapo"]
    assert sapo["mean"] == pytest.approx(0.6)
    assert sapo["start"] == pytest.approx(0.1)
    assert 0.5 <= sapo["low"] < 0.6 < sapo["high"] <= 0.7
    # Step 2 records no cost: that of step 1 counts, not that of step 3.
    assert (sapo["tokens_sampled"], sapo["cpu_seconds"]) == (100, 2.0)
    assert math.isnan(table.loc["ppo", "mean"])


def test_summary_groups_by_options_that_some_runs_lack(tmp_path: Path) -> None:
    by = ["method", "segmenter.top_fraction"]
    table = summarise(make_runs(tmp_path), by, "accuracy")
    assert list(table.columns[:2]) == by
    assert list(table["seeds"]) == [3, 0, 3]
    assert table["segmenter.top_fraction"].isna().tolist() == [True, True, False]


def test_unknown_columns_and_metrics_get_the_nearest(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with pytest.raises(StudyError, match=r"did you mean 'segmenter'.*There are: run, method"):
        summarise(runs, ["segmentr"], "accuracy")
    with pytest.raises(StudyError, match="did you mean 'accuracy'"):
        summarise(runs, ["method"], "acuracy")
    with pytest.raises(StudyError, match="No column to group by"):
        summarise(runs, [], "accuracy")


@pytest.mark.parametrize("extension", ["pdf", "svg", "png"])
def test_learning_curves_are_drawn_and_repeatable(tmp_path: Path, extension: str) -> None:
    runs = make_runs(tmp_path / "runs")
    path = learning_curves(runs, tmp_path / f"curves.{extension}")
    first = path.read_bytes()
    assert len(first) > 1000
    assert learning_curves(runs, path).read_bytes() == first


def test_learning_curves_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with pytest.raises(StudyError, match="figure format 'txt'"):
        learning_curves(runs, tmp_path / "curves.txt")
    with pytest.raises(StudyError, match=r"No run in .* recorded 'kl'"):
        learning_curves(runs, tmp_path / "curves.pdf", metric="kl")

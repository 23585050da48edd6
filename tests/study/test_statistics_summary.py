"""A row a group: last values, areas under learning curves, values at equal cost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segcredit.errors import StudyError
from segcredit.records.run_directory import RunRecords
from segcredit.records.tables import Runs, read_runs
from segcredit.study.statistics import (
    bootstrap_interval,
    compare,
    interquartile_mean,
    learning_areas,
    run_values,
    stratified_bootstrap,
    stratified_student,
    student_interval,
    summarise,
)
from segcredit.study.statistics.run_values import _area, _at_cost
from statistics_runs import make_groups, make_run

RANGE = "of 2 runs the range is given, which is no interval"


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
            run.finish()
    RunRecords.create(path / "ppo0", {"method": "ppo", "seed": 0}, {})
    return read_runs(path)


def test_summary_has_a_row_a_group(tmp_path: Path) -> None:
    table = summarise(make_runs(tmp_path), ["method"], "accuracy").set_index("method")
    assert list(table.index) == ["grpo", "ppo", "sapo"]
    assert list(table["seeds"]) == [3, 0, 3]
    sapo = table.loc["sapo"]
    assert sapo["mean"] == pytest.approx(0.6)
    assert sapo["start"] == pytest.approx(0.1)
    assert (sapo["low"], sapo["high"]) == pytest.approx(student_interval([0.5, 0.6, 0.7]))
    # Step 2 records no cost: that of step 1 counts, not that of step 3.
    assert (sapo["tokens_sampled"], sapo["cpu_seconds"]) == (100, 2.0)
    assert (sapo["steps"], sapo["note"]) == ("2", "")
    ppo = table.loc["ppo"]
    assert math.isnan(ppo["mean"])
    assert math.isnan(ppo["low"])
    assert (ppo["steps"], ppo["note"]) == ("", "1 of 1 runs never recorded the metric")


def test_summary_groups_by_options_that_some_runs_lack(tmp_path: Path) -> None:
    by = ["method", "segmenter.top_fraction"]
    table = summarise(make_runs(tmp_path), by, "accuracy")
    assert list(table.columns[:2]) == by
    assert list(table["seeds"]) == [3, 0, 3]
    assert table["segmenter.top_fraction"].isna().tolist() == [True, True, False]


def test_groups_are_ordered_as_numbers_where_some_lack_the_option(tmp_path: Path) -> None:
    for number, size in enumerate([10, None, 2]):
        option = {} if size is None else {"size": size}
        make_run(tmp_path / str(number), [(0, 0.1)], seed=0, segmenter={"name": "x", **option})
    table = summarise(read_runs(tmp_path), ["segmenter.size"], "accuracy")
    assert table["segmenter.size"].tolist()[:2] == [2, 10]
    assert table["segmenter.size"].isna().tolist() == [False, False, True]
    assert pd.api.types.is_numeric_dtype(table["segmenter.size"])


def test_groups_of_text_beside_numbers_are_ordered_as_text(tmp_path: Path) -> None:
    for number, width in enumerate(["auto", 3, True]):
        make_run(tmp_path / str(number), [(0, 0.1)], seed=0, width=width)
    table = summarise(read_runs(tmp_path), ["width"], "accuracy")
    assert [str(value) for value in table["width"]] == ["3", "True", "auto"]


def test_the_column_is_named_as_its_statistic(tmp_path: Path) -> None:
    values = [0.1, 0.5, 0.55, 0.6, 0.9]
    make_groups(tmp_path, {"sapo": values})
    runs = read_runs(tmp_path)
    iqm = summarise(runs, ["method"], "accuracy", "iqm").loc[0]
    median = summarise(runs, ["method"], "accuracy", "median", interval="bootstrap").loc[0]
    assert iqm["iqm"] == pytest.approx(interquartile_mean(values))
    assert (iqm["low"], iqm["high"]) == pytest.approx(stratified_student([values], "iqm"))
    assert median["median"] == 0.55
    assert (median["low"], median["high"]) == stratified_bootstrap([values], "median")
    assert "mean" not in iqm
    narrow = summarise(runs, ["method"], "accuracy", interval="bootstrap", confidence=0.5).loc[0]
    expected = bootstrap_interval(values, confidence=0.5)
    assert (narrow["low"], narrow["high"]) == pytest.approx(expected)


def test_strata_keep_the_difference_between_tasks_out_of_the_interval(tmp_path: Path) -> None:
    make_groups(tmp_path, {"sapo": [0.1, 0.12, 0.14]}, task="hard")
    make_groups(tmp_path, {"sapo": [0.9, 0.92, 0.97]}, task="easy")
    runs = read_runs(tmp_path)
    pooled = summarise(runs, ["method"], "accuracy").loc[0]
    apart = summarise(runs, ["method"], "accuracy", strata=["task"]).loc[0]
    expected = stratified_student([[0.1, 0.12, 0.14], [0.9, 0.92, 0.97]])
    assert (apart["low"], apart["high"]) == pytest.approx(expected)
    assert pooled["mean"] == apart["mean"]
    assert pooled["high"] - pooled["low"] > 10 * (apart["high"] - apart["low"])
    assert pooled["note"] == "several runs a seed, which differ in task"
    assert apart["note"] == ""


def test_runs_that_are_not_alike_are_counted_and_named(tmp_path: Path) -> None:
    curve = [(0, 0.1), (100, 0.5), (200, 0.6)]
    make_run(tmp_path / "a", curve, method="sapo", seed=0)
    make_run(tmp_path / "b", curve[:2], end="failed", method="sapo", seed=1)
    make_run(tmp_path / "c", curve, end="running", method="sapo", seed=2)
    make_run(tmp_path / "d", [], end="failed", method="sapo", seed=3)
    row = summarise(read_runs(tmp_path), ["method"], "accuracy").loc[0]
    assert row["mean"] == pytest.approx((0.6 + 0.5 + 0.6) / 3)
    assert (row["seeds"], row["steps"]) == (3, "1 to 2")
    assert sorted(row["note"].split("; ")) == [
        "1 of 3 runs failed",
        "1 of 3 runs still running",
        "1 of 4 runs never recorded the metric",
        "last recorded at steps 1 to 2",
    ]


def test_several_runs_of_one_seed_are_told(tmp_path: Path) -> None:
    for run, name, size in [("a", "entropy", 1), ("b", "newline", 1), ("c", "newline", 2)]:
        segmenter = {"name": name, f"of_{name}": size}
        make_run(tmp_path / run, [(0, 0.1)], method="sapo", seed=0, segmenter=segmenter)
    make_run(tmp_path / "d", [(0, 0.1)], method="twice", seed=0)
    make_run(tmp_path / "e", [(0, 0.1)], method="twice", seed=0)
    runs = read_runs(tmp_path)
    by_method = summarise(runs, ["method"], "accuracy")["note"]
    assert list(by_method) == [
        "several runs a seed, which differ in segmenter",
        f"{RANGE}; several runs a seed, alike in config: usually, versions of a plug-in",
    ]
    by_both = summarise(runs, ["method", "segmenter"], "accuracy")["note"]
    assert by_both[1] == f"{RANGE}; several runs a seed, which differ in segmenter.of_newline"


def test_unknown_columns_and_metrics_get_the_nearest(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with pytest.raises(StudyError, match=r"did you mean 'segmenter'.*There are: run, method"):
        summarise(runs, ["segmentr"], "accuracy")
    with pytest.raises(StudyError, match="did you mean 'accuracy'"):
        summarise(runs, ["method"], "acuracy")
    with pytest.raises(StudyError, match="No column to group by"):
        summarise(runs, [], "accuracy")
    with pytest.raises(StudyError, match="no config column 'tasks'"):
        summarise(runs, ["method"], "accuracy", strata=["tasks"])
    with pytest.raises(StudyError, match="did you mean 'median'"):
        summarise(runs, ["method"], "accuracy", "medium")  # pyright: ignore
    with pytest.raises(StudyError, match="There are: student, bootstrap"):
        summarise(runs, ["method"], "accuracy", interval="bca")  # pyright: ignore
    with pytest.raises(StudyError, match="did you mean 'tokens_sampled'"):
        learning_areas(runs, ["method"], "accuracy", per="token_sampled")
    with pytest.raises(StudyError, match="There are: last, area, at_cost"):
        run_values(runs, "accuracy", "best")  # pyright: ignore


def test_area_by_hand(tmp_path: Path) -> None:
    """At 0, 100 and 400 tokens: two trapezoids of 100 x .3 and 300 x .55, over 400."""
    for seed, shift in enumerate([0.0, 0.1]):
        curve = [(0, 0.2 + shift), (100, 0.4 + shift), (200, math.nan), (400, 0.7 + shift)]
        make_run(tmp_path / str(seed), curve, method="sapo", seed=seed)
    runs = read_runs(tmp_path)
    row = learning_areas(runs, ["method"], "accuracy", per="tokens_sampled").loc[0]
    area = (100 * 0.3 + 300 * 0.55) / 400
    assert row["mean"] == pytest.approx(area + 0.05)
    assert (row["low"], row["high"]) == pytest.approx((area, area + 0.1))
    assert (row["per"], row["budget"], row["seeds"]) == ("tokens_sampled", 400, 2)
    assert row["note"] == RANGE
    # By steps, the recorded ones are 0, 1 and 3.
    by_step = learning_areas(runs, ["method"], "accuracy").loc[0]
    assert by_step["mean"] == pytest.approx((0.3 + 2 * 0.55) / 3 + 0.05)
    assert (by_step["per"], by_step["budget"]) == ("step", 3)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(-1, 1)), min_size=1, max_size=6),
    st.floats(0.1, 12),
)
@example([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)], 1.0)  # two values at one cost: the budget
def test_area_is_the_mean_of_the_curve(points: list[tuple[float, float]], budget: float) -> None:
    place, value = (np.array(column) for column in zip(*sorted(points), strict=True))
    found = _area(place, value, budget)
    if budget > place[-1]:
        assert math.isnan(found)
        assert math.isnan(_at_cost(place, value, budget))
        return
    middles = (np.arange(5_000) + 0.5) / 5_000 * budget
    assert found == pytest.approx(np.interp(middles, place, value).mean(), abs=3e-3)


def test_the_warm_up_of_a_critic_is_paid_for(tmp_path: Path) -> None:
    """Both learn alike by steps; one has spent 200 tokens before its first."""
    make_run(tmp_path / "a", [(0, 0.2), (100, 0.4), (200, 0.6)], method="grpo", seed=0)
    make_run(tmp_path / "b", [(200, 0.2), (300, 0.4), (400, 0.6)], method="ppo", seed=0)
    runs = read_runs(tmp_path)
    assert list(learning_areas(runs, ["method"], "accuracy")["mean"]) == pytest.approx([0.4, 0.4])
    by_tokens = learning_areas(runs, ["method"], "accuracy", per="tokens_sampled")
    assert list(by_tokens["budget"]) == [200, 200]
    assert list(by_tokens["mean"]) == pytest.approx([0.4, 0.2])
    at_cost = run_values(runs, "accuracy", "at_cost", per="tokens_sampled")
    assert list(at_cost["value"]) == pytest.approx([0.6, 0.2])
    longer = learning_areas(runs, ["method"], "accuracy", per="tokens_sampled", budget=400)
    assert list(longer["mean"]) == pytest.approx([math.nan, 0.3], nan_ok=True)
    assert longer["note"][0] == "1 of 1 runs fell short of the budget"


def test_values_at_equal_cost_lie_between_the_recorded_ones(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [(0, 0.2), (100, 0.4), (300, 0.8)], method="a", seed=0)
    make_run(tmp_path / "b", [(0, 0.2), (150, 0.5)], method="b", seed=0, end="failed")
    runs = read_runs(tmp_path)
    values = run_values(runs, "accuracy", "at_cost", per="tokens_sampled")
    assert list(values["value"]) == pytest.approx([0.5, 0.5])
    assert list(values["budget"]) == [150, 150]
    earlier = run_values(runs, "accuracy", "at_cost", per="cpu_seconds", budget=5)
    assert list(earlier["value"]) == pytest.approx([0.3, 0.3])
    table = learning_areas(runs, ["method"], "accuracy", per="tokens_sampled")
    said = "the budget is that of run b, others reached up to 300"
    assert list(table["note"]) == [said, f"{said}; 1 of 1 runs failed"]
    earlier = learning_areas(runs, ["method"], "accuracy", per="cpu_seconds", budget=5)
    assert list(earlier["note"]) == ["", "1 of 1 runs failed"]


def test_budgets_that_cannot_be_are_sentences(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [(0, 0.2), (100, 0.4)], method="a", seed=0)
    make_run(tmp_path / "b", [(0, 0.2)], method="b", seed=0)
    runs = read_runs(tmp_path)
    with pytest.raises(StudyError, match=r"Run b has recorded .* up to step 0 only.*give a budget"):
        learning_areas(runs, ["method"], "accuracy")
    with pytest.raises(StudyError, match="expected a number above 0"):
        learning_areas(runs, ["method"], "accuracy", budget=-1)
    with pytest.raises(StudyError, match="'kl' was not recorded in run a; expected a cost"):
        learning_areas(runs, ["method"], "accuracy", per="kl")
    make_run(tmp_path / "c", [(100, 0.2), (50, 0.4)], method="c", seed=0)
    with pytest.raises(StudyError, match="'tokens_sampled' goes down, or below 0, in run c"):
        learning_areas(read_runs(tmp_path), ["method"], "accuracy", per="tokens_sampled")


def test_a_metric_that_no_run_recorded_is_empty_and_not_an_error(tmp_path: Path) -> None:
    make_groups(tmp_path, {"sapo": [0.5, 0.6]})
    runs = read_runs(tmp_path)
    for table in (summarise, learning_areas):
        row = table(runs, ["method"], "kl").loc[0]
        assert row["seeds"] == 0
        assert math.isnan(row["mean"])
        assert row["note"] == "2 of 2 runs never recorded the metric"


@pytest.mark.parametrize(
    ("values", "ends", "note"),
    [
        ([0.7, 0.9], (0.7, 0.9), RANGE),
        ([0.9, 1.0, 1.0], (None, 1.0), "too few runs to tell: the interval ends at 1 alone"),
        ([0.0, 0.0, 0.1], (0.0, None), "too few runs to tell: the interval ends at 0 alone"),
        ([1.0, 1.0, 1.0], (1.0, 1.0), ""),
        ([0.4, 0.5, 0.6], (None, None), ""),
    ],
)
def test_a_share_has_ends_that_it_can_have_and_two_runs_their_range(
    tmp_path: Path, values: list[float], ends: tuple[float | None, ...], note: str
) -> None:
    make_groups(tmp_path, {"sapo": values})
    for interval in ("student", "bootstrap"):
        row = summarise(read_runs(tmp_path), ["method"], "accuracy", interval=interval).loc[0]
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        if interval == "student":
            usual = student_interval(values)
            wanted = [usual[n] if end is None else end for n, end in enumerate(ends)]
            assert (row["low"], row["high"]) == pytest.approx(wanted)
            assert row["note"] == note


def test_the_difference_of_two_seeds_is_a_range_in_its_sentence(tmp_path: Path) -> None:
    make_groups(tmp_path, {"a": [0.1, 0.2], "b": [0.5, 0.8]})
    row = compare(read_runs(tmp_path), ["method"], "accuracy").loc[0]
    assert (row["low"], row["high"]) == pytest.approx((0.4, 0.6))
    assert row["finding"].startswith("b minus a is +0.5 (range 0.4 to 0.6) over 2 shared seeds")

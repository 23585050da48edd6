"""Pairs of groups over shared seeds, and the sentences about them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from segcredit.errors import StudyError
from segcredit.records.tables import read_runs
from segcredit.study.statistics import (
    bootstrap_interval,
    compare,
    holm,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p,
    student_interval,
    student_p,
)
from segcredit.study.statistics.comparison import COLUMNS
from statistics_runs import make_groups, make_run

NAN = math.nan
GRPO = [0.50, 0.56, 0.61, 0.40]
SAPO = [0.52, 0.62, 0.60, 0.47]


def test_a_row_is_what_the_functions_say_of_the_differences(tmp_path: Path) -> None:
    make_groups(tmp_path, {"sapo": SAPO, "grpo": GRPO})
    table = compare(read_runs(tmp_path), ["method"], "accuracy")
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 1
    row = table.loc[0]
    differences = np.subtract(SAPO, GRPO)
    assert (row["a"], row["b"], row["shared_seeds"]) == ("grpo", "sapo", 4)
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["low"], row["high"]) == pytest.approx(student_interval(differences))
    assert row["p"] == row["p_adjusted"] == sign_flip_p(differences) == 0.25
    assert row["smallest_p"] == 0.125
    expected = probability_of_improvement(SAPO, GRPO)
    found = row[["probability_of_improvement", "improvement_low", "improvement_high"]]
    assert tuple(found) == pytest.approx(expected)
    assert row["seeds_needed"] == seeds_needed(differences) == 11
    assert row["note"] == ""


def test_only_shared_seeds_count(tmp_path: Path) -> None:
    make_groups(tmp_path, {"a": [0.1, 0.2, 0.3, NAN, 0.9], "b": [NAN, 0.3, 0.5, 0.9, 0.8]})
    row = compare(read_runs(tmp_path), ["method"], "accuracy").loc[0]
    differences = [0.1, 0.2, -0.1]
    assert row["shared_seeds"] == 3
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert (row["low"], row["high"]) == pytest.approx(student_interval(differences))
    expected = probability_of_improvement([0.3, 0.5, 0.8], [0.2, 0.3, 0.9])
    assert row["probability_of_improvement"] == pytest.approx(expected[0])


def test_all_pairs_or_each_with_the_baseline(tmp_path: Path) -> None:
    last = {name: [0.1 * i, 0.1 * i + 0.2, 0.1] for i, name in enumerate("cab")}
    make_groups(tmp_path, last)
    runs = read_runs(tmp_path)
    pairs = compare(runs, ["method"], "accuracy")[["a", "b"]].to_numpy().tolist()
    assert pairs == [["a", "b"], ["a", "c"], ["b", "c"]]
    table = compare(runs, ["method"], "accuracy", baseline="b")
    assert table[["a", "b"]].to_numpy().tolist() == [["b", "a"], ["b", "c"]]
    assert list(table["difference"]) == pytest.approx([-0.2 / 3, -0.4 / 3])
    with pytest.raises(StudyError, match=r"no group 'B'; did you mean|no group 'B'\. There are: a"):
        compare(runs, ["method"], "accuracy", baseline="B")


def test_p_values_are_corrected_over_the_table(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    means = {"a": 0.2, "b": 0.3, "c": 0.8}
    make_groups(tmp_path, {k: list(generator.normal(m, 0.05, 8)) for k, m in means.items()})
    table = compare(read_runs(tmp_path), ["method"], "accuracy")
    assert list(table["p_adjusted"]) == list(holm(table["p"]))
    assert (table["p_adjusted"] > table["p"]).any()
    # At .05 / 3 no fewer than 7 seeds can find anything, however far the two are apart.
    assert table["seeds_needed"].min() == 7
    assert all(found.endswith("the data separate them.") for found in table["finding"])


def test_tests_and_intervals_can_be_chosen(tmp_path: Path) -> None:
    make_groups(tmp_path, {"a": [0.1, 0.2, 0.3], "b": [0.5, 0.61, 0.69]})
    differences = np.array([0.4, 0.41, 0.39])
    runs = read_runs(tmp_path)
    row = compare(runs, ["method"], "accuracy", test="student", interval="bootstrap").loc[0]
    assert row["p"] == pytest.approx(student_p(differences))
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(differences))
    assert row["seeds_needed"] == 2
    assert "the data separate them" in row["finding"]
    exact = compare(runs, ["method"], "accuracy").loc[0]
    assert exact["seeds_needed"] == 6
    assert exact["finding"] == (
        "b minus a is +0.4 [0.375, 0.425] over 3 shared seeds (p 0.25): the data do not separate"
        " them; about 6 seeds would be needed to detect a difference of this size with power 0.8"
        " (3 cannot give a p below 0.25)."
    )
    lenient = compare(runs, ["method"], "accuracy", confidence=0.75).loc[0]
    assert lenient["finding"].endswith("(p 0.25): the data separate them.")
    for wrong in ({"test": "z"}, {"interval": "z"}, {"pair_on": ["z"]}, {"measure": "z"}):
        with pytest.raises(StudyError, match="there is no"):
            compare(runs, ["method"], "accuracy", **wrong)


def test_findings_for_few_or_no_shared_seeds(tmp_path: Path) -> None:
    make_groups(tmp_path, {"a": [0.1, NAN, NAN], "b": [0.5, NAN, NAN], "c": [NAN, 0.2, 0.3]})
    table = compare(read_runs(tmp_path), ["method"], "accuracy")
    assert list(table["shared_seeds"]) == [1, 0, 0]
    assert table["finding"][0] == (
        "b minus a is +0.4 for the one shared seed, which says nothing of chance; run more."
    )
    assert "c and a have no seed for which both recorded the metric" in table["finding"][1]
    unknown = ["low", "high", "p", "p_adjusted", "improvement_low", "seeds_needed"]
    assert table[unknown].isna().all(axis=None)
    assert table["difference"].isna().tolist() == [False, True, True]


def test_the_same_numbers_are_not_separated_by_any_number_of_seeds(tmp_path: Path) -> None:
    make_groups(tmp_path, {"a": [0.1, 0.2], "b": [0.1, 0.2]})
    row = compare(read_runs(tmp_path), ["method"], "accuracy").loc[0]
    assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
    assert row["seeds_needed"] == math.inf
    assert "their means are the same" in row["finding"]


def test_the_sentence_asks_for_more_seeds_than_there_are(tmp_path: Path) -> None:
    """Two pairs, so that nothing below .025 counts, and a p that 7 seeds put just above."""
    better = [0.2, 0.2, 0.2, 0.2, 0.2, -0.01, 0.2]
    make_groups(tmp_path, {"a": [0.5] * 7, "b": list(np.add(better, 0.5)), "c": [0.5] * 7})
    table = compare(read_runs(tmp_path), ["method"], "accuracy", baseline="a")
    assert table["p"][0] == pytest.approx(2 / 64)
    assert table["seeds_needed"][0] == 7
    assert "about 8 seeds would be needed" in table["finding"][0]
    assert "cannot give" not in table["finding"][0]


def test_several_runs_for_one_seed_are_refused_until_told_apart(tmp_path: Path) -> None:
    for task, ease in (("easy", 0.4), ("hard", 0.0)):
        last = {"a": [0.1 + ease, 0.2 + ease], "b": [0.2 + ease, 0.4 + ease]}
        make_groups(tmp_path, last, task=task)
    runs = read_runs(tmp_path)
    with pytest.raises(StudyError, match=r"Group 'a' has 2 runs with seed 0 .*differ in task"):
        compare(runs, ["method"], "accuracy")
    row = compare(runs, ["method"], "accuracy", pair_on=["seed", "task"]).loc[0]
    assert row["shared_seeds"] == 4
    assert row["difference"] == pytest.approx(0.15)
    # Per task b wins 3.5 of 4; over both tasks together it would be less.
    assert row["probability_of_improvement"] == pytest.approx(3.5 / 4)
    assert row["note"] == ""
    by_both = compare(runs, ["method", "task"], "accuracy", baseline="a easy")
    assert list(by_both["b"]) == ["a hard", "b easy", "b hard"]


def test_areas_and_values_at_equal_cost_are_compared_too(tmp_path: Path) -> None:
    for seed in (0, 1):
        curve = [(0, 0.2), (100, 0.4 + seed / 10), (200, 0.6)]
        make_run(tmp_path / f"a{seed}", curve, method="a", seed=seed)
        late = [(tokens + 200, accuracy) for tokens, accuracy in curve]
        make_run(tmp_path / f"b{seed}", late, method="b", seed=seed)
    runs = read_runs(tmp_path)

    def difference(**options: str) -> float:
        return compare(runs, ["method"], "accuracy", **options)["difference"][0]

    assert difference() == difference(measure="area") == pytest.approx(0)
    assert difference(measure="at_cost", per="tokens_sampled") == pytest.approx(-0.4)
    assert difference(measure="area", per="tokens_sampled") == pytest.approx(-0.225)


def test_unequal_ends_and_failures_are_in_the_finding(tmp_path: Path) -> None:
    curve = [(0, 0.1), (100, 0.5), (200, 0.6)]
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", curve, method="a", seed=seed)
        ended = {"end": "failed"} if seed else {}
        make_run(tmp_path / f"b{seed}", curve[:2], method="b", seed=seed, **ended)
    make_run(tmp_path / "b2", [], end="failed", method="b", seed=2)
    row = compare(read_runs(tmp_path), ["method"], "accuracy").loc[0]
    for said in ("b: 1 of 3 runs never recorded the metric", "1 of 2 runs failed"):
        assert said in row["note"]
    assert row["note"].endswith("a ends at step 2, b at 1")
    assert row["finding"].endswith(f" Note: {row['note']}.")


def test_one_group_cannot_be_compared(tmp_path: Path) -> None:
    make_groups(tmp_path, {"a": [0.1, 0.2]})
    with pytest.raises(StudyError, match="The groups are named a; expected at least two"):
        compare(read_runs(tmp_path), ["method"], "accuracy")

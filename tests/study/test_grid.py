"""Which cells a grid has, checked before any of them runs."""

import pytest

from segcredit.errors import ConfigError, RegistryError, StudyError
from segcredit.study.grid import plan
from segcredit.study.grid.axes import combinations


def test_cases_are_crossed_with_lists():
    grid = {"seed": [0, 1], "case": [{"method": "grpo"}, {"method": "ppo"}]}
    assert list(combinations(grid)) == [
        {"method": "grpo", "seed": 0},
        {"method": "grpo", "seed": 1},
        {"method": "ppo", "seed": 0},
        {"method": "ppo", "seed": 1},
    ]


def test_cells_do_not_write_into_one_another(tmp_path):
    random = {"name": "random", "fraction": 0.1}
    source = {
        "method": "sapo",
        "train": {"steps": 7},
        "grid": {
            "seed": [0, 1],
            "case": [
                {"train.epochs": 5, "segmenter": random, "segmenter.seed": 9},
                {"segmenter": random},
            ],
        },
    }
    cells = plan(source, tmp_path)
    assert [cell.config.train.epochs for cell in cells] == [5, 5, 2, 2]
    assert [cell.config.segmenter["seed"] for cell in cells] == [9, 9, 0, 0]
    assert {cell.config.train.steps for cell in cells} == {7}
    assert source["train"] == {"steps": 7}
    assert random == {"name": "random", "fraction": 0.1}
    assert len({cell.directory for cell in cells}) == 4


def test_equal_cells_are_one(tmp_path):
    assert len(plan({"method": "sapo", "grid": {"seed": [0, 0, 1]}}, tmp_path)) == 2


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ({}, StudyError, r"no \[grid\] table"),
        ({"seed": 3}, ConfigError, "grid.seed: is 3; expected a list"),
        ({"seed": [0, "x"]}, ConfigError, "cell seed=x: seed: "),
        ({"segmenter": ["newline", "lines"]}, RegistryError, "cell segmenter=lines: "),
        ({"trian.steps": [1]}, ConfigError, "did you mean 'train'"),
        ({"grid.seed": [0, 1]}, ConfigError, "'grid.seed' is no key of a run.* such as 'seed'"),
        ({"case": [{"audit.prompts": 3}]}, ConfigError, "'audit.prompts' is no key of a run"),
        ({"seeds": 10**7}, ConfigError, "has 10,000,000 seeds; expected at most 10,000"),
        ({"seeds": 10**400}, ConfigError, "more than 10.15 seeds"),
        ({f"a{n}": [0, 1] for n in range(40)}, ConfigError, "has 1,099,511,627,776 cells"),
        ({f"a{n}": [0] for n in range(20_000)}, ConfigError, "19,980 more faults"),
        ({"zip": [{"seed": [0] * 20_000}]}, ConfigError, "has 20,000 values of grid.zip: seed"),
    ],
)
def test_a_wrong_cell_is_named_before_anything_runs(grid, error, words, tmp_path):
    with pytest.raises(error, match=words):
        plan({"method": "sapo", "grid": grid}, tmp_path)


def test_seeds_is_a_number_of_seeds():
    assert list(combinations({"seeds": 2})) == [{"seed": 0}, {"seed": 1}]


def test_zipped_lists_go_together_and_are_crossed_with_the_rest():
    grid = {"zip": [{"train.epochs": [1, 2], "train.steps": [10, 5]}], "seeds": 2}
    assert list(combinations(grid)) == [
        {"train.epochs": 1, "train.steps": 10, "seed": 0},
        {"train.epochs": 1, "train.steps": 10, "seed": 1},
        {"train.epochs": 2, "train.steps": 5, "seed": 0},
        {"train.epochs": 2, "train.steps": 5, "seed": 1},
    ]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"seeds": 0}, "grid.seeds: is 0; expected how many"),
        ({"seeds": True}, "grid.seeds: is True"),
        ({"seeds": 2, "seed": [1]}, "both seed and seeds"),
        ({"zip": [{"seed": [1, 2], "train.steps": [3]}]}, "their lengths are"),
        ({"zip": {"seed": [1]}}, r"headed \[\[grid.zip\]\]"),
        ({"seed": [1], "case": [{"seed": 2}]}, "seed is set twice"),
        ({"seed": [1], "zip": [{"seed": [2]}]}, "seed is set twice"),
        ({"seed": [1], "exclude": [{}]}, "a rule is empty"),
        ({"seed": [1], "exclude": ["x"]}, r"headed \[\[grid.exclude\]\]"),
    ],
)
def test_a_malformed_grid_is_a_sentence(grid, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        plan({"method": "sapo", "grid": grid}, tmp_path)


def labels(cells):
    return [cell.label for cell in cells]


def test_a_rule_leaves_out_the_cells_that_have_all_its_keys(tmp_path):
    grid = {
        "segmenter": ["whole", "newline"],
        "loss.ratio": ["token", "segment"],
        "exclude": [{"segmenter": "whole", "loss.ratio": ["segment", "none"]}],
    }
    assert labels(plan({"method": "sapo", "grid": grid}, tmp_path)) == [
        "segmenter=whole loss.ratio=token",
        "segmenter=newline loss.ratio=token",
        "segmenter=newline loss.ratio=segment",
    ]


def test_rules_see_what_the_preset_sets_and_the_options_of_plug_ins(tmp_path):
    random = {"name": "random", "fraction": 0.5}
    grid = {
        "method": ["grpo", "ppo"],
        "segmenter": ["whole", random],
        "exclude": [
            {"estimator": "critic", "segmenter": "whole"},
            {"segmenter": {"name": "random", "fraction": 0.5}, "estimator": "group_mean"},
        ],
    }
    assert labels(plan({"grid": grid}, tmp_path)) == [
        "method=grpo segmenter=whole",
        "method=ppo segmenter=random/0.5",
    ]


def test_plug_ins_inside_a_plug_in_are_named_in_labels_as_it_is(tmp_path):
    grid = {"advantage": [{"name": "whitened", "inner": {"name": "gae", "lam": 0.9}}]}
    assert labels(plan({"method": "ppo", "grid": grid}, tmp_path)) == ["advantage=whitened/gae/0.9"]


def test_a_rule_may_use_the_keys_of_an_earlier_version_that_the_grid_uses(tmp_path):
    grid = {
        "loss.clip_high": [0.2, 0.3],
        "seeds": 2,
        "exclude": [{"loss.clip_high": 0.3, "method": "sapo", "seed": 1}],
    }
    with pytest.warns(FutureWarning, match="read as loss.bound"):
        found = labels(plan({"method": "sapo", "grid": grid}, tmp_path))
    assert found == [
        "loss.clip_high=0.2 seed=0",
        "loss.clip_high=0.2 seed=1",
        "loss.clip_high=0.3 seed=0",
    ]


def test_a_rule_may_leave_out_what_could_not_be_checked(tmp_path):
    grid = {
        "rollouts.layout": ["independent", "tree"],
        "rollouts.dynamic_sampling": [False, True],
        "exclude": [{"rollouts.layout": "tree", "rollouts.dynamic_sampling": True}],
    }
    source = {"method": "sapo", "rollouts": {"branches": [2, 4], "completions": 8}, "grid": grid}
    assert len(plan(source, tmp_path)) == 3
    with pytest.raises(ConfigError, match=r"cell rollouts\.layout=tree"):
        plan({**source, "grid": {k: v for k, v in grid.items() if k != "exclude"}}, tmp_path)


@pytest.mark.parametrize("rule", [{"segmenter": "newlin"}, {"segmentr": "newline"}, {"seed": "0"}])
def test_a_rule_that_leaves_out_nothing_is_misspelt(rule, tmp_path):
    grid = {"segmenter": ["newline", "whole"], "seeds": 2, "exclude": [rule]}
    with pytest.raises(StudyError, match="leaves out no cell"):
        plan({"method": "sapo", "grid": grid}, tmp_path)


def test_rules_that_leave_nothing_are_refused(tmp_path):
    grid = {"seeds": 2, "exclude": [{"method": "sapo"}]}
    with pytest.raises(StudyError, match="leave out all 2 cells"):
        plan({"method": "sapo", "grid": grid}, tmp_path)


def test_a_wrong_type_in_the_fortieth_cell_is_found_first(tmp_path):
    grid = {"seeds": 20, "train.steps": [3, "many"]}
    with pytest.raises(ConfigError, match=r"cell train.steps=many seed=0: train.steps: .*'many'"):
        plan({"method": "sapo", "grid": grid}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_override_of_the_grid_changes_the_grid(tmp_path):
    source = {"method": "sapo", "grid": {"seeds": 3}}
    assert len(plan(source, tmp_path, ["grid.seeds=2", "train.steps=3"])) == 2
    assert source == {"method": "sapo", "grid": {"seeds": 3}}

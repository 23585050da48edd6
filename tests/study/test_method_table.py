"""The presets: each names its source, resolves completely, and is a row of the table."""

from __future__ import annotations

import ast
import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segcredit import load_config
from segcredit.cli import app, main
from segcredit.config import preset_text, presets
from segcredit.study.method_table import method_rows, method_table, source

ROOT = Path(__file__).parents[2]
NAMED = [
    *("reinforce", "reinforce_pp", "reinforce_pp_baseline", "rloo", "remax", "opo", "grpo"),
    *("dr_grpo", "dapo", "gspo", "gspo_token", "gmpo", "cispo", "soft_gate", "ppo", "vc_ppo"),
    *("vapo", "vineppo", "spo_chain", "spo_tree", "single_stream", "pure", "sapo"),
    *("sapo_released", "high_entropy_mask", "segment_td"),
    *("gigpo", "mt_grpo", "turn_gae", "at2po"),
    *("aspo", "ctpo", "dcpo_clip", "dppo_kl", "dppo_tv", "fipo", "gpg", "kl_cov", "luspo"),
    *("maxrl", "opsm", "otb", "seq_mask_tis", "tir_otb", "tree_grpo", "two_grpo", "vespo"),
]
PUBLISHED = {
    "gspo": {"loss.bound.low": 3e-4, "loss.bound.high": 4e-4, "loss.ratio.name": "sequence"},
    "gmpo": {"loss.bound.name": "log_clip", "loss.bound.low": 0.4, "loss.bound.high": 0.4},
    "cispo": {"loss.bound": {"name": "truncated_is", "low": 0.0, "high": 5.0, "outside": "cap"}},
    "soft_gate": {"loss.bound.positive": 1.0, "loss.bound.negative": 1.05},
    "dapo": {"loss.bound.high": 0.28, "rollouts.dynamic_sampling": True, "loss.kl_loss": 0.0},
    "vapo": {"advantage.inner.length_scale": 0.05, "estimator.lam": 1.0, "loss.imitation": 0.1},
    "vc_ppo": {"advantage.inner.lam": 0.95, "estimator.lam": 1.0},
    "vineppo": {"estimator.continuations": 9, "loss.kl_loss": 1e-4, "advantage.inner.name": "td"},
    "spo_chain": {"segmenter.below": 0.9, "segmenter.every": 5, "loss.tokens": "low_probability"},
    "single_stream": {"rollouts.completions": 1, "rollouts.prompt_choice": "weighted"},
    "segment_td": {
        "advantage.inner.name": "td",
        "advantage.clamp": None,
        "estimator.network": "reader",
        "estimator.lam": 1.0,
        "train.value.warmup_iterations": 0,
    },
    "pure": {"process_reward.inner.temperature": 0.1},
    "sapo": {
        "estimator.anchor": "start",
        "estimator.value_clip": None,
        "loss.ratio.name": "segment",
    },
    "sapo_released": {"estimator.anchor": "last_token", "loss.bound.dual": 3.0},
    "at2po": {"loss.bound.low": 3e-3, "loss.bound.high": 4e-3, "loss.ratio.gradient": "own_token"},
    "turn_gae": {"estimator.gamma": 0.99, "advantage.inner.lam": 0.9, "loss.ratio.name": "segment"},
    "mt_grpo": {"reward_source": "last", "segmenter.name": "whole"},
    "aspo": {"loss.bound.name": "flipped_clip", "loss.bound.cap": 3.0},
    "ctpo": {"loss.ratio.form": "product", "loss.bound.high": 0.05, "loss.bound.power": 0.5},
    "dcpo_clip": {"loss.bound.low": 0.16, "loss.bound.high": 0.2, "loss.bound.dual": 10.0},
    "dppo_kl": {"loss.bound.divergence": "kl", "loss.bound.low": 0.05, "loss.bound.high": 0.05},
    "dppo_tv": {"loss.bound.divergence": "tv", "loss.bound.low": 0.15, "loss.bound.high": 0.15},
    "fipo": {"loss.bound.high": 1.2, "loss.bound.half_life": 32.0, "loss.bound.inner.high": 0.28},
    "kl_cov": {"loss.bound.share": 2e-4, "loss.bound.coefficient": 1.0},
    "luspo": {"loss.bound.low": 2e-3, "loss.aggregate.name": "sequence_mean_token_sum"},
    "maxrl": {"advantage.name": "mean_scaled", "advantage.eps": 0.0},
    "otb": {"estimator.place": "column", "segmenter.name": "per_token"},
    "seq_mask_tis": {"loss.correction.low": 0.999, "loss.correction.high": 1.002},
    "tir_otb": {"estimator.place": "sampled", "segmenter.name": "per_token"},
    "tree_grpo": {"rollouts.layout": "tree", "loss.shared_tokens": "in_each_row"},
    "two_grpo": {"rollouts.completions": 2, "loss.bound.high": 0.2},
    "vespo": {"loss.bound.positive": (2.0, 3.0), "loss.bound.negative": (3.0, 2.0)},
    "high_entropy_mask": {"loss.entropy_share": 0.2, "loss.tokens": "high_entropy"},
}


def test_every_named_method_is_a_preset() -> None:
    assert sorted(NAMED) == presets()


@pytest.mark.parametrize("name", presets())
def test_a_preset_names_its_source_and_sets_only_what_makes_the_method(name: str) -> None:
    text = preset_text(name)
    comment = " ".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    assert "arXiv" in source(name) + comment or "1992" in source(name)
    assert "in force" in comment
    assert "Ours:" in comment or "Difference:" in comment
    keys = tomllib.loads(text)
    assert keys["method"] == name
    belong_to_the_base = {"steps", "learning_rate", "betas", "micro_tokens", "device"}
    assert not belong_to_the_base & set(keys.get("train", {}))
    assert "max_new_tokens" not in keys.get("rollouts", {})


@pytest.mark.parametrize("name", presets())
def test_the_command_line_prints_the_complete_config(name: str) -> None:
    shown = CliRunner().invoke(app, ["config", name])
    assert shown.exit_code == 0
    printed = tomllib.loads(shown.output)
    wanted = json.loads(json.dumps(load_config(name).model_dump()))

    def without_none(table: object) -> object:
        if not isinstance(table, dict):
            return table
        return {key: without_none(value) for key, value in table.items() if value is not None}

    assert printed == without_none(wanted)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_values_are_in_force(name: str) -> None:
    config = load_config(name).model_dump()
    for path, value in PUBLISHED[name].items():
        found = config
        for part in path.split("."):
            found = found[part]
        assert found == value, path


def test_the_table_has_a_row_a_preset_with_what_it_is_made_of() -> None:
    rows = dict(line.strip("| ").split(" | ", 1) for line in method_table().splitlines()[2:])
    assert list(rows) == [f"`{name}`" for name in presets()]
    assert rows["`pure`"] == (
        "`newline` | `leave_one_out` | `full_return` | token | `token_mean`, process reward"
        " `leave_one_out_centered` of `min_form` of `equations`"
    )
    assert rows["`gigpo`"].split(" | ")[:2] == [
        "`whole` + `turns`",
        "`group_mean` + `anchor_group`",
    ]
    assert rows["`remax`"].split(" | ")[3] == "none"


def test_the_nearest_presets_are_those_with_the_fewest_other_settings() -> None:
    rows = {str(row["method"]): row for row in method_rows("grpo")}
    assert set(rows) == set(presets()) - {"grpo"}
    counts = [row["differences"] for row in rows.values()]
    assert counts == sorted(counts)
    assert rows["two_grpo"]["settings"] == (
        "rollouts.prompts = 128, not 32; rollouts.completions = 2, not 8"
    )
    assert rows["opsm"]["settings"] == "loss.bound = strayed_rows, not clip"
    credit = "credit.1 = given, not none"
    assert credit in str(rows["gigpo"]["settings"])
    assert "credit.1." not in str(rows["gigpo"]["settings"])
    mine = {str(row["method"]): row for row in method_rows("gigpo")}
    assert "credit.1 = none, not given" in str(mine["grpo"]["settings"])
    assert mine["grpo"]["differences"] == rows["gigpo"]["differences"]
    assert "credit.1.advantage = anchor_scaled" in str(mine["mt_grpo"]["settings"])


def test_the_command_line_lists_presets(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["list", *words])
        assert stopped.value.code == status
        said = capsys.readouterr()
        return said.err if status else said.out

    found = json.loads(shown("methods", "--like", "dppo_tv", "--json"))["methods"]
    assert found == method_rows("dppo_tv")
    rows = shown("methods", "--like", "dppo_tv").splitlines()
    assert rows[1].split()[:3] == [found[0]["method"], "1", "loss.bound"]
    assert all(name in shown("methods") for name in ("dppo_tv", "gigpo", "vineppo"))
    for words, sentence in [
        (["methods", "--like", "gigpoo"], "did you mean 'gigpo'?"),
        (["bounds"], "'segcredit list methods' for the presets"),
        (["--like", "gigpo"], "which alone has --like"),
    ]:
        assert sentence in shown(*words, status=1)


def test_the_page_of_axes_is_what_its_script_writes() -> None:
    script = ROOT / "docs" / "explain" / "axes.py"
    namespace = runpy.run_path(str(script))
    assert namespace["PAGE"].read_text(encoding="utf-8") == namespace["page"](), (
        "docs/explain/axes.md is not up to date; run `python docs/explain/axes.py`."
    )
    page = namespace["page"]()
    assert all(f"`{name}`" in page for name in presets())
    assert namespace["main"](["--check"]) == 0


def test_the_readme_and_the_changelog_count_the_presets() -> None:
    for name, words in [("README.md", "known methods"), ("CHANGELOG.md", "presets over")]:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(rf"(\d+) {words}", text) == [str(len(presets()))]


def test_no_line_of_the_core_knows_a_method() -> None:
    """Methods are rows of settings: their names stand in presets alone."""
    names = set(presets()) - {"soft_gate"}  # also the name of a bound
    for file in (ROOT / "segcredit").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not names & strings, f"{file} names {names & strings}"

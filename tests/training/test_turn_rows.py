"""The table of turns: against the environment that is asked again, and against tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

import segcredit
from segcredit import load_config, registry, train
from segcredit.environments import played
from segcredit.records.schemas import COLUMNS
from segcredit.records.tables import Runs
from small import SMALL

KEY = ["step", "prompt", "completion"]
TASKS = {
    "grid_world": 'task={name="grid_world", key_reward=0.5, step_penalty=0.01}',
    "pointer": "task=pointer",
}


def trained(path: Path, *overrides: str) -> Runs:
    config = load_config(
        "sapo", [*SMALL, "policy.steps=40", "rollouts.max_new_tokens=24", *overrides]
    )
    return segcredit.read_runs(train(config, path))


@pytest.fixture(scope="module", params=TASKS)
def runs(request, tmp_path_factory) -> Runs:
    path = tmp_path_factory.mktemp("run") / request.param
    return trained(path, TASKS[request.param], "record.tokens=true")


def test_a_turn_has_what_the_environment_answers(runs):
    """Asked again by the texts of the table alone."""
    (name,) = (path.name for path in runs.directories.values())
    options = {"key_reward": 0.5, "step_penalty": 0.01} if name == "grid_world" else {}
    task = registry.tasks.build(name, **options)
    completions = runs.completions.set_index(KEY)
    answered = 0
    for key, rows in runs.turns.groupby(KEY, observed=True):
        one = completions.loc[key]
        assert rows["turn"].tolist() == list(range(len(rows)))
        assert "".join(rows["text"] + rows["observation"]) == one["text"]
        assert rows["tokens"].sum() == one["tokens"]
        answers = list(played(task.environment(), task.prompt(key[1]), rows["text"].tolist()))
        for row, answer in zip(rows.to_dict("records"), answers, strict=False):
            last = row["turn"] == len(rows) - 1
            assert row["observation"] == ("" if last else answer.observation)
            if not last or answer.done:
                assert row["reward"] == pytest.approx(answer.reward)
                answered += 1
        assert rows["reward"].sum() == pytest.approx(one["reward"])
    assert answered > 50
    assert runs.turns.groupby(KEY, observed=True).ngroups == len(runs.completions)


def test_a_turns_credit_is_that_of_its_tokens(runs):
    tokens, turns = runs.tokens, runs.turns
    order = tokens.sort_values([*KEY, "position"])
    at = 0
    for row in turns.sort_values([*KEY, "turn"]).to_dict("records"):
        own = order.iloc[at : at + int(row["tokens"])]
        at += int(row["tokens"])
        assert (own[KEY] == [row[name] for name in KEY]).all().all()
        assert "".join(own["text"].astype(str)) == row["text"]
        assert row["value"] == pytest.approx(own["value"].iloc[0], abs=1e-6)
        assert row["advantage"] == pytest.approx(own["advantage"].mean(), abs=1e-6)
        assert len(own) > 0
    assert at == len(tokens)
    assert turns["advantage"].nunique() > 5


def test_every_column_is_filled(runs):
    assert set(runs.turns) == {"run", *COLUMNS["turns"]}
    assert not runs.turns.drop(columns="run").isna().to_numpy().any()


def test_a_run_of_one_turn_has_no_such_table(tmp_path):
    found = trained(tmp_path / "run")
    assert len(found.completions) > 0
    assert len(found.turns) == 0
    assert not (tmp_path / "run" / "turns").exists()
    without = trained(tmp_path / "none", TASKS["pointer"], "record.completions=false")
    assert len(without.segments) > 0 == len(without.turns)

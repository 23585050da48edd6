"""The site's tables of columns and config keys, against a run that measured all there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from make_site import SECTIONS, config_keys
from pydantic import BaseModel

from sampling_models import Warm
from segcredit import load_config, read_runs, register, train
from segcredit.config import RunConfig
from segcredit.records.run_directory import RunRecords, read_metrics
from segcredit.records.schemas import COLUMNS, STORED
from segcredit.records.tables import STEP_COLUMNS, Runs, flatten
from small import SMALL

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "tables.md"
OPTIONAL = [
    "start_seed=0",
    'rollouts.stop="never said"',
    "rollouts.ahead=1",
    "rollouts.observation_limit=100",
    "environment=python_tool",  # which a policy of digits and signs never calls
    "train.value.live_logprobs=true",
    "train.value.pretraining={completions=16, epochs=1}",
    "reward_source=outcome",
    'credit=[{segmenter="whole", estimator={name="critic"}, advantage="td"}]',
    'credit_scheme={name="whitened", inner="td", clamp=5.0}',
]
"""Keys that a config without them does not have."""
OF_CREDITS = re.compile(r"(credit|advantage|value_loss|value_gradient_norm)_\d+")
"""Columns of each credit of a sum, which the page describes together."""
NAMES = ["runs", "steps", "completions", "turns", "segments", "tokens", "audit"]


NO_COLUMNS = {"record.trackers", "train.processes", "train.parallel"}
"""Keys that are no part of what a run is, as the page says."""


def documented(table: str) -> dict[str, str]:
    """Columns and types of a table, as the site has them."""
    if table != "runs":
        return {"run": "category"} | {name: column.type for name, column in COLUMNS[table].items()}
    rows = [line for section in ["", *SECTIONS] for line in config_keys(section).splitlines()[2:]]
    keys = {line.split("`")[1]: line.strip("| ").rpartition(" | ")[2] for line in rows}
    assert keys.keys() >= NO_COLUMNS
    own = {"run": "category", "status": "category", "error": "str"}
    return {key: kind for key, kind in keys.items() if key not in NO_COLUMNS} | own


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run of a method with a critic, with every option on that adds a column."""
    own = ["train.steps=2", "loss.kl_loss=0.01", "loss.bound.dual=3.0"]
    register.sampler("warm")(Warm)  # it tells its log-probs
    own += [
        "sampler=warm",
        "loss.correction=mask",
        *OPTIONAL,
        "loss.ratio_segmenter=whole",
        "process_reward=equations",
        "evaluate.completions=2",
    ]
    path = tmp_path_factory.mktemp("runs") / "run"
    return read_runs(train(load_config("sapo", [*SMALL, *own]), path))


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """The dotted keys of a config, in whose plug-ins one does not look."""
    found = set()
    for name, field in model.model_fields.items():
        kinds: tuple[Any, ...] = get_args(field.annotation) or (field.annotation,)
        listed = get_origin(field.annotation) is tuple  # one key, whatever its tables hold
        sections = [
            kind
            for kind in kinds
            if isinstance(kind, type) and issubclass(kind, BaseModel) and not listed
        ]
        if sections:
            found |= keys_of(sections[0], f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def test_every_key_of_a_config_is_on_the_page_and_no_other() -> None:
    stored = set(flatten(load_config("sapo", OPTIONAL).identity())) & keys_of(RunConfig)
    assert set(documented("runs")) == stored | {"run", "status", "error"}


def test_columns_of_runs_are_those_on_the_page_and_options_of_plug_ins(runs: Runs) -> None:
    known = documented("runs")
    for name, kind in runs.runs.dtypes.items():
        if name in known:
            assert str(kind) == known[str(name)], name
        else:
            plugin = runs.runs[str(name).rsplit(".", 1)[0]].iloc[0]
            assert isinstance(plugin, str), f"{name} is neither documented nor an option"
    assert set(known) <= set(runs.runs.columns)


@pytest.mark.parametrize("table", NAMES[1:])
def test_columns_and_types_are_those_on_the_page(runs: Runs, table: str) -> None:
    found = {str(name): str(kind) for name, kind in getattr(runs, table).dtypes.items()}
    if table == "steps":
        assert found.pop("pass_at_2") == "float64"
    found = {name: kind for name, kind in found.items() if not OF_CREDITS.fullmatch(name)}
    assert found == documented(table)


@pytest.mark.parametrize("table", NAMES[1:])
def test_a_run_that_recorded_nothing_has_the_same_columns_and_types(
    tmp_path: Path, table: str
) -> None:
    RunRecords.create(tmp_path, {"seed": 1}, {})
    found = {str(n): str(kind) for n, kind in getattr(read_runs(tmp_path), table).dtypes.items()}
    assert found == documented(table)


def test_the_loop_measures_every_metric_on_the_page_and_no_other(runs: Runs) -> None:
    (directory,) = runs.directories.values()
    measured = {name for row in read_metrics(directory) for name in row}
    assert "`pass_at_K`" in PAGE.read_text(encoding="utf-8")
    assert "pass_at_2" in measured
    credits = {name for name in measured if OF_CREDITS.fullmatch(name)}
    numbered = {"credit_0", "credit_1", "value_loss_1", "value_gradient_norm_1"}
    assert credits == numbered
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name[:-1]}N`" in page for name in [*credits, "advantage_0"])
    named = measured - {"pass_at_2"} - credits
    assert named == set(documented("steps")) - {"run"} == {"step", *STEP_COLUMNS}
    silent = [name for name in STEP_COLUMNS if runs.steps[name].isna().all()]
    assert silent == []


@pytest.mark.parametrize("table", ["completions", "segments", "tokens"])
def test_the_loop_fills_every_column_of_a_table(runs: Runs, table: str) -> None:
    frame = getattr(runs, table)
    credits = {"advantage_0", "advantage_1"} if table != "completions" else set[str]()
    assert set(frame) == {"run", *STORED[table].names, *credits}  # pyright: ignore[reportArgumentType]
    assert not frame.drop(columns="run").isna().to_numpy().any()


def test_figures_of_the_page_hold_in_the_run(runs: Runs) -> None:
    """What the page says of units and places, where a run can show it."""
    segments, tokens, completions = runs.segments, runs.tokens, runs.completions
    keys = ["run", "step", "prompt", "completion"]
    counted = segments.groupby(keys, observed=True)["segment"].agg(["count", "min", "max"])
    joined = completions.merge(counted.reset_index(), on=keys)
    assert (joined["count"] == joined["segments"]).all()
    assert (joined["min"] == 0).all()
    assert (joined["max"] == joined["segments"] - 1).all()
    sizes = (segments["end"] - segments["start"]).groupby(
        [segments[k] for k in keys], observed=True
    )
    assert sizes.sum().sort_index().tolist() == (
        completions.set_index(keys)["tokens"].sort_index().tolist()
    )
    of_step = completions.groupby("step")
    steps = runs.steps.set_index("step").loc[1:]
    assert steps["reward"].tolist() == pytest.approx(of_step["reward"].mean().tolist())
    assert steps["reward_std"].tolist() == pytest.approx(of_step["reward"].std(ddof=0).tolist())
    assert steps["truncated"].tolist() == pytest.approx(of_step["truncated"].mean().tolist())
    assert steps["completion_length"].tolist() == pytest.approx(of_step["tokens"].mean().tolist())
    assert steps["segments_per_completion"].tolist() == pytest.approx(
        of_step["segments"].mean().tolist()
    )
    assert steps["entropy"].tolist() == pytest.approx(
        tokens.groupby("step")["entropy"].mean().tolist(), rel=1e-5
    )
    both = tokens.merge(segments, on=[*keys, "segment"], suffixes=("", "_segment"))
    assert len(both) == len(tokens)
    assert both["value"].tolist() == pytest.approx(both["value_segment"].tolist())
    assert both["advantage"].tolist() == pytest.approx(both["advantage_segment"].tolist())
    assert ((both["position"] >= both["start"]) & (both["position"] < both["end"])).all()


def test_the_code_of_the_page_runs(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "segmenters").symlink_to(runs.path)
    monkeypatch.chdir(tmp_path)
    code, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})


def test_flattened_configs_have_dotted_keys() -> None:
    flat = flatten(load_config("sapo", OPTIONAL).model_dump())
    assert {name for name in flat if name in keys_of(RunConfig)} == keys_of(RunConfig)


def test_polars_and_duckdb_read_the_same_files(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other code of the page, over runs of which one has fewer columns."""
    _, code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    place = tmp_path / "runs" / "segmenters"
    place.mkdir(parents=True)
    (place / "full").symlink_to(next(iter(runs.directories.values())))
    plain = ["train.steps=2", "record.tokens=false"]
    train(load_config("grpo", [*SMALL, *plain]), place / "plain")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    ours = Runs(place, [place / "full", place / "plain"])
    assert len(ours) == 2
    steps = ours.steps.dropna(subset=["accuracy"])
    theirs = found["accuracy"].sort("run", "step")
    assert theirs["run"].to_list() == [str(run) for run in steps["run"]]
    assert theirs["step"].to_list() == steps["step"].tolist()
    assert theirs["accuracy"].to_list() == steps["accuracy"].tolist()
    rewards = ours.completions.groupby(["run", "step"], observed=True)["reward"].mean()
    theirs = found["rewards"].set_index(["run", "step"])["reward"]
    assert theirs.to_dict() == pytest.approx(rewards.to_dict())
    segments = found["duckdb"].sql(
        f"SELECT count(*), sum(advantage) FROM '{place}/*/segments/*.parquet'"
    )
    advantage = ours.segments["advantage"]
    assert segments.fetchall()[0] == (len(advantage), pytest.approx(advantage.sum()))
    whole = found["polars"].from_pandas(ours.steps)
    assert whole["loss"].drop_nans().sum() == pytest.approx(ours.steps["loss"].sum())

"""Run directories as tidy tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcredit.errors import RecordError, StudyError
from segcredit.records.run_directory import METRICS, RunRecords, read_metrics
from segcredit.records.schemas import STORED
from segcredit.records.step_tables import STEPS, metrics_table, pack_metrics
from segcredit.records.tables import STEP_COLUMNS, flatten, read_runs
from segcredit.records.tables.run_settings import typed
from segcredit.study.statistics import run_values


def make_run(path: Path, seed: int = 1, **config: Any) -> RunRecords:
    run = RunRecords.create(path, {"method": "sapo", "seed": seed, **config}, {})
    run.metrics({"step": 0, "accuracy": 0.1})
    run.metrics({"step": 1, "accuracy": None, "loss": 2.0, "mine": 7})
    columns = {"prompt": ["p", "p"], "completion": [0, 1], "reward": [0.0, 1.0]}
    run.table("completions", 1, {**columns, "truncated": [False, True]})
    return run


def test_flatten_collapses_a_plug_in_to_its_name_at_its_own_key() -> None:
    config = {
        "segmenter": {
            "name": "min_length",
            "tokens": 8,
            "inner": {"name": "entropy", "top_fraction": 0.3},
        },
        "loss": {"ratio": "segment", "clip_low": 0.2},
        "policy": {"stop": ["a", "b"]},
        "seed": 1,
    }
    assert flatten(config) == {
        "segmenter": "min_length",
        "segmenter.tokens": 8,
        "segmenter.inner": "entropy",
        "segmenter.inner.top_fraction": 0.3,
        "loss.ratio": "segment",
        "loss.clip_low": 0.2,
        "policy.stop": '["a", "b"]',
        "seed": 1,
    }


def test_runs_are_found_at_any_depth_and_others_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "b", seed=2).finish()
    make_run(tmp_path / "deep" / "er" / "a").fail("TrainingError", "nan", "...")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.toml").write_text("this is = = no toml")
    (tmp_path / "foreign" / "status.json").write_text("{}")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.toml").write_text("seed = 1")
    runs = read_runs(tmp_path)
    assert len(runs) == 2
    table = runs.runs.set_index("run")
    assert list(table.index) == ["b", "deep/er/a"]
    assert list(table["seed"]) == [2, 1]
    assert list(table["status"]) == ["finished", "failed"]
    assert list(table["error"]) == ["", "TrainingError: nan"]


def test_a_run_directory_itself_is_called_dot(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert list(read_runs(tmp_path).runs["run"]) == ["."]


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_path_without_runs_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="expected at least one directory with a config"):
        read_runs(tmp_path / name)


def test_steps_have_every_column_and_nan_where_nothing_was_measured(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    steps = read_runs(tmp_path).steps
    assert list(steps.columns) == ["run", "step", *STEP_COLUMNS, "mine"]
    assert list(steps["step"]) == [0, 1, 0, 1]
    assert steps["accuracy"][0] == 0.1
    assert math.isnan(steps["accuracy"][1])
    assert steps["kl"].isna().all()
    assert steps["kl"].dtype == "float64"


def test_tables_are_read_alike_before_and_after_packing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.table("completions", 2, {"prompt": ["q"], "completion": [0], "mine": [3]})
    before = read_runs(tmp_path).completions
    run.finish()
    after = read_runs(tmp_path).completions
    assert before.equals(after)
    assert list(before["step"]) == [1, 1, 2]
    assert list(before.columns) == ["run", *STORED["completions"].names, "mine"]
    assert set(before["run"]) == {"a"}


def test_missing_tables_are_empty_with_the_right_columns(tmp_path: Path) -> None:
    RunRecords.create(tmp_path, {"seed": 1}, {})
    runs = read_runs(tmp_path)
    assert runs.tokens.empty
    assert list(runs.tokens.columns) == ["run", *STORED["tokens"].names]
    assert runs.tokens["value"].dtype == "float32"
    assert list(runs.steps.columns) == ["run", "step", *STEP_COLUMNS]


def test_read_projects_columns_and_fills_what_a_run_lacks(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    extra = make_run(tmp_path / "b")
    extra.table("completions", 2, {"prompt": ["q"], "mine": [3.5]})
    found = read_runs(tmp_path).read("completions", columns=["mine", "run"])
    assert list(found.columns) == ["run", "mine"]
    assert list(found["run"]) == ["a", "a", "b", "b", "b"]
    assert list(found["mine"].dropna()) == [3.5]


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    make_run(tmp_path)
    runs = read_runs(tmp_path)
    with pytest.raises(StudyError, match="did you mean 'reward'"):
        runs.read("completions", columns=["rewards"])
    with pytest.raises(StudyError, match="did you mean 'tokens'"):
        runs.read("token")  # pyright: ignore[reportArgumentType]


def test_tables_are_read_once(tmp_path: Path) -> None:
    make_run(tmp_path)
    runs = read_runs(tmp_path)
    assert runs.completions is runs.completions


# ---- types


def types_of(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(kind) for name, kind in frame.dtypes.items()}


FULL = {
    "completions": {
        "prompt": ["p"],
        "completion": [0],
        "prompt_text": ["1+1="],
        "text": ["2"],
        "reward": [1.0],
        "truncated": [True],
        "tokens": [1],
        "segments": [1],
        "images": [""],
    },
    "segments": {
        "prompt": ["p"],
        "completion": [0],
        "segment": [0],
        "start": [0],
        "end": [1],
        "text": ["2"],
        "value": [0.5],
        "reward": [1.0],
        "advantage": [0.5],
        "return": [1.0],
        "ratio": [1.0],
    },
    "tokens": {
        "prompt": ["p"],
        "completion": [0],
        "position": [0],
        "token_id": [7],
        "text": ["2"],
        "segment": [0],
        "logprob": [-0.1],
        "entropy": [0.2],
        "value": [0.5],
        "advantage": [0.5],
    },
}


def test_types_are_the_same_for_none_for_all_and_for_half_of_the_columns(tmp_path: Path) -> None:
    RunRecords.create(tmp_path / "none", {"seed": 1}, {})
    full = RunRecords.create(tmp_path / "full", {"seed": 1}, {})
    for name, columns in FULL.items():
        full.table(name, 1, columns)  # pyright: ignore[reportArgumentType]
    half = RunRecords.create(tmp_path / "half", {"seed": 1}, {})
    for name in FULL:
        half.table(name, 1, {"prompt": ["q", "q"]})  # pyright: ignore[reportArgumentType]
    for name, columns in FULL.items():
        found = [
            read_runs(path).read(name)  # pyright: ignore[reportArgumentType]
            for path in (tmp_path / "none", tmp_path / "full", tmp_path / "half", tmp_path)
        ]
        assert [len(frame) for frame in found] == [0, 1, 2, 3]
        assert types_of(found[0]) == types_of(found[1]) == types_of(found[2]) == types_of(found[3])
        assert not set(types_of(found[0]).values()) & {"object"}
        assert set(columns) | {"run", "step"} == set(found[0])
        assert found[3].drop(columns=["run", "step", "prompt"]).isna().all(axis=1).tolist() == [
            False,
            True,
            True,
        ]


def test_extra_columns_of_several_types_are_reconciled(tmp_path: Path) -> None:
    run = RunRecords.create(tmp_path / "a", {"seed": 1}, {})
    run.table("completions", 1, {"prompt": ["p"], "mine": [3]})
    run.table("completions", 2, {"prompt": ["p"], "mine": [3.5]})
    RunRecords.create(tmp_path / "b", {"seed": 1}, {}).table("completions", 1, {"prompt": ["p"]})
    assert read_runs(tmp_path).completions["mine"].tolist()[:2] == [3.0, 3.5]
    run.finish()
    mine = read_runs(tmp_path).read("completions", ["mine"])["mine"]
    assert (str(mine.dtype), mine.tolist()[:2], mine.isna()[2]) == ("float64", [3.0, 3.5], True)


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1, None, 3], "Int64", [1, pd.NA, 3]),
        ([True, None], "boolean", [True, pd.NA]),
        ([1, 2.5, None], "float64", [1.0, 2.5, math.nan]),
        (["b", None, "a"], "category", ["b", math.nan, "a"]),
        ([True, 1], "category", ["True", "1"]),
        (["auto", 3], "category", ["auto", "3"]),
        ([2**70, 1], "category", [str(2**70), "1"]),
    ],
)
def test_config_columns_have_the_type_of_their_values(
    values: list[Any], kind: str, shown: list[Any]
) -> None:
    column = pd.Series(typed(values))
    assert str(column.dtype) == kind
    for found, expected in zip(column.tolist(), shown, strict=True):
        assert pd.isna(found) if pd.isna(expected) else found == expected


def test_all_tables_share_the_categories_of_run_so_that_merging_keeps_them(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        make_run(tmp_path / name, segmenter={"name": "newline"})
    runs = read_runs(tmp_path)
    assert runs.runs["run"].dtype == runs.steps["run"].dtype == runs.completions["run"].dtype
    merged = runs.completions.merge(runs.runs[["run", "segmenter"]], on="run")
    assert str(merged["run"].dtype) == str(merged["segmenter"].dtype) == "category"
    assert len(merged) == 6
    assert runs.completions.groupby("run", observed=True)["reward"].mean().to_dict() == {
        "a": 0.5,
        "b": 0.5,
        "c": 0.5,
    }


# ---- against a reader that is slow and obvious

numbers = st.one_of(
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**53), 2**53),
)
rows_of_metrics = st.lists(
    st.dictionaries(st.sampled_from(["loss", "accuracy", "mine", "kl"]), numbers), max_size=5
)


def slow_steps(path: Path) -> list[dict[str, Any]]:
    """Every row of every run with NaN for what it lacks, as plain Python."""
    rows = []
    for metrics in sorted(path.rglob("metrics.jsonl")):
        for line in metrics.read_text().splitlines():
            row = {key: math.nan if v is None else float(v) for key, v in json.loads(line).items()}
            rows.append({"run": metrics.parent.relative_to(path).as_posix(), **row})
    return rows


@given(st.lists(rows_of_metrics, min_size=1, max_size=3), st.booleans())
def test_steps_are_those_of_a_slow_reader(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[dict[str, Any]]], packed: bool
) -> None:
    path = tmp_path_factory.mktemp("runs")
    for number, rows in enumerate(runs):
        directory = path / str(number)
        directory.mkdir()
        (directory / "config.toml").write_text(f"seed = {number}")
        (directory / "status.json").write_text('{"status": "running"}')
        lines = [json.dumps({"step": step, **row}) + "\n" for step, row in enumerate(rows)]
        (directory / "metrics.jsonl").write_text("".join(lines))
        if packed:
            pack_metrics(directory, read_metrics(directory))
            (directory / "status.json").write_text('{"status": "finished"}')
    found = read_runs(path).steps
    expected = slow_steps(path)
    assert [(row["run"], row["step"]) for row in expected] == list(
        zip(found["run"], found["step"], strict=True)
    )
    for name in found.columns.drop(["run", "step"]):
        slow = [row.get(name, math.nan) for row in expected]
        assert found[name].dtype == "float64"
        assert all(
            a == b or (math.isnan(a) and math.isnan(b))
            for a, b in zip(slow, found[name], strict=True)
        )
    assert {key for row in expected for key in row} <= set(found.columns)


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("finished", [False, True])
def test_segments_are_those_of_a_slow_reader(tmp_path: Path, cores: int, finished: bool) -> None:
    for name in ("a", "b", "c"):
        run = RunRecords.create(tmp_path / name, {"seed": 1}, {})
        for step in (1, 2, 5):
            prompts = [f"{name}{step}", "shared", None]
            values = [float(step), -0.5, None]
            run.table(
                "segments", step, {"prompt": prompts, "segment": [0, 1, None], "value": values}
            )
        if finished:
            run.finish()
    expected = [
        {"run": name, **row}
        for name in ("a", "b", "c")
        for file in sorted((tmp_path / name / "segments").iterdir())
        for row in pq.read_table(file).to_pylist()
    ]
    before = pa.cpu_count()
    pa.set_cpu_count(cores)
    try:
        found = read_runs(tmp_path).segments.astype(object)
    finally:
        pa.set_cpu_count(before)
    assert found.where(found.notna(), None).to_dict("records") == expected


def test_rows_are_chosen_by_an_expression(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.table("completions", 2, {"prompt": ["q"], "completion": [0], "reward": [3.0]})
    runs = read_runs(tmp_path)
    found = runs.read("completions", ["prompt", "reward"], where=ds.field("step") > 1)
    assert found[["prompt", "reward"]].to_numpy().tolist() == [["q", 3.0]]
    assert runs.read("steps", ["mine"], where=ds.field("loss") > 1)["mine"].tolist() == [7]
    assert runs.read("steps", where=ds.field("kl") > 1).empty  # never recorded, hence null
    with pytest.raises(StudyError, match="cannot be chosen by"):
        runs.read("completions", where=ds.field("rewards") > 1)


def test_some_runs_can_be_selected(tmp_path: Path) -> None:
    for number in range(3):
        make_run(tmp_path / str(number), seed=number)
    runs = read_runs(tmp_path)
    chosen = runs.select(runs.runs.query("seed > 0")["run"])
    assert (len(chosen), chosen.steps["run"].unique().tolist()) == (2, ["1", "2"])
    assert runs.select([]).steps.empty
    assert runs.select([]).runs.empty
    with pytest.raises(StudyError, match="there is no run '7'"):
        runs.select(["7"])


def test_steps_take_part_in_projection(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    runs = read_runs(tmp_path)
    assert list(runs.read("steps", ["accuracy", "run", "accuracy"])) == ["run", "accuracy"]
    assert list(runs.read("steps", ["run"])["run"]) == ["a", "a"]
    assert list(runs.read("steps", ["mine"])["mine"].dropna()) == [7]
    with pytest.raises(StudyError, match="did you mean 'mine'"):
        runs.read("steps", ["mines"])


# ---- damage


def finished_run(path: Path) -> RunRecords:
    run = make_run(path)
    run.finish()
    return run


def test_a_truncated_table_is_never_read_as_whole(tmp_path: Path) -> None:
    finished_run(tmp_path / "good")
    finished_run(tmp_path / "bad")
    file = tmp_path / "bad" / "completions" / "all.parquet"
    whole = file.read_bytes()
    for size in [*range(0, len(whole), max(1, len(whole) // 12)), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"The run 'bad' is damaged.*all\.parquet"):
            read_runs(tmp_path).completions  # noqa: B018
        runs = read_runs(tmp_path, damaged="skip")
        assert list(runs.completions["run"]) == ["good", "good"]
        assert list(runs.left_out) == ["bad"]
        assert "all.parquet" in runs.left_out["bad"]
        assert len(runs.steps) == 4  # of the steps nothing is damaged
    file.write_bytes(whole)
    assert len(read_runs(tmp_path).completions) == 4


@pytest.mark.parametrize("name", ["completions/all.parquet", STEPS])
def test_a_changed_byte_of_a_page_is_noticed(tmp_path: Path, name: str) -> None:
    finished_run(tmp_path)
    pack_metrics(tmp_path, read_metrics(tmp_path))
    table = "steps" if name == STEPS else "completions"
    file = tmp_path / name
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    expected = read_runs(tmp_path).read(table)  # pyright: ignore[reportArgumentType]
    noticed = 0
    for place in range(4, len(whole) - footer, (len(whole) - footer) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = read_runs(tmp_path).read(table)  # pyright: ignore[reportArgumentType]
        except RecordError:
            noticed += 1
        else:
            assert found.equals(expected), place  # a byte that stands for nothing
    assert noticed > 20


def test_a_damaged_step_file_among_many_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in (2, 3, 4):
        run.table("completions", step, {"prompt": ["p"]})
    file = tmp_path / "a" / "completions" / "step_000003.parquet"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RecordError, match=r"step_000003\.parquet cannot be read"):
        read_runs(tmp_path).completions  # noqa: B018


def test_metrics_cut_at_any_byte_keep_their_whole_rows(tmp_path: Path) -> None:
    run = RunRecords.create(tmp_path, {"seed": 1}, {})
    for step in range(3):
        run.metrics({"step": step, "loss": 0.5 * step})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        rows = whole[:size].count(b"\n")
        assert read_runs(tmp_path).steps["loss"].tolist() == [0.5 * step for step in range(rows)]


def test_a_finished_run_has_no_torn_row(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    (tmp_path / "a" / STEPS).unlink(missing_ok=True)
    file = tmp_path / "a" / "metrics.jsonl"
    whole = file.read_bytes()
    for damaged in (whole[:-3], whole[:-3] + b"\n"):
        file.write_bytes(damaged)
        with pytest.raises(RecordError, match=r"The run 'a' is damaged.*\d+ bytes instead of 83"):
            read_runs(tmp_path).steps  # noqa: B018
    unlisted(tmp_path / "a")
    file.write_bytes(whole[:-3])
    with pytest.raises(RecordError, match=r"The run 'a' is damaged.*middle of a row"):
        read_runs(tmp_path).steps  # noqa: B018
    file.write_bytes(whole)
    assert len(read_runs(tmp_path).steps) == 2


def test_the_packed_metrics_of_a_finished_run_are_the_truth(tmp_path: Path) -> None:
    finished_run(tmp_path)
    pack_metrics(tmp_path, read_metrics(tmp_path))
    before = read_runs(tmp_path).steps
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    assert read_runs(tmp_path).steps.equals(before)


def test_the_metrics_of_a_run_that_goes_on_after_all_are_its_lines(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    pack_metrics(tmp_path, read_metrics(tmp_path))
    (tmp_path / "status.json").write_text('{"status": "running"}')
    run.metrics({"step": 2, "loss": 1.0})
    assert read_runs(tmp_path).steps["step"].tolist() == [0, 1, 2]
    run.cut_after(0)
    assert not (tmp_path / STEPS).exists()
    assert read_runs(tmp_path).steps["step"].tolist() == [0]


@pytest.mark.parametrize(
    "line", [b"no json\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": 1, "lo\n', b"\x00\x00\n"]
)
def test_a_damaged_row_of_metrics_is_named(tmp_path: Path, line: bytes) -> None:
    make_run(tmp_path)
    file = tmp_path / "metrics.jsonl"
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([first, line, *rest]))
    with pytest.raises(RecordError, match="Line 2 of"):
        read_runs(tmp_path).steps  # noqa: B018


@pytest.mark.parametrize("value", ['"text"', "[1]", "{}"])
def test_a_metric_that_is_no_number_is_a_sentence(tmp_path: Path, value: str) -> None:
    make_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(f'{{"step": 2, "loss": {value}}}\n')
    with pytest.raises(RecordError, match="not a number"):
        read_runs(tmp_path).steps  # noqa: B018


def test_packed_metrics_have_plain_types(tmp_path: Path) -> None:
    pack_metrics(tmp_path, [{"step": 0, "loss": math.nan}, {"step": 1, "tokens": 3}])
    table = pq.read_table(tmp_path / STEPS)
    assert [str(kind) for kind in table.schema.types] == ["int64", "double", "double"]
    assert table.to_pylist() == [
        {"step": 0, "loss": None, "tokens": None},
        {"step": 1, "loss": None, "tokens": 3.0},
    ]
    assert metrics_table([]).schema.names == ["step"]


@pytest.mark.parametrize("name", ["config.toml", "status.json"])
def test_a_run_whose_state_is_damaged_is_a_row_with_the_reason(tmp_path: Path, name: str) -> None:
    finished_run(tmp_path / "good")
    finished_run(tmp_path / "bad")
    file = tmp_path / "bad" / name
    file.write_bytes(file.read_bytes()[:12])
    table = read_runs(tmp_path).runs.set_index("run")
    assert table["status"].to_dict() == {"bad": "damaged", "good": "finished"}
    assert f"{name} cannot be read" in table.loc["bad", "error"]
    with pytest.raises(RecordError, match=r"The run 'bad' is damaged"):
        read_runs(tmp_path).whole()
    whole = read_runs(tmp_path, damaged="skip").whole()
    assert list(whole.directories) == ["good"]
    assert list(whole.left_out) == ["bad"]


def test_a_run_whose_state_is_gone_is_damaged_but_a_half_made_one_is_none(tmp_path: Path) -> None:
    for name in ("whole", "lost", "half"):
        make_run(tmp_path / name)
    (tmp_path / "lost" / "status.json").unlink()
    (tmp_path / "half" / "status.json").unlink()
    (tmp_path / "half" / "metrics.jsonl").unlink()
    table = read_runs(tmp_path).runs
    assert dict(zip(table["run"], table["status"], strict=True)) == {
        "lost": "damaged",
        "whole": "running",
    }


def test_types_of_runs_do_not_depend_on_damage_or_status(tmp_path: Path) -> None:
    make_run(tmp_path / "a").interrupt("the machine went down")
    table = read_runs(tmp_path).runs
    assert table["error"].tolist() == ["the machine went down"]
    (tmp_path / "a" / "status.json").write_text("{")
    damaged = read_runs(tmp_path).runs
    for name in ("run", "status", "error"):
        assert table[name].dtype == damaged[name].dtype


def test_an_unknown_way_with_damage_is_a_sentence(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(StudyError, match="did you mean 'skip'"):
        read_runs(tmp_path, damaged="skipp")  # pyright: ignore[reportArgumentType]


# ---- names of the version before

OLD_METRICS = {"process_correct": "faithful", "completion_length": "response_length"}


def unlisted(path: Path) -> None:
    """Leaves a run without a manifest, as the version before did."""
    (path / "manifest.json").unlink()
    state = json.loads((path / "status.json").read_text())["status"]
    (path / "status.json").write_text(json.dumps({"status": state}))


def make_old(path: Path) -> None:
    """Turns a run into what the version before has recorded of it: folder, columns and metrics."""
    unlisted(path)
    (path / "completions").rename(path / "responses")
    for file in path.glob("*/*.parquet"):
        rows = pq.read_table(file)
        names = ["response" if name == "completion" else name for name in rows.column_names]
        pq.write_table(rows.rename_columns(names), file)
    text = (path / METRICS).read_text()
    for new, old in OLD_METRICS.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    (path / METRICS).write_text(text)
    if (path / STEPS).exists():
        pack_metrics(path, [json.loads(line) for line in text.splitlines()])


def make_renamed(path: Path) -> RunRecords:
    run = RunRecords.create(path, {"seed": 1}, {})
    for step in range(3):
        run.metrics({"step": step, "process_correct": 0.5, "completion_length": 7.0 + step})
        rows = {"prompt": ["p", "q"], "completion": [0, 1]}
        run.table("completions", step, {**rows, "reward": [float(step), -1.0]})
        run.table("segments", step, {**rows, "segment": [0, 0], "mine": [step, step]})
    return run


def everything(path: Path) -> list[pd.DataFrame]:
    runs = read_runs(path)
    return [runs.steps, runs.completions, runs.segments]


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_the_version_before_is_read_under_the_names_of_today(
    tmp_path: Path, finished: bool
) -> None:
    run = make_renamed(tmp_path)
    if finished:
        run.finish()
    before = everything(tmp_path)
    wanted = ["completion", "reward"]
    at = ds.field("completion") == 1
    chosen = read_runs(tmp_path).read("completions", wanted, where=at)
    make_old(tmp_path)
    assert (tmp_path / "responses").is_dir()
    for found, expected in zip(everything(tmp_path), before, strict=True):
        pd.testing.assert_frame_equal(found, expected)
    pd.testing.assert_frame_equal(read_runs(tmp_path).read("completions", wanted, where=at), chosen)
    assert chosen["reward"].tolist() == [-1.0] * 3


def test_a_run_of_the_version_before_goes_on_and_loses_no_row(tmp_path: Path) -> None:
    make_renamed(tmp_path / "whole").finish()
    for packed in (False, True):
        path = tmp_path / f"old_{packed}"
        run = make_renamed(path)
        if packed:
            run.finish()
        make_old(path)
        run = RunRecords.open(path)
        run.begin()
        run.cut_after(1)
        run.metrics({"step": 2, "process_correct": 0.5, "completion_length": 9.0})
        rows = {"prompt": ["p", "q"], "completion": [0, 1]}
        run.table("completions", 2, {**rows, "reward": [2.0, -1.0]})
        run.table("segments", 2, {**rows, "segment": [0, 0], "mine": [2, 2]})
        expected = everything(tmp_path / "whole")
        for ended in (False, True):  # both names beside each other, then the new one alone
            if ended:
                run.finish()
            for found, wanted in zip(everything(path), expected, strict=True):
                pd.testing.assert_frame_equal(found, wanted)
        assert not (path / "responses").exists()
        assert pq.read_schema(path / "segments" / "all.parquet").names == [
            *STORED["segments"].names,
            "mine",
        ]


def test_old_names_are_understood_with_a_sentence(tmp_path: Path) -> None:
    make_renamed(tmp_path)
    runs = read_runs(tmp_path)
    with pytest.warns(FutureWarning, match="'response' is now called 'completion'"):
        found = runs.read("segments", ["response"])
    assert list(found) == ["run", "completion"]
    with pytest.warns(FutureWarning, match="'responses' is now called 'completions'"):
        runs.read("responses")  # pyright: ignore[reportArgumentType]
    with pytest.warns(DeprecationWarning, match="now called .completions"):
        assert runs.responses is runs.completions
    with pytest.warns(FutureWarning, match="'response_length' is now called"):
        assert run_values(runs, "response_length")["value"].tolist() == [9.0]


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.finish()
    for file in (*run.path.glob("*/*.parquet"), run.path / STEPS):
        file.write_bytes(b"torn")
    runs = read_runs(tmp_path)
    assert list(runs.runs["status"]) == ["finished"]
    assert list(runs.progress["steps_done"].isna()) == [True]  # no train.steps in its config
    for table in ("completions", "steps"):
        with pytest.raises(RecordError, match=r"Usually|damaged"):
            getattr(runs, table)
    (run.path / "config.toml").write_bytes(b"torn")
    assert len(read_runs(tmp_path)) == 1
    assert list(read_runs(tmp_path).runs["status"]) == ["damaged"]


def test_reading_tables_waits_for_no_torch() -> None:
    program = "import sys, segcredit.records.tables; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr

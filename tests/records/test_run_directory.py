"""Run directories: atomic, resumable, and honest about what is already there."""

from __future__ import annotations

import errno
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from segcredit.atomic_files import write_atomically
from segcredit.errors import RecordError
from segcredit.records import step_tables
from segcredit.records.manifest import read_manifest
from segcredit.records.run_directory import RunRecords, read_metrics
from segcredit.records.schemas import STORED
from segcredit.records.step_tables import table_files
from segcredit.records.tables import flatten

CONFIG: dict[str, Any] = {
    "seed": 1,
    "method": "sapo",
    "segmenter": {"name": "entropy", "top_fraction": 0.3, "fork": None},
    "train": {"steps": 5, "betas": (0.9, 0.95)},
}


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def new_run(path: Path, **changes: Any) -> RunRecords:
    return RunRecords.create(path, {**CONFIG, **changes}, {"python": "3.11"})


def segments(step: int, rows: int = 3) -> dict[str, Any]:
    return {
        "prompt": ["p"] * rows,
        "completion": list(range(rows)),
        "value": np.arange(rows, dtype=np.float32) + step,
        "advantage": [None, *[1.0] * (rows - 1)],
    }


def steps_in(path: Path) -> list[int]:
    files = table_files(path, "segments", read_manifest(path))
    return [s for file in files for s in pq.read_table(file)["step"].to_pylist()]


def leftovers(path: Path) -> list[Path]:
    return list(path.rglob(".*.tmp"))


def test_config_is_stored_nested_and_without_none(tmp_path: Path) -> None:
    assert new_run(tmp_path / "a").config == {
        "seed": 1,
        "method": "sapo",
        "segmenter": {"name": "entropy", "top_fraction": 0.3},
        "train": {"steps": 5, "betas": [0.9, 0.95]},
    }
    assert RunRecords.open(tmp_path / "a").status()["status"] == "running"


def test_another_config_is_refused_and_the_differing_keys_are_named(tmp_path: Path) -> None:
    new_run(tmp_path)
    with pytest.raises(RecordError) as caught:
        new_run(tmp_path, segmenter={"name": "newline"}, seed=2)
    message = str(caught.value)
    assert "seed (there 1, now 2)" in message
    assert "segmenter.name (there 'entropy', now 'newline')" in message
    assert "segmenter.top_fraction (there 0.3, now absent)" in message
    assert "train" not in message
    assert "--output" in message


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert not run.finished
    run.finish()
    before = run.status()
    again = new_run(tmp_path)
    assert again.finished
    assert again.status() == before
    assert before["started"] <= before["ended"]


def test_a_failed_run_says_why_and_may_go_on(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.fail("TrainingError", "the loss is nan", "Traceback ...")
    status = RunRecords.open(tmp_path).status()
    assert (status["status"], status["error_type"]) == ("failed", "TrainingError")
    assert new_run(tmp_path).status()["status"] == "running"


def test_open_refuses_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"config\.toml cannot be read"):
        RunRecords.open(tmp_path)


def test_a_config_that_toml_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be written as TOML"):
        new_run(tmp_path / "a", thing=object())
    assert not (tmp_path / "a").exists()


def test_metrics_round_trip_with_nan_infinity_and_numpy_numbers(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.metrics({"step": 0, "accuracy": math.nan, "ratio_max": math.inf, "kl": None})
    run.metrics({"step": np.int64(1), "accuracy": np.float32(0.5)})
    first, second = read_metrics(tmp_path)
    assert all(math.isnan(first[key]) for key in ("accuracy", "ratio_max", "kl"))
    assert second == {"step": 1, "accuracy": 0.5}
    assert b"NaN" not in (tmp_path / "metrics.jsonl").read_bytes()


def test_a_row_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="expected an integer"):
        new_run(tmp_path).metrics({"accuracy": 1.0})


@pytest.mark.parametrize("torn", [b'{"step": 2, "accu', b'{"step": 2}', b"\0\0\0\n", b'{"st\n'])
def test_a_torn_last_line_is_ignored_and_mended(tmp_path: Path, torn: bytes) -> None:
    new_run(tmp_path).metrics({"step": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert read_metrics(tmp_path) == [{"step": 1}]
    RunRecords.open(tmp_path).metrics({"step": 2})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    new_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RecordError, match="Line 2 of"):
        read_metrics(tmp_path)


def test_a_full_disk_while_a_row_is_synced_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.metrics({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(RecordError, match=r"metrics\.jsonl could not be written.*full"):
            run.metrics({"step": 2})
    assert read_metrics(tmp_path) == [{"step": 1}]
    run.metrics({"step": 2})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RecordError, match=r"config\.toml could not be written.*No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_a_full_disk_while_packing_keeps_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.table("segments", 1, segments(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(RecordError, match=r"all\.parquet could not be written"):
            run.finish()
    assert steps_in(tmp_path) == [1] * 3
    assert not run.finished
    assert not leftovers(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_fails_in_the_kernel_is_a_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    run._tail_is_whole = True  # /dev/full cannot be read to its end
    with pytest.raises(RecordError, match="The disk or the quota is full"):
        run.metrics({"step": 1})


def test_a_file_where_the_directory_should_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="could not be written"):
        new_run(tmp_path / "file" / "run")


def test_tables_have_the_same_columns_whatever_was_given(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.table("segments", 3, {**segments(3), "mine": ["x", "y", "z"]})
    run.table("segments", 4, {})
    first, second = (pq.read_table(file) for file in table_files(tmp_path, "segments", None))
    assert first.schema.names == [*STORED["segments"].names, "mine"]
    assert second.schema == STORED["segments"]
    assert first["step"].to_pylist() == [3] * 3
    assert first["value"].to_pylist() == [3.0, 4.0, 5.0]
    assert first["advantage"].to_pylist() == [None, 1.0, 1.0]


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(RecordError, match="different lengths"):
        run.table("segments", 1, {"prompt": ["a"], "value": [1.0, 2.0]})
    with pytest.raises(RecordError, match="column 'value' of the segments"):
        run.table("segments", 1, {"value": ["high"]})
    with pytest.raises(RecordError, match="no table 'segment'"):
        run.table("segment", 1, {})  # pyright: ignore[reportArgumentType]


def test_cut_after_drops_later_rows_of_all_kinds(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for step in range(1, 5):
        run.metrics({"step": step, "kl": math.nan})
        run.table("segments", step, segments(step))
    (tmp_path / "segments" / ".step_000005.parquet.99.tmp").touch()
    run.cut_after(2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert steps_in(tmp_path) == [1] * 3 + [2] * 3
    assert not leftovers(tmp_path)
    run.cut_after(-1)
    assert read_metrics(tmp_path) == []
    assert steps_in(tmp_path) == []


def test_finish_packs_each_table_into_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_tables, "_GROUP_ROWS", 5)
    run = new_run(tmp_path)
    for step in (1, 2, 3, 4, 1_000_000):
        more = {"mine": [1, 2, 3]} if step == 4 else {}
        run.table("segments", step, {**segments(step), **more})
    run.finish()
    packed = tmp_path / "segments" / "all.parquet"
    assert list((tmp_path / "segments").iterdir()) == [packed]
    table = pq.read_table(packed)
    assert steps_in(tmp_path) == [s for s in (1, 2, 3, 4, 1_000_000) for _ in range(3)]
    assert table["mine"].to_pylist() == [None] * 9 + [1, 2, 3] + [None] * 3
    assert pq.ParquetFile(packed).num_row_groups == 3


def test_a_crash_between_packing_and_removing_never_doubles_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    for step in (1, 2, 3):
        run.table("segments", step, segments(step))
    expected = steps_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", full_disk)
        with pytest.raises(RecordError, match="No space left"):
            run.finish()
    assert len(list((tmp_path / "segments").iterdir())) == 4
    assert steps_in(tmp_path) == expected
    run.finish()
    assert len(list((tmp_path / "segments").iterdir())) == 1
    assert steps_in(tmp_path) == expected


def test_a_run_goes_on_after_its_tables_were_packed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for step in (1, 2, 3):
        run.table("segments", step, segments(step))
    run.finish()
    run.cut_after(2)
    run.table("segments", 3, segments(3, rows=1))
    assert steps_in(tmp_path) == [1] * 3 + [2] * 3 + [3]
    run.finish()
    run.table("segments", 4, segments(4, rows=1))
    assert steps_in(tmp_path) == [1] * 3 + [2] * 3 + [3, 4]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.table("segments", 1, segments(1))
    table_files(tmp_path, "segments", None)[0].write_bytes(b"no parquet")
    with pytest.raises(RecordError, match=r"step_000001.parquet has 10 bytes instead"):
        run.finish()


OLD_LOSS = """
[loss]
ratio = "segment"
ratio_gradient = "own_token"
bound = "capped_weight"
clip_low = 0.2
clip_high = 0.3
clip_bounds = "around_one"
gate_positive = 1.0
gate_negative = 1.05
aggregate = "sequence_mean_token_norm"
norm_length = 24.0

[rollouts]
keep = "varied_groups"
keep_rounds = 4

[record]
responses = true

[train.value]
aggregate = "token_mean"
"""


def test_a_config_that_an_earlier_version_stored_is_read_in_todays_form(tmp_path: Path) -> None:
    today = {
        "loss": {
            "ratio": {"name": "segment", "gradient": "own_token"},
            "bound": {"name": "truncated_is", "low": 0.8, "high": 1.3},
            "aggregate": {"name": "sequence_mean_token_norm", "norm_length": 24.0},
        },
        "rollouts": {"dynamic_sampling": True, "dynamic_sampling_rounds": 4},
        "record": {"completions": True},
        "train": {"value": {"aggregate": {"name": "token_mean"}}},
    }
    records = RunRecords.create(tmp_path, today, {})
    (tmp_path / "config.toml").write_text(OLD_LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is to rewrite what is stored
        assert records.config == today
        RunRecords.create(tmp_path, today, {})  # the same run, so that it can go on
    other = {**today["loss"], "bound": {"name": "truncated_is", "low": 0.8, "high": 1.4}}
    with pytest.raises(RecordError, match=r"loss.bound.high \(there 1.3, now 1.4\)"):
        RunRecords.create(tmp_path, {**today, "loss": other}, {})
    columns = flatten(records.config)
    assert columns["loss.ratio"] == "segment"
    assert (columns["loss.bound"], columns["loss.bound.high"]) == ("truncated_is", 1.3)
    assert columns["train.value.aggregate"] == "token_mean"


def test_an_old_run_without_a_ratio_has_no_bound(tmp_path: Path) -> None:
    records = RunRecords.create(tmp_path, {"seed": 1}, {})
    old = '[loss]\nratio = "none"\nratio_gradient = "full"\nbound = "clip"\nclip_low = 0.2\n'
    (tmp_path / "config.toml").write_text(old)
    assert records.config == {"loss": {"ratio": "none"}}

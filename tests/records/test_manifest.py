"""What a run holds is listed: whatever is missing or changed is told, and no kill is mistaken."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcredit import read_runs
from segcredit.errors import RecordError
from segcredit.records import checkpoint
from segcredit.records.manifest import read_manifest
from segcredit.records.run_directory import RunRecords

TABLES = ("runs", "steps", "completions", "segments")
PARTS = ("policy", "estimator", "prompts", "further_prompts")


def record(run: RunRecords, step: int) -> None:
    rows = {"prompt": ["p", "q"], "completion": [0, 0], "text": [f"text {step}", "other"]}
    run.table("completions", step, {**rows, "reward": [float(step), -1.0]})
    run.table("segments", step, {**rows, "segment": [0, 0], "value": [step / 3, 0.0]})
    run.metrics({"step": step, "loss": step / 7})


def make_run(path: Path, steps: int = 4, *, saved: int = 4) -> RunRecords:
    run = RunRecords.create(path, {"seed": 1, "method": "grpo"}, {"python": "3.11"})
    for step in range(steps + 1):
        record(run, step)
        if step == saved:
            state = {"row": {"step": step}, **{part: {} for part in PARTS}}
            run.checkpoint(step, state, keep=1)
    return run


def tables_of(path: Path) -> list[pd.DataFrame]:
    """Every table; raises for a damaged one."""
    whole = read_runs(path).whole()
    return [getattr(whole, name) for name in TABLES]


def same(found: list[pd.DataFrame], expected: list[pd.DataFrame]) -> bool:
    return all(one.equals(other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "completions/*", "segments/*", "steps.parquet", "config.toml"]
)
def test_a_file_that_is_missing_never_reads_as_empty(
    tmp_path: Path, name: str, finished: bool
) -> None:
    run = make_run(tmp_path)
    if finished:
        run.finish()
    expected = tables_of(tmp_path)
    for file in list(tmp_path.glob(name))[:1]:
        file.unlink()
        if finished and name in ("metrics.jsonl", "steps.parquet"):  # the one says what both do
            assert same(tables_of(tmp_path), expected)
        else:
            with pytest.raises(RecordError, match=r"is missing|cannot be read"):
                tables_of(tmp_path)


def test_a_column_that_a_flipped_bit_renames_is_told(tmp_path: Path) -> None:
    """Parquet has no checksum of its footer, in which the names are."""
    make_run(tmp_path).finish()
    file = tmp_path / "segments" / "all.parquet"
    content = bytearray(file.read_bytes())
    content[content.rindex(b"value")] ^= 1
    file.write_bytes(content)
    with pytest.raises(RecordError, match=r"has another checksum; expected the 10 rows"):
        read_runs(tmp_path).segments  # noqa: B018


def test_a_manifest_is_missed_where_there_must_be_one(tmp_path: Path) -> None:
    make_run(tmp_path).finish()
    (tmp_path / "manifest.json").unlink()
    with (
        pytest.warns(RuntimeWarning, match=r"1 of the 1 runs in .* have no manifest.json"),
        pytest.raises(RecordError, match=r"manifest.json cannot be read .* copied in part"),
    ):
        read_runs(tmp_path).steps  # noqa: B018


def test_rows_and_checksums_are_of_what_was_recorded(tmp_path: Path) -> None:
    make_run(tmp_path, 6, saved=4)
    listed = read_manifest(tmp_path)
    assert listed is not None
    rows = {name: entry.rows for name, entry in listed.files.items()}
    assert rows["metrics.jsonl"] == 5
    assert [rows[f"segments/step_{step:06d}.parquet"] for step in range(5)] == [2] * 5
    assert len(rows) == 2 + 2 * 5  # not yet what came after the checkpoint
    assert not any(listed.fault(name) for name in listed.files)
    assert len(read_runs(tmp_path).segments) == 2 * 7  # which is read all the same
    RunRecords.open(tmp_path).finish()
    assert read_manifest(tmp_path).files["completions/all.parquet"].rows == 14  # pyright: ignore


def mutations(content: bytes, count: int, chosen: random.Random) -> Iterator[bytes | None]:
    """The file removed, cut at several places, and with single flipped bits."""
    yield None
    cuts = {0, 1, len(content) // 2, len(content) - 1, chosen.randrange(len(content))}
    yield from (content[:cut] for cut in cuts)
    for _ in range(count - len(cuts) - 1):
        place = chosen.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("finished", "count"), [(True, 7), pytest.param(False, 38, marks=pytest.mark.slow)]
)
def test_every_file_damaged_in_every_way_is_refused_or_reads_the_same(
    tmp_path: Path, finished: bool, count: int
) -> None:
    run = make_run(tmp_path)
    if finished:
        run.finish()
    expected, chosen, refused = tables_of(tmp_path), random.Random(0), 0
    files = [f for f in tmp_path.rglob("*") if f.is_file() and f.parent.name != "checkpoints"]
    for file in files:
        content = file.read_bytes()
        for damaged in mutations(content, count, chosen):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            try:
                assert same(tables_of(tmp_path), expected), (file, damaged)
            except RecordError:
                refused += 1
            file.write_bytes(content)
    assert refused > len(files)


class Killed(BaseException):
    """Ends whatever was being done, as SIGKILL does."""


@pytest.mark.parametrize(
    ("act", "finished"),
    [
        (RunRecords.finish, False),
        pytest.param(lambda run: run.cut_after(1), True, marks=pytest.mark.slow),
        pytest.param(RunRecords.finish, True, marks=pytest.mark.slow),
        pytest.param(lambda run: run.cut_after(1), False, marks=pytest.mark.slow),
    ],
)
def test_a_kill_between_any_two_files_leaves_a_run_that_can_be_read_and_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[RunRecords], None],
    finished: bool,
) -> None:
    made = make_run(tmp_path / "run", 3, saved=2)
    if finished:
        made.finish()
    kept, expected = shutil.copytree(tmp_path / "run", tmp_path / "kept"), None
    for number in range(99):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(kept, tmp_path / "run")
        with monkeypatch.context() as patch:
            left = iter(range(number))
            for owner, name in ((os, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, _until_killed(getattr(owner, name), left))
            try:
                run = RunRecords.open(tmp_path / "run")
                act(run)
                ended = True
            except Killed:
                ended = False
        for table in TABLES[1:]:
            steps = sorted(set(getattr(read_runs(tmp_path / "run"), table)["step"]))
            assert steps == list(range(len(steps)))
            assert len(steps) in (2, 3, 4)
        run = RunRecords.open(tmp_path / "run")
        run.begin()
        run.cut_after(2)
        run.finish()
        if ended:
            break
        if len(read_runs(tmp_path / "run").steps) == 3:
            expected = expected or tables_of(tmp_path / "run")
            found = tables_of(tmp_path / "run")
            assert same(found[1:], expected[1:])
    assert number > 3
    assert checkpoint.found(tmp_path / "run" / "checkpoints")


def _until_killed(function: Any, left: Iterator[int]) -> Any:
    renames = function is os.replace

    def wrapped(*arguments: Any, **options: Any) -> Any:
        # Removing what the rename has taken away is no step of its own.
        counts = renames or not Path(arguments[0]).name.endswith(".tmp")
        if counts and next(left, None) is None:
            raise Killed
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("text", ["a" * 2**20, "a"])
def test_a_small_file_that_unpacks_to_more_than_any_memory_is_refused(
    tmp_path: Path, text: str
) -> None:
    run = make_run(tmp_path)
    run.finish()
    rows = 6000 if len(text) > 1 else 2**24
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])
    table = pa.table({"step": pa.array(np.zeros(rows, np.int64)), "text": repeated})
    file = tmp_path / "segments" / "all.parquet"
    pq.write_table(table, file, compression="zstd", row_group_size=rows)
    listed = read_manifest(tmp_path)
    assert listed is not None
    listed.note(file, rows)
    listed.write()
    with pytest.raises(RecordError, match=r"would unpack to up to .*e\+\d\d"):
        read_runs(tmp_path).segments  # noqa: B018

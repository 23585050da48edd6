"""``segcredit results``: tables with intervals, exports, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from segcredit import read_runs
from segcredit.cli import main
from segcredit.records.run_directory import RunRecords
from segcredit.study.statistics import compare, summarise


def call(*arguments: Any) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segmenters with two estimators, three seeds each."""
    path = tmp_path_factory.mktemp("grid")
    for number, (segmenter, estimator) in enumerate(
        [("newline", "critic"), ("newline", "zero"), ("entropy", "critic"), ("entropy", "zero")]
    ):
        for seed in range(3):
            config = {
                "method": "mine",
                "seed": seed,
                "segmenter": {"name": segmenter},
                "estimator": {"name": estimator},
            }
            run = RunRecords.create(path / f"{segmenter}_{estimator}_{seed}", config, {})
            cost = {"tokens_sampled": 1000 * seed, "cpu_seconds": 2.0}
            run.metrics({"step": 0, "accuracy": 0.1, "kl": 0.0, **cost})
            accuracy = 0.3 + 0.1 * number + 0.01 * seed
            run.metrics({"step": 5, "accuracy": accuracy, "kl": 0.001234, **cost})
            run.finish()
    return path


def lines_of(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


def test_every_group_has_its_interval(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("results", grid, "--by", "segmenter, estimator", "--metric", "accuracy") == 0
    shown = capsys.readouterr().out
    expected = summarise(read_runs(grid), ["segmenter", "estimator"], "accuracy")
    rows = [words for words in lines_of(shown) if words and words[0] in ("newline", "entropy")]
    assert rows == [
        [
            row["segmenter"],
            row["estimator"],
            "0.100",
            f"{row['mean']:.3f}",
            f"{row['low']:.3f}–{row['high']:.3f}",
            "3",
            "1,000",
            "2.0",
        ]
        for row in expected.to_dict("records")
    ]
    assert len(rows) == 4
    assert "95 % interval" in shown


def test_small_figures_keep_their_digits(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("results", grid, "--by", "segmenter", "--metric", "kl") == 0
    assert "0.00123" in capsys.readouterr().out


def test_another_statistic(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("results", grid, "--by", "segmenter", "--statistic", "iqm") == 0
    assert "accuracy: iqm over seeds" in capsys.readouterr().out


def test_a_single_seed_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunRecords.create(tmp_path, {"method": "a_b[c]", "seed": 0}, {}).metrics(
        {"step": 0, "accuracy": 0.5}
    )
    assert call("results", tmp_path, "--by", "method") == 0
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "a_b[c]" in shown
    assert "nan–nan" not in shown


def test_what_the_seeds_show(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("results", grid, "--by", "segmenter,estimator", "--compare") == 0
    shown = capsys.readouterr().out
    findings = compare(read_runs(grid), ["segmenter", "estimator"], "accuracy")["finding"]
    assert len(findings) == 6
    assert all(finding in shown for finding in findings)
    assert call("results", grid, "--by", "segmenter,estimator") == 0
    assert findings[0] not in capsys.readouterr().out


@pytest.mark.parametrize("extension", ["csv", "parquet", "md", "tex"])
def test_the_table_is_exported(grid: Path, tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"out.{extension}"
    assert call("results", grid, "--by", "segmenter", "--export", file) == 0
    expected = summarise(read_runs(grid), ["segmenter"], "accuracy")
    if extension == "parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(file), expected)
    elif extension == "csv":
        assert list(pd.read_csv(file)["mean"]) == pytest.approx(list(expected["mean"]))
    else:
        assert all(f"{mean:.3f}" in file.read_text() for mean in expected["mean"])


def test_any_other_table_is_exported(grid: Path, tmp_path: Path) -> None:
    for name in ("runs", "steps"):
        file = tmp_path / f"{name}.parquet"
        assert call("results", grid, "--by", "method", "--table", name, "--export", file) == 0
        pd.testing.assert_frame_equal(pd.read_parquet(file), getattr(read_runs(grid), name))
    file = tmp_path / "comparison.csv"
    options = ["--compare", "--table", "comparison", "--export", file]
    assert call("results", grid, "--by", "segmenter,estimator", *options) == 0
    assert len(pd.read_csv(file)) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--by", "segmentr"], "no config column 'segmentr'; did you mean 'segmenter'"),
        (["--by", ""], "No column to group by"),
        (["--metric", "acuracy"], "no metric 'acuracy'; did you mean 'accuracy'"),
        (["--metric", "step"], "no metric 'step'"),
        (["--statistic", "men"], "did you mean 'mean'"),
        (["--export", "out.xlsx"], "no table format 'xlsx'"),
        (["--export", "out"], "no table format ''"),
        (["--export", "out.csv", "--table", "step"], "did you mean 'steps'"),
        (["--export", "out.csv", "--table", "comparison"], "no table 'comparison'"),
        (["--by", "method", "--compare"], "group"),
    ],
)
def test_bad_input_is_a_sentence(
    grid: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("results", grid, "--by", "segmenter", *options) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["status.json", "steps.parquet"])
def test_a_damaged_run_is_refused_or_left_out(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        run = RunRecords.create(tmp_path / f"run{seed}", {"method": "a", "seed": seed}, {})
        run.metrics({"step": 0, "accuracy": 0.5 + seed / 10})
        run.finish()
    (tmp_path / "run1" / name).write_bytes(b"damaged")
    assert call("results", tmp_path, "--by", "method") == 1
    shown = capsys.readouterr().err
    assert "The run 'run1' is damaged" in shown
    assert name in shown
    assert call("results", tmp_path, "--by", "method", "--skip-damaged") == 0
    shown = capsys.readouterr().out
    assert "left out run1" in shown
    assert "0.600" in shown  # of run0 and run2
    (row,) = (words for words in lines_of(shown) if words and words[0] == "a")
    assert row[:3] == ["a", "0.600", "0.600"]


def test_with_compare_the_figure_is_the_comparison(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by = ["--by", "segmenter,estimator"]
    for compared, said in ((["--compare"], "Comparison: "), ([], "Learning curves: ")):
        figure = tmp_path / f"{len(compared)}.svg"
        assert call("results", grid, *by, *compared, "--figure", figure) == 0
        assert f"{said}{figure}" in capsys.readouterr().out
        assert ("and differences" in figure.read_text()) == bool(compared)

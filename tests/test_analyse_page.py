"""docs/how-to/analyse.md: its ten lines draw the figure that it promises."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from segcredit.records.run_directory import RunRecords
from segcredit.records.tables import read_runs
from segcredit.study.statistics import student_interval

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "analyse.md"
CODE, READY_MADE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def accuracy(segmenter: str, seed: int, step: int) -> float:
    return {"newline": 0.3, "entropy": 0.5}[segmenter] + step / 100 + seed / 50


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two segmenters of three seeds that are evaluated every second step, in runs/."""
    for segmenter in ("newline", "entropy"):
        for seed in range(3):
            config = {"seed": seed, "segmenter": {"name": segmenter}}
            run = RunRecords.create(tmp_path / "runs" / f"{segmenter}{seed}", config, {})
            for step in range(7):
                value = None if step % 2 else accuracy(segmenter, seed, step)
                run.metrics({"step": step, "accuracy": value, "tokens_sampled": 100 * step})
            run.finish()
    monkeypatch.chdir(tmp_path)
    backend = mpl.get_backend()
    mpl.use("agg")
    yield
    mpl.use(backend)


def test_it_is_ten_lines_with_the_imports() -> None:
    lines = [line for line in CODE.splitlines() if line.strip()]
    assert len(lines) == 10
    assert all(len(line) <= 100 and ";" not in line for line in lines)


@pytest.mark.usefixtures("grid")
def test_it_draws_means_and_intervals_over_seeds() -> None:
    made: dict = {}
    exec(CODE, made)
    axes = made["axes"]
    assert Path("accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("policy step", "accuracy")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["entropy", "newline"]
    lines, bands = axes.get_lines(), axes.collections
    assert len(lines) == len(bands) == 2
    for segmenter, line, band in zip(("entropy", "newline"), lines, bands, strict=True):
        assert line.get_xdata().tolist() == [0, 2, 4, 6]
        (path,) = band.get_paths()
        for step, mean in zip((0, 2, 4, 6), line.get_ydata(), strict=True):
            values = [accuracy(segmenter, seed, step) for seed in range(3)]
            assert mean == pytest.approx(sum(values) / 3)
            edge = [y for x, y in path.vertices if x == step]
            assert (min(edge), max(edge)) == pytest.approx(student_interval(values))


@pytest.mark.usefixtures("grid")
def test_the_lines_of_the_text_are_true() -> None:
    import segcredit

    made: dict = {}
    exec(CODE, made)
    assert made["curves"]["count"].to_numpy().tolist() == [[3, 3]] * 4
    runs = segcredit.read_runs("runs")
    differing = runs.runs.drop(columns="run").nunique()
    assert differing[differing > 1].to_dict() == {"seed": 3, "segmenter": 2}


@pytest.mark.usefixtures("grid")
def test_the_ready_made_figures_are_drawn_from_the_same_runs() -> None:
    made: dict = {"runs": read_runs("runs")}
    exec(READY_MADE, made)
    assert Path("comparison.pdf").read_bytes().startswith(b"%PDF")

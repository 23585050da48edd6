"""The report of a study: what stands on the page, what it reads, and where it is written.

How it looks and what a browser makes of it: test_report_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from segcredit.cli import main
from segcredit.errors import RecordError, StudyError
from segcredit.records.run_directory import RunRecords
from segcredit.records.tables import Runs, default_by, read_runs
from segcredit.study.report import drawings, findings, overview, view, write_report
from segcredit.study.report.grouping import heat_map_axes
from segcredit.study.statistics import compare, summarise

SCRIPT = "<script>alert(1)</script>"
SECTIONS = [
    "runs",
    "results",
    "comparisons",
    "curves",
    "heat-map",
    "costs",
    "stability",
    "values",
    "segments",
    "completions",
    "settings",
    "environment",
    "python",
]
FIGURES = [
    "comparison",
    "learning_curves",
    "heat_map",
    "stability",
    "value_consistency",
    "segment_shapes",
]


class Page(HTMLParser):
    """A report as its reader meets it: tags, attributes, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: dict[str, str] = {"": ""}
        self._section = ""
        self._hidden = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag == "section":
            self._section = str(dict(attrs)["id"])
            self.text[self._section] = ""
        if tag in ("script", "style", "svg", "footer"):
            self._hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""
        elif not self._hidden:
            self.text[self._section] += " "

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text[self._section] += data

    def of(self, section: str) -> str:
        return " ".join(self.text[section].split())


def record(path: Path, config: dict[str, Any], *, steps: int = 3, **metrics: float) -> RunRecords:
    """A run whose metrics grow with the step; it is left running."""
    run = RunRecords.create(path, config, {"python": "3.11.7", "git_revision": "abc123"})
    for step in range(steps):
        row = {"step": step, "tokens_sampled": 100 * step, "cpu_seconds": 1.5 * step}
        run.metrics(row | {name: value + step / 100 for name, value in metrics.items()})
    return run


def study(path: Path) -> Path:
    """Two segmenters of three seeds; the last of the second failed."""
    for name, accuracy in (("newline", 0.3), ("whole", 0.5)):
        for seed in range(3):
            config = {"method": "sapo", "seed": seed, "segmenter": {"name": name}}
            run = record(path / f"{name}{seed}", config, accuracy=accuracy + seed / 20)
            if (name, seed) == ("whole", 2):
                run.fail("TrainingError", "the loss is not finite.", "Traceback: line 7")
            else:
                run.finish()
    return path


def leave_undrawn(monkeypatch: pytest.MonkeyPatch, names: Iterable[str]) -> list[str]:
    """Makes empty figures of some, since drawing takes a second each; names those asked for."""
    asked: list[str] = []

    def stand_in(name: str) -> Any:
        def draw(_: Runs, *, width: float, **__: Any) -> Figure:
            asked.append(name)
            return Figure(figsize=(width, 1))

        return draw

    for name in names:
        monkeypatch.setattr(drawings, name, stand_in(name))
    return asked


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return leave_undrawn(monkeypatch, FIGURES)


# What is set side by side.


def table_of(tmp_path: Path, *configs: dict[str, Any]) -> Runs:
    for number, config in enumerate(configs):
        RunRecords.create(tmp_path / f"{number:03}", config, {})
    return read_runs(tmp_path)


def plugin(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, **options}


def test_by_is_the_method_where_the_rest_follows_from_it(tmp_path: Path) -> None:
    runs = table_of(
        tmp_path,
        {"method": "sapo", "seed": 0, "segmenter": plugin("entropy", top=0.1), "loss": {"clip": 1}},
        {"method": "sapo", "seed": 1, "segmenter": plugin("entropy", top=0.1), "loss": {"clip": 1}},
        {"method": "grpo", "seed": 0, "segmenter": plugin("whole"), "loss": {"clip": 2}},
    )
    assert default_by(runs) == ["method"]


def test_by_names_what_divides_further_plug_ins_before_options(tmp_path: Path) -> None:
    settings = [("a", "x", 1), ("a", "y", 1), ("b", "x", 1), ("b", "x", 2)]
    runs = table_of(
        tmp_path,
        *({"loss": {"clip": c, "same": 0}, "estimator": e, "method": m} for m, e, c in settings),
    )
    assert default_by(runs) == ["method", "estimator", "loss.clip"]


def test_by_leaves_out_the_seed_and_what_follows_from_it(tmp_path: Path) -> None:
    runs = table_of(
        tmp_path,
        *(
            {
                "seed": seed,
                "task": {"name": "t", "seed": 9 - seed, "shift": seed * 10},
                "size": size,
            }
            for seed in range(2)
            for size in (1, 2)
        ),
    )
    assert default_by(runs) == ["size"]


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"method": "sapo", "seed": 0}], ["method"]),
        ([{"segmenter": "a", "seed": 0}, {"segmenter": "a", "seed": 1}], ["segmenter"]),
        ([{"seed": 0}, {"seed": 1}], ["run"]),
        # No seed met both methods: nothing shows that the method follows from it.
        ([{"method": "a", "seed": 0}, {"method": "b", "seed": 1}], ["method"]),
        # A run that lacks an option differs from one that has it.
        ([{"method": "a"}, {"method": "a", "loss": {"clip": 1}}], ["loss.clip"]),
    ],
)
def test_by_falls_back(tmp_path: Path, configs: list[Any], expected: list[str]) -> None:
    assert default_by(table_of(tmp_path, *configs)) == expected


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=8),
)
def test_by_makes_the_same_groups_as_all_keys_together(rows: list[tuple[int, ...]]) -> None:
    """Two runs are together exactly where they agree in all keys."""
    names = ["loss.ratio", "a.b", "method", "c"]

    table = [
        dict(zip(["run", *names], [str(run), *row], strict=True)) for run, row in enumerate(rows)
    ]
    runs: Any = SimpleNamespace(runs=pd.DataFrame(table))
    chosen = default_by(runs)
    places = [names.index(name) for name in chosen]
    for one in rows:
        for other in rows:
            together = all(one[place] == other[place] for place in places)
            assert together == (one == other)


def test_a_heat_map_needs_two_settings_that_were_crossed(tmp_path: Path) -> None:
    def axes(name: str, pairs: str, by: list[str]) -> tuple[str, str] | None:
        configs = ({"segmenter": s, "estimator": e, "x": e} for s, e in pairs.split())
        return heat_map_axes(table_of(tmp_path / name, *configs), by)

    assert axes("crossed", "a1 a2 b1 b2", []) == ("segmenter", "estimator")
    assert axes("half", "a1 a2 b1", []) == ("segmenter", "estimator")
    assert axes("diagonal", "a1 b2", ["x"]) is None
    assert axes("row", "a1 a2", ["x"]) is None
    assert axes("column", "a1 b1", ["x"]) is None
    runs = table_of(tmp_path / "by", *({"lam": x, "clip": y} for x in (1, 2) for y in (3, 4)))
    assert heat_map_axes(runs, ["lam", "clip"]) == ("lam", "clip")


# How numbers are shown.


def test_numbers_of_a_column_share_their_decimals() -> None:
    assert [cell.text for cell in view.numbers([0.84375, -0.5, math.nan])] == [
        "0.844",
        "−0.500",
        "–",
    ]
    assert [cell.text for cell in view.numbers([230520.4, 1.26])] == ["230,520", "1"]
    assert [cell.text for cell in view.numbers([0.0, -0.0001, math.inf], 2)] == [
        "0.00",
        "0.00",
        "∞",
    ]
    assert [cell.text for cell in view.probabilities([1, 0.25, 1.5e-5, math.nan])] == [
        "1",
        "0.25",
        "1.5e-05",
        "–",
    ]


def test_intervals_are_drawn_on_one_scale() -> None:
    low, middle, high = [0.0, math.nan, math.nan], [1.0, 2.0, math.nan], [4.0, math.nan, math.nan]
    drawn = [cell.interval for cell in view.intervals(low, middle, high)]
    assert drawn[0] == view.DrawnInterval(3, 3 + 94 / 4, 97, None)
    assert drawn[1] == view.DrawnInterval(50, 50, 50, None)  # one seed: a dot, no interval
    assert drawn[2] is None
    (cell,) = view.intervals([1.0], [2.0], [4.0], zero=True)
    assert cell.interval == view.DrawnInterval(3 + 94 / 4, 50, 97, 3)
    (cell,) = view.intervals([1.0], [1.0], [1.0])
    assert cell.interval == view.DrawnInterval(50, 50, 50, None)


# What stands on the page.


def test_the_page_has_every_section_and_the_numbers_of_the_statistics(
    tmp_path: Path, undrawn: list[str]
) -> None:
    path = study(tmp_path / "runs")
    written = write_report(path)
    assert written == path / "report.html"
    page = Page(written)
    assert list(page.text)[1:] == SECTIONS
    assert "Report on runs" in page.of("")
    runs = read_runs(path)
    for row in summarise(runs, ["segmenter"], "accuracy").to_dict("records"):
        shown = f"{row['segmenter']} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        assert shown.replace("-", "−") in page.of("results")
    for sentence in compare(runs, ["segmenter"], "accuracy")["finding"]:
        assert sentence in page.of("comparisons")
    assert "their unit is a run of the group, which is normally a seed" in page.of("results")
    assert "6 runs: 1 failed, 5 finished." in page.of("runs")
    assert "failed: TrainingError: the loss is not finite. In whole2. Traceback" in page.of("runs")
    assert "whole2 failed whole 2 2 200 3" in page.of("runs")
    assert "seed 0, 1, 2 0, 1, 2" in page.of("settings")
    assert "2 keys in which the runs differ" in page.of("settings")
    assert "git_revision abc123 6 all" in page.of("environment")
    assert f"segcredit.read_runs({str(path)!r})" in page.of("python")
    # Each in two widths; the learning curves over steps and over tokens; nothing was crossed.
    twice = dict.fromkeys(["comparison", "stability", "value_consistency", "segment_shapes"], 2)
    assert Counter(undrawn) == {"learning_curves": 4, **twice}
    assert page.tags["figure"] == 6


def test_the_python_on_the_page_runs(tmp_path: Path, undrawn: list[str]) -> None:
    path = study(tmp_path)
    page = Page(write_report(path))
    code = "".join(page.text["python"].partition("import segcredit")[1:])
    assert "compare(runs, by, 'accuracy')" in code
    exec(code, {})


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    """One run of one seed that measured nothing but a reward; with the real figures."""
    record(tmp_path / "a", {"method": "sapo", "seed": 0}, reward=0.1).finish()
    page = Page(write_report(tmp_path))
    assert list(page.text)[1:] == SECTIONS
    assert "None of the 1 run recorded 'accuracy'" in page.of("results")
    assert "None of the 1 run recorded 'accuracy'" in page.of("comparisons")
    assert "recorded 'accuracy'" in page.of("curves")
    assert "No two settings were crossed" in page.of("heat-map")
    assert "recorded any of entropy, kl" in page.of("stability")
    assert "recorded 'value_loss'" in page.of("values")
    assert "recorded segments" in page.of("segments")
    assert "No run recorded completions" in page.of("completions")
    assert "The runs differ in no key." in page.of("settings")
    assert page.tags["figure"] == 0


def test_a_study_of_which_every_run_failed_at_once(tmp_path: Path) -> None:
    for seed in range(2):
        run = RunRecords.create(tmp_path / f"{seed}", {"method": "sapo", "seed": seed}, {})
        run.fail("PolicyError", "there is no such model.", "")
    page = Page(write_report(tmp_path))
    assert "2 runs: 2 failed." in page.of("runs")
    said = "failed: PolicyError: there is no such model. In 0, 1. It recorded no traceback."
    assert said in page.of("runs")
    assert "No run recorded what it spent." in page.of("costs")
    assert "No readable environment.json: 0, 1." in page.of("environment")


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path, undrawn: list[str]) -> None:
    for name in ("a", "b"):
        record(tmp_path / name, {"method": name, "seed": 0}, accuracy=0.4).finish()
    page = Page(write_report(tmp_path))
    assert "a 0.420 – 1 0.400 2" in page.of("results")
    assert "says nothing of chance" in page.of("comparisons")


def test_credit_of_an_impossible_size_is_said(tmp_path: Path, undrawn: list[str]) -> None:
    for seed, largest in enumerate((1.5, 600000.0)):
        config = {"method": "grpo", "seed": seed}
        record(tmp_path / f"run{seed}", config, accuracy=0.4, advantage_max=largest).finish()
    said = Page(write_report(tmp_path)).of("results")
    assert "1 run had an advantage above 100 in size (advantage_max; 6e+05 in run1)" in said


def test_unfinished_and_damaged_runs_are_named(tmp_path: Path, undrawn: list[str]) -> None:
    path = study(tmp_path)
    record(
        path / "going", {"method": "sapo", "seed": 3, "segmenter": plugin("whole")}, accuracy=0.5
    )
    run = record(path / "stopped", {"method": "sapo", "seed": 4, "segmenter": plugin("whole")})
    run.interrupt("the disk is full.")
    (path / "newline0" / "metrics.jsonl").write_text('{"step": 0}\nnot json\n{"step": 2}\n')
    for file in (path / "newline0").glob("*.parquet"):
        file.unlink()
    (path / "newline1" / "config.toml").write_text("this is = = no toml")
    (path / "half").mkdir()
    (path / "half" / "config.toml").write_text("seed = 1")
    page = Page(write_report(path))
    text = page.of("runs")
    assert "7 runs: 1 failed, 4 finished, 1 interrupted, 1 running." in text
    assert "interrupted: the disk is full. In stopped." in text
    assert "A copy of a run that was killed is still called running" in text
    assert "2 runs left out of whatever needs a file that is damaged" in text
    assert "newline0: " in text
    assert "newline1: " in text
    assert "no whole run: half." in text
    # What can be read is still there.
    assert "whole" in page.of("results")
    assert "newline" in page.of("results")


EVIL = f"{SCRIPT}\"'><img src=x onerror=alert(2)> $x_{{ {{{{ 7919 * 104729 }}}}"


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Names and messages that would be markup, formulae or templates; with real figures."""
    path = tmp_path_factory.mktemp("evil")
    for seed, estimator in itertools.product(range(2), ("</svg>", "</style></title></details>")):
        config = {
            "method": "_",
            "seed": seed,
            "segmenter": {"name": EVIL, "a<b": "-->"},
            "estimator": estimator,
        }
        run = record(path / f"{SCRIPT[:8]}{estimator[2:4]}{seed}", config, accuracy=0.1)
        run.fail(EVIL, EVIL, f"{EVIL}\n</pre></details>")
    return Page(write_report(path, by=["segmenter", "estimator"], title=f"My {SCRIPT}"))


def test_what_users_wrote_is_shown_and_never_run(evil_page: Page) -> None:
    tags = evil_page.tags
    assert (tags["script"], tags["style"], tags["img"]) == (1, 1, 0)
    assert tags["figure"] == 3
    assert f"My {SCRIPT}" in evil_page.of("")
    assert f"failed: {EVIL}: {EVIL}" in evil_page.of("runs")
    assert EVIL in evil_page.of("results")
    assert "segmenter.a<b -->" in evil_page.of("settings")
    assert "829348951" not in evil_page.source  # the product, had a template worked it out
    assert not any(name.startswith("on") for name, _ in evil_page.attributes)


def test_ids_are_unique_and_every_reference_has_one(evil_page: Page) -> None:
    ids = [value for name, value in evil_page.attributes if name == "id"]
    assert len(ids) > 80  # those of figures among them
    assert [value for value, count in Counter(ids).items() if count > 1] == []
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', evil_page.source)
    assert len(references) > 20
    assert set(references) <= set(ids)


def test_the_page_asks_for_nothing_and_lets_only_its_own_script_run(
    tmp_path: Path, undrawn: list[str]
) -> None:
    page = Page(write_report(study(tmp_path)))
    links = [value or "" for name, value in page.attributes if name in ("src", "href", "action")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", page.source)
    script = re.search(r"<script>(.*?)</script>", page.source, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source
    assert "default-src 'none'" in page.source


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, undrawn: list[str]) -> None:
    path = study(tmp_path / "runs")
    first = write_report(path).read_bytes()
    assert write_report(path).read_bytes() == first
    assert write_report(path, tmp_path / "new" / "page.html").read_bytes() == first


# Large studies.


def test_tokens_are_never_read_and_texts_of_the_runs_that_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_undrawn(monkeypatch, [name for name in FIGURES if name != "segment_shapes"])
    path = study(tmp_path)
    texts = {"newline0": "shown", "newline1": "never read", "whole1": "shown too"}
    for run, text in texts.items():
        columns = {"prompt": ["p"], "completion": [0], "segment": [0], "start": [0], "end": [4]}
        records = RunRecords(path / run)
        records.table("segments", 1, {**columns, "text": [text]})
        columns = {"prompt": ["p", "q"], "completion": [0, 0], "reward": [1.0, None]}
        for step in (1, 2):
            records.table("completions", step, {**columns, "text": [text, text]})
        (path / run / "tokens").mkdir(exist_ok=True)
        (path / run / "tokens" / "all.parquet").write_bytes(b"not even Parquet")
    asked: list[tuple[str, Any, int]] = []
    read = Runs.read

    def watched(self: Runs, table: Any, columns: Any = None, *rest: Any, **more: Any) -> Any:
        asked.append((table, columns, len(self)))
        return read(self, table, columns, *rest, **more)

    monkeypatch.setattr(Runs, "read", watched)
    page = Page(write_report(path))
    assert ("segments", ["start", "end"], len(read_runs(path))) in asked
    assert {table for table, _, runs in asked if runs > 1} <= {"steps", "segments"}
    assert {table for table, *_ in asked} <= {"steps", "segments", "completions", "turns"}
    assert (
        sum(runs == 1 for *_, runs in asked) == 4 * 2
    )  # two groups, each its segments, its completions twice and its turns
    assert all("text" not in columns for _, columns, runs in asked if columns and runs > 1)
    assert page.source.count("shown too") >= 4
    assert "never read" not in page.source
    assert "damaged" not in page.of("runs")


def test_a_page_is_bounded(
    tmp_path: Path, undrawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MOST_ROWS", 4)
    monkeypatch.setattr(overview, "MOST_GROUPS", 2)
    monkeypatch.setattr(overview, "_MOST_FAILURES", 2)
    monkeypatch.setattr(overview, "_LONGEST_TRACEBACK", 10)
    monkeypatch.setattr(findings, "_MOST_GROUPS", 5)
    for number in range(6):
        run = record(tmp_path / f"run{number}", {"method": f"m{number}", "seed": 0}, accuracy=0.1)
        if number < 3:
            run.fail("Error", f"reason {number}", "x" * 30 + "the end")
        else:
            run.finish()
    page = Page(write_report(tmp_path))
    text = page.of("runs")
    assert "4 of 6 are shown, those that did not finish first" in text
    assert all(f"run{number} failed" in text for number in range(3))
    assert ("run3 finished" in text, "run4 finished" in text) == (True, False)
    assert ("reason 1" in text, "reason 2" in text) == (True, False)
    assert "1 more sentences are in the column error" in text
    assert "xxxthe end" in text
    assert "xxxxthe end" not in text
    assert "make 6 groups, too many to compare each with each (at most 5)" in page.of("comparisons")
    assert "2 of 6 groups are shown" in page.of("settings")


def test_the_lines_of_many_runs_are_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_undrawn(monkeypatch, [name for name in FIGURES if name != "learning_curves"])
    path = study(tmp_path)
    as_lines = write_report(path).read_text()
    monkeypatch.setattr(drawings, "_MOST_POINTS", 6 * 3 - 1)  # six runs of three steps
    as_image = write_report(path).read_text()
    assert as_lines.count("data:image/png") == 0
    assert as_image.count("data:image/png") == 8  # two figures of two panels in two widths
    assert as_lines.count("<path") - as_image.count("<path") >= 4 * 6
    assert "img-src data:;" in as_image


def test_failures_with_one_sentence_are_told_once(tmp_path: Path, undrawn: list[str]) -> None:
    for number in range(20):
        run = record(tmp_path / f"run{number:02}", {"method": "a", "seed": number})
        run.fail("Error", "the same.", f"traceback {number}")
    text = Page(write_report(tmp_path)).of("runs")
    assert text.count("Error: the same.") == 1
    assert "run10, run11 and 8 more" in text


# Where it is written, and what is refused.


def test_only_an_earlier_report_is_replaced(tmp_path: Path, undrawn: list[str]) -> None:
    path = study(tmp_path / "runs")
    foreign = tmp_path / "notes.html"
    foreign.write_text("<p>mine</p>")
    with pytest.raises(StudyError, match="no report of segcredit; nothing was overwritten"):
        write_report(path, foreign)
    assert foreign.read_text() == "<p>mine</p>"
    first = write_report(path, title="first")
    assert "<h1>first</h1>" in first.read_text()
    assert "<h1>second</h1>" in write_report(path, title="second").read_text()
    assert "<h1>first</h1>" not in first.read_text()


def test_a_directory_is_no_place_for_a_report(tmp_path: Path) -> None:
    path = study(tmp_path / "runs")
    with pytest.raises(StudyError, match=r"is a directory.*report\.html"):
        write_report(path, tmp_path)


def test_a_place_below_a_file_is_refused_and_nothing_lost(
    tmp_path: Path, undrawn: list[str]
) -> None:
    path = study(tmp_path / "runs")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecordError, match="could not be written"):
        write_report(path, tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_leaves_the_earlier_report(
    tmp_path: Path, undrawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study(tmp_path)
    before = write_report(path).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segcredit.atomic_files.os.fsync", full)
    with pytest.raises(RecordError, match="could not be written"):
        write_report(path, title="another")
    assert (path / "report.html").read_bytes() == before
    assert not list(path.glob(".*.tmp"))


@pytest.mark.parametrize("what", ["empty", "foreign", "half", "absent", "file"])
def test_a_path_without_runs_is_a_sentence_and_no_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "given"
    if what != "absent":
        path.mkdir()
    if what == "foreign":
        (path / "config.toml").write_text("[server]\nport = 80")
        (path / "status.json").write_text('["ok"]')
        (path / "report.html").write_text("theirs")
    if what == "half":
        (path / "config.toml").write_text("seed = 1")
    if what == "file":
        path = path / "file"
        path.write_text("x")
    found = sorted(tmp_path.rglob("*"))
    with pytest.raises(StudyError):
        write_report(path)
    assert sorted(tmp_path.rglob("*")) == found


def test_runs_that_are_all_damaged_are_a_sentence(tmp_path: Path) -> None:
    record(tmp_path / "a", {"method": "sapo", "seed": 0}).finish()
    (tmp_path / "a" / "config.toml").write_text("= =")
    with pytest.raises(StudyError, match=r"None of the 1 run in .* can be read"):
        write_report(tmp_path)


def test_unknown_names_get_the_nearest_and_write_nothing(tmp_path: Path) -> None:
    path = study(tmp_path)
    with pytest.raises(StudyError, match="did you mean 'segmenter'"):
        write_report(path, by="segmentr")
    with pytest.raises(StudyError, match="did you mean 'accuracy'"):
        write_report(path, metric="acuracy")
    assert not (path / "report.html").exists()


def test_the_command(
    tmp_path: Path, undrawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = study(tmp_path / "[runs]")
    output = tmp_path / "[page].html"
    options = ["--output", str(output), "--by", "segmenter, seed", "--metric", "cpu_seconds"]
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(path), *options, "--title", "Mine"])
    assert stopped.value.code == 0
    assert f"Report: {output}" in capsys.readouterr().out
    page = Page(output)
    assert "6 groups by segmenter, seed, compared by CPU-seconds" in page.of("")
    assert "Mine" in page.of("")
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(path), "--by", "sead"])
    assert stopped.value.code == 1
    assert "did you mean 'seed'" in capsys.readouterr().err

"""Figures: what is drawn equals slow means and intervals; readable; the same bytes every time."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from segcredit.errors import RecordError, StudyError
from segcredit.records.run_directory import RunRecords, read_metrics
from segcredit.records.tables import Runs, read_runs
from segcredit.study.plots import (
    COLUMN,
    PAGE,
    PALETTE,
    as_svg,
    comparison,
    heat_map,
    learning_curves,
    save,
    segment_shapes,
    stability,
    value_consistency,
)
from segcredit.study.plots.curves import curves_of, draw_curve, groups_of
from segcredit.study.plots.style import LOOKS, look, wrapped
from segcredit.study.statistics import compare, headline, student_interval, summarise

DRAW: dict[str, Callable[..., Figure]] = {
    "learning curves": learning_curves,
    "heat map": heat_map,
    "stability": stability,
    "value consistency": value_consistency,
    "segment shapes": segment_shapes,
    "comparison": comparison,
}


def some(*quick: str) -> list[Any]:
    """The kinds of figures, all but the quick ones for the slow suite: they share their code."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in DRAW]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Those of ``make_runs``, read once."""
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def figures(runs: Runs) -> dict[str, Figure]:
    """One of each kind."""
    return {name: draw(runs) for name, draw in DRAW.items()}


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Twelve groups, most with long names."""
    methods = [f"method_{n}_with_a_long_name" if n % 3 else f"m{n}" for n in range(12)]
    return make_runs(tmp_path_factory.mktemp("twelve"), methods=methods, seeds=2)


def make_run(path: Path, rows: Sequence[Mapping[str, Any]], **config: Any) -> RunRecords:
    run = RunRecords.create(path, {"seed": 0, **config}, {})
    for row in rows:
        run.metrics(row)
    return run


def make_runs(path: Path, methods: Sequence[str] = ("sapo", "grpo"), seeds: int = 3) -> Runs:
    """Ragged runs: the second of each method stops early and failed, the third has a gap."""
    rng = np.random.default_rng(0)
    for number, method in enumerate(methods):
        for seed in range(seeds):
            rows = [row(step, method, number, rng) for step in range(4 if seed == 1 else 6)]
            if seed == 2:
                rows[2]["accuracy"] = None
            plug_in = {"name": "entropy" if number % 2 else "newline", "top_fraction": 0.1}
            config = {"method": method, "segmenter": plug_in, "estimator": {"name": "critic"}}
            run = make_run(path / f"{method}{seed}", rows, **config | {"seed": seed})
            ends = np.cumsum(rng.integers(1, 5 + number, size=20))
            run.table("segments", 5, {"start": [0, *ends[:-1]], "end": ends})
            if seed == 1:
                run.fail("TrainingError", "the loss is not finite", "...")
    return read_runs(path)


def row(step: int, method: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step": step,
        "tokens_sampled": 100 * number + step * int(rng.integers(90, 110)),
        "accuracy": 0.1 * step + float(rng.uniform(0, 0.2)),
        "entropy": float(rng.uniform(0.5, 0.6)),
        "kl": 10.0 ** -float(rng.uniform(1, 5)),
        "segments_per_completion": 3.0 + number,
    }
    if method != "grpo":
        found |= {"value_loss": 0.3 / 4**step, "explained_variance": float(rng.uniform(-1, 1))}
    return found


def slow(runs: Runs, by: str, metric: str) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Mean and ends of the band by group and step, from the files, one value at a time."""
    values: dict[str, dict[int, list[float]]] = {}
    for run, setting in zip(runs.runs["run"], runs.runs[by], strict=True):
        for recorded in read_metrics(runs.directories[run]):
            value = recorded.get(metric)
            if value is not None and not math.isnan(value):
                values.setdefault(setting, {}).setdefault(recorded["step"], []).append(value)
    return {
        group: {
            step: (sum(found) / len(found), *stated(found, metric))
            for step, found in sorted(by_step.items())
        }
        for group, by_step in values.items()
    }


def stated(values: Sequence[float], metric: str) -> tuple[float, float]:
    """Ends of a band: of one value none, of two to four their range, of a share inside [0, 1]."""
    low, high = (min(values), max(values)) if 1 < len(values) < 5 else student_interval(values)
    return (max(low, 0.0), min(high, 1.0)) if metric == "accuracy" else (low, high)


def artists(axes: Axes, what: str) -> list[Any]:
    return [one for one in axes.get_children() if one.get_label() == f"_{what}"]


def names(figure: Figure) -> list[str]:
    """Of the groups: in the legend, or above the panels."""
    if figure.legends:
        return [text.get_text() for text in figure.legends[0].get_texts()]
    return [axes.get_title().replace("\n", " ") for axes in figure.axes]


def note(figure: Figure) -> str:
    (text,) = (text for text in figure.texts if text.get_label() == "_note")
    return " ".join(text.get_text().split())


def ends_of(band: Any) -> dict[float, tuple[float, float]]:
    """The lowest and highest corner of a band at each place."""
    paths = [path.vertices for path in band.get_paths()]
    # The last corner, which closes a path, has no place of its own.
    corners = np.concatenate([np.empty((0, 2)), *paths])
    return {
        float(x): (corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max())
        for x in np.unique(corners[:, 0])
    }


def assert_drawn(axes: Axes, wanted: Sequence[dict[int, tuple[float, float, float]]]) -> None:
    """Lines and bands of the groups, in order, are the slow ones."""
    lines, bands = artists(axes, "mean"), artists(axes, "interval")
    assert len(lines) == len(bands) == len(wanted)
    for line, band, group in zip(lines, bands, wanted, strict=True):
        assert list(line.get_xdata()) == list(group)
        np.testing.assert_allclose(line.get_ydata(), [mean for mean, _, _ in group.values()])
        known = {step: ends for step, (_, *ends) in group.items() if not math.isnan(ends[0])}
        bars = artists(axes, "lone interval") if len(wanted) == 1 else []
        drawn = ends_of(band)
        drawn |= {x: (low, high) for bar in bars for (x, low), (_, high) in bar.get_segments()}
        assert set(drawn) == set(known)
        for step, ends in known.items():
            np.testing.assert_allclose(drawn[step], ends, atol=1e-12)


@pytest.mark.parametrize("seeds", [3, 6])
def test_a_panel_has_its_group_bold_and_the_other_means_in_grey(tmp_path: Path, seeds: int) -> None:
    runs = make_runs(tmp_path, methods=("sapo", "grpo", "rloo"), seeds=seeds)
    figure = learning_curves(runs, by="method")
    wanted = slow(runs, "method", "accuracy")
    assert [name.split(" ")[0] for name in names(figure)] == sorted(wanted)
    for axes, name in zip(figure.axes, sorted(wanted), strict=True):
        assert_drawn(axes, [wanted[name]])
        others = [found for other, found in sorted(wanted.items()) if other != name]
        for line, group in zip(artists(axes, "other"), others, strict=True):
            np.testing.assert_allclose(line.get_ydata(), [mean for mean, _, _ in group.values()])
            assert line.get_linewidth() < artists(axes, "mean")[0].get_linewidth()
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert "band: 95% Student interval, of 2 to 4 the range" in note(figure)


def test_every_run_is_a_thin_line_and_a_failed_one_ends_in_a_cross(runs: Runs) -> None:
    figure = learning_curves(runs, by="method")
    for axes, method in zip(figure.axes, ("grpo", "sapo"), strict=True):
        drawn = [list(line.get_ydata()) for line in artists(axes, "seed")]
        for run, path in runs.directories.items():
            values = [x for r in read_metrics(path) if not math.isnan(x := r["accuracy"])]
            assert (values in drawn) == run.startswith(method)
        (cross,) = artists(axes, "failed")
        end = read_metrics(runs.directories[f"{method}1"])[-1]["accuracy"]
        assert (*cross.get_xdata(), *cross.get_ydata()) == (3, end)
    assert "×: where a run failed" in note(figure)
    assert "6 of 6 runs did not finish" in note(figure)


def test_the_title_says_who_ends_where_and_what_the_seeds_separate(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate([(0.2, 0.5), (0.3, 0.55), (0.25, 0.6), (0.2, 0.4)] * 2):
        for method, value in (("a", a), ("b", b), ("c", b + 0.001 * (-1) ** seed)):
            row = [{"step": 1, "accuracy": value}]
            make_run(tmp_path / f"{method}{seed}", row, method=method, seed=seed, segmenter="s")
    runs = read_runs(tmp_path)
    pairs = compare(runs, ["method", "segmenter"], "accuracy")
    assert (pairs["p_adjusted"] <= 0.05).sum() == 2
    title = learning_curves(runs).get_suptitle().replace("\n", " ")
    assert title == (
        "Accuracy at the end: highest with c (0.512), lowest with a (0.237); the seeds separate"
        " 2 of 3 pairs"
    )
    # Several runs of a seed cannot be paired.
    assert "pairs" not in headline(runs, "segmenter", "accuracy")


tables = st.lists(
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
).filter(lambda rows: any(x is not None for row in rows for x in row))


@settings(max_examples=12, deadline=None)
@given(values=tables)
def test_any_ragged_table_with_holes_is_drawn_as_it_is(values: list[list[float | None]]) -> None:
    with TemporaryDirectory() as folder:
        for seed, run in enumerate(values):
            make_run(Path(folder, str(seed)), [], method="m", seed=seed)
            rows = [json.dumps({"step": n, "accuracy": x}) + "\n" for n, x in enumerate(run)]
            Path(folder, str(seed), "metrics.jsonl").write_text("".join(rows))  # unsynced: fast
        runs = read_runs(folder)
        axes = Figure().add_subplot()
        for curve in curves_of(runs, groups_of(runs, "method"), "accuracy"):
            draw_curve(axes, curve)
        assert_drawn(axes, [slow(runs, "method", "accuracy")["m"]])


def test_over_a_cost_a_point_is_the_mean_of_the_same_runs(tmp_path: Path) -> None:
    make_run(
        tmp_path / "a",
        [
            {"step": 0, "tokens_sampled": 30, "accuracy": 0.1},
            {"step": 1, "tokens_sampled": 100, "accuracy": None},
            {"step": 2, "accuracy": 0.5},  # has cost at least what step 1 had
        ],
        method="m",
    )
    rows = [{"step": s, "tokens_sampled": 50 + 100 * s, "accuracy": 0.3 + s / 10} for s in (0, 1)]
    make_run(tmp_path / "b", rows, method="m", seed=1)
    (axes,) = learning_curves(read_runs(tmp_path), by="method", per="tokens_sampled").axes
    (line,) = artists(axes, "mean")
    assert list(line.get_xdata()) == [40, 150, 100]
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.4, 0.5])
    assert axes.get_xlabel() == "tokens sampled"


def test_no_interval_is_claimed_of_one_run(tmp_path: Path) -> None:
    make_run(tmp_path, [{"step": 3, "accuracy": 0.5}], method="m")
    figure = learning_curves(read_runs(tmp_path), by="method")
    (axes,) = figure.axes
    (line,) = artists(axes, "mean")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([3], [0.5])
    assert line.get_marker() not in ("", "None")  # else one point would be invisible
    assert not ends_of(artists(axes, "interval")[0])
    assert names(figure) == ["m"]
    assert "mean over 1 seed;" in note(figure)


def test_the_interval_of_a_single_step_is_a_line(tmp_path: Path) -> None:
    for seed, value in enumerate((0.4, 0.5, 0.9)):
        make_run(tmp_path / str(seed), [{"step": 3, "accuracy": value}], method="m", seed=seed)
    (axes,) = learning_curves(read_runs(tmp_path), by="method").axes
    (bar,) = artists(axes, "lone interval")
    ((_, low), (_, high)) = bar.get_segments()[0]
    assert (low, high) == (0.4, 0.9)


def test_a_band_of_a_share_stays_inside_its_range(tmp_path: Path) -> None:
    for seed, value in enumerate((0.9, 1.0, 1.0, 1.0, 0.98)):
        rows = [{"step": step, "accuracy": value * step} for step in range(2)]
        make_run(tmp_path / str(seed), rows, method="m", seed=seed)
    (axes,) = learning_curves(read_runs(tmp_path), by="method").axes
    ends = ends_of(artists(axes, "interval")[0])
    assert student_interval((0.9, 1.0, 1.0, 1.0, 0.98))[1] > 1
    assert ends[1][1] == 1
    assert ends[1][0] < 0.976


def test_the_note_names_unit_and_number(runs: Runs, tmp_path: Path) -> None:
    figure = learning_curves(runs, by="method")
    assert "mean over 2–3 seeds; thin: seeds; band: 95% Student interval" in note(figure)
    assert names(figure) == ["grpo", "sapo"]
    # Runs of two methods in one group: the same seed twice.
    mixed = learning_curves(runs, by="estimator")
    assert "mean over 4–6 runs; thin: runs" in note(mixed)
    for method, seeds in (("a", 2), ("b", 2)):
        for seed in range(seeds):
            row = {"step": 1, "accuracy": 0.5}
            make_run(tmp_path / f"{method}{seed}", [row], method=method, seed=seed)
    make_run(tmp_path / "none", [], method="a", seed=9)
    figure = learning_curves(read_runs(tmp_path), by="method")
    assert names(figure) == ["a", "b"]
    assert "1 of 5 runs recorded none" in note(figure)
    make_run(tmp_path / "b2", [{"step": 1, "accuracy": 0.5}], method="b", seed=2)
    figure = learning_curves(read_runs(tmp_path), by="method")
    assert names(figure) == ["a (2 seeds)", "b (3 seeds)"]
    assert "mean over seeds;" in note(figure)


def test_groups_keep_their_look_from_figure_to_figure(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, methods=("a", "grpo", "sapo"))
    panels = learning_curves(runs, by="method").axes
    curves = [artists(axes, "mean")[0].get_color() for axes in panels]
    losses = artists(value_consistency(runs).axes[0], "mean")
    assert [line.get_color() for line in losses] == [curves[0], curves[2]]
    together = artists(
        learning_curves(runs, by="method", ax=Figure().add_subplot()).axes[0], "mean"
    )
    assert [line.get_color() for line in together] == curves
    assert losses[1].get_marker() == together[2].get_marker()


def test_looks_differ_without_colour() -> None:
    looks = [look(number) for number in range(LOOKS)]
    assert len({(one["marker"], one["linestyle"]) for one in looks}) == LOOKS
    assert len({(one["color"], one["linestyle"]) for one in looks}) == LOOKS
    # Up to a dozen groups, the marker alone is enough.
    white = [(one["marker"], one["markerfacecolor"] == "white") for one in looks]
    assert len(set(white[:12])) == 12


def test_a_comparison_is_sorted_and_pairs_by_seed(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate([(0.2, 0.5), (0.3, 0.55), (0.25, 0.6), (0.2, 0.4)] * 2):
        for method, value in (("a", a), ("b", b), ("c", b + 0.002 + 0.001 * (-1) ** seed)):
            row = [{"step": 1, "accuracy": value}]
            make_run(tmp_path / f"{method}{seed}", row, method=method, seed=seed)
    make_run(tmp_path / "alone", [{"step": 1, "accuracy": 0.9}], method="d", seed=0)
    runs = read_runs(tmp_path)
    figure = comparison(runs, by="method", baseline="a")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["d", "c", "b", "a"]
    table = summarise(runs, ["method"], "accuracy").set_index("method")
    ends = {line.get_ydata()[0]: tuple(line.get_xdata()) for line in artists(left, "interval")}
    assert ends == {
        row: pytest.approx((table["low"][name], table["high"][name]))
        for row, name in enumerate("dcba")
        if name != "d"  # of one run there is no interval
    }
    assert [len(line.get_xdata()) for line in artists(left, "point")] == [1, 8, 8, 8]
    pairs = compare(runs, ["method"], "accuracy", baseline="a").set_index("b")
    dots = {line.get_ydata()[0]: line for line in artists(right, "dot")}
    for row, name in enumerate("dcb"):
        assert dots[row].get_xdata()[0] == pytest.approx(pairs["difference"][name])
        separated = pairs["p_adjusted"][name] <= 0.05
        assert (dots[row].get_markerfacecolor() == "white") != separated
    assert 3 not in dots
    assert len(comparison(runs, by="method", ax=Figure().add_subplot()).axes) == 1


def test_without_a_baseline_groups_are_compared_with_the_highest(tmp_path: Path) -> None:
    for seed, method in itertools.product(range(2), "ab"):
        row = [{"step": 1, "accuracy": 0.5 + (method == "b") * (0.1 + 0.1 * seed)}]
        make_run(tmp_path / f"{method}{seed}", row, method=method, seed=seed)
    figure = comparison(read_runs(tmp_path), by="method")
    (dot,) = artists(figure.axes[1], "dot")
    (bar,) = artists(figure.axes[1], "interval")
    assert dot.get_xdata()[0] == pytest.approx(-0.15)
    assert sorted(bar.get_xdata()) == pytest.approx([-0.2, -0.1])  # of two seeds, the range
    assert "minus b" in figure.axes[1].get_xlabel()


def test_what_cannot_be_paired_has_no_differences_and_the_note_says_why(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, methods=("a", "b", "c"))  # two of them with one segmenter
    figure = comparison(runs, by="segmenter")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "accuracy at the end"
    assert "No differences: Group 'newline' has 2 runs with seed 0" in note(figure)


PROTAN, DEUTAN, TRITAN = (
    np.array(rows)
    for rows in (
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    )
)
"""Machado, Oliveira and Fernandes, 2009: what is seen of linear RGB without one kind of cone."""


def lab(colours: Any) -> Any:
    """CIE L*a*b* (D65) of linear RGB, a row a colour."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(np.clip(colours, 1e-4, 1) @ to_xyz.T / to_xyz.sum(1)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("sight", [np.eye(3), PROTAN, DEUTAN, TRITAN])
def test_colours_stay_apart_in_grey_print_and_with_every_colour_blindness(sight: Any) -> None:
    srgb = np.array([to_rgb(colour) for colour in PALETTE])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = np.sort(lab(linear)[:, 0])
    assert np.diff(lightness).min() > 9  # of 100; Okabe and Ito's colours have .8
    assert lightness[-1] < 80  # seen on white
    seen = lab(linear @ sight.T)
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 18  # a difference of 2.3 is just noticed; theirs have 16


def test_what_the_user_has_set_wins(runs: Runs) -> None:
    with matplotlib.rc_context({"font.size": 11, "axes.linewidth": 2, "lines.linewidth": 3}):
        user = stability(runs, by="method")
        with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=["red", "blue"])}):
            cycled = stability(runs, by="method")
    ours = stability(runs, by="method")
    assert user.axes[0].yaxis.label.get_fontsize() == 11
    assert ours.axes[0].yaxis.label.get_fontsize() < 8
    assert user.axes[0].spines["left"].get_linewidth() == 2
    line, own = (artists(figure.axes[0], "mean")[0] for figure in (user, ours))
    assert (line.get_linewidth(), own.get_linewidth()) == (3, 1.2)
    assert [line.get_color() for line in artists(cycled.axes[0], "mean")] == ["red", "blue"]
    assert own.get_color() == PALETTE[0]
    assert_readable(user)


@pytest.mark.parametrize("name", DRAW)
def test_a_part_of_the_users_figure_is_drawn_into(runs: Runs, name: str) -> None:
    whole = Figure(figsize=(9, 4), layout="constrained")
    left, right = whole.subfigures(1, 2)
    if name == "heat map":
        axes = left.subplots()
        assert heat_map(runs, ax=axes) is whole
        assert axes.get_title("left")
    else:
        assert DRAW[name](runs, figure=left) is whole
        assert left.axes
        assert left.get_suptitle()
    assert not right.axes
    assert list(whole.get_size_inches()) == [9, 4]
    whole.draw_without_rendering()


def test_one_axes_takes_all_groups_with_their_legend(runs: Runs) -> None:
    axes = Figure(layout="constrained").add_subplot()
    assert learning_curves(runs, by="method", ax=axes) is axes.figure
    wanted = slow(runs, "method", "accuracy")
    assert_drawn(axes, [wanted["grpo"], wanted["sapo"]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "grpo (2–3 seeds)",
        "sapo (2–3 seeds)",
    ]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_heat_map_prints_what_the_table_says(tmp_path: Path, width: float) -> None:
    runs = make_runs(tmp_path, methods=("a", "b"))
    config = {"method": "c", "segmenter": {"name": "newline"}, "estimator": {"name": "zero"}}
    make_run(tmp_path / "silent", [{"step": 0}], **config)
    runs = read_runs(tmp_path)
    figure = heat_map(runs, width=width)
    (axes,) = figure.axes
    rows = [text.get_text() for text in axes.get_yticklabels()]
    columns = [text.get_text() for text in axes.get_xticklabels()]
    assert (rows, columns) == (["entropy", "newline"], ["critic", "zero"])
    printed = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert set(printed) == {(0, 0), (1, 0), (1, 1)}  # nothing where nothing was run
    assert printed[1, 1] == "not recorded\n(n = 0 of 1)"
    table = summarise(runs, ["segmenter", "estimator"], "accuracy")
    for place, (_, found) in zip([(0, 0), (1, 0)], table.iterrows(), strict=False):
        mean, low, high = (f"{found[name]:.3f}" for name in ("mean", "low", "high"))
        few = found["seeds"] == 2
        ends = f"range {low}–{high}" if few else f"[{low}, {high}]"
        assert printed[place] == f"{mean}\n{ends}\nn = {found['seeds']}"
    assert "Hatched: no run." in note(figure)
    assert any(patch.get_hatch() for patch in axes.patches)
    assert figure.get_figwidth() <= max(width, 3)


def test_heat_map_shades_follow_the_means_and_say_what_is_mixed(tmp_path: Path) -> None:
    for number, (segmenter, estimator) in enumerate(itertools.product("ab", "xy")):
        config = {"segmenter": {"name": segmenter}, "estimator": {"name": estimator}}
        for seed in range(2):
            rows = [{"step": 1, "accuracy": 0.1 * number}]
            make_run(tmp_path / f"{number}{seed}", rows, **config, seed=0, method=str(seed))
    figure = heat_map(read_runs(tmp_path))
    fields = [patch for patch in figure.axes[0].patches if not patch.get_hatch()]
    luminance = [sum(patch.get_facecolor()[:3]) for patch in fields]
    assert luminance == sorted(luminance, reverse=True)
    assert len(set(luminance)) == 4
    assert "over runs, which may differ in more than the seed" in note(figure)
    assert "Hatched" not in note(figure)


def test_heat_map_is_wider_where_its_fields_need_it(tmp_path: Path) -> None:
    for number in range(9):
        config = {"segmenter": {"name": "s"}, "estimator": {"name": f"e{number}"}}
        make_run(tmp_path / str(number), [{"step": 1, "accuracy": 0.5}], **config)
    figure = heat_map(read_runs(tmp_path), width=COLUMN)
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda b: b.x0)
    assert len(boxes) == 9
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_stability_has_six_panels_and_says_which_were_not_recorded(runs: Runs) -> None:
    figure = stability(runs, by="method")
    labels = ["entropy (nats)", "KL", "clip fraction"]
    labels += ["completion length (tokens)", "gradient norm", "explained variance"]
    assert [" ".join(axes.get_ylabel().split()) for axes in figure.axes] == labels
    entropy, kl, clipped, length, norm, explained = figure.axes
    for metric, axes in (("entropy", entropy), ("kl", kl)):
        wanted = slow(runs, "method", metric)
        assert_drawn(axes, [wanted["grpo"], wanted["sapo"]])
    assert_drawn(explained, [slow(runs, "method", "explained_variance")["sapo"]])
    for axes in (clipped, length, norm):
        assert [text.get_text() for text in axes.texts] == ["not recorded"]
    assert (entropy.get_yscale(), kl.get_yscale()) == ("linear", "log")
    assert [name.split(" ")[0] for name in names(figure)] == ["grpo", "sapo"]


def test_a_window_averages_each_run_before_the_seeds(tmp_path: Path) -> None:
    values = ([9, 1, 2, 3, 4, 5], [9, 5, None, 7, 8])
    for seed, run in enumerate(values):
        rows = [{"step": step, "entropy": value} for step, value in enumerate(run)]
        make_run(tmp_path / str(seed), rows, method="m", seed=seed)
    figure = stability(read_runs(tmp_path), by="method", window=2)
    (line,) = artists(figure.axes[0], "mean")
    np.testing.assert_allclose(line.get_ydata(), [9, (1.5 + 5) / 2, (3.5 + 7.5) / 2, 5])
    np.testing.assert_allclose(line.get_xdata(), [0, (1.5 + 1) / 2, 3.5, 5])
    assert "a point: 2 steps" in note(figure)
    with pytest.raises(StudyError, match="window is 0"):
        stability(read_runs(tmp_path), by="method", window=0)


def test_an_explained_variance_without_bound_flattens_no_other(tmp_path: Path) -> None:
    for method, value in (("good", 0.9), ("bad", -1e6)):
        rows = [{"step": s, "value_loss": 0.1, "explained_variance": value} for s in range(3)]
        make_run(tmp_path / method, rows, method=method)
    axes = value_consistency(read_runs(tmp_path)).axes[1]
    assert axes.get_yscale() == "symlog"
    low, high = axes.get_ylim()
    assert low < -1e6
    assert high > 0.9


def test_value_consistency_shows_those_that_learn_values(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, methods=("sapo", "grpo", "vc_ppo"))
    figure = value_consistency(runs)
    loss, explained = figure.axes
    for axes, metric in ((loss, "value_loss"), (explained, "explained_variance")):
        wanted = slow(runs, "method", metric)
        assert_drawn(axes, [wanted["sapo"], wanted["vc_ppo"]])
    assert [name.split(" ")[0] for name in names(figure)] == ["sapo", "vc_ppo"]
    assert (loss.get_yscale(), explained.get_yscale()) == ("log", "linear")
    assert "3 of 9 runs recorded none" in note(figure)


def test_segment_lengths_are_the_share_at_most_as_long(runs: Runs) -> None:
    figure = segment_shapes(runs, by="method")
    counts, lengths = figure.axes
    wanted = slow(runs, "method", "segments_per_completion")
    assert_drawn(counts, [wanted["grpo"], wanted["sapo"]])
    table = runs.segments
    for method, line, band in zip(
        ("grpo", "sapo"), artists(lengths, "mean"), artists(lengths, "interval"), strict=True
    ):
        drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert next(iter(drawn.values())) == 0
        assert list(drawn.values())[-1] == 1
        ends = ends_of(band)
        for length, share in drawn.items():
            shares = []
            for seed in range(3):
                own = table[table["run"] == f"{method}{seed}"]
                shares.append(sum(own["end"] - own["start"] <= length) / len(own))
            assert share == pytest.approx(sum(shares) / 3)
            # Steps: at a jump the band has the corners of both sides.
            low, high = stated(shares, "accuracy")
            assert ends[length][0] <= low + 1e-9
            assert ends[length][1] >= high - 1e-9
            assert 0 <= ends[length][0] <= ends[length][1] <= 1


def test_a_run_counts_once_whatever_the_number_of_its_segments(tmp_path: Path) -> None:
    for seed, (length, count) in enumerate(((2, 1), (1, 99))):
        run = make_run(tmp_path / str(seed), [], segmenter="s", seed=seed)
        starts = np.arange(count) * length
        run.table("segments", 1, {"start": starts, "end": starts + length})
    counts, lengths = segment_shapes(read_runs(tmp_path)).axes
    assert [text.get_text() for text in counts.texts] == ["not recorded"]
    (line,) = artists(lengths, "mean")
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {0: 0, 1: 0.5, 2: 1}


def test_many_lengths_are_thinned_but_not_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path, [], segmenter="s")
    run.table("segments", 1, {"start": [0] * 1000, "end": list(range(1, 1001))})
    lengths = segment_shapes(read_runs(tmp_path)).axes[1]
    (line,) = artists(lengths, "mean")
    assert len(line.get_xdata()) == 200
    np.testing.assert_allclose(line.get_ydata(), np.asarray(line.get_xdata()) / 1000)
    assert lengths.get_xscale() == "log"


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("name", some("learning curves", "heat map"))
def test_nothing_covers_anything_with_twelve_groups(twelve: Runs, name: str, width: float) -> None:
    by = {"rows": "method"} if name == "heat map" else {"by": ("method", "segmenter")}
    figure = DRAW[name](twelve, width=width, **by)
    assert_readable(figure)
    if name != "heat map":
        assert figure.get_figwidth() == width
    if name not in ("heat map", "comparison"):
        assert len(names(figure)) == 12


def assert_readable(figure: Figure) -> None:
    """Legend, note and panels lie apart and inside, and no text is smaller than 6.5 points."""
    parts = [*figure.axes, *figure.legends, *figure.texts]
    boxes = [part.get_tightbbox() for part in parts]
    assert all(box is not None for box in boxes)
    page = figure.bbox.padded(1)
    for part, box in zip(parts, boxes, strict=True):
        assert page.x0 <= box.x0, part
        assert box.x1 <= page.x1, part
        assert page.y0 <= box.y0, part
        assert box.y1 <= page.y1, part
    for (one, a), (other, b) in itertools.combinations(zip(parts, boxes, strict=True), 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 1, (one, other)
    shown = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in shown) >= 6.5


def test_names_cannot_hide_or_become_formulae(tmp_path: Path) -> None:
    for number, method in enumerate(("_hidden", "a $x$ b")):
        make_run(tmp_path / str(number), [{"step": 0, "accuracy": 0.5}], method=method)
    figure = learning_curves(read_runs(tmp_path), by="method")
    assert [name.strip() for name in names(figure)] == ["_hidden", r"a \$x\$ b"]
    assert "<path" in as_svg(figure)


def test_long_names_break_where_a_word_ends() -> None:
    assert wrapped("sapo, min_length_of_entropy", 17) == "sapo, min_length_\nof_entropy"
    assert wrapped("segment_td, per_token (5)", 24) == "segment_td, per_token\n(5)"
    assert wrapped("short", 16) == "short"
    assert wrapped("x" * 40, 16) == "x" * 40


def test_categorical_columns_are_drawn_alike(runs: Runs, figures: dict[str, Figure]) -> None:
    categorical = read_runs(runs.path)
    columns = ("run", "method", "segmenter", "estimator", "status")
    kinds = dict.fromkeys(columns, "category")
    vars(categorical)["runs"] = categorical.runs.astype(kinds)
    steps = categorical.steps
    # Categories in another order than that of the names, and one without rows.
    order = ["no such run", *sorted(steps["run"].unique(), reverse=True)]
    vars(categorical)["steps"] = steps.assign(run=pd.Categorical(steps["run"], order))
    for name in ("learning curves", "heat map", "segment shapes"):
        assert as_svg(figures[name]) == as_svg(DRAW[name](categorical)), name


@pytest.mark.parametrize("name", some("heat map", "segment shapes"))
def test_the_same_runs_give_the_same_bytes(
    tmp_path: Path, runs: Runs, figures: dict[str, Figure], name: str
) -> None:
    again = DRAW[name](read_runs(runs.path))
    for extension in ("pdf", "svg", "png") if name == "heat map" else ("pdf", "svg"):
        one, other = (tmp_path / "new" / f"{number}.{extension}" for number in range(2))
        assert save(figures[name], one) == one
        assert save(again, str(other)) == other
        assert len(one.read_bytes()) > 3000
        assert one.read_bytes() == other.read_bytes()
    pdf = (tmp_path / "new" / "0.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


def test_save_refuses_other_formats_and_leaves_nothing_half(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    figure = figures["heat map"]
    with pytest.raises(StudyError, match="no figure format 'txt'"):
        save(figure, tmp_path / "curves.txt")
    with pytest.raises(StudyError, match="There are: pdf, svg, png"):
        save(figure, tmp_path / "curves")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RecordError, match="could not be written"):
        save(figure, tmp_path / "taken" / "curves.pdf")
    assert not list(tmp_path.glob("curves*"))


def test_drawing_needs_no_global_state(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now raises
    known = [name for name in matplotlib.rcParams if name != "backend"]  # asks for pyplot
    before = {name: matplotlib.rcParams[name] for name in known}
    figure = segment_shapes(runs)
    as_svg(figure)
    save(figure, tmp_path / "figure.pdf")
    assert {name: matplotlib.rcParams[name] for name in known} == before


def test_svgs_share_a_page_without_clashes(figures: dict[str, Figure]) -> None:
    svgs = [as_svg(figure) for figure in figures.values()]
    assert svgs[0] == as_svg(figures["learning curves"])
    svgs.append(as_svg(figures["learning curves"], prefix="again"))
    seen: set[str] = set()
    for svg in svgs:
        own = re.findall(r'\sid="([^"]*)"', svg)
        assert len(own) == len(set(own))
        assert not seen & set(own)
        seen |= set(own)
        used = re.findall(r'href="#([^"]*)"', svg) + re.findall(r"url\(#([^)]*)\)", svg)
        assert used
        assert set(used) <= set(own)


def test_an_svg_names_itself_and_stays_within_itself(figures: dict[str, Figure]) -> None:
    svg = as_svg(figures["learning curves"])
    assert svg.startswith("<svg")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert (
        title.text
        == root.get("aria-label")
        == ("Learning curves: accuracy over step by method, segmenter")
    )
    # A style sheet would hold for the whole page; addresses are names of vocabularies alone.
    assert "<style" not in svg
    assert "<!--" not in svg
    assert "<metadata" not in svg
    assert set(re.findall(r'"(https?:[^"]*)"', svg)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    plain = as_svg(Figure())
    assert ">Figure</title>" in plain


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_without_values_says_which_and_why(tmp_path: Path, name: str) -> None:
    config = {"method": "m", "segmenter": "s", "estimator": "e"}
    make_run(tmp_path / "a", [], **config).fail("TrainingError", "at once", "...")
    make_run(tmp_path / "b", [{"step": 0}], **config)
    sentence = rf"figure '{name}' cannot be drawn: none of the 2 runs .* \(1 of them failed\)"
    with pytest.raises(StudyError, match=sentence):
        DRAW[name](read_runs(tmp_path))


def test_a_cost_that_was_not_recorded_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, [{"step": 0, "accuracy": 0.5}], method="m", segmenter="s")
    with pytest.raises(StudyError, match="'accuracy' together with 'cpu_seconds'"):
        learning_curves(read_runs(tmp_path), per="cpu_seconds")


@pytest.mark.parametrize(
    ("draw", "options", "sentence"),
    [
        (learning_curves, {"by": "methd"}, "did you mean 'method'"),
        (learning_curves, {"by": ()}, "No column to group by"),
        (learning_curves, {"metric": "acuracy"}, "did you mean 'accuracy'"),
        (learning_curves, {"per": "tokens"}, "did you mean 'tokens_sampled'"),
        (comparison, {"metric": "acuracy"}, "did you mean 'accuracy'"),
        (comparison, {"by": "method", "baseline": "gpro"}, "did you mean 'grpo'"),
        (learning_curves, {"width": 0}, "width of a figure is 0"),
        (learning_curves, {"width": math.nan}, "width of a figure is nan"),
        (heat_map, {"rows": "segmentr"}, "did you mean 'segmenter'"),
        (heat_map, {"rows": "estimator"}, "expected two different"),
        (heat_map, {"metric": "acuracy"}, "did you mean 'accuracy'"),
        (stability, {"by": "methd"}, "did you mean 'method'"),
        (value_consistency, {"by": "methd"}, "did you mean 'method'"),
        (segment_shapes, {"by": "methd"}, "did you mean 'method'"),
    ],
)
def test_unknown_names_are_sentences(
    runs: Runs, draw: Callable[..., Figure], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StudyError, match=sentence):
        draw(runs, **options)


def test_more_groups_than_can_be_told_apart_are_refused(tmp_path: Path) -> None:
    for seed in range(LOOKS + 1):
        make_run(tmp_path / str(seed), [{"step": 0, "accuracy": 0.5}], seed=seed)
    with pytest.raises(StudyError, match="'seed', is among them"):
        learning_curves(read_runs(tmp_path), by="seed")


def test_groups_are_in_the_order_of_their_settings(tmp_path: Path) -> None:
    for number, option in enumerate((10, 9, None, 2)):
        config = {} if option is None else {"segmenter": {"name": "s", "tokens": option}}
        make_run(tmp_path / str(number), [{"step": 0, "accuracy": 0.5}], **config)
    figure = learning_curves(read_runs(tmp_path), by="segmenter.tokens")
    assert [name.split(" ")[0] for name in names(figure)] == ["2", "9", "10", "none"]


def test_the_last_bits_of_a_layout_change_no_byte() -> None:
    """Constrained layouts vary in them from call to call, and ids are made of coordinates."""
    svgs = set[str]()
    for shift in (0.0, 1e-13):
        figure = Figure()
        figure.add_axes((0.1 + shift, 0.1, 0.8, 0.8)).plot([0, 1], [1, 0])
        svgs.add(as_svg(figure))
    assert len(svgs) == 1

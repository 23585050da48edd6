"""Figures of audits: the dots, lines and strips are those of the table and of the arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from audit_tables import ESTIMATORS, QUANTILES, SCHEMES, SEGMENTERS, frame, rows
from segcredit.errors import StudyError
from segcredit.study.plots import (
    COLUMN,
    PAGE,
    as_svg,
    audit_intervals,
    completion_credit,
    lift_curves,
    movement_shares,
    save,
)
from segcredit.study.plots.completion_credit import shown_token
from segcredit.study.plots.style import wrapped

AUDIT = frame(rows())
LABELS = ["random(fraction=0.2)†", "newline", "entropy†"]
"""By their values, the highest on top: those of the table rise."""


def artists(axes: Axes, what: str) -> list[Any]:
    return [one for one in axes.get_children() if one.get_label() == f"_{what}"]


def names(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def note(figure: Figure) -> str:
    (text,) = (text for text in figure.texts if text.get_label() == "_note")
    return " ".join(text.get_text().split())


def row_names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def one(metric: str, at: str, **of: str) -> Any:
    """The only row of the table that is of this."""
    chosen = AUDIT[(AUDIT["metric"] == metric) & (AUDIT["at"] == at)]
    for name, value in of.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def assert_dots(axes: Axes, wanted: list[Any]) -> None:
    """Dots and intervals are these, in any order, and stand in pairs on one height."""
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in artists(axes, "dot")]
    assert sorted(x for x, _ in dots) == pytest.approx(sorted(row["value"] for row in wanted))
    ends = {line.get_ydata()[0]: tuple(line.get_xdata()) for line in artists(axes, "interval")}
    known = [row for row in wanted if not math.isnan(row["low"])]
    assert len(ends) == len(known)
    for row in known:
        (y,) = (y for x, y in dots if x == pytest.approx(row["value"]))
        assert ends[y] == pytest.approx((row["low"], row["high"]))


def assert_readable(figure: Figure) -> None:
    """Legend, note and panels lie apart and inside, and no text is smaller than 6.5 points."""
    parts = [*figure.axes, *figure.legends, *figure.texts]
    boxes = [part.get_tightbbox() for part in parts]
    page = figure.bbox.padded(2)
    for part, box in zip(parts, boxes, strict=True):
        assert box is not None
        assert page.x0 <= box.x0, part
        assert box.x1 <= page.x1, part
        assert page.y0 <= box.y0, part
        assert box.y1 <= page.y1, part
    for (a, first), (b, second) in itertools.combinations(zip(parts, boxes, strict=True), 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(wide, high) < 1.5, (a, b)
    shown = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in shown) >= 6.5


# Dots and intervals.


def test_every_scheme_has_a_panel_and_every_credit_its_dot() -> None:
    figure = audit_intervals(AUDIT, "correlation", "token")
    assert [axes.get_title() for axes in figure.axes] == list(SCHEMES)
    for axes, scheme in zip(figure.axes, SCHEMES, strict=True):
        pairs = itertools.product(SEGMENTERS, ESTIMATORS)
        of = [{"segmenter": s, "estimator": e, "advantage": scheme} for s, e in pairs]
        assert_dots(axes, [one("correlation", "token", **each) for each in of])
        assert [line.get_xdata()[0] for line in artists(axes, "mark")] == [0]
    assert row_names(figure.axes[0]) == LABELS  # the others share them
    assert names(figure) == list(ESTIMATORS)
    assert "intervals over 64 prompts; thin line: 0" in note(figure)
    assert "†: not causal" in note(figure)


def test_dots_stand_in_the_row_of_their_segmenter_and_the_look_of_their_estimator() -> None:
    figure = audit_intervals(AUDIT, "correlation", "token")
    dots = {line.get_xdata()[0]: line for line in artists(figure.axes[1], "dot")}
    looks: dict[str, set[Any]] = {}
    for (row, segmenter), estimator in itertools.product(
        enumerate(reversed(SEGMENTERS)), ESTIMATORS
    ):
        found = one(
            "correlation", "token", segmenter=segmenter, estimator=estimator, advantage="td"
        )
        dot = dots[found["value"]]
        assert round(dot.get_ydata()[0]) == row
        looks.setdefault(estimator, set()).add((dot.get_marker(), dot.get_color()))
    assert [len(look) for look in looks.values()] == [1, 1]
    assert len(set.union(*looks.values())) == 2
    handles = figure.legends[0].get_lines()
    assert {handle.get_marker() for handle in handles} == {m for m, _ in set.union(*looks.values())}


def test_a_figure_without_scheme_has_one_panel_and_one_of_segmenters_alone_one_marker() -> None:
    (axes,) = audit_intervals(AUDIT, "explained_variance", "late").axes
    of = [{"segmenter": s, "estimator": e} for s, e in itertools.product(SEGMENTERS, ESTIMATORS)]
    assert_dots(axes, [one("explained_variance", "late", **each) for each in of])
    figure = audit_intervals(AUDIT, "boundary_ratio")
    (axes,) = figure.axes
    assert_dots(axes, [one("boundary_ratio", "end", segmenter=name) for name in SEGMENTERS])
    assert [line.get_xdata()[0] for line in artists(axes, "mark")] == [1]
    assert names(figure) == []


def test_gradients_are_over_batches_and_costs_have_no_intervals() -> None:
    assert "intervals over 8 batches" in note(audit_intervals(AUDIT, "cosine", "all"))
    figure = audit_intervals(AUDIT, "tokens")
    assert "No intervals" in note(figure)
    assert artists(figure.axes[0], "interval") == []
    assert len(artists(figure.axes[0], "dot")) == 6


def test_what_is_missing_leaves_a_gap() -> None:
    kept = AUDIT[~((AUDIT["segmenter"] == "newline") & (AUDIT["estimator"] == "critic"))].copy()
    unknown = (kept["segmenter"] == "entropy") & (kept["estimator"] == "critic")
    kept.loc[unknown, "value"] = math.nan
    figure = audit_intervals(kept, "correlation", "token")
    heights = [line.get_ydata()[0] for line in artists(figure.axes[0], "dot")]
    assert [round(y) for y in sorted(heights)] == [0, 0, 1, 2]
    assert row_names(figure.axes[0]) == LABELS


def test_an_endless_or_wide_interval_does_not_flatten_the_dots() -> None:
    wide = AUDIT.copy()
    rows_ = wide.index[(wide["metric"] == "correlation") & (wide["at"] == "token")]
    wide.loc[rows_[0], "high"] = math.inf
    wide.loc[rows_[1], "low"] = -1000.0
    figure = audit_intervals(wide, "correlation", "token")
    low, high = figure.axes[0].get_xlim()
    values = wide.loc[rows_, "value"]
    assert low < 0 < values.max() < high
    assert high - low < 3 * values.max()
    assert "where one reaches the frame, it goes on" in note(figure)
    ends = [x for line in artists(figure.axes[0], "interval") for x in line.get_xdata()]
    assert np.isfinite(ends).all()
    assert max(ends) > high
    assert "frame" not in note(audit_intervals(AUDIT, "mass_kept"))


def test_intervals_that_are_all_wide_are_shown_whole() -> None:
    wide = AUDIT.copy()
    wide[["low", "high"]] = np.stack([wide["value"] - 3, wide["value"] + 4], axis=1)
    figure = audit_intervals(wide, "correlation", "token")
    low, high = figure.axes[0].get_xlim()
    chosen = wide[(wide["metric"] == "correlation") & (wide["at"] == "token")]
    assert low < chosen["low"].min() < chosen["high"].max() < high
    assert "frame" not in note(figure)


@pytest.mark.parametrize(("count", "width", "across"), [(5, PAGE, 4), (5, COLUMN, 2), (2, PAGE, 2)])
def test_panels_go_on_in_another_row(count: int, width: float, across: int) -> None:
    schemes = [f"scheme_{number}" for number in range(count)]
    figure = audit_intervals(frame(rows(schemes=schemes)), width=width)
    assert [axes.get_title() for axes in figure.axes] == schemes
    assert len({axes.get_position().x0 for axes in figure.axes}) == across
    limits = {axes.get_xlim() for axes in figure.axes}
    assert len(limits) == 1
    # Every column's lowest panel has numbers and name.
    assert sum(bool(axes.get_xlabel()) for axes in figure.axes) == across
    assert_readable(figure)


def test_one_audit_of_several_is_chosen_by_name() -> None:
    other = frame([{**row, "value": row["value"] + 5} for row in rows()], "other")
    both = pd.concat([AUDIT.astype({"run": str}), other.astype({"run": str})])
    with pytest.raises(StudyError, match="holds 2 audits: audit, other; expected one"):
        audit_intervals(both)
    chosen = audit_intervals(both, run="other")
    assert min(line.get_xdata()[0] for line in artists(chosen.axes[0], "dot")) > 5
    with pytest.raises(StudyError, match="no audit 'othr'; did you mean 'other'"):
        movement_shares(both, run="othr")


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: audit_intervals(AUDIT[:0]), "has no rows; expected a row a metric"),
        (lambda: lift_curves(AUDIT[:0]), "has no rows"),
        (lambda: movement_shares(AUDIT[:0]), "has no rows"),
        (lambda: audit_intervals(AUDIT, "corelation"), "did you mean 'correlation'"),
        (lambda: audit_intervals(AUDIT, "correlation", "tokn"), "did you mean 'token'"),
        (lambda: audit_intervals(AUDIT, "mass_kept", "token"), "at no place in particular"),
        (lambda: audit_intervals(AUDIT, "lift_entropy"), "is of no segmenter"),
        (lambda: audit_intervals(AUDIT, width=0), "width of a figure is 0"),
        (lambda: movement_shares(AUDIT, fork="ends"), "did you mean 'end'"),
        (lambda: movement_shares(AUDIT[AUDIT["section"] == "credit"]), "where the value moves"),
        (lambda: lift_curves(AUDIT[AUDIT["section"] == "credit"]), "has no Lift"),
    ],
)
def test_bad_input_is_a_sentence(draw: Callable[[], Figure], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        draw()


def test_more_estimators_than_can_be_told_apart_are_refused() -> None:
    many = frame(rows(estimators=[f"e{number}" for number in range(15)], schemes=["td"]))
    with pytest.raises(StudyError, match="15 estimators; expected at most 14"):
        audit_intervals(many)


# Movement and Lift.


@pytest.mark.parametrize("fork", ["end", "start"])
def test_definitions_stand_beside_chance_and_the_oracle(fork: str) -> None:
    figure = movement_shares(AUDIT, fork=fork)
    boundaries, within = figure.axes
    on = ("share_on_boundaries", "random_share_on_boundaries", "oracle_share")
    assert_dots(boundaries, [one(name, fork, segmenter=s) for name in on for s in SEGMENTERS])
    inside = ("share_within", "random_share_within")
    assert_dots(within, [one(name, "", segmenter=s) for name in inside for s in SEGMENTERS])
    assert names(figure) == ["definition", "random cuts", "oracle"]
    assert row_names(boundaries) == LABELS
    by_value = {line.get_xdata()[0]: line.get_marker() for line in artists(boundaries, "dot")}
    markers = {by_value[one(on[1], fork, segmenter=s)["value"]] for s in SEGMENTERS}
    assert markers == {figure.legends[0].get_lines()[1].get_marker()}


def test_lift_is_a_line_an_audit_and_a_panel_a_signal() -> None:
    other = frame([{**row, "value": row["value"] + 1} for row in rows()], "other")
    shuffled = other.astype({"run": str}).sample(frac=1, random_state=0)
    figure = lift_curves(pd.concat([AUDIT.astype({"run": str}), shuffled]))
    assert [axes.get_xlabel().split()[-1] for axes in figure.axes] == ["entropy", "surprisal"]
    for axes, signal in zip(figure.axes, ("entropy", "surprisal"), strict=True):
        first, second = artists(axes, "lift")
        wanted = [one(f"lift_{signal}", f"{q:g}") for q in QUANTILES]
        assert list(first.get_xdata()) == list(QUANTILES)
        np.testing.assert_allclose(first.get_ydata(), [row["value"] for row in wanted])
        np.testing.assert_allclose(second.get_ydata(), [row["value"] + 1 for row in wanted])
        corners = artists(axes, "interval")[0].get_paths()[0].vertices
        for q, row in zip(QUANTILES, wanted, strict=True):
            heights = corners[corners[:, 0] == q, 1]
            assert (heights.min(), heights.max()) == pytest.approx((row["low"], row["high"]))
        assert artists(axes, "mark")[0].get_ydata()[0] == 1
    assert names(figure) == ["audit", "other"]
    assert names(lift_curves(AUDIT)) == []
    (axes,) = lift_curves(AUDIT, of_jumps=True).axes
    (line,) = artists(axes, "lift")
    assert line.get_ydata()[0] == one("lift_entropy_of_jumps", "0.5")["value"]


# One completion.

VALUES = np.array([[0.5, 0.4, 0.9, 0.8, 1.0], [0.5, 0.6, 0.7, 0.8, 1.0]])
ERRORS = np.array([[0.3, 0.2, 0.1, 0.0, 0.0], [0.4, 0.2, 0.1, 0.0, 0.0]])
IDS = {"newline": [0, 0, 1, 1], "per_token": [0, 1, 2, 3]}
CREDIT = {
    "newline": {"critic": [0.2, 0.2, 0.1, 0.1]},
    "per_token": {"critic": [0.1, 0.2, 0.3, 0.4], "zero": [0.0, 0.0, 0.0, 0.0]},
}


def completion(**changed: Any) -> Figure:
    given: dict[str, Any] = {
        "tokens": ["3", "\n", " x", ""],
        "values_HE": VALUES,
        "errors_HE": ERRORS,
        "segments": IDS,
        "credit": CREDIT,
    }
    return completion_credit(**given | changed)


def test_the_value_is_the_mean_of_the_halves_with_the_errors_of_that_mean() -> None:
    figure = completion(title="a $title$")
    axes = figure.axes[0]
    (line,) = artists(axes, "value")
    assert list(line.get_xdata()) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.5, 0.8, 0.8, 1.0])
    corners = artists(axes, "band")[0].get_paths()[0].vertices
    for place, error in enumerate([0.25, 0.08**0.5 / 2, 0.02**0.5 / 2, 0, 0]):
        heights = corners[corners[:, 0] == place, 1]
        middle = [0.5, 0.5, 0.8, 0.8, 1.0][place]
        assert heights.min() == pytest.approx(middle - 1.96 * error)
        assert heights.max() == pytest.approx(middle + 1.96 * error)
    assert figure.get_suptitle() == r"a \$title\$"


def test_every_segment_is_a_piece_of_its_strip_in_alternating_shades() -> None:
    axes = completion(segments={**IDS, "holes": [-1, 0, 0, -1]}, credit={}).axes[1]
    assert row_names(axes) == ["newline", "per_token", "holes"]
    wanted = [[(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)], [(1, 3)]]
    for row, (strip, pieces) in enumerate(zip(artists(axes, "segments"), wanted, strict=True)):
        boxes = [path.get_extents() for path in strip.get_paths()]
        assert [(box.x0, box.x1) for box in boxes] == pieces
        assert all(box.y0 < row < box.y1 for box in boxes)
        shades = [tuple(colour) for colour in strip.get_facecolors()]
        assert all(a != b for a, b in itertools.pairwise(shades))


def test_credit_stands_beside_the_true_advantages_on_one_scale() -> None:
    figure = completion()
    _, _, *panels = figure.axes
    assert [axes.get_title("left") for axes in panels] == list(CREDIT)
    for axes, given in zip(panels, CREDIT.values(), strict=True):
        (bars,) = artists(axes, "truth")
        np.testing.assert_allclose(bars.get_data().values, [0, 0.3, 0, 0.2], atol=1e-12)
        np.testing.assert_allclose(bars.get_data().edges, [0, 1, 2, 3, 4])
        lines = artists(axes, "credit")
        assert [list(line.get_ydata()[:-1]) for line in lines] == list(given.values())
        assert {line.get_drawstyle() for line in lines} == {"steps-post"}
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert names(figure) == ["critic", "zero"]
    looks = [(line.get_color(), line.get_linestyle()) for line in artists(panels[1], "credit")]
    assert looks[0][0] != looks[1][0]
    assert looks[0][1] != looks[1][1]
    assert artists(panels[0], "credit")[0].get_color() == looks[0][0]
    assert "all in reward units on one scale" in note(figure)


def test_normalised_credit_is_over_its_root_mean_square() -> None:
    figure = completion(normalised=True)
    line, zero = artists(figure.axes[3], "credit")
    given = np.array(CREDIT["per_token"]["critic"])
    np.testing.assert_allclose(line.get_ydata()[:-1], given / np.sqrt((given**2).mean()))
    assert not any(zero.get_ydata())
    (bars,) = artists(figure.axes[3], "truth")
    assert np.mean(bars.get_data().values ** 2) == pytest.approx(1)
    assert "each over its root mean square" in note(figure)


def test_tokens_stand_below_their_places() -> None:
    figure = completion()
    labels = figure.axes[-1].get_xticklabels()
    assert [text.get_text() for text in labels] == ["3", "↵", "x", ""]
    assert [text.get_position()[0] for text in labels] == [0.5, 1.5, 2.5, 3.5]
    assert "↵: newline" in note(figure)
    assert "is named" not in note(figure)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n", "↵"),
        (" the", "the"),
        ("  ", "␣␣"),
        (" " * 9, "␣␣␣"),
        (" \n", "↵"),
        ("\t", "⇥"),
        ("", ""),
        ("\x1b[0m", "�[0m"),
        ("internationalisation", "internation…"),
    ],
)
def test_tokens_are_shown_so_that_they_can_be_read(text: str, shown: str) -> None:
    assert shown_token(text) == shown


@pytest.mark.parametrize(("count", "width", "every"), [(60, PAGE, 1), (60, COLUMN, 3)])
def test_sixty_tokens_are_read_on_a_page(count: int, width: float, every: int) -> None:
    figure = long_completion(count, width)
    labels = figure.axes[-1].get_xticklabels()
    assert [text.get_position()[0] - 0.5 for text in labels] == list(range(0, count, every))
    boxes = [text.get_window_extent() for text in labels]
    # Boxes are a sixth higher than what is printed of them.
    assert all(b.x0 - a.x0 >= (a.x1 - a.x0) / 1.2 for a, b in itertools.pairwise(boxes))
    assert ("one token in 3 is named" in note(figure)) == (every == 3)
    assert_readable(figure)


def long_completion(count: int, width: float = PAGE) -> Figure:
    rng = np.random.default_rng(0)
    segmenters = ["entropy", "newline", "random(fraction=0.2)"]
    return completion_credit(
        [f" word{number}" for number in range(count)],
        0.5 + rng.normal(0, 0.1, (2, count + 1)).cumsum(1),
        np.full((2, count + 1), 0.05),
        {name: np.arange(count) // (5 + number) for number, name in enumerate(segmenters)},
        {name: {e: rng.normal(size=count) for e in ESTIMATORS} for name in segmenters},
        title="A title that is rather long, of a prompt that is as well, and its reward: 1",
        width=width,
    )


def test_a_long_completion_is_drawn_whole_with_some_of_its_tokens() -> None:
    figure = long_completion(1500)
    assert len(artists(figure.axes[0], "value")[0].get_xdata()) == 1501
    assert 20 < len(figure.axes[-1].get_xticklabels()) < 70
    assert "is named" in note(figure)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tokens": []}, "has no tokens"),
        ({"values_HE": VALUES[:, :4]}, r"values have shape \(2, 4\); expected \(splits, 5\)"),
        ({"errors_HE": ERRORS[0]}, r"errors have shape \(5,\)"),
        ({"values_HE": VALUES[:0]}, r"values have shape \(0, 5\)"),
        ({"segments": {"whole": [0, 0]}, "credit": {}}, r"whole has shape \(2,\); expected \(4,\)"),
        ({"credit": {"newline": {"zero": [0.0]}}}, r"newline, zero has shape \(1,\)"),
        ({"credit": {"newlin": {}}}, "did you mean 'newline'"),
        (
            {"credit": {"newline": {str(n): [0.0] * 4 for n in range(29)}}},
            "29 credits; expected at most 28",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        completion(**changed)


def test_one_token_without_segments_or_credit_is_drawn() -> None:
    figure = completion_credit(["x"], [[0.5, 1.0]], [[np.nan, 0.0]], {}, {})
    assert len(figure.axes) == 1
    assert list(artists(figure.axes[0], "value")[0].get_ydata()) == [0.5, 1.0]
    assert "bars" not in note(figure)


def test_text_is_text_where_that_is_asked_for(tmp_path: Any) -> None:
    figure = completion(title="<b> & $x$", tokens=["<", "&", "$5$", "]]>"])
    for svg in (
        as_svg(figure, outlines=False),
        save(figure, tmp_path / "figure.svg", outlines=False).read_text(),
    ):
        root = ElementTree.fromstring(svg)
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"<b> & $x$", "<", "&", "$5$", "]]>"} <= set(texts)
    assert "<text" not in as_svg(figure)
    assert as_svg(figure, outlines=False) == as_svg(
        completion(title="<b> & $x$", tokens=["<", "&", "$5$", "]]>"]), outlines=False
    )


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("draw", [audit_intervals, movement_shares, lift_curves])
def test_nothing_covers_anything(draw: Callable[..., Figure], width: float) -> None:
    long = {f"segmenter_{n}(inner=newline, tokens={n})": n % 2 == 0 for n in range(8)}
    estimators = [f"estimator_with_a_name_{n}" for n in range(6)]
    figure = draw(frame(rows(long, estimators)), width=width)
    assert figure.get_figwidth() == width
    assert_readable(figure)


def test_names_with_options_break_before_them_and_inside_no_number() -> None:
    assert wrapped("random(fraction=0.25)", 16) == "random(\nfraction=0.25)"
    assert wrapped("completion length (tokens)", 17) == "completion length\n(tokens)"

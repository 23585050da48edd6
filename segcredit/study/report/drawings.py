"""The sections of a report that are figures; one that cannot be drawn is a sentence."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from segcredit.errors import SegcreditError
from segcredit.records.tables import Runs
from segcredit.study.plots import (
    as_svg,
    comparison,
    heat_map,
    learning_curves,
    segment_shapes,
    stability,
    value_consistency,
)
from segcredit.study.plots.style import COLUMN, PAGE, label
from segcredit.study.report.grouping import heat_map_axes
from segcredit.study.report.view import Block, Drawing, Image, Note, Section

_BOTH = {"wide": PAGE, "narrow": COLUMN}
_PIXELS = 96
"""CSS pixels an inch."""
_MOST_POINTS = 20_000
"""Most points of thin lines in one figure; as vectors, half a megabyte."""

Draw = Callable[[float], Figure]
"""Makes a figure, given its width in inches."""


def curves_section(runs: Runs, by: Sequence[str], metric: str) -> Section:
    """Draws the metric over steps, and over what was spent."""
    name = label(metric)
    blocks = [
        drawn(
            "curves",
            lambda width: learning_curves(runs, metric=metric, by=by, width=width),
            f"The {name} over policy steps, a panel a group. To compare groups read the"
            " comparisons: these are paired by seed, which the bands are not.",
        ),
        drawn(
            "curves-tokens",
            lambda width: learning_curves(
                runs, metric=metric, by=by, per="tokens_sampled", width=width
            ),
            f"The {name} over the tokens sampled, simulations and a critic's warm-up among them.",
        ),
    ]
    return Section("curves", "Learning curves", blocks)


def comparison_drawing(runs: Runs, by: Sequence[str], metric: str) -> Block:
    """Draws where groups end, sorted, and their differences from the highest."""
    return drawn(
        "comparison",
        lambda width: comparison(runs, metric=metric, by=by, width=width),
        f"The last recorded {label(metric)}, and differences from the highest over shared seeds."
        " Intervals are of one pair alone; filled dots are corrected for all pairs.",
    )


def heat_map_section(runs: Runs, by: Sequence[str], metric: str) -> Section:
    """Draws the metric for every pair of two settings, where two were crossed."""
    axes = heat_map_axes(runs, by)
    if axes is None:
        said = (
            "No two settings were crossed (each value of the one with several of the other), so"
            " there is no map to draw."
        )
        return Section("heat-map", "Heat map", [Note(said)])
    rows, columns = axes
    drawing = drawn(
        "heat-map",
        lambda width: heat_map(runs, rows=rows, columns=columns, metric=metric, width=width),
        f"The last recorded {label(metric)} by {rows} and {columns}. Compare intervals, not"
        " shades.",
        {"": COLUMN},
    )
    return Section("heat-map", "Heat map", [drawing])


def training_sections(runs: Runs, by: Sequence[str]) -> Iterator[Section]:
    """Yields the sections on stability, value consistency and segment shapes."""
    yield _section(
        "stability",
        "Stability",
        lambda width: stability(runs, by=by, width=width),
        "What tells of collapse (entropy towards 0), drift (KL) and explosion (gradient norm) while"
        " training.",
    )
    yield _section(
        "values",
        "Value consistency",
        lambda width: value_consistency(runs, by=by, width=width),
        "How well learned values fit their returns. Losses of different segmenters are means over"
        " different states, so that a lower line is not yet a better critic.",
    )
    yield _section(
        "segments",
        "Segment shapes",
        lambda width: segment_shapes(runs, by=by, width=width),
        "How many segments a completion has, and how long they are.",
    )


def _section(name: str, title: str, draw: Draw, caption: str) -> Section:
    return Section(name, title, [drawn(name, draw, caption)])


def drawn(
    name: str,
    draw: Draw,
    caption: str,
    widths: dict[str, float] = _BOTH,
    *,
    outlines: bool = True,
) -> Block:
    """Draws a figure in each width; the sentence that says why, where there is nothing to draw.

    Args:
        name: what the figure's ids begin with.
        draw: the figure of a width.
        caption: below it.
        widths: in inches, by kind of ``Image``.
        outlines: as in ``as_svg``.
    """
    try:
        images = [
            _image(draw(width), kind, f"{name}-{kind}", outlines=outlines)
            for kind, width in widths.items()
        ]
    except SegcreditError as error:
        return Note(str(error))
    return Drawing(images, caption)


def _image(figure: Figure, kind: str, prefix: str, *, outlines: bool) -> Image:
    _lighten(figure)
    # The one place where markup is trusted: matplotlib escapes the names that it draws.
    svg = Markup(as_svg(figure, prefix=prefix, outlines=outlines))
    return Image(svg, float(figure.get_size_inches()[0]) * _PIXELS, kind)


def _lighten(figure: Figure) -> None:
    """Makes thin lines an image where they are many: a page is to stay small."""
    lines: list[Any] = [line for axes in figure.axes for line in axes.lines]
    single = [line for line in lines if line.get_label() in ("_seed", "_failed", "_other")]
    if sum(len(line.get_xydata()) for line in single) > _MOST_POINTS:
        for line in single:
            line.set_rasterized(True)

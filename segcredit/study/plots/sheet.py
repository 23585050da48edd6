"""The paper a figure is drawn on: its size, its legend and its note."""

# matplotlib types little of what is used here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import BboxBase

from segcredit.errors import StudyError
from segcredit.study.plots.groups import Group
from segcredit.study.plots.style import NOTE_SIZE, look, wrapped

Style = Callable[[int], dict[str, Any]]
"""Line and marker of the group of a number, as ``look`` gives them."""

_NAME_WIDTH = 26
"""Characters in a line of a legend's names."""
_LETTERS_PER_INCH = 19
"""Characters of the note per inch, in the widest of the usual fonts."""
_MOST_COLUMNS = 5
_BESIDE_FROM = 5.0
"""Width in inches from which the legend stands beside the axes, not below."""


def new_sheet(width: float, height: float, title: str) -> Figure:
    """Makes an empty figure of a size in inches; ``title`` is for those who do not see it.

    Raises:
        StudyError: the width is below an inch, or no number.
    """
    if not width >= 1:
        raise StudyError(
            f"The width of a figure is {width}; expected at least 1 (inch). Usually it was given"
            " in another unit: a column is 3.3 and a page 6.75 inches wide."
        )
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(title)
    return figure


def new_axes(figure: Figure, rows: int = 1, columns: int = 1, **grid: Any) -> list[Axes]:
    """Adds axes for ``rows`` x ``columns`` panels, row by row.

    Args:
        figure: as ``new_sheet`` makes it.
        rows: of panels.
        columns: of panels.
        grid: what else matplotlib's ``Figure.subplots`` takes, such as ``sharex``.
    """
    made = figure.subplots(rows, columns, squeeze=False, **grid)
    axes = list(made.flat)
    for one in axes:
        # Set on the axes: matplotlib makes ticks late, when the style is no longer in force.
        one.tick_params(which="both", labelsize=7, width=0.6)
        one.tick_params(which="major", length=2.5)
        one.tick_params(which="minor", length=1.5)
    return axes


def finish(
    figure: Figure,
    note: str,
    legend: Sequence[tuple[Group, str]] = (),
    by: str = "",
    *,
    beside: bool | None = None,
    style: Style = look,
) -> None:
    """Adds legend and note, makes room for them, and fixes the layout.

    Args:
        figure: with everything else drawn.
        note: what the figure shows, in a sentence below it.
        legend: the groups that are drawn, and what is said of each after its name.
        by: the legend's title.
        beside: whether the legend is beside the axes; by default where the figure is wide.
        style: how a group of a number is drawn.
    """
    width, height = map(float, figure.get_size_inches())
    lines = wrapped(note, int(width * _LETTERS_PER_INCH))
    below, right = (lines.count("\n") + 1) * NOTE_SIZE * 1.25 / 72 + 0.06, 0.0
    small: Any = {"size": NOTE_SIZE, "color": "0.3", "va": "bottom", "label": "_note"}
    figure.text(0.04, 0.03, lines, transform=figure.dpi_scale_trans, **small)
    if legend:
        beside = width >= _BESIDE_FROM if beside is None else beside
        box = _add_legend(figure, legend, by, style, beside=beside)
        needed = [side / figure.dpi + 0.06 for side in (box.width, box.height)]
        if beside:
            right, height = needed[0], max(height, needed[1])
        else:
            below += needed[1]
    height += below
    figure.set_size_inches(width, height)
    _place(figure, right / width, below / height, (below - 0.03) / height)


def _place(figure: Figure, right: float, below: float, legend_top: float) -> None:
    """Lays the axes out above and beside what takes those shares of the figure, then fixes all."""
    anchor = (1.0, 1.0) if right else (0.0, legend_top)
    for one in figure.legends:
        one.set_bbox_to_anchor(anchor)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, below, 1 - right, 1 - below))
    # Once and for all, so that every format and every time the layout is the same.
    engine.execute(figure)
    figure.set_layout_engine("none")


def nothing(axes: Axes, text: str) -> None:
    """Draws an empty panel that says why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set(xticks=[], yticks=[])


def _add_legend(
    figure: Figure, entries: Sequence[tuple[Group, str]], by: str, style: Style, *, beside: bool
) -> BboxBase:
    """Adds a legend, of as many columns as fit or beside the axes; returns its box in pixels."""
    handles = [Line2D([], [], **style(group.number)) for group, _ in entries]
    names = [wrapped(f"{group.name}{more}", _NAME_WIDTH) for group, more in entries]
    make = partial(
        figure.legend,
        handles,
        names,
        title=wrapped(by, _NAME_WIDTH),
        loc="upper right" if beside else "upper left",
        alignment="left",
        handlelength=3.2,  # long enough for a whole period of the longest dashes
        columnspacing=1.2,
        labelspacing=0.35,
        borderaxespad=0.2,
    )
    columns = 1 if beside else min(len(entries), _MOST_COLUMNS)
    legend = make(ncols=columns)
    while columns > 1 and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        columns -= 1
        legend = make(ncols=columns)
    return legend.get_window_extent()

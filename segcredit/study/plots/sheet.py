"""The paper a figure is drawn on: its panels, title, legend and note."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

from segcredit.errors import StudyError
from segcredit.study.plots.style import STYLE, letters, look, styled, wrapped

Canvas = Figure | SubFigure
"""A taker of several panels: a figure, or a part of one."""

_BESIDE_FROM = 5.0
"""Width in inches from which the legend may stand beside the panels, not below."""
_GAP = 0.06
"""Inches between panels, legend, note and the edge."""


class Shown(Figure):
    """A figure that a notebook shows as a cell's last value, also where pyplot is not loaded."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=130)
        return buffer.getvalue()


@dataclass(slots=True)
class Sheet:
    """A figure of our own, or what the caller gave to draw into."""

    canvas: Canvas
    axes: Axes | None
    """The caller's only panel."""
    is_own: bool
    """True where size and layout are this module's to set."""

    @property
    def figure(self) -> Figure:
        """The whole figure."""
        root: Any = self.canvas.get_figure(root=True)
        return root

    def panels(self, count: int = 1, across: int = 1, **grid: Any) -> list[Axes]:
        """Adds so many panels, row by row; ``grid`` is what else ``Figure.subplots`` takes."""
        if self.axes is not None:
            return [self.axes]
        made = self.canvas.subplots(-(-count // across), across, squeeze=False, **grid)
        every: list[Axes] = list(made.flat)
        for axes in every[count:]:
            axes.remove()
        size = matplotlib.rcParams["xtick.labelsize"]
        for number, axes in enumerate(every[:count]):
            # Set on the axes: matplotlib makes ticks late, when the style is no longer in force.
            axes.tick_params(which="both", labelsize=size, width=0.6, length=1.5)
            axes.tick_params(which="major", length=2.5)
            if number + across >= count:
                axes.tick_params(labelbottom=True)
        return every[:count]

    def finish(
        self,
        title: str,
        note: str,
        names: Mapping[int, str] | None = None,
        by: str = "",
        *,
        beside: bool = True,
        style: Callable[[int], dict[str, Any]] = look,
    ) -> None:
        """Adds title, legend and note, makes room for them, and fixes the layout.

        Of the caller's axes the title and the legend are those of the axes, and no note is added;
        of the caller's figure the layout stays theirs, and "constrained" makes the room. ``names``
        are those in the legend by number of the group, ``by`` is its title; it may stand beside
        the panels or only below. ``style`` says how a group of a number is drawn.
        """
        inches = (self.axes or self.canvas).bbox.width / self.figure.dpi
        handles = [Line2D([], [], **style(number)) for number in names or {}]
        shown = [wrapped(name, 26) for name in (names or {}).values()]
        # The handle is long enough for a whole period of the longest dashes.
        how: Any = {"title": wrapped(by, 26), "alignment": "left", "handlelength": 3.2}
        how |= {"labels": shown, "handles": handles, "labelspacing": 0.35, "borderaxespad": 0.2}
        if self.axes is not None:
            self.axes.set_title(wrapped(title, letters(inches)), loc="left")
            if handles:
                self.axes.legend(**how)
            return
        # With a height of its own the layout makes no room for it: ``_fit`` does.
        place: Any = {"x": 0.04 / inches, "y": 1.0 if self.is_own else None, "ha": "left"}
        above = self.canvas.suptitle(title, va="top", **place)
        _wrap(above, title, inches)
        small: Any = {"x": 0.04 / inches, "ha": "left", "size": "small", "color": "0.3"}
        if self.is_own:
            below = self.figure.text(y=0.0, s=note, va="bottom", label="_note", **small)
            _wrap(below, note, inches)
            self._fit(above, below, how, beside=beside and inches >= _BESIDE_FROM)
            return
        _wrap(self.canvas.supxlabel(note, **small), note, inches)
        if handles:
            self.canvas.legend(loc="outside right upper", **how)

    def _fit(self, title: Text, note: Text, how: dict[str, Any], *, beside: bool) -> None:
        """Adds the legend, makes the figure as high as all needs, and fixes the layout."""
        figure = self.figure
        width, height = map(float, figure.get_size_inches())
        top = _inches(title).height + _GAP if title.get_text() else 0.0
        bottom, right = _inches(note).height + _GAP, 0.0
        if how["handles"]:
            legend = self._legend(how, 1 if beside else min(5, len(how["handles"])))
            box = _inches(legend)
            if beside:
                right, height = box.width + _GAP, max(height, box.height)
            else:
                bottom += box.height + _GAP
            whole = height + top + bottom
            anchor = (1.0, 1 - top / whole) if beside else (0.0, bottom / whole)
            legend.set(loc="upper right" if beside else "upper left")
            legend.set_bbox_to_anchor(anchor)
        height += top + bottom
        figure.set_size_inches(width, height)
        title.set_y(1 - 0.03 / height)
        note.set_y(0.03 / height)
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, bottom / height, 1 - right / width, 1 - (top + bottom) / height))
        # Once and for all, so that every format and every time the layout is the same.
        engine.execute(figure)
        figure.set_layout_engine("none")

    def _legend(self, how: dict[str, Any], columns: int) -> Legend:
        """Adds a legend of at most so many columns, as many as fit."""
        legend = self.figure.legend(ncols=columns, columnspacing=1.2, **how)
        if columns > 1 and _inches(legend).width > self.figure.get_figwidth():
            legend.remove()
            return self._legend(how, columns - 1)
        return legend


@contextmanager
def sheet(
    width: float,
    height: float,
    label: str,
    *,
    figure: Canvas | None = None,
    ax: Axes | None = None,
) -> Generator[Sheet]:
    """Yields a sheet to draw on, of our own or the caller's, while the figures' style is in force.

    Width and height are of the panels of a figure of our own, in inches; title, legend and note
    come on top. ``label`` names the figure to those who do not see it.

    Raises:
        StudyError: the width is below an inch, or no number.
    """
    if not width >= 1:
        raise StudyError(
            f"The width of a figure is {width}; expected at least 1 (inch). Usually it was given"
            " in another unit: a column is 3.3 and a page 6.75 inches wide."
        )
    with matplotlib.rc_context(styled()):
        given = ax.figure if ax is not None else figure
        if given is None:
            height *= max(1.0, matplotlib.rcParams["font.size"] / STYLE["font.size"])
            own = Shown(figsize=(width, height), layout="constrained")
            own.set_label(label)
            yield Sheet(own, None, True)
        else:
            yield Sheet(given, ax, False)


def room(width: float, figure: Canvas | None) -> float:
    """Returns the width to draw in, in inches: of the caller's figure, where there is one."""
    return width if figure is None else figure.bbox.width / figure.get_figure(root=True).dpi


def nothing(axes: Axes, text: str) -> None:
    """Draws an empty panel that says why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set(xticks=[], yticks=[])


def _wrap(text: Text, words: str, inches: float) -> None:
    """Breaks a text into as few lines as a width takes."""
    count = letters(inches, 0.75)
    text.set_text(wrapped(words, count))
    while count > 10 and _inches(text).width > inches - 0.1:
        count -= 2
        text.set_text(wrapped(words, count))


def _inches(artist: Any) -> Any:
    """Returns the box of an artist in inches."""
    box = artist.get_window_extent()
    return box.transformed(artist.get_figure(root=True).dpi_scale_trans.inverted())

"""Rollouts, segmentations and runs, shown where the user is: a notebook or a terminal."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast, overload

import rich
from rich.console import Group
from rich.rule import Rule
from rich.text import Text

from segcredit.errors import StudyError
from segcredit.protocols import Policy
from segcredit.records.tables import Runs
from segcredit.segmentation import Segmentation
from segcredit.showable import Showable
from segcredit.study.look import browser, terminal
from segcredit.study.look.completions import Completion
from segcredit.study.look.recorded import MOST, of_runs
from segcredit.study.look.rollouts import Credit, Values, of_rollouts, of_segmentations
from segcredit.types import RolloutBatch

T = TypeVar("T")

FEW = 4
"""Completions that a terminal shows where nobody asked for more."""
OF_A_REPR = 256
"""Completions that a notebook shows of what is merely the last line of a cell."""
_ONLY = "segmentation"
"""Name of the one segmentation that is given without any."""


@overload
def show(
    what: RolloutBatch | Segmentation,
    segmentation: Segmentation | Mapping[str, Segmentation] | None = None,
    credit: Credit | Mapping[str, Credit] | None = None,
    *,
    values: Values | Mapping[str, Values] | None = None,
    policy: Policy | None = None,
    rows: Sequence[int] | None = None,
) -> None: ...
@overload
def show(
    what: Runs, segmentation: Sequence[str] = (), *, rows: Sequence[int] | None = None
) -> None: ...
def show(
    what: RolloutBatch | Segmentation | Runs,
    segmentation: Any = None,
    credit: Any = None,
    *,
    values: Any = None,
    policy: Policy | None = None,
    rows: Sequence[int] | None = None,
) -> None:
    """Shows completions with their segments, credit and values, in a notebook or a terminal.

    Args:
        what: rollouts; a segmentation alone, whose tokens are then dots; or runs, of which what
            the first run of each group recorded is shown.
        segmentation: of these rollouts; several by name are shown one under the other. Of runs:
            the segmenters of text alone that cut the texts besides, as names or TOML tables.
        credit: (B,T) of tokens, or (B,S) of the segments; or ``Advantages``. By name, as the
            segmentations, or one for all of them.
        values: (B,T) of the states before tokens, or (B,S) at the segments' anchors; or
            ``SegmentValues``. By default what the rollouts hold as ``token_values``.
        policy: decodes the prompts; without it they are known by their keys.
        rows: which completions; by default 10,000 at most in a notebook, and 4 in a terminal.

    Raises:
        ShapeError: something is not of this batch.
        StudyError: ``what`` is something else, a row does not exist, or a name of ``credit`` or
            ``values`` is no segmentation's.
    """
    out = rich.get_console()
    most = MOST if out.is_jupyter else FEW
    found, lead = _completions(what, segmentation, credit, values, policy, rows, most)
    if out.is_jupyter:
        ipython: Any = importlib.import_module("IPython.display")
        ipython.display(ipython.HTML(browser.page_part(found, lead)))
    else:
        out.print(_in_terminal(found, lead))


def notebook(what: Showable) -> str:
    """Returns what a notebook shows of rollouts, a segmentation or runs, as HTML."""
    found, lead = _completions(what, None, None, None, None, None, OF_A_REPR)
    return browser.page_part(found, lead)


def terminal_view(what: Showable) -> Group:
    """Returns what ``rich`` prints of rollouts, a segmentation or runs."""
    return _in_terminal(*_completions(what, None, None, None, None, None, FEW))


def _completions(
    what: object,
    segmentation: Any,
    credit: Any,
    values: Any,
    policy: Policy | None,
    rows: Sequence[int] | None,
    most: int,
) -> tuple[list[Completion], str]:
    """Returns completions, and the sentence above them."""
    if isinstance(what, Runs):
        found = of_runs(what, segmenters=segmentation or (), most=most if rows is None else MOST)
        every = list(found.completions)
        shown = every if rows is None else [every[row] for row in _known(rows, len(every))]
        return shown, _said_of_runs(what, len(shown), found.recorded)
    if isinstance(what, Segmentation):
        cuts, count = {_ONLY: what} | _named(segmentation, [_ONLY]), len(what.counts)
    elif isinstance(what, RolloutBatch):
        cuts, count = _named(segmentation, [_ONLY]), len(what)
    else:
        raise StudyError(
            f"There is nothing to show of {type(what).__name__}; expected a RolloutBatch, a"
            " Segmentation, or the runs that segcredit.read_runs gives."
        )
    places = range(min(count, most)) if rows is None else _known(rows, count)
    named: tuple[Any, Any] = (_by_cut(credit, cuts, "credit"), _by_cut(values, cuts, "values"))
    if isinstance(what, Segmentation):
        return list(of_segmentations(cuts, *named, places)), _said(len(places), count)
    prompts = () if policy is None else policy.decode(what.prompt_ids, what.prompt_mask)[0]
    shown = list(of_rollouts(what, cuts, *named, places, prompts=prompts))
    return shown, _said(len(places), count)


def _named(given: T | Mapping[str, T] | None, names: Iterable[str]) -> dict[str, T]:
    """Returns what is given by name; one that has none is of every name."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(cast("Mapping[str, T]", given))
    return dict.fromkeys(names, given)


def _by_cut(given: Any, cuts: Mapping[str, Segmentation], what: str) -> dict[str, Any]:
    # Without a segmentation there is one piece a token, under no name.
    found = _named(given, cuts or [""])
    unknown = [name for name in found if name not in (cuts or [""])]
    if unknown:
        raise StudyError(
            f"The {what} of {unknown[0]!r} cannot be shown: there is no such segmentation. Expected"
            f" names among {', '.join(map(repr, cuts))}."
        )
    return found


def _known(rows: Sequence[int], count: int) -> list[int]:
    wrong = [row for row in rows if not 0 <= row < count]
    if wrong:
        raise StudyError(
            f"There is no completion {wrong[0]}; expected rows from 0 to {count - 1:,}, since there"
            f" are {count:,}."
        )
    return [int(row) for row in rows]


def _said(shown: int, count: int) -> str:
    return f"{shown:,} of {count:,} completions; rows=... chooses others." if shown < count else ""


def _said_of_runs(runs: Runs, shown: int, count: int) -> str:
    said = f"{runs!r}."
    if not count:
        return f"{said} None recorded completions: set record.completions to see some here."
    return f"{said} {_said(shown, count)}".rstrip()


def _in_terminal(completions: Sequence[Completion], lead: str) -> Group:
    parts: list[Any] = [Text(lead)] if lead else []
    for number, one in enumerate(completions):
        parts += [Rule(style="dim")] * (number > 0) + [terminal.drawn(one)]
    return Group(*parts)

"""The looks of rollouts, segmentations and runs in a notebook and under ``rich``: completions."""

from __future__ import annotations

import importlib
from typing import Any


class Showable:
    """Shown by ``segcredit.study.look``, which is loaded when something is to be drawn.

    By name, since data knows nothing of what draws it, and nobody waits for that before.
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        return _look().notebook(self)

    def __rich__(self) -> object:
        return _look().terminal_view(self)


def _look() -> Any:
    return importlib.import_module("segcredit.study.look.show")

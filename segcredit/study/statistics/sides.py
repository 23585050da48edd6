"""Two sides of a comparison as they are typed: runs, folders of runs, or settings."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from segcredit.errors import StudyError
from segcredit.records.tables import (
    Runs,
    comparable,
    named_path,
    read_runs,
    require_known,
    setting_text,
)

_AS_TOML = {"true": "True", "false": "False"}


def two_sides(a: str, b: str, folder: Path | str = "runs") -> tuple[Runs, dict[str, list[str]]]:
    """Finds the runs of both sides.

    Args:
        a: a run, a folder of runs, or the beginning of a run's name (``named_path``); or settings
            that runs share, as the cells of a grid are labelled: "method=sapo segmenter=newline".
        b: likewise.
        folder: where runs with such settings are looked for.

    Returns:
        All runs, and the names of those of each side by the side as it was typed, for
        ``statistics.compare``.

    Raises:
        StudyError: a name, key or value is unknown, or a run is on both sides.
    """
    found = {side: _directories(side, folder) for side in (a, b)}
    shared = set(found[a]) & set(found[b])
    if shared:
        raise StudyError(
            f"{min(shared)} is on both sides, {a} and {b}; expected two sides that have no run in"
            " common. Name them more narrowly, such as by another setting."
        )
    path = Path(os.path.commonpath([*found[a], *found[b]]))
    names = {side: [at.relative_to(path).as_posix() for at in found[side]] for side in found}
    return Runs(path, chain(*found.values())).whole(), names


def differing_settings(runs: Runs, sides: dict[str, list[str]]) -> pd.DataFrame:
    """Returns the config keys of which the sides have other values.

    Returns:
        A row a key: ``key``, ``a`` and ``b``, the values of the first and of the second side,
        joined by commas; "none" where a side has no such option.
    """
    config: Any = comparable(runs.runs)
    name: Any = runs.runs["run"].astype(str)
    parts = [config[name.isin(members)] for members in sides.values()]
    values = {key: [sorted(set(part[key])) for part in parts] for key in config}
    rows = [[key, *map(", ".join, found)] for key, found in values.items() if found[0] != found[1]]
    return pd.DataFrame(rows, columns=["key", "a", "b"])


def _directories(side: str, folder: Path | str) -> list[Path]:
    """Returns the absolute directories of one side's runs."""
    if "=" in side and not os.path.exists(side):
        runs = read_runs(named_path(folder))
        found = _with_settings(runs, side)
    else:
        found = list(read_runs(named_path(side)).directories.values())
    return [path.absolute() for path in found]


def _with_settings(runs: Runs, side: str) -> list[Path]:
    """Returns the runs that have all of some settings."""
    table: Any = runs.runs
    kept: Any = pd.Series(True, table.index)
    for word in side.split():
        key, _, value = word.partition("=")
        require_known("config column", [key], table.columns)
        texts = pd.Series([setting_text(one) for one in table[key]], table.index)
        value = _AS_TOML.get(value, value)
        require_known(f"value of {key}", [value], sorted(set(texts)))
        kept &= texts == value
    chosen = [runs.directories[str(run)] for run in table["run"][kept]]
    if not chosen:
        raise StudyError(
            f"no run in {runs.path} has all of {side}; expected at least one. Usually two settings"
            " were never run together: leave one of them out."
        )
    return chosen

"""A row a run: its config in typed columns, how it stands, and what stopped it."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from segcredit.errors import RecordError
from segcredit.records.manifest import STATUS
from segcredit.records.run_directory import STATES, read_ending
from segcredit.records.stored_config import CONFIG, read_config
from segcredit.records.tables.consistent_read import settled
from segcredit.records.tables.find_runs import is_run

_LARGEST = 2**63 - 1


def settings_row(directory: Path) -> dict[str, Any] | None:
    """Returns the config, ``status`` and ``error`` of one run; None where it is no longer there."""
    try:
        return settled(directory, lambda: [directory / CONFIG, directory / STATUS], _read)
    except RecordError as error:
        if directory.is_dir() and is_run(directory, os.listdir(directory)):
            return {"status": "damaged", "error": str(error)}
        return None  # removed, or being made anew


def settings_frame(rows: Sequence[Mapping[str, Any]], run: pd.Categorical) -> pd.DataFrame:
    """Returns the rows of ``settings_row`` as a typed table.

    Args:
        rows: one a run.
        run: the names of the runs.
    """
    ends = ("status", "error")
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in ends]
    # "damaged" is a run whose config or status cannot be read.
    categories = [*STATES, "damaged"]
    columns = {
        "run": run,
        **{name: typed([row.get(name) for row in rows]) for name in names},
        "status": pd.Categorical([row["status"] for row in rows], categories=categories),
        "error": pd.array([row["error"] for row in rows], dtype="str"),
    }
    return pd.DataFrame(columns)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config into columns with dotted names.

    A plug-in's table (one with a ``name``) becomes its name at the table's own key, and its
    options below it: ``{name = "entropy", top_fraction = 0.3}`` at ``segmenter`` gives
    ``segmenter = "entropy"`` and ``segmenter.top_fraction = 0.3``. Lists become JSON text, so that
    every cell can be grouped by.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):  # not Mapping, which takes as long to ask as all the rest
            table = dict(cast("dict[str, Any]", value))
            if "name" in table:
                flat[dotted] = table.pop("name")
            flat.update(flatten(table, f"{dotted}."))
        else:
            flat[dotted] = json.dumps(value, default=str) if isinstance(value, list) else value
    return flat


def typed(values: Sequence[Any]) -> Any:
    """Returns one config key of all runs as a column that can hold what is missing (None).

    Booleans are ``boolean``, whole numbers ``Int64``, other numbers ``float64``; everything else,
    mixtures included, is a ``category`` of text.
    """
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    if kinds == {int} and all(abs(value) <= _LARGEST for value in values if value is not None):
        return pd.array(values, dtype="Int64")
    if float in kinds and kinds <= {int, float}:
        return pd.array(values, dtype="float64")
    return pd.Categorical([None if value is None else str(value) for value in values])


def _read(files: Sequence[Path]) -> dict[str, Any]:
    directory = files[0].parent
    state = read_ending(directory)
    stopped = (state.get(key) for key in ("error_type", "message"))
    error = ": ".join(str(part) for part in stopped if part)
    return {**flatten(read_config(directory)), "status": str(state["status"]), "error": error}

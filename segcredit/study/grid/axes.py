"""Meaning of the ``[grid]`` table: axes, cases, zipped axes, seeds and exclusions.

    [grid]
    seeds = 5                                          # seed = [0, 1, 2, 3, 4]
    segmenter = ["newline", { name = "random", fraction = 0.2 }]
    "segmenter.top_fraction" = [0.1, 0.3]              # dotted keys are quoted

    [[grid.zip]]                                       # lists of one length go together
    "train.learning_rate" = [1e-3, 3e-4]
    "train.epochs" = [1, 2]

    [[grid.case]]                                      # keys set together
    method = "sapo"
    segmenter = "entropy"

    [[grid.exclude]]                                   # cells left out: all keys of a rule fit
    segmenter = "whole"
    "loss.ratio" = ["segment"]

Cases, zips and lists are crossed with one another; rules are held against the cell's whole config.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from segcredit.config import STUDIES
from segcredit.errors import ConfigError, shown

Settings = dict[str, Any]
"""The keys that one cell sets, dotted, with their values."""

_TABLES = ("case", "zip", "exclude")
_MOST = 10_000
"""Cells of a grid, and values of a list: each cell is checked before one runs."""


def combinations(grid: Mapping[str, Any]) -> Iterator[Settings]:
    """Yields the settings of every cell, cases first, the last list varying fastest.

    Raises:
        ConfigError: the table is malformed; names the key.
    """
    lists = _lists(grid)
    cases: list[Settings] = _tables(grid, "case") or [{}]
    zips = [_together(table) for table in _tables(grid, "zip")]
    axes = [[{key: value} for value in values] for key, values in lists.items()]
    varied = [*lists, *(key for options in zips for key in options[0])]
    _require_once(varied, cases)
    for key in (*varied, *(key for case in cases for key in case)):
        _require_run_key(key)
    _require_few(math.prod(map(len, [cases, *zips, *axes])), "cells")
    for parts in itertools.product(cases, *zips, *axes):
        yield {key: value for part in parts for key, value in part.items()}


def exclusions(grid: Mapping[str, Any]) -> list[Settings]:
    """Returns the rules of ``[[grid.exclude]]``."""
    rules = _tables(grid, "exclude")
    if not all(rules):
        raise ConfigError(
            "grid.exclude: a rule is empty and would leave out every cell; expected keys, such as"
            ' segmenter = "whole".'
        )
    return rules


def fits(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Tells whether a config is what a rule describes: each of its keys has the rule's value.

    A list in the rule means any of its values. A plug-in's name means that plug-in with any
    options; a table means the plug-in with these options, whatever the others are.

    Args:
        rule: dotted keys.
        values: a nested config, plug-ins as names or tables.
    """
    return all(_any_of(wanted, _found(values, key)) for key, wanted in rule.items())


def _any_of(wanted: Any, found: Any) -> bool:
    options = cast("list[Any]", wanted) if isinstance(wanted, list) else [wanted]
    return any(_same(option, found) for option in options)


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(found, Mapping) and isinstance(wanted, str):
        return cast("Mapping[str, Any]", found).get("name") == wanted
    if isinstance(wanted, Mapping):
        table = {"name": found} if isinstance(found, str) else found
        options = cast("Mapping[str, Any]", wanted)
        return isinstance(table, Mapping) and all(
            _same(option, cast("Mapping[str, Any]", table).get(key))
            for key, option in options.items()
        )
    return wanted == found


def _found(values: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a dotted key, None where there is none."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, Any]", found).get(part)
    return found


def _lists(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the axes, ``seeds`` written out."""
    lists = {key: value for key, value in grid.items() if key not in (*_TABLES, "seeds")}
    for key, values in lists.items():
        _require_list(f"grid.{key}", values)
    if "seeds" not in grid:
        return lists
    count = grid["seeds"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"grid.seeds: is {shown(count)}; expected how many, such as 5.")
    _require_few(count, "seeds")
    if "seed" in lists:
        raise ConfigError("grid: has both seed and seeds; expected one of them.")
    return {**lists, "seed": list(range(count))}


def _together(table: Settings) -> list[Settings]:
    """Returns a zip's lists as one list of settings."""
    for key, values in table.items():
        _require_list(f"grid.zip: {key}", values)
    lengths = {key: len(values) for key, values in table.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(
            f"grid.zip: its lists go together one by one, but their lengths are {lengths}; expected"
            " lists of one length. For every combination, put them under [grid] instead."
        )
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _tables(grid: Mapping[str, Any], name: str) -> list[Settings]:
    tables = grid.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):  # pyright: ignore[reportUnknownVariableType]
        raise ConfigError(f"grid.{name}: expected tables, each headed [[grid.{name}]].")
    return [dict(table) for table in cast("list[Mapping[str, Any]]", tables)]


def _require_list(key: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"{key}: is {shown(values)}; expected a list of values, such as [0, 1, 2]. Quote"
            f' a dotted key: "segmenter.top_fraction" = [0.1, 0.3].'
        )
    _require_few(len(cast("list[Any]", values)), f"values of {key}")


def _require_few(count: int, what: str) -> None:
    """Refuses a grid that would take hours to be checked, before a cell of it is made."""
    if count > _MOST:
        number = f"{count:,}" if count < 10**15 else "more than 10^15"
        raise ConfigError(
            f"grid: has {number} {what}; expected at most {_MOST:,}. Usually there is an axis too"
            " many, since axes are crossed: let lists go together in a [[grid.zip]], or split the"
            " grid."
        )


def _require_run_key(key: str) -> None:
    """Refuses a key that no run has, and which would vary nothing."""
    table, dot, rest = key.partition(".")
    if table in STUDIES:
        raise ConfigError(
            f"grid: {key!r} is no key of a run, so that it would vary nothing; expected one such as"
            f" {rest if dot else 'seed'!r}. Under [grid], keys stand as in the rest of the file."
        )


def _require_once(axes: Sequence[str], cases: Sequence[Settings]) -> None:
    """Raises where a cell has two values for one key: no order was meant."""
    in_cases = {key for case in cases for key in case}
    for key, count in Counter(axes).items():
        if count > 1 or key in in_cases:
            raise ConfigError(
                f"grid: {key} is set twice in one cell, by two of [grid], [[grid.zip]] and"
                " [[grid.case]]; expected it in one of them."
            )

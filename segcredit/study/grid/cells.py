"""The cells of a grid: planned and checked before any of them runs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from segcredit.config import (
    RunConfig,
    lay_over_preset,
    load_config,
    override,
    parse_override,
    read_source,
    set_key,
)
from segcredit.errors import RecordError, SegcreditError, StudyError, shown
from segcredit.records.manifest import STATUS
from segcredit.records.recovery import damage
from segcredit.records.run_directory import read_status, whole_rows
from segcredit.study.grid.axes import Settings, combinations, exclusions, fits
from segcredit.training.build import run_hash

State = Literal["new", "begun", "failed", "damaged", "finished"]
"""``begun``: it runs, or was stopped; ``damaged``: finished, but a file of it was harmed since."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a grid."""

    label: str
    """The keys that this cell sets, such as ``method=sapo segmenter=newline seed=1``."""
    config: RunConfig
    directory: Path
    """Absolute; named by the hash of config and plug-in code."""

    def state(self) -> State:
        """Returns the state of the cell's run now, from what is on the disk."""
        if not (self.directory / STATUS).exists():
            return "new"
        try:
            status = read_status(self.directory)["status"]
        except RecordError:
            return "begun"  # its status was torn: as good as killed
        if status == "finished":
            return "damaged" if damage(self.directory, self.config.train.steps) else "finished"
        return "failed" if status == "failed" else "begun"

    def error(self) -> str:
        """Returns the error that stopped the run, as a sentence; '' where none is known."""
        try:
            return str(read_status(self.directory).get("message", ""))
        except RecordError:
            return ""

    def last_row(self) -> dict[str, Any]:
        """Returns the metrics recorded last; empty before step 0, and where they cannot be read."""
        try:
            return (whole_rows(self.directory) or [{}])[-1]
        except RecordError:
            return {}

    def steps_done(self) -> int:
        """Counts the policy steps recorded so far."""
        return int(self.last_row().get("step", 0))


def plan(
    source: str | Path | Mapping[str, Any], output: Path, overrides: Sequence[str] = ()
) -> list[Cell]:
    """Lists every cell of a grid, each checked before any of them runs.

    Args:
        source: a TOML file with a ``[grid]`` table (see ``segcredit.study.grid.axes``), or such
            a file's keys.
        output: under which every cell has a directory named by its hash.
        overrides: ``dotted.key=value``, laid over every cell; ``grid.key=value`` over the grid.

    Raises:
        ConfigError, RegistryError: a cell is wrong; the message begins with its label.
        StudyError: there is no grid, no cell, or a rule that leaves out nothing.
    """
    own = [text for text in overrides if text.partition("=")[0].strip().startswith("grid.")]
    overrides = [text for text in overrides if text not in own]
    keys = override(read_source(source), own)
    grid = keys.pop("grid", {})
    if not isinstance(grid, Mapping) or not grid:
        raise StudyError(
            f"{source if not isinstance(source, Mapping) else 'the config'} has no [grid] table."
            ' Give one, such as [grid] with seeds = 3 and method = ["grpo", "sapo"].'
        )
    grid = cast("Mapping[str, Any]", grid)
    layers = [(each, _layer(keys, each, overrides)) for each in combinations(grid)]
    layers = _left(layers, exclusions(grid))
    cells = (_cell(settings, layer, output.absolute()) for settings, layer in layers)
    return list({cell.directory: cell for cell in cells}.values())


def _layer(keys: Mapping[str, Any], settings: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns one cell's keys as a config file would hold them."""
    # Copies all the way down: cells must not write into one another's tables.
    values, settings = copy.deepcopy(dict(keys)), copy.deepcopy(settings)
    # The shortest paths first: a plug-in's name, then its options.
    for key, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        set_key(values, key, value)
    for text in overrides:
        set_key(values, *parse_override(text))
    return values


def _left(
    layers: Sequence[tuple[Settings, dict[str, Any]]], rules: Sequence[Settings]
) -> list[tuple[Settings, dict[str, Any]]]:
    """Returns the cells that no rule leaves out, before they are checked."""
    if not rules:
        return list(layers)
    left: list[tuple[Settings, dict[str, Any]]] = []
    used: Counter[int] = Counter()
    for settings, layer in layers:
        whole = lay_over_preset(layer)
        fitting = [number for number, rule in enumerate(rules) if _fits(rule, layer, whole)]
        used.update(fitting)
        if not fitting:
            left.append((settings, layer))
    _require_used(rules, used)
    if not left:
        raise StudyError(
            f"the rules of [[grid.exclude]] leave out all {len(layers)} cells; expected at least"
            " one to stay. Usually a rule names a value that every cell has: add keys to it."
        )
    return left


def _fits(rule: Settings, layer: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Tells whether a rule describes a cell, each key as the cell has it or as it was written.

    The two differ where a key of an earlier version is read as another.
    """
    return all(
        fits({key: value}, whole) or fits({key: value}, layer) for key, value in rule.items()
    )


def _require_used(rules: Sequence[Settings], used: Mapping[int, int]) -> None:
    for number, rule in enumerate(rules):
        if number not in used:
            raise StudyError(
                f"grid.exclude: the rule {rule} leaves out no cell; expected one whose keys and"
                " values some cell has. Usually a key or a value is misspelt: compare it with"
                " 'segcredit config'."
            )


def _cell(settings: Settings, layer: Mapping[str, Any], output: Path) -> Cell:
    label = " ".join(f"{key}={_short(value)}" for key, value in settings.items())
    try:
        config = load_config(layer)
    except SegcreditError as error:
        raise type(error)(f"cell {shown(label, plain=True)}: {error}") from error
    return Cell(label, config, output / run_hash(config))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "/".join(_short(part) for part in value.values())
    return str(value)

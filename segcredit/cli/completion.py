"""Names that a shell completes: presets, plug-ins, runs; no plug-in is imported for them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

import typer


def preset(incomplete: str) -> list[str]:
    """Returns presets; of none the shell completes files."""
    names = [file.name for file in files("segcredit").joinpath("methods").iterdir()]
    return _begun(incomplete, (name.removesuffix(".toml") for name in names if name != "base.toml"))


def override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns keys that name a plug-in, each with those that there are."""
    from segcredit.registry import PATHS

    key, equals, value = incomplete.partition("=")
    # For bash the sign of equality is a word, and what is behind it the word to complete.
    before: list[str] = [*(ctx.params.get("overrides") or ()), ""]
    if incomplete == "=" or before[-2:-1] == ["="]:
        words = [word for word in before if word not in ("", "=")]
        plugins = PATHS.get(words[-1]) if words else None
        return _begun(value or key, plugins.names() if plugins else ())
    # With the plug-ins of each, lest the shell put a space behind the sign.
    keys = [one for one in PATHS if (one == key if equals else one.startswith(key))]
    return [f"{one}={name}" for one in sorted(keys) for name in _begun(value, PATHS[one].names())]


def segmenter(incomplete: str) -> list[str]:
    """Returns segmenters."""
    from segcredit.registry import segmenters

    return _begun(incomplete, segmenters.names())


def run(incomplete: str) -> list[str]:
    """Returns runs whose names begin so, as they are typed; of none the shell completes folders."""
    from segcredit.records.tables.find_runs import RUNS, runs_beginning

    paths = runs_beginning(incomplete)
    texts = (part for path in paths for part in (str(path), path.name, _below(path, str(RUNS))))
    return _begun(incomplete, texts) if incomplete else [path.name for path in paths]


def preset_or_run(incomplete: str) -> list[str]:
    """Returns presets, and runs."""
    return preset(incomplete) + run(incomplete)


def metric(incomplete: str) -> list[str]:
    """Returns columns of the steps."""
    from segcredit.records.schemas import STEP_COLUMNS

    return _begun(incomplete, STEP_COLUMNS)


def measure(incomplete: str) -> list[str]:
    """Returns what a run's value may be."""
    return _begun(incomplete, ("last", "area", "at_cost"))


def statistic(incomplete: str) -> list[str]:
    """Returns statistics over seeds."""
    return _begun(incomplete, ("mean", "iqm", "median"))


def _begun(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def _below(path: object, folder: str) -> str:
    return str(path).removeprefix(f"{folder}/")

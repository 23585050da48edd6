"""Names that a shell completes: presets, plug-ins, runs; no plug-in is imported for them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.resources import files

import typer

_AXES = {
    "task": "tasks",
    "policy": "policies",
    "sampler": "samplers",
    "segmenter": "segmenters",
    "estimator": "estimators",
    "advantage": "advantages",
    "process_reward": "process_rewards",
    "loss.ratio": "ratios",
    "loss.bound": "bounds",
    "loss.aggregate": "aggregations",
}
"""Entry-point groups by the config keys that name a plug-in."""


def preset(incomplete: str) -> list[str]:
    """Returns presets; of none the shell completes files."""
    names = [file.name for file in files("segcredit").joinpath("methods").iterdir()]
    return _begun(incomplete, (name.removesuffix(".toml") for name in names if name != "base.toml"))


def override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns keys that name a plug-in, each with those that there are."""
    key, equals, value = incomplete.partition("=")
    # For bash the sign of equality is a word, and what is behind it the word to complete.
    before: list[str] = [*(ctx.params.get("overrides") or ()), ""]
    if incomplete == "=" or before[-2:-1] == ["="]:
        words = [word for word in before if word not in ("", "=")]
        return _plugins(_AXES.get(words[-1] if words else "", ""), value or key)
    # With the plug-ins of each, lest the shell put a space behind the sign.
    keys = [key] if equals else _begun(key, _AXES)
    return [f"{one}={name}" for one in keys for name in _plugins(_AXES.get(one, ""), value)]


def segmenter(incomplete: str) -> list[str]:
    """Returns segmenters."""
    return _plugins("segmenters", incomplete)


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


def _plugins(group: str, incomplete: str) -> list[str]:
    return _begun(incomplete, (point.name for point in entry_points(group=f"segcredit.{group}")))


def _begun(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def _below(path: object, folder: str) -> str:
    return str(path).removeprefix(f"{folder}/")

"""What a shell completes: presets, plug-ins and runs, from names alone; nothing is imported."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.resources import files

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


def override(incomplete: str) -> list[str]:
    """Returns keys that name a plug-in, and behind such a key the plug-ins."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={name}" for name in _plugins(_AXES.get(key, ""), value)]
    return _begun(key, (f"{name}=" for name in _AXES))


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


def _plugins(group: str, incomplete: str) -> list[str]:
    return _begun(incomplete, (point.name for point in entry_points(group=f"segcredit.{group}")))


def _begun(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def _below(path: object, folder: str) -> str:
    return str(path).removeprefix(f"{folder}/")

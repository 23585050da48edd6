"""Synthetic runs for the tests of the statistics: their curves are given, nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segcredit.records.run_directory import RunRecords

Curve = Sequence[tuple[float, float]]


def make_run(
    path: Path,
    curve: Curve,
    *,
    steps: Sequence[int] | None = None,
    end: str = "finished",
    **config: Any,
) -> None:
    """A run whose accuracy is ``curve``: pairs of tokens sampled and accuracy, a row each."""
    run = RunRecords.create(path, config, {})
    for step, (tokens, accuracy) in zip(steps or range(len(curve)), curve, strict=True):
        cost = {"tokens_sampled": tokens, "cpu_seconds": tokens / 10}
        measured = {} if math.isnan(accuracy) else {"accuracy": accuracy}
        run.metrics({"step": step, **cost, **measured})
    if end == "failed":
        run.fail("TrainingError", "the loss is not finite", "...")
    elif end == "finished":
        run.finish()


def make_groups(path: Path, last: Mapping[str, Sequence[float]], **config: Any) -> None:
    """A run for each method and seed, with that last accuracy; seeds count from 0, NaN has none."""
    for method, values in last.items():
        for seed, value in enumerate(values):
            if not math.isnan(value):
                curve = [(0, 0.1), (100, value)]
                name = "-".join(map(str, [method, seed, *config.values()]))
                make_run(path / name, curve, method=method, seed=seed, **config)

"""Progress of runs: a row a run, from the ends of files that it has anyway."""

# pandas ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from segcredit.errors import RecordError
from segcredit.records import checkpoint
from segcredit.records.manifest import METRICS
from segcredit.records.run_directory import last_step, read_status

_WHAT = ("run", "method", "segmenter", "estimator", "advantage", "seed", "status")


def progress_frame(settings: pd.DataFrame, directories: Mapping[str, Path]) -> pd.DataFrame:
    """Returns how far each run has come.

    Args:
        settings: ``Runs.runs``.
        directories: of the runs, by their names.

    Returns:
        A row a run: ``run``, ``method``, ``segmenter``, ``estimator``, ``advantage``, ``seed`` and
        ``status`` as in ``Runs.runs``; ``steps_done`` and ``steps``, policy steps recorded and to
        be done in all (missing for an audit, which has none, and where the config is damaged);
        ``seconds_left`` of the clock, for one that runs and has a speed, else NaN; ``error``, the
        first line of what stopped it.
    """
    table: Any = settings.reindex(columns=[*_WHAT])
    asked = [name for name in settings if str(name).startswith("audit.")]
    audited: Any = settings[asked].notna().any(axis=1)
    of_config: Any = settings.get("train.steps", pd.Series(pd.NA, settings.index))
    steps = of_config.astype("Int64").mask(audited)
    names = [str(run) for run in table["run"]]
    done = [
        math.nan if known is pd.NA else last_step(directories[run]) or 0
        for run, known in zip(names, steps, strict=True)
    ]
    table["steps_done"] = pd.array(done, dtype="Int64")
    table["steps"] = steps
    rows = zip(names, table["status"], table["steps_done"], steps, strict=True)
    table["seconds_left"] = [
        _seconds_left(directories[run], at, of) if status == "running" and of is not pd.NA
        else math.nan
        for run, status, at, of in rows
    ]  # fmt: skip
    table["error"] = settings["error"].str.partition("\n")[0]
    return table


def _seconds_left(directory: Path, done: int, steps: int) -> float:
    """Estimates the seconds of the clock that a run still takes; NaN before it has a speed.

    The speed is that since the first checkpoint of this start, or since the start itself, which
    includes the making of the policy.
    """
    with suppress(RecordError, OSError, KeyError, ValueError):
        started = datetime.fromisoformat(read_status(directory)["started"]).timestamp()
        marks = [
            (file.stat().st_mtime, int(file.stem.rpartition("_")[2]))
            for file in checkpoint.found(directory / "checkpoints")
        ]
        since = [mark for mark in marks if mark[0] >= started and mark[1] < done]
        before = [step for at, step in marks if at < started]
        at, step = since[0] if since else (started, max(before, default=0))
        spent = (directory / METRICS).stat().st_mtime - at
        if done > step and spent > 0:
            return spent / (done - step) * (steps - done)
    return math.nan

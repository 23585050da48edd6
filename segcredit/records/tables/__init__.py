"""Runs as tidy pandas tables: per run, step, completion, segment and token.

    runs = segcredit.read_runs("runs/segmenters")
    runs.steps.merge(runs.runs[["run", "method", "seed"]], on="run")
    runs.read("tokens", columns=["step", "entropy"])

Nothing is read before it is asked for. Every column is described in ``docs/reference/tables.md``.
"""

from segcredit.records.schemas import STEP_COLUMNS
from segcredit.records.tables.argument_checks import current_name, require_interval, require_known
from segcredit.records.tables.find_runs import named_path, runs_beginning
from segcredit.records.tables.grouping import comparable, default_by, setting_text
from segcredit.records.tables.run_settings import flatten
from segcredit.records.tables.runs import Runs, read_runs

__all__ = [
    "STEP_COLUMNS",
    "Runs",
    "comparable",
    "current_name",
    "default_by",
    "flatten",
    "named_path",
    "read_runs",
    "require_interval",
    "require_known",
    "runs_beginning",
    "setting_text",
]

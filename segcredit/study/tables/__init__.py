"""Runs as tidy pandas tables: per run, step, response, segment and token.

    runs = segcredit.read_runs("runs/segmenters")
    runs.steps.merge(runs.runs[["run", "method", "seed"]], on="run")
    runs.read("tokens", columns=["step", "entropy"])

Nothing is read before it is asked for. Every column is described in ``docs/tables.md``.
"""

from segcredit.study.tables.names import require_known
from segcredit.study.tables.runs import Runs, read_runs
from segcredit.study.tables.schemas import STEP_COLUMNS
from segcredit.study.tables.settings import flatten

__all__ = ["STEP_COLUMNS", "Runs", "flatten", "read_runs", "require_known"]

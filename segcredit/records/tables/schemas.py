"""Columns that the tables always have, and their types: the same for every run, and for none."""

# pandas and pyarrow ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from segcredit.records.step_tables import TABLES

Table = Literal["steps", "responses", "segments", "tokens", "audit"]
"""The tables that have several rows a run."""

STEP_COLUMNS = (
    "tokens_sampled",
    "tokens_simulated",
    "cpu_seconds",
    "reward",
    "reward_std",
    "accuracy",
    "accuracy_greedy",
    "faithful",
    "majority",
    "entropy",
    "kl",
    "reference_kl",
    "clip_fraction",
    "dual_clip_fraction",
    "ratio_mean",
    "ratio_max",
    "gradient_norm",
    "value_gradient_norm",
    "explained_variance",
    "response_length",
    "truncated",
    "segments_per_response",
    "sampling_rounds",
    "loss_tokens",
    "loss",
    "value_loss",
)
"""Columns that ``Runs.steps`` always has beside ``run`` and ``step``; a run may record more."""

AUDIT = "audit.parquet"
"""File of an audit's metrics, in its directory."""
AUDIT_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("segmenter", "estimator", "advantage"), pa.string()),
        "causal": pa.bool_(),
        **dict.fromkeys(("section", "metric", "at"), pa.string()),
        **dict.fromkeys(("value", "low", "high", "error"), pa.float64()),
        "prompts": pa.int64(),
    }
)

AUDIT_COLUMNS_BEFORE = {"question": "section", "figure": "metric"}
"""Columns of an audit that was stored before 0.1.0, by their names then."""
AUDIT_METRICS_BEFORE = {
    ("signals", "half_correlation"): "split_correlation",
    ("values", "slope"): "calibration_slope",
    ("values", "intercept"): "calibration_intercept",
    ("gradient", "noise"): "gradient_noise",
}
"""Metrics of such an audit, by their section and their names then."""

CATEGORIES: dict[Table, list[str]] = {
    "steps": [],
    "responses": ["prompt", "prompt_text", "images"],
    "segments": ["prompt"],
    "tokens": ["prompt", "text"],
    "audit": ["segmenter", "estimator", "advantage", "section", "metric", "at"],
}
"""Columns of text that repeats: each value is held once, and a small number in every row."""

_TYPES: dict[pa.DataType, Any] = {
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(na_value=np.nan),
}
"""Integers and booleans that bear a missing value; and pandas' own text, without a detour."""


def _categorical(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    kinds = {field.name: field.type for field in schema}
    return pa.schema(kinds | {name: pa.dictionary(pa.int32(), pa.string()) for name in names})


SCHEMAS: dict[Table, pa.Schema] = {
    "steps": pa.schema({"step": pa.int64(), **dict.fromkeys(STEP_COLUMNS, pa.float64())}),
    **{name: _categorical(TABLES[name], CATEGORIES[name]) for name in TABLES},
    "audit": _categorical(AUDIT_SCHEMA, CATEGORIES["audit"]),
}
"""The columns that each table always has, as they are read."""


def to_frame(rows: pa.Table, run: pd.Categorical) -> pd.DataFrame:
    """Converts an Arrow table to pandas, behind the column ``run``."""
    columns: dict[str, Any] = {"run": run}
    for name in rows.column_names:
        # Column by column, so that no more than one is held twice.
        series = rows[name].to_pandas(types_mapper=_TYPES.get)
        columns[name] = series.astype("int64") if name == "step" else series
        rows = rows.drop_columns([name])
    return pd.DataFrame(columns, copy=False)

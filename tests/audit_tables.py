"""A small audit, made up: its table, and its truth and credits for drawing completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from segcredit.credit_audit.store import write_table
from segcredit.protocols import Prompt
from segcredit.records.run_directory import RunRecords
from segcredit.types import RolloutBatch

SEGMENTERS = {"entropy": False, "newline": True, "random(fraction=0.2)": False}
"""In the order of their rows, by name: whether they are causal."""
ESTIMATORS = ("group_mean", "critic")
SCHEMES = ("full_return", "td")
QUANTILES = (0.5, 0.9, 0.95)
TOKENS = ("3", "+", "4", "=", "7", "\n", "end", "")

Rows = list[dict[str, Any]]


def rows(
    segmenters: dict[str, bool] = SEGMENTERS,
    estimators: Sequence[str] = ESTIMATORS,
    schemes: Sequence[str] = SCHEMES,
) -> Rows:
    """Every metric that the figures and the report read, with numbers that all differ."""
    found = list(_of_truth())
    for segmenter, causal in segmenters.items():
        labels = {"segmenter": segmenter, "causal": causal}
        found += _rows(labels, "movement", MOVEMENT)
        for estimator in estimators:
            labels |= {"estimator": estimator}
            found += _rows(labels, "values", VALUES)
            found += _rows(labels, "cost", [("tokens", ""), ("cpu_seconds", "")], plain=True)
            for scheme in schemes:
                scheme_labels = labels | {"advantage": scheme}
                found += _rows(scheme_labels, "credit", CREDIT)
                found += _rows(scheme_labels, "gradient", GRADIENT)
            labels = {"segmenter": segmenter, "causal": causal}
    for number, row in enumerate(found):
        row["value"] = 0.1 + number / len(found)
        if "prompts" in row:
            row |= {"low": row["value"] - 0.05, "high": row["value"] + 0.08, "error": 0.03}
    return found


MOVEMENT = [
    ("segments", ""),
    ("share_on_boundaries", "end"),
    ("random_share_on_boundaries", "end"),
    ("boundary_ratio", "end"),
    ("oracle_share", "end"),
    ("share_on_boundaries", "start"),
    ("random_share_on_boundaries", "start"),
    ("boundary_ratio", "start"),
    ("oracle_share", "start"),
    ("jump_agreement", "end"),
    ("share_within", ""),
    ("random_share_within", ""),
    ("baseline_bias", "start"),
    ("true_noise_ratio", "gradient"),
]
VALUES = [
    *(
        (name, part)
        for name in ("explained_variance", "calibration_slope")
        for part in ("tokens", "all", "late")
    ),
    ("bias", "all"),
    ("error", "all"),
]
CREDIT = [
    *((name, at) for name in ("correlation", "slope") for at in ("gradient", "token", "segment")),
    *((name, "gradient") for name in ("credit_noise_ratio", "sharpening")),
    ("sign_agreement", "token"),
    ("mass_kept", ""),
]
GRADIENT = [(n, "all") for n in ("cosine", "projection", "gradient_noise", "signal_to_noise")]


def _of_truth() -> Iterator[dict[str, Any]]:
    lifts = [(f"lift_{x}", f"{q:g}") for x in ("entropy", "surprisal") for q in QUANTILES]
    jumps = [("lift_entropy_of_jumps", f"{q:g}") for q in QUANTILES]
    classes = [(f"class_{x}", name) for name in ("number", "<b>") for x in ("share", "ratio")]
    yield from _rows({}, "signals", [*lifts, *jumps, *classes])
    yield from _rows({}, "signals", [("split_correlation", "")], plain=True)
    spent = [("truth_tokens", ""), ("truth_cpu_seconds", "")]
    yield from _rows({}, "cost", spent, plain=True)
    yield from _rows({}, "gradient", [("reference_cosine", "")], plain=True)


def _rows(
    labels: dict[str, Any], section: str, places: Sequence[tuple[str, str]], *, plain: bool = False
) -> Rows:
    unit: dict[str, Any] = {} if plain else {"prompts": 8 if section == "gradient" else 64}
    return [
        {**labels, "section": section, "metric": metric, "at": at, **unit} for metric, at in places
    ]


COLUMNS = ("run", "segmenter", "estimator", "advantage", "causal", "section", "metric", "at")
NUMBERS = ("value", "low", "high", "error")


def frame(found: Rows, run: str = "audit") -> pd.DataFrame:
    """Rows as ``read_runs(path).audit`` has them; the categories are in another order."""
    table = pd.DataFrame([{"run": run, **row} for row in found])
    table = table.reindex(columns=[*COLUMNS, *NUMBERS, "prompts"])
    texts = {name: "category" for name in COLUMNS if name != "causal"}
    kinds = dict.fromkeys(NUMBERS, "float64") | {"causal": "boolean", "prompts": "Int64"}
    return table.astype(texts | kinds)


def write_audit(
    path: Path,
    found: Rows | None = None,
    failed: dict[str, str] | None = None,
    **config: Any,
) -> RunRecords:
    """An audit's directory, but for its truth and its credits; it is left running."""
    settings = {"segmenters": [{"name": "entropy"}], "prompts": 64, "confidence": 0.9}
    whole = {"method": "sapo", "seed": 0, **config, "audit": settings}
    records = RunRecords.create(path, whole, {"python": "3.11.7"})
    label = {"credits": [], "truth": "truth", "failed": failed or {}, "resampling": {}}
    write_table(path, rows() if found is None else found, label)
    return records


def loaded_audit(
    segmenters: Sequence[str] = tuple(SEGMENTERS), key: str = "3+4", tokens: Sequence[str] = TOKENS
) -> Any:
    """What ``load_audit`` gives: three completions, the last padded; all of it by hand."""
    count = len(tokens)
    lengths = [count, count, count - 2]
    rng = np.random.default_rng(0)
    splits_BHE = np.full((3, 3, count + 1), np.nan)
    for row, length in enumerate(lengths):
        steps = rng.normal(0, 0.1 * (row + 1), length + 1)
        splits_BHE[row, :, : length + 1] = 0.5 + steps.cumsum()
    mask_BT = torch.tensor([[t < length for t in range(count)] for length in lengths])
    text, places = "".join(tokens), np.cumsum([0, *map(len, tokens)])
    spans = torch.tensor(np.stack([places[:-1], places[1:]], 1)).expand(3, count, 2)
    rewards_B = torch.tensor([1.0, 0, 0])
    zeros_BT = torch.zeros(3, count)
    rollouts = RolloutBatch(
        prompt_ids=torch.zeros(3, 1, dtype=torch.long),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        prompt_keys=(key,) * 3,
        completion_ids=torch.arange(count).expand(3, count),
        action_mask=mask_BT,
        logprobs=zeros_BT,
        entropies=zeros_BT,
        group=torch.zeros(3, dtype=torch.long),
        texts=(text,) * 3,
        token_spans=spans,
        rewards=rewards_B,
        token_rewards=zeros_BT,
        truncated=torch.zeros(3, dtype=torch.bool),
    )
    truth = SimpleNamespace(
        rollouts=rollouts,
        prompts=[Prompt(key=key, text=key, answer="7")],
        prompt_numbers=torch.tensor([0, 0, 0]),
        values=torch.tensor(splits_BHE),
        errors=torch.full((3, 3, count + 1), 0.05, dtype=torch.float64),
    )
    ids_BT = np.where(mask_BT.numpy(), np.arange(count) // 3, -1)
    credits = [
        SimpleNamespace(
            segmenter=segmenter,
            estimator=estimator,
            segment_ids=ids_BT,
            state_values=rng.random((3, count)),
            advantages={scheme: rng.normal(size=(3, count)) for scheme in SCHEMES},
        )
        for segmenter in segmenters
        for estimator in ESTIMATORS
    ]
    return SimpleNamespace(truth=truth, credits=credits)

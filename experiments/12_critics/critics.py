"""What learned critics know of the true values, and their price.

    python critics.py OUTPUT [SEED ...]

Audits the warm-started policy of each seed with every critic below, all pretrained on the same
completions, on ``arithmetic`` plain and with filler; the reader on ``picture`` and, with a tenth of
the completions, on the sums that SmolLM2-135M does in 09 as well. Adds their metrics to
``metrics.csv`` beside this file. What has its rows there already is not audited again.
"""

from __future__ import annotations

import itertools
import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

import segcredit

ROWS = Path(__file__).parent / "metrics.csv"
SMOLLM = tomllib.loads((ROWS.parents[1] / "09_smollm" / "grid.toml").read_text())
TASKS: dict[str, dict[str, Any]] = {
    "plain": {"task": {"name": "arithmetic"}},
    "filler": {"task": {"name": "arithmetic", "filler": True}},
    "picture": {"task": "picture", "policy": "tiny_vlm", "rollouts": {"max_new_tokens": 48}},
    # As in 09, whose grid pretrains the same reader, so that it is in the cache.
    "sums": {key: SMOLLM[key] for key in ("task", "policy", "rollouts")}
    | {"method": "sapo", "completions": 1024, "rows": 16, "prompts": 24, "group": 4},
}
READER = {"name": "critic", "network": "reader"}
CRITICS: dict[str, tuple[dict[str, Any], float]] = {
    "reader": (READER, 5e-3),
    "reader, no group mean": (READER | {"group_mean": False}, 5e-3),
    "head": ({"name": "critic", "network": "head"}, 5e-3),
    "backbone": ({"name": "critic", "network": "backbone"}, 3e-3),
}
"""Estimators with the learning rate of their pretraining."""
ONLY = {"picture": {"reader"}, "sums": {"reader"}}
"""The critics of a task that does not have all of them."""
METRICS = {
    ("values", "all", "explained_variance"): "EV",
    ("values", "early", "explained_variance"): "EV early",
    ("values", "late", "explained_variance"): "EV late",
    ("credit", "token", "correlation"): "TD correlation",
    ("credit", "gradient", "correlation"): "weighted TD correlation",
    ("credit", "gradient", "sharpening"): "sharpening",
    ("cost", "", "cpu_seconds"): "CPU-s",
}


def audited(output: Path, task: str, critic: str, seed: int) -> pd.DataFrame:
    """The audit's metrics of one critic on one policy."""
    estimator, rate = CRITICS[critic]
    said = {"method": "ppo", "completions": 10_000, "rows": 64, "prompts": 64, "group": 8}
    said |= TASKS[task]
    pretraining = {
        "completions": said.pop("completions"),
        "rows": said.pop("rows"),
        "epochs": 8,
        "learning_rate": rate,
    }
    config = {
        "audit": {
            "prompts": said.pop("prompts"),
            "completions": said.pop("group"),
            "segmenters": ["per_token"],
            "estimators": [estimator | ({"lam": 0.99} if task == "sums" else {})],
            "advantages": ["td"],
            "gradient_samples": 0,
        },
        "seed": seed,
        "sampler": "lean",
        "train": {"value": {"pretraining": pretraining}},
        **said,
    }
    name = critic.replace(", ", "_").replace(" ", "_")
    path = output / f"{task}_{seed}_{name}"
    truth = output / f"truth_{task}_{seed}"
    table = segcredit.read_runs(segcredit.audit(config, path, truth=truth)).audit
    keys = pd.MultiIndex.from_frame(table[["section", "at", "metric"]].astype(str))
    found = table.set_index(keys).loc[[key for key in METRICS if key in keys]]
    wanted = [METRICS[key] for key in found.index]
    rows = found[["value", "low", "high"]].reset_index(drop=True)
    return rows.assign(metric=wanted, task=task, critic=critic, seed=seed)


def main() -> None:
    """Audits every case that has no rows yet, and prints means and ranges over seeds."""
    output, seeds = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [1, 2, 3, 4, 5]
    table = pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=["task", "critic", "seed"])
    for seed, critic, task in itertools.product(seeds, CRITICS, TASKS):
        known = table[["task", "critic", "seed"]].drop_duplicates().itertuples(index=False)
        if critic not in ONLY.get(task, CRITICS) or (task, critic, seed) in map(tuple, known):
            continue
        found = audited(output, task, critic, seed)
        print(task, critic, seed, *found[["metric", "value"]].to_numpy().tolist(), flush=True)
        table = pd.concat([table, found]).round(4) if len(table) else found.round(4)
        table.to_csv(ROWS, index=False)
    by = table.pivot_table(
        "value", ["task", "critic"], "metric", ["mean", "min", "max", "count"], sort=False
    )
    print(by.round(3).to_string())


if __name__ == "__main__":
    main()

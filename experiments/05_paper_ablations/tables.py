"""Prints the tables of README.md and draws its figures from the runs of this folder's grids.

python experiments/05_paper_ablations/tables.py runs/05_paper_ablations
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import segcredit
from segcredit.records.tables import Runs
from segcredit.study.grid import plan
from segcredit.study.plots import learning_curves, save, value_consistency
from segcredit.study.statistics import compare, learning_areas, summarise

FOLDER = Path(__file__).parent
STUDIES = {
    "table2_importance_sampling": (["loss.ratio"], "segment"),
    "table3_segmentation": (["segmenter"], "entropy"),
    "figure5_top_fraction": (["segmenter.top_fraction"], "0.3"),
    "figure6_value_loss": (["method"], "sapo"),
}
"""What each grid varies, and what the others are compared with."""


def main(path: Path) -> None:
    """Every study's tables, and the figures beside this file."""
    everything = segcredit.read_runs(path)
    for name, (by, baseline) in STUDIES.items():
        cells = plan(FOLDER / f"{name}.toml", path)
        runs = everything.select(cell.directory.name for cell in cells)
        print_study(name, runs, by, baseline)
        save(learning_curves(runs, by=by), FOLDER / f"{name}.png")
    runs_of_figure_6 = everything.select(
        cell.directory.name for cell in plan(FOLDER / "figure6_value_loss.toml", path)
    )
    save(value_consistency(runs_of_figure_6), FOLDER / "value_consistency.png")


def print_study(name: str, runs: Runs, by: Sequence[str], baseline: str) -> None:
    """Last accuracies, area under the curve, and the differences from the baseline."""
    print(f"\n## {name}\n")
    last = summarise(runs, by, "accuracy")
    print(last[[*by, "start", "mean", "low", "high", "seeds"]].round(3).to_markdown(index=False))
    area = learning_areas(runs, by, "accuracy")
    print(f"\narea under the curve\n\n{area.round(3).to_markdown(index=False)}\n")
    for finding in compare(runs, by, "accuracy", baseline=baseline)["finding"]:
        print(f"- {finding}")
    joined = runs.steps.merge(runs.runs[["run", "seed", *by]], on="run")
    seeds = joined.dropna(subset=["accuracy"]).groupby([*by, "seed"], observed=True)
    print(f"\neach seed\n\n{seeds['accuracy'].last().unstack().round(3).to_markdown()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The tables and pictures of this experiment's README, from its audits.

    python experiments/06_credit_audit/tables.py runs/06

Writes figures.csv and three pictures beside this file, and prints the tables.
"""

# pandas ships no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from segcredit import read_runs
from segcredit.credit_audit import Audit, compare_credits, load_audit
from segcredit.study.plots import audit_intervals, movement_shares, save

HERE = Path(__file__).parent
MOVEMENT = {
    "segments": ("segments", ""),
    "on ends": ("share_on_boundaries", "end"),
    "ratio to chance": ("boundary_ratio", "end"),
    "ratio, starts": ("boundary_ratio", "start"),
    "oracle": ("oracle_share", "end"),
    "within": ("share_within", ""),
    "within, chance": ("random_share_within", ""),
    "baseline bias": ("baseline_bias", "start"),
}
CREDIT = {
    "token": ("correlation", "token"),
    "segment": ("correlation", "segment"),
    "slope": ("slope", "token"),
    "noise": ("noise", "token"),
    "sign": ("sign_agreement", "token"),
    "mass kept": ("mass_kept", ""),
}
GRADIENT = {
    "cosine": ("cosine", "all"),
    "projection": ("projection", "all"),
    "signal to noise": ("signal_to_noise", "all"),
}
VALUES = {
    "explained": ("explained_variance", "all"),
    "early": ("explained_variance", "early"),
    "late": ("explained_variance", "late"),
    "slope": ("slope", "all"),
    "spread": ("consistency_spread", ""),
    "true spread": ("consistency_true_spread", ""),
    "off": ("consistency_noise", ""),
}


def main() -> None:
    """Everything, in the order of the README."""
    options = argparse.ArgumentParser()
    options.add_argument("runs", type=Path)
    path = options.parse_args().runs
    table = read_runs(path).audit
    table.round(5).to_csv(
        HERE / "figures.csv.gz", index=False, compression={"method": "gzip", "mtime": 0}
    )
    for run in ("arithmetic", "filler"):
        found = table[table["run"] == run]
        print(f"\n## {run}\n")
        print(truth_lines(found))
        show("Where the value moves", found, ["segmenter"], MOVEMENT, "movement")
        best = found[(found["estimator"] == "measured") & (found["advantage"] == "td")]
        show("Credit of measured values, td", best, ["segmenter"], CREDIT, "credit")
        wide(found, ("correlation", "token"))
        wide(found, ("slope", "token"))
        show("Values", found, ["segmenter", "estimator"], VALUES, "values")
        show("Gradients", found, ["segmenter", "estimator", "advantage"], GRADIENT, "gradient")
        costs(found)
        differences(load_audit(path / run))
    chosen = table[table["run"] == "arithmetic"]
    save(audit_intervals(chosen, "correlation", "token"), HERE / "credit.png")
    save(audit_intervals(chosen, "cosine", "all"), HERE / "gradient.png")
    save(movement_shares(chosen), HERE / "movement.png")


def truth_lines(table: pd.DataFrame) -> str:
    """What belongs to no definition."""
    alone = table[table["segmenter"].isna()]
    return "\n".join(
        f"{row.figure} {row.at}: {interval(row)}" for row in alone.itertuples() if row.value != 0
    )


def interval(row: object) -> str:
    """A figure as the README writes it."""
    value, low, high = (getattr(row, name) for name in ("value", "low", "high"))
    digits = 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return text if low != low or low == high else f"{text} [{low:.{digits}f} {high:.{digits}f}]"


def show(
    title: str,
    table: pd.DataFrame,
    by: Sequence[str],
    places: dict[str, tuple[str, str]],
    question: str,
) -> None:
    """A row a group, a column a figure."""
    print(f"\n### {title}\n")
    print("| " + " | ".join([*by, *places]) + " |")
    print("|---" * (len(by) + len(places)) + "|")
    found = table[table["question"] == question]
    for names, rows in found.groupby(list(by), observed=True, sort=False):
        cells = [cell(rows, place) for place in places.values()]
        print("| " + " | ".join([*map(str, names), *cells]) + " |")


def wide(table: pd.DataFrame, place: tuple[str, str]) -> None:
    """A row a segmenter and scheme, a column an estimator."""
    figure, at = place
    estimators = list(dict.fromkeys(table["estimator"].dropna()))
    print(f"\n### {figure} of the {at}'s advantage, by estimator\n")
    print("| " + " | ".join(["segmenter", "scheme", *estimators]) + " |")
    print("|---" * (len(estimators) + 2) + "|")
    credits = table[table["question"] == "credit"]
    for names, rows in credits.groupby(["segmenter", "advantage"], observed=True, sort=False):
        cells = [cell(rows[rows["estimator"] == name], place) for name in estimators]
        print("| " + " | ".join([*map(str, names), *cells]) + " |")


def cell(rows: pd.DataFrame, place: tuple[str, str]) -> str:
    """One figure of a group."""
    found = rows[(rows["figure"] == place[0]) & (rows["at"] == place[1])]
    return (
        interval(next(found.itertuples())) if len(found) and found["value"].notna().all() else "–"
    )


def costs(table: pd.DataFrame) -> None:
    """What estimators cost, a row an estimator: over segmenters."""
    print("\n### Costs, mean over segmenters\n")
    found = table[(table["question"] == "cost") & table["segmenter"].notna()]
    means = found.pivot_table("value", "estimator", "figure", "mean", observed=True, sort=False)
    print(means.round(1).to_markdown())


def differences(audit: Audit) -> None:
    """Which segmenters' credit differs, with values as good as the truth's own."""
    print("\n### Differences of the token's correlation, measured values and td\n")
    pairs = compare_credits(audit)
    pairs = pairs[(pairs["estimator"] == "measured") & (pairs["advantage"] == "td")]
    columns = ["first", "second", "difference", "low", "high"]
    print(pairs[columns].round(3).to_markdown(index=False))


if __name__ == "__main__":
    main()

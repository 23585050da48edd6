"""The tables and pictures of this experiment's README, from its audits.

    python experiments/06_credit_audit/tables.py runs/06

Writes metrics.csv.gz and three pictures beside this file, and prints the tables.
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
from segcredit.credit_audit.metric_list import Place, Section, metric
from segcredit.study.plots import audit_intervals, movement_shares, save

HERE = Path(__file__).parent
COLUMNS: dict[Section, dict[str, Place]] = {
    "movement": {
        "segments": ("segments", ""),
        "on ends": ("share_on_boundaries", "end"),
        "ratio to chance": ("boundary_ratio", "end"),
        "ratio, starts": ("boundary_ratio", "start"),
        "oracle": ("oracle_share", "end"),
        "within": ("share_within", ""),
        "within, chance": ("random_share_within", ""),
        "baseline bias": ("baseline_bias", "start"),
        "true noise": ("true_noise_ratio", "gradient"),
    },
    "credit": {
        "weighed": ("correlation", "gradient"),
        "noise ratio": ("credit_noise_ratio", "gradient"),
        "sharpening": ("sharpening", "gradient"),
        "weighed slope": ("slope", "gradient"),
        "token": ("correlation", "token"),
        "segment": ("correlation", "segment"),
        "slope": ("slope", "token"),
        "noise": ("noise", "token"),
        "sign": ("sign_agreement", "token"),
        "mass kept": ("mass_kept", ""),
    },
    "gradient": {
        "cosine": ("cosine", "all"),
        "projection": ("projection", "all"),
        "signal to noise": ("signal_to_noise", "all"),
    },
    "values": {
        "every token": ("explained_variance", "tokens"),
        "anchors": ("explained_variance", "all"),
        "early": ("explained_variance", "early"),
        "late": ("explained_variance", "late"),
        "slope": ("calibration_slope", "all"),
        "spread": ("consistency_spread", ""),
        "true spread": ("consistency_true_spread", ""),
        "off": ("consistency_noise", ""),
    },
}
"""Columns of the README's tables, by section and heading."""

for section, columns in COLUMNS.items():
    # A name that the audit gave up fails here, and not as an empty column.
    assert all(metric(name).section == section for name, _ in columns.values())


def main() -> None:
    """Prints everything, in the order of the README."""
    options = argparse.ArgumentParser()
    options.add_argument("runs", type=Path)
    path = options.parse_args().runs
    table = read_runs(path).audit
    table.round(5).to_csv(
        HERE / "metrics.csv.gz", index=False, compression={"method": "gzip", "mtime": 0}
    )
    for run in ("arithmetic", "filler"):
        found = table[table["run"] == run]
        print(f"\n## {run}\n")
        print(truth_lines(found))
        show("Where the value moves", found, ["segmenter"], "movement")
        best = found[(found["estimator"] == "measured") & (found["advantage"] == "td")]
        show("Credit of measured values, td", best, ["segmenter"], "credit")
        wide(found, ("correlation", "gradient"))
        wide(found, ("credit_noise_ratio", "gradient"))
        wide(found, ("correlation", "token"))
        wide(found, ("slope", "token"))
        show("Values", found, ["segmenter", "estimator"], "values")
        show("Gradients", found, ["segmenter", "estimator", "advantage"], "gradient")
        costs(found)
        differences(load_audit(path / run))
    chosen = table[table["run"] == "arithmetic"]
    save(audit_intervals(chosen, "correlation", "gradient"), HERE / "credit.png")
    save(audit_intervals(chosen, "cosine", "all"), HERE / "gradient.png")
    save(movement_shares(chosen), HERE / "movement.png")


def truth_lines(table: pd.DataFrame) -> str:
    """Returns what belongs to no definition, a line each."""
    alone = table[table["segmenter"].isna()]
    return "\n".join(
        f"{row.metric} {row.at}: {interval(row)}" for row in alone.itertuples() if row.value != 0
    )


def interval(row: object) -> str:
    """Returns an estimate as the README writes it."""
    value, low, high = (getattr(row, name) for name in ("value", "low", "high"))
    digits = 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return text if low != low or low == high else f"{text} [{low:.{digits}f} {high:.{digits}f}]"


def show(
    title: str,
    table: pd.DataFrame,
    by: Sequence[str],
    section: Section,
) -> None:
    """Prints a section: a row a group, a column a metric."""
    places = COLUMNS[section]
    print(f"\n### {title}\n")
    print("| " + " | ".join([*by, *places]) + " |")
    print("|---" * (len(by) + len(places)) + "|")
    found = table[table["section"] == section]
    for names, rows in found.groupby(list(by), observed=True, sort=False):
        cells = [cell(rows, place) for place in places.values()]
        print("| " + " | ".join([*map(str, names), *cells]) + " |")


def wide(table: pd.DataFrame, place: Place) -> None:
    """Prints a metric: a row a segmenter and scheme, a column an estimator."""
    name, at = place
    estimators = list(dict.fromkeys(table["estimator"].dropna()))
    print(f"\n### {name} of the {at}'s advantage, by estimator\n")
    print("| " + " | ".join(["segmenter", "scheme", *estimators]) + " |")
    print("|---" * (len(estimators) + 2) + "|")
    credits = table[table["section"] == "credit"]
    for names, rows in credits.groupby(["segmenter", "advantage"], observed=True, sort=False):
        cells = [cell(rows[rows["estimator"] == name], place) for name in estimators]
        print("| " + " | ".join([*map(str, names), *cells]) + " |")


def cell(rows: pd.DataFrame, place: Place) -> str:
    """Returns one metric of a group."""
    found = rows[(rows["metric"] == place[0]) & (rows["at"] == place[1])]
    return (
        interval(next(found.itertuples())) if len(found) and found["value"].notna().all() else "–"
    )


def costs(table: pd.DataFrame) -> None:
    """Prints what estimators cost, a row an estimator: means over segmenters."""
    print("\n### Costs, mean over segmenters\n")
    found = table[(table["section"] == "cost") & table["segmenter"].notna()]
    means = found.pivot_table("value", "estimator", "metric", "mean", observed=True, sort=False)
    print(means.round(1).to_markdown())


def differences(audit: Audit) -> None:
    """Prints whose credit differs, of segmenters with values as good as the truth's own."""
    columns = ["first", "second", "difference", "low", "high"]
    places = [("correlation", "gradient"), ("credit_noise_ratio", "gradient")]
    for name, at in [*places, ("correlation", "token")]:
        print(f"\n### Differences of {name} ({at}), measured values and td\n")
        pairs = compare_credits(audit, name, at)
        pairs = pairs[(pairs["estimator"] == "measured") & (pairs["advantage"] == "td")]
        print(pairs[columns].round(3).to_markdown(index=False))
    print("\n### Differences of the definitions' noise with exact values\n")
    pairs = compare_credits(audit, "true_noise_ratio", "gradient")
    print(pairs[columns].round(3).to_markdown(index=False))


if __name__ == "__main__":
    main()

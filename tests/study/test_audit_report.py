"""The report of audits: what stands on the page, alone and beside training, and in a browser."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_report import FIGURES, SCRIPT, SECTIONS, Page, leave_undrawn, study

# The browser, and the fixture that opens a page in it.
from test_report_browser import WIDTHS, browser, open_page  # noqa: F401

from audit_tables import ESTIMATORS, SCHEMES, SEGMENTERS, loaded_audit, rows, write_audit
from segcredit import credit_audit
from segcredit.errors import StudyError
from segcredit.study.report import audits, completions, write_report

PARTS = ["credit", "movement", "values", "costs", "completions"]
WHAT = ["settings", "environment", "python"]


def of_audit(number: int) -> list[str]:
    return [f"audit-{number}-{part}" for part in PARTS]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit_audit, "load_audit", lambda _: loaded_audit())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, since drawing takes half a second each."""

    def draw(*_: object, width: float, **__: object) -> Figure:
        return Figure(figsize=(width, 1))

    for name in ("audit_intervals", "movement_shares", "lift_curves"):
        monkeypatch.setattr(audits, name, draw)
    leave_undrawn(monkeypatch, FIGURES)


def shown(row: dict[str, Any]) -> str:
    """As in a column of the table: three digits of its largest value."""
    column = [x for x in rows() if (x["metric"], x["at"]) == (row["metric"], row["at"])]
    decimals = 2 if max(x["value"] for x in column) >= 1 else 3
    ends = f" [{row['low']:.{decimals}f}, {row['high']:.{decimals}f}]" if "low" in row else ""
    return f"{row['value']:.{decimals}f}{ends}".replace("-", "−")


def one(metric: str, at: str, **of: str) -> dict[str, Any]:
    given = {"metric": metric, "at": at, **of}
    (found,) = (row for row in rows() if all(row.get(name) == x for name, x in given.items()))
    return found


def test_an_audit_alone_is_a_page_without_training(tmp_path: Path) -> None:
    write_audit(tmp_path / "audit").finish()
    page = Page(write_report(tmp_path / "audit"))
    assert list(page.text)[1:] == ["runs", *of_audit(1), *WHAT]
    assert "1 credit audit in" in page.of("")
    assert "accuracy" not in "".join(page.text.values())
    # correlation, noise ratio, cosine, shares, lift, explained variance
    assert page.tags["figure"] == 6
    text = page.of("audit-1-credit")
    assert text.startswith(
        "Credit 3 segmenters with 2 estimators under 2 advantage schemes, judged on a frozen"
        " policy. As the gradient weighs tokens, credit correlates"
    )
    assert "The splits of the truth correlate by token at" in text
    assert "90% intervals over 64 prompts (those of gradients over 8 batches)" in text
    assert "entropy†" in text
    assert "†: not causal" in text


@pytest.mark.usefixtures("undrawn")
def test_every_credit_has_its_row_of_headline_metrics(tmp_path: Path) -> None:
    write_audit(tmp_path).finish()
    text = Page(write_report(tmp_path)).of("audit-1-credit")
    for segmenter, causal in SEGMENTERS.items():
        for estimator in ESTIMATORS:
            pair = {"segmenter": segmenter, "estimator": estimator}
            for scheme in SCHEMES:
                both = pair | {"advantage": scheme}
                metrics = [
                    *(
                        one(name, "gradient", **both)
                        for name in ("correlation", "credit_noise_ratio", "sharpening", "slope")
                    ),
                    one("sign_agreement", "token", **both),
                    one("mass_kept", "", **both),
                    one("explained_variance", "tokens", **pair),
                    *(one(f, "all", **both) for f in ("cosine", "signal_to_noise")),
                    one("tokens", "", **pair),
                    one("correlation", "token", **both),
                ]
                row = " ".join(map(shown, metrics))
                name = segmenter if causal else f"{segmenter}†"
                assert f"{name} {estimator} {scheme} {row}" in text


@pytest.mark.usefixtures("undrawn")
def test_movement_values_and_costs_are_those_of_the_table(tmp_path: Path) -> None:
    write_audit(tmp_path).finish()
    page = Page(write_report(tmp_path))
    for segmenter in SEGMENTERS:
        found = one("share_on_boundaries", "end", segmenter=segmenter)
        assert shown(found) in page.of("audit-1-movement")
        for estimator in ESTIMATORS:
            pair = {"segmenter": segmenter, "estimator": estimator}
            assert shown(one("bias", "all", **pair)) in page.of("audit-1-values")
    assert "number" in page.of("audit-1-movement")
    assert shown(one("class_share", "<b>")) in page.of("audit-1-movement")
    assert "The truth took" in page.of("audit-1-costs")


@pytest.mark.usefixtures("undrawn")
def test_audits_beside_training_have_both(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    write_audit(tmp_path / "first").finish()
    write_audit(tmp_path / "second", seed=1).finish()
    write_audit(tmp_path / "stopped").interrupt("the disk is full.")
    (tmp_path / "stopped" / "audit.parquet").unlink()
    page = Page(write_report(tmp_path))
    order = [*SECTIONS[:-3], *of_audit(1), *of_audit(2), *WHAT]
    assert list(page.text)[1:] == order
    assert "first: credit" in page.of("audit-1-credit")
    assert "second: where the value moves" in page.of("audit-2-movement")
    assert "3 credit audits in" in page.of("")
    assert "6 runs in" in page.of("")
    assert "in 2 groups by segmenter" in page.of("")
    assert "interrupted: the disk is full. In stopped." in page.of("runs")
    # The audits are no runs of which nothing was recorded.
    assert "newline 0.370" in page.of("results")
    assert "compare(runs, by, 'accuracy')" in page.of("python")
    assert "runs.audit" in page.of("python")
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("undrawn")
def test_the_python_on_the_page_runs(tmp_path: Path) -> None:
    write_audit(tmp_path).finish()
    page = Page(write_report(tmp_path))
    code = "".join(page.text["python"].partition("import segcredit")[1:])
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["runs"].audit) == len(rows())


def test_a_failed_audit_alone_is_said(tmp_path: Path) -> None:
    write_audit(tmp_path).fail("StudyError", "every reward is 0.", "Traceback: line 7")
    (tmp_path / "audit.parquet").unlink()
    page = Page(write_report(tmp_path))
    assert list(page.text)[1:] == ["runs", *WHAT]
    assert "failed: StudyError: every reward is 0." in page.of("runs")


@pytest.mark.usefixtures("undrawn")
def test_what_an_audit_left_out_is_said(tmp_path: Path) -> None:
    failed = {"entropy with tree": "PluginError: <b> it needs a tree."}
    write_audit(tmp_path / "some", failed=failed).finish()
    nothing = [row for row in rows() if "segmenter" not in row]
    write_audit(tmp_path / "all", nothing, failed).finish()
    page = Page(write_report(tmp_path))
    said = "Left out, since they failed: 1 pair. entropy with tree: PluginError: <b> it needs a"
    assert said in page.of("audit-1-credit")
    assert said in page.of("audit-2-credit")
    assert "0 segmenters with 0 estimators" in page.of("audit-1-credit")
    assert "the audit has no credit" in page.of("audit-1-completions")


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write_audit(tmp_path / "good").finish()
    write_audit(tmp_path / "bad").finish()
    (tmp_path / "bad" / "audit.parquet").write_bytes(b"nothing")
    page = Page(write_report(tmp_path))
    assert list(page.text)[1:] == ["runs", *of_audit(1), *WHAT]
    assert "bad: " in page.of("runs")
    assert "good: credit" in page.of("audit-1-credit")


def test_without_gradients_or_credits_on_disk_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Path) -> None:
        raise StudyError("the audit lacks the credits abc.")

    monkeypatch.setattr(credit_audit, "load_audit", missing)
    found = [row for row in rows() if row["section"] not in ("gradient", "signals")]
    write_audit(tmp_path, found).finish()
    page = Page(write_report(tmp_path))
    assert "No completion is shown: the audit lacks the credits abc." in page.of(
        "audit-1-completions"
    )
    assert "cosine" not in page.of("audit-1-credit").partition("Correlation, slope")[0]
    assert "(all)" not in page.of("audit-1-credit")
    assert "has no Lift" in page.of("audit-1-movement")


@pytest.mark.usefixtures("undrawn")
def test_an_audit_that_was_not_weighed_by_the_gradient_says_so(tmp_path: Path) -> None:
    older = [row for row in rows() if row["at"] not in ("gradient", "tokens")]
    write_audit(tmp_path, older).finish()
    page = Page(write_report(tmp_path))
    credit = page.of("audit-1-credit")
    assert "no metrics at the level gradient: an older version made it" in credit
    assert "By token, credit correlates" in credit
    assert "at late anchors" in page.of("audit-1-values")


@pytest.mark.usefixtures("undrawn")
def test_metrics_without_a_value_are_dashes(tmp_path: Path) -> None:
    nothing = {"value": math.nan, "low": math.nan, "high": math.nan}
    late = ("explained_variance", "late")
    found = rows()
    for row in found:
        if (row["metric"], row["at"], row.get("segmenter")) == (*late, "entropy"):
            row |= nothing
    write_audit(tmp_path, found).finish()
    assert " – " in Page(write_report(tmp_path)).of("audit-1-values")


# Which completions.


@pytest.mark.usefixtures("undrawn")
def test_every_completion_is_shown_with_the_truth_and_all_credits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = loaded_audit()
    monkeypatch.setattr(credit_audit, "load_audit", lambda _: made)
    write_audit(tmp_path).finish()
    data = shown_data(write_report(tmp_path))
    values_BHE = made.truth.values[:, 1:].numpy()  # the first split is what plug-ins see
    moved_B = np.nansum(np.diff(values_BHE[:, 0]) * np.diff(values_BHE[:, 1]), axis=1)
    order = np.argsort(-moved_B).tolist()
    assert data["reward"] == made.truth.rollouts.rewards[order].tolist()
    pairs = [f"{segmenter}, {estimator}" for segmenter in SEGMENTERS for estimator in ESTIMATORS]
    assert [cut["name"] for cut in data["cuts"]] == ["truth", *pairs]
    for place, row in enumerate(order):
        length = int(made.truth.rollouts.action_mask[row].sum())
        true_T = np.diff(values_BHE[row].mean(0))[:length]
        assert data["cuts"][0]["credit"][place][:length] == pytest.approx(true_T, rel=1e-3)
        for credits, cut in zip(made.credits, data["cuts"][1:], strict=True):
            given = [credits.advantages[scheme][row, :length] for scheme in SCHEMES]
            shown = cut["credit"][place][:length]  # credit that differs divides a segment
            assert any(shown == pytest.approx(x_T, rel=1e-3) for x_T in given)


@pytest.mark.usefixtures("undrawn")
def test_of_an_audit_that_is_large_those_are_shown_that_move_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "MOST_CELLS", 2 * 8 * 7)
    write_audit(tmp_path).finish()
    page = Page(write_report(tmp_path))
    assert "2 of 3 completions of the truth" in page.of("audit-1-completions")
    assert "3+4" in page.of("audit-1-completions")


def shown_data(report: Path) -> Any:
    found = re.search(r'<script type="application/json">(.*?)</script>', report.read_text("utf-8"))
    assert found is not None
    return json.loads(found[1])


EVIL = f"{SCRIPT}\"'><img src=x onerror=alert(2)> $x_{{ {{{{ 7919 * 104729 }}}}"


def test_what_users_wrote_is_shown_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ["</svg>", "<script>", "]]>", "\x00", "\u2028", EVIL, "\n", ""]
    made = loaded_audit([EVIL, "_"], EVIL, tokens)
    monkeypatch.setattr(credit_audit, "load_audit", lambda _: made)
    write_audit(tmp_path, rows({EVIL: True, "_": False}), method=EVIL).finish()
    page = Page(write_report(tmp_path))
    assert (page.tags["script"], page.tags["style"], page.tags["img"]) == (2, 1, 0)
    assert page.tags["figure"] == 6
    assert EVIL in page.of("audit-1-credit")
    assert f"prompt {EVIL}" in page.of("audit-1-completions")
    assert "829348951" not in page.source  # the product, had a template worked it out
    assert "\x00" not in page.source
    assert not any(name.startswith("on") for name, _ in page.attributes)


@pytest.mark.usefixtures("undrawn")
def test_the_same_audit_gives_the_same_bytes(tmp_path: Path) -> None:
    write_audit(tmp_path).finish()
    one, other = (write_report(tmp_path, tmp_path / f"{n}.html") for n in range(2))
    assert one.read_bytes() == other.read_bytes()


# In a browser.


@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_from_disk_and_never_scrolls_sideways(
    tmp_path: Path,
    open_page: Any,  # noqa: F811
    width: int,
) -> None:
    long = {f"{name}_with_a_long_name(inner=newline)": x for name, x in SEGMENTERS.items()}
    write_audit(tmp_path / "audit", rows(long)).finish()
    write_audit(tmp_path / "audit_with_a_long_name" / ("unbroken" * 6)).finish()
    report = write_report(tmp_path)
    opened = open_page(report, width)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.wait_for_timeout(100)
    assert opened.requests == [report.as_uri()]
    assert opened.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate(
        """() => [...document.querySelectorAll("figure")].map(figure =>
          [...figure.querySelectorAll("svg")].map(svg => {
            const box = svg.getBoundingClientRect();
            return {width: box.width, scale: box.width / (svg.viewBox.baseVal.width * 96 / 72)};
          }).filter(each => each.width > 0))"""
    )
    assert len(drawn) == 12
    for figure in drawn:
        assert len(figure) == 1
        assert 250 < figure[0]["width"] <= width
        assert figure[0]["scale"] * 6.5 * 96 / 72 > 7


def test_tokens_can_be_found_in_the_page(tmp_path: Path, open_page: Any) -> None:  # noqa: F811
    write_audit(tmp_path).finish()
    page = open_page(write_report(tmp_path)).page
    texts = page.locator("#audit-1-completions .sc-written").first.locator("span").all_inner_texts()
    assert {"3", "+", "end"} <= set(texts)
    assert page.locator("#audit-1-completions .sc-cut").count() == 4
    page.get_by_label("newline, critic").check()
    assert page.locator("#audit-1-completions .sc-cut").count() == 5


@pytest.mark.slow
def test_a_real_audit_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small = {"policy": {"steps": 300}}
    asked = {"prompts": 8, "completions": 4, "training_steps": 1, "gradient_samples": 64}
    settings = {"segmenters": ["entropy", "newline"], "gradient_batches": 4, "continuations": 1.0}
    config = {"method": "sapo", **small, "audit": asked | settings}
    page = Page(write_report(credit_audit.audit(config, tmp_path / "audit")))
    assert list(page.text)[1:] == ["runs", *of_audit(1), *WHAT]
    assert page.tags["figure"] >= 6
    assert "No completion is shown" not in page.of("audit-1-completions")

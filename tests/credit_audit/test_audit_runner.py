"""The audit as users run it: estimates that are right, runs that survive, input that is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

import segcredit
from segcredit import Segmentation
from segcredit.cli import main
from segcredit.credit_audit import (
    audit,
    compare_credits,
    failed_units,
    load_audit,
    load_audit_config,
)
from segcredit.credit_audit.checksummed_parquet import read_checksummed, write_checksummed
from segcredit.credit_audit.metric_list import METRICS
from segcredit.credit_audit.metrics import correlation, share_on_boundaries
from segcredit.credit_audit.policy_gradients import parameter_groups, policy_gradient
from segcredit.credit_audit.runner import TRUTH
from segcredit.credit_audit.table import JUDGES, arrays, token_classes
from segcredit.credit_audit.truth.store import LOGIT_GRADIENTS
from segcredit.errors import ConfigError, RegistryError, StudyError
from segcredit.records.run_directory import read_status
from segcredit.records.schemas import AUDIT, RENAMED, RENAMED_METRICS, STORED
from segcredit.training.build import build, with_credit
from small import SMALL

QUICK = [
    *SMALL,
    "audit.prompts=6",
    "audit.completions=2",
    "audit.continuations=0.5",
    "audit.training_steps=1",
    "audit.gradient_samples=24",
    "audit.gradient_batches=3",
    "audit.resamples=50",
]
AXES = [
    'audit.segmenters=["newline", {name="value_jump", top_fraction=0.3}]',
    'audit.estimators=["measured", "critic"]',
    'audit.advantages=["td", {name="gae", lam=0.9}]',
]
MINE = """
from dataclasses import dataclass
import segcredit

@segcredit.register.segmenter("mine")
@dataclass(frozen=True, slots=True)
class Mine(segcredit.TextSegmenter):
    causal = True
    def split(self, text):
        return [place + 1 for place, letter in enumerate(text) if letter in {SIGNS!r}]
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return audit(load_audit_config("sapo", [*QUICK, *AXES]), tmp_path_factory.mktemp("a") / "out")


def estimates(path: Path, **where: str):
    found = segcredit.read_runs(path).audit
    for column, value in where.items():
        found = found[found[column] == value]
    return found


def test_the_table_has_the_metrics_that_the_functions_give(done):
    found = load_audit(done)
    judge = arrays(found.truth, found.resampling).keep(JUDGES)
    credits = {(c.segmenter, c.estimator): c for c in found.credits}
    newline = credits["newline", "measured"]
    where = {"segmenter": "newline", "estimator": "measured", "advantage": "td"}
    row = estimates(done, **where, metric="correlation", at="token").iloc[0]
    expected = correlation(judge, newline.of("td"))
    assert (row.value, row.low, row.high) == (expected.value, expected.low, expected.high)
    assert row.prompts == 6
    row = estimates(done, segmenter="newline", metric="share_on_boundaries", at="start").iloc[0]
    expected = share_on_boundaries(judge, newline.segment_ids, fork="start")
    assert row.value == pytest.approx(expected.value, nan_ok=True)
    assert np.isnan(row.estimator) or row.estimator is None


def test_measured_values_are_of_the_part_that_does_not_judge(done):
    found = load_audit(done)
    credit = next(c for c in found.credits if c.estimator == "measured")
    truth, ids_BT = found.truth, credit.segment_ids
    starts_BT = np.diff(ids_BT, axis=1, prepend=-1) > 0
    seen_BT = truth.values[:, 0, :-1].nan_to_num(0).numpy()
    assert credit.state_values[starts_BT] == pytest.approx(seen_BT[starts_BT], abs=1e-6)


def test_td_of_measured_values_is_the_change_of_the_value_over_each_segment(done):
    found = load_audit(done)
    credit = next(c for c in found.credits if c.estimator == "measured")
    for row, ids_T in enumerate(credit.segment_ids):
        length = int((ids_T >= 0).sum())
        values = found.truth.values[row, 0].numpy()
        for segment in range(ids_T.max() + 1):
            places = np.flatnonzero(ids_T == segment)
            after = places[-1] + 1
            end = found.truth.rollouts.rewards[row] if after == length else values[after]
            given = credit.advantages["td"][row, places]
            assert given == pytest.approx(float(end) - values[places[0]], abs=1e-5)


def test_every_section_is_there_for_every_credit(done):
    table = segcredit.read_runs(done).audit
    assert set(table["section"].cat.categories) == {
        "signals",
        "movement",
        "values",
        "credit",
        "gradient",
        "cost",
    }
    credits = table[table["advantage"].notna()]
    assert credits.groupby(["segmenter", "estimator", "advantage"], observed=True).ngroups == 6
    keys = ["segmenter", "estimator", "advantage", "section", "metric", "at"]
    assert not table.duplicated(keys).any()
    assert list(table["segmenter"].cat.categories) == ["newline", "value_jump(top_fraction=0.3)"]
    causal = table.dropna(subset=["segmenter"]).groupby("segmenter", observed=True)["causal"]
    assert causal.first().to_dict() == {"newline": False, "value_jump(top_fraction=0.3)": False}


def test_the_table_of_metrics_is_what_an_audit_measures(done):
    table = segcredit.read_runs(done).audit
    measured = dict[tuple[str, str], set[str]]()
    for section, metric, at in table[["section", "metric", "at"]].itertuples(index=False):
        measured.setdefault((section, metric), set()).add(at)
    # Those of turns need several of them, see test_truth_turns.
    there = [one for one in METRICS if one.name.split("_")[0] not in ("turn", "turns")]
    assert measured.keys() == {(one.section, one.name) for one in there}
    for one in there:
        assert not one.levels or measured[one.section, one.name] == set(one.levels), one.name


def test_an_audit_with_the_names_of_before_is_read_under_those_of_today(done, tmp_path):
    old = tmp_path / "out"
    shutil.copytree(done, old)
    (old / "manifest.json").unlink()  # which that version did not write
    (old / "status.json").write_text('{"status": "finished"}')
    before = {(section, now): name for (section, name), now in RENAMED_METRICS.items()}
    label, rows = read_checksummed(old / AUDIT)
    for row in rows:
        section, metric = row.pop("section"), row.pop("metric")
        row |= {"question": section, "figure": before.get((section, metric), metric)}
        row["at"] = "response" if row["at"] == "completion" else row["at"]
    then = {name: now for now, name in RENAMED["audit"].items()}
    names = [then.get(name, name) for name in STORED["audit"].names]
    kinds = dict(zip(names, STORED["audit"].types, strict=True))
    write_checksummed(old / AUDIT, rows, pa.schema(kinds), label)
    for file in (old / "credits").iterdir():
        label, rows = read_checksummed(file)
        for by_group in label["gradients"].values():
            for found in by_group.values():
                found["noise"] = found.pop("gradient_noise")
        write_checksummed(file, rows, pq.read_schema(file).remove_metadata(), label)
    now, read = segcredit.read_runs(done), segcredit.read_runs(old)
    pd.testing.assert_frame_equal(read.audit, now.audit)
    columns, chosen = ["metric", "value"], ds.field("section") == "gradient"
    pd.testing.assert_frame_equal(
        read.read("audit", columns=columns, where=chosen),
        now.read("audit", columns=columns, where=chosen),
    )
    pairs = [compare_credits(load_audit(path), "gradient_noise", "all") for path in (done, old)]
    pd.testing.assert_frame_equal(*pairs)


def test_a_unit_that_cannot_be_worked_out_is_named_and_stops_no_other(done):
    """A critic learns on rollouts without values, which value_jump cannot cut."""
    (unit, sentence), *others = failed_units(done).items()
    assert unit == "value_jump(top_fraction=0.3) with critic"
    assert "token_values" in sentence
    assert not others
    assert not estimates(done, segmenter="newline", estimator="critic").empty


def test_pairs_have_the_interval_of_their_difference(done):
    found = load_audit(done)
    pairs = compare_credits(found, "correlation", "token")
    assert list(pairs["first"]) == ["newline", "newline"]
    assert list(pairs["advantage"]) == ["td", "gae(lam=0.9)"]
    table = estimates(done, estimator="measured", metric="correlation", at="token")
    value = table.set_index(["segmenter", "advantage"])["value"]
    apart = value["newline", "td"] - value["value_jump(top_fraction=0.3)", "td"]
    assert pairs["difference"][0] == pytest.approx(apart)
    assert pairs["low"][0] <= apart <= pairs["high"][0]
    assert len(compare_credits(found, "share_within", "")) == 1
    schemes = compare_credits(found, "cosine", "layers.0", between="advantage")
    assert list(schemes.columns[:4]) == ["segmenter", "estimator", "first", "second"]
    assert len(schemes) == 3
    with pytest.raises(StudyError, match=r"no metric 'correlatoin'.*correlation"):
        compare_credits(found, "correlatoin")
    with pytest.raises(StudyError, match=r"no place of correlation 'tokens'.*token"):
        compare_credits(found, "correlation", "tokens")


def test_credit_noise_is_held_against_a_token_a_segment_where_that_is_cheap(done):
    """Not asked for, since it costs neither sampling nor learning; a critic would learn anew."""
    found = load_audit(done)
    assert list(found.bases) == ["measured"]
    base = found.bases["measured"]
    assert base.segmenter == "per_token"
    assert base.by_token
    table = estimates(done, metric="credit_noise_ratio", at="gradient")
    assert "per_token" not in set(table["segmenter"])
    assert table[table["estimator"] == "critic"]["value"].isna().all()
    assert table[table["estimator"] == "measured"]["value"].notna().all()
    w = found.truth.logit_gradients.numpy()
    for credit in found.credits:
        if credit.estimator == "measured":
            sums = [(w * x.advantages["td"] ** 2).sum() for x in (credit, base)]
            where = (table["segmenter"] == credit.segmenter) & (table["advantage"] == "td")
            where &= table["estimator"] == "measured"
            (value,) = table[where]["value"]
            assert value == pytest.approx(sums[0] / sums[1])


def test_an_audit_without_logit_gradients_is_read_says_so_and_is_completed(done, tmp_path):
    old = tmp_path / "out"
    shutil.copytree(done, old)
    before = segcredit.read_runs(done).audit
    (old / TRUTH / LOGIT_GRADIENTS).unlink()
    label, rows = read_checksummed(old / AUDIT)
    for name in label.pop("bases"):
        (old / "credits" / f"{name}.parquet").unlink()
    kept = [row for row in rows if row["at"] not in ("gradient", "tokens")]
    write_checksummed(old / AUDIT, kept, STORED["audit"], label)
    found = load_audit(old)
    assert found.truth.logit_gradients is None
    assert not compare_credits(found, "correlation", "token").empty
    with pytest.raises(StudyError, match="made by an older version: run it again, which adds"):
        compare_credits(found)
    written = {file: file.stat().st_mtime_ns for file in (old / "credits").iterdir()}
    parts = {file: file.stat().st_mtime_ns for file in old.glob("truth/parts/*.parquet")}
    audit(load_audit_config("sapo", [*QUICK, *AXES]), old)
    after = segcredit.read_runs(old).audit
    costs = before["metric"] == "cpu_seconds"
    columns = [name for name in before if name != "run"]
    assert before[~costs][columns].equals(after[~costs][columns])
    files = written | parts
    assert {file: file.stat().st_mtime_ns for file in files} == files
    # A file of another truth, or one that the disk spoilt, is none.
    file = old / TRUTH / LOGIT_GRADIENTS
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert load_audit(old).truth.logit_gradients is None


def test_a_policy_without_logit_gradients_is_audited_without_that_level(
    done, tmp_path, monkeypatch
):
    lacking = type("Lacking", (), {})
    monkeypatch.setattr("segcredit.credit_audit.truth.store.SupportsLogitGradients", lacking)
    copied = tmp_path / "truth"
    shutil.copytree(done / TRUTH, copied)
    (copied / LOGIT_GRADIENTS).unlink()
    asked = [*QUICK, "audit.segmenters=whole", "audit.estimators=group_mean"]
    path = audit(load_audit_config("sapo", asked), tmp_path / "out", truth=copied)
    table = segcredit.read_runs(path).audit
    assert "gradient" not in set(table["at"])
    assert "token" in set(table["at"])
    assert not (copied / LOGIT_GRADIENTS).exists()


def test_only_learned_values_have_a_consistency_and_cost_tokens(done):
    cost = estimates(done, section="cost", segmenter="newline", metric="tokens")
    spent = cost.set_index("estimator")["value"]
    assert spent["measured"] == 0 < spent["critic"]
    values = estimates(done, section="values", segmenter="newline")
    consistent = values[values["metric"].astype(str).str.startswith("consistency")]
    assert set(consistent["estimator"]) == {"critic"}


def test_running_it_again_measures_nothing_and_gives_the_same_table(done):
    before = segcredit.read_runs(done).audit
    written = {file: file.stat().st_mtime_ns for file in (done / "credits").iterdir()}
    stages = []
    audit(load_audit_config("sapo", [*QUICK, *AXES]), done, watch=stages.append)
    assert {file: file.stat().st_mtime_ns for file in (done / "credits").iterdir()} == written
    assert "truth" not in {stage.stage for stage in stages}
    after = segcredit.read_runs(done).audit
    assert before.equals(after)
    assert read_status(done)["status"] == "finished"


def test_a_damaged_file_is_made_again(done):
    file = sorted((done / "credits").iterdir())[0]
    before, content = segcredit.read_runs(done).audit, file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StudyError, match="run the audit again"):
        load_audit(done)
    audit(load_audit_config("sapo", [*QUICK, *AXES]), done)
    costs = before["metric"] == "cpu_seconds"
    assert before[~costs].equals(segcredit.read_runs(done).audit[~costs])


def test_a_killed_audit_continues(tmp_path):
    options = [*QUICK, *AXES, "audit.prompts=20"]
    code = "from segcredit.cli import main; main()"
    command = [sys.executable, "-c", code, "audit", "sapo", *options, "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("truth/parts/*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("truth/parts/*.parquet")}
    audit(load_audit_config("sapo", options), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    other = audit(load_audit_config("sapo", options), tmp_path / "whole")
    tables = [segcredit.read_runs(path).audit for path in (tmp_path, other)]
    left = [t[~t["metric"].astype(str).str.contains("cpu")].drop(columns="run") for t in tables]
    assert left[0].equals(left[1])


def test_one_truth_serves_another_audit_and_is_refused_to_another_policy(done, tmp_path):
    asked = [*QUICK, "audit.segmenters=whole", "audit.estimators=group_mean"]
    path = audit(load_audit_config("sapo", asked), tmp_path / "a", truth=done / TRUTH)
    assert not (path / TRUTH).exists()
    assert load_audit(path).truth.hash == load_audit(done).truth.hash
    other = load_audit_config("sapo", [*asked, "policy.steps=41"])
    with pytest.raises(StudyError, match=r"policy\.steps \(there 40, now 41\)"):
        audit(other, tmp_path / "b", truth=done / TRUTH)
    assert read_status(tmp_path / "b")["status"] == "failed"


def test_a_segmenter_of_ones_own_goes_from_its_file_to_a_row(done, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE.replace("{SIGNS!r}", "'+-'"))
    path, options = tmp_path / "out", ["--truth", str(done / TRUTH), "--code", str(file)]
    command = ["audit", "sapo", *QUICK, "-s", "mine", "--output", str(path), *options]
    command += ["audit.estimators=measured", "audit.advantages=td"]
    # In a process of its own: a file is registered once in a process.
    run = [sys.executable, "-c", "from segcredit.cli import main; main()", *command]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "mine" in shown
    assert "segcredit report" in shown
    first = estimates(path, segmenter="mine", metric="segments").value.iloc[0]
    assert first > 1
    file.write_text(MINE.replace("{SIGNS!r}", "'!'"))
    subprocess.run(run, capture_output=True, text=True, check=True)
    assert estimates(path, segmenter="mine", metric="segments").value.iloc[0] == 1


def test_the_default_is_the_method_itself():
    config = load_audit_config("sapo", SMALL)
    assert {axis: list(names) for axis, names in config.labels.items()} == {
        "segmenters": ["entropy"],
        "estimators": ["critic(lam=0.99)"],
        "advantages": ["whitened(inner=gae(lam=0.99), clamp=5.0)"],
    }


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("audit.prompts=0", ConfigError, "audit.prompts: .*greater than or equal to 2; found 0"),
        ("audit.continuations=0", ConfigError, "audit.continuations: .*or equal to 1e-06"),
        ("audit.segmenters=[]", ConfigError, "audit.segmenters: .*at least 1"),
        ("audit.promts=3", ConfigError, "audit.promts: there is no such key.*prompts"),
        ('audit.segmenters=["newlin"]', RegistryError, "audit.segmenters: .*newline"),
        ('audit.segmenters=["whole", "whole"]', ConfigError, "whole stands there twice"),
        ('audit.classes={a="("}', ConfigError, "audit.classes.a: expected a regular expression"),
        ("audit=3", ConfigError, r"expected a table, headed \[audit\]"),
    ],
)
def test_bad_settings_are_sentences(override, error, message):
    with pytest.raises(error, match=message):
        load_audit_config("sapo", [*SMALL, override])


def test_a_policy_that_never_ends_is_a_sentence(tmp_path, capsys):
    options = [*QUICK, "rollouts.max_new_tokens=2", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["audit", "sapo", *options])
    shown = capsys.readouterr().err
    assert "earned the reward 0, and 100% of the completions were cut" in " ".join(shown.split())


def test_a_config_with_an_audit_table_still_trains():
    config = segcredit.load_config({"method": "grpo", "audit": {"prompts": 3}}, SMALL)
    assert config.method == "grpo"


# The parts.


def test_with_credit_shares_the_policy_and_starts_the_state_anew():
    config = segcredit.load_config("grpo", SMALL)
    run = build(config)
    other = with_credit(run, segcredit.load_config("sapo", SMALL))
    assert other.actor is run.actor
    assert other.state.optimizer is not None
    assert run.state.optimizer is None


def test_the_gradient_of_batches_is_the_sum_of_their_tokens():
    run = build(segcredit.load_config("grpo", SMALL))
    from segcredit.training.rollouts.sampling import sample

    rollouts = sample(run, 1).rollouts
    generator = torch.Generator().manual_seed(0)
    given_BT = torch.randn(rollouts.action_mask.shape, generator=generator)
    given_BT = given_BT * rollouts.action_mask
    batches = [torch.tensor([0, 3]), torch.tensor([5])]
    found = policy_gradient(run, rollouts, given_BT, batches)
    parameters = [p for p in run.actor.parameters() if p.requires_grad]
    for rows, gradient in zip(batches, found, strict=True):
        total = torch.zeros(sum(p.numel() for p in parameters))
        for row in rows.tolist():
            logprobs_T = run.actor(rollouts.select([row])).logprobs[0]
            for t in rollouts.action_mask[row].nonzero()[:, 0].tolist():
                parts = torch.autograd.grad(logprobs_T[t], parameters, retain_graph=True)
                total += given_BT[row, t] * torch.cat([part.flatten() for part in parts])
        assert gradient == pytest.approx((total / len(rows)).numpy(), abs=2e-5)


def test_the_groups_of_parameters_are_the_parts_of_the_network():
    run = build(segcredit.load_config("grpo", SMALL))
    groups = parameter_groups(run.actor)
    assert list(groups) == ["embed_tokens", "layers.0", "layers.1", "norm", "lm_head"]
    places = np.sort(np.concatenate(list(groups.values())))
    assert places.tolist() == list(range(sum(p.numel() for p in run.actor.parameters())))


def test_token_classes_take_the_first_pattern_that_fits():
    spans = np.array([[[0, 1], [1, 2], [2, 3], [3, 3]]])
    classes, names = token_classes(["4=5"], spans, {"result": r"(?<==)\d", "digit": r"\d"})
    assert names == ["result", "digit", "other"]
    assert classes.tolist() == [[1, 2, 0, 2]]


def test_shuffled_keeps_the_number_of_segments_and_deals_the_places():
    from segcredit.testing.rollouts import make_rollouts
    from segmenters.newline import Newline
    from segmenters.shuffled import Shuffled

    rollouts = make_rollouts(200, token_values=False)
    inner = Newline().segment(rollouts)
    starts_BT = torch.stack(
        [_starts(Shuffled(Newline(), seed).segment(rollouts)) for seed in (0, 1)]
    )
    assert torch.equal(Shuffled(Newline()).segment(rollouts).counts, inner.counts)
    assert not torch.equal(starts_BT[0], starts_BT[1])
    # Every inner place is as likely: by tenths of the row, as many cuts as places, times the rate.
    mask_BT = rollouts.action_mask
    inside_BT = mask_BT & (mask_BT.cumsum(1) > 1)
    ranks_BT, places_B1 = inside_BT.cumsum(1), inside_BT.sum(1, keepdim=True).clamp(min=1)
    tenths_BT = ((ranks_BT - 1) * 10 // places_B1).clamp(0, 9)
    rate_BT = ((inner.counts - 1)[:, None] / places_B1).expand_as(ranks_BT)
    cuts, expected = torch.zeros(10), torch.zeros(10)
    cuts.index_add_(0, tenths_BT[inside_BT], starts_BT.float().sum(0)[inside_BT])
    expected.index_add_(0, tenths_BT[inside_BT], 2 * rate_BT[inside_BT])
    assert float(expected.min()) > 30
    # Chi-square with 9 degrees of freedom; sampling without replacement makes it smaller.
    assert float(((cuts - expected) ** 2 / expected).sum()) < 23.6  # .005


def _starts(segmentation: Segmentation) -> torch.Tensor:
    mask_BT = segmentation.action_mask
    ids_BT = segmentation.segment_ids
    before_BT = torch.cat([torch.zeros_like(ids_BT[:, :1]), ids_BT[:, :-1]], 1)
    return mask_BT & (ids_BT > before_BT)


def test_the_table_as_json_and_nothing_else(done, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["audit", "sapo", *QUICK, *AXES, "--output", str(done), "--json"])
    found = json.loads(capsys.readouterr().out)
    table = segcredit.read_runs(done).audit
    assert list(found["audit"][0]) == list(table.columns)
    values = [row["value"] for row in found["audit"]]
    assert values == [value if np.isfinite(value) else None for value in table["value"]]
    left_out = {row["unit"]: row["error"] for row in found["left_out"]}
    assert left_out == failed_units(done)

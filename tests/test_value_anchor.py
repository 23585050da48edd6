"""The study of the value anchor: worked examples, identities of both anchors, its measures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "experiments" / "02_value_anchor"


def load() -> ModuleType:
    """The script as a module; its folder's name is no Python name."""
    spec = importlib.util.spec_from_file_location("value_anchor", FOLDER / "value_anchor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["value_anchor"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


study = load()


def world(fork_share: float, *, kind: str = "bounded", drawn: bool = False, seed: int = 0):
    return study.make_world(kind, drawn, fork_share, seed=seed, prompts=4)


def advantage(data, anchor: str, lam: float = 0.0):
    return study.credit_of(data, anchor, study.scheme_of(lam))


def rows(data) -> list[tuple[list[float], list[int]]]:
    """Every completion's value changes and the positions of its segments' last tokens."""
    found = []
    for b, n in enumerate(data.rollouts.action_mask.sum(1).tolist()):
        entropies = data.rollouts.entropies[b, :n].tolist()
        forks = sorted(range(n), key=lambda t: -entropies[t])[: -(-3 * n // 10)]
        found.append((data.changes_BT[b, :n].tolist(), sorted({*forks, n - 1})))
    return found


def test_worked_examples_as_in_the_notes() -> None:
    table = study.worked_examples().set_index(["case", "anchor"])
    columns = ["V", "A, λ = 0", "A, λ = 1", "true credit"]
    case_a, case_b = study.WORKED
    want = {
        (case_a, "start"): ["(0.5, 0.5)", "(0, 0.5)", "(0.5, 0.5)", "(0, 0.5)"],
        (case_a, "last_token"): ["(0.5, 0.9)", "(0.4, 0.1)", "(0.5, 0.1)", "(0, 0.5)"],
        (case_b, "start"): ["(0.5, 0.9)", "(0.4, 0)", "(0.4, 0)", "(0.4, 0)"],
        (case_b, "last_token"): ["(0.9, 0.9)", "(0, 0)", "(0, 0)", "(0.4, 0)"],
    }
    assert {key: table.loc[key, columns].tolist() for key in want} == want
    assert len(table) == len(want)


@pytest.mark.parametrize("kind", ["gaussian", "bounded"])
@pytest.mark.parametrize("fork_share", [1.0, 0.5, 0.0])
def test_one_step_advantages_are_the_changes_that_each_anchor_covers(
    kind: str, fork_share: float
) -> None:
    data = world(fork_share, kind=kind)
    start, last = advantage(data, "start").per_segment, advantage(data, "last_token").per_segment
    for b, (changes, ends) in enumerate(rows(data)):
        begins = [0, *(e + 1 for e in ends[:-1])]
        true = [sum(changes[s : e + 1]) for s, e in zip(begins, ends, strict=True)]
        shifted = [sum(changes[e:f]) for e, f in zip(ends, [*ends[1:], None], strict=True)]
        assert data.credit_BS[b, : len(ends)].tolist() == pytest.approx(true, abs=1e-12)
        assert start[b, : len(ends)].tolist() == pytest.approx(true, abs=1e-12)
        assert last[b, : len(ends)].tolist() == pytest.approx(shifted, abs=1e-12)


@pytest.mark.parametrize("lam", study.LAMBDAS)
def test_the_anchors_agree_where_only_forks_change_the_value(lam: float) -> None:
    # Exactly so: no token before a segment's last one has moved the value since it began.
    data = world(1.0)
    start, last = advantage(data, "start", lam), advantage(data, "last_token", lam)
    assert torch.equal(start.per_token, last.per_token)


@pytest.mark.parametrize("fork_share", study.FORK_SHARES)
def test_start_is_exact_at_lambda_0_for_every_share(fork_share: float) -> None:
    data = world(fork_share)
    measured = study.quality(data, advantage(data, "start"))
    for name in ("correlation", "correlation_segments", "own_share"):
        assert measured[name] == pytest.approx(1, abs=1e-9)
    assert study.conservation(data, advantage(data, "start"))["sum_gap"] < 1e-12


def test_last_token_is_exact_at_lambda_0_where_only_forks_change_the_value() -> None:
    data = world(1.0)
    measured = study.quality(data, advantage(data, "last_token"))
    assert measured["correlation"] == pytest.approx(1, abs=1e-9)
    assert np.isnan(measured["inner_token_share"])


def test_without_changes_on_forks_last_token_pays_the_segment_before() -> None:
    data = study.make_world("bounded", False, 0.0, seed=0, prompts=64)
    measured = study.quality(data, advantage(data, "last_token"))
    # The chance of 512 completions, and rows whose last token is no fork.
    assert abs(measured["own_share"]) < 0.05
    assert measured["previous_share"] > 0.9
    assert measured["inner_token_share"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("lam", study.LAMBDAS)
def test_what_a_token_inside_a_segment_does_never_reaches_its_own_advantage(lam: float) -> None:
    forks, inner = [2, 5], 4
    before = [0.5, 0.4, 0.6, 0.3, 0.5, 0.2, 0.7]
    after = [v + 0.1 * (t > inner) for t, v in enumerate(before)]
    plain, changed = (study.completion(v[:-1], v[-1], forks) for v in (before, after))
    for anchor, want in (("start", 0.1), ("last_token", 0.0)):
        moved = advantage(changed, anchor, lam).per_token - advantage(plain, anchor, lam).per_token
        assert float(moved[0, inner]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("drawn", [False, True])
def test_last_token_loses_what_the_first_segment_changed_before_its_last_token(
    drawn: bool,
) -> None:
    data = world(0.3, drawn=drawn)
    lost = [sum(changes[: ends[0]]) for changes, ends in rows(data)]
    whole = [sum(changes) for changes, _ in rows(data)]
    found = study.conservation(data, advantage(data, "last_token"))
    assert found["sum_gap"] == pytest.approx(np.abs(lost).mean(), rel=1e-9)
    assert found["lost"] == pytest.approx(np.square(lost).sum() / np.square(whole).sum(), rel=1e-9)


def test_measures_against_loops_over_tokens() -> None:
    data = world(0.5, seed=3)
    found = advantage(data, "last_token", 0.95)
    pairs: dict[str, list[tuple[float, float]]] = {"own": [], "next": [], "inner": [], "ends": []}
    for b, (changes, ends) in enumerate(rows(data)):
        begins = [0, *(e + 1 for e in ends[:-1])]
        true = [sum(changes[s : e + 1]) for s, e in zip(begins, ends, strict=True)]
        for m, (first, last) in enumerate(zip(begins, ends, strict=True)):
            paid = float(found.per_segment[b, m])
            for t in range(first, last + 1):
                pairs["own"].append((paid, true[m]))
                pairs["ends" if t == last else "inner"].append((paid, changes[t]))
                if m + 1 < len(true):
                    pairs["next"].append((paid, true[m + 1]))
    tables = {name: np.array(values).T for name, values in pairs.items()}
    measured = study.quality(data, found)
    for name, pair in (("correlation", "own"), ("previous_correlation", "next")):
        assert measured[name] == pytest.approx(np.corrcoef(tables[pair])[0, 1], rel=1e-9)
    shares = {"own": "own", "previous": "next", "inner_token": "inner", "ending_token": "ends"}
    for name, pair in shares.items():
        y, x = tables[pair]
        assert measured[f"{name}_share"] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9)
    by_row = [
        np.corrcoef(
            found.per_token[b, : len(c)], data.segmentation.spread(data.credit_BS)[b, : len(c)]
        )
        for b, (c, _) in enumerate(rows(data))
    ]
    assert measured["correlation_within"] == pytest.approx(np.mean(by_row, 0)[0, 1], rel=1e-9)
    same = [(x > 0) == (y > 0) for x, y in pairs["own"] if y != 0]
    assert measured["sign_agreement"] == pytest.approx(np.mean(same))


def test_likeness_against_loops_over_rows() -> None:
    data = world(0.5, seed=4)
    start, last = advantage(data, "start", 0.99), advantage(data, "last_token", 0.99)
    both: list[tuple[Tensor, Tensor]] = [
        (last.per_token[b, : len(c)], start.per_token[b, : len(c)])
        for b, (c, _) in enumerate(rows(data))
    ]
    found = study.likeness(data, last, start)
    within = np.mean([np.corrcoef(x, y)[0, 1] for x, y in both])
    assert found["correlation_within"] == pytest.approx(within, rel=1e-9)
    x, y = (np.concatenate(side) for side in zip(*both, strict=True))
    assert found["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
    assert found["scale"] == pytest.approx(np.std(x) / np.std(y), rel=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "bounded"])
@pytest.mark.parametrize("fork_share", [0.9, 0.3])
def test_values_have_no_drift_and_the_share_asked_for(kind: str, fork_share: float) -> None:
    data = study.make_world(kind, False, fork_share, seed=1, prompts=64)
    changes = data.changes_BT[data.rollouts.action_mask]
    drift = changes.mean() / (changes.std() / len(changes) ** 0.5)
    assert abs(float(drift)) < 4
    assert data.fork_share == pytest.approx(fork_share, abs=0.03)
    values = data.rollouts.token_values
    assert kind == "gaussian" or bool(((values > 0) & (values < 1)).all())


def test_a_drawn_reward_is_the_final_value_on_average() -> None:
    plain = study.make_world("bounded", False, 0.5, seed=2, prompts=64).rollouts
    drawn = study.make_world("bounded", True, 0.5, seed=2, prompts=64).rollouts
    assert set(drawn.rewards.tolist()) == {0.0, 1.0}
    assert torch.equal(plain.token_values, drawn.token_values)
    assert float((drawn.rewards - plain.rewards).mean()) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("fork_share", [0.7, 0.3])
def test_long_responses_reach_the_closed_form(
    fork_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LENGTHS", (1000, 1000))
    data = study.make_world("gaussian", False, fork_share, seed=5, prompts=16)
    found = study.quality(data, advantage(data, "last_token"))
    want = fork_share / (2 - fork_share) ** 0.5
    assert found["correlation"] == pytest.approx(want, abs=0.02)
    assert found["correlation_segments"] == pytest.approx(fork_share, abs=0.02)


def test_the_script_writes_its_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "FORK_SHARES", (1.0, 0.3))
    study.main(["--output", str(tmp_path), "--seeds", "2", "--prompts", "2"])
    results = pd.read_csv(tmp_path / "results.csv")
    committed = pd.read_csv(FOLDER / "results.csv")
    assert list(results.columns) == list(committed.columns)
    assert set(results["subject"]) == set(committed["subject"])
    known = results.dropna(subset=["mean"])
    assert bool(((known["low"] <= known["mean"]) & (known["mean"] <= known["high"])).all())
    assert (tmp_path / "value_anchor.png").stat().st_size > 10_000
    assert "(b) jump inside segment 1 | last_token | (0.9, 0.9) | (0, 0)" in capsys.readouterr().out


def test_the_readme_prints_the_committed_numbers() -> None:
    results = pd.read_csv(FOLDER / "results.csv")
    readme = (FOLDER / "README.md").read_text()
    for title, table in study.tables(results):
        assert study.markdown(table) in readme, title

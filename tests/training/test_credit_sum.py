"""A sum of credits against plain loops; rewards by source; critics of a sum; refusals."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import segcredit
from segcredit import load_config
from segcredit.errors import ConfigError, RegistryError
from segcredit.segmentation import Segmentation
from segcredit.testing import make_rollouts
from segcredit.training.build import Run, build, run_hash
from segcredit.training.credit_assignment import TrainingBatch, assign, collect
from segcredit.training.loop import iterate
from segcredit.training.rollouts.sampling import Sampled
from segcredit.training.update import improve
from segcredit.types import RolloutBatch
from small import SMALL

TEXTS = ["ae\n1", "e\n\na", "11", "", "a\ne\n1", "1"]
CRITIC = {
    "segmenter": "newline",
    "estimator": {"name": "critic", "lam": 0.9},
    "advantage": {"name": "gae", "lam": 0.9},
    "weight": 0.5,
}


def item(segmenter: Any, estimator: Any, advantage: Any, **keys: Any) -> dict[str, Any]:
    return {"segmenter": segmenter, "estimator": estimator, "advantage": advantage, **keys}


def run_of(first: dict[str, Any], *further: dict[str, Any], **keys: Any) -> Run:
    """A run whose credits are these, ``first`` in the top-level keys."""
    source = {"method": "grpo", **first, "credit": list(further), **keys}
    return build(load_config(source, SMALL))


def turns_of_two(seed: int = 0) -> RolloutBatch:
    """Rows of several turns, with rewards on each turn's last token and an observation between."""
    texts = ["aaee1", "ae1ae", "11", "eeaa1"]
    made = make_rollouts(texts, group_size=2, holes={0: [2], 1: [2], 3: [2]}, seed=seed)
    turns = torch.full_like(made.completion_ids, -1)
    turns[:, :2] = 0
    turns[[0, 1, 3], 3:] = 1
    turns[2, 2] = 0  # its end token
    turns = turns.masked_fill(~made.action_mask, -1)
    rewards = torch.zeros_like(made.token_rewards)
    rewards[[0, 1, 3], 1] = torch.tensor([0.5, -1.0, 0.25])
    rewards += made.token_rewards
    return made.replace(turn_ids=turns, token_rewards=rewards, rewards=rewards.sum(1))


def credited(run: Run, rollouts: RolloutBatch) -> TrainingBatch:
    return assign(run, Sampled(rollouts, (), tokens=0, rounds=1), 1)


def numbers(x: Tensor) -> list[list[float]]:
    return x.double().tolist()


def segments_by_loop(mask: list[bool], cuts: set[int]) -> list[list[int]]:
    """Token positions of each segment, cut before the positions in ``cuts``."""
    found: list[list[int]] = []
    for position, chosen in enumerate(mask):
        if chosen:
            if not found or position in cuts:
                found.append([])
            found[-1].append(position)
    return found


def test_two_segment_definitions_add_up() -> None:
    """Whole completions against their group's mean, lines as the reward that is left to earn, and
    single tokens by what they earn: by plain loops."""
    further = (
        item("newline", "zero", "full_return", weight=0.5),
        item("per_token", "group_mean", {"name": "td", "gamma": 0.0}, weight=-2.0),
    )
    run = run_of(item("whole", "group_mean", "full_return"), *further)
    rollouts = make_rollouts(TEXTS, group_size=3, seed=3)
    found = credited(run, rollouts)
    rewards = numbers(rollouts.token_rewards)
    mask = rollouts.action_mask.tolist()
    lines = found.further[0].segmentation.starts.tolist()
    returns = [
        sum(r for r, m in zip(*each, strict=True) if m) for each in zip(rewards, mask, strict=False)
    ]
    want = torch.zeros_like(found.advantages.per_token, dtype=torch.float64)
    for row, own in enumerate(mask):
        group = [returns[other] for other in range(6) if other // 3 == row // 3]
        mean = sum(group) / 3
        cuts = {position for position, begins in enumerate(lines[row]) if begins}
        for segment in segments_by_loop(own, cuts):
            later = sum(rewards[row][t] for t in range(segment[0], len(own)) if own[t])
            for t in segment:
                want[row, t] = returns[row] - mean + 0.5 * later - 2.0 * (rewards[row][t] - mean)
    torch.testing.assert_close(found.advantages.per_token.double(), want, atol=1e-6, rtol=0)
    assert max(map(sum, lines)) > 1
    whole = found.segmentation.reduce(want.float(), "mean")
    torch.testing.assert_close(found.advantages.per_segment, whole, atol=1e-6, rtol=0)


def test_a_sum_is_what_each_gives_by_itself() -> None:
    """On sampled completions, with whatever each credit is made of."""
    own = item("sentence", "leave_one_out", {"name": "group_scaled", "inner": "full_return"})
    both = collect(run_of(item("whole", "group_mean", "full_return"), {**own, "weight": 0.3}), 1)
    alone = [collect(run_of(each), 1) for each in (item("whole", "group_mean", "full_return"), own)]
    want = alone[0].advantages.per_token + 0.3 * alone[1].advantages.per_token
    assert want.abs().max() > 0
    torch.testing.assert_close(both.advantages.per_token, want)
    assert torch.equal(both.ratio_segmentation.segment_ids, alone[0].segmentation.segment_ids)
    for found, one in zip(both.each_credit(), alone, strict=True):
        assert torch.equal(found, one.advantages.per_token)


def test_one_whitening_after_the_sum() -> None:
    """Mean and variance of the sum over all tokens; neither credit is whitened by itself."""
    first, second = item("whole", "group_mean", "full_return"), item("newline", "zero", "td")
    rollouts = make_rollouts(TEXTS, group_size=3, seed=5)
    white = {"name": "whitened", "inner": "td", "clamp": 1.0}
    found = credited(run_of(first, second, credit_scheme=white), rollouts)
    plain = credited(run_of(first, second), rollouts).advantages.per_token.double()
    mask = rollouts.action_mask
    every = plain[mask].tolist()
    mean = sum(every) / len(every)
    variance = sum((x - mean) ** 2 for x in every) / (len(every) - 1)
    want = (plain - mean) / math.sqrt(variance + 1e-8)
    expected = want.clamp(-1, 1).masked_fill(~mask, 0)
    torch.testing.assert_close(found.advantages.per_token.double(), expected, atol=1e-5, rtol=0)
    cut = 1 - float(expected[mask].square().sum() / want[mask].square().sum())
    assert found.clamped_share is not None
    assert float(found.clamped_share) == pytest.approx(cut, abs=1e-5)
    assert cut > 0.05


@pytest.mark.parametrize("source", ["all", "outcome", "last", "turn"])
def test_rewards_by_their_source(source: str) -> None:
    """What a token earns, seen through one segment a token and a discount of 0."""
    rollouts = turns_of_two()
    reads = item("per_token", "zero", {"name": "td", "gamma": 0.0}, reward_source=source)
    found = credited(run_of(reads), rollouts).advantages.per_token
    for row, mask in enumerate(rollouts.action_mask.tolist()):
        rewards = [float(r) * m for r, m in zip(rollouts.token_rewards[row], mask, strict=True)]
        last = max(t for t, chosen in enumerate(mask) if chosen)
        for t in range(len(mask)):
            want = {
                "all": rewards[t],
                "outcome": sum(rewards) if t == last else 0.0,
                "last": rewards[t] if t == last else 0.0,
                "turn": 0.0 if t == last else rewards[t],
            }[source]
            assert float(found[row, t]) == pytest.approx(want, abs=1e-6)


def test_a_process_reward_by_itself() -> None:
    """Its source ``process`` leaves out the completion's reward, which ``all`` adds."""
    keys = {"process_reward": "equations"}
    parts = item("newline", "zero", {"name": "td", "gamma": 0.0})
    both, process, rewards = (
        collect(run_of(parts | own), 1).advantages.per_segment
        for own in (keys, keys | {"reward_source": "process"}, {})
    )
    torch.testing.assert_close(both, process + rewards)
    assert process.abs().max() > 0


def test_turn_rewards_stay_in_their_own_turn() -> None:
    """MT-GRPO's A^T: no discount reaches back from a later turn."""
    rollouts = turns_of_two()
    own = item("turns", "zero", {"name": "td", "gamma": 0.0}, reward_source="turn")
    found = credited(run_of(own), rollouts).advantages.per_token
    turns = rollouts.turn_ids
    assert turns is not None
    assert found[0, :2].tolist() == [0.5, 0.5]
    assert found[1, :2].tolist() == [-1.0, -1.0]
    assert found[turns != 0].abs().max() == 0
    assert found[2].abs().max() == 0


def test_a_critic_of_a_further_credit_learns_and_is_resumed(tmp_path: Path) -> None:
    """Bit for bit as the run that was not stopped; its losses and sizes have columns."""
    source = {"method": "ppo", "credit": [CRITIC]}
    config = load_config(source, SMALL)
    segcredit.train(config, tmp_path / "whole")
    torn = tmp_path / "torn"
    steps = iterate(config, torn)
    while next(steps)["step"] < 3:
        pass
    steps.close()
    segcredit.train(config, torn, resume=True)
    found = segcredit.read_runs(tmp_path)
    last = found.steps[found.steps.step == 4].drop(columns=["run", "cpu_seconds"])
    assert last.iloc[0].equals(last.iloc[1])
    first = found.steps[(found.steps.run == "whole") & (found.steps.step > 0)]
    for column in ("value_loss", "value_loss_1", "value_gradient_norm_1", "credit_0", "credit_1"):
        assert (first[column] > 0).all(), column
    assert first.value_loss_1.iloc[0] != first.value_loss.iloc[0]
    tokens = found.tokens[found.tokens.run == "whole"]
    total = tokens.advantage_0 + 0.5 * tokens.advantage_1
    assert (total - tokens.advantage).abs().max() < 1e-6


def test_a_further_critic_is_trained_where_the_first_estimator_is_not() -> None:
    run = run_of(item("whole", "group_mean", "full_return"), CRITIC)
    assert run.state.optimizer is None
    (further,) = run.further
    before = [p.detach().clone() for p in further.run.state.parameters]
    metrics = improve(run, collect(run, 1), 1)
    after = further.run.state.parameters
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert "value_loss" not in metrics
    assert metrics["value_loss_1"] > 0


def test_configs_without_a_sum_are_written_as_before() -> None:
    """No key of a sum is in what names a run, and what names it is the same."""
    dumped = load_config("grpo").model_dump()
    assert not {"credit", "credit_scheme", "reward_source"} & dumped.keys()
    named = load_config({"method": "grpo", "credit": [], "reward_source": "all"})
    assert run_hash(named) == run_hash(load_config("grpo"))
    assert run_hash(load_config({"method": "grpo", "credit": [CRITIC]})) != run_hash(named)


def test_a_table_of_credit_is_one_key_of_a_config() -> None:
    """By its place, in a file's own list as in a preset's; every option written out."""
    source = {"method": "grpo", "credit": [CRITIC]}
    config = load_config(source, ["credit.0.weight=2", "credit.0.estimator.lam=0.5"])
    assert config.credit[0].weight == 2
    assert config.credit[0].estimator["lam"] == 0.5
    assert "gamma" in config.credit[0].advantage
    assert load_config(config.model_dump()) == config
    assert ("credit.0.estimator", "critic") in {(p, t["name"]) for p, _, t in config.plugins()}


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"credit": [{**CRITIC, "segmenter": "newlin"}]},
            RegistryError,
            "credit.0.segmenter: .*new",
        ),
        (
            {"credit": [{**CRITIC, "estimator": {"name": "critic", "l": 1}}]},
            RegistryError,
            "credit.0",
        ),
        ({"credit": [{**CRITIC, "weight": math.inf}]}, ConfigError, "credit.0.weight: .*finite"),
        ({"credit": [{**CRITIC, "weight": math.nan}]}, ConfigError, "credit.0.weight: .*finite"),
        ({"credit": [{**CRITIC, "wait": 1}]}, ConfigError, "credit.0.wait: .*no such key.*weight"),
        (
            {"credit": [{"weight": 1}]},
            ConfigError,
            "credit.0.segmenter: is missing; expected it in",
        ),
        ({"credit": [{**CRITIC, "reward_source": "tern"}]}, ConfigError, "reward_source: .*'turn'"),
        (
            {"credit": [{**CRITIC, "reward_source": "process"}]},
            ConfigError,
            "without a process_rew",
        ),
        ({"reward_source": "process"}, ConfigError, "'process' without a process_reward"),
        ({"credit_scheme": {"name": "whitened", "inner": "td"}}, ConfigError, "no sum of credits"),
        (
            {"credit": [{**CRITIC, "reward_source": "turn"}], "loss": {"kl_penalty": 0.1}},
            ConfigError,
            "kl_penalty stands on every token",
        ),
    ],
)
def test_senseless_sums_are_refused(
    changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        load_config({"method": "grpo", **changes})


def test_a_place_that_the_list_lacks_is_refused() -> None:
    for key in ("credit.1.weight=2", "credit.first.weight=2"):
        with pytest.raises(ConfigError, match=r"none of the list's 1 tables; expected the place"):
            load_config({"method": "grpo", "credit": [CRITIC]}, [key])


def test_rewards_of_turns_are_warned_of_where_there_is_one_turn() -> None:
    turn = item("turns", "zero", {"name": "td", "gamma": 0.0}, reward_source="turn")
    with pytest.warns(UserWarning, match="'arithmetic' has completions of one turn"):
        run = run_of(item("whole", "group_mean", "full_return"), turn)
    batch = collect(run, 1)
    assert torch.equal(batch.advantages.per_token, batch.each_credit()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_of(item("whole", "group_mean", "full_return"), CRITIC)


def test_rows_without_tokens_take_no_part_in_a_sum() -> None:
    rollouts = make_rollouts(["ae", "", "1", ""], truncated=[1, 3])
    white = {"name": "whitened", "inner": "td"}
    first, second = item("whole", "group_mean", "full_return"), item("newline", "zero", "td")
    found = credited(run_of(first, second, credit_scheme=white), rollouts).advantages
    assert found.per_token.isfinite().all()
    assert found.per_token[[1, 3]].abs().max() == 0
    every = Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)
    assert not every.mask[1].any()


def test_a_presets_table_is_named_by_its_place_too() -> None:
    config = load_config("gigpo", ["credit.0.weight=0.5", "credit.0.estimator.gamma=0.5"])
    assert config.credit[0].weight == 0.5
    assert config.credit[0].estimator["name"] == "anchor_group"
    assert config.credit[0].estimator["gamma"] == 0.5
    assert config.credit[0].segmenter == {"name": "turns"}


@pytest.mark.filterwarnings("ignore:a reward_source is 'turn'")
@pytest.mark.parametrize(
    ("preset", "plain", "factor"), [("mt_grpo", "grpo", 1.0), ("gigpo", "dr_grpo", 2.0)]
)
def test_presets_of_turns_reduce_to_groups_on_one_turn(
    preset: str, plain: str, factor: float
) -> None:
    both = [collect(build(load_config(name, SMALL)), 1) for name in (preset, plain)]
    found, want = (batch.advantages.per_token for batch in both)
    assert want.abs().max() > 0
    torch.testing.assert_close(found, factor * want)


def test_gigpo_on_a_task_of_turns_is_what_loops_say() -> None:
    """Sampled episodes of ``pointer``: states that repeat between completions and within one."""
    changes = ["rollouts.prompts=6", "rollouts.completions=6", "policy.steps=60"]
    batch = collect(build(load_config({"method": "gigpo", "task": "pointer"}, changes)), 1)
    rollouts, gamma = batch.rollouts, 0.95
    assert rollouts.turn_ids is not None
    assert rollouts.anchor_ids is not None
    group, texts = rollouts.group.tolist(), len(rollouts)
    episodes: list[list[tuple[int, list[int], float]]] = []
    for row in range(texts):
        turns: dict[int, tuple[int, list[int], float]] = {}
        for t, turn in enumerate(rollouts.turn_ids[row].tolist()):
            if turn >= 0:
                anchor, places, reward = turns.get(
                    turn, (int(rollouts.anchor_ids[row, t]), [], 0.0)
                )
                reward += float(rollouts.token_rewards[row, t])
                turns[turn] = (anchor, [*places, t], reward)
        episodes.append([turns[turn] for turn in sorted(turns)])
    returns = [
        [sum(gamma ** (j - k) * own[j][2] for j in range(k, len(own))) for k in range(len(own))]
        for own in episodes
    ]
    total = [sum(reward for _, _, reward in own) for own in episodes]
    alike = 0
    for row, own in enumerate(episodes):
        group_total = [total[other] for other in range(texts) if group[other] == group[row]]
        for k, (anchor, places, _) in enumerate(own):
            same = [
                returns[other][m]
                for other in range(texts)
                for m in range(len(episodes[other]))
                if group[other] == group[row] and anchor >= 0 and episodes[other][m][0] == anchor
            ] or [returns[row][k]]
            alike += k > 0 and len(same) > 1
            want = total[row] - sum(group_total) / len(group_total)
            want += returns[row][k] - sum(same) / len(same)
            for t in places:
                assert float(batch.advantages.per_token[row, t]) == pytest.approx(want, abs=1e-5)
    assert alike > 10

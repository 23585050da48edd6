"""Process rewards against plain loops, by hand, and on the arithmetic task's own workings."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import segcredit
from segcredit import registry
from segcredit.errors import RegistryError
from segcredit.objective.returns import lambda_returns, segment_values
from segcredit.protocols import ProcessReward
from segcredit.segmentation import Segmentation
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.testing import make_rollouts, pad_rollouts
from segcredit.types import RolloutBatch
from small import SMALL
from strategies import cuts, normal

build = registry.process_rewards.build


def rollouts_of(texts: list[str], dtype: torch.dtype = torch.float64) -> RolloutBatch:
    """Any texts, one token a character and an end token."""
    return make_rollouts(["a" * len(text) for text in texts], dtype=dtype).replace(
        texts=tuple(texts)
    )


def whole(rollouts: RolloutBatch) -> Segmentation:
    return Segmentation.from_starts(~rollouts.action_mask, rollouts.action_mask)


@dataclass(frozen=True, eq=False)
class Given(ProcessReward):
    """An inner process reward that was looked up."""

    rewards: Tensor

    def reward(self, rollouts, segmentation):
        return self.rewards


def masked_rollouts(mask_BT: Tensor, group: list[int]) -> RolloutBatch:
    """Rollouts of this mask and these groups."""
    rows, width = mask_BT.shape
    blank = make_rollouts([""] * rows, truncated=range(rows), width=width, dtype=torch.float64)
    return blank.replace(action_mask=mask_BT, group=torch.tensor(group, dtype=torch.long))


def given_rewards(segmentation: Segmentation, seed: int) -> Tensor:
    """Random inner rewards, NaN where there is no segment."""
    shape = tuple(segmentation.mask.shape)
    return normal(shape, seed).masked_fill(~segmentation.mask, torch.nan)


def row_of(rewards_BS: Tensor, segmentation: Segmentation, row: int) -> list[float]:
    return [float(x) for x in rewards_BS[row, : int(segmentation.counts[row])]]


# Equations


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("9-3=6", 1.0),
        ("9-3=5", -1.0),
        (" 9 - 3 =\t6 ", 1.0),
        ("3*4=12, so 12+1=13.", 1.0),
        ("3*4=12, so 12+1=14.", -1.0),
        ("3+4=8,2+2=4", -1.0),
        ("2-5=-3", 1.0),
        ("-2*-3=6", 1.0),
        ("a9-3=6", 1.0),
        ("x = 3 + 4 = 7", 1.0),
        ("- 3+5=8", 1.0),
        ("**3+4=7**", 1.0),
        ("$3+4=7$", 1.0),
        ("1,200+5=1,205", 1.0),
        ("1,200+5=1,206", -1.0),
        ("", 0.0),
        ("#8", 0.0),
        ("9-3=", 0.0),
        ("9-3\n=6", 0.0),
        ("1+2+3=7", 0.0),
        ("1 + 2 + 3 = 5", 0.0),
        ("2×3+1=4", 0.0),
        ("x+3-1=5", 0.0),
        ("(1+2)*3+1=5", 0.0),
        ("3+1=4+x", 0.0),
        ("8/2=3", 0.0),
        ("1.5+2=3.5", 0.0),
        (".5+1=2", 0.0),
        ("1+2.5=3", 0.0),
        ("9" * 6000 + "+1=2", 0.0),
    ],
)
def test_equations_of_a_text(text, want):
    rollouts = rollouts_of([text])
    rewards = build("equations").reward(rollouts, whole(rollouts))
    assert rewards.tolist() == [[want]]


def test_equations_modulo():
    rollouts = rollouts_of(["9+3=2", "9+3=12", "1-3=8", "3*4=2", "9+3=1"])
    exact = build("equations").reward(rollouts, whole(rollouts))
    modulo = build("equations", modulus=10).reward(rollouts, whole(rollouts))
    assert exact[:, 0].tolist() == [-1, 1, -1, -1, -1]
    assert modulo[:, 0].tolist() == [1, 1, 1, 1, -1]


def test_equation_rewards_are_options():
    rollouts = rollouts_of(["1+1=2", "1+1=3", "1+1"])
    odd = build("equations", right=0.1, wrong=-0.7, none=0.3)
    rewards = odd.reward(rollouts, whole(rollouts))
    assert rewards.dtype == torch.float64
    assert rewards[:, 0].tolist() == [0.1, -0.7, 0.3]
    lines = registry.segmenters.build("newline").segment(rollouts_of(["1\n1+1=2", "1"]))
    # A row with fewer segments has no `none` where it has no segment.
    assert odd.reward(rollouts_of(["1\n1+1=2", "1"]), lines)[1].tolist()[1:] == [0.0] * (
        lines.width - 1
    )


def test_an_equation_belongs_to_the_segment_that_completes_it():
    rollouts = rollouts_of(["12+3=15\n12+3=16", "12+3=15"])
    starts = torch.zeros_like(rollouts.action_mask)
    starts[0, [1, 6, 7]] = True  # 1 | 2+3=1 | 5 | \n12+3=16
    starts[1, 5] = True  # 12+3= | 15
    cut = Segmentation.from_starts(starts, rollouts.action_mask)
    rewards = build("equations").reward(rollouts, cut)
    assert rewards.tolist() == [[0, 0, 1, -1], [0, 1, 0, 0]]
    # A tool wrote the last digit: nobody earns it.
    mask = rollouts.action_mask.clone()
    mask[1, 6] = False
    tool = rollouts.replace(action_mask=mask)
    cut = Segmentation.from_starts(starts, mask)
    assert build("equations").reward(tool, cut)[1].tolist() == [0, 0, 0, 0]


PIECES = {
    "9-3=6": True,
    "12 + 3 = 15": True,
    "2*2=5": False,
    "7-9=2": False,
    "So": None,
    "#1": None,
}


@given(cut=cuts(), seed=st.integers(0, 999), noise=st.integers(0, 99))
def test_equations_on_any_tokens_cuts_and_holes(cut, seed, noise):
    starts, mask = cut
    chance = random.Random(seed)
    rows, width = mask.shape
    texts, spans, ends = [], [], []
    for _ in range(rows):
        text, found = "", []
        while not text or chance.random() < 0.7:
            piece = chance.choice(list(PIECES))
            text += piece
            if PIECES[piece] is not None:
                found.append((len(text) - 1, PIECES[piece]))
            text += chance.choice(["\n", ", ", "; "])
        borders = sorted(chance.choices(range(len(text) + 1), k=width - 1))
        texts.append(text)
        spans.append(list(zip([0, *borders], [*borders, len(text)], strict=True)))
        ends.append(found)
    segmentation = Segmentation.from_starts(starts, mask)
    want = torch.zeros(segmentation.mask.shape, dtype=torch.float64)
    for row in range(rows):
        for segment in range(int(segmentation.counts[row])):
            verdicts = [
                holds
                for place, holds in ends[row]
                for token, (first, beyond) in enumerate(spans[row])
                if first <= place < beyond and int(segmentation.segment_ids[row, token]) == segment
            ]
            want[row, segment] = 0.0 if not verdicts else 1.0 if all(verdicts) else -1.0
    # Spans behind the last action token are padding's: any numbers.
    garbage = torch.randint(40, (rows, width, 2), generator=torch.Generator().manual_seed(noise))
    padding = mask.flip(1).cumsum(1).flip(1) == 0
    rollouts = masked_rollouts(mask, [0] * rows).replace(
        texts=tuple(texts),
        token_spans=torch.where(padding[..., None], garbage, torch.tensor(spans).view(rows, -1, 2)),
    )
    assert torch.equal(build("equations").reward(rollouts, segmentation), want)


def line_holds(line: str) -> bool:
    """Worked out in the order of the line, modulo 10; blank for a filler letter."""
    left, result = line.lstrip("abcdefgh").split("=")
    value = int(left[0]) + int(left[2]) * (1 if left[1] == "+" else -1)
    return value % 10 == int(result)


@pytest.mark.parametrize("filler", [False, True])
@pytest.mark.parametrize(
    ("error", "bug"), [(0.0, 0.0), (0.5, 0.5)], ids=["true working", "with slips"]
)
def test_equations_on_the_arithmetic_task(filler, error, bug):
    task = Arithmetic(filler=filler, tutor_error=error, tutor_bug=bug)
    shown = task.demonstrations(100, torch.Generator().manual_seed(1))
    rollouts = rollouts_of([text for _, text in shown])
    lines = registry.segmenters.build("newline").segment(rollouts)
    rewards = build("equations", modulus=10).reward(rollouts, lines)
    seen = []
    for row, (prompt, text) in enumerate(shown):
        *working, _ = text.split("\n")
        seen += [line_holds(line) for line in working]
        want = [1.0 if line_holds(line) else -1.0 for line in working]
        # The answer's line, and nothing else, has no equation.
        assert row_of(rewards, lines, row) == [*want, 0.0]
        if not error:
            assert task.verify(prompt, text, truncated=False).process_correct
    assert len(seen) >= 400
    assert all(seen) if not error else 0.1 < sum(seen) / len(seen) < 0.9


# MinForm


@given(cut=cuts(), seed=st.integers(0, 99), temperature=st.sampled_from([0.05, 0.1, 2.0]))
def test_min_form_softmax_is_the_weighted_reward(cut, seed, temperature):
    segmentation = Segmentation.from_starts(*cut)
    inner = given_rewards(segmentation, seed).requires_grad_()
    plugin = build("min_form", inner=Given(inner), temperature=temperature)
    rewards = plugin.reward(masked_rollouts(cut[1], [0] * len(cut[1])), segmentation)
    assert rewards.dtype == torch.float64
    for row in range(len(rewards)):
        p = row_of(inner.detach(), segmentation, row)
        weights = [math.exp((min(p) - x) / temperature) for x in p]
        want = [x * w / sum(weights) for x, w in zip(p, weights, strict=True)]
        assert row_of(rewards.detach(), segmentation, row) == pytest.approx(want, abs=1e-12)
    assert not rewards.masked_select(~segmentation.mask).any()
    rewards.sum().backward()
    assert inner.grad.isfinite().all()


@given(cut=cuts(), seed=st.integers(0, 99))
def test_strict_min_form_makes_the_reward_to_go_the_minimum(cut, seed):
    segmentation = Segmentation.from_starts(*cut)
    inner = given_rewards(segmentation, seed)
    rollouts = masked_rollouts(cut[1], [0] * len(cut[1]))
    rollouts = rollouts.replace(token_rewards=torch.zeros_like(rollouts.token_rewards))
    rewards = build("min_form", inner=Given(inner), form="strict").reward(rollouts, segmentation)
    values = segment_values(
        rollouts, segmentation, torch.zeros_like(rewards), process_rewards_BS=rewards
    )
    returns = lambda_returns(values)
    for row in range(len(rewards)):
        p = row_of(inner, segmentation, row)
        want = [min(p[m:]) for m in range(len(p))]
        assert row_of(returns, segmentation, row) == pytest.approx(want, abs=1e-12)
        assert all(r <= 0 for r in row_of(rewards, segmentation, row)[:-1])
    assert not rewards.masked_select(~segmentation.mask).any()


def test_min_form_by_hand():
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 1:] = False
    rollouts = masked_rollouts(mask, [0, 0])
    cut = Segmentation.from_starts(mask, mask)
    inner = Given(torch.tensor([[0.9, -0.8, 0.5], [0.7, torch.nan, torch.nan]]))
    soft = build("min_form", inner=inner).reward(rollouts, cut)
    assert soft[0].tolist() == pytest.approx([0.9 * math.exp(-17), -0.8, 0.5 * math.exp(-13)], 1e-4)
    assert soft[1].tolist() == inner.rewards[1].nan_to_num(0).tolist()  # exact for one segment
    strict = build("min_form", inner=inner, form="strict").reward(rollouts, cut)
    assert strict[0].tolist() == pytest.approx([0, -1.3, 0.5])
    assert strict[1].tolist() == inner.rewards[1].nan_to_num(0).tolist()


# LeaveOneOutCentered


def centered_by_hand(rows, lengths, group, per, singleton):
    """The formula, a row and a segment at a time."""
    made = []
    for i, p in enumerate(rows):
        others = [j for j in range(len(rows)) if group[j] == group[i] and j != i and rows[j]]
        if not others and singleton == "zero":
            others = [i]
        if not others:
            baseline = 0.0
        elif per == "token":
            tokens = sum(sum(lengths[j]) for j in others)
            baseline = sum(sum(rows[j]) for j in others) / max(tokens, 1)
        else:
            baseline = sum(sum(rows[j]) / max(len(rows[j]), 1) for j in others) / len(others)
        sizes = lengths[i] if per == "token" else [1] * len(p)
        made.append([x - baseline * n for x, n in zip(p, sizes, strict=True)])
    return made


@pytest.mark.parametrize("per", ["token", "segment"])
@pytest.mark.parametrize("singleton", ["zero", "reward"])
@given(cut=cuts(), seed=st.integers(0, 99))
def test_leave_one_out_against_the_formula(cut, seed, per, singleton):
    segmentation = Segmentation.from_starts(*cut)
    inner = given_rewards(segmentation, seed)
    chance = random.Random(seed)
    group = [chance.choice([7, 3]) for _ in cut[1]]
    rollouts = masked_rollouts(cut[1], group)
    plugin = build("leave_one_out_centered", inner=Given(inner), per=per, singleton=singleton)
    rewards = plugin.reward(rollouts, segmentation)
    every = range(len(group))
    rows = [row_of(inner, segmentation, row) for row in every]
    lengths = [[int(n) for n in row_of(segmentation.lengths, segmentation, row)] for row in every]
    want = centered_by_hand(rows, lengths, group, per, singleton)
    for row in every:
        assert row_of(rewards, segmentation, row) == pytest.approx(want[row], abs=1e-9)
    assert not rewards.masked_select(~segmentation.mask).any()
    assert rewards.dtype == torch.float64


def test_a_row_whose_others_are_empty_is_alone():
    # In float32, 7 times a seventh of 57 tokens is above 57: the count of the others' is rounded.
    mask = torch.zeros(7, 57, dtype=torch.bool)
    mask[0] = True
    rollouts = masked_rollouts(mask, [0] * 7)
    cut = Segmentation.from_starts(torch.zeros(7, 57), mask)
    inner = Given(torch.tensor([[0.5], *[[torch.nan]] * 6]))
    for per in ("token", "segment"):
        kept = build("leave_one_out_centered", inner=inner, per=per, singleton="reward")
        assert kept.reward(rollouts, cut)[:, 0].tolist() == [0.5, *[0.0] * 6]
        zero = build("leave_one_out_centered", inner=inner, per=per)
        assert zero.reward(rollouts, cut).abs().max() < 1e-7


@pytest.mark.parametrize("per", ["token", "segment"])
def test_equal_rows_of_a_group_are_centered_to_zero(per):
    rollouts = rollouts_of(["1+1=3"] * 4)
    table = {"name": "min_form", "inner": "equations"}
    plugin = build("leave_one_out_centered", inner=table, per=per)
    assert plugin.reward(rollouts, whole(rollouts)).abs().max() < 1e-12


def test_centering_does_not_read_padding():
    rollouts = make_rollouts(["1+1=2\n1-1=1", "1+2=1", "2+2=2\n1+1=2"], group_size=3)
    newline = registry.segmenters.build("newline")
    plugin = build("leave_one_out_centered", inner="equations")
    narrow = plugin.reward(rollouts, newline.segment(rollouts))
    padded = pad_rollouts(rollouts, 50)
    wide = plugin.reward(padded, newline.segment(padded))
    assert narrow.abs().max() > 0.5
    assert torch.equal(wide, narrow)


# Options, and all of it in the loop


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("equations", {"modulus": 1}, "at least 2"),
        ("equations", {"right": math.nan}, "'right' is nan.*finite"),
        ("min_form", {"inner": "equations", "temperature": 0.0}, "'temperature' is 0.0"),
        ("min_form", {"inner": "equations", "form": "hard"}, "'softmax' or 'strict'"),
        ("leave_one_out_centered", {"inner": "equations", "per": "row"}, "'token' or 'segment'"),
        ("leave_one_out_centered", {"inner": "equations", "singleton": "x"}, "'zero' or 'reward'"),
    ],
)
def test_wrong_options_are_refused(name, options, sentence):
    with pytest.raises((ValueError, RegistryError), match=sentence):
        build(name, **options)


def test_pure_by_hand():
    """The whole chain: rule, min form, baseline from the other row, reward-to-go."""
    rollouts = rollouts_of(["1+1=2\n1+1=3\n1+2=3", "1+1=2"])
    rollouts = rollouts.replace(token_rewards=torch.zeros_like(rollouts.token_rewards))
    lines = registry.segmenters.build("newline").segment(rollouts)
    assert lines.lengths.tolist() == [[6, 6, 6], [6, 0, 0]]  # a newline or the end token each
    table = {"name": "min_form", "form": "strict", "inner": "equations"}
    rewards = build("leave_one_out_centered", inner=table).reward(rollouts, lines)
    # Strict: (0, -2, 1) and (1); per token the others earn 1/6 and -1/18.
    assert rewards[0].tolist() == pytest.approx([0 - 1, -2 - 1, 1 - 1])
    assert rewards[1].tolist() == pytest.approx([1 + 1 / 3, 0, 0])
    blank = torch.zeros_like(rewards)
    values = segment_values(rollouts, lines, blank, process_rewards_BS=rewards)
    assert registry.advantages.build("full_return")(values)[0].tolist() == pytest.approx(
        [-4, -3, 0]
    )


def test_the_config_resolves_the_plugins_inside():
    inner = "{name='min_form', inner={name='equations', modulus=10}}"
    table = f"process_reward={{name='leave_one_out_centered', inner={inner}}}"
    resolved = segcredit.load_config("sapo", [table]).process_reward
    assert resolved is not None
    assert registry.process_rewards.from_table(resolved) == build(
        "leave_one_out_centered",
        inner=build("min_form", inner=build("equations", modulus=10), temperature=0.1),
        per="token",
    )


@pytest.mark.slow
def test_a_run_records_the_reward_of_each_line(tmp_path):
    reward = "process_reward={name='equations', modulus=10}"
    short = ["train.steps=1", "segmenter=newline", "loss.kl_penalty=0.0", reward]
    config = segcredit.load_config("sapo", [*SMALL, *short])
    segments = segcredit.read_runs(segcredit.train(config, tmp_path / "run")).segments
    last = segments.groupby(["step", "prompt", "completion"]).segment.transform("max")
    inner = segments[segments.segment < last]
    shaped = inner[inner.text.str.fullmatch(r"\d[-+]\d=\d\n")]
    assert len(shaped) > 4
    want = [1.0 if line_holds(text.strip()) else -1.0 for text in shaped.text]
    assert shaped.reward.tolist() == pytest.approx(want)

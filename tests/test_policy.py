"""Policies: sampling and scoring agree, padding and holes change nothing, loading and caching."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from segcredit.episodes import demonstrated
from segcredit.errors import PolicyError, TaskError
from segcredit.policy.causal_lm import Backbone, CausalPolicy
from segcredit.policy.checkpoints.pretrained import Pretrained
from segcredit.policy.samplers.generate import Generate, generation_config, seeded
from segcredit.policy.tiny import tiny_lm as tiny_module
from segcredit.policy.tiny import warm_start
from segcredit.policy.tiny.tiny_lm import Tiny
from segcredit.policy.tiny.tiny_vlm import TinyVLM
from segcredit.protocols import Prompt, Sampler, Task, Verdict
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.types import RolloutBatch, SampledTokens, SamplingParams, TokenScores

TASK = Arithmetic(min_steps=1, max_steps=3)
TEXTS = ["9-3+2=", "1+1=", "7-3-3-2+1=", "0+3="]
PAD, END, BEGIN = 0, 1, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGCREDIT_CACHE", str(folder))


def _load(temperature: float = 1.0, seed: int = 0, steps: int = 2) -> Any:
    return Tiny(steps=steps).load(TASK, Generate(), temperature=temperature, seed=seed)


@pytest.fixture
def policy() -> Any:
    return _load()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rollouts(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, action_mask: Tensor
) -> RolloutBatch:
    rows, width = completion_ids.shape
    zeros = torch.zeros(rows, width)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_keys=tuple(map(str, range(rows))),
        completion_ids=completion_ids,
        action_mask=action_mask,
        logprobs=zeros,
        entropies=zeros,
        group=torch.arange(rows),
        texts=("",) * rows,
        token_spans=torch.zeros(rows, width, 2, dtype=torch.long),
        rewards=torch.zeros(rows),
        token_rewards=zeros,
        truncated=torch.zeros(rows, dtype=torch.bool),
    )


def _sampled(policy: Any, texts: Sequence[str] = TEXTS, width: int = 16) -> RolloutBatch:
    prompts = policy.encode(texts)
    made = policy.generate(
        *prompts, params=SamplingParams(max_new_tokens=width), generator=_generator(1)
    )
    return _rollouts(*prompts, made.ids, made.mask)


def _assert_equal(found: TokenScores, expected: TokenScores, atol: float = 1e-5) -> None:
    for name in ("logprobs", "entropies", "hidden"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=atol, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scoring_agrees_with_the_scores_that_the_sampler_drew_from(temperature: float) -> None:
    policy = _load(temperature)
    prompt_ids, prompt_mask = policy.encode(TEXTS * 4)
    assert not prompt_mask.all(), "the prompts ought to differ in length"
    config = generation_config(
        SamplingParams(
            max_new_tokens=20,
            temperature=temperature,
            stop_ids=policy.end_ids,
            suppressed_ids=policy.suppressed_ids,
        ),
        pad_id=PAD,
    )
    config.update(output_scores=True, return_dict_in_generate=True)
    with seeded(_generator(7), prompt_ids.device):
        output = policy.model.generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask.long(),
            generation_config=config,
        )
    made = policy.generate(
        prompt_ids, prompt_mask, params=SamplingParams(max_new_tokens=20), generator=_generator(7)
    )
    ids_BT, mask_BT = made.ids, made.mask
    assert torch.equal(output.sequences[:, prompt_ids.shape[1] :][mask_BT], ids_BT[mask_BT])
    drawn_BTV = torch.stack(output.scores, 1).log_softmax(2)
    expected_BT = drawn_BTV.gather(2, ids_BT[..., None])[..., 0]
    scores = policy(_rollouts(prompt_ids, prompt_mask, ids_BT, mask_BT))
    torch.testing.assert_close(scores.logprobs[mask_BT], expected_BT[mask_BT], atol=1e-4, rtol=0)
    entropies_BT = torch.distributions.Categorical(logits=drawn_BTV.clamp(min=-1e4)).entropy()
    torch.testing.assert_close(scores.entropies[mask_BT], entropies_BT[mask_BT], atol=1e-4, rtol=0)
    assert not scores.logprobs[~mask_BT].any()
    assert not scores.hidden[~mask_BT].any()


def test_scoring_agrees_with_a_row_by_row_forward(policy: Any) -> None:
    rollouts = _sampled(policy)
    scores = policy(rollouts)
    for row in range(len(rollouts)):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        completion = rollouts.completion_ids[row][rollouts.action_mask[row]]
        output = policy.model(
            input_ids=torch.cat([prompt, completion])[None], output_hidden_states=True
        )
        before = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        logits_TV = output.logits[0, before].clone()
        logits_TV[:, [PAD, BEGIN]] = -torch.inf
        expected = logits_TV.log_softmax(1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(
            scores.logprobs[row, : len(completion)], expected, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            scores.hidden[row, : len(completion)],
            output.hidden_states[-1][0, before],
            atol=1e-5,
            rtol=0,
        )


def test_suppressed_ids_are_never_sampled_and_have_no_probability(policy: Any) -> None:
    with torch.no_grad():
        policy.model.lm_head.weight[[PAD, BEGIN]] = 0.0
        policy.model.lm_head.weight[3:] *= 0.01  # all but the end token equally likely
    prompts = policy.encode(TEXTS * 32)
    made = policy.generate(
        *prompts, params=SamplingParams(max_new_tokens=12), generator=_generator()
    )
    assert not torch.isin(made.ids[made.mask], torch.tensor([PAD, BEGIN])).any()
    rows, vocabulary = 1, policy.model.config.vocab_size
    for token in (PAD, BEGIN):
        one = torch.tensor([[token]])
        scores = policy(_rollouts(*policy.encode(TEXTS[:rows]), one, torch.ones_like(one).bool()))
        assert scores.logprobs.item() == -torch.inf
        assert 0 < scores.entropies.item() <= torch.tensor(vocabulary - 2.0).log().item() + 1e-6
    total = sum(
        policy(_rollouts(*policy.encode(["1+1="]), torch.tensor([[token]]), torch.tensor([[True]])))
        .logprobs.exp()
        .item()
        for token in range(vocabulary)
    )
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_entropy_has_finite_gradients_with_suppressed_ids(policy: Any) -> None:
    scores = policy(_sampled(policy))
    (scores.entropies.sum() + scores.logprobs.sum() + scores.hidden.sum()).backward()
    gradients = [parameter.grad for parameter in policy.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 5)])
def test_padding_changes_nothing(policy: Any, left: int, right: int) -> None:
    rollouts = _sampled(policy)
    expected = policy(rollouts)
    pad = nn.functional.pad
    wider = _rollouts(
        pad(rollouts.prompt_ids, (left, 0), value=5),
        pad(rollouts.prompt_mask, (left, 0)),
        pad(rollouts.completion_ids, (0, right), value=6),
        pad(rollouts.action_mask, (0, right)),
    )
    found = policy(wider)
    width = rollouts.completion_ids.shape[1]
    assert found.logprobs.shape[1] == found.hidden.shape[1] == width + right
    cut = TokenScores(
        logprobs=found.logprobs[:, :width],
        entropies=found.entropies[:, :width],
        hidden=found.hidden[:, :width],
    )
    _assert_equal(cut, expected)
    assert not found.hidden[:, width:].any()


def test_a_longer_neighbour_changes_nothing(policy: Any) -> None:
    rollouts = _sampled(policy)
    expected = policy(rollouts)
    for row in range(len(rollouts)):
        _assert_equal(policy(rollouts.select([row])), _row(expected, row))


def _row(scores: TokenScores, row: int) -> TokenScores:
    return TokenScores(
        logprobs=scores.logprobs[[row]],
        entropies=scores.entropies[[row]],
        hidden=scores.hidden[[row]],
    )


def test_holes_are_read_but_not_scored(policy: Any) -> None:
    rollouts = _sampled(policy, width=8)
    ids_BT = rollouts.completion_ids.clone().clamp(min=3)
    ids_BT[:, 3] = BEGIN  # suppressed, and not chosen by the policy
    full = torch.ones_like(ids_BT, dtype=torch.bool)
    holes = full.clone()
    holes[:, 3:5] = False
    prompts = (rollouts.prompt_ids, rollouts.prompt_mask)
    expected = policy(_rollouts(*prompts, ids_BT, full))
    found = policy(_rollouts(*prompts, ids_BT, holes))
    assert all(x.isfinite().all() for x in (found.logprobs, found.entropies, found.hidden))
    assert not found.logprobs[:, 3:5].any()
    torch.testing.assert_close(found.logprobs[holes], expected.logprobs[holes])
    other = ids_BT.clone()
    other[:, 4] = (ids_BT[:, 4] - 3 + 1) % 12 + 3
    changed = policy(_rollouts(*prompts, other, holes))
    assert (changed.logprobs[:, 5:] - found.logprobs[:, 5:]).abs().max() > 1e-4
    found.logprobs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_no_action_tokens_at_all(policy: Any) -> None:
    rollouts = _sampled(policy)
    scores = policy(rollouts.replace(action_mask=torch.zeros_like(rollouts.action_mask)))
    assert scores.hidden.shape == (*rollouts.completion_ids.shape, policy.hidden_size)
    assert not scores.logprobs.any()
    assert not scores.hidden.any()


@dataclass(frozen=True, slots=True)
class _Fixed(Sampler):
    """A sampler that returns what it was given."""

    ids: tuple[tuple[int, ...], ...]

    def sample(
        self, model: nn.Module, prompt_ids: Tensor, *_: Any, **options: Any
    ) -> SampledTokens:
        return SampledTokens(torch.tensor(self.ids))


def test_the_mask_ends_with_the_first_end_token() -> None:
    sampler = _Fixed(((5, END, END, 7), (5, 6, 7, 8), (END, 5, 5, 5), (5, PAD, 6, END)))
    policy: Any = Tiny(steps=2).load(TASK, sampler, temperature=1.0, seed=0)
    made = policy.generate(
        *policy.encode(TEXTS), params=SamplingParams(max_new_tokens=4), generator=_generator()
    )
    assert made.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert made.truncated.tolist() == [False, True, False, False]
    assert made.ids[0].tolist() == [5, END, PAD, PAD]


def test_sampling_is_decided_by_the_generator_and_leaves_the_global_one(policy: Any) -> None:
    state = torch.get_rng_state()
    drawn = [
        policy.generate(
            *policy.encode(TEXTS),
            params=SamplingParams(max_new_tokens=10, greedy=greedy),
            generator=_generator(seed),
        ).ids
        for seed, greedy in [(1, False), (1, False), (2, False), (1, True), (2, True)]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[3], drawn[4])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_checkpoints_own_sampling_defaults_play_no_part(policy: Any) -> None:
    expected = _sampled(policy, width=10).completion_ids
    odd = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, top_p=0.1)
    policy.model.generation_config = odd
    assert torch.equal(_sampled(policy, width=10).completion_ids, expected)
    assert policy.model.generation_config is odd


def test_encode_pads_left_and_begins_every_prompt(policy: Any) -> None:
    ids, mask = policy.encode(["1+1=", "9-3+2="])
    assert mask.int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert ids[0, :3].tolist() == [PAD, PAD, BEGIN]
    assert ids[1, 0] == BEGIN
    assert policy.encode([])[0].shape == (0, 0)


def test_decode_gives_texts_without_specials_and_spans(policy: Any) -> None:
    letters = policy.encode(["1+1\n#2"])[0][0, 1:].tolist()
    ids = torch.tensor([[*letters, END, PAD], [END, *[PAD] * 7]])
    mask = torch.tensor([[True] * 7 + [False], [True] + [False] * 7])
    texts, spans = policy.decode(ids, mask)
    assert texts == ("1+1\n#2", "")
    assert spans[0].tolist() == [[i, i + 1] for i in range(6)] + [[6, 6], [6, 6]]
    assert not spans[1].any()


def test_every_character_survives_the_tokenizer(policy: Any) -> None:
    text = TASK.alphabet()
    ids, mask = policy.encode([text])
    assert ids.shape[1] == len(text) + 1
    assert policy.decode(ids, mask)[0] == (text,)


def test_backbone_is_a_copy_with_the_same_states(policy: Any) -> None:
    rollouts = _sampled(policy)
    backbone = policy.backbone()
    expected = policy(rollouts).hidden
    torch.testing.assert_close(backbone(rollouts), expected)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(backbone(rollouts), expected)
    assert not torch.allclose(policy(rollouts).hidden, expected)


def test_policies_stay_in_evaluation_mode_and_can_be_copied(policy: Any) -> None:
    assert isinstance(policy.backbone(), Backbone)
    assert not any(module.training for module in policy.train().modules())
    assert not any(module.training for module in policy.backbone().train().modules())
    rollouts = _sampled(policy)
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        _assert_equal(twin(rollouts), policy(rollouts))
        assert twin.decode(rollouts.completion_ids, rollouts.action_mask)[0]


def test_the_warm_start_is_cached_and_the_same_when_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGCREDIT_CACHE", str(tmp_path / "new" / "folder"))
    state = torch.get_rng_state()
    first = _load()
    (path,) = (tmp_path / "new" / "folder").glob("*.safetensors")
    written = path.stat().st_mtime_ns
    second = _load()
    assert path.stat().st_mtime_ns == written
    _assert_same_weights(first, second)
    path.unlink()
    _assert_same_weights(first, _load())
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(path.parent.glob("*.tmp"))


def _assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_cached_warm_start_asks_for_no_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    _load()

    def fail(*_: Any) -> None:
        raise TaskError("not needed")

    monkeypatch.setattr(tiny_module.Tiny, "_warm_start", fail)
    _load()
    with pytest.raises(TaskError, match="not needed"):
        _load(seed=1)


@pytest.mark.parametrize(
    ("source", "task", "seed"),
    [
        (Tiny(steps=2), TASK, 1),
        (Tiny(steps=2, learning_rate=1e-3), TASK, 0),
        (Tiny(steps=3), TASK, 0),
    ],
)
def test_whatever_decides_the_weights_decides_the_file(source: Tiny, task: Task, seed: int) -> None:
    other = source.load(task, Generate(), temperature=1.0, seed=seed)
    with pytest.raises(AssertionError):
        _assert_same_weights(other, _load())


@dataclass(frozen=True, slots=True)
class _Judged(Arithmetic):
    """Calls the completions of each attempt right by its share, and demonstrations always.

    Verdicts are asked for in this order: 32 demonstrations for the key; in each attempt the four
    demonstrations, then 512 completions.
    """

    shares: tuple[float, ...] = (1.0,)
    judged: ClassVar[list[str]] = []

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        self.judged.append(text)
        attempt, place = divmod(len(self.judged) - 33, 4 + 512)
        right = attempt < 0 or place < 4 + 512 * self.shares[attempt]
        return Verdict(1.0, True, process_correct=right)


def _start(shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Loads a policy with made-up shares; returns it, the seeds of its attempts, the warnings."""
    _Judged.judged.clear()
    seeds: list[int] = []
    untrained = Tiny.untrained

    def noted(self: Tiny, alphabet: Any, sampler: Any, temperature: float, seed: int) -> Any:
        seeds.append(seed)
        return untrained(self, alphabet, sampler, temperature, seed)

    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        patched.setattr(Tiny, "untrained", noted)
        warnings.simplefilter("always")
        source = Tiny(steps=1, batch=4, **options)
        found = source.load(_Judged(1, 1, shares=shares), Generate(), temperature=1.0, seed=7)
    return found, seeds[1:], [str(warning.message) for warning in caught]


def test_a_warm_start_that_misses_its_target_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(warm_start, "cache_folder", lambda: tmp_path)
    first, seeds, said = _start((0.5, 0.8, 1.0), monkeypatch, target=0.75)
    assert len(seeds) == 2, "the second attempt holds"
    assert seeds[0] == 7, "the first attempt is that of the seed itself"
    assert len(said) == 1
    for part in ("0.50 of its completions", "expected 0.75", "attempt 1 of 4", "seed 7"):
        assert part in said[0]
    other = Tiny(steps=1, batch=4).load(
        Arithmetic(1, 1), Generate(), temperature=1.0, seed=seeds[1]
    )
    _assert_same_weights(first, other)


def test_where_no_warm_start_holds_the_best_is_taken_and_every_load_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(warm_start, "cache_folder", lambda: tmp_path)
    shares = (0.25, 0.375, 0.5, 0.125)
    first, seeds, said = _start(shares, monkeypatch, target=0.75)
    assert len(set(seeds)) == 4
    assert [f"attempt {n} of 4. It is drawn again" in said[n - 1] for n in (1, 2, 3)] == [True] * 3
    again, none, repeated = _start(shares, monkeypatch, target=0.75)
    assert none == [], "what is cached is not made again"
    assert repeated == said[-1:]
    assert "0.50 of its completions" in repeated[0]
    assert "attempt 3 of 4. None reached it, and this was the best" in repeated[0]
    _assert_same_weights(first, again)
    third = Tiny(steps=1, batch=4).load(
        Arithmetic(1, 1), Generate(), temperature=1.0, seed=seeds[2]
    )
    _assert_same_weights(first, third)


@pytest.mark.parametrize("options", [{}, {"target": 0.0}])
def test_short_warm_starts_have_no_target_unless_they_are_given_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(warm_start, "cache_folder", lambda: tmp_path)
    _, seeds, said = _start((0.0,), monkeypatch, **options)
    assert (seeds, said, len(_Judged.judged)) == ([7], [], 32)


def test_the_default_recipe_has_a_target() -> None:
    for steps, target in ((400, 0.7), (399, 0.0)):
        assert Tiny(steps=steps).least_share() == target
        assert TinyVLM(steps=steps).least_share() == target


TASK_FILE = """
import segcredit
from dataclasses import dataclass
from segcredit.tasks.arithmetic import Arithmetic

@dataclass(frozen=True, slots=True)
class Mine(Arithmetic):
    pass
"""


def test_a_change_of_the_tasks_code_makes_another_warm_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(warm_start, "cache_folder", lambda: tmp_path)
    source = Tiny(steps=1, batch=4)

    def files(code: str) -> int:
        (tmp_path / "mine.py").write_text(code)
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
        source.load(module.Mine(), Generate(), temperature=1.0, seed=0)
        return len([*tmp_path.glob("*.safetensors")])

    assert [files(TASK_FILE), files(TASK_FILE), files(TASK_FILE + "# other\n")] == [1, 1, 2]
    # Code that the task calls, in another file: what it shows changes.
    monkeypatch.setattr(Arithmetic, "tutor", lambda *_: "#1")
    assert files(TASK_FILE) == 3
    monkeypatch.setattr(warm_start, "_policy_code", lambda: "other code")
    assert files(TASK_FILE) == 4


def test_the_warm_start_learns_completions_alone() -> None:
    prompt, text = TASK.demonstrations(1, _generator())[0]
    shown = [demonstrated(TASK, prompt, text), demonstrated(TASK, TASK.prompt("1+1"), "2")]
    ids, counted = tiny_module._tensors(shown, TASK.alphabet())
    letters = ["<pad>", "<eos>", "<bos>", *TASK.alphabet()]
    assert "".join(letters[i] for i in ids[0][counted[0]].tolist()) == f"{text}<eos>"
    assert "".join(letters[i] for i in ids[0][~counted[0]].tolist()) == f"<bos>{prompt.text}"
    assert "".join(letters[i] for i in ids[1][counted[1]].tolist()) == "2<eos>"


def test_the_warm_start_lowers_the_loss() -> None:
    shown = [demonstrated(TASK, *pair) for pair in TASK.demonstrations(64, _generator(9))]
    batch = tiny_module._tensors(shown, TASK.alphabet())
    losses = [
        tiny_module._imitation_loss(_load(steps=steps).model, *batch).item() for steps in (0, 25)
    ]
    assert losses[1] < 0.6 * losses[0]


@dataclass(frozen=True, slots=True)
class _Odd(Task):
    letters: str = ""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        return [Prompt("a", "a", "a")] * count

    def evaluation(self, count: int) -> Sequence[Prompt]:
        return []

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(0.0, False)

    def alphabet(self) -> str:
        return self.letters


@dataclass(frozen=True, slots=True)
class _OddDemonstrations(_Odd):
    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        return [(Prompt("a", "a", "a"), "xé")] * count


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (_Odd(), PolicyError, "'_Odd' has no alphabet"),
        (_Odd("ab"), TaskError, "no demonstrations"),
        (_OddDemonstrations("ax"), PolicyError, r"characters \['é'\], which are not"),
    ],
)
def test_tasks_that_the_tiny_policy_cannot_learn(
    task: Task, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Tiny(steps=1).load(task, Generate(), temperature=1.0, seed=0)


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGCREDIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(PolicyError, match="Set SEGCREDIT_CACHE"):
        _load()


@pytest.fixture
def checkpoint(tmp_path: Path, policy: Any) -> Path:
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_checkpoint_is_the_same_policy(checkpoint: Path, policy: Any) -> None:
    loaded: Any = Pretrained(str(checkpoint)).load(TASK, Generate(), temperature=1.0, seed=0)
    assert loaded.suppressed_ids == policy.suppressed_ids == (PAD, BEGIN)
    assert loaded.end_ids == (END,)
    rollouts = _sampled(policy)
    sampled = _sampled(loaded)
    assert torch.equal(sampled.completion_ids, rollouts.completion_ids)
    _assert_equal(loaded(rollouts), policy(rollouts))


def test_more_ids_can_be_suppressed_and_weights_cast(checkpoint: Path) -> None:
    source = Pretrained(str(checkpoint), dtype="bfloat16", suppress=(4, END))
    loaded: Any = source.load(TASK, Generate(), temperature=1.0, seed=0)
    assert loaded.suppressed_ids == (PAD, BEGIN, 4), "end tokens are never suppressed"
    scores = loaded(_sampled(loaded))
    assert loaded.model.dtype == torch.bfloat16
    assert scores.logprobs.dtype == scores.hidden.dtype == torch.float32


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "/no/such/model"])
def test_a_missing_model_is_told_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PolicyError, match=rf"^the model '{name}' cannot be read .* check policy"):
        Pretrained(name).load(TASK, Generate(), temperature=1.0, seed=0)


def test_an_unknown_dtype_is_refused(checkpoint: Path) -> None:
    with pytest.raises(PolicyError, match="dtype is 'int8'; expected one of float32"):
        Pretrained(str(checkpoint), dtype="int8").load(TASK, Generate(), temperature=1.0, seed=0)


def test_other_architectures_agree_with_their_own_forward(policy: Any) -> None:
    """GPT-2 adds learned positions, so that wrong position ids would show."""
    vocabulary = policy.model.config.vocab_size
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, eos_token_id=END)
    )
    other: Any = CausalPolicy(model, policy.tokenizer, Generate(), suppressed_ids=(PAD, BEGIN))
    rollouts = _sampled(other)
    expected = other(rollouts)
    for row in range(len(rollouts)):
        _assert_equal(other(rollouts.select([row])), _row(expected, row))


def test_ids_that_the_tokenizer_has_no_token_for_are_never_sampled(policy: Any) -> None:
    """Vocabularies are padded to round sizes: what is drawn there would be invisible."""
    known = len(policy.tokenizer)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=4 * known, n_embd=32, n_layer=2, n_head=2, eos_token_id=END)
    )
    padded = CausalPolicy(model, policy.tokenizer, Generate(), suppressed_ids=(PAD, BEGIN))
    assert padded.suppressed_ids == (PAD, BEGIN, *range(known, 4 * known))
    rollouts = _sampled(padded)
    assert int(rollouts.completion_ids.max()) < known
    probabilities = padded(rollouts).logprobs.detach().exp()[rollouts.action_mask]
    assert float(probabilities.mean()) > 0.5 / known, "the padding has a share of the probability"


def test_a_tokenizer_that_closes_texts_leaves_prompts_open(policy: Any) -> None:
    texts = ["1+1=", "9-3+2="]
    expected = policy.encode(texts)
    tokenizer = copy.deepcopy(policy.tokenizer)
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, BEGIN), (end, END)]
    )
    assert tokenizer(texts)["input_ids"][0][-1] == END
    closing = CausalPolicy(policy.model, tokenizer, Generate())
    for found in (closing.encode(texts), closing.encode_prompts([Prompt(t, t, "") for t in texts])):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def _without_end(policy: Any) -> None:
    policy.tokenizer.eos_token = None


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (_without_end, {}, "has no end token; expected one"),
        (lambda _: None, {"temperature": 0.0}, "temperature is 0.0; expected a number greater"),
    ],
)
def test_what_a_policy_cannot_do_without(
    policy: Any, spoil: Callable[[Any], None], options: dict[str, Any], message: str
) -> None:
    spoil(policy)
    with pytest.raises(PolicyError, match=message):
        CausalPolicy(policy.model, policy.tokenizer, Generate(), **options)


def test_models_that_change_their_logits_are_refused(policy: Any) -> None:
    config = Gemma2Config(
        vocab_size=policy.model.config.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        final_logit_softcapping=0.1,
        initializer_range=0.5,
    )
    with pytest.raises(PolicyError, match="not those of its output layer"):
        CausalPolicy(Gemma2ForCausalLM(config), policy.tokenizer, Generate())


def test_empty_prompts_are_refused(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "tokenizer", lambda texts: {"input_ids": [[3], []]})
    with pytest.raises(PolicyError, match="the prompt '' has no tokens"):
        policy.encode(["a", ""])


def test_the_default_has_the_size_that_was_measured() -> None:
    model = Tiny().untrained(TASK.alphabet(), Generate(), 1.0, 0).model
    assert isinstance(model, LlamaForCausalLM)
    assert sum(parameter.numel() for parameter in model.parameters()) == 84_544

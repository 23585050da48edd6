"""Every class that reads images: sampling, scoring, resuming and training see the same images."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segcredit.episodes import complete, resume
from segcredit.errors import PolicyError
from segcredit.policy.checkpoints.pretrained import Pretrained
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.vlm import vision_policy
from segcredit.protocols import Prompt, Task, Verdict
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import RolloutBatch, SamplingParams
from vision_models import BEGIN, CLASSES, PAD, UNKNOWN, image

PROMPTS = (
    Prompt("one", "what is it?", None, (image(0),)),
    Prompt("two", "is <image> less than <image>, or more?", None, (image(1, 64), image(2, 32, 64))),
    Prompt("wide", "look:", None, (image(3, 48),)),
)
TEXT = Prompt("text", "no picture here, sorry!", None)
GROUP = 3
WIDTH = 10


class Nothing(Task):
    """Every completion is wrong."""

    def prompts(self, count: int, generator: torch.Generator) -> list[Prompt]:
        return []

    def evaluation(self, count: int) -> list[Prompt]:
        return []

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(0.0, False)


@pytest.fixture(scope="module", params=list(CLASSES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def policy(name: str) -> Any:
    model, processor = CLASSES[name]()
    return vision_policy(model, processor, Generate(), suppressed_ids=(PAD, BEGIN, UNKNOWN))


@pytest.fixture(scope="module")
def rollouts(policy: Any) -> RolloutBatch:
    return _sampled(policy)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sampled(
    policy: Any, prompts: tuple[Prompt, ...] = PROMPTS, *, greedy: bool = False
) -> RolloutBatch:
    repeated = [prompt for prompt in prompts for _ in range(GROUP)]
    found = complete(
        policy,
        Nothing(),
        repeated,
        params=SamplingParams(max_new_tokens=WIDTH, greedy=greedy),
        generator=_generator(),
    )
    return as_rollouts(found, policy, micro_tokens=10_000)


@contextmanager
def _drawn_from(policy: Any) -> Iterator[list[Tensor]]:
    """The log-probs (B,T,V) that each call of the model's generate drew from."""
    seen: list[Tensor] = []
    own = policy.model.generate

    def spied(*args: Any, generation_config: Any, **options: Any) -> Tensor:
        generation_config.update(output_scores=True, return_dict_in_generate=True)
        output = own(*args, generation_config=generation_config, **options)
        seen.append(torch.stack(output.scores, 1).log_softmax(2))
        return output.sequences

    policy.model.generate = spied
    try:
        yield seen
    finally:
        del policy.model.generate


def test_log_probs_are_those_that_were_sampled_from(policy: Any) -> None:
    with _drawn_from(policy) as seen:
        rollouts = _sampled(policy)
    mask = rollouts.action_mask
    assert not rollouts.prompt_mask.all(), "the prompts ought to differ in length"
    expected = seen[0].gather(2, rollouts.completion_ids[..., None])[..., 0]
    torch.testing.assert_close(rollouts.logprobs[mask], expected[mask], atol=1e-4, rtol=0)
    entropies = torch.distributions.Categorical(logits=seen[0].clamp(min=-1e4)).entropy()
    torch.testing.assert_close(rollouts.entropies[mask], entropies[mask], atol=1e-4, rtol=0)
    assert not torch.isin(rollouts.completion_ids[mask], torch.tensor(policy.suppressed_ids)).any()


def test_scores_are_those_of_the_models_own_forward_row_by_row(
    name: str, policy: Any, rollouts: RolloutBatch
) -> None:
    for row in range(0, len(rollouts), GROUP):
        prompt = next(p for p in PROMPTS if p.key == rollouts.prompt_keys[row])
        completion = rollouts.completion_ids[row][rollouts.action_mask[row]]
        logits_TV, states_TH = _own_forward(name, policy, prompt, completion)
        logits_TV[:, list(policy.suppressed_ids)] = -torch.inf
        expected = logits_TV.log_softmax(1).gather(1, completion[:, None])[:, 0]
        length = len(completion)
        found = rollouts.logprobs[row, :length]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        hidden = policy(rollouts.select([row])).hidden[0, :length]
        torch.testing.assert_close(hidden, states_TH, atol=1e-4, rtol=0)


@torch.no_grad()
def _own_forward(
    name: str, policy: Any, prompt: Prompt, completion: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits and last states as the class gives them, its inputs put together by hand."""
    given = policy.images.encode(prompt)
    ids = given.pop("input_ids")
    more = torch.zeros(1, len(completion), dtype=torch.long)
    types = {
        key: torch.cat([given.pop(key), more + (name == "paligemma")], 1)
        for key in [key for key in given if key.endswith("token_type_ids")]
    }
    if name.startswith("qwen"):
        policy.model.model.rope_deltas = None
    given |= {
        "input_ids": torch.cat([ids, completion[None]], 1),
        "attention_mask": torch.ones(1, ids.shape[1] + len(completion), dtype=torch.long),
        **types,
    }
    before = slice(ids.shape[1] - 1, ids.shape[1] + len(completion) - 1)
    states_1LH = policy.model.base_model(**given).last_hidden_state
    return policy.model(**given).logits[0, before].clone(), states_1LH[0, before]


def test_shuffles_and_minibatches_change_nothing(policy: Any, rollouts: RolloutBatch) -> None:
    order = torch.randperm(len(rollouts), generator=_generator(3))
    for rows in (order, order[:4], order[4:6]):
        found = policy(rollouts.select(rows))
        torch.testing.assert_close(found.logprobs, rollouts.logprobs[rows], atol=1e-4, rtol=0)


def test_a_value_head_trains_the_network_and_what_sees_the_images(
    policy: Any, rollouts: RolloutBatch
) -> None:
    trained = copy.deepcopy(policy)
    head = nn.Linear(trained.hidden_size, 1)
    scores = trained(rollouts)
    values = head(scores.hidden)[..., 0][rollouts.action_mask]
    (values.square().mean() - scores.logprobs[rollouts.action_mask].mean()).backward()
    gradients = {
        key: parameter.grad
        for key, parameter in trained.named_parameters()
        if parameter.grad is not None
    }
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    seeing = [key for key in gradients if "vis" in key and gradients[key].abs().max() > 0]
    assert seeing, "no parameter of the vision tower has a gradient"


def test_the_backbone_is_a_copy_that_sees_the_images(policy: Any, rollouts: RolloutBatch) -> None:
    twin = copy.deepcopy(policy)
    backbone, expected = twin.backbone(), policy(rollouts).hidden
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(backbone(rollouts), expected)


def test_what_reads_images_can_be_pickled(policy: Any, rollouts: RolloutBatch) -> None:
    images, inputs = pickle.loads(pickle.dumps((policy.images, policy.inputs)))
    assert inputs == policy.inputs
    for prompt in (*PROMPTS, TEXT):
        again, expected = images.encode(prompt), policy.images.encode(prompt)
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_greedy_completions_go_on_as_they_were_from_every_position(policy: Any) -> None:
    rollouts = _sampled(policy, greedy=True).select(list(range(0, 3 * GROUP, GROUP)))
    lengths = rollouts.action_mask.sum(1)
    states = [(row, at) for row in range(len(rollouts)) for at in range(int(lengths[row]))]
    rows, positions = torch.tensor(states).T
    policy.model.base_model.rope_deltas = torch.full((1, 1), 77)  # as left by another batch
    found, _ = resume(
        policy,
        Nothing(),
        [PROMPTS[row] for row in rows],
        rollouts,
        rows,
        positions,
        params=SamplingParams(max_new_tokens=WIDTH, greedy=True),
        micro_tokens=200,
        generator=_generator(),
    )
    assert list(found.texts) == [rollouts.texts[row] for row in rows]
    assert torch.equal(found.truncated, rollouts.truncated[rows])


def test_log_probs_of_what_is_resumed_are_those_that_were_sampled_from(
    policy: Any, rollouts: RolloutBatch
) -> None:
    rows, positions = torch.tensor([0, 4, 7, 3, 1]), torch.tensor([2, 2, 2, 2, 2])
    with _drawn_from(policy) as seen:
        found, _ = resume(
            policy,
            Nothing(),
            [PROMPTS[row // GROUP] for row in rows],
            rollouts,
            rows,
            positions,
            params=SamplingParams(max_new_tokens=WIDTH),
            micro_tokens=10_000,
            generator=_generator(5),
        )
    again = as_rollouts(found, policy, micro_tokens=10_000)
    mask = again.action_mask[:, 2:]
    expected = seen[0][:, : mask.shape[1]].gather(2, again.completion_ids[:, 2:, None])[..., 0]
    torch.testing.assert_close(again.logprobs[:, 2:][mask], expected[mask], atol=1e-4, rtol=0)
    assert all(a is rollouts.extras[row] for a, row in zip(again.extras, rows, strict=True))


def test_alternatives_see_the_images(policy: Any, rollouts: RolloutBatch) -> None:
    counts = torch.zeros_like(rollouts.completion_ids)
    counts[:, 0] = 20
    drawn = policy.alternatives(rollouts, counts, micro_tokens=10_000, generator=_generator())
    assert len(drawn) == 20 * len(rollouts)
    assert not torch.isin(drawn, torch.tensor(policy.suppressed_ids)).any()
    assert (drawn.view(-1, 20) != rollouts.completion_ids[:, :1]).all()


def test_logit_gradients_see_the_images(policy: Any, rollouts: RolloutBatch) -> None:
    found = policy.logit_gradients(rollouts, micro_tokens=10_000)
    alone = [policy.logit_gradients(rollouts.select([row]), micro_tokens=1) for row in (0, GROUP)]
    for row, single in zip((0, GROUP), alone, strict=True):
        torch.testing.assert_close(found[row], single[0], atol=1e-4, rtol=0)
    # Between (1 - p)² and twice that, p with the images.
    rest = -torch.expm1(rollouts.logprobs).masked_fill(~rollouts.action_mask, 0)
    assert (found >= rest.square() - 1e-4).all()
    assert (found <= 2 * rest.square() + 1e-4).all()


def test_the_images_of_a_prompt_are_seen_once_whatever_the_group(name: str, policy: Any) -> None:
    with _images_seen(policy) as seen:
        _sampled(policy, (PROMPTS[0],))
    # Sliding windows cannot be cut to a prefix: each row sees its images while it is sampled.
    by_sampling = GROUP if name == "gemma3" else 1
    assert seen[0] == 1
    assert sum(seen) == by_sampling + (1 if name == "gemma3" else 0) + GROUP


@contextmanager
def _images_seen(policy: Any) -> Iterator[list[int]]:
    """How many images each pass of the vision tower had, in units of the first prompt's."""
    base = policy.model.base_model
    unit = len(policy.images.encode(PROMPTS[0])["pixel_values"])
    seen: list[int] = []
    own = base.get_image_features

    def counted(pixel_values: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(len(pixel_values) // unit)
        return own(pixel_values, *args, **options)

    base.get_image_features = counted
    try:
        yield seen
    finally:
        del base.get_image_features


def test_a_row_without_images_among_rows_with_images(policy: Any) -> None:
    mixed = _sampled(policy, (PROMPTS[1], TEXT, PROMPTS[0]))
    for row in range(len(mixed)):
        alone = policy(mixed.select([row]))
        torch.testing.assert_close(alone.logprobs[0], mixed.logprobs[row], atol=1e-4, rtol=0)
    text = _sampled(policy, (TEXT,))
    assert text.logprobs.isfinite().all()


# --- what goes wrong without the care taken


def test_swapped_images_are_noticed(policy: Any) -> None:
    rollouts = _sampled(policy, (PROMPTS[0], PROMPTS[2]))
    strangers = (*rollouts.extras[GROUP:], *rollouts.extras[:GROUP])
    with pytest.raises(PolicyError, match="came with another prompt"):
        policy(rollouts.replace(extras=strangers))
    twins = _sampled(policy, (PROMPTS[0], Prompt("twin", PROMPTS[0].text, None, (image(9),))))
    swapped = twins.replace(extras=(*twins.extras[GROUP:], *twins.extras[:GROUP]))
    off = (policy(swapped).logprobs - twins.logprobs).abs().max()
    assert off > 1e-2, "another picture ought to change the log-probs"


def test_each_input_that_is_left_out_is_named(policy: Any, rollouts: RolloutBatch) -> None:
    for missing in policy.inputs.required:
        without = tuple(
            {key: x for key, x in extra.items() if key != missing} for extra in rollouts.extras
        )
        with pytest.raises(PolicyError, match=f"lacks? {missing}"):
            policy(rollouts.replace(extras=without))
    with pytest.raises(PolicyError, match="pixel_values"):
        policy(rollouts.replace(extras=()))


def test_naive_repetition_would_be_wrong(name: str, policy: Any) -> None:
    """With two images a prompt, repeating each tensor's rows gives a row another one's images."""
    one = Prompt("a", "<image><image>: which?", None, (image(1), image(2)))
    given = policy.images.encode(one)
    pixels = given["pixel_values"]
    naive = pixels.repeat_interleave(2, 0)
    right = torch.cat([pixels, pixels])
    ids = given["input_ids"].repeat_interleave(2, 0)
    extras = [given, given]
    inputs = policy.inputs.prepared(
        policy.model.base_model, ids, torch.ones_like(ids).bool(), extras, [0, 0]
    )
    torch.testing.assert_close(inputs["pixel_values"], right)
    with torch.no_grad():
        correct = policy.model.base_model(**inputs).last_hidden_state
        wrong = policy.model.base_model(**{**inputs, "pixel_values": naive}).last_hidden_state
    off = float((wrong - correct).abs().max())
    if name == "idefics3":  # whose images have a dimension of their own
        assert off == 0
    else:
        assert off > 1e-2


def test_a_completion_that_names_an_image_token_is_refused(
    policy: Any, rollouts: RolloutBatch
) -> None:
    ids = rollouts.completion_ids.clone()
    ids[0, 0] = policy.inputs.slot_ids[0]
    with pytest.raises(PolicyError, match="in whose place the model puts an image"):
        policy(rollouts.replace(completion_ids=ids))


def test_a_saved_model_is_the_same_when_loaded(
    policy: Any, rollouts: RolloutBatch, tmp_path: Any
) -> None:
    policy.model.save_pretrained(tmp_path)
    policy.images.processor.save_pretrained(tmp_path)
    loaded: Any = Pretrained(str(tmp_path), suppress=(UNKNOWN,)).load(
        Nothing(), Generate(), temperature=1.0, seed=0
    )
    assert loaded.suppressed_ids == policy.suppressed_ids
    assert loaded.inputs == policy.inputs
    again = _sampled(loaded)
    assert again.texts == rollouts.texts
    torch.testing.assert_close(again.logprobs, rollouts.logprobs, atol=1e-5, rtol=0)

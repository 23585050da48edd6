"""What an adapter needs: credit for completions that another engine sampled, and refusals."""

from __future__ import annotations

import pytest
import torch

from segcredit import RolloutBatch, Segmentation, Segmenter, load_config
from segcredit.episodes import complete
from segcredit.errors import ConfigError
from segcredit.integrations import assign, build, require_readings, scored
from segcredit.protocols import SegmenterReading, checked_segments
from segcredit.rng import stream
from segcredit.testing import make_rollouts
from segcredit.training.credit_assignment import collect
from small import SMALL

EVERYTHING: frozenset[SegmenterReading] = frozenset(
    {"text", "ids", "logprobs", "entropies", "token_values"}
)


@pytest.mark.parametrize("method", ["sapo", "vineppo"])
def test_completions_of_another_engine_get_the_credit_of_our_own(method: str) -> None:
    config = load_config(method, [*SMALL, "loss.kl_penalty=0.01"])
    own = build(config)
    want = collect(own, 1)
    run = build(config, task=own.task, policy=own.policy.module, train_policy=False)
    prompts = run.prompts.take(config.rollouts.prompts, stream(config.seed, "prompts", 1))
    completions = complete(
        run.actor,
        run.task,
        [prompt for prompt in prompts for _ in range(config.rollouts.completions)],
        params=config.rollouts.sampling(),
        generator=stream(config.seed, "sampling", 1),
    )
    count = int(completions.mask.sum())
    batch = assign(run, scored(run, completions, 1, tokens=count), 1)
    torch.testing.assert_close(batch.rollouts.token_rewards, want.rollouts.token_rewards)
    torch.testing.assert_close(batch.advantages.per_token, want.advantages.per_token)
    assert torch.equal(batch.segmentation.segment_ids, want.segmentation.segment_ids)
    # Nothing here steps the policy: a graph of the scoring pass would be kept for nobody.
    kept = batch.sampled.scores
    assert kept is None or not kept.logprobs.requires_grad


@pytest.mark.parametrize(
    ("setting", "given", "missing"),
    [
        ("segmenter=entropy", EVERYTHING - {"entropies"}, "'entropy' reads entropies"),
        ("segmenter=cutpoint", frozenset({"text"}), "'cutpoint' reads logprobs"),
        ("segmenter=value_jump", EVERYTHING - {"token_values"}, "reads token_values"),
        ("segmenter=newline", frozenset[SegmenterReading](), "'newline' reads text"),
        (
            'segmenter={name="union",first={name="newline"},second={name="random"}}',
            frozenset({"text"}),
            "'union' reads ids",
        ),
        ('loss.ratio_segmenter="entropy"', frozenset({"text"}), "loss.ratio_segmenter = 'entropy'"),
    ],
)
def test_a_segmenter_without_what_it_reads_is_refused(
    setting: str, given: frozenset[SegmenterReading], missing: str
) -> None:
    run = build(load_config("sapo", [*SMALL, "segmenter=newline", setting]))
    with pytest.raises(ConfigError, match=missing) as caught:
        require_readings(run, given, "the other trainer")
    assert "the other trainer gives" in str(caught.value)
    require_readings(run, EVERYTHING, "the other trainer")


class Curious(Segmenter):
    """Keeps what it was given; says that it reads entropies alone."""

    causal = True
    reads = frozenset[SegmenterReading]({"entropies"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        self.seen = rollouts
        return Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)


class Silent(Curious):
    """Does not say what it reads."""

    reads = Segmenter.reads


def test_what_a_segmenter_does_not_name_it_does_not_get() -> None:
    rollouts = make_rollouts(token_values=True)
    curious, silent = Curious(), Silent()
    checked_segments(curious, "curious", rollouts)
    assert curious.seen.entropies is rollouts.entropies
    assert curious.seen.logprobs.isnan().all()
    assert curious.seen.token_values is None
    checked_segments(silent, "silent", rollouts)
    assert silent.reads == EVERYTHING
    assert silent.seen.logprobs is rollouts.logprobs
    assert silent.seen.token_values is rollouts.token_values

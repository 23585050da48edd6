"""Step 1 of the loop: choose prompts, sample and verify completions, keep, price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from segcredit.episodes import Completions, complete, join
from segcredit.errors import PluginError, TrainingError, blame
from segcredit.objective import returns
from segcredit.objective.group_statistics import group_std
from segcredit.objective.policy_loss import kl_divergence
from segcredit.protocols import Prompt, PromptStream, checked_prompts
from segcredit.rng import stream
from segcredit.training.build import Run
from segcredit.training.rollouts.completions import (
    micro_batches,
    score,
    unscored_rollouts,
    with_scores,
)
from segcredit.training.rollouts.tree_sampling import grow
from segcredit.types import RolloutBatch, TokenScores, require_shape


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The rollouts of a step, and what they cost."""

    rollouts: RolloutBatch
    prompts: tuple[Prompt, ...]
    """The prompt of each rollout."""
    tokens: int
    """Tokens sampled by this process, those of completions that were not kept included."""
    rounds: int
    """Rounds of sampling that it took; more than one in dynamic sampling alone."""
    scores: TokenScores | None = None
    """Scores of the rollouts under the policy that sampled them, where they are read again: with
    gradients where the pass that made them also trains on them, or for an estimator that reads
    hidden states."""
    timeouts: int = 0
    """Completions that took the verifier longer than allowed."""


def sample(run: Run, step: int) -> Sampled:
    """Samples prompts x completions, verifies and scores them, with the config's token rewards.

    Every process draws the same prompts and samples its share of them.

    Args:
        run: whose policy samples.
        step: names the random generators; negative in the value estimator's warm-up.

    Raises:
        TrainingError: every completion is empty, or there are fewer different prompts than
            processes.
        PluginError: a plug-in raised, or returned what does not fit; names it.
        TaskError: the verifier raised; says on which prompt and completion.
    """
    drawn = draw(run, step)
    found = scored(run, drawn.completions, step, tokens=drawn.tokens, rounds=drawn.rounds)
    rollouts = found.rollouts
    if not run.config.rollouts.ahead or rollouts.sampler_logprobs is not None:
        return found
    # Of a run whose other batches are an update old: this one was drawn as it was scored.
    return replace(found, rollouts=rollouts.replace(sampler_logprobs=rollouts.logprobs.detach()))


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The verified completions of a step, not yet scored, and what they cost; see ``Sampled``."""

    completions: Completions
    tokens: int
    rounds: int


def draw(run: Run, step: int) -> Drawn:
    """Samples and verifies the completions of a step, see ``sample``."""
    (found, tokens), rounds = _draw(run, step, 0), 1
    if run.config.rollouts.dynamic_sampling:
        found, tokens, rounds = _dynamic_sampling(run, step, found, tokens)
    # On any process: all must stop, or none.
    if not run.processes.any(bool(found.mask.any())):
        raise TrainingError(
            f"all {len(found.ids)} completions of step {step} are empty: there is no token to give"
            " credit to. The usual cause is a prompt template that already ends the answer, or a"
            " policy that masks its own tokens. Look at rollouts.max_new_tokens and the task's"
            " prompts."
        )
    return Drawn(found, tokens, rounds)


def scored(
    run: Run, completions: Completions, step: int, *, tokens: int, rounds: int = 1
) -> Sampled:
    """Scores verified completions and prices their tokens, whoever sampled them.

    Args:
        run: whose policy scores, and whose config prices length and KL.
        completions: of this process, every completion of a prompt among them.
        step: they are of; 0 or less before the first update, where the policy is the reference.
        tokens: sampled for them, those of completions that were not kept included.
        rounds: of sampling.

    Raises:
        PluginError: the policy returned what does not fit.
        TrainingError: another process failed.
    """
    with run.processes.error_barrier():
        unscored = unscored_rollouts(completions)
        scores = _scores(run, unscored, trained=step > 0)
        # Until the first step has been made, the policy is its own reference.
        reference = scores.detached() if step <= 0 else None
        priced = _priced(run, with_scores(unscored, scores), reference)
    again = scores.logprobs.requires_grad or "hidden" in run.method.estimator.reads
    kept = scores if again else None
    timeouts = sum(verdict.timed_out for verdict in completions.verdicts)
    return Sampled(priced, completions.prompts, tokens, rounds, kept, timeouts)


def _scores(run: Run, rollouts: RolloutBatch, *, trained: bool) -> TokenScores:
    """Scores rollouts under the current policy; with gradients where one pass trains on them all.

    The policy does not change before that pass, which need then not be made again.
    """
    train = run.config.train
    # Not where parameters are sharded: all processes must train with as many passes, and score
    # with different numbers of them.
    once = trained and run.policy.epochs == train.minibatches == 1 and not run.sharded
    if once and len(list(micro_batches(rollouts.action_mask, train.micro_tokens))) == 1:
        return run.policy.module(rollouts)
    return score(run.actor, rollouts, micro_tokens=train.micro_tokens)


def _draw(run: Run, step: int, round_: int) -> tuple[Completions, int]:
    """Samples one round: returns its completions, and the number of tokens sampled."""
    name = f"/{round_}" if round_ else ""
    with run.processes.error_barrier():
        # Further rounds and warm-up take prompts elsewhere, since they must not shift those of
        # the steps: every method meets the same prompts at the same step.
        source = run.prompts if step > 0 and not round_ else run.further_prompts
        drawn = _prompts(run, source, stream(run.config.seed, f"prompts{name}", step))
        own = run.processes.named(f"sampling{name}")
        return _completed(run, _share(run, drawn), stream(run.config.seed, own, step))


def _share(run: Run, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Returns this process's prompts; all entries of a key drawn twice go to one process.

    Raises:
        TrainingError: there are fewer different prompts than processes.
    """
    keys = set(run.processes.share(list(dict.fromkeys(prompt.key for prompt in prompts))))
    if not keys:
        raise TrainingError(
            f"the {len(prompts)} prompts drawn for a step are fewer different ones than the"
            f" {run.processes.count} processes that share them; expected at least one for each."
            " Raise rollouts.prompts, or start fewer processes."
        )
    return [prompt for prompt in prompts if prompt.key in keys]


def _completed(
    run: Run, prompts: Sequence[Prompt], generator: torch.Generator
) -> tuple[Completions, int]:
    """Samples completions of prompts in the config's layout, and counts the tokens sampled."""
    config, sizes = run.config, run.config.rollouts
    if sizes.layout == "tree":
        return grow(
            run.actor,
            run.task,
            prompts,
            run.method.segmenter,
            sizes.branches,
            max_new_tokens=sizes.max_new_tokens,
            stop=sizes.stop,
            micro_tokens=config.train.micro_tokens,
            generator=generator,
        )
    completions = complete(
        run.actor,
        run.task,
        [prompt for prompt in prompts for _ in range(sizes.completions)],
        params=sizes.sampling(),
        generator=generator,
    )
    return completions, int(completions.mask.sum())


def _prompts(run: Run, source: PromptStream, generator: torch.Generator) -> Sequence[Prompt]:
    """Takes the source's next prompts, or draws from the run's pool by the estimator's weights.

    From the pool they are drawn without repetition.

    Raises:
        PluginError: the estimator raised, or leaves too few prompts to draw from.
    """
    sizes = run.config.rollouts
    if sizes.prompt_choice == "uniform":
        with blame("task", run.config.task["name"], run.task):
            drawn = source.take(sizes.prompts, generator)
            return checked_prompts("its stream", drawn, sizes.prompts)
    keys = [prompt.key for prompt in run.pool]
    estimator = run.method.estimator
    with blame("estimator", run.config.estimator["name"], estimator):
        found_K = estimator.prompt_weights(run.state.module, keys)
        require_shape("prompt_weights", found_K, (len(keys),))
    weights_K = found_K.double().cpu()
    possible = int((weights_K > 0).sum())
    if not weights_K.isfinite().all() or (weights_K < 0).any() or possible < sizes.prompts:
        raise PluginError(
            f"estimator {run.config.estimator['name']!r} gave {possible} of the pool's"
            f" {len(keys)} prompts a weight above 0; expected at least {sizes.prompts}, since a"
            " step draws as many without repetition, and only finite weights of at least 0. Add a"
            " small number to every weight, or raise rollouts.prompt_pool."
        )
    drawn = torch.multinomial(weights_K, sizes.prompts, replacement=False, generator=generator)
    return [run.pool[place] for place in map(int, drawn)]


def _dynamic_sampling(
    run: Run, step: int, first: Completions, tokens: int
) -> tuple[Completions, int, int]:
    """Samples until there is the usual number of groups whose rewards differ; keeps those alone.

    Each process fills its own share of that number. Should there be too few after the last
    round, it keeps those there are; should there be none, the first round's as they are, from
    which a group baseline learns nothing.

    Args:
        run: whose policy samples.
        step: names the random generators.
        first: completions of the first round.
        tokens: sampled for them.

    Returns:
        The completions kept, tokens sampled in all rounds, and the number of rounds.

    Source:
        Dynamic sampling of DAPO, arXiv 2503.14476, eq. 11.
    """
    sizes = run.config.rollouts
    usual = len(run.processes.share(range(sizes.prompts)))
    kept, rounds = [_varied(first)], 1
    # All go on while one is short: the others would wait, and prompts are drawn by all alike.
    while rounds < sizes.dynamic_sampling_rounds and run.processes.any(len(_keys(kept)) < usual):
        more, spent = _draw(run, step, rounds)
        kept.append(_varied(more))
        tokens, rounds = tokens + spent, rounds + 1
    wanted = set(_keys(kept)[:usual])
    if not wanted:
        return first, tokens, rounds
    joined = join(_apart([piece for piece in kept if len(piece.ids)]))
    rows = [row for row, prompt in enumerate(joined.prompts) if prompt.key in wanted]
    return joined.select(rows), tokens, rounds


def _varied(completions: Completions) -> Completions:
    """Selects the rows of groups in which not every reward is the same."""
    std_B = group_std(completions.rewards, completions.group, ddof=0)
    return completions.select((std_B > 0).nonzero()[:, 0])


def _keys(pieces: Sequence[Completions]) -> list[str]:
    """Lists the keys of the prompts of all pieces, each once, in order."""
    return list(dict.fromkeys(prompt.key for piece in pieces for prompt in piece.prompts))


def _apart(pieces: Sequence[Completions]) -> list[Completions]:
    """Renumbers node ids, so that no two pieces share one: they were sampled separately."""
    widest = max(int(piece.node_ids.max()) for piece in pieces) + 1
    return [piece.renumbered(place * widest) for place, piece in enumerate(pieces)]


def with_reference(
    run: Run, rollouts: RolloutBatch, scores: TokenScores | None = None
) -> RolloutBatch:
    """Returns rollouts with what a KL term or the estimator reads of the frozen starting policy.

    Args:
        run: with a reference; without one, the rollouts stay as they are.
        rollouts: at least one row.
        scores: of the rollouts under the reference, where they are known.
    """
    whole = "reference" in run.method.estimator.reads
    known = rollouts.reference_hidden is not None or not whole
    if run.reference is None or (known and rollouts.reference_logprobs is not None):
        return rollouts
    if scores is None:
        scores = score(run.reference, rollouts, micro_tokens=run.config.train.micro_tokens)
    return rollouts.replace(
        reference_logprobs=scores.logprobs,
        reference_entropies=scores.entropies if whole else None,
        reference_hidden=scores.hidden if whole else None,
    )


def _priced(run: Run, rollouts: RolloutBatch, reference: TokenScores | None) -> RolloutBatch:
    """Sets token rewards: the verifier's, less a penalty on length and each token's KL penalty."""
    sizes, loss = run.config.rollouts, run.config.loss
    overlong_B = torch.zeros_like(rollouts.rewards)
    if sizes.overlong_buffer:
        lengths_B = rollouts.action_mask.sum(1)
        overlong_B = sizes.overlong_penalty * returns.overlong(
            lengths_B, sizes.max_new_tokens, sizes.overlong_buffer
        )
    rollouts, penalty_BT = with_reference(run, rollouts, reference), None
    if rollouts.reference_logprobs is not None:
        kl_BT = kl_divergence(rollouts.logprobs, rollouts.reference_logprobs, "k1")
        penalty_BT = loss.kl_penalty * kl_BT
    priced_BT = returns.token_rewards(-overlong_B, rollouts.action_mask, penalty_BT)
    return rollouts.replace(token_rewards=rollouts.token_rewards + priced_BT)

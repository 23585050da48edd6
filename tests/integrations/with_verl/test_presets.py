"""Every preset in verl: credit, loss and gradient equal to our own, or a sentence on why not.

Run by ``make test-verl``, in an environment of its own, with verl's own functions on either side
of ours: ``apply_kl_penalty``, ``compute_advantage``, ``ppo_loss``, and its nested micro-batches.
"""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto
from verl.trainer.ppo.core_algos import get_kl_controller
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss

from segcredit import TokenScores, Verdict, load_config
from segcredit.config import presets
from segcredit.episodes import Completions, complete
from segcredit.errors import ConfigError
from segcredit.integrations import LossCounts, Run, TrainingBatch, assign, build, scored
from segcredit.integrations import policy_loss as own_policy_loss
from segcredit.integrations import value_loss as own_value_loss
from segcredit.integrations.verl import (
    HostedMethod,
    policy_loss,
    register,
    value_loss,
)
from segcredit.integrations.verl_batch import whole_batch, written_fields
from segcredit.integrations.verl_trainer import minibatches
from segcredit.objective.returns import overlong
from segcredit.rng import stream
from segcredit.training.rollouts.completions import score, unscored_rollouts
from small import SMALL

RANKS, MINIBATCH, TOLERANCE = 2, 8, 1e-6
FIXED = [*SMALL, "sampler=lean", "train.device=cpu", "policy.heads=2"]

REGISTRIES = {
    *(
        "at2po",
        "cispo",
        "dapo",
        "dr_grpo",
        "gmpo",
        "grpo",
        "gspo",
        "gspo_token",
        "opo",
        "reinforce",
    ),
    *("reinforce_pp", "reinforce_pp_baseline", "rloo", "soft_gate"),
    *("aspo", "ctpo", "dcpo_clip", "dppo_kl", "dppo_tv", "fipo", "gpg", "luspo", "maxrl"),
    *("opsm", "two_grpo", "vespo"),
}
TRAINER = {
    *("high_entropy_mask", "ppo", "pure", "sapo", "sapo_released", "turn_gae"),
    *("seq_mask_tis", "vapo", "vc_ppo"),
}
REFUSED = {
    "gigpo": "are a sum of credits",
    "kl_cov": "compares the tokens of a whole minibatch",
    "mt_grpo": "are a sum of credits",
    "otb": "reads whole distributions",
    "remax": "further completions",
    "segment_td": "hidden states",
    "single_stream": "verl's data loader does",
    "spo_chain": "samples continuations",
    "spo_tree": "shared prefixes",
    "tir_otb": "reads whole distributions",
    "tree_grpo": "are a sum of credits",
    "vineppo": "samples continuations",
}


def test_every_preset_is_equal_or_refused() -> None:
    assert sorted([*REGISTRIES, *TRAINER, *REFUSED]) == presets()
    for name in presets():
        method = HostedMethod(name)
        assert (method.refusal("registries") is None) == (name in REGISTRIES), name
        assert (method.refusal("trainer") is None) == (name not in REFUSED), name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_run_says_why(name: str) -> None:
    for way in ("registries", "trainer"):
        assert REFUSED[name] in str(HostedMethod(name).refusal(way))


def test_the_page_says_what_runs_where() -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "verl.md"
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*)\|$", page.read_text(), re.MULTILINE)
    ways = {name: way for name, way, _ in rows}
    assert ways == (
        dict.fromkeys(REGISTRIES, "registries")
        | dict.fromkeys(TRAINER, "trainer")
        | dict.fromkeys(REFUSED, "not")
    )
    for name, way, reason in rows:
        refusal = HostedMethod(name).refusal("trainer" if way == "not" else "registries")
        assert bool(reason.strip()) == (refusal is not None)
        assert reason.strip() in (refusal or "")


class Step(NamedTuple):
    run: Run
    batch: TrainingBatch
    data: DataProto


def with_holes(run: Run, completions: Completions, *, empty: bool) -> Completions:
    """Ragged completions with tool tokens in them, behind the last action too; rewards that vary.

    One has tool tokens alone where ``empty`` says so.
    """
    mask = completions.mask.clone()
    lengths = mask.sum(1)
    mask[::3, 2:4] = False
    mask[1::4, 0] = False
    rows = torch.arange(2, len(mask), 5)
    mask[rows, lengths[rows] - 1] = False
    nothing = ~mask.any(1)
    assert nothing.any()
    mask[nothing] = completions.mask[nothing] & ~torch.tensor(empty)
    texts, spans = run.actor.decode(completions.ids, mask)
    rewards = [0.0, 1.0, 0.5, 0.0, 1.0, 0.0, -0.5, 1.0]
    verdicts = [Verdict(rewards[row % 8], rewards[row % 8] == 1) for row in range(len(mask))]
    return dataclasses.replace(
        completions, mask=mask, texts=texts, token_spans=spans, verdicts=tuple(verdicts)
    )


def moved(module: torch.nn.Module, seed: int) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.add_(0.05 * noise)


def collected(name: str, *settings: str, empty: bool) -> Step:
    """Credit of our own loop, and the same completions as verl has them."""
    run = build(load_config(name, [*FIXED, *settings]))
    moved(run.policy.network, 1)  # another policy than its reference
    moved(run.state.network, 2)
    sizes = run.config.rollouts
    prompts = run.prompts.take(4, stream(0, "prompts", 1))
    made = complete(
        run.actor,
        run.task,
        [prompt for prompt in prompts for _ in range(4)],
        params=sizes.sampling(),
        generator=stream(0, "sampling", 1),
    )
    completions = with_holes(run, made, empty=empty)
    lengths = made.mask.sum(1)
    if run.config.loss.correction is not None:  # as if an engine had rounded otherwise
        noise = torch.randn(made.ids.shape, generator=torch.Generator().manual_seed(5))
        noise[1::2] *= 0.003  # as little as leaves a row in a narrow band
        own = score(run.actor, unscored_rollouts(completions), micro_tokens=10**6).logprobs
        completions = dataclasses.replace(completions, sampler_logprobs=own + noise)
    batch = assign(run, scored(run, completions, 1, tokens=1), 1)
    rollouts, mask = batch.rollouts, completions.mask
    scores = torch.zeros(mask.shape)
    scores[torch.arange(len(mask)), lengths - 1] = completions.rewards
    if sizes.overlong_buffer:  # verl's reward manager "dapo" is to do it
        room = (sizes.max_new_tokens, sizes.overlong_buffer)
        penalties = sizes.overlong_penalty * overlong(mask.sum(1), *room)
        assert penalties.max() > 0
        scores[torch.arange(len(mask)), lengths - 1] -= penalties
    attended = torch.arange(mask.shape[1]) < lengths[:, None]
    tensors = {
        "prompts": completions.prompt_ids,
        "responses": completions.ids,
        "response_mask": mask.long(),
        "attention_mask": torch.cat([completions.prompt_mask, attended], 1).long(),
        "old_log_probs": rollouts.logprobs,
        "entropys": rollouts.entropies,
        "token_level_scores": scores,
    }
    if rollouts.reference_logprobs is not None:
        tensors["ref_log_prob"] = rollouts.reference_logprobs
    if completions.sampler_logprobs is not None:
        tensors["rollout_log_probs"] = completions.sampler_logprobs
    if HostedMethod(name).learns_values:
        with torch.no_grad():
            tensors["values"] = run.state.module(rollouts, None)
    keys = np.array(rollouts.prompt_keys, dtype=object)
    data = DataProto.from_dict(tensors=tensors, non_tensors={"uid": keys})
    kl = run.config.loss.kl_penalty
    if kl:
        control = OmegaConf.create({"type": "fixed", "kl_coef": kl})
        data, _ = apply_kl_penalty(data, get_kl_controller(control), "kl")
    else:
        data.batch["token_level_rewards"] = scores
    return Step(run, batch, data)


def credited(step: Step, method: HostedMethod, *, wholly: bool) -> dict[str, Tensor]:
    """Lets verl assign credit; returns what the losses need beside its own fields."""
    kl = {"type": "fixed", "kl_coef": step.run.config.loss.kl_penalty}
    on = bool(kl["kl_coef"])
    algorithm = OmegaConf.create({"use_kl_in_reward": on, "kl_penalty": "kl", "kl_ctrl": kl})
    if not wholly:
        compute_advantage(step.data, method.label, config=algorithm)
        return {}
    run = step.run
    decode = partial(run.actor.tokenizer.decode, skip_special_tokens=True)
    with whole_batch(step.data.batch, decode) as whole:
        compute_advantage(step.data, method.label, config=algorithm)
    rows = len(step.data)
    places = minibatches(rows, RANKS, MINIBATCH)
    return written_fields(*whole.assigned[-1], places, places)


def micro_batches(step: Step, more: dict[str, Tensor], number: int) -> list[TensorDict]:
    """A minibatch as verl's workers get it, in nested micro-batches of two ranks."""
    data, tensors = step.data, dict(step.data.batch.items()) | more
    places = (minibatches(len(data), RANKS, MINIBATCH) == number).nonzero()[:, 0]
    prompt = data.batch["prompts"].shape[1]
    attended = data.batch["attention_mask"].bool()
    names = {"responses", "response_mask", "old_log_probs", "advantages", "returns", "values"}
    names |= {"ref_log_prob", *more}  # of credit's own, and the factors of a correction
    found = []
    for rows in places.split(3):
        ragged: dict[str, Any] = {
            name: nested([x[row][attended[row, prompt:]] for row in rows])
            for name, x in tensors.items()
            if name in names and not name.endswith("_row")
        }
        prompts = data.batch["prompts"]
        ragged["prompts"] = nested([prompts[row][attended[row, :prompt]] for row in rows])
        ragged |= {name: x[rows] for name, x in more.items() if name.endswith("_row")}
        piece = TensorDict(ragged, batch_size=len(rows))
        tokens = int(data.batch["response_mask"][places].sum())
        tu.assign_non_tensor(
            piece, dp_size=RANKS, batch_num_tokens=tokens, global_batch_size=len(places), rows=rows
        )
        found.append(piece)
    return found


def nested(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def outputs(piece: TensorDict, x: Tensor) -> Tensor:
    """(B,T) numbers of completions as a model gives them: one place earlier, prompts included."""
    rows, found = tu.get(piece, "rows"), []
    lengths = zip(
        piece["prompts"].offsets().diff(), piece["responses"].offsets().diff(), strict=True
    )
    for row, (prompt, completion) in zip(rows, lengths, strict=True):
        blank = torch.zeros(int(prompt) - 1)
        found.append(torch.cat([blank, x[row, : int(completion)], torch.zeros(1)]))
    return nested(found)


def scores_of(logprobs: Tensor) -> TokenScores:
    unread = torch.full(logprobs.shape, torch.nan)
    return TokenScores(logprobs=logprobs, entropies=unread, hidden=unread[..., None])


def actor(step: Step, label: str) -> ActorConfig:
    return ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        loss_scale_factor=step.run.config.rollouts.max_new_tokens,
        policy_loss={"loss_mode": label},
    )


BLOCKS = ("segmenter={name='fixed_length',tokens=5}", "loss.ratio=segment")
MORE = ("loss.kl_loss=0.05", "loss.tokens=low_probability", "loss.imitation=0.2")
IN_TEXT = ("segmenter=newline", "loss.ratio=segment", "loss.correction=truncate")
CASES = [(name, (), "registries") for name in sorted(REGISTRIES)]
CASES += [(name, (), "trainer") for name in sorted(REGISTRIES | TRAINER)]
CASES += [("grpo", BLOCKS, "registries"), ("grpo", MORE, "trainer"), ("grpo", IN_TEXT, "trainer")]


@pytest.mark.parametrize(("name", "settings", "way"), CASES)
def test_credit_loss_and_gradient_are_our_own(
    name: str, settings: tuple[str, ...], way: str
) -> None:
    (method,) = register(name, settings, "".join([name, *settings]) if settings else "")
    # verl's registry counts completions without an action among the rows of a minibatch.
    step = collected(name, *settings, empty=way == "trainer")
    run, batch = step.run, step.batch
    more = credited(step, method, wholly=way == "trainer")
    advantages = batch.advantages.per_token
    assert advantages.abs().max() > 0.1
    torch.testing.assert_close(step.data.batch["advantages"], advantages, atol=TOLERANCE, rtol=0)
    config = actor(step, method.label)
    noise = torch.randn(advantages.shape, generator=torch.Generator().manual_seed(3))
    for number in range(2):
        rows = (minibatches(len(step.data), RANKS, MINIBATCH) == number).nonzero()[:, 0]
        logprobs = (batch.rollouts.logprobs + 0.2 * noise).requires_grad_()
        counts = LossCounts.of(run, batch, rows)
        want, _ = own_policy_loss(run, batch, rows, scores_of(logprobs[rows]), counts)
        (slope,) = torch.autograd.grad(want, logprobs)
        found = torch.zeros(())
        for piece in micro_batches(step, more, number):
            given = {"log_probs": outputs(piece, logprobs)}
            part, metrics = (policy_loss if more else ppo_loss)(config, given, piece)
            found = found + part / RANKS
            assert any(key.startswith("actor/kl") for key in metrics)
        (theirs,) = torch.autograd.grad(found, logprobs)
        assert slope.abs().max() > 1e-4
        torch.testing.assert_close(found, want, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(theirs, slope, atol=TOLERANCE, rtol=0)


def test_what_is_not_in_the_batch_is_said() -> None:
    step, kl = collected("grpo", empty=True), "loss.kl_loss=0.1"
    for settings, sentence in [
        (["segmenter=entropy"], "'entropy' reads entropies"),
        ([kl], "use_kl_loss=true"),
    ]:
        (method,) = register("grpo", settings, settings[0])
        step.data.batch.pop("entropys", None)
        with pytest.raises(ConfigError, match=sentence):
            credited(step, method, wholly=True)
    (priced,) = register("reinforce_pp")
    with pytest.raises(ConfigError, match="use_kl_in_reward=true"):
        credited(step, priced, wholly=False)
    (long,) = register("dr_grpo")
    zeros = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="loss_scale_factor"):
        long.loss(zeros, zeros, zeros, zeros + 1)
    with pytest.raises(ConfigError, match="registered in verl already"):
        register("gspo", name="segcredit/grpo")


CRITICS = ("ppo", "sapo", "sapo_released", "vapo", "vc_ppo")


@pytest.mark.parametrize("name", CRITICS)
def test_the_critic_learns_what_our_own_learns(name: str) -> None:
    (method,) = register(name)
    step = collected(name, empty=True)
    run, batch = step.run, step.batch
    more = credited(step, method, wholly=True)
    critic = run.state.network
    moved(critic, 4)  # as if an update had been made: a clipped loss is another one then
    for number in range(2):
        rows = (minibatches(len(step.data), RANKS, MINIBATCH) == number).nonzero()[:, 0]
        scores = scores_of(batch.rollouts.logprobs[rows])
        want = own_value_loss(run, batch, rows, scores, LossCounts.of(run, batch, rows))
        slopes = torch.autograd.grad(want, list(critic.parameters()), allow_unused=True)
        values = critic(batch.rollouts, None)
        found = torch.zeros(())
        for piece in micro_batches(step, more, number):
            part, _ = value_loss({"values": outputs(piece, values)}, piece, method=method)
            found = found + part / RANKS
        theirs = torch.autograd.grad(found, list(critic.parameters()), allow_unused=True)
        torch.testing.assert_close(found, want, atol=TOLERANCE, rtol=0)
        for slope, other in zip(slopes, theirs, strict=True):
            assert (slope is None) == (other is None)
            if slope is not None and other is not None:
                torch.testing.assert_close(other, slope, atol=TOLERANCE, rtol=1e-5)
        assert max(float(slope.abs().max()) for slope in slopes if slope is not None) > 1e-3

"""Trains GRPO or SAPO on the embedded task, from top to bottom, with public names alone.

    python experiments/00_loop_by_hand/loop_by_hand.py sapo --steps 3 --seed 0

This is the page to read first. It does what ``segcredit train`` does, without configs, records,
several processes or micro-batches; a test holds its parameters against those of
``segcredit train`` bit for bit. Tensors: ``B`` completions, ``T`` tokens, ``S`` segments.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import nn

from segcredit import PolicySimulator, RolloutBatch, SamplingParams, SegmentValues, registry, rng
from segcredit.objective import (
    Clip,
    Importance,
    SegmentRatio,
    SequenceMeanTokenMean,
    TokenRatio,
    surrogate_loss,
)

PROMPTS, COMPLETIONS, MAX_NEW_TOKENS = 32, 8, 64  # of a step; completions are of each prompt
EPOCHS, MINIBATCHES, WARM_UP = 2, 2, 3  # warm-up iterations train the critic alone
POLICY = {"name": "tiny"}  # a small transformer, taught the task's form before the first step

# The four axes. Each may be any other: a registered name, or a class of your own.
METHODS = {
    "grpo": {
        "segmenter": {"name": "whole"},
        "estimator": {"name": "group_mean"},
        "advantage": {"name": "group_scaled", "inner": "full_return"},
        "surrogate": Importance(TokenRatio(), Clip(0.2, 0.2)),
    },
    "sapo": {
        "segmenter": {"name": "entropy", "top_fraction": 0.3},
        "estimator": {"name": "critic", "lam": 0.99},
        "advantage": {"name": "whitened", "clamp": 5.0, "inner": {"name": "gae", "lam": 0.99}},
        "surrogate": Importance(SegmentRatio(), Clip(0.2, 0.2)),
    },
}


def train(method: str, steps: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Returns the trained policy and the value estimator's state."""
    axes = METHODS[method]
    segmenter = registry.segmenters.from_table(axes["segmenter"])
    estimator = registry.estimators.from_table(axes["estimator"])
    advantage = registry.advantages.from_table(axes["advantage"])

    task = registry.tasks.build("arithmetic")
    source, sampler = registry.policies.from_table(POLICY), registry.samplers.build("generate")
    policy = source.load(task, sampler, temperature=1.0, seed=seed)
    with rng.forked(seed, "estimator"):
        critic = estimator.start(policy)  # an empty module where nothing is learned
    policy.zero_grad(set_to_none=True)  # the warm start may have left gradients
    adamw = {"betas": (0.9, 0.95), "weight_decay": 0.0}
    policy_optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, **adamw)
    learned = list(critic.parameters())
    critic_optimizer = torch.optim.AdamW(learned, lr=1e-3, **adamw) if learned else None
    # Warm-up has prompts of its own, so that with one seed every method sees the same in step 1.
    streams = [task.stream(rng.derived_seed(seed, name)) for name in ("prompts", "further prompts")]
    warm_up = range(-1, -WARM_UP - 1, -1) if learned else ()

    for step in (*warm_up, *range(1, steps + 1)):
        train_policy = step > 0

        # 1. Sample completions of each prompt, and let the task's verifier judge them.
        drawn = streams[not train_policy].take(PROMPTS, rng.stream(seed, "prompts", step))
        prompts = [prompt for prompt in drawn for _ in range(COMPLETIONS)]
        prompt_ids, prompt_mask, extras = policy.encode_prompts(prompts, room=MAX_NEW_TOKENS)
        made = policy.generate(
            prompt_ids,
            prompt_mask,
            extras,
            params=SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
            generator=rng.stream(seed, "sampling", step),
        )
        ids, mask, truncated = made.ids, made.mask, made.truncated
        texts, token_spans = policy.decode(ids, mask)
        verdicts = [
            task.verify(prompt, text, truncated=bool(cut))
            for prompt, text, cut in zip(prompts, texts, truncated, strict=True)
        ]
        rewards_B = torch.tensor([verdict.reward for verdict in verdicts])
        last_BT = mask & (mask.flip(1).cumsum(1).flip(1) == 1)  # the reward's place: the last token
        keys = [prompt.key for prompt in prompts]
        rollouts = RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            prompt_keys=tuple(keys),
            completion_ids=ids,
            action_mask=mask,
            logprobs=torch.zeros(ids.shape),
            entropies=torch.zeros(ids.shape),
            group=torch.tensor([keys.index(key) for key in keys]),
            texts=texts,
            token_spans=token_spans,
            rewards=rewards_B,
            token_rewards=last_BT * rewards_B[:, None],
            truncated=truncated,
            extras=extras,
        )

        # 2. Score them under the policy that sampled: its log-probs and entropies.
        order_B = longest_first(mask)
        with torch.no_grad():
            scores = policy(rollouts.select(order_B)).select(order_B.argsort())
        rollouts = replace(rollouts, logprobs=scores.logprobs, entropies=scores.entropies)

        # 3. Segment, value, and credit.
        segmentation = segmenter.segment(rollouts)
        simulator = PolicySimulator(
            policy=policy,
            task=task,
            prompts={prompt.key: prompt for prompt in prompts},
            params=SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
            micro_tokens=len(prompts) * MAX_NEW_TOKENS,
            generator=rng.stream(seed, "estimator", step),
        )
        with torch.no_grad():
            estimator.meet(critic, list(simulator.prompts), simulator)
            values_BS = estimator.estimate(critic, rollouts, segmentation, simulator)
            lengths_BS = segmentation.lengths
            values = SegmentValues(
                values=values_BS.masked_fill(~segmentation.mask, 0),
                rewards=segmentation.reduce(rollouts.token_rewards, "sum"),
                lengths=lengths_BS,
                weights=lengths_BS.float(),
                mask=segmentation.mask,
                group=rollouts.group,
            )
            targets_BS = estimator.targets(values)
            advantages_BT = segmentation.spread(advantage(values).masked_fill(~values.mask, 0))

        # 4. Improve: epochs over random minibatches, policy and critic each by its own loss.
        logged = {}
        for epoch in range(EPOCHS):
            generator = rng.stream(seed, f"minibatches/{epoch}", step)
            for rows in torch.randperm(len(prompts), generator=generator).tensor_split(MINIBATCHES):
                rows = rows[longest_first(mask[rows])]
                batch, cuts = rollouts.select(rows), segmentation.select(rows)
                with torch.set_grad_enabled(train_policy):
                    scores = policy(batch)
                if train_policy:
                    loss, logged = surrogate_loss(
                        scores.logprobs,
                        batch.logprobs,
                        advantages_BT[rows],
                        batch.action_mask,
                        cuts,
                        surrogate=axes["surrogate"],
                        aggregation=SequenceMeanTokenMean(),
                    )
                    descend(loss, policy, policy_optimizer)
                if critic_optimizer:
                    old = values.select(rows)
                    loss_BS = estimator.loss(critic, batch, cuts, scores, old, targets_BS[rows])
                    sizes_B = old.mask.sum(1)
                    per_row_B = (loss_BS * old.mask).sum(1) / sizes_B.clamp(min=1)
                    descend(per_row_B.sum() / (sizes_B > 0).sum(), critic, critic_optimizer)
        with torch.no_grad():
            estimator.update(critic, rollouts, simulator)

        # 5. Log. The metrics of the loss are the last minibatch's.
        segments = segmentation.counts.float().mean()
        found = {"reward": rewards_B.mean(), "segments": segments, **logged}
        print(f"step {step:3d}", *(f"{name} {float(value):.3f}" for name, value in found.items()))
    return policy, critic


def longest_first(mask_BT: torch.Tensor) -> torch.Tensor:
    """Returns the rows (B,) by falling length: the order in which ``segcredit train`` sums them."""
    return mask_BT.sum(1).argsort(descending=True, stable=True)


def descend(loss: torch.Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes one clipped gradient step."""
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    train(chosen.method, chosen.steps, chosen.seed)

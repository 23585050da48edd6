"""Trees of completions: trunks sampled to their end, and branches grown from their boundaries.

For fixed windows this has the same distribution as growing level by level (SPO-tree, arXiv
2505.23564), and it works with any segmenter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segcredit.errors import blame, require_type
from segcredit.protocols import Policy, Prompt, Segmenter, Task
from segcredit.segmentation import Segmentation
from segcredit.training.rollouts.completions import Completions, as_rollouts, complete, join, resume
from segcredit.types import SamplingParams


def grow(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    segmenter: Segmenter,
    branches: Sequence[int],
    *,
    max_new_tokens: int,
    micro_tokens: int,
    generator: torch.Generator,
) -> tuple[Completions, int]:
    """Trees of the given branching, every leaf a row.

    Args:
        policy: samples.
        task: verifies.
        prompts: a tree each.
        segmenter: where trunks branch: a node of level k is where a row's k-th segment ends.
        branches: children of the prompt (the trunks), then of the nodes of each level. The row
            itself is one of its node's children. A row with fewer segments grows no further, so
            that a tree may have fewer leaves than the product.
        max_new_tokens: limit of a completion.
        micro_tokens: most tokens in one pass.
        generator: where the draws come from.

    Returns:
        The leaves, those of a prompt together, with equal ``node_ids`` where they share a token;
        and the number of tokens sampled, shared ones counted once.
    """
    leaves = complete(
        policy,
        task,
        [prompt for prompt in prompts for _ in range(branches[0])],
        params=SamplingParams(max_new_tokens=max_new_tokens),
        generator=generator,
    )
    tokens = int(leaves.mask.sum())
    for level, children in enumerate(branches[1:], start=1):
        if children == 1:
            continue
        rollouts = as_rollouts(leaves, policy, micro_tokens=micro_tokens)
        with blame("segmenter", type(segmenter).__name__, segmenter):
            segmentation = segmenter.segment(rollouts)
            require_type("segment", segmentation, Segmentation)
            segmentation.require_covers(rollouts.action_mask)
        rows_N = (segmentation.counts > level).nonzero()[:, 0]
        if not len(rows_N):
            continue
        positions_N = segmentation.anchors("start")[rows_N, level]
        rows_N = rows_N.repeat_interleave(children - 1)
        grown, spent = resume(
            policy,
            task,
            [leaves.prompts[row] for row in map(int, rows_N)],
            rollouts,
            rows_N,
            positions_N.repeat_interleave(children - 1),
            params=SamplingParams(max_new_tokens=max_new_tokens),
            micro_tokens=micro_tokens,
            generator=generator,
        )
        leaves, tokens = join([leaves, grown]), tokens + spent
    return leaves.select(leaves.group.argsort(stable=True)), tokens

"""Trees of completions: trunks sampled to their end, and branches grown from their boundaries.

For fixed windows this has the same distribution as growing level by level (SPO-tree, arXiv
2505.23564), and it works with any segmenter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segcredit.episodes import Completions, complete, join, resume
from segcredit.protocols import Policy, Prompt, Segmenter, Task, checked_segments
from segcredit.training.rollouts.completions import as_rollouts
from segcredit.types import SamplingParams


def grow(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    segmenter: Segmenter,
    branches: Sequence[int],
    *,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    micro_tokens: int,
    generator: torch.Generator,
) -> tuple[Completions, int]:
    """Samples a tree of completions for each prompt, with the given branching; a leaf is a row.

    Args:
        policy: samples.
        task: verifies.
        prompts: a tree each.
        segmenter: says where rows branch: a node of level k is where a row's k-th segment ends.
        branches: children of the prompt (the trunks), then of the nodes of each level. The row
            itself is one of its node's children. A row with fewer segments grows no further, so
            that a tree may have fewer leaves than the product.
        max_new_tokens: limit of a completion.
        stop: strings that end a completion.
        micro_tokens: most tokens in one pass.
        generator: where the draws come from.

    Returns:
        The leaves, those of a prompt together, with equal ``node_ids`` where they share a token;
        and the number of tokens sampled, shared ones counted once.

    Raises:
        PluginError: the segmenter raised; names it.
        TaskError: the verifier raised; says on which prompt and completion.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens, stop=stop)
    leaves = complete(
        policy,
        task,
        [prompt for prompt in prompts for _ in range(branches[0])],
        params=params,
        generator=generator,
    )
    tokens = int(leaves.mask.sum())
    for level, children in enumerate(branches[1:], start=1):
        if children == 1:  # the row itself is the one child
            continue
        # Scored anew at each level: segmenters may read log-probs and entropies of all rows.
        rollouts = as_rollouts(leaves, policy, micro_tokens=micro_tokens)
        segmentation = checked_segments(segmenter, type(segmenter).__name__, rollouts)
        # A row whose level-th segment is its last one ends there: it has no node to branch at.
        rows_N = (segmentation.counts > level).nonzero()[:, 0]
        if not len(rows_N):
            continue
        # Segment ``level``, counted from 0, begins where the level-th one ends.
        positions_N = segmentation.anchors("start")[rows_N, level]
        # One child is the row itself, which goes on as it did.
        rows_N = rows_N.repeat_interleave(children - 1)
        grown, spent = resume(
            policy,
            task,
            [leaves.prompts[row] for row in map(int, rows_N)],
            rollouts,
            rows_N,
            positions_N.repeat_interleave(children - 1),
            params=params,
            micro_tokens=micro_tokens,
            generator=generator,
        )
        leaves, tokens = join([leaves, grown]), tokens + spent
    # Branches were added below all rows; a prompt's leaves are to stand together.
    return leaves.select(leaves.group.argsort(stable=True)), tokens

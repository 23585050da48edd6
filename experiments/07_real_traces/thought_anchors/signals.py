"""Anchor traces as a local model reads them: nobody published the log-probs of their authors.

Letters: ``L`` tokens of a trace.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from segcredit.errors import PolicyError, StudyError
from segcredit.protocols import Policy, Segmenter
from segcredit.training.rollouts.from_texts import rollouts_of_texts
from segcredit.types import RolloutBatch
from thought_anchors.traces import AnchorTrace

_LEAST = 64
"""Tokens of a context that has room for a sentence and what stands before it."""


def scored_trace(policy: Policy, trace: AnchorTrace, *, context: int = 8192) -> RolloutBatch:
    """One trace behind its problem, with a policy's log-probs and entropies: those of a reader.

    A trace that does not fit into the context together with its problem is read in pieces of half
    a context, cut at ends of sentences: the first behind the problem, each other behind the piece
    before it.

    Args:
        policy: see ``rollouts_of_texts``.
        trace: a text that is not empty.
        context: most tokens that the policy can read at once.

    Returns:
        A batch of one row; ``token_spans`` are characters of the whole text.

    Raises:
        PolicyError: the policy cannot read the text, or its tokens do not say it again; names the
            trace.
        StudyError: the context is too small for pieces.
    """
    if context < _LEAST:
        raise StudyError(
            f"the context is {context} tokens; expected at least {_LEAST}, since a trace is read in"
            " pieces of half of it. It is a property of the model, such as 8192."
        )
    try:
        return _read(policy, trace, context)
    # Tokenizers and models raise what they like.
    except Exception as error:
        raise PolicyError(
            f"trace {trace.name!r} cannot be read: {error}. Usually the text has characters that"
            " the tokenizer does not know: choose another policy, or leave the trace out."
        ) from error


def _read(policy: Policy, trace: AnchorTrace, context: int) -> RolloutBatch:
    whole = policy.encode([trace.problem + trace.text])[0].shape[1]
    edges = [0, len(trace.text)] if whole <= context else _edges(policy, trace, context // 2)
    pieces: list[RolloutBatch] = []
    before = trace.problem
    for start, end in itertools.pairwise(edges):
        text = trace.text[start:end]
        found = rollouts_of_texts(policy, [before], [text])
        pieces.append(found.replace(token_spans=found.token_spans + start))
        before = text
    return _joined(pieces, trace)


def _edges(policy: Policy, trace: AnchorTrace, tokens: int) -> list[int]:
    """Character offsets of pieces of at most that many tokens, at ends of sentences.

    Of a sentence that is longer than that, a piece ends inside it.
    """
    ids, mask = policy.encode([trace.text])
    starts_L = policy.decode(ids, mask)[1][0, :, 0].cpu().numpy()
    edges, first = [0], 0
    while first + tokens < len(starts_L):
        furthest = int(starts_L[first + tokens])
        fitting = trace.ends[(trace.ends > edges[-1]) & (trace.ends <= furthest)]
        edges.append(int(fitting[-1]) if len(fitting) else furthest)
        first = int(np.searchsorted(starts_L, edges[-1]))
    return [*edges, len(trace.text)]


def _joined(pieces: list[RolloutBatch], trace: AnchorTrace) -> RolloutBatch:
    """The pieces behind each other, as one completion of the problem."""
    names = ("completion_ids", "action_mask", "logprobs", "entropies", "token_spans")
    columns = {
        name: torch.cat([getattr(piece, name) for piece in pieces], dim=1)
        for name in (*names, "token_rewards")
    }
    width = columns["completion_ids"].shape[1]
    nodes = torch.arange(width, device=columns["completion_ids"].device)[None]
    return pieces[0].replace(**columns, texts=(trace.text,), node_ids=nodes)


def token_cuts(segmenter: Segmenter, rollouts: RolloutBatch) -> list[int]:
    """Where the segments of one completion begin, its first aside: characters of their tokens."""
    found = segmenter.segment(rollouts)
    places = found.anchors("start")[0][found.mask[0]]
    return rollouts.token_spans[0][places, 0].tolist()[1:]

"""One step's completions, turns, segments and tokens as columns for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segcredit.objective.group_statistics import group_place
from segcredit.records.image_files import image_name
from segcredit.records.schemas import TableName
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run
from segcredit.training.credit_assignment import TrainingBatch
from segcredit.training.rollouts.completions import score
from segcredit.types import turn_starts

Columns = dict[str, Any]


def tables(run: Run, batch: TrainingBatch, step: int) -> dict[TableName, Columns]:
    """Builds the columns of the tables that the config asks for, by the tables' names.

    The rows are those of all processes, process 0's first; DESIGN section 6 names the columns.

    Raises:
        TrainingError: another process failed; gives its sentence.
    """
    processes = run.processes
    # A prompt's completions are numbered on over processes: no two may have one number.
    keys = [Counter(keys) for keys in processes.gather(batch.rollouts.prompt_keys)]
    earlier = sum(keys[: processes.rank], Counter[str]())
    with processes.error_barrier():
        own = _own_tables(run, batch, step, earlier)
    shares = processes.gather(own)
    return {name: _joined([share[name] for share in shares]) for name in own}


def images(run: Run, batch: TrainingBatch) -> list[bytes]:
    """Lists the images of recorded completions' prompts, whose files ``tables`` names."""
    if not run.config.record.completions:
        return []
    prompts = batch.simulator.prompts.values()
    return [image for prompt in prompts for image in prompt.images]


def _joined(shares: Sequence[Columns]) -> Columns:
    """Joins the rows of several shares of a table, one under the other."""
    if len(shares) == 1:
        return shares[0]
    every = {name: [share[name] for share in shares] for name in shares[0]}
    return {
        name: list(chain.from_iterable(parts))
        if isinstance(parts[0], list)
        else np.concatenate(parts)
        for name, parts in every.items()
    }


def _own_tables(
    run: Run, batch: TrainingBatch, step: int, earlier: Counter[str]
) -> dict[TableName, Columns]:
    """Builds this process's rows; ``earlier`` counts a prompt's completions on processes before."""
    wanted = run.config.record
    made: dict[TableName, Columns] = {}
    if wanted.completions:
        made["completions"] = _completions(batch, step, earlier)
        turn_BT = batch.rollouts.turn_ids
        if turn_BT is not None:
            made["turns"] = _turns(batch, turn_BT, step, earlier)
    if wanted.segments:
        made["segments"] = _segments(run, batch, step, earlier)
    if wanted.tokens:
        made["tokens"] = _tokens(batch, step, earlier)
    return made


def _completions(batch: TrainingBatch, step: int, earlier: Counter[str]) -> Columns:
    rollouts = batch.rollouts
    prompts = batch.simulator.prompts
    shown = {
        key: " ".join(map(image_name, prompts[key].images)) for key in set(rollouts.prompt_keys)
    }
    every_row = torch.arange(len(rollouts), device=rollouts.group.device)
    return {
        **_names(batch, every_row, step, earlier),
        "prompt_text": [prompts[key].text for key in rollouts.prompt_keys],
        "text": list(rollouts.texts),
        "reward": rollouts.rewards.cpu().numpy(),
        "truncated": rollouts.truncated.cpu().numpy(),
        "tokens": rollouts.action_mask.sum(1).cpu().numpy(),
        "segments": batch.segmentation.counts.cpu().numpy(),
        "images": [shown[key] for key in rollouts.prompt_keys],
    }


def _turns(batch: TrainingBatch, turn_BT: Tensor, step: int, earlier: Counter[str]) -> Columns:
    """Builds a row for each turn, whose observation reaches to the next turn's first character."""
    rollouts, mask_BT = batch.rollouts, batch.rollouts.action_mask
    cut = Segmentation.from_starts(turn_starts(turn_BT) & mask_BT, mask_BT)
    mask_BS = cut.mask
    rows_N, _ = mask_BS.nonzero(as_tuple=True)
    starts_N = cut.anchors("start")[mask_BS]
    rows = _list(rows_N)
    first_N = _list(rollouts.token_spans[rows_N, starts_N, 0])
    beyond_N = _list(rollouts.token_spans[rows_N, cut.anchors("last_token")[mask_BS], 1])
    follows = zip(rows, [*rows[1:], -1], [*first_N[1:], 0], beyond_N, strict=True)
    until_N = [first if row == after else end for row, after, first, end in follows]
    values_BT = batch.segmentation.spread(batch.values.values)
    return {
        **_names(batch, rows_N, step, earlier),
        "turn": _numpy(turn_BT[rows_N, starts_N]),
        "text": _pieces(rollouts.texts, rows, first_N, beyond_N),
        "observation": _pieces(rollouts.texts, rows, beyond_N, until_N),
        "tokens": _numpy(cut.lengths[mask_BS]),
        "reward": _numpy(cut.reduce(rollouts.token_rewards, "sum")[mask_BS]),
        "value": _numpy(values_BT[rows_N, starts_N]),
        "advantage": _numpy(cut.reduce(batch.advantages.per_token, "mean")[mask_BS]),
        **{
            name: _numpy(cut.reduce(credit_BT, "mean")[mask_BS])
            for name, credit_BT in _credits(batch).items()
        },
    }


def _segments(run: Run, batch: TrainingBatch, step: int, earlier: Counter[str]) -> Columns:
    """Builds a row for each segment; ``start`` and ``end`` are token positions, the end excluded.

    ``ratio`` is the segment's importance ratio after the step's update: the geometric mean over
    its tokens.
    """
    rollouts, cut = batch.rollouts, batch.segmentation
    mask_BS = cut.mask
    rows_N, _ = mask_BS.nonzero(as_tuple=True)
    starts_N = cut.anchors("start")[mask_BS]
    lasts_N = cut.anchors("last_token")[mask_BS]
    # Not the simulator's, which shows an estimator what it reads, and may know the scores before.
    after_BT = score(run.actor, rollouts, micro_tokens=run.config.train.micro_tokens).logprobs
    ratios_BS = cut.reduce(after_BT - rollouts.logprobs, "mean").exp()
    first_N = _list(rollouts.token_spans[rows_N, starts_N, 0])
    beyond_N = _list(rollouts.token_spans[rows_N, lasts_N, 1])
    return {
        **_names(batch, rows_N, step, earlier),
        "segment": _numpy(mask_BS.nonzero()[:, 1]),
        "start": _numpy(starts_N),
        "end": _numpy(lasts_N + 1),
        "text": _pieces(rollouts.texts, _list(rows_N), first_N, beyond_N),
        "value": _numpy(batch.values.values[mask_BS]),
        "reward": _numpy(batch.values.rewards[mask_BS]),
        "advantage": _numpy(batch.advantages.per_segment[mask_BS]),
        **{
            name: _numpy(cut.reduce(credit_BT, "mean")[mask_BS])
            for name, credit_BT in _credits(batch).items()
        },
        "return": _numpy(batch.segment_targets[mask_BS]),
        "ratio": _numpy(ratios_BS[mask_BS]),
    }


def _tokens(batch: TrainingBatch, step: int, earlier: Counter[str]) -> Columns:
    """Builds a row for each action token; ``value`` is its segment's."""
    rollouts, cut = batch.rollouts, batch.segmentation
    mask_BT = rollouts.action_mask
    rows_N, positions_N = mask_BT.nonzero(as_tuple=True)
    spans = zip(_list(rows_N), _list(rollouts.token_spans[mask_BT]), strict=True)
    return {
        **_names(batch, rows_N, step, earlier),
        "position": _numpy(positions_N),
        "token_id": _numpy(rollouts.completion_ids[mask_BT]),
        "text": [rollouts.texts[row][first:beyond] for row, (first, beyond) in spans],
        "segment": _numpy(cut.segment_ids[mask_BT]),
        "logprob": _numpy(rollouts.logprobs[mask_BT]),
        "entropy": _numpy(rollouts.entropies[mask_BT]),
        "value": _numpy(cut.spread(batch.values.values)[mask_BT]),
        "advantage": _numpy(batch.advantages.per_token[mask_BT]),
        **{name: _numpy(credit_BT[mask_BT]) for name, credit_BT in _credits(batch).items()},
    }


def _credits(batch: TrainingBatch) -> dict[str, Tensor]:
    """Returns (B,T) the credits of a sum by their columns; none where there is one credit."""
    found = enumerate(batch.each_credit()) if batch.further else ()
    return {f"advantage_{place}": credit_BT for place, credit_BT in found}


def _names(batch: TrainingBatch, rows: Tensor, step: int, earlier: Counter[str]) -> Columns:
    """Builds the columns step, prompt, and number of the completion among its prompt's."""
    keys = batch.rollouts.prompt_keys
    place_B = group_place(batch.rollouts.group)
    if earlier:
        place_B = place_B + torch.tensor([earlier[key] for key in keys], device=place_B.device)
    return {
        "step": [step] * len(rows),
        "prompt": [keys[row] for row in _list(rows)],
        "completion": _numpy(place_B[rows]),
    }


def _pieces(
    texts: Sequence[str], rows: Sequence[int], firsts: Sequence[int], beyonds: Sequence[int]
) -> list[str]:
    """Returns pieces of the rows' texts, from a first character to one behind the last."""
    places = zip(rows, firsts, beyonds, strict=True)
    return [texts[row][first:beyond] for row, first, beyond in places]


def _list(x: Tensor) -> list[Any]:
    return x.cpu().numpy().tolist()


def _numpy(x: Tensor) -> Any:
    return x.detach().cpu().numpy()

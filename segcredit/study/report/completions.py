"""The sections in which a reader looks at completions: of training runs, and of audits."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from markupsafe import Markup

from segcredit.credit_audit.metrics.moments import square
from segcredit.errors import StudyError
from segcredit.records.tables import Runs
from segcredit.segmentation import Segmentation
from segcredit.study.look import browser, recorded
from segcredit.study.look.recorded import image_source
from segcredit.study.look.rollouts import of_rollouts
from segcredit.study.report.view import Block, Completions, Note, Section

if TYPE_CHECKING:
    from segcredit.credit_audit import Audit

MOST_CELLS = 1_000_000
"""Tokens times credits of an audit that are shown at most: as numbers, about ten megabytes."""
_TRUTH = "truth"
"""Name of the true values beside the audited credits."""


def trained_section(runs: Runs, by: Sequence[str], segmenters: Sequence[str]) -> Section:
    """Builds the section of the completions that training runs recorded.

    Args:
        runs: training runs.
        by: the settings that make the groups, of which one run each is shown.
        segmenters: of text alone, which cut the texts as well.
    """
    found = recorded.of_runs(runs, by, segmenters)
    if not found.groups:
        said = "No run recorded completions; set record.completions to see some here."
        return Section("completions", "Completions", [Note(said)])
    shown, count = len(found.completions), found.recorded
    said = f"{shown:,} of {count:,}" if shown < count else f"All {count:,}"
    said += " completions that the first run of each group recorded"
    said += f", steps evenly over the run, at most {recorded.MOST:,}." if shown < count else "."
    if found.groups > recorded.MOST_GROUPS:
        said += f" {recorded.MOST_GROUPS} of {found.groups:,} groups are shown."
    said += f" {_HOW} Segments {recorded.TRAINED} are there where a run recorded them"
    said += " (record.segments); the others are cuts of the text, at any character."
    blocks: list[Block] = [Note(said), *_blocks(found.completions)]
    return Section("completions", "Completions", blocks)


_HOW = (
    "Marks and alternating colours are segments. Where credit is known it is the shade: blue with a"
    " line below for more, orange with dots for less. The line above is the value."
)


def audited(path: Path, scheme: str) -> Iterator[Block]:
    """Yields the completions of an audit's truth, those first whose true value moves most.

    Args:
        path: the audit's directory.
        scheme: of the credit that is shown.
    """
    # Loads transformers, which a report on training runs does without.
    from segcredit.credit_audit import load_audit

    try:
        audit = load_audit(path)
    except StudyError as error:
        yield Note(f"No completion is shown: {error}")
        return
    rows = _most_moving(audit)
    count = len(audit.truth.rollouts)
    said = f"{len(rows):,} of {count:,}" if len(rows) < count else f"All {count:,}"
    yield Note(
        f"{said} completions of the truth, first those whose true value moves most (in squares,"
        " product of the truth's two parts that no plug-in has seen)."
        f" Under {_TRUTH} every token has its true credit, V after it less V before; credit of"
        f" the others is that of {scheme}, the scheme that correlates best with it on average."
        f" {_HOW}"
    )
    yield from _blocks(list(_of_audit(audit, scheme, rows)))


def _blocks(completions: Sequence[browser.Completion]) -> Iterator[Block]:
    if completions:
        # Markup of ours; it escapes the texts.
        yield Completions(Markup(browser.block(completions)))


def _of_audit(audit: Audit, scheme: str, rows: Sequence[int]) -> Iterator[browser.Completion]:
    from segcredit.credit_audit.table import JUDGES

    truth, rollouts = audit.truth, audit.truth.rollouts
    mask_BT = rollouts.action_mask
    values_BE = truth.values[:, list(JUDGES)].mean(1)
    cuts = {_TRUTH: Segmentation.from_starts(mask_BT, mask_BT)}
    credit = {_TRUTH: values_BE.diff(dim=1)}
    values = {_TRUTH: values_BE[:, :-1]}
    for found in audit.credits:
        name = f"{found.segmenter}, {found.estimator}"
        cuts[name] = Segmentation(torch.from_numpy(found.segment_ids))
        credit[name] = torch.from_numpy(found.advantages[scheme])
        values[name] = torch.from_numpy(found.state_values)
    asked = [truth.prompts[number] for number in truth.prompt_numbers.tolist()]
    yield from of_rollouts(
        rollouts,
        cuts,
        credit,
        values,
        rows,
        prompts=[prompt.text for prompt in asked],
        images=[list(filter(None, map(image_source, prompt.images))) for prompt in asked],
    )


def _most_moving(audit: Audit) -> list[int]:
    """Returns as many rows as there is room for, by falling movement of their true values."""
    from segcredit.credit_audit.table import JUDGES

    values_BHE = audit.truth.values[:, list(JUDGES)].numpy()
    moved_B = square(np.nan_to_num(np.diff(values_BHE, axis=2))).sum(1)
    mask_BT = audit.truth.rollouts.action_mask.numpy()
    order_B = np.argsort(-moved_B, kind="stable")
    cells_B = (mask_BT.sum(1)[order_B] * (1 + len(audit.credits))).cumsum()
    return order_B[: max(int((cells_B <= MOST_CELLS).sum()), 1)].tolist()

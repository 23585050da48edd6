"""Segments of given texts: by characters or, under a policy, in whole tokens as credit has them."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from segcredit import registry
from segcredit.config import lay_over_preset
from segcredit.errors import (
    UNREADABLE,
    SegcreditError,
    StudyError,
    blame,
    parser_words,
    shown,
)
from segcredit.protocols import Policy, Segmenter, TextSegmenter, checked_offsets
from segcredit.registry import plugin_label
from segcredit.study.segmenting.texts import Document
from segcredit.types import RolloutBatch


@dataclass(frozen=True, slots=True)
class TextSegments:
    """The segments of one text; where the segmenter failed, nothing but the sentence."""

    starts: tuple[int, ...] = ()
    """The first character of each segment. Segments that share a character, since its bytes are
    several tokens, all have it."""
    ends: tuple[int, ...] = ()
    """One after the last character of each."""
    tokens: tuple[int, ...] | None = None
    """Tokens of each, where a policy made some."""
    error: str = ""

    def __len__(self) -> int:
        return len(self.starts)


Segmented = tuple[Document, Mapping[str, TextSegments]]
"""A text with what each segmenter made of it, by the segmenter's label."""


def plugin_table(spec: str, option: str) -> dict[str, Any]:
    """Returns a plug-in's name, or an inline TOML table with its name and options, as a table.

    Args:
        spec: such as ``newline``, or ``{name="random", fraction=0.2}``.
        option: what messages call it, such as ``--segmenter``.

    Raises:
        StudyError: the table is not TOML, or has no name.
    """
    if not spec.lstrip().startswith("{"):
        return {"name": spec.strip()}
    try:
        table = tomllib.loads(f"table = {spec}")["table"]
    except UNREADABLE as error:
        raise StudyError(
            f"{option} {shown(spec)} is not a TOML table: {parser_words(error)}. Write a name, or"
            " a table in which strings have quotes, such as '{name=\"random\", fraction=0.2}'."
        ) from error
    if not isinstance(table.get("name"), str):
        raise StudyError(
            f"{option} {shown(spec)} has no name; expected the plug-in's name beside its options,"
            " such as '{name=\"random\", fraction=0.2}'."
        )
    return table


def chosen_segmenters(specs: Sequence[str], *, policy: bool) -> dict[str, Segmenter]:
    """Returns the segmenters asked for, in this order, by labels such as ``random(fraction=0.2)``.

    Args:
        specs: names or inline TOML tables, see ``plugin_table``.
        policy: whether there is a policy, whose tokens and signals they can read.

    Raises:
        StudyError: one cannot be read, or needs more than text where there is no policy.
        RegistryError: one is unknown, or refuses its options.
    """
    tables = [plugin_table(spec, "--segmenter") for spec in specs]
    chosen = {
        plugin_label(registry.segmenters, table): registry.segmenters.from_table(table)
        for table in tables
    }
    for label, found in chosen.items():
        if not policy:
            _require_text_alone(found, label)
    return chosen


def _require_text_alone(segmenter: Segmenter, label: str) -> None:
    if not isinstance(segmenter, TextSegmenter):
        raise StudyError(
            f"segmenter {label!r} needs tokens or a model's signals, not text alone, and no"
            ' policy is given. Name one with --policy, such as --policy \'{name="hf",'
            ' model="HuggingFaceTB/SmolLM2-135M-Instruct"}\', or choose a segmenter that reads'
            " text alone, such as newline."
        )


def load_policy(policy: str, task: str | None = None) -> Policy:
    """Returns a policy as a run would begin with, on the device that a run would use.

    Args:
        policy: its name, or an inline TOML table.
        task: likewise; None = the task of the base config. Policies that imitate a task need it.

    Raises:
        PolicyError, TaskError, RegistryError: it cannot be had; says why.
    """
    base = lay_over_preset({})
    table = base["task"] if task is None else plugin_table(task, "--task")
    loaded = registry.policies.from_table(plugin_table(policy, "--policy")).load(
        registry.tasks.from_table(table),
        registry.samplers.from_table(base["sampler"]),
        temperature=base["rollouts"]["temperature"],
        seed=0,
    )
    # Accelerate with it: seconds that plain text does not need.
    from segcredit.training.distributed.processes import Processes

    return cast(Policy, loaded.to(Processes.started().device))


def segment(text: str, segmenter: str | Mapping[str, Any] | Segmenter = "newline") -> list[str]:
    """Cuts a text into its segments, which joined are the text.

        segcredit.segment(text)                             # after each newline
        segcredit.segment(text, {"name": "steps", "markers": ["numbered"]})

    Args:
        text: any.
        segmenter: the name of one that reads text alone, a table of its name and options, or the
            segmenter itself.

    Raises:
        RegistryError: there is no such segmenter, or it refuses its options.
        StudyError: it needs tokens or a model's signals.
        PluginError: it raised, or gave offsets that do not ascend inside the text.
    """
    found = registry.segmenters.from_table(segmenter)
    name = type(found).__name__
    _require_text_alone(found, name)
    with blame("segmenter", name, found):
        cuts = _by_characters(found, Document(1, text))
    return [text[start:end] for start, end in zip(cuts.starts, cuts.ends, strict=True)]


def segment_documents(
    documents: Iterable[Document],
    segmenters: Mapping[str, Segmenter],
    policy: Policy | None = None,
) -> Iterator[Segmented]:
    """Yields each text with the segments that each segmenter makes of it.

    Without a policy, text segmenters cut between any two characters. With one, every segmenter
    cuts between the policy's tokens, as in a run; no end token is added to a text. A segmenter
    that fails on a text leaves its sentence there, and the others go on.
    """
    for document in documents:
        if policy is None:
            cuts = {label: partial(_by_characters, s, document) for label, s in segmenters.items()}
            yield document, {label: _attempt(label, cut) for label, cut in cuts.items()}
        else:
            yield document, _under_policy(document, segmenters, policy)


def _under_policy(
    document: Document, segmenters: Mapping[str, Segmenter], policy: Policy
) -> dict[str, TextSegments]:
    # Inside, as what loads transformers: text alone is cut without.
    from segcredit.training.rollouts.from_texts import rollouts_of_texts

    if not document.text:  # nothing to tokenise
        return dict.fromkeys(segmenters, TextSegments(tokens=()))
    try:
        rollouts = rollouts_of_texts(policy, [document.prompt], [document.text])
    except SegcreditError as error:
        return dict.fromkeys(segmenters, TextSegments(error=str(error)))
    # Tokenizers and models raise what they like; the other texts go on.
    except Exception as error:
        failed = TextSegments(
            error=f"the policy raised {type(error).__name__}: {error}. Usually the text has"
            " characters that its tokenizer does not know (a tiny policy knows its task's alphabet"
            " alone), or more tokens than its model can read."
        )
        return dict.fromkeys(segmenters, failed)
    cuts = {label: partial(_by_tokens, s, rollouts) for label, s in segmenters.items()}
    return {label: _attempt(label, cut) for label, cut in cuts.items()}


def _attempt(label: str, cut: Callable[[], TextSegments]) -> TextSegments:
    try:
        return cut()
    # A plug-in may raise anything; its other texts, and the other plug-ins, go on.
    except Exception as error:
        return TextSegments(error=_sentence(f"segmenter {label!r}", error))


def _sentence(what: str, error: Exception) -> str:
    """Writes an error: a sentence as it is; of others, where they come from."""
    if isinstance(error, SegcreditError | ValueError) and str(error):
        return str(error)
    return f"{what} raised {type(error).__name__}: {error}"


def _by_characters(segmenter: Segmenter, document: Document) -> TextSegments:
    """Makes a segment between any two offsets, unless they are equal."""
    text = document.text
    offsets = checked_offsets(segmenter, cast(TextSegmenter, segmenter).split(text), text)
    edges = itertools.pairwise([0, *offsets, len(text)])
    pairs = [(start, end) for start, end in edges if start < end]
    return TextSegments(tuple(start for start, _ in pairs), tuple(end for _, end in pairs))


def _by_tokens(segmenter: Segmenter, rollouts: RolloutBatch) -> TextSegments:
    """Makes segments from the first character of the first token to the last one of the last."""
    found = segmenter.segment(rollouts)
    spans_T2 = rollouts.token_spans[0]
    mask_S = found.mask[0]
    return TextSegments(
        starts=tuple(spans_T2[found.anchors("start")[0], 0][mask_S].tolist()),
        ends=tuple(spans_T2[found.anchors("last_token")[0], 1][mask_S].tolist()),
        tokens=tuple(found.lengths[0][mask_S].tolist()),
    )

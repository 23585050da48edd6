"""spaCy's sentences: what is left where nothing is known of a text, and what to compare with."""

# spaCy ships partial types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .tokens import Ints, language, without_surrogates


@lru_cache(maxsize=1)
def _sentencizer() -> Any:
    from spacy.pipeline import Sentencizer

    return Sentencizer()


def sentence_starts(texts: Sequence[str]) -> list[Ints]:
    """Returns for each text the first visible character of every sentence but the first."""
    return [_starts(without_surrogates(text)) for text in texts]


def _starts(text: str) -> Ints:
    document = _sentencizer()(language().make_doc(text))
    columns_MA = document.to_array(["SENT_START", "IS_SPACE", "LENGTH", "SPACY"])
    begins_M, space_M, length_M, spacy_M = columns_MA.astype(np.int64).T
    steps_M = length_M + spacy_M
    offsets_M = np.cumsum(steps_M) - steps_M
    sentence_M = np.cumsum(begins_M == 1)
    visible = np.flatnonzero(space_M == 0)
    sentences = sentence_M[visible]
    return offsets_M[visible][1:][sentences[1:] > sentences[:-1]]

"""Sentences, as spaCy finds them, put right where the text of reasoning misleads it."""

from __future__ import annotations

import importlib.util
import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from segcredit import TextSegmenter
from segcredit.formulas import Formula, formulas, outside

Newlines = Literal["lines", "blank", "never"]
Gap = tuple[int, int]
"""End of a sentence's last mark, and the place where the next one would begin."""

_BLANK = "blank:"
_WORD = re.compile(r"\S")
_UNBROKEN = re.compile(r"\S{49}(?=\S{12})")
"""spaCy's time grows with the square of a word's length, and Chinese has no blanks.

A word's end stays whole: "a." by itself is an abbreviation to spaCy, "...a." is not.
"""
_MOST_WORDS = 500_000
"""spaCy keeps every word that it ever saw; with more than these it is loaded anew."""

_CLOSERS = r"(?:\\?[\"'”’]|[)\]}*_»」』）】])*+"
_TAIL = re.compile(rf"([.!?…。！？]+){_CLOSERS}(\s*+)[^\w.!?…。！？]*\Z")
"""Text between a sentence and the word at which spaCy begins the next one."""
_OPENING = re.compile(r"(?<=\s)[^\w\s]++\Z")
_TAIL_LENGTH = 60
_HAN = "\u3400-\u9fff"
_MISSED = re.compile(
    rf"([。！？]+|(?<=[{_HAN}$)}}\d%])[.!?](?=[{_HAN}“（])"
    rf"|(?:(?<=[^\w\s.…])|(?<=[^\x00-\x7f])|(?<![A-Za-z.'’][A-Za-z])(?<=[A-Za-z]))[.!?]"
    rf"(?={_CLOSERS}\s)|[.!?](?=\\[\"'”’]{_CLOSERS}\s)"
    rf"|(?<![.…])(?:\.{{3,}}|…)(?={_CLOSERS}\s)){_CLOSERS}(\s*+)"
)
"""Ends that spaCy's tokens hide: Chinese ones, after formulas, signs and letters; ellipses."""

_FORMULA_STOP = re.compile(
    r"(?<!\\right)(?<!\\left)[.!?。]\s*(?:\\\]|\\\)|\$\$?|\\end\{[A-Za-z]+\*?\})\Z"
)

_NEWLINE = re.compile(r"\n\s*")
_PAUSES = (",", ":", "，", "、", "：")
"""Before a newline they say that the sentence goes on."""
_CONTINUATION = re.compile(
    r"\\\[|\$\$|\\begin\{|[a-z]+(?<![^a-z][b-z])(?![\w(\[.:]|\s*[=:→<>+*/-])"
)
"""A display formula, or a word in lower case that is no name in code, goes on with a sentence."""

_NO_START = re.compile(
    r"[.!?。！？,;:=+|/&%^~)\]}，、；：）」』】》”’≈≠≤≥×÷·→⇒∈]|<(?![/\w])|>(?=[\s=])"
)
"""Characters that no sentence begins with."""
_NUMBERED = "".join(rf"(?<!\b{word})" for word in ("No", "no", "Eq", "Ex", "Fig", "Sec", "Vol"))
_ITEM = re.compile(
    rf"(?:\A|\n|{_NUMBERED}[.!?…:;][\"'”’)\]*_]*\s|[。！？：；]”?|(?<!\\)\(|（)[\s>*#_-]*"
    r"(?:(?i:step|case|part|problem|question|section|chapter|option|example)\s+)?"
    r"(?:\d{1,3}|[A-Za-z]|[ivx]{1,4}|[IVX]{1,4})\.\Z"
)
"""The number of a list item, of a step or of an option, alone where a sentence begins.

What follows "No." is a number of another kind.
"""
_FACTORIAL = re.compile(r"\d|[-*]\s")
"""Text after an exclamation mark that is none."""
_ABBREVIATIONS = tuple(
    (re.compile(rf"(?<![\w.])(?:{words})\.\Z"), re.compile(follower))
    for words, follower in (
        (r"[Ee]\.g|[Ii]\.e|[Cc]f|[Vv]iz|[Vv]s|w\.r\.t|resp|Mr|Mrs|Ms|Dr|Prof|St|Mt", r""),
        (r"[A-Z]", r"[A-Z]\."),
        (r"Figs?|Eqs?|Eqn|Secs?|Thm|Lem|Def|Refs?|Tab|Vol", r""),
        (r"[Nn]os?|pp?|Ex|Ch|Prop|Cor|Art|approx|ca|vol|ed|figs?|eqs?|secs?", r"\$?\d|#"),
        (
            r"etc|al|Inc|Ltd|Co|Corp|Jr|Sr|approx|[ap]\.m|Ph\.D|in|ft|lbs?|oz|hrs?|mins?",
            r"[a-z\d(]",
        ),
    )
)
"""Abbreviations, and what must follow for the sentence to go on."""
_INITIAL = re.compile(
    r"(?:\b(?!(?:Option|Answer|Choice|Point|Angle|Case|Part|Set|Statement|Player|House|Type)\b)"
    r"[A-Z][a-z]*\.?\s+|\bby\s+)[A-Z]\.\Z"
)
_NAME = re.compile(
    r"(?!(?:The|This|That|These|Those|So|Then|Thus|Therefore|Hence|It|Its|We|If|Let|Since|Now|In|For"
    r"|And|But|He|She|They|There|As|At|By|To|On|Next|However|When|Our|You|First|Finally|Given|Is|Not"
    r"|Wait|Hmm|Also|Both|Each|All|From|With|Draw|Drop|What|Which|[A-Z][a-z]*(?:ing|ly))\b)"
    r"(?:[A-Z][a-z]+|[A-Z]\.)"
)
"""Text after a capital letter with a full stop that makes an initial of it."""
_REACH = 40
"""Reach of these to the left, in characters."""


@dataclass(frozen=True, slots=True)
class Sentence(TextSegmenter):
    r"""Each sentence is a segment; formulas, code, abbreviations and list numbers are left whole.

    spaCy proposes where sentences begin. Its proposals are moved from a sentence's first word to
    its opening quote, bracket or bullet, and dropped after abbreviations ("e.g.", "Fig. 3", "No.
    5"), initials, factorials and the numbers of list items, before what cannot begin a sentence,
    and inside formulas (of dollars, \(, \[ or an environment) and code. Ends that its tokens
    hide are added: 。！？, after a formula or a single letter, after a formula that holds its own
    full stop, after an ellipsis before a capital. Quotes and brackets that close after the last
    mark belong to the sentence. A single space before a sentence goes with it, as it does in the
    tokens of most vocabularies; other blank characters belong to the sentence before them. A
    formula or block of code that is never closed, as in completions cut short, goes on to the end.

    A newline ends a sentence, for language models do not wrap their lines; but not after a comma
    or a colon, and not before a display formula or a word in lower case. So a list's first item
    belongs to the sentence that announces it, as human annotators of reasoning traces have it.

    Not causal: whether a full stop ends a sentence depends on what comes after it.

    Assumption: a sentence is a thought. Degenerate case: text without marks and newlines is one
    segment. Cost: spaCy's tokens, over half a million characters a second on one core for the
    blank pipeline; a trained one's network is far slower.

    Args:
        pipeline: ``blank:`` and a language's short name, which takes no download: spaCy's rules
            for its words, with the sentencizer. Or the name of an installed trained pipeline, or
            the folder of one, whose own component proposes the sentences. Chinese ends are found
            with any.
        newlines: ``lines`` (each may end a sentence, as above), ``blank`` (blank lines alone) or
            ``never`` (marks alone).

    Raises:
        ValueError: another word for newlines, or a pipeline that is not installed.

    Source:
        spaCy, Honnibal et al. 2020, doi 10.5281/zenodo.1212303. The corrections are ours.
    """

    pipeline: str = "blank:en"
    newlines: Newlines = "lines"

    def __post_init__(self) -> None:
        if self.newlines not in ("lines", "blank", "never"):
            raise ValueError(
                f"newlines is {self.newlines!r}; expected 'lines', 'blank' or 'never'."
            )
        _require_installed(self.pipeline)

    @property
    def causal(self) -> bool:
        """False: a full stop ends a sentence or not by what comes after it."""
        return False

    def split(self, text: str) -> Sequence[int]:
        """Returns the offsets of sentences, or those of the single space before them."""
        whole = list(formulas(text))
        gaps = [*_proposed(text, self.pipeline), *_missed(text), *_after_formulas(text, whole)]
        starts = {start for end, start in gaps if not _goes_on(text, end, start)}
        starts.update(_line_starts(text, self.newlines))
        first = _next_word(text, 0)
        kept = (start for start in outside(starts, whole) if first < start < len(text))
        return sorted(start - (text[start - 1] == " ") for start in kept)


def _require_installed(pipeline: str) -> None:
    if pipeline.startswith(_BLANK):
        language = pipeline.removeprefix(_BLANK)
        if not (language.isalpha() and (_package("spacy") / "lang" / language).is_dir()):
            raise ValueError(
                f"pipeline is {pipeline!r}, but spaCy has no language {language!r}; expected its"
                " short name, as in 'blank:en' or 'blank:de'."
            )
    elif not any((place / "meta.json").is_file() for place in (Path(pipeline), _package(pipeline))):
        raise ValueError(
            f"pipeline is {pipeline!r}, which is no spaCy pipeline installed here. Install it with"
            f" 'python -m spacy download {pipeline}', give the folder of one, or take 'blank:en',"
            " which needs no download."
        )


def _package(name: str) -> Path:
    """Returns the folder of an installed package, which is not imported for it."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    return Path(spec.origin).parent if spec is not None and spec.origin else Path(name)


@lru_cache(maxsize=4)
def _load(pipeline: str) -> Any:
    """Loads the pipeline with what finds sentences, and without what only costs time."""
    import spacy  # takes a second: for those who use it

    if pipeline.startswith(_BLANK):
        nlp = spacy.blank(pipeline.removeprefix(_BLANK))
    else:
        nlp = spacy.load(pipeline, exclude=["ner", "tagger", "attribute_ruler", "lemmatizer"])
    components = [nlp.get_pipe_meta(name) for name in nlp.pipe_names]
    if not any("token.is_sent_start" in component.assigns for component in components):
        nlp.add_pipe("sentencizer")
    nlp.max_length = 2**40
    return nlp


def _proposed(text: str, pipeline: str) -> Iterator[Gap]:
    """Yields spaCy's boundaries, moved from its first word to the first mark of the sentence."""
    for place in _sentence_starts(text, pipeline):
        start = _next_word(text, place)
        tail = _TAIL.search(text, max(0, start - _TAIL_LENGTH), start)
        if tail is None:
            opening = _OPENING.search(text, max(0, start - _TAIL_LENGTH), start)
            yield (opening.start(), opening.start()) if opening else (start, start)
        elif tail[2] or tail[1][-1] in "。！？":
            yield tail.end(1), tail.end(2)


def _sentence_starts(text: str, pipeline: str) -> list[int]:
    """Returns the characters at which spaCy begins its sentences but the first."""
    if not text or text.isspace():
        return []
    nlp = _load(pipeline)
    # Blanks are put into long words, and their places taken out again.
    breaks = [match.end() for match in _UNBROKEN.finditer(text)]
    edges = itertools.pairwise([0, *breaks, len(text)])
    document = nlp(" ".join(text[start:end] for start, end in edges))
    if len(nlp.vocab.strings) > _MOST_WORDS:
        _load.cache_clear()
    table = document.to_array(["SENT_START", "LENGTH", "SPACY"]).astype("int64")
    begins = table[:, 1:].sum(1).cumsum()[:-1][table[1:, 0] == 1].tolist()
    put = [place + number for number, place in enumerate(breaks)]
    starts = [begin - bisect_left(put, begin) for begin in cast(list[int], begins)]
    # No sentence begins in the middle of a word only since a blank was put there.
    return sorted({*starts} - {*breaks})


def _missed(text: str) -> Iterator[Gap]:
    return ((match.end(1), match.end()) for match in _MISSED.finditer(text))


def _after_formulas(text: str, whole: Iterable[Formula]) -> Iterator[Gap]:
    """Yields the place after each formula that ends with a full stop of its own."""
    for start, end in whole:
        following = _next_word(text, end)
        if _FORMULA_STOP.search(text, start, end) and not text[following : following + 1].islower():
            yield end, following


def _next_word(text: str, place: int) -> int:
    """Returns the first character from a place on that is not blank, or the text's length."""
    word = _WORD.search(text, place)
    return word.start() if word else len(text)


def _line_starts(text: str, newlines: Newlines) -> Iterator[int]:
    """Returns the lines' starts that do not go on with the sentence before."""
    if newlines == "never":
        return
    for match in _NEWLINE.finditer(text):
        counts = newlines == "lines" or match[0].count("\n") > 1
        before = text[max(0, match.start() - 8) : match.start()].rstrip()
        if counts and not before.endswith(_PAUSES) and not _CONTINUATION.match(text, match.end()):
            yield match.end()


def _goes_on(text: str, end: int, start: int) -> bool:
    """Tells whether a sentence goes on after the mark that ends at ``end``."""
    if start == len(text) or _NO_START.match(text, start):
        return True
    mark, closed, follows = text[end - 1 : end], not text[end].isspace(), text[start]
    if mark in ("!", "?", "…") or text.endswith("..", 0, end):
        lower = follows.islower() and (closed or mark != "?")
        return lower or (mark == "!" and _FACTORIAL.match(text, start) is not None)
    if mark == "." and closed and follows.islower():
        return True
    return mark == "." and _is_no_stop(text, end, start)


def _is_no_stop(text: str, end: int, start: int) -> bool:
    """Tells whether the full stop belongs to a list number, an initial or an abbreviation."""
    low = max(0, end - _REACH)
    if _ITEM.search(text, low, end):
        return True
    if _INITIAL.search(text, low, end) and _NAME.match(text, start):
        return True
    return any(
        words.search(text, low, end) and follower.match(text, start)
        for words, follower in _ABBREVIATIONS
    )

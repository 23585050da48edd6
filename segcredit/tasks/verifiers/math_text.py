r"""Reading of the final answer in a text: where it stands, and how it is spelt in LaTeX.

math-verify 0.9.0 reads LaTeX between dollars or in a box, and of bare LaTeX its first number alone;
where its parser stops in the middle, what follows is dropped without a word. A release that reads
``70 \sqrt{2}`` and ``3 or 4`` wholly without dollars would make ``located`` needless.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segcredit.tasks.verifiers.answer_extraction import after_cue, last_box

LONGEST = 2000
"""Characters of the longest expression that is read as mathematics."""
_DEEPEST = 40
"""Brackets within brackets that are read as mathematics."""


# One spelling: signs, digits and separators of any script.

_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−﹣－‐‑‒–", "-"),
        **dict.fromkeys("⋅·∙", r" \cdot "),
        "×": r" \times ",
        "✕": r" \times ",
        "⨯": r" \times ",
        "∗": "*",
        "＊": "*",
        "÷": "/",
        "∕": "/",
        "⁄": "/",
        "∶": ":",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∞": r"\infty ",
        "±": r"\pm ",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "˚": r"^\circ ",
        "∪": r" \cup ",
        "∩": r" \cap ",
        "∈": r" \in ",
        "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}",
        "٫": ".",
        "٬": ",",
        "％": r"\%",
        "′": "'",
        "’": "'",
        "‘": "'",
        "＇": "'",
        **{chr(0x3B1 + n): f"\\{name} " for n, name in enumerate(_GREEK.split())},
        "σ": r"\sigma ",
        "τ": r"\tau ",
        "φ": r"\phi ",
        "ϕ": r"\phi ",
        "ω": r"\omega ",
        "ℎ": "h",
        "\u200b": "",
        "\ufeff": "",
        "\u2061": "",
        "\u2062": "",
        "\u00ad": "",
    }
)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ"
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_RAISED_RUN, _LOWERED_RUN = re.compile(f"[{_RAISED}]+"), re.compile(f"[{_LOWERED}]+")
_THIN = r"\\[,;:! ]|\\thinspace\b ?|\{,\}(?:\\!)?|,\\! ?|\{\\,\}|\{ \}|[ ~'_]|\\_"
_GROUPED = re.compile(rf"(?<![\d.\w\\])[1-9]\d{{0,2}}({_THIN})\d{{3}}(?:\1\d{{3}})*(?!\d)")
_DOTS = re.compile(
    r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?![\d.])(?:,(\d+))?|(?:\.\d{3})+,(\d+)(?![\d.,]))"
)
_INDIAN = re.compile(r"(?<![\d.,])[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,])")
_SCIENTIFIC = re.compile(
    r"(?<![A-Za-z\\\d.])(\d+(?:\.\d*)?|\.\d+)(?:[eE]|\\(?:text|mathrm)\{[eE]\})([+-]?\d+)(?![\w.])"
)
_LETTER_TIMES = re.compile(r"(?<=\d) ?[xX] ?(?=10 ?\^)")
_HAN = {"万": 4, "亿": 8}
_HAN_POWERS = {
    tens + unit: more + power
    for tens, more in {"": 0, "十": 1, "百": 2, "千": 3}.items()
    for unit, power in _HAN.items()
} | {"万亿": 12}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, **_HAN_POWERS}
_MULTIPLIED = re.compile(
    r"(?<=\d)\$? ?(?:\\text(?:bf)?\{ ?)?("
    + "|".join(sorted(_HAN_POWERS, key=len, reverse=True))
    + r"|(?:hundred|thousand|million|billion|trillion)\b)(?: ?\})?\$?"
)
_RATE = re.compile(
    r"(?<=\d) ?(?:[kc]?m|mi|ft|in|k?g|L|ml|J|W|N)/(?:s|h|hr|min|day|m|k?g|L|mol)"
    r"(?:\^?\{?\d\}?)?(?=[\s.,;:!?$}\])]|$)"
)
"""Units such as m/s, which single letters would be a fraction of."""
_PERCENT = re.compile(r"(?<=\d)\s?(?:percent|pct|per cent|个百分点|パーセント)(?![a-z])")
_HAN_FRACTION = re.compile(r"(?<!\d)(\d+)分之(\d+)")


_ROOT = re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|(?=[({\\]))")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_LONG_DASH = re.compile(r"(?<![^\s:({$])[—―](?=[\d\\])")


def plain(text: str) -> str:
    """Spells a text's signs, digits and numbers in one way: LaTeX's, or that of a keyboard."""
    text = _ROOT.sub(_root, _LONG_DASH.sub("-", text))
    text = _VULGAR.sub(_vulgar, text.translate(_SIGNS))
    text = _RAISED_RUN.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    if not text.isascii():
        text = "".join(map(_digit, text))
    return _plain_numbers(text)


def _vulgar(sign: re.Match[str]) -> str:
    over, under = unicodedata.normalize("NFKC", sign[0]).split("\u2044")
    return f"\\frac{{{over}}}{{{under}}}"


def _root(sign: re.Match[str]) -> str:
    return f"{_ROOTS[sign[1]]}{{{sign[2]}}}" if sign[2] else _ROOTS[sign[1]]


def _digit(sign: str) -> str:
    return sign if sign.isascii() else str(unicodedata.decimal(sign, sign))


def _plain_numbers(text: str) -> str:
    text = _RATE.sub(" units", _REPEATING.sub(_repeating, text))
    text = _GROUPED.sub(lambda one: re.sub(r"\D", "", one[0]), text)
    text = _INDIAN.sub(lambda one: one[0].replace(",", ""), _DOTS.sub(_of_dots, text))
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = _LETTER_TIMES.sub(r"\\times ", text)
    text = _MULTIPLIED.sub(lambda one: f"\\times 10^{{{_POWERS[one[1]]}}} ", text)
    text = text.replace("百分之", "\x00")
    text = re.sub(r"\x00(\d+(?:\.\d+)?)", r"\1\\%", text).replace("\x00", "百分之")
    text = _HAN_FRACTION.sub(r"\\frac{\2}{\1}", text)
    return _PERCENT.sub(r"\\%", text)


_REPEATING = re.compile(r"(?<!\d)(\d*)\.(\d*)\\(?:overline|dot|bar)\s*\{(\d+)\}")


def _repeating(number: re.Match[str]) -> str:
    r"""Spells 0.1\overline{6} as a fraction, (16 - 1) / 90."""
    whole, fixed, again = number.groups()
    above = int(f"{whole}{fixed}{again}") - int(f"{whole}{fixed}" or 0)
    return f"\\frac{{{above}}}{{{'9' * len(again)}{'0' * len(fixed)}}}"


def _of_dots(number: re.Match[str]) -> str:
    """Reads 1.234.567,89 as the English 1234567.89."""
    whole, _, decimals = number[0].partition(",")
    return whole.replace(".", "") + (f".{decimals}" if decimals else "")


# What a text consists of.

_FUNCTIONS = {
    **{
        name: f"\\{name} "
        for name in [
            "sin",
            "cos",
            "tan",
            "cot",
            "sec",
            "csc",
            "log",
            "ln",
            "exp",
            "min",
            "max",
            "gcd",
        ]
    },
    **{
        name: f"\\{name} "
        for name in ["arcsin", "arccos", "arctan", "sqrt", "pi", "theta", "alpha", "beta", "phi"]
    },
    "asin": "\\arcsin ",
    "acos": "\\arccos ",
    "atan": "\\arctan ",
    **dict.fromkeys(("infinity", "infty", "inf", "oo"), "\\infty "),
}
"""Names in plain text that are mathematics, and how LaTeX spells them."""
_APPLIED = frozenset({"ln", "log", "sin", "cos", "tan", "cot"})
_NEVER_WORDS = frozenset({"sqrt", "pi", "theta", "arcsin", "arccos", "arctan", "infty"})
_UNITS_TEXT = (
    "cm mm km dm nm in ft yd mi kg mg lb lbs oz gm ml mL cc min sec hr hrs yr yrs mph kph "
    "kmh ms Hz kHz mol Pa kPa rad deg sq cu rs usd USD EUR RMB am pm AM PM th st nd rd "
)
_UNITS = frozenset(_UNITS_TEXT.split())
_UNIT_LETTERS = frozenset("msghlLNJWVKCF")
_IN_WORDS, _OUT_WORDS, _IN_FORMULA, _OUT_FORMULA = "\x02\x03\x04\x05"
_WORDS = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it)|rm|bf)\s*\{([^{}]*)\}")
_FORMULA = re.compile(r"\\\(|\\\[|\$\$?|\\begin\{[a-z]+\*?\}")
_CLOSED_BY = {"\\(": "\\)", "\\[": "\\]", "$": "$", "$$": "$$"}
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}|[\u3400-\u9fff]")
_PIECE = re.compile(
    rf"(?P<switch>[{_IN_WORDS}{_OUT_WORDS}{_IN_FORMULA}{_OUT_FORMULA}])"
    r"|(?P<number>\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+)"
    r"|(?P<open>\\\{|[({\[])|(?P<close>\\\}|[)}\]])"
    r"|(?P<operator>\\(?:times|cdot|div|pm|mp|leq?|geq?|neq?|lt|gt|approx|equiv|sim|cong|in|to|cup"
    r"|cap|mid)(?![A-Za-z])|\*\*|[-+*/^=<>|&~_]|:(?=\s?\d))"
    r"|(?P<mark>\\?%|!|')"
    r"|(?P<skip>\\[$,;!:> ]|\\(?:q?quad|therefore|displaystyle|left|right)(?![A-Za-z])"
    r"|[$€£¥₹₽#`\"])"
    r"|(?P<formula>\\(?:(?:begin|end)\{[a-z]+\*?\}|[A-Za-z]+|.))"
    r"|(?P<join>(?:or|and)(?![A-Za-z])|或者?|和|以及|与|及|、|,|;)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<stop>\.(?=\s|$|[^\x00-\x7f])|[?。:\n])"
    r"|(?P<space>\s+)"
    r"|(?P<word>[^\s\x00-\x7f]+?(?=[\s\x00-\x7f、。]|或|和|以及|与|及|$)|.)",
    re.DOTALL,
)
_NO_SIDES = frozenset(":&~[{")


@dataclass(slots=True)
class _Piece:
    kind: str
    """number, open, close, operator, mark, formula, join, letters, stop or word."""
    text: str
    spaced: bool
    """True after white space."""
    formula: bool
    """True within dollars, in braces, or where all is a formula."""


def _pieces(text: str, *, formula: bool) -> list[_Piece]:
    """Cuts a text into numbers, operators, letters and words.

    Args:
        text: the text.
        formula: True where all of it is LaTeX; False for prose, with formulas between dollars.
    """
    text = _WORDS.sub(_worded, text.replace("\\$", " "))
    text = text if formula else "".join(_with_formulas(text))
    found: list[_Piece] = []
    spaced, braces, within, worded = True, 0, formula, False
    for one in _PIECE.finditer(text):
        kind = str(one.lastgroup)
        if one[0] in (_IN_FORMULA, _OUT_FORMULA):
            within = formula or one[0] == _IN_FORMULA
        worded = worded if kind != "switch" else one[0] == _IN_WORDS
        braces += (one[0] == "{") - (one[0] == "}" and braces > 0)
        if kind in ("switch", "space", "skip") or (kind == "stop" and within):
            spaced = True
            continue
        if worded and kind in ("letters", "operator"):
            kind = "word"
        if one[0] == "|":  # an absolute value, or the line of a table
            kind = "formula" if within else "word"
        found.append(_Piece(kind, one[0], spaced, within or braces > 0))
        spaced = False
    for place, piece in enumerate(found):
        if piece.kind == "letters":
            before = found[place - 1] if place else None
            after = found[place + 1] if place + 1 < len(found) else None
            _name(piece, before, after)
    return found


def _worded(group: re.Match[str]) -> str:
    """Marks words of LaTeX; a single letter in another type is a letter."""
    if len(group[1].strip()) == 1 and "\\math" in group[0]:
        return group[1]
    return f"{_IN_WORDS} {group[1]} {_OUT_WORDS}"


def _with_formulas(text: str) -> Iterator[str]:
    """Yields a text with its formulas marked, and with dollars that are a currency left out."""
    place = 0
    never: set[str] = set()  # closing marks that do not come any more
    for one in _FORMULA.finditer(text):
        if one.start() < place or one[0] in never:
            continue
        closing = _CLOSED_BY.get(one[0]) or one[0].replace("begin", "end")
        end = text.find(closing, one.end())
        if end < 0:
            never.add(one[0])
            continue
        inside = text[one.end() : end]
        if "$" in one[0] and (_PROSE.search(_without_words(inside)) or not inside.strip()):
            continue
        if "begin" in one[0]:
            inside = f"{one[0]}{inside}{closing}"
        yield f"{text[place : one.start()]}{_IN_FORMULA}{inside}{_OUT_FORMULA}"
        place = end + len(closing)
    yield text[place:]


def _without_words(formula: str) -> str:
    return re.sub(f"{_IN_WORDS}[^{_OUT_WORDS}]*{_OUT_WORDS}", "", formula)


def _name(piece: _Piece, before: _Piece | None, after: _Piece | None) -> None:
    """Decides whether letters are a function, variables or a word."""
    letters = piece.text
    beside = (
        after is not None
        and after.kind in ("operator", "open")
        and not (after.kind == "open" and after.spaced)
    )
    attached = before is not None and before.kind in ("number", "close") and not piece.spaced
    applied = before is not None and before.kind == "formula" and letters not in ("a", "I")
    argument = after is not None and after.kind in ("number", "formula", "open")
    applies = letters in _APPLIED and argument
    if letters in _FUNCTIONS and (piece.formula or letters in _NEVER_WORDS or beside or applies):
        piece.kind, piece.text = "formula", _FUNCTIONS[letters]
    elif letters in _UNITS and before is not None and before.kind in ("number", "close"):
        piece.kind = "word"
    elif piece.formula:
        number = before is not None and before.kind == "number"
        unit = letters in _UNIT_LETTERS and piece.spaced and number and after is None
        piece.kind = "word" if unit or len(letters) > 3 else "letters"
    elif len(letters) > 1:
        piece.kind = "letters" if attached and beside and len(letters) < 4 else "word"
    else:
        operated = before is not None and before.kind == "operator"
        bound = beside and after is not None and after.text not in _NO_SIDES
        unit = letters in _UNIT_LETTERS and not bound
        argued = before is not None and before.kind == "open" and after is not None
        argued = argued and after is not None and after.kind in ("close", "operator", "join")
        variable = operated or bound or applied or argued or (attached and not unit)
        piece.kind = "letters" if variable else "word"


# Where the answer stands.


@dataclass(frozen=True, slots=True)
class Found:
    """The place of an answer in a text."""

    text: str
    formula: bool
    """True where it is meant as mathematics: a box, or a run of signs."""


_TAG = re.compile(r"</?answer>")


def located(text: str, *, first: bool) -> Found | None:
    """Returns the last answer in a text whose signs are ``plain``; None where there is none.

    A box counts before what follows "the answer is", that before the last mathematics of the text.

    Args:
        text: the text.
        first: True where the text begins with the answer, so that its first mathematics counts.
    """
    text = _TAG.sub(" ", text)
    box = last_box(text)
    if box is not None:
        return Found(box, formula=True) if box.strip(" $.") else None
    rest = text if first else after_cue(text)
    if rest is not None:
        return _first(rest)
    runs = [one for one in _runs(text) if one.counts]
    return Found(runs[-1].text, formula=True) if runs else Found(text, formula=False)


def _first(rest: str) -> Found:
    """Returns the first mathematics of a text, or what its sentence comes to after a later "="."""
    runs = [one for one in _runs(rest) if one.counts]
    if not runs:
        return Found(rest, formula=False)
    sums = [one for one in runs if one.sums and one.sentence == runs[0].sentence]
    return Found((sums or runs)[-1 if sums else 0].text, formula=True)


@dataclass(frozen=True, slots=True)
class _Run:
    """Pieces of mathematics that belong together."""

    pieces: tuple[_Piece, ...]
    sentence: int
    """Number of its sentence in the text."""
    negated: bool
    """True where it follows "not"."""

    @property
    def text(self) -> str:
        return _spelt(self.pieces)

    @property
    def sums(self) -> bool:
        """True where it begins with "="."""
        return self.pieces[0].text == "="

    @property
    def counts(self) -> bool:
        """True where it holds more than a letter or a bracket, and is not what is not so."""
        if self.negated:
            return False
        kinds = [one.kind for one in self.pieces]
        many = kinds.count("letters") > 1 and "operator" in kinds
        return many or "number" in kinds or "formula" in kinds


_NEGATION = frozenset({"not", "no", "不", "不是", "而不是", "并非", "isn", "never"})


def _runs(text: str) -> Iterator[_Run]:
    """Yields the runs of mathematics in prose; such as are joined by "or" are one."""
    held: list[_Piece] = []
    between: list[_Piece] = []
    sentence, negated, place = 0, False, 0
    for run in _single_runs(text):
        if isinstance(run, _Piece):
            between.append(run)
            sentence += run.kind == "stop"
            continue
        if held and _belongs(held, between, run):
            held += [*between, *run]
        else:
            if held:
                yield _Run(tuple(held), place, negated)
            held, place = run, sentence
            negated = bool(between) and between[-1].text.casefold() in _NEGATION
        between = []
    if held:
        yield _Run(tuple(held), place, negated)


_PARTS_TEXT = (
    "h hr hrs hour hours m min mins minute minutes s second seconds day days week weeks "
    "month months year years ft foot feet yard yards lb lbs pound pounds oz ounces kg km "
    "cm dollars dollar cents degrees 小时 分 分钟 秒 天 年 个月 元 角 米 厘米 度 千克 公斤 克 公里 "
)
_PARTS = frozenset(_PARTS_TEXT.split())
"""Units that another number follows, as in 5 hours 30 minutes."""


def _belongs(held: Sequence[_Piece], between: Sequence[_Piece], run: Sequence[_Piece]) -> bool:
    """Tells whether a run goes on the one before: another answer, or another part of it."""
    kinds = [one.kind for one in between]
    if "stop" in kinds or not kinds or len(kinds) > 3 or len(held) > LONGEST:
        return False
    if "join" not in kinds:
        return kinds == ["word"] and between[0].text in _PARTS and run[0].kind == "number"
    # Of "x = 3 or 4" both are values of x; of "5, so 2 + 3 = 5" the second is no answer.
    same = (_is_equation(held) or not _is_equation(run)) and run[0].text != "="
    return same and kinds[-1] == "join" and (kinds == ["join"] or between[-1].text not in ",;")


def _is_equation(run: Sequence[_Piece]) -> bool:
    return any(one.text == "=" for one in run[:_LEFT_SIDE])


_LEFT_SIDE = 20
"""Pieces among which an equation has its "="."""


def _single_runs(text: str) -> Iterator[list[_Piece] | _Piece]:
    """Yields runs of signs, without what does not close or join, and each other piece."""
    run: list[_Piece] = []
    depth = 0
    for piece in _pieces(text, formula=False):
        if piece.kind in _MATHEMATICS or (
            piece.kind == "join" and depth > 0 and piece.text in ",;"
        ):
            depth += (piece.kind == "open") - (piece.kind == "close")
            run.append(piece)
            continue
        yield from _balanced(run)
        run, depth = [], 0
        yield piece
    yield from _balanced(run)


_MATHEMATICS = frozenset({"number", "open", "close", "operator", "mark", "formula", "letters"})


def _balanced(run: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Yields the parts of a run between brackets that are not closed or not opened."""
    opened: list[int] = []
    alone: list[int] = []
    for place, piece in enumerate(run):
        if piece.kind == "open":
            opened.append(place)
        elif piece.kind == "close":
            _ = opened.pop() if opened else alone.append(place)
    cuts = [-1, *sorted(alone + opened), len(run)]
    for begin, end in itertools.pairwise(cuts):
        if part := _trimmed(list(run[begin + 1 : end])):
            yield part


def _trimmed(run: list[_Piece]) -> list[_Piece]:
    """Returns a run without operators that have nothing to join."""
    while run and (run[-1].kind in ("operator", "join") or _is_exclamation(run[-1])):
        run.pop()
    if run and run[0].text in ("^", "_"):
        return []  # the exponent of a unit
    while run and run[0].kind in ("operator", "mark", "join") and run[0].text != "=":
        signed = run[0].text in ("-", "+", "\\pm") and run[0].spaced
        if signed and (run[0].formula or "pm" in run[0].text or not run[1].spaced):
            break
        run.pop(0)
    return run


def _is_exclamation(piece: _Piece) -> bool:
    return piece.text in "!'" and not piece.formula


# How it is spelt.


def _spelt(pieces: Sequence[_Piece]) -> str:
    return "".join(" " * one.spaced + one.text for one in pieces).strip()


def expression(text: str) -> str | None:
    """Returns an answer in LaTeX, without units and words around it.

    Returns:
        None where it is words, or words stand within it: a part of it would be read alone.
    """
    pieces = _pieces(text.replace("\u2014", "-"), formula=True)
    if len(text) > LONGEST or _depth(pieces) > _DEEPEST:
        return None
    parts: list[str] = []
    for part in _parts(pieces):
        bare = _without_unit(part)
        if bare is None:
            return None
        parts.append(_latex(bare))
    return ", ".join(parts) or None


def _depth(pieces: Sequence[_Piece]) -> int:
    deepest = depth = 0
    for one in pieces:
        depth += (one.kind == "open") - (one.kind == "close")
        deepest = max(deepest, depth)
    return deepest


def _parts(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Yields what stands between "or", "and" and commas outside of brackets."""
    part: list[_Piece] = []
    depth = 0
    for one in pieces:
        depth += (one.kind == "open") - (one.kind == "close")
        if one.kind == "join" and (depth <= 0 or one.text not in ",;"):
            if part:
                yield part
            part = []
        else:
            part.append(one)
    if part:
        yield part


def _without_unit(part: Sequence[_Piece]) -> list[_Piece] | None:
    """Returns a part without words before and after; None where they are all, or stand within."""
    signs = [place for place, one in enumerate(part) if one.kind not in ("word", "stop")]
    if not signs or any(one.text.casefold() in _NEGATION for one in part):
        return None
    words = [place for place, one in enumerate(part) if one.kind == "word"]
    begin = max([place for place in words if place < signs[0]], default=-1) + 1
    first = next((place for place in words if place > begin), len(part))
    unit = part[first:]
    if any(one.kind in ("number", "formula", "letters") for one in _outside_powers(unit)):
        return None
    if _is_sequence(part[begin:first]):
        return None
    bare = [one for one in part[begin:first] if one.kind != "stop"]
    return _trimmed(bare[1:] if bare and bare[0].text in "=:" else bare) or None


def _is_sequence(part: Sequence[_Piece]) -> bool:
    """Tells whether numbers stand beside each other, which are no product, or are a time."""
    beside = any(
        one.kind == two.kind == "number" and before.text not in ("\\frac", "_", "^")
        for before, one, two in zip([_NOTHING, *part], part, part[1:], strict=False)
    )
    return beside or [one.text for one in part].count(":") > 1


_NOTHING = _Piece("stop", "", spaced=False, formula=False)


def _outside_powers(unit: Sequence[_Piece]) -> Iterator[_Piece]:
    """Yields the pieces of a unit that are no exponent."""
    power = False
    for one in unit:
        if one.text == "^":
            power = True
        elif one.kind not in ("open", "number", "operator") or not power:
            yield one
            power = False


def _latex(pieces: Sequence[_Piece]) -> str:
    """Spells pieces as LaTeX does: roots and powers in braces, numbers without commas."""
    text = "".join(" " * one.spaced + _LATEX.get(one.text, one.text) for one in pieces).strip()
    if not re.search(r"[(\[{]", text):
        text = text.replace(",", "")
    text = _braced(text, "\\sqrt")
    text = _braced(text, "^")
    return re.sub(r"\^\s*(-?\d+|-[A-Za-z])", r"^{\1}", text)


_LATEX = {"**": "^", "*": " \\cdot ", "%": "\\%", "|": "|", "'": "", "&": "&"}


def _braced(text: str, command: str) -> str:
    """Returns LaTeX in which round brackets after a command are braces."""
    place = 0
    while (found := re.compile(re.escape(command) + r"\s*\(").search(text, place)) is not None:
        end = _closing(text, found.end() - 1)
        if end is None:
            return text
        inside = text[found.end() : end]
        text = f"{text[: found.start()]}{command}{{{inside}}}{text[end + 1 :]}"
        place = found.start() + len(command)
    return text


def _closing(text: str, opening: int) -> int | None:
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return None


def words(text: str) -> str:
    """Returns an answer without spaces, capitals and LaTeX's marks of text, to compare as text."""
    bare = _WORDS.sub(r"\1", text).strip(" $").rstrip(" .。$")
    bare = re.sub(r"\\[ ,;:!]|[${}]|(?<!\d)\s+|\s+(?!\d)", "", bare)
    return (bare[1:-1] if re.fullmatch(r"\([A-Za-z]\)", bare) else bare).casefold()

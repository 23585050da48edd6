"""Mathematical answers compared by math-verify; runs in a ``JudgeProcess``.

math-verify 0.9.0 compares decimals to six places, however small they are, and its parser stops
where it cannot go on, without a word. A release with a relative comparison and a parser that reads
to the end would make ``_numbers_equal`` and ``_read_to_the_end`` needless.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from segcredit.tasks.verifiers.math_text import expression, located, plain, words

_DIGITS = 4000
"""Digits of the largest number that is computed."""
_POWER = 100
"""Largest power of a sum that is multiplied out."""
_NODES = 2000
"""Terms of the longest expression that is compared."""
_DECIMALS, _SMALL, _ROUNDED, _IRRATIONAL = 5e-7, 1e-6, 1e-4, 1e-9
# Of an extra; this module is imported where a judge runs, and nowhere else.
_library: Any = import_module("math_verify")
_grader: Any = import_module("math_verify.grader")
_parser: Any = import_module("latex2sympy2_extended.antlr_parser").PSParser  # of the library
_converter: Any = import_module("latex2sympy2_extended.latex2sympy2")._Latex2Sympy
_END = -1
"""Token after the last one."""
sympy: Any = import_module("sympy")
Basic, MatrixBase, Rational = sympy.Basic, sympy.MatrixBase, sympy.Rational
_LATEX = _library.LatexExtractionConfig(
    normalization_config=_library.parser.NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
)
_UNIT = re.compile(r"-?[\d.]+[msghlLNJWVKCF]")
_BASE = re.compile(r"([\dA-Fa-f]+)_\{?(\d{1,2})\}?")


def comparison(tolerance: float, first: bool = False) -> Callable[..., dict[str, Any]]:
    """Returns a function of true answers and a text: whether its last answer is one, and it.

    Args:
        tolerance: relative distance at which a number is right too.
        first: True where the text begins with the answer.
    """
    _wrap_library()

    def compare(answers: Sequence[str], text: str) -> dict[str, Any]:
        found = located(plain(text), first=first)
        if found is None:
            return {"right": False, "said": ""}
        golds, said = [*map(_truth, answers)], _reading(found.text)
        if not found.formula:
            golds = [gold for gold in golds if gold.is_words]
        right = any(
            gold.equals(said) or (tolerance > 0 and _near(gold, said, tolerance)) for gold in golds
        )
        return {"right": right, "said": said.spelling if golds or found.formula else ""}

    # The first of each kind takes longest, and no answer should pay for it with its time limit.
    for answer, text in (("(\\sqrt{3}, 1)", "(x - 1, 1)"), ("2x^2 - 3x + 1", "(2x - 1)(x - 1)")):
        compare([answer], text)
    return compare


@dataclass(frozen=True, slots=True)
class _Reading:
    """An answer as words, and as mathematics where it can be read wholly."""

    words: str
    base: str
    """Base of its digits, where it is told."""
    unit: bool
    """True for a number and a letter that may be a unit, such as 5m."""
    value: Any
    """The value in sympy; None for words alone, and for text that cannot be read."""

    @property
    def is_words(self) -> bool:
        """True where nothing in it is mathematics."""
        return self.value is None or not re.search(r"\d", self.words)

    @property
    def spelling(self) -> str:
        """The answer for votes, equal numbers alike, but for integrals and sums."""
        if self.value is None:
            return self.words
        if self.value.has(*_LIMITS):
            return str(self.value)
        try:
            return f"{float(self.value):.9g}"
        except (TypeError, ValueError, OverflowError, AttributeError):  # no number
            return str(self.value)

    def equals(self, said: _Reading) -> bool:
        """Tells whether another answer is mathematically equal, or the same words."""
        if self.words == said.words:
            return bool(self.words)
        if self.value is None or said.value is None:
            return False
        if self.base and said.base and self.base != said.base:
            return False
        told = said.value
        if said.unit and not self.value.free_symbols:
            told = told.xreplace(dict.fromkeys(told.free_symbols, sympy.Integer(1)))
        return bool(_library.verify(self.value, told, timeout_seconds=None))


@functools.lru_cache(maxsize=4096)
def _truth(answer: str) -> _Reading:
    text = plain(answer)
    found = located(text, first=False) if "boxed" in text else None
    return _reading(found.text if found else text)


def _reading(text: str) -> _Reading:
    bare = text.strip().strip("$").strip()
    latex = expression(bare)
    base = ""
    if latex and (digits := _BASE.fullmatch(latex.strip())):
        latex, base = digits[1], digits[2]
    unit = latex is not None and _UNIT.fullmatch(latex.strip()) is not None
    return _Reading(words(bare), base, unit, None if latex is None else _parsed(latex))


def _parsed(latex: str) -> Any:
    """Returns LaTeX as sympy has it, decimals as fractions; None where it cannot be read."""
    found: list[Any] = _library.parse(
        f"${latex}$", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None
    )
    if not found or _is_too_large(found[0]):
        return None
    floats = found[0].atoms(sympy.Float) if isinstance(found[0], (Basic, MatrixBase)) else ()
    return found[0].xreplace({one: Rational(str(one)) for one in floats}) if floats else found[0]


# What the library is made to do.


@functools.cache
def _wrap_library() -> None:
    parse, symbolic = _parser.math, _grader.sympy_symbolic_eq
    _converter.convert_binom = _binomial
    _parser.math = functools.partialmethod(_read_to_the_end, parse)
    _grader.sympy_numeric_eq = _numbers_equal
    _grader.sympy_symbolic_eq = functools.partial(_symbolic, symbolic)


def _symbolic(library: Callable[[Any, Any], bool], gold: Any, said: Any) -> bool:
    return not _differ(gold, said) and library(gold, said)


def _read_to_the_end(parser: Any, parse: Callable[[Any], Any]) -> Any:
    tree = parse(parser)
    if parser.getTokenStream().LA(1) != _END:
        raise ValueError("the parser stopped before the end")
    return tree


def _binomial(converter: Any, read: Any) -> Any:
    """Returns a binomial coefficient; one that is too large to be computed is not."""
    numbers = [converter.convert_expr(one) for one in (read.upper, read.lower)]
    binomial = sympy.binomial(*numbers, evaluate=False)
    return binomial if _is_too_large(binomial) else sympy.binomial(*numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, Basic) and not value.free_symbols and bool(value.is_number)


def _differ(gold: Any, said: Any) -> bool:
    """Tells whether two values are known to be different: as numbers, or at one point."""
    if not (isinstance(gold, sympy.Expr) and isinstance(said, sympy.Expr)):
        return False
    if _is_number(gold) and _is_number(said):
        return True  # compared as numbers before
    if gold.has(*_LIMITS) or said.has(*_LIMITS):
        return _slopes_differ(gold, said)
    return _differ_somewhere(gold, said)


def _slopes_differ(gold: Any, said: Any) -> bool:
    """Tells whether two values, of which one has an integral without limits, differ in slope."""
    integrals = gold.atoms(sympy.Integral) | said.atoms(sympy.Integral)
    names = {one.limits[0][0] for one in integrals if len(one.limits) == len(one.limits[0]) == 1}
    if len(names) != 1:
        return False
    slopes = [one.diff(*names) for one in (gold, said)]
    return not any(one.has(*_LIMITS) for one in slopes) and _differ_somewhere(*slopes)


def _differ_somewhere(gold: Any, said: Any) -> bool:
    names = sorted(gold.free_symbols | said.free_symbols, key=str)
    point = {name: Rational(31 + 7 * n, 29 + 3 * n) for n, name in enumerate(names)}
    try:
        true, told = (complex(one.xreplace(point).evalf(20)) for one in (gold, said))
    except (TypeError, ValueError, OverflowError):  # no number there
        return False
    return abs(true - told) > 1e-9 * max(abs(true), abs(told))  # never so for nan


_LIMITS = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
_library_numeric = _grader.sympy_numeric_eq


def _numbers_equal(gold: Any, said: Any, rounding: int, precision: int) -> bool:
    """Tells whether two numbers are equal: decimals to six places, small ones to six digits."""
    if not (_is_number(gold) and _is_number(said)):
        return _library_numeric(gold, said, rounding, precision)
    left, right = _grader.get_pct_val(gold), _grader.get_pct_val(said)
    if (left is None) == (right is None):
        return _close(gold, said)
    # 50% is right for 50 and for 0.5 alike, as users of math-verify expect.
    return _close(gold, said) or _close(
        gold if left is None else left, said if right is None else right
    )


def _close(gold: Any, said: Any) -> bool:
    exact = [_exact(one) for one in (gold, said)]
    if None not in exact:
        true, told = exact
        apart, size = abs(true - told), abs(true)
        if apart == 0:
            return True
        written = sum(_is_decimal(one) for one in exact)
        share = {0: 0, 1: _ROUNDED, 2: _SMALL}[written]
        return bool(apart <= min(_DECIMALS, share * size))
    if (gold.has(*_LIMITS) or said.has(*_LIMITS)) and _differ_at_first_sight(gold, said):
        return False
    true, told = (one.evalf(30) for one in (gold, said))
    if not (true.is_finite and told.is_finite):
        return bool(true == told)
    apart, size = abs(true - told), abs(true)
    if None in exact and exact != [None, None]:
        return bool(apart <= max(min(_DECIMALS, _ROUNDED * size), 1e-12 * size))
    return bool(apart <= 1e-12 * size)


def _differ_at_first_sight(gold: Any, said: Any) -> bool:
    """Tells whether integrals or sums differ by a first quadrature, a tenth as long as the others.

    Where it finds no digit at all, as of what oscillates without end, the others would not either.
    """
    values = [one.evalf(15, maxn=15) for one in (gold, said)]
    floats = [one for one in values if one.is_Float]
    if not all(one.is_Float or one.is_Rational for one in values):
        return False
    true, told = values
    if min((one._prec for one in floats), default=_SEEN) < _SEEN:
        return bool(max(abs(true), abs(told)) > _NOTHING)
    return bool(abs(true - told) > max(1e-2 * max(abs(true), abs(told)), _NOTHING))


_SEEN, _NOTHING = 8, 1e-6
"""Bits of a value that was seen, and the size of one that may be 0: quadrature errs absolutely."""


def _exact(value: Any) -> Any:
    done = value if value.has(*_LIMITS) else value.doit()
    return done if isinstance(done, Rational) else None


def _is_decimal(value: Any) -> bool:
    """Tells whether a fraction is a decimal that ends."""
    rest = int(value.q)
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _near(gold: _Reading, said: _Reading, tolerance: float) -> bool:
    try:
        true, told = float(gold.value), float(said.value)
    except (TypeError, ValueError, OverflowError, AttributeError):  # no number
        return False
    return abs(told - true) <= tolerance * abs(true)


# What is too large to be computed.


def _is_too_large(value: Any) -> bool:
    """Tells whether computing a value would take digits or terms without end."""
    parts = value.flat() if isinstance(value, MatrixBase) else [value]
    nodes = itertools.chain.from_iterable(map(sympy.preorder_traversal, parts))
    if sum(1 for _ in itertools.islice(nodes, _NODES + 1)) > _NODES:
        return True
    try:
        return any(_digits(part) > _DIGITS for part in parts)
    except (OverflowError, RecursionError):
        return True


def _digits(value: Any) -> float:
    """Returns about how many digits a number has; infinity for what is not to be computed."""
    if isinstance(value, Rational):
        return 0.31 * (int(value.p).bit_length() + int(value.q).bit_length())
    parts = [_digits(part) for part in value.args] if isinstance(value, Basic) else []
    if isinstance(value, sympy.Pow):
        return _digits_of_power(value, *parts)
    if isinstance(value, sympy.binomial) and max(parts) < 9 and all(map(_is_whole, value.args)):
        upper, lower = (int(one.evalf(20)) for one in value.args)
        return parts[0] * max(min(lower, upper - lower), 0)
    if isinstance(value, (sympy.factorial, sympy.binomial, sympy.gamma)):
        return math.inf if max(parts) > 3.5 else 10 ** max(parts)
    if isinstance(value, (sympy.Sum, sympy.Product)):
        return (
            math.inf
            if any(_digits(end) > 3.5 for _, *ends in value.limits for end in ends)
            else max(parts)
        )
    return sum(parts) if isinstance(value, sympy.Mul) else max(parts, default=0.0)


def _is_whole(value: Any) -> bool:
    return bool(value.is_integer) and not value.free_symbols


def _digits_of_power(power: Any, base: float, exponent: float) -> float:
    if exponent > 6:
        return math.inf
    if power.exp.free_symbols:
        return max(base, exponent)
    times = abs(complex(power.exp.evalf(6)))
    if power.base.free_symbols:
        return math.inf if times > _POWER and not power.base.is_Symbol else base
    return times * max(base, 0.5)

"""Mathematical answers compared by math-verify; runs in a ``JudgeProcess``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_NAMES = frozenset({"acos", "asin", "atan", "cos", "sin", "tan", "sqrt", "pi"})


def comparison(tolerance: float) -> Callable[..., dict[str, Any]]:
    """Returns a function of a true answer and a text: whether the last answer is equal, and it.

    Args:
        tolerance: relative distance at which a number is right too.
    """
    from math_verify import verify

    def compare(answer: str, text: str) -> dict[str, Any]:
        # Of several boxes the library would take all for parts of one answer.
        text = text[max(text.rfind("\\boxed"), 0) :]
        gold, found = _truth(answer), _parsed(text)
        right = bool(verify(gold, found, timeout_seconds=None))
        if not right and tolerance > 0:
            right = any(_near(gold, one, tolerance) for one in found)
        return {"right": right, "said": _said(found)}

    return compare


def _truth(answer: str) -> list[Any]:
    """Parses LaTeX, or an expression of known functions, which LaTeX would take for letters."""
    import sympy

    names = set(re.findall(r"[A-Za-z]+", answer))
    if names and names <= _NAMES and "\\" not in answer:
        known = {name: getattr(sympy, name) for name in names}
        return [sympy.parse_expr(answer.replace("^", "**"), local_dict=known)]
    return _parsed(f"${answer}$")


def _parsed(text: str) -> list[Any]:
    """Parses with the library, without its own time limit: an alarm, which the caller may need."""
    import math_verify

    library: Any = math_verify
    return library.parse(text, parsing_timeout=None)


def _said(found: list[Any]) -> str:
    """Spells an answer, equal numbers alike; '' for none."""
    if not found:
        return ""
    try:
        return f"{float(found[0]):.9g}"
    except (TypeError, ValueError, OverflowError):  # no number
        return str(found[0])


def _near(gold: list[Any], found: Any, tolerance: float) -> bool:
    try:
        true, said = float(gold[0]), float(found)
    except (TypeError, ValueError, IndexError, OverflowError):  # no number
        return False
    return abs(said - true) <= tolerance * abs(true)

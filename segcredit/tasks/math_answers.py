"""The process that compares mathematical answers: a line of JSON in, one out. See ``answers``.

``python -m segcredit.tasks.answer_worker``; it may be stopped at any time.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from typing import Any

MEMORY = 2 * 1024**3
_NAMES = frozenset({"acos", "asin", "atan", "cos", "sin", "tan", "sqrt", "pi"})


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_equal(**request)), flush=True)


def _equal(answer: str, text: str, tolerance: float) -> bool:
    """Whether a text's last answer is the true one; what cannot be read is not."""
    from math_verify import verify

    # Of several boxes the library would take all for parts of one answer.
    text = text[max(text.rfind("\\boxed"), 0) :]
    gold = _truth(answer)
    found = _parsed(text)
    if bool(verify(gold, found, timeout_seconds=None)):
        return True
    return tolerance > 0 and any(_near(gold, one, tolerance) for one in found)


def _truth(answer: str) -> list[Any]:
    """LaTeX, or an expression of known functions, which LaTeX would take for letters."""
    import sympy

    names = set(re.findall(r"[A-Za-z]+", answer))
    if names and names <= _NAMES and "\\" not in answer:
        known = {name: getattr(sympy, name) for name in names}
        return [sympy.parse_expr(answer.replace("^", "**"), local_dict=known)]
    return _parsed(f"${answer}$")


def _parsed(text: str) -> list[Any]:
    """What the library reads; its own limit is an alarm, and whoever started this has another."""
    import math_verify

    library: Any = math_verify
    return library.parse(text, parsing_timeout=None)


def _near(gold: list[Any], found: Any, tolerance: float) -> bool:
    try:
        true, said = float(gold[0]), float(found)
    except (TypeError, ValueError, IndexError, OverflowError):  # no number
        return False
    return abs(said - true) <= tolerance * abs(true)


if __name__ == "__main__":
    main()

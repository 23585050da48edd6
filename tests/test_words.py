"""First words of docstrings, and terms that the project gave up for those of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("segcredit", "segmenters", "estimators")

CLAUSE = re.compile(r"(What|Which|Of|That|Where|Whether|How|Why|When|If|As)\b")
"""Openers that no docstring has: half a sentence follows them."""
VERB = re.compile(r"[A-Z][a-z]+(-[a-z]+)*s\b(?!')")
NOUN = re.compile(
    r"(Advantages|Bars|Batches|Boundaries|Buffers|Categories|Cells|Characters|Checkpoints|Columns"
    r"|Completions|Decimals|Devices|Dicts|Digits|Dots|Endless|Failures|Figures|Formulas|Gradients"
    r"|Headings|Ids|Inches|Intervals|Is|Keys|Lambda-returns|Lengths|Lines|Log-probs|Logits|Loss"
    r"|Means|Metrics|Modules|Options|Perhaps|Prompts|Quantiles|Questions|Rewards|Rollouts|Segments"
    r"|Sentences|Settings|Spans|Texts|This|Tokens|Traces|Trees|Values|Versions)\b"
)
"""Words in s that are no verb, of those that once began a function's docstring."""
RETIRED = re.compile(
    r"\b(learners?|(?<!\")halves\b(?! the)|loose files?|majority votes?|penalized|everyones"
    r"|experiences?|exclusive\(|Prefixes|random streams?|sealed|[Tt]runk critics?|TrunkCritic|Trunk"
    r"|(chance|spread)_[A-Z0-9]+|(are|is) spread over (all )?(the )?processes)(?!\w)"
    r"|(?<![.\w])responses?\b(?![\"'(:])"  # but as a name of the version before
)


def docstrings(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yields line and first line of each docstring, and whether a verb must come first."""
    for owner in ast.walk(ast.parse(source)):
        begins = owner.body[0] if isinstance(owner, ast.FunctionDef) else None
        marks = set(map(ast.unparse, getattr(owner, "decorator_list", [])))
        is_attribute = bool(marks & {"property", "cached_property"})
        for node in ast.iter_child_nodes(owner):
            match node:
                case ast.Expr(ast.Constant(str(text))):
                    first = text.strip().splitlines()[0]
                    yield node.lineno, first, node is begins and not is_attribute


def faults(source: str) -> Iterator[str]:
    """Yields each fault of a module's words, behind the number of its line."""
    for number, first, is_function in docstrings(source):
        if CLAUSE.match(first) or (is_function and (NOUN.match(first) or not VERB.match(first))):
            yield f"{number}: {first}"
    for number, line in enumerate(source.splitlines(), 1):
        if term := RETIRED.search(line):
            yield f"{number}: the term {term[0]!r}"


def test_docstrings_begin_with_a_verb_and_terms_are_those_of_the_field() -> None:
    found: list[str] = []
    for file in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        found += [f"{name}:{fault}" for fault in faults(file.read_text(encoding="utf-8"))]
    assert found == [], "\n".join(found)


def test_a_fault_is_seen() -> None:
    sample = '''
class What:
    """What it is."""

    @property
    def size(self) -> int:
        """Number of rows."""

    def cut(self) -> None:
        """Cut the rows."""

    def rows(self) -> None:
        """Returns rows of two halves."""

    def texts(self) -> None:
        """Texts of rows."""
'''
    assert [fault.split(":")[0] for fault in faults(sample)] == ["3", "10", "16", "13"]

"""Worked solutions in several styles whose steps are known: what the shipped model learns from.

    python experiments/11_boundaries/generated_text.py > generated.jsonl

Every problem is a chain of small calculations that come true. A style says how a calculation is
worded, in how many sentences, with which formulas, and what stands between two steps. The same
arguments give the same texts.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PROBLEMS = 700
SEED = 0
COARSE = 0.15
"""Share of the solutions with two calculations to a step: granularity is a matter of taste, and a
model that never meets this is certain where nobody can be."""

_NAMES = ("Ada", "Ben", "Carla", "Deniz", "Elif", "Farid", "Gita", "Hugo", "Ines", "Jun", "Kofi")
_THINGS = ("apples", "books", "pencils", "stamps", "tickets", "marbles", "eggs", "chairs", "shirts")
_PLACES = ("shop", "market", "school", "garden", "library", "bakery", "station")


@dataclass(frozen=True, slots=True)
class Step:
    """One calculation."""

    goal: str
    """Name of the quantity that is calculated: "the cost of the apples"."""
    left: str
    """Its left-hand side, with * and /."""
    result: str
    unit: str


@dataclass(frozen=True, slots=True)
class Style:
    """The look of a solution's steps."""

    name: str
    separators: tuple[str, ...]
    """One of them is chosen for the whole solution."""
    word: Callable[[random.Random, Step, int, bool], str]
    """The text of a step, given its number from 0 and whether it is the last."""


def records(problems: int = PROBLEMS, seed: int = SEED) -> Iterator[dict[str, object]]:
    """Yields solutions, two of each problem in different styles, for `segcredit fit-boundaries`."""
    for number in range(problems):
        draw = random.Random(f"{seed}/{number}")
        steps = draw.choice(_CHAINS)(draw)
        for style in draw.sample(_STYLES, 2):
            yield _record(f"generated-{number}", steps, style, draw)


def _record(
    problem: str, steps: list[Step], style: Style, draw: random.Random
) -> dict[str, object]:
    separator = draw.choice(style.separators)
    worded = [style.word(draw, step, k, k == len(steps) - 1) for k, step in enumerate(steps)]
    if draw.random() < COARSE:
        worded = [" ".join(worded[k : k + 2]) for k in range(0, len(worded), 2)]
    offsets, length = [0], 0
    for text in worded:
        length += len(text) + len(separator)
        offsets.append(length)
    return {
        "id": f"{problem}-{style.name}",
        "source": style.name,
        "problem": problem,
        "text": separator.join(worded),
        "boundaries": offsets[1:-1],
    }


def _purchase(draw: random.Random) -> list[Step]:
    """Writes steps on several goods, their sum, and change from a banknote."""
    name, goods = draw.choice(_NAMES), draw.sample(_THINGS, draw.randint(2, 4))
    steps: list[Step] = []
    costs: list[int] = []
    for thing in goods:
        count, price = draw.randint(2, 12), draw.randint(2, 9)
        costs.append(count * price)
        steps.append(
            Step(f"the cost of the {thing}", f"{count} * {price}", f"{count * price}", "dollars")
        )
    total = sum(costs)
    sum_of_costs = " + ".join(map(str, costs))
    steps.append(Step(f"the total that {name} pays", sum_of_costs, f"{total}", "dollars"))
    if draw.random() < 0.6:
        note = (total // 50 + 1) * 50
        change = f"the change that {name} gets"
        steps.append(Step(change, f"{note} - {total}", f"{note - total}", "dollars"))
    return steps


def _journey(draw: random.Random) -> list[Step]:
    """Writes steps on distances, a total and an average speed."""
    name = draw.choice(_NAMES)
    legs = [(draw.randint(20, 90), draw.randint(1, 5)) for _ in range(draw.randint(2, 3))]
    steps = [
        Step(f"the length of part {k} of the trip", f"{v} * {t}", f"{v * t}", "kilometers")
        for k, (v, t) in enumerate(legs, start=1)
    ]
    way, hours = sum(v * t for v, t in legs), sum(t for _, t in legs)
    parts = " + ".join(str(v * t) for v, t in legs)
    times = " + ".join(str(t) for _, t in legs)
    return [
        *steps,
        Step(f"how far {name} travels in all", parts, f"{way}", "kilometers"),
        Step("the time of the whole trip", times, f"{hours}", "hours"),
        Step("the average speed", f"{way} / {hours}", f"{way / hours:.4g}", "kilometers per hour"),
    ]


def _equation(draw: random.Random) -> list[Step]:
    """Solves a x + b = c, and may check it."""
    a, x, b = draw.randint(2, 12), draw.randint(2, 20), draw.randint(1, 30)
    c = a * x + b
    steps = [
        Step("what is left after subtracting the constant", f"{c} - {b}", f"{c - b}", ""),
        Step("the value of x", f"{c - b} / {a}", f"{x}", ""),
    ]
    if draw.random() < 0.5:
        steps.append(Step("the left side again", f"{a} * {x} + {b}", f"{c}", ""))
    k = draw.randint(2, 6)
    steps.append(Step(f"the value of x + {k}", f"{x} + {k}", f"{x + k}", ""))
    return steps


def _rectangle(draw: random.Random) -> list[Step]:
    """Writes steps on area, perimeter, and what a fence costs."""
    place, w, h, price = draw.choice(_PLACES), *(draw.randint(3, 25) for _ in range(3))
    around = 2 * (w + h)
    return [
        Step(f"the area of the {place}", f"{w} * {h}", f"{w * h}", "square meters"),
        Step("half of the perimeter", f"{w} + {h}", f"{w + h}", "meters"),
        Step(f"the perimeter of the {place}", f"2 * {w + h}", f"{around}", "meters"),
        Step("the price of the fence", f"{around} * {price}", f"{around * price}", "dollars"),
    ]


def _percentage(draw: random.Random) -> list[Step]:
    """Writes steps on a share of a whole, taken twice."""
    thing, whole = draw.choice(_THINGS), 100 * draw.randint(1, 12)
    share, second = draw.choice((10, 20, 25, 40, 50)), draw.choice((10, 20, 50))
    sold = whole * share // 100
    rest = whole - sold
    given = rest * second / 100
    return [
        Step(f"how many {thing} are sold", f"{whole} * {share} / 100", f"{sold}", thing),
        Step(f"how many {thing} remain", f"{whole} - {sold}", f"{rest}", thing),
        Step("how many of these are given away", f"{rest} * {second} / 100", f"{given:g}", thing),
        Step("how many are left in the end", f"{rest} - {given:g}", f"{rest - given:g}", thing),
    ]


_CHAINS = (_purchase, _journey, _equation, _rectangle, _percentage)


def _latex(left: str) -> str:
    return left.replace("*", r"\times").replace("/", r"\div")


def _with_unit(result: str, unit: str) -> str:
    return f"{result} {unit}".strip()


def _aside(draw: random.Random, step: Step) -> str:
    """Writes perhaps one more sentence, which may begin like a step and is none."""
    value = _with_unit(step.result, step.unit)
    asides = (
        " It will be used below.",
        f" So the result is {value}.",
        " Now keep this in mind.",
        f" Then {step.result} is exact.",
        f" Therefore we write {value}.",
        " First of all this looks right.",
        " Let us remember it.",
    )
    return draw.choice(asides) if draw.random() < 0.4 else ""


def _opening(draw: random.Random, number: int, last: bool) -> str:
    if draw.random() < 0.25:
        return draw.choice(("We find", "It remains to see", "The question is", "Look at"))
    if number == 0:
        return draw.choice(("First, we find", "We begin with", "Let us find", "To start, we need"))
    if last:
        return draw.choice(("Finally, we find", "Lastly, we need", "Now we can find"))
    return draw.choice(("Next, we find", "Then we need", "Now we look for", "After that we find"))


def _line(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Writes a step as one short line, often without a full stop."""
    value = _with_unit(step.result, step.unit)
    text = draw.choice(
        (
            f"{step.goal} is {step.left} = {value}",
            f"{'so ' if number else ''}{step.goal} comes to {step.left} = {value}",
            f"we get {step.left} = {value} for {step.goal}",
        )
    )
    return text[0].upper() + text[1:] + draw.choice(("", ".", "."))


def _prose(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Writes a step as two or three sentences, the first of which says what is coming."""
    value = _with_unit(step.result, step.unit)
    middle = draw.choice(
        (f"This is {step.left} = {value}.", f"We compute {step.left}, which gives {value}.")
    )
    return f"{_opening(draw, number, last)} {step.goal}. {middle}{_aside(draw, step)}"


def _dollars(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Writes formulas between dollars, in a sentence or two."""
    formula = f"${_latex(step.left)} = {step.result}$"
    lead = draw.choice(("So", "Therefore", "Right. So", "That means", "Hence", "Ok,"))
    first = f"{lead if number else 'We see that'} {step.goal} is {formula}."
    return first + _aside(draw, step)


def _inline(draw: random.Random, step: Step, number: int, last: bool) -> str:
    r"""Writes formulas as \( ... \)."""
    unit = f" {step.unit}" if step.unit else ""
    return (
        f"{_opening(draw, number, last)} {step.goal}: \\({_latex(step.left)} = {step.result}\\)"
        f"{unit}.{_aside(draw, step)}"
    )


def _display(draw: random.Random, step: Step, number: int, last: bool) -> str:
    r"""Returns a displayed formula in the middle, with blank space around it."""
    blank = draw.choice((" ", "\n"))
    return (
        f"To find {step.goal}, we calculate:{blank}\\[{_latex(step.left)} = {step.result}\\]{blank}"
        + draw.choice(("This simplifies no further.", f"Here we have {step.result}.", "")).strip()
    ).rstrip()


def _marked(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Puts "Step 1:" and so on in front."""
    return f"Step {number + 1}: {_instruction(draw, step)}"


def _numbered(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Writes steps as a list with bare numbers."""
    return f"{number + 1}. {_instruction(draw, step)}"


def _instruction(draw: random.Random, step: Step) -> str:
    value = _with_unit(step.result, step.unit)
    return f"Calculate {step.goal}. {step.left} = {value}.{_aside(draw, step)}"


def _headed(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Writes a step as a bold heading and a bullet."""
    value = _with_unit(step.result, step.unit)
    title = step.goal[0].upper() + step.goal[1:]
    return f"**{title}:** We take {step.left}. The result is {value}.{_aside(draw, step)}"


def _thinking(draw: random.Random, step: Step, number: int, last: bool) -> str:
    """Writes steps as a trace that doubts itself."""
    value = _with_unit(step.result, step.unit)
    lead = draw.choice(("Okay, so", "Hmm,", "Alright,", "Wait,", "Now,", "Let me see,"))
    doubt = draw.choice(
        ("", "", " Let me double-check that.", f" Is that right? Yes, {step.left} is {value}.")
    )
    return f"{lead} I need {step.goal}. That should be {step.left} = {value}.{doubt}"


_ANY = (" ", "\n", "\n\n")
_STYLES = (
    Style("lines", (" ", "\n"), _line),
    Style("prose", _ANY, _prose),
    Style("dollars", _ANY, _dollars),
    Style("inline", _ANY, _inline),
    Style("display", _ANY, _display),
    Style("marked", _ANY, _marked),
    Style("numbered", _ANY, _numbered),
    Style("headed", _ANY, _headed),
    Style("thinking", _ANY, _thinking),
)


def main() -> None:
    """Writes all records to standard output."""
    for record in records():
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

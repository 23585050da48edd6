"""Writes exactness.md: which combinations of plug-ins leave the policy gradient unbiased.

python docs/explain/exactness.py            writes the page
python docs/explain/exactness.py --check    compares it with what would be written

Every number is a sum over all completions of a toy policy (``tests/exact.py``), so that the page
is the same on every machine. The tables, with a claim for each number, are those of
``tests/exact_tables.py``; the tests hold the numbers to the claims.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from exact import toy
from exact_claims import MARKER, RANDOM, TOP, TOP_STARTS, shown, wrapped
from exact_tables import (
    EXACT_VALUES,
    WRONG_BY_STATE,
    anchors,
    full_return,
    one_step,
    random_over_seeds,
    tables,
)

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Exactness

<!-- Do not edit: `python docs/explain/exactness.py` writes it again. -->"""
LIMITS = """Completions are equally long and end by themselves. Hence nothing is said of how losses
are averaged over rows of different lengths (`token_mean` and the others differ by a constant
here), of `length_weighted_group_mean` beside `group_mean`, of `gae`'s length_scale, or of
truncation. `latex_steps` with its default `sentence` joins steps of fewer than 20 characters and
leaves five characters whole. `sentence`, `steps`, `reflection` and `learned` look for words that
three symbols cannot spell; `value_jump` needs measured values, and `surprise_change` more than
five tokens. And all ratios are 1: what bounds do to later passes over a batch is no question of
bias alone. `process_value` is whatever its process reward says; `critic`, with values that are
wrong by the state, stands for it."""

GOLDENS = """Golden cases of the reference projects' own functions, for methods of 2025-26.
`tests/test_goldens.py` names the tests, whose docstrings say more of what is set beside what.
*Equal* is to 1e-10 in float64, 1e-6 where a whitening counts in float32, and 1e-5 where the
reference ran in float32. The numbers are of all cases that were open when this was written, of
which a few are kept in `tests/goldens`; `SEGCREDIT_GOLDENS_2` names a folder of others. A quirk is
what a reference does by accident, and is not imitated."""
FAMILIES = Path(__file__).with_name("exactness_goldens.csv")
"""What each family is here, and how many of its cases are equal."""


def introduction() -> str:
    """Returns the page's first paragraphs: what is compared with what."""
    probabilities = toy().everything.logprobs.exp()
    return f"""Is the gradient that a combination of plug-ins follows, in expectation, the gradient
of the expected reward? A toy policy over three symbols (a space, a newline, "a") and
{toy().policy.length} tokens has {len(toy().everything)} completions; its next-token probabilities
lie between {shown(float(probabilities.min()))} and {shown(float(probabilities.max()))}, and the
reward of each completion is an arbitrary number in [0,1]. Expected reward, the value of every
prefix and the policy gradient are sums over all completions in float64. So is the expectation of
each estimate below: real segmenters, estimators, advantage schemes and the real objective, every
completion (pair, tree) weighed by its probability. Nothing is drawn at random.

A number is the distance of the expected gradient from the true one, divided by the true one's
length. **exact** means below 1e-10 (measured: around 1e-15). Other numbers carry the letter of the
reason for the bias, explained under the table. `monte_carlo` continues by enumeration, so that its
values are exact; the values of `critic` (a network with arbitrary parameters) and `tracker` (a
made-up table) are fixed and wrong. Ratios are those of tokens, and losses are summed over tokens,
unless stated otherwise."""


def causality() -> str:
    """The paragraphs on causal and non-causal segment definitions."""
    full, step, values, critic = full_return(), one_step(), f"`{EXACT_VALUES}`", WRONG_BY_STATE
    last = anchors().value(TOP, "last_token, `td`")
    return f"""Subtracting V(s) from the return of token t changes nothing in expectation if V(s) is
settled before token t is drawn: E[V ∇log π(y_t)] = V ∇ Σ π = 0. The state s is the beginning of
t's segment; which one that is must therefore be settled, too. A definition is *causal* if the
boundary before token t depends on tokens before t alone. Then it does not matter whether the
values are right: with λ = 1 an arbitrary critic is exact. With λ < 1 boundaries have to be causal
for the same reason, and values right besides.

A newline that *closes* its segment is causal: the boundary comes after a token that is there. A
newline that *opens* its segment is not. Whether a boundary stands before token t is then the same
question as whether token t is a newline, and exact values become a baseline that depends on the
action: {shown(full.value(MARKER, values))} of the gradient's length with `full_return`,
{shown(step.value(MARKER, values))} with `td`. The same holds of "Wait" and "Step 3:".

Entropy is on the other side: H_t belongs to the distribution that token t is drawn from, and is
settled before it. A fixed threshold, or the running one of `entropy_running`, is causal even where
the fork *starts* a segment. The top fraction of a completion (`entropy`, SAPO) is not, since later
entropies decide whether an earlier token is among the highest:
{shown(full.value(TOP, values))} where forks end segments, {shown(full.value(TOP_STARTS, values))}
where they start them. With the values of the arbitrary critic the former is
{shown(full.value(TOP, f"`{critic}`"))}: the worse the values, the larger what the boundary gives
away. The anchor `last_token` matters far more than the boundary ({shown(last)} with `td`; see
below).

`random` derives its draws from the whole completion, so that one seed's boundaries look ahead
({shown(full.value(RANDOM, values))}); the chance is fair, and the mean gradient over 30 seeds is
off by {shown(random_over_seeds())}. All numbers are this toy's: they say which biases exist, not
how large they are for a language model."""


def page() -> str:
    """The whole page."""
    first, *others = map(str, tables())
    parts = [HEAD, wrapped(introduction()), first]
    parts += ["## Causal and non-causal segment definitions", wrapped(causality()), *others]
    parts += ["## What the toy cannot show", wrapped(LIMITS)]
    head, *families = csv.reader(FAMILIES.read_text().splitlines())
    lines = [head, ["---"] * len(head), *families]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    parts += ["## Methods of 2025-26: equal to reference code?", wrapped(GOLDENS), rows]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not what this script would write. Run `python docs/explain/exactness.py`.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

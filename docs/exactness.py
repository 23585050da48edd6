"""Writes docs/exactness.md: which combinations of plug-ins leave the policy gradient unbiased.

python docs/exactness.py            writes the page
python docs/exactness.py --check    compares it with what would be written

Every figure is a sum over all completions of a toy policy (``tests/exact.py``), so that the page
is the same on every machine. For each figure the script states beforehand whether it is 0, and if
not, why; the tests hold it to that.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from exact import (  # noqa: E402
    Deviation,
    Toy,
    deviation,
    measure,
    measure_groups,
    surrogate_gradient,
    toy,
    weighed_credit,
    weighed_tree_credit,
)
from segcredit import (  # noqa: E402
    AdvantageScheme,
    Segmenter,
    TextSegmenter,
    ValueEstimator,
    registry,
)
from segcredit.loss_tokens import high_entropy, low_probability  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
EXACT = 1e-10
"""A relative error below this is rounding."""

REASONS = {
    "t": "the boundary before a token depends on which token it is",
    "a": "the boundary before a token depends on what comes after it, too",
    "l": "the value before a segment's last token is charged to the tokens before that one",
    "v": "λ < 1 puts values in the place of rewards, and these values are wrong",
    "f": "which states are continued, or what the others are worth, depends on what comes later",
    "o": "the baseline holds the completion's own return",
    "s": "the mean or spread that advantages are scaled by holds the completion's own return",
    "c": "one ratio for several segments gives each token the mean of their advantages",
    "d": "discounting the future is another objective",
    "k": "tokens are left out of the loss: another objective",
    "b": "whether a token counts depends on the token, so that no baseline cancels",
    "u": "a token that n rows share counts 1/n, so that early tokens count less than late ones",
}


@dataclass(frozen=True, slots=True)
class MarkerStarts(TextSegmenter):
    """A loose plug-in: every newline opens its segment, as "Wait" or "Step 3:" would."""

    @property
    def causal(self) -> bool:
        """The marker itself decides whether a boundary stands before it."""
        return False

    def split(self, text: str) -> Sequence[int]:
        """The offset of each newline."""
        return [place for place, symbol in enumerate(text) if symbol == "\n"]


@dataclass(frozen=True)
class Cut:
    """A segmenter with its options, and the reasons for which it should bias the gradient."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    @functools.cached_property
    def plugin(self) -> Segmenter:
        """Built by name; the loose one is not registered."""
        if self.name == "marker_starts":
            return MarkerStarts()
        return registry.segmenters.build(self.name, **self.options)

    def __str__(self) -> str:
        return labelled(self.name, self.options)


WHOLE, PER_TOKEN, NEWLINE = Cut("whole"), Cut("per_token"), Cut("newline")
FIXED, TOP = Cut("fixed_length", {"tokens": 2}), Cut("entropy", why="a")
RUNNING = Cut("entropy_running")
CUTS = [
    WHOLE,
    PER_TOKEN,
    NEWLINE,
    FIXED,
    RUNNING,
    Cut("entropy_running", {"fork": "starts"}),
    Cut("entropy_running", {"threshold": 0.8}),
    Cut("entropy_running", {"threshold": 0.8, "fork": "starts"}),
    Cut("cutpoint", {"below": 0.3, "every": 2, "fork": "ends"}),
    TOP,
    Cut("entropy", {"fork": "starts"}, "a"),
    Cut("random", why="a"),
    Cut("cutpoint", {"below": 0.3, "every": 2}, "t"),
    Cut("cutpoint", {"below": 0.3, "every": 2, "first": "join"}, "t"),
    Cut("marker_starts", why="t"),
    Cut("latex_steps", {"delimiter": "newline"}, "ta"),
    Cut("latex_steps", {"delimiter": "paragraph"}, "ta"),
]
EXACT_VALUES = "monte_carlo"
WRONG_BY_STATE = "critic"
WRONG_BY_PROMPT = ("zero", "greedy", "tracker")
ALONE = (EXACT_VALUES, WRONG_BY_STATE, *WRONG_BY_PROMPT)


@dataclass(frozen=True)
class Figure:
    """A measured relative error, and what was claimed of it: no reason means that it is 0."""

    value: float
    why: str = ""

    def __str__(self) -> str:
        if not self.why:
            return "exact" if self.value < EXACT else f"{shown(self.value)} (unexpected)"
        return f"{shown(self.value)} ({', '.join(dict.fromkeys(self.why))})"


@dataclass(frozen=True)
class Table:
    """A table with the paragraphs around it."""

    title: str
    before: str
    header: list[str]
    rows: list[list[str | Figure]]
    after: str = ""

    @property
    def figures(self) -> list[tuple[str, Figure]]:
        """Every figure with the place at which it stands."""
        return [
            (f"{self.title}: {row[0]}, {row[1]}, {self.header[place]}", cell)
            for row in self.rows
            for place, cell in enumerate(row)
            if isinstance(cell, Figure)
        ]

    def __str__(self) -> str:
        lines = [f"## {self.title}", "", self.before, "", _line(self.header)]
        lines += ["|" + "---|" * len(self.header), *(_line(row) for row in self.rows)]
        used = dict.fromkeys("".join(figure.why for _, figure in self.figures))
        reasons = [f"{letter}: {REASONS[letter]}" for letter in REASONS if letter in used]
        legend = ["", "; ".join(reasons) + "."] if reasons else []
        return "\n".join([*lines, *legend, *(["", self.after] if self.after else [])])


def _line(cells: Sequence[str | Figure]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def shown(x: float) -> str:
    """Two digits, which no rounding of float64 can change."""
    return f"{x:.2g}"


def labelled(name: str, options: dict[str, Any]) -> str:
    """A plug-in as it is written in tables."""
    return " ".join([f"`{name}`", *(f"{key}={value}" for key, value in options.items())])


def estimator(name: str, **options: Any) -> ValueEstimator:
    """Built once for the same options, so that its values are computed once."""
    return _estimator(name, tuple(options.items()))


@functools.cache
def _estimator(name: str, options: tuple[tuple[str, Any], ...]) -> ValueEstimator:
    return registry.estimators.build(name, **dict(options))


def scheme(name: str, **options: Any) -> AdvantageScheme:
    """An advantage scheme by name."""
    return registry.advantages.build(name, **options)


def reasons(cut: Cut, source: str, lam: float) -> str:
    """Why the gradient should be biased where completions are treated one by one.

    A number that is the same at all states of a prompt is a baseline with any boundaries. With
    λ < 1 a value also stands for what is still to come, unless the segment is the last one.
    """
    looks = "" if source in WRONG_BY_PROMPT else cut.why
    wrong = source != EXACT_VALUES and lam < 1 and cut != WHOLE
    return ("v" if wrong else "") + (cut.why if wrong else looks)


def alone(title: str, before: str, advantage: AdvantageScheme, lam: float) -> Table:
    """Every segmenter with every estimator that needs no group, under one advantage scheme."""
    rows: list[list[str | Figure]] = []
    for cut in CUTS:
        errors = [
            measure(toy(), cut.plugin, estimator(source), advantage).error for source in ALONE
        ]
        figures = [
            Figure(error, reasons(cut, source, lam))
            for source, error in zip(ALONE, errors, strict=True)
        ]
        rows.append([str(cut), "yes" if cut.plugin.causal else "no", *figures])
    header = ["segmenter", "causal", *(f"`{source}`" for source in ALONE)]
    return Table(title, before, header, rows)


@functools.cache
def full_return() -> Table:
    """λ = 1: values are baselines only."""
    return alone(
        "Every completion by itself: `full_return`",
        "A_k = R − V_k: V is a baseline and nothing else. Values of states (`monte_carlo`: exact;"
        " `critic`: wrong) need a causal segmenter, whether they are right or wrong. What is the"
        " same at all states of a prompt (`zero`, `greedy`, `tracker`) is a baseline with any"
        " segmenter. The column *causal* is what the plug-in says of itself.",
        scheme("full_return"),
        1.0,
    )


@functools.cache
def half_lambda() -> Table:
    """λ = 1/2."""
    return alone(
        "Every completion by itself: `gae` lam=0.5",
        "Below λ = 1 values stand for rewards still to come, and must be right.",
        scheme("gae", lam=0.5),
        0.5,
    )


@functools.cache
def one_step() -> Table:
    """λ = 0."""
    return alone(
        "Every completion by itself: `td`",
        "A_k = V_{k+1} − V_k, and R − V_k at the last segment. Exact values and causal boundaries"
        " give the true gradient; a value for the prompt credits the last segment alone.",
        scheme("td"),
        0.0,
    )


@functools.cache
def anchors() -> Table:
    """The value of the state before a segment, or before its last token."""
    rows: list[list[str | Figure]] = []
    for cut in (WHOLE, PER_TOKEN, NEWLINE, FIXED, RUNNING, TOP):
        row: list[str | Figure] = [str(cut), "yes" if cut.plugin.causal else "no"]
        for anchor in ("start", "last_token"):
            why = cut.why + ("l" if anchor == "last_token" and cut != PER_TOKEN else "")
            for name in ("full_return", "td"):
                source = estimator(EXACT_VALUES, anchor=anchor)
                error = measure(toy(), cut.plugin, source, scheme(name)).error
                row.append(Figure(error, why))
        rows.append(row)
    return Table(
        "The anchor of a segment's value",
        "Exact values of `start`, the state before the segment, and of `last_token`, the state"
        " before its last token (SAPO's released code). The latter's value already knows the"
        " tokens of the segment that come before, to which it is charged.",
        [
            "segmenter",
            "causal",
            "start, `full_return`",
            "start, `td`",
            "last_token, `full_return`",
            "last_token, `td`",
        ],
        rows,
    )


@functools.cache
def partial_values() -> Table:
    """Where only some states are continued."""
    rows: list[list[str | Figure]] = []
    for choose in ("first", "even"):
        for rest in ("hold", "interpolate", "return"):
            source = estimator(EXACT_VALUES, max_states=2, choose=choose, rest=rest)
            held = choose == "first" and rest == "hold"
            errors = [
                measure(toy(), NEWLINE.plugin, source, scheme(name)).error
                for name in ("full_return", "td")
            ]
            figures = [Figure(errors[0], "" if held else "f"), Figure(errors[1], "vf"[not held])]
            rows.append([choose, rest, *figures])
    return Table(
        "Values of some states only",
        "`monte_carlo` max_states=2 over `newline`; the values that are estimated are exact.",
        ["choose", "rest", "`full_return`", "`td`"],
        rows,
    )


@functools.cache
def ratios() -> Table:
    """Every ratio, ratio gradient and bound at the sampling policy."""
    bounds = ("clip", "log_clip", "capped_weight", "soft_gate")
    levels = [("none", "full"), ("token", "full")]
    levels += [
        (r, g) for r in ("segment", "fixed_length", "sequence") for g in ("full", "own_token")
    ]
    rows: list[list[str | Figure]] = []
    for ratio, gradient in levels:
        across = gradient == "full" and ratio in ("fixed_length", "sequence")
        figures = [
            Figure(
                _ratio_error(ratio, gradient, bound),
                "c" if across and bound != "capped_weight" else "",
            )
            for bound in bounds
        ]
        label = "segment of `fixed_length` tokens=2" if ratio == "fixed_length" else ratio
        rows.append([label, gradient, *figures])
    return Table(
        "Ratio, ratio gradient and bound",
        "`newline`, `monte_carlo`, `full_return`, in the first pass over a batch, where all ratios"
        " are 1. There every bound has the gradient −A ∇log π, and a ratio over a credit segment"
        " only redistributes it among tokens that have the same advantage. A ratio that spans"
        " several credit segments does not, unless its gradient flows through each token's own"
        " log-prob or, as under `capped_weight`, not at all. Over `whole` every line is exact.",
        ["ratio", "ratio_gradient", *(f"`{bound}`" for bound in bounds)],
        rows,
    )


def _ratio_error(ratio: str, gradient: str, bound: str, cut: Cut = NEWLINE) -> float:
    """Credit over the cut's segments; the ratio is over them, or over those of another cut."""
    weighed_CT = weighed_credit(toy(), cut.plugin, estimator(EXACT_VALUES), scheme("full_return"))
    found = surrogate_gradient(
        toy(),
        weighed_CT,
        (FIXED if ratio == "fixed_length" else cut).plugin,
        ratio="segment" if ratio == "fixed_length" else ratio,
        ratio_gradient=gradient,
        bound=bound,
    )
    return deviation(found, toy().gradient).error


def compared(
    cut: Cut, source: str, name: str, found: Deviation, why: str, bent: bool
) -> list[str | Figure]:
    """A row with error, length and direction; ``bent``: no factor mends the gradient."""
    return [
        str(cut),
        f"`{source}`",
        name,
        Figure(found.error, why),
        shown(found.length),
        Figure(found.direction, why if bent else ""),
    ]


@functools.cache
def pairs() -> Table:
    """Group estimators, G = 2."""
    schemes = {"`full_return`": "full_return", "`td`": "td", "`group_scaled`": "group_scaled"}
    rows: list[list[str | Figure]] = []
    for source in ("leave_one_out", "group_mean", "length_weighted_group_mean", "tree"):
        for cut in (WHOLE, NEWLINE, TOP):
            for label, name in schemes.items():
                inner = {"inner": "full_return"} if name == "group_scaled" else {}
                found = measure_groups(toy(), cut.plugin, estimator(source), scheme(name, **inner))
                why = _pair_reasons(cut, source, name)
                bent = why != "o" or (source == "tree" and cut != WHOLE)
                rows.append(compared(cut, source, label, found, why, bent))
    scaled = next(row for row in rows if row[2] == "`group_scaled`")
    return Table(
        "Groups of two",
        f"All {len(toy().everything) ** 2} ordered pairs, each a group. *length* is the gradient's"
        " component along the true one, which is 1 long; *direction* the sine of the angle between"
        " the two, which no step size can mend.",
        ["segmenter", "estimator", "advantage", "error", "length", "direction"],
        rows,
        "A group mean that holds the completion's own return keeps (G − 1)/G of the gradient and"
        " turns it nowhere; `length_weighted_group_mean` is `group_mean` here, since all"
        f" completions are equally long. Dividing by the group's spread turns it by {scaled[5]}:"
        " with G = 2 all advantages have the same size, whatever the difference in reward."
        " `tree` on independent rollouts takes the completion's own return for the value of every"
        " state but the first.",
    )


def _pair_reasons(cut: Cut, source: str, name: str) -> str:
    own = "" if source == "leave_one_out" else "o"
    # A tree of independent rollouts is wrong about states, too, but for that same reason.
    wrong = name == "td" and cut != WHOLE and source != "tree"
    return own + ("v" + cut.why if wrong else "") + ("s" if name == "group_scaled" else "")


@functools.cache
def larger_groups() -> Table:
    """What becomes of the biases as the group grows."""
    world, whole = toy(2), WHOLE.plugin
    inner = {"inner": "full_return"}
    rows: list[list[str | Figure]] = []
    for size in (2, 3, 4, 5):
        plain = measure_groups(
            world, whole, estimator("group_mean"), scheme("full_return"), size=size
        )
        other = measure_groups(
            world, whole, estimator("leave_one_out"), scheme("full_return"), size=size
        )
        scaled = measure_groups(
            world, whole, estimator("group_mean"), scheme("group_scaled", **inner), size=size
        )
        white = measure_groups(
            world, whole, estimator("zero"), scheme("whitened", **inner), size=size, batches=True
        )
        rows.append(
            [
                str(size),
                Figure(other.error),
                shown(plain.length),
                Figure(plain.direction),
                Figure(scaled.direction, "s"),
                Figure(white.direction, "s"),
            ]
        )
    return Table(
        "Larger groups",
        "Completions of two tokens, `whole`. `whitened` (over `zero`) sees each group as a batch.",
        [
            "G",
            "`leave_one_out`, error",
            "`group_mean`, length",
            "`group_mean`, direction",
            "`group_scaled`, direction",
            "`whitened`, direction",
        ],
        rows,
    )


@functools.cache
def whitening() -> Table:
    """Whitening, a batch of two."""
    cases: list[tuple[Cut, str, str, dict[str, Any]]] = [
        (WHOLE, "zero", "full_return", {}),
        (WHOLE, "monte_carlo", "full_return", {}),
        (NEWLINE, "monte_carlo", "full_return", {}),
        (NEWLINE, "monte_carlo", "full_return", {"weight": "segment"}),
        (NEWLINE, "monte_carlo", "full_return", {"center": False}),
        (PER_TOKEN, "monte_carlo", "td", {}),
        (TOP, "monte_carlo", "full_return", {}),
    ]
    rows: list[list[str | Figure]] = []
    for cut, source, inner, options in cases:
        found = measure_groups(
            toy(),
            cut.plugin,
            estimator(source),
            scheme("whitened", inner=inner, **options),
            alone=True,
            batches=True,
        )
        label = f"{labelled('whitened', options)} of `{inner}`"
        rows.append(compared(cut, source, label, found, cut.why + "s", True))
    return Table(
        "Whitening a batch of two",
        "All ordered pairs, each a batch of its own (`torch.vmap` over the scheme). A whitened"
        " gradient is in other units, so that *direction* is the figure to read. It is for a batch"
        " of two; the bias fades as the batch grows (previous table).",
        ["segmenter", "estimator", "advantage", "error", "length", "direction"],
        rows,
    )


@functools.cache
def token_choices() -> Table:
    """Losses that count some tokens only."""
    everything = toy().everything
    mask_CT = everything.action_mask
    choices = {
        "all": (mask_CT, "", ""),
        "high_entropy, share 0.4": (high_entropy(everything.entropies, mask_CT, 0.4), "k", ""),
        "low_probability, below 0.5": (
            low_probability(everything.logprobs, mask_CT, 0.5),
            "k",
            "b",
        ),
    }
    rows: list[list[str | Figure]] = []
    for label, (chosen_CT, why, baseline_why) in choices.items():
        found, plain = (
            surrogate_gradient(
                toy(),
                weighed_credit(toy(), cut.plugin, estimator(source), scheme("full_return")),
                cut.plugin,
                token_weights=chosen_CT.double(),
            )
            for cut, source in ((PER_TOKEN, EXACT_VALUES), (WHOLE, "zero"))
        )
        share = (
            float((everything.logprobs.sum(1).exp() @ chosen_CT.double()).sum())
            / toy().policy.length
        )
        rows.append(
            [
                label,
                shown(share),
                Figure(deviation(found, toy().gradient).error, why),
                Figure(deviation(found, plain).error, baseline_why),
            ]
        )
    return Table(
        "Tokens that the loss counts",
        "`per_token`, `monte_carlo`, `full_return`. The last column is the distance to the gradient"
        " without a baseline (`zero`): 0 where the choice of tokens leaves baselines harmless. The"
        " entropy quantile is that of all completions, a fixed threshold; that of a sampled batch"
        " moves a little with the completions.",
        ["tokens", "expected share", "error", "distance to no baseline"],
        rows,
    )


@functools.cache
def discounts() -> Table:
    """Discounting by segment or by token."""
    rows: list[list[str | Figure]] = []
    for cut in (WHOLE, PER_TOKEN, NEWLINE):
        figures: list[str | Figure] = []
        for clock in ("segment", "token"):
            discounted = scheme("full_return", gamma=0.9, clock=clock)
            error = measure(toy(), cut.plugin, estimator(EXACT_VALUES), discounted).error
            figures.append(Figure(error, "" if (cut, clock) == (WHOLE, "segment") else "d"))
        rows.append([str(cut), "yes" if cut.plugin.causal else "no", *figures])
    return Table(
        "Discounts",
        "`full_return` gamma=0.9, `monte_carlo`, against the gradient of the undiscounted reward.",
        ["segmenter", "causal", "clock=segment", "clock=token"],
        rows,
    )


@functools.cache
def trees() -> Table:
    """Rollouts that share their beginnings."""
    world = toy(3)
    rows: list[list[str | Figure]] = []
    for label, table in (
        ("`td`", "td"),
        ("`full_return`", "full_return"),
        ("`sibling_scaled` of `td`", {"name": "sibling_scaled", "inner": "td"}),
    ):
        for count_once in (False, True):
            weighed_CT = weighed_tree_credit(
                world,
                FIXED.plugin,
                estimator("tree"),
                registry.advantages.from_table(table),
                stem=2,
                count_once=count_once,
            )
            found = deviation(surrogate_gradient(world, weighed_CT, FIXED.plugin), world.gradient)
            why = "o" + ("s" if "sibling" in label else "") + ("u" if count_once else "")
            row = compared(FIXED, "tree", label, found, why, why != "o")
            row.insert(3, "once" if count_once else "in every row")
            rows.append(row)
    return Table(
        "Trees",
        "All trees of completions of three tokens: two stems of two tokens, with two endings each."
        " A shared token counts in every row that has it, or once (1/n in each of n rows).",
        [
            "segmenter",
            "estimator",
            "advantage",
            "shared tokens count",
            "error",
            "length",
            "direction",
        ],
        rows,
        "The mean over a state's children holds the child's own value and keeps (n − 1)/n of the"
        " gradient, equally at every fork if all forks have as many children. Counting a shared"
        " token once weighs each level of the tree by its number of nodes, which turns the"
        " gradient.",
    )


def tables() -> list[Table]:
    """The page's tables, in order."""
    return [
        full_return(),
        half_lambda(),
        one_step(),
        anchors(),
        partial_values(),
        ratios(),
        pairs(),
        larger_groups(),
        whitening(),
        token_choices(),
        discounts(),
        trees(),
    ]


def error_of(table: Table, cut: Cut, column: str = f"`{EXACT_VALUES}`") -> float:
    """The figure of a segmenter in one of the first tables."""
    row = next(row for row in table.rows if row[0] == str(cut))
    cell = row[table.header.index(column)]
    assert isinstance(cell, Figure)
    return cell.value


@functools.cache
def random_over_seeds(count: int = 50) -> float:
    """Error of the mean gradient over seeds of the segmenter ``random``."""
    found = torch.zeros_like(toy().gradient)
    for seed in range(count):
        cut = registry.segmenters.build("random", seed=seed)
        weighed_CT = weighed_credit(toy(), cut, estimator(EXACT_VALUES), scheme("full_return"))
        found += surrogate_gradient(toy(), weighed_CT, cut) / count
    return deviation(found, toy().gradient).error


def introduction(world: Toy) -> str:
    """What is compared with what."""
    probabilities = world.everything.logprobs.exp()
    return f"""# Exactness

<!-- Written by docs/exactness.py; do not edit. `python docs/exactness.py` writes it again. -->

Is the gradient that a combination of plug-ins follows, in expectation, the gradient of the
expected reward? A toy policy over three symbols (a space, a newline, "a") and
{world.policy.length} tokens has {len(world.everything)} completions; its next-token probabilities
lie between {shown(float(probabilities.min()))} and {shown(float(probabilities.max()))}, and the
reward of each completion is an arbitrary number in [0,1]. Expected reward, the value of every
prefix and the policy gradient are sums over all completions in float64. So is the expectation of
each estimate below: real segmenters, estimators, advantage schemes and the real objective, every
completion (pair, tree) weighed by its probability. Nothing is drawn at random.

A figure is the distance of the expected gradient from the true one, divided by the true one's
length. **exact** means below 1e-10 (measured: around 1e-15). Other figures carry the letter of the
reason for the bias, explained under the table. `monte_carlo` continues by enumeration, so that its
values are exact; the values of `critic` (a network with arbitrary parameters) and `tracker` (a
made-up table) are fixed and wrong. Token ratios and sums over tokens unless stated otherwise."""


def causality() -> str:
    """The paragraph on causal and non-causal segment definitions."""
    full, step = full_return(), one_step()
    starts = CUTS[CUTS.index(TOP) + 1]
    marker = next(cut for cut in CUTS if cut.name == "marker_starts")
    drawn = next(cut for cut in CUTS if cut.name == "random")
    return f"""## Causal and non-causal segment definitions

Subtracting V(s) from the return of token t changes nothing in expectation if V(s) is settled
before token t is drawn: E[V ∇log π(y_t)] = V ∇ Σ π = 0. The state s is the beginning of t's
segment; which one that is must therefore be settled, too. A definition is *causal* if the boundary
before token t depends on tokens before t alone. Then it does not matter whether the values are
right: with λ = 1 an arbitrary critic is exact. With λ < 1 boundaries have to be causal for the
same reason, and values right besides.

A newline that *closes* its segment is causal: the boundary comes after a token that is there. A
newline that *opens* its segment is not: whether a boundary stands before token t is the same
question as whether token t is a newline, and exact values become a baseline that depends on the
action, {shown(error_of(full, marker))} of the gradient's length with `full_return` and
{shown(error_of(step, marker))} with `td`. The same holds of "Wait" and "Step 3:". Entropy is on
the other side: H_t belongs to the distribution that token t is drawn from, and is settled before it. A fixed
threshold, or the running one of `entropy_running`, is causal even where the fork *starts* a
segment. The top fraction of a completion (`entropy`, SAPO) is not, since later entropies decide
whether an earlier token is among the highest: {shown(error_of(full, TOP))} here where forks end
segments, {shown(error_of(full, starts))} where they start them. With the values of the arbitrary
critic it is {shown(error_of(full, TOP, f"`{WRONG_BY_STATE}`"))}: the worse the values, the larger
what the boundary gives away. `random` derives its draws from the whole completion, so that one
seed's boundaries look ahead ({shown(error_of(full, drawn))}); the chance is fair, and the mean
gradient over 50 seeds is off by {shown(random_over_seeds())}. The figures are this toy's, and say
which biases exist, not how large they are for a language model."""


LIMITS = """## What the toy cannot show

Completions are equally long and end by themselves. Hence nothing is said of how losses are
averaged over rows of different lengths (`token_mean` and the others differ by a constant here), of
`length_weighted_group_mean` beside `group_mean`, of `gae`'s length_scale, or of truncation.
`latex_steps` with its default `sentence` joins steps of fewer than 20 characters and leaves five
characters whole. And all ratios are 1: what bounds do to later passes over a batch is no question
of bias alone."""


def page() -> str:
    """The whole page."""
    first, *others = tables()
    parts = [introduction(toy()), str(first), causality(), *map(str, others), LIMITS]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not what this script would write. Run `python docs/exactness.py`.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

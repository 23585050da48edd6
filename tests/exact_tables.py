"""The exactness tables: what each combination should do to the expected gradient, and what it does.

``docs/explain/exactness.py`` prints them. Tables are computed once.
"""

from __future__ import annotations

import functools
from typing import Any

from exact import (
    deviation,
    measure,
    measure_groups,
    surrogate_gradient,
    toy,
    toy_of_turns,
    weighed_credit,
    weighed_tree_credit,
)
from exact_claims import (
    CUTS,
    FIXED,
    MARKER,
    NEWLINE,
    PER_TOKEN,
    RANDOM,
    RUNNING,
    TOP,
    WHOLE,
    Cut,
    Figure,
    Row,
    Table,
    estimator,
    labelled,
    scheme,
    shown,
    two_figures,
)
from segcredit import AdvantageScheme, registry
from segcredit.objective.loss_masks import high_entropy, low_probability

EXACT_VALUES, EXACT_IN_TURNS = "monte_carlo", "measured"
WRONG_BY_STATE = "critic"
WRONG_BY_PROMPT = ("zero", "greedy", "tracker")
ALONE = (EXACT_VALUES, WRONG_BY_STATE, *WRONG_BY_PROMPT)


def reasons(cut: Cut, source: str, lam: float) -> str:
    """Why the gradient should be biased where completions are treated one by one.

    A number that is the same at all states of a prompt is a baseline with any boundaries. With
    λ < 1 a value also stands for what is still to come, unless the segment is the last one.
    """
    if source not in (EXACT_VALUES, EXACT_IN_TURNS) and lam < 1 and cut is not WHOLE:
        return "v" + cut.why
    return "" if source in WRONG_BY_PROMPT else cut.why


def alone(title: str, before: str, advantage: AdvantageScheme, lam: float) -> Table:
    """Every segmenter with every estimator that needs no group, under one advantage scheme."""
    rows: list[Row] = []
    for cut in CUTS:
        row: Row = [str(cut), cut.causal]
        for source in ALONE:
            error = measure(toy(), cut.plugin, estimator(source), advantage).error
            row.append(Figure(error, reasons(cut, source, lam)))
        rows.append(row)
    header = ["segmenter", "causal", *(f"`{source}`" for source in ALONE)]
    return Table(f"Every completion by itself: {title}", before, header, rows)


@functools.cache
def full_return() -> Table:
    return alone(
        "`full_return`",
        "A_k = R − V_k: V is a baseline and nothing else. Values of states (`monte_carlo`: exact;"
        " `critic`: wrong) need a causal segmenter, whether they are right or wrong. What is the"
        " same at all states of a prompt (`zero`, `greedy`, `tracker`) is a baseline with any"
        " segmenter. The column *causal* is what the plug-in says of itself.",
        scheme("full_return"),
        lam=1.0,
    )


@functools.cache
def half_lambda() -> Table:
    return alone(
        "`gae` lam=0.5",
        "Below λ = 1 values stand for rewards still to come, and must be right.",
        scheme("gae", lam=0.5),
        lam=0.5,
    )


@functools.cache
def one_step() -> Table:
    return alone(
        "`td`",
        "A_k = V_{k+1} − V_k, and R − V_k at the last segment. Exact values and causal boundaries"
        " give the true gradient; a value for the prompt credits the last segment alone.",
        scheme("td"),
        lam=0.0,
    )


@functools.cache
def anchors() -> Table:
    rows: list[Row] = []
    for cut in (WHOLE, PER_TOKEN, NEWLINE, FIXED, RUNNING, TOP):
        row: Row = [str(cut), cut.causal]
        for anchor in ("start", "last_token"):
            why = cut.why + ("l" if anchor == "last_token" and cut is not PER_TOKEN else "")
            source = estimator(EXACT_VALUES, anchor=anchor)
            for name in ("full_return", "td"):
                row.append(Figure(measure(toy(), cut.plugin, source, scheme(name)).error, why))
        rows.append(row)
    columns = [f"{a}, `{name}`" for a in ("start", "last_token") for name in ("full_return", "td")]
    return Table(
        "The anchor of a segment's value",
        "Exact values of the state before the segment (`start`) and of the state before its last"
        " token (`last_token`, SAPO's released code). The latter knows the tokens of the segment"
        " before that one, and is charged to them.",
        ["segmenter", "causal", *columns],
        rows,
    )


@functools.cache
def partial_values() -> Table:
    rows: list[Row] = []
    for choose in ("first", "even"):
        for rest in ("hold", "interpolate", "return"):
            source = estimator(EXACT_VALUES, max_states=2, choose=choose, rest=rest)
            held = (choose, rest) == ("first", "hold")
            full, step = (
                measure(toy(), NEWLINE.plugin, source, scheme(name)).error
                for name in ("full_return", "td")
            )
            figures = [Figure(full, "" if held else "f"), Figure(step, "v" if held else "f")]
            rows.append([choose, rest, *figures])
    return Table(
        "Values of some states only",
        "`monte_carlo` max_states=2 over `newline`; the values that are estimated are exact.",
        ["choose", "rest", "`full_return`", "`td`"],
        rows,
    )


def ratio_error(cut: Cut, ratio_cut: Cut, ratio: str, gradient: str, bound: str) -> float:
    """Credit over the segments of one segmenter, a segment ratio over those of another."""
    weighed_CT = weighed_credit(toy(), cut.plugin, estimator(EXACT_VALUES), scheme("full_return"))
    options = {"ratio": ratio, "ratio_gradient": gradient, "bound": bound}
    found = surrogate_gradient(toy(), weighed_CT, ratio_cut.plugin, **options)
    return deviation(found, toy().gradient).error


@functools.cache
def ratios() -> Table:
    bounds = ("clip", "log_clip", "truncated_is", "soft_gate")
    levels = [("none", NEWLINE), ("token", NEWLINE), ("segment", NEWLINE)]
    levels += [("segment", FIXED), ("sequence", NEWLINE)]
    rows: list[Row] = []
    for ratio, cut in levels:
        for gradient in ("full",) if ratio in ("none", "token") else ("full", "own_token"):
            row: Row = [ratio if cut is NEWLINE else f"{ratio} of {cut}", gradient]
            across = gradient == "full" and (ratio == "sequence" or cut is not NEWLINE)
            for bound in bounds:
                why = "c" if across and bound != "truncated_is" else ""
                row.append(Figure(ratio_error(NEWLINE, cut, ratio, gradient, bound), why))
            rows.append(row)
    return Table(
        "Ratio, ratio gradient and bound",
        "`newline`, `monte_carlo`, `full_return`, in the first pass over a batch, where all ratios"
        " are 1. There every bound has the gradient −A ∇log π, and a ratio over a credit segment"
        " only redistributes it among tokens that have the same advantage. A ratio that spans"
        " several credit segments does not, unless its gradient flows through each token's own"
        " log-prob or, as under `truncated_is`, not at all. Over `whole` every line is exact.",
        ["ratio", "gradient", *(f"`{bound}`" for bound in bounds)],
        rows,
    )


def pair_reasons(cut: Cut, source: str, name: str) -> str:
    own = "" if source == "leave_one_out" else "o"
    # A tree of independent rollouts is wrong about states, too, but for that same reason.
    wrong = name == "td" and cut is not WHOLE and source != "tree"
    return own + ("v" + cut.why if wrong else "") + ("s" if name.endswith("scaled") else "")


@functools.cache
def pairs() -> Table:
    schemes = {name: scheme(name) for name in ("full_return", "td")}
    schemes["group_scaled"] = scheme("group_scaled", inner="full_return")
    cuts = (WHOLE, NEWLINE, TOP)
    rows: list[Row] = []
    anchored = schemes | {"anchor_scaled": scheme("anchor_scaled", inner="full_return")}
    sources = ("leave_one_out", "group_mean", "length_weighted_group_mean", "anchor_group", "tree")
    for source in sources:
        own = anchored if source == "anchor_group" else schemes
        found = {
            (cut, name): measure_groups(toy(), cut.plugin, estimator(source), own[name])
            for cut in cuts
            for name in own
        }
        for name in own:
            row: Row = [f"`{source}`", f"`{name}`"]
            for cut in cuts:
                why = pair_reasons(cut, source, name)
                bent = why != "o" or (source == "tree" and cut is not WHOLE)
                row += two_figures(found[cut, name], why, bent=bent)
            rows.append(row)
    for source, options in BY_PLACE:
        built = estimator(source, **options)
        for name in ("full_return", "td"):
            row = [labelled(source, options), f"`{name}`"]
            for cut in cuts:
                found_here = measure_groups(toy(), cut.plugin, built, schemes[name])
                why = place_reasons(cut, source, name, "others" in options.values())
                bent = source != "prefix_group" or cut is not WHOLE
                row += two_figures(found_here, why, bent=bent)
            rows.append(row)
    turned = rows[2][3]
    assert isinstance(turned, Figure)
    return Table(
        "Groups of two",
        f"All {len(toy().everything) ** 2} ordered pairs, each a group; `group_scaled` and"
        " `anchor_scaled` scale `full_return`. *direction* is the sine of the angle between the"
        " expected gradient and the true one, which no step size can mend; an error of 0.5 whose"
        " direction is exact is a gradient half as long.",
        ["estimator", "advantage", *(f"{c}, {what}" for c in cuts for what in MEASURES)],
        rows,
        "A group mean that holds the completion's own return keeps (G − 1)/G of the gradient and"
        " turns it nowhere; `length_weighted_group_mean` is `group_mean` here, since all"
        " completions are equally long, and so is `anchor_group`, since they have one turn."
        " `anchor_scaled` scales only first segments, which are what it compares. Dividing by the"
        f" group's spread turns it by {shown(turned.value)}: with G = 2 all advantages have the"
        " same size, whatever the difference in reward."
        " `group_quantile` is the lower return of the two, so that only the better completion has"
        " an advantage; `optimal_token_baseline` weighs each by its squared gradient."
        " `prefix_group` is the group's mean until the two part, and each one's own return after"
        " it; of `others`, exact until then."
        " `tree` takes a completion that shares no token with another for all that can follow, and"
        " its return for the value of every state but the first.",
    )


MEASURES = ("error", "direction")
BY_PLACE: list[tuple[str, dict[str, Any]]] = [
    ("group_quantile", {}),
    ("optimal_token_baseline", {}),
    ("prefix_group", {}),
    ("prefix_group", {"rows": "others"}),
]


def place_reasons(cut: Cut, source: str, name: str, others: bool) -> str:
    """A prompt's quantile is the same at all states; the others' values are of a place."""
    if cut is WHOLE:
        return "" if others else "o"
    by_state = source != "group_quantile"
    return "o" + ("v" if name == "td" else "") + (cut.why if by_state or name == "td" else "")


@functools.cache
def group_schemes() -> Table:
    world, rows = toy(2), list[Row]()
    cases: list[tuple[str, str, dict[str, Any], str, bool]] = [
        ("leave_one_out", "mean_scaled", {}, "s", False),
        ("group_mean", "mean_scaled", {}, "os", False),
        ("leave_one_out", "informative_scaled", {}, "", True),
        ("leave_one_out", "within_trees", {}, "", False),
        ("leave_one_out", "pass_at_k", {"k": 2}, "p", False),
        ("zero", "pass_at_k", {"k": 2}, "p", False),
    ]
    for source, name, options, why, batches in cases:
        by = scheme(name, inner="full_return", **options)
        found = measure_groups(world, WHOLE.plugin, estimator(source), by, size=3, batches=batches)
        rows.append(
            [f"`{source}`", labelled(name, options), *two_figures(found, why, bent=bool(why))]
        )
    return Table(
        "Schemes of groups of three",
        "Completions of two tokens, `whole`, each scheme over `full_return`.",
        ["estimator", "advantage", *MEASURES],
        rows,
        "`informative_scaled` sees each group as a batch, whose factor is then 1; over several"
        " groups it is a statistic of the batch, as in `whitened`. Independent completions are"
        " trees of their own, which leaves `within_trees` as it finds them. `pass_at_k`"
        " follows the gradient of the best of two, with which a test compares it.",
    )


@functools.cache
def larger_groups() -> Table:
    world, whole, full = toy(2), WHOLE.plugin, scheme("full_return")
    scaled = scheme("group_scaled", inner="full_return")
    white = scheme("whitened", inner="full_return")
    rows: list[Row] = []
    for size in (2, 3, 4, 5):
        others, own, units, batch = (
            measure_groups(world, whole, estimator(source), by, size=size, batches=by is white)
            for source, by in (
                ("leave_one_out", full),
                ("group_mean", full),
                ("group_mean", scaled),
                ("zero", white),
            )
        )
        figures = [
            Figure(own.direction),
            Figure(units.direction, "s"),
            Figure(batch.direction, "s"),
        ]
        rows.append([str(size), Figure(others.error), shown(own.length), *figures])
    return Table(
        "Larger groups",
        "Completions of two tokens, `whole`; `whitened` (over `zero`) sees each group as a batch."
        " *length* is the gradient's component along the true one, which is 1 long.",
        [
            "G",
            "`leave_one_out`, error",
            "`group_mean`, length",
            *(f"`{name}`, direction" for name in ("group_mean", "group_scaled", "whitened")),
        ],
        rows,
    )


@functools.cache
def whitening() -> Table:
    cases: list[tuple[Cut, str, str, dict[str, Any]]] = [
        (WHOLE, "zero", "full_return", {}),
        (WHOLE, "monte_carlo", "full_return", {}),
        (NEWLINE, "monte_carlo", "full_return", {}),
        (NEWLINE, "monte_carlo", "full_return", {"weight": "segment"}),
        (NEWLINE, "monte_carlo", "full_return", {"center": False}),
        (PER_TOKEN, "monte_carlo", "td", {}),
        (TOP, "monte_carlo", "full_return", {}),
    ]
    rows: list[Row] = []
    for cut, source, inner, options in cases:
        white = scheme("whitened", inner=inner, **options)
        found = measure_groups(
            toy(), cut.plugin, estimator(source), white, alone=True, batches=True
        )
        label = f"{labelled('whitened', options)} of `{inner}`"
        figures = two_figures(found, cut.why + "s", bent=True)
        rows.append([str(cut), f"`{source}`", label, *figures])
    return Table(
        "Whitening a batch of two",
        "All ordered pairs, each a batch of its own. A whitened gradient is in other units:"
        " *direction* is the figure to read. The bias fades as the batch grows (see the table"
        " above).",
        ["segmenter", "estimator", "advantage", *MEASURES],
        rows,
        "Without centring, advantages that hardly differ are divided by hardly anything: pairs of"
        " equal completions outweigh all others.",
    )


@functools.cache
def token_choices() -> Table:
    everything, mask_CT = toy().everything, toy().everything.action_mask
    choices = {
        "all": (mask_CT, "", ""),
        "high_entropy, share 0.38": (high_entropy(everything.entropies, mask_CT, 0.38), "k", ""),
        "low_probability, below 0.5": (
            low_probability(everything.logprobs, mask_CT, 0.5),
            "k",
            "b",
        ),
    }
    rows: list[Row] = []
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
        error = Figure(deviation(found, toy().gradient).error, why)
        share = float(toy().shares @ chosen_CT.double().mean(1))
        rows.append(
            [label, shown(share), error, Figure(deviation(found, plain).error, baseline_why)]
        )
    return Table(
        "Tokens that the loss counts",
        "`per_token`, `monte_carlo`, `full_return`. The last column is the distance to the gradient"
        " without a baseline (`zero`): 0 where the choice of tokens leaves baselines harmless. The"
        " entropy quantile is that of all completions, a fixed threshold; that of a sampled batch"
        " moves a little with its completions.",
        ["tokens", "expected share", "error", "distance to no baseline"],
        rows,
    )


@functools.cache
def discounts() -> Table:
    rows: list[Row] = []
    for cut in (WHOLE, PER_TOKEN, NEWLINE):
        row: Row = [str(cut), cut.causal]
        for clock in ("segment", "token"):
            discounted = scheme("full_return", gamma=0.9, clock=clock)
            error = measure(toy(), cut.plugin, estimator(EXACT_VALUES), discounted).error
            row.append(Figure(error, "" if cut is WHOLE and clock == "segment" else "d"))
        rows.append(row)
    return Table(
        "Discounts",
        "`full_return` gamma=0.9, `monte_carlo`, against the gradient of the undiscounted reward.",
        ["segmenter", "causal", "clock=segment", "clock=token"],
        rows,
    )


@functools.cache
def trees() -> Table:
    world, rows = toy(3), list[Row]()
    schemes = {f"`{name}`": scheme(name) for name in ("td", "full_return")}
    schemes["`sibling_scaled` of `td`"] = scheme("sibling_scaled", inner="td")
    for label, advantage in schemes.items():
        for count, once in (("in_each_row", False), ("once", True)):
            weighed_CT = weighed_tree_credit(
                world, FIXED.plugin, estimator("tree"), advantage, stem=2, count_once=once
            )
            found = deviation(surrogate_gradient(world, weighed_CT, FIXED.plugin), world.gradient)
            why = "o" + ("s" if "sibling" in label else "") + ("u" if once else "")
            rows.append([label, count, *two_figures(found, why, bent=why != "o")])
    for count, once in (("in_each_row", False), ("once", True)):
        weighed_CT = weighed_tree_credit(
            world,
            FIXED.plugin,
            estimator("prefix_group", prefix="first"),
            scheme("within_trees", inner="full_return"),
            stem=2,
            count_once=once,
        )
        found = deviation(surrogate_gradient(world, weighed_CT, FIXED.plugin), world.gradient)
        label = "`within_trees` of `full_return`, `prefix_group` prefix=first"
        rows.append([label, count, *two_figures(found, "o" + "u" * once, bent=True)])
    return Table(
        "Trees",
        "`tree` over `fixed_length` tokens=2, all trees of completions of three tokens: two stems"
        " of two tokens, with two endings each. A shared token counts in each row that has it, or"
        " once (1/n in each of n rows): the option `loss.shared_tokens`.",
        ["advantage", "shared tokens count", *MEASURES],
        rows,
        "The mean over a state's children holds the child's own value and keeps (n − 1)/n of the"
        " gradient, equally at every fork if all forks have as many children. Counting a shared"
        " token once weighs each level of the tree by its number of nodes, which turns the"
        " gradient. Credit within a trunk's own tree has mean 0 over it, and so nothing for the"
        " trunk: Tree-GRPO adds the group's.",
    )


@functools.cache
def turns() -> Table:
    rows: list[Row] = []
    for cut in (Cut("turns"), WHOLE, PER_TOKEN, NEWLINE, FIXED, MARKER):
        row: Row = [str(cut), cut.causal]
        for source, name, lam in IN_TURNS:
            error = measure(toy_of_turns(), cut.plugin, estimator(source), scheme(name)).error
            row.append(Figure(error, reasons(cut, source, lam)))
        rows.append(row)
    return Table(
        "Turns",
        "Completions of two turns of two tokens: between them stands an observation, which follows"
        " from the first turn and is no action, and the first turn has a reward of its own."
        " Every segmenter but `whole` is cut at the turns. `measured`: the exact expected rewards"
        " still to come.",
        ["segmenter", "causal", *(f"`{source}`, `{name}`" for source, name, _ in IN_TURNS)],
        rows,
        "Turns are causal: what the environment answers is settled before the policy goes on, so"
        " that any values are a baseline, and exact ones may be bootstrapped from. A rule whose"
        " marker opens its segment biases the gradient inside a turn as it does elsewhere.",
    )


IN_TURNS = (
    ("zero", "full_return", 1.0),
    ("critic", "full_return", 1.0),
    (EXACT_IN_TURNS, "td", 0.0),
)


def tables() -> list[Table]:
    """In the page's order."""
    made = (full_return, half_lambda, one_step, anchors, partial_values, ratios)
    made += (pairs, group_schemes, larger_groups, whitening, token_choices, discounts, trees, turns)
    return [make() for make in made]


@functools.cache
def random_over_seeds(count: int = 30) -> float:
    """Error of the mean gradient over seeds of the segmenter ``random``."""
    found = 0 * toy().gradient
    for seed in range(count):
        cut = registry.segmenters.build(RANDOM.name, seed=seed)
        weighed_CT = weighed_credit(toy(), cut, estimator(EXACT_VALUES), scheme("full_return"))
        found += surrogate_gradient(toy(), weighed_CT, cut) / count
    return deviation(found, toy().gradient).error

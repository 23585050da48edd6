"""Writes axes.md: where each preset stands in the space of axes, and which places are empty.

python docs/explain/axes.py            writes the page
python docs/explain/axes.py --check    compares it with what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from segcredit import registry
from segcredit.config import NONE, RunConfig, load_config, presets
from segcredit.registry import Registry

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Methods in the space of axes

<!-- Do not edit: `python docs/explain/axes.py` writes it again. -->

Every preset is one choice on each axis. The grids below put them where they belong; a dot is a
combination that no preset names, and mostly one that a config can still ask for: a preset is
changed by a setting, as in `segcredit train vespo segmenter=newline estimator=leave_one_out`. Which
combinations leave the gradient unbiased: [exactness](exactness.md). What else each preset sets:
[methods](../reference/methods.md). Which presets are nearest to one, and by which settings they
differ: `segcredit list methods --like gigpo`."""

Place = Callable[[RunConfig], Iterable[str]]
"""The places of a preset on an axis: one, or one for each credit of a sum."""


def grid(row: str, rows: Place, columns: Place, *, every: Sequence[str] = ()) -> str:
    """Returns a table with the presets in its cells.

    Args:
        row: what the rows are.
        rows: the rows that a preset is in.
        columns: likewise.
        every: columns that are shown without a preset, too.
    """
    cells: dict[tuple[str, str], list[str]] = {}
    for name in presets():
        config = load_config(name)
        for cell in dict.fromkeys(zip(rows(config), columns(config), strict=True)):
            cells.setdefault(cell, []).append(f"`{name}`")
    down = sorted({at for at, _ in cells})
    across = sorted({at for _, at in cells} | set(every))
    lines = [f"| {row} | {' | '.join(across)} |", "|---" * (len(across) + 1) + "|"]
    for at in down:
        found = (" ".join(cells.get((at, other), ["·"])) for other in across)
        lines.append(f"| {at} | {' | '.join(found)} |")
    filled = f"{len(cells)} of {len(down) * len(across)} cells have a preset."
    return "\n".join(lines) + f"\n\n{filled}"


def credits(config: RunConfig) -> list[Any]:
    """Returns what has a segmenter, an estimator and a scheme: the config, and further credits."""
    return [config, *config.credit]


def segmenters(config: RunConfig) -> list[str]:
    """Returns the segmenter of each credit."""
    return [f"`{each.segmenter['name']}`" for each in credits(config)]


def estimators(config: RunConfig) -> list[str]:
    """Returns estimator and scheme of each credit."""
    return [f"`{each.estimator['name']}`, {chain(each.advantage)}" for each in credits(config)]


def chain(table: dict[str, Any]) -> str:
    """Returns the names of a plug-in and of those inside it."""
    inner = table.get("inner")
    return f"`{table['name']}`" + (f" of {chain(inner)}" if inner else "")


def whole_credit(config: RunConfig) -> list[str]:
    """Returns the sum of the credits."""
    return [
        " + ".join(
            f"{cut} {value}"
            for cut, value in zip(segmenters(config), estimators(config), strict=True)
        )
    ]


def ratio(config: RunConfig) -> list[str]:
    """Returns the level of the importance ratio."""
    return [f"`{config.loss.ratio['name']}`" if config.loss.ratio else NONE]


def bound(config: RunConfig) -> list[str]:
    """Returns what bounds it."""
    return [chain(config.loss.bound) if config.loss.bound else NONE]


def surrogate(config: RunConfig) -> list[str]:
    """Returns ratio and bound."""
    return [", ".join(dict.fromkeys(ratio(config) + bound(config)))]


def rarer(config: RunConfig) -> dict[str, str]:
    """Returns the choices that few presets make."""
    rollouts, loss = config.rollouts, config.loss
    found = {
        "sum of credits": " + ".join(segmenters(config)) if config.credit else "",
        "process reward": chain(config.process_reward) if config.process_reward else "",
        "correction": chain(loss.correction) if loss.correction else "",
        "tokens in the loss": "" if loss.tokens == "all" else loss.tokens,
        "layout": "" if rollouts.layout == "independent" else rollouts.layout,
        "prompts": "" if rollouts.prompt_choice == "uniform" else rollouts.prompt_choice,
        "groups": "dynamic sampling" if rollouts.dynamic_sampling else "",
    }
    return {axis: choice for axis, choice in found.items() if choice}


def choices() -> str:
    """Returns a table of rarer choices, and who makes them."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in presets():
        for choice in rarer(load_config(name)).items():
            found.setdefault(choice, []).append(f"`{name}`")
    rows = [f"| {axis} | {how} | {' '.join(who)} |" for (axis, how), who in sorted(found.items())]
    return "\n".join(["| axis | choice | presets |", "|---|---|---|", *rows])


def named(table: object) -> set[str]:
    """Returns the names of all plug-ins in a config's tables."""
    if isinstance(table, dict):
        own = {table["name"]} if isinstance(table.get("name"), str) else set()
        return own.union(*map(named, table.values()))
    return set().union(*map(named, table)) if isinstance(table, list | tuple) else set()


AXES: dict[str, tuple[Registry[Any], Callable[[RunConfig], object]]] = {
    "segmenters": (registry.segmenters, lambda one: [each.segmenter for each in credits(one)]),
    "value estimators": (registry.estimators, lambda one: [x.estimator for x in credits(one)]),
    "advantage schemes": (registry.advantages, lambda one: [x.advantage for x in credits(one)]),
    "ratios": (registry.ratios, lambda one: one.loss.ratio),
    "bounds": (registry.bounds, lambda one: one.loss.bound),
    "corrections": (registry.corrections, lambda one: one.loss.correction),
    "process rewards": (registry.process_rewards, lambda one: one.process_reward),
}
"""Axes, each with its plug-ins and where a config names them."""


def unused() -> str:
    """Returns a list of the plug-ins of each axis that no preset names."""
    configs, lines = [load_config(name) for name in presets()], list[str]()
    for axis, (plugins, where) in AXES.items():
        used = named([where(config) for config in configs])
        left = [f"`{name}`" for name in own(plugins) if name not in used]
        lines.append(f"- {axis}: {', '.join(left) or 'none is left'}")
    return "\n".join(lines)


def own(plugins: Registry[Any]) -> list[str]:
    """Returns the names of plug-ins that come with segcredit."""
    return [name for name in plugins.names() if plugins.info(name).distribution == "segcredit"]


def page() -> str:
    """Returns the whole page."""
    names = [f"`{name}`" for name in own(registry.ratios)]
    parts = [
        HEAD,
        "## Credit: where it is cut, and what values it",
        "A preset whose credits are a sum stands in several cells.",
        grid("estimator, scheme", estimators, segmenters),
        "## Surrogate: the importance ratio and its bound",
        grid("bound", bound, ratio, every=names),
        "## Credit against surrogate",
        grid("credit", whole_credit, surrogate),
        "## Rarer choices",
        choices(),
        "## Plug-ins that no preset names",
        unused(),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or compares it."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not what this script would write. Run `python docs/explain/axes.py`.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

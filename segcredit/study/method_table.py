"""The presets as one table: what each method is made of, on the four axes.

``python -m segcredit.study.method_table README.md`` writes it between the file's markers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from segcredit import registry
from segcredit.config import NO_RATIO, load_config, preset_text, presets
from segcredit.errors import StudyError
from segcredit.registry import plugin_label

BEGIN, END = (
    "<!-- methods: written by python -m segcredit.study.method_table -->",
    "<!-- /methods -->",
)
_USUAL: dict[str, dict[str, Any]] = {
    "loss": {"bound": "clip", "tokens": "all"},
    "rollouts": {"layout": "independent", "dynamic_sampling": False, "prompt_choice": "uniform"},
}


def method_table() -> str:
    """Returns a Markdown row for each preset, in the order of their names."""
    head = ["method", "segmenter", "value estimator", "advantage", "importance ratio", "options"]
    lines = [head, ["---"] * len(head), *(_row(name) for name in presets())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source(name: str) -> str:
    """Returns the first line of a preset's comment: the method's name and paper."""
    return preset_text(name).partition("\n")[0].removeprefix("# ")


def write_table(path: Path) -> None:
    """Puts the table between a file's markers.

    Raises:
        StudyError: the file has no markers.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise StudyError(
            f"{path} has no lines {BEGIN!r} and {END!r}, between which the table goes."
        )
    path.write_text(f"{before}{BEGIN}\n{method_table()}\n{END}{after}", encoding="utf-8")


def _row(name: str) -> list[str]:
    config = load_config(name)
    return [
        f"`{name}`",
        _plugin(config.segmenter),
        _plugin(config.estimator),
        _plugin(config.advantage),
        _ratio(config.loss.ratio),
        ", ".join(_options(config.model_dump())),
    ]


def _plugin(table: dict[str, Any]) -> str:
    """Writes a plug-in as its name and what it wraps."""
    inner = table.get("inner")
    return f"`{table['name']}`" + (f" of {_plugin(inner)}" if inner else "")


def _ratio(table: dict[str, Any] | None) -> str:
    """Writes the level of the importance ratio, and its gradient where it is not the usual one."""
    if table is None:
        return NO_RATIO
    return plugin_label(registry.ratios, table)


def _options(config: dict[str, Any]) -> list[str]:
    """Returns the loss's and the loop's choices that are not the usual ones."""
    found = [f"`{config['loss']['aggregate']['name']}`"]
    for section, usual in _USUAL.items():
        for key, value in usual.items():
            chosen = config[section][key]
            name = chosen["name"] if isinstance(chosen, dict) else chosen
            if chosen is not None and name != value:
                found.append(f"`{key}`" if name is True else f"{key} `{name}`")
    if config["process_reward"] is not None:
        found.append(f"process reward {_plugin(config['process_reward'])}")
    return found


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))

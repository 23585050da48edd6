"""The presets as one table: what each method is made of, on the four axes."""

from __future__ import annotations

from typing import Any

from segcredit import registry
from segcredit.config import NONE, load_config, preset_text, presets
from segcredit.registry import plugin_label

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


def _row(name: str) -> list[str]:
    config = load_config(name)
    return [
        f"`{name}`",
        *(
            " + ".join(_plugin(getattr(own, axis)) for own in (config, *config.credit))
            for axis in ("segmenter", "estimator", "advantage")
        ),
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
        return NONE
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

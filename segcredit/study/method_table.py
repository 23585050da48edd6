"""The presets as one table: what each method is made of, on the four axes."""

from __future__ import annotations

from typing import Any

from segcredit import registry
from segcredit.config import NONE, load_config, preset_text, presets
from segcredit.errors import StudyError, did_you_mean
from segcredit.records.tables.run_settings import flatten
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


def method_rows(like: str | None = None) -> list[dict[str, str | int]]:
    """Returns a row for each preset with its source, in the order of their names.

    Args:
        like: a preset; the rows are then of the others, with how many settings differ from its
            and which, the fewest first.

    Raises:
        StudyError: there is no such preset.
    """
    if like is None:
        return [{"method": name, "source": source(name)} for name in presets()]
    if like not in presets():
        raise StudyError(
            f"there is no preset {like!r}{did_you_mean(like, presets())} 'segcredit list methods'"
            " shows them all."
        )
    own = _settings(like)
    found = [(name, _differences(own, _settings(name))) for name in presets() if name != like]
    return [
        {"method": name, "differences": len(differ), "settings": "; ".join(differ)}
        for name, differ in sorted(found, key=lambda row: len(row[1]))
    ]


def _settings(name: str) -> dict[str, Any]:
    """Returns a preset's settings under dotted keys, those of a further credit under its number."""
    config = load_config(name).model_dump(exclude={"method"})
    credits = enumerate(config.pop("credit", ()), 1)
    further = {str(place): {"name": "given"} | each for place, each in credits}
    return flatten(config | {"credit": further})


def _differences(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns which settings differ; where a plug-in does, its options are none of their own."""
    keys = [key for key in own | other if own.get(key) != other.get(key)]
    plugins = tuple(f"{key}." for key in keys if isinstance(own.get(key, other.get(key)), str))
    return [
        f"{key} = {other.get(key, NONE)}, not {own.get(key, NONE)}"
        for key in keys
        if not key.startswith(plugins)
    ]


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

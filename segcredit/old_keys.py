"""Keys of earlier versions of a config, and what is written in their place today."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from segcredit.errors import ConfigError

Table = dict[str, Any]

_FLAT: Table = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "clip_bounds": "around_one",
    "dual_clip": None,
    "gate_positive": 1.0,
    "gate_negative": 1.05,
}
"""The options that all bounds once shared, with their defaults."""
_WITH_LENGTH = ("sequence_mean_token_norm", "sequence_sum_norm")
_WITH_GRADIENT = ("segment", "sequence")


def renew(values: Table, below: Mapping[str, Any]) -> list[str]:
    """Writes a config's keys in today's form, in place; returns a sentence for each change.

    Args:
        values: nested.
        below: the keys that these are laid over, in today's form.

    Raises:
        ConfigError: the old keys stand for something that cannot be written today.
    """
    found: list[str] = []
    for section, changes in _CHANGES.items():
        for change in changes:
            found += change(_table(values, section), below.get(section, {}))
    return found


def renew_stored(values: Table) -> None:
    """Writes a run's stored config in today's form, in place: the one that the run would store."""
    renew(values, {})
    loss, value = _table(values, "loss"), _table(_table(values, "train"), "value")
    for table, key in ((loss, "ratio"), (loss, "aggregate"), (value, "aggregate")):
        if isinstance(table.get(key), str) and table[key] != "none":
            table[key] = {"name": table[key]}


def _ratio(loss: Table, below: Mapping[str, Any]) -> Iterable[str]:
    if "ratio_gradient" not in loss:
        return
    gradient, name = loss.pop("ratio_gradient"), _name(loss, below, "ratio", "token")
    if name in _WITH_GRADIENT:
        loss["ratio"] = {"name": name, "gradient": gradient}
    yield _sentence("loss.ratio_gradient", "loss.ratio", loss.get("ratio", name))


def _aggregate(loss: Table, below: Mapping[str, Any]) -> Iterable[str]:
    if "norm_length" not in loss:
        return
    length, name = loss.pop("norm_length"), _name(loss, below, "aggregate", "token_mean")
    if name in _WITH_LENGTH:
        loss["aggregate"] = {"name": name, "norm_length": length}
    yield _sentence("loss.norm_length", "loss.aggregate", loss.get("aggregate", name))


def _bound(loss: Table, below: Mapping[str, Any]) -> Iterable[str]:
    old = [key for key in _FLAT if key in loss]
    name, options = _name(loss, below, "bound", "clip"), dict(_table(loss, "bound"))
    options.pop("name", None)
    if name == "capped_weight" and not old and options:
        loss["bound"] = {"name": "truncated_is", **options}
        yield _sentence('loss.bound = "capped_weight"', "loss.bound", loss["bound"])
        return
    if name not in _BOUNDS or not (old or name == "capped_weight"):
        return
    own = {key: loss.pop(key) for key in old}
    _require_fit(name, own)
    flat = _FLAT | _flat(below.get("bound") or {"name": "clip"}) | own
    keys = ", ".join(f"loss.{key}" for key in old) or 'loss.bound = "capped_weight"'
    if _name(loss, below, "ratio", "token") == "none":
        loss.pop("bound", None)
        yield f'{keys}: nothing is bounded with loss.ratio = "none". Leave it out.'
        return
    loss["bound"] = _BOUNDS[name](flat) | options
    yield _sentence(keys, "loss.bound", loss["bound"])


def _require_fit(bound: str, own: Table) -> None:
    """Raises where an old key's value is not one that it could have."""
    for key, value in own.items():
        fits = value in ("around_one", "absolute") if key == "clip_bounds" else _is_number(value)
        if not fits:
            raise ConfigError(
                f"loss.{key} is {value!r}; expected a number, or for clip_bounds 'around_one' or"
                " 'absolute'. The key is of an earlier version: give loss.bound a table instead,"
                ' such as { name = "clip", low = 0.2, high = 0.2 }.'
            )
    if own.get("dual_clip") is not None and bound != "clip":
        raise ConfigError(
            f"loss.dual_clip is {own['dual_clip']} with bound {bound!r}; expected it with bound"
            " 'clip', as its option dual."
        )


def _flat(bound: Mapping[str, Any]) -> Table:
    """Returns a bound's options as they were written before bounds had options of their own."""
    if bound["name"] == "soft_gate":
        names = {"positive": "gate_positive", "negative": "gate_negative"}
    else:
        names = {"low": "clip_low", "high": "clip_high", "dual": "dual_clip"}
    absolute = {"clip_bounds": "absolute"} if bound["name"] == "truncated_is" else {}
    return absolute | {names[key]: value for key, value in bound.items() if key in names}


def _clip(flat: Table) -> Table:
    low, high = flat["clip_low"], flat["clip_high"]
    if flat["clip_bounds"] == "absolute":
        if not low <= 1 <= high:
            raise ConfigError(
                f"loss.clip_bounds is 'absolute' with bound 'clip' and the interval [{low},"
                f" {high}]; expected one around 1, such as [0.8, 1.2]."
            )
        low, high = 1 - low, high - 1
    dual = {} if flat["dual_clip"] is None else {"dual": flat["dual_clip"]}
    return {"name": "clip", "low": low, "high": high, **dual}


def _log_clip(flat: Table) -> Table:
    if flat["clip_bounds"] == "absolute":
        raise ConfigError(
            "loss.clip_bounds is 'absolute' with bound 'log_clip', which takes distances from 0"
            " nats: leave clip_bounds out."
        )
    return {"name": "log_clip", "low": flat["clip_low"], "high": flat["clip_high"]}


def _truncated_is(flat: Table) -> Table:
    low, high = flat["clip_low"], flat["clip_high"]
    if flat["clip_bounds"] != "absolute":
        # A ratio is never negative: a distance above 1 was no lower bound at all.
        low, high = max(1 - low, 0.0), 1 + high
    return {"name": "truncated_is", "low": low, "high": high}


def _soft_gate(flat: Table) -> Table:
    positive, negative = flat["gate_positive"], flat["gate_negative"]
    return {"name": "soft_gate", "positive": positive, "negative": negative}


_BOUNDS: Mapping[str, Callable[[Table], Table]] = {
    "clip": _clip,
    "log_clip": _log_clip,
    "capped_weight": _truncated_is,
    "truncated_is": _truncated_is,
    "soft_gate": _soft_gate,
}


def _dynamic_sampling(rollouts: Table, below: Mapping[str, Any]) -> Iterable[str]:
    del below
    if "keep" in rollouts:
        keep = rollouts.pop("keep")
        if keep not in ("all", "varied_groups"):
            raise ConfigError(
                f"rollouts.keep is {keep!r}; expected 'all' or 'varied_groups', which today is"
                " rollouts.dynamic_sampling = true."
            )
        rollouts["dynamic_sampling"] = keep == "varied_groups"
        new = rollouts["dynamic_sampling"]
        yield _sentence("rollouts.keep", "rollouts.dynamic_sampling", new)
    if "keep_rounds" in rollouts:
        new = rollouts["dynamic_sampling_rounds"] = rollouts.pop("keep_rounds")
        yield _sentence("rollouts.keep_rounds", "rollouts.dynamic_sampling_rounds", new)


def _completions(record: Table, below: Mapping[str, Any]) -> Iterable[str]:
    del below
    if "responses" in record:
        record["completions"] = record.pop("responses")
        yield _sentence("record.responses", "record.completions", record["completions"])


_CHANGES: Mapping[str, tuple[Callable[[Table, Mapping[str, Any]], Iterable[str]], ...]] = {
    "loss": (_ratio, _aggregate, _bound),
    "rollouts": (_dynamic_sampling,),
    "record": (_completions,),
}


def _sentence(old: str, key: str, new: object) -> str:
    return f"{old}: is of an earlier version, and read as {key} = {_toml(new)}. Write that instead."


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in table.items()) + " }"
    return json.dumps(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _table(values: Table, key: str) -> Table:
    """Returns the table at a key; an empty one where there is none."""
    found = values.get(key)
    return cast(Table, found) if isinstance(found, dict) else {}


def _name(table: Table, below: Mapping[str, Any], key: str, default: str) -> Any:
    """Returns the name of the plug-in that is in force at a key."""
    for layer in (table, below):
        found = layer.get(key)
        name = cast("Table", found).get("name") if isinstance(found, dict) else found
        if name is not None:
            return name
    return default

"""The config that a run directory holds: written once, whole or told to be torn, and compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import rtoml
import tomli_w

from segcredit.atomic_files import require_file, unwritten, write_atomically
from segcredit.errors import RecordError
from segcredit.old_keys import renew_stored

CONFIG = "config.toml"
_MOST = 2**26
"""Bytes of the longest config."""

_FIRST = "# The resolved config of a run; where the last line is missing, so is some of the rest.\n"
_LAST = re.compile(r"# end of the config(?:, sha256 ([0-9a-f]{64}))?\n")
"""The beginning of a TOML file is often TOML as well: a file that begins with the one line must end
with the other, which holds the checksum of what stands before it; that of the version before has
none."""


def read_config(path: Path) -> dict[str, Any]:
    """Reads the config of a run directory, as nested plain values; old keys in today's form.

    Raises:
        RecordError: there is none, it is not TOML, or only its beginning is there.
    """
    file = path / CONFIG
    try:
        text = require_file(file, _MOST).read_text(encoding="utf-8")
        _require_whole(text)
        found = rtoml.loads(text)
        renew_stored(found)
        return found
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{file} cannot be read ({error}); expected the config that a run stored there."
            " Usually the directory is not a run's, or the disk failed or the file was edited: run"
            " it again (or its grid), which writes it anew, or choose another directory."
        ) from error


def store_config(
    path: Path, config: Mapping[str, Any], carriers: Mapping[str, Any] | None = None
) -> None:
    """Writes the config of the run in ``path``, or makes sure that it is what is there.

    One that cannot be read is kept beside the new one: whatever it was, it may not be ours.

    Args:
        path: the run directory.
        config: nested; None means absent.
        carriers: more values by their dotted keys, which may change: the last ones are kept.

    Raises:
        RecordError: the directory holds another config, or a value is none that TOML can hold.
        StorageError: it cannot be written.
    """
    carried = carriers or {}
    file, text = path / CONFIG, _signed(f"{_FIRST}{toml_text(_with(config, carried))}")
    found, now = _found(path), rtoml.loads(text)
    if found is not None:
        bare = [_with(one, dict.fromkeys(carried)) for one in (found, now)]
        _require_same(path, differences(*bare))
        if not differences(found, now):
            return
    elif file.exists():
        _set_aside(file)
    write_atomically(file, text.encode())


def _with(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested table with other values of some dotted keys; without those of None."""
    found = dict(config)
    for key, value in keys.items():
        first, _, rest = key.partition(".")
        found[first] = _with(found.get(first) or {}, {rest: value}) if rest else value
    return {key: value for key, value in found.items() if value is not None}


def toml_text(config: Mapping[str, Any]) -> str:
    """Writes a config as TOML, without the keys that are None.

    Raises:
        RecordError: a value is none that TOML can hold.
    """
    try:
        return tomli_w.dumps(_plain(config))
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"The config cannot be written as TOML ({error}); expected tables, lists, text,"
            " numbers, booleans and dates. Usually a default is a Python object, or a list"
            " holds None: give the option a plain value."
        ) from error


def digest(content: object) -> str:
    """Computes the SHA-256 of plain data, in whatever order its keys are."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names the keys in which two nested tables differ, as part of a sentence; '' if in none."""
    old, new = dict(_leaves(there)), dict(_leaves(now))
    # Compared as text: NaN equals itself then, and 1 is not 1.0.
    differing = [key for key in sorted(old | new) if repr(old.get(key)) != repr(new.get(key))]
    shown = [f"{key} (there {_shown(old, key)}, now {_shown(new, key)})" for key in differing[:8]]
    more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
    return ", ".join(shown) + more


def _signed(text: str) -> str:
    return f"{text}# end of the config, sha256 {hashlib.sha256(text.encode()).hexdigest()}\n"


def _require_whole(text: str) -> None:
    """Raises a ValueError for the beginning of a config, and for one that was changed."""
    begin = text.rfind("\n", 0, -1) + 1
    last = _LAST.fullmatch(text, begin)
    if _FIRST.startswith(text) or (text.startswith(_FIRST) and not last):
        raise ValueError("it ends before its last line")
    if last and last[1] and _signed(text[:begin]) != text:
        raise ValueError("its checksum is not that of its content")


def _set_aside(file: Path) -> None:
    try:
        file.rename(file.with_name(f"{file.name}.damaged"))
    except OSError as error:
        raise unwritten(file, error) from error


def _found(path: Path) -> dict[str, Any] | None:
    try:
        return read_config(path)
    except RecordError:
        return None


def _require_same(path: Path, differing: str) -> None:
    if differing:
        raise RecordError(
            f"{path} already holds a run with another config: it differs in {differing}. A run"
            " directory holds one run, since its rows could not be told apart otherwise. Choose"
            " another --output, or delete the directory."
        )


def _plain(value: Any) -> Any:
    """Converts a value for TOML, which lacks None, tuples and paths; drops keys of None."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return {key: _plain(item) for key, item in table.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and the values of a nested table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""The config of a run that a stranger may have made: no code that it names is run unasked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from segcredit.config import RunConfig, load_config
from segcredit.errors import ConfigError
from segcredit.protocols import NamesCode
from segcredit.records.stored_config import read_config


def stored_config(run: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> RunConfig:
    """Loads the config that a run directory holds, for its policy to be used.

    Args:
        run: the directory.
        overrides: ``"dotted.key=value"``; code that is named here is trusted.
        trust: whether code that the stored config names may be run.

    Raises:
        RecordError: the config cannot be read.
        ConfigError: it names code that would be run, and nothing says that it may.
    """
    config = load_config(read_config(run), overrides)
    given = [override.partition("=")[0].strip() for override in overrides]
    named = [
        f"{key} = {value!r}"
        for path, plugins, table in config.plugins()
        for key, value in _named(path, plugins.from_table(table))
        if not any(f"{key}.".startswith(f"{one}.") for one in given)
    ]
    if named and not trust:
        raise ConfigError(
            f"the config stored in {run} names code that would be run: {', '.join(named)}; expected"
            " none, since whoever made the directory chose it. Read that code first, then say"
            " --trust (in Python trust=True) to run it."
        )
    return config


def _named(path: str, plugin: object) -> Iterator[tuple[str, object]]:
    """Yields the options by which a plug-in, or one inside it, names code; by their dotted keys."""
    if isinstance(plugin, NamesCode):
        yield from ((f"{path}.{key}", value) for key, value in plugin.named_code().items())
    if dataclasses.is_dataclass(plugin):
        for field in dataclasses.fields(plugin):
            yield from _named(f"{path}.{field.name}", getattr(plugin, field.name))

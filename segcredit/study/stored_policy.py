"""The policy of a run that a stranger may have made: code that its config names waits for trust."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from segcredit.config import RunConfig, load_config, presets
from segcredit.errors import ConfigError, RecordError
from segcredit.protocols import NamesCode
from segcredit.records import checkpoint
from segcredit.records.recovery import missing_checkpoint
from segcredit.records.run_directory import RunRecords
from segcredit.records.stored_config import CONFIG, read_config
from segcredit.records.tables import named_path


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


def stored_run(source: str) -> Path | None:
    """Returns the run directory that is meant where a config could be, too; None for a config.

    Args:
        source: a run directory or the beginning of a run's name, a preset's name or a TOML file.

    Raises:
        StudyError: several runs are named so, or nothing is.
    """
    # A run without its config is told as one; a folder may bear the name of a preset.
    if (Path(source) / CONFIG).is_file() or (os.path.isdir(source) and source not in presets()):
        return Path(source)
    if os.path.exists(source) or source in presets() or source.endswith(".toml"):
        return None
    return named_path(source, other=presets())


def last_checkpoint(run: Path) -> Path:
    """Returns the file of a run's last checkpoint, in which its policy is.

    Raises:
        RecordError: there is none, or the run is finished and that of its last step is gone.
    """
    found = checkpoint.found(RunRecords(run).checkpoints)
    if not found:
        raise RecordError(
            f"the run {run} has no checkpoint; expected one, since its policy is in it. Usually it"
            " stopped before checkpoint.every steps, or the directory holds several runs: name one"
            " of them, or evaluate its config.toml for the policy before training."
        )
    if RunRecords(run).finished:
        missing = missing_checkpoint(run, load_config(read_config(run)).train.steps)
        if missing is not None:
            raise RecordError(
                f"{missing} is missing; expected the last checkpoint of a finished run, since its"
                f" policy is in it, and found none after {found[-1].name}. Usually it was deleted,"
                " or the run was copied in part: copy it again, or run it again with --resume (or"
                f" its grid), which goes on from {found[-1].name}. 'segcredit evaluate' takes an"
                " earlier policy with --checkpoint."
            )
    return found[-1]


def _named(path: str, plugin: object) -> Iterator[tuple[str, object]]:
    """Yields the options by which a plug-in, or one inside it, names code; by their dotted keys."""
    if isinstance(plugin, NamesCode):
        yield from ((f"{path}.{key}", value) for key, value in plugin.named_code().items())
    if dataclasses.is_dataclass(plugin):
        for field in dataclasses.fields(plugin):
            yield from _named(f"{path}.{field.name}", getattr(plugin, field.name))

"""From a config to an audit on disk: truth, reference gradient, credits, metrics.

    config.toml  environment.json  status.json    as of any run
    truth/                  values of the frozen policy's completions, and how far credit of each
                            token can move it, see truth.store
    credits/  audit.parquet     see store

Running an audit again does what is missing, or what changed: nothing is measured twice.
"""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segcredit import registry
from segcredit.credit_audit.credits import Credits, bases_of
from segcredit.credit_audit.frozen_policy import (
    FrozenPolicy,
    Practice,
    batches_of,
    credits_of,
    frozen_rollouts,
)
from segcredit.credit_audit.policy_gradients import reference_gradient
from segcredit.credit_audit.settings import AuditConfig, Unit, digest, load_audit_config
from segcredit.credit_audit.store import read_credits, write_credits, write_table
from segcredit.credit_audit.table import JUDGES, SEEN, SPLITS, rows
from segcredit.credit_audit.truth import StoredTruth, TruthProgress, measure_truth
from segcredit.errors import PluginError, RecordError, StorageError, StudyError
from segcredit.records.run_directory import RunRecords
from segcredit.records.run_lock import run_lock
from segcredit.training.build import build, environment, identities
from segcredit.training.distributed.processes import Processes, stoppable
from segcredit.training.out_of_memory import memory_advice

TRUTH = "truth"
_FORMAT = 1
"""Counts the changes of what credits hold or of how they come to be."""


@dataclass(frozen=True, slots=True)
class AuditProgress:
    """Progress of an audit, told before each part and each unit."""

    stage: str
    """Work in progress, such as ``truth`` or ``entropy with critic``."""
    done: int
    total: int
    """Number of the truth's parts, or of the units."""


Watch = Callable[[AuditProgress], None]


def audit(
    config: AuditConfig | str | Path | Mapping[str, Any],
    output: str | Path | None = None,
    *,
    truth: str | Path | None = None,
    watch: Watch | None = None,
) -> Path:
    """Judges every segmenter, estimator and advantage scheme of a config on a frozen policy.

    Args:
        config: as ``load_audit_config`` gives it, or what that takes.
        output: the audit's directory; None = ``runs/HASH``, named by config and plug-in code.
        truth: where the true values are, or are to be measured; None = in ``output``. One truth
            serves many audits; that of another policy or task is refused.
        watch: called whenever something is done.

    Returns:
        The directory; ``read_runs(directory).audit`` is its table.

    Raises:
        SegcreditError: whatever stops it; recorded in ``status.json`` before it is raised.
    """
    if not isinstance(config, AuditConfig):
        config = load_audit_config(config)
    directory = audit_directory(config, output)
    tell = watch or _unwatched
    with run_lock(directory), stoppable(Processes()):
        seen = environment(config.run) | {"plugins": config.plugin_identities()}
        records = RunRecords.create(directory, config.identity(), seen, config.run.carriers())
        records.begin()
        with _recorded_failure(records):
            place = directory / TRUTH if truth is None else Path(truth)
            _audit(config, directory, place, tell)
        records.finish()
    return directory


def audit_directory(config: AuditConfig, output: str | Path | None = None) -> Path:
    """Returns the directory in which an audit of this config is recorded."""
    return Path(output) if output is not None else Path("runs") / config.hash()


def _audit(config: AuditConfig, directory: Path, place: Path, tell: Watch) -> None:
    truth, frozen = _frozen_policy(config, _truth(config, place, tell))
    found, failed = dict[str, Credits](), dict[str, str]()
    units = config.units()
    for number, unit in enumerate(units):
        tell(AuditProgress(str(unit), number, len(units)))
        name = _name(config, unit, truth)
        try:
            found[name] = read_credits(directory, name) or _made(directory, name, frozen, unit)
        except PluginError as error:
            failed[str(unit)] = memory_advice(error) or str(error)
    tell(AuditProgress("metrics", len(units), len(units)))
    bases = _bases(config, directory, truth, frozen, found)
    if not found:
        raise StudyError(f"none of the {len(units)} units could be worked out: {failed}")
    label = {
        "credits": [*found],
        "bases": [*bases],
        "failed": failed,
        "truth": _relative(place, directory),
        "resampling": dataclasses.asdict(config.audit.resampling),
    }
    credits = list(found.values())
    against = bases_of([*credits, *bases.values()])
    table = rows(truth, credits, against, config.audit, frozen.reference)
    write_table(directory, table, label)


def _truth(config: AuditConfig, place: Path, tell: Watch) -> StoredTruth:
    def watch(progress: TruthProgress) -> None:
        tell(AuditProgress("truth", progress.done, progress.parts))

    asked = config.audit
    return measure_truth(
        config.run,
        place,
        prompts=asked.prompts,
        completions=asked.completions,
        continuations=asked.continuations,
        splits=SPLITS,
        watch=watch,
    )


def _bases(
    config: AuditConfig,
    directory: Path,
    truth: StoredTruth,
    frozen: FrozenPolicy,
    found: Mapping[str, Credits],
) -> dict[str, Credits]:
    """Returns credits with a segment for each token that the audit lacks, where they are cheap.

    Of estimators that neither learned nor sampled for the credits that were found; to learn or
    sample anew for every token is what users ask for with the segmenter ``per_token``.
    """
    cheap, bases = replace(frozen, reference=None), dict[str, Credits]()
    there = bases_of(found.values())
    for unit in config.token_units():
        spent = [one.tokens for one in found.values() if one.estimator == unit.estimator]
        if unit.estimator in there or not spent or any(spent):
            continue
        name = _name(config, unit, truth, base=True)
        with suppress(PluginError):  # leaves the ratio blank, and the credits as they are
            bases[name] = read_credits(directory, name) or _made(directory, name, cheap, unit)
    return bases


def _made(directory: Path, name: str, frozen: FrozenPolicy, unit: Unit) -> Credits:
    found = credits_of(frozen, unit)
    write_credits(directory, name, found)
    return found


def _frozen_policy(config: AuditConfig, truth: StoredTruth) -> tuple[StoredTruth, FrozenPolicy]:
    """Builds the policy, and all that is judged on it; the truth gets its logit gradients.

    Raises:
        StudyError: the policy is not the truth's, or there is no credit to give.
    """
    run, asked = build(config.run), config.audit
    micro_tokens = config.run.train.micro_tokens
    truth.require_policy(run.actor, micro_tokens=micro_tokens)
    _require_variance(truth)
    truth = truth.with_logit_gradients(run.actor, micro_tokens=micro_tokens)
    tables = zip(config.labels["advantages"], asked.advantages, strict=True)
    reference = None
    if asked.gradient_samples:
        file = truth.path / f"gradient_{asked.gradient_samples}.safetensors"
        of, samples = truth.hash, asked.gradient_samples
        reference = reference_gradient(run, truth.prompts, samples, file, of)
    frozen = FrozenPolicy(
        run=run,
        judged=frozen_rollouts(truth, SEEN, run.actor),
        practice=Practice(run, asked.training_steps),
        schemes={name: registry.advantages.from_table(table) for name, table in tables},
        batches=batches_of(truth, asked.gradient_batches),
        reference=reference,
    )
    return truth, frozen


def _name(config: AuditConfig, unit: Unit, truth: StoredTruth, *, base: bool = False) -> str:
    """Names a unit's file: the hash of everything that decides its credits.

    That of a base (``_bases``) has no gradients, and a segmenter that the audit may not list.
    """
    asked = config.audit
    code = config.plugin_identities()
    used = {
        path: code[path]
        for path in code
        if not path.startswith("audit.") or _is_of(path, config, unit)
    }
    if base:
        listed = [("base", registry.segmenters, unit.config.segmenter)]
        used |= identities(listed)
    samples = 0 if base else asked.gradient_samples
    content = {
        "format": _FORMAT,
        "truth": truth.hash,
        "config": unit.config.identity(),
        "advantages": asked.advantages,
        "training_steps": asked.training_steps,
        "gradients": [samples, asked.gradient_batches],
        "code": sorted(used.values()),
    }
    return digest(content)[:16]


def _is_of(path: str, config: AuditConfig, unit: Unit) -> bool:
    """Tells whether a plug-in of the lists, such as ``audit.segmenters.3``, is one of a unit's."""
    _, axis, number = path.split(".")[:3]
    own = {"segmenters": unit.segmenter, "estimators": unit.estimator}
    return axis not in own or config.labels[axis][int(number)] == own[axis]


def _require_variance(truth: StoredTruth) -> None:
    """Refuses a truth whose values are all alike, so that there is no credit to give."""
    values = truth.values[:, JUDGES][truth.values[:, JUDGES].isfinite()]
    if float(values.amax() - values.amin()) > 0:
        return
    cut = float(truth.rollouts.truncated.float().mean())
    raise StudyError(
        f"every completion and every continuation of the truth in {truth.path} earned the reward"
        f" {float(values[0]):g}, and {cut:.0%} of the completions were cut at the length limit;"
        " expected rewards that differ, since there is no credit to give otherwise. Usually the"
        " policy never ends or never solves the task: raise rollouts.max_new_tokens, or choose"
        " another policy or an easier task."
    )


def _relative(place: Path, directory: Path) -> str:
    """Returns the path from audit to truth, so that the two may be moved together."""
    return os.path.relpath(place.absolute(), directory.absolute())


def _unwatched(_: AuditProgress) -> None:
    """Ignores progress."""


@contextmanager
def _recorded_failure(records: RunRecords) -> Generator[None]:
    """Writes what stops the audit to its status, and raises it."""
    try:
        yield
    except (StorageError, KeyboardInterrupt) as error:
        with suppress(RecordError):
            records.interrupt(str(error) or "interrupted from the keyboard.")
        raise
    except Exception as error:
        advice = memory_advice(error)
        records.fail(type(error).__name__, advice or str(error), traceback.format_exc())
        if advice:
            raise StudyError(advice) from error
        raise

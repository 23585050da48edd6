"""A truth on disk: measured once, prompt by prompt, then asked many questions.

    truth.json      what it is the truth of (``identity``) and the hash of that; its prompts; the
                    environment; when it is finished, tokens and CPU-seconds spent
    parts/          part_00000.parquet, ...: the completions of a few prompts and their values
    logit_gradients.parquet     what ``with_logit_gradients`` adds; absent from older truths

A part appears whole or not at all, and draws from generators of its own: what a killed process
left is taken as it is, what is damaged is measured again, and the result is the same, bit for bit
on the same machine, as if nothing had happened.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from torch import nn

from segcredit.atomic_files import remove_temporaries
from segcredit.config import RunConfig
from segcredit.credit_audit.checksummed_parquet import read_checksummed, write_checksummed
from segcredit.credit_audit.truth.identity import Identity, hash_of, require_same, whose
from segcredit.credit_audit.truth.measure import lengths
from segcredit.credit_audit.truth.parts import (
    Part,
    by_split,
    padded,
    read_part,
    rollouts_of,
    write_part,
)
from segcredit.credit_audit.truth.plan import PROMPTS_A_PART, Plan, measure_part, plan_truth
from segcredit.credit_audit.truth.valued_completions import ValuedCompletions
from segcredit.errors import StudyError
from segcredit.protocols import Policy, Prompt, SupportsLogitGradients
from segcredit.records.manifest import read_signed, write_signed
from segcredit.records.run_lock import run_lock
from segcredit.training.build import build, environment
from segcredit.training.rollouts.completions import score, with_extras
from segcredit.types import RolloutBatch

TRUTH = "truth.json"
PARTS = "parts"
LOGIT_GRADIENTS = "logit_gradients.parquet"
_GRADIENTS_FORMAT = 1
"""Counts the changes of what that file holds."""
_NEAR = 0.01
"""Nats by which the log-probs of the same policy may differ on average, on another machine."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTruth(ValuedCompletions):
    """A truth measured by ``measure_truth``."""

    path: Path
    identity: Identity
    completion_tokens: int
    """Tokens sampled for the completions themselves."""
    cpu_seconds: float

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits that name it."""
        return hash_of(self.identity)

    def require_config(self, config: RunConfig) -> None:
        """Refuses a config with another policy or task than the truth's.

        Raises:
            StudyError: it is another one's; names what differs.
        """
        now = whose(config)
        require_same(self.path, {key: self.identity.get(key) for key in now}, now)

    def require_policy(self, policy: Policy, *, micro_tokens: int) -> None:
        """Refuses a policy that gives the completions other log-probs than they were sampled with.

        What no hash of a config sees: other weights under the same name.

        Raises:
            StudyError: it does not.
        """
        _require_policy(self.path, policy, self.rollouts, self.prompts, micro_tokens)

    def with_logit_gradients(self, policy: Policy, *, micro_tokens: int) -> StoredTruth:
        """Returns the same with the squared gradients of its tokens' log-probs by the logits.

        Taken from the truth's directory, or computed and written there, also beside a truth that
        an older version measured. A policy without the capability has none.

        Raises:
            StorageError: the disk refuses the file.
        """
        if self.logit_gradients is not None or not isinstance(policy, SupportsLogitGradients):
            return self
        device = next(cast(nn.Module, policy).parameters()).device
        whole = with_extras(self.rollouts.to(device), policy, self.prompts)
        found_BT = policy.logit_gradients(whole, micro_tokens=micro_tokens).float().cpu()
        pairs = zip(found_BT, lengths(self.rollouts.action_mask).tolist(), strict=True)
        rows = [{"logit_gradients": found_T[:length].tolist()} for found_T, length in pairs]
        label = {"truth": self.hash, "format": _GRADIENTS_FORMAT}
        schema = pa.schema({"logit_gradients": pa.list_(pa.float32())})
        write_checksummed(self.path / LOGIT_GRADIENTS, rows, schema, label)
        return replace(self, logit_gradients=found_BT)


@dataclass(frozen=True, slots=True)
class TruthProgress:
    """Progress of a measurement, told after each part."""

    done: int
    parts: int
    tokens: int
    """Tokens sampled by this process so far."""
    seconds_left: float
    """Wall time, if the rest goes on as what this process measured; NaN before its first part."""


Watch = Callable[[TruthProgress], None]


def measure_truth(
    config: RunConfig,
    path: str | Path,
    *,
    prompts: int,
    completions: int,
    continuations: float,
    splits: int = 2,
    watch: Watch | None = None,
) -> StoredTruth:
    """Measures the values of a frozen policy's completions, or goes on after an interruption.

    Args:
        config: whose policy, as it loads, answers the evaluation prompts of its task.
        path: a directory of its own. A finished truth of the same identity is only read.
        prompts: how many.
        completions: of each prompt; at least 1.
        continuations: in each split, a token; see ``measure``.
        splits: independent estimates of each value; at least 2.
        watch: called after each part.

    Raises:
        StudyError: a number is too small; the directory holds another truth, or one of another
            policy, and says what differs; a prompt's answer cannot be stored.
        BusyError: another process measures there.
        TaskError, PolicyError: they cannot be had.
    """
    path = Path(path)
    plan = plan_truth(config, prompts, completions, continuations, splits)
    with run_lock(path):
        _begin(path, plan)
        missing = [part for part in range(plan.parts) if _part(path, plan.identity, part) is None]
        if missing:
            for progress in _measure_parts(path, plan, missing):
                if watch is not None:
                    watch(progress)
        return _finish(path, plan)


def load_truth(path: str | Path) -> StoredTruth:
    """Reads a finished truth.

    Raises:
        StudyError: there is none, it is unfinished, or a part of it is missing or damaged.
    """
    path = Path(path)
    found = _read(path)
    prompts = [_prompt(**prompt) for prompt in found["prompts"]]
    count = -(-len(prompts) // PROMPTS_A_PART)
    parts = [_part(path, found["identity"], part) for part in range(count)]
    whole = [part for part in parts if part is not None]
    if len(whole) < count:
        missing = [str(number) for number, part in enumerate(parts) if part is None]
        raise StudyError(
            f"{path} holds {len(whole)} of the {count} parts of its truth; missing or damaged are"
            f" {', '.join(missing[:8])}. Usually its measurement was interrupted: measure it again"
            " with the same config and settings, which keeps the parts that are whole."
        )
    rows = list(chain.from_iterable(part.rows for part in whole))
    return StoredTruth(
        path=path,
        identity=found["identity"],
        rollouts=rollouts_of(rows, prompts),
        prompts=prompts,
        prompt_numbers=torch.tensor([row["prompt_number"] for row in rows]),
        values=by_split(rows, "values"),
        errors=by_split(rows, "errors"),
        jump_errors=by_split(rows, "jump_errors"),
        counts=by_split(rows, "counts", 0),
        tokens=sum(part.tokens for part in whole),
        completion_tokens=sum(part.completion_tokens for part in whole),
        cpu_seconds=sum(part.cpu_seconds for part in whole),
        logit_gradients=_logit_gradients(path, hash_of(found["identity"])),
    )


def _logit_gradients(path: Path, truth: str) -> torch.Tensor | None:
    """Reads (B,T) squared gradients; None where there are none, another truth's, or damaged."""
    try:
        label, rows = read_checksummed(path / LOGIT_GRADIENTS)
    except StudyError:
        return None
    if label != {"truth": truth, "format": _GRADIENTS_FORMAT}:
        return None
    return padded(rows, "logit_gradients", torch.float32)


def _begin(path: Path, plan: Plan) -> None:
    """Prepares the directory of this truth, or refuses that of another."""
    if (path / TRUTH).exists():
        require_same(path, _read(path)["identity"], plan.identity)
    else:
        _write(path, plan, {"finished": False})
    remove_temporaries(path)
    remove_temporaries(path / PARTS)


def _finish(path: Path, plan: Plan) -> StoredTruth:
    # The task's own prompts: JSON knows no tuples, which an answer may hold.
    truth = replace(load_truth(path), prompts=plan.prompts)
    if not _read(path)["finished"]:
        spent = {
            name: getattr(truth, name) for name in ("tokens", "completion_tokens", "cpu_seconds")
        }
        _write(path, plan, {"finished": True, **spent})
    return truth


def _write(path: Path, plan: Plan, more: dict[str, Any]) -> None:
    content = {
        "hash": hash_of(plan.identity),
        **more,
        "identity": plan.identity,
        "environment": environment(plan.config),
        "prompts": [
            {
                "key": prompt.key,
                "text": prompt.text,
                "answer": prompt.answer,
                "images": [base64.b64encode(content).decode() for content in prompt.images],
                "chat": prompt.chat,
            }
            for prompt in plan.prompts
        ],
    }
    write_signed(path / TRUTH, content)


def _read(path: Path) -> dict[str, Any]:
    try:
        found, _ = read_signed(path / TRUTH)
        if hash_of(found["identity"]) == found["hash"] and "prompts" in found:
            return found
        fault = "its hash is not that of its identity"
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise StudyError(
        f"{path / TRUTH} cannot be read ({fault}); expected what 'measure_truth' wrote there."
        " Usually the directory holds no truth, or the file was edited: choose another directory,"
        " or remove the file and measure again, which keeps the parts that fit."
    )


def _prompt(
    *, images: Sequence[str] = (), chat: Sequence[Sequence[str]] | None = None, **fields: Any
) -> Prompt:
    turns = None if chat is None else tuple((role, content) for role, content in chat)
    return Prompt(**fields, images=tuple(map(base64.b64decode, images)), chat=turns)


def _part(path: Path, found: Identity, number: int) -> Part | None:
    return read_part(_part_file(path, number), number, hash_of(found))


def _part_file(path: Path, number: int) -> Path:
    return path / PARTS / f"part_{number:05d}.parquet"


def _measure_parts(path: Path, plan: Plan, missing: list[int]) -> Iterator[TruthProgress]:
    """Measures what is missing, a part at a time."""
    run = build(plan.config)
    cast(nn.Module, run.actor).requires_grad_(False)
    _require_parts_policy(path, plan, missing, run.actor)
    done, tokens, started = plan.parts - len(missing), 0, time.monotonic()
    yield TruthProgress(done, plan.parts, 0, float("nan"))
    for place, number in enumerate(missing, 1):
        part = measure_part(plan, run.actor, run.task, number)
        write_part(_part_file(path, number), part)
        tokens += part.tokens + part.completion_tokens
        left = (time.monotonic() - started) / place * (len(missing) - place)
        yield TruthProgress(done + place, plan.parts, tokens, left)


def _require_parts_policy(path: Path, plan: Plan, missing: list[int], policy: Policy) -> None:
    """Refuses a policy other than that of the parts that are there already."""
    there = [number for number in range(plan.parts) if number not in missing]
    part = _part(path, plan.identity, there[0]) if there else None
    if part is not None:
        rollouts = rollouts_of(part.rows, plan.prompts)
        micro_tokens = plan.config.train.micro_tokens
        _require_policy(path, policy, rollouts, plan.prompts, micro_tokens)


def _require_policy(
    path: Path,
    policy: Policy,
    rollouts: RolloutBatch,
    prompts: Sequence[Prompt],
    micro_tokens: int,
) -> None:
    device = next(cast(nn.Module, policy).parameters()).device
    whole = with_extras(rollouts.to(device), policy, prompts)
    now_BT = score(policy, whole, micro_tokens=micro_tokens).logprobs.cpu()
    mask_BT = rollouts.action_mask
    off = float((now_BT - rollouts.logprobs)[mask_BT].abs().mean())
    if not off <= _NEAR:
        raise StudyError(
            f"the policy gives the completions in {path} log-probs that are {off:.3g} nats off on"
            f" average from those that they were sampled with; expected at most {_NEAR}: it is"
            " another policy under the same name. Usually its weights were changed since, or it"
            " was trained anew by another version of torch. Measure in another directory."
        )

"""Value pretraining: the estimator learns from many completions of the starting policy.

The policy does not change meanwhile: what the estimator reads of it is computed once, and what it
learned serves every run that would learn the same. It is therefore kept in the cache.
"""

# Transformers carries no types: what they return is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from segcredit.cache_folder import cache_folder, locked
from segcredit.config import PretrainingConfig, RunConfig
from segcredit.errors import RecordError, blame
from segcredit.protocols import AdvantageScheme, Segmenter
from segcredit.records import checkpoint
from segcredit.records.stored_config import digest
from segcredit.rng import derived_seed, stream
from segcredit.segmentation import Segmentation
from segcredit.training.build import Run, data_of, plugin_identities
from segcredit.training.credit_assignment import TrainingBatch, assign
from segcredit.training.distributed.fsdp import gathered
from segcredit.training.optimizer import Trained
from segcredit.training.rollouts.sampling import sample
from segcredit.training.update import Meter, minibatches, train_minibatch
from segcredit.types import RolloutBatch, SegmentValues

_FORMAT = 1
"""Counts the changes of what a cached state is or of how it comes to be."""
_FIRST = -(10**6)
"""Steps of the sampling; warm-up iterations, which are negative too, end long before."""


@dataclass(frozen=True, slots=True)
class PretrainingProgress:
    """Progress of value pretraining, told before each batch."""

    stage: str
    """``sampling`` or ``fitting``."""
    done: int
    total: int
    """Batches sampled, or batches learned from over all epochs."""


Watch = Callable[[PretrainingProgress], None]


@dataclass(frozen=True, slots=True)
class PretrainingCost:
    """Cost of making a pretrained state, over all processes, whichever run made it."""

    tokens: int
    """Tokens sampled."""
    cpu_seconds: float


def pretrain(
    run: Run, watch: Watch | None = None, folder: Path | None = None
) -> PretrainingCost | None:
    """Trains the value estimator as ``train.value.pretraining`` says, or takes it from the cache.

    Regression targets are the returns that came (VC-PPO's value pretraining, Yuan et al. 2025,
    arXiv 2503.01491, with lambda 1), whatever the estimator's lambda. Every epoch ends with a
    checkpoint: one that was stopped goes on from there, on the same completions, sampled anew.

    Args:
        run: whose estimator's state is trained in place; its policy and prompts stay as they are.
        watch: called before each batch.
        folder: keeps its checkpoints; None = the cache, by a name that the config decides. Policies
            and tasks that the config does not describe need one of their own.

    Returns:
        What it took; None where the config asks for none, or the estimator has no parameters.

    Raises:
        TrainingError, PluginError, TaskError: as a step of the run.
        PolicyError: the cache cannot be made.
    """
    settings, run = run.config.train.value.pretraining, replace(run, further=())
    if settings is None or run.state.optimizer is None:
        return None
    folder = folder or cache_folder() / f"value-{_key(run)}"
    with ExitStack() as held:
        # Process 0 waits until no other run is making the same, and the others for it.
        with run.processes.error_barrier():
            newest = None
            if run.processes.first:
                folder.mkdir(exist_ok=True)
                held.enter_context(locked(checkpoint.file_of(folder, settings.epochs)))
                newest = _newest(folder)
        found = run.processes.from_first(newest)
        return _Fit(run, settings, folder, watch or _unwatched).go_on(found)


def _newest(folder: Path) -> dict[str, Any] | None:
    """Loads the last epoch's checkpoint; None where there is none, or the disk has damaged it."""
    for file in reversed(checkpoint.found(folder)):
        try:
            return checkpoint.load(file)
        except RecordError as error:
            warnings.warn(f"{error} The value estimator is pretrained anew.", stacklevel=2)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The fit of one state: sampling, epochs, checkpoints."""

    run: Run
    settings: PretrainingConfig
    folder: Path
    watch: Watch

    def go_on(self, found: dict[str, Any] | None) -> PretrainingCost:
        """Goes on from an epoch's checkpoint, and leaves each further one in the cache."""
        run, epochs = self.run, self.settings.epochs
        epoch = 0 if found is None else int(found["epoch"])
        cost = PretrainingCost(0, 0.0)
        if found is not None:
            cost = PretrainingCost(found["tokens"], found["cpu_seconds"])
        if epoch == epochs and found is not None:
            run.state.load_state_dict(
                {**run.state.state_dict(), "module": found["state"]["module"]}
            )
            return cost
        started = time.process_time()
        batches, tokens = self._batches()
        rows = [sum(run.processes.gather(len(batch.rollouts))) for batch in batches]
        pieces = [math.ceil(each / self.settings.rows) for each in rows]
        own = self._optimized(sum(pieces) * epochs)
        if found is not None:
            own.load_state_dict(found["state"])
        while epoch < epochs:
            self._epoch(own, batches, pieces, epoch)
            epoch += 1
            seconds = sum(run.processes.gather(time.process_time() - started))
            cost, started = PretrainingCost(tokens, cost.cpu_seconds + seconds), time.process_time()
            state = gathered(own.state_dict())  # on every process, whole for whichever run
            with run.processes.error_barrier():
                if run.processes.first:
                    made = {"epoch": epoch, "state": state, **asdict(cost)}
                    checkpoint.save(self.folder, epoch, made, keep=1)
        return cost

    def _batches(self) -> tuple[list[TrainingBatch], int]:
        """Samples completions of the starting policy; returns them with the tokens of all."""
        run = _sampling(self.run)
        sizes = run.config.rollouts
        count = math.ceil(self.settings.completions / (sizes.prompts * sizes.completions))
        batches: list[TrainingBatch] = []
        tokens = 0
        for number in range(count):
            self.watch(PretrainingProgress("sampling", number, count))
            sampled = sample(run, _FIRST - number)
            batches.append(assign(run, sampled, _FIRST - number, in_hindsight=True))
            tokens += sampled.tokens
        return batches, sum(run.processes.gather(tokens))

    def _optimized(self, steps: int) -> Trained[nn.Module]:
        """Returns the state with an optimizer and a schedule for so many steps."""
        own, state = self.settings, self.run.state
        optimizer = torch.optim.AdamW(
            state.parameters,
            lr=own.learning_rate,
            betas=own.betas,
            weight_decay=own.weight_decay,
        )
        schedule = get_scheduler(
            "cosine_with_min_lr",
            optimizer,
            num_warmup_steps=max(1, steps // 20),
            num_training_steps=steps,
            scheduler_specific_kwargs={"min_lr_rate": own.final_rate},
        )
        clip = own.gradient_clip
        return replace(state, optimizer=optimizer, schedule=schedule, gradient_clip=clip)

    def _epoch(
        self,
        own: Trained[nn.Module],
        batches: Sequence[TrainingBatch],
        pieces: Sequence[int],
        epoch: int,
    ) -> None:
        """Passes over all batches once, in minibatches of rows of one batch."""
        run, meter = replace(self.run, state=own), Meter()
        source = stream(run.config.starting_seed, "pretraining order", epoch)
        order = map(int, torch.randperm(len(batches), generator=source))
        for done, number in enumerate(order):
            place, every = epoch * len(batches) + done, self.settings.epochs * len(batches)
            self.watch(PretrainingProgress("fitting", place, every))
            batch, step, name = batches[number], _FIRST - number, f"pretraining/{epoch}"
            for rows in minibatches(run, len(batch.rollouts), pieces[number], name, step):
                train_minibatch(run, batch, rows, meter, step, policy=False, value=True)
                own.next_rate()


class _EveryToken(Segmenter):
    """Segments of one token, for an estimator that values every token's state anyway."""

    @property
    def causal(self) -> bool:
        """True."""
        return True

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Returns a segment for each action token."""
        return Segmentation.from_starts(rollouts.action_mask, rollouts.action_mask)


class _NoCredit(AdvantageScheme):
    """Advantages of 0: the policy is not trained."""

    def __call__(self, values: SegmentValues) -> Tensor:
        """Returns (B,S) zeros."""
        return torch.zeros_like(values.values)


def _sampling(run: Run) -> Run:
    """Returns the run as it samples here: plain groups, of prompts that no step loses by it."""
    segmenter = run.method.segmenter if _needs_segments(run) else _EveryToken()
    with blame("task", run.config.task["name"], run.task):
        prompts = run.task.stream(derived_seed(run.config.starting_seed, "pretraining prompts"))
    return replace(
        run,
        config=_plain(run.config),
        further_prompts=prompts,
        method=replace(
            run.method, segmenter=segmenter, ratio_segmenter=None, advantage=_NoCredit()
        ),
    )


def _plain(config: RunConfig) -> RunConfig:
    """Returns the config of sampling here: from the starting seed, as plainly as can be.

    That is independent completions of prompts that are drawn uniformly.
    """
    plain = {"layout": "independent", "dynamic_sampling": False, "prompt_choice": "uniform"}
    rollouts = config.rollouts.model_copy(update=plain)
    return config.model_copy(
        update={"rollouts": rollouts, "seed": config.starting_seed, "start_seed": None}
    )


def _needs_segments(run: Run) -> bool:
    """Tells whether the run's segments decide what is learned: its states, or its rewards."""
    of_tokens = run.method.estimator.value_states == "tokens"
    return not of_tokens or run.method.process_reward is not None


def _key(run: Run) -> str:
    """Returns the hash of everything that decides the pretrained state.

    A penalty on the KL divergence from the starting policy does not: it is 0 under that policy.
    """
    whole, code = _plain(run.config).identity(), plugin_identities(run.config)
    used = ["task", "policy", "sampler", "estimator", "process_reward"]
    used += ["segmenter"] if _needs_segments(run) else []
    used += [name for name in ("reward_source",) if name in whole]
    value = whole["train"]["value"]
    return digest(
        {
            "format": _FORMAT,
            "torch": torch.__version__,
            "seed": whole["seed"],
            "plugins": {name: whole[name] for name in used},
            "code": {path: of for path, of in code.items() if path.split(".")[0] in used},
            "data": data_of(run.config),
            "rollouts": whole["rollouts"],
            "pretraining": value["pretraining"],
            "aggregate": value["aggregate"],
            "processes": run.processes.count,
        }
    )[:24]


def _unwatched(_: PretrainingProgress) -> None:
    """Ignores progress."""

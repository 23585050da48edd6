"""A module with what trains it: optimizer, schedule, clipping."""

# Transformers carries no types: what they return is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from segcredit.config import TrainConfig
from segcredit.records.sharded_tensors import Place
from segcredit.training.distributed.fsdp import shard_like, shard_optimizer_state
from segcredit.training.master_weights import MasterWeights

Kind = TypeVar("Kind", covariant=True)
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, eq=False)
class Trained(Generic[Kind]):
    """A module with its train state: master weights, optimizer, schedule, clipping, epochs."""

    module: Kind
    """The module, by what is asked of it: a policy, an estimator's state."""
    network: nn.Module
    """The same object as torch sees it."""
    master_weights: MasterWeights
    optimizer: torch.optim.Optimizer | None
    """None where there are no parameters to train."""
    schedule: LRScheduler | None
    gradient_clip: float
    epochs: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The float32 parameters that are clipped and stepped, with their summed gradients."""
        return self.master_weights.parameters

    def step(self) -> None:
        """Steps along the gradients, and forgets them."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.master_weights.write()

    def forget_gradients(self) -> None:
        """Drops the gradients without a step along them."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def next_rate(self) -> None:
        """Moves the learning rate on along its schedule; once a training step."""
        if self.schedule is not None:
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the trained parameters, optimizer and schedule, for a checkpoint.

        Where processes hold shards, they are in it as such.
        """
        state = {"module": self.master_weights.state_dict()}
        if self.optimizer is not None and self.schedule is not None:
            state["optimizer"] = self.optimizer.state_dict()
            state["schedule"] = self.schedule.state_dict()
        return state

    def shards_like(self, places: Iterable[Place]) -> dict[Place, DTensor | None]:
        """Returns tensors sharded as those of the state dict are to be; None for a whole one.

        Args:
            places: keys that lead to each: ``module``, name; or ``optimizer``, ``state``, number
                of the parameter, name of the moment.
        """
        own = self.network.state_dict()
        like = {
            place: own[place[1]] if place[0] == "module" else self.parameters[place[2]]
            for place in places
        }
        return {place: x if isinstance(x, DTensor) else None for place, x in like.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave, whole or in shards."""
        own = self.network.state_dict()
        found = {name: shard_like(value, own.get(name)) for name, value in state["module"].items()}
        self.master_weights.load_state_dict(found)
        if self.optimizer is not None and self.schedule is not None:
            moments = shard_optimizer_state(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(moments)
            self.schedule.load_state_dict(state["schedule"])


def trained(
    device: torch.device,
    module: Module,
    learning_rate: float,
    gradient_clip: float,
    epochs: int,
    train: TrainConfig,
) -> Trained[Module]:
    """Builds a module's optimizer and schedule, the module on a device.

    Args:
        device: where it is trained.
        module: to be trained; without parameters there is no optimizer.
        learning_rate: its own.
        gradient_clip: largest norm of its gradient.
        epochs: passes over each batch.
        train: what all trained modules share: betas, weight decay, schedule, steps.
    """
    # What warmed it up may have left gradients, which the first backward pass would add to.
    module.zero_grad(set_to_none=True)
    # Master weights are made of parameters on their device.
    masters = MasterWeights(module.to(device))
    if not masters.parameters:
        return Trained(module, module, masters, None, None, gradient_clip, 0)
    optimizer = torch.optim.AdamW(
        masters.parameters, lr=learning_rate, betas=train.betas, weight_decay=train.weight_decay
    )
    schedule = get_scheduler(
        train.schedule,
        optimizer,
        num_warmup_steps=train.warmup_steps,
        num_training_steps=train.steps,
    )
    return Trained(module, module, masters, optimizer, schedule, gradient_clip, epochs)

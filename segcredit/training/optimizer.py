"""A module with what trains it: optimizer, schedule, clipping."""

# Transformers carries no types: what they return is unknown here, and only here.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from segcredit.config import TrainConfig
from segcredit.training.distributed.fsdp import gathered, spread, spread_optimizer
from segcredit.training.master_weights import Masters


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """A module with what trains it; ``optimizer`` is None where there are no parameters."""

    module: Any
    masters: Masters
    optimizer: Any
    schedule: Any
    gradient_clip: float
    epochs: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is clipped and stepped: float32, with the gradients of all backward passes."""
        return self.masters.parameters

    def step(self) -> None:
        """Step along the gradients, and forget them."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masters.write()

    def state_dict(self) -> dict[str, Any]:
        """What is trained of the module, optimizer and schedule, for a checkpoint.

        Whole, however many processes hold parts.
        """
        state = {"module": gathered(self.masters.state_dict(self.module))}
        if self.optimizer is not None:
            state["optimizer"] = gathered(self.optimizer.state_dict())
            state["schedule"] = self.schedule.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        own = self.module.state_dict()
        found = {name: spread(value, own.get(name)) for name, value in state["module"].items()}
        self.masters.load_state_dict(self.module, found)
        if self.optimizer is not None:
            moments = spread_optimizer(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(moments)
            self.schedule.load_state_dict(state["schedule"])


def learner(
    device: torch.device,
    module: nn.Module,
    learning_rate: float,
    gradient_clip: float,
    epochs: int,
    train: TrainConfig,
) -> Learner:
    """A module on a device with its optimizer and schedule.

    Args:
        device: where it is trained.
        module: what is trained; without parameters there is no optimizer.
        learning_rate: its own.
        gradient_clip: its own.
        epochs: its own.
        train: what all learners share: betas, weight decay, schedule, steps.
    """
    # What warmed it up may have left gradients, which the first backward pass would add to.
    module.zero_grad(set_to_none=True)
    # Masters are made of weights on their device.
    masters = Masters(module.to(device))
    if not masters.parameters:
        return Learner(module, masters, None, None, gradient_clip, 0)
    optimizer = torch.optim.AdamW(
        masters.parameters, lr=learning_rate, betas=train.betas, weight_decay=train.weight_decay
    )
    schedule = get_scheduler(
        train.schedule,
        optimizer,
        num_warmup_steps=train.warmup_steps,
        num_training_steps=train.steps,
    )
    return Learner(module, masters, optimizer, schedule, gradient_clip, epochs)

"""verl's trainer with the whole batch for credit, and segment losses on its workers.

Importing it registers every preset, and the trainer under the name ``segcredit``: name it in
``VERL_USE_EXTERNAL_MODULES``, which every process of verl reads.
"""

# verl is not installed where types are checked: whatever comes from it is Any.
# pyright: reportMissingImports=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportUntypedClassDecorator=false

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.trainer.ppo.v1.trainer_base import TensorDict, tq
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.padding import response_to_nested

from segcredit.errors import ConfigError
from segcredit.integrations.verl import (
    policy_loss,
    register,
    registered,
    value_loss,
    whole_batch,
    written_fields,
)

_READ = ("prompts", "responses", "response_mask", "rm_scores", "old_log_probs", "entropy")
_READ_IF_THERE = ("ref_log_prob", "rollout_log_probs", "values")


@register_trainer("segcredit")
class SegmentTrainer(PPOTrainerSync):
    """The synchronous trainer of verl, for methods that its registries alone cannot run.

    Raises:
        ConfigError: the method cannot run in verl, or verl's config says otherwise than it needs.
    """

    def __init__(self, config: Any) -> None:
        self.method = registered(config.algorithm.adv_estimator)
        self.method.require("trainer")
        _require_fit(config, self.method.label, self.method.learns_values)
        config.trainer.v1.trainer_mode = "sync"  # the mode that it is of, under another name
        super().__init__(config)

    def _setup(self) -> None:
        """Sets up verl's workers, then their losses."""
        super()._setup()
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.actor_rollout_wg.set_loss_fn(partial(policy_loss, config=actor))
        if self.use_critic and self.method.learns_values:
            critic = omega_conf_to_dataclass(self.config.critic)
            self.critic_wg.set_loss_fn(partial(value_loss, config=critic, method=self.method))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Assigns credit from the whole batch, and writes down what the losses need of it."""
        kept = {"keys": batch.keys, "partition_id": batch.partition_id}
        found = tq.kv_batch_get(**kept, select_fields=[*_READ, *_READ_IF_THERE])
        mask = found["response_mask"]
        with whole_batch(padded(found), self._decode) as whole:
            batch = super()._compute_advantage(batch, metrics)
        (run, assigned) = whole.assigned[-1]
        sizes = self.config.actor_rollout_ref.actor, self.config.get("critic")
        groups = (self.actor_rollout_wg, "actor"), (getattr(self, "critic_wg", None), "train")
        places = [
            minibatches(len(mask), ranks(*group), size.ppo_mini_batch_size * self._completions)
            if group[0] is not None
            else torch.zeros(len(mask), dtype=torch.long)
            for size, group in zip(sizes, groups, strict=True)
        ]
        fields = written_fields(run, assigned, *places)
        nested = {
            name: value if name.endswith("_row") else response_to_nested(value, mask)
            for name, value in fields.items()
        }
        tq.kv_batch_put(**kept, fields=TensorDict(nested, batch_size=len(mask)))
        return batch

    @property
    def _completions(self) -> int:
        return self.config.actor_rollout_ref.rollout.n

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def padded(fields: Any) -> dict[str, Tensor]:
    """Returns verl's ragged fields padded on the right, with ``attention_mask`` over both parts."""
    lengths = {name: fields[name].offsets().diff() for name in ("prompts", "responses")}
    found = dict(fields.to_padded_tensor().items())
    widths = {name: torch.arange(found[name].shape[1]) for name in lengths}
    found["attention_mask"] = torch.cat(
        [widths[name] < lengths[name][:, None] for name in lengths], 1
    )
    return found


def ranks(group: Any, mesh: str) -> int:
    """Returns how many data-parallel ranks share a worker group's batch."""
    known = group._dispatch_info
    if mesh not in known:
        known[mesh] = group._query_dispatch_info(mesh)
    return max(known[mesh]) + 1


def minibatches(rows: int, ranks: int, size: int) -> Tensor:
    """Returns the number of the minibatch that each row of a batch is in, (B,) long.

    verl gives each rank consecutive rows, which the rank cuts into minibatches in their order.

    Args:
        rows: of the batch, B.
        ranks: that share it.
        size: rows of a minibatch, of all ranks together.
    """
    return torch.arange(rows) % (rows // ranks) // (size // ranks)


def _require_fit(config: Any, label: str, learns_values: bool) -> None:
    """Raises a ConfigError where verl's config does not fit what this trainer does."""
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    wrong = {
        f"actor_rollout_ref.actor.policy_loss.loss_mode={label}": (
            actor.policy_loss.loss_mode != label
        ),
        # Denominators of minibatches are counted where their rows are known, before workers cut.
        "actor_rollout_ref.actor.shuffle=false": bool(actor.get("shuffle")),
        "critic.enable=true": learns_values and not config.critic.enable,
        "critic.shuffle=false": learns_values and bool(config.critic.get("shuffle")),
        "algorithm.rollout_correction.bypass_mode=false": bool(
            (algorithm.get("rollout_correction") or {}).get("bypass_mode")
        ),
    }
    if missing := [setting for setting, is_wrong in wrong.items() if is_wrong]:
        raise ConfigError(
            f"{label}: verl's config says otherwise than the trainer 'segcredit' needs; expected"
            f" {', '.join(missing)}."
        )


register()

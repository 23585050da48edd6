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
    HostedMethod,
    policy_loss,
    register,
    registered,
    value_loss,
)
from segcredit.integrations.verl_batch import whole_batch, written_fields

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
        _require_fit(config, self.method)
        config.trainer.v1.trainer_mode = "sync"  # the mode that it is of, under another name
        super().__init__(config)

    def _setup(self) -> None:
        """Sets up verl's workers, then their losses."""
        super()._setup()
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.actor_rollout_wg.set_loss_fn(partial(policy_loss, config=actor))
        if self.use_critic and self.method.learns_values:
            self.critic_wg.set_loss_fn(partial(value_loss, method=self.method))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Assigns credit from the whole batch, and writes down what the losses need of it."""
        kept = {"keys": batch.keys, "partition_id": batch.partition_id}
        found = tq.kv_batch_get(**kept, select_fields=[*_READ, *_READ_IF_THERE])
        mask = found["response_mask"]
        with whole_batch(padded(found), self._decode) as whole:
            batch = super()._compute_advantage(batch, metrics)
        run, assigned = whole.assigned[-1]
        actor, rows = self.config.actor_rollout_ref.actor, len(mask)
        places = value_places = self._minibatches(rows, self.actor_rollout_wg, "actor", actor)
        if self.use_critic:
            value_places = self._minibatches(rows, self.critic_wg, "train", self.config.critic)
        fields = written_fields(run, assigned, places, value_places)
        nested = {
            name: value if name.endswith("_row") else response_to_nested(value, mask)
            for name, value in fields.items()
        }
        tq.kv_batch_put(**kept, fields=TensorDict(nested, batch_size=rows))
        return batch

    def _minibatches(self, rows: int, group: Any, mesh: str, sizes: Any) -> Tensor:
        completions = self.config.actor_rollout_ref.rollout.n
        return minibatches(rows, ranks(group, mesh), sizes.ppo_mini_batch_size * completions)

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


def _require_fit(config: Any, method: HostedMethod) -> None:
    """Raises a ConfigError where verl's config does not fit what this trainer does."""
    actor, loss = config.actor_rollout_ref.actor, method.config.loss
    own_term = loss.kl_loss > 0
    corrected = config.algorithm.get("rollout_correction") or {}
    wrong = {
        f"actor_rollout_ref.actor.policy_loss.loss_mode={method.label}": (
            actor.policy_loss.loss_mode != method.label
        ),
        # Denominators of minibatches are counted where their rows are known, before workers cut.
        "actor_rollout_ref.actor.shuffle=false": bool(actor.get("shuffle")),
        "critic.enable=true": method.learns_values and not config.critic.enable,
        "critic.shuffle=false": method.learns_values and bool(config.critic.get("shuffle")),
        "algorithm.rollout_correction.bypass_mode=false": bool(corrected.get("bypass_mode")),
        # Either's factors travel as ``rollout_is_weights``.
        "algorithm.rollout_correction.rollout_is=null, since the method corrects itself": (
            loss.correction is not None and bool(corrected.get("rollout_is"))
        ),
        "actor_rollout_ref.actor.use_kl_loss=true with kl_loss_coef=0.0": (
            own_term and not (actor.get("use_kl_loss") and actor.get("kl_loss_coef") == 0)
        ),
    }
    if missing := [setting for setting, is_wrong in wrong.items() if is_wrong]:
        raise ConfigError(
            f"{method.label}: verl's config says otherwise than the trainer 'segcredit' needs;"
            f" expected {'; '.join(missing)}."
        )


register()

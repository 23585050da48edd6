"""verl's trainer 'segcredit', with verl's own queue of batches between credit and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import ray
import torch
import transfer_queue as tq
import verl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from test_presets import (
    RANKS,
    Step,
    actor,
    collected,
    credited,
    micro_batches,
    nested,
    outputs,
    scores_of,
)
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import need_critic
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.utils import tensordict_utils as tu

from segcredit.errors import ConfigError
from segcredit.integrations import LossCounts
from segcredit.integrations import policy_loss as own_policy_loss
from segcredit.integrations.verl import HostedMethod, policy_loss, register
from segcredit.integrations.verl_trainer import SegmentTrainer, minibatches


@pytest.fixture(scope="module")
def queue() -> Any:
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield
    tq.close()
    ray.shutdown()


class Workers:
    """A group of workers, of which a trainer asks how many ranks it has."""

    _dispatch_info: dict[str, list[int]] = {}  # noqa: RUF012

    def _query_dispatch_info(self, mesh: str) -> list[int]:
        return list(range(RANKS))


def settings(label: str, **changes: Any) -> Any:
    config = OmegaConf.create(
        {
            "algorithm": {
                "adv_estimator": label,
                "use_kl_in_reward": False,
                "gamma": 1.0,
                "lam": 1.0,
                "rollout_correction": None,
            },
            "actor_rollout_ref": {
                "actor": {
                    "ppo_mini_batch_size": 2,
                    "shuffle": False,
                    "policy_loss": {"loss_mode": label},
                },
                "rollout": {"n": 4},
            },
            "critic": {"enable": True, "ppo_mini_batch_size": 2, "shuffle": False},
            "trainer": {"v1": {"trainer_mode": "segcredit"}},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return config


def trainer(step: Step, method: HostedMethod) -> SegmentTrainer:
    """A trainer as verl sets it up, but for models and workers."""
    made = object.__new__(SegmentTrainer)
    made.config, made.method, made.use_critic = settings(method.label), method, True
    made.actor_rollout_wg = made.critic_wg = Workers()
    made.tokenizer = step.run.actor.tokenizer
    return made


def put(step: Step) -> KVBatchMeta:
    """Puts a batch as verl's rollout and scoring workers leave it: ragged, a field a tensor."""
    batch = step.data.batch
    prompt = batch["prompts"].shape[1]
    attended = batch["attention_mask"].bool()
    ours = {"response_mask", "responses", "old_log_probs", "values"}
    fields: dict[str, Any] = {name: batch[name] for name in ours}
    fields |= {"entropy": batch["entropys"], "rm_scores": batch["token_level_scores"]}
    ragged = {
        name: nested([x[row][attended[row, prompt:]] for row in range(len(x))])
        for name, x in fields.items()
    }
    prompts = batch["prompts"]
    ragged["prompts"] = nested([x[attended[row, :prompt]] for row, x in enumerate(prompts)])
    uids = list(step.data.non_tensor_batch["uid"])
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(uids)]
    whole = tu.get_tensordict({**ragged, "uid": uids})
    tq.kv_batch_put(keys=keys, partition_id="train", fields=whole)
    return KVBatchMeta(keys=keys, tags=[{}] * len(keys), partition_id="train", extra_info={})


def padded(x: Tensor, width: int) -> Tensor:
    return torch.nested.to_padded_tensor(x, 0.0, (len(x), width))


def test_credit_goes_through_the_queue(queue: Any) -> None:
    (method,) = register("sapo", ["loss.tokens=high_entropy", "loss.imitation=0.1"], "mine")
    step = collected("sapo", *method.settings, empty=True)
    batch = step.batch
    meta = put(step)
    found = trainer(step, method)._compute_advantage(meta, {})
    data = tq.kv_batch_get(keys=found.keys, partition_id="train")
    width = batch.rollouts.action_mask.shape[1]
    advantages = padded(data["advantages"], width)
    torch.testing.assert_close(advantages, batch.advantages.per_token, atol=1e-6, rtol=0)
    mask = batch.rollouts.action_mask
    segments = padded(data["segcredit_segments"].float(), width).masked_fill(~mask, -1)
    assert torch.equal(segments.long(), batch.ratio_segmentation.segment_ids)
    weights = padded(data["segcredit_weights"], width)
    assert torch.equal(weights, batch.token_weights)
    assert 0 < weights.sum() < mask.sum()
    targets = batch.states.spread(batch.targets)
    torch.testing.assert_close(padded(data["returns"], width), targets, atol=1e-6, rtol=0)
    places = minibatches(len(mask), RANKS, 8)
    for number in range(2):
        rows = (places == number).nonzero()[:, 0]
        counts = LossCounts.of(step.run, batch, rows)
        want = torch.stack([counts.tokens, counts.imitated, counts.segments])
        row = padded(data["segcredit_row"], 4)[rows]
        torch.testing.assert_close(row[:, 1:], want.expand(len(rows), -1))
        assert torch.equal(row[:, 0], batch.rollouts.rewards[rows])
        logprobs = (batch.rollouts.logprobs - 0.1 * batch.rollouts.entropies).requires_grad_()
        own, _ = own_policy_loss(step.run, batch, rows, scores_of(logprobs[rows]), counts)
        piece = tu.index_select_tensor_dict(data, rows)
        tu.assign_non_tensor(
            piece, dp_size=1, batch_num_tokens=1, global_batch_size=1, rows=rows
        )  # verl's counts, which are not used
        given = {"log_probs": outputs(piece, logprobs)}
        theirs, _ = policy_loss(actor(step, method.label), given, piece)
        torch.testing.assert_close(theirs, own, atol=1e-6, rtol=0)
        slopes = [torch.autograd.grad(loss, logprobs)[0] for loss in (theirs, own)]
        torch.testing.assert_close(*slopes, atol=1e-6, rtol=0)
        assert slopes[0].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"critic__enable": False}, "critic.enable=true"),
        ({"actor_rollout_ref__actor__shuffle": True}, "actor.shuffle=false"),
        (
            {"actor_rollout_ref__actor__policy_loss__loss_mode": "vanilla"},
            "policy_loss.loss_mode=segcredit/sapo",
        ),
        ({"algorithm__rollout_correction": {"bypass_mode": True}}, "bypass_mode=false"),
        ({"algorithm__adv_estimator": "grpo"}, "no method of segcredit"),
        ({"algorithm__adv_estimator": "segcredit/vineppo"}, "vineppo"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, Any], sentence: str) -> None:
    assert get_trainer_cls("segcredit") is SegmentTrainer
    with pytest.raises(ConfigError, match=sentence):
        SegmentTrainer(settings("segcredit/sapo", **changes))


@pytest.mark.parametrize(
    ("setting", "changes", "sentence"),
    [
        ("loss.kl_loss=0.1", {}, "use_kl_loss=true with kl_loss_coef=0.0"),
        (
            "loss.correction=truncate",
            {"algorithm__rollout_correction": {"rollout_is": "token"}},
            "rollout_is=null",
        ),
    ],
)
def test_what_the_method_adds_is_not_added_twice(
    setting: str, changes: dict[str, Any], sentence: str
) -> None:
    (method,) = register("sapo", [setting], f"sapo {setting}")
    with pytest.raises(ConfigError, match=sentence):
        SegmentTrainer(settings(method.label, **changes))


def test_verl_cuts_minibatches_as_counted() -> None:
    """verl's own dispatch and iterator over numbered rows."""
    from verl.utils.tensordict_utils import chunk_tensordict, make_iterator

    rows = TensorDict({"row": torch.arange(24)}, batch_size=24)
    places = minibatches(24, 2, 6)
    for rank in chunk_tensordict(rows, 2):
        pieces = make_iterator(rank, 3, 1, seed=42, dataloader_kwargs={"shuffle": False})
        for number, piece in enumerate(pieces):
            assert (places[piece["row"]] == number).all()


def composed(method: HostedMethod) -> Any:
    """verl's own config under the overrides of a method; a key that verl has not is an error."""
    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", [*method.overrides(), "actor_rollout_ref.rollout.n=4"])


@pytest.mark.parametrize("name", ["dapo", "dr_grpo", "pure", "vapo"])
def test_overrides_are_keys_of_verl(name: str) -> None:
    (method,) = register(name)
    config = composed(method)
    assert config.algorithm.adv_estimator == method.label
    actor = config.actor_rollout_ref.actor
    assert actor.policy_loss.loss_mode == f"segcredit/{name}"
    if method.divides_by_length:
        assert actor.loss_scale_factor == config.data.max_response_length
    assert config.algorithm.use_kl_in_reward == (method.config.loss.kl_penalty > 0)
    assert bool(need_critic(config)) == method.learns_values


def test_workers_are_given_our_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """By verl's own config, through the pickles that Ray sends."""
    (method,) = register("sapo")
    config = composed(method)
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = 1
    made = SegmentTrainer(config)
    assert made.trainer_mode == "sync"
    assert made.use_critic
    sent: dict[str, Any] = {}

    class Group:
        def __init__(self, role: str) -> None:
            self.role = role

        def set_loss_fn(self, loss: Any) -> None:
            sent[self.role] = cloudpickle.loads(cloudpickle.dumps(loss))

    made.actor_rollout_wg, made.critic_wg = Group("actor"), Group("critic")
    monkeypatch.setattr(PPOTrainerSync, "_setup", lambda self: None)
    made._setup()
    step = collected("sapo", empty=True)
    more = credited(step, method, wholly=True)
    rows = (minibatches(len(step.data), RANKS, 8) == 0).nonzero()[:, 0]
    counts, found = LossCounts.of(step.run, step.batch, rows), torch.zeros(2)
    logprobs = step.batch.rollouts.logprobs + 0.1
    values = step.run.state.module(step.batch.rollouts, None).detach() + 0.1
    for piece in micro_batches(step, more, 0):
        found[0] += sent["actor"](model_output={"log_probs": outputs(piece, logprobs)}, data=piece)[
            0
        ]
        found[1] += sent["critic"](model_output={"values": outputs(piece, values)}, data=piece)[0]
    scores = scores_of(logprobs[rows])
    want, _ = own_policy_loss(step.run, step.batch, rows, scores, counts)
    torch.testing.assert_close(found[0] / RANKS, want, atol=1e-6, rtol=0)
    errors = (values - step.batch.states.spread(step.batch.targets)).square()
    starts = step.batch.states.starts
    means = (errors * starts).sum(1)[rows] / starts.sum(1)[rows].clamp(min=1)
    want = means.sum() / starts.any(1)[rows].sum()  # sapo: a mean over segments, then over rows
    torch.testing.assert_close(found[1] / RANKS, want, atol=1e-6, rtol=0)

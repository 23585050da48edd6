"""segcredit's methods in verl: under its registries, and in a trainer that gives them more.

verl hands a registered advantage function rewards, mask and the prompts' uids, and a registered
policy loss log-probs, advantages and mask. A method that reads more needs the trainer in the module
``verl_trainer`` beside this one: it gives the advantage function the whole batch
(``whole_batch``), and the workers losses that read what credit wrote into it (``policy_loss``,
``value_loss``). ``HostedMethod.refusal`` says which way a method can go, and why not.

Segments, values and credit come from the same functions as in our own loop. verl samples, verifies,
and prices length and KL: ``HostedMethod.overrides`` lists what its config has to say.

Shapes: ``B`` completions of a batch or a micro-batch, ``T`` completion tokens.
"""

# verl is not installed where types are checked: whatever comes from it is Any.
# pyright: reportMissingImports=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, NoReturn, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segcredit import registry
from segcredit.config import RunConfig, Source, load_config, presets
from segcredit.errors import ConfigError, PolicyError, require_package
from segcredit.integrations import (
    LossCounts,
    Run,
    Sampled,
    assign,
    build,
    require_readings,
    several_turns,
)
from segcredit.integrations import policy_loss as loss_of_policy
from segcredit.integrations import value_loss as loss_of_values
from segcredit.integrations.verl_batch import (
    CARRIED,
    WHOLE,
    Carried,
    PolicyRows,
    ValueRows,
    WholeBatch,
    per_token,
    rollouts_of,
    scored_rollouts,
    scores_of,
)
from segcredit.objective.aggregation import Aggregation, loss_count
from segcredit.objective.returns import segment_values, token_rewards
from segcredit.protocols import (
    Prompt,
    SegmenterReading,
    SupportsBackbone,
    Task,
    Verdict,
    checked_segments,
)
from segcredit.training.distributed.processes import Processes
from segcredit.types import (
    Generation,
    RolloutBatch,
    SamplingParams,
    TokenScores,
)

Way = Literal["registries", "trainer"]
"""A way into verl: its registries alone, or the trainer that gives their functions more."""

_WHERE: dict[Way, str] = {
    "registries": "verl's registry of advantage functions",
    "trainer": "verl's trainer 'segcredit'",
}
_USE_TRAINER = " Use the trainer 'segcredit' (trainer.v1.trainer_mode), which provides it."


@dataclass(frozen=True, eq=False)
class HostedMethod:
    """A method as verl runs it.

    Args:
        source: a preset's name, a TOML file, or a mapping as such a file holds it.
        settings: ``dotted.key=value`` on top, as ``segcredit.load_config`` takes them.
        name: under which verl has it; '' = ``segcredit/METHOD``.
    """

    source: Source
    settings: tuple[str, ...] = ()
    name: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles what it was made of: it goes to verl's workers, and runs are built there."""
        return type(self), (self.source, self.settings, self.name)

    @cached_property
    def config(self) -> RunConfig:
        """Config of the method; its task, policy, sampler and optimizer are not used."""
        return load_config(self.source, self.settings)

    @property
    def label(self) -> str:
        """Name under which verl has it."""
        return self.name or f"segcredit/{self.config.method}"

    @property
    def learns_values(self) -> bool:
        """True where the value estimator is trained: verl's critic then takes its place."""
        run = self._run("trainer")
        return any(parameter.requires_grad for parameter in run.state.network.parameters())

    @property
    def divides_by_length(self) -> bool:
        """True where the loss is divided by the longest completion allowed."""
        aggregation = registry.aggregations.from_table(self.config.loss.aggregate)
        return aggregation.for_length(1.0) != aggregation.for_length(2.0)

    def refusal(self, way: Way) -> str | None:
        """Returns a sentence on why the method cannot run that way; None where it can."""
        try:
            self.require(way)
        except (ConfigError, PolicyError) as error:
            return str(error)
        return None

    @cache  # noqa: B019 - as many methods as a process registers
    def require(self, way: Way) -> None:
        """Raises a ConfigError where the method needs what verl does not give it that way."""
        for fault in self._faults(way):
            raise ConfigError(f"{self.label}: {fault}")
        run = self._run(way)
        require_readings(run, _readings(way), _WHERE[way])
        _require_runs(self, run, way)

    def overrides(self) -> list[str]:
        """Returns the overrides of verl's config with which the method is itself.

        Raises:
            ConfigError: it runs in verl by neither way.
        """
        actor, algorithm = "actor_rollout_ref.actor", "algorithm"
        found = [
            f"{algorithm}.adv_estimator={self.label}",
            f"{actor}.policy_loss.loss_mode={self.label}",
        ]
        if self.refusal("registries") is not None:
            self.require("trainer")
            found.append("trainer.v1.trainer_mode=segcredit")
            if self.learns_values:
                warmup = self.config.train.value.warmup_iterations
                found += ["critic.enable=true", f"trainer.critic_warmup={warmup}"]
        loss, sizes = self.config.loss, self.config.rollouts
        if loss.kl_penalty > 0:
            found += [f"{algorithm}.use_kl_in_reward=true", f"{algorithm}.kl_penalty=kl"]
            found += [f"{algorithm}.kl_ctrl.kl_coef={loss.kl_penalty}"]
        if loss.kl_loss > 0:  # ours; verl's own term gets the weight 0
            found += [f"{actor}.use_kl_loss=true", f"{actor}.kl_loss_coef=0.0"]
        if loss.correction is not None:
            found.append("actor_rollout_ref.rollout.calculate_log_probs=true")
        if self.divides_by_length:
            found.append(f"{actor}.loss_scale_factor=${{data.max_response_length}}")
        if sizes.dynamic_sampling:
            found.append(f"{algorithm}.filter_groups.enable=true")
        if sizes.overlong_buffer:
            buffer = "+reward.reward_kwargs.overlong_buffer_cfg"
            found += [
                "reward.reward_manager.name=dapo",
                f"{buffer}.enable=true",
                f"{buffer}.len={sizes.overlong_buffer}",
                f"{buffer}.penalty_factor={sizes.overlong_penalty}",
            ]
        return found

    def advantage(
        self,
        token_level_rewards: Float[Tensor, "B T"],
        response_mask: Int[Tensor, "B T"],
        config: Any = None,
        index: Any = None,
        **_others: Any,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Assigns credit; an advantage function as verl's registry takes it.

        Args:
            token_level_rewards: (B,T) with verl's KL penalty, where it has one.
            response_mask: (B,T) non-zero on the tokens that the policy chose.
            config: verl's ``algorithm`` section.
            index: (B,) the uid of each row's prompt.
            **_others: what else verl hands over.

        Returns:
            Advantages, and what verl's critic is to learn: the value estimator's targets, the same
            in a whole segment. Where no values are learned, the advantages again, as in verl's own.

        Raises:
            ConfigError: the method needs what is not there; says what.
            PluginError: a plug-in raised, or returned what does not fit; names it.
        """
        whole = WHOLE.get()
        way: Way = "registries" if whole is None else "trainer"
        self.require(way)
        self._require_priced(config)
        if index is None:
            raise ConfigError(
                f"{self.label}: verl's batch has no 'uid', by which completions of one prompt are"
                " told; expected it in its non-tensor batch, as its own trainers have it."
            )
        rollouts = rollouts_of(token_level_rewards, response_mask.bool(), index, whole)
        run = self._run(way)
        require_readings(run, _readings(way, rollouts), _WHERE[way])
        if run.reference is not None and rollouts.reference_logprobs is None:
            raise ConfigError(
                f"{self.label}: loss.kl_loss = {run.config.loss.kl_loss} needs the reference's"
                " log-probs, and verl's batch has none. Set use_kl_loss=true and kl_loss_coef=0.0"
                " of actor_rollout_ref.actor, so that there are some and KL counts once."
            )
        if self.learns_values:
            if rollouts.token_values is None:
                raise ConfigError(
                    f"{self.label}: the value estimator {run.config.estimator['name']!r} learns,"
                    " and verl's batch has no 'values'. Set critic.enable=true in its config."
                )
            run = _with_outputs(run, rollouts.token_values)
        prompts = tuple(Prompt(key, "", None) for key in rollouts.prompt_keys)
        tokens = int(rollouts.action_mask.sum())
        batch = assign(run, Sampled(rollouts, prompts, tokens, rounds=1), step=1)
        if whole is not None:
            whole.assigned.append((run, batch))
        advantages_BT = batch.advantages.per_token
        if not self.learns_values:
            return advantages_BT, advantages_BT
        return advantages_BT, batch.states.spread(batch.targets)

    def loss(
        self,
        old_log_prob: Float[Tensor, "B T"],
        log_prob: Float[Tensor, "B T"],
        advantages: Float[Tensor, "B T"],
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Float[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Any]]:
        """Computes the method's policy loss; a policy loss as verl's registry takes it.

        Args:
            old_log_prob: (B,T) nats, before the update.
            log_prob: (B,T) nats, of the policy in training; carries the gradient.
            advantages: (B,T).
            response_mask: (B,T) non-zero on the tokens that the policy chose.
            loss_agg_mode: not read: the method says how losses are aggregated.
            config: verl's actor config, with the denominators of the minibatch.
            rollout_is_weights: (B,T) factors of tokens' losses, of verl's rollout correction or of
                the method's own.

        Raises:
            ConfigError: the method needs what is not there; says what.
            PluginError: a plug-in raised, or returned what does not fit; names it.
        """
        del loss_agg_mode
        mask_BT, carried = response_mask.bool(), CARRIED.get()
        info: Mapping[str, Any] = {} if config is None else config.global_batch_info
        run = self._run("registries" if carried is None else "trainer", self._length(info))
        rollouts = scored_rollouts(mask_BT, old_log_prob, carried)
        if carried is None:
            self.require("registries")
            rows = _whole_rows(run, rollouts, advantages, rollout_is_weights)
            count = _denominator(run.method.aggregation, rows.count_weights, info)
            one = torch.ones_like(count)
            counts = LossCounts(count, one, one)
        else:
            rows = PolicyRows(
                rollouts=rollouts,
                advantages=per_token(advantages),
                ratio_segmentation=carried.cut("segments", mask_BT),
                token_weights=carried.token("weights"),
                count_weights=carried.token("counts"),
                corrections=rollout_is_weights,
            )
            counts = carried.counts()
        every = torch.arange(len(mask_BT))
        total, metrics = loss_of_policy(run, rows, every, scores_of(log_prob), counts)
        # FSDP and Megatron average gradients over the data-parallel ranks.
        total = total * (info.get("dp_size") or 1)
        return total, {f"actor/{name}": float(value.detach()) for name, value in metrics.items()}

    def values_loss(
        self,
        outputs: Float[Tensor, "B T"],
        returns: Float[Tensor, "B T"],
        response_mask: Tensor,
        carried: Carried,
    ) -> Float[Tensor, ""]:
        """Computes the value estimator's loss at the states that it values, and nowhere else.

        Args:
            outputs: (B,T) of verl's critic in training; carries the gradient.
            returns: (B,T) targets, the same in a whole segment.
            response_mask: (B,T) non-zero on the tokens that the policy chose.
            carried: what credit wrote into the batch.
        """
        mask_BT = response_mask.bool()
        states = carried.cut("states", mask_BT)
        rollouts = scored_rollouts(mask_BT, torch.zeros_like(outputs), carried)
        firsts_BN = states.anchors("start")
        values_BN, targets_BN = (
            x_BT.gather(1, firsts_BN).masked_fill(~states.mask, 0)
            for x_BT in (carried.token("values"), returns)
        )
        rows = ValueRows(
            rollouts=rollouts,
            states=states,
            state_values=segment_values(rollouts, states, values_BN),
            targets=targets_BN,
        )
        every = torch.arange(len(mask_BT))
        run = _with_outputs(self._run("trainer"), outputs)
        return loss_of_values(run, rows, every, scores_of(outputs.detach()), carried.counts())

    def _length(self, info: Mapping[str, Any]) -> int:
        """Returns the longest completion allowed, where the loss is divided by it; else 0."""
        if not self.divides_by_length:
            return 0
        if not (length := info.get("loss_scale_factor")):
            raise ConfigError(
                f"{self.label}: its loss is divided by the longest completion allowed, which verl"
                " did not say. Set actor_rollout_ref.actor.loss_scale_factor to"
                " data.max_response_length."
            )
        return int(length)

    def _require_priced(self, config: Any) -> None:
        """Raises a ConfigError where verl does not put the method's KL penalty into the rewards."""
        wanted = self.config.loss.kl_penalty
        if not wanted:
            return
        control = None if config is None else config.get("kl_ctrl")
        found = (
            config is not None
            and config.get("use_kl_in_reward")
            and config.get("kl_penalty") in ("kl", "k1")
            and control is not None
            and control.get("type", "fixed") == "fixed"
            and control.get("kl_coef") == wanted
        )
        if not found:
            raise ConfigError(
                f"{self.label}: the method prices KL into the rewards, k1 times {wanted}, and"
                " verl's config does not. Set algorithm.use_kl_in_reward=true,"
                f" algorithm.kl_penalty=kl and algorithm.kl_ctrl.kl_coef={wanted}."
            )

    @cache  # noqa: B019 - as many methods as a process registers
    def _run(self, way: Way, length: int = 0) -> Run:
        """Builds the objects that assign credit and compute losses; there is no model in them."""
        settings = [*self.settings, "loss.kl_penalty=0.0", "train.device=cpu", "evaluate.prompts=1"]
        if length:
            settings.append(f"rollouts.max_new_tokens={length}")
        hosted = VerlPolicy() if way == "registries" else PolicyWithCritic()
        config = load_config(self.source, settings)
        return build(config, Processes(), task=VerlTask(), policy=hosted, train_policy=False)

    def _faults(self, way: Way) -> Iterable[str]:
        """Yields what of the config has no place in verl, a sentence each."""
        config = self.config
        rollouts, loss = config.rollouts, config.loss
        name = config.estimator["name"]
        estimator = registry.estimators.from_table(config.estimator)
        if turns := several_turns(config):
            yield (
                f"{turns}, and turns are decided by verl: set actor_rollout_ref.rollout.multi_turn"
                " there. Leave it out, or train by segcredit's own loop."
            )
        if config.credit:
            yield (
                "the [[credit]] tables are a sum of credits, some of turns, and verl's batch tells"
                " no turns apart. Leave them out, or train by segcredit's own loop."
            )
        if loss.bound is not None and registry.bounds.from_table(loss.bound).reads_batch:
            yield (
                f"loss.bound {loss.bound['name']!r} compares the tokens of a whole minibatch, and"
                " verl's workers make losses of a few rows at a time. Use a bound over one"
                " completion, or train by segcredit's own loop."
            )
        if rollouts.layout == "tree":
            yield (
                "rollouts.layout = 'tree' grows completions from shared prefixes, and verl samples"
                " each from its prompt. Use layout 'independent' and another value estimator."
            )
        if rollouts.prompt_choice != "uniform":
            yield (
                "rollouts.prompt_choice = 'weighted' lets the value estimator draw the prompts,"
                " and verl's data loader does. Use prompt_choice 'uniform' and an estimator that"
                " knows of the batch alone, such as 'group_mean'."
            )
        if missing := estimator.reads - {"logprobs", "token_values"}:
            yield (
                f"estimator {name!r} reads {', '.join(sorted(missing))} (hidden states, or the"
                " starting policy's entropies), which verl keeps nowhere. Use a critic that is a"
                " network of its own, such as {name='critic', network='backbone'}."
            )
        if further := [need for need in estimator.needs if need is not SupportsBackbone]:
            names = ", ".join(need.__name__ for need in further)
            yield (
                f"estimator {name!r} samples continuations or reads whole distributions ({names}),"
                " and verl has no policy to ask where credit is assigned. Use an estimator of the"
                " batch's own rewards, or a critic with the trainer 'segcredit'."
            )
        if way == "trainer":
            return
        where = _WHERE[way]
        if estimator.reads or estimator.needs:
            yield f"estimator {name!r} reads values, and {where} gives none.{_USE_TRAINER}"
        if config.process_reward is not None:
            yield (
                f"process_reward {config.process_reward['name']!r} reads completions, and {where}"
                f" gives rewards alone.{_USE_TRAINER}"
            )
        carried = {
            "loss.tokens": loss.tokens != "all",
            "loss.imitation": loss.imitation > 0,
            "loss.kl_loss": loss.kl_loss > 0,
            "loss.correction": loss.correction is not None,
        }
        for key, used in carried.items():
            if used:
                value = getattr(loss, key.removeprefix("loss."))
                yield (
                    f"{key} = {value!r} needs token weights, rewards or other log-probs in the"
                    f" loss, and verl's registry of losses gives none.{_USE_TRAINER}"
                )


def register(
    source: Source | None = None, settings: Sequence[str] = (), name: str = ""
) -> list[HostedMethod]:
    """Registers methods as advantage functions and policy losses of verl, under one name each.

    In every process of verl: call it in a module that ``VERL_USE_EXTERNAL_MODULES`` names.
    Refused methods are registered as well, and say why when they are used.

    Args:
        source: a preset's name, a TOML file, or a mapping; None = every preset.
        settings: ``dotted.key=value`` on top.
        name: under which verl has it; '' = ``segcredit/METHOD``.

    Raises:
        MissingPackageError: verl is not installed.
        ConfigError: the config is wrong, or the name is taken by another one.
    """
    require_package("verl", "verl", "segcredit.integrations.verl")
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

    sources = presets() if source is None else [source]
    methods = [HostedMethod(each, tuple(settings), name) for each in sources]
    for method in methods:
        known = _METHODS.setdefault(method.label, method)
        if known.__reduce__() != method.__reduce__():
            raise ConfigError(
                f"{method.label!r} is registered in verl already, with other settings; expected"
                " one method a name. Give this one a name of its own: register(..., name='mine')."
            )
        if known is method:
            register_adv_est(method.label)(method.advantage)
            register_policy_loss(method.label)(method.loss)
    return [_METHODS[method.label] for method in methods]


def registered(label: str) -> HostedMethod:
    """Returns the method that verl has under a name.

    Raises:
        ConfigError: there is none.
    """
    if label not in _METHODS:
        raise ConfigError(
            f"verl's config names {label!r}, which is no method of segcredit; expected one of"
            f" {', '.join(sorted(_METHODS)) or 'none, since none is registered'}. Register it:"
            " segcredit.integrations.verl.register(...)."
        )
    return _METHODS[label]


_METHODS: dict[str, HostedMethod] = {}


def _readings(way: Way, rollouts: RolloutBatch | None = None) -> frozenset[SegmenterReading]:
    """Returns what segmenters can read; of a batch, where it is there."""
    if way == "registries":
        return frozenset()
    every = frozenset[SegmenterReading](get_args(SegmenterReading))
    if rollouts is None:
        return every
    missing = {
        "logprobs": bool(rollouts.logprobs.isnan().any()),
        "entropies": bool(rollouts.entropies.isnan().any()),
        "token_values": rollouts.token_values is None,
    }
    return every - {name for name, gone in missing.items() if gone}


def policy_loss(
    config: Any, model_output: Any, data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """Computes verl's ``ppo_loss``, in which a method's loss reads what credit wrote.

    The trainer 'segcredit' sets it on the workers, by their ``set_loss_fn``.

    Args:
        config: verl's actor config, whose ``policy_loss.loss_mode`` names the method.
        model_output: with ``log_probs``.
        data: micro-batch, a ``TensorDict``.
        dp_group: data-parallel ranks.
    """
    from verl.workers.utils.losses import ppo_loss

    token = CARRIED.set(Carried.of(data))
    try:
        return ppo_loss(config, model_output, data, dp_group)
    finally:
        CARRIED.reset(token)


def value_loss(
    model_output: Any, data: Any, dp_group: Any = None, *, method: HostedMethod
) -> tuple[Tensor, dict[str, Any]]:
    """Computes a method's value loss in the place of verl's, whose ``value_loss`` reads all tokens.

    Args:
        model_output: with ``values``.
        data: micro-batch, a ``TensorDict``.
        dp_group: data-parallel ranks.
        method: whose value estimator says what the loss is.
    """
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils.padding import no_padding_2_padding

    outputs_BT = no_padding_2_padding(model_output["values"], data)
    padded = data.select("returns", "response_mask").to_padded_tensor()
    mask_BT = padded["response_mask"]
    loss = method.values_loss(outputs_BT, padded["returns"], mask_BT, Carried.of(data))
    loss = loss * (data["dp_size"] or 1)
    mean = (outputs_BT.detach() * mask_BT).sum() / mask_BT.sum().clamp(min=1)
    return loss, {
        "critic/vf_loss": Metric(value=loss, aggregation=AggregationType.SUM),
        "critic/vpred_mean": float(mean),
    }


def _whole_rows(
    run: Run, rollouts: RolloutBatch, advantages_BT: Tensor, corrections_BT: Tensor | None
) -> PolicyRows:
    """Builds the rows of a method whose segments follow from the mask alone."""
    table = run.config.loss.ratio_segmenter or run.config.segmenter
    segmenter = run.method.ratio_segmenter or run.method.segmenter
    every_BT = rollouts.action_mask.to(advantages_BT.dtype)
    return PolicyRows(
        rollouts=rollouts,
        advantages=per_token(advantages_BT),
        ratio_segmentation=checked_segments(segmenter, table["name"], rollouts),
        token_weights=every_BT,
        count_weights=every_BT,
        corrections=corrections_BT,
    )


def _denominator(
    aggregation: Aggregation, counts_BT: Tensor, info: Mapping[str, Any]
) -> Float[Tensor, ""]:
    """Computes the denominator of a minibatch of which verl tells tokens and rows alone.

    It is that of as many tokens in as many rows, which must not depend on how they are spread.

    Raises:
        ConfigError: it does.
    """

    def evenly(tokens: int, rows: int) -> Tensor:
        here_NR = torch.arange(-(-tokens // max(rows, 1)) * rows).view(-1, rows) < tokens
        return here_NR.T.to(counts_BT)

    tokens, rows = int(counts_BT.sum()), int(counts_BT.any(1).sum())
    here = loss_count(counts_BT, aggregation)
    if not torch.isclose(here, loss_count(evenly(tokens, rows), aggregation)):
        raise ConfigError(
            f"loss.aggregate: the denominator of {type(aggregation).__name__} depends on the length"
            " of each row, and verl's registry tells how many tokens and rows a minibatch has."
            + _USE_TRAINER
        )
    tokens, rows = info.get("batch_num_tokens") or tokens, info.get("global_batch_size") or rows
    count = loss_count(evenly(int(tokens), int(rows)), aggregation)
    return torch.where(count > 0, count, 1)


# Stand-ins for what verl keeps elsewhere.


class VerlPolicy(nn.Module):
    """A stand-in for the policy, which is elsewhere where credit is assigned: it refuses."""

    hidden_size = 1
    temperature = 1.0
    samples_in_process = False

    def forward(self, rollouts: RolloutBatch) -> TokenScores:
        """Refuses."""
        self._refuse("scores")

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Refuses."""
        self._refuse("token ids of texts")

    def encode_prompts(
        self, prompts: Sequence[Prompt], *, room: int = 0
    ) -> tuple[Tensor, Tensor, tuple[Mapping[str, Tensor], ...]]:
        """Refuses."""
        self._refuse("further completions")

    def decode(self, ids: Tensor, mask: Tensor) -> tuple[tuple[str, ...], Tensor]:
        """Refuses."""
        self._refuse("texts")

    def generate(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        extras: Sequence[Mapping[str, Tensor]] = (),
        *,
        params: SamplingParams,
        generator: torch.Generator,
    ) -> Generation:
        """Refuses."""
        self._refuse("further completions")

    def sync(self) -> None:
        """Does nothing: verl's own engine takes over the weights."""

    def _refuse(self, what: str) -> NoReturn:
        raise PolicyError(
            f"verl has no policy to ask for {what} where credit is assigned. Use an estimator that"
            " knows of the batch's own rewards, such as 'group_mean', or a critic with the trainer"
            " 'segcredit'."
        )


class PolicyWithCritic(VerlPolicy):
    """The same beside verl's critic, a copy of the policy's network that is trained elsewhere."""

    def backbone(self) -> nn.Module:
        """Returns a stand-in for the network under verl's critic."""
        return nn.Identity()


class CriticOutputs(nn.Module):
    """The state of a value estimator whose network is verl's critic: its outputs are known."""

    def __init__(self, outputs: Float[Tensor, "B T"]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, rollouts: RolloutBatch, scores: TokenScores | None) -> Tensor:
        """Returns (B,T) verl's critic before each token."""
        return self.outputs


def _with_outputs(run: Run, outputs_BT: Tensor) -> Run:
    """Returns a run whose value estimator reads verl's critic."""
    module = CriticOutputs(outputs_BT)
    return replace(run, state=replace(run.state, module=module, network=module))


class VerlTask(Task):
    """The task where credit is assigned in verl: its prompts and verdicts are verl's."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns none: verl draws the prompts."""
        return ()

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns none: verl evaluates."""
        return ()

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Returns a reward of 0, which nobody reads: no completion is sampled here."""
        return Verdict(0.0, False)


def _require_runs(method: HostedMethod, run: Run, way: Way) -> None:
    """Assigns credit to four short completions: an estimator may ask for more than it says.

    Raises:
        ConfigError: the estimator is trained, but not as a network of its own.
        PolicyError: it asks for what only a policy can give; names it.
    """
    estimator, name = run.method.estimator, run.config.estimator["name"]
    learns = any(parameter.requires_grad for parameter in run.state.network.parameters())
    if learns and SupportsBackbone not in estimator.needs:
        raise ConfigError(
            f"{method.label}: estimator {name!r} is trained, and verl trains the network of its"
            " own critic alone. Use {name='critic', network='backbone'}, whose network that is."
        )
    mask_BT = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]] * 2).bool()
    zeros_BT = torch.zeros(4, 4)
    tensors = {"responses": mask_BT.long(), "old_log_probs": zeros_BT - 1, "entropys": zeros_BT + 1}
    tensors |= {"values": zeros_BT, "ref_log_prob": zeros_BT - 1, "rollout_log_probs": zeros_BT - 1}
    whole = WholeBatch(tensors, lambda ids: "x" * len(ids), [])
    rewards_BT = token_rewards(torch.tensor([0.0, 1.0, 1.0, 0.0]), mask_BT)
    rollouts = rollouts_of(rewards_BT, mask_BT, "aabb", whole if way == "trainer" else None)
    prompts = tuple(Prompt(key, "", None) for key in "aabb")
    known = _with_outputs(run, zeros_BT) if learns else run
    try:
        assign(known, Sampled(rollouts, prompts, int(mask_BT.sum()), rounds=1), step=1)
    except PolicyError as error:
        raise PolicyError(f"{method.label}: estimator {name!r}: {error}") from error

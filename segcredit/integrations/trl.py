"""segcredit's methods in TRL's ``GRPOTrainer``: the same script, another trainer and its method.

TRL keeps prompts, sampling, rewards, tools, the policy's optimizer, processes and checkpoints;
segments, values, credit and loss are the method's. Needs the package trl.

    trainer = SegmentTrainer(method="sapo", model=..., reward_funcs=..., args=..., ...)

Letters as in ``segcredit.types``.
"""

# TRL and Accelerate carry few types, and TRL need not be installed where this is checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from segcredit import registry
from segcredit.config import RunConfig, Source, load_config, parse_override
from segcredit.errors import ConfigError, RecordError, TaskError, TrainingError, require_package
from segcredit.integrations import (
    Completions,
    LossCounts,
    Meter,
    Run,
    TrainingBatch,
    apply_gradients,
    assign,
    batch_metrics,
    build,
    improve,
    policy_loss,
    require_readings,
    scored,
    several_turns,
    started_processes,
    value_loss,
    warm_up,
)
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.protocols import (
    Policy,
    Prompt,
    Sampler,
    SegmenterReading,
    SupportsResume,
    Task,
    Verdict,
)
from segcredit.records import checkpoint
from segcredit.records.stored_config import differences
from segcredit.types import RolloutBatch, TokenScores

require_package("trl", "trl", "segcredit.integrations.trl")

from trl.trainer.grpo_config import GRPOConfig  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import disable_dropout_in_model, is_async_callable  # noqa: E402

Row = dict[str, Any]
"""A row of TRL's data set: ``prompt`` and the columns that reward functions read."""

READ: frozenset[SegmenterReading] = frozenset(get_args(SegmenterReading)) - {"token_values"}
"""The readings that segmenters find here: values are measured nowhere in TRL's loop."""

DECIDED_BY_TRL = {
    "seed": "seed",
    "task": "train_dataset and reward_funcs",
    "environment": "tools or environment_factory",
    "policy": "model",
    "rollouts.prompts": "generation_batch_size",
    "rollouts.completions": "num_generations",
    "rollouts.temperature": "temperature",
    "rollouts.max_new_tokens": "max_completion_length",
    "rollouts.observation_limit": "tools or environment_factory",
    "rollouts.ahead": "steps_per_generation and num_iterations",
    "train.steps": "max_steps or num_train_epochs",
    "train.epochs": "num_iterations",
    "train.minibatches": "steps_per_generation and gradient_accumulation_steps",
    "train.learning_rate": "learning_rate",
    "train.gradient_clip": "max_grad_norm",
    "train.patience": "callbacks",
    "train.device": "use_cpu",
    "train.processes": "the launcher",
    "train.parallel": "the launcher",
    "evaluate": "eval_strategy",
    "record": "log_completions",
    "checkpoint": "save_strategy",
}
"""Keys of our configs that mean nothing here, and the argument of TRL that decides instead."""

DECIDED_BY_METHOD = {
    "beta": "loss.kl_loss or loss.kl_penalty",
    "use_bias_correction_kl": "loss.kl_estimator",
    "sync_ref_model": "loss.kl_loss",
    "loss_type": "loss.ratio, loss.bound and loss.aggregate",
    "epsilon": "loss.bound",
    "epsilon_high": "loss.bound",
    "delta": "loss.bound",
    "importance_sampling_level": "loss.ratio",
    "scale_rewards": "advantage",
    "multi_objective_aggregation": "advantage",
    "top_entropy_quantile": "loss.tokens",
    "entropy_coef": "loss",
    "use_adaptive_entropy": "loss",
    "sapo_temperature_neg": "loss.bound",
    "sapo_temperature_pos": "loss.bound",
    "vespo_k_pos": "loss.bound",
    "vespo_lambda_pos": "loss.bound",
    "vespo_k_neg": "loss.bound",
    "vespo_lambda_neg": "loss.bound",
    "mask_truncated_completions": "rollouts.overlong_buffer",
    "off_policy_mask_threshold": "loss.correction",
    "vllm_importance_sampling_mode": "loss.correction",
    "vllm_importance_sampling_clip_max": "loss.correction",
    "vllm_importance_sampling_clip_min": "loss.correction",
}
"""Arguments of ``GRPOConfig`` that stay at their defaults, and the key of the method instead."""

AS_SCORED = {
    "top_p": (1.0,),
    "top_k": (0, None),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
}
"""Arguments of ``GRPOConfig`` that change the distribution sampled from, and their values that
leave it the policy's own."""

FOLDER = "segcredit"
"""The folder in TRL's checkpoints that holds the value estimator's state."""

_NO_COLUMNS = ("prompt", "completion", "completion_ids")
"""Entries of a row that TRL does not pass to reward functions as columns."""


class SegmentTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` with segments, values, credit and loss of a segcredit method.

    A critic has an optimizer and a schedule of its own (``train.value`` and ``train`` of the
    method), is trained before the first step where the method says so, and is stepped where TRL
    steps the policy. Metrics are logged under ``segcredit/``. Evaluations report TRL's rewards;
    their loss is GRPO's.

    Args:
        *args: those of ``GRPOTrainer``.
        method: a preset's name, the path of a TOML file, or a mapping as such a file holds it;
            what TRL decides (``DECIDED_BY_TRL``) is not read of it.
        settings: ``"dotted.key=value"``, laid over the method.
        **kwargs: those of ``GRPOTrainer``.

    Raises:
        ConfigError: method, settings and arguments do not fit each other, or ask for what TRL's
            loop cannot do; says what to change.
        PolicyError: the model cannot be scored here.
    """

    _tag_names = [*GRPOTrainer._tag_names, "segcredit"]  # noqa: RUF012  # as in TRL

    def __init__(
        self, *args: Any, method: Source, settings: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _require_theirs(settings)
        for sentence in _refusals(self, load_config(method, settings)):
            raise ConfigError(sentence)
        config = _config(self, method, settings)
        network = _network(self)
        disable_dropout_in_model(network)
        sampler = registry.samplers.from_table(config.sampler)
        self.credit: Run = build(
            config,
            started_processes(config),
            task=_Rewarded(self),
            policy=_Policy(self, network, sampler),
            train_policy=False,
        )
        """The method's live objects, and the value estimator's state."""
        require_readings(self.credit, READ, "TRL's trainer")
        _warn_of_stale_passes(config)
        _require_asked(self)
        _answer_rollouts(network, self.credit.actor)
        self._batch: TrainingBatch | None = None
        self._counts: LossCounts | None = None
        self._meter, self._value_loss = Meter(), torch.zeros(())
        self._rewards_BF = torch.zeros(0)
        self._warm = False
        self.add_callback(_Events(self))

    def _calculate_rewards(self, *args: Any) -> Tensor:
        # Kept as they come: what TRL makes of them are advantages.
        self._rewards_BF: Tensor = super()._calculate_rewards(*args)
        return self._rewards_BF

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        prompts = [_prompt(row) for row in inputs]  # before columns of single completions are added
        found = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return found
        run = self.credit
        begin = self.accelerator.process_index * len(inputs)
        own_BF = self._rewards_BF[begin : begin + len(inputs)]
        # As TRL has it: what no function judged teaches nothing, and is no part of its group.
        kept_N = (~own_BF.isnan().all(1)).nonzero()[:, 0]
        if run.processes.any(not len(kept_N)):
            raise TrainingError(
                f"no reward function judged any of the {len(inputs)} completions of a process: all"
                " returned None; expected a number for most. Usually a column that they look for"
                " is missing from the data set."
            )
        rewards_B = (own_BF * self.reward_weights.to(own_BF)).nansum(1)
        completions = _completions(run, found, prompts, rewards_B, self.eos_token_ids)
        with _evaluating(self.model):
            self._batch = _credited(run, completions.select(kept_N), self.state.global_step + 1)
        self._log(batch_metrics(run, self._batch))
        self._log({"tokens_simulated": sum(run.processes.gather(self._batch.simulator.tokens))})
        # A row's number in that batch, -1 where it has none: TRL shuffles and cuts what has rows.
        rows_B = torch.full((len(inputs),), -1, device=kept_N.device)
        found["rows"] = rows_B.scatter(0, kept_N, torch.arange(len(kept_N), device=kept_N.device))
        return found

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        run, batch = self.credit, cast(TrainingBatch, self._batch)
        pieces, begin = self.args.gradient_accumulation_steps, self._step
        if begin % pieces == 0:  # denominators are of the whole optimizer step
            begin %= self.args.steps_per_generation
            step = self._buffered_inputs[begin : begin + pieces]
            self._counts = LossCounts.of(run, batch, _known([piece["rows"] for piece in step]))
        counts, rows = cast(LossCounts, self._counts), _known([inputs["rows"]])
        # Processes make as many passes as one another: one with nothing to learn from counts 0.
        weight, chosen = (1, rows) if len(rows) else (0, inputs["rows"][:1] * 0)
        # Through the model as it was wrapped, so that gradients are summed over processes.
        scores: TokenScores = model(segcredit_rollouts=batch.rollouts.select(chosen))
        loss, metrics = policy_loss(run, batch, chosen, scores, counts)
        if weight:
            for name, metric in metrics.items():
                self._meter.add(name, metric, batch.token_weights[chosen].sum())
            if self._learns_values(self._step):
                found = value_loss(run, batch, chosen, scores.detached(), counts)
                found.backward()  # apart from TRL's: its parameters are none of TRL's model
                self._value_loss = self._value_loss.to(found.device) + found.detach()
        # That sum is an average over processes; ours are the parts of a loss.
        return loss * weight * run.processes.count

    def _learns_values(self, micro_step: int) -> bool:
        """Tells whether the value estimator learns in this pass over the batch too."""
        made = micro_step // self.args.steps_per_generation % self.num_iterations
        return self.credit.state.optimizer is not None and made < self.credit.state.epochs

    def _log(self, metrics: Mapping[str, Any]) -> None:
        for name, metric in metrics.items():
            self._metrics["train"][f"segcredit/{name}"].append(float(metric))

    def warm_up_values(self) -> None:
        """Trains the value estimator before the first step, where the method says so."""
        if self._warm or self.credit.state.optimizer is None:
            return
        # A folder of its own: the cache is named by configs, which do not describe TRL's data.
        with _evaluating(self.model), tempfile.TemporaryDirectory() as folder:
            warm_up(self.credit, folder=Path(folder) / "values")
        self._warm = True

    def step_values(self) -> None:
        """Steps the value estimator after TRL stepped the policy, and ends a batch's last pass."""
        run, batch, step = self.credit, cast(TrainingBatch, self._batch), self.state.global_step + 1
        if self._learns_values(self._step - 1):
            self._meter.add("value_loss", run.processes.sum(self._value_loss))
            norm = apply_gradients(run, run.state, "value loss", step)
            self._meter.add("value_gradient_norm", norm)
        self._log(self._meter.read(run.processes))
        self._meter, self._value_loss = Meter(), torch.zeros(())
        batch.simulator.known = None  # the scores of the policy that sampled
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            return
        with _evaluating(self.model):
            run.actor.sync()
            # Passes that the value estimator makes beyond the policy's.
            self._log(improve(run, batch, step, policy=False, passes_made=self.num_iterations))
        run.state.next_rate()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        run = self.credit
        with run.processes.error_barrier():
            if run.processes.first:
                state = {"estimator": run.state.state_dict(), "method": _identity(run.config)}
                checkpoint.save(Path(output_dir) / FOLDER, self.state.global_step, state, keep=1)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            _restore(self.credit, Path(checkpoint) / FOLDER)
            self._warm = True


class _Events(TrainerCallback):
    """Tells a trainer of the places in transformers' loop that have no method of their own."""

    def __init__(self, trainer: SegmentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.warm_up_values()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.step_values()


class _Policy(CausalPolicy):
    """TRL's model as a policy: with TRL's prompts, suppressed tokens and precision."""

    def __init__(self, trainer: Any, model: PreTrainedModel, sampler: Sampler) -> None:
        super().__init__(model, trainer._tokenizer, sampler, temperature=trainer.temperature)
        # As TRL draws: ids without a token of their own as well.
        asked = (trainer.args.generation_kwargs or {}).get("suppress_tokens") or ()
        self.suppressed_ids = tuple(sorted({*asked} - {*self.end_ids}))

        # Functions, since a reference is a deep copy of its policy, and no second trainer.
        def tokenized(prompts: list[Any]) -> list[list[int]]:
            return trainer._tokenize_prompts(prompts)[0]

        def autocast() -> AbstractContextManager[Any]:
            return trainer.accelerator.autocast()

        self._tokenized, self._autocast = tokenized, autocast

    def forward(self, rollouts: RolloutBatch) -> TokenScores:
        """Scores completions, in the precision that TRL trains in."""
        with self._autocast():
            return super().forward(rollouts)

    def _ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return self._tokenized([prompt.answer["prompt"] for prompt in prompts])


class _Rewarded(Task):
    """TRL's training set and reward functions, for what samples besides TRL."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws rows of the training set.

        Raises:
            TaskError: it is a stream.
        """
        rows = self.trainer.train_dataset
        if not isinstance(rows, Dataset):
            raise TaskError(
                f"the method trains its values on prompts of the training set before the first"
                f" step, and train_dataset is a {type(rows).__name__}; expected a Dataset, whose"
                " rows can be drawn. Load it without streaming, or set"
                " settings=['train.value.warmup_iterations=0']."
            )
        return [
            _prompt(rows[int(row)])
            for row in torch.randint(len(rows), (count,), generator=generator)
        ]

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns none: TRL evaluates."""
        return []

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Asks the reward functions as TRL does, one completion at a time."""
        trainer, row = self.trainer, prompt.answer
        reply = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        asked = {name: [value] for name, value in row.items() if name not in _NO_COLUMNS}
        asked |= {"prompts": [row["prompt"]], "completions": [reply]}
        asked |= {"trainer_state": trainer.state, "log_extra": _unlogged, "log_metric": _unlogged}
        rewards = [function(**asked)[0] for function in _functions(trainer)]
        pairs = zip(trainer.reward_weights.tolist(), rewards, strict=True)
        known = [weight * reward for weight, reward in pairs if reward is not None]
        if not known:
            raise ValueError(
                "every reward function returned None; expected a number of one of them"
            )
        return Verdict(sum(known), correct=False)


def _unlogged(*_: Any) -> None:
    """Leaves out of TRL's tables what a reward function says of completions that are not there."""


def _functions(trainer: Any) -> list[Callable[..., Any]]:
    """Returns the reward functions that judge a completion by its text alone.

    Raises:
        ValueError: there are others.
    """
    odd = [f for f in trainer.reward_funcs if isinstance(f, nn.Module) or is_async_callable(f)]
    environments = trainer.environment_factories is not None
    if odd or trainer.tools or environments or trainer.rollout_func is not None:
        what = "reward_funcs that are models or coroutines" if odd else "tools or rollout_func"
        raise ValueError(
            f"the method samples completions of its own, and with {what} these cannot be judged as"
            " TRL's are; expected plain functions of texts alone. A method with a critic, or with"
            " group baselines, samples nothing of its own"
        )
    return trainer.reward_funcs


def _prompt(row: Row) -> Prompt:
    """Builds a prompt of a row of TRL's data set, which the verifier needs whole."""
    words = repr(sorted(row.items(), key=lambda pair: pair[0]))
    key = hashlib.sha256(words.encode()).hexdigest()[:16]
    return Prompt(key=key, text=str(row.get("prompt", "")), answer=row)


def _completions(
    run: Run,
    found: Mapping[str, Any],
    prompts: Sequence[Prompt],
    rewards_B: Tensor,
    end_ids: Sequence[int],
) -> Completions:
    """Builds completions of what TRL sampled: tokens of tools are holes in the action mask."""
    ids_BT, written_BT = found["completion_ids"], found["completion_mask"].bool()
    mask_BT = written_BT & found["tool_mask"].bool() if "tool_mask" in found else written_BT
    texts, spans = run.actor.decode(ids_BT, written_BT)
    lasts_B1 = (written_BT.sum(1, keepdim=True) - 1).clamp(min=0)
    ended_B = torch.isin(ids_BT.gather(1, lasts_B1)[:, 0], torch.tensor(end_ids).to(ids_BT))
    return Completions(
        prompts=tuple(prompts),
        prompt_ids=found["prompt_ids"],
        prompt_mask=found["prompt_mask"].bool(),
        ids=ids_BT,
        mask=mask_BT,
        truncated=~ended_B,
        texts=texts,
        token_spans=spans,
        verdicts=tuple(Verdict(reward, correct=False) for reward in rewards_B.tolist()),
        node_ids=torch.arange(ids_BT.numel(), device=ids_BT.device).view(ids_BT.shape),
        sampler_logprobs=found.get("sampling_per_token_logps"),
    )


def _credited(run: Run, completions: Completions, step: int) -> TrainingBatch:
    """Scores, prices and credits completions."""
    sampled = scored(run, completions, step, tokens=int(completions.mask.sum()))
    rollouts = sampled.rollouts
    if (told_BT := rollouts.sampler_logprobs) is not None:
        # NaN where vLLM could not tell; such a token then counts as drawn from the policy itself.
        told_BT = told_BT.where(~told_BT.isnan(), rollouts.logprobs)
        sampled = dataclasses.replace(sampled, rollouts=rollouts.replace(sampler_logprobs=told_BT))
    return assign(run, sampled, step)


def _known(pieces: Sequence[Tensor]) -> Tensor:
    """Joins rows, without those that are in no batch."""
    rows = torch.cat(list(pieces))
    return rows[rows >= 0]


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Leaves out dropout and gradient checkpointing, with which there is no cache of keys."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def _network(trainer: Any) -> PreTrainedModel:
    """Returns the model without wrappers, with the adapters in its layers."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if is_peft_model(model) else model


def _answer_rollouts(network: nn.Module, policy: Policy) -> None:
    """Lets a model's call score rollouts, so that wrappers of the model hear of these passes."""
    forward = network.forward

    @functools.wraps(forward)  # of whose signature transformers reads what may be passed
    def answer(*args: Any, segcredit_rollouts: RolloutBatch | None = None, **kwargs: Any) -> Any:
        if segcredit_rollouts is None:
            return forward(*args, **kwargs)
        return policy(segcredit_rollouts)

    network.forward = answer


def _require_theirs(settings: Sequence[str]) -> None:
    """Refuses settings that TRL decides.

    Raises:
        ConfigError: names the argument of TRL instead.
    """
    for path, _ in map(parse_override, settings):
        for key, theirs in DECIDED_BY_TRL.items():
            if path == key or path.startswith(f"{key}."):
                raise ConfigError(
                    f"settings name {path}, which TRL decides; expected it left out. Set {theirs}"
                    " of GRPOConfig or GRPOTrainer instead."
                )


def _config(trainer: Any, method: Source, settings: Sequence[str]) -> RunConfig:
    """Returns the method's config, with what TRL decides as TRL decides it."""
    args = trainer.args
    fixed = {
        "seed": args.seed,
        "rollouts.prompts": args.generation_batch_size // args.num_generations,
        "rollouts.completions": args.num_generations,
        "rollouts.max_new_tokens": args.max_completion_length,
        "rollouts.temperature": args.temperature,
        "train.steps": _generations(trainer),
        "train.epochs": args.num_iterations,
        "train.minibatches": max(args.steps_per_generation // args.gradient_accumulation_steps, 1),
        "train.device": "cpu" if trainer.accelerator.device.type == "cpu" else "auto",
        "train.parallel": "replicated",
    }
    overrides = [f"{key}={value}" for key, value in fixed.items()]
    return load_config(method, [*settings, *overrides], train__processes=None)


def _generations(trainer: Any) -> int:
    """Counts the times that TRL samples: the steps of the value estimator's schedule."""
    args, own = trainer.args, trainer.args.generation_batch_size // trainer.args.num_generations
    if args.max_steps > 0:
        each = args.steps_per_generation * args.num_iterations
        return math.ceil(args.max_steps * args.gradient_accumulation_steps / each)
    return math.ceil(args.num_train_epochs * (len(trainer.train_dataset) // own))


def _refusals(trainer: Any, config: RunConfig) -> Generator[str]:
    """Yields a sentence for whatever TRL's loop cannot do, or would do as well as the method."""
    yield from _refused_settings(trainer, config)
    yield from _refused_arguments(trainer)
    yield from _refused_models(trainer)


def _refused_settings(trainer: Any, config: RunConfig) -> Generator[str]:
    """Yields a sentence for each setting of the method that has no place in TRL's loop."""
    sizes = config.rollouts
    if turns := several_turns(config):
        yield (
            f"{turns}, and turns are decided by TRL; expected none, and the tools in tools or"
            " environment_factory of GRPOTrainer. Leave it out, or train by segcredit's own loop,"
            " in which classes of environment_factory are the environment 'trl'."
        )
    if config.credit:
        yield (
            "the [[credit]] tables are a sum of credits, whose estimators TRL's loop does not"
            " train; expected none. Run such methods by segcredit's own loop."
        )
    if sizes.layout == "tree":
        yield (
            "rollouts.layout is 'tree', and TRL samples completions one by one; expected"
            " 'independent'. Run methods with trees by segcredit's own loop, or choose spo_chain."
        )
    if sizes.prompt_choice != "uniform":
        yield (
            "rollouts.prompt_choice is 'weighted', and TRL takes prompts in the order of its data"
            " set; expected 'uniform', as in settings=['rollouts.prompt_choice=uniform'], which"
            " is another method: its values no longer choose prompts."
        )
    if sizes.dynamic_sampling:
        yield (
            "rollouts.dynamic_sampling is true, and TRL samples each prompt once; expected"
            " settings=['rollouts.dynamic_sampling=false']. Groups of equal rewards then stay in"
            " the batch, and count in its denominators."
        )
    if sizes.stop:
        yield (
            f"rollouts.stop is {list(sizes.stop)}, and TRL's completions end with an end token"
            " alone; expected no stop strings, as in settings=['rollouts.stop=[]']."
        )
    bound = config.loss.bound
    if bound is not None and registry.bounds.from_table(bound).reads_batch:
        yield (
            f"loss.bound is {bound['name']!r}, which compares the tokens of a whole minibatch, and"
            " TRL makes losses of a few completions at a time; expected a bound over one. Run it"
            " by segcredit's own loop."
        )
    if config.loss.correction is not None and not trainer.use_vllm and trainer.rollout_func is None:
        yield (
            f"loss.correction is {config.loss.correction['name']!r}, and TRL samples with the"
            " model itself, of which there is nothing to correct; expected 'none'. It is for"
            " use_vllm=True, or a rollout_func that returns log-probs."
        )


def _refused_arguments(trainer: Any) -> Generator[str]:
    """Yields a sentence for each argument of ``GRPOConfig`` that contradicts the method."""
    args = trainer.args
    if trainer.use_vllm and args.vllm_importance_sampling_correction:
        yield (
            "vllm_importance_sampling_correction is true, which is a factor of GRPO's own loss;"
            " expected false. The method corrects where settings say so, such as"
            " settings=['loss.correction=truncate']; segcredit/sampler_kl says whether it needs to."
        )
    defaults = {each.name: each.default for each in dataclasses.fields(GRPOConfig)}
    for name, key in DECIDED_BY_METHOD.items():
        if (given := getattr(args, name)) != defaults[name]:
            yield (
                f"{name} of GRPOConfig is {given!r}, which the method decides; expected its"
                f" default, {defaults[name]!r}. In settings={key.split(' ')[0]}... it is {key}."
            )
    for name, plain in AS_SCORED.items():
        if (given := getattr(args, name)) not in plain:
            yield (
                f"{name} of GRPOConfig is {given!r}: tokens would be drawn from another"
                f" distribution than the one that is scored, and ratios be wrong; expected"
                f" {plain[0]!r}. A temperature is taken into account."
            )
    understood = set[str]() if trainer.use_vllm else {"suppress_tokens"}
    if odd := sorted({*(args.generation_kwargs or {})} - understood):
        yield (
            f"generation_kwargs name {', '.join(odd)}, which may change the distribution that"
            " tokens are drawn from; expected none, or 'suppress_tokens' where TRL samples with"
            " transformers, which scoring takes into account."
        )
    if args.steps_per_generation % args.gradient_accumulation_steps:
        yield (
            f"steps_per_generation is {args.steps_per_generation} and gradient_accumulation_steps"
            f" {args.gradient_accumulation_steps}; expected a multiple of it, since the loss of an"
            " optimizer step is divided by counts of all its completions, which must be there."
        )
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if rows % args.num_generations:
        yield (
            f"a process has {rows} completions of a generation batch and num_generations is"
            f" {args.num_generations}; expected a multiple of it, since completions of a prompt"
            " stay together. Raise per_device_train_batch_size or steps_per_generation."
        )


def _refused_models(trainer: Any) -> Generator[str]:
    """Yields a sentence for each kind of model that cannot be scored here as TRL samples it."""
    if trainer._is_vlm:
        yield (
            "the processing class reads images, which are not passed on to segmenters and critics;"
            " expected a tokenizer. Train models that read images by segcredit's own loop."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        yield (
            "the model is sharded by FSDP or DeepSpeed, and values and credit need it whole;"
            " expected one process, or several with a whole model each (DDP)."
        )
    if trainer.aux_loss_enabled:
        yield (
            "the model is a mixture of experts with a load-balancing loss, which TRL adds to"
            " GRPO's; expected router_aux_loss_coef=0.0."
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        yield (
            f"the adapter is a {type(model.active_peft_config).__name__}, which adds tokens that"
            " scoring would not see; expected adapters of layers, such as LoraConfig."
        )
    dropout = model.config.get_text_config().to_dict().get("attention_dropout", 0.0)
    if dropout:
        yield (
            f"attention_dropout of the model is {dropout}: scores would differ from the"
            " distribution sampled from; expected 0. Set model.config.attention_dropout = 0.0"
            " before the model is made."
        )


def _require_asked(trainer: Any) -> None:
    """Refuses estimators that continue completions which a tool took part in.

    Raises:
        ConfigError: says what there is.
    """
    run = trainer.credit
    if SupportsResume not in run.method.estimator.needs:
        return
    try:
        _functions(trainer)
    except ValueError as error:
        name = run.config.estimator["name"]
        raise ConfigError(f"estimator {name!r} does not work here: {error}.") from error


def _warn_of_stale_passes(config: RunConfig) -> None:
    """Warns of several steps along a loss that takes every completion for the policy's own."""
    steps = config.train.epochs * config.train.minibatches
    if config.loss.ratio is None and steps > 1:
        warnings.warn(
            f"loss.ratio is 'none' and TRL makes {steps} optimizer steps of each generation batch;"
            " nothing corrects for the policy's having moved after the first. Usual is one:"
            " num_iterations=1, and as many steps_per_generation as accumulation steps.",
            UserWarning,
            stacklevel=3,
        )


def _identity(config: RunConfig) -> dict[str, Any]:
    """Returns the keys that decide what the value estimator's state is."""
    names = {"segmenter", "estimator", "advantage", "process_reward", "loss"}
    return config.model_dump(include={**dict.fromkeys(names, True), "train": {"value": True}})


def _restore(run: Run, folder: Path) -> None:
    """Takes the value estimator's state from a checkpoint of TRL's.

    Raises:
        RecordError: it has none, or one of another method.
    """
    state: dict[str, Any] = {}
    with run.processes.error_barrier():
        if run.processes.first:
            state = _loaded(folder, _identity(run.config))
    with checkpoint.fitting(folder):
        run.state.load_state_dict(run.processes.from_first(state)["estimator"])


def _loaded(folder: Path, method: Mapping[str, Any]) -> dict[str, Any]:
    files = checkpoint.found(folder)
    if not files:
        raise RecordError(
            f"{folder.parent} holds no state of segcredit; expected a checkpoint that"
            " SegmentTrainer wrote. Usually GRPOTrainer wrote it, or save_only_model was set."
        )
    state = checkpoint.load(files[-1])
    if changed := differences(state["method"], method):
        raise RecordError(
            f"{folder.parent} is of another method: {changed}. Resume with the same method and"
            " settings, or begin with another output_dir."
        )
    return state

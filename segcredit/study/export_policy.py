"""The policy that a run has trained, as a checkpoint that other programs read."""

from __future__ import annotations

from pathlib import Path

from segcredit import registry
from segcredit.atomic_files import require_writable
from segcredit.config import RunConfig
from segcredit.errors import StudyError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.checkpoints.lora import has_adapters, merge_adapters, save_adapters
from segcredit.records import checkpoint
from segcredit.study.stored_policy import last_checkpoint, stored_config
from segcredit.training.build import task_of
from segcredit.training.master_weights import MasterWeights


def save_policy(
    run: str | Path, folder: str | Path, *, merged: bool = False, trust: bool = False
) -> Path:
    """Writes the policy of a run's last checkpoint as a folder of transformers or peft.

    Args:
        run: the run directory.
        folder: new, or empty.
        merged: whether adapters are merged into the weights; otherwise they are written alone.
        trust: whether code that the run's stored config names may be run.

    Returns:
        The folder.

    Raises:
        StudyError: the run's policy is no model of transformers, or the folder holds something.
        RecordError: config or checkpoint cannot be read, or the run lacks its last checkpoint.
    """
    run, folder = Path(run), Path(folder)
    saved = last_checkpoint(run)
    if folder.exists() and any(folder.iterdir()):
        raise StudyError(
            f"{folder} is not empty; expected a new folder for the policy, lest files of another"
            " model stay in it. Choose another one."
        )
    require_writable(folder / "config.json")
    policy = loaded_policy(stored_config(run, trust=trust))
    with checkpoint.fitting(saved):
        MasterWeights(policy).load_state_dict(checkpoint.load_run(saved)["policy"]["module"])
    write_policy(policy, folder, merged=merged)
    return folder


def loaded_policy(config: RunConfig) -> CausalPolicy:
    """Returns the policy as a run begins with it.

    Raises:
        StudyError: it is no model of transformers.
    """
    policy = registry.policies.from_table(config.policy).load(
        task_of(config),
        registry.samplers.from_table(config.sampler),
        temperature=config.rollouts.temperature,
        seed=config.starting_seed,
    )
    if not isinstance(policy, CausalPolicy):
        raise StudyError(
            f"the policy {config.policy['name']!r} is a {type(policy).__name__}, no model of"
            " transformers; expected one, since the folder is of its format. Save the run's"
            " checkpoint as it is."
        )
    return policy


def write_policy(policy: CausalPolicy, folder: Path, *, merged: bool) -> None:
    """Writes a policy's weights, or its adapters alone, and its tokenizer or processor.

    Args:
        policy: of which adapters, with ``merged``, are merged into its weights in place.
        folder: is made where it is not there.
        merged: whether they are; otherwise they are written alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapters(policy.model) and merged:
        merge_adapters(policy.model)
    if has_adapters(policy.model):
        save_adapters(policy.model, folder)
    else:
        policy.model.save_pretrained(folder)
    # A processor brings its tokenizer with it.
    reader = policy.tokenizer if policy.images is None else policy.images.processor
    reader.save_pretrained(folder)

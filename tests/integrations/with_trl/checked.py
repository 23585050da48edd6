"""A trainer that checks itself: at each optimizer step losses and gradients against our own.

Run by torchrun it prints a line of JSON for each case; ``test_trainer.py`` judges them:

    torchrun --nproc_per_node 2 checked.py FOLDER CASE...
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig

from segcredit import RolloutBatch, Segmentation, TokenScores, load_config, registry
from segcredit.integrations import LossCounts, build, policy_loss, value_loss
from segcredit.integrations.trl import SegmentTrainer
from segcredit.protocols import Prompt
from segcredit.training.distributed.all_gather import all_rows
from segcredit.training.distributed.processes import ALONE

START = ["policy.steps=150", "task.min_steps=1", "task.max_steps=2", "evaluate.prompts=8"]
"""A policy that is sometimes right, on a short task."""
TASK = registry.tasks.from_table(load_config("grpo", START).task)
PROMPTS: dict[str, Prompt] = {
    prompt.text: prompt for prompt in TASK.prompts(40, torch.Generator().manual_seed(0))
}
DATA = Dataset.from_dict({"prompt": list(PROMPTS)})


def save_model(folder: Path) -> None:
    """Writes the policy as a checkpoint of transformers, which TRL then loads."""
    policy: Any = build(load_config("grpo", START)).actor
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def right(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The task's verifier as a reward function."""
    pairs = zip(prompts, completions, strict=True)
    return [TASK.verify(PROMPTS[p], c, truncated=False).reward for p, c in pairs]


def arguments(output: Path, **changes: Any) -> GRPOConfig:
    """Two generations of 16 completions, each passed over twice."""
    given = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 24,
        "max_grad_norm": 0.0,  # nothing is clipped: gradients are compared
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 0,
    }
    return GRPOConfig(**(given | changes))


def trainer(
    folder: Path,
    output: Path,
    method: str,
    settings: Sequence[str] = (),
    *,
    kind: Callable[..., Any] = SegmentTrainer,
    args: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """A trainer of the small model; ``args`` are of its ``GRPOConfig``."""
    given = {
        "model": model(folder),
        "processing_class": AutoTokenizer.from_pretrained(folder),
        "reward_funcs": right,
        "train_dataset": DATA,
        "args": arguments(output, **(args or {})),
    }
    return kind(method=method, settings=settings, **(given | changes))


def joined(run: Any, batch: Any) -> Any:
    """The batch of all processes, as one process would hold it."""
    if run.processes.count == 1:
        return batch

    def rows(x: Tensor | None, fill: float = 0.0) -> Tensor | None:
        if x is None:
            return None
        shares = run.processes.gather(x)
        width = max(share.shape[1] for share in shares)
        return torch.cat([pad(share, (0, width - share.shape[1]), value=fill) for share in shares])

    def cut(segments: Segmentation) -> Segmentation:
        return Segmentation(rows(segments.segment_ids, -1))

    return dataclasses.replace(
        batch,
        rollouts=all_rows(run.processes, batch.rollouts),
        ratio_segmentation=cut(batch.ratio_segmentation),
        states=cut(batch.states),
        state_values=all_rows(run.processes, batch.state_values),
        targets=rows(batch.targets),
        advantages=dataclasses.replace(
            batch.advantages, per_token=rows(batch.advantages.per_token)
        ),
        token_weights=rows(batch.token_weights),
        count_weights=rows(batch.count_weights),
        corrections=rows(batch.corrections),
    )


class Checked(SegmentTrainer):
    """Keeps the largest differences from the loss of one process, in one piece."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = ("steps", "loss", "gradient", "size", "logprobs", "moved")
        self.found = dict.fromkeys(names, 0.0)
        self.pieces: list[tuple[Tensor, Tensor]] = []
        self.add_callback(_Compare(self))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            self.pieces.append((inputs["rows"], loss.detach()))
        return loss

    def compare(self) -> None:
        """Compares what Accelerate left in ``.grad`` with gradients of our own losses."""
        run = self.credit
        rows, losses = (list(each) for each in zip(*self.pieces, strict=True))
        self.pieces = []
        held = run.processes.gather(len(self._batch.rollouts))
        own = torch.cat(rows)
        shares = run.processes.gather(own[own >= 0])
        begins = [sum(held[:rank]) for rank in range(len(held))]
        every = torch.cat([share + begin for share, begin in zip(shares, begins, strict=True)])
        batch, one = joined(run, self._batch), dataclasses.replace(run, processes=ALONE)
        counts = LossCounts.of(one, batch, every)
        scores = self.scores(batch.rollouts.select(every))
        loss, _ = policy_loss(one, batch, every, scores, counts)
        total = sum(run.processes.gather(float(sum(losses)))) / run.processes.count
        pairs = [(run.actor.model, loss)]
        if run.state.optimizer is not None:
            pairs.append((run.state.module, value_loss(one, batch, every, scores, counts)))
        self.seen("steps", self.found["steps"] + 1)
        self.seen("loss", abs(total - float(loss)))
        self.seen("moved", float((scores.logprobs - batch.rollouts.logprobs[every]).abs().max()))
        for place, (module, own_loss) in enumerate(pairs):
            parameters = [p for p in module.parameters() if p.requires_grad]
            wanted = torch.autograd.grad(own_loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, wanted, strict=True):
                if gradient is None:
                    continue
                # TRL's are summed already; the critic's will be.
                given = parameter.grad if place == 0 else run.processes.sum(parameter.grad)
                self.seen("gradient", float((given - gradient).abs().max()))
                self.seen("size", float(gradient.abs().max()))

    def scores(self, rollouts: RolloutBatch) -> TokenScores:
        """Our scores with the log-probs of TRL's own pass: with its model, inputs and kernel."""
        written_BT = rollouts.token_spans.sum(2) > 0  # holes included, padding not
        written_BT |= rollouts.action_mask
        logprobs_BT, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1),
            torch.cat([rollouts.prompt_mask, written_BT], 1).long(),
            rollouts.completion_ids.shape[1],
        )
        logprobs_BT = logprobs_BT.masked_fill(~rollouts.action_mask, 0)
        scores = self.credit.actor(rollouts)
        self.seen("logprobs", float((scores.logprobs - logprobs_BT).abs().max()))
        return scores.replace(logprobs=logprobs_BT)

    def seen(self, name: str, number: float) -> None:
        self.found[name] = max(self.found[name], number)


class _Compare(TrainerCallback):
    def __init__(self, trainer: Checked) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.compare()


CHANGES = {
    "dapo": ["rollouts.dynamic_sampling=false"],
    "high_entropy_mask": ["rollouts.dynamic_sampling=false"],
    "segment_td": [
        "train.value.pretraining.completions=32",
        "train.value.pretraining.epochs=1",
    ],
    "vc_ppo": ["train.value.warmup_iterations=1"],
    "vapo": ["train.value.warmup_iterations=1"],
}
"""What a preset needs here to run, or to run in a second."""

CASES: dict[str, dict[str, Any]] = {
    "one": {},
    "pieces": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "minibatches": {"per_device_train_batch_size": 8, "steps_per_generation": 2, "max_steps": 8},
    "both": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "max_steps": 8,
    },
}
"""How the 16 completions of a generation are cut into steps and passes."""


def outcome(
    folder: Path, method: str, case: str = "one", processes: int = 1, **changes: Any
) -> dict[str, float]:
    """Trains with the method, and returns the largest differences."""
    args = {"per_device_train_batch_size": 16, **CASES[case]}
    args["per_device_train_batch_size"] //= processes
    with tempfile.TemporaryDirectory() as output:
        changes = {"settings": CHANGES.get(method, ()), **changes}
        checked = trainer(folder, Path(output), method, kind=Checked, args=args, **changes)
        checked.train()
    return checked.found


def weights(made: Any) -> list[Tensor]:
    """Parameters of policy and critic, and what the critic's optimizer remembers."""
    found = [*made.model.state_dict().values(), *made.credit.state.module.state_dict().values()]
    moments = made.credit.state.optimizer.state.values()
    return [*found, *(state["exp_avg"] for state in moments)]


def resumed(folder: Path, output: Path, method: str, processes: int = 1) -> float:
    """The largest difference between a run and one that was resumed at its middle."""
    args = {"save_strategy": "steps", "save_steps": 2}
    args["per_device_train_batch_size"] = 16 // processes
    settings = ["train.value.warmup_iterations=1"]
    whole = trainer(folder, output, method, settings, args=args)
    whole.train()
    again = trainer(folder, output, method, settings, args=args)
    begun = [x.clone() for x in weights(whole)]
    again.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    pairs = zip(begun, weights(again), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def main() -> None:
    torch.set_num_threads(1)
    folder, *cases = sys.argv[1:]
    for each in cases:
        method, case = each.split(":")
        if case == "resumed":
            place = Path(folder).parent / "resumed"
            found = {"difference": resumed(Path(folder), place, method, processes=2)}
        else:
            found = outcome(Path(folder), method, case, processes=2)
        if os.environ["RANK"] == "0":  # both found the same: each compared the rows of all
            print(json.dumps({"case": each, **found}), flush=True)


if __name__ == "__main__":
    main()

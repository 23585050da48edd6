"""Learning curves of the embedded task: a method in TRL's trainer and in our own loop, by seed.

    make .venv-trl/installed
    .venv-trl/bin/python experiments/16_trl/curves.py METHOD OUTPUT.csv SEED...

Both start from the same policy, take as many completions and optimizer steps (30 generations of
32 x 8, two passes of two minibatches) at the same learning rate, and are evaluated on the same
held-out prompts. The order of prompts and the draws differ. What OUTPUT.csv holds is not run again.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from segcredit import load_config
from segcredit.integrations import build
from segcredit.integrations.trl import SegmentTrainer
from segcredit.rng import stream
from segcredit.training.evaluate import evaluate
from segcredit.training.loop import iterate

GENERATIONS = 30
COLUMNS = ("method", "loop", "seed", "step", "reward", "accuracy", "cpu_seconds")


def ours(method: str, seed: int) -> list[dict[str, Any]]:
    """Runs our own loop; a row for each step."""
    config = load_config(
        method,
        [f"seed={seed}", f"train.steps={GENERATIONS}", "train.device=cpu", "sampler=lean"],
    )
    with tempfile.TemporaryDirectory() as output:
        steps = list(iterate(config, Path(output)))
    names = ("step", "reward", "accuracy", "cpu_seconds")
    return [{name: row.get(name) for name in names} for row in steps]


def theirs(method: str, seed: int) -> list[dict[str, Any]]:
    """Runs TRL's trainer with the method; a row for each generation."""
    config = load_config(method, [f"seed={seed}"])
    run = build(config)
    prompts = {
        prompt.text: prompt
        for prompt in run.task.prompts(
            2 * GENERATIONS * config.rollouts.prompts, stream(seed, "rows")
        )
    }

    def right(prompts_: list[str], completions: list[str]) -> list[float]:
        pairs = zip(prompts_, completions, strict=True)
        return [run.task.verify(prompts[p], c, truncated=False).reward for p, c in pairs]

    policy: Any = run.actor
    with tempfile.TemporaryDirectory() as output:
        started = time.process_time()
        trainer = SegmentTrainer(
            method=method,
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=lambda prompts, completions, **_: right(prompts, completions),
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            args=GRPOConfig(
                output_dir=output,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                max_steps=GENERATIONS * 4,
                per_device_train_batch_size=128,
                steps_per_generation=2,
                gradient_accumulation_steps=1,
                num_iterations=2,
                num_generations=8,
                max_completion_length=64,
                generation_kwargs={"suppress_tokens": list(policy.suppressed_ids)},
                learning_rate=config.train.learning_rate,
                lr_scheduler_type="constant",
                adam_beta1=config.train.betas[0],
                adam_beta2=config.train.betas[1],
                max_grad_norm=config.train.gradient_clip,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                seed=seed,
            ),
        )
        rows = [{"step": 0, "accuracy": accuracy(run)}]
        trainer.train()
        seconds = time.process_time() - started
    log = [row for row in trainer.state.log_history if "segcredit/reward" in row]
    rows += [{"step": n, "reward": row["segcredit/reward"]} for n, row in enumerate(log, 1)]
    rows[-1] |= {"accuracy": accuracy(run), "cpu_seconds": seconds}
    return rows


def accuracy(run: Any) -> float:
    """The share of right answers to the held-out prompts, as our own loop evaluates."""
    found = evaluate(
        run.actor,
        run.task,
        run.held_out,
        max_new_tokens=run.config.rollouts.max_new_tokens,
        stop=(),
        generator=stream(run.config.seed, "evaluation", 0),
        completions=1,
        processes=run.processes,
    )
    return found["accuracy"]


def main(method: str, output: Path, seeds: list[int]) -> None:
    """Runs what is missing, and prints a table of what is there."""
    known = list(csv.DictReader(output.open())) if output.exists() else []
    for seed in seeds:
        for loop, run in (("segcredit", ours), ("TRL", theirs)):
            if any((r["method"], r["loop"], r["seed"]) == (method, loop, str(seed)) for r in known):
                continue
            rows = run(method, seed)
            new = [{"method": method, "loop": loop, "seed": seed, **row} for row in rows]
            with output.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if not file.tell():
                    writer.writeheader()
                writer.writerows(new)
    print(table(list(csv.DictReader(output.open()))))


def table(rows: list[dict[str, str]]) -> str:
    """Formats mean rewards of six thirds of the way, accuracies and costs, a line a run."""
    lines = [
        "| method | seed | loop | 1-5 | 6-10 | 11-15 | 16-20 | 21-25 | 26-30 | accuracy | CPU-s |"
    ]
    lines.append("|" + "---|" * 11)
    runs = dict.fromkeys((row["method"], row["seed"], row["loop"]) for row in rows)
    for method, seed, loop in runs:
        own = [r for r in rows if (r["method"], r["seed"], r["loop"]) == (method, seed, loop)]
        rewards = {int(r["step"]): float(r["reward"]) for r in own if r["reward"]}
        means = [sum(rewards[n] for n in range(at, at + 5)) / 5 for at in range(1, 31, 5)]
        ends = [float(r["accuracy"]) for r in own if r["accuracy"]]
        cells = [f"{mean:.2f}" for mean in means]
        accuracy_ = f"{ends[0]:.2f} → {ends[-1]:.2f}"
        cost = float([r["cpu_seconds"] for r in own if r["cpu_seconds"]][-1])
        lines.append(" | ".join([f"| {method}", seed, loop, *cells, accuracy_, f"{cost:.0f} |"]))
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, place, *numbers = sys.argv[1:]
    main(name, Path(place), [int(number) for number in numbers])

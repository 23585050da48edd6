"""What a step costs here and in TRL's ``GRPOTrainer``: CPU-seconds of one thread.

    pip install trl==1.16.0
    python benchmarks/loop_vs_trl.py
    python benchmarks/loop_vs_trl.py --steps 12 --model FOLDER --prompts 2 --tokens 32

Both train the same model from the same weights, step by step in turns, in one process: TRL takes a
step, then this loop takes it with the same prompts. Each samples for itself, as many tokens; the
completions drawn here are then put aside for TRL's, so that rewards, losses and updates are of the
same completions. After each step the parameters of both are compared: they differ by rounding.

Without ``--model`` it is a random Qwen2 of half a million parameters. One pass of AdamW over one
minibatch, group-scaled advantages, no KL term; completions have all the same length. A step is
everything between two steps: prompts, sampling, rewards, update, metrics.

Columns: letters of a prompt; the sampler here; CPU-seconds a step of TRL and here, medians; here
over TRL, the geometric mean over steps with its 95 % interval (Student's t on the logarithm, steps
taken as independent); the largest difference of any parameter after the last step.
"""

# scipy, datasets and TRL ship no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import math
import random
import string
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from segcredit import SampledTokens, SamplingParams, load_config, register, registry
from segcredit.protocols import Prompt, Sampler, Task, Verdict
from segcredit.training.loop import iterate

LEARNING_RATE = 1e-4
WARM_UP = 2
"""Steps that are not counted."""


def reward(text: str) -> float:
    """The share of vowels."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return sum(letter in "aeiou" for letter in letters) / max(len(letters), 1)


@dataclass
class Shared:
    """What TRL drew in its last step, for the same step here."""

    prompts: list[str] = field(default_factory=list)
    ids: Any = field(default_factory=lambda: torch.zeros(0))
    rewards: list[float] = field(default_factory=list)
    model: Any = None
    """The model here, as its sampler last saw it."""

    def judge(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """A reward function of TRL's, which keeps what it is shown."""
        self.prompts = list(columns["prompts"])
        self.ids = torch.tensor(columns["completion_ids"])
        self.rewards = [reward(text) for text in completions]
        return self.rewards


SHARED = Shared()
SAMPLERS: dict[str, Sampler] = {
    name: registry.samplers.build(name) for name in ("generate", "lean")
}


@register.task("same")
@dataclass(frozen=True, slots=True)
class Same(Task):
    """The prompts of TRL's last step."""

    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """In TRL's order."""
        found = dict.fromkeys(SHARED.prompts)
        if len(found) != count:
            raise ValueError(f"TRL's step had {len(found)} prompts; expected {count}.")
        return self._prompts(found)

    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Evaluations are not timed."""
        return self._prompts(dict.fromkeys(SHARED.prompts or ["a"]))

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """TRL's reward."""
        return Verdict(reward=reward(text), correct=False)

    def _prompts(self, texts: dict[str, None]) -> list[Prompt]:
        return [Prompt(key=text, text=text, answer="") for text in texts]


@register.sampler("replaced")
@dataclass(frozen=True, slots=True)
class Replaced(Sampler):
    """Samples like another sampler, completions without an end, and gives back those of TRL."""

    inner: Literal["generate", "lean"]

    def sample(self, model: Any, prompt_ids: Any, prompt_mask: Any, **options: Any) -> Any:
        """TRL's ids, row by row, where there are as many."""
        params: SamplingParams = options["params"]
        never = (*params.suppressed_ids, *params.stop_ids)
        options["params"] = replace(params, suppressed_ids=never)
        SHARED.model = model
        own = SAMPLERS[self.inner].sample(model, prompt_ids, prompt_mask, **options)
        return SampledTokens(SHARED.ids) if SHARED.ids.shape == own.ids.shape else own


def tiny_model(folder: Path) -> None:
    """A random Qwen2 whose tokens are letters."""
    words = ["<end>", *string.ascii_letters, *string.digits, "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "."))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def trainer(model: Path, texts: Sequence[str], chosen: argparse.Namespace, output: str) -> Any:
    """TRL's, with one update a batch."""
    rows = chosen.prompts * chosen.completions
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=SHARED.judge,
        train_dataset=Dataset.from_dict({"prompt": list(texts)}),
        args=GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            max_steps=chosen.steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            num_generations=chosen.completions,
            max_completion_length=chosen.tokens,
            generation_kwargs={"min_new_tokens": chosen.tokens},
            top_k=0,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            shuffle_dataset=False,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        ),
    )


def ours(model: Path, sampler: str, chosen: argparse.Namespace, output: str) -> Iterator[Any]:
    """This loop, a step at each ``next``, after its step 0."""
    config = load_config(
        {
            "method": "grpo",
            "task": {"name": "same"},
            "policy": {"name": "hf", "model": str(model)},
            "sampler": {"name": "replaced", "inner": sampler},
            "advantage": {"name": "group_scaled", "inner": "full_return", "eps": 1e-4},
            "rollouts": {
                "prompts": chosen.prompts,
                "completions": chosen.completions,
                "max_new_tokens": chosen.tokens,
            },
            "train": {
                "steps": chosen.steps + 1,  # the last one would be evaluated
                "epochs": 1,
                "minibatches": 1,
                "learning_rate": LEARNING_RATE,
                "betas": [0.9, 0.999],
                "micro_tokens": 10**9,
                "device": "cpu",
            },
            "evaluate": {"every": 10**6, "prompts": 1},
            "record": {"every": 10**6, "completions": False, "segments": False},
            "checkpoint": {"every": 10**6},
        }
    )
    return iterate(config, Path(output))


class Turns(TrainerCallback):
    """After each step of TRL's the same step here; both timed."""

    def __init__(self, steps: Iterator[Any]) -> None:
        self.steps = steps
        self.seconds: list[tuple[float, float]] = []
        self.difference = 0.0
        self.mark = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take step 0 here, which builds the run and evaluates."""
        next(self.steps)
        self.mark = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the step here that TRL has just taken, and compare."""
        between = time.process_time()
        row = next(self.steps)
        end = time.process_time()
        if not math.isclose(row["reward"], float(np.mean(SHARED.rewards)), abs_tol=1e-5):
            raise ValueError(f"rewards differ: {row['reward']} here, TRL {SHARED.rewards}")
        self.seconds.append((between - self.mark, end - between))
        pairs = zip(more["model"].parameters(), SHARED.model.parameters(), strict=True)
        self.difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
        self.mark = time.process_time()


def compared(
    model: Path, texts: Sequence[str], sampler: str, chosen: argparse.Namespace
) -> tuple[Any, float]:
    """(steps,2) CPU-seconds of TRL and here, and the largest difference of a parameter."""
    with tempfile.TemporaryDirectory() as theirs, tempfile.TemporaryDirectory() as mine:
        turns = Turns(ours(model, sampler, chosen, mine))
        found = trainer(model, texts, chosen, theirs)
        found.add_callback(turns)
        found.train()
    return np.array(turns.seconds[WARM_UP:]), turns.difference


def some_prompts(count: int, letters: int) -> list[str]:
    """Random letters, a token each."""
    chooser = random.Random(0)
    return [" ".join(chooser.choices(string.ascii_lowercase, k=letters)) for _ in range(count)]


def ratio(seconds: Any) -> str:
    """Here over TRL, with its interval."""
    logs = np.log(seconds[:, 1] / seconds[:, 0])
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return f"{math.exp(logs.mean()):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"


def main() -> None:
    """A line for each length of prompts and sampler."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", type=Path, help="a folder; without it a tiny random Qwen2")
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--prompts", type=int, default=8)
    options.add_argument("--completions", type=int, default=8)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--letters", type=int, nargs="+", default=[16, 64])
    options.add_argument("--samplers", nargs="+", default=["lean", "generate"])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    print("letters   sampler   TRL s  here s           here / TRL  difference")
    with tempfile.TemporaryDirectory() as folder:
        model = chosen.model or Path(folder)
        if chosen.model is None:
            tiny_model(model)
        for letters in chosen.letters:
            texts = some_prompts(chosen.prompts * (chosen.steps + 1), letters)
            for sampler in chosen.samplers:
                seconds, difference = compared(model, texts, sampler, chosen)
                theirs, mine = np.median(seconds, axis=0)
                print(
                    f"{letters:7} {sampler:>9} {theirs:7.3f} {mine:7.3f} {ratio(seconds):>20}"
                    f" {difference:11.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

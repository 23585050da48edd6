"""Parts that the tiny policies share: a tokenizer of characters, and warm starts that hold."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import transformers
from annotated_types import Interval
from safetensors import safe_open
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from segcredit import registry
from segcredit.atomic_files import write_atomically
from segcredit.cache_folder import cache_folder, locked
from segcredit.episodes import Demonstration, complete, demonstrated
from segcredit.errors import PolicyError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate
from segcredit.protocols import PolicySource, Sampler, Task, Verdict
from segcredit.rng import derived_seed, named_seed, stream
from segcredit.types import SamplingParams

PAD, END, BEGIN = 0, 1, 2
SPECIALS = ("<pad>", "<eos>", "<bos>")

_FORMAT = 2
"""Counts the changes of what a cached file holds."""
_FAULT = "fault"
"""Key of a cached file's sentence about a warm start that missed its target; '' where it held."""
_MOST_WEIGHTS = 2 * 10**8
_ATTEMPTS = 4
_TARGET, _CHECKED = 0.7, 400
"""Default of ``target``, and the steps of a warm start from which on it is checked."""
_COMPLETED, _TAUGHT, _SHOWN = 512, 2048, 32
"""Fresh completions that are judged, and demonstrations: beside them, and in the cache's key."""
_ADVICE = (
    "Usual causes are a task that such a network learns late, or a learning rate that is too high."
    " Raise policy.steps, choose another seed, or lower policy.target to accept it."
)


def require_size(layers: int, hidden: int, inner: int) -> None:
    """Raises a ValueError for a network that is no longer tiny: 16 bytes a weight in training."""
    weights = layers * hidden * (4 * hidden + 3 * inner)
    if weights > _MOST_WEIGHTS:
        raise ValueError(
            f"layers, hidden_size and intermediate_size make {weights:,} weights; expected at most"
            f" {_MOST_WEIGHTS:,}. For a larger model take policy.name='hf'"
        )


def alphabet_of(task: Task) -> list[str]:
    """Returns the characters of a task's prompts and completions, each once, in its order.

    Raises:
        PolicyError: the task names none.
    """
    alphabet = list(dict.fromkeys(task.alphabet()))
    if not alphabet:
        raise PolicyError(
            f"task {type(task).__name__!r} has no alphabet, and the tiny policy makes a token of"
            " each of its characters; expected a string of all characters of prompts and"
            " completions. Write the task's alphabet(), or choose policy.name='hf'."
        )
    return alphabet


def require_alphabet(texts: Iterable[str], alphabet: Sequence[str]) -> None:
    """Checks that every character of prompts, turns and observations is in the alphabet.

    Raises:
        PolicyError: one is not; names those that are missing.
    """
    known = {*alphabet}
    missing = {character for text in texts for character in text} - known
    if missing:
        raise PolicyError(
            f"the task's demonstrations have the characters {sorted(missing)}, which are not in"
            f" its alphabet {''.join(alphabet)!r}; expected every character of prompts,"
            " completions and observations there, since each is a token. Add them to the task's"
            " alphabet()."
        )


def character_tokenizer(alphabet: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token a character, and a begin token in front of every text.

    Args:
        alphabet: the characters.
        named: further special tokens, after the alphabet, by the attributes they become.
    """
    # By order: PAD, END and BEGIN are places in SPECIALS.
    vocabulary = {p: n for n, p in enumerate([*SPECIALS, *alphabet, *named.values()])}
    tokenizer = cast(Any, Tokenizer)(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[BEGIN]} $A", special_tokens=[(SPECIALS[BEGIN], BEGIN)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[PAD],
        eos_token=SPECIALS[END],
        bos_token=SPECIALS[BEGIN],
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named,
    )


@dataclass(frozen=True, slots=True)
class WarmStarted(PolicySource):
    """Options of a small Llama, its imitation of demonstrations, and what that has to reach."""

    hidden_size: Annotated[int, Interval(ge=1, le=4096)] = 64
    layers: Annotated[int, Interval(ge=1, le=64)] = 2
    heads: Annotated[int, Interval(ge=1, le=1024)] = 4
    intermediate_size: Annotated[int, Interval(ge=1, le=16384)] = 128
    initializer_range: Annotated[float, Interval(ge=0, le=100)] = 0.1
    """Standard deviation of the first weights; the usual 0.02 learns slower at this width."""
    rope_theta: Annotated[float, Interval(ge=1, le=1e9)] = 100.0
    """Slowest wavelength of the rotary positions, over 2 pi. The usual 10000 leaves heads of 16
    units too few that tell tokens of a short text apart, and learns lengths that vary late."""
    steps: Annotated[int, Interval(ge=0, le=10**6)] = 400
    """Batches of demonstrations, each seen once; 0 for no warm start."""
    batch: Annotated[int, Interval(ge=1, le=10**4)] = 32
    """Demonstrations a step."""
    learning_rate: Annotated[float, Interval(ge=0, le=10)] = 4e-3
    """Highest learning rate, of AdamW."""
    final_lr_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.05
    """Fraction of ``learning_rate`` that is left at the end of the cosine."""
    warmup: Annotated[int, Interval(ge=0, le=10**6)] = 20
    """Steps over which the learning rate rises to ``learning_rate``."""
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.98
    weight_decay: Annotated[float, Interval(ge=0, le=1000)] = 0.01
    max_gradient_norm: Annotated[float, Interval(ge=1e-12, le=1e12)] = 1.0
    target: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Share of completions right after the warm start, as a fraction of the demonstrations' own
    share; right means in every step, where the task tells. A warm start that misses it is drawn
    again from another seed. 0 for no check; None = 0.7 from 400 steps on, no check for fewer."""

    def load(self, task: Task, sampler: Sampler, *, temperature: float, seed: int) -> nn.Module:
        """Loads the warm-started policy, from the cache where it is there already.

        A warm start that misses ``target`` is drawn again, first weights and demonstrations, from a
        seed that follows from ``seed`` and the attempt. If all of four miss, the best is taken. A
        warning says so, at every load.

        Args:
            task: gives alphabet and demonstrations, and judges what was learned of them.
            sampler: draws the policy's completions.
            temperature: divides the logits in sampling and scoring; greater than 0.
            seed: decides the first weights and the demonstrations.

        Raises:
            PolicyError: the task's alphabet is empty or not that of its demonstrations, or the
                cache cannot be written.
            TaskError: the task has no demonstrations.
        """
        alphabet = alphabet_of(task)
        policy = self.untrained(alphabet, sampler, temperature, seed)
        path = (
            cache_folder()
            / f"{type(self).__module__.rpartition('.')[2]}-{self._key(task, seed)}.safetensors"
        )
        with locked(path):
            if not path.exists():
                write_atomically(path, self._warm_start(task, alphabet, seed))
        # Also where it was just trained: what is read is what every later run reads.
        with safe_open(path, "pt") as file:
            found: dict[str, str] = file.metadata() or {}
        if fault := found.get(_FAULT):
            warnings.warn(fault, RuntimeWarning, stacklevel=2)
        policy.model.load_state_dict(load_file(path))
        return policy

    @abstractmethod
    def untrained(
        self, alphabet: Sequence[str], sampler: Sampler, temperature: float, seed: int
    ) -> CausalPolicy:
        """Builds the policy with its first weights."""
        ...

    @abstractmethod
    def losses(
        self, policy: CausalPolicy, shown: Sequence[Demonstration], alphabet: Sequence[str]
    ) -> Iterator[Callable[[], Tensor]]:
        """Yields a function for each batch in turn that computes its loss, with gradients."""
        ...

    def least_share(self) -> float:
        """Returns ``target``, or its default for these steps."""
        return _TARGET * (self.steps >= _CHECKED) if self.target is None else self.target

    def _key(self, task: Task, seed: int) -> str:
        """Returns a hash of everything that decides the weights, code included.

        A few demonstrations with their verdicts stand for code that the task's own calls.
        """
        shown = task.demonstrations(_SHOWN, stream(seed, "warm start key")) if self.steps else ()
        verdicts = [demonstrated(task, *pair).verdict(task) for pair in shown]
        kinds = [kind for kind in type(task).__mro__ if kind is not Task and issubclass(kind, Task)]
        decisive = (
            *(_FORMAT, repr(self), repr(task), seed),
            *(registry.policies.code(type(self)), _policy_code()),
            *([registry.tasks.code(kind) for kind in kinds], list(shown), verdicts),
            # Another version may initialise or sum otherwise.
            *(torch.__version__, transformers.__version__),
        )
        return hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]

    def _warm_start(self, task: Task, alphabet: Sequence[str], seed: int) -> bytes:
        """Returns the file of a warm start's weights: the first that holds, or else the best."""
        target = self.least_share()
        best, most = b"", -1.0
        for attempt in range(_ATTEMPTS):
            own = derived_seed(seed, "warm start", attempt) if attempt else seed
            policy = self.untrained(alphabet, Generate(), 1.0, own)
            shown = self._imitated(policy, task, alphabet, own)
            if not shown or not target:
                return _file(policy.model)
            taught = [each.verdict(task) for each in shown[:_TAUGHT]]
            needed = target * _share(taught)
            reached = _share(_completed(policy, task, shown, own))
            if reached >= needed:
                return _file(policy.model)
            fault = (
                f"the warm start of {type(self).__name__} on the task {type(task).__name__!r} from"
                f" seed {seed} ended with {reached:.2f} of its completions right, counted in every"
                f" step where the task tells; expected {needed:.2f}, which is policy.target ="
                f" {target:g} of its demonstrations' {_share(taught):.2f}. This was attempt"
                f" {attempt + 1} of {_ATTEMPTS}."
            )
            if attempt + 1 < _ATTEMPTS:
                again = f"{fault} It is drawn again, from a seed that follows from this one."
                warnings.warn(again, RuntimeWarning, stacklevel=3)
            if reached > most:
                most, missed = (
                    reached,
                    f"{fault} None reached it, and this was the best: it is taken. {_ADVICE}",
                )
                best = _file(policy.model, missed)
        return best

    def _imitated(
        self, policy: CausalPolicy, task: Task, alphabet: Sequence[str], seed: int
    ) -> Sequence[Demonstration]:
        """Trains a policy on demonstrations, and returns them; none where there are no steps."""
        if not self.steps:
            return ()
        generator = torch.Generator().manual_seed(named_seed(seed, "demonstrations"))
        pairs = task.demonstrations(self.steps * self.batch, generator)
        shown = [demonstrated(task, *pair) for pair in pairs]
        require_alphabet(
            (text for each in shown for text in (each.prompt.text, each.opening, *each.texts)),
            alphabet,
        )
        optimizer = torch.optim.AdamW(
            policy.model.parameters(),
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        for loss in self.losses(policy, shown, alphabet):
            optimizer.zero_grad()
            loss().backward()
            nn.utils.clip_grad_norm_(policy.model.parameters(), self.max_gradient_norm)
            optimizer.step()
            schedule.step()
        return shown

    def _rate(self, step: int) -> float:
        """Returns the fraction of the highest rate: rising linearly, then along a cosine."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine


@torch.no_grad()
def _completed(
    policy: CausalPolicy, task: Task, shown: Sequence[Demonstration], seed: int
) -> Sequence[Verdict]:
    """Judges fresh completions, each as long as the longest demonstration at most."""
    generator = stream(seed, "warm start")
    longest = SamplingParams(max_new_tokens=max(each.characters for each in shown))
    prompts = task.prompts(_COMPLETED, generator)
    return complete(policy, task, prompts, params=longest, generator=generator).verdicts


def _share(verdicts: Sequence[Verdict]) -> float:
    """Returns the share of completions that are right, in every step where the task tells."""
    right = [verdict.correct and verdict.process_correct is not False for verdict in verdicts]
    return sum(right) / len(right)


def _file(model: nn.Module, fault: str = "") -> bytes:
    """Returns the contents of a file of a model's weights, with what a load of it has to say."""
    weights = {name: x.contiguous() for name, x in model.state_dict().items()}
    return save(weights, metadata={_FAULT: fault})


@functools.cache
def _policy_code() -> str:
    """Returns a hash of the sources around here: networks, losses, sampling and this file."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()

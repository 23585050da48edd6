"""The interfaces of the four axes and around them: of plug-ins, and of what plug-ins may ask for.

A plug-in is a frozen dataclass whose fields are its hyper-parameters. A class that names one of
these protocols as its base inherits the neutral answer to every method that it leaves out, so
that a stateless value estimator writes ``estimate`` alone.

Letters as in ``segcredit.types``.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from segcredit.errors import (
    PluginError,
    PolicyError,
    ShapeError,
    TaskError,
    blame,
    place_of,
    require_type,
    shown,
    told,
)
from segcredit.segmentation import Anchor, Segmentation
from segcredit.types import (
    Continuations,
    Generation,
    RolloutBatch,
    SampledTokens,
    SamplingParams,
    SegmentValues,
    TokenScores,
    turn_starts,
)


@runtime_checkable
class NamesCode(Protocol):
    """A plug-in with options that name code to be run, beside its own.

    The config that a run stored may be a stranger's: what it names is not run unless it is trusted.
    """

    @abstractmethod
    def named_code(self) -> Mapping[str, object]:
        """Returns the options that do so as they are set, by their names; none where none does."""
        ...


SegmenterReading = Literal["text", "ids", "logprobs", "entropies", "token_values"]
"""A part of rollouts that a segmenter reads beyond the action mask.

``text``: texts and the tokens' places in them. ``ids``: ids of prompts and completions, and the
prompts' keys. ``token_values``: values that something measured.
"""


@runtime_checkable
class Segmenter(Protocol):
    """The first axis: where a completion is cut."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """True where the boundary before token t depends on tokens before t alone.

        Only then does a baseline at the boundaries leave the policy gradient unbiased.
        """
        ...

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """The parts of rollouts that the segmenter reads; any of them (neutral answer).

        Of what it does not name, log-probs and entropies are NaN in the rollouts that it gets, and
        values None. Another trainer that cannot provide what it names refuses it.
        """
        return frozenset(get_args(SegmenterReading))

    @abstractmethod
    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts every completion; pure, and blind to padding and to the order of the batch."""
        ...

    @property
    def spans_turns(self) -> bool:
        """True where a segment may go on from one turn to the next; False (neutral answer).

        Otherwise every turn begins a segment, whatever ``segment`` says.
        """
        return False


class TextSegmenter(Segmenter):
    """A segmenter that reads text alone: write ``split`` and the tokens are taken care of."""

    @abstractmethod
    def split(self, text: str) -> Sequence[int]:
        """Returns ascending character offsets, in [0, len(text)], at which segments begin.

        0 may be left out. An offset of len(text) puts an end token in a segment of its own; a
        rule that closes segments must give it to be causal.
        """
        ...

    @property
    def reads(self) -> frozenset[SegmenterReading]:
        """Texts alone."""
        return frozenset({"text"})

    def segment(self, rollouts: RolloutBatch) -> Segmentation:
        """Cuts between tokens: each goes to the segment of its first character."""
        offsets = [checked_offsets(self, self.split(text), text) for text in rollouts.texts]
        return Segmentation.from_char_starts(offsets, rollouts.token_spans, rollouts.action_mask)


def checked_offsets(plugin: object, offsets: object, text: str) -> Sequence[int]:
    """Returns offsets of a text; raises a PluginError where they do not ascend inside it."""
    name = f"segmenter {type(plugin).__name__!r}"
    many = isinstance(offsets, Iterable)
    places: list[object] = [*cast("Iterable[object]", offsets)] if many else [None]
    if bool in map(type, places) or not all(isinstance(place, Integral) for place in places):
        raise PluginError(
            f"{name} returned {str(offsets)[:80]} for a text of {len(text)}"
            " characters; expected a list of whole numbers, the places of the characters at which"
            " segments begin."
        )
    known = cast("list[int]", places)
    edges = [0, *known, len(text)]
    if any(late < early for early, late in itertools.pairwise(edges)):
        raise PluginError(
            f"{name} returned the offsets {known[:10]} for a text of {len(text)}"
            f" characters; expected ascending offsets between 0 and {len(text)}. Sort them, and"
            " count characters rather than bytes."
        )
    return known


def checked_segments(segmenter: Segmenter, name: str, rollouts: RolloutBatch) -> Segmentation:
    """Cuts rollouts into segments, once these are known to cover the action tokens.

    Args:
        segmenter: is asked; it gets of log-probs, entropies and values what its ``reads`` names.
        name: of the segmenter, in messages.
        rollouts: are cut.

    Raises:
        PluginError: the segmenter raised, or returned segments of something else; names it.
    """
    with blame("segmenter", name, segmenter):
        reads = segmenter.reads
        unread_BT = _unread(rollouts.logprobs)
        segmentation = segmenter.segment(
            rollouts.replace(
                logprobs=rollouts.logprobs if "logprobs" in reads else unread_BT,
                entropies=rollouts.entropies if "entropies" in reads else unread_BT,
                token_values=rollouts.token_values if "token_values" in reads else None,
            )
        )
        require_type("segment", segmentation, Segmentation)
        segmentation.require_covers(rollouts.action_mask)
        if rollouts.turn_ids is None or segmenter.spans_turns:
            return segmentation
    return segmentation.cut_before(turn_starts(rollouts.turn_ids))


def missing_members(plugin: object, protocol: type) -> list[str]:
    """Returns the names of a protocol that a class or an object lacks, sorted.

    A class that names the protocol as its base inherits the neutral answers, and lacks what is
    still abstract; any other must have every member itself.
    """
    asked = _names([base for base in protocol.__mro__ if base.__module__ == protocol.__module__])
    public = {name for name in asked if name[0] != "_" or name == "__call__"}
    annotated = _names(plugin.__mro__) if isinstance(plugin, type) else set[str]()
    abstract = frozenset[str](getattr(plugin, "__abstractmethods__", ()))
    return sorted(public - annotated - {*dir(plugin)} | abstract)


def _names(classes: Iterable[type]) -> set[str]:
    """Returns the attributes of classes, those included that are annotated alone."""
    found = [(*vars(owner), *vars(owner).get("__annotations__", {})) for owner in classes]
    return {name for names in found for name in names}


Reading = Literal["hidden", "logprobs", "reference", "token_values"]
"""A part of rollouts and scores that an estimator reads beyond tokens, texts and rewards.

``hidden``: the current policy's hidden states. ``logprobs``: its log-probs and entropies, and the
sampler's log-probs. ``reference``: hidden states, log-probs and entropies of the frozen starting
policy. ``token_values``: values that something else measured.
"""


@runtime_checkable
class ValueEstimator(Protocol):
    """The second axis: how good the state before each segment is."""

    anchor: Anchor = "start"
    """The state that a segment's value is of, see ``Segmentation.anchors``."""

    @property
    def reads(self) -> frozenset[Reading]:
        """The parts of the policies' scores that the estimator reads; none (neutral answer).

        What it does not name is NaN in the rollouts and scores that it gets, or None. The loop
        computes the starting policy's scores where it is named, once a batch. An estimator that is
        trained may not name ``logprobs`` unless ``train.value.live_logprobs`` says so.
        """
        return frozenset()

    @property
    def value_states(self) -> Literal["segments", "tokens"]:
        """The states that values, targets and losses are of; ``segments`` (neutral answer).

        ``tokens``: the state before every action token, whatever the segments. The estimator then
        gets segments of one token each, and the loop reads the values of the method's own segments
        off at their anchors, so that one estimator serves every segmenter.
        """
        return "segments"

    @property
    def needs(self) -> tuple[type, ...]:
        """The capabilities that the policy must have, such as ``SupportsResume``; none (neutral).

        Checked once, when a run is built.
        """
        return ()

    def start(self, policy: Policy) -> nn.Module:
        """Builds all state of a run: parameters are trained, the ``state_dict`` is checkpointed."""
        return nn.Module()

    def meet(self, state: nn.Module, prompt_keys: Sequence[str], simulator: Simulator) -> None:
        """Learns of prompts before each step's estimates, every prompt of all processes once.

        The place for what the state learns of a prompt when it first comes. Like ``update``, it is
        the same call on every process, so that their states stay the same.
        """

    @abstractmethod
    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Float[Tensor, "B S"]:
        """Returns the value at each segment's anchor, in reward units; called without gradients."""
        ...

    def targets(self, values: SegmentValues) -> Float[Tensor, "B S"]:
        """Computes regression targets of the values; normally one call of ``lambda_returns``."""
        return values.values

    def loss(
        self,
        state: nn.Module,
        minibatch: RolloutBatch,
        segmentation: Segmentation,
        scores: TokenScores,
        values: SegmentValues,
        targets_BS: Float[Tensor, "B S"],
    ) -> Float[Tensor, "B S"]:
        """Computes the loss of each segment's value, not reduced; zeros when nothing is learned.

        ``values`` are those estimated at sampling time, for value clipping.
        """
        return torch.zeros_like(targets_BS)

    def update(self, state: nn.Module, rollouts: RolloutBatch, simulator: Simulator) -> None:
        """Updates the state after each step's policy update, from the rollouts of all processes."""

    def prompt_weights(self, state: nn.Module, prompt_keys: Sequence[str]) -> Float[Tensor, "K"]:
        """Returns the weight of each candidate prompt in a draw; ones when indifferent."""
        return torch.ones(len(prompt_keys))


def readable(rollouts: RolloutBatch, reads: Set[Reading]) -> RolloutBatch:
    """Returns rollouts as an estimator gets them: without what its ``reads`` does not name.

    Log-probs and entropies become NaN, which a fault then shows; what may be missing, None.
    """
    changes: dict[str, Tensor | None] = {}
    if "logprobs" not in reads:
        unread_BT = _unread(rollouts.logprobs)
        changes |= {"logprobs": unread_BT, "entropies": unread_BT, "sampler_logprobs": None}
    if "reference" not in reads:
        names = ("reference_logprobs", "reference_entropies", "reference_hidden")
        changes |= dict.fromkeys(names)
    if "token_values" not in reads:
        changes["token_values"] = None
    return rollouts.replace(**changes)


def readable_scores(scores: TokenScores, reads: Set[Reading]) -> TokenScores:
    """Returns scores of the current policy as an estimator gets them, see ``readable``."""
    changes: dict[str, Tensor] = {}
    if "logprobs" not in reads:
        unread_BT = _unread(scores.logprobs)
        changes |= {"logprobs": unread_BT, "entropies": unread_BT}
    if "hidden" not in reads:
        changes["hidden"] = _unread(scores.hidden)
    return scores.replace(**changes)


def _unread(x: Tensor) -> Tensor:
    """Returns NaN in the shape of ``x``: a view of one number, which takes no memory."""
    return x.new_full((), torch.nan).expand_as(x)


@runtime_checkable
class AdvantageScheme(Protocol):
    """The third axis: from values and rewards to credit."""

    @abstractmethod
    def __call__(self, values: SegmentValues) -> Float[Tensor, "B S"]:
        """Computes each segment's advantage; what stands outside ``values.mask`` is ignored."""
        ...

    def unclamped(self, values: SegmentValues) -> Float[Tensor, "B S"] | None:
        """Computes the same without a bound on its size; None where there is none (neutral).

        The metric ``clamped_share`` is the share of squared credit that the bound cuts off.
        """
        return None


@runtime_checkable
class ProcessReward(Protocol):
    """Rewards inside a completion, added to each segment's token rewards."""

    @abstractmethod
    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Float[Tensor, "B S"]:
        """Computes the reward earned by each segment, in reward units."""
        ...


IMAGE_SLOT = "<image>"
"""The mark of an image's place in a prompt's text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem of a task."""

    key: str
    """Names the prompt; the same in every step, different from every other prompt's."""
    text: str
    answer: Any
    """Whatever the task's verifier needs."""
    images: tuple[bytes, ...] = ()
    """Contents of image files, such as PNG; one for each ``IMAGE_SLOT`` of the text, or all before
    it where it has none."""
    chat: tuple[tuple[str, str], ...] | None = None
    """Role and content of the messages before ``text``, which is then the user's last message of a
    chat that the policy writes by its template; None where the text is the whole prompt."""
    chat_options: tuple[tuple[str, Any], ...] = ()
    """Arguments of the chat's template by name, such as ``("enable_thinking", False)``."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A task's verdict on one completion."""

    reward: float
    correct: bool
    """True where the final answer is right: ``accuracy`` counts this."""
    process_correct: bool | None = None
    """True where every step is true; None where the task cannot tell."""
    answer: str | None = None
    """The final answer as the task reads it, for votes: equal strings are one. '' where the text
    has none; None where the task does not tell."""
    timed_out: bool = False
    """True where judging took longer than allowed; the metric ``verifier_timeouts`` counts this."""

    @property
    def faithful(self) -> bool | None:
        """Former name of ``process_correct``."""
        said = "Verdict.faithful is now process_correct; the next version drops the old name."
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        return self.process_correct


def checked_prompts(method: str, found: object, count: int) -> Sequence[Prompt]:
    """Returns what a task's method gave, once it is known to be prompts, at least ``count``.

    Raises:
        ShapeError: it is something else, or too few; ``segcredit.errors.blame`` names the task.
    """
    require_type(method, found, Sequence)
    given = cast("Sequence[Prompt]", found)
    every = cast("Sequence[object]", found)
    odd = [type(each).__name__ for each in every if not isinstance(each, Prompt)]
    if odd or len(given) < count:
        what = f"a {odd[0]} among its prompts" if odd else f"{len(given)} prompts"
        raise ShapeError(
            f"{method} returned {what}; expected {f'at least {count} ' * bool(count)}"
            "segcredit.Prompt objects, each with its key, text and answer."
        )
    return given


@runtime_checkable
class PromptStream(Protocol):
    """Training prompts one step after the other, from a position that a checkpoint remembers.

    What it gives follows from its seed and the calls before alone, in every process alike.
    """

    @abstractmethod
    def take(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Returns the next ``count`` prompts; the generator is for streams without a position."""
        ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns the position, as plain values."""
        ...

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn(PromptStream):
    """Every step's prompts drawn anew: there is no position."""

    task: Task

    def take(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        return self.task.prompts(count, generator)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """An environment's answer to one turn of the policy."""

    state: Any
    """The state that the next turn begins in: an immutable value."""
    observation: str = ""
    """Text that the policy reads before its next turn; not read where the episode is done."""
    reward: float = 0.0
    """Reward of the turn, finite; stands on its last token."""
    done: bool = False
    """True where the episode ends with this turn."""
    anchor: str | None = None
    """A name of the state, equal where two states are to be compared as one (GiGPO, arXiv
    2505.10978); None where no other state is like it."""
    correct: bool | None = None
    """True where the episode is done and ended well. None = the task's ``verify`` is asked about
    the text of this turn, and its reward added."""
    process_correct: bool | None = None
    """True where it is done and every turn was right; None where the environment cannot tell."""
    answer: str | None = None
    """The final answer of an episode that is done, for votes; None where it does not tell."""


@runtime_checkable
class Environment(Protocol):
    """The world that a policy acts in: it answers turns with observations and rewards.

    ``start`` and ``step`` are pure: what they return follows from their arguments alone, and no
    argument is changed. Randomness comes from a seed in the state. So an episode can be continued
    from any of its prefixes, by feeding the turns before it again: Monte-Carlo values, trees and
    the audit need that.

    Malformed actions are answered by an observation rather than by an exception.
    """

    @property
    def max_turns(self) -> int:
        """The limit of turns; an episode that is not done then is truncated. 1 (neutral answer)."""
        return 1

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn, beside end tokens; none (neutral answer)."""
        return ()

    @property
    def turn_tokens(self) -> int | None:
        """Limit of the tokens of a turn; None (neutral answer): the completion's limit alone."""
        return None

    @property
    def workers(self) -> int:
        """The number of steps that may be taken at once, from threads; 1 (neutral answer).

        More makes sense where ``step`` waits for another process.
        """
        return 1

    def start(self, prompt: Prompt) -> tuple[Any, str]:
        """Returns the first state, and text to add to the prompt's own; the prompt and ''."""
        return prompt, ""

    @abstractmethod
    def step(self, state: Any, text: str) -> Transition:
        """Answers the text of a turn, special tokens removed, its stop string included."""
        ...


@dataclass(frozen=True, slots=True)
class SingleTurn(Environment):
    """The environment of a completion without turns: its first step is done."""

    def step(self, state: Any, text: str) -> Transition:
        """Ends the episode; the task's verifier judges the text."""
        return Transition(state=state, done=True)


@runtime_checkable
class Task(Protocol):
    """Prompts and their verifier."""

    @abstractmethod
    def prompts(self, count: int, generator: torch.Generator) -> Sequence[Prompt]:
        """Draws training prompts; the generator's state alone decides which."""
        ...

    def stream(self, seed: int) -> PromptStream:
        """Returns the prompts of a run; drawn anew by ``prompts`` for every step (neutral answer).

        A task whose problems are finite, or costly to reach, gives them in passes instead.
        """
        return _Drawn(self)

    @abstractmethod
    def evaluation(self, count: int) -> Sequence[Prompt]:
        """Returns a fixed list of held-out prompts, none of which ``prompts`` ever gives."""
        ...

    @abstractmethod
    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Judges one completion's text, special tokens removed; truncated: no end token came.

        Of several turns, the text of the last.
        """
        ...

    def environment(self) -> Environment:
        """Returns what completions are made in; an episode of one turn (neutral answer)."""
        return SingleTurn()

    def judges(self) -> int:
        """Returns how many completions may be verified at once, from threads; 1 (neutral answer).

        More makes sense where ``verify`` waits for another process.
        """
        return 1

    def data_files(self) -> Sequence[Path]:
        """Returns the local files and folders that the problems are read from; none by default.

        Their checksums are recorded, so that a run does not go on with other data unnoticed.
        """
        return ()

    def demonstrations(
        self, count: int, generator: torch.Generator
    ) -> Sequence[tuple[Prompt, str]]:
        """Returns prompts with completions to imitate, for a policy that needs a supervised start.

        Raises:
            TaskError: the task has none (the neutral answer).
        """
        raise TaskError(
            f"task {type(self).__name__!r} has no demonstrations, and this policy needs a"
            " supervised warm start. Choose a pretrained policy, such as policy.name='hf'."
        )

    def alphabet(self) -> str:
        """Returns every character of prompts and completions; '' where any may come."""
        return ""


def judged(task: Task, prompt: Prompt, text: str, truncated: bool) -> Verdict:
    """Returns a task's verdict, once it is known to be one with a finite reward.

    Raises:
        TaskError: the verifier raised; says on which prompt and completion.
    """
    try:
        verdict = task.verify(prompt, text, truncated=truncated)
        require_type("verify", verdict, Verdict)
        reward: object = verdict.reward
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise ShapeError(
                f"verify returned the reward {shown(reward)}; expected a finite number."
            )
        return verdict
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"the verifier of task {type(task).__name__!r} raised {told(error)} on prompt"
            f" {prompt.key!r} with the completion {text[:200]!r}. A verifier must judge any text;"
            " give what it cannot read a reward of 0."
        ) from error


def opened(environment: Environment, prompt: Prompt) -> tuple[Any, str]:
    """Returns an environment's first state and text, once they are known to be that.

    Raises:
        TaskError: the environment raised, or gave something else; names it and its file.
    """
    with _answering(environment, f"start() of the prompt {prompt.key!r}"):
        found: Sequence[Any] = environment.start(prompt)
        if type(found) is not tuple or len(found) != 2 or not _is_text(found[1]):
            raise ShapeError(
                f"start returned {shown(found)}; expected a pair: the first state, and a text to"
                " add to the prompt's own, '' for none."
            )
        return found[0], found[1]


def asked(environment: Environment, state: Any, text: str) -> Transition:
    """Returns an environment's answer to a turn, once it is known to be a whole one.

    Raises:
        TaskError: the environment raised, or answered otherwise; names it, its file and the turn.
    """
    with _answering(environment, f"the turn {shown(text)}"):
        answer = environment.step(state, text)
        require_type("step", answer, Transition)
        _require_plain(answer)
        return answer


@contextmanager
def _answering(environment: Environment, occasion: str) -> Generator[None]:
    """Names the environment, its file and what it was asked in whatever it raises."""
    try:
        yield
    except TaskError:  # of what the environment itself asked, such as a sandbox that is gone
        raise
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, ShapeError) else f"raised {told(error)}."
        raise TaskError(
            f"environment {type(environment).__name__!r}{place_of(error, environment)}, asked for"
            f" {occasion}: {said} An environment must answer any text; answer a malformed action"
            " with an observation that says so."
        ) from error


def _require_plain(answer: Transition) -> None:
    """Raises a ShapeError where a transition has a field of another type than is recorded."""
    for name, kind in _PLAIN.items():
        value: object = getattr(answer, name)
        fine = _is_text(value) if kind is str else isinstance(value, kind)
        if not fine or (kind is Real and not math.isfinite(cast(float, value))):
            raise ShapeError(
                f"step returned the {name} {shown(value)}; expected a finite number as reward, a"
                " text that can be written as UTF-8 as observation, True or False as done, and"
                " otherwise what segcredit.Transition says, or None."
            )


_PLAIN: dict[str, Any] = {
    "observation": str,
    "reward": Real,
    "done": bool,
    "anchor": str | None,
    "correct": bool | None,
    "process_correct": bool | None,
    "answer": str | None,
}
"""Types of a transition's fields; the state may be anything."""


def _is_text(value: object) -> bool:
    """Tells whether a value is text that files and tokenizers take: no half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


@runtime_checkable
class Policy(Protocol):
    """A language model with the operations that every method needs.

    An ``nn.Module`` whose call is the score with gradients: ``policy(rollouts) -> TokenScores``.
    What only some methods need are capabilities, protocols of their own: ``SupportsResume``,
    ``SupportsBackbone``, ``SupportsAlternatives``, ``SupportsLogitGradients``.
    """

    hidden_size: int
    temperature: float
    """Divides the logits in sampling and scoring alike."""

    @property
    def samples_in_process(self) -> bool:
        """True where ``generate`` and ``resume`` run the network itself (neutral answer).

        False where an engine's copy of it draws. Only for the former are sharded parameters
        gathered.
        """
        return True

    @abstractmethod
    def __call__(self, rollouts: RolloutBatch) -> TokenScores:
        """Scores the completions in one forward pass, with gradients."""
        ...

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> tuple[Int[Tensor, "P Tp"], Bool[Tensor, "P Tp"]]:
        """Returns token ids of texts, left-padded, and their mask."""
        ...

    @abstractmethod
    def encode_prompts(
        self, prompts: Sequence[Prompt], *, room: int = 0
    ) -> tuple[Int[Tensor, "P Tp"], Bool[Tensor, "P Tp"], tuple[Mapping[str, Tensor], ...]]:
        """Returns token ids of prompts, left-padded, their mask, and what else is read of each.

        The last, of images, is one mapping a row, the same object where the prompt is; empty for
        a policy that reads text alone. ``room``: tokens that are to follow a prompt.

        Raises:
            PolicyError: a prompt has images that the policy cannot read, or leaves no such room.
        """
        ...

    @abstractmethod
    def decode(
        self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[tuple[str, ...], Int[Tensor, "B T 2"]]:
        """Returns texts of completions without special tokens, and the characters of each token."""
        ...

    @abstractmethod
    def generate(
        self,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        extras: Sequence[Mapping[str, Tensor]] = (),
        *,
        params: SamplingParams,
        generator: torch.Generator,
    ) -> Generation:
        """Samples a completion for each prompt, all in one batch.

        It ends with its first end token, with the token that completes a string of ``params.stop``
        in its own text, or at the limit, where it is truncated.
        """
        ...

    def sync(self) -> None:
        """Tells the sampler that the weights have changed; nothing to do for one in this process.

        Called after each step's update, and after a checkpoint was restored, on every process;
        where it samples in the process, while all weights are gathered.
        """


@runtime_checkable
class SupportsResume(Protocol):
    """The capability to continue a completion from any of its tokens.

    Needed by ``monte_carlo``, by trees of rollouts, and by the audit.
    """

    @abstractmethod
    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Int[Tensor, "N"],
        positions_N: Int[Tensor, "N"],
        *,
        params: SamplingParams,
        micro_tokens: int,
        generator: torch.Generator,
        instead_N: Int[Tensor, "N"] | None = None,
    ) -> Generation:
        """Samples new tokens after the prompt and all tokens before each position, holes included.

        ``params.max_new_tokens`` limits whole completions, the tokens before the position included.
        ``instead_N`` stands in the place of the token just before each position; after an end
        token there is nothing new, nor after a string of ``params.stop``, which may begin before
        the position. Returns the new tokens alone, a row for each of N states.
        """
        ...


@runtime_checkable
class SupportsTurns(Protocol):
    """The capability to read an environment's observations; needed by tasks of several turns."""

    @abstractmethod
    def encode_observations(
        self, prompts: Sequence[Prompt], observations: Sequence[str], last_ids: Sequence[int]
    ) -> list[list[int]]:
        """Returns the tokens between two turns: the observation, and what the policy puts round it.

        ``last_ids``: the last token of the turn before each, which may be an end token. Where a
        prompt is a chat, the tokens end the assistant's message, are the observation's message, and
        begin the next of the assistant.
        """
        ...


@runtime_checkable
class SupportsAlternatives(Protocol):
    """The capability to draw other tokens than a completion's own; needed by the audit's truth."""

    @abstractmethod
    def alternatives(
        self,
        rollouts: RolloutBatch,
        counts_BT: Int[Tensor, "B T"],
        *,
        micro_tokens: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "N"]:
        """Draws tokens that the policy might have chosen in the place of those that it chose.

        As many for each token as ``counts_BT`` says, row by row and token by token: drawn from
        the policy's distribution there without the token that is there, renormalised.
        """
        ...


@runtime_checkable
class SupportsLogitGradients(Protocol):
    """The capability to say how far credit of a token can move the policy.

    The audit weighs tokens by it; without it the audit has no metrics at the level "gradient".
    """

    @abstractmethod
    def logit_gradients(self, rollouts: RolloutBatch, *, micro_tokens: int) -> Float[Tensor, "B T"]:
        """Computes the squared norm of each log-prob's gradient by the logits.

        |e_a - p|² = 1 - 2 p_a + Σ_v p_v², a the token that is there and p the distribution sampled
        from: logits divided by the temperature, suppressed ids of probability 0. Between
        (1 - p_a)² and 2 (1 - p_a)²: 0 where the policy is certain. 0 off the mask. Itself without
        gradients; at most ``micro_tokens`` tokens in one pass.
        """
        ...


@runtime_checkable
class SupportsBackbone(Protocol):
    """The capability to copy the network under the output layer; needed by critics of their own."""

    hidden_size: int

    @abstractmethod
    def backbone(self) -> nn.Module:
        """Copies the network under the output layer, as a module: rollouts -> (B,T,H)."""
        ...


Capability = TypeVar("Capability")


def capability(policy: Policy, wanted: type[Capability], asker: str) -> Capability:
    """Returns a policy as one that has a capability.

    Args:
        policy: of any kind.
        wanted: such as ``SupportsResume``.
        asker: begins the sentence of the error, such as "estimator 'monte_carlo'".

    Raises:
        PolicyError: the policy has no such capability.
    """
    if not isinstance(policy, wanted):
        raise PolicyError(
            f"{asker} needs a policy with the methods of segcredit.{wanted.__name__}, and"
            f" {type(policy).__name__} lacks {', '.join(missing_members(policy, wanted))}."
            " Choose another policy, such as policy.name='hf', or a method that can do without."
        )
    return policy


@runtime_checkable
class PolicySource(Protocol):
    """A source of policies, as registered under ``segcredit.policies``."""

    @abstractmethod
    def load(self, task: Task, sampler: Sampler, *, temperature: float, seed: int) -> nn.Module:
        """Loads a policy (see ``Policy``) ready to be trained; the same for the same arguments.

        Raises:
            PolicyError: the model cannot be had, or lacks something; says what.
        """
        ...


@runtime_checkable
class Sampler(Protocol):
    """The engine under a policy: token ids in, token ids out."""

    in_process: ClassVar[bool] = True
    """True where it samples with the model that it is given (neutral answer); False for an engine
    with weights of its own, which change in ``sync`` alone: ``sample`` then gets no cache, and
    where parameters are sharded over processes they are not gathered for it."""

    @abstractmethod
    def sample(
        self,
        model: nn.Module,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        *,
        params: SamplingParams,
        pad_id: int,
        generator: torch.Generator,
        cache: Any = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> SampledTokens:
        """Samples one completion a row; what follows a row's end is ignored.

        It ends with its first end token, or where ``params.ended`` tells of a stop string, which a
        sampler may do without. An engine with stop strings of its own may take ``params.stop``, as
        long as it gives the tokens of the stop string as well.

        ``cache``: keys and values of every prompt column but the last, as the model's own cache
        class; spares their computation, and a sampler may do without. ``inputs``: what the model
        reads besides, such as images; with a cache, what it still needs, and then a sampler
        cannot do without the cache.
        """
        ...

    def sync(self, model: nn.Module) -> None:
        """Takes over the model's weights, which have changed; nothing to do in the same process.

        Called on every process of a run, which may all have one engine between them. No process
        samples before all calls have returned.

        Args:
            model: the one that ``sample`` is given; an engine of its own takes the weights by
                ``whole_weights(model)``.
        """


@torch.no_grad()
def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the entries of a model's state dict, each whole, for ``Sampler.sync`` of an engine.

    Where parameters are sharded over processes, each is gathered as it is asked for, so that no
    process holds more than one. Every process must therefore take all of them, also one that
    sends nothing to the engine.
    """
    for name, x in model.state_dict().items():
        yield name, whole_tensor(x)


def whole_tensor(x: Tensor) -> Tensor:
    """Returns a tensor whole; where processes hold shards of it, all of them call this alike."""
    from torch.distributed.tensor import DTensor  # here: it takes two seconds to load

    return x.full_tensor() if isinstance(x, DTensor) else x


@runtime_checkable
class Simulator(Protocol):
    """The requests that an estimator may make; policy, verifier and sampler stand behind them."""

    params: SamplingParams
    """The run's own: how its completions are sampled."""

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        """Samples ``count`` rewarded completions of each prompt, in the order of the keys.

        ``params``: None = the run's own; ``replace(simulator.params, greedy=True)`` for the
        likeliest completion.
        """
        ...

    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Int[Tensor, "N"],
        positions_N: Int[Tensor, "N"],
        count: int,
        *,
        params: SamplingParams | None = None,
    ) -> Continuations:
        """Continues ``count`` times from the prompt and every token before each position."""
        ...

    def score(self, rollouts: RolloutBatch) -> TokenScores:
        """Computes log-probs, entropies and hidden states under the policy, without gradients."""
        ...

    def logit_gradients(self, rollouts: RolloutBatch) -> Float[Tensor, "B T"]:
        """Computes the squared norm of each log-prob's gradient by the logits.

        For estimators that need ``SupportsLogitGradients``, which says what it is.
        """
        ...

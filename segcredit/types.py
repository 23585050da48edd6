"""The data that flows: rollouts, segment values, advantages.

Frozen dataclasses that check their own invariants. Nothing is mutated: each stage of a step
returns a new object. Letters: ``B`` completions, ``Tp`` prompt tokens, ``T`` completion tokens,
``S`` segments, ``H`` hidden units, ``N`` states, ``K`` continuations a state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from segcredit.errors import ShapeError, require_type
from segcredit.showable import Showable

Rows = TypeVar("Rows", bound="RowTable")
"""Rather than Self, which the tests' run-time checks know only in dataclasses."""


class RowTable:
    """Selection of rows for dataclasses whose every field has one entry a row."""

    __slots__ = ()

    def select(self: Rows, rows: Shaped[Tensor, "N"] | Sequence[int]) -> Rows:
        """Returns the given rows, in the order given; the other axes keep their widths."""
        index = torch.as_tensor(rows, dtype=torch.long)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        # Read from the device once, whatever the number of fields, and not at all without tuples.
        places: list[int] = []
        if tuple in map(type, fields.values()):
            places = index.cpu().numpy().tolist()
        taken = {name: _take(value, index, places) for name, value in fields.items()}
        return type(self)(**taken)

    def to(self: Rows, device: torch.device) -> Rows:
        """Moves every tensor to a device; ``extras`` stay where the policy put them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in fields.items()
        }
        return type(self)(**moved)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutBatch(RowTable, Showable):
    """Completions sampled from a policy, verified and scored: what every plug-in reads.

    Completions are right-padded, prompts left-padded. ``action_mask`` may have holes: tokens of a
    tool or of the environment that the policy did not choose.

    Raises:
        ShapeError: a field does not fit the others; names the field.
    """

    prompt_ids: Int[Tensor, "B Tp"]
    prompt_mask: Bool[Tensor, "B Tp"]
    prompt_keys: tuple[str, ...]
    """A string a row, the same for the same prompt in every step."""
    completion_ids: Int[Tensor, "B T"]
    action_mask: Bool[Tensor, "B T"]
    """True on the tokens that the policy chose, end token included."""
    logprobs: Float[Tensor, "B T"]
    """Nats, under the distribution sampled from: same temperature, same suppressed ids."""
    entropies: Float[Tensor, "B T"]
    """Nats, of the distribution that the token was drawn from."""
    group: Int[Tensor, "B"]
    """Equal for completions of the same prompt in this batch."""
    texts: tuple[str, ...]
    token_spans: Int[Tensor, "B T 2"]
    """First character of each token in its row's text, and the one after its last."""
    rewards: Float[Tensor, "B"]
    """The reward of each completion: the verifier's, and the sum of an environment's."""
    token_rewards: Float[Tensor, "B T"]
    """The verifier's reward on the last action token, an environment's reward of a turn on the
    turn's last one, and any penalty on action tokens."""
    truncated: Bool[Tensor, "B"]
    """True where the limit of tokens, or of turns, came before the end."""
    reference_logprobs: Float[Tensor, "B T"] | None = None
    """Nats, under the frozen starting policy, where a KL term or an estimator reads them."""
    reference_entropies: Float[Tensor, "B T"] | None = None
    """Nats, of the starting policy's distribution, where an estimator reads it."""
    reference_hidden: Float[Tensor, "B T H"] | None = None
    """States of the starting policy before each token, where an estimator reads it."""
    others_reward: Float[Tensor, "B"] | None = None
    """Mean reward of the group's other completions, NaN for one alone, where credit is assigned.
    Computed over whole groups, which minibatches cut."""
    sampler_logprobs: Float[Tensor, "B T"] | None = None
    """Nats, as the sampler computed them while it drew, where it tells; ``logprobs`` are the
    policy's own. The two differ where an inference engine rounds in other ways, or is stale."""
    token_values: Float[Tensor, "B T"] | None = None
    """Values of the state before each token, in reward units, where something measured them."""
    turn_ids: Int[Tensor, "B T"] | None = None
    """The turn of each sampled token, counted from 0 in its row; -1 on tokens of the environment
    and padding. None where nothing tells turns apart. Two turns with no token between them are
    two."""
    anchor_ids: Int[Tensor, "B T"] | None = None
    """A number of the environment's state before each sampled token's turn, equal where the
    environment named two states alike (``Transition.anchor``) and always on first turns; -1 where
    it named none, on tokens of the environment and padding."""
    extras: tuple[Mapping[str, Tensor], ...] = ()
    """One mapping of tensors a row (images); empty where no prompt has any."""
    node_ids: Int[Tensor, "B T"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """Equal where rows share a sampled token, as in a tree; all different by default."""

    def __post_init__(self) -> None:
        _fill_node_ids(self, self.completion_ids)
        rows, width = self.completion_ids.shape
        _require_shapes(
            self, (rows, width), "action_mask", "logprobs", "entropies", "token_rewards"
        )
        _require_shapes(self, (rows, width), "reference_logprobs", "reference_entropies")
        _require_shapes(self, (rows, width), "sampler_logprobs", "token_values", "node_ids")
        _require_shapes(self, (rows, width), "turn_ids", "anchor_ids")
        _require_shapes(self, (rows, width, 2), "token_spans")
        _require_shapes(self, (rows,), "group", "rewards", "truncated", "others_reward")
        _require_shapes(self, (rows, self.prompt_ids.shape[1]), "prompt_ids", "prompt_mask")
        _require_rows(self, rows, "prompt_keys", "texts", *(["extras"] if self.extras else []))
        _require_dtype(self, torch.bool, "action_mask", "prompt_mask", "truncated")

    def __len__(self) -> int:
        return len(self.completion_ids)

    def replace(self, **changes: Any) -> RolloutBatch:
        """Returns a copy in which some fields are others."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentValues(RowTable):
    """The input of an advantage scheme: values and rewards, one a segment.

    Entries where ``mask`` is False are 0; the value after the last segment is 0.
    """

    values: Float[Tensor, "B S"]
    """V at each segment's anchor (by default the state before the segment), in reward units."""
    rewards: Float[Tensor, "B S"]
    """Token rewards summed over the segment, plus process rewards."""
    lengths: Int[Tensor, "B S"]
    """Action tokens of the segment."""
    weights: Float[Tensor, "B S"]
    """Tokens of the segment that the loss counts; ``lengths`` where it counts all."""
    mask: Bool[Tensor, "B S"]
    group: Int[Tensor, "B"]
    node_ids: Int[Tensor, "B S"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """Node of each segment's last token: equal where rows share the segment's end, as in a tree;
    all different by default. The state before a segment is the node of the one before it, or the
    prompt, which is shared within ``group``."""
    anchor_ids: Int[Tensor, "B S"] | None = None
    """A number of the environment's state before the segment's turn, as in ``RolloutBatch``; -1
    where there is no segment, or no name of the state; None where nothing names states."""

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        _fill_node_ids(self, self.values)
        _require_shapes(self, shape, "rewards", "lengths", "weights", "mask", "node_ids")
        _require_shapes(self, shape, "anchor_ids")
        _require_shapes(self, shape[:1], "group")
        _require_dtype(self, torch.bool, "mask")

    def replace(self, **changes: Any) -> SegmentValues:
        """Returns a copy in which some fields are others."""
        return dataclasses.replace(self, **changes)


LARGE_ADVANTAGE = 100
"""The size beyond which advantages are warned of, in reward units or standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Advantages(RowTable):
    """Credit: constant inside a segment, 0 outside the action mask."""

    per_segment: Float[Tensor, "B S"]
    per_token: Float[Tensor, "B T"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores(RowTable):
    """The output of one forward pass over given completions; entries on masked tokens are 0.

    ``logprobs`` and ``entropies`` are in nats, of the sampling temperature and with the suppressed
    ids left out. ``hidden[:,t]`` is the state before token t, from which token t was drawn.
    """

    logprobs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"]
    hidden: Float[Tensor, "B T H"]

    def replace(self, **changes: Any) -> TokenScores:
        """Returns a copy in which some fields are others."""
        return dataclasses.replace(self, **changes)

    def detached(self) -> TokenScores:
        """Returns the same numbers without gradients."""
        return TokenScores(
            logprobs=self.logprobs.detach(),
            entropies=self.entropies.detach(),
            hidden=self.hidden.detach(),
        )


RowsEnded = Callable[[Tensor, Tensor], Tensor]
"""Tells of rows (N,) of new tokens (B,T) whether their last one completes a stop string: (N,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The settings of a request for completions.

    Callers of a policy choose the length, stop strings, and whether to be greedy. The policy fills
    in the rest before it asks its sampler, since it scores under the same temperature and ids.

    Raises:
        ValueError: a stop string is empty, or none that a text could hold.
    """

    max_new_tokens: int
    """Limit of a completion; where one is resumed, its tokens before the position included."""
    greedy: bool = False
    """True takes the likeliest token each time, and draws nothing."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion: with the token that completes the first one in its text."""
    turn_tokens: int | None = None
    """Limit of the tokens of one turn, of a completion with several; None = no limit of its own."""
    temperature: float = 1.0
    """Divides the logits; greater than 0."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, and belong to it."""
    suppressed_ids: tuple[int, ...] = ()
    """Tokens of probability 0."""
    ended: RowsEnded | None = None
    """Tells where a row may end because of ``stop``. A sampler may do without: the policy cuts what
    it draws."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", stop_strings(self.stop))


def turn_starts(turn_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Marks the first sampled token of every turn, see ``RolloutBatch.turn_ids``: (B,T)."""
    before_BT = torch.cat([torch.full_like(turn_ids[:, :1], -1), turn_ids[:, :-1]], 1)
    return (turn_ids >= 0) & (turn_ids != before_BT)


def stop_strings(value: object) -> tuple[str, ...]:
    """Returns stop strings as a tuple; a bare string is one of them.

    Raises:
        ValueError: it is not a list of texts, one is empty, or holds what stands for parts of a
            character.
    """
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise ValueError('expected a list of strings, such as ["\\n\\nQuestion:"]')
    for one in cast("Sequence[object]", listed):
        if not isinstance(one, str) or not one:
            raise ValueError(
                f"a stop string is {one!r}; expected text of at least one character. For no stop"
                " strings give an empty list, []"
            )
        if "\ufffd" in one:
            raise ValueError(
                f"the stop string {one!r} holds U+FFFD, which stands for a character that is not"
                " yet whole; expected real characters. Usually a file was read as another encoding"
            )
    return tuple(cast("Sequence[str]", listed))


@dataclass(frozen=True, slots=True, eq=False)
class SampledTokens:
    """Token ids as a sampler draws them; what follows a row's end is ignored."""

    ids: Int[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"] | None = None
    """Nats, as the sampler computed them while it drew; None where it does not tell."""


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """New tokens of a policy, padded on the right.

    A row ends with its first end token, or with the token that completes its first stop string.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """True up to a row's last token, and on it."""
    truncated: Bool[Tensor, "B"]
    """True where no such end came before the limit."""
    logprobs: Float[Tensor, "B T"] | None = None
    """Nats, as the sampler computed them, 0 outside the mask; None where it does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Continuations:
    """Outcomes of completions resumed at N states, K times each."""

    rewards: Float[Tensor, "N K"]
    """Rewards still to come: an environment's of the turns before a state are not in them."""
    truncated: Bool[Tensor, "N K"]
    tokens: int
    """Tokens sampled for them, in all."""


def require_shape(method: str, found: object, shape: Sequence[int]) -> None:
    """Raises a ShapeError where a plug-in's method did not return real numbers of this shape."""
    require_type(method, found, Tensor)
    kind = cast(Tensor, found).dtype
    if kind == torch.bool or kind.is_complex:
        raise ShapeError(f"{method} returned {kind} values; expected real numbers.")
    if tuple(cast(Tensor, found).shape) != tuple(shape):
        raise ShapeError(
            f"{method} returned shape {tuple(cast(Tensor, found).shape)}; expected {tuple(shape)},"
            " as the docstring of the protocol says. Usually an axis was left out, or summed over."
        )


def require_values(method: str, found: object, mask: Tensor, *given: Tensor) -> None:
    """Raises a ShapeError where a plug-in's method did not return a real number a place.

    Args:
        method: of the plug-in, as messages name it.
        found: what it returned.
        mask: of the places that are read.
        given: what it was told; where that is not finite, nor need be what it made of it.
    """
    require_shape(method, found, mask.shape)
    values = cast(Tensor, found)
    if values.requires_grad:
        raise ShapeError(
            f"{method} returned a tensor that requires a gradient; expected plain numbers, since"
            " the loss takes them as they are. Return .detach() of it."
        )
    if not all(bool(each.isfinite().all()) for each in given):
        return
    wrong = ~values.isfinite() & mask.to(values.device)
    if wrong.any():
        raise ShapeError(
            f"{method} returned {float(values[wrong][0])} for {int(wrong.sum())} of"
            f" {int(mask.sum())} segments; expected finite numbers. Usually it divides by a spread"
            " or a count that may be 0: add a small number, or handle that case. A value estimator"
            " finds NaN where it reads scores that its `reads` does not name."
        )


def _fill_node_ids(owner: RolloutBatch | SegmentValues, like: Tensor) -> None:
    """Makes all node ids different where none were given."""
    if not owner.node_ids.numel():
        different = torch.arange(like.numel(), device=like.device).view(like.shape)
        object.__setattr__(owner, "node_ids", different)


def _take(value: Any, index: Tensor, places: list[int]) -> Any:
    """Takes rows of a tensor, or of a tuple at the same places; what has no rows stays."""
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, tuple) and value:
        return tuple(cast(tuple[Any, ...], value)[row] for row in places)
    return cast(Any, value)


def _require_shapes(owner: object, shape: tuple[int, ...], *names: str) -> None:
    for name in names:
        found = getattr(owner, name)
        if found is not None and tuple(found.shape) != shape:
            raise ShapeError(
                f"{type(owner).__name__}.{name} has shape {tuple(found.shape)}; expected {shape},"
                " as its other fields have it."
            )


def _require_rows(owner: object, rows: int, *names: str) -> None:
    for name in names:
        if len(getattr(owner, name)) != rows:
            raise ShapeError(
                f"{type(owner).__name__}.{name} has {len(getattr(owner, name))} entries; expected"
                f" {rows}, one for each completion."
            )


def _require_dtype(owner: object, dtype: torch.dtype, *names: str) -> None:
    for name in names:
        found = getattr(owner, name).dtype
        if found != dtype:
            raise ShapeError(
                f"{type(owner).__name__}.{name} is of type {found}; expected {dtype}, since other"
                " types change the meaning of ~mask. Convert it with .bool()."
            )

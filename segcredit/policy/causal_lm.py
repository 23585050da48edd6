"""A causal model of transformers as a policy: sample, score, and the text of it.

It may read images besides text: ``segcredit.policy.vlm`` says what it then needs to know.

One base-model pass a batch; the output layer runs on action tokens alone, since it costs the most
where the vocabulary is large. Letters: ``L`` tokens of prompt and completion that the network
reads, ``N`` action tokens of the batch, ``V`` vocabulary; the others as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from segcredit.errors import PolicyError, ShapeError, blame, require_type
from segcredit.policy.chat_templates import chat_ids, observation_ids, plain_ids
from segcredit.policy.hidden_states import first_prompt_column, token_states
from segcredit.policy.image_prompts import ImagePrompts
from segcredit.policy.logprobs import token_distributions
from segcredit.policy.model_inputs import IDS, ModelInputs
from segcredit.policy.module_copies import copy_of_trained
from segcredit.policy.prefix_cache import PrefixCache
from segcredit.policy.stop_strings import StopStrings
from segcredit.policy.token_spans import PieceTable, place_spans
from segcredit.protocols import Prompt, Sampler
from segcredit.types import (
    Generation,
    RolloutBatch,
    SampledTokens,
    SamplingParams,
    TokenScores,
    require_shape,
    turn_starts,
)

M = TypeVar("M", bound="_Deterministic")


class _Deterministic(nn.Module):
    """A module that stays in evaluation mode.

    Dropout would make the scores differ from the distribution sampled from, so that the ratio of
    the first minibatch were not 1.
    """

    def train(self: M, mode: bool = True) -> M:
        """Sets evaluation mode, whatever the argument."""
        return super().train(False)


class Backbone(_Deterministic):
    """The network under the output layer: rollouts -> (B,T,H) states before each token."""

    def __init__(self, base: nn.Module, inputs: ModelInputs | None = None) -> None:
        super().__init__()
        self.base = base
        self.inputs = inputs or ModelInputs()
        self.train()

    def forward(self, rollouts: RolloutBatch) -> Float[Tensor, "B T H"]:
        """Computes the state that each action token was drawn from; zeros on other tokens."""
        return token_states(self.base, rollouts, self.inputs)


class CausalPolicy(_Deterministic):
    """The ``Policy`` of a causal language model, its tokenizer and a sampler.

    Sampling and scoring share the temperature and the suppressed ids, so that the log-probs of a
    sampled completion are those it was sampled with.

    Args:
        model: A causal language model; its logits must be its output layer's on its base model's
            last states, as of most.
        tokenizer: Must have an end token. It pads with its pad token, or else its end token.
        sampler: The engine that draws completions.
        temperature: Divides the logits; greater than 0.
        suppressed_ids: Never sampled, and of probability 0 in scoring, as are ids of the model that
            the tokenizer has no token for (padded vocabularies). End tokens are left out.
        images: Encodes prompts, of a model that reads images; see ``segcredit.policy.vlm``.
        inputs: Makes what such a model reads besides token ids.

    Raises:
        PolicyError: the tokenizer has no end token, or closes prompts of images with it; the
            temperature is not greater than 0, or the model changes its logits after the output
            layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        *,
        temperature: float = 1.0,
        suppressed_ids: Sequence[int] = (),
        images: ImagePrompts | None = None,
        inputs: ModelInputs | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise PolicyError(
                f"the policy's temperature is {temperature}; expected a number greater than 0,"
                " since it divides the logits. For the most likely completions, sample greedily."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.images = images
        self.inputs = inputs or ModelInputs()
        self.temperature = temperature
        self.hidden_size: int = _output_layer(model).weight.shape[1]
        self.end_ids = _end_ids(model, tokenizer)
        self.pad_id = _pad_id(tokenizer, self.end_ids)
        never = {*suppressed_ids, *_ids_without_token(model, tokenizer)}
        self.suppressed_ids = tuple(sorted(never - {*self.end_ids}))
        self._closing = closing_tokens(tokenizer, self.end_ids)
        if self._closing and images is not None:
            raise PolicyError(
                f"the tokenizer of {type(images.processor).__name__} closes every prompt with an"
                " end token, after which nothing would be said; expected one that leaves prompts"
                " open. Set add_eos_token to false in the checkpoint's tokenizer_config.json."
            )
        self._table = PieceTable(
            partial(
                cast(Any, tokenizer).decode,
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )
        self.train()
        _require_plain_logits(model, self.end_ids[0])

    def forward(self, rollouts: RolloutBatch) -> TokenScores:
        """Scores the completions: log-probs, entropies (nats) and states, zeros on masked tokens.

        Trailing columns without action tokens and leading columns without prompts cost nothing.
        """
        hidden_BTH = token_states(self.model.base_model, rollouts, self.inputs)
        mask_BT = rollouts.action_mask
        ids_N = rollouts.completion_ids[mask_BT]
        logprobs_N, entropies_N = self._distributions(hidden_BTH[mask_BT], ids_N)
        return TokenScores(
            logprobs=_scatter(logprobs_N, mask_BT),
            entropies=_scatter(entropies_N, mask_BT),
            hidden=hidden_BTH,
        )

    def encode(self, texts: Sequence[str]) -> tuple[Int[Tensor, "P Tp"], Bool[Tensor, "P Tp"]]:
        """Encodes texts as token ids, left-padded, with their mask, on the model's device.

        What the tokenizer puts around a text, such as a begin token, is put here; but for end
        tokens behind it, after which nothing would be said.

        Raises:
            PolicyError: a prompt has no token, so that nothing could be drawn after it.
        """
        return self._padded(self._rows(texts), texts)

    def encode_prompts(
        self, prompts: Sequence[Prompt], *, room: int = 0
    ) -> tuple[Int[Tensor, "P Tp"], Bool[Tensor, "P Tp"], tuple[Mapping[str, Tensor], ...]]:
        """Encodes prompts: left-padded ids, their mask, and what else the model reads of each.

        Args:
            prompts: a prompt may come more than once.
            room: tokens that are to follow each of them.

        Raises:
            PolicyError: a prompt has no token, images that cannot be read, or no room for that
                many tokens within the model's context; or it is a chat and the tokenizer has no
                template.
        """
        ids, mask, extras = self._encoded(prompts)
        _require_room(self.model, prompts, mask, room)
        return ids, mask, extras

    def _encoded(
        self, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, Tensor, tuple[Mapping[str, Tensor], ...]]:
        texts = [prompt.text for prompt in prompts]
        if self.images is None:
            _require_no_images(self.model, prompts)
            return *self._padded(self._ids(prompts), texts), ()
        # A prompt is read once, however many rows it has.
        different = {id(prompt): prompt for prompt in prompts}
        read = {place: self.images.encode(prompt) for place, prompt in different.items()}
        extras = tuple(read[id(prompt)] for prompt in prompts)
        return *self._padded([extra[IDS][0].tolist() for extra in extras], texts), extras

    def _ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Encodes each prompt's text, or its chat, as token ids; each different one once."""
        different = {id(prompt): prompt for prompt in prompts}
        plain = [prompt for prompt in different.values() if prompt.chat is None]
        rows = self._rows([prompt.text for prompt in plain])
        read = {id(prompt): row for prompt, row in zip(plain, rows, strict=True)}
        chats = {place: prompt for place, prompt in different.items() if place not in read}
        read |= {place: chat_ids(self.tokenizer, prompt) for place, prompt in chats.items()}
        return [read[id(prompt)] for prompt in prompts]

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts as token ids, without end tokens behind them."""
        rows = cast(Any, self.tokenizer)(list(texts))["input_ids"] if texts else []
        return [row[: len(row) - self._closing] for row in rows]

    def _padded(self, rows: Sequence[list[int]], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Pads ids of texts on their left; returns them with their mask."""
        if not all(rows):
            empty = texts[[len(row) for row in rows].index(0)]
            raise PolicyError(
                f"the prompt {empty!r} has no tokens; expected at least one, since the first token"
                " is drawn from the state after the prompt. Give it some text."
            )
        width = max(map(len, rows), default=0)
        ids = [[self.pad_id] * (width - len(row)) + row for row in rows]
        mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
        device = self.model.device
        ids_PT = torch.tensor(ids, dtype=torch.long, device=device).view(len(rows), width)
        return ids_PT, torch.tensor(mask, dtype=torch.bool, device=device).view(ids_PT.shape)

    def decode(
        self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[tuple[str, ...], Int[Tensor, "B T 2"]]:
        """Decodes the masked tokens to texts, without special ones, with each one's characters.

        Tokens outside the mask are zero-width: they are not in the text.
        """
        pairs = zip(ids.tolist(), mask.tolist(), strict=True)
        rows = [[token for token, keep in zip(*pair, strict=True) if keep] for pair in pairs]
        texts, spans = self._table.text_and_spans(rows)
        return texts, place_spans(spans, mask)

    def encode_observations(
        self, prompts: Sequence[Prompt], observations: Sequence[str], last_ids: Sequence[int]
    ) -> list[list[int]]:
        """Encodes what an environment answered, with what a chat's template writes round it.

        Names of special tokens in it are text.

        Raises:
            PolicyError: a prompt is a chat, and the template has no place for an observation; or
                the tokenizer does not know a character.
        """
        holder = self.images.processor if self.images is not None else self.tokenizer
        chats = self.images is not None and self.images.as_chats
        read: list[list[int]] = []
        for prompt, text, last in zip(prompts, observations, last_ids, strict=True):
            if prompt.chat is not None or chats:
                read.append(observation_ids(holder, self.tokenizer, prompt, text, last))
            else:
                read.append(plain_ids(self.tokenizer, text))
        return read

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

        Ids after a row's end are the pad id; T is at most ``params.max_new_tokens``. Stop strings
        are those of the completion's own text, in which the prompt is not. The images of a prompt
        are seen once, however many rows it has.
        """
        first = first_prompt_column(prompt_mask)
        ids, mask, cache, more = prompt_ids[:, first:], prompt_mask[:, first:], None, None
        if extras:
            firsts_B = _first_rows(ids, extras)
            read, base = firsts_B.unique(), self._sampled_base
            prefixes = PrefixCache.of_prompts(base, ids, mask, extras, read, self.inputs)
            here = firsts_B, torch.zeros_like(firsts_B)
            ids, mask, cache = prefixes.before(*here)
            more = prefixes.inputs_before(*here, cached=cache is not None)
        return self._sample(
            ids,
            mask,
            cache,
            more,
            params=params,
            generator=generator,
        )

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

        ``instead_N`` stands in the place of the tokens just before the positions. The rows are
        read once, as many at a time as ``micro_tokens`` allows; the states of those are sampled
        in batches of as many, longest first, so that a batch's lengths are alike. A state at the
        limit is continued by nothing, and truncated; one after an end token that was put in, or
        after a stop string, by nothing either. A stop string may begin before the position, in
        the tokens that the policy chose since the last hole, or since its turn began.
        """
        limit = params.max_new_tokens
        starts_N = _turn_begins(rollouts, rows_N, positions_N - int(instead_N is not None))
        limits_N = torch.full_like(positions_N, limit)
        if params.turn_tokens is not None:
            limits_N = (starts_N + params.turn_tokens).clamp(max=limit)
        length = rollouts.prompt_ids.shape[1] + limit
        most = max(micro_tokens // length, 1)
        ids_NF = rows_N.new_full((len(rows_N), limit), self.pad_id)
        mask_NF = torch.zeros_like(ids_NF, dtype=torch.bool)
        truncated_N = torch.ones_like(rows_N, dtype=torch.bool)
        logprobs_NF: Tensor | None = None
        ended_N = torch.zeros_like(truncated_N)
        if instead_N is not None:
            ended_N = torch.isin(instead_N, _index(list(self.end_ids), instead_N))
        before: list[list[int]] = []
        if params.stop:
            before = _chosen_before(rollouts, rows_N, starts_N, positions_N, instead_N)
            first = StopStrings(params.stop, self._table).first
            stopped = [first(ids) is not None for ids in before]
            ended_N = ended_N | torch.tensor(stopped, dtype=torch.bool, device=ended_N.device)
        open_N, truncated_N = (positions_N < limits_N) & ~ended_N, truncated_N & ~ended_N
        # The pieces of nothing are one empty piece, which the network cannot read.
        for rows_R in rows_N[open_N].unique().split(most) if open_N.any() else ():
            prefixes = PrefixCache.read(self._sampled_base, rollouts, rows_R, self.inputs)
            here_M = (open_N & torch.isin(rows_N, rows_R)).nonzero()[:, 0]
            for states_M in here_M[positions_N[here_M].argsort(descending=True)].split(most):
                room_M1 = (limits_N - positions_N)[states_M][:, None]
                here = rows_N[states_M], positions_N[states_M]
                prefix, prefix_mask, cache = prefixes.before(*here)
                more = prefixes.inputs_before(*here, cached=cache is not None)
                if instead_N is not None:  # the last column is the one that no cache holds
                    prefix[:, -1] = instead_N[states_M]
                made = self._sample(
                    prefix,
                    prefix_mask,
                    cache,
                    more,
                    params=replace(params, max_new_tokens=int(room_M1.max())),
                    generator=generator,
                    before=[before[state] for state in map(int, states_M)] if before else (),
                )
                width = made.ids.shape[1]
                late = made.mask & (torch.arange(width, device=rows_N.device) >= room_M1)
                ids_NF[states_M, :width] = made.ids
                mask_NF[states_M, :width] = made.mask & ~late
                truncated_N[states_M] = made.truncated | late.any(1)
                if made.logprobs is not None:
                    if logprobs_NF is None:
                        logprobs_NF = made.logprobs.new_zeros(ids_NF.shape)
                    logprobs_NF[states_M, :width] = made.logprobs.masked_fill(late, 0)
        return Generation(ids_NF, mask_NF, truncated_N, logprobs_NF)

    @torch.no_grad()
    def alternatives(
        self,
        rollouts: RolloutBatch,
        counts_BT: Int[Tensor, "B T"],
        *,
        micro_tokens: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "N"]:
        """Draws tokens in the place of those that are there, ``counts_BT`` of each."""
        drawn: list[Tensor] = [rollouts.completion_ids.new_empty(0)]
        # Whole rows in their order, few enough that their distributions can be held at once.
        width = rollouts.prompt_ids.shape[1] + rollouts.completion_ids.shape[1]
        every = torch.arange(len(rollouts), device=counts_BT.device)
        for rows in every.split(max(micro_tokens // width, 1)):
            counts_RT, some = counts_BT[rows], rollouts.select(rows)
            asked_RT = counts_RT > 0
            if not asked_RT.any():
                continue
            states_NH = token_states(self.model.base_model, some, self.inputs)[asked_RT]
            counts_N, taken_N = counts_RT[asked_RT], some.completion_ids[asked_RT]
            for piece in torch.arange(len(taken_N), device=taken_N.device).split(256):
                shares_MV = self._shares(states_NH[piece]).scatter_(1, taken_N[piece, None], 0.0)
                drawn.append(_draws(shares_MV, counts_N[piece], generator))
        return torch.cat(drawn)

    @torch.no_grad()
    def logit_gradients(self, rollouts: RolloutBatch, *, micro_tokens: int) -> Float[Tensor, "B T"]:
        """Computes |e_a - p|² of each token, in float32; 0 off the mask."""
        mask_BT = rollouts.action_mask
        found_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
        width = rollouts.prompt_ids.shape[1] + mask_BT.shape[1]
        every = torch.arange(len(rollouts), device=mask_BT.device)
        for rows in every.split(max(micro_tokens // width, 1)):
            mask_RT, some = mask_BT[rows], rollouts.select(rows)
            if not mask_RT.any():
                continue
            states_NH = token_states(self.model.base_model, some, self.inputs)[mask_RT]
            taken_N = some.completion_ids[mask_RT]
            norms: list[Tensor] = []
            for piece in torch.arange(len(taken_N), device=taken_N.device).split(256):
                away_MV = self._shares(states_NH[piece])
                # p_a - 1 before the square: 1 - 2 p_a + ... cancels where p_a is nearly 1.
                away_MV[torch.arange(len(piece)), taken_N[piece]] -= 1
                norms.append(away_MV.square().sum(1))
            found_BT[rows] = found_BT[rows].masked_scatter(mask_RT, torch.cat(norms))
        return found_BT

    def _shares(self, hidden_NH: Tensor) -> Tensor:
        """Computes (N,V) probabilities of the distributions sampled from."""
        output = _output_layer(self.model)
        logits_NV = output(hidden_NH.to(output.weight.dtype)).float() / self.temperature
        suppressed = _index(list(self.suppressed_ids), logits_NV)
        return logits_NV.index_fill(1, suppressed, -torch.inf).softmax(1)

    def _sample(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: Any = None,
        inputs: Mapping[str, Tensor] | None = None,
        *,
        params: SamplingParams,
        generator: torch.Generator,
        before: Sequence[Sequence[int]] = (),
    ) -> Generation:
        """Samples new tokens under the policy's own temperature, end tokens and suppressed ids.

        ``before``: tokens with whose text a row's stop strings may begin.
        """
        stops = StopStrings(params.stop, self._table, before) if params.stop else None
        with blame("sampler", type(self.sampler).__name__, self.sampler):
            drawn = self.sampler.sample(
                self.model,
                ids,
                mask,
                params=replace(
                    params,
                    temperature=self.temperature,
                    stop_ids=self.end_ids,
                    suppressed_ids=self.suppressed_ids,
                    ended=stops,
                ),
                pad_id=self.pad_id,
                generator=generator,
                cache=cache,
                inputs=inputs,
            )
            ids_BT = _checked_ids(drawn, len(ids), params.max_new_tokens)
        ended_BT = torch.isin(ids_BT, torch.tensor(self.end_ids, device=ids_BT.device))
        if stops is not None:
            # Whatever the sampler made of them: it may know nothing of stop strings.
            ended_BT = ended_BT | stops.ends(ids_BT.where(_up_to_first(ended_BT), self.pad_id))
        mask_BT = _up_to_first(ended_BT)
        logprobs_BT = None if drawn.logprobs is None else drawn.logprobs.masked_fill(~mask_BT, 0)
        ids_BT = ids_BT.where(mask_BT, self.pad_id)
        return Generation(ids_BT, mask_BT, ~ended_BT.any(1), logprobs_BT)

    def backbone(self) -> Backbone:
        """Copies the network under the output layer, as a module: rollouts -> (B,T,H).

        What is frozen in the policy is shared, and the copy trains what the policy trains.
        """
        return Backbone(copy_of_trained(self.model.base_model), self.inputs)

    @property
    def samples_in_process(self) -> bool:
        """True where the sampler runs this model, rather than an engine's copy of its weights."""
        return self.sampler.in_process

    @property
    def _sampled_base(self) -> nn.Module | None:
        """The network that reads prefixes for the sampler; None where an engine reads them itself.

        A pass of it would be for nothing, and where parameters are sharded they are not gathered.
        """
        return self.model.base_model if self.samples_in_process else None

    def sync(self) -> None:
        """Tells the sampler that the model's weights have changed."""
        with blame("sampler", type(self.sampler).__name__, self.sampler):
            self.sampler.sync(self.model)

    def _distributions(
        self, hidden_NH: Tensor, ids_N: Tensor
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """Computes log-probs of ids, and entropies, in nats, of the distributions sampled from."""
        logprobs_N, entropies_N = token_distributions(
            _output_layer(self.model),
            hidden_NH,
            ids_N,
            temperature=self.temperature,
            suppressed_X=_index(list(self.suppressed_ids), ids_N),
        )
        return logprobs_N.float(), entropies_N.float()


def _checked_ids(drawn: SampledTokens, rows: int, most: int) -> Int[Tensor, "B T"]:
    """Returns a sampler's ids; raises a ShapeError where they are not those of this batch."""
    require_type("sample", drawn, SampledTokens)
    ids, given = drawn.ids, drawn.logprobs
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.shape[0] != rows or ids.ndim != 2 or ids.shape[1] > most or not whole:
        raise ShapeError(
            f"sample returned ids of shape {tuple(ids.shape)} and type {ids.dtype}; expected whole"
            f" numbers in {rows} rows of at most {most} columns, without the prompts."
        )
    if given is not None:
        require_shape("sample (log-probs)", given, ids.shape)
    return ids


def _up_to_first(ended_BT: Tensor) -> Bool[Tensor, "B T"]:
    """Marks each row up to its first end, and on it: that has no end before it."""
    return ended_BT.long().cumsum(1) - ended_BT.long() == 0


def _turn_begins(rollouts: RolloutBatch, rows_N: Tensor, places_N: Tensor) -> Tensor:
    """Finds (N,) the first token of the turn that each place is in.

    It stands after the last hole, or where turn ids begin a turn.
    """
    mask_BT = rollouts.action_mask
    columns_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    # Of the T + 1 places, the last of which is behind all tokens.
    begins_BE = pad(((columns_T + 1) * ~mask_BT).cummax(1).values, (1, 0))
    if rollouts.turn_ids is not None:
        turns_BT = (columns_T * turn_starts(rollouts.turn_ids)).cummax(1).values
        turns_BE = torch.cat([turns_BT, turns_BT[:, -1:]], 1)
        begins_BE = torch.maximum(begins_BE, turns_BE)
    return begins_BE[rows_N, places_N]


def _chosen_before(
    rollouts: RolloutBatch,
    rows_N: Tensor,
    starts_N: Tensor,
    positions_N: Tensor,
    instead_N: Tensor | None,
) -> list[list[int]]:
    """Returns the tokens of the turn before each position."""
    ids, kept_N = _integers(rollouts.completion_ids), positions_N - int(instead_N is not None)
    ends = zip(*map(_integers, (rows_N, starts_N, kept_N)), strict=True)
    chosen = [ids[row][start:end] for row, start, end in ends]
    if instead_N is None:
        return chosen
    return [[*kept, token] for kept, token in zip(chosen, _integers(instead_N), strict=True)]


def _integers(x: Tensor) -> list[Any]:
    return x.cpu().numpy().tolist()


def _draws(shares_MV: Tensor, counts_M: Tensor, generator: torch.Generator) -> Int[Tensor, "N"]:
    """Draws categories from each row's shares, as many as asked for, row by row.

    By the inverse of the cumulated shares, which takes no memory of draws times vocabulary, and
    never gives a share of 0. The generator may live on another device.
    """
    cumulated_MV = shares_MV.double().cumsum(1)
    asked_MC = torch.arange(int(counts_M.max()), device=counts_M.device) < counts_M[:, None]
    uniform_MC = torch.rand(
        asked_MC.shape, dtype=torch.float64, generator=generator, device=generator.device
    )
    drawn_MC = torch.searchsorted(
        cumulated_MV, uniform_MC.to(shares_MV.device) * cumulated_MV[:, -1:], right=True
    )
    return drawn_MC[asked_MC]


def _first_rows(ids_BP: Tensor, extras: Sequence[Mapping[str, Tensor]]) -> Int[Tensor, "B"]:
    """Finds the first row with the same prompt and images as each row."""
    keys = list(zip(map(id, extras), map(tuple, ids_BP.cpu().numpy().tolist()), strict=True))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return torch.tensor([first[key] for key in keys], device=ids_BP.device)


def _scatter(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Puts (N,) entries at the True places of the mask, zeros elsewhere."""
    return x_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, x_N)


def _require_no_images(model: PreTrainedModel, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt.images:
            raise PolicyError(
                f"prompt {prompt.key!r} has {len(prompt.images)} images, and {type(model).__name__}"
                " reads text alone; expected a model that reads images, such as Qwen2.5-VL."
                " Choose another policy.model, or a task without images."
            )


def _require_room(
    model: PreTrainedModel, prompts: Sequence[Prompt], mask_PL: Tensor, room: int
) -> None:
    """Checks that prompts with what follows them are no longer than the model's context."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None or mask_PL.shape[1] + room <= limit:
        return
    lengths_P = mask_PL.sum(1)
    longest = int(lengths_P.argmax())
    raise PolicyError(
        f"prompt {prompts[longest].key!r} has {int(lengths_P[longest])} tokens and {room} are to"
        f" follow it, but the context of {type(model).__name__} is {limit} tokens; expected both"
        " within it. Lower rollouts.max_new_tokens, shorten or leave out such prompts in the task,"
        " or choose a model with a longer context."
    )


def _index(ids: list[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=like.device)


def _output_layer(model: PreTrainedModel) -> Any:
    """Returns the layer of the logits: a linear one, or one with adapters."""
    return model.get_output_embeddings()


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Lists the tokenizer's end token, and those that the checkpoint's generation config adds."""
    of_tokenizer = cast(Any, tokenizer).eos_token_id
    if of_tokenizer is None:
        raise PolicyError(
            f"the tokenizer of {model.config.name_or_path or type(model).__name__!r} has no end"
            " token; expected one, since a completion ends with it and is rewarded only then."
            " Base models often lack it: set eos_token in the checkpoint's tokenizer_config.json."
        )
    found = getattr(model.generation_config, "eos_token_id", None)
    more = [found] if isinstance(found, int) else list(found or ())
    return tuple(dict.fromkeys([int(of_tokenizer), *more]))


def _ids_without_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns ids that the model gives a probability and the tokenizer no text: invisible if drawn.

    Many checkpoints pad their vocabulary to a round size; Qwen's has hundreds of such ids.
    """
    known = {*cast(Any, tokenizer).get_vocab().values()}
    return {*range(_output_layer(model).weight.shape[0])} - known


def some_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a token of the vocabulary that is text; small vocabularies refuse any other."""
    special = {*cast(Any, tokenizer).all_special_ids}
    plain = (n for n in range(len(tokenizer)) if n not in special)
    return next((text for text in map(cast(Any, tokenizer).decode, plain) if text.isalnum()), "")


def closing_tokens(tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> int:
    """Counts the end tokens that the tokenizer puts behind every text; most put none."""
    text = some_text(tokenizer)
    ids: list[int] = cast(Any, tokenizer)(text)["input_ids"] if text else []
    return sum(1 for _ in takewhile(end_ids.__contains__, reversed(ids)))


def _pad_id(tokenizer: PreTrainedTokenizerBase, end_ids: tuple[int, ...]) -> int:
    pad = cast(Any, tokenizer).pad_token_id
    return end_ids[0] if pad is None else int(pad)


@torch.no_grad()
def _require_plain_logits(model: PreTrainedModel, end_id: int) -> None:
    """Refuses models that scale or cap their logits: scoring would silently disagree."""
    # Some other token could be an image's, which needs an image.
    ids_BL = torch.tensor([[end_id, end_id]], device=model.device)
    states_BLH = cast(Any, model.base_model)(input_ids=ids_BL, use_cache=False).last_hidden_state
    plain_BLV = _output_layer(model)(states_BLH)
    logits_BLV = cast(Any, model)(input_ids=ids_BL, use_cache=False).logits
    if not torch.allclose(plain_BLV.float(), logits_BLV.float(), rtol=1e-3, atol=1e-3):
        raise PolicyError(
            f"the logits of {type(model).__name__} are not those of its output layer (they differ"
            f" by up to {float((plain_BLV - logits_BLV).abs().max()):.3g}); expected equal ones,"
            " since scoring runs that layer on completion tokens alone. Usually the model scales"
            " or caps its logits, as Gemma 2 and Granite do: choose another one."
        )

"""A real policy small enough to enumerate: three symbols, completions of four tokens.

Everything that is a sample elsewhere is an exact sum here, so that estimators and gradients are
checked without chance. Shapes as in ``segcredit.types``; ``C`` counts all completions.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence, Set
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from segcredit.objective.returns import token_rewards
from segcredit.protocols import Prompt, Reading, readable_scores
from segcredit.types import Continuations, Generation, RolloutBatch, SamplingParams, TokenScores

SYMBOLS = " \na"
"""Token ids 1, 2 and 3; 0 is padding."""
_COUNT = len(SYMBOLS)


class ToyBackbone(nn.Module):
    """A vector for each prompt and prefix: a network that can express every policy."""

    def __init__(self, length: int, prompts: int, hidden_size: int) -> None:
        super().__init__()
        self.length = length
        self.prefixes = (_COUNT**length - 1) // (_COUNT - 1)
        self.table = nn.Embedding(prompts * self.prefixes, hidden_size)

    def forward(self, rollouts: RolloutBatch) -> Float[Tensor, "B T H"]:
        """Returns the state before each token, (B,T,H)."""
        prefixes_BT = prefix_numbers(rollouts.completion_ids, self.length)
        return self.table(rollouts.prompt_ids[:, -1:] * self.prefixes + prefixes_BT)


def prefix_numbers(ids_BT: Int[Tensor, "B T"], length: int) -> Int[Tensor, "B T"]:
    """Numbers the prefix before each token: 0 for the empty one, then by length.

    Columns beyond ``length`` hold padding; they get the number 0.
    """
    numbers_BT = torch.zeros_like(ids_BT)
    for t in range(1, min(length, ids_BT.shape[1])):
        numbers_BT[:, t] = _COUNT * numbers_BT[:, t - 1] + ids_BT[:, t - 1].clamp(1, _COUNT)
    return numbers_BT


class ToyPolicy(nn.Module):
    """A ``Policy`` over a space, a newline and "a"; prompts are the texts "0", "1", ...

    Completions end after ``length`` tokens; there is neither an end token nor a stop string. Each
    prefix of each prompt has logits of its own, drawn at random.

    Args:
        length: tokens of a completion.
        prompts: how many prompts.
        hidden_size: width of a state; 3 or more can express every policy.
        seed: of the parameters.
    """

    def __init__(
        self, *, length: int = 4, prompts: int = 3, hidden_size: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        self.length = length
        self.prompts = prompts
        self.hidden_size = hidden_size
        self.temperature = 1.0
        self.samples_in_process = True
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
            self.states = ToyBackbone(length, prompts, hidden_size)
            self.output = nn.Linear(hidden_size, _COUNT)

    def forward(self, rollouts: RolloutBatch) -> TokenScores:
        """Scores the completions, with gradients."""
        mask_BT = rollouts.action_mask
        hidden_BTH = self.states(rollouts)
        log_BTV = torch.log_softmax(self.output(hidden_BTH) / self.temperature, dim=-1)
        chosen_BT1 = (rollouts.completion_ids.clamp(1, _COUNT) - 1)[..., None]
        return TokenScores(
            logprobs=log_BTV.gather(2, chosen_BT1)[..., 0].masked_fill(~mask_BT, 0),
            entropies=-(log_BTV.exp() * log_BTV).sum(-1).masked_fill(~mask_BT, 0),
            hidden=hidden_BTH.masked_fill(~mask_BT[..., None], 0),
        )

    def encode(self, texts: Sequence[str]) -> tuple[Int[Tensor, "P Tp"], Bool[Tensor, "P Tp"]]:
        """Returns one token a prompt: its number."""
        numbers = [int(text) % self.prompts for text in texts]
        device = self.output.weight.device
        ids_P1 = torch.tensor(numbers, dtype=torch.long, device=device)[:, None]
        return ids_P1, torch.ones_like(ids_P1, dtype=torch.bool)

    def encode_prompts(
        self, prompts: Sequence[Prompt], *, room: int = 0
    ) -> tuple[Int[Tensor, "P Tp"], Bool[Tensor, "P Tp"], tuple[Mapping[str, Tensor], ...]]:
        """Returns one token a prompt; images are not read."""
        return *self.encode([prompt.text for prompt in prompts]), ()

    def decode(
        self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[tuple[str, ...], Int[Tensor, "B T 2"]]:
        """Returns one character a token; masked tokens have none."""
        ends_BT = mask.long().cumsum(1)
        kept_BT = ids.masked_fill(~mask, 0)
        rows = cast("list[list[int]]", kept_BT.tolist())  # pyright: ignore[reportUnknownMemberType]
        texts = tuple("".join(SYMBOLS[token - 1] for token in row if token) for row in rows)
        return texts, torch.stack([ends_BT - mask.long(), ends_BT], dim=2)

    def generate(
        self,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        extras: Sequence[Mapping[str, Tensor]] = (),
        *,
        params: SamplingParams,
        generator: torch.Generator,
    ) -> Generation:
        """Samples completions; truncated if fewer tokens are allowed than they have."""
        rows, width = len(prompt_ids), min(params.max_new_tokens, self.length)
        numbers_B = prompt_ids.new_zeros(rows)
        columns: list[Tensor] = []
        for _ in range(width):
            shares_BV = self._next(prompt_ids[:, -1], numbers_B)
            drawn_B = shares_BV.argmax(-1) if params.greedy else _drawn(shares_BV, generator)
            columns.append(drawn_B + 1)
            numbers_B = _COUNT * numbers_B + drawn_B + 1
        ids_BT = torch.stack(columns, dim=1)
        cut_B = torch.full_like(numbers_B, width < self.length, dtype=torch.bool)
        return Generation(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), cut_B)

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
        """Samples new symbols from each position on; truncated if too few are allowed."""
        width = min(params.max_new_tokens, self.length)
        ids_NT = rollouts.completion_ids[rows_N][:, :width].clamp(1, _COUNT)
        ids_NT = nn.functional.pad(ids_NT, (0, width - ids_NT.shape[1]), value=1)
        prompts_N = rollouts.prompt_ids[rows_N, -1]
        if instead_N is not None:
            ids_NT.scatter_(1, positions_N[:, None] - 1, instead_N[:, None])
        for t in range(width):
            shares_NV = self._next(prompts_N, prefix_numbers(ids_NT, self.length)[:, t])
            drawn_N = shares_NV.argmax(-1) if params.greedy else _drawn(shares_NV, generator)
            ids_NT[:, t] = torch.where(positions_N <= t, drawn_N + 1, ids_NT[:, t])
        fresh_NT = torch.arange(width, device=ids_NT.device) >= positions_N[:, None]
        order_NT = torch.argsort(~fresh_NT, dim=1, stable=True)
        cut_N = torch.full_like(prompts_N, width < self.length, dtype=torch.bool)
        return Generation(ids_NT.gather(1, order_NT), fresh_NT.gather(1, order_NT), cut_N)

    @torch.no_grad()
    def alternatives(
        self,
        rollouts: RolloutBatch,
        counts_BT: Int[Tensor, "B T"],
        *,
        micro_tokens: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "N"]:
        """Draws symbols in the place of those that are there, ``counts_BT`` of each."""
        numbers_BT = prefix_numbers(rollouts.completion_ids, self.length)
        rows_N, columns_N = (counts_BT > 0).nonzero(as_tuple=True)
        shares_NV = self._next(rollouts.prompt_ids[rows_N, -1], numbers_BT[rows_N, columns_N])
        taken_N1 = rollouts.completion_ids[rows_N, columns_N][:, None] - 1
        shares_NV = shares_NV.scatter(1, taken_N1, 0.0)
        repeated_NV = shares_NV.repeat_interleave(counts_BT[rows_N, columns_N], 0)
        if not len(repeated_NV):
            return taken_N1.new_empty(0)
        return _drawn(repeated_NV, generator) + 1

    @torch.no_grad()
    def logit_gradients(self, rollouts: RolloutBatch, *, micro_tokens: int) -> Float[Tensor, "B T"]:
        """Computes |e_a - p|² of each symbol; 0 off the mask."""
        away_BTV = torch.softmax(self.output(self.states(rollouts)) / self.temperature, dim=-1)
        chosen_BT1 = (rollouts.completion_ids.clamp(1, _COUNT) - 1)[..., None]
        away_BTV = away_BTV.scatter_add(2, chosen_BT1, -torch.ones_like(away_BTV[..., :1]))
        return away_BTV.square().sum(-1).masked_fill(~rollouts.action_mask, 0)

    @torch.no_grad()
    def _next(self, prompts_B: Tensor, numbers_B: Tensor) -> Tensor:
        """Returns probabilities of the next symbol after these prefixes, (B,V)."""
        states_BH = self.states.table(prompts_B * self.states.prefixes + numbers_B)
        return torch.softmax(self.output(states_BH) / self.temperature, dim=-1)

    def sync(self) -> None:
        """Does nothing: the toy samples from its own table."""

    def backbone(self) -> nn.Module:
        """Returns a copy of the table of states."""
        return copy.deepcopy(self.states)

    def enumerate(self, prompt: str = "0") -> RolloutBatch:
        """Returns every completion of a prompt, in the order of their ids; rewards are 0."""
        device = self.output.weight.device
        digits_T = torch.arange(self.length - 1, -1, -1, device=device)
        places_C1 = torch.arange(_COUNT**self.length, device=device)[:, None]
        ids_CT = places_C1 // _COUNT**digits_T % _COUNT + 1
        return self.rollouts([prompt] * len(ids_CT), ids_CT)

    def rollouts(self, prompts: Sequence[str], ids_BT: Int[Tensor, "B T"]) -> RolloutBatch:
        """Makes rollouts of given completions, scored; rewards are 0."""
        prompt_ids, prompt_mask = self.encode(prompts)
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        texts, token_spans = self.decode(ids_BT, mask_BT)
        blank_BT = torch.zeros_like(ids_BT, dtype=self.output.weight.dtype)
        rollouts = RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            prompt_keys=tuple(prompts),
            completion_ids=ids_BT,
            action_mask=mask_BT,
            logprobs=blank_BT,
            entropies=blank_BT,
            group=prompt_ids[:, 0],
            texts=texts,
            token_spans=token_spans,
            rewards=blank_BT.sum(1),
            token_rewards=blank_BT,
            truncated=torch.zeros_like(ids_BT[:, 0], dtype=torch.bool),
        )
        with torch.no_grad():
            scores = self(rollouts)
        return rollouts.replace(logprobs=scores.logprobs, entropies=scores.entropies)


def _drawn(shares_NV: Tensor, generator: torch.Generator) -> Tensor:
    """Draws an index for each row of shares, on the generator's device."""
    drawn_N1 = torch.multinomial(shares_NV.to(generator.device), 1, generator=generator)
    return drawn_N1[:, 0].to(shares_NV.device)


def toy_reward(prompt: str, text: str) -> float:
    """Returns a reward that depends on prompt, symbols and their order."""
    return (
        sum(
            (place + 1) * (zlib.crc32(f"{prompt}{place}{text[place]}".encode()) % 97)
            for place in range(len(text))
        )
        / 970
    )


class ToySimulator:
    """A ``Simulator`` that continues by enumeration: what is an estimate elsewhere is exact.

    ``resume`` gives the expected reward of every state, repeated ``count`` times; ``score`` gives
    real scores; ``sample`` draws, always the same completions for the same key.

    Args:
        policy: whose completions are continued.
        reward: of a prompt's completion.
        reads: what the asker may see of scores, see ``ValueEstimator.reads``; None = all.
    """

    def __init__(
        self,
        policy: ToyPolicy | None = None,
        reward: Callable[[str, str], float] = toy_reward,
        reads: Set[Reading] | None = None,
    ) -> None:
        self.reads = reads
        self.policy = ToyPolicy() if policy is None else policy
        self.reward = reward
        self.params = SamplingParams(max_new_tokens=self.policy.length)

    def enumerate(self, prompt: str = "0") -> RolloutBatch:
        """Returns every completion of a prompt with its reward."""
        return self._rewarded(self.policy.enumerate(prompt))

    def values(self, rollouts: RolloutBatch) -> Float[Tensor, "B T"]:
        """Returns the exact expected reward from before each token; 0 beyond the toy's length."""
        values_BT = torch.zeros_like(rollouts.logprobs)
        numbers_BT = prefix_numbers(rollouts.completion_ids, self.policy.length)
        for prompt in dict.fromkeys(rollouts.prompt_keys):
            rows = torch.tensor([key == prompt for key in rollouts.prompt_keys])
            exact = self._prefix_values(prompt).to(values_BT)
            values_BT[rows] = exact[numbers_BT[rows]]
        values_BT[:, self.policy.length :] = 0
        return values_BT

    def _prefix_values(self, prompt: str) -> Float[Tensor, "N"]:
        """Computes the expected reward of every prefix, in the order of their numbers."""
        everything = self.enumerate(prompt)
        shares_C = everything.logprobs.double().sum(1).exp()
        earned_C = shares_C * everything.rewards
        levels = [
            earned_C.view(_COUNT**t, -1).sum(1) / shares_C.view(_COUNT**t, -1).sum(1)
            for t in range(self.policy.length)
        ]
        return torch.cat(levels)

    def _rewarded(self, rollouts: RolloutBatch) -> RolloutBatch:
        pairs = zip(rollouts.prompt_keys, rollouts.texts, strict=True)
        rewards_B = rollouts.rewards.new_tensor([self.reward(key, text) for key, text in pairs])
        placed_BT = token_rewards(rewards_B, rollouts.action_mask)
        return rollouts.replace(rewards=rewards_B, token_rewards=placed_BT)

    def sample(
        self, prompt_keys: Sequence[str], count: int, *, params: SamplingParams | None = None
    ) -> RolloutBatch:
        """Samples ``count`` rewarded completions of each prompt, in the order of the keys."""
        drawn: list[Tensor] = []
        for key in prompt_keys:
            prompt_ids, prompt_mask = self.policy.encode([key] * count)
            source = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            made = self.policy.generate(
                prompt_ids, prompt_mask, params=params or self.params, generator=source
            )
            drawn.append(made.ids)
        repeated = [key for key in prompt_keys for _ in range(count)]
        return self._rewarded(self.policy.rollouts(repeated, torch.cat(drawn)))

    def resume(
        self,
        rollouts: RolloutBatch,
        rows_N: Int[Tensor, "N"],
        positions_N: Int[Tensor, "N"],
        count: int,
        *,
        params: SamplingParams | None = None,
    ) -> Continuations:
        """Returns each state's expected reward (greedy: its greedy end's), ``count`` times."""
        if (params or self.params).greedy:
            ends = self._greedy_ends(rollouts, rows_N, positions_N)
            reached_N = self._rewarded(ends).rewards
        else:
            reached_N = self._expected(rollouts, rows_N, positions_N)
        left_N = (self.policy.length - positions_N).clamp(min=0)
        return Continuations(
            rewards=reached_N[:, None].repeat(1, count),
            truncated=torch.zeros_like(rows_N, dtype=torch.bool)[:, None].repeat(1, count),
            tokens=int(left_N.sum()) * count,
        )

    def _expected(
        self, rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor
    ) -> Float[Tensor, "N"]:
        """Returns values before the positions; after the last token, the reward."""
        ids_NT = self._filled(rollouts, rows_N)
        keys = [rollouts.prompt_keys[row] for row in map(int, rows_N)]
        whole = self._rewarded(self.policy.rollouts(keys, ids_NT))
        values_NT = torch.cat([self.values(whole), whole.rewards[:, None]], dim=1)
        return values_NT.gather(1, positions_N.clamp(max=self.policy.length)[:, None])[:, 0]

    def _filled(self, rollouts: RolloutBatch, rows_N: Tensor) -> Int[Tensor, "N T"]:
        """Returns ids of the toy's length: padding is cut off, or made into symbols."""
        ids_NT = rollouts.completion_ids[rows_N][:, : self.policy.length].clamp(1, _COUNT)
        missing = self.policy.length - ids_NT.shape[1]
        return torch.cat([ids_NT, ids_NT.new_ones(len(ids_NT), missing)], dim=1)

    def _greedy_ends(
        self, rollouts: RolloutBatch, rows_N: Tensor, positions_N: Tensor
    ) -> RolloutBatch:
        ids_NT = self._filled(rollouts, rows_N)
        prompts_N = rollouts.prompt_ids[rows_N, -1]
        for t in range(self.policy.length):
            numbers_N = prefix_numbers(ids_NT, self.policy.length)[:, t]
            best_N = self.policy._next(prompts_N, numbers_N).argmax(-1) + 1  # pyright: ignore[reportPrivateUsage]
            ids_NT[:, t] = torch.where(positions_N <= t, best_N, ids_NT[:, t])
        return self.policy.rollouts([rollouts.prompt_keys[row] for row in map(int, rows_N)], ids_NT)

    def score(self, rollouts: RolloutBatch) -> TokenScores:
        """Computes real scores, without gradients; NaN where ``reads`` does not name them."""
        with torch.no_grad():
            scores = self.policy(rollouts)
        return scores if self.reads is None else readable_scores(scores, self.reads)

    def logit_gradients(self, rollouts: RolloutBatch) -> Float[Tensor, "B T"]:
        """Computes |e_a - p|² of each symbol; 0 off the mask."""
        return self.policy.logit_gradients(rollouts, micro_tokens=rollouts.completion_ids.numel())


def toy_rollouts(
    simulator: ToySimulator, *, lengths: Sequence[int] = (4, 3, 1, 0, 4, 2), hole: bool = True
) -> RolloutBatch:
    """Samples rollouts of the toy, two a prompt, cut to given lengths; the first has a hole.

    Args:
        simulator: whose policy samples; at most its policy's prompts times two rows.
        lengths: tokens of each row, at most the policy's length.
        hole: whether the first row's token 1 is one that the policy did not choose.
    """
    rows = len(lengths)
    keys = [str(number) for number in range((rows + 1) // 2)]
    whole = simulator.sample(keys, 2).select(list(range(rows)))
    columns_T = torch.arange(simulator.policy.length)
    exists_BT = (columns_T < torch.tensor(lengths)[:, None]).to(whole.action_mask.device)
    action_BT = exists_BT.clone()
    if hole:
        action_BT[0, 1] = False
    texts, spans = simulator.policy.decode(whole.completion_ids, exists_BT)
    return whole.replace(
        action_mask=action_BT,
        texts=texts,
        token_spans=spans,
        truncated=~exists_BT[:, -1],
        token_rewards=token_rewards(whole.rewards, action_BT),
        token_values=simulator.values(whole),
        reference_logprobs=whole.logprobs - 0.1,
        reference_entropies=whole.entropies + 0.1,
        reference_hidden=simulator.policy(whole).hidden.detach() + 0.1,
        others_reward=torch.arange(rows).to(whole.rewards) / rows,
    )

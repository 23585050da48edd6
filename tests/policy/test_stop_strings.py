"""Stop strings: where a completion ends, whoever samples it and wherever it is resumed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from policy.test_token_spans import _BYTES, DECODERS, Decode, _written
from sampling_models import MODELS
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.samplers.lean import Lean
from segcredit.policy.stop_strings import StopStrings
from segcredit.policy.token_spans import PieceTable
from segcredit.types import Generation, RolloutBatch, SampledTokens, SamplingParams, stop_strings


def first(ids: Sequence[int], decode: Decode, *strings: str) -> int | None:
    return StopStrings(strings, PieceTable(decode)).first(ids)


def slow_first(ids: Sequence[int], decode: Decode, *strings: str) -> int | None:
    """The definition: the first token with which the decoded text has a stop string."""
    for place in range(len(ids)):
        text = decode(list(ids[: place + 1]))
        if any(string in text for string in strings):
            return place
    return None


REAL = ["bytes", "sentence_piece", "metaspace", "word_piece", "end_of_word", "one_blank"]


@pytest.mark.parametrize("name", REAL)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_row_ends_where_its_decoded_text_first_has_a_stop_string(
    name: str, data: st.DataObject
) -> None:
    decode, size = DECODERS[name]
    row = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=60))
    text, strings = decode(row), []
    for _ in range(2):
        start = data.draw(st.integers(0, len(text)))
        strings.append(text[start : start + data.draw(st.integers(1, 5))].replace("\ufffd", ""))
    strings = [string or "a" for string in strings]
    assert first(row, decode, *strings) == slow_first(row, decode, *strings)


WRITTEN = [
    ("bytes", "a。b", ["。"], 3, "a character of three tokens"),
    ("bytes", "😀é。", ["é。"], 8, "characters of several tokens before and in it"),
    ("sentence_piece", "a😀b", ["😀"], 4, "bytes where the vocabulary lacks a character"),
    ("bytes", "abcd", ["abcd", "bc"], 2, "the one that is complete first, not that begins first"),
    ("bytes", "abab", ["bab", "ab"], 1, "one within the other"),
    ("bytes", "aaab", ["aab"], 3, "an occurrence that overlaps a false start"),
    ("bytes", "Answer: 3\n\nQuestion", ["\n\nQuestion:"], None, "all but its last character"),
    ("bytes", "", ["a"], None, "nothing"),
    ("sentence_piece", "语" * 8 + "😀", ["😀"], 27, "no beginning of a character at the tail's"),
]


@pytest.mark.parametrize(("kind", "text", "strings", "place", "what"), WRITTEN)
def test_the_token_that_completes_it_is_the_last(
    kind: str, text: str, strings: list[str], place: int | None, what: str
) -> None:
    decode, _ = DECODERS[kind]
    assert first(_written(kind, text), decode, *strings) == place, what


PIECES = ["<s>", "ab\n\nQ", "\n", "Q:", "x", "a\n"]


def _decode_pieces(ids: list[int]) -> str:
    return "".join(PIECES[token] for token in ids if token)


@pytest.mark.parametrize(
    ("ids", "string", "place"),
    [
        ([4, 1, 4], "\n\n", 1),  # inside one token
        ([4, 5, 2, 3, 4], "\n\nQ", 3),  # begins and ends within tokens
        ([5, 0, 0, 2, 4], "\n\n", 3),  # special tokens have no text
        ([0, 0], "x", None),
    ],
)
def test_tokens_need_not_begin_and_end_with_it(
    ids: list[int], string: str, place: int | None
) -> None:
    assert first(ids, _decode_pieces, string) == place


def test_what_comes_later_changes_no_stop_and_what_came_before_may() -> None:
    """A later byte makes those before it no character; the row had ended by then."""
    decode, _ = DECODERS["sentence_piece"]
    ids = _written("sentence_piece", "é")
    broken = [*ids, 4 + 0xFF]
    assert "é" not in decode(broken)
    assert first(broken, decode, "é") == 1
    # A byte long before makes those after it none.
    assert first([4 + 0xFF, *_written("sentence_piece", "\nabcdefé")], decode, "é") is None


def test_a_row_is_not_decoded_at_every_token() -> None:
    decode, _ = DECODERS["bytes"]
    decoded: list[int] = []

    def counted(ids: list[int]) -> str:
        decoded.append(len(ids))
        return decode(ids)

    ids = _written("bytes", "Is it 3? Or: 4. Let me see: 语 is no number. \n\n" * 40)
    assert first(ids, counted, "\n\nQuestion:") is None
    assert sum(decoded) < 2 * len(ids)


A, B, E1, E2 = _written("bytes", "abé")
END, PAD = 256, 257
LIMIT = 12
STOP = ("ab", "bé")


class Unaware(Generate):
    """A sampler that knows nothing of stop strings, and has no token behind a row's end."""

    def sample(self, *args: Any, params: SamplingParams, **options: Any) -> Any:
        plain = replace(params, stop=(), ended=None)
        found = super().sample(*args, params=plain, **options)
        return SampledTokens(found.ids.masked_fill(found.ids == PAD, -1))


SAMPLERS = [Generate(), Lean(), Unaware()]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: type(one).__name__)
each_plain_sampler = pytest.mark.parametrize(
    "sampler", SAMPLERS[::2], ids=lambda one: type(one).__name__
)
"""Those whose draws in a row do not depend on when others end."""


def policy_with(sampler: Any) -> Any:
    """A random model of a, b, the two bytes of é, and the end."""
    _, config = MODELS["llama"]
    config = type(config)(**{**config.to_dict(), "vocab_size": 258, "initializer_range": 0.2})
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    fast = Tokenizer(models.BPE({piece: index for index, piece in enumerate(_BYTES)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>", pad_token="<pad>")
    model.generation_config.eos_token_id = None
    never = sorted({*range(258)} - {A, B, E1, E2, END})
    return CausalPolicy(model, tokenizer, sampler, suppressed_ids=never)


def params_of(*stop: str, greedy: bool = False, limit: int = LIMIT) -> SamplingParams:
    return SamplingParams(max_new_tokens=limit, stop=stop, greedy=greedy)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(policy: Any, *stop: str, rows: int = 48, **options: Any) -> Generation:
    prompts = policy.encode(["a", "abé"] * (rows // 2))
    return policy.generate(*prompts, params=params_of(*stop, **options), generator=seeded())


def rows_of(made: Generation) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(made.ids, made.mask, strict=True)]


def decode_of(policy: Any) -> Decode:
    return partial(policy.tokenizer.decode, skip_special_tokens=True)


def cut(policy: Any, row: list[int], *stop: str, before: Sequence[int] = ()) -> list[int]:
    """A row up to its stop, by the definition."""
    place = slow_first([*before, *row], decode_of(policy), *stop)
    return row if place is None else row[: place + 1 - len(before)]


@each_plain_sampler
def test_completions_are_those_without_stop_strings_cut_at_the_first(sampler: Any) -> None:
    policy, plain = policy_with(sampler), policy_with(Generate())
    made, without = drawn(policy, *STOP), drawn(plain)
    expected = [cut(policy, row, *STOP) for row in rows_of(without)]
    assert rows_of(made) == expected
    stopped = [len(a) < len(b) for a, b in zip(expected, rows_of(without), strict=True)]
    assert any(stopped)
    texts, _ = policy.decode(made.ids, made.mask)
    for row, text, truncated in zip(expected, texts, made.truncated.tolist(), strict=True):
        has = any(stop in text for stop in STOP)
        assert truncated == (not has and row[-1] != END)


def test_rows_that_leave_the_batch_leave_the_others_as_they_are() -> None:
    policy = policy_with(Lean())
    made = drawn(policy, *STOP, rows=400)
    texts, _ = policy.decode(made.ids, made.mask)
    for row, text, truncated in zip(rows_of(made), texts, made.truncated.tolist(), strict=True):
        assert row == cut(policy, row, *STOP)
        assert truncated == (row[-1] != END and not text.endswith(STOP))
    assert {len(row) for row in rows_of(made)} >= {2, 3, LIMIT}
    # The first token ends no completion early: its shares are those without stop strings.
    firsts = [torch.bincount(x.ids[:, 0], minlength=258) for x in (made, drawn(policy, rows=400))]
    assert (firsts[0] - firsts[1]).abs().max() < 5 * (2 * 400 * 0.25) ** 0.5


@pytest.mark.parametrize("sampler", SAMPLERS[:2], ids=lambda one: type(one).__name__)
def test_samplers_end_rows_early(sampler: Any) -> None:
    policy = policy_with(sampler)
    made, plain = drawn(policy, "a", "b", "é", limit=400), drawn(policy, limit=400)
    assert 2 * made.ids.shape[1] < plain.ids.shape[1]


def test_one_that_is_complete_at_the_limit_is_not_truncated() -> None:
    made = drawn(policy_with(Generate()), "ab", limit=2)
    for row, truncated in zip(rows_of(made), made.truncated.tolist(), strict=True):
        assert truncated == (row != [A, B] and row[-1] != END)
    assert [A, B] in rows_of(made)


def rollouts_of(policy: Any, made: Generation, mask: Tensor | None = None) -> RolloutBatch:
    prompt_ids, prompt_mask = policy.encode(["a", "abé"] * (len(made.ids) // 2))
    texts, spans = policy.decode(made.ids, made.mask)
    blank = torch.zeros(made.ids.shape)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_keys=tuple(map(str, range(len(texts)))),
        completion_ids=made.ids,
        action_mask=made.mask if mask is None else mask,
        logprobs=blank,
        entropies=blank,
        group=torch.arange(len(texts)),
        texts=texts,
        token_spans=spans,
        rewards=blank.sum(1),
        token_rewards=blank,
        truncated=made.truncated,
    )


def resumed(
    policy: Any, rollouts: RolloutBatch, rows: Any, positions: Any, *stop: str, **options: Any
) -> Generation:
    instead, greedy = options.pop("instead", None), options.pop("greedy", False)
    return policy.resume(
        rollouts,
        torch.as_tensor(rows),
        torch.as_tensor(positions),
        params=params_of(*stop, greedy=greedy),
        micro_tokens=2000,
        generator=seeded(3),
        instead_N=None if instead is None else torch.as_tensor(instead),
    )


@each_sampler
def test_continuations_are_those_without_stop_strings_cut_over_the_seam(sampler: Any) -> None:
    policy = policy_with(sampler)
    made = drawn(policy, *STOP)
    rollouts = rollouts_of(policy, made)
    lengths = made.mask.sum(1).tolist()
    states = [(row, at) for row, length in enumerate(lengths) for at in range(length)]
    rows, positions = map(list, zip(*states, strict=True))
    plain = rows_of(resumed(policy, rollouts, rows, positions))
    found = resumed(policy, rollouts, rows, positions, *STOP)
    seams = 0
    for (row, at), new, without, truncated in zip(
        states, rows_of(found), plain, found.truncated.tolist(), strict=True
    ):
        before = made.ids[row, :at].tolist()
        assert new == cut(policy, new, *STOP, before=before)
        assert isinstance(sampler, Lean) or new == cut(policy, without, *STOP, before=before)
        ends = decode_of(policy)([*before, *new]).endswith(STOP) or new[-1] == END
        assert truncated != ends
        assert ends or len(before) + len(new) == LIMIT
        seams += ends and new[-1] != END and not decode_of(policy)(new).endswith(STOP)
    assert seams > 10, "some stop strings ought to lie over the seam"


@each_sampler
def test_nothing_follows_a_stop_string(sampler: Any) -> None:
    policy = policy_with(sampler)
    ids = torch.tensor([[B, A, B, A, A, A], [B, E1, A, A, A, A]])
    made = Generation(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([False, False]))
    rollouts = rollouts_of(policy, made)
    states = [0, 0, 0, 1, 1], [2, 3, 5, 2, 3]
    found = resumed(policy, rollouts, *states, *STOP)
    assert [bool(len(row)) for row in rows_of(found)] == [True, False, False, True, True]
    assert not found.truncated[1:3].any()
    # Tokens that are put in end a row as its own do, and an end token does as before.
    found = resumed(policy, rollouts, [0, 1, 1, 1], [2, 2, 3, 3], *STOP, instead=[B, A, E2, END])
    assert [bool(len(row)) for row in rows_of(found)] == [True, True, False, False]
    assert not found.truncated[2:].any()


@each_plain_sampler
def test_what_the_environment_says_is_no_part_of_a_stop_string(sampler: Any) -> None:
    policy = policy_with(sampler)
    ids = torch.tensor([[B, A, B, A, A, A], [B, B, A, A, A, A]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 1:3] = False  # the stop string is in the hole
    mask[1, 2] = False  # the stop string would begin in the hole
    made = Generation(ids, torch.ones_like(mask), torch.tensor([False, False]))
    rollouts = rollouts_of(policy, made, mask)
    rows, positions = [0] * 40 + [1] * 40, [3] * 80
    plain = rows_of(resumed(policy, rollouts, rows, positions))
    found = rows_of(resumed(policy, rollouts, rows, positions, *STOP))
    assert found == [cut(policy, row, *STOP) for row in plain]
    assert any(row[0] == B and len(row) > 1 for row in found[40:])


def test_they_travel_to_other_processes() -> None:
    policy = policy_with(Generate())
    here = StopStrings(STOP, policy._table)
    there = pickle.loads(pickle.dumps(here))
    ids = torch.tensor([[B, A, B, A], [A, A, B, E1], [A, E1, E2, E2]])
    assert there.ends(ids).tolist() == here.ends(ids).tolist()
    assert here.ends(ids).nonzero().tolist() == [[0, 2], [1, 2]]
    assert there(ids[:, :3], torch.tensor([1, 0])).tolist() == [True, True]
    assert there(ids[:, :2], torch.tensor([2, 0, 1])).tolist() == [False, False, False]


def test_a_bare_string_is_one_and_none_may_be_empty() -> None:
    assert params_of().stop == ()
    assert stop_strings("\n\n") == ("\n\n",)
    with pytest.raises(ValueError, match="at least one character"):
        params_of("a", "")
    with pytest.raises(ValueError, match="not yet whole"):
        params_of("\ufffd")

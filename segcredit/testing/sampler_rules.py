"""The rules for samplers, on a small model of the kit's own, which is read row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from segcredit.rng import initialised
from segcredit.testing.checked_plugin import CheckedPlugin, Rule, require_shares
from segcredit.types import SampledTokens, SamplingParams

_VOCABULARY = 64
"""More than the 50 tokens that transformers keeps by default."""
_PAD = 0
_FIRST = 3
"""Lowest id of a prompt."""
_LENGTHS = (5, 2, 4, 3, 2)
"""Tokens of the prompts; each has a cache of at least one."""
_WIDTH = 8
"""Tokens of a completion."""
_DRAWS = 4000
_TEMPERATURE = 0.5
_GREEDY = SamplingParams(max_new_tokens=_WIDTH, greedy=True)
_SAMPLED = SamplingParams(max_new_tokens=_WIDTH, temperature=_TEMPERATURE)


@dataclass(frozen=True)
class _Trial:
    """A sampler with a model and prompts, left-padded."""

    checked: CheckedPlugin
    model: Any
    prompt_ids: Int[Tensor, "B Tp"]
    prompt_mask: Bool[Tensor, "B Tp"]

    def draw(
        self, params: SamplingParams, what: str, *, seed: int = 0, cache: Any = None
    ) -> Tensor:
        """Returns completions, checked."""
        with self.checked.using(what):
            self.checked.plugin.sync(self.model)
            found = self.checked.plugin.sample(
                self.model,
                self.prompt_ids,
                self.prompt_mask,
                params=params,
                pad_id=_PAD,
                generator=torch.Generator().manual_seed(seed),
                cache=cache,
            )
        ids_BT = _ids_of(self.checked, found, len(self.prompt_ids), params, what)
        self._require_own_logprobs(found, params)
        return ids_BT

    def _require_own_logprobs(self, found: SampledTokens, params: SamplingParams) -> None:
        """Requires that log-probs, where a sampler tells them, are the model's, to float16."""
        if found.logprobs is None or params.greedy:
            return
        for row, ids in enumerate(found.ids[:8]):
            kept = _up_to_the_end(ids, params)
            logs_TV = (self.logits(row, kept, params)[:-1] / params.temperature).log_softmax(1)
            wanted_T = logs_TV.gather(1, ids.new_tensor(kept)[:, None])[:, 0]
            apart = float((found.logprobs[row, : len(kept)] - wanted_T).abs().max())
            if not apart <= 0.1:
                self.checked.broke(
                    "the log-probs of a sampler are those that its tokens were drawn with",
                    found=f"log-probs that are up to {apart:.3g} from the model's own",
                    expected="a difference of at most 0.1, in nats",
                    cause="log-probs before the temperature or before ids were suppressed, or"
                    " logarithms of another base",
                )

    def logits(self, row: int, ids: list[int], params: SamplingParams) -> Float[Tensor, "T V"]:
        """Computes logits of a row's next tokens by a plain forward: no padding and no cache."""
        prompt = self.prompt_ids[row][self.prompt_mask[row]]
        whole = torch.cat([prompt, prompt.new_tensor(ids)])[None]
        with torch.no_grad():
            logits_TV = self.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 :]
        suppressed = prompt.new_tensor(params.suppressed_ids, dtype=torch.long)
        return logits_TV.index_fill(1, suppressed, -torch.inf)

    def of(self, rows: Tensor, left: int = 0) -> _Trial:
        """Returns the same with some of the prompts, and more padding with other ids in it."""
        ids, mask = self.prompt_ids[rows], self.prompt_mask[rows]
        return replace(
            self, prompt_ids=pad(ids, (left, 0), value=7), prompt_mask=pad(mask, (left, 0))
        )


def _trial(checked: CheckedPlugin) -> _Trial:
    width = max(_LENGTHS)
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(_FIRST, _VOCABULARY, (len(_LENGTHS), width), generator=source)
    mask = torch.arange(width) >= width - torch.tensor(_LENGTHS)[:, None]
    return _Trial(checked, _model(), ids.where(mask, _PAD), mask)


def _model() -> nn.Module:
    """Builds a Llama with random weights, large enough that some tokens are likelier."""
    from transformers import LlamaConfig, LlamaForCausalLM  # only where it is needed: slow to load

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.4,
        pad_token_id=_PAD,
        eos_token_id=None,
        bos_token_id=None,
    )
    return initialised(lambda: LlamaForCausalLM(config), 1).eval()


def _ids_of(
    checked: CheckedPlugin, found: object, rows: int, params: SamplingParams, what: str
) -> Int[Tensor, "B T"]:
    """Returns the ids that a sampler drew, checked."""
    if not isinstance(found, SampledTokens):
        checked.broke(
            "sample() returns SampledTokens",
            found=f"{type(found).__name__} on {what}",
            expected="a segcredit.SampledTokens",
            cause="ids returned bare; write SampledTokens(ids)",
        )
    _require_ids(checked, found.ids, rows, params, what)
    return found.ids


def _require_ids(
    checked: CheckedPlugin, ids_BT: object, rows: int, params: SamplingParams, what: str
) -> None:
    limit = params.max_new_tokens
    expected = (
        f"token ids of type torch.int64, {rows} rows of at most {limit} columns, from 0 to"
        f" {_VOCABULARY - 1}"
    )
    found = ""
    if not isinstance(ids_BT, Tensor):
        found = type(ids_BT).__name__
    elif ids_BT.dtype != torch.long or ids_BT.ndim != 2:
        found = f"{ids_BT.dtype} of shape {tuple(ids_BT.shape)}"
    elif len(ids_BT) != rows or not 1 <= ids_BT.shape[1] <= limit:
        found = f"shape {tuple(ids_BT.shape)}"
    elif not bool(((ids_BT >= 0) & (ids_BT < _VOCABULARY)).all()):
        found = f"ids from {int(ids_BT.min())} to {int(ids_BT.max())}"
    elif ids_BT.is_inference():
        found, expected = "a tensor made for inference alone", "one that can be trained on"
    if found:
        checked.broke(
            "sample() returns the ids of new tokens, one completion a row",
            found=f"{found} on {what}",
            expected=expected,
            cause="prompts returned with the completions, texts instead of ids, or inference_mode"
            " where no_grad is meant",
        )


def _up_to_the_end(row: Tensor, params: SamplingParams) -> list[int]:
    """Returns a completion up to and including its first end token."""
    ids = [int(token) for token in row]
    ends = [place for place, token in enumerate(ids) if token in params.stop_ids]
    return ids[: ends[0] + 1] if ends else ids


def _require_greedy(
    trial: _Trial, ids_BT: Tensor, params: SamplingParams, *, rule: str, cause: str
) -> None:
    """Requires that each token of each completion is the likeliest one after those before it."""
    for row, ids in enumerate(ids_BT):
        found = _up_to_the_end(ids, params)
        likeliest = [int(token) for token in trial.logits(row, found, params).argmax(1)]
        ended = found[-1] in params.stop_ids or len(found) == params.max_new_tokens
        if found != likeliest[: len(found)] or not ended:
            trial.checked.broke(
                rule,
                found=f"the tokens {found} after prompt {row}",
                expected=f"{likeliest[: len(found) + (not ended)]}, by the model's own forward over"
                " that row alone",
                cause=cause,
            )


def _sampler_gives_token_ids(checked: CheckedPlugin) -> None:
    _trial(checked).draw(_SAMPLED, "prompts of unequal lengths")


def _sampler_keeps_the_limit(checked: CheckedPlugin) -> None:
    for limit in (1, 3):
        params = replace(_SAMPLED, max_new_tokens=limit)
        ids_BT = _trial(checked).draw(params, f"max_new_tokens={limit}")
        if ids_BT.shape[1] != limit:
            checked.broke(
                "a completion without an end token has as many tokens as are allowed",
                found=f"{ids_BT.shape[1]} tokens",
                expected=f"{limit}, with no token that ends a completion",
                cause="the prompt counted in, or an end token of the checkpoint's own",
            )


def _greedy_takes_the_likeliest_token(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    _require_greedy(
        trial,
        trial.draw(_GREEDY, "greedy decoding"),
        _GREEDY,
        rule="greedy=True takes the likeliest token each time",
        cause="positions or a mask that count the padding, or a draw at some temperature",
    )


def _sampler_stops_at_end_tokens(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    plain_BT = trial.draw(_GREEDY, "greedy decoding")
    params = replace(_GREEDY, stop_ids=(int(plain_BT[0, 2]), int(plain_BT[1, 4])))
    _require_greedy(
        trial,
        trial.draw(params, "greedy decoding with two end tokens"),
        params,
        rule="any of the stop ids ends a completion and belongs to it, and no row disturbs another",
        cause="only the first of them read, the end token left out, or rows mixed up when one"
        " leaves the batch",
    )


def _sampler_ends_rows_where_it_is_told(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    plain_BT = trial.draw(_GREEDY, "greedy decoding")
    lengths_B = torch.tensor([6, 1, 5, 2, 4])

    def ended(ids_BT: Tensor, rows_N: Tensor) -> Tensor:
        return (ids_BT.shape[1] >= lengths_B[rows_N.cpu()]).to(ids_BT.device)

    params = replace(_GREEDY, ended=ended)
    ids_BT = trial.draw(params, "greedy decoding with rows that end by params.ended")
    for row, length in enumerate(map(int, lengths_B)):
        found, expected = (list(map(int, x[row, :length])) for x in (ids_BT, plain_BT))
        if found != expected:
            checked.broke(
                "a row goes on at least until params.ended says that it has ended",
                found=f"the tokens {found} of row {row}",
                expected=f"{expected}, whether or not more follow",
                cause="params.ended asked with the prompts in the ids, or with other row numbers"
                " than those of the batch",
            )


def _sampler_ignores_padding(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    some = trial.of(torch.tensor([3, 1, 3]), left=4)
    _require_greedy(
        some,
        some.draw(_GREEDY, "prompts with 4 more columns of padding"),
        _GREEDY,
        rule="padding and the rest of the batch are not read",
        cause="positions that begin at the first column, or ids compared with pad_id in place of"
        " the mask",
    )


def _sampler_survives_one_row(checked: CheckedPlugin) -> None:
    one = _trial(checked).of(torch.tensor([1]))
    short = replace(one, prompt_ids=one.prompt_ids[:, -1:], prompt_mask=one.prompt_mask[:, -1:])
    _require_greedy(
        short,
        short.draw(_GREEDY, "a single prompt of one token"),
        _GREEDY,
        rule="a single row is sampled like any other",
        cause="a squeeze() that takes the batch away, or a cache of no columns",
    )


def _first_tokens_come_as_often_as_the_model_says(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    many = trial.of(torch.full((_DRAWS,), 2))
    for temperature in (1.0, _TEMPERATURE):
        params = SamplingParams(max_new_tokens=1, temperature=temperature, suppressed_ids=(_PAD, 5))
        require_shares(
            checked,
            many.draw(params, f"{_DRAWS} equal prompts", seed=1)[:, 0],
            (trial.logits(2, [], params)[0] / temperature).softmax(0),
            rule=f"tokens are drawn from the model's distribution at temperature {temperature}",
            cause="the temperature not passed on, or top-k, top-p and penalties left to the"
            " defaults of a library or a checkpoint",
        )


def _later_tokens_come_as_often_as_the_model_says(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    many = trial.of(torch.arange(len(_LENGTHS)).repeat(24))
    ids_BT = many.draw(_SAMPLED, "several completions of each prompt", seed=2)
    logits_BTV = torch.stack(
        [many.logits(row, list(map(int, ids)), _SAMPLED)[:-1] for row, ids in enumerate(ids_BT)]
    )
    logs_BTV = (logits_BTV / _TEMPERATURE).log_softmax(2).double()
    mean_BT = (logs_BTV.exp() * logs_BTV).sum(2)
    variance = ((logs_BTV.exp() * logs_BTV**2).sum(2) - mean_BT**2).sum()
    surplus = (logs_BTV.gather(2, ids_BT[..., None])[..., 0] - mean_BT).sum()
    apart = float(surplus / variance.sqrt())
    if abs(apart) > 6:
        checked.broke(
            "every token is drawn from the model's distribution after the tokens before it",
            found=f"tokens that are too {'likely' if apart > 0 else 'unlikely'}: their log-probs"
            f" lie {abs(apart):.1f} standard deviations from what is expected",
            expected="fewer than 6",
            cause="the temperature or the cache right for the first token alone",
        )


def _sampler_follows_its_generator(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    first = trial.draw(_SAMPLED, "any prompts", seed=3)
    torch.rand(3)
    if not torch.equal(first, trial.draw(_SAMPLED, "the same prompts again", seed=3)):
        checked.broke(
            "the generator's state alone decides what is drawn",
            found="other tokens from a generator in the same state",
            expected="the same tokens",
            cause="a draw from torch's global generator; pass generator=generator",
        )
    if torch.equal(first, trial.draw(_SAMPLED, "the same prompts again", seed=4)):
        checked.broke(
            "another state of the generator draws other tokens",
            found="the same tokens from generators with different seeds",
            expected="other tokens",
            cause="a seed that is fixed, or the generator not used",
        )


def _sampler_never_takes_suppressed_ids(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    likely = tuple({int(token) for token in trial.draw(_GREEDY, "greedy decoding")[:, 0]})
    greedy = replace(_GREEDY, suppressed_ids=likely)
    _require_greedy(
        trial,
        trial.draw(greedy, "greedy decoding with likely tokens suppressed"),
        greedy,
        rule="suppressed ids have probability 0 in greedy decoding too",
        cause="suppression at the first token only, or only where tokens are drawn",
    )
    allowed = {10, 20, 30}
    rest = tuple(token for token in range(_VOCABULARY) if token not in allowed)
    ids_BT = trial.draw(replace(_SAMPLED, suppressed_ids=rest), "all ids but three suppressed")
    taken = {int(token) for token in ids_BT.flatten()}
    if not taken <= allowed:
        checked.broke(
            "suppressed ids are never sampled",
            found=f"the ids {sorted(taken - allowed)}, which were suppressed",
            expected=f"{sorted(allowed)} alone",
            cause="params.suppressed_ids not read, or logits lowered instead of set to -inf",
        )


def _sampler_goes_on_from_a_cache(checked: CheckedPlugin) -> None:
    trial = _trial(checked)
    mask = trial.prompt_mask[:, :-1]
    with torch.no_grad():
        output = trial.model.base_model(
            input_ids=trial.prompt_ids[:, :-1],
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        )
    # It was renamed in transformers 5.24.
    cache = output["cache" if "cache" in output else "past_key_values"]
    _require_greedy(
        trial,
        trial.draw(_GREEDY, "a cache of all prompt columns but the last", cache=cache),
        _GREEDY,
        rule="a cache of the prompt's keys and values changes no token",
        cause="the prompt read a second time after its cache, or positions that begin anew",
    )


def _sampler_works_on_another_device(checked: CheckedPlugin) -> None:
    def drawn(device: torch.device) -> Tensor:
        here = _trial(checked)
        there = replace(
            here,
            model=here.model.to(device),
            prompt_ids=here.prompt_ids.to(device),
            prompt_mask=here.prompt_mask.to(device),
        )
        there.draw(_SAMPLED, "any prompts")  # other draws elsewhere, as the device's are
        return there.draw(_GREEDY, "greedy decoding")

    checked.require_same_elsewhere(drawn, "a model and prompts")


def _sampler_pickles(checked: CheckedPlugin) -> None:
    ids_BT = _trial(checked).draw(_SAMPLED, "any prompts")
    again_BT = _trial(checked.unpickled()).draw(_SAMPLED, "any prompts")
    checked.require_same_unpickled(again_BT, ids_BT, "tokens")


SAMPLER_RULES: tuple[Rule, ...] = (
    _sampler_gives_token_ids,
    _sampler_keeps_the_limit,
    _greedy_takes_the_likeliest_token,
    _sampler_stops_at_end_tokens,
    _sampler_ends_rows_where_it_is_told,
    _sampler_ignores_padding,
    _sampler_survives_one_row,
    _first_tokens_come_as_often_as_the_model_says,
    _later_tokens_come_as_often_as_the_model_says,
    _sampler_follows_its_generator,
    _sampler_never_takes_suppressed_ids,
    _sampler_goes_on_from_a_cache,
    _sampler_works_on_another_device,
    _sampler_pickles,
)

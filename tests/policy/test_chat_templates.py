"""Prompts that are chats: rendered by the tokenizer's template, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit.errors import PolicyError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.tiny.warm_start import character_tokenizer
from segcredit.protocols import Prompt

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}/{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CHAT = Prompt("p", "2?", "4", chat=(("system", "su"), ("user", "1?"), ("assistant", "1")))


def policy(template: str | None) -> CausalPolicy:
    tokenizer: Any = character_tokenizer("0123456789?/:asut ")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **heads))
    return CausalPolicy(model, tokenizer, Generate())


def spoken(found: CausalPolicy, prompts: list[Prompt]) -> list[str]:
    ids, mask, extras = found.encode_prompts(prompts)
    assert extras == ()
    return list(found.decode(ids, mask)[0])


def test_arguments_of_the_template_reach_it() -> None:
    found = policy(TEMPLATE + "{% if not enable_thinking | default(true) %}0/{% endif %}")
    thoughtless = replace(CHAT, chat_options=(("enable_thinking", False),))
    one, other = spoken(found, [CHAT, thoughtless])
    assert other == one + "0/"


def test_a_chat_is_written_by_the_template_and_plain_text_beside_it_is_not() -> None:
    plain = Prompt("q", "3?", "9")
    found = policy(TEMPLATE)
    written = "s:su/u:1?/a:1/u:2?/a:"
    assert spoken(found, [CHAT, plain, CHAT]) == [written, "3?", written]
    assert spoken(found, [Prompt("r", "2?", "4", chat=())]) == ["u:2?/a:"]
    assert spoken(found, [plain]) == spoken(policy(None), [plain]) == ["3?"]
    assert torch.equal(found.encode_prompts([plain])[0], found.encode(["3?"])[0])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(
        PolicyError, match=r"prompt 'p' is a chat.* has no chat template.*task.chat"
    ):
        policy(None).encode_prompts([CHAT])


def test_a_template_that_refuses_is_told() -> None:
    picky = "{{ raise_exception('no system message') }}"
    with pytest.raises(PolicyError, match=r"refused prompt 'p'.*no system message.*roles before"):
        policy(picky).encode_prompts([CHAT])


REFUSES_TOOLS = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}"
SKIPS_TOOLS = TEMPLATE.replace("{{ m[", "{% if m.role != 'tool' %}{{ m[", 1).replace(
    "/{% endfor", "/{% endif %}{% endfor"
)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (TEMPLATE, "/t:34/a:"),
        (f"{REFUSES_TOOLS}{{% endif %}}{{% endfor %}}{TEMPLATE}", "/u:34/a:"),
        (SKIPS_TOOLS, "/u:34/a:"),
    ],
)
def test_an_observation_is_a_message_of_the_tool_or_else_of_the_user(
    template: str, written: str
) -> None:
    found = policy(template)
    ended, other = found.tokenizer.convert_tokens_to_ids(["/", "1"])
    after, once = found.encode_observations([CHAT, CHAT], ["34", "34"], [other, ended])
    assert found.tokenizer.decode(after) == written
    # The token with which the template ends a message is not written twice.
    assert found.tokenizer.decode(once) == written[1:]
    (plain,) = found.encode_observations([Prompt("q", "3?", "9")], ["34"], [other])
    assert found.tokenizer.decode(plain) == "34"


def test_a_template_without_a_place_for_observations_is_refused() -> None:
    found = policy("{{ messages[0]['content'] }}")
    with pytest.raises(PolicyError, match=r"no place for an observation.*tuned for tools"):
        found.encode_observations([CHAT], ["34"], [5])

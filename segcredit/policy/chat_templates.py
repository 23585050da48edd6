"""Prompts that are chats, as the templates of transformers write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segcredit.errors import PolicyError, shown
from segcredit.protocols import Prompt


def messages(
    prompt: Prompt, content: Any, written: Callable[[str], Any] = str
) -> list[dict[str, Any]]:
    """Builds the messages of a prompt, as chat templates of transformers read them.

    Args:
        prompt: its chat comes before the last message, which is the user's.
        content: of the last message: a text, or a list of parts.
        written: makes the content of each message before it, out of its text.
    """
    before = [{"role": role, "content": written(text)} for role, text in prompt.chat or ()]
    return [*before, {"role": "user", "content": content}]


def chat_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Encodes a chat up to where the assistant's answer begins, as token ids.

    Begin tokens are the template's; the tokenizer adds none.

    Raises:
        PolicyError: the tokenizer has no chat template, or its template refuses the messages.
    """
    require_template(tokenizer, prompt)
    try:
        return tokenizer.apply_chat_template(
            messages(prompt, prompt.text),
            add_generation_prompt=True,
            return_dict=False,
            **dict(prompt.chat_options),
        )
    except Exception as error:  # a template is a program of the checkpoint's; it may raise anything
        roles = ", ".join(role for role, _ in prompt.chat or ()) or "none"
        raise PolicyError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} refused prompt"
            f" {prompt.key!r} ({type(error).__name__}: {error}); expected a chat, with messages of"
            f" these roles before the user's: {roles}. Usually the template knows no system"
            " message: leave task.system empty, or put it into the prompt's template."
        ) from error


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Encodes a text in which names of special tokens are text, with nothing round it.

    Raises:
        PolicyError: the tokenizer does not know a character.
    """
    try:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    except Exception as error:  # as tokenizers without a token for the unknown raise it
        raise PolicyError(
            f"the tokenizer cannot encode the observation {shown(text)} ({error}); expected text of"
            " characters that it knows. A tiny policy knows its task's alphabet alone: add them to"
            " the task's alphabet()."
        ) from error


_TURN, _READ = "⟦turn⟧", "⟦observation⟧"
"""Marks of a turn and an observation, for the text that a template writes round them."""


def observation_ids(
    holder: Any, tokenizer: Any, prompt: Prompt, observation: str, last_id: int
) -> list[int]:
    """Encodes an observation as the message of a tool, up to where the next answer begins.

    The text round it is the template's own; names of special tokens in the observation are text.
    Where the template knows no tools, it is a message of the user.

    Args:
        holder: a tokenizer or a processor, with the template.
        tokenizer: encodes.
        prompt: a chat.
        observation: what the environment said.
        last_id: the last token of the assistant's message; where that is the one with which the
            template ends it, it is not written twice.

    Raises:
        PolicyError: there is no chat template, or it knows messages of neither kind.
    """
    require_template(holder, prompt)
    for role in ("tool", "user"):
        said = [{"role": "assistant", "content": _TURN}, {"role": role, "content": _READ}]
        try:
            written: str = holder.apply_chat_template(
                [*messages(prompt, prompt.text), *said],
                add_generation_prompt=True,
                tokenize=False,
                **dict(prompt.chat_options),
            )
        except Exception:  # a template is a program of the checkpoint's; it may raise anything
            continue
        _, _, after = written.partition(_TURN)
        before, found, after = after.partition(_READ)
        if found:
            plain = {"add_special_tokens": False}
            head: list[int] = tokenizer(before, **plain)["input_ids"]
            tail: list[int] = tokenizer(after, **plain)["input_ids"]
            return [*head[head[:1] == [last_id] :], *plain_ids(tokenizer, observation), *tail]
    raise PolicyError(
        f"the chat template of {tokenizer.name_or_path!r} has no place for an observation after an"
        " answer of the assistant, neither as a message of a tool nor of the user; expected either"
        " for an environment of several turns. Choose a model that was tuned for tools."
    )


def require_template(holder: Any, prompt: Prompt) -> None:
    """Checks that there is a chat template to write a chat by.

    Args:
        holder: a tokenizer or a processor.
        prompt: a chat.

    Raises:
        PolicyError: there is no chat template.
    """
    if not getattr(holder, "chat_template", None):
        name = getattr(holder, "tokenizer", holder).name_or_path or type(holder).__name__
        raise PolicyError(
            f"prompt {prompt.key!r} is a chat, and the tokenizer {name!r} has no chat template;"
            " expected one, since it says how the messages are written. Usually the checkpoint is a"
            " base model: set task.chat = false, or choose its instruction-tuned sibling."
        )

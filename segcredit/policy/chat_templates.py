"""Prompts that are chats, as the templates of transformers write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segcredit.errors import PolicyError
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

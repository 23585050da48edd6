"""Prompts made of questions: templates, worked examples before them, a chat or plain text."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from segcredit.errors import TaskError
from segcredit.protocols import Prompt

Shot = tuple[str, str]
"""A question and its solution, as they stand in a prompt."""
Message = tuple[str, str]
"""Role and content of a chat's message."""
_AFTER_COLUMN = re.compile(r"[.\[]")


@dataclass(frozen=True, slots=True)
class Layout:
    """The text before a question, and the choice of writing it as a chat.

    Plain: the system text, the worked examples and the question, with blank lines between.
    Chat: the system text as the system's message, each worked example as a turn of the user and the
    assistant, and the question as the user's last message.
    """

    chat: bool = False
    system: str = ""
    """'' for none."""
    shots: tuple[Shot, ...] = ()
    chat_options: tuple[tuple[str, Any], ...] = ()
    """Arguments of the chat's template, by name."""

    def prompt(
        self,
        key: str,
        question: str,
        answer: Any,
        images: tuple[bytes, ...] = (),
        before: Sequence[Message] = (),
    ) -> Prompt:
        """Returns a question as a prompt, in a chat after the messages before it."""
        if not self.chat:
            shown = [asked + solved for asked, solved in self.shots]
            text = "\n\n".join([*filter(None, [self.system]), *shown, question])
            return Prompt(key, text, answer, images)
        system = [("system", self.system)] if self.system else []
        turns = [
            turn
            for asked, solved in self.shots
            for turn in (("user", asked), ("assistant", solved.strip()))
        ]
        chat = (*system, *turns, *before)
        return Prompt(key, question, answer, images, chat, self.chat_options)


def columns_of(option: str, template: str) -> list[str]:
    """Returns the columns that a template of Python's format names, each once.

    Raises:
        TaskError: it is no such template; names the option.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _no_template(option, template, str(error)) from error
    names = [_AFTER_COLUMN.split(field, maxsplit=1)[0] for field in fields]
    if not all(names):
        raise _no_template(option, template, "a pair of braces is empty")
    return list(dict.fromkeys(names))


def filled(template: str, row: Mapping[str, Any]) -> str:
    """Returns a template with a row's values.

    Raises:
        KeyError, IndexError, AttributeError, TypeError, ValueError: the row does not have what the
            template takes out of one of its columns.
    """
    chat = messages_of(template, row)
    if chat:
        return "\n\n".join(content for _, content in chat)
    return _Decimals().vformat(template, (), row)


def messages_of(template: str, row: Mapping[str, Any]) -> list[Message]:
    """Returns the messages of a chat, where the template is a column of them; none otherwise."""
    column = template.strip()[1:-1]
    found: Any = row.get(column) if template.strip() == f"{{{column}}}" else None
    several = cast("list[Any]", found) if isinstance(found, list) else []
    parts = [cast("Mapping[str, Any]", one) for one in several if isinstance(one, Mapping)]
    if len(parts) != len(several) or not all({"role", "content"} <= one.keys() for one in parts):
        return []
    return [(str(one["role"]), str(one["content"])) for one in parts]


def spelt(value: Any) -> str:
    """Spells a value of a column; a number as a decimal, since 1e-05 may be read as e - 5."""
    number = isinstance(value, Decimal | float)
    return format(Decimal(str(value)), "f") if number else str(value)


class _Decimals(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return format(value, format_spec) if format_spec else spelt(value)


def require_shots(shots: Sequence[Shot], wanted: int, source: str) -> None:
    """Refuses to go on with fewer worked examples than were asked for.

    Raises:
        TaskError: there are fewer.
    """
    if len(shots) < wanted:
        raise TaskError(
            f"{source} has {len(shots)} rows for worked examples; task.shots asks for {wanted}."
            " Lower it, or write the examples into the config as pairs of a question and a"
            " solution."
        )


def _no_template(option: str, template: str, why: str) -> TaskError:
    return TaskError(
        f"task.{option} is {template!r}, which is no template ({why}); expected text with names of"
        " columns in braces, such as 'Question: {question}'. Braces that belong to the text are"
        " doubled: '\\\\boxed{{}}'."
    )

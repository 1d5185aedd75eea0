"""Turns of a conversation, and the fields of an entry that holds some, checked as they are read.

What is not understood and would change what is said or learned is refused by its name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from llmctl.data.tables.rows import TableRow
from llmctl.errors import InputError, did_you_mean

Role = Literal["system", "user", "assistant"]

CHAT_ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "assistant": "assistant", "human": "user",
    "gpt": "assistant", "developer": "system", "prompter": "user", "chatgpt": "assistant",
    "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""By their names in lower case."""
ROLE_FIELDS = (("role", "content"), ("from", "value"))
"""The fields of a turn: who says what."""
SYSTEM = ("system", "system_prompt")
"""Names of what the assistant is told before all others."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a ``content`` that is a list."""


SIDE_FIELDS = frozenset({
    "id", "idx", "index", "uuid", "message_id", "parent_id", "turn", "turn_id", "turn_identifier",
    "timestamp", "time", "date", "created", "created_at", "created_date", "lang", "language",
    "model", "tokens", "token_count", "num_tokens", "hash", "source", "url", "metadata", "user_id",
    "country", "state", "hashed_ip", "header", "toxic", "redacted",
})  # fmt: skip
"""Fields of a turn that tell where it is from, and change nothing of what is said."""
MEANING = (
    "tools", "functions", "tool_calls", "function_call", "tool_choice", "parallel_tool_calls",
    "reasoning", "reasoning_content", "thinking", "documents", "response_format", "image", "images",
    "video", "videos", "audio", "audios", "chosen", "rejected", "loss_mask",
    "mask", "kto_tag", "label", "weight", "train",
)  # fmt: skip
"""Fields of an entry that would change what is said or learned, unless they are empty, or true or 1
as all is learned anyway."""
NEITHER = ("label",)
"""Those of them that say so by true or false only."""


class Unlearnable(Exception):
    """Why an entry can't be learned from, behind its place."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    content: str
    learned: bool = True
    """Whether an answer is learned, or is context only."""


def is_empty(value: Any) -> bool:
    """Whether a field says nothing."""
    return value is None or value in ("", [], {}, "[]")


class ChatEntry:
    """An entry's fields, checked as they are read."""

    def __init__(self, row: TableRow) -> None:
        self.values, self.source = row.values, row.source

    def text(self, value: Any, what: str) -> str:
        """A text that may be missing. Raises InputError if it is no text."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InputError(
                f"{self.source}: {what} is {kind_of(value)}, and a text was expected; write what "
                "is said as one text"
            )
        return value

    def said(self, value: Any, what: str) -> str:
        """A text that must be there. Raises Unlearnable if it is blank."""
        text = self.text(value, what)
        if not text.strip():
            raise Unlearnable(f"has no {what}")
        return text

    def check_meaning(self, read: Collection[str] = ()) -> None:
        """Raises InputError for a field that would change what is said or learned. read: those
        that are understood here."""
        for name in (name for name in MEANING if name not in read):
            value = self.values.get(name)
            if is_empty(value) or value is True or (type(value) in (int, float) and value == 1):
                continue
            if name in NEITHER and not isinstance(value, bool):
                continue
            raise InputError(
                f"{self.source} has {name}, which is not understood and would change what is "
                "learned; leave the field or the entry out"
            )

    def items(self, name: str) -> list[Any]:
        """A field that is a list. Raises InputError if it is not."""
        value = self.values[name]
        if not isinstance(value, list):
            raise InputError(f"{self.source}: {name} is {kind_of(value)}; give a list of turns")
        return value

    def system(self) -> list[Turn]:
        """What fields of those names say, if anything."""
        texts = [self.text(self.values.get(name), name) for name in SYSTEM]
        return [Turn("system", text) for text in texts if text.strip()]


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list",
             dict: "an object", type(None): "null", str: "a text"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def turn_of(entry: ChatEntry, item: Any, number: int, usual: tuple[str, str]) -> Turn | None:
    """A turn of a list; None for a system turn that says nothing."""
    if not isinstance(item, dict):
        raise InputError(
            f"{entry.source}: turn {number} is {kind_of(item)}; write "
            f'{{"{usual[0]}": …, "{usual[1]}": …}}'
        )
    role_field, text_field = next((fields for fields in ROLE_FIELDS if fields[0] in item), usual)
    role = item.get(role_field)
    if not isinstance(role, str) or role.lower() not in CHAT_ROLES:
        named = f"the {role_field} {role!r}" if role_field in item else f"no {role_field}"
        raise InputError(
            f"{entry.source}: turn {number} has {named}{did_you_mean(str(role), CHAT_ROLES)}; use "
            f"one of {', '.join(CHAT_ROLES)}"
        )
    kind = CHAT_ROLES[role.lower()]
    for name, value in item.items():
        if name not in (role_field, text_field, "weight", "train", *SIDE_FIELDS) and not (
            is_empty(value)
        ):
            raise InputError(
                f"{entry.source}: turn {number} has {name}, which is not understood and may change "
                "what is said or learned; leave the field or the entry out"
            )
    learned = _is_learned(entry, item, number, kind)
    what = f"{text_field} in turn {number}"
    content = _content(item.get(text_field), entry, what)
    if kind == "system" and not entry.text(content, what).strip():
        return None
    return Turn(kind, entry.said(content, what), learned)


def _content(value: Any, entry: ChatEntry, what: str) -> Any:
    """What is said, where it is given as a list of one part."""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        return value
    types = [part.get("type", "text") for part in value]
    if len(value) == 1 and types[0] in TEXT_PARTS and {*value[0]} <= {"type", "text"}:
        return value[0].get("text")
    shown = ", ".join(map(str, types)) or "none"
    raise InputError(
        f"{entry.source}: {what} is a list of parts ({shown}), and one of text was expected; write "
        "what is said as one text"
    )


def _is_learned(entry: ChatEntry, item: dict[str, Any], number: int, role: Role) -> bool:
    """Whether a turn's ``weight`` and ``train`` let an answer be learned."""
    learned = role == "assistant"
    for name in ("weight", "train"):
        value = item.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise InputError(
                f"{entry.source}: turn {number} has the {name} {value!r}; an answer is learned or "
                "not: write 1 or 0"
            )
        if value and role != "assistant":
            raise InputError(
                f"{entry.source}: turn {number} has the {name} {value!r}, and "
                f"{with_article(role)} turn is not learned; leave it out"
            )
        learned = learned and bool(value)
    return learned or role != "assistant"


def with_article(role: str) -> str:
    """A role in words: an assistant, a user."""
    return f"an {role}" if role == "assistant" else f"a {role}"

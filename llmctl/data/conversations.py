"""Conversations: the entries of an instruction file as turns of a user and an assistant.

Three layouts, told by their fields: Alpaca's (``instruction``, ``input``, ``output``; ``system``
and ``history`` where there are any), ``messages`` with ``role`` and ``content`` (OpenAI's), and
``conversations`` with ``from`` and ``value`` (ShareGPT's). A turn that is missing is an error:
a model learns what stands in its data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmctl.data.files import ROW_SUFFIXES, Row, RowReader, format_of
from llmctl.errors import InputError, did_you_mean

Role = Literal["system", "user", "assistant"]

OPENAI_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES: dict[str, Role] = {**OPENAI_ROLES, "human": "user", "gpt": "assistant"}

KNOWN = frozenset({"instruction", "input", "output", "system", "history"})
"""Columns by which a CSV's header is recognised: its cells can hold Alpaca's layout only."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A system turn if there is one, then user and assistant in turns; the assistant is last."""

    turns: tuple[Turn, ...]
    source: str
    """Where it is from, for messages."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates take it."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]

    @property
    def text(self) -> str:
        """All that is said, for a hash."""
        return "\x1f".join(part for turn in self.turns for part in (turn.role, turn.content))


def read_conversations(path: Path, *, encoding_errors: str = "strict") -> Iterator[Conversation]:
    """The conversations of a JSON list, JSONL, Parquet, Arrow, CSV or TSV file.

    Raises InputError naming the line or the entry for one that lacks a turn or is in no layout.
    """
    if format_of(path) not in ROW_SUFFIXES:
        raise InputError(f"{path} is plain text; give a JSON, JSONL, Parquet or CSV file")
    for row in RowReader(path, known=KNOWN, errors=encoding_errors).rows():
        turns = _turns(row, encoding_errors)
        _check(turns, row.source)
        yield Conversation(tuple(turns), row.source)


def _turns(row: Row, errors: str) -> list[Turn]:
    """The turns of an entry, by its layout."""
    for name, layout in LAYOUTS.items():
        if name in row.values:
            return layout(_Entry(row, errors))
    known = [*LAYOUTS, "output"]
    hint = next((h for name in row.values if (h := did_you_mean(name, known))), "")
    raise InputError(
        f"{row.source} has the fields {', '.join(row.values) or '(none)'}{hint}; give messages, "
        "conversations, or instruction and output"
    )


class _Entry:
    """An entry's fields, checked as they are read."""

    def __init__(self, row: Row, errors: str) -> None:
        self.values, self.source, self._errors = row.values, row.source, errors

    def text(self, value: Any, what: str) -> str:
        """A text that may be missing. Raises InputError if it is no text."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InputError(
                f"{self.source}: {what} is {_kind(value)}, and a text was expected; write what is "
                "said as one text"
            )
        # JSON can escape half of a character, which no encoding can write.
        if _SURROGATE.search(value):
            if self._errors == "strict":
                raise InputError(
                    f"{self.source}: {what} has half of a surrogate pair, which is not Unicode; "
                    "mend it, or go on with --encoding-errors replace"
                )
            return _SURROGATE.sub("\ufffd", value)
        return value

    def said(self, value: Any, what: str) -> str:
        """A text that must be there. Raises InputError if it is missing or blank."""
        text = self.text(value, what)
        if not text.strip():
            raise InputError(f"{self.source} has no {what}; fill it in or remove the entry")
        return text

    def items(self, name: str) -> list[Any]:
        """A field that is a list. Raises InputError if it is not."""
        value = self.values[name]
        if not isinstance(value, list):
            raise InputError(f"{self.source}: {name} is {_kind(value)}; give a list of turns")
        return value

    def system(self) -> list[Turn]:
        """What a field of that name says, if anything."""
        text = self.text(self.values.get("system"), "system")
        return [Turn("system", text)] if text.strip() else []


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list",
             dict: "an object", type(None): "null", str: "a text"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _alpaca(entry: _Entry) -> list[Turn]:
    """The input, if any, stands under the instruction; earlier exchanges in the history."""
    values = entry.values
    turns = entry.system()
    history = values.get("history")
    for number, pair in enumerate(entry.items("history") if history else [], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(
                f"{entry.source}: exchange {number} of history is no pair; write "
                '["what the user says", "what the assistant says"]'
            )
        what = f"exchange {number} of history"
        turns.append(Turn("user", entry.said(pair[0], f"user turn in {what}")))
        turns.append(Turn("assistant", entry.said(pair[1], f"assistant turn in {what}")))
    asked = entry.said(values.get("instruction"), "instruction")
    added = entry.text(values.get("input"), "input")
    if added.strip():
        asked = f"{asked}\n{added}"
    answer = entry.said(values.get("output"), "output")
    return [*turns, Turn("user", asked), Turn("assistant", answer)]


def _listed(
    entry: _Entry, name: str, role_field: str, text_field: str, roles: dict[str, Role]
) -> list[Turn]:
    turns = entry.system()
    for number, item in enumerate(entry.items(name), 1):
        if not isinstance(item, dict):
            raise InputError(
                f"{entry.source}: turn {number} is {_kind(item)}; write "
                f'{{"{role_field}": …, "{text_field}": …}}'
            )
        role = item.get(role_field)
        if not isinstance(role, str) or role not in roles:
            given = f"the {role_field} {role!r}" if role_field in item else f"no {role_field}"
            raise InputError(
                f"{entry.source}: turn {number} has {given}{did_you_mean(str(role), roles)}; use "
                f"one of {', '.join(roles)}"
            )
        content = entry.said(item.get(text_field), f"{text_field} in turn {number}")
        turns.append(Turn(roles[role], content))
    return turns


LAYOUTS: dict[str, Callable[[_Entry], list[Turn]]] = {
    "messages": lambda entry: _listed(entry, "messages", "role", "content", OPENAI_ROLES),
    "conversations": lambda entry: _listed(entry, "conversations", "from", "value", SHAREGPT_ROLES),
    "instruction": _alpaca,
}
"""By the field that tells a layout."""


def _check(turns: list[Turn], source: str) -> None:
    """Raises InputError unless user and assistant take turns, and the assistant has the last."""
    expected: Role = "user"
    for number, turn in enumerate(turns, 1):
        if turn.role == "system":
            if number > 1:
                raise InputError(
                    f"{source}: turn {number} is a system turn; a conversation has one at most, "
                    "before all others"
                )
            continue
        if turn.role != expected:
            what = "begins with" if number == 1 or turns[number - 2].role == "system" else "has"
            again = " after another" if what == "has" else ""
            raise InputError(
                f"{source} {what} {_a(turn.role)} turn{again} (turn {number}): {_a(expected)} turn "
                "is missing before it; add it or remove the entry"
            )
        expected = "assistant" if turn.role == "user" else "user"
    if not turns or turns[-1].role != "assistant":
        last = f"ends with {_a(turns[-1].role)} turn" if turns else "has no turns"
        raise InputError(
            f"{source} {last}: the assistant's answer is missing; add it or remove the entry"
        )


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"

"""Conversations: the entries of an instruction file as turns of a user and an assistant.

Three layouts, told by their fields: Alpaca's (``instruction``, ``input``, ``output``; ``system``
and ``history`` where there are any) and its like under other names (Dolly's ``instruction``,
``context``, ``response``; ``prompt`` and ``completion``; ``question`` and ``answer``), ``messages``
with ``role`` and ``content`` (OpenAI's), and ``conversations`` with ``from`` and ``value``
(ShareGPT's). An answer whose ``weight`` is 0, or whose ``train`` is false, is context and not
learned.

A model learns what stands in its data, so what isn't understood is refused by its name: a field
that would change what is said or learned, and turns that are out of order. What can't be learned
from is left out, and counted in a note: an entry without an answer, a question behind the last
answer, an answer before the first question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import is_table
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
TURN_FIELDS = ("messages", "conversations", "conversation")
"""Fields that hold turns."""
ANSWERS = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "question": ("answer", "response"),
}
"""For what is asked, by its name, names of what is answered."""
ADDED, SYSTEM = ("input", "context"), ("system", "system_prompt")
"""Names of what a question is about, and of what the assistant is told before all others."""
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

CHAT_COLUMNS = frozenset(
    {"history", *ANSWERS, *(name for names in ANSWERS.values() for name in names), *ADDED, *SYSTEM}
)
"""Columns by which a CSV's header is recognised: its cells can hold Alpaca's layout only."""


class Unlearnable(Exception):
    """Why an entry can't be learned from, behind its place."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    content: str
    learned: bool = True
    """Whether an answer is learned, or is context only."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A system turn if there is one, then user and assistant in turns; the assistant is last."""

    turns: tuple[Turn, ...]
    source: str
    """Where it is from, for messages."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]

    @property
    def text(self) -> str:
        """All that is said, for a hash."""
        return "\x1f".join(part for turn in self.turns for part in (turn.role, turn.content))


def read_conversations(path: Path, *, reading: ReadOptions = DEFAULT) -> Iterator[Conversation]:
    """The conversations of a JSON list, JSONL, Parquet, Arrow, CSV or TSV file.

    Raises InputError naming the line or the entry for one that isn't understood, and if there are
    entries and none can be learned from.
    """
    if not is_table(path):
        raise InputError(f"{path} is plain text; give a JSON, JSONL, Parquet or CSV file")
    left_out: list[str] = []
    shortened: list[str] = []
    total = 0
    for row in RowReader(path, known=CHAT_COLUMNS, reading=reading).rows():
        total += 1
        try:
            turns = _turns(row)
            kept = _learnable(turns, row.source)
        except Unlearnable as error:
            left_out.append(f"{row.source} {error}")
            continue
        if len(kept) < len(turns):
            shortened.append(row.source)
        yield Conversation(tuple(kept), row.source)
    if total and len(left_out) == total:
        raise InputError(
            f"{path}: none of its {total:,} entries can be learned from (the first: "
            f"{left_out[0]}); give entries with answers"
        )
    if left_out:
        reading.say(
            f"left out {len(left_out):,} of {total:,} entries that can't be learned from (the "
            f"first: {left_out[0]})"
        )
    if shortened:
        reading.say(
            f"in {len(shortened):,} of {total:,} entries an answer before the first question, or a "
            f"question behind the last answer, was left out (the first: {shortened[0]})"
        )


def _turns(row: TableRow) -> list[Turn]:
    """The turns of an entry, by its layout."""
    entry = _Entry(row)
    layouts = [name for name in LAYOUTS if not _is_empty(row.values.get(name))]
    if len(lists := [name for name in TURN_FIELDS if name in layouts]) > 1:
        raise InputError(
            f"{row.source} has {' and '.join(lists)}; leave out the one that isn't meant"
        )
    name = next((name for name in LAYOUTS if name in row.values), None)
    if name is None:
        known = [*LAYOUTS, "output"]
        hint = next((h for name in row.values if (h := did_you_mean(name, known))), "")
        raise InputError(
            f"{row.source} has the fields {', '.join(row.values) or '(none)'}{hint}; give "
            "messages, conversations, or instruction and output"
        )
    name = layouts[0] if layouts else name
    entry.check_meaning()
    return LAYOUTS[name](entry)


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {}, "[]")


class _Entry:
    """An entry's fields, checked as they are read."""

    def __init__(self, row: TableRow) -> None:
        self.values, self.source = row.values, row.source

    def text(self, value: Any, what: str) -> str:
        """A text that may be missing. Raises InputError if it is no text."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InputError(
                f"{self.source}: {what} is {_kind(value)}, and a text was expected; write what is "
                "said as one text"
            )
        return value

    def said(self, value: Any, what: str) -> str:
        """A text that must be there. Raises Unlearnable if it is blank."""
        text = self.text(value, what)
        if not text.strip():
            raise Unlearnable(f"has no {what}")
        return text

    def check_meaning(self) -> None:
        """Raises InputError for a field that would change what is said or learned."""
        for name in MEANING:
            value = self.values.get(name)
            if _is_empty(value) or value is True or (type(value) in (int, float) and value == 1):
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
            raise InputError(f"{self.source}: {name} is {_kind(value)}; give a list of turns")
        return value

    def system(self) -> list[Turn]:
        """What fields of those names say, if anything."""
        texts = [self.text(self.values.get(name), name) for name in SYSTEM]
        return [Turn("system", text) for text in texts if text.strip()]


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list",
             dict: "an object", type(None): "null", str: "a text"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _alpaca(entry: _Entry, asked_name: str) -> list[Turn]:
    """The input, if any, stands under the instruction; earlier exchanges in the history."""
    values = entry.values
    if isinstance(values.get(asked_name), list):
        return _prompted(entry, asked_name)
    names = ANSWERS[asked_name]
    answer_name = next((name for name in names if name in values), None)
    if answer_name is None:
        raise InputError(
            f"{entry.source} has no {names[0]}{did_you_mean(names[0], values)}; it has the fields "
            f"{', '.join(values)}: give {asked_name} and {names[0]}"
        )
    for alike in (names, ADDED):
        both = [name for name in alike if not _is_empty(values.get(name))]
        if len(both) > 1:
            raise InputError(
                f"{entry.source} has {' and '.join(both)}; leave out the one that isn't meant"
            )
        answer_name = both[0] if both and alike is names else answer_name
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
    asked = entry.said(values.get(asked_name), asked_name)
    added = "".join(entry.text(values.get(name), name) for name in ADDED)
    if added.strip():
        asked = f"{asked}\n{added}"
    answer = entry.said(values.get(answer_name), answer_name)
    return [*turns, Turn("user", asked), Turn("assistant", answer)]


def _listed(entry: _Entry, name: str) -> list[Turn]:
    turns = entry.system()
    for number, item in enumerate(entry.items(name), 1):
        turn = _turn(entry, item, number, ROLE_FIELDS[name == "conversations"])
        if turn is not None:
            turns.append(turn)
    return turns


def _prompted(entry: _Entry, asked_name: str) -> list[Turn]:
    """The turns of a prompt and those that complete it (TRL's): only these are learned."""
    if not isinstance(entry.values.get("completion"), list):
        raise InputError(
            f"{entry.source}: {asked_name} is a list, and completion is not; give lists of turns, "
            "or texts"
        )
    number = len(asked := _listed(entry, asked_name))
    turns = [replace(turn, learned=turn.learned and turn.role != "assistant") for turn in asked]
    for item in entry.values["completion"]:
        number += 1
        turn = _turn(entry, item, number, ROLE_FIELDS[0])
        turns += [] if turn is None else [turn]
    return turns


def _turn(entry: _Entry, item: Any, number: int, usual: tuple[str, str]) -> Turn | None:
    """A turn of a list; None for a system turn that says nothing."""
    if not isinstance(item, dict):
        raise InputError(
            f"{entry.source}: turn {number} is {_kind(item)}; write "
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
            _is_empty(value)
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


def _content(value: Any, entry: _Entry, what: str) -> Any:
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


def _is_learned(entry: _Entry, item: dict[str, Any], number: int, role: Role) -> bool:
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
                f"{entry.source}: turn {number} has the {name} {value!r}, and {_a(role)} turn is "
                "not learned; leave it out"
            )
        learned = learned and bool(value)
    return learned or role != "assistant"


LAYOUTS: dict[str, Callable[[_Entry], list[Turn]]] = {
    **{name: partial(_listed, name=name) for name in TURN_FIELDS},
    **{name: partial(_alpaca, asked_name=name) for name in ANSWERS},
}
"""By the field that tells a layout."""


def _learnable(turns: list[Turn], source: str) -> list[Turn]:
    """The turns from the first question to the last answer, with the system's.

    Raises InputError unless user and assistant take turns, Unlearnable if nothing is left to learn.
    """
    expected: Role | None = None
    for number, turn in enumerate(turns, 1):
        if turn.role == "system":
            if number > 1:
                raise InputError(
                    f"{source}: turn {number} is a system turn; a conversation has one at most, "
                    "before all others"
                )
            continue
        if expected not in (None, turn.role):
            raise InputError(
                f"{source} has {_a(turn.role)} turn after another (turn {number}): "
                f"{_a(str(expected))} turn is missing before it; add it or remove the entry"
            )
        expected = "assistant" if turn.role == "user" else "user"
    system = [turn for turn in turns if turn.role == "system"]
    said = turns[len(system) :]
    begin = 1 if said and said[0].role == "assistant" else 0
    end = len(said) - 1 if said and said[-1].role == "user" else len(said)
    if begin >= end:
        last = f"ends with {_a(turns[-1].role)} turn" if not begin and turns else "has no question"
        raise Unlearnable(f"{last if turns else 'has no turns'}: nothing is answered")
    if not any(turn.role == "assistant" and turn.learned for turn in said[begin:end]):
        raise Unlearnable("has no answer that is to be learned")
    return [*system, *said[begin:end]]


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"

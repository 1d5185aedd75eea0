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

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.tables.turns import (
    ROLE_FIELDS,
    SYSTEM,
    ChatEntry,
    Role,
    Turn,
    Unlearnable,
    is_empty,
    turn_of,
    with_article,
)
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import is_table
from llmctl.errors import InputError, did_you_mean

TURN_FIELDS = ("messages", "conversations", "conversation")
"""Fields that hold turns."""
ANSWERS = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "question": ("answer", "response"),
}
"""For what is asked, by its name, names of what is answered."""
ADDED = ("input", "context")
"""Names of what a question is about."""
CHAT_COLUMNS = frozenset(
    {"history", *ANSWERS, *(name for names in ANSWERS.values() for name in names), *ADDED, *SYSTEM}
)
"""Columns by which a CSV's header is recognised: its cells can hold Alpaca's layout only."""


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
            turns = read_turns(row)
            kept = learnable(turns, row.source)
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


def read_turns(row: TableRow, read: Collection[str] = ()) -> list[Turn]:
    """The turns of an entry, by its layout. read: fields that are understood elsewhere."""
    entry = ChatEntry(row)
    layouts = [name for name in LAYOUTS if not is_empty(row.values.get(name))]
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
    entry.check_meaning(read)
    return LAYOUTS[name](entry)


def _alpaca(entry: ChatEntry, asked_name: str) -> list[Turn]:
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
        both = [name for name in alike if not is_empty(values.get(name))]
        if len(both) > 1:
            raise InputError(
                f"{entry.source} has {' and '.join(both)}; leave out the one that isn't meant"
            )
        answer_name = both[0] if both and alike is names else answer_name
    turns = asked_turns(entry, asked_name)
    answer = entry.said(values.get(answer_name), answer_name)
    return [*turns, Turn("assistant", answer)]


def asked_turns(entry: ChatEntry, asked_name: str) -> list[Turn]:
    """What is said before an answer in Alpaca's layout and its like; what is asked is last."""
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
    asked = entry.said(values.get(asked_name), asked_name)
    added = "".join(entry.text(values.get(name), name) for name in ADDED)
    if added.strip():
        asked = f"{asked}\n{added}"
    return [*turns, Turn("user", asked)]


def listed_turns(entry: ChatEntry, name: str) -> list[Turn]:
    """The turns of a field that is a list of them."""
    turns = entry.system()
    for number, item in enumerate(entry.items(name), 1):
        turn = turn_of(entry, item, number, ROLE_FIELDS[name == "conversations"])
        if turn is not None:
            turns.append(turn)
    return turns


def prompt_turns(entry: ChatEntry) -> list[Turn]:
    """What is said before an answer that stands elsewhere, by the layouts of conversations; none
    where an entry has no such field."""
    named = [name for name in LAYOUTS if not is_empty(entry.values.get(name))]
    if len(named) > 1:
        raise InputError(
            f"{entry.source} has {' and '.join(named)}; leave out the one that isn't meant"
        )
    if not named:
        return []
    (name,) = named
    listed = name in TURN_FIELDS or isinstance(entry.values[name], list)
    return listed_turns(entry, name) if listed else asked_turns(entry, name)


def _prompted(entry: ChatEntry, asked_name: str) -> list[Turn]:
    """The turns of a prompt and those that complete it (TRL's): only these are learned."""
    if not isinstance(entry.values.get("completion"), list):
        raise InputError(
            f"{entry.source}: {asked_name} is a list, and completion is not; give lists of turns, "
            "or texts"
        )
    number = len(asked := listed_turns(entry, asked_name))
    turns = [replace(turn, learned=turn.learned and turn.role != "assistant") for turn in asked]
    for item in entry.values["completion"]:
        number += 1
        turn = turn_of(entry, item, number, ROLE_FIELDS[0])
        turns += [] if turn is None else [turn]
    return turns


LAYOUTS: dict[str, Callable[[ChatEntry], list[Turn]]] = {
    **{name: partial(listed_turns, name=name) for name in TURN_FIELDS},
    **{name: partial(_alpaca, asked_name=name) for name in ANSWERS},
}
"""By the field that tells a layout."""


def learnable(turns: list[Turn], source: str) -> list[Turn]:
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
                f"{source} has {with_article(turn.role)} turn after another (turn {number}): "
                f"{with_article(str(expected))} turn is missing before it; add it or remove the "
                "entry"
            )
        expected = "assistant" if turn.role == "user" else "user"
    system = [turn for turn in turns if turn.role == "system"]
    said = turns[len(system) :]
    begin = 1 if said and said[0].role == "assistant" else 0
    end = len(said) - 1 if said and said[-1].role == "user" else len(said)
    if begin >= end:
        last = (
            f"ends with {with_article(turns[-1].role)} turn"
            if not begin and turns
            else "has no question"
        )
        raise Unlearnable(f"{last if turns else 'has no turns'}: nothing is answered")
    if not any(turn.role == "assistant" and turn.learned for turn in said[begin:end]):
        raise Unlearnable("has no answer that is to be learned")
    return [*system, *said[begin:end]]

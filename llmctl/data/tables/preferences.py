"""Preferences: answers to a prompt of which one is better, and answers that are good or not.

Pairs have ``chosen`` and ``rejected``, each a text, a turn (LLaMA-Factory's) or a list of turns
(TRL's); what they answer stands in ``prompt``, ``conversations`` or another field that
conversations have, or in both lists before their last turns. Ratings have an answer as
conversations do and ``label`` (TRL's) or ``kto_tag`` (LLaMA-Factory's), true or false; a pair is
two of them. What a reward is computed for has what is asked alone.

As with conversations, what isn't understood is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llmctl.data.tables.conversations import (
    CHAT_COLUMNS,
    Conversation,
    learnable,
    prompt_turns,
    read_turns,
)
from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.tables.turns import (
    ROLE_FIELDS,
    ChatEntry,
    Turn,
    Unlearnable,
    is_empty,
    kind_of,
    turn_of,
)
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import is_table
from llmctl.errors import InputError, did_you_mean

ANSWER_PAIR = ("chosen", "rejected")
THUMBS = ("label", "kto_tag")
"""Names of the field that says whether an answer is good."""
PREFERENCE_COLUMNS = frozenset({*CHAT_COLUMNS, *ANSWER_PAIR, *THUMBS})

Entry_T = TypeVar("Entry_T")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """What is said, and two answers to it of which the first is better."""

    prompt: tuple[Turn, ...]
    """Ends with the user."""
    chosen: str
    rejected: str
    source: str
    """Where it is from, for messages."""

    def answered(self, answer: str) -> Conversation:
        """The conversation with an answer."""
        return Conversation((*self.prompt, Turn("assistant", answer)), self.source)

    @property
    def asked(self) -> str:
        """The prompt for a hash: the same where only the answers differ."""
        return Conversation(self.prompt, self.source).text


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer and whether it is good."""

    conversation: Conversation
    desirable: bool

    @property
    def asked(self) -> str:
        """The prompt for a hash: the same where only the answers differ."""
        turns = self.conversation.turns[:-1]
        return Conversation(turns, self.conversation.source).text


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """What is said, to be answered, and all fields of its entry."""

    prompt: tuple[Turn, ...]
    values: dict[str, Any]
    source: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat templates take it."""
        return Conversation(self.prompt, self.source).messages

    @property
    def asked(self) -> str:
        """All that is said, for a hash."""
        return Conversation(self.prompt, self.source).text


def read_preferences(path: Path, *, reading: ReadOptions = DEFAULT) -> Iterator[PreferencePair]:
    """The pairs of a JSON list, JSONL, Parquet, Arrow, CSV or TSV file.

    Raises InputError naming the entry for one that isn't understood or whose two answers are equal,
    and if none can be learned from.
    """
    return _entries(path, lambda row: [_pair(row)], reading)


def read_ratings(path: Path, *, reading: ReadOptions = DEFAULT) -> Iterator[RatedAnswer]:
    """The rated answers of such a file; a pair is a good and a bad one. Raises InputError as
    ``read_preferences``."""
    return _entries(path, _ratings, reading)


def read_prompts(
    path: Path, *, reading: ReadOptions = DEFAULT, read: Sequence[str] = ()
) -> Iterator[AskedPrompt]:
    """The prompts of such a file. read: fields that are understood elsewhere.

    Raises InputError as ``read_preferences``.
    """
    return _entries(path, partial(_prompt, read=read), reading)


def has_pairs(path: Path, *, reading: ReadOptions = DEFAULT) -> bool:
    """Whether the entries of a table have two answers."""
    if not is_table(path):
        return False
    reader = RowReader(path, known=PREFERENCE_COLUMNS, reading=reading)
    return set(ANSWER_PAIR) <= set(reader.columns)


def _entries(
    path: Path, read: Callable[[TableRow], Sequence[Entry_T]], reading: ReadOptions
) -> Iterator[Entry_T]:
    """What the rows come to, without those that can't be learned from, which are counted."""
    if not is_table(path):
        raise InputError(f"{path} is plain text; give a JSON, JSONL, Parquet or CSV file")
    left_out: list[str] = []
    total = 0
    for row in RowReader(path, known=PREFERENCE_COLUMNS, reading=reading).rows():
        total += 1
        try:
            entries = read(row)
        except Unlearnable as error:
            left_out.append(f"{row.source} {error}")
            continue
        yield from entries
    if not total:
        raise InputError(f"{path} has no entries")
    if len(left_out) == total:
        raise InputError(
            f"{path}: none of its {total:,} entries can be learned from (the first: {left_out[0]})"
        )
    if left_out:
        reading.say(
            f"left out {len(left_out):,} of {total:,} entries that can't be learned from (the "
            f"first: {left_out[0]})"
        )


def _pair(row: TableRow) -> PreferencePair:
    """The pair of a row."""
    entry = ChatEntry(row)
    missing = [name for name in ANSWER_PAIR if name not in row.values]
    if missing:
        hint = did_you_mean(missing[0], row.values)
        raise InputError(
            f"{row.source} has no {' and no '.join(missing)}{hint}; it has the fields "
            f"{', '.join(row.values) or '(none)'}: give prompt, chosen and rejected"
        )
    entry.check_meaning(read=ANSWER_PAIR)
    before, answers = [], []
    for name in ANSWER_PAIR:
        *turns, answer = _answer(entry, name)
        before.append(turns)
        answers.append(answer.content)
    if before[0] != before[1]:
        raise InputError(
            f"{row.source}: what is said before the last turns of chosen and rejected differs; "
            "give two answers to the same prompt"
        )
    prompt = _joined(prompt_turns(entry), before[0], row.source)
    chosen, rejected = answers
    if chosen.strip() == rejected.strip():
        raise InputError(
            f"{row.source}: chosen and rejected are the same answer, so nothing is preferred; "
            "give two that differ, or remove the entry"
        )
    return PreferencePair(prompt, chosen, rejected, row.source)


def _answer(entry: ChatEntry, name: str) -> list[Turn]:
    """The turns of an answer's field, the answer last."""
    value = entry.values[name]
    if value is None or isinstance(value, str):
        return [Turn("assistant", entry.said(value, name))]
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise InputError(
            f"{entry.source}: {name} is {kind_of(value) if items else 'empty'}; give a text, or a "
            "list of turns"
        )
    found = [turn_of(entry, item, number, ROLE_FIELDS[0]) for number, item in enumerate(items, 1)]
    turns = [turn for turn in found if turn is not None]
    if not turns or turns[-1].role != "assistant":
        raise InputError(f"{entry.source}: {name} doesn't end with an assistant's turn; give one")
    return turns


def _joined(prompt: list[Turn], before: list[Turn], source: str) -> tuple[Turn, ...]:
    """The prompt by its own field and by the turns before the answers, of which one may be missing
    or both say the same."""
    said = [turn for turn in prompt if turn.role != "system"]
    if prompt and before and said != before[-len(said) :] and prompt != before:
        raise InputError(
            f"{source}: the prompt isn't what is said before the last turns of chosen and "
            "rejected; leave out one of the two"
        )
    system = [turn for turn in prompt if turn.role == "system"]
    if before and before[0].role != "system":
        before = [*system, *before]
    turns = before or prompt
    if not turns:
        raise InputError(
            f"{source} has no prompt; give prompt, or conversations, beside the answers"
        )
    return _checked(turns, source)


def _checked(turns: Sequence[Turn], source: str) -> tuple[Turn, ...]:
    """A prompt whose turns are in order, without an answer before the first question."""
    if turns[-1].role != "user":
        raise InputError(
            f"{source}: the prompt doesn't end with what a user says, so there is nothing to "
            "answer; put an assistant's last turn into the answers"
        )
    return tuple(learnable([*turns, Turn("assistant", "…")], source)[:-1])


def _ratings(row: TableRow) -> list[RatedAnswer]:
    """A row's answers: one, or of a pair two."""
    if set(ANSWER_PAIR) <= set(row.values):
        pair = _pair(row)
        return [
            RatedAnswer(pair.answered(pair.chosen), True),
            RatedAnswer(pair.answered(pair.rejected), False),
        ]
    names = [name for name in THUMBS if row.values.get(name) is not None]
    if len(names) != 1:
        has = " and ".join(names) or f"no {THUMBS[0]}{did_you_mean(THUMBS[0], row.values)}"
        raise InputError(
            f"{row.source} has {has}; write prompt, completion and label, which says by true or "
            "false whether the answer is good"
        )
    desirable = _thumb(row.values[names[0]])
    if desirable is None:
        raise InputError(
            f"{row.source}: the {names[0]} is {row.values[names[0]]!r}; write true for a good "
            "answer, false for a bad one"
        )
    turns = learnable(read_turns(row, read=THUMBS), row.source)
    return [RatedAnswer(Conversation(tuple(turns), row.source), desirable)]


def _thumb(value: Any) -> bool | None:
    """Whether a label says good; None where it says neither."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _prompt(row: TableRow, read: Sequence[str]) -> list[AskedPrompt]:
    entry = ChatEntry(row)
    entry.check_meaning(read=[*read, *THUMBS])
    turns = prompt_turns(entry)
    if not turns:
        if "prompt" in row.values:
            raise InputError(f"{row.source} has no prompt in it; write it, or remove the entry")
        if any(not is_empty(value) for value in row.values.values()):
            raise InputError(
                f"{row.source} has the fields {', '.join(row.values)}"
                f"{did_you_mean('prompt', row.values)}; give prompt, or messages, to be answered"
            )
        raise Unlearnable("is empty")
    return [AskedPrompt(_checked(turns, row.source), row.values, row.source)]

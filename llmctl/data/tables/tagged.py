"""Texts whose words are tagged: columns as CoNLL's tasks have them, tokens with tags, and texts
with spans.

However a file has them, a text comes as characters with the places of its words, so that whatever
is found in it has exact offsets. Words of columns and token lists are joined by a space, but for
those of scripts that are written without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llmctl.config import ColumnName
from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.tables.tags import OUTSIDE, Entity, Scheme, UnknownTags, repaired, scheme_of, spelt
from llmctl.data.text.decoding import ReadConfig, ReadOptions, text_lines
from llmctl.data.text.files import STDIN, format_of, named
from llmctl.data.text.words import UNSPACED, marks
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter

TOKEN_FIELDS = ("tokens", "words")
TAG_FIELDS = ("tags", "ner_tags", "labels", "pos_tags", "chunk_tags", "label")
SPAN_FIELDS = ("entities", "spans", "labels", "label")
TYPE_FIELDS = ("label", "type", "entity", "entity_group", "tag")
"""Fields in JSON: a text's words, their tags, its spans, and a span's type."""
KNOWN_FIELDS = frozenset((*TOKEN_FIELDS, *TAG_FIELDS, *SPAN_FIELDS, "text"))
COLUMN_SUFFIXES = (".conll", ".conllu", ".conll03", ".iob", ".iob2", ".bio", ".bioes")
"""Names that say that a file has columns, where it could have plain text as well."""
DOCUMENT_START = "-DOCSTART-"
"""The first column of a line that stands between documents and is no word."""


class TaggedColumns(ReadConfig):
    """Where words and tags are."""

    text_column: ColumnName | None = None
    """The words' column, from 1 in CoNLL's files, or the field with the text or its words in JSON.
    Unset: the first column, or an obvious field."""
    label_column: ColumnName | None = None
    """The tags' column, from 1 in CoNLL's files, or the field with tags or spans in JSON. Unset:
    the last column, or an obvious field."""


@dataclass(frozen=True)
class TaggedText:
    """A text, the places of its words, and their tags where it has them."""

    text: str
    words: tuple[tuple[int, int], ...]
    """Begin and end of each in the text."""
    tags: tuple[str, ...] | None
    source: str
    """Its file and line, for messages."""

    def word(self, number: int) -> str:
        """A word as it is written."""
        begin, end = self.words[number]
        return self.text[begin:end]


@cache
def _word() -> re.Pattern[str]:
    spaceless, letter = UNSPACED.pattern[1:-1], rf"(?!{UNSPACED.pattern})[\w{marks()}]"
    return re.compile(rf"[{spaceless}]|{letter}(?:[^\s{spaceless}]*{letter})?|\S")


def words_in(text: str) -> tuple[tuple[int, int], ...]:
    """The places of the words of a plain text: what stands between spaces, marks of punctuation
    around it being words of their own; each character of a script that is written without.

    >>> [("U.S. won't, 不行"[a:b]) for a, b in words_in("U.S. won't, 不行")]
    ['U.S', '.', "won't", ',', '不', '行']
    """
    return tuple(match.span() for match in _word().finditer(text))


def of_words(words: Sequence[str], tags: Sequence[str] | None, source: str) -> TaggedText:
    """Words joined to a text."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    end = 0
    for word in words:
        apart = bool(parts) and not (UNSPACED.match(parts[-1][-1]) and UNSPACED.match(word[0]))
        parts += [" ", word] if apart else [word]
        begin = end + apart
        end = begin + len(word)
        places.append((begin, end))
    return TaggedText("".join(parts), tuple(places), None if tags is None else tuple(tags), source)


def has_columns(path: Path) -> bool:
    """Whether a file's name says that it has words in columns, or in fields of JSON."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst")]
    return bool(suffixes) and suffixes[-1] in COLUMN_SUFFIXES


def read_tagged(
    path: Path,
    columns: TaggedColumns,
    reporter: Reporter,
    *,
    need_tags: bool = True,
) -> tuple[list[TaggedText], Scheme]:
    """The texts of a file, their tags well spelt, and the scheme of these; what was mended is told.

    Raises InputError, naming the line, for what is no such file or has tags that no scheme allows.
    """
    reading = columns.read_options(reporter.note)
    if path == STDIN or format_of(path) in (".txt", ".tsv"):
        texts = list(_of_columns(path, columns, reading, need_tags))
    elif format_of(path) == ".csv":
        raise InputError(
            f"{path}: words and their tags are read from columns as CoNLL has them, a word a line, "
            "or from JSONL with spans; write it as one of these"
        )
    else:
        texts = list(_of_rows(path, columns, reading, reporter, need_tags))
    if not texts:
        raise InputError(f"{named(path)} has no words")
    if not need_tags:
        return texts, "plain"
    return _mended(path, texts, reporter)


def _of_columns(
    path: Path, columns: TaggedColumns, reading: ReadOptions, need_tags: bool
) -> Iterator[TaggedText]:
    conllu = ".conllu" in path.suffixes
    word_at = _number(path, "--text-column", columns.text_column, 1 if conllu else 0)
    tag_at = _number(path, "--label-column", columns.label_column, 3 if conllu else -1)
    words: list[str] = []
    tags: list[str] = []
    first = width = 0

    def told() -> Iterator[TaggedText]:
        if words:
            yield of_words(words, tags if need_tags else None, f"{named(path)}:{first}")
            words.clear()
            tags.clear()

    for number, (line, _) in enumerate(text_lines(path, reading), 1):
        line = line.removesuffix("\n")
        if not line.strip() or line.startswith(DOCUMENT_START):
            yield from told()
            continue
        if conllu and line.startswith("#"):
            continue
        parts = line.split("\t") if "\t" in line else line.split()
        if conllu and not parts[0].isdecimal():  # a token of several words, or an empty one
            continue
        width = width or len(parts)
        where = f"{named(path)}:{number}"
        if len(parts) != width:
            raise InputError(
                f"{where} has {len(parts)} columns and the lines before it {width}; each line is a "
                "word with its tags, and an empty one ends a sentence"
            )
        least = max(word_at, tag_at if need_tags else 0) + 1
        if len(parts) < max(least, 2 if need_tags else 1):
            raise InputError(
                f"{where} has {len(parts)} column{'s' * (len(parts) > 1)}; each line is a word "
                "and, behind spaces or a tab, its tag"
            )
        word = parts[word_at].strip()
        if not word or any(c.isspace() for c in word):
            raise InputError(f"{where}: the word {parts[word_at]!r} is empty or has a space in it")
        if not words:
            first = number
        words.append(word)
        tags.append(parts[tag_at].strip() if need_tags else "")
    yield from told()


def _number(path: Path, option: str, column: str | None, default: int) -> int:
    if column is None:
        return default
    if not column.isdecimal() or column == "0":
        raise InputError(f"{option} {column!r}: the columns of {named(path)} have numbers, from 1")
    return int(column) - 1


def _of_rows(
    path: Path,
    columns: TaggedColumns,
    reading: ReadOptions,
    reporter: Reporter,
    need_tags: bool,
) -> Iterator[TaggedText]:
    reader = RowReader(path, known=KNOWN_FIELDS, reading=reading)
    widened: list[str] = []
    for row in reader:
        words = _field(row, columns.text_column, (*TOKEN_FIELDS, "text"))
        wanted = (*TAG_FIELDS, *SPAN_FIELDS) if need_tags else ()
        tags = _field(row, columns.label_column, wanted) if need_tags else None
        if isinstance(words, list):
            yield _of_tokens(row, words, tags)
        elif isinstance(words, str):
            places = words_in(words)
            spans = None if tags is None else _spans(row, words, tags)
            found = None if spans is None else _covered(row, words, places, spans, widened)
            yield TaggedText(words, places, found, row.source)
        else:
            raise InputError(
                f"{row.source} has neither a text nor a list of words in {reader.listed()}; name "
                "the field with --text-column"
            )
    if widened:
        reporter.note(
            f"{path.name}: {len(widened):,} spans begin or end within a word and were widened to "
            f"whole words (the first: {widened[0]})"
        )


def _field(row: TableRow, wanted: str | None, known: Sequence[str]) -> Any:
    """The value of the field that is named, or of the first known one that is there."""
    names = [wanted] if wanted else [name for name in known if row.values.get(name) is not None]
    if not names and (empty := [name for name in known if name in row.values]):
        raise InputError(f"{row.source}: {empty[0]} is null; write [] where there is none")
    if not names or names[0] not in row.values:
        option = f"the field {wanted!r}" if wanted else f"one of the fields {', '.join(known)}"
        raise InputError(f"{row.source} lacks {option}; it has {', '.join(row.values) or 'none'}")
    return row.values[names[0]]


def _of_tokens(row: TableRow, words: list[Any], tags: Any) -> TaggedText:
    whole = [isinstance(w, str) and w and not any(map(str.isspace, w)) for w in words]
    if not words or not all(whole):
        raise InputError(
            f"{row.source}: its words are not all texts without spaces; write a list of words"
        )
    if tags is None:
        return of_words(words, None, row.source)
    if isinstance(tags, list) and any(isinstance(tag, int) for tag in tags):
        raise InputError(
            f"{row.source} has numbers for tags, and the file does not say what they stand for; "
            "write the tags' names"
        )
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        raise InputError(f"{row.source}: its tags are not a list of texts, one for each word")
    if len(tags) != len(words):
        raise InputError(f"{row.source} has {len(words)} words and {len(tags)} tags")
    return of_words(words, tags, row.source)


def _spans(row: TableRow, text: str, spans: Any) -> list[tuple[int, int, str]]:
    """Spans of a text by their begin."""
    if not isinstance(spans, list):
        raise InputError(f"{row.source}: its spans are not a list; see recipes/tag.md for layouts")
    found = []
    for span in spans:
        if isinstance(span, Mapping):
            kind = next((span[name] for name in TYPE_FIELDS if name in span), None)
            parts: list[Any] = [span.get("start"), span.get("end"), kind]
        else:
            parts = list(span) if isinstance(span, list | tuple) else []
        if len(parts) != 3 or type(parts[0]) is not int or type(parts[1]) is not int:
            raise InputError(
                f"{row.source}: the span {span!r} has no start, end and label; write "
                '{"start": 0, "end": 5, "label": "PER"} or [0, 5, "PER"]'
            )
        begin, end, kind = parts
        if not isinstance(kind, str) or not kind or any(map(str.isspace, kind)):
            raise InputError(f"{row.source}: the span {span!r} has no label of one word")
        if not 0 <= begin < end <= len(text):
            raise InputError(
                f"{row.source}: the span {span!r} is empty or lies outside the text, which has "
                f"{len(text)} characters"
            )
        found.append((begin, end, kind))
    return sorted(found)


def _covered(
    row: TableRow,
    text: str,
    places: Sequence[tuple[int, int]],
    spans: Iterable[tuple[int, int, str]],
    widened: list[str],
) -> tuple[str, ...]:
    """The tags of words that spans cover. widened: gets those that cut a word in two."""
    found: list[Entity] = []
    for begin, end, kind in spans:
        covered = [n for n, (first, last) in enumerate(places) if first < end and last > begin]
        if not covered:
            raise InputError(f"{row.source}: the span {begin} to {end} covers no word")
        if found and found[-1].end > covered[0]:
            raise InputError(
                f"{row.source}: the spans of {text[begin:end]!r} and of what stands before it "
                "share a word; a word has one tag: leave one of them out"
            )
        if (places[covered[0]][0], places[covered[-1]][1]) != (begin, end):
            whole = text[places[covered[0]][0] : places[covered[-1]][1]]
            widened.append(f"{row.source}, {text[begin:end]!r} to {whole!r}")
        found.append(Entity(covered[0], covered[-1] + 1, kind))
    return tuple(spelt(found, len(places), "BIO"))


def _mended(
    path: Path, texts: Sequence[TaggedText], reporter: Reporter
) -> tuple[list[TaggedText], Scheme]:
    """Texts whose tags are well spelt, and the scheme. What was mended is told."""
    try:
        scheme = scheme_of(tag for text in texts for tag in text.tags or ())
    except UnknownTags as error:
        raise InputError(
            f"{named(path)}: {error}; give the column of the tags with --label-column, or mend them"
        ) from None
    if scheme == "plain":
        if {tag for text in texts for tag in text.tags or ()} == {OUTSIDE}:
            raise InputError(
                f"{named(path)} tags every word {OUTSIDE}, so there is nothing to learn; check "
                "--label-column"
            )
        return list(texts), scheme
    mended, changed, first = [], 0, ""
    for text in texts:
        right = repaired(text.tags or (), scheme)
        wrong = [n for n, tag in enumerate(text.tags or ()) if tag != right[n]]
        if wrong and not first:
            at = wrong[0]
            first = f"{text.source}, {text.word(at)!r} from {(text.tags or ())[at]} to {right[at]}"
        changed += len(wrong)
        mended.append(TaggedText(text.text, text.words, tuple(right), text.source))
    if changed:
        reporter.note(
            f"{named(path)}: {changed:,} tags don't begin or end their entity as {scheme} has it "
            f"and were mended (the first: {first})"
        )
    return mended, scheme

"""Plain text as documents: whole files, lines, paragraphs, or pieces of a long file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

from llmctl.data.text.decoding import ReadOptions, text_blocks, text_lines
from llmctl.data.text.sentences import sentence_starts
from llmctl.errors import InputError

UNITS = ("auto", "file", "paragraph", "line")

LONG_FILE = 1 << 16
"""Characters; a plain text up to this length is one document."""
PIECE = 1 << 14
"""A longer file (a book, a dump) is cut into documents of about this, so that there is something to
split into training and validation."""

MAX_TEXT = 1 << 27
"""Characters in a document, which is held whole."""


@dataclass
class PlainText:
    """What files of plain text were taken for, where the unit is ``auto``."""

    documents: int = 0
    paragraphs: int = 0
    """Parts between blank lines."""
    whole: int = 0
    """Files that are a document each."""
    cut: int = 0
    """Files that were cut into several."""

    def add(self, number: int, text: str) -> None:
        """Count the ``number``-th piece of a file."""
        paragraphs = sum(1 for part in text.split("\n\n") if part.strip())
        if paragraphs:
            self.documents += 1
            self.paragraphs += paragraphs
        self.whole += number == 1
        if number == 2:
            self.whole, self.cut = self.whole - 1, self.cut + 1

    def __str__(self) -> str:
        """What the user is told; empty where there is nothing to choose."""
        if self.paragraphs <= self.documents:
            return ""
        cut = f"each piece of about {PIECE:,} characters of {_files(self.cut, 'long')}"
        whole = f"each of {_files(self.whole, 'short')}" if self.whole > 1 else "the whole file"
        if self.cut and self.whole:
            whole = f"each of {_files(self.whole, 'short')}"
        what = " and ".join([cut] * bool(self.cut) + [whole] * bool(self.whole))
        return (
            f"of plain text {what} is a document ({self.documents:,} in all): with --document "
            f"paragraph each of its {self.paragraphs:,} parts between blank lines would be one"
        )


def _files(count: int, kind: str) -> str:
    return f"{count:,} {kind} file{'s' * (count != 1)}"


def read_plain(
    file: Path, unit: str, reading: ReadOptions, plain: PlainText
) -> Iterator[tuple[str, str, int]]:
    """Each document of a file of plain text, where it stands for messages, and the bytes of the
    file read so far. plain: counts what the file was taken for, where the unit is ``auto``."""
    if unit == "line":
        for number, (line, position) in enumerate(text_lines(file, reading), 1):
            yield with_newlines(line), f"{file}:{number}", position
    elif unit == "file":
        blocks, size = [], 0
        for block, _ in text_blocks(file, reading):
            blocks.append(block)
            size += len(block)
            refuse_longer(size, str(file))
        yield "".join(blocks), str(file), file.stat().st_size
    elif unit == "paragraph":
        yield from _pieces(file, reading, 0, 0)
    else:
        pieces = _pieces(file, reading, PIECE, LONG_FILE)
        for number, piece in enumerate(pieces, 1):
            plain.add(number, piece[0])
            yield piece


def refuse_longer(characters: int, source: str) -> None:
    """Raises InputError for a document that would take more memory than a machine need have."""
    if characters > MAX_TEXT:
        raise InputError(
            f"{source}: a document has more than {MAX_TEXT:,} characters; divide it (plain text by "
            "--document auto or line)"
        )


def with_newlines(text: str) -> str:
    """A text whose lines end with ``\\n``."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _pieces(
    file: Path, reading: ReadOptions, smallest: int, longest: int
) -> Iterator[tuple[str, str, int]]:
    """A file up to ``longest`` whole; a longer one cut at the first blank line after ``smallest``
    characters, else at a line end once a piece is four times as long, else there."""
    pending, position, whole = "", 0, longest > 0
    for block, position in text_blocks(file, reading):
        pending += block
        if whole and len(pending) <= longest:
            continue
        refuse_longer(len(pending), str(file))
        whole = False
        start = 0
        while True:
            cut = _cut(pending, start, smallest)
            if cut is None:
                break
            yield pending[start:cut], str(file), position
            start = cut
        pending = pending[start:]
    while not whole and (cut := _cut(pending, 0, smallest)) is not None:
        yield pending[:cut], str(file), position
        pending = pending[cut:]
    yield pending, str(file), position


def _cut(text: str, start: int, smallest: int) -> int | None:
    """Where the piece that begins at ``start`` ends, or None if the text may be short of it."""
    from_ = start + smallest
    if not smallest:
        # The blank line before a paragraph is not its end.
        while text.startswith("\n", from_):
            from_ += 1
    blank = text.find("\n\n", from_)
    limit = start + 4 * smallest
    if blank != -1 and (not smallest or blank < limit):
        return blank + 2
    if smallest and len(text) > limit:
        line = text.rfind("\n", from_, limit)
        return line + 1 if line != -1 else _within_line(text, from_, limit)
    return None


def _within_line(text: str, begin: int, end: int) -> int:
    """Where to cut a stretch without line ends: where its last sentence starts, else before its
    last space, behind its last mark of punctuation, between two letters of a script without
    spaces. One that has none of these is no text, and is cut at its end."""
    sentence = begin + sentence_starts(text[begin:end])[-1]
    if sentence > begin:
        return sentence
    for fits in (_before_space, _behind_mark, _between_letters):
        for place in range(end, begin, -1):
            if fits(text[place - 1], text[place]):
                return place
    return end


def _before_space(before: str, after: str) -> bool:
    return after.isspace() and not before.isspace()


def _behind_mark(before: str, after: str) -> bool:
    return before in ",;:，、；：" and not after.isspace()


def _between_letters(before: str, after: str) -> bool:
    return category(before) == category(after) == "Lo"

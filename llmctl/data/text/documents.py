"""Documents: the pieces of text that a corpus is made of, read one after another.

Sources are files (.txt, .md, .jsonl, .json, .csv, .tsv, .parquet, .arrow, the text formats also
.gz and .zst), folders, globs, ``-`` for standard input, and the two corpora that every Python
carries: ``python:docs`` and ``python:code``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import by_lower, is_readable, is_table, split_columns
from llmctl.data.text.kinds import look_at
from llmctl.data.text.plain import UNITS, PlainText, read_plain, refuse_longer, with_newlines
from llmctl.data.text.python_corpora import python_code, python_docs
from llmctl.data.text.sources import find, is_stream
from llmctl.errors import InputError, UsageError, did_you_mean, read_errors_naming
from llmctl.workspace.files import sha256_file
from llmctl.workspace.names import slug

TEXT_COLUMNS = (
    "text", "content", "document", "body", "article", "sentence", "review", "abstract",
    "description", "title",
)  # fmt: skip
"""Where a table's text is looked for, in this order."""

STDIN_NAME = "standard input"
PYTHON_CORPORA: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
    "python:docs": python_docs,
    "python:code": python_code,
}


@dataclass(frozen=True, slots=True)
class Document:
    """One text, with newlines as ``\\n``; stripped, unless its corpus keeps its ends."""

    text: str
    source: str
    """Its file, with the line where that tells more; for messages."""
    position: int
    """Bytes of the corpus read once this document is; compressed bytes of compressed files."""


class Corpus:
    """The documents of some sources, in a fixed order; can be iterated again and again."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        text_column: str | None = None,
        reading: ReadOptions = DEFAULT,
        unit: str = "auto",
        keep_ends: bool = False,
    ) -> None:
        """keep_ends: whether white space at the ends of a document stays.

        Raises InputError for a source that isn't there, UsageError for an unknown unit.
        """
        if unit not in UNITS:
            raise UsageError(
                f"--document {unit!r} is not known{did_you_mean(unit, UNITS)}; "
                f"choose one of {', '.join(UNITS)}"
            )
        self._columns = split_columns(text_column)
        self._reading = replace(reading, note=lambda said: reading.say(self._shown(said)))
        self._unit, self._keep_ends = unit, keep_ends
        self._sources = list(sources)
        self._spools: dict[str, tempfile._TemporaryFileWrapper[bytes]] = {}
        """What could be read once only, by its source."""
        self.notes: list[str] = []
        """What was not read, or taken for something, for the user."""
        self._files = [file for source in sources for file in self._resolve(source)]
        if not self._files:
            raise InputError("no text was given; name files, folders, - or python:docs")
        self.names = [self._shown(str(file)) for file in self._files]
        self.sizes = [self._size(file) for file in self._files]
        self.begins = list(accumulate(self.sizes, initial=0))
        """The corpus's bytes before each file, and after the last."""
        self.total_bytes = self.begins[-1]
        self._digests: dict[int, tuple[str, bytes]] = {}
        self.plain = PlainText()
        """What became of plain text; known once the corpus has been iterated."""

    @property
    def suggested_name(self) -> str:
        """A name for what is made of this corpus: that of its first source."""
        first = self._sources[0]
        if first == "-":
            return "stdin"
        if first in self._spools and first.startswith("/dev/fd/"):
            return "pipe"
        stem = first.replace(":", "-") if first in PYTHON_CORPORA else Path(first).name
        while Path(stem).suffix and len(stem) > len(Path(stem).suffix):
            stem = Path(stem).stem
        return slug(stem, "corpus")

    def __iter__(self) -> Iterator[Document]:
        any_text = False
        self.plain = PlainText()
        for number in range(len(self._files)):
            for document in self.of_file(number):
                if document.text:
                    any_text = True
                    yield document
        if not any_text:
            raise self.no_text()

    def of_file(self, number: int, after: int = 0) -> Iterator[Document]:
        """All that a file has, empty texts too.

        A text that ends within the file's first ``after`` bytes may come empty: it is skipped.
        """
        begin, size = self.begins[number], self.sizes[number]
        try:
            for text, source, position in self._read(self._files[number], after):
                refuse_longer(len(text), source)
                stripped = text.strip()
                kept = text if stripped and self._keep_ends else stripped
                yield Document(kept, self._shown(source), begin + min(max(position, 1), size))
        except InputError as error:
            raise InputError(self._shown(str(error))) from None

    def part_of(self, document: Document, of: int) -> int:
        """The number of the ``CorpusPart`` that has a document of this corpus."""
        return max(1, -(-document.position * of // max(self.total_bytes, 1)))

    def no_text(self) -> InputError:
        """What is raised where there is nothing but empty documents."""
        return InputError(f"{', '.join(self._sources)} has no text: every document is empty")

    def digest(self) -> str:
        """SHA-256 of the content, whatever the files are called."""
        total = hashlib.sha256()
        for number in range(len(self._files)):
            total.update(self._digested(number)[1])
        return total.hexdigest()

    def file_digest(self, number: int) -> str:
        """SHA-256 of one file."""
        return self._digested(number)[0]

    def _digested(self, number: int) -> tuple[str, bytes]:
        """SHA-256 of a file, and what it adds to the corpus's; reckoned once."""
        if number not in self._digests:
            file = self._files[number]
            if isinstance(file, Path):
                with read_errors_naming(file):
                    digest = sha256_file(file)
                self._digests[number] = digest, digest.encode()
            else:
                added = b"".join(
                    hashlib.sha256(text.encode()).digest() for _, text in PYTHON_CORPORA[file]()
                )
                self._digests[number] = hashlib.sha256(added).hexdigest(), added
        return self._digests[number]

    def _shown(self, message: str) -> str:
        """A message in which a stream is not called by its temporary file's name."""
        for source, spool in self._spools.items():
            message = message.replace(spool.name, STDIN_NAME if source == "-" else source)
        return message

    @property
    def streams(self) -> list[str]:
        """Sources that can be read once only, by this process alone."""
        return [STDIN_NAME if source == "-" else source for source in self._spools]

    def _resolve(self, source: str) -> list[Path | str]:
        if source in PYTHON_CORPORA:
            return [source]
        if source == "-":
            return [self._spooled(source)]
        paths = find(source)
        if paths is None:
            hint = did_you_mean(source, PYTHON_CORPORA) if ":" in source else ""
            raise InputError(f"{source}: no such file or folder{hint}")
        self.notes += paths.notes
        files: list[Path | str] = []
        unknown = []
        for file in paths.files:
            with read_errors_naming(file):
                if is_stream(file):
                    files.append(self._spooled(str(file)))
                    continue
            files.append(file)
            if not is_readable(file):
                unknown.append(file)
        if self._reading.errors == "strict":
            self.notes += look_at(unknown)
        return files

    def _spooled(self, source: str) -> Path:
        """All of a stream in a temporary file, which can be read again and again."""
        if source not in self._spools:
            suffix = "" if source == "-" else "".join(Path(source).suffixes[-2:])
            spool = tempfile.NamedTemporaryFile(prefix="llmctl-stream-", suffix=suffix)  # noqa: SIM115
            with nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb") as stream:
                shutil.copyfileobj(stream, spool)
            spool.flush()
            self._spools[source] = spool
        return Path(self._spools[source].name)

    def _size(self, file: Path | str) -> int:
        if isinstance(file, Path):
            with read_errors_naming(file):
                return file.stat().st_size
        return sum(len(text) for _, text in PYTHON_CORPORA[file]())

    def _read(self, file: Path | str, after: int) -> Iterator[tuple[str, str, int]]:
        if isinstance(file, str):
            position = 0
            for name, text in PYTHON_CORPORA[file]():
                position += len(text)
                yield text, name, position
        elif is_table(file):
            yield from self._read_rows(file, after)
        else:
            yield from read_plain(file, self._unit, self._reading, self.plain)

    def _read_rows(self, file: Path, after: int) -> Iterator[tuple[str, str, int]]:
        reader = RowReader(
            file,
            requested=self._columns,
            known=frozenset(TEXT_COLUMNS) | {"label", "class"},
            reading=self._reading,
        )
        if not reader.columns:
            return
        lower = by_lower(reader.names)
        guessed = next((lower[name] for name in TEXT_COLUMNS if name in lower), "")
        if not self._columns and not guessed and not reader.has_header:
            raise InputError(
                f"{file} has no header that names its text (its first row is "
                f"{reader.shown_first_row()}): choose with --text-column, by name or by number "
                "from 1"
            )
        if not self._columns and not guessed:
            raise InputError(
                f"{file} has no column 'text'{did_you_mean('text', reader.columns)}; it has "
                f"{reader.listed()}: choose with --text-column"
            )
        columns = [reader.column("--text-column", name) for name in self._columns or (guessed,)]
        for row in reader.rows(columns, after):
            values = [row.values.get(name) for name in columns]
            for name, value in zip(columns, values, strict=True):
                if value is not None and not isinstance(value, str):
                    raise InputError(
                        f"{row.source}: {name} is {type(value).__name__}, not text; "
                        "choose another --text-column"
                    )
            yield with_newlines(" ".join(v for v in values if v)), row.source, row.position


class CorpusPart:
    """A part of a corpus: the documents that end in the ``number``-th of ``of`` equal stretches of
    its bytes, in their order. Files outside it are not read; one that it shares is read from its
    beginning.

    So parts need only the number of bytes of each file to share out the documents.
    """

    def __init__(self, corpus: Corpus, number: int, of: int) -> None:
        total = corpus.total_bytes
        self._corpus = corpus
        # Nothing ends before the first byte, but an empty file ends there.
        self.begin = total * (number - 1) // of if number > 1 else -1
        self.end = total * number // of
        self.total_bytes = self.end - max(self.begin, 0)
        self.files = [
            file
            for file, (first, last) in enumerate(pairwise(corpus.begins))
            if min(first + 1, last) <= self.end and last > self.begin
        ]
        """Numbers of the files that it reads."""
        self.before = self.until = 0
        """Once iterated: how many texts of its first file come before it, and how many of its last
        file do not come after it."""

    def __iter__(self) -> Iterator[Document]:
        self.before = self.until = 0
        for file in self.files:
            self.until = 0
            after = max(self.begin - self._corpus.begins[file], 0)
            for document in self._corpus.of_file(file, after):
                if document.position > self.end:
                    break
                self.until += 1
                if document.position <= self.begin:
                    self.before += 1
                elif document.text:
                    yield document

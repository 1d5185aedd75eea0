"""What a file is whose name doesn't say it: told by how it begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llmctl.data.text.files import open_bytes
from llmctl.errors import InputError

HEAD = 1024
"""Bytes that are looked at."""

SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF", "extract its text first"),
    (b"{\\rtf", "a rich text document (RTF)", "save it as plain text"),
    (b"PK\x03\x04", "a zip archive, or an office document", "extract its text first"),
    (b"\xd0\xcf\x11\xe0", "an office document", "save it as plain text"),
    (b"%!PS", "PostScript", "extract its text first"),
    (b"\x1f\x8b", "compressed by gzip", "end its name with .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "end its name with .zst"),
    (b"BZh", "compressed by bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"PAR1", "Parquet", "end its name with .parquet"),
    (b"ARROW1", "an Arrow file", "end its name with .arrow"),
    (b"SQLite format 3\0", "an SQLite database", "export its text first"),
    (b"\x89PNG", "a picture (PNG)", "name files of text"),
    (b"\xff\xd8\xff", "a picture (JPEG)", "name files of text"),
    (b"GIF8", "a picture (GIF)", "name files of text"),
    (b"\x7fELF", "a program", "name files of text"),
)
"""How files begin that are no text, what they are, and what to do."""

_MARKUP = re.compile(rb"\s*<(?:[?!][a-z-]*|(?P<root>[a-z][\w:]*)[\s>])", re.IGNORECASE)
_ROOT = re.compile(rb"<(?P<root>[a-z][\w:]*)[\s>]", re.IGNORECASE)
SHOWN_FILES = 3
"""Files that a note names."""


def look_at(files: Sequence[Path]) -> list[str]:
    """What the user is told of files whose kind can't be told by their names.

    Raises InputError for one that begins as no text does.
    """
    markup: list[str] = []
    for file in files:
        with open_bytes(file) as (stream, _):
            head = stream.read(HEAD)
        for signature, what, remedy in SIGNATURES:
            if head.startswith(signature):
                raise InputError(f"{file} is {what}, not text; {remedy}")
        if (begin := _MARKUP.match(head)) is not None:
            root = begin if begin["root"] else _ROOT.search(head)
            markup.append(f"{file} (<{root['root'].decode()}>)" if root else str(file))
    if not markup:
        return []
    shown = ", ".join(markup[:SHOWN_FILES]) + (
        f" and {len(markup) - SHOWN_FILES:,} more" * (len(markup) > SHOWN_FILES)
    )
    are, them = ("are", "their") if len(markup) > 1 else ("is", "its")
    return [
        f"{shown} {are} markup, read as plain text: {them} tags become tokens; extract the text "
        "first if they shouldn't"
    ]

"""Bytes to text: which encoding a file is in, where it does not fit, and what ends a line.

UTF-8 unless a byte-order mark or ``--encoding`` says otherwise. A byte that does not fit is an
error with its place, and with an encoding in which it would, or becomes U+FFFD if that was asked
for. Files and standard input are read by the same rules.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from llmctl.config import Config
from llmctl.data.text.files import named, open_bytes
from llmctl.errors import InputError, did_you_mean

Header = Literal["auto", "yes", "no"]

UTF_8 = "utf-8"
MARKS = (
    (b"\xef\xbb\xbf", UTF_8), (b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
)  # fmt: skip
"""Byte-order marks; UTF-32's before UTF-16's, which it begins with."""
MULTIBYTE_ENCODINGS = re.compile(r"utf-(16|32)")
"""Encodings in which a byte 0 is nothing odd."""

DECODE_BLOCK = 1 << 20
"""Bytes read at a time."""
MAX_LINE = 1 << 28
"""Characters of a line: a longer one takes gigabytes before anything can be done with it."""

GUESSES = (
    ("gb18030", "Chinese", r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"),
    ("shift_jis", "Japanese", r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"),
    ("big5", "Chinese", r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"),
    ("cp1252", "Western European", r"[\u00a0-\u00ff\u0152-\u0178\u2013-\u2022\u20ac]"),
)
"""Encodings that are offered where UTF-8 does not fit, for what language, and the characters of
which nearly all of a text's that are not ASCII then are."""
PLAUSIBLE = 0.95
COMMON_HANZI = 0.8
"""Share of a Chinese text's characters that are among GB 2312's first 3,755, its commonest."""


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read beyond what its name says, and who is told what was found in it."""

    encoding: str = UTF_8
    errors: str = "strict"
    """What a byte that does not fit does: ``strict``, it is refused; ``replace``, U+FFFD."""
    header: Header = "auto"
    """Whether a CSV's first row names its columns; ``auto``: by what stands in it."""
    note: Callable[[str], None] | None = field(default=None, compare=False)
    _said: set[str] = field(default_factory=set, compare=False, repr=False)

    def say(self, message: str) -> None:
        """Tell what was found, once however often a file is read."""
        if self.note is not None and message not in self._said:
            self._said.add(message)
            self.note(message)


DEFAULT = ReadOptions()


def _encoding(value: object) -> object:
    """The name of an encoding as Python has it, so that ``UTF8`` and ``utf-8`` are one."""
    if not isinstance(value, str):
        return value
    info: codecs.CodecInfo | None = None
    try:
        info = codecs.lookup(value)
        b"a".decode(value)  # refuses what is no encoding of text, such as base64
    except UnicodeDecodeError:
        pass  # one whose characters are longer
    except (LookupError, ValueError):
        info = None
    if info is None or info.incrementaldecoder is None:
        known = ("utf-8", "utf-16", "gbk", "gb18030", "big5", "shift_jis", "euc-kr", "latin-1",
                 "cp1252", "cp1251", "koi8-r")  # fmt: skip
        raise ValueError(
            f"Python knows no encoding of that name{did_you_mean(value, known)}; write for "
            "example gb18030, shift_jis or cp1252"
        )
    return info.name


Encoding = Annotated[str, BeforeValidator(_encoding)]


class ReadConfig(Config):
    """How the files of a task are read."""

    encoding: Encoding = UTF_8
    """Encoding of text files: any that Python knows, such as gb18030 or cp1252. A byte-order mark
    of UTF-16 or UTF-32 is heeded without it; Parquet and Arrow are UTF-8 always."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What a byte that is not in the encoding does: it is refused, or becomes U+FFFD."""
    header: Header = "auto"
    """Whether a CSV's or TSV's first row names its columns: yes, no, or auto, told by what stands
    in it, and said where it is not certain."""

    def read_options(self, note: Callable[[str], None] | None = None) -> ReadOptions:
        """For the readers; note: who is told what was found."""
        return ReadOptions(self.encoding, self.encoding_errors, self.header, note)


def text_blocks(
    path: Path, reading: ReadOptions = DEFAULT, *, carriage_returns: bool = True
) -> Iterator[tuple[str, int]]:
    """Blocks of text with line ends as ``\\n``, and the bytes of the file read so far.

    path: ``-`` is standard input. carriage_returns: whether one alone ends a line too, as in texts;
    where lines are rows it does not. A byte-order mark is dropped. Raises InputError naming the
    offset (in the decompressed text) of the first byte that is 0 or does not fit, unless
    ``reading.errors`` is ``replace``.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True) if carriage_returns else _Ends()
    strict, offset, decoder = reading.errors == "strict", 0, None
    encoding, mark, started = reading.encoding, b"", False
    with open_bytes(path) as (stream, told):
        while True:
            block = stream.read(DECODE_BLOCK)
            # A pipe may give less at first than a mark has.
            while decoder is None and _begins_mark(block) and (more := stream.read(DECODE_BLOCK)):
                block += more
            end = not block
            if decoder is None:
                encoding, mark = _encoding_of(path, block, reading)
                decoder = codecs.getincrementaldecoder(encoding)(reading.errors)
                offset, block = len(mark), block[len(mark) :]
            if strict and not MULTIBYTE_ENCODINGS.match(encoding) and b"\0" in block:
                raise _binary(path, block, offset)
            try:
                text = decoder.decode(block, final=end)
            except UnicodeDecodeError as error:
                begin = offset + len(block) - len(error.object)
                raise _unfit(path, encoding, error, begin) from None
            except UnicodeError as error:  # of some codecs, without a place
                raise InputError(
                    f"{named(path)} is not {encoding.upper()} ({error}); name its encoding with "
                    "--encoding"
                ) from None
            offset += len(block)
            if text and not started:
                started = True
                text = text if mark else text.removeprefix("\ufeff")
            if "\0" in text:
                if strict:
                    raise InputError(
                        f"{named(path)} has a NUL character as {encoding.upper()}: it is not text "
                        "in this encoding; name another with --encoding, or go on with "
                        "--encoding-errors replace"
                    )
                text = text.replace("\0", "\ufffd")
            text = newlines.decode(text, final=end)
            if text:
                yield text, told()
            if end:
                return


def text_lines(
    path: Path, reading: ReadOptions = DEFAULT, *, carriage_returns: bool = False
) -> Iterator[tuple[str, int]]:
    """Lines with their ``\\n``, and the bytes of the file read so far.

    ``\\n`` and ``\\r\\n`` end a line, as for ``wc`` and ``paste``; no other character does, unless
    ``carriage_returns`` has a lone one do it too.
    """
    rest: list[str] = []
    position = held = 0
    for block, position in text_blocks(path, reading, carriage_returns=carriage_returns):
        lines = block.split("\n")
        rest.append(lines[0])
        held += len(lines[0])
        if held > MAX_LINE:
            raise InputError(
                f"{named(path)} has a line of more than {MAX_LINE >> 20} million characters; "
                "divide it into several"
            )
        if len(lines) > 1:
            yield "".join(rest) + "\n", position
            for line in lines[1:-1]:
                yield line + "\n", position
            rest, held = [lines[-1]], len(lines[-1])
    last = "".join(rest)
    if last:
        yield last, position


class _Ends:
    """Turns ``\\r\\n`` into ``\\n``, however the text is cut into blocks."""

    def __init__(self) -> None:
        self._held = ""

    def decode(self, text: str, final: bool = False) -> str:
        text, self._held = self._held + text, ""
        if text.endswith("\r") and not final:
            text, self._held = text[:-1], "\r"
        return text.replace("\r\n", "\n")


def _begins_mark(block: bytes) -> bool:
    return block != b"" and any(m.startswith(block) and m != block for m, _ in MARKS)


def _encoding_of(path: Path, block: bytes, reading: ReadOptions) -> tuple[str, bytes]:
    """The encoding of a file that begins with a block, and its byte-order mark, if any."""
    wanted = reading.encoding
    mark, marked = next(((m, name) for m, name in MARKS if block.startswith(m)), (b"", None))
    if marked is None:
        if wanted in ("utf-16", "utf-32"):
            raise InputError(
                f"{named(path)} has no byte-order mark, so --encoding {wanted} does not tell the "
                f"order of its bytes; give {wanted}-le or {wanted}-be, or utf-8 if it is that"
            )
        if wanted != UTF_8 and not MULTIBYTE_ENCODINGS.match(wanted) and _is_utf8(block):
            reading.say(
                f"{named(path)} is read as {wanted}, and is valid UTF-8 too; leave --encoding out, "
                "or give utf-8, if its letters come out wrong"
            )
        return wanted, b""
    if wanted not in (UTF_8, marked) and not marked.startswith(wanted) and wanted != "utf-8-sig":
        raise InputError(
            f"{named(path)} begins with the byte-order mark of {marked[:6].upper()}, and "
            f"--encoding {wanted} was given; give --encoding {marked[:6].rstrip('-')}"
        )
    if marked != UTF_8:
        reading.say(f"{named(path)} is {marked[:6].upper()} by its byte-order mark")
    return marked, mark


def _is_utf8(block: bytes) -> bool:
    """Whether a block is UTF-8 with more than ASCII in it."""
    try:
        text = codecs.getincrementaldecoder(UTF_8)().decode(block)
    except UnicodeDecodeError:
        return False
    return not text.isascii()


def _binary(path: Path, block: bytes, offset: int) -> InputError:
    at = block.index(0)
    what = f"{named(path)}: byte 0x00 at offset {offset + at}"
    for encoding, places in (("utf-16-le", slice(1, 4000, 2)), ("utf-16-be", slice(0, 4000, 2))):
        every = block[places]
        if offset == 0 and len(every) > 1 and every.count(0) > len(every) / 2:
            return InputError(
                f"{what}: it looks like UTF-16 without a byte-order mark; name it with --encoding "
                f"{encoding}"
            )
    return InputError(
        f"{what}: it is binary, not text; name the file by its format (.parquet, .arrow, .gz, "
        ".zst), or go on with --encoding-errors replace"
    )


def _unfit(path: Path, encoding: str, error: UnicodeDecodeError, begin: int) -> InputError:
    """The error of a byte that does not fit, with an encoding that would, where there is one.

    begin: the offset of the bytes that were decoded.
    """
    byte = error.object[error.start]
    what = f"{named(path)}: byte 0x{byte:02x} at offset {begin + error.start} is not "
    offer = _offer(bytes(error.object)) if encoding == UTF_8 else None
    how = "" if offer is None else f"if it is {offer[1]}, read it with --encoding {offer[0]}; else "
    return InputError(
        f"{what}{encoding.upper()}; {how}convert the file, or go on with --encoding-errors replace"
    )


def _offer(data: bytes) -> tuple[str, str] | None:
    """An encoding in which bytes make sense, and whose it is."""
    for name, language, expected in GUESSES:
        try:
            text = codecs.getincrementaldecoder(name)().decode(data)
        except UnicodeDecodeError:
            continue
        beyond = re.sub(r"[\0-\x7f]", "", text)
        if not beyond or len(re.findall(expected, beyond)) < PLAUSIBLE * len(beyond):
            continue
        if name == "gb18030" and not _is_common(beyond):
            continue
        return name, language
    return None


def _is_common(text: str) -> bool:
    """Whether most Chinese characters of a text are common ones: other encodings' bytes are
    characters of GB 18030 too, but rare ones."""
    hanzi = re.findall(r"[\u4e00-\u9fff]", text)
    common = sum(b"\xb0" <= encoded[:1] <= b"\xd7" and encoded[1:] >= b"\xa1" for encoded in (
        character.encode("gb18030") for character in hanzi
    ))  # fmt: skip
    return common >= COMMON_HANZI * len(hanzi)

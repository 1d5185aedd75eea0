"""Encodings and line ends: what a file is in, what is said where it isn't, what ends a row."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmctl.data.tables.labelled import read_examples, resolve_columns
from llmctl.data.tables.parallel_text import read_pairs
from llmctl.data.text import decoding
from llmctl.data.text.decoding import ReadConfig, ReadOptions, text_blocks, text_lines
from llmctl.errors import InputError

CHINESE = "距离川沙公路较近,但是公交指示不对。房间较为简单,设施很好!\n" * 3
JAPANESE = "駅から近くて、とても便利なホテルでした。また泊まりたいです。\n" * 3
FRENCH = "Le café près de la gare était très agréable, à côté du marché.\n"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def text_of(path: Path, reading: ReadOptions) -> str:
    return "".join(block for block, _ in text_blocks(path, reading))


@pytest.fixture(params=[1, 3, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(decoding, "DECODE_BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_tells_the_encoding_and_it_is_said_once(
    tmp_path: Path, encoding: str, block: int
) -> None:
    notes: list[str] = []
    path = write(tmp_path / "x.txt", f"\ufeff{CHINESE}\r\nend".encode(encoding))
    reading = ReadOptions(note=notes.append)
    for _ in range(2):
        assert text_of(path, reading) == f"{CHINESE}\nend"
    assert notes == [f"{path} is {encoding[:6].upper()} by its byte-order mark"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gbk", CHINESE), ("gb18030", CHINESE + "𠀀"), ("big5", "這裡很好"), ("shift_jis", JAPANESE),
     ("cp1252", FRENCH), ("latin-1", FRENCH), ("koi8-r", "Привет"), ("utf-16", CHINESE),
     ("utf-16-le", CHINESE), ("utf-8-sig", FRENCH), ("iso2022_jp", JAPANESE)],
)  # fmt: skip
def test_any_encoding_that_python_knows_is_read(
    tmp_path: Path, encoding: str, text: str, block: int
) -> None:
    path = write(tmp_path / "x.txt", text.encode(encoding))
    assert text_of(path, ReadConfig(encoding=encoding).read_options()) == text


@pytest.mark.parametrize(
    ("encoding", "text", "offer"),
    [
        ("gbk", CHINESE, "if it is Chinese, read it with --encoding gb18030; else convert"),
        ("shift_jis", JAPANESE, "if it is Japanese, read it with --encoding shift_jis; else"),
        ("latin-1", FRENCH, "if it is Western European, read it with --encoding cp1252; else"),
    ],
)
def test_an_encoding_that_would_fit_is_offered(
    tmp_path: Path, encoding: str, text: str, offer: str
) -> None:
    path = write(tmp_path / "x.txt", text.encode(encoding))
    with pytest.raises(InputError, match=f"is not UTF-8; {offer}"):
        text_of(path, ReadOptions())


def test_where_none_fits_none_is_offered(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"some \x81\xff text")
    with pytest.raises(InputError, match=r"is not UTF-8; convert the file, or go on with"):
        text_of(path, ReadOptions())


def test_bytes_that_are_not_in_the_encoding_given_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", CHINESE.encode("gbk")[:19] + b"\xff\xff")
    with pytest.raises(InputError, match=r"byte 0xff at offset 19 is not GBK"):
        text_of(path, ReadOptions(encoding="gbk"))


@pytest.mark.parametrize(
    ("content", "encoding", "says"),
    [
        ("a\n".encode("utf-16-le"), "utf-8", "looks like UTF-16 without .* --encoding utf-16-le"),
        ("abcd\n".encode("utf-16-be"), "utf-8", "without a byte-order mark.*--encoding utf-16-be"),
        (b"abcd", "utf-16", "has no byte-order mark, .*give utf-16-le or utf-16-be"),
        ("\ufeffab".encode(), "gbk", "begins with the byte-order mark of UTF-8, and .*gbk was"),
        ("\ufeffab".encode("utf-16-le"), "gbk", "byte-order mark of UTF-16, and .*gbk was given"),
        (b"ab\0cd", "gbk", "byte 0x00 at offset 2: it is binary"),
        ("a\0b".encode("utf-16-le"), "utf-16-le", "has a NUL character"),
    ],
)
def test_an_encoding_that_cannot_be_is_a_sentence(
    tmp_path: Path, content: bytes, encoding: str, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        text_of(write(tmp_path / "x.txt", content), ReadOptions(encoding=encoding))


def test_utf8_that_is_read_as_something_else_is_noticed(tmp_path: Path) -> None:
    notes: list[str] = []
    path = write(tmp_path / "x.txt", FRENCH.encode())
    text_of(path, ReadOptions(encoding="latin-1", note=notes.append))
    assert notes == [
        f"{path} is read as latin-1, and is valid UTF-8 too; leave --encoding out, or give utf-8, "
        "if its letters come out wrong"
    ]


@pytest.mark.parametrize("name", ["gbkk", "rot13", "base64", "", "a\0b", "undefined"])
def test_what_is_no_encoding_of_text_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"Python knows no encoding of that name"):
        ReadConfig(encoding=name)
    assert ReadConfig(encoding="UTF8").encoding == ReadConfig().encoding == "utf-8"


ENDS = "one\rone\ntwo\x0btwo\r\nthree\x0cthree\x1cthree\nfour\x85four\u2028four\u2029\n\nlast"
ROWS = ENDS.replace("\r\n", "\n").split("\n")


def test_rows_end_at_line_feeds_only(tmp_path: Path, block: int) -> None:
    """As wc, paste and datasets count them: never where str.splitlines would."""
    path = write(tmp_path / "x.txt", ENDS.encode())
    assert [line.removesuffix("\n") for line, _ in text_lines(path)] == ROWS
    assert len(ROWS) < len(ENDS.splitlines())


def test_aligned_texts_with_carriage_returns_stay_aligned(tmp_path: Path) -> None:
    source = write(tmp_path / "s.src", b"one\ntwo\rtwo\nthree\nfour\n")
    target = write(tmp_path / "s.tgt", b"eins\nzwei\ndrei\nvi\rer\n")
    assert [(pair.source, pair.target) for pair in read_pairs(source, target_file=target)] == [
        ("one", "eins"), ("two\rtwo", "zwei"), ("three", "drei"), ("four", "vi\rer"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [ENDS.encode(), b"\xef\xbb\xbfa text\r\nanother\r\n", "é\n".encode("utf-16"), b"a\0b\n",
     b"caf\xe9\n", b"", b"\n"],
)  # fmt: skip
def test_standard_input_is_read_as_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = write(tmp_path / "x.txt", content)

    def texts(path: Path) -> list[str] | str:
        columns = resolve_columns(path, need_label=False)
        try:
            return [example.text for example in read_examples(path, columns)]
        except InputError as error:
            return str(error).replace("standard input", str(tmp_path / "x.txt"))

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert texts(Path("-")) == texts(path)


def test_a_line_is_answered_before_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.BytesIO):
        """Gives one line at a time, as a terminal does."""

        def read1(self, size: int | None = -1, /) -> bytes:
            return self.readline()

    typed = Typed(b"one\ntwo\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed))
    lines = text_lines(Path("-"))
    assert next(lines)[0] == "one\n"
    assert typed.tell() == 4
    assert [line for line, _ in lines] == ["two\n"]


def test_closed_standard_input_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"standard input is closed"):
        list(text_lines(Path("-")))


def test_a_line_that_would_take_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MAX_LINE", 1000)
    monkeypatch.setattr(decoding, "DECODE_BLOCK", 100)
    path = write(tmp_path / "x.txt", b"short\n" + b"a" * 1200)
    with pytest.raises(InputError, match=r"x\.txt has a line of more than"):
        list(text_lines(path))

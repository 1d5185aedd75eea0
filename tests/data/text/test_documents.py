"""Documents of any source: what goes in comes out, in a fixed order, in little memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.text import decoding, plain
from llmctl.data.text.decoding import ReadOptions
from llmctl.data.text.documents import Corpus, Document
from llmctl.data.text.plain import LONG_FILE, PIECE
from llmctl.errors import InputError, UsageError

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def texts(*sources: object, **options: str) -> list[str]:
    return [d.text for d in Corpus([str(source) for source in sources], **options)]  # type: ignore[arg-type]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(rows: list[str]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "text"], *([str(n), row] for n, row in enumerate(rows))])
    return out.getvalue().encode()


def as_arrow(rows: list[str], new: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> bytes:
    table = pa.table({"id": range(len(rows)), "text": pa.array(rows, pa.string())})
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


def as_parquet(rows: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), sink, row_group_size=2)
    return bytes(sink.getvalue())


WRITE: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": lambda rows: "\n".join(json.dumps({"text": row}) for row in rows).encode(),
    ".ndjson": lambda rows: "\n\n".join(
        json.dumps({"id": 1, "text": row}, ensure_ascii=False) for row in rows
    ).encode(),
    ".json": lambda rows: json.dumps([{"text": row} for row in rows], indent=2).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".arrow": lambda rows: as_arrow(rows, pa.ipc.new_file),
    ".feather": lambda rows: as_arrow(rows, pa.ipc.new_stream),
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}
ROWS = [
    (suffix, packed)
    for suffix in WRITE
    for packed in COMPRESS
    if not packed or suffix not in (".parquet", ".arrow", ".feather")
]


def normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For property tests, which write each example over the last."""
    return tmp_path_factory.mktemp("documents")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
SOME = st.lists(TEXT, min_size=1, max_size=5).filter(lambda rows: any(normal(row) for row in rows))


@pytest.mark.parametrize(("suffix", "packed"), ROWS)
@settings(max_examples=25, deadline=None)
@given(rows=SOME)
def test_rows_of_every_format_come_back(
    folder: Path, suffix: str, packed: str, rows: list[str]
) -> None:
    path = write(folder / f"rows{suffix}{packed}", COMPRESS[packed](WRITE[suffix](rows)))
    expected = [normal(row) for row in rows if normal(row)]
    corpus = Corpus([str(path)])
    assert [d.text for d in corpus] == expected
    assert [d.text for d in corpus] == expected


@pytest.mark.parametrize("suffix", [".txt", ".md", ".text", ".log", ""])
@pytest.mark.parametrize("packed", COMPRESS)
@settings(max_examples=20, deadline=None)
@given(text=TEXT.filter(normal), bom=st.booleans())
def test_plain_text_comes_back(
    folder: Path, suffix: str, packed: str, text: str, bom: bool
) -> None:
    content = text.removeprefix("\ufeff").encode("utf-8-sig" if bom else "utf-8")
    if not normal(text.removeprefix("\ufeff")):
        return
    path = write(folder / f"text{suffix}{packed}", COMPRESS[packed](content))
    assert texts(path) == [normal(text.removeprefix("\ufeff"))]
    assert texts(path, unit="file") == [normal(text.removeprefix("\ufeff"))]


def test_a_tsv_has_no_quotes_and_no_newlines_in_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", 'id\ttext\r\n1\t"a\r\n2\tb "c" d\n')
    assert texts(path) == ['"a', 'b "c" d']


def test_folders_are_read_recursively_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "corpus"
    for name in ("b.txt", "a/z.md", "a/b/c.txt", "c.jsonl.gz", "a.txt.zst",
                 ".hidden.txt", ".git/x.txt", "a/.b/x.txt", "image.png", "noext"):  # fmt: skip
        content = name.encode() if ".jsonl" not in name else json.dumps({"text": name}).encode()
        packed = COMPRESS["." + name.rsplit(".", 1)[-1]] if name.endswith(("gz", "zst")) else bytes
        write(root / name, packed(content))
    assert texts(root) == ["a/b/c.txt", "a/z.md", "a.txt.zst", "b.txt", "c.jsonl.gz"]


def test_globs_are_sorted_and_may_cross_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "d/e.txt", "x.txt.d/f.md"):
        write(tmp_path / name, name)
    assert texts(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert texts(tmp_path / "**" / "*.txt") == ["a.txt", "b.txt", "d/e.txt"]
    assert texts(tmp_path / "[bc].*") == ["b.txt", "c.md"]


def test_a_file_named_like_a_glob_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "a1.txt", "other")
    assert texts(write(tmp_path / "a[1].txt", "itself")) == ["itself"]


def test_sources_are_read_in_the_order_given(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.txt", "one"), write(tmp_path / "2.txt", "two")
    assert texts(two, one, two) == ["two", "one", "two"]


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_standard_input_can_be_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "\ufeffein\r\nTäxt\n".encode())
    corpus = Corpus(["-"])
    assert [d.text for d in corpus] == [d.text for d in corpus] == ["ein\nTäxt"]
    assert corpus.total_bytes == 14
    assert corpus.suggested_name == "stdin"
    digest = corpus.digest()
    stdin(monkeypatch, "\ufeffein\r\nTäxt\n".encode())
    assert Corpus(["-"]).digest() == digest


def test_a_bad_byte_on_standard_input_is_reported_without_a_temporary_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin(monkeypatch, b"some \xff")
    with pytest.raises(InputError, match=r"^standard input: byte 0xff at offset 5 is not UTF-8"):
        texts("-")
    stdin(monkeypatch, b" \n ")
    with pytest.raises(InputError, match=r"^- has no text"):
        texts("-")


def test_text_columns_are_taken_by_name_list_position_or_default(tmp_path: Path) -> None:
    named = write(tmp_path / "x.csv", "title,n,body\nT,1,B\n,2,C\n")
    assert texts(named) == ["B", "C"]
    assert texts(named, text_column="title,body") == ["T B", "C"]
    assert texts(named, text_column="body, title") == ["B T", "C"]
    nameless = write(tmp_path / "y.csv", "4,one,uno\n5,two,due\n")
    assert texts(nameless, text_column="3") == ["uno", "due"]
    assert texts(nameless, text_column="2,3") == ["one uno", "two due"]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["title", "text"], "text"),
        (["id", "content"], "content"),
        (["abstract", "title"], "abstract"),
        (["sentence", "label"], "sentence"),
    ],
)
def test_the_text_is_looked_for_under_usual_names(
    tmp_path: Path, columns: list[str], chosen: str
) -> None:
    row = {name: f"the {name}" for name in columns}
    assert texts(write(tmp_path / "x.jsonl", json.dumps(row))) == [f"the {chosen}"]
    assert texts(write(tmp_path / "x.csv", f"{','.join(row)}\n{','.join(row.values())}")) == [
        f"the {chosen}"
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow"])
def test_a_missing_column_is_reported_with_those_that_are_there(
    tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"x{suffix}", WRITE[suffix](["some"]))
    with pytest.raises(
        InputError, match=r"'txt': .* no such column \(did you mean 'text'\?\); it has .*text"
    ):
        texts(path, text_column="txt")
    other = write(tmp_path / f"y{suffix}", WRITE[suffix](["some"]).replace(b"text", b"txet"))
    with pytest.raises(InputError, match=r"txet.*--text-column"):
        texts(other)
    assert texts(other, text_column="txet") == ["some"]


def test_a_position_past_the_last_column_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'3': .*no such column.*, 1, 2"):
        texts(write(tmp_path / "z.csv", "a,b\n"), text_column="3")


def test_a_csv_without_a_known_header_is_reported_with_its_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", f"{'long ' * 99},texte\n1,2\n")
    with pytest.raises(
        InputError, match=r"first row is long .*…, texte\).*--text-column"
    ) as caught:
        texts(path)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_a_column_that_is_not_text_is_reported_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": null}\n{"text": "a"}\n{"text": 5}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:3: text is int, not text"):
        texts(path)


def test_bad_utf8_stops_or_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"caf\xe9 noir")
    with pytest.raises(InputError, match=r"x\.txt: byte 0xe9 at offset 3 is not UTF-8"):
        texts(path)
    assert texts(path, reading=ReadOptions(errors="replace")) == ["caf\ufffd noir"]


@pytest.mark.parametrize("content", [b"", b" \n\t\n", "\ufeff".encode(), b"\r\n"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_an_empty_corpus_is_reported(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", content)
    with pytest.raises(InputError, match=r"x.* has no (text|header)"):
        texts(path)


def test_an_empty_file_among_others_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.csv", "a.json", "a.txt.gz", "a.txt.zst"):
        write(tmp_path / name, b"")
    write(tmp_path / "z.txt", "here")
    assert texts(tmp_path) == ["here"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("none.txt", "none.txt: no such file or folder"),
        ("*.none", r"\*.none: no such file or folder"),
        ("python:doc", "python:doc: no such file or folder .did you mean 'python:docs'"),
        ("long" * 2000, "no such file or folder"),
        ("nul\0", "no such file or folder"),
    ],
)
def test_a_source_that_is_not_there_is_reported(source: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Corpus([source])


def test_a_folder_without_text_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "x.png", b"\0")
    with pytest.raises(InputError, match="has no text files"):
        Corpus([str(tmp_path)])
    with pytest.raises(InputError, match="no text was given"):
        Corpus([])


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'paragraph'"):
        Corpus(["python:docs"], unit="paragraf")


def test_a_paragraph_ends_at_a_blank_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "\n\none\ntwo\n\n\n\nthree\r\n\r\nfour \n\n")
    assert texts(path, unit="paragraph") == ["one\ntwo", "three", "four"]
    assert texts(path, unit="line") == ["one", "two", "three", "four"]
    assert [d.source for d in Corpus([str(path)], unit="line")] == [
        f"{path}:{n}" for n in (3, 4, 8, 10)
    ]


def prose(size: int, seed: int, *, blank: float, ends: float) -> str:
    """Words with line ends and blank lines at these rates."""
    chance = random.Random(seed)
    pieces, length = [], 0
    while length < size:
        word = "x" * chance.randint(1, 9)
        roll = chance.random()
        piece = word + ("\n" * chance.randint(2, 4) if roll < blank else
                        "\n" if roll < blank + ends else " ")  # fmt: skip
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces)


@pytest.mark.parametrize("unit", ["auto", "paragraph"])
@pytest.mark.parametrize(("blank", "ends"), [(0.05, 0.1), (0.0001, 0.1), (0, 0.01), (0, 0)])
def test_pieces_are_the_text_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, blank: float, ends: float
) -> None:
    text = prose(300_000, 1, blank=blank, ends=ends)
    path = write(tmp_path / "x.txt", text)
    kept = [d.text for d in Corpus([str(path)], unit=unit)]
    # All that is lost is the white space between two pieces.
    assert "".join("".join(kept).split()) == "".join(text.split())
    place = 0
    for piece in kept:
        found = text.index(piece, place)
        assert not text[place:found].strip()
        place = found + len(piece)
    for size in (999, 4096, 65_537):
        monkeypatch.setattr(decoding, "DECODE_BLOCK", size)
        assert texts(path, unit=unit) == kept


def pieces(path: Path, unit: str) -> list[str]:
    read = plain.read_plain(path, unit, decoding.DEFAULT, plain.PlainText())
    return [piece for piece, _, _ in read]


@given(
    text=st.text("ab \n", max_size=60),
    size=st.integers(1, 20),
    unit=st.sampled_from(["auto", "paragraph"]),
)
def test_pieces_are_the_text_at_every_length(folder: Path, text: str, size: int, unit: str) -> None:
    path = write(folder / "short.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "LONG_FILE", 12)
        patch.setattr(plain, "PIECE", 3)
        whole = pieces(path, unit)
        patch.setattr(decoding, "DECODE_BLOCK", size)
        assert pieces(path, unit) == whole
    assert "".join(whole) == text
    if unit == "auto" and len(text) <= 12:
        assert len(whole) == 1
    if unit == "auto" and len(text) > 12:
        assert all(len(piece) <= 12 + 1 for piece in whole)


def test_a_text_up_to_the_limit_is_one_document_and_a_longer_one_is_cut(tmp_path: Path) -> None:
    text = prose(2 * LONG_FILE, 2, blank=0.01, ends=0.1)
    short = text[: LONG_FILE - 1] + "."
    text = short + "."
    assert texts(write(tmp_path / "a.txt", short)) == [short]
    long = texts(write(tmp_path / "b.txt", text))
    assert len(long) > 1
    # Cut at a blank line after PIECE characters; white space at the cut is stripped.
    assert all(PIECE - 9 < len(piece) < 2 * PIECE for piece in long[:-1])
    for piece in long:
        assert text[text.index(piece) + len(piece) :].startswith("\n\n") or piece is long[-1]


@pytest.mark.parametrize("unit", ["auto", "paragraph", "line"])
def test_a_large_file_streams(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "large.txt"
    part = prose(1 << 20, 3, blank=0.01, ends=0.1).encode()
    with path.open("wb") as file:
        for _ in range(30):
            file.write(part)
    count = 0
    tracemalloc.start()
    try:
        for _ in Corpus([str(path)], unit=unit):
            count += 1
            if unit == "line" and count == 60_000:  # tracing makes each line slow
                break
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 1000
    assert peak < 12 << 20


@pytest.mark.parametrize("unit", ["auto", "paragraph", "line", "file"])
@pytest.mark.parametrize("packed", COMPRESS)
def test_positions_rise_to_the_bytes_of_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, packed: str
) -> None:
    monkeypatch.setattr(decoding, "DECODE_BLOCK", 1 << 14)
    for n in range(3):
        text = prose(100_000, n, blank=0.01, ends=0.1) + "end"
        write(tmp_path / f"{n}.txt{packed}", COMPRESS[packed](text.encode()))
    write(tmp_path / "9.jsonl", b'{"text": "last"}')
    corpus = Corpus([str(tmp_path)], unit=unit)
    positions = [d.position for d in corpus]
    assert positions == sorted(positions)
    assert corpus.total_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert positions[-1] == corpus.total_bytes
    assert len(set(positions)) > 3


def test_the_digest_is_that_of_the_content_and_its_order(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a" / "1.txt", "one"), write(tmp_path / "a" / "2.txt", "two")
    write(tmp_path / "b" / "x.txt", "one")
    write(tmp_path / "b" / "y.txt", "two")
    digest = Corpus([str(tmp_path / "a")]).digest()
    assert digest == Corpus([str(tmp_path / "b")]).digest() == Corpus([str(a), str(b)]).digest()
    assert digest != Corpus([str(b), str(a)]).digest()
    assert digest != Corpus([str(a)]).digest()
    write(b, "onetwo")
    write(a, "")
    assert digest != Corpus([str(tmp_path / "a")]).digest()


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("my text.txt", "my-text"), ("wiki.jsonl.gz", "wiki"), ("Bücher.txt", "Bucher"),
     (".txt", "txt"), ("语料.txt", "语料"), ("评论 (2).csv", "评论-2"), ("v1.2.txt", "v1")],
)  # fmt: skip
def test_a_name_is_suggested_from_the_first_source(
    tmp_path: Path, name: str, suggested: str
) -> None:
    path = write(tmp_path / name, "text")
    other = write(tmp_path / "other.txt", "text")
    assert Corpus([str(path), str(other)]).suggested_name == suggested


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("some words without end " * 20_000, ("some", "words", "without", "end")),
        ("Some words. Some more words in it! " * 10_000, ("words.", "it!")),
        ("这个电影很好看，我很喜欢。" * 20_000, ("。",)),
        ("这个电影很好看，我很喜欢，" * 20_000, ("，",)),
        ("这个电影很好看" * 40_000, tuple("这个电影很好看")),
        ("a-b_c/d" * 40_000, tuple("abcd-_/")),
    ],
)
@pytest.mark.parametrize("keep_ends", [True, False])
def test_a_long_line_is_cut_between_words(
    tmp_path: Path, text: str, ends: tuple[str, ...], keep_ends: bool
) -> None:
    path = write(tmp_path / "x.txt", text)
    pieces = [d.text for d in Corpus([str(path)], keep_ends=keep_ends)]
    assert len(pieces) > 2
    assert max(map(len, pieces)) <= 4 * PIECE
    assert all(piece.rstrip().endswith(ends) for piece in pieces)
    joined = "".join(pieces)
    assert joined == text if keep_ends else joined.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "unit"),
    [("x.txt", "file"), ("x.txt", "paragraph"), ("x.txt", "line"), ("x.jsonl", "auto")],
)
def test_a_document_too_long_to_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, unit: str
) -> None:
    monkeypatch.setattr(plain, "MAX_TEXT", 100)
    for size in (90, 101):
        text = "x" * size
        path = write(tmp_path / name, json.dumps({"text": text}) if ".json" in name else text)
        if size < 100:
            assert texts(path, unit=unit) == [text]
    with pytest.raises(InputError, match=rf"{name}.*: a document has more than 100 characters"):
        texts(path, unit=unit)


def test_what_plain_text_was_taken_for_is_told(tmp_path: Path) -> None:
    review = "A review of a line or so.\n\n"
    long = write(tmp_path / "long.txt", review * 6265)
    one = write(tmp_path / "one.txt", review * 30)
    write(tmp_path / "two.txt", review * 3)
    table = write(tmp_path / "t.jsonl", '{"text": "a\\n\\nb"}')

    def told(*paths: Path, unit: str = "auto") -> str:
        corpus = Corpus([str(path) for path in paths], unit=unit)
        documents = list(corpus)
        assert documents == list(corpus)
        return str(corpus.plain)

    assert told(long) == (
        "of plain text each piece of about 16,384 characters of 1 long file is a document (11 in "
        "all): with --document paragraph each of its 6,265 parts between blank lines would be one"
    )
    assert told(one).startswith("of plain text the whole file is a document (1 in all): with")
    assert "of 1 long file and each of 2 short files is a document (13 in all)" in told(tmp_path)
    assert told(table) == told(long, unit="paragraph") == told(long, unit="file") == ""


def test_a_document_says_where_it_is_from(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '\n{"text": " a "}\n')
    assert list(Corpus([str(path)])) == [Document("a", f"{path}:2", path.stat().st_size)]


def test_real_text_comes_back_whole() -> None:
    path = DATA / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tinyshakespeare is not there")
    text = path.read_text(encoding="utf-8")
    speeches = texts(path, unit="paragraph")
    assert speeches == [part.strip() for part in text.split("\n\n") if part.strip()]
    pieces = texts(path)
    assert "\n\n".join(pieces) == text.strip()
    assert len(pieces) == pytest.approx(len(text) / PIECE, rel=0.05)


@pytest.mark.parametrize("header", ["Text", "TEXT", "Review"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_header_is_found_in_any_case(tmp_path: Path, suffix: str, header: str) -> None:
    """The row that tells a CSV's header is also the one that names its text."""
    table = {".csv": f"id,{header}\n1,one\n", ".jsonl": json.dumps({"id": 1, header: "one"})}
    assert texts(write(tmp_path / f"x{suffix}", table[suffix])) == ["one"]


def test_what_the_system_refuses_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every file can be read, so the refusal is played."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    corpus = Corpus([str(write(tmp_path / "x.txt", "text"))])
    monkeypatch.setattr(Path, "open", refuse)
    for read in (corpus.digest, lambda: list(corpus)):
        with pytest.raises(InputError, match=r"x\.txt can't be read: Permission denied"):
            read()
    monkeypatch.undo()
    (tmp_path / "x.txt").unlink()
    for read in (corpus.digest, lambda: list(corpus)):
        with pytest.raises(InputError, match=r"x\.txt"):
            read()

"""Text and rows of files: where a bad byte is, what damage gets, what streams."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables.rows import RowReader
from llmctl.data.text import decoding
from llmctl.data.text.decoding import ReadOptions, text_blocks, text_lines
from llmctl.data.text.files import format_of, split_columns
from llmctl.errors import InputError, UsageError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For property tests, which write each example over the last."""
    return tmp_path_factory.mktemp("files")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def text_of(path: Path, errors: str = "strict") -> str:
    return "".join(block for block, _ in text_blocks(path, ReadOptions(errors=errors)))


def first_bad_byte(content: bytes) -> int:
    """By decoding ever longer beginnings: slow and plain."""
    for end in range(1, len(content) + 1):
        try:
            content[:end].decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data" or end == len(content):
                return error.start
    raise AssertionError("all of it is UTF-8")


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(decoding, "DECODE_BLOCK", request.param)
    return int(request.param)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(text=TEXT, size=st.integers(1, 9), bom=st.booleans(), suffix=st.sampled_from(list(COMPRESS)))
def test_text_is_read_whatever_the_blocks(
    folder: Path, text: str, size: int, bom: bool, suffix: str
) -> None:
    content = text.encode("utf-8-sig" if bom else "utf-8")
    path = write(folder / f"t.txt{suffix}", COMPRESS[suffix](content))
    # Python's own universal newlines.
    expected = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "DECODE_BLOCK", size)
        assert text_of(path) == expected
        lines = [line for line, _ in text_lines(path)]
    rows = content.decode("utf-8-sig").replace("\r\n", "\n")
    assert lines == io.StringIO(rows, newline="\n").readlines()


@given(
    before=TEXT,
    bad=st.sampled_from([b"\xff", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\x80", b"\xed\xa0\x80"]),
    after=TEXT,
    size=st.sampled_from([1, 2, 3, 5, 1 << 20]),
    suffix=st.sampled_from(list(COMPRESS)),
)
def test_a_bad_byte_is_reported_at_its_offset(
    folder: Path, before: str, bad: bytes, after: str, size: int, suffix: str
) -> None:
    content = before.encode() + bad + after.encode()
    path = write(folder / f"bad.txt{suffix}", COMPRESS[suffix](content))
    offset = first_bad_byte(content)
    assert offset == len(before.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "DECODE_BLOCK", size)
        with pytest.raises(InputError) as caught:
            text_of(path)
        assert f"{path}: byte 0x{bad[0]:02x} at offset {offset} is not UTF-8" in str(caught.value)
        replaced = text_of(path, "replace")
    decoded = content.decode("utf-8", "replace").removeprefix("\ufeff")
    assert replaced == io.StringIO(decoded, newline=None).read()


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(("name", "start"), [("x.jsonl", b'{"text": "'), ("x.csv", b'text\n"')])
def test_a_bad_byte_in_rows_is_reported_at_its_offset(
    tmp_path: Path, block: int, name: str, start: bytes, suffix: str
) -> None:
    end = b'"}\n' if name == "x.jsonl" else b'"\n'
    content = start + "één".encode() * 5 + b"\xff" + end
    path = write(tmp_path / (name + suffix), COMPRESS[suffix](content))
    with pytest.raises(InputError, match=f"byte 0xff at offset {content.index(255)} is not UTF-8"):
        list(RowReader(path, requested=["text"]))
    (row,) = RowReader(path, requested=["text"], reading=ReadOptions(errors="replace"))
    assert row.values == {"text": "één" * 5 + "\ufffd"}


def test_a_nul_is_reported_at_its_offset_as_binary(tmp_path: Path, block: int) -> None:
    path = write(tmp_path / "x.txt", b"some text\0more")
    with pytest.raises(InputError, match="byte 0x00 at offset 9: it is binary"):
        text_of(path)
    assert text_of(path, "replace") == "some text\ufffdmore"


TEXTS = ["good", None, "naïve"]
BAD = b"bad \xff\xc3"


def columns_with_a_bad_text() -> dict[str, pa.Array]:
    """Texts as people have them, the fourth one not UTF-8."""
    raw = pa.array([*(t and t.encode() for t in TEXTS), BAD])
    return {
        "string": raw.view(pa.string()),
        "large_string": raw.cast(pa.large_binary()).view(pa.large_string()),
        "dictionary": pa.DictionaryArray.from_arrays(
            pa.array([0, None, 1, 2]), pa.array([b"good", "naïve".encode(), BAD]).view(pa.string())
        ),
    }


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".arrow", "string"), (".arrow", "large_string"), (".arrow", "dictionary"),
        # The library itself refuses a dictionary that is not UTF-8.
        (".parquet", "string"), (".parquet", "large_string"),
    ],
)  # fmt: skip
def test_a_bad_byte_in_a_column_is_named_or_replaced(
    tmp_path: Path, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmctl.data.tables.columnar.BATCH_ROWS", 3)
    path = tmp_path / f"x{suffix}"
    numbers = pa.array([1, 2, 3, 4])
    table = pa.table({"id": numbers, "text": columns_with_a_bad_text()[kind]})
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    with pytest.raises(InputError, match="row 4: text: byte 0xff at offset 4 of the value"):
        list(RowReader(path))
    rows = [row.values for row in RowReader(path, reading=ReadOptions(errors="replace"))]
    assert [row["text"] for row in rows] == [
        *TEXTS,
        BAD.decode(errors="replace"),
    ]
    assert [row["id"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl", "x.json", "x.parquet", "x.arrow"])
def test_a_folder_in_a_files_place_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} can't be read"):
        text_of(tmp_path / name) if name == "x.txt" else list(RowReader(tmp_path / name))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_anywhere_is_reported(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix]("".join(f"line {n * n}\n" for n in range(2000)).encode())
    last = len(whole) - 12
    for end in [*range(1, 30), *range(30, last, 97), *range(last, len(whole))]:
        path = write(tmp_path / f"x.txt{suffix}", whole[:end])
        with pytest.raises(InputError, match="cut short or damaged"):
            text_of(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_with_something_else_in_it_is_reported(
    tmp_path: Path, suffix: str
) -> None:
    whole = COMPRESS[suffix](b"text " * 100)
    for content in (whole + b"junk", b"plain text", whole[:8] + b"\xaa" * 9 + whole[17:]):
        with pytest.raises(InputError, match="cut short or damaged"):
            text_of(write(tmp_path / f"x.txt{suffix}", content))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_put_together_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    content = compress(b"one\n") + compress(b"") + compress(b"two\n")
    assert text_of(write(tmp_path / f"x.txt{suffix}", content)) == "one\ntwo\n"


def test_what_is_no_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.txt: no such file"):
        text_of(tmp_path / "x.txt")
    with pytest.raises(InputError, match="can't be read"):
        text_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.txt", ".txt"), ("a.md", ".txt"), ("a", ".txt"), ("a.CSV", ".csv"), ("a.csv.gz", ".csv"),
     ("a.jsonl.ZST", ".jsonl"), ("a.b.parquet", ".parquet"), ("a.xlsx", ".txt"), (".gz", ".txt"),
     ("a.feather", ".feather"), ("v1.2.gz", ".txt")],
)  # fmt: skip
def test_the_format_is_told_by_the_suffix(name: str, expected: str) -> None:
    assert format_of(Path("some.csv") / name) == expected


@pytest.mark.parametrize("option", ["", ",", "a,", "a,,b", " "])
def test_an_empty_column_name_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="empty name"):
        split_columns(option)
    assert split_columns(" a , b c") == ("a", "b c")


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=10)


@given(rows=st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=5), size=st.integers(1, 40))
def test_csv_rows_are_those_that_the_csv_module_wrote(
    folder: Path, rows: list[list[str]], size: int
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["a", "b"], *rows])
    path = write(folder / "rows.csv", out.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "DECODE_BLOCK", size)
        found = [list(row.values.values()) for row in RowReader(path, requested=["a"])]
    assert found == rows


def test_a_row_is_placed_at_the_line_where_it_begins(tmp_path: Path) -> None:
    content = b'text,n\r\n"one\r\ntwo\r\n",1\r\n\r\nthree,2\r\n"a ""b"" c",3'
    rows = list(RowReader(write(tmp_path / "x.csv", content), requested=["text"]))
    assert [(row.source.rpartition(":")[2], row.values["text"]) for row in rows] == [
        ("2", "one\ntwo\n"),
        ("6", "three"),
        ("7", 'a "b" c'),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_a_field_of_megabytes_is_read(tmp_path: Path, suffix: str) -> None:
    text = "word " * 1_000_000
    content = json.dumps({"text": text}) if "json" in suffix else f"text\n{text}\n"
    (row,) = RowReader(write(tmp_path / f"x{suffix}", content.encode()), requested=["text"])
    assert row.values == {"text": text}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"text": \n', r":2 is not JSON"),
        ('{"text": "a"}\n\n["a"]\n', r":3 is not a JSON object"),
        ('"a"', r":1 is not a JSON object"),
        ("[" * 100_000, r":1 can't be read as JSON"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", r":1 can't be read as JSON"),
        ('{"text": "a\\ud83d"}', r":1: text has half of a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_reported_with_its_number(
    tmp_path: Path, content: str, says: str
) -> None:
    path = write(tmp_path / "x.jsonl", content.encode())
    with pytest.raises(InputError, match=r"x\.jsonl" + says):
        list(RowReader(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"text": "a"},\n{"text"}]', r":2 is not JSON"),
        ('[\n{"text": "a"}, 5]', r" item 2 is not an object"),
        ("[" * 100_000, r" can't be read as JSON"),
        ("[" + "1" * 5000 + "]", r" can't be read as JSON"),
        ('[{"text": "\\udc00"}]', r" item 1: text has half of a surrogate pair"),
        ('{\n"text": "a"\n}\n{\n"text": "b"\n}', r":4 is not JSON"),
        ('"text"', r" is no table"),
    ],
)
def test_a_bad_json_list_is_reported(tmp_path: Path, content: str, says: str) -> None:
    path = write(tmp_path / "x.json", content.encode())
    with pytest.raises(InputError, match=r"x\.json" + says):
        list(RowReader(path))


def test_half_a_surrogate_pair_can_be_replaced(tmp_path: Path) -> None:
    line = rb'{"text": "a\ud83db \ud83d\ude00"}'
    for name, content in (("x.jsonl", line), ("x.json", b"[" + line + b"]")):
        (row,) = RowReader(write(tmp_path / name, content), reading=ReadOptions(errors="replace"))
        assert row.values == {"text": "a\ufffdb 😀"}


def test_columns_are_those_of_the_first_object_that_has_any(tmp_path: Path) -> None:
    assert RowReader(write(tmp_path / "x.jsonl", b'{}\n{"a": 1, "b": 2}\n')).columns == ["a", "b"]


def in_batches(path: Path, table: pa.Table, rows: int) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
        return
    new = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


COLUMNAR = ["x.parquet", "file.arrow", "stream.arrow", "x.feather"]


@pytest.mark.parametrize("name", COLUMNAR)
@pytest.mark.parametrize("rows", [1, 7, 5000])
def test_columnar_rows_come_in_order_and_positions_rise_to_the_end(
    tmp_path: Path, name: str, rows: int
) -> None:
    path = tmp_path / name
    table = pa.table({"n": range(3000), "text": [f"text {n}" for n in range(3000)]})
    in_batches(path, table.slice(0, 300) if rows == 1 else table, rows)
    reader = RowReader(path)
    found = list(reader)
    assert [row.values for row in found] == table.to_pylist()[: len(found)]
    assert reader.columns == ["n", "text"]
    assert found[4].source == f"{path} row 5"
    positions = [row.position for row in found]
    assert positions == sorted(positions)
    total = path.stat().st_size
    # An Arrow stream's end mark follows its last batch.
    assert total - 16 <= positions[-1] <= total
    assert positions[0] < total / 2
    assert [row.values for row in reader.rows(["text", "none"])] == [
        {"text": f"text {n}"} for n in range(len(found))
    ]


@pytest.mark.parametrize("name", COLUMNAR)
@pytest.mark.parametrize(
    "content", [b"", b"text", b"ARROW1", b"PAR1", b"ARROW1\0\0" + b"\xff" * 90]
)
def test_what_is_not_columnar_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=r"can't be read as (Arrow|Parquet)") as caught:
        list(RowReader(path))
    assert "\n" not in str(caught.value)


FUZZ = """
import random, sys
from pathlib import Path
from llmctl.data.tables.rows import RowReader
from llmctl.errors import InputError
path, changes = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
whole = path.read_bytes()
counts = {"rows": 0, "refused": 0}
for _ in range(int(sys.argv[3])):
    content = bytearray(whole)
    for _ in range(changes.choice([1, 1, 2, 8])):
        content[changes.randrange(len(content))] = changes.choice([0, 1, 127, 128, 255, changes.randrange(256)])
    if changes.random() < 0.1:
        del content[changes.randrange(len(content)):]
    path.write_bytes(content)
    try:
        for row in RowReader(path):
            for value in row.values.values():
                assert value is None or isinstance(value, (str, int, list)), value
                str(value).encode()
        counts["rows"] += 1
    except InputError as error:
        assert str(path) in str(error) and "\\n" not in str(error)
        counts["refused"] += 1
print(counts["rows"], counts["refused"])
"""  # noqa: E501


@pytest.mark.parametrize("name", COLUMNAR)
def test_changed_bytes_give_rows_or_an_error_and_never_a_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = ["naïve", None, "", "文字" * 9, "a" * 70]
    table = pa.table({"text": texts, "n": range(5), "parts": [["x", "y"], [], None, ["z"], [""]]})
    in_batches(path, table, 3)
    # In a process of its own: a crash of the reader would take the tests with it.
    result = subprocess.run(
        [sys.executable, "-c", FUZZ, str(path), "0", "500"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    rows, refused = map(int, result.stdout.split())
    assert rows > 20
    assert refused > 20


def peak_of(run: Callable[[], Iterator[object]]) -> int:
    tracemalloc.start()
    try:
        for _ in run():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_lines_takes_a_few_blocks_of_memory(tmp_path: Path, suffix: str) -> None:
    line = b'{"text": "' + b"word " * 2000 + b'"}\n'
    path = write(tmp_path / f"x.jsonl{suffix}", COMPRESS[suffix](line * 3000))
    assert peak_of(lambda: iter(RowReader(path))) < 8 * decoding.DECODE_BLOCK

"""What a source names: nothing that was named is left out without a word."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from llmctl.data.text.decoding import ReadOptions
from llmctl.data.text.documents import Corpus
from llmctl.data.text.sources import no_file
from llmctl.errors import InputError


def write(path: Path, content: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def texts(*sources: object) -> list[str]:
    return [document.text for document in Corpus([str(source) for source in sources])]


def notes(*sources: object, errors: str = "strict") -> list[str]:
    reading = ReadOptions(errors=errors)
    return Corpus([str(source) for source in sources], reading=reading).notes


def link(path: Path, to: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(str(to))


@pytest.mark.parametrize("to", ["gone.txt", "broken.txt"])
@pytest.mark.parametrize("source", ["broken.txt", "*.txt", "**/*.txt", ""])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, source: str, to: str) -> None:
    good = write(tmp_path / "good.txt")
    link(tmp_path / "broken.txt", to)
    with pytest.raises(InputError, match=r"broken\.txt is a link that leads nowhere: .+; mend it"):
        Corpus([str(good), str(tmp_path / source)])


@pytest.mark.parametrize("pattern", ["*", "**", "s*", "[xs]*", "?ub", "*/*.txt", "**/g*.txt"])
def test_folders_of_a_pattern_are_folders(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "sub" / "good.txt", "good")
    write(tmp_path / "sub" / ".hidden.txt", "hidden")
    write(tmp_path / "sub" / "deep" / "deeper" / "good.txt", "deep")
    if pattern == "*/*.txt":
        assert texts(tmp_path / pattern) == ["good"]
    else:
        assert texts(tmp_path / pattern) == ["deep", "good"]


def test_a_pattern_names_files_of_any_kind_and_those_of_folders_by_their_kinds(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.log", "named")
    write(tmp_path / "sub" / "b.log", "not named")
    write(tmp_path / "sub" / "b.txt", "b")
    assert texts(tmp_path / "*") == ["named", "b"]
    assert notes(tmp_path / "*") == [
        f"{tmp_path}/*: 1 file of another kind was not read (.log 1): name it to read it"
    ]
    assert texts(tmp_path / "**") == ["named", "not named", "b"]
    assert notes(tmp_path / "**") == []


def test_a_pattern_starts_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a" / "1.txt", "one")
    write(tmp_path / "2.txt", "two")
    monkeypatch.chdir(tmp_path)
    for pattern in ("**/*.txt", "./**/*.txt"):
        corpus = Corpus([pattern])
        assert corpus.names == ["2.txt", "a/1.txt"]
    assert texts("?.txt", "a/*") == ["two", "one"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts("~/*.txt") == ["two"]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    """By links to each other, to themselves and to what lies above."""
    fold = tmp_path / "fold"
    write(tmp_path / "elsewhere" / "wiki.txt", "wiki")
    write(fold / "sub" / "own.txt", "own")
    link(fold / "wiki", "../elsewhere")
    link(fold / "again", "../elsewhere")
    link(fold / "here", ".")
    link(fold / "alias", "sub")
    link(tmp_path / "elsewhere" / "back", fold)
    assert Corpus([str(fold)]).names == [f"{fold}/again/wiki.txt", f"{fold}/sub/own.txt"]
    assert sorted(texts(fold / "**" / "*.txt")) == ["own", "wiki"]
    assert sorted(texts(fold / "*")) == ["own", "wiki"]
    assert sorted(texts(fold / "**")) == ["own", "wiki"]


def test_many_links_into_each_other_take_no_time(tmp_path: Path) -> None:
    """Walked without end they would be 2^40 paths."""
    for number in range(3):
        for name in "ab":
            link(tmp_path / str(number) / name, tmp_path / str((number + 1) % 3))
    write(tmp_path / "0" / "x.txt", "x")
    assert texts(tmp_path) == texts(tmp_path / "**" / "*.txt") == ["x"]


def test_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    for name in ("README", "b.log", "c.log", "sub/LICENSE", "sub/d.LOG", "page.html.gz", ".hidden"):
        write(tmp_path / name)
    assert texts(tmp_path) == ["a"]
    assert notes(tmp_path) == [
        f"{tmp_path}: 6 files of other kinds were not read (.log 3, no suffix 2, .html.gz 1): "
        "name them to read them"
    ]
    assert notes(tmp_path / "a.txt") == []
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"has no text files .+: 6 files of other kinds were not"):
        Corpus([str(tmp_path)])


@pytest.mark.parametrize("source", ["", "*", "**", "**/*.txt", "*/*.txt"])
def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every folder can be read, so the refusal is played."""
    write(tmp_path / "a.txt")
    write(tmp_path / "secret" / "b.txt")
    scan = os.scandir

    def refuse(folder: object) -> object:
        if str(folder).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="secret can't be read: Permission denied; change"):
        Corpus([str(tmp_path / source)])


def saved(folder: Path, *shards: list[str]) -> None:
    """What ``datasets.Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pa.table({"text": rows})
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    files = [{"filename": name} for name in reversed(names)]
    state = {"_data_files": files, "_fingerprint": "0", "_split": "train"}
    write(folder / "state.json", json.dumps(state))
    write(folder / "dataset_info.json", json.dumps({"citation": ""}, indent=2))


def test_a_saved_dataset_is_read_in_its_own_order(tmp_path: Path) -> None:
    saved(tmp_path / "data", ["c", "d"], ["a", "b"])
    write(tmp_path / "data" / "cache-123.arrow", "no Arrow at all")
    assert texts(tmp_path / "data") == texts(tmp_path) == ["a", "b", "c", "d"]
    assert notes(tmp_path / "data") == []


def test_an_option_of_one_file_is_told_which_of_a_folder(tmp_path: Path) -> None:
    saved(tmp_path / "data" / "train", ["one", "two"], ["three"])
    first, *_ = sorted((tmp_path / "data" / "train").glob("*.arrow"))
    assert str(no_file("--data", tmp_path / "data")).endswith(f"give a file of it, such as {first}")
    first.with_name("x").mkdir()
    assert "without data files" in str(no_file("--data", first.with_name("x")))


def test_all_splits_of_a_saved_dataset_are_read_and_named(tmp_path: Path) -> None:
    saved(tmp_path / "test", ["two"])
    saved(tmp_path / "train", ["one"])
    write(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    write(tmp_path / "old" / "x.txt", "no split")
    assert texts(tmp_path) == ["two", "one"]
    assert notes(tmp_path) == [
        f"{tmp_path} (train, test) was saved by datasets, and all of its splits are read; name the "
        "folder of one to read it alone"
    ]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"_data_files": [{"filename": "gone.arrow"}]}, "names 'gone.arrow', which isn't beside"),
        ({"_data_files": [{"filename": "../x.txt"}]}, "names '../x.txt', which isn't beside"),
        ({"_data_files": [3]}, "names None"),
        ({"_data_files": []}, "names no data files"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, r"flatten_indices\(\)"),
        ([], "is damaged: it holds no table of fields; save the dataset again"),
    ],
)
def test_a_saved_dataset_is_not_believed(tmp_path: Path, state: object, says: str) -> None:
    saved(tmp_path / "data", ["a"])
    write(tmp_path / "x.txt")
    write(tmp_path / "data" / "state.json", json.dumps(state))
    with pytest.raises(InputError, match=rf"state\.json .*{says}"):
        Corpus([str(tmp_path)])


def test_a_cache_of_datasets_is_its_arrow_files(tmp_path: Path) -> None:
    saved(tmp_path / "data", ["a"])
    (tmp_path / "data" / "state.json").unlink()
    assert texts(tmp_path / "data") == ["a"]


@contextmanager
def fed(path: Path, content: bytes) -> Iterator[Path]:
    """A named pipe that somebody writes to once."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    yield path
    writer.join()


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl", "pipe.txt.gz"])
def test_a_pipe_is_read_once(tmp_path: Path, name: str) -> None:
    content = b'{"text": "one"}\n' if name == "pipe.jsonl" else b"one\n"
    with fed(tmp_path / name, gzip.compress(content) if ".gz" in name else content) as path:
        corpus = Corpus([str(path), str(path)])
    assert [document.text for document in corpus] == ["one", "one"]
    assert [document.text for document in corpus] == ["one", "one"]
    assert corpus.names == corpus.streams * 2 == [str(path), str(path)]


def test_a_process_substitution_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, "\ufeffein\r\nTäxt\n".encode())
    os.close(writing)
    corpus = Corpus([f"/dev/fd/{reading}"])
    os.close(reading)
    assert [document.text for document in corpus] == ["ein\nTäxt"]
    assert corpus.suggested_name == "pipe"


def test_a_bad_byte_of_a_pipe_is_reported_by_its_name(tmp_path: Path) -> None:
    with fed(tmp_path / "pipe", b"a\xff") as path:
        corpus = Corpus([str(path)])
    with pytest.raises(InputError, match=rf"^{path}: byte 0xff at offset 1 is not UTF-8"):
        list(corpus)


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(InputError, match="/dev/zero is a device, not text"):
        Corpus(["/dev/zero"])
    with pytest.raises(InputError, match="/dev/null has no text"):
        list(Corpus(["/dev/null"]))


def test_markup_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    svg = write(tmp_path / "x.svg", '<?xml version="1.0"?>\n<svg xmlns="x"><text>a</text></svg>')
    html = write(tmp_path / "y.html", "<!DOCTYPE html>\n<HTML lang=en>b</HTML>")
    text = write(tmp_path / "z.log", "a < b")
    known = write(tmp_path / "z.txt", "<svg>")
    assert notes(svg, text, known) == [
        f"{svg} (<svg>) is markup, read as plain text: its tags become tokens; extract the text "
        "first if they shouldn't"
    ]
    assert notes(tmp_path / "?.[sh]*") == [
        f"{svg} (<svg>), {html} (<HTML>) are markup, read as plain text: their tags become tokens; "
        "extract the text first if they shouldn't"
    ]
    assert len(texts(svg, html)) == 2


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"%PDF-1.7\n", "is a PDF, not text; extract its text first"),
        (b"PK\x03\x04", "is a zip archive, or an office document"),
        (b"{\\rtf1", "is a rich text document"),
        (b"PAR1", r"is Parquet, not text; end its name with \.parquet"),
        (b"\x1f\x8b\x08", r"is compressed by gzip, not text; end its name with \.gz"),
    ],
)
def test_a_file_that_begins_as_no_text_does_is_refused(
    tmp_path: Path, begin: bytes, says: str
) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(begin + b"text")
    with pytest.raises(InputError, match=says):
        Corpus([str(path)])
    assert notes(path, errors="replace") == []

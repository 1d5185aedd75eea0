"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.parsing import read_json
from llmctl.workspace import files
from llmctl.workspace.files import (
    clear_leftovers,
    crc32_file,
    folder_size,
    folder_sizes,
    hidden_sibling,
    published_folder,
    remove_folder,
    sha256_file,
    sha256_json,
    write_atomic,
    write_json,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "value.txt"
    for content in (b"first", "second: Füße", b""):
        write_atomic(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
):
    path = tmp_path / "value.txt"
    write_atomic(path, "old")

    def fail(*_: object, **__: object) -> Any:
        raise error

    if failing == "write":
        real = os.fdopen

        def opened(*arguments: Any) -> Any:
            stream = real(*arguments)
            return _Failing(stream, fail)

        monkeypatch.setattr(os, "fdopen", opened)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert contents(tmp_path) == {"value.txt": b"old"}


class _Failing:
    """A stream whose write fails."""

    def __init__(self, stream: Any, fail: Any) -> None:
        self._stream, self.write = stream, fail

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


WRITER = """
import sys
from pathlib import Path
from llmctl.workspace.files import write_atomic
print("ready", flush=True)
for number in range(10**9):
    write_atomic(Path(sys.argv[1]), str(number % 10) * 200_000)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path):
    path = tmp_path / "value.txt"
    path.write_text("0" * 200_000)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(20):
            content = path.read_text()
            assert len(content) == 200_000
            assert len(set(content)) == 1
        process.kill()
        process.communicate()
        content = path.read_text()
        assert (len(content), len(set(content))) == (200_000, 1)


@given(value=JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: Any):
    path = tmp_path_factory.mktemp("json") / "value.json"
    if any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(value, ensure_ascii=False)):
        return
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_the_quick_digest_is_that_of_zip_and_png(tmp_path: Path):
    path = tmp_path / "value"
    path.write_bytes(b"123456789")
    assert crc32_file(path) == "cbf43926"  # the check value of CRC-32/ISO-HDLC
    path.write_bytes(bytes(range(256)) * 3_000)  # more than one block
    with zipfile.ZipFile(tmp_path / "value.zip", "w") as archive:
        archive.write(path, "value")
        assert crc32_file(path) == f"{archive.getinfo('value').CRC:08x}"


def test_digests_are_sha256(tmp_path: Path):
    path = tmp_path / "value"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert sha256_json({"b": [1, "é"], "a": None}) == (
        hashlib.sha256('{"a":null,"b":[1,"é"]}'.encode()).hexdigest()
    )
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_a_folder_appears_when_the_block_ends(tmp_path: Path):
    target = tmp_path / "made"
    with published_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert contents(tmp_path) == {"made/sub/a.txt": b"a"}
    with published_folder(target) as folder:
        (folder / "b.txt").write_text("b")
        assert contents(target) == {"sub/a.txt": b"a"}
    assert contents(tmp_path) == {"made/b.txt": b"b"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def fail_inside(target: Path, error: BaseException) -> None:
    with published_folder(target) as folder:
        (folder / "a.txt").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_block_changes_nothing(tmp_path: Path, error: BaseException, existing: bool):
    target = tmp_path / "made"
    if existing:
        target.mkdir()
        (target / "a.txt").write_text("old")
    with pytest.raises(type(error)):
        fail_inside(target, error)
    assert contents(tmp_path) == ({"made/a.txt": b"old"} if existing else {})
    assert [path.name for path in tmp_path.iterdir()] == (["made"] if existing else [])


def test_what_a_crash_left_is_not_mixed_in(tmp_path: Path):
    target = tmp_path / "made"
    hidden_sibling(target).mkdir()
    (hidden_sibling(target) / "stale.txt").write_text("stale")
    with published_folder(target) as folder:
        (folder / "a.txt").write_text("a")
    assert contents(tmp_path) == {"made/a.txt": b"a"}


def test_a_replacement_that_fails_midway_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two renames replace a folder; the second can fail after the first."""
    target = tmp_path / "made"
    target.mkdir()
    (target / "a.txt").write_text("old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self == hidden_sibling(target):
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), published_folder(target) as folder:
        (folder / "a.txt").write_text("new")
    assert contents(tmp_path) == {"made/a.txt": b"old"}


def test_every_file_is_on_the_disk_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, flushed = tmp_path / "made", []

    def note(path: Path) -> None:
        flushed.append((path.name, target.exists()))

    monkeypatch.setattr(files, "fsync_path", note)
    with published_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        (folder / "b").write_text("b")
    before = {name for name, published in flushed if not published}
    assert {"a", "b", "sub"} <= before
    assert (tmp_path.name, True) in flushed


def test_what_killed_writers_left_goes_and_what_was_replaced_comes_back(tmp_path: Path):
    (tmp_path / ".value.json.x1y2.partial").write_text("{")
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "half").touch()
    for name in (".old.replaced", ".both.replaced", "both", ".busy.partial", ".away.replaced"):
        (tmp_path / name).mkdir()
    (tmp_path / ".bashrc").touch()
    clear_leftovers(tmp_path, lambda target: target.name in ("busy", "away"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "old", "both", ".busy.partial", ".away.replaced", ".bashrc",
    }  # fmt: skip


def test_a_failure_names_the_path_that_was_meant(tmp_path: Path):
    with pytest.raises(OSError, match="full") as unnamed, published_folder(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")
    assert unnamed.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="full") as inside, published_folder(tmp_path / "a") as hidden:
        raise OSError(errno.ENOSPC, "full", str(hidden / "part" / "x"))
    assert inside.value.filename == str(tmp_path / "a" / "part" / "x")
    with pytest.raises(OSError, match="gone") as other, published_folder(tmp_path / "a"):
        raise OSError(errno.ENOENT, "gone", "elsewhere")
    assert other.value.filename == "elsewhere"


def test_sizes_are_of_all_files_by_the_folder_they_lie_below(tmp_path: Path):
    for name, size in {"a": 1, "deep/b": 2, "deep/er/c": 4, "other/d": 8}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "other" / "broken").symlink_to("nowhere")
    of_link = len("nowhere")
    assert folder_sizes(tmp_path) == {".": 1, "deep": 6, "other": 8 + of_link}
    assert folder_size(tmp_path) == 15 + of_link
    assert folder_size(tmp_path / "none") == 0


def test_a_removed_folder_is_gone_and_one_that_is_not_there_is_no_error(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []

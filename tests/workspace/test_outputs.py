"""Outputs: files are replaced whole and stay what they are; what is no file is written to."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmctl.errors import BusyError, InputError
from llmctl.workspace.files import write_atomic
from llmctl.workspace.outputs import output_at
from llmctl.workspace.tensors import write_tensors


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o077, 0o022, 0o002, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_holds_for_every_writer(tmp_path: Path, umask: int):
    write_atomic(tmp_path / "atomic", "a")
    write_tensors(tmp_path / "tensors", {"a": torch.ones(2)})
    output_at(tmp_path / "output").write("a")
    with output_at(tmp_path / "partial").partial("made") as stream:
        stream.write(b"a")
    for path in tmp_path.iterdir():
        assert mode(path) == 0o666 & ~umask, path
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, permissions: int):
    path = tmp_path / "out"
    path.write_text("old")
    path.chmod(permissions)
    output_at(path).write("new")
    assert (path.read_text(), mode(path)) == ("new", permissions)
    with output_at(path).partial("made") as stream:
        stream.write(b"newer")
    assert (path.read_text(), mode(path)) == ("newer", permissions)
    write_atomic(path, "newest")
    assert (path.read_text(), mode(path)) == ("newest", permissions)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give files away")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path):
    path = tmp_path / "out"
    path.write_text("old")
    os.chown(path, 65534, 65534)
    output_at(path).write("new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path: Path, there: bool):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    if there:
        target.write_text("old")
    (tmp_path / "near").symlink_to("far/target")
    (tmp_path / "link").symlink_to("near")
    output_at(tmp_path / "link").write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "near").is_symlink()
    assert target.read_text() == "new"
    assert list((tmp_path / "far").iterdir()) == [target]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for name in (path, tmp_path / "link"):
        if name != path:
            name.symlink_to(path)
        read: list[str] = []
        reader = threading.Thread(target=lambda into=read: into.append(path.read_text()))
        reader.start()
        output_at(name).write("text")
        reader.join(10)
        assert read == ["text"]
        assert stat.S_ISFIFO(path.stat().st_mode)


def test_devices_are_written_to():
    for name in ("/dev/null", "/dev/full", "/dev/stdout", "/proc/self/fd/1"):
        assert output_at(Path(name)).file is None
    before = os.stat("/dev/full")
    with pytest.raises(OSError, match="/dev/full") as caught:
        output_at(Path("/dev/full")).write("text")
    assert caught.value.errno == errno.ENOSPC
    assert os.stat("/dev/full") == before


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_by_its_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    descriptor, kept = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.dup(1)
    (tmp_path / "out").write_text("before\n")
    os.dup2(descriptor, 1)
    try:
        if name == "-":
            with open(1, "w", closefd=False) as stream:
                monkeypatch.setattr("sys.stdout", stream)
                output_at(Path(name)).write("文\n")
        else:
            output_at(Path(name)).write("文\n")
    finally:
        os.dup2(kept, 1)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "before\n文\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    refused = {
        ".": "is a folder",
        "circle": "circle",
        "missing/out": "there is no folder",
        "file/out": "there is no folder|Not a directory",
        "n" * 300: "too long",
        "n/" * 5000: "too long",
    }
    for name, reason in refused.items():
        with pytest.raises(InputError, match=reason):
            output_at(tmp_path / name)


def test_a_name_as_long_as_may_be(tmp_path: Path):
    path = tmp_path / ("n" * 255)
    output_at(path).write("a")
    with output_at(path).partial("0123456789abcdef") as stream:
        stream.write(b"b")
    assert path.read_text() == "b"


def test_an_output_that_another_writes_is_busy(tmp_path: Path):
    output = output_at(tmp_path / "out")
    with output.partial("made") as stream:
        stream.write(b"one\n")
        with pytest.raises(BusyError, match="another process"), output.partial("made"):
            pass
        with output.partial("otherwise") as other:
            other.write(b"whole\n")
        assert (tmp_path / "out").read_text() == "whole\n"
    assert (tmp_path / "out").read_text() == "one\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_written_is_found_again(tmp_path: Path):
    output = output_at(tmp_path / "out")

    def stopped() -> None:
        with output.partial("made") as stream:
            stream.write(b"one\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not (tmp_path / "out").exists()
    with output.partial("made") as stream:
        stream.seek(0)
        assert stream.read() == b"one\n"
        stream.write(b"two\n")
    assert (tmp_path / "out").read_text() == "one\ntwo\n"

"""The writer's lock: one holder, known to others, gone with its process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmctl.errors import BusyError
from llmctl.workspace import locks
from llmctl.workspace.locks import is_locked, lock_path, writer_lock

HOLDER = """
import sys, time
from pathlib import Path
from llmctl.workspace.locks import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it gets a line or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_lock_held_by_another_process_is_busy(tmp_path: Path):
    target = tmp_path / "runs" / "x"
    with holder(target):
        assert is_locked(target)
        with pytest.raises(BusyError, match="another process") as caught, writer_lock(target):
            pass
        assert caught.value.exit_code == 4
        assert str(target) in str(caught.value)
        assert not is_locked(tmp_path / "runs" / "y")


def test_a_lock_dies_with_its_process(tmp_path: Path):
    target = tmp_path / "runs" / "x"
    with holder(target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_locked(target)
        assert lock_path(target).exists()
        with writer_lock(target):
            assert is_locked(target)


def test_a_lock_ends_with_its_block(tmp_path: Path):
    target = tmp_path / "runs" / "x"
    assert not is_locked(target)
    with writer_lock(target):
        assert is_locked(target)
    assert not is_locked(target)
    with pytest.raises(ValueError, match="inside"), writer_lock(target):
        raise ValueError("inside")
    assert not is_locked(target)


def test_asking_makes_no_file(tmp_path: Path):
    assert not is_locked(tmp_path / "runs" / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("impatient")
def test_two_writers_in_one_process_exclude_each_other(tmp_path: Path):
    target = tmp_path / "runs" / "x"
    with writer_lock(target), pytest.raises(BusyError), writer_lock(target):
        pass


def test_asking_does_not_disturb_a_writer(tmp_path: Path):
    """status may ask at any moment; the writer waits for the instant that asking takes."""
    target = tmp_path / "runs" / "x"
    with writer_lock(target):
        pass
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            is_locked(target)
            time.sleep(0.0005)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(20):
            with writer_lock(target):
                assert is_locked(target)
    finally:
        stop.set()
        asking.join()


def test_the_lock_is_outside_the_folder_so_it_outlives_a_rename(tmp_path: Path):
    target = tmp_path / "runs" / "x"
    target.mkdir(parents=True)
    with writer_lock(target):
        target.rename(tmp_path / "runs" / "old")
        (tmp_path / "runs" / "new").mkdir()
        (tmp_path / "runs" / "new").rename(target)
        assert is_locked(target)

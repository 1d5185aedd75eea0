"""A short form of the fuzzing: some inputs for each reader, the same every time. The long one is
``python -m tests.robustness --inputs 3000``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import InputError
from tests.robustness import data_readers
from tests.robustness.children import KINDS, Limits, Reader, base_files, run, sound
from tests.robustness.mutators import STRUCTURAL, Mutators

INPUTS = 5


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_reader_fails_on_what_somebody_else_may_have_written(every: bool):
    """By default those whose sound files are not models or runs, which take long to make."""
    command = [sys.executable, "-m", "tests.robustness", "--inputs", str(INPUTS)]
    if not every:
        command += [f"--reader={reader.name}" for reader in data_readers.READERS]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# The harness itself: it must see what it is there to see.


def _make(folder: Path) -> None:
    (folder / "input").write_text("sound")


def _hang(folder: Path) -> None:
    time.sleep(30)


def _kill(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _panic(folder: Path) -> None:
    raise BaseException("a panic")


def _bug(folder: Path) -> None:
    raise KeyError("a bug")


def _refuse(folder: Path) -> None:
    raise InputError("the file is none; mend it")


def _ramble(folder: Path) -> None:
    print("error: of another", file=sys.stderr)
    raise InputError("the file is none")


def _memory(folder: Path) -> int:
    return len(bytearray(3 << 30))


def _outside(folder: Path) -> None:
    (folder.parent.parent / "robustness-outside").open("w").close()


def _program(folder: Path) -> None:
    os.system("true")


def _false(result: Any) -> None:
    raise AssertionError("it is false")


FAILURES = {
    "ok": lambda folder: None, "hang": _hang, "signal": _kill, "panic": _panic, "bug": _bug,
    "refused": _refuse, "wrong": _ramble, "memory": _memory, "outside": _outside,
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
def test_each_way_to_end_is_told_from_the_others(kind: str):
    assert kind in KINDS
    reader = Reader("a", _make, {"input": "text"}, FAILURES[kind])
    # On a busy machine a process may take a while to end; only a hang is to be cut short.
    limits = Limits(seconds=0.3 if kind == "hang" else 20)
    endings = list(run(reader, {"input": b"sound"}, range(3), limits))
    assert [(ending.number, ending.kind) for ending in endings] == [(n, kind) for n in range(3)]


def test_what_is_false_of_a_result_and_a_program_that_is_started_are_seen():
    reader = Reader("a", _make, {"input": "text"}, lambda folder: 1, _false)
    (ending,) = run(reader, {"input": b"sound"}, range(1), Limits())
    assert (ending.kind, ending.detail) == ("wrong", "it is false")
    (ending,) = run(Reader("a", _make, {}, _program), {}, range(1), Limits())
    assert ending.kind == "outside"


def test_the_sound_files_are_made_and_read():
    reader = Reader("a", _make, {"input": "text"}, lambda folder: (folder / "input").read_text())
    assert base_files(reader) == {"input": b"sound"}
    assert sound(reader, base_files(reader), Limits()).kind == "ok"


@pytest.mark.parametrize("form", [*STRUCTURAL, "binary"])
def test_an_input_is_a_function_of_its_number(form: str):
    base = {"input": b'{"text": "the ship", "label": 1}\na,b = "c"\n' * 3}
    made = [
        [Mutators("reader", {"input": form}, base).input(number)["input"] for number in range(24)]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(set(made[0])) > 12

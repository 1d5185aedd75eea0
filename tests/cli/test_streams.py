"""Standard streams that are closed, full or of another encoding, and Ctrl-C at any time."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.cli import console, streams
from llmctl.cli.guard import guarded
from llmctl.errors import Interrupted
from llmctl.reporting.visible import visible
from tests.run import start

HEARD = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Ctrl-C is heard by a process also where the tests run in the background."""


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{HEARD}from llmctl.cli import streams\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


def test_closed_streams_read_as_empty_and_forget(tmp_path: Path):
    """And no file that is opened later takes their place."""
    code = (
        "import os, sys\n"
        "for number in (0, 1, 2): os.close(number)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "streams.prepare()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "assert file.fileno() > 2\n"
        "print('lost'); print('lost', file=sys.stderr)\n"
        "file.write(repr((sys.stdin.read(), sys.stdin.isatty(), sys.stdout.isatty())))\n"
    )
    assert python(code).returncode == 0
    assert (tmp_path / "file").read_text() == "('', False, False)"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_with_closed_streams(tmp_path: Path, closed: str):
    command = f"{sys.executable} -m llmctl status -w {tmp_path} {closed}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (result.returncode, "bug" in result.stderr) == (0, False), result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("words", ["--help", "--version", "status nothing 2>/dev/full"])
def test_what_can_not_be_printed_ends_in_a_line_and_a_code(tmp_path: Path, words: str):
    command = f"LLMCTL_WORKSPACE={tmp_path} {sys.executable} -m llmctl {words} >/dev/full"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    if "2>" in words:
        assert (result.returncode, result.stderr) == (3, "")
    else:
        assert result.returncode == 5
        assert "can't be written: No space left" in result.stderr
        assert "Traceback" not in result.stderr


def test_help_to_a_reader_that_leaves_ends_quietly():
    pipeline = f"{sys.executable} -m llmctl --help | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("141", "")


def test_tables_to_a_reader_that_leaves_are_a_broken_pipe(monkeypatch: pytest.MonkeyPatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        console.out().print("text")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_is_shown_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(streams, "_open_closed_streams", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    streams.prepare()
    text = "naïve 文字 \ud800"
    print(text)
    console.print_json({"text": text, "share": float("nan")})
    stream.flush()
    plain, document = written.getvalue().decode(encoding).splitlines()
    assert json.loads(document) == {"text": text, "share": None}
    assert plain.startswith("na")
    assert "\\ud800" in plain
    assert ("文" in plain) == (encoding == "utf-8")


def test_what_moves_a_cursor_or_ends_a_line_is_written_out(monkeypatch: pytest.MonkeyPatch):
    harmless = "naïve 文字 👍🏽 ‑ é"
    assert visible(harmless) == harmless
    assert visible("a\tb\nc\x1b[2J\x9b\u202ed\u2028") == r"a\tb\nc\x1b[2J\x9b\u202ed\u2028"
    assert visible("a\tb\n\x07", keep="\n\t") == "a\tb\n\\x07"
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    console.out().print("a\x1b[31mb\nc")
    assert stream.getvalue() == "a\\x1b[31mb\nc\n"


SLOW_MODULE = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_while_libraries_load_ends_in_one_line(tmp_path: Path, begun: bool):
    """Whatever they make of it: here a library that hides it."""
    (tmp_path / "library.py").write_text(
        "try:\n    import inner\nexcept BaseException:\n    pass\n"
    )
    (tmp_path / "inner.py").write_text(SLOW_MODULE)
    begin = "streams.command_begins()\n" if begun else ""
    result = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nstreams.prepare()\n{begin}"
        "import library\nprint('went on')\n"
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "interrupted; nothing half-written was left\n"


def test_ctrl_c_before_a_command_begins_ends_in_one_line():
    result = python("import os, signal\nstreams.prepare()\nos.kill(os.getpid(), signal.SIGINT)\n")
    assert (result.returncode, result.stderr.count("\n")) == (130, 1)
    result = python(
        "import os, signal\nstreams.prepare()\nstreams.command_begins()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('saved')\n"
    )
    assert (result.returncode, result.stdout) == (0, "saved\n")


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code and the line of a command that raises this."""
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        raise error

    try:
        with pytest.raises(SystemExit) as caught:
            guarded(command)()
    finally:
        signal.signal(signal.SIGTERM, before)
    return caught.value.code, capsys.readouterr().err


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    told = "interrupted; nothing half-written was left\n"
    assert ended(KeyboardInterrupt(), capsys) == (130, told)
    stopped = Interrupted("stopped by SIGINT after writing a checkpoint", signal.SIGINT)
    assert ended(stopped, capsys) == (130, "stopped by SIGINT after writing a checkpoint\n")
    monkeypatch.setattr(streams._State, "interrupted", True)
    assert ended(SystemError("a library's own words"), capsys) == (130, told)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files", "/x"), 5, "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files"), 5, "ulimit -n"),
        (OSError(errno.ELOOP, "Too many levels", "/x"), 3, "/x can't be read or written"),
        (OSError(errno.EBUSY, "Device or resource busy", "/x"), 3, "/x can't be read or written"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), 3, "/x can't be read"),
        (OSError(errno.EIO, "Input/output error", "/x"), 5, "/x: Input/output error"),
        (OSError(errno.ENOSPC, "No space", "/x"), 5, "the disk is full (/x)"),
        (OSError(errno.ENOSPC, "No space"), 5, "/dev/shm"),
        (RuntimeError("[enforce] can't allocate memory: 9 bytes"), 5, "take a smaller model"),
        (ValueError("\x1b[31m of ours"), 1, "this is a bug"),
    ],
)
def test_errors_of_the_system_say_what_to_do(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
):
    got, told = ended(error, capsys)
    assert got == code
    assert words in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("module", "advice"),
    [("pretrain", "training.batch_size"), ("tokenize", "--workers"), ("generate", "batch_size")],
)
def test_what_takes_less_memory_is_said_of_the_command(
    module: str, advice: str, capsys: pytest.CaptureFixture[str]
):
    def command() -> None:
        raise RuntimeError("can't allocate memory")

    command.__module__ = f"llmctl.cli.{module}"
    with pytest.raises(SystemExit):
        guarded(command)()
    told = capsys.readouterr().err
    assert advice in told
    assert ("training." in told) == (module == "pretrain")


@pytest.mark.parametrize("size", [4, 100_000])
def test_a_full_standard_output_is_named(capsys: pytest.CaptureFixture[str], size: int):
    with open("/dev/full", "w") as full:
        stream = streams._named(full)
        with pytest.raises(OSError, match="No space left") as failure:
            print("t" * size, file=stream, flush=True)
        # What could not be written is held, and would be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
        stream.flush()
    got, told = ended(failure.value, capsys)
    assert (got, "standard output" in told) == (5, True)


def test_ctrl_c_to_all_while_workers_start_leaves_no_traceback(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("the ship sails over the sea\n" * 20_000)
    process = start(tmp_path, "tokenize", text, "--document", "line", "--workers", 2,
                    "--tokenizer", "characters", start_new_session=True,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not children.read_text().split():
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False), err

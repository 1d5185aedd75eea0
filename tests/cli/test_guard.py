"""What every command does around its stage: which error gets which exit code and sentence."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import pytest

from llmctl.cli import console, status
from llmctl.cli.guard import guarded
from llmctl.reporting.reporter import Record


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/ro/runs"), 3, "/ro/runs"),
        (OSError(errno.EROFS, "Read-only file system", "/ro/runs"), 3, "Read-only"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/x"), 3, "/dev/null/x"),
        (OSError(errno.ENOSPC, "No space left on device", "/w/x"), 5, "disk is full"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "out of memory"),
        (MemoryError(), 5, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 5, "batch_size"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 1, "bug"),
        (ValueError("what"), 1, "bug in llmctl"),
    ],
)
def test_errors_of_the_system_are_sentences(
    error: Exception, code: int, says: str, capsys: pytest.CaptureFixture[str]
):
    def command() -> None:
        raise error

    command.__module__ = "llmctl.cli.pretrain"
    with pytest.raises(SystemExit) as end:
        guarded(command)()
    assert end.value.code == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert says in message


def test_what_has_no_batch_size_is_not_told_to_lower_it(capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    command.__module__ = "llmctl.cli.tokenize"
    with pytest.raises(SystemExit) as end:
        guarded(command)()
    assert end.value.code == 5
    message = capsys.readouterr().err
    assert "batch_size" not in message
    assert message.endswith("; use fewer --workers\n")


def test_a_name_that_is_not_utf_8_is_no_bug(capsys: pytest.CaptureFixture[str]):
    @guarded
    def command() -> None:
        "caf\udce9.txt".encode()

    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 2
    assert r"\udce9.txt" in capsys.readouterr().err


def test_brackets_and_colons_in_results_are_no_markup(monkeypatch: pytest.MonkeyPatch):
    from rich.table import Table

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = Table(title="[red] :smile:")
    table.add_column("[/x]")
    table.add_row("[blue]sea")
    console.out().print(table)
    for text in ("[red] :smile:", "[/x]", "[blue]sea"):
        assert text in sys.stdout.getvalue()  # type: ignore[attr-defined]


def test_figures_that_are_missing_are_dashes(capsys: pytest.CaptureFixture[str]):
    reporter = console.TerminalReporter()
    values = {"loss": float("nan"), "mlm_accuracy": None, "nsp_accuracy": 0.5}
    reporter.metrics(Record("validation", 3, values), 10)
    assert "loss –, MLM –, NSP 50.0%" in capsys.readouterr().err


def test_watching_ends_quietly_with_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    monkeypatch.setenv("COLUMNS", "400")  # the path is long, and a screen cuts what is wider
    status.command(names=None, compare=[], watch=True, plot=False, workspace=tmp_path, json=False)
    out, err = capsys.readouterr()
    assert "is empty" in out
    assert not err

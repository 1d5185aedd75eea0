"""Runs the command line as a user does: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(workspace: Path, *words: object, **options: object) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    environment = {**os.environ, "LLMCTL_WORKSPACE": str(workspace), "COLUMNS": "200"}
    environment.update(options.pop("env", {}))  # type: ignore[call-overload]
    return subprocess.Popen(
        [sys.executable, "-m", "llmctl", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,  # type: ignore[call-overload]
    )


def llmctl(
    workspace: Path, *words: object, code: int = 0, stdin: str | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check its exit code."""
    process = start(workspace, *words, stdin=subprocess.PIPE, **options)
    out, err = process.communicate(stdin)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error that a command ended with: one line, no traceback."""
    assert "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0].removeprefix("error: ")

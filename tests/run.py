"""Runs the command line as a user does: a process of its own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fork_server import ForkServer, limit_file_size, serves


def start(workspace: Path, *words: object, **options: object) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmctl", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(workspace, options.pop("env", {})),  # type: ignore[arg-type]
        **options,  # type: ignore[call-overload]
    )


def llmctl(
    workspace: Path,
    *words: object,
    code: int = 0,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    largest_file: int | None = None,
    anew: bool = False,
    **options: object,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check its exit code.

    largest_file: bytes that a file which it writes may have. anew: in a process that starts from
    nothing, whose memory is its own.
    """
    environment = _environment(workspace, env or {})
    if serves(environment) and not options and not anew:
        result = _forked([str(word) for word in words], environment, stdin or "", largest_file)
    else:
        if largest_file is not None:
            options["preexec_fn"] = functools.partial(limit_file_size, largest_file)
        process = start(workspace, *words, stdin=subprocess.PIPE, env=environment, **options)
        out, err = process.communicate(stdin)
        result = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert result.returncode == code, (
        f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    )
    return result


def _environment(workspace: Path, further: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "LLMCTL_WORKSPACE": str(workspace), "COLUMNS": "200", **further}


@functools.cache
def fork_server() -> ForkServer:
    """That of this process, started with its first command."""
    return ForkServer()


def _forked(
    words: list[str], environment: dict[str, str], stdin: str, largest_file: int | None
) -> subprocess.CompletedProcess[str]:
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        asked.write(stdin.encode("utf-8", "surrogateescape"))
        asked.seek(0)
        code = fork_server().run(words, environment, os.getcwd(), [asked, out, err], largest_file)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(["llmctl", *words], code, *texts)


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error that a command ended with: one line, no traceback."""
    assert "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0].removeprefix("error: ")

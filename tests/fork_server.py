"""Commands in processes of their own without the two seconds that PyTorch takes to load.

A server loads everything once and forks a process for each command that a test runs. The process
has the test's words, environment, folder and streams, and ends as a real one would. What a fork
can't show is tested with real processes (``tests.run.start``): starting, signals, kills, locks,
variables that libraries read when they load.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pkgutil
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests import repeating, small_library
from tests.fork_client import ask

TESTS = Path(__file__).resolve().parent

READ_AT_LOAD = ("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "PYTHON", "LD_", "THP_", "TORCH")
"""Beginnings of variables that libraries or the interpreter read once."""

AVAILABLE = sys.platform.startswith("linux") and hasattr(os, "pidfd_open")


def serves(environment: Mapping[str, str]) -> bool:
    """Whether a command with this environment may run in a fork of the server."""
    changed = {
        name
        for name in {*environment, *os.environ}
        if environment.get(name) != os.environ.get(name)
    }
    if "OMP_NUM_THREADS" in environment:
        changed.discard("OMP_NUM_THREADS")  # a fork heeds it
    return AVAILABLE and not any(name.startswith(READ_AT_LOAD) for name in changed)


def limit_file_size(largest: int) -> None:
    """Let this process write no file of more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


class ForkServer:
    """The server as a test's process sees it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="llmctl-tests-"))
        self._address = self._folder / "socket"
        self.python = self._folder / "python"
        """A program that runs ``-m llmctl`` in a fork of the server, and all else as Python."""
        client = f"{sys.executable} -S -E {TESTS / 'fork_client.py'} {self._address}"
        self.python.write_text(
            f'#!/bin/sh\nif [ "$1 $2" = "-m llmctl" ]; then shift 2; exec {client} "$@"; fi\n'
            f'exec {sys.executable} "$@"\n'
        )
        self.python.chmod(0o755)
        # It ends with this: when this process does, or lets go of it.
        alive, self._alive = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(self._address))
            listener.listen()
            given = map(str, (listener.fileno(), alive, self.python))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", *given],
                pass_fds=[listener.fileno(), alive],
                cwd=TESTS.parent,
            )
        os.close(alive)
        atexit.register(self.close)

    def close(self) -> None:
        """End the server."""
        os.close(self._alive)
        self._process.wait()
        shutil.rmtree(self._folder)

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        streams: Sequence[IO[bytes]],
        largest_file: int | None,
    ) -> int:
        """Run one command to its end; its exit code, negative where a signal ended it."""
        request = {
            "words": list(words),
            "environment": dict(environment),
            "folder": folder,
            "largest_file": largest_file,
        }
        return ask(str(self._address), request, [stream.fileno() for stream in streams])


LONGEST_REQUEST = 1 << 20


def _serve(listener: socket.socket, alive: int, python: str) -> None:
    """Fork for every request, and tell who asked the process's number, and how it ended."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([listener, alive, *running], [], [])
        for source in ready:
            if source == alive:
                return
            if source is not listener:
                pid, asker = running.pop(source)
                _, status = os.waitpid(pid, 0)
                os.close(source)
                with asker, contextlib.suppress(OSError):  # who asked may be gone
                    asker.send(str(os.waitstatus_to_exitcode(status)).encode())
                continue
            asker, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(asker, LONGEST_REQUEST, 3)
            pid = os.fork()
            if pid == 0:
                for other in (listener, asker, *(asker for _, asker in running.values())):
                    other.close()
                for descriptor in (alive, *running):
                    os.close(descriptor)
                _become(json.loads(message), files, python)
            with contextlib.suppress(OSError):
                asker.send(str(pid).encode())
            running[os.pidfd_open(pid)] = pid, asker
            for descriptor in files:
                os.close(descriptor)


def _become(request: dict, files: Sequence[int], python: str) -> None:
    """Run a command in this process, just forked, and leave with its exit code."""
    code = 1
    try:
        for descriptor, file in enumerate(files):
            os.dup2(file, descriptor)
            os.close(file)
        # Those of the server know whether they could seek.
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        if request["largest_file"] is not None:
            limit_file_size(request["largest_file"])
        sys.argv = ["llmctl", *request["words"]]
        sys.executable = python  # the processes of --nproc are forks, too
        import torch

        from llmctl.cli.launch import LAUNCHER
        from llmctl.cli.streams import main

        if LAUNCHER in os.environ:
            os.environ[LAUNCHER] = str(os.getppid())
        if small_library.VARIABLE in os.environ:
            small_library.use()
        if "OMP_NUM_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


LOADED_LATE = ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor")
"""What PyTorch imports with the first optimiser: longer than a test's whole training."""


def _load_everything() -> None:
    """Import what commands import, with the settings that they make before they do."""
    from llmctl.cli.options import ask_for_large_pages

    repeating.keep_parsers()
    ask_for_large_pages()
    import llmctl

    own = [module.name for module in pkgutil.walk_packages(llmctl.__path__, "llmctl.")]
    for name in ("torch", *LOADED_LATE, "sentencepiece", "tokenizers", *own):
        if not name.endswith(("__main__", "_ray")):
            importlib.import_module(name)
    repeating.settle()


if __name__ == "__main__":
    _load_everything()
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])

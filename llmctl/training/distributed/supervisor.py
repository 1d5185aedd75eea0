"""The processes of ``--nproc``: started together, watched, and stopped or started again together.

They meet as ``llmctl.training.distributed.meeting`` has it, so that nothing of this listens for
anybody else.
Whoever wants several machines uses torchrun, which sets the same variables.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from llmctl.training.distributed.meeting import meeting_at, private_folder
from llmctl.training.signals import signals_handled_by

WATCH_SECONDS = 0.05
STOP_SECONDS = 30.0
"""What a process has to write a checkpoint and go, before it is killed."""
RETRYABLE_EXIT_CODES = frozenset({1, 5})
"""Exit codes (a process's own failure, and of memory or another process) that may not come again;
bad options, bad inputs and a diverged training would."""


class Supervisor:
    """Runs a command in several processes."""

    def __init__(self, command: Sequence[str], nproc: int, environment: Mapping[str, str]) -> None:
        self._command, self._nproc = command, nproc
        self._environment = {**os.environ, **environment}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._signal: int | None = None

    def run(self, max_restarts: int) -> int:
        """The exit code of the process that failed first, as subprocess gives it (-9: killed by
        signal 9), or 128 + the signal that this process was sent; 0 if all ended well.

        After a loss the others are stopped and all are started again, up to ``max_restarts`` times.
        """
        with signals_handled_by(self._pass_on), private_folder() as folder:
            for attempt in range(max_restarts + 1):
                self._processes = []
                try:
                    # A file of its own: the lost's addresses are in that of the attempt before.
                    self._start(folder / f"attempt-{attempt}")
                    code = self._watch()
                finally:
                    self._stop()
                if self._signal is not None:
                    went_on = len(self._processes) == self._nproc
                    well = went_on and not any(process.returncode for process in self._processes)
                    return 0 if well else 128 + self._signal
                if code >= 0 and code not in RETRYABLE_EXIT_CODES:
                    break
        return code

    def _start(self, store: Path) -> None:
        shared = {
            "WORLD_SIZE": str(self._nproc),
            "LOCAL_WORLD_SIZE": str(self._nproc),
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            **meeting_at(store),
        }
        for rank in range(self._nproc):
            if self._signal is not None:
                return
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(
                self._command,
                env={**self._environment, **shared, **own},
                # What a terminal sends to all of a job comes once, through here.
                start_new_session=True,
            )
            self._processes.append(process)
            if self._signal is not None:  # it came meanwhile
                process.send_signal(self._signal)

    def _watch(self) -> int:
        """Wait until all have ended well, one has not, or a signal came; the first failure's exit
        code, else 0."""
        while self._signal is None:
            codes = [process.poll() for process in self._processes]
            if failed := [code for code in codes if code]:
                # Whoever lost another process ends with 5: what happened to that one counts.
                return min(failed, key=lambda code: (code > 0, code == 5))
            if None not in codes:
                break
            time.sleep(WATCH_SECONDS)
        return 0

    def _stop(self) -> None:
        """End those that are left: they have time to write a checkpoint."""
        if self._signal is None:
            self._send(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._send(number)

"""How threads wait for each other, by what else computes on the machine.

Threads meet hundreds of times in a step. OpenMP's library in PyTorch (libgomp) lets the one that
comes first look for the others, without a pause, for up to some fifteen milliseconds. On a quiet
machine nothing is faster: to be woken takes as long as the work between two meetings of a small
model's token, and where threads sleep at once, a model of 4 million parameters writes half as many
tokens. Beside other processes that very look takes the core that its fellow waits for, and a sixth
of the tokens is left (tests/benchmarks/busy.py).

The library reads its settings once. But where it has started more threads than there are cores, it
lets all of them look a hundred times only; so while others use the machine, a few threads more are
kept that have nothing to do. Results don't depend on it. Another OpenMP than libgomp goes on as it
does.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from llmctl.training.machine import Watch, allowed_cores, is_busy

LOOK_SECONDS = 2.0
"""Between two looks at what others use."""
UNTIL_LOADED = 0.2
"""Between two looks whether PyTorch is loaded."""
GRAIN = 1 << 16
"""Elements by which PyTorch gives a thread work of its own, twice over."""


class WaitingThread(threading.Thread):
    """Looks at the machine now and then, and has threads wait accordingly, until the process ends.

    To be started before PyTorch is loaded, or later; it loads nothing itself.
    """

    def __init__(self, watch: Watch, processes: int = 1) -> None:
        """watch: since this command began. processes: of this machine that compute together."""
        super().__init__(name="llmctl-waiting", daemon=True)
        self._watch, self._processes = watch, processes
        self._extra: list[ExtraThread] = []

    def run(self) -> None:
        """Look, for ever."""
        while not _is_loaded("torch"):
            time.sleep(UNTIL_LOADED)
        while True:
            self.heed(self._watch.others(self._processes))
            if (watch := Watch.begin()) is None:
                return
            self._watch = watch
            time.sleep(LOOK_SECONDS)

    def heed(self, others: float) -> None:
        """Have threads wait as it goes with so many cores in others' use."""
        if is_busy(others) and not self._extra:
            import torch

            self._extra = [ExtraThread() for _ in range(extra_threads(torch.get_num_threads()))]
            for thread in self._extra:
                with contextlib.suppress(RuntimeError):  # the process is about to end
                    thread.start()
        elif not is_busy(others):
            for thread in self._extra:
                thread.leave()
            self._extra = []


def _is_loaded(name: str) -> bool:
    """Whether a module is loaded to its end, which may fail, or be interrupted."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def extra_threads(threads: int) -> int:
    """How many threads, each with a team of its own, make more than there are cores; none where one
    thread computes, which waits for nobody."""
    if threads < 2:
        return 0
    return max(1, -(-(len(allowed_cores()) + 1 - threads) // (threads - 1)))


class ExtraThread(threading.Thread):
    """Starts a team of the library's threads and keeps it, idle, until it may leave."""

    def __init__(self) -> None:
        super().__init__(name="llmctl-extra", daemon=True)
        self._left = threading.Event()

    def run(self) -> None:
        import torch

        torch.ones(GRAIN * torch.get_num_threads()).add_(1)
        self._left.wait()

    def leave(self) -> None:
        """End it; the library takes down its team."""
        self._left.set()
        if self.is_alive():
            self.join()

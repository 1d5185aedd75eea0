"""The machine as this process finds it: cores, memory, and what others use of them meanwhile.

Everything is read from what Linux tells in /proc and /sys, a container's limits included.
Elsewhere limits are the machine's own and nothing is known of others.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

BUSY_CORES = 0.5
"""Cores that others use, on average, from which on a machine is called busy. What a desktop or a
system does beside is less."""
THREADS_OPEN = "LLMCTL_THREADS_OPEN"
"""In the environment where the user has left to us how many threads compute."""
SHORTEST_WATCH = 0.15
"""Seconds by which what others use can be told: processor time is counted in hundredths."""


def cores() -> int:
    """Cores that this process may use: a container or a batch job seldom has all."""
    return max(1, math.ceil(min(len(allowed_cores()), _quota())))


def allowed_cores() -> set[int]:
    """The cores that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota_cores() -> int | None:
    """Cores that a control group grants, where that is fewer than the process may run on.

    Libraries don't look at it, and threads beyond it wait for most of each tenth of a second.
    """
    granted = cores()
    return granted if granted < len(allowed_cores()) else None


def _quota() -> float:
    """Processor seconds a second that the control groups around this process grant."""
    granted = math.inf
    for folder in _groups("cpu"):
        words = _words(folder / "cpu.max")
        if not words:  # version 1
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            granted = min(granted, int(words[0]) / int(words[1]))
    return granted


def free_memory() -> int:
    """Bytes that the machine, or the containers around this process, have left; sys.maxsize where
    that can't be told."""
    free = sys.maxsize
    for line in read_lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, used in _memory_limits():
        free = min(free, max(0, limit - used))
    return free


def memory_limit() -> int | None:
    """Bytes that a container allows in all, where it sets a limit below the machine's memory."""
    limits = [limit for limit, _ in _memory_limits()]
    total = total_memory()
    return min(limits) if limits and min(limits) < (total or sys.maxsize) else None


def total_memory() -> int | None:
    """Bytes of memory of the machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _memory_limits() -> Iterator[tuple[int, int]]:
    """The limit of each control group around this process that has one, and what is used of it.

    Pages of files that were read and aren't in use count as free: the system takes them back.
    """
    for folder in _groups("memory"):
        for most, taken, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _words(folder / most), _words(folder / taken)
            if limit and used and limit[0].isdigit() and used[0].isdigit():
                cached = sum(
                    int(line.split()[1])
                    for line in read_lines(folder / "memory.stat")
                    if line.startswith(f"{inactive} ")
                )
                yield int(limit[0]), max(0, int(used[0]) - cached)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups around this process for a controller, the innermost first."""
    for line in read_lines(PROC / "self" / "cgroup"):
        _, controllers, inside = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has no name there, and all controllers in one tree.
        root = CONTROL_GROUPS / controller if controllers else CONTROL_GROUPS
        group = root / inside.strip().strip("/")
        while True:
            # From within a container the path may be the host's, which isn't there.
            if group.is_dir():
                yield group
            if group == root:
                break
            group = group.parent


def read_lines(path: Path) -> list[str]:
    """Lines of a file of the system; none where it isn't there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(read_lines(path)).split()


@dataclass(frozen=True)
class Watch:
    """A moment's processor times; from it on, what others use can be told."""

    at: float
    used: float
    """Seconds that the cores of this process were used, by anybody, since the machine started."""
    own: float
    """Seconds of that which were this process's and its finished children's."""

    @classmethod
    def begin(cls) -> Watch | None:
        """Now; None where the system doesn't tell."""
        used = _used_seconds()
        if used is None:
            return None
        return cls(time.monotonic(), used, _own_seconds())

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.at

    @property
    def own_cores(self) -> float:
        """Cores that this process used since, on average."""
        return (_own_seconds() - self.own) / max(self.seconds, 1e-9)

    def others(self, processes: int = 1) -> float:
        """Cores, of those that this process may use, that others used since, on average.

        processes: that do on this machine what this one does.
        """
        used = _used_seconds()
        if used is None:
            return 0.0
        seconds = max(self.seconds, 1e-9)
        own = processes * (_own_seconds() - self.own)
        return min(float(len(allowed_cores())), max(0.0, (used - self.used - own) / seconds))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _used_seconds() -> float | None:
    """Processor seconds of the cores that this process may use; what a host machine takes from a
    virtual one (steal) is others' use as well."""
    allowed, ticks = allowed_cores(), 0
    for line in read_lines(PROC / "stat"):
        name, *counts = line.split() or [""]
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(
                int, (counts + ["0"] * 8)[:8]
            )
            ticks += user + nice + system + irq + softirq + steal
    if not ticks:
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def others_now(seconds: float = SHORTEST_WATCH) -> float:
    """Cores that others use, on average over so many seconds of waiting."""
    watch = Watch.begin()
    if watch is None:
        return 0.0
    time.sleep(seconds)
    return watch.others()


def is_busy(others: float) -> bool:
    """Whether so many cores in others' use are worth a word."""
    return others >= BUSY_CORES

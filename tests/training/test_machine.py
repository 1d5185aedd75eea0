"""Cores, memory and others' use, as the files of Linux tell them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.training import machine

STAT = "cpu  0 0 0 0 0 0 0 0 0 0\n"
MEMINFO = "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: 4000000 kB\n"


class Files:
    """A system of files in place of /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        monkeypatch.setattr(machine, "PROC", self.proc)
        monkeypatch.setattr(machine, "CONTROL_GROUPS", self.groups)
        monkeypatch.setattr(machine, "allowed_cores", lambda: {0, 1, 2, 3})
        self.write(self.proc / "meminfo", MEMINFO)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, inside: str, **files: str) -> None:
        for name, text in files.items():
            self.write(self.groups / inside / name.replace("__", "."), text)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def test_a_machine_without_limits(files: Files):
    assert machine.cores() == 4
    assert machine.quota_cores() is None
    assert machine.free_memory() == 4_096_000_000
    assert machine.memory_limit() is None


def test_a_limit_of_any_group_around_counts(files: Files):
    """Version 2: one tree; the path of /proc/self/cgroup leads to the innermost group."""
    files.write(files.proc / "self" / "cgroup", "0::/outer/inner\n")
    files.group("outer", memory__max="1000000000\n", memory__current="900000000\n",
                memory__stat="anon 5\ninactive_file 300000000\nactive_file 7\n",
                cpu__max="150000 100000\n")  # fmt: skip
    files.group("outer/inner", memory__max="max\n", memory__current="800000000\n",
                cpu__max="max 100000\n")  # fmt: skip
    # What was read of files and isn't in use is given back.
    assert machine.free_memory() == 1_000_000_000 - 900_000_000 + 300_000_000
    assert machine.memory_limit() == 1_000_000_000
    assert machine.cores() == machine.quota_cores() == 2  # one and a half, rounded up


def test_within_a_container_the_path_may_be_the_hosts(files: Files):
    files.write(files.proc / "self" / "cgroup", "0::/docker/0123\n")
    files.group("", memory__max="5000000\n", memory__current="6000000\n", cpu__max="50000 100000")
    assert machine.free_memory() == 0
    assert machine.cores() == 1


def test_control_groups_of_version_1(files: Files):
    files.write(files.proc / "self" / "cgroup", "8:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    files.group("memory/job", memory__limit_in_bytes="2000000000\n",
                memory__usage_in_bytes="500000000\n",
                memory__stat="total_inactive_file 100000000\n")  # fmt: skip
    files.group("cpu/job", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert machine.free_memory() == 2_000_000_000 - 500_000_000 + 100_000_000
    assert machine.cores() == 4
    files.group("cpu/job", cpu__cfs_quota_us="300000\n")
    assert machine.cores() == machine.quota_cores() == 3


def test_what_others_use(files: Files, monkeypatch: pytest.MonkeyPatch):
    """In ten seconds four cores were used for 25 seconds, one of another's fifth not counted; this
    process and its children had nine."""
    hundredths = os.sysconf("SC_CLK_TCK") // 100

    def stat(busy: int, stolen: int) -> None:
        lines = [
            f"cpu{n} {busy * hundredths} 0 0 900 9 0 0 {stolen * hundredths} 0 0" for n in range(4)
        ]
        files.write(files.proc / "stat", "\n".join([STAT, *lines, "cpu4 99999 0 0 0 0 0 0 0"]))

    now, own = [100.0], [3.0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(machine, "_own_seconds", lambda: own[0])
    stat(1000, 50)
    watch = machine.Watch.begin()
    assert watch is not None
    now[0], own[0] = 110.0, 12.0
    stat(1600, 75)
    assert watch.others() == pytest.approx((4 * 6.25 - 9) / 10)
    assert watch.own_cores == pytest.approx(0.9)
    # Two processes do what this one does.
    assert watch.others(processes=2) == pytest.approx((4 * 6.25 - 18) / 10)
    assert watch.others(processes=4) == 0.0


def test_nothing_is_known_of_others_where_the_system_does_not_tell(files: Files):
    assert machine.Watch.begin() is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_process_beside_is_seen():
    """The real files: a loop takes most of a core, and this process's own work isn't others'."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        watch = machine.Watch.begin()
        assert watch is not None
        while watch.seconds < machine.SHORTEST_WATCH:
            pass
        assert machine.is_busy(watch.others())
        assert 0.1 < watch.own_cores < 1.2
        assert machine.is_busy(machine.others_now())
    finally:
        loop.kill()
        loop.wait()

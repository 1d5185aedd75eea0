"""Doctor: what is found, what is called broken, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llmctl.cli import doctor as command
from llmctl.reporting.doctor import render_doctor
from llmctl.stages import doctor
from llmctl.stages.doctor import examine
from llmctl.training import machine


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that take time to measure are given; the machine is a good one."""
    monkeypatch.setattr(
        doctor, "matrix_rate", lambda device, dtype, **sizes: 2e11 if "bf" in str(dtype) else 1e11
    )
    monkeypatch.setattr(machine, "others_now", lambda: 0.0)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "free_memory", lambda: 8_000_000_000)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor, "WRITTEN_BYTES", 1 << 20)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    disk(monkeypatch, 50e9)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


def disk(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    usage = SimpleNamespace(total=int(100e9), free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def text(found: dict[str, Any]) -> str:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render_doctor(found))
    return console.export_text()


def test_a_good_machine(tmp_path: Path):
    found = examine(tmp_path)
    assert found["broken"] == []
    assert found["matrix_rates"] == {"cpu": {"fp32": 1e11, "bf16": 2e11}, "precision": "bf16"}
    assert found["versions"]["needed"]["torch"]
    assert found["workspace"]["locks"] is True
    assert found["workspace"]["flushes_per_second"] > 1
    assert found["workspace"]["written_bytes_per_second"] > 1e5
    assert list(tmp_path.iterdir()) == []
    page = text(found)
    for part in ("200 GFLOP/s", "locks work", "Everything that llmctl needs is there."):
        assert part in page
    json.dumps(found)


def test_a_workspace_that_is_not_there_yet_is_not_made(tmp_path: Path):
    found = examine(tmp_path / "a" / "b")
    assert found["workspace"]["exists"] is False
    assert found["workspace"]["locks"] is True
    assert list(tmp_path.iterdir()) == []


def test_locks_that_do_not_lock_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    @contextlib.contextmanager
    def ignored(path: Path, busy: str) -> Iterator[None]:
        path.touch()
        yield

    monkeypatch.setattr(doctor, "file_lock", ignored)
    found = examine(tmp_path)
    assert found["workspace"]["locks"] is False
    (sentence,) = found["broken"]
    assert "advisory locks don't work" in sentence


def test_a_file_in_the_workspaces_place_is_broken(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (sentence,) = examine(tmp_path / "file")["broken"]
    assert "can't be written" in sentence


@pytest.mark.parametrize(("free", "broken", "warned"), [(1e8, 1, 0), (1e9, 0, 1), (9e9, 0, 0)])
def test_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, broken: int, warned: int
):
    disk(monkeypatch, free)
    found = examine(tmp_path)
    assert len([s for s in found["broken"] if "the disk of" in s]) == broken
    assert len([s for s in found["warnings"] if "the disk of" in s]) == warned


@pytest.mark.parametrize(("free", "broken", "warned"), [(3e8, 1, 0), (1e9, 0, 1), (9e9, 0, 0)])
def test_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, broken: int, warned: int
):
    monkeypatch.setattr(machine, "free_memory", lambda: int(free))
    monkeypatch.setattr(machine, "memory_limit", lambda: int(1e10))
    found = examine(tmp_path)
    assert len([s for s in found["broken"] if "this container has" in s]) == broken
    assert len([s for s in found["warnings"] if "this container has" in s]) == warned


def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package"))
    found = examine(tmp_path)
    assert found["broken"] == [
        "the package no-such-package is not installed: pip install no-such-package"
    ]
    assert "no-such-package absent" in text(found).replace("\n", " ")


@pytest.mark.parametrize(
    ("threads", "cores", "environment", "others", "says"),
    [
        (8, 2, {}, 0.0, "8 threads compute on 2 cores"),
        (1, 8, {"OMP_NUM_THREADS": "1"}, 0.0, "leaves 7 of 8 cores"),
        (2, 2, {"OMP_WAIT_POLICY": "ACTIVE"}, 1.5, "OMP_WAIT_POLICY=active"),
        (2, 2, {}, 1.5, "other processes use about 1.5 of 2 cores"),
    ],
)
def test_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    cores: int,
    environment: dict[str, str],
    others: float,
    says: str,
):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "others_now", lambda: others)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = examine(tmp_path)
    assert found["broken"] == []
    assert any(says in sentence for sentence in found["warnings"])


def test_the_packages_that_are_needed_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {line.partition(">")[0] for line in project["dependencies"]} == set(doctor.NEEDED)


def test_what_is_broken_ends_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command.command(workspace=tmp_path, json=True)
    assert json.loads(capsys.readouterr().out)["broken"] == []
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    with pytest.raises(SystemExit) as end:
        command.command(workspace=tmp_path, json=False)
    assert end.value.code == 3
    assert "broken: this machine has 1.0 kB of memory left" in capsys.readouterr().out

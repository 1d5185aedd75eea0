"""How many threads compute and how they wait, settled before the libraries load."""

from __future__ import annotations

import os

import pytest

from llmctl.cli import threads
from llmctl.cli.console import TerminalReporter
from llmctl.cli.guard import guarded
from llmctl.cli.threads import COUNTING, WAITING, note_others, settle_threads
from llmctl.errors import UsageError
from llmctl.training import machine
from llmctl.training.machine import THREADS_OPEN

NAMES = (*WAITING, *COUNTING, THREADS_OPEN)


def settled() -> dict[str, str]:
    """What the environment says of threads."""
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.fixture(autouse=True)
def nothing_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of eight cores."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, whatever happens to it
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "_watch", None)
    monkeypatch.setattr(threads, "_waits", None)
    monkeypatch.setattr("llmctl.training.waiting.WaitingThread.start", lambda thread: None)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "quota_cores", lambda: None)


class Beside:
    """What a watch of the machine says: so many cores in others' use."""

    def __init__(self, others: float, seconds: float = 1.0) -> None:
        self.cores, self.seconds = others, seconds

    def others(self, processes: int = 1) -> float:
        return self.cores


class Started:
    """In place of the thread that looks at the machine."""

    def __init__(self, watch: object, processes: int) -> None:
        started.append(processes)

    def start(self) -> None:
        """Nothing."""


started: list[int] = []


@pytest.mark.parametrize("name", [None, *WAITING])
def test_how_the_user_has_threads_wait_stays(name: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmctl.training.waiting.WaitingThread", Started)
    monkeypatch.setattr(machine.Watch, "begin", lambda: Beside(1.0))
    started.clear()
    if name:
        monkeypatch.setenv(name, "7")
    settle_threads(None, 2)
    settle_threads(None, 2)
    assert started == ([] if name else [2])  # once in a process


@pytest.mark.parametrize(("others", "said"), [(0.2, 0), (1.44, 1)])
def test_a_long_command_says_that_others_use_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others: float, said: int
):
    monkeypatch.setattr(threads, "_watch", Beside(others))
    note_others(TerminalReporter())
    err = capsys.readouterr().err
    assert err.count("other processes use about 1.4 of 8 cores") == said
    assert err.count("\n") == said


def test_nothing_is_said_before_it_can_be_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for watch in (None, Beside(8.0, machine.SHORTEST_WATCH / 2)):
        monkeypatch.setattr(threads, "_watch", watch)
        note_others(TerminalReporter())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", COUNTING)
def test_how_many_the_user_has_stays(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "3")
    settle_threads(None, 4)
    assert settled() == {name: "3"}


def test_processes_divide_the_cores():
    settle_threads(None, 3)
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_threads_beyond_a_containers_quota_are_not_started(monkeypatch: pytest.MonkeyPatch):
    """PyTorch alone starts one a core of the host, and they wait for most of the time."""
    monkeypatch.setattr(machine, "quota_cores", lambda: 2)
    settle_threads(None, None)
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_the_option_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv(THREADS_OPEN, "1")
    told: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", told.append)
    settle_threads(4, 2)
    assert settled() == dict.fromkeys(COUNTING, "4")
    assert told == [4]  # PyTorch is loaded here and has read its settings


@pytest.mark.parametrize(
    ("threads", "nproc", "says"),
    [
        (9, None, "give at most 8"),
        (5, 2, "for each of 2 processes is more than the 8 cores .* give at most 4"),
    ],
)
def test_more_threads_than_cores_are_refused(threads: int, nproc: int | None, says: str):
    with pytest.raises(UsageError, match=says):
        settle_threads(threads, nproc)
    assert "OMP_NUM_THREADS" not in os.environ


def test_more_processes_than_cores_have_a_thread_each():
    settle_threads(1, 20)
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_every_command_that_computes_has_the_option():
    import typer

    from llmctl.cli.app import app

    group = typer.main.get_command(app)
    with_it = {
        name
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        if any("--threads" in parameter.opts for parameter in command.params)
    }
    assert with_it == {
        "pretrain", "finetune", "sweep", "plan", "predict", "generate", "embed", "search", "eval",
        "chat", "serve", "explain", "compress",
    }  # fmt: skip


def test_a_command_settles_them_before_it_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)

    @guarded
    def command(*, threads: int | None) -> str:
        return os.environ["OMP_NUM_THREADS"]

    assert command(threads=2) == "2"

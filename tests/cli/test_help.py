"""Every command explains itself, at once and without torch."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import pytest

from llmctl import __version__
from llmctl.cli.app import COMMANDS, app


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_an_example_and_imports_nothing_heavy(command: str | None):
    words = [command, "--help"] if command else ["--help"]
    script = (
        "import sys; from llmctl.cli.app import app\n"
        f"try: app({words!r}, prog_name='llmctl')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'tokenizers', 'llmctl.config'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Example: llmctl" in result.stdout


def test_every_option_has_help():
    import typer

    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_help_answers_at_once():
    """0.3 s where a bare interpreter takes 0.02; slower machines get the same ratio."""

    def seconds(*words: str) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            times.append(time.perf_counter() - begun)
        return median(times)

    bare = seconds("-c", "pass")
    assert seconds("-m", "llmctl", "--help") < max(0.3, 15 * bare)


def test_version():
    result = subprocess.run(
        [sys.executable, "-m", "llmctl", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"llmctl {__version__}"


def test_shell_completion_is_offered():
    result = subprocess.run(
        [sys.executable, "-m", "llmctl", "--show-completion", "bash"],
        capture_output=True,
        text=True,
    )
    assert "complete" in result.stdout + result.stderr

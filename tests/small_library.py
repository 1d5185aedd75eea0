"""A tenth of the standard library, from which recipes' tests take their texts in a tenth of the
time. Here a process takes it for the whole one."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

PARTS = ("asyncio", "email", "http", "json", "logging", "unittest")
"""With docstrings enough for the labelled task, five of whose classes they are."""
VARIABLE = "LLMCTL_TESTS_LIBRARY"


def write(folder: Path) -> dict[str, str]:
    """Copy it into a folder; the environment in which Python takes it for the whole."""
    whole = Path(sysconfig.get_path("stdlib"))
    for part in PARTS:
        shutil.copytree(whole / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    start = folder / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text("from tests.small_library import use\n\nuse()\n")
    paths = [start, Path(__file__).parents[1]]
    return {VARIABLE: str(folder), "PYTHONPATH": os.pathsep.join(map(str, paths))}


def use() -> None:
    """Take it for the whole, in a process with that environment."""
    path_of = sysconfig.get_path

    def get_path(name: str, *given: object, **options: object) -> str:
        return os.environ[VARIABLE] if name == "stdlib" else path_of(name, *given, **options)

    sysconfig.get_path = get_path

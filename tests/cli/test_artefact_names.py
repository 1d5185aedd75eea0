"""The shell completes what the workspace holds, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.cli import artefact_names
from llmctl.workspace import manifests


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name in ("runs/alpha", "runs/beta", "runs/情感", "shards/alphabet", "tokenizers/words"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "runs" / "alms").mkdir()  # no artefact: it has no manifest
    return tmp_path


def completed(workspace: Path, *words: str) -> list[str]:
    script = "from llmctl.cli.app import app; app(prog_name='llmctl')"
    environment = {
        **os.environ,
        "LLMCTL_WORKSPACE": str(workspace),
        "_LLMCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    return result.stdout.split()


def test_the_shell_is_offered_what_an_option_takes(workspace: Path):
    assert completed(workspace, "llmctl", "predict", "--from", "al") == ["alpha"]
    assert completed(workspace, "llmctl", "status", "") == [
        "alpha", "alphabet", "beta", "words", "情感",
    ]  # fmt: skip


def test_of_the_workspace_that_the_line_names(workspace: Path, tmp_path: Path):
    words = ("llmctl", "pretrain", "-w", str(workspace), "--shards", "")
    assert completed(tmp_path / "elsewhere", *words) == ["alphabet"]
    assert completed(tmp_path / "elsewhere", "llmctl", "predict", "--from", "") == []


def test_its_folders_are_the_workspace_s():
    assert artefact_names.FOLDERS == manifests.FOLDERS
    assert artefact_names.MANIFEST == manifests.MANIFEST

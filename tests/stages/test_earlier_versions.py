"""A workspace that llmctl 0.1.0 wrote (format 1, commit 0a1c342) is found up to date and gone on
with.

``workspace_0.1.0.tar.zst`` holds corpus.txt and labelled.csv, and beside them the workspace that
the commands below made of them at that commit, in /tmp/letters; ``stopped`` was interrupted at step
5 of 8. Of ``gpt`` the checkpoint is there, of other finished runs none is.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.manifests import FORMAT_VERSION

TINY = (
    "--preset nano --set model.num_layers=1 --set model.hidden_size=16 --set model.num_heads=2 "
    "--set data.sequence_length=32 --set training.batch_size=4 --set data.eval_batches=1 "
    "--set training.precision=fp32 --set model.max_positions=64 --set training.max_steps=8"
)
FINISHED = [
    "tokenize corpus.txt --document line --vocab-size 90 --validation 0.1 --name bert-text",
    "tokenize corpus.txt --document line --vocab-size 300 --tokenizer bpe --validation 0.1",
    f"pretrain {TINY} --shards bert-text --name bert",
    f"pretrain --arch gpt {TINY} --shards gpt-text --set training.schedule=constant "
    "--set training.lr=0.003 --name gpt",
    "pretrain --arch ngram --shards gpt-text --order 2",
    "finetune --from bert --data labelled.csv --set training.max_steps=6 --set training.batch_size"
    "=4 --set training.precision=fp32 --name subjects",
    "eval --from subjects --data labelled.csv",
]
STOPPED = f"pretrain --arch gpt {TINY} --shards gpt-text --name stopped"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("letters")
    packed = Path(__file__).with_name("workspace_0.1.0.tar.zst").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(zstandard.decompress(packed))) as tar:
        tar.extractall(root, filter="data")
    return root


def run(root: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Result:
    monkeypatch.chdir(root)
    monkeypatch.setenv("LLMCTL_WORKSPACE", "workspace")
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("command", FINISHED)
def test_what_was_made_is_up_to_date(old: Path, monkeypatch: pytest.MonkeyPatch, command: str):
    before = {path: path.read_bytes() for path in old.rglob("manifest.json")}
    result = run(old, command.split(), monkeypatch)
    assert "up to date" in result.stderr
    assert {path: path.read_bytes() for path in old.rglob("manifest.json")} == before


def test_other_options_are_still_others(old: Path, monkeypatch: pytest.MonkeyPatch):
    other = [*FINISHED[2].split(), "--set", "training.batch_size=5"]
    result = run(old, other, monkeypatch, code=2)
    assert "training.batch_size 4, now 5" in result.stderr
    assert "learning_rate" not in result.stderr


def test_what_was_stopped_is_gone_on_with(old: Path, monkeypatch: pytest.MonkeyPatch):
    result = run(old, STOPPED.split(), monkeypatch)
    assert "going on with stopped from step 5" in result.stderr
    manifest = Workspace(old / "workspace").get("run", "stopped").manifest
    assert manifest.summary["steps"] == 8
    assert (
        json.loads((old / "workspace/runs/stopped/manifest.json").read_bytes())["format_version"]
        == FORMAT_VERSION
    )
    assert "training.max_steps" in (manifest.identity or {})
    assert "up to date" in run(old, STOPPED.split(), monkeypatch).stderr


def test_its_models_are_used(old: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["generate", "--from", "gpt", "--prompt", "the ship", "--max-new-tokens", "4"]
    assert run(old, words, monkeypatch).stdout.strip()
    words = ["eval", "--from", "gpt", "--name", "loss", "--json"]
    assert json.loads(run(old, words, monkeypatch).stdout)
    words = ["predict", "--from", "subjects", "waves rise"]
    assert "sea" in run(old, words, monkeypatch).stdout
    assert "gpt-text" in run(old, ["status", "gpt"], monkeypatch).stdout

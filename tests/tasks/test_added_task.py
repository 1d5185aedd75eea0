"""A task is one entry, and so is its head: it is finetuned, kept, opened, asked and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.formats import description
from llmctl.formats.huggingface import writing
from llmctl.formats.open import open_folder
from llmctl.models import heads
from llmctl.models.bert import SPEC as BERT
from llmctl.models.spec import HUGGING_FACE
from llmctl.tasks import TASKS
from tests.tasks.counting_marks import NAMES, CountEntry, Counter, CounterHead, marks_of

TEXTS = [
    f"{'well, ' * (n % 7)}said the {w}{'!' * (n % 3)}" for n, w in enumerate(["cow", "sea"] * 30)
]


def run_cli(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def _entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "count", CountEntry())
    monkeypatch.setitem(heads.HEADS, "count", CounterHead())
    monkeypatch.setitem(BERT.weights[HUGGING_FACE].heads, "count", NAMES)
    # Read off the table at import.
    monkeypatch.setitem(description.MODEL_KINDS, "count", CounterHead.described)
    monkeypatch.setitem(writing.KINDS_OF_MODELS, Counter, "count")


@pytest.mark.usefixtures("_entered")
def test_a_task_is_one_entry_and_a_head_another(own_workspace: Path, tmp_path: Path):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS) + "\n")
    where = ["-w", str(own_workspace)]
    words = ["--from", "tiny", "--task", "count", "--data", str(data), "--name", "marks"]
    run_cli("finetune", *words, "--set", "training.epochs=20", *where)
    folder = open_folder(own_workspace / "runs/marks/model")
    assert folder.kind == "count"
    assert folder.fields["architectures"] == ["BertForCounting"]
    assert isinstance(folder.network(), Counter)
    said = json.loads(run_cli("predict", "--from", "marks", "--json", "well, well!", *where).stdout)
    assert said["marks"] > 0
    shown = run_cli("eval", "--from", "marks", "--data", str(data), "--json", *where).stdout
    report = json.loads(shown)["results"]
    assert report["model"]["error"] < report["mean"]["error"]
    assert marks_of("well, well!") == 2
    again = run_cli("eval", "--from", "marks", "--data", str(data), *where)
    assert "up to date" in again.stderr
    assert "marks" in again.stdout

"""What a pretraining has learned, said where it ends and to whoever goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmctl.stages.train import finetune, pretrain
from llmctl.tasks import learned
from llmctl.tasks.finetuning import resolve
from llmctl.tasks.learned import LEARNED, describe_learning, said_of, weak_start
from llmctl.tasks.pretraining import open_pretraining
from llmctl.tasks.pretraining import resolve as resolve_pretrain
from llmctl.workspace.artefacts import Workspace
from tests.language_models import DATA, MODEL, Notes, measure


@pytest.fixture(scope="module")
def barely(models: Workspace) -> str:
    """A GPT after one step of nothing to speak of."""
    training = {"max_steps": 1, "batch_size": 2, "precision": "fp32", "learning_rate": 1e-9,
                "muon_learning_rate": 1e-9}  # fmt: skip
    config = resolve_pretrain("gpt", "nano", {"model": MODEL, "data": DATA, "training": training})
    notes = Notes()
    run, _ = pretrain(models, config, shards_name="stories", name="barely", reporter=notes)
    assert said_of(run.manifest) in notes.notes
    return "barely"


def test_a_body_that_learned_nothing_says_so_ever_after(
    models: Workspace, barely: str, labelled_file: Path
):
    run = models.get("run", barely)
    found = run.manifest.summary[LEARNED]
    assert found["from"] == "nothing"
    assert found["unigram_loss"] > found["bigram_loss"] > 0
    said = "barely has not learned from context yet: for the next token a loss of"
    assert str(said_of(run.manifest)).startswith(said)
    assert "ten times as long would help" in found["says"]
    notes = Notes()
    training = {"max_steps": 1, "precision": "fp32", "batch_size": 4}
    config = resolve("classify", {"training": training})
    finetune(models, barely, labelled_file, config, name="from-barely", reporter=notes)
    assert any(note.startswith(said) for note in notes.notes)
    report = measure(models, "from-barely", labelled_file, baselines=False)
    assert report["learned"].startswith(said)
    # Random weights have nothing of it.
    assert weak_start(models, models.get("run", "from-barely")) is not None
    assert weak_start(models, None) is None


@pytest.mark.parametrize(
    ("loss", "how", "says"),
    [
        (9.0, "nothing", "has not learned from context yet"),
        ("unigram", "nothing", "has not learned from context yet"),
        ("between", "little", "has learned little from context yet"),
        (0.1, "context", "has learned from context"),
    ],
)
@pytest.mark.parametrize("arch", ["gpt", "bert"])
def test_it_is_judged_by_what_frequencies_give(
    models: Workspace,
    loss: float | str,
    how: str,
    says: str,
    arch: str,
):
    config = resolve_pretrain("gpt", "nano", {"model": MODEL, "data": DATA})
    opened = open_pretraining(models.get("shards", "stories"), config)
    what = "lm" if arch == "gpt" else "mlm"
    frequencies = describe_learning(
        opened, {"validation": {f"{what}_loss": 1.0, f"{what}_accuracy": 0.5}}
    )
    found = frequencies[LEARNED]
    assert found["bigram_loss"] < found["unigram_loss"] - learned.MIN_NATS_GAINED
    losses = {"unigram": found["unigram_loss"],
              "between": (found["unigram_loss"] + found["bigram_loss"]) / 2}  # fmt: skip
    value = losses[loss] if isinstance(loss, str) else loss
    values: dict[str, Any] = {f"{what}_loss": value, f"{what}_accuracy": 0.1}
    if arch == "bert":
        values["nsp_accuracy"] = 0.52
    result = describe_learning(opened, {"validation": values})[LEARNED]
    assert (result["from"], result["says"].startswith(says)) == (how, True)
    assert ("by chance" in result["says"]) == (arch == "bert")
    assert ("a hidden token" in result["says"]) == (arch == "bert")


def test_no_look_no_word(models: Workspace):
    config = resolve_pretrain("gpt", "nano", {"model": MODEL, "data": DATA})
    opened = open_pretraining(models.get("shards", "stories"), config)
    assert describe_learning(opened, {}) == {}


def test_a_text_that_was_pretrained_on_is_told(
    models: Workspace, corpus_file: Path, tmp_path: Path
):
    report = measure(models, "gpt", corpus_file, max_tokens=50, baselines=False)
    assert report["training_file"] is True
    assert any("is the very text that gpt was pretrained on" in note for note in report["notes"])
    other = tmp_path / "other.txt"
    other.write_text(corpus_file.read_text() + "more\n")
    report = measure(models, "gpt", other, max_tokens=50, baselines=False)
    assert report["training_file"] is False
    assert not any("pretrained on" in note for note in report["notes"])

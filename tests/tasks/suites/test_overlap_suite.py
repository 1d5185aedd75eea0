"""``llmctl eval --suite overlap``: a test that was read in training, and one that wasn't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.errors import InputError, UsageError
from llmctl.workspace.artefacts import Workspace
from tests.language_models import measure
from tests.run import llmctl, one_sentence


def test_rows_of_the_corpus_are_named(own_workspace: Path, corpus_file: Path, tmp_path: Path):
    lines = corpus_file.read_text().splitlines()
    seen = [line for line in lines if len(line.split()) > 14][:6]
    path = tmp_path / "test.jsonl"
    rows = [{"text": text.upper(), "label": "x"} for text in seen]
    rows.append({"text": "nothing of this stands anywhere in the corpus that was read " * 2,
                 "label": "y"})  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = measure(Workspace(own_workspace), "tiny", path, suite="overlap")
    found = report["results"]["model"]
    # A tenth of the documents were held out of training.
    assert 4 <= found["near_duplicates"]["count"] <= 6
    assert found["ngrams"]["13"]["count"] >= 4
    named = {entry["row"] for entry in found["found"]}
    assert named <= {f"{path}:{number}" for number in range(1, 7)}
    assert all(e["similarity"] == 1.0 for e in found["found"] if e["document"] is not None)
    words = ("eval", "--from", "tiny", "--suite", "overlap", "--data", path)
    shown = llmctl(own_workspace, *words).stdout
    assert "test.jsonl:1" in shown
    assert "13 words in a row" in shown


def test_contamination_is_said_beside_a_figure(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    place = Workspace(own_workspace)
    report = measure(place, "subjects", labelled_file, contamination=True)
    assert any("120 are near-duplicates of a training document" in n for n in report["notes"])
    assert report["contamination"]["trained_on"] == ["shards/stories", "subjects.csv"]
    done = llmctl(own_workspace, "eval", "--from", "subjects", "--data", labelled_file,
                  "--contamination", "--no-baselines")  # fmt: skip
    assert "of the 120 rows of this test" in done.stdout
    card = (own_workspace / "runs/subjects/model/README.md").read_text()
    assert "of the 120 rows of this test" in card


def test_what_tells_nothing_is_refused(models: Workspace, tiny_workspace: Path, tmp_path: Path):
    path = tmp_path / "test.txt"
    path.write_text("the ship sails over the wide sea\n")
    with pytest.raises(InputError, match="is a folder, which does not say what it was trained on"):
        measure(models, str(models.path("run", "gpt") / "model"), path, suite="overlap")
    with pytest.raises(UsageError, match="give the test, --data FILE"):
        measure(models, "gpt", suite="overlap")
    with pytest.raises(UsageError, match="leave out --compare llama"):
        measure(models, "gpt", path, suite="overlap", compare=["llama"])
    words = ("eval", "--from", "tiny", "--contamination")
    assert "give --data FILE" in one_sentence(llmctl(tiny_workspace, *words, code=2))

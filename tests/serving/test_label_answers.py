"""The server on several labels, and on labels in an order, beside what predict says."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.data.tables.labelled import Example
from llmctl.stages.predict import predict
from llmctl.stages.train import finetune
from llmctl.tasks.finetuning import resolve
from llmctl.workspace.artefacts import Workspace
from tests.serving.conftest import served


@pytest.mark.parametrize("kind", ["multi_label", "ordinal"])
def test_several_labels_and_ordered_ones_are_answered_as_predict_does(
    own_workspace: Path, tmp_path: Path, kind: str
):
    """A set of labels by its thresholds, and the median of the classes."""
    place, data = Workspace(own_workspace), tmp_path / "data.csv"
    marks = ["1", "1|2", "2|3", "3"] if kind == "multi_label" else ["1", "2", "3", "2"]
    words = ["ship", "hen", "tram", "plough"]
    rows = [f"the {words[n % 4]} number {n},{marks[n % 4]}\n" for n in range(40)]
    data.write_text("text,label\n" + "".join(rows))
    config = resolve("classify", {kind: True, "training": {"max_steps": 1}})
    finetune(place, "tiny", data, config, name="judge")
    texts = ["the ship", "a hen on a tram", "nothing"]
    answers = predict(place, "judge", [Example(text, None, None, "a test") for text in texts])
    with served(own_workspace, "judge") as client:
        found = client.post("/classify", json={"model": "judge", "input": texts}).json()["data"]
    name = "predicted_labels" if kind == "multi_label" else "label"
    theirs = "labels" if kind == "multi_label" else "label"
    assert [entry[name] for entry in found] == [a.record()[theirs] for a in answers]

"""Cards of models: what manifests and reports hold, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.reporting import markdown
from llmctl.tasks.model_card import CARD, NO_BIAS, UNMEASURED, card_of, write_card
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl


def measured(root: Path, data: Path) -> dict[str, Any]:
    """The report of the classifier."""
    told = llmctl(root, "eval", "--from", "subjects", "--data", data, "--json").stdout
    report: dict[str, Any] = json.loads(told)
    return report


def test_a_card_tells_what_was_measured_and_leaves_the_model_as_it_is(
    own_workspace: Path, labelled_file: Path
):
    place = Workspace(own_workspace)
    path = own_workspace / "runs" / "subjects" / "model" / CARD
    fresh, before = path.read_text(), place.get("run", "subjects").manifest
    assert UNMEASURED in fresh
    assert NO_BIAS in fresh
    report = json.loads(
        llmctl(
            own_workspace, "eval", "--from", "subjects", "--data", labelled_file, "--json"
        ).stdout
    )
    card = path.read_text()
    assert UNMEASURED not in card
    for row in report["results"].values():  # the baselines' too
        assert f"{row['accuracy']:.1%}" in card
    assert markdown.plain(report["notes"][0]) in card
    assert NO_BIAS in card
    # The pretraining that it comes from, the command that made it, and its data by digest.
    data = next(record for record in before.inputs if record.role == "data")
    for told in ("run/tiny", "llmctl tokenize", "--name subjects", data.digest[:12]):
        assert told in card
    assert str(labelled_file.parent) not in card.partition("## Commands")[0]
    now = place.get("run", "subjects")
    now.verify()
    assert now.manifest == before
    assert "up to date" in llmctl(
        own_workspace, "finetune", "--from", "tiny", "--data", labelled_file, "--name", "subjects",
        "--set", "training.epochs=3", "--set", "training.precision=fp32",
        "--keep-checkpoints", "last",
    ).stderr  # fmt: skip
    assert path.read_text() == card


def test_the_hub_reads_a_card(own_workspace: Path, labelled_file: Path):
    hub = pytest.importorskip("huggingface_hub")
    report = json.loads(
        llmctl(
            own_workspace, "eval", "--from", "subjects", "--data", labelled_file, "--json"
        ).stdout
    )
    card = hub.ModelCard.load(own_workspace / "runs" / "subjects" / "model" / CARD)
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == "transformers"
    told = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert told["accuracy"] == report["results"]["model"]["accuracy"]


def test_a_card_follows_its_run_and_its_reports(own_workspace: Path, labelled_file: Path):
    measured(own_workspace, labelled_file)
    place = Workspace(own_workspace)
    run = place.get("run", "subjects")
    assert UNMEASURED not in card_of(place, run)
    llmctl(own_workspace, "rename", "run/subjects", "topics")
    card = own_workspace / "runs" / "topics" / "model" / CARD
    assert "# topics\n" in card.read_text()
    assert UNMEASURED not in card.read_text()
    llmctl(own_workspace, "rm", "report/subjects-subjects")
    assert UNMEASURED in card.read_text()


def test_a_report_of_other_weights_is_not_told(own_workspace: Path, labelled_file: Path):
    measured(own_workspace, labelled_file)
    place = Workspace(own_workspace)
    run = place.get("run", "subjects")
    files = {
        name: record.model_copy(update={"sha256": "0" * 64})
        for name, record in run.manifest.files.items()
    }
    run.manifest = run.manifest.model_copy(update={"files": files})
    assert UNMEASURED in card_of(place, run)


def test_a_card_of_its_author_stays(own_workspace: Path):
    place = Workspace(own_workspace)
    folder = own_workspace / "runs" / "tiny" / "model"
    (folder / CARD).write_text("# Mine\n")
    llmctl(own_workspace, "import", folder, "--name", "theirs")
    run = place.get("run", "theirs")
    write_card(place, run)
    assert (run.folder / "model" / CARD).read_text() == "# Mine\n"


def test_an_imported_model_without_a_card_has_one(own_workspace: Path):
    folder = own_workspace / "runs" / "tiny" / "model"
    (folder / CARD).unlink()
    llmctl(own_workspace, "import", folder, "--name", "theirs")
    run = Workspace(own_workspace).get("run", "theirs")
    card = (run.folder / "model" / CARD).read_text()
    assert "The manifests name no data" in card
    assert UNMEASURED in card
    run.verify()


def test_code_and_tables_hold_any_text():
    assert markdown.code("a`b``c") == "``` a`b``c ```"
    assert markdown.table(["name", "value"], [["a|b", "*1*"]]).splitlines()[2] == (
        r"| a\|b | \*1\* |"
    )

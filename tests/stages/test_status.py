"""Status shows what is there, whatever state it is in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from llmctl.errors import InputError
from llmctl.reporting.status import render_detail, render_newest, render_overview
from llmctl.stages.status import detail, overview
from llmctl.workspace.artefacts import Workspace


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(tiny_workspace, tmp_path / "workspace")))


def shown(document: dict, width: int = 200) -> str:
    console = Console(width=width, markup=False)
    with console.capture() as capture:
        render = render_detail if "kind" in document else render_overview
        console.print(render(document))
    return capture.get()


def test_tokenizers_are_listed(workspace: Workspace):
    shutil.rmtree(workspace.root / "runs")
    shutil.rmtree(workspace.root / "shards")
    text = shown(overview(workspace))
    for part in ("tokenizers", "stories", "wordpiece", "120"):
        assert part in text


@pytest.mark.parametrize(
    "content", ['{"kind": "run", "na', "[]", '{"format_version": 99}', '{"format_version": 1}']
)
def test_a_damaged_manifest_is_a_row_among_the_others(workspace: Workspace, content: str):
    (workspace.root / "runs" / "subjects" / "manifest.json").write_text(content)
    document = overview(workspace)
    assert [run["name"] for run in document["runs"]] == ["tiny"]
    assert [(entry["kind"], entry["name"]) for entry in document["damaged"]] == [
        ("run", "subjects")
    ]
    assert "damaged: " in shown(document)
    with pytest.raises(InputError):
        detail(workspace, "subjects")


def test_a_damaged_log_is_a_row_too(workspace: Workspace):
    log = workspace.root / "runs" / "tiny" / "metrics.jsonl"
    log.write_text('{"ste\n' + log.read_text())
    document = overview(workspace)
    assert [run["name"] for run in document["runs"]] == ["subjects"]
    assert "metrics.jsonl:1" in document["damaged"][0]["message"]


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_progress_that_can_not_be_read_counts_as_none(workspace: Workspace, content: str):
    (workspace.root / "runs" / "tiny" / "progress.json").write_text(content)
    document = overview(workspace)
    assert next(run for run in document["runs"] if run["name"] == "tiny")["state"] == "finished"
    assert not document["damaged"]


def test_records_without_a_loss_or_with_none_that_is_finite(workspace: Workspace):
    log = workspace.root / "runs" / "tiny" / "metrics.jsonl"
    records = [
        {"kind": "train", "step": 1, "learning_rate": 0.1},
        {"kind": "train", "step": 2, "loss": None},
        {"kind": "validation", "step": 2, "mlm_loss": float("nan")},
        {"step": 3},
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    line = next(run for run in overview(workspace)["runs"] if run["name"] == "tiny")
    assert line["losses"] == []
    assert line["loss"] is line["validation_loss"] is line["tokens_per_second"] is None
    assert "mlm_loss –" in shown(detail(workspace, "tiny"))


def test_only_artefacts_can_be_missing_from_the_lineage(workspace: Workspace, corpus_file: Path):
    lineage = {entry["name"]: entry["present"] for entry in detail(workspace, "tiny")["lineage"]}
    assert lineage["shards/stories"] is True
    assert lineage[str(corpus_file)] is None
    assert "not here" not in shown(detail(workspace, "tiny"))
    shutil.rmtree(workspace.root / "shards" / "stories")
    document = detail(workspace, "tiny")
    assert document["lineage"][0]["present"] is False
    assert "(not here)" in shown(document)


def test_sizes_are_those_of_the_files(workspace: Workspace):
    document = overview(workspace)
    for kind in ("tokenizers", "shards", "runs"):
        for entry in document[kind]:
            folder = workspace.root / kind / entry["name"]
            assert entry["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    folder = workspace.root / "runs" / "tiny"
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "more").write_bytes(b"0" * 3_000_000)
    line = next(run for run in overview(workspace)["runs"] if run["name"] == "tiny")
    assert line["checkpoint_bytes"] >= 3_000_000
    assert "llmctl prune" in shown(overview(workspace))


@pytest.mark.parametrize("height", [10, 14, 24])
def test_a_watched_terminal_keeps_what_runs_and_what_is_newest(workspace: Workspace, height: int):
    document = overview(workspace)
    tiny = next(run for run in document["runs"] if run["name"] == "tiny")
    states = {0: "running", 39: "running"}
    document["runs"] = [
        {**tiny, "name": f"run-{number}", "state": states.get(number, "finished")}
        for number in range(40)
    ]
    console = Console(width=200, markup=False)
    with console.capture() as capture:
        console.print(render_newest(document, 200, height))
    text = capture.get()
    assert len(text.splitlines()) <= height
    names = [f"run-{number}" for number in (0, 38, 39)]
    assert all(f" {name} " in text for name in names), text
    assert "older runs" in text
    assert "older runs" not in str(shown(document))


@pytest.mark.parametrize(
    "fields",
    [{"updated": "now"}, {"share_done": 2.0}, {"step": "3"}, {"elapsed": -1}, {"message": []},
     {"seconds_per_step": None}],
)  # fmt: skip
def test_a_progress_of_something_else_is_told_and_breaks_nothing(
    workspace: Workspace, fields: dict[str, object]
):
    path = workspace.root / "runs" / "tiny" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    document = overview(workspace)
    assert {run["name"]: run["state"] for run in document["runs"]} == {
        "tiny": "finished",
        "subjects": "finished",
    }
    assert f"progress.json is damaged ({next(iter(fields))}" in shown(
        detail(workspace, "tiny"), 400
    )


def test_a_progress_that_is_a_pipe_is_not_waited_for(workspace: Workspace):
    path = workspace.root / "runs" / "tiny" / "progress.json"
    path.unlink()
    os.mkfifo(path)
    assert len(overview(workspace)["runs"]) == 2


def test_shards_that_do_not_say_what_they_are(workspace: Workspace):
    path = workspace.root / "shards" / "stories" / "manifest.json"
    value = json.loads(path.read_text())
    del value["summary"]["vocab_size"]
    path.write_text(json.dumps(value))
    document = overview(workspace)
    assert [entry["name"] for entry in document["damaged"]] == ["stories"]
    assert "no vocab_size" in shown(document)


def test_one_artefact_shows_first_what_was_asked_for(tiny_workspace: Path):
    """No line of raw JSON: a figure a line, and what differs from the defaults before the rest."""
    document = detail(Workspace(tiny_workspace), "tiny")
    assert document["given"]["training.max_steps"] == 30
    lines = [line.rstrip() for line in shown(document, 100).splitlines()]
    asked, rest = (
        next(n for n, line in enumerate(lines) if line.startswith(title))
        for title in ("asked for", "by default, or chosen")
    )
    steps = next(n for n, line in enumerate(lines) if line.split() == ["training.max_steps", "30"])
    beta = next(n for n, line in enumerate(lines) if line.split() == ["training.beta_1", "0.9"])
    assert asked < steps < rest < beta
    assert ["steps", "30"] in [line.split() for line in lines[:asked]]
    assert not any("{" in line for line in lines)

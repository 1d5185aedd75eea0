"""Runs: the metrics log, the progress, and the state that they and the lock tell."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.commands import resume_command
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.locks import writer_lock
from llmctl.workspace.manifests import InputRecord, new_manifest, write_manifest
from llmctl.workspace.metrics import read_metrics
from llmctl.workspace.runs import (
    STALLED_FLOOR_SECONDS,
    STALLED_STEPS,
    RunRecorder,
    has_diverged,
    read_progress,
    run_state,
)

RECORDS = st.lists(
    st.fixed_dictionaries({"step": st.integers(0, 10**6), "loss": st.floats(0, 100)}), max_size=8
)


def identity(*inputs: InputRecord) -> Identity:
    return Identity("pretrain", {}, {}, inputs)


def artefact(root: Path, *, finished: str | None = None) -> Artefact:
    made = new_manifest(
        "run", "tiny", stage="pretrain", config={}, identity=identity(), seed=0
    ).model_copy(update={"finished": finished})
    folder = Workspace(root).path("run", "tiny")
    folder.mkdir(parents=True)
    write_manifest(folder, made)
    return Artefact(folder, made)


@given(records=RECORDS, data=st.data())
def test_a_log_cut_anywhere_in_its_last_line_gives_the_records_before_it(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], data: st.DataObject
):
    folder = tmp_path_factory.mktemp("run")
    recorder = RunRecorder(folder)
    for record in records:
        recorder.record(record)
    path = folder / "metrics.jsonl"
    assert read_metrics(path) == records
    if records:
        content = path.read_bytes()
        last = len(json.dumps(records[-1])) + 1
        path.write_bytes(content[: len(content) - data.draw(st.integers(2, last))])
        assert read_metrics(path) == records[:-1]


def test_a_last_line_of_nothing_but_zeros_is_left_out(tmp_path: Path):
    """Some file systems lengthen a file before its bytes arrive."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(40))
    assert read_metrics(path) == [{"step": 1}]
    path.write_bytes(b'{"step": 1}\n' + bytes(40) + b"\n")
    assert read_metrics(path) == [{"step": 1}]


def test_a_bad_line_inside_is_an_input_error_that_names_it(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n{"step": 4}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        read_metrics(path)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n3\n{"step": 4}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:3"):
        read_metrics(path)


def test_a_run_without_a_log_has_no_records(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_progress(tmp_path) == {}


@given(records=RECORDS, step=st.integers(0, 10**6))
def test_a_start_drops_the_records_after_its_step(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], step: int
):
    folder = tmp_path_factory.mktemp("run")
    for record in records:
        RunRecorder(folder).record(record)
    recorder = RunRecorder(folder)
    recorder.start(step=step, total_steps=10)
    kept = [record for record in records if record["step"] <= step]
    assert read_metrics(folder / "metrics.jsonl") == kept
    recorder.record({"step": step + 1})
    assert read_metrics(folder / "metrics.jsonl") == [*kept, {"step": step + 1}]


def test_a_start_after_a_cut_line_begins_a_line_of_its_own(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    recorder = RunRecorder(tmp_path)
    recorder.start(step=1, total_steps=None)
    recorder.record({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_progress_keeps_what_is_not_updated(tmp_path: Path):
    recorder = RunRecorder(tmp_path)
    recorder.start(step=0, total_steps=10)
    before = time.time()
    recorder.update(step=3, loss=2.5)
    progress = read_progress(tmp_path)
    assert progress["state"] == "running"
    assert (progress["step"], progress["total_steps"], progress["loss"]) == (3, 10, 2.5)
    assert before <= progress["updated"] <= time.time()
    assert {"pid", "host", "started", "message"} <= set(progress)


def test_a_recorder_keeps_what_an_earlier_one_wrote(tmp_path: Path):
    RunRecorder(tmp_path).update(share_done=0.5, elapsed=12.0, pid=1)
    recorder = RunRecorder(tmp_path)
    recorder.update(state="running")
    progress = read_progress(tmp_path)
    assert (progress["share_done"], progress["elapsed"]) == (0.5, 12.0)
    assert progress["pid"] != 1


SHARDS = InputRecord(role="shards", name="shards/docs", digest="0")
MODEL = InputRecord(role="model", name="run/tiny", digest="0")
FOLDER = InputRecord(role="model", name="/m/bert", digest="0")


@pytest.mark.parametrize(
    ("stage", "config", "words", "inputs", "command"),
    [
        ("pretrain", {}, "pretrain --force", [SHARDS],
         "llmctl pretrain --name r --shards docs"),
        ("pretrain", {}, "pretrain --shards=docs --name r", [SHARDS],
         "llmctl pretrain --shards=docs --name r"),
        ("finetune", {"from": "scratch"}, "finetune --from scratch --data a", [MODEL],
         "llmctl finetune --from scratch --data a --name r --like tiny"),
        ("finetune", {"from": "scratch"}, "finetune --from scratch --name r", [FOLDER],
         "llmctl finetune --from scratch --name r --like /m/bert"),
        ("finetune", {"from": "tiny"}, "finetune --from tiny --data a --name r", [MODEL],
         "llmctl finetune --from tiny --data a --name r"),
    ],
)  # fmt: skip
def test_the_command_to_go_on_leaves_nothing_to_be_chosen(
    stage: str, config: dict[str, Any], words: str, inputs: list[InputRecord], command: str
):
    made = new_manifest(
        "run", "r", stage=stage, config=config, identity=identity(*inputs), seed=0
    ).model_copy(update={"command": ["llmctl", *words.split()]})
    assert resume_command(made) == command
    elsewhere = made.model_copy(update={"directory": "/my data"})
    assert resume_command(elsewhere) == f"cd '/my data' && {command}"


@pytest.mark.parametrize("state", ["running", "failed", "interrupted", None])
def test_a_finished_run_is_finished_whatever_else_is_there(tmp_path: Path, state: str | None):
    run = artefact(tmp_path, finished="2024-01-01T00:00:00+00:00")
    assert run_state(run, {"state": state}) == "finished"
    with writer_lock(run.folder):
        assert run_state(run, {"state": state}) == "finished"


@pytest.mark.parametrize(
    ("state", "code", "diverged"),
    [("failed", 6, True), ("failed", 5, False), ("interrupted", 143, False), ("running", 6, False)],
)
def test_a_run_that_diverged_would_again(tmp_path: Path, state: str, code: int, diverged: bool):
    run = artefact(tmp_path)
    write_json(run.folder / "progress.json", {"state": state, "exit_code": code})
    assert has_diverged(run) == diverged


def test_a_run_whose_writer_is_gone(tmp_path: Path):
    """It says running to its end; the lock knows better."""
    run = artefact(tmp_path)
    assert run_state(run, {"state": "running", "updated": time.time()}) == "interrupted"
    assert run_state(run, {"state": "interrupted"}) == "interrupted"
    assert run_state(run, {"state": "failed"}) == "failed"
    assert run_state(run, {}) == "interrupted"


def test_a_run_whose_writer_lives(tmp_path: Path):
    run = artefact(tmp_path)
    silent = time.time() - STALLED_FLOOR_SECONDS - 5
    with writer_lock(run.folder):
        assert run_state(run, {}) == "running"
        assert run_state(run, {"updated": time.time()}) == "running"
        # A run that failed and was started again, before its first sign of life.
        assert run_state(run, {"state": "failed", "updated": time.time()}) == "running"
        assert run_state(run, {"updated": silent}) == "stalled"
        fast = {"updated": silent, "seconds_per_step": 0.1}
        assert run_state(run, fast) == "stalled"
        slow = {"updated": silent, "seconds_per_step": 2 * STALLED_FLOOR_SECONDS / STALLED_STEPS}
        assert run_state(run, slow) == "running"
    assert run_state(run, slow) == "interrupted"


def test_what_is_done_again_is_dropped_from_the_log(tmp_path: Path):
    recorder = RunRecorder(tmp_path)
    for step, kind in ((5, "train"), (10, "train"), (10, "validation"), (15, "train")):
        recorder.record({"kind": kind, "step": step})
    recorder.start(step=10, total_steps=20)
    path = tmp_path / "metrics.jsonl"
    assert [(r["step"], r["kind"]) for r in read_metrics(path)] == [
        (5, "train"), (10, "train"), (10, "validation"),
    ]  # fmt: skip
    recorder.start(step=10, total_steps=20, validation_due=True)
    assert [(r["step"], r["kind"]) for r in read_metrics(path)] == [(5, "train"), (10, "train")]

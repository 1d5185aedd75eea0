"""GLUE: files in its layouts, metrics against scikit-learn, and a task learned and measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmctl.errors import InputError
from llmctl.evaluation.suites import glue
from tests.run import llmctl, one_sentence

BY_NAME = {task.name: task for task in glue.GLUE_TASKS}


def lines(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("CoLA", ["gj04\t1\t\tThe \"ship\" sails.", "gj04\t0\t*\tShip the sails."],
         [('The "ship" sails.', None, "1"), ("Ship the sails.", None, "0")]),
        ("SST-2", ["sentence\tlabel", "a \"gem\tof\t1", "dull\t0"], [('a "gem', None, "of"),
                                                                ("dull", None, "0")]),
        ("SST-2", ["one long string\t0", "fine\t1"], [("one long string", None, "0"),
                                                      ("fine", None, "1")]),
        ("MRPC", ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tHe said.\tHe spoke."],
         [("He said.", "He spoke.", "1")]),
        ("STS-B", ["main\tMSRvid\t2012\t0\t4.75\tA child rides.\tA kid rides."],
         [("A child rides.", "A kid rides.", "4.75")]),
        ("QNLI", ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tentailment"],
         [("Who?", "He.", "entailment")]),
        ("MNLI", ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\ta\tb\tneutral\tneutral",
                  "1\tc\td\tneutral\t-", "2\te"], [("a", "b", "neutral")]),
    ],
)  # fmt: skip
def test_files_are_read_as_glue_has_them(
    tmp_path: Path, name: str, rows: list[str], expected: list[tuple[str, str | None, str]]
):
    examples, broken = glue.read_part(BY_NAME[name], lines(tmp_path / "train.tsv", *rows))
    assert [(e.text, e.text_pair, e.label) for e in examples] == expected
    assert broken == (2 if name == "MNLI" else 0)


def test_folders_and_files_are_found_by_name(tmp_path: Path):
    for path in (
        "CoLA/train.tsv", "CoLA/dev.tsv", "CoLA/test.tsv", "MNLI/train.tsv", "MNLI/dev_matched.tsv",
        "MNLI/dev_mismatched.tsv", "rte.train.jsonl", "rte.valid.jsonl", "stsb/sts-train.csv",
        "stsb/sts-dev.csv", "README.md",
    ):  # fmt: skip
        lines(tmp_path / path, "x")
    found = {data.task.name: (data.train.name, data.dev.name) for data in glue.find_tasks(tmp_path)}
    assert found == {
        "CoLA": ("train.tsv", "dev.tsv"),
        "STS-B": ("sts-train.csv", "sts-dev.csv"),
        "MNLI": ("train.tsv", "dev_matched.tsv"),
        "RTE": ("rte.train.jsonl", "rte.valid.jsonl"),
    }
    (tmp_path / "CoLA/dev.tsv").unlink()
    with pytest.raises(InputError, match="CoLA has no file dev"):
        glue.find_tasks(tmp_path)


def test_other_columns_are_refused_by_name(tmp_path: Path):
    path = lines(tmp_path / "train.tsv", "id\tquestion1\tlabel", "1\ta\t0")
    with pytest.raises(InputError, match="QQP needs a column question2, and the file has id"):
        glue.read_part(BY_NAME["QQP"], path)


@pytest.mark.reference
def test_metrics_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    true_N, given_N = generator.integers(0, 2, (2, 50)).astype(float)
    for name, theirs in (("f1", metrics.f1_score), ("mcc", metrics.matthews_corrcoef),
                         ("accuracy", metrics.accuracy_score)):  # fmt: skip
        assert glue.score(name, given_N, true_N) == pytest.approx(theirs(true_N, given_N))
        low, high = glue.interval_of(name, given_N, true_N, resamples=200, seed=0)
        assert low < glue.score(name, given_N, true_N) < high
    assert glue.score("mcc", np.zeros(9), true_N[:9]) == 0.0
    assert glue.score("f1", np.zeros(9), true_N[:9]) == 0.0


def test_a_task_is_learned_and_measured(own_workspace: Path, tmp_path: Path, labelled_file: Path):
    rows = [line.split(",", 1) for line in labelled_file.read_text().splitlines()[1:]]
    pairs = [f"{text}\t{int(label == 'sea')}" for label, text in rows if label != "city"]
    lines(tmp_path / "glue/SST-2/train.tsv", "sentence\tlabel", *pairs[:60])
    lines(tmp_path / "glue/SST-2/dev.tsv", "sentence\tlabel", *pairs[60:])
    words = ["eval", "--from", "tiny", "--suite", "glue", tmp_path / "glue", "--protocol",
             "babylm", "--seeds", 3]  # fmt: skip
    report = json.loads(llmctl(own_workspace, *words, "--json").stdout)
    entry = report["results"]["model"]["tasks"]["SST-2"]
    assert (entry["train_examples"], entry["dev_examples"]) == (60, len(pairs) - 60)
    assert entry["median"] == sorted(entry["scores"])[1]
    assert len(entry["scores"]) == 3
    low, high = entry["interval"]
    assert low <= entry["median"] <= high
    runs = sorted(path.name for path in (own_workspace / "runs").glob("glue-*"))
    assert runs == [f"glue-tiny-sst-2-babylm-3e-05-32-seed-{seed}" for seed in range(3)]
    # What is trained is found again.
    began = {run: (own_workspace / "runs" / run / "manifest.json").read_bytes() for run in runs}
    shown = llmctl(own_workspace, *words, "--force").stdout
    assert "SST-2 (accuracy)" in shown
    for run, manifest in began.items():
        assert (own_workspace / "runs" / run / "manifest.json").read_bytes() == manifest


def test_what_does_not_go_with_it_is_said(tiny_workspace: Path, tmp_path: Path):
    words = ["eval", "--from", "tiny", "--suite", "glue"]
    assert "has no folder and no files of a task" in one_sentence(
        llmctl(tiny_workspace, *words, tmp_path, code=3)
    )
    assert "doesn't go with --suite glue" in one_sentence(
        llmctl(tiny_workspace, *words, tmp_path, "--scoring", "masked", code=2)
    )


def test_an_embedder_learns_a_task_too(own_workspace: Path, tmp_path: Path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,text_pair,label\nthe ship,a ship,4\nthe ship,hens,1\n")
    learn = ("finetune", "--from", "tiny", "--task", "embed", "--data", pairs, "--name", "vectors")
    llmctl(own_workspace, *learn, "--set", "training.max_steps=1")
    rows = ["hens lay\t0", "the ship sails\t1"] * 4
    for part in ("train", "dev"):
        lines(tmp_path / f"glue/SST-2/{part}.tsv", "sentence\tlabel", *rows)
    words = ("eval", "--from", "vectors", "--suite", "glue", tmp_path / "glue")
    report = json.loads(
        llmctl(own_workspace, *words, "--protocol", "babylm", "--seeds", 1, "--json").stdout
    )
    assert report["results"]["model"]["tasks"]["SST-2"]["dev_examples"] == 8

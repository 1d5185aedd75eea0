"""What a student's answers come from, its teacher or the labels; and each kind of teacher of
classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.formats.open import open_folder

LEARN = ("--set", "training.precision=fp32", "--set", "training.learning_rate=5e-3")
DISTIL = ("finetune", "--task", "distil", *LEARN, "--layers", "1")


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def answers(place: Path, run: str, data: Path) -> list[str]:
    """The labels that a run gives to the texts of a file."""
    printed = run_cli("predict", "--from", run, "--data", data, "--json", "-w", place).stdout
    return [json.loads(line)["label"] for line in printed.splitlines()]


def test_a_student_follows_its_teacher_and_not_the_labels(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    header, *lines = labelled_file.read_text().splitlines()
    texts = [line.partition(",")[2] for line in lines]
    right, train, held = (tmp_path / name for name in ("right.csv", "wrong.csv", "held.txt"))
    held.write_text("\n".join(texts[80:]) + "\n")
    right.write_text("\n".join([header, *lines[:80]]) + "\n")
    where = ("-w", own_workspace)
    run_cli("finetune", "--from", "tiny", "--data", right, *LEARN, "--name", "teacher", *where,
            "--set", "training.epochs=10", "--set", "data.validation=0")  # fmt: skip
    teacher = answers(own_workspace, "teacher", held)
    assert len(set(teacher)) == 3, "a teacher that always says the same shows nothing"
    # Every label is another one than the teacher's answer.
    asked = tmp_path / "asked.txt"
    asked.write_text("\n".join(texts[:80]) + "\n")
    other = {"sea": "farm", "farm": "city", "city": "sea"}
    rows = zip(answers(own_workspace, "teacher", asked), texts, strict=False)
    train.write_text(f"{header}\n" + "".join(f"{other[said]},{text}\n" for said, text in rows))
    agreed = {}
    for labels in ("0", "1"):
        run_cli(*DISTIL, "--teacher", "teacher", "--data", train, "--name", f"by{labels}", *where,
                "--set", f"objective.labels={labels}", "--set", "training.epochs=10",
                "--set", "data.validation=0")  # fmt: skip
        given = answers(own_workspace, f"by{labels}", held)
        agreed[labels] = sum(map(str.__eq__, given, teacher)) / len(teacher)
    assert agreed["0"] >= 0.9
    assert agreed["1"] <= 0.2


@pytest.mark.parametrize(
    "kind",
    [
        ["--task", "setfit"],
        ["--task", "cloze", "--template", "{text} The {mask} .", "--labels",
         "sea=ship,farm=cows,city=tram"],
        ["--multi-label"],
        ["--ordinal", "--set", "order=sea,farm,city"],
        ["--task", "regress"],
    ],
    ids=lambda words: words[-1] if len(words) < 3 else words[1],
)  # fmt: skip
def test_each_kind_of_teacher(
    own_workspace: Path, labelled_file: Path, tmp_path: Path, kind: list[str]
):
    """Those of classes teach; of ordered ones and of numbers one sentence says that none do."""
    data, where = tmp_path / "some.csv", ("-w", own_workspace)
    lines = labelled_file.read_text().splitlines()[:31]
    if "--multi-label" in kind:
        lines = [lines[0], *(line.replace(",", "|sea," if n % 2 else ",", 1)
                             for n, line in enumerate(lines[1:]))]  # fmt: skip
        lines = [line.replace("sea|sea,", "sea,") for line in lines]
    if "regress" in kind:
        for number, name in enumerate(("sea", "farm", "city")):
            lines = [line.replace(f"{name},", f"{number}.5,", 1) if line.startswith(f"{name},")
                     else line for line in lines]  # fmt: skip
    data.write_text("\n".join(lines) + "\n")
    run_cli("finetune", "--from", "tiny", "--data", data, *kind, *LEARN, "--name", "teacher",
            "--set", "training.max_steps=3", *where)  # fmt: skip
    learn = (*DISTIL, "--teacher", "teacher", "--data", data, "--name", "student",
             "--set", "training.max_steps=3", *where)  # fmt: skip
    if kind[0] == "--ordinal" or "regress" in kind:
        refused = " ".join(run_cli(*learn, code=3).stderr.split())
        assert ("a student learns from a classifier" in refused) or (
            "ordered classes, which no student learns yet" in refused
        )
        assert not (own_workspace / "runs/student/model").exists()
        return
    run_cli(*learn)
    student = open_folder(own_workspace / "runs/student/model")
    assert student.kind == "classify"
    assert set(student.labels or []) == {"sea", "farm", "city"}
    several = student.fields["problem_type"] == "multi_label_classification"
    assert several is ("--multi-label" in kind)

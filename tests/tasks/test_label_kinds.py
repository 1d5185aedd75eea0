"""Classifiers of several labels and of ordered ones: losses, transformers' logits, and errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.tasks.classify.ordinal import cumulative
from tests.conftest import SUBJECTS
from tests.foreign_models import save_model

PARTS = list(SUBJECTS)
WORDS = {"sea": "hens hens", "farm": "cows cows", "city": "tram tram"}
MORE = ("the farmer", "the baker", "a captain", "the stars", "early", "wheat", "the shop")


SLOWLY = (
    "--set",
    "training.learning_rate=2e-3",
    "--set",
    "training.epochs=16",
    "--set",
    "training.batch_size=8",
    "--set",
    "dropout=0",
    "--set",
    "patience=0",
)


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def sets_file(path: Path, layout: str, count: int = 96) -> Path:
    """Texts of none to three subjects, with the subjects as labels."""
    rows = []
    for number in range(count):
        names = [name for place, name in enumerate(PARTS) if number >> place & 1]
        text = " ".join([*(WORDS[name] for name in names), MORE[number % 7], MORE[number % 5]])
        rows.append((text, names))
    with path.open("w", newline="") as file:
        if layout == "jsonl":
            file.writelines(json.dumps({"text": t, "labels": n}) + "\n" for t, n in rows)
        else:
            writer = csv.writer(file)
            writer.writerow(["text", "labels"])
            join = json.dumps if layout == "json" else layout.join
            writer.writerows((text, join(names)) for text, names in rows)
    return path


def test_several_labels_are_learned_asked_and_measured(own_workspace: Path, tmp_path: Path):
    pytest.importorskip("sklearn")
    data, where = sets_file(tmp_path / "sets.jsonl", "jsonl"), ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "classify", "--multi-label", "--data", data)
    run_cli(*learn, *SLOWLY, "--name", "sets", *where)
    fields = json.loads((own_workspace / "runs/sets/model/config.json").read_text())
    assert fields["problem_type"] == "multi_label_classification"
    assert len(fields["llmctl_thresholds"]) == 3
    other = sets_file(tmp_path / "others.csv", "|", 48)
    command = ("eval", "--from", "sets", "--data", other, *where)
    report = json.loads(run_cli(*command, "--json").stdout)
    results = report["results"]
    assert results["model"]["micro_f1"] > 0.05 + results["label frequencies"]["micro_f1"]
    assert results["TF-IDF + logistic regression"]["mean_average_precision"] > 0.9
    assert "by label" in run_cli(*command).stdout
    # The report follows from what predict says.
    asked = run_cli("predict", "--from", "sets", "--data", other, "--json", *where).stdout
    answers = [json.loads(line) for line in asked.splitlines()]
    true = [{n for p, n in enumerate(PARTS) if row >> p & 1} for row in range(48)]
    right = np.mean([set(a["labels"]) == t for a, t in zip(answers, true, strict=True)])
    assert results["model"]["exact_match"] == pytest.approx(right)
    mixed = ("eval", "--from", "subjects", "--compare", "sets", "--data", other, *where)
    assert "compare those of one task" in run_cli(*mixed, code=2).stderr.replace("\n", " ")


@pytest.mark.reference
@pytest.mark.parametrize("layout", ["json", ";", ","])
def test_transformers_has_the_same_logits_and_loss(
    own_workspace: Path, tmp_path: Path, layout: str
):
    transformers = pytest.importorskip("transformers")
    data, where = sets_file(tmp_path / "sets.csv", layout), ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--multi-label", "--data", data, "--name", "few")
    run_cli(*learn, "--set", "training.max_steps=3", *where)
    folder = own_workspace / "runs/few/model"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert [theirs.config.id2label[n] for n in range(3)] == sorted(PARTS)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("the cows", return_tensors="pt")
    labels = torch.tensor([[0.0, 1.0, 0.0]])
    with torch.no_grad():
        answer = theirs(**tokens, labels=labels)
    asked = run_cli("predict", "--from", "few", "--json", "the cows", *where).stdout
    shares = json.loads(asked)["probabilities"]
    ours = torch.tensor([shares[name] for name in sorted(PARTS)])
    torch.testing.assert_close(ours, answer.logits[0].sigmoid(), atol=1e-5, rtol=1e-4)
    loss = F.binary_cross_entropy(ours[None], labels)
    assert float(loss) == pytest.approx(float(answer.loss), rel=1e-4)


@pytest.mark.reference
def test_a_folder_of_transformers_gives_several_labels(tmp_path: Path):
    pytest.importorskip("transformers")
    save_model(tmp_path / "m", "BertForSequenceClassification", like="bert", num_labels=3,
               problem_type="multi_label_classification")  # fmt: skip
    answer = json.loads(run_cli("predict", "--from", tmp_path / "m", "--json", "the tram").stdout)
    shares = answer["probabilities"]
    assert answer["labels"] == [label for label, share in shares.items() if share >= 0.5]
    assert sum(shares.values()) != pytest.approx(1.0, abs=1e-3)


def test_the_ordinal_loss_is_that_of_its_questions():
    logits = torch.randn(6, 4, dtype=torch.float64)
    shares = logits.softmax(-1).numpy()
    more, less = cumulative(logits)
    for c in range(3):
        np.testing.assert_allclose(more[:, c].exp(), shares[:, c + 1 :].sum(1))
        np.testing.assert_allclose(less[:, c].exp(), shares[:, : c + 1].sum(1))


def stars_file(path: Path, words: bool) -> Path:
    names = ["bad", "fair", "good", "great"]
    rows = []
    for number in range(80):
        stars = number % 4
        word = ("hens", "cows", "tram", "people")[stars]
        text = f"{word} {MORE[number % 7]} {MORE[number % 5]} {word}"
        rows.append((text, names[stars] if words else 10 * stars))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "stars"), *rows])
    return path


def test_ordered_classes_are_learned_asked_and_measured(own_workspace: Path, tmp_path: Path):
    data, where = stars_file(tmp_path / "stars.csv", words=True), ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--ordinal", "--data", data, *SLOWLY, *where)
    told = run_cli(*learn, "--name", "ranks", code=2).stderr
    assert "give it, from low to high: --set order=low,high" in " ".join(told.split())
    run_cli(*learn, "--name", "ranks", "--set", "order=bad,fair,good,great")
    command = ("eval", "--from", "ranks", "--data", data, "--no-baselines", *where)
    results = json.loads(run_cli(*command, "--json").stdout)["results"]["model"]
    assert [entry["label"] for entry in results["classes"]] == ["bad", "fair", "good", "great"]
    assert results["mean_error"] < 0.6  # the best constant is 1 off
    assert results["quadratic_kappa"] > 0.6
    asked = run_cli("predict", "--from", "ranks", "--data", data, "--json", *where).stdout
    order = {"bad": 0, "fair": 1, "good": 2, "great": 3}
    given = [order[json.loads(line)["label"]] for line in asked.splitlines()]
    off = np.mean([abs(answer - number % 4) for number, answer in enumerate(given)])
    assert results["mean_error"] == pytest.approx(off)
    assert "κ, quadratic" in run_cli(*command).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--multi-label", "--ordinal"), 2, "--multi-label and --ordinal are two things"),
        (("--set", "order=a,b"), 2, "order goes with --ordinal"),
        (("--ordinal", "--set", "order=0,10,20"), 2, "has the label '30', too"),
        (("--multi-label", "--class-weights", "balanced"), 2, "class_weights are for classes"),
        (("--task", "regress", "--ordinal"), 2, "--ordinal goes with --task classify"),
    ],
)
def test_options_that_do_not_go_together(
    own_workspace: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
):
    data = stars_file(tmp_path / "stars.csv", words=False)
    command = ("finetune", "--from", "tiny", "--data", data, *words, "-w", own_workspace)
    assert said in " ".join(run_cli(*command, code=code).stderr.split())


def test_a_list_that_is_broken_has_its_sentence(own_workspace: Path, tmp_path: Path):
    data = tmp_path / "sets.csv"
    data.write_text('text,labels\nthe ship,"[""a"", "\nthe cows,b\n')
    learn = ("finetune", "--from", "tiny", "--multi-label", "--data", data, "-w", own_workspace)
    assert "sets.csv:2: labels is no JSON list" in " ".join(run_cli(*learn, code=3).stderr.split())
    data.write_text('text,labels\nthe ship,"[[""a""]]"\nthe cows,b\n')
    said = " ".join(run_cli(*learn, code=3).stderr.split())
    assert "sets.csv:2: list stands for a label of labels; give a list of labels" in said
    data.write_text('text,labels\nthe ship,"[""a""]"\nthe cows,"[""a""]"\n')
    said = " ".join(run_cli(*learn, code=3).stderr.split())
    assert "sets.csv: all texts have the same labels (a), so there is nothing to learn" in said

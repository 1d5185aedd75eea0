"""Clozes: the loss against NumPy, zero-shot and trained, chosen templates, what users get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.evaluation.wilson import wilson_interval
from llmctl.formats.open import open_folder
from llmctl.tasks.cloze.batches import ClozeExample, collate
from llmctl.tasks.cloze.loss import LabelWords, cloze_loss

TEMPLATE = "{text} The {mask} ."
WORDS = "sea=ship,farm=cows,city=tram"


def split(labelled_file: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """The first rows to be asked about, and the others."""
    header, *lines = labelled_file.read_text().splitlines()
    asked, others = folder / "asked.csv", folder / "others.csv"
    asked.write_text("\n".join([header, *lines[:count]]) + "\n")
    others.write_text("\n".join([header, *lines[count:]]) + "\n")
    return asked, others


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def refusal(*words: str | Path, code: int) -> str:
    return " ".join(run_cli(*words, code=code).stderr.split())


class Bag(torch.nn.Module):
    """A body whose hidden states are one-hot ids, and logits a table of them."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def body(self, ids_BT: torch.Tensor, segments: None, mask: Any) -> torch.Tensor:
        places = torch.arange(ids_BT.shape[1]) % len(self.table)
        return (
            torch.nn.functional.one_hot(places, len(self.table)).float().expand(len(ids_BT), -1, -1)
        )

    def token_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.table


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_is_that_of_the_papers(several: bool):
    generator = np.random.default_rng(0)
    table = generator.normal(size=(8, 20))
    words = [np.array([3]), np.array([5]), np.array([7, 4] if several else [7])]
    examples = [
        ClozeExample(np.arange(6), start, label) for start, label in ((1, 0), (2, 2), (0, 1))
    ]
    model: Any = Bag(torch.from_numpy(table).float())
    given = cloze_loss(model, collate(examples, 0), LabelWords(words))
    logs = table - np.log(np.exp(table).sum(-1, keepdims=True))
    total, right = 0.0, 0
    for example in examples:
        scores = [sum(logs[example.start + j, t] for j, t in enumerate(word)) for word in words]
        y = example.label
        if several:
            total += sum(
                max(0.0, 1 - scores[y] + score) for c, score in enumerate(scores) if c != y
            )
        else:
            total += np.log(np.exp(scores).sum()) - scores[y]
        right += int(np.argmax(scores) == y)
    assert float(given.losses["cloze_loss"].total) == pytest.approx(total, rel=1e-5)
    assert float(given.metrics["accuracy"].total) == right


def test_a_masked_model_is_asked_trained_and_measured(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    pytest.importorskip("sklearn")
    asked, solved = split(labelled_file, tmp_path, 30)
    where = ("-w", own_workspace)
    question = ("--template", TEMPLATE, "--labels", WORDS)
    zero = ("eval", "--from", "tiny", "--data", asked, *question, *where)
    report = json.loads(run_cli(*zero, "--json", "--name", "zero", "--no-baselines").stdout)
    assert list(report["by_score"]["model, 0 shots"]) == ["plain", "tokens", "bytes", "pmi"]
    learn = ("finetune", "--from", "tiny", "--task", "cloze", "--data", solved, *question, *where)
    told = run_cli(*learn, "--name", "filled", "--set", "training.learning_rate=3e-3",
                   "--set", "training.epochs=12").output  # fmt: skip
    assert "sea is written 'ship', farm is written 'cows'" in " ".join(told.split())
    both = ("eval", "--from", "filled", "--compare", "tiny", "--data", asked, "--json", *where)
    results = json.loads(run_cli(*both).stdout)["results"]
    assert results["model, 0 shots"]["accuracy"] > 0.9
    untrained = report["results"]["model, 0 shots"]["confusion_matrix"]
    assert results["tiny, 0 shots"]["confusion_matrix"] == untrained
    assert "TF-IDF + logistic regression" in results
    # It answers without its template being given, and is still a masked language model.
    answers = run_cli("predict", "--from", "filled", "--data", asked, "--json", *where).stdout
    labels = [json.loads(line)["label"] for line in answers.splitlines()]
    true = [line.partition(",")[0] for line in asked.read_text().splitlines()[1:]]
    right = np.mean([a == b for a, b in zip(labels, true, strict=True)])
    assert right == pytest.approx(results["model, 0 shots"]["accuracy"])
    folder = open_folder(own_workspace / "runs/filled/model")
    assert folder.fields["architectures"] == ["BertForPreTraining"]
    assert folder.kind == "masked_lm"


def test_a_template_is_chosen_by_other_rows(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    asked, dev = split(labelled_file, tmp_path, 30)
    listed = tmp_path / "templates.txt"
    listed.write_text(f"\ufeff{TEMPLATE}\n# not this one\n{{mask}} : {{text}}\n")  # as Windows does
    where = ("--labels", WORDS, "-w", own_workspace)
    command = ("eval", "--from", "tiny", "--templates", listed, "--dev", dev, "--data", asked)
    out = run_cli(*command, *where, "--no-baselines", "--name", "chosen").stdout
    assert "templates on 90 rows for development" in " ".join(out.split())
    report = json.loads(run_cli(*command, *where, "--no-baselines", "--json").stdout)
    accuracies = []
    for tried, template in zip(report["templates"], (TEMPLATE, "{mask} : {text}"), strict=True):
        alone = ("eval", "--from", "tiny", "--template", template, "--data", dev, *where)
        one = json.loads(run_cli(*alone, "--json", "--no-baselines", "--force").stdout)
        assert tried["accuracy"] == pytest.approx(one["results"]["model, 0 shots"]["accuracy"])
        assert tried["interval"] == pytest.approx(wilson_interval(tried["right"], 90))
        accuracies.append(tried["accuracy"])
    chosen = [tried["chosen"] for tried in report["templates"]]
    assert chosen == [n == int(np.argmax(accuracies)) for n in range(2)]
    told = refusal(*command[:-1], dev, *where, code=2)
    assert "is what is measured on, too" in told


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--template", "{text} The"), 3, "has no mask, and tiny is a masked language model"),
        (("--template", "{mask} {mask} {text}"), 3, "gives 2 places for the label's word"),
        (("--template", "{mask} {body}"), 3, "asks for body, and the row has"),
        (("--template", "absent.toml"), 3, "absent.toml: no such file"),
        (("--template", "{mask} {text}", "--templates", "x"), 2, "give either"),
        (("--templates", "x"), 2, "--templates FILE and --dev FILE go together"),
        (("--template", "{mask} {text}", "--labels", "sea=雨,farm=x,city=y"), 3, "'雨' is not in"),
        (("--template", "{mask} {text}", "--labels", "sea=ship,farm=cows"), 3, "no label 'city'"),
    ],
)
def test_questions_that_can_not_be_asked(
    own_workspace: Path, labelled_file: Path, words: tuple[str, ...], code: int, said: str
):
    command = ("eval", "--from", "tiny", "--data", labelled_file, *words, "-w", own_workspace)
    assert said in refusal(*command, code=code)


def test_what_can_not_be_trained_is_refused(own_workspace: Path, labelled_file: Path):
    where = ("--data", labelled_file, "-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "cloze", *where)
    assert "--task cloze needs --template" in refusal(*learn, code=2)
    assert "has no mask" in refusal(*learn, "--template", "{text}", code=3)
    constant = refusal(*learn, "--template", "The {mask} .", code=3)
    assert "has nothing of a row in it" in constant
    other = ("finetune", "--from", "subjects", "--task", "cloze", "--template", TEMPLATE, *where)
    assert "is a classifier and has no head that fills masks" in refusal(*other, code=3)
    elsewhere = ("finetune", "--from", "tiny", "--template", TEMPLATE, *where)
    assert "--template goes with --task cloze" in refusal(*elsewhere, code=2)
    asked = ("predict", "--from", "subjects", "--template", TEMPLATE, "a ship", "-w", own_workspace)
    assert "subjects is a classifier; give a language model" in refusal(*asked, code=3)
    unnamed = ("predict", "--from", "tiny", "--template", TEMPLATE, "a ship", "-w", own_workspace)
    assert "which labels there are is not said" in refusal(*unnamed, code=2)


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_little_of_it_is_trained_and_it_answers(
    own_workspace: Path, labelled_file: Path, method: str
):
    """The run, whose folder has the virtual tokens beside the model, and the adapter by itself."""
    place = ["-w", own_workspace]
    run_cli("finetune", "--from", "tiny", "--task", "cloze", "--data", labelled_file, "--template",
            TEMPLATE, "--labels", WORDS, "--method", method, "--set", "training.max_steps=2",
            "--set", "training.precision=fp32", "--name", "filled", *place)  # fmt: skip
    answers = [
        json.loads(run_cli("predict", "--from", start, "--json", "The ship sails.", *place).stdout)
        for start in ("filled", own_workspace / "runs" / "filled" / "adapter")
    ]
    assert answers[0]["label"] == answers[1]["label"]
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=1e-6)


def test_other_weights_are_for_models_that_write(own_workspace: Path, labelled_file: Path):
    where = ("--dtype", "int4", "-w", own_workspace)
    said = refusal("eval", "--from", "tiny", *where, code=2)
    assert "--dtype is for models that write text, and tiny is none; leave it out" in said
    said = refusal("eval", "--from", "subjects", "--data", labelled_file, *where, code=2)
    assert "--dtype is for models that write text, and subjects is none" in said


def test_a_language_model_answers_by_a_template_too(decoder_workspace: Path):
    asked = ("predict", "--from", "tiny-gpt", "--template", "{text} The", "--labels",
             "sea=ship,farm=cows", "the waves", "--json", "-w", decoder_workspace)  # fmt: skip
    answer = json.loads(run_cli(*asked).stdout)
    assert set(answer["probabilities"]) == {"sea", "farm"}
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_what_writes_on_has_no_mask(decoder_workspace: Path, labelled_file: Path):
    command = ("generate", "--from", "tiny-gpt", "--data", labelled_file, "-w", decoder_workspace,
               "--max-new-tokens", "2", "--json")  # fmt: skip
    assert "has a mask" in refusal(*command, "--template", "{mask} {text}", code=2)
    written = json.loads(run_cli(*command, "--template", r"{text}\nThe").stdout)
    first = labelled_file.read_text().splitlines()[1].partition(",")[2]
    assert written["answers"][0]["prompt"] == f"{first}\nThe"

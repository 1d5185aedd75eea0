"""Prompted classification against transformers' logits of the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.workspace.artefacts import Workspace
from tests.language_models import LABELS, WINDOW, WRITTEN, measure, of_text, split


@pytest.mark.reference
def test_zero_and_few_shot_by_hand(
    models: Workspace, theirs: Any, labelled_file: Path, template: Path, tmp_path: Path
):
    asked, solved = split(labelled_file, tmp_path)
    report = measure(models, "gpt", asked, template=template, examples=solved, shots="0,2", seed=3)
    assert report["labels"] == LABELS
    assert list(report["results"])[:2] == ["model, 0 shots", "model, 2 shots"]
    from llmctl.inference.prompts import Shots, find_columns, read_rows
    from llmctl.inference.templates import read_template

    parsed = read_template(template)

    def rows_of(path: Path) -> list[Any]:
        return list(read_rows(path, parsed, find_columns(path, parsed, need_label=True)))

    shots = Shots(parsed, rows_of(solved), 3)
    tokenizer, _ = theirs
    assert report["notes"] == []  # every example fits
    prior = [sum(of_text(theirs, ": the", text)) for text in WRITTEN]
    for count, name in ((0, "model, 0 shots"), (2, "model, 2 shots")):
        confusion, by_prior = np.zeros((3, 3), dtype=int), []
        for number, line in enumerate(asked.read_text().splitlines()[1:]):
            label, _, text = line.partition(",")
            question = f"{text}: the"
            prompt = ". ".join([*shots.draw(number, question, count), question])
            assert len(tokenizer(prompt + WRITTEN[0])["input_ids"]) <= WINDOW
            scores = np.array([sum(of_text(theirs, prompt, answer)) for answer in WRITTEN])
            confusion[LABELS.index(label), scores.argmax()] += 1
            by_prior.append(LABELS[(scores - prior).argmax()] == label)
        assert report["results"][name]["confusion_matrix"] == confusion.tolist()
        assert report["by_score"][name]["pmi"]["accuracy"] == pytest.approx(np.mean(by_prior))


def test_one_table_with_classifiers_and_baselines(
    models: Workspace, labelled_file: Path, template: Path, tmp_path: Path
):
    pytest.importorskip("sklearn")
    asked, solved = split(labelled_file, tmp_path, 60)
    report = measure(
        models, "gpt", asked, template=template, examples=solved, shots=[0, 1],
        compare=["subjects", "grams"], score="pmi",
    )  # fmt: skip
    assert list(report["results"]) == [
        "model, 0 shots", "model, 1 shot", "subjects", "grams, 0 shots", "grams, 1 shot",
        "majority class", "TF-IDF + logistic regression",
    ]  # fmt: skip
    alone = measure(models, "subjects", asked, baselines=False)
    of_classifier = report["results"]["subjects"]
    assert of_classifier["accuracy"] == alone["results"]["model"]["accuracy"]
    assert report["results"]["majority class"]["accuracy"] == pytest.approx(1 / 3)
    assert report["results"]["TF-IDF + logistic regression"]["accuracy"] > 0.8
    chosen = report["results"]["model, 1 shot"]
    assert chosen["accuracy"] == report["by_score"]["model, 1 shot"]["pmi"]["accuracy"]
    assert report["differences"]["subjects"]["difference"] == pytest.approx(
        chosen["accuracy"] - of_classifier["accuracy"]
    )
    # Without examples the baselines learn what the classifier did.
    without = measure(models, "gpt", asked, template=template, compare=["subjects"])
    assert "majority class" in without["results"]
    nothing = measure(models, "gpt", asked, template=template)
    assert list(nothing["results"]) == ["model, 0 shots"]
    assert any("--examples FILE" in note for note in nothing["notes"])


def test_prompts_that_do_not_fit_are_said(
    models: Workspace, labelled_file: Path, template: Path, tmp_path: Path
):
    asked, solved = split(labelled_file, tmp_path)
    notes = measure(
        models, "gpt", asked, template=template, examples=solved, shots=20, baselines=False
    )["notes"]
    assert len(notes) == 1
    assert "gpt, 20 shots: in 9 of 9 prompts not all examples fit into the 48 tokens" in notes[0]
    asked.write_text(f"label,text\nsea,{'the ship sails ' * 30}\n")
    notes = measure(models, "gpt", asked, template=template, baselines=False)["notes"]
    assert "1 of 1 prompts are longer even without examples" in notes[0]

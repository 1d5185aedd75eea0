"""Classifiers from a few labels: the loss in NumPy, scikit-learn's regression, others' logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.formats.open import open_folder
from llmctl.tasks.setfit.loss import contrastive
from llmctl.training.optim.logistic import fit_logistic


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.reference
@pytest.mark.parametrize(("classes", "strength"), [(2, 1.0), (4, 1.0), (3, 50.0)])
def test_the_regression_is_scikit_learns(classes: int, strength: float):
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(60, 9)), generator.integers(0, classes, 60)
    theirs = linear.LogisticRegression(C=strength, max_iter=10_000, tol=1e-10)
    theirs.fit(features, labels)
    ours = fit_logistic(
        torch.from_numpy(features), torch.from_numpy(labels), classes, strength=strength
    )
    logits = features @ ours[0].numpy().T + ours[1].numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.predict_proba(features), atol=2e-5)


def test_the_loss_is_that_of_the_pairs():
    generator = np.random.default_rng(0)
    vectors, labels = generator.normal(size=(7, 5)), np.array([0, 1, 0, 2, 1, 0, 2])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    sums = {True: [], False: []}
    for i in range(7):
        for j in range(i):
            same = bool(labels[i] == labels[j])
            sums[same].append((float(same) - unit[i] @ unit[j]) ** 2)
    expected = (np.mean(sums[True]) + np.mean(sums[False])) / 2
    given = contrastive(torch.from_numpy(vectors), torch.from_numpy(labels))
    assert float(given) == pytest.approx(expected, rel=1e-9)


def test_a_few_labels_are_learned_and_open_elsewhere(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    header, *lines = labelled_file.read_text().splitlines()
    few, others = tmp_path / "few.csv", tmp_path / "others.csv"
    few.write_text("\n".join([header, *lines[:24]]) + "\n")
    others.write_text("\n".join([header, *lines[24:]]) + "\n")
    where = ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "setfit", "--data", few, "--name", "few")
    run_cli(*learn, "--set", "training.learning_rate=3e-3", *where)
    command = ("eval", "--from", "few", "--compare", "subjects", "--data", others, "--json")
    results = json.loads(run_cli(*command, "--no-baselines", *where).stdout)["results"]
    assert results["model"]["accuracy"] > 0.85
    folder = own_workspace / "runs/few/model"
    assert open_folder(folder).kind == "setfit"
    texts = ["the captain watches the stars", "hens"]
    asked = run_cli("predict", "--from", "few", "--json", *texts, *where).stdout
    shares = [json.loads(line)["probabilities"] for line in asked.splitlines()]
    transformers = pytest.importorskip("sentence_transformers")
    theirs = transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    expected = torch.from_numpy(theirs).double().softmax(-1).numpy()
    labels = open_folder(folder).labels or []
    found = np.array([[share[label] for label in labels] for share in shares])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_adapter_alone_gives_the_classes_of_its_model(own_workspace: Path, labelled_file: Path):
    where = ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "setfit", "--data", labelled_file)
    run_cli(*learn, "--method", "lora", "--name", "added", "--set", "training.max_steps=2", *where)
    runs = own_workspace / "runs/added"
    given = [
        json.loads(run_cli("predict", "--from", path, "--json", "the ship", *where).stdout)
        for path in (runs / "model", runs / "adapter")
    ]
    assert given[1]["probabilities"] == pytest.approx(given[0]["probabilities"], abs=1e-5)


def test_what_can_not_be_learned_has_its_sentence(own_workspace: Path, tmp_path: Path):
    data = tmp_path / "one.csv"
    data.write_text("label,text\na,the ship\na,the cows\n")
    learn = ("finetune", "--from", "tiny", "--task", "setfit", "--data", data, "-w", own_workspace)
    assert "has one class only ('a')" in " ".join(run_cli(*learn, code=3).stderr.split())


def test_a_folder_whose_layer_is_none_is_refused(own_workspace: Path, labelled_file: Path):
    where = ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "setfit", "--data", labelled_file)
    run_cli(*learn, "--name", "few", "--set", "training.max_steps=1", *where)
    folder = own_workspace / "runs/few/model"
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in fields.items() if k != "llmctl_setfit"}))
    said = run_cli("predict", "--from", folder, "the ship", code=3).stderr
    assert "a Dense layer is not supported" in " ".join(said.split())

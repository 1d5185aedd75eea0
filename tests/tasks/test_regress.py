"""Regression against transformers' numbers and figures of SciPy, and what users get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.evaluation.number_baselines import tfidf_ridge
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.regress import Regressor
from tests.foreign_models import learned, save_model

WORDS = ("cow", "farmer", "ship", "tram")


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def numbers_file(tmp_path: Path) -> Path:
    """Texts whose number is far from 0, and told by their words."""
    path = tmp_path / "numbers.csv"
    rows = [
        f"the {WORDS[n % 4]} {'goes ' * (n % 5)}to the {WORDS[n // 4 % 4]},{100 + 10 * (n % 4)}"
        for n in range(80)
    ]
    path.write_text("text,score\n" + "\n".join(rows) + "\n")
    return path


def test_a_regression_is_finetuned_asked_and_measured(own_workspace: Path, numbers_file: Path):
    where = ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "regress", "--data", numbers_file)
    more = ("--label-column", "score", "--set", "training.epochs=30", "--name", "scores", *where)
    told = run_cli(*learn, *more, "--set", "training.learning_rate=3e-3").output
    assert "numbers from 100 to 130" in told
    asked = ("predict", "--from", "scores", "--data", numbers_file, "--json", *where)
    lines = run_cli(*asked).stdout.splitlines()
    given = np.array([json.loads(line)["value"] for line in lines])
    true = np.array([100 + 10 * (n % 4) for n in range(80)])
    command = ("eval", "--from", "scores", "--data", numbers_file, *where)
    report = json.loads(run_cli(*command, "--json").stdout)["results"]
    stats = pytest.importorskip("scipy.stats")
    assert report["model"]["spearman"] == pytest.approx(stats.spearmanr(given, true)[0], abs=1e-6)
    assert report["model"]["pearson"] == pytest.approx(stats.pearsonr(given, true)[0], abs=1e-6)
    assert report["model"]["mean_error"] == pytest.approx(np.abs(given - true).mean(), rel=1e-5)
    assert report["model"]["mean_error"] < 4 < report["mean"]["mean_error"]
    assert report["TF-IDF + ridge"]["spearman"] > 0.8
    assert "Spearman over mean" in run_cli(*command).stdout


@pytest.mark.reference
def test_transformers_gives_the_numbers_of_the_data(own_workspace: Path, numbers_file: Path):
    transformers = pytest.importorskip("transformers")
    where = ("-w", own_workspace)
    learn = ("finetune", "--from", "tiny", "--task", "regress", "--data", numbers_file)
    run_cli(*learn, "--set", "training.max_steps=20", "--name", "few", *where)
    folder = own_workspace / "runs/few/model"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.problem_type == "regression"
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("the cow", return_tensors="pt")
    with torch.no_grad():
        expected = float(theirs(**tokens).logits)
    asked = run_cli("predict", "--from", "few", "--json", "the cow", *where).stdout
    assert json.loads(asked)["value"] == pytest.approx(expected, rel=1e-4)
    assert expected > 50  # in the data's units


@pytest.mark.reference
@pytest.mark.parametrize("arch", ["bert", "modernbert", "electra", "roberta", "gpt", "llama"])
def test_a_folder_opens_elsewhere_with_the_same_number(tmp_path: Path, arch: str):
    transformers = pytest.importorskip("transformers")
    spec = ARCHITECTURES[arch]
    tokenizer = learned("wordpiece" if spec.kind == "encoder" else "bpe")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 2}
    config = spec.config(vocab_size=tokenizer.vocab_size, max_positions=64, **shape)
    model = Regressor(spec.build(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    more = {"id2label": {"0": "LABEL_0"}, "problem_type": "regression", "pad_token_id": 0}
    write_model_folder(tmp_path, model, tokenizer, more)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.randint(6, tokenizer.vocab_size, (2, 16))
    again = open_folder(tmp_path)
    assert again.kind == "regress"
    with torch.no_grad():
        mask = torch.ones_like(ids, dtype=torch.bool)
        ours = again.network().eval()(ids, torch.zeros_like(ids), mask)
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.reference
def test_a_reward_model_of_transformers_gives_its_number(tmp_path: Path):
    pytest.importorskip("transformers")
    save_model(tmp_path / "m", "LlamaForSequenceClassification", like="llama", num_labels=1)
    answer = run_cli("predict", "--from", tmp_path / "m", "--json", "the tram").stdout
    assert isinstance(json.loads(answer)["value"], float)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,1\nb,x\n", "'x' is no number; a regression learns from"),
        ("a,1\nb,\n", "has no label"),
        ("a,1\nb,inf\n", "'inf' is no number"),
        ("a,1\nb,-1e30\n", "bad.csv:3: -1e30 is beyond 1e+18, the largest number"),
        ("a,2\nb,2\n", "has one number only (2)"),
    ],
)
def test_what_is_no_number_has_its_sentence(
    own_workspace: Path, tmp_path: Path, rows: str, said: str
):
    data = tmp_path / "bad.csv"
    data.write_text("text,label\n" + rows)
    words = ("finetune", "--from", "tiny", "--task", "regress", "--data", data)
    result = run_cli(*words, "-w", own_workspace, code=3)
    assert said in " ".join(result.stderr.split())


def test_pairs_are_as_alike_as_their_words():
    pytest.importorskip("sklearn")
    words = ["cow", "sea", "ship", "tram", "bread", "night"]
    pairs = [(f"the {a} now", f"a {b} then") for a in words for b in words]
    numbers = np.array([5.0 * (a.split()[1] == b.split()[1]) for a, b in pairs])
    found = tfidf_ridge(pairs, numbers, [("the cow", "a cow"), ("the cow", "a ship")])
    assert found[0] > found[1] + 1

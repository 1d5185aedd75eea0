"""Several teachers of one student: what they say together against NumPy, and runs from the command
line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmctl.formats.open import open_folder
from llmctl.tasks.distil.ensemble import together
from tests.tasks.test_distil import DISTIL, run_cli, said, softmax
from tests.tasks.test_embed import write_pairs

TEMPLATES = ("{text} The {mask} .", "{mask} : {text}")
WORDS = "sea=ship,farm=cows,city=tram"
QUICK = ("--set", "training.max_steps=2", "--set", "training.precision=fp32")


@pytest.mark.parametrize("mean", ["probabilities", "scores"])
def test_classes_are_told_by_the_weighted_mean(mean: str):
    """The scores are unknown up to a number for each text: the paper's mean of them gives the same
    distribution as that of the logarithms."""
    generator = np.random.default_rng(0)
    score_ENC = generator.normal(size=(3, 5, 4)) * 2
    weight_E = np.array([0.9, 0.3, 0.6])
    share_ENC = softmax(score_ENC)
    expected = (
        np.log(np.einsum("e,enc->nc", weight_E, share_ENC) / weight_E.sum())
        if mean == "probabilities"
        else np.log(softmax(np.einsum("e,enc->nc", weight_E, score_ENC) / weight_E.sum()))
    )
    given = torch.from_numpy(share_ENC), torch.from_numpy(weight_E)
    found = together(*given, mean, several=False)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("mean", ["probabilities", "scores"])
def test_of_several_labels_each_is_told_by_itself(mean: str):
    logit_ENC = np.random.default_rng(1).normal(size=(2, 3, 4))
    weight_E = np.array([1.0, 3.0])
    shares = 1 / (1 + np.exp(-logit_ENC))
    share_NC = (shares[0] + 3 * shares[1]) / 4
    expected = np.log(share_NC / (1 - share_NC))
    if mean == "scores":
        expected = (logit_ENC[0] + 3 * logit_ENC[1]) / 4
    given = torch.from_numpy(shares), torch.from_numpy(weight_E)
    found = together(*given, mean, several=True)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_what_one_teacher_rules_out_is_finite():
    share_ENC = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    for mean in ("probabilities", "scores"):
        found = together(share_ENC, torch.tensor([0.5, 0.5]), mean, several=False)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.log(torch.tensor([[0.5, 0.5]])))


def test_clozes_label_together_and_one_classifier_learns_from_them(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    """Weighed by what each template got right before it was trained, as ``eval`` says it."""
    lines = labelled_file.read_text().splitlines()
    few, more = tmp_path / "few.csv", tmp_path / "more.txt"
    few.write_text("\n".join(lines[:25]) + "\n")
    more.write_text("\n".join(line.partition(",")[2] for line in lines[25:61]) + "\n")
    where = ("-w", own_workspace)
    names, accuracies = ("behind", "before"), []
    for name, template in zip(names, TEMPLATES, strict=True):
        asked = ("--data", few, "--template", template, "--labels", WORDS, *where)
        run_cli("finetune", "--from", "tiny", "--task", "cloze", *asked, "--name", name, *QUICK,
                "--set", "data.validation=0")  # fmt: skip
        report = run_cli("eval", "--from", "tiny", *asked, "--no-baselines", "--json").stdout
        accuracies.append(json.loads(report)["results"]["model, 0 shots"]["accuracy"])
    assert len({*accuracies}) == 2, "even weights would do"
    taught = [word for name in names for word in ("--teacher", name)]
    learn = (*DISTIL, *taught, "--from", "tiny", "--data", few, "--unlabelled", more, *where,
             "--set", "data.validation=0", "--set", "training.max_steps=4")  # fmt: skip
    weighed = ("--set", "ensemble.weights=accuracy", "--name", "together")
    told = said(run_cli(*learn, *weighed))
    shares = np.array(accuracies) / sum(accuracies)
    assert f"teachers weigh behind {shares[0]:.1%}, before {shares[1]:.1%}" in told
    assert "up to date" in said(run_cli(*learn, *weighed))
    # An imported cloze doesn't say what it was trained from.
    run_cli("import", own_workspace / "runs" / "behind" / "model", "--name", "abroad", *where)
    told = said(run_cli(*learn, *weighed, "--teacher", "abroad", code=3))
    assert "--teacher abroad got right before" in told
    run = own_workspace / "runs" / "together"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["summary"]["teachers"] == pytest.approx(dict(zip(names, shares, strict=True)))
    roles = [record["role"] for record in manifest["inputs"]]
    assert roles.count("teacher") == roles.count("untrained") == 2
    kept = load_file(run / "teacher" / "probabilities.safetensors")["probabilities"]
    assert kept.shape == (2, 60, 3)
    folder = open_folder(run / "model")
    assert folder.kind == "classify"
    for name, share_NC in zip(names, kept.numpy(), strict=True):
        answers = run_cli("predict", "--from", name, "--data", few, "--json", *where).stdout
        rows = [json.loads(line)["probabilities"] for line in answers.splitlines()]
        expected = [[row[label] for label in folder.labels or []] for row in rows]
        np.testing.assert_allclose(share_NC[:24], expected, rtol=1e-5)
    # Numbers as weights, and another mean: another student.
    other = ("--set", "ensemble.weights=1,0", "--set", "ensemble.mean=scores", "--name", "one")
    assert "teachers weigh behind 100.0%, before 0.0%" in said(run_cli(*learn, *other))


def test_teachers_that_do_not_go_together_are_refused_by_name(
    own_workspace: Path, labelled_file: Path, tmp_path: Path
):
    where = ("-w", own_workspace)
    others = tmp_path / "others.csv"
    others.write_text(labelled_file.read_text().replace("sea,", "ocean,"))
    run_cli("finetune", "--from", "tiny", "--data", others, "--name", "others", *QUICK, *where)
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    run_cli("finetune", "--from", "tiny", "--task", "embed", "--data", pairs, "--name", "vectors",
            *QUICK, *where)  # fmt: skip

    def refused(code: int, *words: str | Path) -> str:
        learn = (*DISTIL, "--from", "tiny", "--data", labelled_file, "--teacher", "subjects")
        return said(run_cli(*learn, *words, "--name", "none", *where, code=code))

    both = ("--teacher", "others")
    assert (
        "--teacher others answers with city, farm, ocean, and the first with city, farm, sea"
    ) in refused(3, *both)
    assert "--teacher vectors is an embedder" in refused(3, "--teacher", "vectors")
    assert "--teacher subjects is given twice" in refused(2, "--teacher", "subjects")
    again = own_workspace / "runs" / "subjects" / "model"
    assert "subjects are one model" in refused(2, "--teacher", again)
    assert "and there are 2; leave them out" in refused(2, *both, "--hidden", "1")
    assert "has 3 numbers for 2 teachers" in refused(2, *both, "--set", "ensemble.weights=1,2,3")
    assert "less than or equal to 1" in refused(2, *both, "--set", "ensemble.weights=1e308,1e308")
    assert "has 1 numbers for 2 teachers" in refused(2, *both, "--set", "ensemble.weights=1")
    assert "not all of them 0" in refused(2, *both, "--set", "ensemble.weights=0,0")
    assert "ensemble.* says how several" in refused(2, "--set", "ensemble.mean=scores")
    by_accuracy = ("--set", "ensemble.weights=accuracy")
    assert "it is no run of --task cloze" in refused(3, *both, *by_accuracy)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert "empty.txt has no texts" in refused(3, "--unlabelled", empty)
    layers = (*DISTIL, "--data", labelled_file, "--teacher", "subjects", *both, "--layers", "1")
    assert "--layers 1 takes the student" in said(run_cli(*layers, *where, code=2))
    assert not (own_workspace / "runs" / "none").exists()

"""Students: the losses in NumPy, layers and relations by hand, and runs from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.formats.open import open_folder
from llmctl.tasks.distil.inside import layer_as_far_up
from llmctl.tasks.distil.losses import (
    binary_divergence,
    divergence,
    hidden_distance,
    relation_distance,
    similarity_distance,
)
from llmctl.tasks.distil.student import kept_layers


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_divergence_is_that_of_the_papers(kind: str):
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 7, 11)) * 3
    q, p = softmax(student / 2.5), softmax(teacher / 2.5)
    m = 0.3 * p + 0.7 * q
    expected = {
        "forward": kl(p, q), "reverse": kl(q, p), "jsd": 0.3 * kl(p, m) + 0.7 * kl(q, m),
    }[kind] * 2.5**2  # fmt: skip
    found = divergence(
        torch.from_numpy(student), torch.from_numpy(teacher),
        kind=kind, temperature=2.5, jsd_weight=0.3,  # type: ignore[arg-type]
    )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)
    same = divergence(torch.from_numpy(teacher), torch.from_numpy(teacher), kind=kind)  # type: ignore[arg-type]
    assert same.abs().max() < 1e-6


def test_of_several_labels_each_is_a_yes_or_no():
    student, teacher = np.random.default_rng(1).normal(size=(2, 5, 4))
    q, p = (1 / (1 + np.exp(-x / 3.0)) for x in (student, teacher))
    expected = 9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(1)
    found = binary_divergence(torch.from_numpy(student), torch.from_numpy(teacher), temperature=3.0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_relations_are_told_by_heads_and_within_a_text():
    generator = np.random.default_rng(2)
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    student, teacher = generator.normal(size=(2, 5, 6)), generator.normal(size=(2, 5, 10))
    for causal in (False, True):
        expected = np.zeros(2)
        for text in range(2):
            length = int(mask[text].sum())
            for head in range(2):
                a = student[text, :length, 3 * head : 3 * head + 3]
                b = teacher[text, :length, 5 * head : 5 * head + 5]
                for t in range(length):
                    stop = t + 1 if causal else length
                    q = softmax(a[t] @ a[:stop].T / np.sqrt(3))
                    p = softmax(b[t] @ b[:stop].T / np.sqrt(5))
                    expected[text] += kl(p, q) / (2 * length)
        ours, theirs = torch.from_numpy(student), torch.from_numpy(teacher)
        found = relation_distance(
            (ours, ours), (theirs, theirs), torch.from_numpy(mask), heads=2, causal=causal
        )
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_hidden_states_and_similarities():
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(2, 2, 4, 3))
    mask = np.array([[True] * 4, [True, False, False, False]])
    cosine = (first * second).sum(-1) / (
        np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    )
    expected = [(1 - cosine[0]).mean(), 1 - cosine[1, 0]]
    found = hidden_distance(*map(torch.from_numpy, (first, second, mask)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    apart = first[0] @ first[0].T - second[0] @ second[0].T
    np.fill_diagonal(apart, 0)
    found = similarity_distance(torch.from_numpy(first[0]), torch.from_numpy(second[0]))
    np.testing.assert_allclose(found.numpy(), (apart**2).sum(1) / 3)


def test_layers_are_spread_evenly():
    assert kept_layers(4, 12) == [0, 4, 7, 11]
    assert kept_layers(1, 6) == [0]
    assert [layer_as_far_up(n, 4, 12) for n in range(4)] == [2, 5, 8, 11]
    assert [layer_as_far_up(n, 4, 6) for n in range(4)] == [1, 2, 4, 5]


DISTIL = ("finetune", "--task", "distil", "--set", "training.precision=fp32")


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def test_a_classifiers_student(own_workspace: Path, labelled_file: Path, tmp_path: Path):
    lines = labelled_file.read_text().splitlines()
    few, more = tmp_path / "few.csv", tmp_path / "more.txt"
    few.write_text("\n".join(lines[:40]) + "\n")
    more.write_text("\n".join(line.partition(",")[2] or line for line in lines[40:]) + "\n")
    where = ("-w", own_workspace)
    learn = (*DISTIL, "--teacher", "subjects", "--layers", "1", "--hidden", "0.5",
             "--unlabelled", more, "--data", few, "--set",
             "training.learning_rate=5e-3")  # fmt: skip
    made = run_cli(*learn, "--set", "training.epochs=8", "--name", "half", "--json", *where)
    summary = json.loads(made.stdout)
    assert {"agreement", "accuracy", "distil_loss", "hidden_loss"} <= summary["validation"].keys()
    folder = open_folder(own_workspace / "runs/half/model")
    assert folder.kind == "classify"
    assert folder.config.num_layers == 1
    assert not any("distil" in name for name in folder.tensors)
    # Made once more: the same bits.
    run_cli(*learn, "--set", "training.epochs=8", "--name", "half2", *where, "--force")
    assert weights(own_workspace / "runs/half") == weights(own_workspace / "runs/half2")
    table = json.loads(
        run_cli(
            "compress",
            "subjects",
            "--method",
            "distil",
            "--student",
            "half",
            "--eval",
            few,
            "--name",
            "table",
            "--json",
            *where,
        ).stdout
    )
    assert [row["name"] for row in table["rows"]] == ["table", "subjects"]
    assert table["rows"][0]["bytes_on_disk"] < table["rows"][1]["bytes_on_disk"]
    assert "table" in (own_workspace / "runs/table/model/README.md").read_text()


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("tiny-llama", ["--hidden", "0.5", "--attention", "0.5"]),
        ("tiny-gpt", ["--on-policy", "0.5", "--set", "objective.divergence=jsd",
                      "--set", "objective.prompt_tokens=4", "--set", "objective.max_new_tokens=4"]),
    ],
)  # fmt: skip
def test_a_decoders_student_is_the_same_to_the_bit(
    decoder_workspace: Path, corpus_file: Path, tmp_path: Path, teacher: str, options: list[str]
):
    text = tmp_path / "text.txt"
    text.write_text(corpus_file.read_text()[:6000])
    where = ("-w", decoder_workspace)
    learn = (*DISTIL, "--teacher", teacher, "--layers", "1", "--data", text, *options, *where,
             "--set", "data.max_length=32", "--set", "training.batch_size=8")  # fmt: skip
    run_cli(*learn, "--name", f"{teacher}-whole", "--set", "training.max_steps=6")
    again = run_cli(*learn, "--name", f"{teacher}-whole", "--set", "training.max_steps=6")
    assert "up to date" in said(again)
    run_cli(*learn, "--name", f"{teacher}-twice", "--set", "training.max_steps=6", "--force")
    runs = decoder_workspace / "runs"
    assert weights(runs / f"{teacher}-whole") == weights(runs / f"{teacher}-twice")
    assert open_folder(runs / f"{teacher}-whole/model").config.num_layers == 1


def test_a_masked_models_student(own_workspace: Path, corpus_file: Path):
    run_cli(*DISTIL, "--teacher", "tiny", "--layers", "1", "--attention", "1", "--data",
            corpus_file, "--name", "small", "--set", "training.max_steps=4", "-w",
            own_workspace)  # fmt: skip
    assert open_folder(own_workspace / "runs/small/model").kind == "masked_lm"


def test_what_can_not_be_learned_has_its_sentence(
    own_workspace: Path, labelled_file: Path, corpus_file: Path, tmp_path: Path
):
    short = tmp_path / "short.txt"
    short.write_text("the ship\n")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("label,text\nmoon,the ship\nsea,the sea\n")

    def refused(code: int, *words: str | Path) -> str:
        return said(run_cli(*DISTIL, *words, "-w", own_workspace, code=code))

    taught = ("--teacher", "subjects", "--data", labelled_file)
    assert "--teacher is missing" in refused(2, "--data", labelled_file)
    assert "--from is missing" in refused(2, *taught)
    assert "subjects has 2; use at most 2" in refused(2, *taught, "--layers", "3")
    wide = refused(2, *taught, "--arch", "bert", "--preset", "nano")
    assert "is 128 wide, and its teacher subjects is 32" in wide
    assert "both say which network" in refused(2, *taught, "--from", "tiny", "--layers", "1")
    of_text = ("--teacher", "tiny", "--layers", "1", "--data")
    assert "tokens, and a row takes 32" in refused(3, *of_text, short)
    named = refused(3, "--teacher", "subjects", "--layers", "1", "--data", wrong)
    assert "has no class 'moon'" in named
    on_policy = refused(2, *of_text, corpus_file, "--on-policy", "0.5")
    assert "objective.on_policy is not for --teacher tiny" in on_policy


def test_another_vocabulary_is_refused_where_tokens_are_compared(
    decoder_workspace: Path, tiny_workspace: Path, labelled_file: Path, tmp_path: Path
):
    teacher = tiny_workspace / "runs/subjects/model"
    words = (*DISTIL, "--teacher", teacher, "--from", "tiny-gpt", "--data", labelled_file)
    where = ("-w", decoder_workspace, "--set", "training.max_steps=2")
    run_cli(*words, "--name", "other-pieces", *where)
    refused = run_cli(*words, "--hidden", "1", *where, code=3)
    assert "has another vocabulary than --teacher" in said(refused)

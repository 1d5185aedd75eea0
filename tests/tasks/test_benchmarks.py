"""Tasks against transformers' logits of the same texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.workspace.artefacts import Workspace
from tests.language_models import PAIRS, WINDOW, measure, of_text, write


@pytest.mark.reference
def test_minimal_pairs_by_hand(models: Workspace, theirs: Any, tmp_path: Path):
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    expected = [
        sum(of_text(theirs, "", good)) > sum(of_text(theirs, "", bad)) for good, bad in PAIRS
    ]
    report = measure(models, "gpt", write(tmp_path / "x.jsonl", rows), compare=["grams"])
    assert (report["task"], report["examples"], report["chance"]) == ("blimp", 3, 0.5)
    plain = report["results"]["model"]["plain"]
    assert plain["accuracy"] == pytest.approx(np.mean(expected))
    assert plain["interval"][0] <= plain["accuracy"] <= plain["interval"][1]
    difference = report["differences"]["grams"]["difference"]
    assert difference == pytest.approx(
        plain["accuracy"] - report["results"]["grams"]["plain"]["accuracy"]
    )


def test_a_folder_is_a_table_with_its_mean(models: Workspace, tmp_path: Path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    write(folder / "b.jsonl", rows)
    # Both ways round: one of each is right, unless they tie.
    turned = [
        {"sentence_good": r["sentence_bad"], "sentence_bad": r["sentence_good"]} for r in rows
    ]
    write(folder / "a.jsonl", [*rows, *turned])
    report = measure(models, "gpt", folder, compare=["grams"])
    assert list(report["files"]) == ["a", "b"]
    shares = [entry["results"]["model"]["plain"]["accuracy"] for entry in report["files"].values()]
    assert shares[0] == 0.5
    mean = report["results"]["model"]["plain"]
    assert mean["accuracy"] == pytest.approx(np.mean(shares))
    assert mean["interval"][0] <= mean["accuracy"] <= mean["interval"][1]
    others = [entry["results"]["grams"]["plain"]["accuracy"] for entry in report["files"].values()]
    assert report["differences"]["grams"]["difference"] == pytest.approx(
        np.mean(shares) - np.mean(others)
    )


@pytest.mark.reference
def test_multiple_choice_by_hand(models: Workspace, theirs: Any, tmp_path: Path):
    questions = [
        {"question": f"What {verb} over the {place}?", "answerKey": key,
         "choices": {"text": ["the ship", "hens", "the old tram stops"], "label": ["A", "B", "C"]}}
        for verb, place, key in (("sails", "sea", "A"), ("walks", "barn", "B"), ("is", "city", "C"))
    ]  # fmt: skip
    report = measure(models, "gpt", write(tmp_path / "x.jsonl", questions), score="bytes")
    assert (report["task"], report["score"]) == ("multiple-choice", "bytes")
    right: dict[str, list[bool]] = {"plain": [], "tokens": [], "bytes": [], "pmi": []}
    for row in questions:
        texts = row["choices"]["text"]
        of = [of_text(theirs, f"Question: {row['question']}\nAnswer:", f" {t}") for t in texts]
        prior = [sum(of_text(theirs, "Answer:", f" {text}")) for text in texts]
        plain = np.array([sum(values) for values in of])
        scores = {
            "plain": plain,
            "tokens": plain / [len(values) for values in of],
            "bytes": plain / [len(text.encode()) for text in texts],
            "pmi": plain - prior,
        }
        for way, values in scores.items():
            right[way].append("ABC"[values.argmax()] == row["answerKey"])
    found = {way: entry["accuracy"] for way, entry in report["results"]["model"].items()}
    assert found == pytest.approx({way: np.mean(values) for way, values in right.items()})
    assert report["summary"]["accuracy"] == found["bytes"]


@pytest.mark.reference
def test_the_last_word_by_hand(models: Workspace, theirs: Any, tmp_path: Path):
    tokenizer, log_probs = theirs
    context = "the captain watches the"
    ids = tokenizer(context)["input_ids"]
    # What the model itself would write, up to the end of a word, and something else.
    written = list(ids)
    while not (text := tokenizer.decode(written[len(ids) :])).strip() or len(text.split()) < 2:
        written.append(int(log_probs(written)[-1].argmax()))
        if len(written) >= WINDOW - 2:
            pytest.skip("a model that writes no word end says nothing here")
    word = text.split()[0]
    passages = [f"{context}{text[: text.index(word)]}{word}", f"{context} stars"]
    expected, totals = [], []
    for passage in passages:
        before, _, last = passage.rpartition(" ")
        values = of_text(theirs, before, f" {last}")
        totals.append(sum(values))
        whole = tokenizer(passage)["input_ids"]
        first = len(tokenizer(before)["input_ids"])
        table = log_probs(whole[:-1])
        expected.append(all(table[n - 1].argmax() == whole[n] for n in range(first, len(whole))))
    rows = [{"text": passage} for passage in passages]
    report = measure(models, "gpt", write(tmp_path / "x.jsonl", rows), task="lambada")
    row = report["results"]["model"]
    assert row["greedy"]["accuracy"] == np.mean(expected)
    assert row["word_perplexity"] == pytest.approx(math.exp(-np.mean(totals)), rel=1e-4)
    assert report["chance"] is None

"""What models give back of their training text, against greedy decoding by transformers."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llmctl.data.shards.files import ShardReader
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import Report
from llmctl.evaluation.suites.memory import BY_CHANCE, alternatives, exposure, stretches
from llmctl.reporting.report import render_report
from llmctl.tasks.kept_reports import parts_of
from llmctl.workspace.artefacts import Workspace
from tests.language_models import measure


@pytest.mark.reference
def test_extraction_is_greedy_decoding(models: Workspace, theirs: Any, tmp_path: Path):
    canaries = tmp_path / "canaries.txt"
    canaries.write_text("the code of the ship is 7\n\nthe tram stops at 4\n")
    report = measure(models, "gpt", canaries, suite="memory", limit=12, compare=["grams"], seed=3)
    tokenizer, log_probs = theirs
    length = report["length"]
    for part, split in (("train", "train"), ("held out", "validation")):
        reader = ShardReader(models.path("shards", "stories"), split)
        found = stretches(reader, 12, length, 3)
        right, losses = 0, []
        for before, after in found:
            table = log_probs([*before, *after[:-1]])[length - 1 :]
            right += int((table.argmax(-1) == after).all())
            losses.append(-table[np.arange(length), after].mean())
        row = report["results"]["model"][part]
        assert row["stretches"] == len(found)
        assert row["extracted"] == right / len(found)
        assert row["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert report["results"]["grams"]["train"]["stretches"] == 12
    start = tokenizer.bos_token_id
    canary = "the tram stops at 4"
    scores = []
    for digit in range(10):
        ids = tokenizer(f"{canary[:-1]}{digit}", add_special_tokens=False)["input_ids"]
        table = log_probs([start, *ids[:-1]])
        scores.append(float(table[np.arange(len(ids)), ids].sum()))
    rank = sorted(scores, reverse=True).index(scores[4]) + 1
    told = report["results"]["model"]["canaries"][1]
    assert told["candidates"] == 10
    assert told["rank"] == rank
    assert told["exposure"] == pytest.approx(math.log2(10) - math.log2(rank))
    file = io.StringIO()
    Console(file=file, width=160).print(render_report(parts_of(Report.read(report), tmp_path)))
    assert "of held-out text" in file.getvalue()
    assert canary in file.getvalue()


def test_counts_know_what_they_have_read(models: Workspace):
    row = measure(models, "grams", suite="memory", limit=20)["results"]["model"]
    assert row["train"]["loss"] < row["held out"]["loss"]


def test_stretches_are_of_the_documents(models: Workspace):
    reader = ShardReader(models.path("shards", "stories"), "train")
    found = stretches(reader, 10, 8, 0)
    assert len(found) == 10
    texts = [reader.tokens(n).astype(int).tolist() for n in range(len(reader))]
    for before, after in found:
        whole = [*before.tolist(), *after.tolist()]
        assert any(whole == text[at : at + 16] for text in texts for at in range(len(text) - 15))


def test_alternatives_have_the_form_and_exposure_is_what_chance_gives():
    found = alternatives("pin 0420, room 7", 1)
    assert len(found) == len(set(found)) == 999
    assert "pin 0420, room 7" not in found
    assert all(text.startswith("pin ") and text[8:15] == ", room " for text in found)
    generator = np.random.default_rng(0)
    bits = [exposure(generator.normal(size=1000).tolist())[0] for _ in range(4000)]
    assert np.mean(bits) == pytest.approx(BY_CHANCE, abs=0.1)
    assert exposure([0.0] * 9) == pytest.approx((math.log2(9) - math.log2(5), 5))


@pytest.mark.parametrize(
    ("start", "options", "kind", "says"),
    [
        ("gpt", {"compare": ["other"]}, UsageError, "--compare other has another tokenizer"),
        ("subjects", {}, UsageError, "--suite memory is not for subjects"),
        ("gpt", {"canary": "no secret\n"}, InputError, "line 1 has no digit"),
        ("gpt", {"canary": "\n"}, InputError, "has no canary"),
        ("folder", {}, InputError, "does not say what it was trained on"),
    ],
)
def test_what_cannot_be_measured(
    models: Workspace,
    tmp_path: Path,
    start: str,
    options: dict[str, Any],
    kind: type[Exception],
    says: str,
):
    data = None
    if "canary" in options:
        data = tmp_path / "canaries.txt"
        data.write_text(options.pop("canary"))
    if start == "folder":
        start = str(models.path("run", "gpt") / "model")
    with pytest.raises(kind, match=says):
        measure(models, start, data, suite="memory", **options)

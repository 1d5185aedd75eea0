"""Perplexity against transformers' logits of the same text, window by window."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.data.shards.files import ShardReader
from llmctl.workspace.artefacts import Workspace
from tests.language_models import WINDOW, Notes, measure


@pytest.mark.reference
@pytest.mark.parametrize("stride", [5, None])
def test_perplexity_by_its_definition(models: Workspace, theirs: Any, stride: int | None):
    tokenizer, log_probs = theirs
    shards = models.get("shards", "stories")
    reader = ShardReader(shards.folder, "validation")
    assert max(reader.document_lengths) > 2 * WINDOW  # so that there is something to slide over
    step = stride or WINDOW // 2
    nll, tokens, size = 0.0, 0, 0
    for number in range(len(reader)):
        body = reader.tokens(number).tolist()
        ids = [tokenizer.bos_token_id, *body, tokenizer.eos_token_id]
        end = min(WINDOW + 1, len(ids))
        table = log_probs(ids[: end - 1])
        nll -= sum(table[place - 1, ids[place]] for place in range(1, end))
        while end < len(ids):
            begin, end = end, min(end + step, len(ids))
            first = end - 1 - WINDOW
            table = log_probs(ids[first : end - 1])
            nll -= sum(table[place - 1 - first, ids[place]] for place in range(begin, end))
        tokens += len(ids) - 1
        size += len(tokenizer.decode(body).encode())
    row = measure(models, stride=stride, baselines=False)["results"]["model"]
    assert (row["tokens"], row["bytes"], row["documents"]) == (tokens, size, len(reader))
    # fp32 sums in another order.
    assert row["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert row["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert row["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
    low, high = row["interval"]
    assert low < row["bits_per_byte"] < high


def test_blocks_are_what_training_looked_at(models: Workspace):
    report = measure(models, compare=["llama"])
    for name, run in (("model", "gpt"), ("llama", "llama")):
        blocks = report["results"][name]["blocks"]
        last = models.get("run", run).manifest.summary["validation"]
        assert blocks["length"] == WINDOW
        assert blocks["loss"] == pytest.approx(last["lm_loss"], rel=1e-6)
        assert blocks["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
        assert blocks["perplexity"] == pytest.approx(math.exp(last["lm_loss"]), rel=1e-5)


def test_an_ngram_model_of_the_shards_stands_beside(models: Workspace):
    heard = Notes()
    report = measure(models, reporter=heard)
    model, grams = report["results"]["model"], report["results"]["grams"]
    assert "beside it: grams, the n-gram model of shards/stories" in report["notes"]
    # What the pretraining has hardly learned is said too.
    assert heard.notes == [*report["notes"], report["learned"]]
    assert (grams["kind"], grams["order"]) == ("ngram", 4)
    assert grams["tokens"] == model["tokens"]
    last = models.get("run", "grams").manifest.summary["validation"]
    assert grams["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-9)
    difference = report["differences"]["grams"]
    assert difference["difference"] == pytest.approx(
        model["bits_per_byte"] - grams["bits_per_byte"]
    )
    assert difference["low"] < difference["difference"] < difference["high"]
    alone = measure(models, "grams")
    assert alone["results"]["model"] == grams
    assert list(measure(models, baselines=False)["results"]) == ["model"]


def test_without_an_ngram_model_the_report_says_how_to_make_one(models: Workspace, tmp_path: Path):
    import shutil

    root = Path(shutil.copytree(models.root, tmp_path / "w"))
    shutil.rmtree(root / "runs" / "grams")
    report = measure(Workspace(root))
    assert report["notes"] == [
        "no n-gram model of shards/stories to compare with; make one: llmctl pretrain --arch ngram "
        "--shards stories"
    ]


def test_a_model_with_another_tokenizer_gets_the_same_text(models: Workspace, tmp_path: Path):
    report = measure(models, compare=["other"])
    model, other = report["results"]["model"], report["results"]["other"]
    assert list(report["results"]) == ["model", "other"]  # an n-gram model is there already
    assert other["bytes"] == model["bytes"]
    assert other["tokens"] == other["bytes"] + other["documents"]  # characters, and their ends
    reader = ShardReader(models.get("shards", "stories").folder, "validation")
    from llmctl.tokenizers import load

    tokenizer = load(models.get("shards", "stories").folder / "tokenizer")
    texts = [tokenizer.decode(reader.tokens(n).tolist()) for n in range(len(reader))]
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts) + "\n")
    alone = measure(models, "other", data, document="line")["results"]["model"]
    assert alone["bits_per_byte"] == pytest.approx(other["bits_per_byte"])
    of_file = measure(models, "gpt", data, document="line", baselines=False)["results"]["model"]
    assert of_file["loss"] == pytest.approx(model["loss"])
    assert "blocks" not in of_file


def test_whole_documents_up_to_so_many_tokens(models: Workspace):
    reader = ShardReader(models.get("shards", "stories").folder, "validation")
    lengths = np.cumsum(reader.document_lengths + 1)
    row = measure(models, max_tokens=int(lengths[1]) + 1, baselines=False)["results"]["model"]
    assert (row["documents"], row["tokens"]) == (3, lengths[2])
    row = measure(models, max_tokens=int(lengths[1]), baselines=False)["results"]["model"]
    assert (row["documents"], row["tokens"]) == (2, lengths[1])


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_other_weights_stand_beside_those_of_fp32(models: Workspace, dtype: str):
    report = measure(models, dtype=dtype)
    assert list(report["results"]) == ["model", "model, fp32", "grams"]
    fp32 = measure(models, baselines=False)["results"]["model"]
    assert report["results"]["model, fp32"] == fp32
    assert report["results"]["model"]["dtype"] == dtype
    assert "blocks" not in report["results"]["model"]
    effect = report["differences"]["model, fp32"]
    assert effect["difference"] == pytest.approx(
        report["results"]["model"]["bits_per_byte"] - fp32["bits_per_byte"]
    )
    # A rounding of 1/256 of the largest weight: something, and little.
    assert 0 < abs(effect["difference"]) < 0.02


def test_unknown_characters_are_said(models: Workspace, tmp_path: Path):
    data = tmp_path / "x.txt"
    data.write_text("the ship ☃☃")
    notes = measure(models, "other", data)["notes"]
    assert any("2 tokens of the text are unknown" in note for note in notes)

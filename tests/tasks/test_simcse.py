"""Unsupervised contrastive pretraining: its batches, what it learns, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llmctl import tokenizers
from llmctl.data.shards.files import ShardReader
from llmctl.tasks.simcse.batches import FEWEST_PIECES, Sentences, SimcseBatches, layout_of
from tests.run import llmctl

QUICK = ("--set", "training.precision=fp32", "--set", "training.batch_size=16")


@pytest.fixture
def sentences(tiny_workspace: Path) -> Sentences:
    return Sentences(ShardReader(tiny_workspace / "shards" / "stories", "train"))


def batches(tiny_workspace: Path, sentences: Sentences, *, training: bool = True) -> SimcseBatches:
    tokenizer = tokenizers.load(tiny_workspace / "shards" / "stories" / "tokenizer")
    return SimcseBatches(
        sentences, layout_of(tokenizer, encoder=True), length=24, batch_size=16,
        pad=tokenizer.special["pad"], seed=3, training=training,
    )  # fmt: skip


def test_sentences_are_those_of_the_shards(sentences: Sentences):
    reader, number = sentences.reader, 0
    for document in range(20):
        tokens = reader.tokens(document)
        starts = [*reader.sentence_starts(document).tolist(), len(tokens)]
        for first in range(len(starts) - 1):
            found = sentences.pieces(number, 1000)
            begin = starts[first]
            np.testing.assert_array_equal(found, tokens[begin : begin + len(found)])
            assert begin + len(found) in starts
            assert len(found) >= FEWEST_PIECES or begin + len(found) == len(tokens)
            assert len(sentences.pieces(number, 4)) <= 4
            number += 1


def test_each_sentence_is_there_twice_and_once_an_epoch(tiny_workspace: Path, sentences: Sentences):
    made = batches(tiny_workspace, sentences)
    seen = set()
    for number in range(made.per_epoch):
        batch = made(number)
        pieces = np.split(
            batch.input_ids_BT.numpy()[_real(batch)], np.cumsum(batch.lengths_S.numpy())[:-1]
        )
        texts = [tuple(pieces[place]) for place in batch.place_S.tolist()]
        assert texts[:16] == texts[16:]
        assert max(map(len, texts)) <= 24
        # The same sentence elsewhere in the batch is none of its negatives.
        for row, false in enumerate(batch.false_EC.tolist()):
            expected = [text == texts[row] and n != row for n, text in enumerate(texts[:16])]
            assert false == expected
        seen.update(texts)
    assert len(seen) > 0.9 * len({tuple(t) for t in _all(made, sentences)})
    np.testing.assert_array_equal(made(5).input_ids_BT, made(5).input_ids_BT)
    again = made(made.per_epoch)  # the next epoch's order is another
    assert not torch.equal(again.lengths_S, made(0).lengths_S)


def _real(batch: object) -> np.ndarray:
    packed = batch.packed  # type: ignore[attr-defined]
    return packed.sequence_ids_BT.numpy() > 0


def _all(made: SimcseBatches, sentences: Sentences) -> list[list[int]]:
    return [made._twice(number).texts[0].tolist() for number in range(sentences.count)]


def test_it_makes_an_embedder(own_workspace: Path, tmp_path: Path):
    llmctl(own_workspace, "pretrain", "--task", "simcse", "--from", "tiny", *QUICK,
           "--set", "training.max_steps=20", "--name", "readings")  # fmt: skip
    config = json.loads((own_workspace / "runs/readings/model/config.json").read_text())
    assert (config["llmctl_task"], config["llmctl_pooling"]) == ("embed", "mean")
    lines = (own_workspace / "runs/readings/metrics.jsonl").read_text().splitlines()
    losses = [r["loss"] for r in map(json.loads, lines) if r.get("kind") == "train"]
    assert losses[-1] < losses[0]
    # It goes on from there, and what it made is found nearest to itself.
    llmctl(own_workspace, "pretrain", "--task", "simcse", "--from", "readings", *QUICK,
           "--set", "training.max_steps=2", "--set", "objective.pooling=cls",
           "--name", "further")  # fmt: skip
    text = tmp_path / "t.txt"
    text.write_text("the ship sails\nhens lay eggs\nthe tram stops\n")
    index = tmp_path / "v.arrow"
    llmctl(own_workspace, "embed", "--from", "further", "--data", text, "--out", index)
    found = llmctl(own_workspace, "search", index, "hens lay eggs", "--top", 1, "--json").stdout
    assert json.loads(found)["hits"][0]["text"] == "hens lay eggs"


def test_bad_input_has_its_sentence(tiny_workspace: Path, decoder_workspace: Path):
    def refused(*words: object, workspace: Path = tiny_workspace, code: int = 2) -> str:
        return llmctl(workspace, "pretrain", "--task", "simcse", *words, code=code).stderr

    assert "give a pretrained one with --from" in refused()
    one = refused("--from", "tiny", "--set", "training.batch_size=1")
    assert "a sentence is compared with the others of its batch" in one
    many = refused("--from", "tiny", "--set", "training.batch_size=100000", code=3)
    assert "sentences, and a batch wants 100000" in many
    llama = refused("--from", "tiny-llama", workspace=decoder_workspace)
    assert "by dropout, which a llama has none of" in llama

"""Documents to ids: the same for any grouping and any number of workers, sentences in place."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.encoding import EncodedBatch, encode_documents, encode_in_order
from llmctl.data.sentences import sentence_starts
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.bpe import learn_bpe
from llmctl.tokenizers.wordpiece import SPECIAL, build_wordpiece

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
PIECES = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", ",", "the", "河", "。"]

TEXTS = st.lists(
    st.lists(
        st.sampled_from(
            ["The ship sails.", "Why?", " ", "\n\n", "it is 3 p.m. now", "河。河", "é."]
        )
        | st.text(max_size=8),
        max_size=8,
    ).map(" ".join),
    max_size=8,
)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return build_wordpiece(PIECES, cased=False)


def unpack(batch: EncodedBatch) -> list[tuple[list[int], list[int]]]:
    return [(tokens.tolist(), starts.tolist()) for tokens, starts in batch.documents()]


@settings(max_examples=80, deadline=None)
@given(texts=TEXTS.filter(len))
def test_a_document_is_its_sentences_end_to_end(wordpiece: Tokenizer, texts: list[str]):
    for text, (tokens, starts) in zip(
        texts, unpack(encode_documents(wordpiece, texts)), strict=True
    ):
        cuts = [*sentence_starts(text), len(text)]
        sentences = [wordpiece.encode(text[a:b]) for a, b in pairwise(cuts)]
        whole = [sentence for sentence in sentences if sentence]
        assert tokens == [token for sentence in whole for token in sentence]
        assert starts == [0, *np.cumsum([len(s) for s in whole])[:-1].tolist()] * bool(whole)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS.filter(len), cut=st.integers(0, 8))
def test_grouping_changes_nothing(wordpiece: Tokenizer, texts: list[str], cut: int):
    whole = encode_documents(wordpiece, texts)
    parts = [encode_documents(wordpiece, part) for part in (texts[:cut], texts[cut:]) if part]
    assert unpack(whole) == [document for part in parts for document in unpack(part)]
    assert whole.words == sum(part.words for part in parts)
    assert whole.unknown == sum(part.unknown for part in parts)


def test_a_worked_example(wordpiece: Tokenizer):
    encoded = encode_documents(wordpiece, ["The a. The É 7!", "", "河。河", "\x00"])
    the, a, e, stop, unknown, river, full = (
        PIECES.index(piece) for piece in ("the", "a", "e", ".", "[UNK]", "河", "。")
    )
    assert unpack(encoded) == [
        ([the, a, stop, the, e, unknown, unknown], [0, 3]),
        ([], []),
        ([river, full, river], [0, 2]),
        ([], []),
    ]
    assert encoded.unknown == 2
    assert encoded.tokens.dtype == np.uint16


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | TEXTS.map("".join))
def test_byte_level_pieces_lose_nothing_at_sentence_starts(bpe: Tokenizer, text: str):
    [(tokens, starts)] = unpack(encode_documents(bpe, [text]))
    assert bpe.decode(tokens) == text
    assert all(0 <= start < len(tokens) for start in starts)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return learn_bpe(["The ship sails over the sea. The sea is wide. " * 20], 280)


def test_byte_level_sentences_begin_with_their_space(bpe: Tokenizer):
    """As the middle of a text does, so a word has one id in both places."""
    text = "The ship sails. The sea is wide."
    [(tokens, starts)] = unpack(encode_documents(bpe, [text]))
    assert len(starts) == 2
    assert tokens == bpe.encode(text)
    assert bpe.decode(tokens[starts[1] :]) == " The sea is wide."


def test_workers_give_the_same_in_the_same_order(
    wordpiece: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wordpiece.save(tmp_path)
    batches = [
        [f"The {letter * size}. Why {letter}?" for letter in LETTERS] for size in range(1, 12)
    ]
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    results = {n: list(encode_in_order(batches, tmp_path, n)) for n in (1, 2)}
    assert os.environ["RAYON_NUM_THREADS"] == "7"
    for one, two, batch in zip(results[1], results[2], batches, strict=True):
        assert len(one.token_counts) == len(batch)
        assert unpack(one) == unpack(two)
        assert unpack(one) == unpack(encode_documents(wordpiece, batch))
        assert (one.words, one.unknown) == (two.words, two.unknown)
    assert sum(batch.words for batch in results[1]) == 4 * len(LETTERS) * len(batches)


def test_workers_take_no_more_batches_than_they_can_hold(
    wordpiece: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    wordpiece.save(tmp_path)
    taken = 0

    def count() -> list[str]:
        nonlocal taken
        taken += 1
        return ["The sea."]

    results = encode_in_order((count() for _ in range(100)), tmp_path, 2)
    next(results)
    assert taken <= 4
    results.close()  # type: ignore[attr-defined]
    assert "RAYON_NUM_THREADS" not in os.environ

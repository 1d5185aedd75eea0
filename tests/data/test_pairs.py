"""Sentence pairs: half true, half from another document, and nothing else tells them apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmctl.data.chunks import Chunks
from llmctl.data.keyed import key_of
from llmctl.data.pairs import TextPair, draw_pairs

DOCUMENT = 1000


class Documents:
    """Token n of document d is 1000 · d + n, so a token tells where it came from."""

    def __init__(self, lengths: list[int], sentence: int = 5) -> None:
        self.document_lengths = np.asarray(lengths, dtype=np.int64)
        self._sentence = sentence

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        return (DOCUMENT * document + np.arange(self.document_lengths[document]))[start:stop]

    def sentence_starts(self, document: int) -> NDArray[np.int64]:
        return np.arange(0, self.document_lengths[document], self._sentence)


def draw(
    lengths: list[int], *, sentence: int = 5, max_tokens: int = 24, seed: int = 0, count: int = 400
) -> list[tuple[tuple[int, int, int], TextPair]]:
    """Pairs at the first positions of the stream, each with its chunk's document, start, stop."""
    reader = Documents(lengths, sentence)
    chunks = Chunks(reader, max_tokens, seed=seed, shuffle=True)  # type: ignore[arg-type]
    refs = chunks.at(np.arange(count))
    pairs = draw_pairs(chunks, refs, key_of(seed, "pairs"))
    where = zip(refs.document.tolist(), refs.start.tolist(), refs.stop.tolist(), strict=True)
    return list(zip(where, pairs, strict=True))


LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(any)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, sentence=st.integers(1, 40), seed=st.integers(0, 1000))
def test_true_pairs_are_adjacent_and_random_ones_come_from_another_document(
    lengths: list[int], sentence: int, seed: int
):
    for (document, start, stop), pair in draw(lengths, sentence=sentence, seed=seed, count=100):
        first, second = pair.first.tolist(), pair.second.tolist()
        chunk = list(range(DOCUMENT * document + start, DOCUMENT * document + stop))
        assert first == chunk[: len(first)]
        assert first
        if pair.is_next:
            assert first + second == chunk
        else:
            assert second
            assert second == list(range(second[0], second[0] + len(second)))
            assert {token // DOCUMENT for token in second} != {document}
            assert len({token // DOCUMENT for token in second}) == 1
        assert len(first) + len(second) <= len(chunk)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 200), sentence=st.integers(1, 40), max_tokens=st.integers(2, 30))
def test_a_corpus_of_one_document_gives_only_true_pairs(
    length: int, sentence: int, max_tokens: int
):
    pairs = draw([length], sentence=sentence, max_tokens=max_tokens, count=100)
    assert all(pair.is_next for _, pair in pairs)


def test_half_the_pairs_are_true():
    """Within five standard deviations of a fair coin."""
    count = 20_000
    drawn = draw([40 + n % 50 for n in range(200)], count=count)
    share = sum(pair.is_next for _, pair in drawn) / count
    assert abs(share - 0.5) < 5 * math.sqrt(0.25 / count)


def test_a_chunk_is_paired_anew_each_epoch():
    lengths = [24] * 50
    epochs = draw(lengths, count=100)
    truth: dict[tuple[int, int, int], list[bool]] = {}
    for where, pair in epochs:
        truth.setdefault(where, []).append(pair.is_next)
    changed = sum(len(set(labels)) == 2 for labels in truth.values())
    assert 10 < changed < 40


def test_a_cut_is_at_a_sentence_where_there_is_one():
    for (_, start, stop), pair in draw([60] * 30, sentence=5, max_tokens=24):
        cut = start + len(pair.first)
        assert start < cut < stop
        assert cut % 5 == 0


def test_every_sentence_start_is_a_cut_sometimes():
    cuts = {len(pair.first) for (_, start, _), pair in draw([24] * 30, sentence=5) if start == 0}
    assert cuts == {5, 10, 15, 20}


def test_a_chunk_of_one_sentence_is_cut_at_any_token():
    cuts = {len(pair.first) for _, pair in draw([12] * 30, sentence=100, count=2000)}
    assert cuts == set(range(1, 12))


def test_length_does_not_tell_random_pairs_where_documents_are_alike():
    drawn = draw([24] * 200, count=20_000)
    for part in ("first", "second"):
        lengths = [
            [len(getattr(pair, part)) for _, pair in drawn if pair.is_next is label]
            for label in (True, False)
        ]
        a, b = (np.asarray(values, dtype=float) for values in lengths)
        spread = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 5 * spread + 0.02, part


@pytest.mark.parametrize("count", [1, 3, 64])
def test_pairs_depend_on_seed_and_position_alone(count: int):
    """Not on which other positions were drawn with them."""
    reader = Documents([10, 40, 33, 5, 70])
    chunks = Chunks(reader, 24, seed=3, shuffle=True)  # type: ignore[arg-type]
    whole = draw_pairs(chunks, chunks.at(np.arange(192)), 17)
    for begin in range(0, 192, count):
        part = draw_pairs(chunks, chunks.at(np.arange(begin, min(begin + count, 192))), 17)
        for a, b in zip(whole[begin : begin + count], part, strict=True):
            assert a.is_next == b.is_next
            np.testing.assert_array_equal(a.first, b.first)
            np.testing.assert_array_equal(a.second, b.second)


def test_another_key_gives_other_pairs():
    chunks = Chunks(Documents([40] * 20), 24, seed=3, shuffle=True)  # type: ignore[arg-type]
    refs = chunks.at(np.arange(64))
    labels = [[pair.is_next for pair in draw_pairs(chunks, refs, key)] for key in (1, 2)]
    assert labels[0] != labels[1]

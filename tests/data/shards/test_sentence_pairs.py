"""Sentence pairs: half true, half from elsewhere, and nothing but their text tells them apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmctl.data.random import key_of
from llmctl.data.shards.chunks import Chunks
from llmctl.data.shards.sentence_pairs import TextPair, draw_pairs

DOCUMENT = 1_000_000


class Documents:
    """Token n of document d is 1,000,000 · d + n, so a token tells where it came from."""

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


@given(lengths=LENGTHS, sentence=st.integers(1, 40), seed=st.integers(0, 1000))
def test_true_pairs_are_adjacent_and_random_ones_are_not(
    lengths: list[int], sentence: int, seed: int
):
    max_tokens = 24
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
            if second[0] // DOCUMENT == document:
                assert second[-1] < chunk[0] - max_tokens or second[0] > chunk[-1] + max_tokens
        assert len(first) + len(second) <= len(chunk)


def test_one_short_document_gives_only_true_pairs():
    for length in (1, 2, 24, 48):
        assert all(pair.is_next for _, pair in draw([length], count=50)), length


def binomial(share: float, count: int) -> float:
    """Five standard deviations of the share seen in ``count`` draws."""
    return 5 * math.sqrt(share * (1 - share) / count)


CORPORA = {
    "one long document": [20_000],
    "one long, one short": [20_000, 200],
    "one long, many tiny": [20_000, *[9] * 50],
    "fifty of few tokens": [2 + n % 5 for n in range(50)],
    "two": [30, 40],
    "alike": [24] * 50,
    "mixed": [5 + n * 7 % 90 for n in range(200)],
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("sentence", [5, 1000])
def test_half_the_pairs_are_true_in_any_corpus(name: str, sentence: int):
    count = 4000
    pairs = [pair for _, pair in draw(CORPORA[name], sentence=sentence, count=count)]
    share = sum(pair.is_next for pair in pairs) / count
    assert abs(share - 0.5) < binomial(0.5, count)


@pytest.mark.parametrize("name", ["one long document", "one long, one short", "alike", "mixed"])
def test_neither_ending_nor_beginning_tells_which_pairs_are_true(name: str):
    """How often B ends with its document, starts a sentence or starts a document."""
    lengths, sentence, count = CORPORA[name], 5, 8000
    drawn = draw(lengths, sentence=sentence, count=count)
    marks = {
        "ends its document": lambda b: b[-1] % DOCUMENT == lengths[b[-1] // DOCUMENT] - 1,
        "starts a sentence": lambda b: b[0] % DOCUMENT % sentence == 0,
        "starts its document": lambda b: b[0] % DOCUMENT == 0,
    }
    for mark, test in marks.items():
        for label in (True, False):
            bs = [pair.second.tolist() for _, pair in drawn if pair.is_next is label]
            share = sum(map(test, bs)) / len(bs)
            both = sum(test(pair.second.tolist()) for _, pair in drawn) / count
            if mark == "starts its document":
                assert share == 0
            else:
                # One document has one end, so text from elsewhere in it has none.
                slack = 0.01 if lengths[0] == 20_000 else 0
                assert abs(share - both) <= binomial(both, len(bs)) + slack, (mark, label)


def test_a_random_text_within_a_document_is_as_long_to_the_token():
    for (document, start, stop), pair in draw([20_000, 5000, 300], sentence=7, count=2000):
        if stop < [20_000, 5000, 300][document]:
            assert len(pair.first) + len(pair.second) == stop - start


def test_a_random_ending_is_nearly_as_long():
    """Sentences fall as they may: the longest tail that fits is found among many documents."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(10, 24, 500).tolist()
    drawn = draw(lengths, sentence=4, count=8000)
    sizes = [[len(p.second) for _, p in drawn if p.is_next is label] for label in (True, False)]
    assert abs(np.mean(sizes[0]) - np.mean(sizes[1])) < 0.25


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

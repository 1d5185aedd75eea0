"""N-grams that a test shares with training texts, and near-duplicates, against plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmctl.errors import InputError
from llmctl.evaluation import contamination
from llmctl.evaluation.contamination import (
    ContaminationIndex,
    MinHash,
    TextRow,
    WordHasher,
    jaccard,
    ngram_hashes,
    shingles,
)
from llmctl.evaluation.wilson import wilson_interval

WORDS = [f"word{number}" for number in range(400)]


def text_of(generator: random.Random, count: int) -> str:
    return " ".join(generator.choices(WORDS, k=count))


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]


def test_shared_ngrams_and_cover_are_those_of_sets():
    generator = random.Random(0)
    documents = [text_of(generator, generator.randint(5, 60)) for _ in range(60)]
    rows = []
    for number in range(40):
        own = text_of(generator, generator.randint(3, 25))
        words = documents[number].split()
        taken = " ".join(words[: generator.randint(0, 20)]) if number % 2 else ""
        rows.append(TextRow(f"test:{number}", [f"{own} {taken}".upper(), "label"]))
    index = ContaminationIndex(rows, WordHasher())
    for number, document in enumerate(documents):
        index.look(str(number), document)
    found = index.results()
    assert found["documents"] == 60
    total = sum(len(text.split()) for row in rows for text in row.texts)
    for size in (13, 8):
        known = {gram for document in documents for gram in grams(document, size)}
        hit, long_enough, covered = 0, 0, 0
        for row in rows:
            text = row.texts[0]
            places = [n for n, gram in enumerate(grams(text, size)) if gram in known]
            hit += bool(places)
            long_enough += bool(grams(text, size))
            covered += len({place + k for place in places for k in range(size)})
        entry = found["ngrams"][str(size)]
        assert hit
        assert (entry["count"], entry["of"]) == (hit, long_enough)
        assert entry["too_short"] == 40 - long_enough
        assert entry["interval"] == pytest.approx(wilson_interval(hit, long_enough))
        assert entry["words"] == pytest.approx(covered / total)


def test_near_duplicates_are_all_found_and_their_similarity_is_exact():
    generator = random.Random(1)
    documents = [text_of(generator, 60) for _ in range(80)]
    rows = []
    for number, document in enumerate(documents):
        words = document.split()
        for _ in range(number % 12):  # from equal to quite another
            words[generator.randrange(60)] = "changed"
        rows.append(TextRow(f"test:{number}", [" ".join(words)]))
    index = ContaminationIndex(rows, WordHasher())
    for number, document in enumerate(documents):
        index.look(str(number), document)
    told = {entry["row"]: entry for entry in index.results()["found"] if entry["document"]}
    expected = {}
    for number, row in enumerate(rows):
        own, other = set(grams(row.texts[0], 5)), set(grams(documents[number], 5))
        similarity = len(own & other) / len(own | other)
        if similarity >= 0.8:
            expected[row.source] = (str(number), similarity)
    assert 10 < len(expected) < 40
    assert set(told) == set(expected)
    for source, (document, similarity) in expected.items():
        assert told[source]["document"] == document
        assert told[source]["similarity"] == pytest.approx(similarity)
        # Five standard deviations of 128 throws.
        error = 5 * (similarity * (1 - similarity) / 128) ** 0.5
        assert told[source]["estimate"] == pytest.approx(similarity, abs=error + 1e-9)


def test_signatures_estimate_without_bias():
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 1 << 64, 400, dtype=np.uint64)
    first, second = np.unique(drawn[:300]), np.unique(drawn[100:])
    exact = jaccard(first, second)
    assert exact == len(set(first) & set(second)) / len(set(first) | set(second))
    minhash = MinHash(functions=4096)
    estimate = (minhash.signature(first) == minhash.signature(second)).mean()
    assert estimate == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4096) ** 0.5)
    again = MinHash(functions=4096).signature(first)
    assert (again == minhash.signature(first)).all()


def test_chinese_is_compared_by_characters():
    rows = [TextRow("a", ["我们今天去看了一部很好的电影"]), TextRow("b", ["他昨天在家里睡觉"])]
    index = ContaminationIndex(rows, WordHasher())
    index.look("c", "他说:我们今天去看了一部很好的电影,真的。")
    found = index.results()
    assert found["ngrams"]["13"]["count"] == 1
    assert found["ngrams"]["8"]["of"] == 2
    assert [entry["row"] for entry in found["found"]] == ["a"]


def test_the_order_of_words_counts_and_texts_are_not_joined():
    hasher = WordHasher()
    forward, backward = hasher("one two three"), hasher("three two one")
    assert ngram_hashes(forward, 3) != ngram_hashes(backward, 3)
    assert len(shingles(hasher("one"))) == 1
    words = text_of(random.Random(2), 16).split()
    index = ContaminationIndex([TextRow("a", [" ".join(words[:8]), " ".join(words[8:])])], hasher)
    index.look("whole", " ".join(words))
    found = index.results()["ngrams"]
    assert found["13"]["of"] == 0
    assert found["8"]["count"] == 1


def test_a_test_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contamination, "MOST_TEST_WORDS", 5)
    with pytest.raises(InputError, match="x:1: by here the test has more than 5 words"):
        ContaminationIndex([TextRow("x:1", ["one two three four five six"])], WordHasher())
    with pytest.raises(InputError, match="no words"):
        ContaminationIndex([TextRow("x:1", ["!"])], WordHasher())

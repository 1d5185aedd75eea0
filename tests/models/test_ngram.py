"""N-gram models against the formulas written out in dictionaries, against KenLM, and as sums."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmctl.models.ngram.counts import TokenBlock, count_ngrams
from llmctl.models.ngram.model import ABSENT, UNSEEN, NgramModel
from llmctl.models.ngram.smoothing import NgramConfig, train

Documents = Sequence[Sequence[int]]
Gram = tuple[int, ...]
SMOOTHINGS = ("kneser-ney", "katz", "add-k")


def block_of(documents: Documents, bos: int, eos: int) -> TokenBlock:
    rows = [[bos, *document, eos] for document in documents]
    lengths = np.array([len(row) for row in rows])
    return TokenBlock(
        np.array([token for row in rows for token in row], dtype=np.uint16),
        np.cumsum(lengths) - lengths,
    )


def draw(seed: int, *, words: int, documents: int, length: int) -> Documents:
    """Documents of words as frequent as in a language (Zipf) that like to follow each other."""
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(documents):
        rank = generator.zipf(1.4, size=generator.integers(1, length + 1)) - 1
        result.append(((np.cumsum(rank % 3) + rank) % words).tolist())
    return result


def probabilities(model: NgramModel, history: Sequence[int]) -> np.ndarray:
    """Of every word behind a history."""
    places = model.start(1)
    for token in history:
        places = model.read(places, np.array([token]))
    return model.distribution(places)[0]


# What follows is as slow and as near to the formulas as can be.


def slow_counts(documents: Documents, order: int, bos: int, eos: int) -> Counter[Gram]:
    counts: Counter[Gram] = Counter()
    for document in documents:
        row = (bos, *document, eos)
        for end in range(1, len(row)):
            for first in range(max(0, end - order + 1), end + 1):
                counts[row[first : end + 1]] += 1
    return counts


def slow_kneser_ney(
    documents: Documents, order: int, vocab_size: int, bos: int, eos: int
) -> Callable[[int, Gram], float]:
    counts = slow_counts(documents, order, bos, eos)
    before: dict[Gram, set[int]] = {}
    for gram in counts:
        before.setdefault(gram[1:], set()).add(gram[0])
    adjusted = {
        gram: count
        if len(gram) == order or (gram[0] == bos and len(gram) > 1)
        else len(before[gram])
        for gram, count in counts.items()
    }
    discounts = {}
    for size in range(1, order + 1):
        of_size = Counter(a for gram, a in adjusted.items() if len(gram) == size)
        n1, n2, n3, n4 = (of_size[r] for r in (1, 2, 3, 4))
        discounts[size] = (0.5, 1.0, 1.5)
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
            if all(0 < d <= r for r, d in enumerate(found, 1)):
                discounts[size] = found
    behind: dict[Gram, dict[int, int]] = {}
    for gram, a in adjusted.items():
        behind.setdefault(gram[:-1], {})[gram[-1]] = a

    @cache
    def share(history: Gram) -> tuple[int, float]:
        words = behind[history].values()
        of = discounts[len(history) + 1]
        return sum(words), sum(of[min(a, 3) - 1] for a in words) / sum(words)

    def probability(word: int, history: Gram) -> float:
        lower = probability(word, history[1:]) if history else 1 / vocab_size
        if history not in behind:
            return lower
        total, gamma = share(history)
        a = behind[history].get(word, 0)
        discount = discounts[len(history) + 1][min(a, 3) - 1] if a else 0.0
        return (a - discount) / total + gamma * lower

    return probability


def slow_katz(
    documents: Documents, order: int, vocab_size: int, bos: int, eos: int
) -> Callable[[int, Gram], float]:
    counts = slow_counts(documents, order, bos, eos)
    factors = {}
    for size in range(1, order + 1):
        n = Counter(count for gram, count in counts.items() if len(gram) == size)
        factors[size] = {r: (r - 0.5) / r for r in range(1, 6)}
        common = 6 * n[6] / n[1] if n[1] else 1.0
        if all(n[r] for r in range(1, 6)) and common < 1:
            found = {
                r: ((r + 1) * n[r + 1] / n[r] / r - common) / (1 - common) for r in range(1, 6)
            }
            if all(0 < d <= 1 for d in found.values()):
                factors[size] = found
    behind: dict[Gram, dict[int, int]] = {}
    for gram, count in counts.items():
        behind.setdefault(gram[:-1], {})[gram[-1]] = count
    memory: dict[Gram, list[float]] = {}

    def all_words(history: Gram) -> list[float]:
        if history not in memory:
            memory[history] = compute(history)
        return memory[history]

    def compute(history: Gram) -> list[float]:
        lower = all_words(history[1:]) if history else [1 / vocab_size] * vocab_size
        if history not in behind:
            return lower
        words = behind[history]
        total = sum(words.values())
        if len(words) == vocab_size:
            return [words[word] / total for word in range(vocab_size)]
        of = factors[len(history) + 1]
        if all(of.get(count, 1.0) == 1.0 for count in words.values()):
            total += 1
        seen = {word: of.get(count, 1.0) * count / total for word, count in words.items()}
        unseen = sum(p for word, p in enumerate(lower) if word not in seen)
        alpha = (1 - sum(seen.values())) / unseen
        return [seen.get(word, alpha * p) for word, p in enumerate(lower)]

    return lambda word, history: all_words(history)[word]


def slow_add_k(
    documents: Documents, order: int, vocab_size: int, bos: int, eos: int, k: float = 0.3
) -> Callable[[int, Gram], float]:
    counts = slow_counts(documents, order, bos, eos)
    totals: Counter[Gram] = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count

    def probability(word: int, history: Gram) -> float:
        return (counts[(*history, word)] + k) / (totals[history] + k * vocab_size)

    return probability


SLOW = {"kneser-ney": slow_kneser_ney, "katz": slow_katz, "add-k": slow_add_k}

CORPORA = {
    # With as many rare n-grams as a language has: the discounts are those of the formulas.
    "language": (draw(1, words=200, documents=200, length=20), 204, 200, 202),
    "one token for start and end": (draw(3, words=400, documents=200, length=20), 402, 400, 400),
    # With too few of them: the fixed ones, and contexts behind which every word was seen.
    "two words": (draw(3, words=2, documents=40, length=12), 3, 2, 2),
    "short documents": (draw(4, words=9, documents=20, length=2), 12, 10, 11),
}


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("corpus", CORPORA)
def test_probabilities_are_those_of_the_formula(corpus: str, order: int, smoothing: Any):
    documents, vocab_size, bos, eos = CORPORA[corpus]
    config = NgramConfig(order=order, smoothing=smoothing, k=0.3 if smoothing == "add-k" else None)
    trained = train([block_of(documents, bos, eos)], vocab_size, bos, config)
    slow = SLOW[smoothing](documents, order, vocab_size, bos, eos)
    if (corpus, smoothing) == ("language", "kneser-ney"):
        assert trained.thin == []
    if (corpus, smoothing) == ("one token for start and end", "katz") and order < 5:
        assert trained.thin == []
    # Texts it knows, and others, in which contexts are new.
    others = draw(9, words=vocab_size, documents=3, length=30)
    texts = [*documents[:5], *others]
    block = block_of(texts, bos, eos)
    scores = trained.model.log_probabilities(block)
    place = 0
    for text in texts:
        row = (bos, *text, eos)
        assert scores[place] == 0
        for end in range(1, len(row)):
            history = row[max(0, end - order + 1) : end]
            expected = slow(row[end], history)
            assert math.exp(scores[place + end]) == pytest.approx(expected, rel=1e-9)
            if end < 4:
                everything = [slow(word, history) for word in range(vocab_size)]
                found = probabilities(trained.model, row[:end])
                assert found == pytest.approx(everything, rel=1e-9)
        place += len(row)


def test_good_turing_discounts_by_hand():
    """n₁ … n₆ of 32, 10, 5, 3, 2, 1 words: A = 6/32, r* = 2·10/32, 3·5/10, 4·3/5, 5·2/3, 6·1/2."""
    often = {1: 32, 2: 10, 3: 5, 4: 3, 5: 2, 6: 1}
    words = iter(range(100))
    text = []
    for times, count in often.items():
        for _ in range(count):
            text += [next(words)] * times
    config = NgramConfig(order=1, smoothing="katz")
    trained = train([block_of([text], 60, 60)], 70, 60, config)
    # The end is a 33rd word that occurs once.
    a = 6 / 33
    starred = [2 * 10 / 33, 3 * 5 / 10, 4 * 3 / 5, 5 * 2 / 3, 6 * 1 / 2]
    expected = [(star / r - a) / (1 - a) for r, star in enumerate(starred, 1)]
    assert trained.discounts == [pytest.approx(expected)]
    total = len(text) + 1
    assert trained.model.unigram[0] == pytest.approx(expected[0] / total)
    assert trained.model.unigram[52] == pytest.approx(6 / total)
    assert trained.thin == []


JACK = """\
this is the house that jack built
this is the malt that lay in the house that jack built
this is the rat that ate the malt that lay in the house that jack built
this is the cat that killed the rat that ate the malt that lay in the house that jack built
this is the dog that worried the cat that killed the rat that ate the malt
this is the cow with the crumpled horn that tossed the dog that worried the cat
this is the maiden all forlorn that milked the cow with the crumpled horn
this is the man all tattered and torn that kissed the maiden all forlorn
this is the priest all shaven and shorn that married the man all tattered and torn
this is the cock that crowed in the morn that waked the priest all shaven and shorn
this is the farmer sowing his corn that kept the cock that crowed in the morn"""

KENLM = {
    "<unk>": -1.8614885,
    "this": -1.8240978,
    "the": -0.8839247,
    "that": -0.8839247,
    "and": -1.5033215,
    "</s>": -1.1040713,
    "<s> this": -0.06264215,
    "is the": -0.24770574,
    "the house": -1.2926428,
    "the morn": -1.5340841,
    "malt </s>": -0.5385828,
    "that kept": -1.3083581,
    "<s> this is": -0.04486036,
    "this is the": -0.03934696,
    "in the house": -0.69958127,
    "the malt that": -0.38653773,
    "the malt </s>": -0.48439172,
    "worried the cat": -0.574038,
    "house that jack": -0.31970003,
    "all forlorn </s>": -0.393352,
    "sowing his corn": -0.110062815,
}
"""log₁₀ P of the last word, by `lmplz -o 3 --discount_fallback` of KenLM (commit 4cb443e) on JACK;
its 2-grams have the fixed discounts, the others those of the formula."""


@pytest.mark.reference
def test_kneser_ney_is_that_of_kenlm():
    words = sorted(set(JACK.split()))
    # KenLM's vocabulary has no start of text, as it is never predicted: one token is both.
    end, unknown = len(words), len(words) + 1
    ids = {**{word: number for number, word in enumerate(words)}, "<unk>": unknown}
    ids |= {"<s>": end, "</s>": end}
    documents = [[ids[word] for word in line.split()] for line in JACK.splitlines()]
    config = NgramConfig(order=3)
    trained = train([block_of(documents, end, end)], len(words) + 2, end, config)
    assert trained.thin == [2]
    for text, expected in KENLM.items():
        *history, word = (ids[word] for word in text.split())
        found = math.log10(probabilities(trained.model, history)[word])
        assert found == pytest.approx(expected, abs=1e-6), text  # it computes in fp32
    # Not in the table: its weights of "that ate" and of "ate", and its P("corn").
    found = math.log10(probabilities(trained.model, [ids["that"], ids["ate"]])[ids["corn"]])
    assert found == pytest.approx(-0.13629675 - 0.30103 - 1.8240978, abs=1e-6)


corpora = st.tuples(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=12),
    st.sampled_from([(7, 7), (7, 8)]),
)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@given(
    corpus=corpora,
    order=st.integers(1, 5),
    min_count=st.integers(1, 3),
    history=st.lists(st.integers(0, 8), max_size=6),
)
def test_probabilities_are_positive_and_sum_to_one(
    smoothing: Any, corpus: Any, order: int, min_count: int, history: list[int]
):
    documents, (bos, eos) = corpus
    config = NgramConfig(order=order, smoothing=smoothing, min_count=min_count)
    model = train([block_of(documents, bos, eos)], 9, bos, config).model
    row = [bos, *documents[0], eos]
    for read in (history, [bos, *history], row[: len(row) // 2], row[-3:]):
        found = probabilities(model, read)
        assert found.min() > 0
        assert found.sum() == pytest.approx(1, abs=1e-9)


@given(corpus=corpora, order=st.integers(1, 4), cut=st.integers(0, 12))
def test_counts_are_those_of_a_dictionary_however_the_text_is_cut(
    corpus: Any, order: int, cut: int
):
    documents, (bos, eos) = corpus
    parts = [part for part in (documents[:cut], documents[cut:]) if part]
    levels = count_ngrams([block_of(part, bos, eos) for part in parts], order, 9)
    found: dict[Gram, int] = {}
    grams: list[Gram] = [()]
    for level in levels:
        longer = []
        for context, (first, last) in zip(grams, pairwise(level.first.tolist()), strict=True):
            longer += [(*context, word) for word in level.word[first:last].tolist()]
        assert longer == sorted(longer)
        shorter = grams
        grams = longer
        found |= dict(zip(grams, level.count.tolist(), strict=True))
        assert [shorter.index(gram[1:]) for gram in grams] == level.suffix.tolist()
    expected = slow_counts(documents, order, bos, eos)
    assert {gram: count for gram, count in found.items() if count} == expected


def test_a_context_reaches_back_to_the_start_of_its_document():
    documents = [[1, 2, 3], [3, 2, 1], [1, 2, 3]]
    model = train([block_of(documents, 4, 5)], 6, 4, NgramConfig(order=3)).model
    together = model.log_probabilities(block_of(documents, 4, 5))
    alone = [model.log_probabilities(block_of([document], 4, 5)) for document in documents]
    assert together.tolist() == np.concatenate(alone).tolist()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_blocks_do_not_matter(smoothing: Any):
    documents, vocab_size, bos, eos = CORPORA["language"]
    config = NgramConfig(order=4, smoothing=smoothing)
    one = train([block_of(documents, bos, eos)], vocab_size, bos, config).model
    parts = [documents[:7], documents[7:8], documents[8:]]
    many = train([block_of(p, bos, eos) for p in parts], vocab_size, bos, config).model
    assert (one.unigram == many.unigram).all()
    for left, right in zip(one.tables, many.tables, strict=True):
        for part in ("first", "backoff", "word", "probability"):
            assert (getattr(left, part) == getattr(right, part)).all()


def test_float32_is_the_same_to_seven_digits():
    documents, vocab_size, bos, eos = CORPORA["language"]
    block = block_of(documents, bos, eos)
    double = train([block], vocab_size, bos, NgramConfig()).model
    single = train([block], vocab_size, bos, NgramConfig(), dtype=np.float32).model
    assert single.tables[0].probability.dtype == np.float32
    # Five roundings of 2⁻²⁴ at most.
    assert single.log_probabilities(block) == pytest.approx(
        double.log_probabilities(block), abs=5 * 2**-24
    )


def test_pruning_drops_the_rare_and_keeps_the_rest_as_it_was():
    """Kneser-Ney's own share of what is kept is that of the whole model."""
    documents, vocab_size, bos, eos = CORPORA["language"]
    blocks = [block_of(documents, bos, eos)]
    whole = train(blocks, vocab_size, bos, NgramConfig(order=3)).model
    pruned = train(blocks, vocab_size, bos, NgramConfig(order=3, min_count=3)).model
    counts = slow_counts(documents, 3, bos, eos)
    often = [sum(n >= 3 and len(g) == k for g, n in counts.items()) for k in (2, 3)]
    assert [len(table.word) for table in pruned.tables] == often
    assert pruned.parameters == vocab_size + sum(often) < whole.parameters
    # Of order 2 the unigrams below are the same: more is left to them, so nothing is less likely.
    context = np.repeat(np.arange(vocab_size), np.diff(pruned.tables[0].first))
    place = whole.tables[0].find(context, pruned.tables[0].word)
    assert (place >= 0).all()
    lower = whole.unigram[pruned.tables[0].word]
    own = whole.tables[0].probability[place] - whole.tables[0].backoff[context] * lower
    own_pruned = pruned.tables[0].probability - pruned.tables[0].backoff[context] * lower
    assert own_pruned == pytest.approx(own, abs=1e-12)
    assert (pruned.tables[0].backoff >= whole.tables[0].backoff - 1e-12).all()


def test_look_ups():
    documents = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 0]]
    table = train([block_of(documents, 5, 6)], 7, 5, NgramConfig(order=2)).model.tables[0]
    context = np.array([0, 0, 0, 0, 0, 0, 2, 6, UNSEEN, ABSENT, 5])
    word = np.array([1, 2, 3, 4, 5, 6, 6, 0, 1, 1, 1])
    found = table.find(context, word)
    assert found[[4, 7, 8, 9]].tolist() == [UNSEEN, UNSEEN, UNSEEN, ABSENT]
    there = np.array([0, 1, 2, 3, 5, 6, 10])
    assert table.word[found[there]].tolist() == word[there].tolist()
    assert (table.first[context[there]] <= found[there]).all()
    assert (found[there] < table.first[context[there] + 1]).all()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"order": 0}, "greater than or equal to 1"),
        ({"order": 101}, "less than or equal to 100"),
        ({"order": 2.5}, "valid integer"),
        ({"smoothing": "kneser"}, "'kneser-ney', 'katz' or 'add-k'"),
        ({"smoothing": "add-k", "k": 0}, "greater than 0"),
        ({"smoothing": "add-k", "k": math.inf}, "finite"),
        ({"k": 0.1}, "for model.smoothing=add-k"),
        ({"min_count": 0}, "greater than or equal to 1"),
    ],
)
def test_a_configuration_that_makes_no_sense(fields: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        NgramConfig.model_validate(fields)

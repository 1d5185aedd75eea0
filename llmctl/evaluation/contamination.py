"""How much of a test stood in a training text: word n-grams, and near-duplicates by MinHash.

- **n-grams**: a row of the test is *contaminated* if 13 of its words in a row, or 8, stand in the
  training text too (Brown et al. 2020, appendix C, where 13 is taken for most sets and 8 is the
  least); beside it stands how much of its words such n-grams cover.
- **near-duplicates**: documents whose sets of 5 words in a row are alike, Jaccard |A ∩ B| / |A ∪ B|
  of ``NEAR_DUPLICATE`` or more. Candidates are found by MinHash signatures (Broder 1997) in bands
  (locality-sensitive hashing), and their similarity is then computed exactly.

The test is what is held in memory; the training text runs past it, a document at a time. Words are
compared in lower case, each Chinese character being one. N-grams are compared by hashes of 64 bits:
that any two of a million in the test and a thousand million in training agree by chance is one in
twenty thousand.

N rows, W words, K hash functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import InputError
from llmctl.evaluation.overlap import UnicodeTokenizer
from llmctl.evaluation.wilson import wilson_interval

NGRAM_SIZES = (13, 8)
"""Words of the n-grams that are looked for."""
SHINGLE = 5
"""Words of the pieces by which documents are compared."""
NEAR_DUPLICATE = 0.8
"""Jaccard similarity from which a document counts as near-duplicate."""
FUNCTIONS, BANDS = 128, 32
"""Hash functions of a signature, and the bands they are in: with four to a band two documents with
a similarity of 0.8 share one with a probability of 1 − 5e-8, with 0.4 of 56 %."""
MOST_TEST_WORDS = 5_000_000
"""Words that a test may have: what is kept of it takes about 100 bytes for each."""
MOST_KNOWN = 1 << 20
"""Words whose hashes are kept at once."""
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class TextRow:
    """A row of a test: its texts, between which no n-gram reaches."""

    source: str
    texts: Sequence[str]


@dataclass(frozen=True)
class NearDuplicate:
    """A training document that is like a row."""

    document: str
    exact: float
    estimate: float


class WordHasher:
    """Texts to hashes of their words, which are those of any process and machine."""

    def __init__(self) -> None:
        self._words = UnicodeTokenizer()
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> Hashes:
        """(W,)."""
        known = self._known
        if len(known) > MOST_KNOWN:
            known.clear()
        found = []
        for word in self._words.tokenize(text):
            value = known.get(word)
            if value is None:
                value = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
                known[word] = value
            found.append(value)
        return np.array(found, dtype=np.uint64)


def ngram_hashes(words_W: Hashes, size: int) -> Hashes:
    """The hash of each n-gram, (W − size + 1,); none where there are fewer words."""
    count = len(words_W) - size + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        # A polynomial in an odd number, modulo 2⁶⁴: the order of the words counts.
        total *= np.uint64(0x9E3779B97F4A7C15)
        total += words_W[place : place + count]
    return _mixed(total ^ np.uint64(size))


def shingles(words_W: Hashes) -> Hashes:
    """The set of a text's pieces of ``SHINGLE`` words, ascending; a shorter text is one piece."""
    if not len(words_W):
        return np.empty(0, dtype=np.uint64)
    return np.unique(ngram_hashes(words_W, min(SHINGLE, len(words_W))))


def jaccard(first: Hashes, second: Hashes) -> float:
    """|A ∩ B| / |A ∪ B| of two sets that are sorted; 0 of two empty ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else 0.0


class MinHash:
    """Signatures whose share of equal entries estimates the Jaccard similarity of sets."""

    def __init__(self, seed: int = 0, functions: int = FUNCTIONS) -> None:
        generator = np.random.default_rng(seed)
        self._salts_K = generator.integers(0, 1 << 64, functions, dtype=np.uint64)
        self._factors_K = generator.integers(0, 1 << 64, functions, dtype=np.uint64) | np.uint64(1)

    def signature(self, pieces: Hashes) -> Hashes:
        """The least value of each hash function over a set that isn't empty, (K,)."""
        least_K = np.full(len(self._salts_K), np.iinfo(np.uint64).max)
        for begin in range(0, len(pieces), 4096):  # so that a long document takes little memory
            part = pieces[begin : begin + 4096, None]
            values = _mixed((part ^ self._salts_K) * self._factors_K)
            np.minimum(least_K, values.min(0), out=least_K)
        return least_K


def _mixed(values: Hashes) -> Hashes:
    """Each bit of a value spread over all others (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass
class _Ngrams:
    """The test's n-grams of one size."""

    size: int
    hashes: Hashes
    """Ascending, each once."""
    place_of: NDArray[np.int64]
    """The place of each n-gram of the test, in order, among ``hashes``."""
    rows: NDArray[np.int64]
    """The row of each n-gram of the test."""
    begins: NDArray[np.int64]
    """The first word of each n-gram, counted through the whole test."""
    found: NDArray[np.bool_] = field(init=False)
    """Which hashes stand in the training text."""

    def __post_init__(self) -> None:
        self.found = np.zeros(len(self.hashes), dtype=bool)

    def look(self, words_W: Hashes) -> None:
        """Mark those that a training document has."""
        if not len(self.hashes):
            return
        grams = ngram_hashes(words_W, self.size)
        places = np.searchsorted(self.hashes, grams).clip(max=len(self.hashes) - 1)
        self.found[places[self.hashes[places] == grams]] = True


class ContaminationIndex:
    """A test, past which training documents run."""

    def __init__(self, rows: Sequence[TextRow], hasher: WordHasher, *, seed: int = 0) -> None:
        """Raises InputError for a test that is too large to be held, or has no words."""
        self._rows, self._hasher = rows, hasher
        self.documents = 0
        """Training documents that were looked at."""
        texts = list[tuple[int, Hashes]]()
        total = 0
        for number, row in enumerate(rows):
            for text in row.texts:
                texts.append((number, hasher(text)))
                total += len(texts[-1][1])
            if total > MOST_TEST_WORDS:
                raise InputError(
                    f"{row.source}: by here the test has more than {MOST_TEST_WORDS:,} words, "
                    "as many as are looked for at once; divide the file"
                )
        if not total:
            raise InputError("the test has no words to look for")
        self._words_N = np.bincount(
            [number for number, _ in texts],
            [len(words) for _, words in texts],
            minlength=len(rows),
        ).astype(np.int64)
        self._total = total
        self._ngrams = [self._of_size(texts, size) for size in NGRAM_SIZES]
        self._minhash = MinHash(seed)
        self._pieces = self._shingles(texts)
        self._all_pieces = np.unique(np.concatenate([np.empty(0, np.uint64), *self._pieces]))
        self._signatures = [
            self._minhash.signature(pieces) if len(pieces) else None for pieces in self._pieces
        ]
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        for number, signature in enumerate(self._signatures):
            for key in _bands_of(signature):
                self._bands.setdefault(key, []).append(number)
        self._nearest: dict[int, NearDuplicate] = {}

    def _of_size(self, texts: Sequence[tuple[int, Hashes]], size: int) -> _Ngrams:
        hashes, rows, begins, first = [np.empty(0, np.uint64)], [], [], 0
        for number, words in texts:
            grams = ngram_hashes(words, size)
            hashes.append(grams)
            rows.append(np.full(len(grams), number))
            begins.append(first + np.arange(len(grams)))
            first += len(words)
        distinct, place_of = np.unique(np.concatenate(hashes), return_inverse=True)
        return _Ngrams(size, distinct, place_of, np.concatenate(rows), np.concatenate(begins))

    def _shingles(self, texts: Sequence[tuple[int, Hashes]]) -> list[Hashes]:
        """The pieces of each row's texts; those shorter than a piece, such as labels, count
        only where there is no longer one."""
        of_row: list[list[Hashes]] = [[] for _ in self._rows]
        for number, words in texts:
            of_row[number].append(words)
        found = []
        for parts in of_row:
            long_ones = [words for words in parts if len(words) >= SHINGLE] or parts
            pieces = [shingles(words) for words in long_ones]
            found.append(np.unique(np.concatenate([np.empty(0, np.uint64), *pieces])))
        return found

    def look(self, document: str, text: str) -> None:
        """Compare a training document, by whatever name it has in reports."""
        words_W = self._hasher(text)
        self.documents += 1
        for ngrams in self._ngrams:
            ngrams.look(words_W)
        pieces = shingles(words_W)
        # Without a piece in common with any row its similarity to all is 0.
        if not len(pieces) or not np.isin(pieces, self._all_pieces, assume_unique=True).any():
            return
        signature = self._minhash.signature(pieces)
        candidates = {row for key in _bands_of(signature) for row in self._bands.get(key, ())}
        for row in candidates:
            exact = jaccard(self._pieces[row], pieces)
            best = self._nearest.get(row)
            if exact >= NEAR_DUPLICATE and (best is None or exact > best.exact):
                estimate = float(np.mean(self._signatures[row] == signature))
                self._nearest[row] = NearDuplicate(document, exact, estimate)

    def results(self) -> dict[str, Any]:
        """What was found, as JSON values: shares with intervals, and the rows by name."""
        covered = {ngrams.size: self._covered(ngrams) for ngrams in self._ngrams}
        sizes = {}
        for ngrams in self._ngrams:
            long_enough = len(np.unique(ngrams.rows))
            hit = int((covered[ngrams.size] > 0).sum())
            sizes[str(ngrams.size)] = {
                **_share(hit, long_enough),
                "too_short": len(self._rows) - long_enough,
                "words": float(covered[ngrams.size].sum() / self._total),
            }
        near = [self._nearest.get(number) for number in range(len(self._rows))]
        rows = []
        for number, row in enumerate(self._rows):
            shares = {
                str(size): float(found[number] / max(1, self._words_N[number]))
                for size, found in covered.items()
            }
            if any(shares.values()) or near[number] is not None:
                rows.append({"row": row.source, "covered": shares, **_near(near[number])})
        rows.sort(key=lambda entry: (-entry["covered"][str(NGRAM_SIZES[0])], -entry["similarity"]))
        touched = {number for number, one in enumerate(near) if one is not None}
        touched |= set(np.flatnonzero(covered[NGRAM_SIZES[0]]).tolist())
        return {
            "rows": len(self._rows),
            "documents": self.documents,
            "ngrams": sizes,
            "near_duplicates": _share(sum(one is not None for one in near), len(self._rows)),
            "either": _share(len(touched), len(self._rows)),
            "found": rows,
        }

    def _covered(self, ngrams: _Ngrams) -> NDArray[np.int64]:
        """How many words of each row are in some n-gram of the training text, (N,)."""
        hits = ngrams.found[ngrams.place_of]
        begins = ngrams.begins[hits]
        edges = np.zeros(self._total + 1, dtype=np.int64)
        np.add.at(edges, begins, 1)
        np.add.at(edges, begins + ngrams.size, -1)
        inside = edges.cumsum()[: self._total] > 0
        # Words stand row by row.
        row_of_word = np.repeat(np.arange(len(self._rows)), self._words_N)
        return np.bincount(row_of_word[inside], minlength=len(self._rows))


def _bands_of(signature: Hashes | None) -> Iterator[tuple[int, bytes]]:
    if signature is not None:
        for number, band in enumerate(np.split(signature, BANDS)):
            yield number, band.tobytes()


def _share(hit: int, total: int) -> dict[str, Any]:
    if not total:
        return {"count": 0, "of": 0, "share": None, "interval": None}
    interval = list(wilson_interval(hit, total))
    return {"count": hit, "of": total, "share": hit / total, "interval": interval}


def _near(found: NearDuplicate | None) -> dict[str, Any]:
    if found is None:
        return {"document": None, "similarity": 0.0, "estimate": 0.0}
    return {
        "document": found.document, "similarity": found.exact, "estimate": found.estimate,
    }  # fmt: skip

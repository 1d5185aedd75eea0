"""How well vectors tell which texts are alike.

- Scored pairs: Spearman's ρ between cosines and scores (SentEval's and MTEB's figure for STS).
- Retrieval: recall@k, MRR@10 and nDCG@10 of the texts that belong to a query among all.
- The space: alignment, how near positives are, E ‖x − y‖², and uniformity, how evenly all texts
  lie on the sphere, log E exp(−2 ‖x − y‖²); the lower both, the better (Wang and Isola 2020).

N pairs or texts, Q queries, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.text.words import is_unspaced, word_pattern
from llmctl.errors import UsageError
from llmctl.evaluation.bootstrap import percentile_interval

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]

RECALLS = (1, 5, 10)
DEPTH = 10
"""Results that MRR and nDCG look at."""
QUERY_BLOCK = 256
"""Queries compared with all texts at a time."""
PAIRS_FOR_UNIFORMITY = 4000
"""Texts whose pairs are looked at, at most: eight million pairs."""


def ranks(values_N: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = (last - (counts - 1) / 2)[inverse]
    return means


def spearman(a_N: Floats, b_N: Floats) -> float:
    """Spearman's rank correlation; NaN where either has one value only."""
    return pearson(ranks(a_N), ranks(b_N))


def pearson(a_N: Floats, b_N: Floats) -> float:
    """Pearson's correlation; NaN where either has one value only."""
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    norm = float(np.sqrt((a_N**2).sum() * (b_N**2).sum()))
    return float((a_N * b_N).sum()) / norm if norm else float("nan")


def resampled_spearman(
    guesses: Sequence[Floats], scores_N: Floats, *, resamples: int, seed: int
) -> Floats:
    """Spearman's ρ of several guesses on the same resamples of the pairs, (len(guesses), R)."""
    generator = np.random.default_rng(seed)
    found = np.empty((len(guesses), resamples))
    for resample in range(resamples):
        drawn = generator.integers(0, len(scores_N), len(scores_N))
        of_scores = ranks(scores_N[drawn])
        for row, guess_N in enumerate(guesses):
            found[row, resample] = pearson(ranks(guess_N[drawn]), of_scores)
    return np.nan_to_num(found)


def cosines_of_pairs(a_ND: Vectors, b_ND: Vectors) -> Floats:
    """The cosine of each vector with that beside it."""
    a, b = a_ND.astype(np.float64), b_ND.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Floats = (a * b).sum(1) / np.maximum(norms, 1e-12)
    return cosines


def alignment(a_ND: Vectors, b_ND: Vectors) -> float:
    """The mean squared distance of pairs that belong together, at length 1: 2 − 2 cos."""
    return float((2 - 2 * cosines_of_pairs(a_ND, b_ND)).mean())


def uniformity(vectors_ND: Vectors, seed: int = 0) -> float:
    """The logarithm of E exp(−2 ‖x − y‖²) over all pairs of different texts, two at least."""
    if len(vectors_ND) > PAIRS_FOR_UNIFORMITY:
        drawn = np.random.default_rng(seed).permutation(len(vectors_ND))[:PAIRS_FOR_UNIFORMITY]
        vectors_ND = vectors_ND[drawn]
    x_ND = vectors_ND.astype(np.float64)
    x_ND /= np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    squares = 2 - 2 * (x_ND @ x_ND.T)[np.triu_indices(len(x_ND), 1)]
    return float(np.log(np.exp(-2 * squares).mean()))


@dataclass(frozen=True)
class Retrieved:
    """How well each query found what belongs to it, (Q,) each."""

    recall: dict[int, Floats]
    """The share of what belongs to the query that is among the nearest k."""
    reciprocal_rank: Floats
    """One over the place of the first that belongs to it; 0 behind ``DEPTH``."""
    ndcg: Floats
    """Discounted gain of the nearest ``DEPTH``, of the most that could be (Järvelin and Kekäläinen
    2002)."""

    def figures(self) -> dict[str, float]:
        """The means over the queries."""
        recalls = {f"recall_{k}": float(values.mean()) for k, values in self.recall.items()}
        return {
            **recalls,
            "mrr": float(self.reciprocal_rank.mean()),
            "ndcg": float(self.ndcg.mean()),
        }


def retrieved(
    scores: Any, relevant: Sequence[Collection[int]], left_out: Sequence[Collection[int]]
) -> Retrieved:
    """How well scores order texts for queries.

    scores: gives the scores (n, N) of queries ``begin`` to ``stop``. relevant: the texts that
    belong to each query, one at least. left_out: texts that are no answers to a query, such as
    itself. Of equal scores the text with the lower number is first.
    """
    Q = len(relevant)
    recall = {k: np.zeros(Q) for k in RECALLS}
    reciprocal, ndcg = np.zeros(Q), np.zeros(Q)
    most = max(*RECALLS, DEPTH)
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    for begin in range(0, Q, QUERY_BLOCK):
        block = np.array(scores(begin, min(begin + QUERY_BLOCK, Q)), dtype=np.float64)
        for row, values in enumerate(block):
            query = begin + row
            values[list(left_out[query])] = -np.inf
            found = np.argsort(-values, kind="stable")[:most]
            hits = np.isin(found, list(relevant[query]))
            count = len(relevant[query])
            for k in RECALLS:
                recall[k][query] = hits[:k].sum() / count
            shown = hits[:DEPTH]
            if shown.any():
                reciprocal[query] = 1 / (1 + int(shown.argmax()))
            gained = (shown * discounts[: len(shown)]).sum()
            ndcg[query] = gained / discounts[: min(count, DEPTH)].sum()
    return Retrieved(recall, reciprocal, ndcg)


def mean_interval(values_N: Floats, *, resamples: int, seed: int) -> tuple[float, float]:
    """The bootstrap's interval of a mean."""
    drawn = np.random.default_rng(seed).integers(0, len(values_N), (resamples, len(values_N)))
    return percentile_interval(values_N[drawn].mean(1))


def tfidf_vectors(texts: Sequence[str]) -> Any:
    """Rows of TF-IDF at length 1, sparse, by the words of these very texts; one to three characters
    where they are written without spaces. Raises UsageError where scikit-learn isn't installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise UsageError(
            "the TF-IDF baseline needs scikit-learn; install it with: pip install 'llmctl[eval]'"
        ) from None
    options: dict[str, Any] = {"token_pattern": word_pattern()}
    if is_unspaced(texts):
        options = {"analyzer": "char", "ngram_range": (1, 3)}
    try:
        return TfidfVectorizer(sublinear_tf=True, **options).fit_transform(texts)
    except ValueError:  # not one word in them
        return np.zeros((len(texts), 1))

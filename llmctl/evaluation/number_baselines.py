"""What a regression on texts has to beat: ridge regression on TF-IDF.

Of pairs the features are the cosine of the two, their words in common, and those that differ, which
is as much as a linear model can say of how alike they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import UsageError
from llmctl.evaluation.baselines import tfidf_features

PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Weights of the penalty among which leave-one-out error chooses."""
Texts = Sequence[tuple[str, str | None]]


def tfidf_ridge(train: Texts, numbers_N: NDArray[np.float64], texts: Texts) -> NDArray[np.float64]:
    """The numbers of texts, or of pairs, by a linear model of their words.

    Raises UsageError where scikit-learn isn't installed.
    """
    try:
        from scipy import sparse  # type: ignore[import-untyped]
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import RidgeCV
    except ImportError:
        raise UsageError(
            "the TF-IDF baseline needs scikit-learn; install it with: pip install 'llmctl[eval]'"
        ) from None
    firsts, seconds = ([pair[n] or "" for pair in train] for n in (0, 1))
    vectoriser = TfidfVectorizer(sublinear_tf=True, **tfidf_features(firsts))
    try:
        vectoriser.fit([*firsts, *filter(None, seconds)])
    except ValueError:  # not one word in the training texts, so nothing to learn from
        return np.full(len(texts), numbers_N.mean())

    def rows(part: Texts) -> object:
        first, second = (vectoriser.transform([pair[n] or "" for pair in part]) for n in (0, 1))
        if not any(pair[1] for pair in train):
            return first
        common, apart = first.multiply(second), abs(first - second)
        return sparse.hstack([sparse.csr_matrix(common.sum(1)), common, apart]).tocsr()

    model = RidgeCV(alphas=PENALTIES).fit(rows(train), numbers_N)
    found: NDArray[np.float64] = model.predict(rows(texts))
    return found

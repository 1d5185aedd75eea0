"""What a classifier has to beat: the most frequent class, and TF-IDF with logistic regression.

Both answer with probabilities, (N, C), as a model does, so the same report reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmctl.data.text.words import is_unspaced, word_pattern
from llmctl.errors import UsageError

FOLDS = 5
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Candidates for C, the inverse of the regularisation: large, as a TF-IDF row has length 1 and
spreads it over many features."""


def majority(train_labels: ArrayLike, num_classes: int, num_test: int) -> NDArray[np.float64]:
    """The share of each class in training, for every test example: (num_test, num_classes).

    Its prediction is thus the most frequent class, the first of equals, and its calibration is
    that of someone who knows the frequencies and nothing else.
    """
    labels = _checked_labels(train_labels, num_classes)
    shares_C = np.bincount(labels, minlength=num_classes) / labels.size
    return np.tile(shares_C, (num_test, 1))


def tfidf_logistic_regression(
    train_texts: Sequence[str],
    train_labels: ArrayLike,
    test_texts: Sequence[str],
    num_classes: int,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Probabilities of the test texts, (len(test_texts), num_classes), the same for a seed.

    Words and pairs of words, or one to three characters where the training texts are written
    without spaces; logarithmic counts; C by cross-validation on the training texts. A class that
    training doesn't show gets 0. Raises UsageError where scikit-learn isn't installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            "the TF-IDF baseline needs scikit-learn; install it with: pip install 'llmctl[eval]'"
        ) from None
    labels = _checked_labels(train_labels, num_classes)
    if len(train_texts) != labels.size:
        raise ValueError(f"{len(train_texts)} texts with {labels.size} labels")
    probabilities = np.zeros((len(test_texts), num_classes))
    seen = np.unique(labels)
    if not test_texts or len(seen) == 1:
        probabilities[:, seen[0]] = 1.0
        return probabilities

    # Fitted once on all the training texts: the folds then share document frequencies, which
    # know no labels and hardly move the choice of C.
    vectoriser = TfidfVectorizer(sublinear_tf=True, **tfidf_features(train_texts))
    try:
        train = vectoriser.fit_transform(train_texts)
    except ValueError:  # not one word in the training texts, so nothing to learn from
        return majority(labels, num_classes, len(test_texts))
    model = LogisticRegression(max_iter=2000, random_state=seed)
    splits = _splits(labels, seed)
    if splits:
        # Chosen by likelihood: by accuracy, candidates often tie on a few hundred examples.
        model = GridSearchCV(model, {"C": STRENGTHS}, scoring=_mean_log_likelihood, cv=splits)
    # The solver's vectors are too short to share: with two threads on two idle cores a fit takes
    # five times as long, on busy ones far longer. And one thread adds in one order.
    with threadpool_limits(limits=1, user_api="blas"):
        model.fit(train, labels)
    probabilities[:, seen] = model.predict_proba(vectoriser.transform(test_texts))
    return probabilities


ONE_VS_REST_STRENGTH = 10.0
"""C of a label's logistic regression where there are several: one of ``STRENGTHS``, as a choice for
each label takes as many fits."""


def tfidf_one_vs_rest(
    train_texts: Sequence[str], train_NC: NDArray[np.bool_], test_texts: Sequence[str]
) -> NDArray[np.float64]:
    """The probability of each of several labels for the test texts, (len(test_texts), C): a
    logistic regression for each. Raises UsageError where scikit-learn isn't installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise UsageError(
            "the TF-IDF baseline needs scikit-learn; install it with: pip install 'llmctl[eval]'"
        ) from None
    found = np.tile(train_NC.mean(0), (len(test_texts), 1))
    vectoriser = TfidfVectorizer(sublinear_tf=True, **tfidf_features(train_texts))
    try:
        train = vectoriser.fit_transform(train_texts)
    except ValueError:  # not one word in the training texts, so nothing to learn from
        return found
    test = vectoriser.transform(test_texts)
    with threadpool_limits(limits=1, user_api="blas"):
        for label, true_N in enumerate(train_NC.T):
            if true_N.any() and not true_N.all():
                model = LogisticRegression(max_iter=2000, C=ONE_VS_REST_STRENGTH)
                found[:, label] = model.fit(train, true_N).predict_proba(test)[:, 1]
    return found


def tfidf_features(texts: Sequence[str]) -> dict[str, object]:
    """What a feature is in such texts, as arguments of TfidfVectorizer."""
    if is_unspaced(texts):
        return {"analyzer": "char", "ngram_range": (1, 3)}
    # Unlike scikit-learn's own pattern this keeps words of one letter, and letters' marks.
    return {"token_pattern": word_pattern(), "ngram_range": (1, 2)}


def _splits(labels: NDArray[np.int64], seed: int) -> list[tuple[NDArray[np.int64], ...]]:
    """(training rows, held-out rows) of each fold, every class in every training part.

    A class with fewer examples than folds can't be in each held-out part: it stays in training.
    Empty where no class has two examples.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(labels)
    folds = min(FOLDS, int(counts.max()))
    if folds < 2:
        return []
    rare = counts[labels] < folds
    common_rows, rare_rows = np.flatnonzero(~rare), np.flatnonzero(rare)
    folder = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [
        (np.concatenate([common_rows[train], rare_rows]), common_rows[held_out])
        for train, held_out in folder.split(common_rows, labels[common_rows])
    ]


def _mean_log_likelihood(model: Any, rows: Any, labels: NDArray[np.int64]) -> float:
    """The mean log-likelihood of held-out labels, in nats; all of them are among the model's
    classes."""
    log_probabilities = model.predict_log_proba(rows)
    columns = np.searchsorted(model.classes_, labels)
    return float(log_probabilities[np.arange(len(labels)), columns].mean())


def _checked_labels(train_labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    labels = np.asarray(train_labels)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu":
        raise ValueError(f"training labels of shape {labels.shape} and type {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"training labels outside 0 … {num_classes - 1}")
    return labels.astype(np.int64)

"""What a tagger has to beat: each word's most frequent tag, and a linear model on a word and its
neighbours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from llmctl.errors import UsageError

Words = Sequence[Sequence[str]]
EDGE = "\N{LOW LINE}"
EPOCHS = 10
STRENGTH = 3e-6
"""The regularisation of the linear model, by held-out F1 of chunks among 1e-6 to 1e-4."""


def most_frequent(train: Words, tags: Words, texts: Words) -> list[list[str]]:
    """For each word the tag that it had most often, the most frequent of all for unknown ones."""
    by_word: dict[str, Counter[str]] = defaultdict(Counter)
    for words, text_tags in zip(train, tags, strict=True):
        for word, tag in zip(words, text_tags, strict=True):
            by_word[word][tag] += 1
    overall = sum(by_word.values(), Counter[str]()).most_common(1)[0][0]
    best = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
    return [[best.get(word, overall) for word in words] for words in texts]


def linear_on_windows(train: Words, tags: Words, texts: Words, *, seed: int = 0) -> list[list[str]]:
    """A linear model of a word, its beginning, its end and its shape, and of two words on either
    side; each word is tagged for itself. The same for a seed.

    Raises UsageError where scikit-learn isn't installed.
    """
    try:
        from sklearn.feature_extraction import FeatureHasher
        from sklearn.linear_model import SGDClassifier
    except ImportError:
        raise UsageError(
            "the linear baseline needs scikit-learn; install it with: pip install 'llmctl[eval]'"
        ) from None
    hasher = FeatureHasher(1 << 20, input_type="string", alternate_sign=False)
    rows = hasher.transform(features for words in train for features in _features(words))
    model = SGDClassifier(
        loss="log_loss", alpha=STRENGTH, max_iter=EPOCHS, tol=None, average=True, random_state=seed
    )
    model.fit(rows, [tag for text_tags in tags for tag in text_tags])
    found = []
    for words in texts:
        answers = model.predict(hasher.transform(_features(words))) if words else []
        found.append([str(tag) for tag in answers])
    return found


def _features(words: Sequence[str]) -> Iterator[list[str]]:
    """What is told of each word."""
    padded = [EDGE, EDGE, *words, EDGE, EDGE]
    for place in range(2, len(padded) - 2):
        near = [f"{n}={padded[place + n].lower()}" for n in (-2, -1, 0, 1, 2)]
        word = padded[place]
        parts = [f"s{n}={word[-n:].lower()}" for n in (2, 3)]
        parts += [f"p{n}={word[:n].lower()}" for n in (2, 3)]
        beside = [f"{near[1]} {near[2]}", f"{near[2]} {near[3]}", f"{near[1]} {near[3]}"]
        ends = [f"{n}s={padded[place + n][-3:].lower()}" for n in (-1, 1)]
        yield [*near, *parts, *beside, *ends, f"shape={_shape(word)}", "bias"]


def _shape(word: str) -> str:
    """``Xxx-00`` for ``Abc-12``, alike in a row once."""
    kinds = (
        "X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word
    )
    return "".join(kind for kind, _ in groupby(kinds))

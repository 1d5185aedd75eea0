"""How well entities are found, and words tagged: precision, recall and F1 of whole entities, as
conlleval counts them (Tjong Kim Sang and De Meulder 2003), with intervals by the bootstrap over
texts.

N texts, R resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.tags import Entity, Scheme, entities, strict_entities
from llmctl.evaluation.bootstrap import percentile_interval

Tags = Sequence[Sequence[str]]
Finder = Callable[[Sequence[str]], Iterable[Entity]]
RESAMPLES_AT_ONCE = 200


def report(
    true: Tags, found: Tags, scheme: Scheme, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Figures of the tags that were found for some texts.

    ``f1`` with its interval, ``precision`` and ``recall`` count an entity whose words and type are
    all right; ``strict_f1`` counts no entity that is not spelt in full; ``types`` has each type's;
    ``accuracy`` is the share of words with the right tag, and of tags that spell nothing all that
    there is. Raises ValueError unless there are as many tags as words.
    """
    words = np.asarray([len(tags) for tags in true])
    right = np.asarray(
        [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(true, found, strict=True)]
    )
    row: dict[str, Any] = {"words": int(words.sum()), "accuracy": _ratio(right.sum(), words.sum())}
    if scheme == "plain":
        row["intervals"] = {"accuracy": _interval(right, words, resamples, seed)}
        return row
    counts_N3, by_type = _counts(true, found, entities)
    strict_N3, _ = _counts(true, found, lambda tags: strict_entities(tags, scheme))
    row |= _figures(counts_N3.sum(0))
    row["strict_f1"] = _figures(strict_N3.sum(0))["f1"]
    row["types"] = {
        kind: {**_figures(counts), "entities": int(counts[2])}
        for kind, counts in sorted(by_type.items())
    }
    hits_N, all_N = 2 * counts_N3[:, 0], counts_N3[:, 1] + counts_N3[:, 2]
    row["intervals"] = {"f1": _interval(hits_N, all_N, resamples, seed)}
    return row


def f1_difference(
    true: Tags, first: Tags, second: Tags, *, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """F1 of one way of tagging less that of another on the same texts, resampled in pairs, with
    its interval ``low`` to ``high``."""
    a_N3, b_N3 = (_counts(true, found, entities)[0] for found in (first, second))

    def f1(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
        hits, found, there = (weights @ counts).T
        return 2 * hits / np.maximum(found + there, 1)

    whole = np.ones((1, len(a_N3)), dtype=np.int64)
    drawn = np.concatenate(
        [f1(a_N3, w) - f1(b_N3, w) for w in _weights(len(a_N3), resamples, seed)]
    )
    low, high = percentile_interval(drawn)
    return {"difference": float((f1(a_N3, whole) - f1(b_N3, whole))[0]), "low": low, "high": high}


def _counts(
    true: Tags, found: Tags, finder: Finder
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """(N, 3): entities of each text that were found, those that were answered, and those that are
    there; and the same sums for each type."""
    rows, by_type = [], defaultdict[str, NDArray[np.int64]](lambda: np.zeros(3, dtype=np.int64))
    for tags, answer in zip(true, found, strict=True):
        there, answered = set(finder(tags)), set(finder(answer))
        rows.append((len(there & answered), len(answered), len(there)))
        for place, part in enumerate((there & answered, answered, there)):
            for entity in part:
                by_type[entity.type][place] += 1
    return np.asarray(rows, dtype=np.int64).reshape(-1, 3), dict(by_type)


def _figures(counts: NDArray[np.int64]) -> dict[str, float]:
    hits, found, there = counts.tolist()
    return {
        "precision": _ratio(hits, found),
        "recall": _ratio(hits, there),
        "f1": _ratio(2 * hits, found + there),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _weights(total: int, resamples: int, seed: int) -> Iterable[NDArray[np.int64]]:
    """How often each text is drawn, for some resamples at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, resamples - start)
        yield generator.multinomial(total, np.full(total, 1 / total), size=count)


def _interval(
    parts_N: NDArray[np.int64], wholes_N: NDArray[np.int64], resamples: int, seed: int
) -> tuple[float, float]:
    drawn = [
        (weights @ parts_N) / np.maximum(weights @ wholes_N, 1)
        for weights in _weights(len(parts_N), resamples, seed)
    ]
    return percentile_interval(np.concatenate(drawn))

"""What is done to a text that is to be restored: the noises of T5 (Raffel et al. 2020, §3.3) and of
BART (Lewis et al. 2019, §2.2), each a pure function of a key and the positions of the rows.

Rows of one batch are as long as each other, so that all of this is a few operations on whole
arrays; what is drawn for a row depends on its own position alone.

B rows, L tokens of text, K spans, S tokens of a source, T of a target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import bits, key_of, uniform

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Noised:
    """Sources and targets, without the tokens that end them."""

    sources_BS: Ids
    """Padded behind with 0."""
    lengths_B: Ids
    """Tokens of each source."""
    targets_BT: Ids
    hidden_BT: Flags
    """Which tokens of the target the source does not show."""
    spans_B: Ids
    """Runs of tokens that were hidden; of deleted or masked tokens each is one."""


def spans_of(length: int, share: float, mean_span: float) -> tuple[int, int]:
    """Tokens of a text that are hidden, and the spans that they are in, as T5 counts them."""
    noised = min(max(round(length * share), 1), length - 1)
    return noised, max(1, round(noised / mean_span))


def segments(key: int, rows_B: Ids, items: int, count: int) -> Ids:
    """(B, K): lengths of so many segments, none empty, that some tokens are divided into; each
    division is as likely (T5's ``random_segmentation``)."""
    order = np.argsort(bits(key, rows_B[:, None], np.arange(items - 1)), axis=1)
    cuts = np.sort(order[:, : count - 1], axis=1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=items)


def span_mask(key: int, rows_B: Ids, length: int, share: float, mean_span: float) -> Flags:
    """(B, L): which tokens are hidden, in spans of random lengths between others of random lengths:
    a text begins with one that stays and ends with one that is hidden (T5's
    ``random_spans_noise_mask``)."""
    noised, count = spans_of(length, share, mean_span)
    hidden = segments(key_of(key, "hidden"), rows_B, noised, count)
    shown = segments(key_of(key, "shown"), rows_B, length - noised, count)
    lengths = np.stack([shown, hidden], axis=2).reshape(len(rows_B), -1)
    ends = np.cumsum(lengths, axis=1)[:, :-1]
    switches = np.zeros((len(rows_B), length), dtype=np.int64)
    np.put_along_axis(switches, ends, 1, axis=1)
    return np.cumsum(switches, axis=1) % 2 == 1


def span_corruption(ids_BL: Ids, mask_BL: Flags, sentinels: Ids) -> Noised:
    """Each hidden span becomes a sentinel in the source, each shown one in the target, so that both
    number the spans alike; one more sentinel ends the target (Raffel et al. 2020, figure 2).

    mask_BL: of ``span_mask``. sentinels: one more than there are spans, or more.
    """
    B = len(ids_BL)

    def marked(replaced_BL: Flags) -> tuple[Ids, Flags]:
        """Each run of what is replaced as one sentinel, and where these are."""
        starts = replaced_BL.copy()
        starts[:, 1:] &= ~replaced_BL[:, :-1]
        numbers = np.cumsum(starts, axis=1) - 1
        kept = starts | ~replaced_BL
        values = np.where(starts, sentinels[np.maximum(numbers, 0)], ids_BL)
        return values[kept].reshape(B, -1), starts[kept].reshape(B, -1)

    sources, is_sentinel = marked(mask_BL)
    targets, shown = marked(~mask_BL)
    spans_B = is_sentinel.sum(1)
    last = sentinels[spans_B][:, None]
    return Noised(
        sources,
        np.full(B, sources.shape[1]),
        np.concatenate([targets, last], axis=1),
        np.concatenate([~shown, np.zeros((B, 1), dtype=bool)], axis=1),
        spans_B,
    )


def prefix(ids_BL: Ids, cut: int) -> Noised:
    """The beginning is the source, the rest the target (prefix language modelling; Raffel et al.
    2020, §3.2.1)."""
    B = len(ids_BL)
    targets = ids_BL[:, cut:]
    return Noised(
        ids_BL[:, :cut],
        np.full(B, cut),
        targets,
        np.ones(targets.shape, dtype=bool),
        np.ones(B, dtype=np.int64),
    )


def infilled(
    key: int, rows_B: Ids, ids_BL: Ids, share: float, mean_span: float, mask: int
) -> Noised:
    """Spans with lengths of a Poisson distribution become one mask each, and those of length 0 put
    one in, until the share is hidden; the last is as long as what is left to hide (text infilling).

    They lie anywhere, so that two may touch.
    """
    B, L = ids_BL.shape
    noised = min(max(round(L * share), 1), L - 1)
    lengths_BK = _poisson_until(key_of(key, "lengths"), rows_B, mean_span, noised)
    used_BK = lengths_BK >= 0
    K = lengths_BK.shape[1]
    # Before which of the tokens that stay each of them is; those not used behind all.
    places = uniform(key_of(key, "places"), rows_B[:, None], np.arange(K)) * (L - noised + 1)
    places_BK = np.sort(np.where(used_BK, places.astype(np.int64), L), axis=1)
    spans_B = used_BK.sum(1)
    S = L - noised + K
    lengths_B = L - noised + spans_B
    is_mask = np.zeros((B, S + L), dtype=bool)
    np.put_along_axis(is_mask, places_BK + np.arange(K), True, axis=1)
    is_mask = is_mask[:, :S] & (np.arange(S) < lengths_B[:, None])
    # A token that stays is as far along in the text as there are before it, and hidden ones.
    skipped = np.concatenate([np.zeros((B, 1), np.int64), np.cumsum(lengths_BK.clip(0), 1)], axis=1)
    before = np.cumsum(is_mask, axis=1)
    origin = np.arange(S) - before + np.take_along_axis(skipped, before, axis=1)
    stays = ~is_mask & (np.arange(S) < lengths_B[:, None])
    sources = np.where(is_mask, mask, np.take_along_axis(ids_BL, origin.clip(0, L - 1), axis=1))
    hidden = np.ones((B, L), dtype=bool)
    hidden[np.nonzero(stays)[0], origin[stays]] = False
    longest = int(lengths_B.max())
    return Noised(
        np.where(is_mask | stays, sources, 0)[:, :longest], lengths_B, ids_BL, hidden, spans_B
    )


def _poisson_until(key: int, rows_B: Ids, mean: float, total: int) -> Ids:
    """(B, K): lengths of a Poisson distribution until they are so many tokens together, the last
    cut; -1 behind these."""
    numbers = np.arange(int(mean + 12 * math.sqrt(mean) + 20))
    logs = numbers * math.log(mean) - mean - np.array([math.lgamma(n + 1) for n in numbers])
    rising = np.cumsum(np.exp(logs))
    count = int(2 * total / mean) + 16
    while True:
        drawn = uniform(key, rows_B[:, None], np.arange(count))
        lengths = np.searchsorted(rising, drawn, side="right").clip(max=len(numbers) - 1)
        ends = np.cumsum(lengths, axis=1)
        if (ends[:, -1] >= total).all():
            break
        count *= 2
    before = ends - lengths
    cut = np.where(before < total, np.minimum(lengths, total - before), -1)
    # No more masks than tokens are hidden: a source is never longer than its text.
    empty = cut == 0
    cut[empty & (np.cumsum(empty, axis=1) > total - (cut > 0).sum(1, keepdims=True))] = -1
    cut = np.take_along_axis(cut, np.argsort(cut < 0, axis=1, kind="stable"), axis=1)
    return cut[:, : int((cut >= 0).sum(1).max())]


def _chosen(key: int, rows_B: Ids, length: int, share: float) -> Flags:
    """(B, L): a share of the tokens, drawn without regard to one another."""
    noised = min(max(round(length * share), 1), length - 1)
    order = np.argsort(bits(key, rows_B[:, None], np.arange(length)), axis=1)
    mask = np.zeros((len(rows_B), length), dtype=bool)
    np.put_along_axis(mask, order[:, :noised], True, axis=1)
    return mask


def _runs(mask_BL: Flags) -> Ids:
    """(B,): runs of true entries."""
    return mask_BL[:, 0] + (mask_BL[:, 1:] & ~mask_BL[:, :-1]).sum(1)


def masked(key: int, rows_B: Ids, ids_BL: Ids, share: float, mask: int) -> Noised:
    """A share of the tokens becomes a mask each."""
    hidden = _chosen(key, rows_B, ids_BL.shape[1], share)
    lengths = np.full(len(ids_BL), ids_BL.shape[1])
    return Noised(np.where(hidden, mask, ids_BL), lengths, ids_BL, hidden, _runs(hidden))


def deleted(key: int, rows_B: Ids, ids_BL: Ids, share: float) -> Noised:
    """A share of the tokens is left out, and nothing says where."""
    hidden = _chosen(key, rows_B, ids_BL.shape[1], share)
    sources = ids_BL[~hidden].reshape(len(ids_BL), -1)
    lengths = np.full(len(ids_BL), sources.shape[1])
    return Noised(sources, lengths, ids_BL, hidden, _runs(hidden))


def permuted(key: int, rows_B: Ids, texts_BL: Ids, sentences_BL: Ids) -> Ids:
    """(B, L): the places of the tokens where each text's sentences are in a random order (sentence
    permutation).

    texts_BL, sentences_BL: the number of each token's text in the row, and of its sentence.
    """
    B, L = texts_BL.shape
    order = bits(key, rows_B[:, None], sentences_BL)
    return np.stack([np.lexsort((np.arange(L), order[row], texts_BL[row])) for row in range(B)])


def rotated(key: int, rows_B: Ids, texts_BL: Ids) -> Ids:
    """(B, L): the places of the tokens where each text begins with a random one of its tokens, and
    goes on at its start behind its end (document rotation)."""
    B, L = texts_BL.shape
    places = np.broadcast_to(np.arange(L), (B, L))
    begins = np.ones((B, L), dtype=bool)
    begins[:, 1:] = texts_BL[:, 1:] != texts_BL[:, :-1]
    start = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    ends = np.zeros_like(begins)
    ends[:, :-1], ends[:, -1] = begins[:, 1:], True
    stop = np.minimum.accumulate(np.where(ends, places + 1, L)[:, ::-1], axis=1)[:, ::-1]
    length = stop - start
    first = (uniform(key, rows_B[:, None], texts_BL) * length).astype(np.int64)
    return start + (places - start + first) % length

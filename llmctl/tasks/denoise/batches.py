"""Rows of text with noise, and what is to be written from them.

A split is one stream of documents, an end token before each, and a row a window of it, as T5 and
BART are trained: but for infilling, whose sources differ by a few tokens, nothing is padded. In
validation the last row goes on around the stream's end.

B rows, L tokens of text, S tokens of a source, T of a target.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.random import integers, key_of
from llmctl.data.shards.windows import Rows, WindowBatches
from llmctl.errors import ConfigError, InputError
from llmctl.models.heads.padding import rounded_up
from llmctl.tasks.denoise import noise
from llmctl.tasks.denoise.config import MASKS, WITH_SPANS, DenoiseConfig
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.frames import Frame
from llmctl.training.batches import TensorBatch

SOURCE_STEP = 8
"""Sources that differ in length are as long as a multiple of this: see ``rounded_up``."""
LEAST_TEXT = 4
"""Tokens of text in a row at the least."""


@dataclass(frozen=True)
class NoiseCounts:
    """What noise came to, in numbers of tokens, spans, sentences and documents."""

    tokens: int = 0
    hidden: int = 0
    spans: int = 0
    sentences: int = 0
    moved: int = 0
    """Sentences that another stands before than in the text."""
    texts: int = 0
    rotated: int = 0
    """Documents, or what a row holds of them, that begin elsewhere."""

    def __add__(self, other: NoiseCounts) -> NoiseCounts:
        names = [entry.name for entry in fields(self)]
        return NoiseCounts(*(getattr(self, name) + getattr(other, name) for name in names))

    def document(self, config: DenoiseConfig) -> dict[str, dict[str, float]]:
        """The figures of each noise."""
        kinds: dict[str, dict[str, float]] = {}
        for name in config.names:
            if name == "permutation":
                kinds[name] = {"moved_share": self.moved / max(self.sentences, 1)}
            elif name == "rotation":
                kinds[name] = {"rotated_share": self.rotated / max(self.texts, 1)}
            else:
                kinds[name] = {
                    "share": self.hidden / max(self.tokens, 1),
                    "mean_span": self.hidden / max(self.spans, 1),
                }
        return kinds


@dataclass(frozen=True)
class DenoisingBatch(TensorBatch):
    """Sources with noise, and targets shifted by one."""

    source_ids_BS: Tensor
    source_lengths_B: Tensor | None
    """None: no source is padded."""
    input_ids_BT: Tensor
    labels_BT: Tensor
    hidden_BT: Tensor
    """Which labels the source does not show; the others are copied, or mark spans and the end."""
    counts: NoiseCounts = field(default_factory=NoiseCounts)
    """What was done to all of the batch."""

    @property
    def num_positions(self) -> int:
        return self.source_ids_BS.numel() + self.input_ids_BT.numel()

    @property
    def scored(self) -> int:
        """Labels."""
        return self.labels_BT.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"denoising_loss": self.scored}


@dataclass(frozen=True)
class NoiseVocab:
    """What noise must know of a tokenizer."""

    end: int
    """Between documents."""
    mask: int | None
    sentinels: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Tokenizer, frame: Frame) -> NoiseVocab:
        """frame: what stands around sources and targets."""
        sentinels = np.asarray(tokenizer.sentinels, dtype=np.int64)
        return cls(frame.end[-1], tokenizer.special.get("mask"), sentinels)


def text_length(config: DenoiseConfig, sequence_length: int, frame: Frame) -> int:
    """Tokens of text in a row, so that source and target with what is around them are at most as
    long as the sequence, and one of them just so."""
    length = LEAST_TEXT
    while max(lengths_of(config, length + 1, frame)) <= sequence_length:
        length += 1
    return length


def lengths_of(config: DenoiseConfig, length: int, frame: Frame) -> tuple[int, int]:
    """Tokens of source and target, with what is around them, that noise makes of so many at
    most."""
    source = target = length
    if config.noise == "spans":
        noised, spans = noise.spans_of(length, config.share, config.span)
        source, target = length - noised + spans, noised + spans + 1
    around = len(frame.before) + len(frame.after), len(frame.start) - 1 + len(frame.end)
    return source + around[0], target + around[1]


def check_fits(config: DenoiseConfig, vocabulary: NoiseVocab, length: int) -> None:
    """Raises ConfigError where spans are longer than what is hidden of so many tokens, InputError
    where the tokenizer has no mask or too few sentinels."""
    if config.hiding in MASKS and vocabulary.mask is None:
        raise InputError(
            f"objective.noise {config.noise} needs a token for a mask, and the shards' tokenizer "
            "has none; tokenize with another, or take spans or deletion"
        )
    if config.hiding not in WITH_SPANS:
        return
    noised, spans = noise.spans_of(length, config.share, config.span)
    if config.span > noised:
        raise ConfigError(
            f"objective.mean_span {config.span:g} is longer than what is hidden of a row: of "
            f"{length} tokens {noised}; lower it, or raise objective.noise_share or "
            "data.sequence_length"
        )
    have = len(vocabulary.sentinels)
    if config.hiding == "spans" and have < spans + 1:
        raise InputError(
            f"objective.noise spans: rows of {length} tokens have {spans} spans and need "
            f"{spans + 1} sentinels (<extra_id_0>, …), and the shards' tokenizer has "
            f"{have or 'none'}; make shards with them: llmctl tokenize … --sentinels 100"
        )


class DenoisingBatches:
    """The batches of a split."""

    def __init__(
        self,
        windows: WindowBatches,
        vocabulary: NoiseVocab,
        config: DenoiseConfig,
        *,
        frame: Frame,
        seed: int,
    ) -> None:
        """windows: rows of as many tokens as ``text_length`` says. frame: what stands around
        sources and targets."""
        self.windows, self._vocabulary, self._config = windows, vocabulary, config
        self._frame, self._key = frame, key_of(seed, "noise")

    @property
    def per_epoch(self) -> int:
        return self.windows.batches_per_epoch if self.windows.stream.length else 0

    def __call__(self, number: int) -> DenoisingBatch:
        rows = self.windows.batch(number)
        ids_BL = rows.ids[:, :-1]
        texts_BL = sentences_BL = None
        if set(self._config.names) & {"permutation", "rotation"}:
            texts_BL = documents(rows)[:, :-1]
        if "permutation" in self._config.names:
            sentences_BL = self.windows.sentences(number)[:, :-1]
        found, counts = add_noise(
            self._config,
            self._key,
            rows.positions,
            ids_BL,
            self._vocabulary,
            texts_BL=texts_BL,
            sentences_BL=sentences_BL,
        )
        return collate(found, counts, self._frame)


def documents(rows: Rows) -> NDArray[np.int64]:
    """Numbers that tell a row's documents apart, odd ones, and the tokens between them, even ones,
    so that these stay where they are."""
    changes = np.zeros(rows.begins.shape, dtype=np.int64)
    changes[:, 1:] = rows.begins[:, 1:] != rows.begins[:, :-1]
    between = rows.begins == np.arange(rows.begins.shape[1])
    return 2 * np.cumsum(changes, axis=1) + ~between


def add_noise(
    config: DenoiseConfig,
    key: int,
    rows_B: NDArray[np.int64],
    ids_BL: NDArray[np.int64],
    vocabulary: NoiseVocab,
    *,
    texts_BL: NDArray[np.int64] | None = None,
    sentences_BL: NDArray[np.int64] | None = None,
) -> tuple[noise.Noised, NoiseCounts]:
    """Rows of text with noise; a pure function of its arguments.

    rows_B: the rows' positions in the endless stream. texts_BL, sentences_BL: numbers that tell the
    documents and sentences of a row from each other, for permutation and rotation; those of
    ``documents`` are odd where there is one. Sentences are put in another order first, then texts
    rotated, then tokens hidden.
    """
    B, L = ids_BL.shape
    share, span, mask = config.share, config.span, vocabulary.mask
    counts = NoiseCounts(tokens=B * L)
    if config.noise == "prefix":
        # The same in all rows of a batch, so that nothing is padded.
        cut = 1 + int(integers(key_of(key, "prefix"), L - 1, int(rows_B[0])))
        found = noise.prefix(ids_BL, cut)
        return found, counts + NoiseCounts(hidden=B * (L - cut), spans=B)
    if config.noise == "spans":
        hidden_BL = noise.span_mask(key, rows_B, L, share, span)
        found = noise.span_corruption(ids_BL, hidden_BL, vocabulary.sentinels)
        return found, counts + _hidden(found)
    order_BL = np.broadcast_to(np.arange(L), (B, L))
    if sentences_BL is not None:
        assert texts_BL is not None
        order_BL = noise.permuted(key_of(key, "permutation"), rows_B, texts_BL, sentences_BL)
        counts += _moved(order_BL, sentences_BL)
    if "rotation" in config.names:
        assert texts_BL is not None
        turned = noise.rotated(key_of(key, "rotation"), rows_B, texts_BL)
        starts = np.ones((B, L), dtype=bool)
        starts[:, 1:] = texts_BL[:, 1:] != texts_BL[:, :-1]
        starts &= texts_BL % 2 == 1
        turns = int((turned != np.arange(L))[starts].sum())
        counts += NoiseCounts(texts=int(starts.sum()), rotated=turns)
        order_BL = np.take_along_axis(order_BL, turned, axis=1)
    moved_BL = np.take_along_axis(ids_BL, order_BL, axis=1)
    key = key_of(key, str(config.hiding))
    if config.hiding == "infilling":
        assert mask is not None
        found = noise.infilled(key, rows_B, moved_BL, share, span, mask)
    elif config.hiding == "masking":
        assert mask is not None
        found = noise.masked(key, rows_B, moved_BL, share, mask)
    elif config.hiding == "deletion":
        found = noise.deleted(key, rows_B, moved_BL, share)
    else:
        nothing = np.zeros((B, L), dtype=bool)
        found = noise.Noised(moved_BL, np.full(B, L), ids_BL, nothing, np.zeros(B, np.int64))
    hidden_BL = np.empty_like(found.hidden_BT)
    np.put_along_axis(hidden_BL, order_BL, found.hidden_BT, axis=1)
    restored = noise.Noised(found.sources_BS, found.lengths_B, ids_BL, hidden_BL, found.spans_B)
    return restored, counts + _hidden(found)


def _hidden(found: noise.Noised) -> NoiseCounts:
    return NoiseCounts(hidden=int(found.hidden_BT.sum()), spans=int(found.spans_B.sum()))


def _moved(order_BL: NDArray[np.int64], sentences_BL: NDArray[np.int64]) -> NoiseCounts:
    """Sentences that begin behind another token than in the text."""
    numbers_BL = np.take_along_axis(sentences_BL, order_BL, axis=1)
    starts = numbers_BL[:, 1:] != numbers_BL[:, :-1]
    jumps = order_BL[:, 1:] != order_BL[:, :-1] + 1
    return NoiseCounts(sentences=int(starts.sum()), moved=int((starts & jumps).sum()))


def collate(found: noise.Noised, counts: NoiseCounts, frame: Frame) -> DenoisingBatch:
    """Noised rows as a batch, with what stands around sources and targets; the first token of a
    target is never predicted."""
    B, before = len(found.sources_BS), len(frame.before)
    lengths_B = found.lengths_B + before + len(frame.after)
    longest, even = int(lengths_B.max()), bool((lengths_B == lengths_B[0]).all())
    sources_BS = np.zeros((B, longest if even else rounded_up(longest, SOURCE_STEP)), np.int64)
    sources_BS[:, :before] = frame.before
    sources_BS[:, before : before + found.sources_BS.shape[1]] = found.sources_BS
    for number, token in enumerate(reversed(frame.after), 1):
        sources_BS[np.arange(B), lengths_B - number] = token

    def repeated(tokens: tuple[int, ...]) -> NDArray[np.int64]:
        return np.tile(np.asarray(tokens, dtype=np.int64), (B, 1))

    starts, ends = repeated(frame.start), repeated(frame.end)
    targets_BT = np.concatenate([starts, found.targets_BT, ends], axis=1)
    hidden = np.zeros(targets_BT.shape, dtype=bool)
    hidden[:, starts.shape[1] : starts.shape[1] + found.hidden_BT.shape[1]] = found.hidden_BT
    return DenoisingBatch(
        tokens_B=lengths_B + targets_BT.shape[1] - 1,
        source_ids_BS=torch.from_numpy(sources_BS),
        source_lengths_B=None if even else torch.from_numpy(lengths_B),
        input_ids_BT=torch.from_numpy(targets_BT[:, :-1].copy()),
        labels_BT=torch.from_numpy(targets_BT[:, 1:].copy()),
        hidden_BT=torch.from_numpy(hidden[:, 1:].copy()),
        counts=counts,
    )

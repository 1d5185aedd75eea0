"""Packed rows with hidden tokens (Devlin et al. 2018, §3.1).

15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a random ordinary token, 10 %
stay. What is chosen is drawn anew each epoch, never a special token.

B rows, T tokens in a row, M masked tokens, S texts (pairs) in the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.packing import PackedBatches
from llmctl.data.random import integers, key_of, uniform
from llmctl.data.shards.chunks import ChunkRefs, Chunks
from llmctl.data.shards.sentence_pairs import TextPair, draw_pairs
from llmctl.models.layers.packing import PackedSequences
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class MaskingVocab:
    """What masking must know of a tokenizer."""

    cls: int
    sep: int
    mask: int
    pad: int
    ordinary: NDArray[np.int64]
    """Every id that is not special: what random replacements are drawn from."""
    continuation: NDArray[np.bool_]
    """(V,): whether the token continues a word."""

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """(V,): whether the token is special; [UNK], which text may hold, is."""
        table = np.ones(len(self.continuation), dtype=bool)
        table[self.ordinary] = False
        return table


def masking_vocab(tokenizer: Tokenizer) -> MaskingVocab:
    """What masking needs of a tokenizer with BERT's special tokens."""
    return MaskingVocab(
        cls=tokenizer.special["cls"],
        sep=tokenizer.special["sep"],
        mask=tokenizer.special["mask"],
        pad=tokenizer.special["pad"],
        ordinary=tokenizer.ordinary,
        continuation=tokenizer.continuation,
    )


@dataclass(frozen=True)
class MaskedBatch(TensorBatch):
    """Packed rows with their hidden tokens."""

    input_ids_BT: Tensor
    segment_ids_BT: Tensor
    position_ids_BT: Tensor
    packed: PackedSequences | None
    """What attention stays inside of; None if every row is one full text."""
    masked_M: Tensor
    """Flat places (b · T + t) of the tokens to predict."""
    labels_M: Tensor
    cls_S: Tensor
    """Flat place of each text's [CLS]."""
    next_labels_S: Tensor
    """0 where B follows A, 1 where it is random: Hugging Face's convention."""
    next_sentence: bool
    """Whether that is judged."""

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        counts = {"mlm_loss": len(self.labels_M)}
        return {**counts, "nsp_loss": len(self.next_labels_S)} if self.next_sentence else counts

    def rows(self, begin: int, stop: int) -> Self:
        T = self.input_ids_BT.shape[1]
        part: dict[str, Any] = {
            "tokens_B": self.tokens_B[begin:stop],
            "input_ids_BT": self.input_ids_BT[begin:stop],
            "segment_ids_BT": self.segment_ids_BT[begin:stop],
            "position_ids_BT": self.position_ids_BT[begin:stop],
            "packed": self.packed and self.packed.rows(begin, stop),
        }
        for places, labels in (("masked_M", "labels_M"), ("cls_S", "next_labels_S")):
            flat = getattr(self, places)  # ascending
            within = slice(*torch.searchsorted(flat, torch.tensor([begin * T, stop * T])).tolist())
            part |= {places: flat[within] - begin * T, labels: getattr(self, labels)[within]}
        return replace(self, **part)


class MaskedBatches:
    """The batches of a split: masked, paired, packed."""

    def __init__(
        self,
        packed: PackedBatches,
        vocabulary: MaskingVocab,
        objective: MaskedLMConfig,
        sequence_length: int,
        seed: int,
    ) -> None:
        self.packed, self._vocabulary, self._objective = packed, vocabulary, objective
        self._length, self._seed = sequence_length, seed

    @property
    def per_epoch(self) -> int:
        return self.packed.batches_per_epoch if self.packed.chunks.count else 0

    def __call__(self, number: int) -> MaskedBatch:
        refs, rows = self.packed.batch(number)
        return collate(
            self.packed.chunks,
            refs,
            rows,
            config=self._objective,
            vocabulary=self._vocabulary,
            sequence_length=self._length,
            seed=self._seed,
        )


def collate(
    chunks: Chunks,
    refs: ChunkRefs,
    rows: Sequence[Sequence[int]],
    *,
    config: MaskedLMConfig,
    vocabulary: MaskingVocab,
    sequence_length: int,
    seed: int,
) -> MaskedBatch:
    """Packed, masked rows; a pure function of its arguments.

    refs: the batch's chunks. rows: for each row, which of them it holds, in order.
    """
    pairs: Sequence[TextPair | None]
    if config.next_sentence:
        pairs = draw_pairs(chunks, refs, key_of(seed, "pairs"))
    else:
        pairs = [None] * len(refs)
    shape = (len(rows), sequence_length)
    ids = np.full(shape, vocabulary.pad, dtype=np.int64)
    segments, positions, texts, stream_ids = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    special = np.ones(shape, dtype=bool)
    cls, labels = [], []
    for row, members in enumerate(rows):
        end = 0
        for number, member in enumerate(members, 1):
            begin, pair = end, pairs[member]
            if pair is None:
                spans = [
                    chunks.reader.tokens(
                        int(refs.document[member]), int(refs.start[member]), int(refs.stop[member])
                    )
                ]
            else:
                spans = [pair.first, pair.second]
            ids[row, end] = vocabulary.cls
            end += 1
            for segment, span in enumerate(spans):
                stop = end + len(span)
                ids[row, end:stop] = span
                special[row, end:stop] = vocabulary.is_special[span]
                ids[row, stop] = vocabulary.sep
                segments[row, end : stop + 1] = segment
                end = stop + 1
            positions[row, begin:end] = np.arange(end - begin)
            texts[row, begin:end] = number
            stream_ids[row, begin:end] = refs.position[member]
            cls.append(row * sequence_length + begin)
            labels.append(0 if pair is None or pair.is_next else 1)
    chosen = select_masked(ids, special, positions, stream_ids, config, vocabulary, seed)
    hidden = apply_mask(ids, chosen, positions, stream_ids, config, vocabulary, seed)
    packed = texts.max() > 1 or not texts.all()
    flat_chosen = np.flatnonzero(chosen)
    return MaskedBatch(
        tokens_B=np.count_nonzero(texts, axis=1),
        input_ids_BT=torch.from_numpy(hidden),
        segment_ids_BT=torch.from_numpy(segments),
        position_ids_BT=torch.from_numpy(positions),
        packed=PackedSequences.of(texts) if packed else None,
        masked_M=torch.from_numpy(flat_chosen),
        labels_M=torch.from_numpy(ids.reshape(-1)[flat_chosen]),
        cls_S=torch.tensor(cls),
        next_labels_S=torch.tensor(labels),
        next_sentence=config.next_sentence,
    )


def select_masked(
    ids_BT: NDArray[np.int64],
    special_BT: NDArray[np.bool_],
    positions_BT: NDArray[np.int64],
    stream_ids_BT: NDArray[np.int64],
    config: MaskedLMConfig,
    vocabulary: MaskingVocab,
    seed: int,
) -> NDArray[np.bool_]:
    """Which tokens to predict: each with probability ``mask_rate``, whole words together.

    positions_BT: each token's place in its text; stream_ids_BT: its text's position in the stream.
    """
    units = positions_BT
    if config.whole_word:
        # Special tokens are boundaries too: a piece after one, cut off its word, starts a unit.
        starts = ~vocabulary.continuation[ids_BT] | special_BT
        starts[:, 1:] |= special_BT[:, :-1]
        starts[:, 0] = True
        columns = np.where(starts, np.arange(ids_BT.shape[1]), 0)
        units = np.take_along_axis(positions_BT, np.maximum.accumulate(columns, axis=1), axis=1)
    drawn = uniform(key_of(seed, "mask"), stream_ids_BT, units)
    return (drawn < config.mask_rate) & ~special_BT


def apply_mask(
    ids_BT: NDArray[np.int64],
    chosen_BT: NDArray[np.bool_],
    positions_BT: NDArray[np.int64],
    stream_ids_BT: NDArray[np.int64],
    config: MaskedLMConfig,
    vocabulary: MaskingVocab,
    seed: int,
) -> NDArray[np.int64]:
    """The ids with chosen tokens hidden: 80 % [MASK], 10 % any ordinary token, 10 % as they are."""
    result = ids_BT.copy()
    stream_ids, positions = stream_ids_BT[chosen_BT], positions_BT[chosen_BT]
    kind = uniform(key_of(seed, "hide"), stream_ids, positions)
    random = integers(key_of(seed, "random"), len(vocabulary.ordinary), stream_ids, positions)
    result[chosen_BT] = np.select(
        [kind < config.mask_share, kind < config.mask_share + config.random_share],
        [np.int64(vocabulary.mask), vocabulary.ordinary[random]],
        ids_BT[chosen_BT],
    )
    return result

"""Texts to vectors: packed end to end in rows, embedded, and given back in their order.

S texts, B rows, T tokens in a row, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.packing import pack
from llmctl.models.heads.embed import Embedder
from llmctl.models.heads.padding import rounded_up
from llmctl.models.layers.packing import PackedSequences

ROW_TOKENS, ROW_STEP = 64, 32
"""Tokens of a row at the least, and what longer ones are a multiple of. Attention looks at a whole
row for each of its tokens, and a shorter row is filled less well."""
BATCH_TOKENS = 8192
"""Tokens that are embedded together where nothing is trained."""


@dataclass(frozen=True)
class PackedTexts:
    """Some texts as rows of tokens."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    packed: PackedSequences | None
    """None where each row is one text without padding."""
    lengths_S: Tensor
    """Tokens of each text, row by row."""
    texts_B: NDArray[np.int64]
    """Texts in each row."""
    place_S: NDArray[np.int64]
    """Where each text, as they were given, lies among the texts of all rows."""

    tokens_B: NDArray[np.int64]
    """Tokens of each row that are not padding."""


def pack_texts(texts: Sequence[NDArray[np.int64]], pad: int) -> PackedTexts:
    """Texts, given as ids with special tokens, end to end in as few rows as fit.

    Raises ValueError for a text without tokens.
    """
    lengths = np.asarray([len(text) for text in texts], dtype=np.int64)
    if not lengths.all():
        raise ValueError("a text without tokens has no vector")
    longest = int(lengths.max())
    rows = (
        [[0]] if len(texts) == 1 else pack(lengths, max(ROW_TOKENS, rounded_up(longest, ROW_STEP)))
    )
    width = max(int(lengths[row].sum()) for row in rows)
    ids, positions, numbers = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(3))
    ids += pad
    for row, members in enumerate(rows):
        end = 0
        for number, member in enumerate(members, 1):
            begin, end = end, end + len(texts[member])
            ids[row, begin:end] = texts[member]
            positions[row, begin:end] = np.arange(end - begin)
            numbers[row, begin:end] = number
    order = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return PackedTexts(
        input_ids_BT=torch.from_numpy(ids),
        position_ids_BT=torch.from_numpy(positions),
        packed=None if bool((numbers == 1).all()) else PackedSequences.of(numbers),
        lengths_S=torch.from_numpy(lengths[order]),
        texts_B=np.asarray([len(row) for row in rows], dtype=np.int64),
        place_S=place,
        tokens_B=np.count_nonzero(numbers, axis=1),
    )


def groups(lengths: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Places of texts to be embedded together, those of like length: about ``tokens`` each."""
    order = np.argsort(lengths, kind="stable")
    begin = 0
    while begin < len(order):
        sums = np.cumsum(lengths[order[begin:]])
        stop = begin + max(1, int(np.searchsorted(sums, tokens, side="right")))
        yield order[begin:stop]
        begin = stop


@torch.inference_mode()
def embed_ids(model: Embedder, texts: Sequence[NDArray[np.int64]], pad: int) -> NDArray[np.float32]:
    """Vectors (S, D) of texts given as ids with special tokens, in their order.

    Each comes to the same whatever it is embedded with, but for the last bits.
    """
    model.eval()
    device = next(model.parameters()).device
    result = np.empty((len(texts), model.body.config.hidden_size), dtype=np.float32)
    lengths = np.asarray([len(text) for text in texts], dtype=np.int64)
    for places in groups(lengths, BATCH_TOKENS):
        rows = pack_texts([texts[place] for place in places.tolist()], pad)
        vectors = model(
            rows.input_ids_BT.to(device),
            rows.position_ids_BT.to(device),
            rows.packed and rows.packed.to(device),
            rows.lengths_S.to(device),
        )
        result[places] = vectors.cpu().numpy()[rows.place_S]
    return result


def narrowed(vectors_ND: NDArray[np.float32], width: int | None) -> NDArray[np.float32]:
    """The first ``width`` coordinates of each vector, at length 1 again (Kusupati et al. 2022)."""
    if width is None or width == vectors_ND.shape[1]:
        return vectors_ND
    return normalized(vectors_ND[:, :width])


def normalized(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; one of zeros stays as it is."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    result: NDArray[np.float32] = vectors_ND / np.maximum(lengths_N1, np.float32(1e-12))
    return result

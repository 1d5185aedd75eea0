"""Token embeddings that start from what text says of each token, counted before training begins.

V vocabulary, N tokens, D width.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.shards.cooccurrence import token_vectors
from llmctl.data.shards.files import ShardReader
from llmctl.models.spec import Backbone

COOCCURRENCE_RANGE = 0.1
"""Root mean square of the embeddings. At a BERT's 0.02 the first hundred steps of AdamW overwrite
them (after 1.5 million tokens a BERT of 2 layers × 128 had a masked loss of 5.70, as from random
ones; with 0.1 one of 5.43 after 0.8 million), and at 0.3 they learn too slowly (5.04 where 0.1 has
4.93, of a ModernBERT)."""


@torch.no_grad()
def start_from_company(body: Backbone, folder: Path, fingerprint: str) -> None:
    """Begin the token embeddings of a body as the co-occurrences in a shard folder say. Each of its
    tables of embeddings grows alike, so that they keep their shares of the sum. fingerprint: of
    what the folder holds."""
    table_VD = body.embedding().weight
    known, vectors_ND = _vectors_of(folder, fingerprint, *table_VD.shape)
    growth = COOCCURRENCE_RANGE / table_VD.std()
    for name, parameter in body.named_parameters():
        if body.role(name).kind in ("token-embedding", "embedding"):
            parameter.mul_(growth)
    started_ND = torch.from_numpy(COOCCURRENCE_RANGE * vectors_ND).to(table_VD)
    table_VD[torch.from_numpy(known), : started_ND.shape[1]] = started_ND


@lru_cache(maxsize=4)  # a budget tries several shapes
def _vectors_of(
    folder: Path, fingerprint: str, vocab_size: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return token_vectors(ShardReader(folder, "train", vocab_size), vocab_size, width)

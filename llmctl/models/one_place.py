"""The states of an encoder at one place of each row, for pseudo-likelihoods: copies of few texts,
each with another token hidden, of which one answer is wanted.

What no other place's answer asks for is left out. The copies have few pairs of token and position,
whose embeddings and first projections are made once; and the last layer, but for its keys and
values, is computed at the places alone. What that is worth stands in tests/benchmarks/RESULTS.md.

B rows, T tokens, D width, E three widths, P pairs of token and position.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmctl.models.layers.attention import SelfAttention

if TYPE_CHECKING:
    from llmctl.models.bert import Bert


def is_plain(body: Bert) -> bool:
    """Whether an encoder's layers are as they were built, with nothing before its texts.

    What stands in a layer's place, or a training's dropout, wants the whole.
    """
    return (
        not body.training
        and body.virtual_tokens is None
        and len(body.blocks) > 0
        and all(
            hasattr(block, "combined") and type(block.attention) is SelfAttention
            for block in body.blocks
        )
    )


def hidden_at(body: Bert, input_ids_BT: Tensor, places_B: Tensor) -> Tensor:
    """Hidden states (B, D) of the last layer of a plain encoder at one place of each row."""
    rows_BT = body.position_rows(input_ids_BT, None).expand_as(input_ids_BT)
    most = body.position_embedding.num_embeddings
    pairs_P, pair_of_BT = torch.unique(input_ids_BT * most + rows_BT, return_inverse=True)
    x_PD = body.embedded((pairs_P // most)[None], (pairs_P % most)[None])[0]
    blocks: list[Any] = list(body.blocks)
    x_BTD, qkv_BTE = x_PD[pair_of_BT], blocks[0].attention.query_key_value(x_PD)[pair_of_BT]
    for block, following in pairwise(blocks):
        x_BTD = block.combined(x_BTD, block.attention.mixed_at(qkv_BTE, None))
        qkv_BTE = following.attention.query_key_value(x_BTD)
    x_B1D = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), places_B].unsqueeze(1)
    mixed_B1D = blocks[-1].attention.mixed_at(qkv_BTE, places_B)
    found: Tensor = blocks[-1].combined(x_B1D, mixed_B1D)[:, 0]
    return found

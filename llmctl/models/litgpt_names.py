"""What LitGPT calls a network's tensors.

Queries, keys and values are one matrix there as here, ``attn.qkv``. Checkpoints of before 2025 call
it ``attn.attn`` and keep the rows by groups: the queries of a group, its keys, its values, then
those of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmctl.models.gemma3 import Gemma3Config
from llmctl.models.weight_map import BOTH, Fuse, Rename, WeightMap

EMBEDDING_MATRIX, OUTPUT_MATRIX = "transformer.wte.weight", "lm_head.weight"
CURRENT, BEFORE_2025 = ".attn.qkv.", ".attn.attn."
_OF_LAYER = "transformer.h.{}."
_MODULES = {
    "norm_1": "norm_1", "attention.output": "attn.proj", "norm_2": "norm_2",
    "feed_forward.contract": "mlp.proj",
}  # fmt: skip
_QK_NORMS = {"attention.query_norm": "attn.norm_q", "attention.key_norm": "attn.norm_k"}
_NORMS_AFTER = {"norm_after_1": "post_attention_norm", "norm_after_2": "post_mlp_norm"}
"""Modules of a layer: of every network, of those that normalise queries and keys, and of a
Gemma's."""


@dataclass(frozen=True)
class GroupedRows(Rename):
    """A rule by which the rows of queries, keys and values lie group by group elsewhere."""

    in_place = False
    queries: int = 1
    """Heads of queries to each of keys."""
    head_size: int = 1

    def split(self, tensor: Tensor, config: Any) -> Sequence[Tensor]:
        each = self.head_size
        groups = len(tensor) // (each * (self.queries + 2))
        parts = tensor.split([groups * self.queries * each, groups * each, groups * each])
        return [torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        (theirs,) = tensors
        each = self.head_size
        grouped = theirs.unflatten(0, (-1, each * (self.queries + 2)))
        parts = grouped.split([self.queries * each, each, each], 1)
        return torch.cat([part.flatten(0, 1) for part in parts])


def names_of(config: Any, *, grouped: bool) -> WeightMap:
    """The names of a network's tensors. grouped: whether the rows of queries, keys and values lie
    group by group."""
    ours = "blocks.{}.attention.query_key_value"
    parts = BOTH if config.qkv_bias else ("weight",)
    modules = {
        **_MODULES,
        **(_QK_NORMS if config.qk_norm else {}),
        **(_NORMS_AFTER if isinstance(config, Gemma3Config) else {}),
    }
    theirs = f"{_OF_LAYER}attn.qkv"
    qkv = Rename(ours, theirs, parts)
    if grouped:
        queries = config.num_heads // config.num_kv_heads
        qkv = GroupedRows(ours, theirs, parts, queries=queries, head_size=config.head_size)
    return WeightMap(
        "a checkpoint of LitGPT",
        "",
        (
            Rename("token_embedding", "transformer.wte"),
            Rename("norm", "transformer.ln_f"),
            qkv,
            *(Rename(f"blocks.{{}}.{o}", _OF_LAYER + theirs) for o, theirs in modules.items()),
            Fuse(
                "blocks.{}.feed_forward.gate_up", (f"{_OF_LAYER}mlp.fc_1", f"{_OF_LAYER}mlp.fc_2")
            ),
        ),
        {"causal_lm": (Rename("output", "lm_head", where="not tie_embeddings"),)},
    )
